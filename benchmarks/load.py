"""Many chats from one process, and a server to talk to: what `benchmarks.serving` measures with.

Server and load share a machine, so a client here does as little as it can: it looks at the kind of a frame,
takes the time, and reads only what it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from benchmarks import processes
from benchmarks.prometheus import Scrape
from server.protocol import SUBPROTOCOL

ROOT: Final = Path(__file__).resolve().parent.parent
PATIENCE: Final = 120.0
"""Seconds after which a server that does not answer is given up."""
_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA


class ChatFailed(RuntimeError):
    """The server said something that no chat of a benchmark expects."""


class Busy(Exception):
    """A say was refused for now. seconds: from the say to the refusal."""

    def __init__(self, retry_after: float, seconds: float) -> None:
        super().__init__(retry_after)
        self.retry_after, self.seconds = retry_after, seconds


# --- what is measured -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exchange:
    """A reply. Moments in seconds of `time.perf_counter`: the say, the first text and the last."""

    asked: float
    first: float
    last: float
    tokens: int

    @property
    def first_token(self) -> float:
        """Seconds to the first text."""
        return self.first - self.asked

    @property
    def per_token(self) -> float:
        """Mean seconds of a token after the first."""
        return (self.last - self.first) / max(1, self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Round:
    """Replies that ended within `seconds`, and the says refused meanwhile."""

    seconds: float
    exchanges: tuple[Exchange, ...]
    refused: int = 0

    @property
    def tokens_per_second(self) -> float:
        return sum(exchange.tokens for exchange in self.exchanges) / self.seconds

    def first_token(self, of_100: int) -> float:
        """Milliseconds within which that share of the replies had begun."""
        return 1000 * percentile([exchange.first_token for exchange in self.exchanges], of_100)

    def per_token(self, of_100: int) -> float:
        """The same of the time for each token, in milliseconds."""
        return 1000 * percentile([exchange.per_token for exchange in self.exchanges], of_100)


def percentile(values: Sequence[float], of_100: int) -> float:
    """The value that so many of 100 are not above; NaN for none."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[of_100 - 1]


@dataclass(frozen=True, slots=True)
class Place:
    """A conversation that there is already, all of whose messages the client has."""

    token: str
    conversation: str
    last_seq: int

    @property
    def hello(self) -> dict[str, Any]:
        return {
            "type": "hello",
            "token": self.token,
            "conversation": self.conversation,
            "last_seq": self.last_seq,
        }


# --- a client ---------------------------------------------------------------------------------------------


class Chat(asyncio.Protocol):
    """One connection. `Chat.opened` for a chat that has said hello."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._upgraded = False
        self._waiting: asyncio.Future[Any] | None = None
        self._ids = itertools.count()
        self._asked = self._first = self._last = 0.0
        self._question: str | None = None
        self._ended = False
        self.token = self.conversation = ""

    @classmethod
    async def opened(cls, port: int, place: Place | None = None) -> Self:
        """A chat in a conversation, a new visitor's unless told otherwise. Raises `ChatFailed`."""
        _, chat = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        try:
            await chat._upgrade(port)
            ready = await chat._ask({"type": "hello", "token": None} if place is None else place.hello)
        except BaseException:  # cancelled, too: nobody else could close it
            chat.close()
            raise
        chat.token, chat.conversation = ready["token"], ready["conversation"]
        return chat

    async def say(self, text: str, options: dict[str, Any]) -> Exchange:
        """Say it and have it answered. `options` fix how many tokens the reply has. Raises `Busy`."""
        self._first = 0.0
        said = {"type": "say", "id": f"s{next(self._ids)}-{self.conversation[:8]}", "text": text}
        self._asked = time.perf_counter()
        await self._ask(said | {"options": options})
        if not self._first:  # a reply without a word
            self._first = self._last = time.perf_counter()
        return Exchange(self._asked, self._first, self._last, options["max_tokens"])

    async def ping(self) -> float:
        """Seconds from a `ping` to its `pong`, which the server's event loop answers by itself."""
        began = time.perf_counter()
        await self._ask({"type": "ping"})
        return time.perf_counter() - began

    def close(self) -> None:
        """Leave, without waiting."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    # --- inside -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended:
            self._fail("the connection is gone")

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._buffer += data
        if not self._upgraded:
            head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._fail(f"the handshake was answered {head[:60]!r}")
                return
            self._upgraded, self._buffer = True, bytearray(rest)
            if self._waiting is not None:
                self._waiting.set_result(None)
        for kind, payload in self._frames():
            if kind == _TEXT:
                self._message(payload, now)
            elif kind == _PING:
                self._write(frame(_PONG, payload))
            elif kind == _CLOSE:
                self._fail(f"the server closed: {payload!r}")

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """The whole frames of the buffer; a server neither masks nor splits its own."""
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 2:
            size, head = buffer[at + 1], 2
            if size >= 126:
                head = 4 if size == 126 else 10
                size = int.from_bytes(buffer[at + 2 : at + head])
            if len(buffer) < at + head + size:
                break
            yield buffer[at] & 0xF, bytes(buffer[at + head : at + head + size])
            at += head + size
        del buffer[:at]

    def _message(self, payload: bytes, now: float) -> None:
        if payload.startswith(b'{"type":"delta"'):
            if not payload.endswith(b'"text":""}'):
                self._last = now
                self._first = self._first or now
            return
        message = json.loads(payload)
        if message["type"] == "error":
            self._refused(message)
        elif message["type"] == "accepted":
            self._question = message["message"]
        elif message["type"] == "message" and message.get("answers") != self._question:
            pass  # an older one
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(message)

    def _refused(self, error: dict[str, Any]) -> None:
        if error["code"] != "busy" or self._waiting is None:
            self._fail(f"the server refused: {error}")
        elif not self._waiting.done():
            self._waiting.set_exception(Busy(error["retry_after"], time.perf_counter() - self._asked))

    async def _upgrade(self, port: int) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        self._write(
            f"GET /v1/chat HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
            "".encode()
        )
        await self._waiting

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._waiting = asyncio.get_running_loop().create_future()
        self._write(frame(_TEXT, json.dumps(message).encode()))
        answer: dict[str, Any] = await self._waiting
        return answer

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _fail(self, reason: str) -> None:
        self._ended = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ChatFailed(reason))


def frame(kind: int, payload: bytes) -> bytes:
    """A client's frame. The mask is zero: it protects proxies from pages, and there is neither here."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes([0x80 | kind]) + length + bytes(4) + payload


