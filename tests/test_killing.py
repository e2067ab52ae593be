"""Killed again and again under load, the server loses and doubles nothing, and its clients come back."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import killing
from benchmarks.killing import Chat, Outcome, compare, run
from server import database
from server.store import NewReply, Store
from tests.databases import KINDS, fresh_database


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with fresh_database(request.param, tmp_path) as found:
        database.upgrade(found)
        yield found


@pytest.mark.parametrize(
    ("kills", "longest", "acknowledged"),
    [
        pytest.param(2, 2.0, 50, marks=pytest.mark.timeout(400)),
        pytest.param(25, 9.0, 2000, marks=[pytest.mark.slow, pytest.mark.timeout(1500)]),
    ],
    ids=["a few times", "many times"],
)
def test_killed_at_any_moment_it_keeps_its_word(
    url: str, tiny_model_dir: Path, kills: int, longest: float, acknowledged: int
) -> None:
    outcome = asyncio.run(run(url, tiny_model_dir, kills=kills, chats=16, longest=longest))
    assert outcome.problems == ()
    assert outcome.acknowledged > acknowledged
    assert outcome.resumed > 0


# --- the measuring itself ---------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> tuple[str, Chat]:
    """A database with two turns and their replies, and a client that was told of them."""
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    database.upgrade(url)
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


def test_the_figure_and_the_exit_status_tell_how_it_went(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [Outcome(2, 10, 9, 4, ()), Outcome(2, 10, 9, 4, ("chat1: the numbers have gaps",))]

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
