"""What models read is in memory, and is always what the database says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbot.options import DecodingOptions
from server.database import connect
from server.histories import HISTORY_BYTES, Histories
from server.ledger import Ledger
from server.offload import Offload
from server.protocol import Rating
from server.session import Judge, Post
from server.store import NewReply, Store, StoredTurn, utc_now
from tests.databases import KINDS, fresh_database, upgrade


class CountingStore(Store):
    """Counts how often a history is read from the database."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.read = 0

    def history(self, conversation_id: str, answering: str | None = None) -> Any:
        self.read += 1
        return super().history(conversation_id, answering)


class Server:
    """A server's ledger over a store."""

    def __init__(self, store: CountingStore, histories: int = HISTORY_BYTES) -> None:
        self.store = store
        self.offload = Offload(1, "store")
        self.ledger = Ledger(store, self.offload, 2000, histories)

    def say(self, conversation: str, key: str, text: str) -> tuple[str, list[tuple[str, str]]]:
        """The message's id, and what the model reads to answer it."""
        taken = asyncio.run(self.ledger.take(conversation, Post(key, text, {}, DecodingOptions())))
        return taken.accepted.message, list(taken.history or ())

    def answer(self, conversation: str, key: str, answers: str, text: str) -> str:
        return asyncio.run(self.ledger.add_reply(conversation, reply(key, answers, text))).message

    def rate(self, conversation: str, message: str, rating: Rating) -> None:
        asyncio.run(self.ledger.rate(conversation, Judge(message, rating, None)))


def reply(key: str, answers: str, text: str) -> NewReply:
    return NewReply(key, answers, text, "stop", "m", {}, 0, [], [], [], 0.0, None, 0.0)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CountingStore]:
    with fresh_database(request.param, tmp_path) as url:
        upgrade(url)
        engine = connect(url)
        yield CountingStore(engine)
        engine.dispose()


@pytest.fixture
def conversation(store: CountingStore) -> str:
    return store.open_conversation(store.new_visitor().visitor_id)


def test_a_conversation_is_not_read_again_for_every_reply(store: CountingStore, conversation: str) -> None:
    server = Server(store)
    for number in range(5):
        turn, history = server.say(conversation, f"s{number}", f"question {number}")
        assert store.read == 0
        assert len(history) == 2 * number + 1
        assert history == Store.history(store, conversation, turn)
        server.answer(conversation, f"r{number}", turn, f"answer {number}")


def test_another_server_reads_a_conversation_once(store: CountingStore, conversation: str) -> None:
    first, second = Server(store), Server(store)
    turn, _ = first.say(conversation, "1", "here")
    first.answer(conversation, "r1", turn, "yes?")
    for number in range(3):
        turn, history = second.say(conversation, f"there {number}", "there")
        assert history == Store.history(store, conversation, turn)
        second.answer(conversation, f"there r{number}", turn, "and?")
    assert store.read == 1
    turn, history = first.say(conversation, "2", "and here again")
    assert store.read == 2
    assert history == Store.history(store, conversation, turn)


def test_a_reply_made_again_takes_the_place_of_the_first(store: CountingStore, conversation: str) -> None:
    server = Server(store)
    turn, _ = server.say(conversation, "1", "well?")
    server.answer(conversation, "r1", turn, "one")
    server.answer(conversation, "r2", turn, "another")
    _, history = server.say(conversation, "2", "and?")
    assert history == [("user", "well?"), ("agent", "another"), ("user", "and?")]


def test_a_late_answer_stands_behind_its_own_turn(store: CountingStore, conversation: str) -> None:
    server = Server(store)
    early, _ = server.say(conversation, "1", "first")
    server.say(conversation, "2", "second")
    server.answer(conversation, "r1", early, "to the first")
    _, history = server.say(conversation, "3", "third")
    assert history == [("user", "first"), ("agent", "to the first"), ("user", "second"), ("user", "third")]


def test_a_reply_without_a_word_is_not_read(store: CountingStore, conversation: str) -> None:
    server = Server(store)
    turn, _ = server.say(conversation, "1", "first")
    server.answer(conversation, "r1", turn, " \n")
    _, history = server.say(conversation, "2", "second")
    assert history == [("user", "first"), ("user", "second")]
    assert store.read == 0


def test_a_rating_changes_nothing(store: CountingStore, conversation: str) -> None:
    server = Server(store)
    turn, _ = server.say(conversation, "1", "first")
    message = server.answer(conversation, "r1", turn, "yes")
    server.rate(conversation, message, "down")
    turn, history = server.say(conversation, "2", "second")
    assert store.read == 0
    assert history == Store.history(store, conversation, turn)


def said(number: int) -> StoredTurn:
    return StoredTurn(f"m{number}", number, utc_now(), created=True)


def test_those_used_longest_ago_are_forgotten_first() -> None:
    histories = Histories(2000)
    for name in "abc":
        assert histories.say(name, said(1), "x" * 500) is not None
    assert len(histories) == 3
    histories.say("a", said(2), "y")
    histories.say("d", said(1), "x" * 500)
    assert histories.size <= 2000
    assert histories.say("b", said(2), "y") is None
    assert histories.say("a", said(3), "z") == (("user", "x" * 500), ("user", "y"), ("user", "z"))


def test_a_conversation_above_the_bound_is_not_kept() -> None:
    histories = Histories(1000)
    assert histories.say("a", said(1), "x" * 5000) == (("user", "x" * 5000),)
    assert (len(histories), histories.size) == (0, 0)
    histories.say("a", said(1), "x")
    assert histories.say("a", said(2), "x" * 5000) == (("user", "x"), ("user", "x" * 5000))
    assert (len(histories), histories.size) == (0, 0)


def test_a_number_left_out_means_that_somebody_else_has_written() -> None:
    histories = Histories()
    histories.say("a", said(1), "x")
    assert histories.say("a", said(3), "z") is None
    assert histories.say("a", said(4), "z") is None


DEEDS = st.lists(
    st.tuples(
        st.sampled_from(["say", "say", "answer", "answer", "again", "rate"]),
        st.integers(0, 1),
        st.integers(0, 30),
        st.sampled_from(["words", "", "  "]),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingStore]:
    url = f"sqlite:///{tmp_path_factory.mktemp('histories') / 'h.db'}"
    upgrade(url)
    engine = connect(url)
    yield CountingStore(engine)
    engine.dispose()


@given(deeds=DEEDS, limit=st.sampled_from([0, 300, HISTORY_BYTES]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_two_servers_write_the_model_reads_what_the_database_says(
    shared: CountingStore, deeds: list[tuple[str, int, int, str]], limit: int
) -> None:
    conversation = shared.open_conversation(shared.new_visitor().visitor_id)
    servers = Server(shared, limit), Server(shared, limit)
    turns: list[str] = []
    replies: list[str] = []

    try:
        for number, (deed, who, which, text) in enumerate(deeds):
            server = servers[who]
            if deed == "say":
                turn, history = server.say(conversation, f"s{number}", f"{number}")
                assert history == Store.history(shared, conversation, turn)
                turns.append(turn)
            elif deed in ("answer", "again") and turns:
                answers = turns[-1] if deed == "answer" else turns[which % len(turns)]
                replies.append(server.answer(conversation, f"r{number}", answers, text))
            elif deed == "rate" and replies:
                server.rate(conversation, replies[which % len(replies)], "up")
    finally:
        for server in servers:
            server.offload.close()
