"""Kill the server again and again while people talk, and see that nothing acknowledged is lost or doubled.

    python -m benchmarks.killing [--database-url URL] [--kills 50] [--chats 32] [--models DIR]

A real server process is ended by SIGKILL at random moments and started again, over a fresh SQLite file or the
database at URL. Its clients come back by themselves: each goes on with its conversation where it was and says
again what was not acknowledged, with the same id. At the end every conversation is read from the database and
compared with what its client was told. One JSON line a figure; the exit status is 0 only if nothing is lost,
doubled, out of order or left without an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from benchmarks.figures import report
from server import database
from server.protocol import (
    SUBPROTOCOL,
    Accepted,
    Error,
    GoingAway,
    Hello,
    Message,
    Ready,
    Say,
    encode,
    parse_server,
)
from server.store import MessageRecord, Store

ROOT: Final = Path(__file__).resolve().parent.parent
STARTING: Final = 120.0
"""Seconds that a server may take to come up."""
ANSWERING: Final = 60.0
"""Seconds that a client waits for a frame before it takes the connection for lost."""
OPTIONS: Final = {"decoding": "greedy", "min_tokens": 0, "max_tokens": 2}
"""Short replies: it is about messages, not about words."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. resumed: connections that went on with a conversation. problems: what is wrong."""

    kills: int
    accepted: int
    replies: int
    resumed: int
    problems: tuple[str, ...]

    @property
    def acknowledged(self) -> int:
        """Messages that a client was told are kept: its own, and replies that it has seen complete."""
        return self.accepted + self.replies


@dataclass
class Chat:
    """One client. `known` is all it was told is kept, by seq."""

    name: str
    token: str | None = None
    conversation: str | None = None
    known: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    replies: int = 0
    resumed: int = 0
    problems: list[str] = field(default_factory=list)
    stopping: bool = False

    async def run(self, port: int) -> None:
        """Say one thing after another, until told to stop and answered."""
        for number in range(1_000_000):
            if self.stopping:
                return
            await self._have_answered(port, f"{self.name}-{number}")

    async def _have_answered(self, port: int, text: str) -> None:
        """Say it until it is answered, on as many connections as that takes."""
        while True:
            with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                async with self._connected(port) as socket:
                    while await self._turn(socket, text):
                        if self.stopping:
                            return
                        text = f"{self.name}-{int(text.rpartition('-')[2]) + 1}"
                    return
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def _connected(self, port: int) -> AsyncIterator[ClientConnection]:
        url = f"ws://127.0.0.1:{port}/v1/chat"
        async with connect(url, subprotocols=[SUBPROTOCOL], proxy=None, close_timeout=1) as socket:  # type: ignore[list-item]
            last = max(self.known, default=0)
            hello = Hello(token=self.token, conversation=self.conversation, last_seq=last)
            await socket.send(encode(hello))
            ready = await self._next(socket)
            if not isinstance(ready, Ready):
                raise ConnectionClosed(None, None)  # busy, or going away: come back later
            self.resumed += self.conversation is not None
            self.token, self.conversation = ready.token, ready.conversation
            for message in ready.messages:
                self.keep(message.seq, message.message, message.role, message.text)
            if ready.seq != max(self.known, default=0):
                self.problems.append(f"{self.name}: ready says {ready.seq}, and there are {len(self.known)}")
            yield socket

    async def _turn(self, socket: ClientConnection, text: str) -> bool:
        """Say it, and wait until it is answered."""
        await socket.send(encode(Say(id=text, text=text, options=OPTIONS)))
        asked = None
        while True:
            message = await self._next(socket)
            if isinstance(message, Accepted):
                asked = message.message
                self.keep(message.seq, message.message, "user", text)
                if self.accepted.setdefault(message.id, message.seq) != message.seq:
                    self.problems.append(f"{self.name}: {message.id} was accepted twice, differently")
            elif isinstance(message, Message):
                new = message.seq not in self.known
                self.keep(message.seq, message.message, message.role, message.text)
                self.replies += new and message.role == "agent"
                if asked is not None and message.answers == asked:
                    return True
            elif isinstance(message, Error):
                if message.retry_after is None:
                    self.problems.append(f"{self.name}: {message.code}: {message.message}")
                    raise ConnectionClosed(None, None)
                await asyncio.sleep(message.retry_after)
                await socket.send(encode(Say(id=text, text=text, options=OPTIONS)))
            elif isinstance(message, GoingAway):
                raise ConnectionClosed(None, None)

    async def _next(self, socket: ClientConnection) -> Any:
        async with asyncio.timeout(ANSWERING):
            frame = await socket.recv()
        assert isinstance(frame, str)
        return parse_server(frame)

    def keep(self, seq: int, message: str, role: str, text: str) -> None:
        """Told that it is kept: once more is harmless, anything else is a problem."""
        if seq != max(self.known, default=0) + 1 and seq not in self.known:
            self.problems.append(f"{self.name}: {seq} after {max(self.known, default=0)}")
        if self.known.setdefault(seq, (message, role, text)) != (message, role, text):
            self.problems.append(f"{self.name}: {seq} is another message now")


