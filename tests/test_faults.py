"""What fails outside the program: an error in words, nothing acknowledged lost, /readyz red, then well again.

Each test has a real server and real sockets, talks, breaks something, talks, mends it, and talks.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError

import pytest

from benchmarks.breakable import Cluster, SmallDisk
from server import database
from server.protocol import Accepted, Error, Message, Ready, Say
from server.store import NewReply, Store
from tests.chat_client import ChatClient, chatting, run
from tests.databases import upgrade
from tests.live_server import LiveServer, serving
from tests.scripted_batcher import ScriptedBatcher, parrot

pytest_plugins = ["tests.fault_fixtures"]

PATIENCE = 45.0
"""Seconds for something to be noticed or to be well again: far above what it takes."""
LIMIT = 110.0
"""Seconds for a whole test."""


def readiness(server: LiveServer) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"{server.address}/readyz", timeout=20) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


async def becomes(server: LiveServer, status: int) -> None:
    """Wait until /readyz answers so."""
    until = time.monotonic() + PATIENCE
    while (found := await asyncio.to_thread(readiness, server))[0] != status:
        assert time.monotonic() < until, f"/readyz still says {found}"
        await asyncio.sleep(0.1)


class Visitor:
    """Talks in one conversation on a connection at a time, and remembers what was acknowledged."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._ready: Ready | None = None
        self.kept: dict[int, tuple[str, str]] = {}

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[ChatClient]:
        async with chatting(self._server.address) as client:
            known = {}
            if self._ready is not None:
                known = {"token": self._ready.token, "conversation": self._ready.conversation}
            self._ready = await client.hello(**known)
            yield client

    async def says(self, text: str) -> None:
        """It is accepted and answered."""
        async with self._connected() as client:
            accepted = await client.say(text, text)
            self.kept[accepted.seq] = (accepted.message, text)
            while (reply := await client.reply()).answers != accepted.message:
                pass
            self.kept[reply.seq] = (reply.message, reply.text)

    async def is_refused(self, client: ChatClient, text: str) -> Error:
        """The answer is an error about it, with the time after which to try again; nothing is accepted."""
        await client.send(Say(id=text, text=text))
        while not isinstance(message := await client.receive(), Error):
            assert not isinstance(message, (Accepted, Message)), message
        assert message.code in ("busy", "internal")
        assert message.id == text
        assert message.retry_after
        return message

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[ChatClient]:
        async with self._connected() as client:
            yield client

    def finds_all_of_it(self) -> None:
        """In the database, without gaps, and nothing besides."""
        assert self._ready is not None
        found = self._server.store.messages(self._ready.conversation, 0, 5000)
        assert [message.seq for message in found] == list(range(1, len(found) + 1))
        assert {m.seq: (m.message_id, m.text) for m in found} == self.kept


# --- PostgreSQL -------------------------------------------------------------------------------------------


@pytest.mark.postgres
@pytest.mark.parametrize("seconds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_postgresql_that_stops_and_comes_back(
    tiny_model_dir: Path, postgres: Cluster, seconds: float
) -> None:
    with serving(postgres.url, tiny_model_dir, parrot) as server:

        async def test() -> None:
            visitor = Visitor(server)
            await visitor.says("before")
            await becomes(server, 200)
            async with visitor.connected() as client:
                await asyncio.to_thread(postgres.stop)
                began = time.monotonic()
                await visitor.is_refused(client, "meanwhile")
                assert time.monotonic() - began < 15
                await becomes(server, 503)
                await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))
                await visitor.is_refused(client, "meanwhile")
                await asyncio.to_thread(postgres.start)
            await becomes(server, 200)
            await visitor.says("meanwhile")
            await visitor.says("afterwards")
            await asyncio.to_thread(visitor.finds_all_of_it)

        run(test, LIMIT)


