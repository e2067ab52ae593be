"""The HTTP side: the chat page, health, version, a visitor's conversations, one shape for errors."""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final, Literal

from fastapi import APIRouter, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs, reference
from server.engine import Engine, EngineUnhealthy
from server.offload import Offload
from server.openai_errors import ApiError
from server.protocol import SUBPROTOCOL
from server.store import Store, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

WEB: Final = Path(__file__).resolve().parent / "web"
READY_FOR: Final = 1.0
"""Seconds that an answer to `/readyz` is kept, so that asking often costs nothing."""

CONTENT_SECURITY_POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS: Final = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}
"""On every response, unless the response has its own. `no-cache` still lets a browser keep a file, but ask
first.
"""

CODES: Final = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    426: "upgrade_required",
    503: "unavailable",
}


class Status(BaseModel):
    """That the server is alive, or ready."""

    status: Literal["alive", "ready"]


class Version(BaseModel):
    """What is running: the program's version, the model's fingerprint, the chat protocol."""

    version: str
    model: str
    protocol: str


class Conversation(BaseModel):
    """One of a visitor's conversations; the title is the beginning of the first thing they said."""

    id: str
    title: str
    created_at: datetime
    updated_at: datetime


class ConversationList(BaseModel):
    """The most recently active first; those in which nothing was said are left out."""

    conversations: list[Conversation]


class ErrorDetail(BaseModel):
    """What went wrong: a code for programs, a sentence for people."""

    code: str
    message: str


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Backend:
    """What the routes ask. `stopping` tells whether the server is about to end."""

    store: Store
    offload: Offload
    engine: Engine
    stopping: Callable[[], bool]

    @property
    def fingerprint(self) -> str:
        """Of the model that makes new replies."""
        return self.engine.speaker.fingerprint


class Readiness:
    """Whether a reply could be made and kept right now: one decode step and one write to the database."""

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._clock = clock
        self._asked_at = float("-inf")
        self._problem: str | None = None

    async def problem(self) -> str | None:
        """None when ready. The answer to those who ask often is up to `READY_FOR` seconds old."""
        if self._backend.stopping():
            return "the server is stopping"
        now = self._clock()
        if now - self._asked_at >= READY_FOR:
            # Set before asking: others get the last answer meanwhile instead of asking as well.
            self._asked_at = now
            self._problem = await self._ask()
        return self._problem

    async def _ask(self) -> str | None:
        try:
            await self._backend.engine.check()
        except EngineUnhealthy as error:
            return f"the engine: {error.reason}"
        try:
            await self._backend.offload(self._backend.store.ping)
        except StoreError as error:
            logs.event(log, logging.ERROR, "store_failed", error=logs.place(error))
            return "the database does not answer"
        return None


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build(
    backend: Backend,
    lifespan: Lifespan | None = None,
    web: Path = WEB,
    routers: Sequence[APIRouter] = (),
    extend: Callable[[FastAPI], None] = lambda _: None,
) -> ASGIApp:
    """The HTTP application.

    web: holds the pages. routers: the routes that other modules bring along. extend: adds what needs the
    application itself.
    """
    app = FastAPI(
        title="Turnwise",
        version=version(),
        description=f"The chat is a WebSocket at /v1/chat, subprotocol {SUBPROTOCOL}: see docs/protocol.md.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        responses={400: {"model": ErrorBody}},
    )
    _add_errors(app)
    _add_health(app, backend)
    _add_conversations(app, backend)
    for router in routers:
        app.include_router(router)
    extend(app)
    _add_pages(app, web)
    return with_headers(app)


def version() -> str:
    """Turnwise's version: of the installed package, or of the checkout that this is run from."""
    try:
        return metadata.version("turnwise")
    except metadata.PackageNotFoundError:
        project = tomllib.loads((WEB.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])


def with_headers(app: ASGIApp) -> ASGIApp:
    """`app` with `HEADERS` on every response, errors of the framework included."""
    missing = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [header for header in missing if header[0] not in present]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return wrapped


def error_response(
    status: int, message: str, headers: Mapping[str, str] | None = None, code: str | None = None
) -> JSONResponse:
    """The one shape of errors."""
    body = {"error": {"code": code or CODES.get(status, "error"), "message": message}}
    return JSONResponse(body, status, headers)


def _add_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        if request.url.path.startswith("/v1/") and error.status_code in (404, 405):
            # What programs for OpenAI's API find there reads errors as OpenAI writes them.
            missing = ApiError(error.status_code, CODES[error.status_code], str(error.detail)).response()
            missing.headers.update(error.headers or {})
            return missing
        return error_response(error.status_code, str(error.detail), error.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problem = error.errors()[0]
        return error_response(400, f"{problem['loc'][-1]}: {problem['msg'].removeprefix('Value error, ')}")

    async def without_database(_: Request, error: Exception) -> Response:
        logs.event(log, logging.ERROR, "store_failed", error=logs.place(error))
        return error_response(503, "the database does not answer", {"retry-after": "2"})

    async def failed(_: Request, error: Exception) -> Response:
        return error_response(500, "something went wrong", code="internal")

    app.add_exception_handler(StarletteHTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StoreUnavailable, without_database)
    app.add_exception_handler(Exception, failed)


def _add_health(app: FastAPI, backend: Backend) -> None:
    readiness = Readiness(backend)

    @app.head("/livez", include_in_schema=False)
    @app.get("/livez", summary="Whether the process answers at all", tags=["health"])
    async def livez() -> Status:
        return Status(status="alive")

    @app.head("/readyz", include_in_schema=False)
    @app.get(
        "/readyz",
        summary="Whether a reply could be made and kept: a decode step and a write to the database",
        tags=["health"],
        responses={503: {"model": ErrorBody}},
    )
    async def readyz() -> Status:
        if (problem := await readiness.problem()) is not None:
            raise HTTPException(503, problem)
        return Status(status="ready")

    @app.get("/version", summary="What is running", tags=["health"])
    async def running_version() -> Version:
        return Version(version=app.version, model=backend.fingerprint, protocol=SUBPROTOCOL)


def _add_conversations(app: FastAPI, backend: Backend) -> None:
    @app.get(
        "/api/conversations",
        summary="A visitor's conversations",
        tags=["chat"],
        responses={401: {"model": ErrorBody}},
    )
    async def conversations(
        authorization: Annotated[str, Header(description="Bearer, a space, and the visitor's token")] = "",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        offset: Annotated[int, Query(ge=0, le=1_000_000, description="how many to pass over")] = 0,
    ) -> ConversationList:
        scheme, _, token = authorization.partition(" ")
        visitor = None
        if scheme.lower() == "bearer":
            visitor = await backend.offload(backend.store.visitor_of, token.strip())
        if visitor is None:
            raise HTTPException(401, "a visitor's token is needed", {"www-authenticate": "Bearer"})
        found = await backend.offload(backend.store.conversations, visitor, limit, offset)
        return ConversationList(
            conversations=[Conversation.model_validate(summary, from_attributes=True) for summary in found]
        )


def _add_pages(app: FastAPI, web: Path) -> None:
    files = StaticFiles(directory=web)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def chat_page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference.page(app.openapi()))

    @app.get("/v1/chat", include_in_schema=False)
    async def chat_without_upgrade() -> Response:
        raise HTTPException(426, "this address is a WebSocket", {"upgrade": "websocket"})

    app.mount("/static", files)
