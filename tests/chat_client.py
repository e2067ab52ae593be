"""A chat client for tests: the protocol's own models over the `websockets` library, every wait bounded."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from server.protocol import (
    SUBPROTOCOL,
    Accepted,
    ClientMessage,
    Delta,
    Error,
    Hello,
    Message,
    Ready,
    Say,
    ServerMessage,
    encode,
    parse_server,
)

PATIENCE = 20.0
"""Seconds to wait for one frame: far above what it takes, so that a slow machine is no failure."""

Kind = TypeVar("Kind", bound=ServerMessage)


def run(test: Callable[[], Awaitable[None]], seconds: float = 60.0) -> None:
    """Carry a test out on an event loop of its own, within the time."""

    async def in_time() -> None:
        async with asyncio.timeout(seconds):
            await test()

    asyncio.run(in_time())


class ChatClient:
    """One socket. `deltas` and `seen` keep what went by while something else was waited for."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[ServerMessage] = []

    async def send(self, message: ClientMessage) -> None:
        await self.socket.send(encode(message))

    async def send_raw(self, frame: str | bytes) -> None:
        await self.socket.send(frame)

    async def receive(self) -> ServerMessage:
        async with asyncio.timeout(PATIENCE):
            frame = await self.socket.recv()
        assert isinstance(frame, str)
        message = parse_server(frame)
        self.seen.append(message)
        return message

    async def expect(self, kind: type[Kind]) -> Kind:
        """The next frame, which is of this kind."""
        message = await self.receive()
        assert isinstance(message, kind), message
        return message

    async def until(self, kind: type[Kind]) -> Kind:
        """The next frame of this kind; others go by, but no error does."""
        while not isinstance(message := await self.receive(), kind):
            assert not isinstance(message, Error), message
        return message

    async def hello(self, **fields: Any) -> Ready:
        await self.send(Hello(**fields))
        return await self.expect(Ready)

    async def say(self, text: str, client_id: str | None = None, **options: Any) -> Accepted:
        """Say something and wait until it is committed."""
        await self.send(Say(id=client_id or uuid.uuid4().hex, text=text, options=options))
        return await self.until(Accepted)

    async def reply(self) -> Message:
        """The next reply, complete."""
        while (message := await self.until(Message)).role != "agent":
            pass
        return message

    async def first_words(self) -> Delta:
        """The next delta that has text."""
        while not (delta := await self.until(Delta)).text:
            pass
        return delta

    async def closed(self) -> int:
        """Wait for the server to close; the close code. What comes before is in `seen`."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else 1006

    def streamed(self, reply: str) -> str:
        """The deltas of a reply put together; their offsets must fit."""
        text = ""
        for message in self.seen:
            if isinstance(message, Delta) and message.reply == reply:
                assert message.offset == len(text)
                text += message.text
        return text


@asynccontextmanager
async def chatting(
    address: str, *, origin: str | None = None, subprotocols: tuple[str, ...] = (SUBPROTOCOL,), **options: Any
) -> AsyncIterator[ChatClient]:
    """A connection to the chat of the server at `address` (http://host:port)."""
    url = address.replace("http://", "ws://") + "/v1/chat"
    async with asyncio.timeout(PATIENCE):
        socket = await connect(
            url,
            origin=Origin(origin) if origin else None,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            proxy=None,
            close_timeout=1,
            **options,
        )
    try:
        yield ChatClient(socket)
    finally:
        await socket.close()
