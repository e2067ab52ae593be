"""Clients that talk to a server which is being mistreated, and remember what they were told is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from server.protocol import (
    SUBPROTOCOL,
    Accepted,
    Error,
    Hello,
    Message,
    Ready,
    Say,
    encode,
    parse_server,
)

ANSWERING: Final = 60.0
"""Seconds that a client waits for a frame before it takes the connection for lost."""
SHORT: Final = {"decoding": "greedy", "min_tokens": 0, "max_tokens": 2}
"""Options of most turns: it is about messages, not about words."""
LONG: Final = {"decoding": "greedy", "min_tokens": 32, "max_tokens": 32}
"""Of every fourth, so that there are replies to be interrupted."""


class _Lost(Exception):
    """The connection is of no more use; come back on another."""


@dataclass(eq=False)
class Chat:
    """One client. `known` is all it was told is kept, by seq; `turns` counts those it has seen answered.

    silent: sockets that it has left without a word, as a telephone in a tunnel does.
    """

    name: str
    token: str | None = None
    conversation: str | None = None
    known: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    turns: int = 0
    replies: int = 0
    resumed: int = 0
    problems: list[str] = field(default_factory=list)
    stopping: bool = False
    asking: bool = False
    silent: list[ClientConnection] = field(default_factory=list)
    _socket: ClientConnection | None = None
    _leave: asyncio.Future[None] | None = None

    async def run(self, port: int) -> None:
        """Say one thing after another, until told to stop and answered."""
        while self.asking or not self.stopping:
            with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError, _Lost):
                async with self._connected(port) as socket:
                    while self.asking or not self.stopping:
                        self.asking = True
                        await self._turn(socket, self.turns)
                        self.turns += 1
                        self.asking = False
            await asyncio.sleep(0.05)

    def fall_silent(self) -> bool:
        """Leave the connection as it is, without reading or saying anything more; whether there was one."""
        if self.waiting is None or self._leave is None or self._leave.done():
            return False
        self.waiting.recv_messages.resume = lambda: None  # what it has may be read, and nothing after it:
        self.waiting.transport.pause_reading()  # the library would answer pings
        self.silent.append(self.waiting)
        self._leave.set_result(None)
        return True

    @property
    def waiting(self) -> ClientConnection | None:
        """The connection on which it waits for something to be said."""
        return None if self._leave is None else self._socket

    @asynccontextmanager
    async def _connected(self, port: int) -> AsyncIterator[ClientConnection]:
        socket = await connect(
            f"ws://127.0.0.1:{port}/v1/chat",
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            proxy=None,
            close_timeout=1,
            ping_interval=None,
        )
        try:
            await self._begin(socket)
            self._socket = socket
            yield socket
        finally:
            self._socket = None
            if socket not in self.silent:
                await socket.close()

    async def _begin(self, socket: ClientConnection) -> None:
        last = max(self.known, default=0)
        await socket.send(encode(Hello(token=self.token, conversation=self.conversation, last_seq=last)))
        ready = await self._next(socket)
        if isinstance(ready, Error) and ready.retry_after is None:
            self.problems.append(f"{self.name}: {ready.code}: {ready.message}")
        if not isinstance(ready, Ready):
            raise _Lost  # busy, or going away: come back later
        self.resumed += self.conversation is not None
        self.token, self.conversation = ready.token, ready.conversation
        for message in ready.messages:
            self.keep(message.seq, message.message, message.role, message.text)
        if ready.seq != max(self.known, default=0):
            self.problems.append(f"{self.name}: ready says {ready.seq}, and there are {len(self.known)}")

    async def _turn(self, socket: ClientConnection, number: int) -> None:
        """Say it, and wait until it is answered. A server that says goodbye may finish first."""
        options = LONG if number % 4 == 3 else SHORT
        say = Say(id=f"{self.name}-{number}", text=f"{self.name}-{number}", options=options)
        await socket.send(encode(say))
        asked = None
        while True:
            message = await self._next(socket)
            if isinstance(message, Accepted):
                asked = message.message
                self.keep(message.seq, message.message, "user", say.text)
                if self.accepted.setdefault(message.id, message.seq) != message.seq:
                    self.problems.append(f"{self.name}: {message.id} was accepted twice, differently")
            elif isinstance(message, Message):
                new = message.seq not in self.known
                self.keep(message.seq, message.message, message.role, message.text)
                self.replies += new and message.role == "agent"
                if asked is not None and message.answers == asked:
                    return
            elif isinstance(message, Error):
                if message.retry_after is None:
                    self.problems.append(f"{self.name}: {message.code}: {message.message}")
                    raise _Lost
                await asyncio.sleep(message.retry_after)
                await socket.send(encode(say))

    async def _next(self, socket: ClientConnection) -> Any:
        """What comes next. Raises `_Lost` when nothing does for long, or it is not to wait any more."""
        self._leave = asyncio.get_running_loop().create_future()
        coming = asyncio.create_task(socket.recv())
        either: set[asyncio.Future[Any]] = {coming, self._leave}
        try:
            await asyncio.wait(either, timeout=ANSWERING, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave = None
            given_up = coming.cancel()
        if socket in self.silent or given_up:
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await coming
            socket.transport.pause_reading()  # taking a frame may have let the library read on
            raise _Lost
        frame = coming.result()
        assert isinstance(frame, str)
        return parse_server(frame)

    def keep(self, seq: int, message: str, role: str, text: str) -> None:
        """Told that it is kept: once more is harmless, anything else is a problem."""
        if seq != max(self.known, default=0) + 1 and seq not in self.known:
            self.problems.append(f"{self.name}: {seq} after {max(self.known, default=0)}")
        if self.known.setdefault(seq, (message, role, text)) != (message, role, text):
            self.problems.append(f"{self.name}: {seq} is another message now")


def hung_up(socket: ClientConnection) -> bool:
    """Whether the other side has ended the connection, though the library reads nothing from it here.

    What has come is thrown away: the end comes behind it, and not at all while there is no room for more.
    """
    number = socket.transport.get_extra_info("socket").fileno()
    if number < 0:
        return True
    with contextlib.suppress(BlockingIOError, ConnectionError):
        while os.read(number, 1 << 16):
            pass
    asked = select.poll()
    asked.register(number, select.POLLRDHUP)
    return bool(asked.poll(0))