@pytest.mark.postgres
def test_a_postgresql_that_stops_before_a_reply_is_kept(tiny_model_dir: Path, postgres: Cluster) -> None:
    """The reply is an error, and is made again when the visitor comes back."""
    with serving(postgres.url, tiny_model_dir, parrot) as server:

        async def test() -> None:
            visitor = Visitor(server)
            async with visitor.connected() as client:
                server.gate.close()
                accepted = await client.say("question", "question")
                visitor.kept[accepted.seq] = (accepted.message, "question")
                await asyncio.to_thread(postgres.stop)
                server.gate.open()
                while not isinstance(message := await client.receive(), Error):
                    assert not isinstance(message, Message)
                assert (message.code, message.id) == ("internal", "question")
                assert message.retry_after
                await asyncio.to_thread(postgres.start)
            await becomes(server, 200)
            await visitor.says("question")
            await asyncio.to_thread(visitor.finds_all_of_it)

        run(test, LIMIT)


@pytest.mark.postgres
def test_a_postgresql_that_may_only_be_read(tiny_model_dir: Path, postgres: Cluster) -> None:
    with serving(postgres.url, tiny_model_dir, parrot) as server:

        async def test() -> None:
            visitor = Visitor(server)
            await visitor.says("before")
            async with visitor.connected() as client:
                read_only = "ALTER SYSTEM SET default_transaction_read_only = on"
                await asyncio.to_thread(postgres.execute, read_only, "SELECT pg_reload_conf()")
                await becomes(server, 503)
                await visitor.is_refused(client, "meanwhile")
                writable = "ALTER SYSTEM RESET default_transaction_read_only"
                await asyncio.to_thread(postgres.execute, writable, "SELECT pg_reload_conf()")
            await becomes(server, 200)
            await visitor.says("meanwhile")
            await asyncio.to_thread(visitor.finds_all_of_it)

        run(test, LIMIT)


# --- SQLite -----------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_until_there_is_room(tiny_model_dir: Path, disk: SmallDisk) -> None:
    url = f"sqlite:///{disk.folder / 'turnwise.db'}"
    with serving(url, tiny_model_dir, parrot) as server:

        async def test() -> None:
            visitor = Visitor(server)
            await visitor.says("before")
            disk.fill()
            async with visitor.connected() as client:
                for number in range(100):  # the log has room for some that it has held before
                    text = f"{number} " + "x" * 3000
                    await client.send(Say(id=str(number), text=text))
                    while isinstance(message := await client.receive(), Message) or message.type == "delta":
                        if isinstance(message, Message):
                            visitor.kept[message.seq] = (message.message, message.text)
                    if isinstance(message, Error) and message.code != "busy":
                        break
                    if isinstance(message, Accepted):
                        visitor.kept[message.seq] = (message.message, text)
                assert isinstance(message, Error)
                assert message.code == "internal"
                assert message.retry_after
                await becomes(server, 503)
            disk.free()
            await becomes(server, 200)
            async with visitor.connected() as client:  # a reply that could not be kept is made now
                pass
            await visitor.says("afterwards")
            found = server.store.messages(visitor_conversation(visitor), 0, 5000)
            texts = {m.seq: (m.message_id, m.text) for m in found}
            assert visitor.kept.items() <= texts.items()
            assert list(texts) == list(range(1, len(texts) + 1))

        run(test, LIMIT)


def visitor_conversation(visitor: Visitor) -> str:
    assert visitor._ready is not None
    return visitor._ready.conversation


def test_a_database_that_somebody_else_has_locked(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.3)  # how long it waits for the lock
    path = tmp_path / "turnwise.db"
    with serving(f"sqlite:///{path}", tiny_model_dir, parrot) as server:

        async def test() -> None:
            visitor = Visitor(server)
            await visitor.says("before")
            async with visitor.connected() as client:
                other = sqlite3.connect(path, isolation_level=None)
                other.execute("BEGIN IMMEDIATE")
                error = await visitor.is_refused(client, "meanwhile")
                assert error.code == "busy"
                await becomes(server, 503)
                other.execute("ROLLBACK")
                other.close()
            await becomes(server, 200)
            await visitor.says("meanwhile")
            await asyncio.to_thread(visitor.finds_all_of_it)

        run(test, LIMIT)