# --- a run ------------------------------------------------------------------------------------------------


async def run(
    url: str, models: Path | None, *, kills: int, chats: int, longest: float, seed: int = 0
) -> Outcome:
    """Serve the database at `url`, which is at the newest migration, and kill the server `kills` times.

    longest: seconds from a start to the kill after it, at most. seed: of the moments.
    """
    moments = random.Random(seed)
    port = free_port()
    clients = [Chat(f"chat{number}") for number in range(chats)]
    tasks = [asyncio.create_task(client.run(port)) for client in clients]
    try:
        for _ in range(kills):
            process = await asyncio.to_thread(started, url, models, port)
            await asyncio.sleep(moments.uniform(0.05, longest))
            process.kill()
            await asyncio.to_thread(process.wait, 30)
        process = await asyncio.to_thread(started, url, models, port)
        try:
            for client in clients:
                client.stopping = True
            async with asyncio.timeout(STARTING):
                await asyncio.gather(*tasks)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 60)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    problems = [problem for client in clients for problem in client.problems]
    problems += await asyncio.to_thread(compare, url, clients)
    return Outcome(
        kills,
        sum(len(client.accepted) for client in clients),
        sum(client.replies for client in clients),
        sum(client.resumed for client in clients),
        tuple(problems),
    )


def compare(url: str, clients: Sequence[Chat]) -> list[str]:
    """What is wrong with the database, given what the clients were told."""
    engine = database.connect(url)
    try:
        store = Store(engine)
        return [problem for client in clients for problem in _compare_one(store, client)]
    finally:
        engine.dispose()


def _compare_one(store: Store, client: Chat) -> list[str]:
    if client.conversation is None:
        return [f"{client.name}: never came in"]
    kept: list[MessageRecord] = []
    while page := store.messages(client.conversation, len(kept), 500):
        kept += page
    found = {record.seq: (record.message_id, record.role, record.text) for record in kept}
    problems = []
    if [record.seq for record in kept] != list(range(1, len(kept) + 1)):
        problems.append(f"{client.name}: the numbers have gaps")
    lost = [seq for seq, message in client.known.items() if found.get(seq) != message]
    if lost:
        problems.append(
            f"{client.name}: {len(lost)} acknowledged messages are lost or changed, {lost[0]} first"
        )
    doubled = [said for said, times in Counter(r.client_id for r in kept if r.client_id).items() if times > 1]
    if doubled:
        problems.append(f"{client.name}: {doubled[0]} is kept more than once")
    answers = Counter(record.answers for record in kept if record.role == "agent")
    return problems + [
        f"{client.name}: {record.client_id} has {answers[record.message_id]} answers"
        for record in kept
        if record.role == "user" and answers[record.message_id] != 1
    ]


def started(url: str, models: Path | None, port: int) -> subprocess.Popen[bytes]:
    """A server that answers on `port`. Raises RuntimeError when it does not come up."""
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--port", str(port), "--database-url", url]
        + ([] if models is None else ["--models", str(models)])
        + ["--threads", "1", "--log-level", "error", "--drain-seconds", "1"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process.stdout as output:
        line = output.readline()
    if not line.startswith(b"Turnwise is ready"):
        process.kill()
        process.wait()
        raise RuntimeError(f"the server did not come up on port {port}")
    return process


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.killing", description="Kill the server while people talk."
    )
    parser.add_argument("--database-url", metavar="URL", help="default: a fresh SQLite file")
    parser.add_argument("--models", type=Path, metavar="DIR", help="default: the model that ships")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--chats", type=int, default=32)
    parser.add_argument(
        "--longest", type=float, default=6.0, help="seconds from a start to its kill, at most"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        url = options.database_url or f"sqlite:///{Path(folder) / 'killing.db'}"
        database.upgrade(url)
        outcome = asyncio.run(
            run(
                url,
                options.models,
                kills=options.kills,
                chats=options.chats,
                longest=options.longest,
                seed=options.seed,
            )
        )
        kind = database.parse(url).drivername
    report(
        f"killing_{kind}_wrong",
        len(outcome.problems),
        "messages or conversations",
        outcome.acknowledged,
        "acknowledged messages",
        kills=outcome.kills,
        accepted=outcome.accepted,
        replies=outcome.replies,
        resumed=outcome.resumed,
    )
    for problem in outcome.problems[:20]:
        print(problem, file=sys.stderr)
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
