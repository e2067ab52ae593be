"""Answers that go on: server-sent events, as long as the session, the server and the reader are there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server import logs

log = logging.getLogger(__name__)

PING_EVERY: Final = 15.0
"""Seconds without an event after which one says that the stream is alive."""
HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would collect the events
}
RETRY: Final = b"retry: 2000\n\n"
"""Milliseconds after which a browser comes back."""


def event(name: str, data: dict[str, Any]) -> bytes:
    """JSON has no line breaks of its own, so one `data` line holds it."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


class EventStream(Response):
    """read: the next event, encoded; None at the end. holds: whether to go on, asked at every ping. ended:
    called once, however it ended.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes | None]],
        holds: Callable[[], Awaitable[bool]],
        ended: Callable[[], None],
        ping_every: float = PING_EVERY,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._read = read
        self._holds = holds
        self._ended = ended
        self._ping_every = ping_every
        self._next_ping = asyncio.get_running_loop().time() + ping_every

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = asyncio.create_task(_leaving(receive))
        reading: asyncio.Task[bytes | None] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _write(send, RETRY)
            while not left.done():
                if reading is None:
                    reading = asyncio.create_task(_awaited(self._read()))
                await asyncio.wait({reading, left}, timeout=self._due(), return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    piece, reading = reading.result(), None
                    if piece is None:
                        break
                    await _write(send, piece)
                if self._due() <= 0 and not await self._ping(send):
                    break
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            pass  # the reader is gone
        finally:
            self._ended()
            for task in (left, reading):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, OSError):
                        await task

    def _due(self) -> float:
        """Seconds until the next ping. It comes at its time however many events there are, and with it the
        session is looked at.
        """
        return max(0.0, self._next_ping - asyncio.get_running_loop().time())

    async def _ping(self, send: Send) -> bool:
        """Whether the stream goes on."""
        self._next_ping = asyncio.get_running_loop().time() + self._ping_every
        try:
            if not await self._holds():
                return False
        except Exception as error:  # noqa: BLE001 - a database that does not answer proves nothing: better to end
            logs.event(log, logging.ERROR, "stream_failed", error=logs.place(error))
            return False
        await _write(send, event("ping", {}))
        return True


async def _awaited(work: Awaitable[bytes | None]) -> bytes | None:
    return await work


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