# --- the engine -------------------------------------------------------------------------------------------


async def says_in_vain(visitor: Visitor, client: ChatClient) -> None:
    """Something that is kept, and whose reply cannot be made."""
    accepted = await client.say("question", "question")
    visitor.kept[accepted.seq] = (accepted.message, "question")
    while not isinstance(message := await client.receive(), Error):
        assert not isinstance(message, Message)
    assert (message.code, message.id) == ("internal", "question")
    assert message.retry_after


def test_an_engine_that_hangs_is_replaced(tiny_model_dir: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"

    async def test(server: LiveServer) -> None:
        visitor = Visitor(server)
        await visitor.says("before")
        async with visitor.connected() as client:
            server.gate.close()
            await says_in_vain(visitor, client)
            await becomes(server, 503)
            server.gate.open()
        await becomes(server, 200)
        await visitor.says("question")
        await asyncio.to_thread(visitor.finds_all_of_it)

    with serving(url, tiny_model_dir, parrot, step_seconds=0.5) as server:
        run(partial(test, server), LIMIT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("where", ["step", "idle"])
def test_an_engine_whose_thread_has_ended_is_replaced(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, times: int
) -> None:
    """Within a step, or between two. What ends it is no `Exception`: nothing on the thread catches it. The
    next thread makes the reply; when that ends as well, it fails.
    """
    ends_left = iter(range(times - 1))

    def ends(_: ScriptedBatcher) -> NoReturn:
        if next(ends_left, None) is None:
            monkeypatch.undo()  # the next thread has better luck
        raise SystemExit

    async def test(server: LiveServer) -> None:
        visitor = Visitor(server)
        await visitor.says("before")
        monkeypatch.setattr(ScriptedBatcher, where, property(ends) if where == "idle" else ends)
        if times == 2:
            async with visitor.connected() as client:
                await says_in_vain(visitor, client)
        await visitor.says("question")
        await becomes(server, 200)
        await asyncio.to_thread(visitor.finds_all_of_it)

    with serving(f"sqlite:///{tmp_path / 'turnwise.db'}", tiny_model_dir, parrot) as server:
        run(partial(test, server), LIMIT)


# --- the clock --------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_changes_no_order(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    now = [datetime(2026, 6, 1, 12, tzinfo=UTC)]
    engine = database.connect(url)
    store = Store(engine, clock=lambda: now[0])
    grant = store.new_visitor()
    conversation = store.open_conversation(grant.visitor_id)
    for number in range(6):
        turn = store.add_user_turn(conversation, f"c{number}", f"turn {number}", {})
        store.add_reply(conversation, reply_to(turn.message_id, number))
        now[0] -= timedelta(days=400)
    assert store.visitor_of(grant.token) == grant.visitor_id
    assert [m.seq for m in store.messages(conversation)] == list(range(1, 13))
    assert [m.text for m in store.messages(conversation)][::2] == [f"turn {n}" for n in range(6)]
    assert [text for _, text in store.history(conversation)][-2:] == ["turn 5", "reply 5"]
    assert store.unanswered(conversation) is None
    assert store.add_user_turn(conversation, "c0", "turn 0", {}).seq == 1
    assert [found.id for found in store.conversations(grant.visitor_id, 10)] == [conversation]
    engine.dispose()


def reply_to(message: str, number: int) -> NewReply:
    return NewReply(
        reply_id=f"r{number}",
        answers=message,
        text=f"reply {number}",
        finish_reason="stop",
        model="tw-test",
        options={},
        seed=1,
        token_ids=(1,),
        logprobs=(-0.5,),
        alternatives=[],
        queued_ms=0.0,
        first_token_ms=None,
        total_ms=1.0,
    )


def test_nothing_that_waits_or_expires_asks_a_clock_that_can_be_set() -> None:
    """Times that are kept are for people; what is waited for is measured by the monotonic clock."""
    for path in (Path(database.__file__).parent).glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"\btime\.time\(|\bdatetime\.now\(\)|\butcnow\(", source), path.name