@asynccontextmanager
async def chats(port: int, count: int, together: int = 50) -> AsyncIterator[list[Chat]]:
    """So many visitors, each with a conversation; `together` of them come at a time."""
    found: list[Chat] = []
    try:
        while len(found) < count:
            coming = min(together, count - len(found))
            found += await asyncio.gather(*(Chat.opened(port) for _ in range(coming)))
        yield found
    finally:
        for chat in found:
            chat.close()


# --- load -------------------------------------------------------------------------------------------------


async def talk(
    port: int,
    first: Sequence[Chat],
    texts: Sequence[str],
    options: dict[str, Any],
    began: float,
    seconds: float,
) -> Round:
    """As many chats as there are `first`, which never pause: each visitor says all of `texts`, the next thing
    as soon as they are answered, then leaves, and another one comes. Measured are `seconds` from the moment
    `began` on.

    Who is told busy tries again when told to.
    """
    end = began + seconds
    found: list[Exchange] = []
    refused = 0

    async def say(chat: Chat, text: str) -> Exchange:
        nonlocal refused
        while True:
            try:
                return await chat.say(text, options)
            except Busy as busy:
                refused += began <= time.perf_counter() < end
                await asyncio.sleep(busy.retry_after * random.uniform(1.0, 1.2))

    async def visitors(number: int, chat: Chat) -> None:
        while True:
            with contextlib.closing(chat):
                for turn in range(number, number + len(texts)):
                    exchange = await say(chat, texts[turn % len(texts)])
                    if began <= exchange.last < end:
                        found.append(exchange)
            chat = await Chat.opened(port)

    tasks = [asyncio.create_task(visitors(number, chat)) for number, chat in enumerate(first)]
    done, _ = await asyncio.wait(tasks, timeout=end - time.perf_counter())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:  # nobody stops before the end but by failing
        task.result()
    if not found:
        raise ChatFailed(f"no reply ended within {seconds:g} s")
    return Round(seconds, tuple(found), refused)


async def pings(port: int, began: float, seconds: float, every: float) -> list[float]:
    """Seconds that pings took, one every so often for `seconds` from the moment `began` on."""
    chat = await Chat.opened(port)
    found = []
    await asyncio.sleep(began - time.perf_counter())
    while time.perf_counter() < began + seconds:
        found.append(await chat.ping())
        await asyncio.sleep(every)
    chat.close()
    return found


@contextmanager
def pinging(port: int, began: float, seconds: float, every: float = 0.01) -> Iterator[subprocess.Popen[str]]:
    """`pings` from a process of its own, where no load delays them: a JSON list on its standard output."""
    # The clock is the machine's: a moment means the same to both processes.
    numbers = (port, began, seconds, every)
    command = [sys.executable, "-m", "benchmarks.load", *map(str, numbers)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        _end(process)


# --- a server ---------------------------------------------------------------------------------------------


class ServerProcess:
    """`python -m server serve` at work."""

    def __init__(self, process: subprocess.Popen[str], port: int, url: str) -> None:
        """url: of its database."""
        self._process, self.port, self.url = process, port, url

    @property
    def resident(self) -> int:
        """Bytes of memory that its processes have."""
        return processes.memory(self._process.pid)

    @property
    def cpu_seconds(self) -> float:
        """That all of its processes have used."""
        return processes.cpu_seconds(self._process.pid)

    def metrics(self) -> Scrape:
        return Scrape.of(f"http://127.0.0.1:{self.port}/metrics")


@contextmanager
def server_process(url: str, *arguments: str) -> Iterator[ServerProcess]:
    """A server on a port of its own, over the database at `url`, which is at the newest migration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TURNWISE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--port", "0", "--database-url", url, *arguments],
        cwd=ROOT,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("Turnwise is ready: "):
            raise ChatFailed(f"the server did not come up: {line!r}")
        yield ServerProcess(process, int(line.rpartition(":")[2]), url)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(pings(int(sys.argv[1]), *map(float, sys.argv[2:5])))))
