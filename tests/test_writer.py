"""The writer: what waits is committed together, acknowledged afterwards, and fails alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError

from benchmarks import committing
from server import writer as writer_module
from server.database import connect, reading, upgrade
from server.store import (
    ClientIdConflict,
    ConversationFull,
    Store,
    StoreUnavailable,
    StoreValueError,
    UnknownConversation,
    UnknownVisitor,
)
from server.store_errors import StoreError
from server.tables import Visitor
from server.writer import Writer
from tests.databases import fresh_database
from tests.test_store import reply_to

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def writer(engine: Engine) -> Iterator[Writer]:
    """Not started: what is submitted waits, and is one batch once it is."""
    writer = Writer(engine)
    yield writer
    writer.close()


@pytest.fixture
def store(engine: Engine, writer: Writer) -> Store:
    return Store(engine, writer=writer)


@pytest.fixture
def conversation(engine: Engine) -> str:
    alone = Store(engine)
    return alone.open_conversation(alone.new_visitor().visitor_id)


@pytest.fixture
def commits(engine: Engine) -> list[None]:
    """Grows by one with every commit."""
    found: list[None] = []
    event.listen(engine, "commit", lambda _: found.append(None))
    return found


def texts(store: Store, conversation: str) -> list[str]:
    return [message.text for message in store.messages(conversation)]


# --- together ---------------------------------------------------------------------------------------


def test_what_waits_is_one_commit_in_the_order_it_came(
    store: Store, writer: Writer, conversation: str, commits: list[None]
) -> None:
    kept = [store.submit_user_turn(conversation, str(number), f"words {number}", {}) for number in range(100)]
    assert not any(future.done() for future in kept)
    writer.start()
    assert [future.result().seq for future in kept] == list(range(1, 101))
    assert len(commits) == 1
    assert texts(store, conversation) == [f"words {number}" for number in range(100)]
    assert store.last_seq(conversation) == 100


def test_more_than_a_batch_is_several_commits(engine: Engine, conversation: str, commits: list[None]) -> None:
    writer = Writer(engine, together=10)
    store = Store(engine, writer=writer)
    kept = [store.submit_user_turn(conversation, str(number), "words", {}) for number in range(25)]
    writer.start()
    assert [future.result().seq for future in kept] == list(range(1, 26))
    assert len(commits) == 3
    writer.close()


def test_nothing_is_acknowledged_before_its_commit(
    store: Store, writer: Writer, conversation: str, engine: Engine
) -> None:
    committing_now, go_on = threading.Event(), threading.Event()

    def before(_: Connection) -> None:
        committing_now.set()
        assert go_on.wait(30)

    kept = store.submit_user_turn(conversation, "1", "hello", {})
    event.listen(engine, "commit", before)
    writer.start()
    assert committing_now.wait(30)
    assert not kept.done()
    go_on.set()
    assert kept.result().seq == 1


def test_a_batch_of_everything_is_what_the_calls_would_give_one_by_one(
    store: Store, writer: Writer, conversation: str, engine: Engine
) -> None:
    question = Store(engine).add_user_turn(conversation, "q", "question", {}).message_id
    first = Store(engine).add_reply(conversation, reply_to(question, "first")).message_id
    grant, visitor = store.submit_visitor()
    again = store.submit_user_turn(conversation, "q", "question", {})
    said = store.submit_user_turn(conversation, "1", "hello", {"seed": 3})
    twice = store.submit_user_turn(conversation, "1", "hello", {})
    second = store.submit_reply(conversation, reply_to(question, "second", replaces=first))
    third = store.submit_reply(conversation, reply_to(question, "third"))
    repeated = store.submit_reply(conversation, reply_to(question, "second"))
    rated = store.submit_rating(conversation, first, "down", "old")
    writer.start()
    visitor.result()
    assert store.visitor_of(grant.token) == grant.visitor_id
    assert (again.result().created, again.result().message_id) == (False, question)
    assert (said.result().created, twice.result().created) == (True, False)
    assert said.result().message_id == twice.result().message_id
    assert (second.result().seq, second.result().replaces) == (4, first)
    assert (third.result().seq, third.result().replaces) == (5, second.result().message_id)
    assert (repeated.result().created, repeated.result().message_id) == (False, second.result().message_id)
    assert repeated.result().replaces == first
    assert rated.result()
    kept = store.messages(conversation)
    assert [(m.seq, m.text, m.superseded) for m in kept] == [
        (1, "question", False),
        (2, "first", True),
        (3, "hello", False),
        (4, "second", True),
        (5, "third", False),
    ]
    assert (kept[1].rating, kept[2].options) == ("down", {"seed": 3})
    assert store.history(conversation) == [("user", "question"), ("agent", "third"), ("user", "hello")]


def test_many_at_once_have_no_gaps_and_share_commits(
    store: Store, writer: Writer, engine: Engine, commits: list[None]
) -> None:
    writer.start()

    async def chat(visitor: str, speaker: int) -> str:
        conversation, kept = store.submit_conversation(visitor)
        await asyncio.wrap_future(kept)
        for number in range(10):
            said = await asyncio.wrap_future(
                store.submit_user_turn(conversation, str(number), f"{speaker}.{number}", {})
            )
            await asyncio.wrap_future(
                store.submit_reply(conversation, reply_to(said.message_id, str(number)))
            )
        return conversation

    async def everybody() -> list[str]:
        visitor = Store(engine).new_visitor().visitor_id
        return await asyncio.gather(*(chat(visitor, speaker) for speaker in range(20)))

    for conversation in asyncio.run(everybody()):
        kept = store.messages(conversation)
        assert [message.seq for message in kept] == list(range(1, 21))
        assert [message.role for message in kept] == ["user", "agent"] * 10
    assert len(commits) < 20 * 21  # each is what a transaction of its own would have been


# --- alone ------------------------------------------------------------------------------------------


def test_a_refused_request_fails_alone_and_costs_no_second_commit(
    store: Store, writer: Writer, conversation: str, commits: list[None]
) -> None:
    good = store.submit_user_turn(conversation, "1", "hello", {})
    bad: dict[type[StoreError], Future[Any]] = {
        ClientIdConflict: store.submit_user_turn(conversation, "1", "something else", {}),
        UnknownConversation: store.submit_user_turn("0" * 32, "1", "hello", {}),
        ConversationFull: store.submit_user_turn(conversation, "2", "hello", {}, 1),
        StoreValueError: store.submit_reply(conversation, reply_to("0" * 32)),
        UnknownVisitor: store.submit_conversation("nobody")[1],
    }
    late = store.submit_user_turn(conversation, "3", "more", {}, 2)
    writer.start()
    assert good.result().seq == 1
    for kind, future in bad.items():
        assert type(future.exception()) is kind
    assert late.result().seq == 2
    assert len(commits) == 1
    assert texts(store, conversation) == ["hello", "more"]


def written_twice(connection: Connection, requests: Sequence[str]) -> list[StoreError | None]:
    """Writes visitors that exist already."""
    rows = [{"id": each, "token_hash": "again", "created_at": datetime.now(UTC)} for each in requests]
    connection.execute(insert(Visitor), rows)
    return [None for _ in requests]


def test_what_the_database_refuses_fails_alone(
    store: Store, writer: Writer, conversation: str, engine: Engine
) -> None:
    with reading(engine) as connection:
        visitor = connection.scalar(select(Visitor.id))
    assert visitor is not None
    before = store.submit_user_turn(conversation, "1", "before", {})
    bad = writer.submit(written_twice, visitor)
    after = store.submit_user_turn(conversation, "2", "after", {})
    writer.start()
    assert isinstance(bad.exception(), IntegrityError)
    assert (before.result().seq, after.result().seq) == (1, 2)
    assert texts(store, conversation) == ["before", "after"]


def test_a_fault_of_ours_fails_alone(store: Store, writer: Writer, conversation: str) -> None:
    def broken(_: Connection, requests: Sequence[int]) -> list[int | StoreError]:
        return [1 // number for number in requests]

    zero = writer.submit(broken, 0)
    good = store.submit_user_turn(conversation, "1", "hi", {})
    one = writer.submit(broken, 1)
    writer.start()
    assert isinstance(zero.exception(), ZeroDivisionError)
    assert (good.result().seq, one.result()) == (1, 1)


def failing(_connection: Connection) -> None:
    raise OperationalError("COMMIT", None, Exception("the server closed the connection unexpectedly"))


def test_without_its_database_nothing_is_acknowledged_and_a_retry_is_harmless(
    store: Store, writer: Writer, conversation: str, engine: Engine
) -> None:
    event.listen(engine, "commit", failing)
    kept = [store.submit_user_turn(conversation, key, "hello", {}) for key in "abc"]
    writer.start()
    errors = [future.exception() for future in kept]
    for error in errors:
        assert isinstance(error, StoreUnavailable)
        assert not error.busy
    assert len(set(map(id, errors))) == 3
    event.remove(engine, "commit", failing)
    assert [store.add_user_turn(conversation, key, "hello", {}).seq for key in "abc"] == [1, 2, 3]


@pytest.mark.postgres
def test_a_conversation_that_somebody_else_holds_delays_others_but_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.database.WAIT_SECONDS", 0.2)
    with fresh_database("postgres", tmp_path) as url:
        upgrade(url)
        engine = connect(url)
        alone = Store(engine)
        visitor = alone.new_visitor().visitor_id
        free, held = (alone.open_conversation(visitor) for _ in range(2))
        writer = Writer(engine)
        store = Store(engine, writer=writer)
        with connect(url).connect() as other:
            other.exec_driver_sql("SET idle_in_transaction_session_timeout = 0")
            other.exec_driver_sql("SELECT 1 FROM conversation WHERE id = %s FOR UPDATE", (held,))
            refused = store.submit_user_turn(held, "1", "hello", {})
            kept = store.submit_user_turn(free, "1", "hello", {})
            writer.start()
            assert kept.result().seq == 1
            error = refused.exception()
            other.rollback()
        other.engine.dispose()
        assert isinstance(error, StoreUnavailable)
        assert error.busy
        assert store.add_user_turn(held, "1", "hello", {}).seq == 1
        writer.close()
        engine.dispose()


def test_trying_one_by_one_ends(
    writer: Writer, conversation: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "WAIT_SECONDS", -1)

    def broken(_: Connection, requests: Sequence[int]) -> list[int | StoreError]:
        raise ZeroDivisionError

    kept = [writer.submit(broken, number) for number in range(3)]
    writer.start()
    for future in kept:
        error = future.exception()
        assert isinstance(error, StoreUnavailable)
        assert error.busy


# --- bounds and the end -----------------------------------------------------------------------------


def test_too_many_that_wait_are_refused(engine: Engine, conversation: str) -> None:
    writer = Writer(engine, waiting=2)
    store = Store(engine, writer=writer)
    kept = [store.submit_user_turn(conversation, key, "hello", {}) for key in "ab"]
    with pytest.raises(StoreUnavailable, match="too many writes") as refusal:
        store.submit_user_turn(conversation, "c", "hello", {})
    assert refusal.value.busy
    writer.start()
    assert [future.result().seq for future in kept] == [1, 2]
    assert store.add_user_turn(conversation, "c", "hello", {}).seq == 3
    writer.close()


def test_closing_keeps_what_waits_and_takes_no_more(store: Store, writer: Writer, conversation: str) -> None:
    kept = [store.submit_user_turn(conversation, str(number), "hello", {}) for number in range(600)]
    writer.start()
    writer.close()
    assert all(future.done() for future in kept)
    assert [future.result().seq for future in kept] == list(range(1, 601))
    with pytest.raises(StoreUnavailable, match="stopping"):
        store.submit_user_turn(conversation, "late", "hello", {})
    assert store.last_seq(conversation) == 600


def test_a_writer_that_never_ran_can_be_closed(engine: Engine) -> None:
    Writer(engine).close()


def test_who_stops_waiting_stops_nothing(store: Store, writer: Writer, conversation: str) -> None:
    async def give_up() -> None:
        waiting = asyncio.wrap_future(store.submit_user_turn(conversation, "1", "hello", {}))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())
    writer.start()
    assert store.add_user_turn(conversation, "2", "more", {}).seq == 2
    assert texts(store, conversation) == ["hello", "more"]


# --- the power goes ---------------------------------------------------------------------------------

CHATTING = """
import asyncio, itertools, sys
from server.database import connect
from server.store import Store
from server.writer import Writer

