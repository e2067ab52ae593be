"""Nobody passes who is not signed in, and no foreign page has anything changed.

It stands before everything under `/operator` and `/api/operator`, whatever the method and however the address
is written, and whether or not there is such a page: a route that is added later is behind it as well.
"""

from __future__ import annotations

import logging
import posixpath
import re
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from fastapi import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import http, logs
from server.chat_socket import may_connect
from server.console.accounts import Session, csrf_matches
from server.console.context import Console
from server.store_errors import StoreUnavailable

log = logging.getLogger(__name__)

COOKIE: Final = "turnwise_operator"
SIGN_IN_PATH: Final = "/api/operator/login"
SIGN_IN_PAGE: Final = http.WEB / "sign_in.html"
SESSION: Final = "turnwise.operator_session"
"""Where the scope of a request that has passed holds its session."""
READING: Final = frozenset({"GET", "HEAD"})
MAX_SIGN_IN: Final = 8 * 1024
"""Bytes of a body that anybody may send."""
MAX_BODY: Final = 1024 * 1024
"""Bytes of a body that an operator may send, except where the route has a limit of its own."""
OWN_LIMIT: Final = frozenset({"/api/operator/imports"})
"""Paths whose routes read a body piece by piece and bound it themselves."""

NOT_SIGNED_IN: Final = "sign in first"
FOREIGN: Final = "this did not come from a page of this server"


class Guard:
    """An ASGI application behind the guard. Sockets are not let near it: the console has none."""

    def __init__(self, app: ASGIApp, console: Console) -> None:
        self._app = app
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (area := area_of(scope["path"])) is None:
            await self._app(scope, receive, send)
            return
        try:
            refused = await self._refused(Request(scope), area)
        except StoreUnavailable as error:
            logs.event(log, logging.ERROR, "store_failed", error=logs.place(error))
            refused = http.error_response(503, "the database does not answer", {"retry-after": "2"})
        if refused is not None:
            await refused(scope, receive, send)
            return
        most = MAX_SIGN_IN if SESSION not in scope else MAX_BODY
        if scope["path"] not in OWN_LIMIT:
            receive = bounded(receive, most)
        # The page's own files say nothing about anybody: a browser keeps them, and asks whether they changed.
        keeps = scope["path"].startswith("/operator/static/")
        await self._app(scope, receive, send if keeps else private(send))

    async def _refused(self, request: Request, area: Literal["page", "api"]) -> Response | None:
        """What to answer instead; None, and the session is in the scope, for a request that may pass."""
        reads = request.method in READING
        if not self._own(request, needed=not reads):
            return http.error_response(403, FOREIGN)
        if request.scope["path"] == SIGN_IN_PATH and request.method == "POST":
            return None
        session = await self._session(request)
        if session is None:
            return _sign_in(request, area)
        if not reads and not csrf_matches(session, request.headers.getlist("x-csrf-token")):
            return http.error_response(403, "the X-CSRF-Token of this session is missing; reload the page")
        request.scope[SESSION] = session
        return None

    async def _session(self, request: Request) -> Session | None:
        token = token_of(request)
        return None if token is None else await self._console.offload(self._console.accounts.find, token)

    def _own(self, request: Request, *, needed: bool) -> bool:
        """Whether it came from a page of ours: browsers send an Origin with every change, none forges it."""
        origins, hosts = request.headers.getlist("origin"), request.headers.getlist("host")
        if not origins:
            return not needed
        allowed = self._console.settings.allowed_origins
        if not may_connect(origins, hosts, allowed):
            return False
        # A page that came in the clear may be anybody's on the way.
        downgraded = request.url.scheme == "https" and urlsplit(origins[0]).scheme == "http"
        return not downgraded or origins[0] in allowed


def area_of(path: str) -> Literal["page", "api"] | None:
    """Which part of the console an address is meant for, however it is written; None for other addresses."""
    plain = re.sub(r"[/\\]+", "/", unquote(path).casefold())
    for written in (path, posixpath.normpath(plain)):
        if written == "/api/operator" or written.startswith("/api/operator/"):
            return "api"
        if written == "/operator" or written.startswith("/operator/"):
            return "page"
    return None


def token_of(request: Request) -> str | None:
    """What the one cookie of ours holds. Two of them are none: the second may be another's."""
    found = [
        value.strip()
        for line in request.headers.getlist("cookie")
        for name, _, value in (part.partition("=") for part in line.split(";"))
        if name.strip() == COOKIE
    ]
    return found[0] if len(found) == 1 else None


def bounded(receive: Receive, most: int) -> Receive:
    """`receive` that raises HTTPException 413 as soon as a body is longer than `most` bytes."""
    seen = 0

    async def receive_bounded() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > most:
                raise HTTPException(413, f"the body has more than {most} bytes", {"connection": "close"})
        return message

    return receive_bounded


def private(send: Send) -> Send:
    """`send` whose answers no cache keeps: what operators see is not for whoever uses the machine next."""

    async def send_private(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [header for header in message["headers"] if header[0].lower() != b"cache-control"]
            message = {**message, "headers": [*kept, (b"cache-control", b"no-store")]}
        await send(message)

    return send_private


def _sign_in(request: Request, area: Literal["page", "api"]) -> Response:
    page = area == "page" and request.method in READING and "/static/" not in request.scope["path"]
    if not page:
        return http.error_response(401, NOT_SIGNED_IN)
    return FileResponse(SIGN_IN_PAGE, 401, {"cache-control": "no-store"})
