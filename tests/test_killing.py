"""Killed again and again under load, the server loses and doubles nothing, and its clients come back."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol

from benchmarks import faults, killing
from benchmarks.breakable import Cluster, Missing, SmallDisk
from benchmarks.chats import Chat
from benchmarks.faults import FAULTS, Place, Scene, ServerProcess, available, fresh_place
from benchmarks.killing import Outcome, compare, drawn, run
from server import database
from server.protocol import SUBPROTOCOL, Limits, Ready, encode
from server.store import NewReply, Store
from tests.databases import upgrade

pytest_plugins = ["tests.fault_fixtures"]


@pytest.mark.timeout(600)
def test_killed_at_any_moment_it_keeps_its_word(database_url: str, tiny_model_dir: Path) -> None:
    outcome = asyncio.run(
        run(Place(database_url), tiny_model_dir, ["kill", "terminate"], chats=8, longest=2.0)
    )
    assert (outcome.problems, outcome.late) == ((), ())
    assert outcome.acknowledged >= 2 * 8, "each was answered"
    assert outcome.resumed > 0


@pytest.mark.timeout(600)
def test_whatever_fails_within_it_or_under_it_it_keeps_its_word(
    disk: SmallDisk, tiny_model_dir: Path
) -> None:
    """The peers, the engine, the disk: one process lives through all of it."""
    place = Place(f"sqlite:///{disk.folder / 'turnwise.db'}", disk=disk)
    names = ["half-open", "engine-ends", "disk-full", "engine-hangs"]
    outcome = asyncio.run(run(place, tiny_model_dir, names, chats=4, longest=0.5, seconds=3.0))
    assert (outcome.problems, outcome.late) == ((), ())
    assert set(outcome.recoveries) == set(names)
    assert outcome.acknowledged >= 2 * 4 * len(names), "each was answered again after each"


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_whatever_its_database_does_it_keeps_its_word(postgres: Cluster, tiny_model_dir: Path) -> None:
    names = ["database-stops", "database-freezes"]
    outcome = asyncio.run(
        run(
            Place(postgres.url, postgresql=postgres),
            tiny_model_dir,
            names,
            chats=4,
            longest=0.5,
            seconds=1.0,
        )
    )
    assert (outcome.problems, outcome.late) == ((), ())
    assert set(outcome.recoveries) == set(names)
    assert outcome.acknowledged >= 2 * 4 * len(names), "each was answered again after each"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("postgresql", [False, pytest.param(True, marks=pytest.mark.postgres)])
def test_failing_many_times_it_keeps_its_word(tiny_model_dir: Path, postgresql: bool) -> None:
    names = available(postgresql, None)
    drawn_names = drawn(names, 24, seed=1)
    try:
        with fresh_place(names, postgresql) as place:
            outcome = asyncio.run(run(place, tiny_model_dir, drawn_names, chats=16, longest=6.0))
    except Missing as reason:
        pytest.skip(str(reason))
    assert (outcome.problems, outcome.late) == ((), ())
    assert outcome.acknowledged > 500
    assert outcome.resumed > 0


# --- the measuring itself ---------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> tuple[str, Chat]:
    """A database with two turns and their replies, and a client that was told of them."""
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = database.connect(url)
    store = Store(engine)
    grant = store.new_visitor()
    conversation = store.open_conversation(grant.visitor_id)
    for number in range(2):
        turn = store.add_user_turn(conversation, f"c{number}", f"turn {number}", {})
        store.add_reply(conversation, replace(REPLY, reply_id=f"r{number}", answers=turn.message_id))
    known = {m.seq: (m.message_id, str(m.role), m.text) for m in store.messages(conversation)}
    engine.dispose()
    return url, Chat("chat", grant.token, conversation, known)


REPLY = NewReply(
    reply_id="",
    answers="",
    text="reply",
    finish_reason="stop",
    model="tw-test",
    options={},
    seed=1,
    token_ids=(),
    logprobs=(),
    alternatives=(),
    queued_ms=0.0,
    first_token_ms=None,
    total_ms=1.0,
)


def test_a_whole_database_is_found_to_be_whole(told: tuple[str, Chat]) -> None:
    url, chat = told
    assert compare(url, [chat]) == []


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM message WHERE seq = 4", "chat: 1 acknowledged messages are lost or changed, 4 first"),
        ("DELETE FROM message WHERE seq = 2", "chat: the numbers have gaps"),
        ("UPDATE message SET text = 'x' WHERE seq = 1", "chat: 1 acknowledged messages are lost or changed"),
        ("DELETE FROM message WHERE seq = 4", "chat: c1 has 0 answers"),
    ],
)
def test_what_is_wrong_with_a_database_is_found(told: tuple[str, Chat], statement: str, problem: str) -> None:
    url, chat = told
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute(statement)
    connection.close()
    assert any(found.startswith(problem) for found in compare(url, [chat]))


def test_a_client_notices_a_gap_and_a_changed_message() -> None:
    chat = Chat("chat")
    chat.keep(1, "m1", "user", "one")
    chat.keep(1, "m1", "user", "one")
    assert chat.problems == []
    chat.keep(3, "m3", "user", "three")
    chat.keep(1, "m1", "user", "another")
    assert chat.problems == ["chat: 3 after 1", "chat: 1 is another message now"]


NOTHING_SAID = Ready(
    token="t",
    conversation="c",
    model="m",
    seq=0,
    messages=(),
    replying=None,
    defaults={},
    limits=Limits(max_text=10, max_tokens=10, max_frame=1000),
)


@asynccontextmanager
async def talking_to_the_deaf() -> AsyncIterator[Chat]:
    """A client of a server that lets everybody in, answers nobody, and never looks whether they are there."""

    async def deaf(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(encode(NOTHING_SAID))
        await socket.wait_closed()

    subprotocols = [Subprotocol(SUBPROTOCOL)]
    async with serve(deaf, "127.0.0.1", 0, subprotocols=subprotocols, ping_interval=None) as server:
        [listener] = server.sockets
        chat = Chat("chat")
        talking = asyncio.create_task(chat.run(listener.getsockname()[1]))
        yield chat
        talking.cancel()
        for socket in chat.silent:
            socket.transport.abort()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come to that")


def test_peers_that_are_kept_and_clients_that_are_not_answered_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults, "GONE", 0.3)
    monkeypatch.setattr(killing, "RECOVERING", 0.3)

    async def test() -> None:
        async with talking_to_the_deaf() as chat:
            process = ServerProcess("sqlite:///none.db", None)
            scene = Scene(Place("sqlite:///none.db"), process, [chat], 0.1, random.Random(0))
            problems = await FAULTS["half-open"].act(scene)
            assert problems == ["1 peers that had fallen silent were there after 0.3 s"]
            _, left = await killing.recovery(scene)
            assert left == ["chat was not answered within 0.3 s"]

    asyncio.run(test())


def test_a_client_falls_silent_though_frames_have_come_that_it_has_not_read() -> None:
    async def test() -> None:
        async with talking_to_the_deaf() as chat:
            await until(lambda: chat.waiting is not None)
            socket = chat.waiting
            assert socket is not None
            for _ in range(40):  # more than the library takes without a pause, which it ends by itself
                socket.recv_messages.put(Frame(Opcode.TEXT, b'{"type":"pong"}'))
            assert chat.fall_silent()
            await until(lambda: chat.waiting not in (None, socket))
            assert chat.resumed == 1
            assert not socket.transport.is_reading()

    asyncio.run(test())


def test_the_figure_and_the_exit_status_tell_how_it_went(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_numbers, late = ("chat1: the numbers have gaps",), ("after engine-ends: chat1",)
    outcomes = [
        Outcome(("kill",) * 2, 10, 9, 4, ()),
        Outcome(("kill",) * 2, 10, 9, 4, wrong_numbers),
        Outcome(("engine-ends",), 10, 9, 4, (), late, {"engine-ends": [60.0]}),
    ]

    async def pretended(*_: object, **__: object) -> Outcome:
        return outcomes.pop(0)

    monkeypatch.setattr(killing, "run", pretended)
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    for wrong in (0, 1):
        assert killing.main(["--database-url", url, "--kills", "2"]) == wrong
        said = capsys.readouterr()
        figure = json.loads(said.out)
        assert (figure["name"], figure["value"], figure["reference"]) == ("killing_sqlite_wrong", wrong, 19)
        assert said.err.strip() == ("chat1: the numbers have gaps" if wrong else "")
    assert killing.main(["--database-url", url, "--kills", "1", "--chats", "4"]) == 1
    said = capsys.readouterr()
    figures = {figure["name"]: figure for figure in map(json.loads, said.out.splitlines())}
    assert figures["killing_sqlite_wrong"]["value"] == 0
    assert (figures["killing_sqlite_late"]["value"], figures["killing_sqlite_late"]["reference"]) == (1, 4)
    assert said.err == "after engine-ends: chat1\n"


def test_every_fault_that_can_be_had_is_drawn_as_often_as_the_others() -> None:
    assert sorted(drawn(["kill", "half-open"], 5, seed=3)) == ["half-open"] * 2 + ["kill"] * 3
    assert drawn(["kill", "half-open"], 9, seed=3) == drawn(["kill", "half-open"], 9, seed=3)
    everywhere = set(available(True, None)) | set(available(False, None))
    assert everywhere == set(FAULTS)
    assert set(available(False, "sqlite:///file.db")) == set(available(True, None)) & set(
        available(False, None)
    )


def test_what_cannot_be_broken_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--faults", "database-stops"], ["--postgresql", "--faults", "disk-full"]):
        with pytest.raises(SystemExit):
            killing.main(arguments)
        assert "not with this database" in capsys.readouterr().err