async def chat(store, conversation):
    for number in itertools.count():
        turn = await asyncio.wrap_future(
            store.submit_user_turn(conversation, str(number), f"{conversation} {number}", {})
        )
        print(conversation, number, turn.seq, flush=True)

async def main():
    engine = connect(sys.argv[1])
    writer = Writer(engine)
    writer.start()
    store = Store(engine, writer=writer)
    await asyncio.gather(*(chat(store, conversation) for conversation in sys.argv[2:]))

asyncio.run(main())
"""


def test_what_was_acknowledged_is_there_once_when_the_process_is_killed(
    database_url: str, engine: Engine
) -> None:
    alone = Store(engine)
    visitor = alone.new_visitor().visitor_id
    for enough in (300, 417, 1000):
        fresh = [alone.open_conversation(visitor) for _ in range(20)]
        acknowledged = until_killed(database_url, fresh, enough)
        assert len(acknowledged) >= enough
        for conversation in fresh:
            kept = alone.messages(conversation)
            assert [message.seq for message in kept] == list(range(1, len(kept) + 1))
            assert len({message.client_id for message in kept}) == len(kept)
            known = {(message.client_id, message.seq) for message in kept}
            heard = {(number, seq) for key, number, seq in acknowledged if key == conversation}
            assert heard <= known
            assert len(known) - len(heard) <= 1  # each client waits for one answer at a time


def until_killed(url: str, conversations: list[str], enough: int) -> list[tuple[str, str, int]]:
    """What a process acknowledged (conversation, client id, seq) that is killed while it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHATTING, url, *conversations],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == enough:
            process.kill()
    process.wait()
    process.stdout.close()
    found = [line.split() for line in lines if line.endswith("\n")]
    return [(key, number, int(seq)) for key, number, seq in found]


# --- the benchmark ----------------------------------------------------------------------------------


def test_commits_are_measured_beside_single_ones(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--database-url", database_url, "--clients", "4", "--seconds", "0.1", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.committing", *arguments])
    committing.main()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    name = f"commit_{engine.dialect.name}"
    assert [figure["name"] for figure in found] == [name, f"{name}_p50", f"{name}_p99"]
    assert [figure["unit"] for figure in found] == ["messages/s", "ms", "ms"]
    assert all(figure["value"] > 0 and figure["reference"] > 0 for figure in found)
    with reading(engine) as connection:
        assert connection.scalar(select(Visitor.id)) is None
