"""`POST /v1/chat/completions` and `GET /v1/models`: what OpenAI's clients speak, over the same engine.

A request brings its whole conversation along and nothing of it is kept in the database. Its reply belongs to
whoever waits for it: when the client leaves, the reply is cancelled, unlike one of the chat, which is
finished and kept.

    who is it → read the body → read the request → a place of the key → places of the engine → replies
      401         408, 413         400                 429                 429, 503
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from chatbot.options import MAX_SEED, DecodingOptions
from chatbot.replies import Failed, Piece, ReplyRequest
from server import logs, openai_answers
from server.engine import Engine, EngineBusy, Generation, Permit
from server.keys import Keys
from server.limits import Shares
from server.metrics import Metrics
from server.offload import Offload
from server.openai_answers import DONE, Ending, Head
from server.openai_errors import ApiError, bad_request
from server.openai_request import MAX_BODY, Asked, Limits, parse, unknown_model
from server.openai_stop import StopStrings
from server.places import RECONNECT_AFTER
from server.replying import SEEDS, storable
from server.speaker import Speaker
from server.store_errors import StoreUnavailable

log = logging.getLogger(__name__)

Result = TypeVar("Result")

BODY_SECONDS: Final = 10.0
"""From the headers to the end of the body."""
DISCARDED: Final = 4 * MAX_BODY
"""Bytes of a body that are read and thrown away, so that a client that is still sending hears why."""
RETRY_AFTER: Final = 1.0
CLIENT_LEFT: Final = 499
"""The status that is counted, as nobody is there to be told one."""


class ClientLeft(Exception):
    """The client has closed its connection."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client must keep to. replies: of one key at a time."""

    limits: Limits
    replies: int


class OpenAiApi:
    """stopping: whether the server is about to end. clock: seconds since 1970."""

    def __init__(
        self,
        engine: Engine,
        keys: Keys,
        offload: Offload,
        metrics: Metrics,
        terms: Terms,
        stopping: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._offload = offload
        self._metrics = metrics
        self._limits = terms.limits
        self._shares = Shares(terms.replies)
        self._stopping = stopping
        self._clock = clock
        self._model_since = ("", 0)

    # --- who may ------------------------------------------------------------------------------------------

    async def admits(self, request: Request) -> bool:
        """Whether the request shows a key that holds. Raises StoreUnavailable."""
        return await self._holder(request) is not None

    async def _holder(self, request: Request) -> str | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return None
        return await self._offload(self._keys.holder, key.strip())

    async def _key(self, request: Request) -> str:
        """The id of the key that the request shows. Raises `ApiError`."""
        try:
            key = await self._holder(request)
        except StoreUnavailable as error:
            logs.event(log, logging.ERROR, "store_failed", error=logs.place(error))
            raise ApiError(503, "unavailable", "the database does not answer", retry_after=2.0) from None
        if key is None:
            raise ApiError(401, "invalid_api_key", "an API key is needed: Authorization: Bearer, and the key")
        return key

    # --- models -------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        await self._key(request)
        return _json({"object": "list", "data": self._models()})

    async def model(self, request: Request, name: str) -> Response:
        """`GET /v1/models/NAME`."""
        await self._key(request)
        for found in self._models():
            if found["id"] == name:
                return _json(found)
        raise unknown_model()

    def _models(self) -> list[openai_answers.Json]:
        fingerprint = self._engine.speaker.fingerprint
        if self._model_since[0] != fingerprint:
            self._model_since = (fingerprint, int(self._clock()))
        return openai_answers.models(*self._model_since)

    # --- completions --------------------------------------------------------------------------------------

    async def complete(self, request: Request, send: Send) -> None:
        """`POST /v1/chat/completions`."""
        async with asyncio.timeout(BODY_SECONDS):
            key, body = await self._key_and_body(request)
        asked = parse(body, self._limits)
        asked.options(self._engine.speaker)  # what is wrong with a request is said however busy it is
        if self._stopping():
            raise ApiError(503, "stopping", "the server is stopping", retry_after=RECONNECT_AFTER)
        with self._share(key, asked.choices), self._places(key, asked) as job:
            await _while_there(request.receive, self._answer(job, request, send))

    async def _key_and_body(self, request: Request) -> tuple[str, bytes]:
        try:
            key = await self._key(request)
        except ApiError:
            with contextlib.suppress(ApiError):
                await _body(request)  # a client that is still sending would not hear why
            raise
        return key, await _body(request)

    @contextmanager
    def _share(self, key: str, count: int) -> Iterator[None]:
        """So many of the key's own places."""
        taken = 0
        try:
            while taken < count:
                if not self._shares.take(key):
                    raise _busy("rate_limit_exceeded", "this key has as many replies in the making as it may")
                taken += 1
            yield
        finally:
            for _ in range(taken):
                self._shares.give_back(key)

    @contextmanager
    def _places(self, key: str, asked: Asked) -> Iterator[_Job]:
        """A place in the engine for each reply; those that no generation has taken are given back."""
        permits: list[Permit] = []
        try:
            try:
                while len(permits) < asked.choices:
                    permits.append(self._engine.reserve(f"key {key}"))
            except EngineBusy as error:
                raise _busy("busy", "too many replies are waiting", error.retry_after) from None
            speaker = permits[0].speaker
            options = asked.options(speaker)
            head = Head(f"chatcmpl-{uuid.uuid4().hex}", int(self._clock()), speaker.fingerprint)
            yield _Job(key, asked, options, head, speaker, permits)
        finally:
            for permit in permits:
                permit.release()

    async def _answer(self, job: _Job, request: Request, send: Send) -> None:
        counting = asyncio.create_task(asyncio.to_thread(job.speaker.count_tokens, job.asked.turns))
        generations = self._begin(job)
        try:
            if job.asked.stream:
                await self._stream(job, generations, counting, send)
            else:
                response = await self._whole(job, generations, counting)
                await response(request.scope, request.receive, send)
        finally:
            counting.cancel()
            for generation in generations:
                await generation.aclose()

    def _begin(self, job: _Job) -> list[Generation]:
        """Hand all replies over; each takes its permit along."""
        first = job.options.seed
        if first is None:
            first = secrets.randbelow(SEEDS)
        generations = []
        for number in range(job.asked.choices):
            options = job.options.model_copy(update={"seed": (first + number) % (MAX_SEED + 1)})
            request = ReplyRequest(uuid.uuid4().hex, job.asked.turns, options, job.conversation)
            generations.append(self._engine.generate(request, job.permits.pop(0)))
        return generations

    async def _whole(
        self, job: _Job, generations: Sequence[Generation], counting: asyncio.Task[int]
    ) -> Response:
        async def unseen(_: str) -> None:
            pass

        endings = await _all(self._follow(job, n, each, unseen) for n, each in enumerate(generations))
        choices = [openai_answers.choice(ending, job.logprobs(ending)) for ending in endings]
        used = openai_answers.usage(await counting, [ending.reply for ending in endings])
        return _json(job.head.whole(choices, used), {"x-request-id": job.head.id})

    async def _stream(
        self, job: _Job, generations: Sequence[Generation], counting: asyncio.Task[int], send: Send
    ) -> None:
        # Without the usage, which comes last, every chunk has to say that there is none yet.
        common = {"usage": None} if job.asked.include_usage else {}

        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def say(part: openai_answers.Json) -> None:
            await write(openai_answers.event(job.head.chunk([part]) | common))

        async def one(index: int, generation: Generation) -> Ending:
            async def show(text: str) -> None:
                await say(openai_answers.delta(index, {"content": text}))

            await say(openai_answers.delta(index, {"role": "assistant", "content": ""}))
            ending = await self._follow(job, index, generation, show)
            await say(openai_answers.last_delta(ending, job.logprobs(ending)))
            return ending

        await send({"type": "http.response.start", "status": 200, "headers": _stream_headers(job.head.id)})
        try:
            endings = await _all(one(n, each) for n, each in enumerate(generations))
            if job.asked.include_usage:
                used = openai_answers.usage(await counting, [ending.reply for ending in endings])
                await write(openai_answers.event(job.head.chunk([]) | {"usage": used}))
            await write(DONE)
        except ApiError as error:  # too late for a status
            await write(openai_answers.event(error.body))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _follow(
        self, job: _Job, index: int, generation: Generation, show: Callable[[str], Awaitable[None]]
    ) -> Ending:
        """One reply to its end, every piece of its text shown. Raises `ApiError`."""
        stop = StopStrings(job.asked.stops)
        text = ""
        async for event in generation:
            if isinstance(event, Failed):
                raise _failed(event)
            piece = stop.push(storable(event.text)) if isinstance(event, Piece) else stop.finish()
            text += piece
            if piece:
                await show(piece)
            if not isinstance(event, Piece):
                # Pieces of a reply that was made twice (server.engine) may differ from it, which cannot be
                # mended in a stream.
                whole = text if stop.stopped else storable(event.reply.text)
                ending = Ending(index, whole, event.reply, stop.stopped, job.asked.stops)
                self._log(job, ending, generation)
                return ending
            if stop.stopped:
                self._engine.cancel(generation.id)
        raise AssertionError("a generation that is followed ends with its last event")

    def _log(self, job: _Job, ending: Ending, generation: Generation) -> None:
        logs.event(
            log, logging.INFO, "api_reply", request=job.head.id, key=job.key, index=ending.index,
            tokens=len(ending.reply.token_ids), finish_reason=ending.finish_reason, stream=job.asked.stream,
            **asdict(generation.timing),
        )  # fmt: skip

    # --- any request --------------------------------------------------------------------------------------

    async def answer(self, work: Awaitable[Response | None], request: Request, send: Send) -> None:
        """Carry out a request, tell the client what is wrong with it, and count how it ended."""
        status = 500
        try:
            response = await work
            if response is not None:
                await response(request.scope, request.receive, send)
            status = 200
        except ClientLeft:
            status = CLIENT_LEFT
            logs.event(log, logging.INFO, "api_client_left")
        except (ApiError, TimeoutError) as found:
            error = (
                found if isinstance(found, ApiError) else ApiError(408, "timeout", "the body took too long")
            )
            status = error.status
            logs.event(log, logging.INFO, "api_refused", status=status, code=error.code)
            await error.response()(request.scope, request.receive, send)
        finally:
            self._metrics.api_answered(status)


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that has its places. permits: those that no generation has yet."""

    key: str
    asked: Asked
    options: DecodingOptions
    head: Head
    speaker: Speaker
    permits: list[Permit]

    @property
    def conversation(self) -> str:
        """A name by which the batcher finds how far it has read; it compares the turns themselves."""
        beginning = hashlib.sha256(repr(self.asked.turns[0]).encode()).hexdigest()
        return f"key {self.key} {beginning}"

    def logprobs(self, ending: Ending) -> openai_answers.Json | None:
        """None unless they were asked for."""
        return openai_answers.logprobs(ending, self.speaker.token_bytes) if self.asked.logprobs else None


async def _body(request: Request) -> bytes:
    """Raises `ApiError` for a body that is too large, `ClientLeft`."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more and size <= DISCARDED:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= MAX_BODY:
            parts.append(part)
    if size > MAX_BODY:
        raise ApiError(413, "too_long", f"a request has at most {MAX_BODY} bytes")
    return b"".join(parts)


async def _while_there(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work as long as the client waits for it. Raises `ClientLeft`."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        await working
    finally:
        await _end({working, watching})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _all(each: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of all; when one fails, its error, and the others end."""
    tasks = [asyncio.create_task(one) for one in each]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(set(tasks))


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _busy(code: str, message: str, retry_after: float = RETRY_AFTER) -> ApiError:
    return ApiError(429, code, message, retry_after=retry_after)


def _failed(event: Failed) -> ApiError:
    if event.field is not None:
        return bad_request(event.message, event.field, "bad_option")
    return ApiError(500, "internal", event.message)


def _json(found: openai_answers.Json, headers: dict[str, str] | None = None) -> Response:
    return Response(openai_answers.encoded(found), headers=headers, media_type="application/json")


def _stream_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # nginx would collect the pieces
        (b"x-request-id", request_id.encode()),
    ]


# --- routes -----------------------------------------------------------------------------------------------


class ApiErrorDetail(BaseModel):
    """What went wrong: a code for programs, a sentence for people, OpenAI's type, the field at fault."""

    code: str
    message: str
    type: str
    param: str | None


class ApiErrorBody(BaseModel):
    """The body of every error of the API."""

    error: ApiErrorDetail


class _Deferred(Response):
    """A response that makes itself: it hears when the client leaves, and may send as it goes."""

    def __init__(self, work: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._work(send)


_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ApiErrorBody} for status in (400, 401, 404, 408, 413, 429, 503)
}
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "messages"],
                    "properties": {
                        "model": {"type": "string"},
                        "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
                        "stream": {"type": "boolean"},
                    },
                }
            }
        },
    }
}


def router(api: OpenAiApi) -> APIRouter:
    """The API's routes."""
    routes = APIRouter(tags=["openai"])

    @routes.post(
        "/v1/chat/completions",
        summary="A reply to a conversation, as OpenAI's clients ask for it (docs/openai-api.md)",
        responses=_REFUSALS,
        openapi_extra=_BODY,
    )
    async def completions(request: Request) -> Response:
        return _Deferred(lambda send: api.answer(api.complete(request, send), request, send))

    @routes.get("/v1/models", summary="The model in use, under both of its names", responses=_REFUSALS)
    async def models(request: Request) -> Response:
        return _Deferred(lambda send: api.answer(api.models(request), request, send))

    @routes.get("/v1/models/{model}", summary="The model of that name", responses=_REFUSALS)
    async def model(request: Request, model: str) -> Response:
        return _Deferred(lambda send: api.answer(api.model(request, model), request, send))

    return routes
