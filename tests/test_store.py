"""The store, call by call, on SQLite and PostgreSQL. tests/test_store_model.py tries random sequences."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, event, insert, select, text
from sqlalchemy.exc import IntegrityError

from server import store as store_module
from server.database import connect, reading, writing
from server.records import MAX_KEY, check_json
from server.store import (
    Alternative,
    ClientIdConflict,
    NewReply,
    Store,
    StoredTurn,
    StoreUnavailable,
    StoreValueError,
    UnknownConversation,
    UnknownVisitor,
)
from server.tables import Generation, Message, UtcDateTime
from tests.databases import upgrade

T = TypeVar("T")
UNSTORABLE = ["nul \0", "half a pair \ud800", "the other half \udfff"]


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine)


@pytest.fixture
def conversation(store: Store) -> str:
    return store.open_conversation(store.new_visitor().visitor_id)


def say(store: Store, conversation: str, text: str) -> str:
    """The message id of a new user turn; its client id is its text."""
    return store.add_user_turn(conversation, text, text, {}).message_id


def reply_to(answers: str, text: str = "Certainly.", **changes: Any) -> NewReply:
    """A reply; unless told otherwise its reply id is derived from its text."""
    reply = NewReply(
        reply_id=f"reply {text}",
        answers=answers,
        text=text,
        finish_reason="stop",
        model="tw-0123456789abcdef",
        options={"decoding": "sample", "temperature": 0.7},
        seed=7,
        token_ids=(17, 4, 3),
        logprobs=(-0.1, -1 / 3, -2.5e-8),
        alternatives=(),
        queued_ms=0.5,
        first_token_ms=12.25,
        total_ms=80.0,
    )
    return replace(reply, **changes)


def together(number: int, call: Callable[[int], T]) -> list[T]:
    """What `call` gives in that many threads that start at the same moment; or the first of their errors."""
    start = threading.Barrier(number)
    results: list[T | BaseException] = [AssertionError("did not run")] * number

    def run(index: int) -> None:
        start.wait()
        try:
            results[index] = call(index)
        except BaseException as error:  # noqa: BLE001 - it is raised again below, in the test's thread
            results[index] = error

    threads = [threading.Thread(target=run, args=[index]) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        good.append(result)
    return good


# --- visitors and conversations ---------------------------------------------------------------------


def test_a_visitor_is_known_again_by_the_token(store: Store) -> None:
    anna, ben = store.new_visitor(), store.new_visitor()
    assert store.visitor_of(anna.token) == anna.visitor_id
    assert store.visitor_of(ben.token) == ben.visitor_id != anna.visitor_id


def test_other_tokens_belong_to_nobody(store: Store) -> None:
    store.new_visitor()
    for token in ("", "guess", "x" * 100_000, *UNSTORABLE):
        assert store.visitor_of(token) is None


def test_the_token_has_256_bits_and_is_not_kept(store: Store, engine: Engine) -> None:
    grant = store.new_visitor()
    assert len(grant.token) == 43  # 32 bytes in base64
    with reading(engine) as connection:
        row = connection.execute(text("SELECT * FROM visitor")).one()
    assert grant.token not in str(row)


def test_a_conversation_belongs_to_its_visitor_only(store: Store) -> None:
    anna, ben = store.new_visitor(), store.new_visitor()
    conversation = store.open_conversation(anna.visitor_id)
    assert store.owns(anna.visitor_id, conversation)
    assert not store.owns(ben.visitor_id, conversation)
    assert not store.owns(anna.visitor_id, "0" * 32)


def test_nobody_opens_no_conversation(store: Store) -> None:
    for visitor in ("nobody", "", *UNSTORABLE):
        with pytest.raises(UnknownVisitor):
            store.open_conversation(visitor)


def test_the_side_list_has_the_last_active_conversation_first(engine: Engine) -> None:
    hours = iter(range(100))
    store = Store(engine, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=next(hours)))
    anna, ben = store.new_visitor().visitor_id, store.new_visitor().visitor_id
    first, second, silent, other = (store.open_conversation(v) for v in (anna, anna, anna, ben))
    question = say(store, first, "  My   card\nis lost ")
    store.add_user_turn(second, "1", "x" * 500, {})
    say(store, other, "Somebody else")
    assert [summary.id for summary in store.conversations(anna)] == [second, first]
    store.add_reply(first, reply_to(question))
    summaries = store.conversations(anna)
    assert [summary.id for summary in summaries] == [first, second]
    assert summaries[0].title == "My card is lost"
    assert summaries[1].title == "x" * 79 + "…"
    assert (
        summaries[0].created_at < summaries[1].created_at < summaries[1].updated_at < summaries[0].updated_at
    )
    assert [summary.id for summary in store.conversations(anna, limit=1)] == [first]
    assert store.conversations(anna, limit=-1) == []
    assert [summary.id for summary in store.conversations(anna, offset=1)] == [second]
    assert store.conversations(anna, offset=2) == []
    assert silent not in {summary.id for summary in summaries}


def test_the_title_stays_what_was_said_first(store: Store) -> None:
    visitor = store.new_visitor().visitor_id
    conversation = store.open_conversation(visitor)
    store.add_reply(conversation, reply_to(say(store, conversation, "first"), "answer"))
    say(store, conversation, "second")
    assert [summary.title for summary in store.conversations(visitor)] == ["first"]


# --- user turns -------------------------------------------------------------------------------------


def test_a_user_turn_is_kept_as_it_was_said(store: Store, conversation: str) -> None:
    words = "Grüße 👋🏽\r\n\t\u202e \x1b[31m ' -- {{x}} \U0010ffff"
    turn = store.add_user_turn(conversation, "c-1", words, {"temperature": 0.25, "seed": 2**63 - 1})
    [message] = store.messages(conversation)
    assert turn.created
    assert (turn.seq, turn.message_id) == (1, message.message_id)
    assert (message.role, message.text, message.client_id) == ("user", words, "c-1")
    assert message.options == {"temperature": 0.25, "seed": 2**63 - 1}
    assert (message.reply_id, message.answers, message.alternatives, message.rating) == (None,) * 4


def test_a_repeated_client_id_gives_the_same_turn(store: Store, conversation: str) -> None:
    first = store.add_user_turn(conversation, "c-1", "hello", {"seed": 1})
    say(store, conversation, "more")
    again = store.add_user_turn(conversation, "c-1", "hello", {"seed": 2})
    assert again == replace(first, created=False)
    assert store.last_seq(conversation) == 2


def test_a_repeated_client_id_gives_the_same_turn_after_a_restart(
    store: Store, conversation: str, database_url: str
) -> None:
    first = store.add_user_turn(conversation, "c-1", "hello", {})
    restarted = connect(database_url)
    assert Store(restarted).add_user_turn(conversation, "c-1", "hello", {}) == replace(first, created=False)
    restarted.dispose()


def test_a_client_id_with_another_text_is_a_conflict(store: Store, conversation: str) -> None:
    say(store, conversation, "hello")
    with pytest.raises(ClientIdConflict, match="'hello' was used before"):
        store.add_user_turn(conversation, "hello", "something else", {})
    assert [message.text for message in store.messages(conversation)] == ["hello"]
    assert store.add_user_turn(conversation, "next", "next", {}).seq == 2


def test_a_client_id_may_be_used_in_every_conversation(store: Store) -> None:
    visitor = store.new_visitor().visitor_id
    for _ in range(2):
        assert store.add_user_turn(store.open_conversation(visitor), "1", "hello", {}).created


def test_a_client_id_in_a_race_of_threads_is_one_message(store: Store, conversation: str) -> None:
    turns = together(8, lambda _: store.add_user_turn(conversation, "1", "hello", {}))
    assert sum(turn.created for turn in turns) == 1
    assert len({turn.message_id for turn in turns}) == 1
    assert [message.seq for message in store.messages(conversation)] == [1]


def say_in_a_process(url: str, conversation: str, client_ids: list[str]) -> list[StoredTurn]:
    engine = connect(url)
    turns = [Store(engine).add_user_turn(conversation, key, key, {}) for key in client_ids]
    engine.dispose()
    return turns


def test_a_client_id_in_a_race_of_processes_is_one_message(
    store: Store, conversation: str, database_url: str
) -> None:
    ids = [f"id {number}" for number in range(12)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        running = [processes.submit(say_in_a_process, database_url, conversation, ids) for _ in range(2)]
        sets = [process.result() for process in running]
    for turns in zip(*sets, strict=True):
        assert sum(turn.created for turn in turns) == 1
        assert len({(turn.message_id, turn.seq) for turn in turns}) == 1
    assert [message.client_id for message in store.messages(conversation)] == ids


def test_numbers_have_no_gaps_when_many_speak_and_are_answered_at_once(
    store: Store, conversation: str
) -> None:
    def chat(speaker: int) -> None:
        for number in range(5):
            question = say(store, conversation, f"{speaker}.{number}")
            store.add_reply(conversation, reply_to(question, f"to {speaker}.{number}"))

    together(6, chat)
    messages = store.messages(conversation)
    assert [message.seq for message in messages] == list(range(1, 61))
    assert store.last_seq(conversation) == 60
    seq = {message.message_id: message.seq for message in messages}
    assert all(message.seq > seq[message.answers] for message in messages if message.answers)


def test_nothing_is_added_to_a_conversation_that_does_not_exist(store: Store) -> None:
    for nowhere in ("", "0" * 32, *UNSTORABLE):
        with pytest.raises(UnknownConversation):
            store.add_user_turn(nowhere, "1", "hello", {})
        with pytest.raises(UnknownConversation):
            store.add_reply(nowhere, reply_to("0" * 32))


# --- what no database should be given ---------------------------------------------------------------


def test_text_that_cannot_be_kept_is_refused(store: Store, conversation: str) -> None:
    for bad in UNSTORABLE:
        with pytest.raises(StoreValueError, match="text: holds NUL or half of a surrogate pair"):
            store.add_user_turn(conversation, "1", bad, {})
        with pytest.raises(StoreValueError, match="client_id"):
            store.add_user_turn(conversation, bad, "hello", {})
        with pytest.raises(StoreValueError, match="options"):
            store.add_user_turn(conversation, "1", "hello", {"prefix": bad})
        with pytest.raises(StoreValueError, match="options"):
            store.add_user_turn(conversation, "1", "hello", {bad: 1})
    assert store.last_seq(conversation) == 0


def test_an_id_of_the_client_has_a_length(store: Store, conversation: str) -> None:
    for length in (0, MAX_KEY + 1):
        with pytest.raises(StoreValueError, match=f"client_id: has {length} characters"):
            store.add_user_turn(conversation, "x" * length, "hello", {})


def test_the_longest_id_fits(store: Store, conversation: str) -> None:
    longest = "👋" * MAX_KEY
    assert store.add_user_turn(conversation, longest, "hello", {}).created
    assert not store.add_user_turn(conversation, longest, "hello", {}).created


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", "\0"),
        ("model", "\ud800"),
        ("reply_id", ""),
        ("finish_reason", "bored"),
        ("seed", -1),
        ("seed", 2**63),
        ("logprobs", (-0.1, float("nan"), -0.2)),
        ("logprobs", (-0.1, float("-inf"), -0.2)),
        ("logprobs", (-0.1,)),
        ("total_ms", float("inf")),
        ("options", {"stop": object()}),
        ("options", {1: "one"}),
        ("alternatives", ({"text": "\0", "score": 0.0, "logprob": 0.0},)),
        ("alternatives", ({"text": "no score", "logprob": 0.0},)),
    ],
)
def test_a_reply_that_cannot_be_kept_is_found_out(field: str, value: Any) -> None:
    reply_to("question").check()
    with pytest.raises(StoreValueError) as refusal:
        replace(reply_to("question"), **{field: value}).check()
    assert refusal.value.field == field


def test_a_reply_that_cannot_be_kept_is_refused(store: Store, conversation: str) -> None:
    question = say(store, conversation, "hello")
    with pytest.raises(StoreValueError, match="text"):
        store.add_reply(conversation, reply_to(question, "\0", reply_id="r"))
    assert store.last_seq(conversation) == 1


def test_ordinary_json_is_no_problem() -> None:
    check_json("options", {"a": [1, 2.5, None, True, "text", {"b": ()}]})


def test_ids_that_cannot_exist_are_not_found(store: Store, conversation: str) -> None:
    for nothing in UNSTORABLE:
        assert not store.owns(nothing, conversation)
        assert not store.owns("anna", nothing)
        assert store.conversations(nothing) == []
        assert store.messages(nothing) == []
        assert store.history(nothing) == []
        assert store.last_seq(nothing) == 0
        assert store.unanswered(nothing) is None
        assert store.reply_record(conversation, nothing) is None
        assert store.reply_record(nothing, "reply") is None
        assert not store.has_said(conversation, nothing)
        assert not store.has_said(nothing, "1")
        assert store.answer(conversation, nothing) is None
        assert store.answer(nothing, "message") is None
        assert not store.rate(conversation, nothing, "up", None)
        assert not store.rate(nothing, "message", "up", None)


# --- replies ----------------------------------------------------------------------------------------


def test_a_reply_is_kept_with_all_that_made_it(store: Store, conversation: str, engine: Engine) -> None:
    question = say(store, conversation, "hello")
    reply = reply_to(
        question,
        "Good morning!",
        seed=2**63 - 1,
        alternatives=({"text": "Hi.", "score": -0.5, "logprob": -1.5, "token_ids": [9, 3]},),
        confidence=0.25,
        withheld="What a morning!",
    )
    turn = store.add_reply(conversation, reply)
    record = store.reply_record(conversation, turn.message_id)
    assert record is not None
    assert (
        record == store.reply_record(conversation, "reply Good morning!") == store.messages(conversation)[1]
    )
    assert (turn.seq, turn.created, turn.replaces) == (2, True, None)
    assert (record.role, record.text, record.answers) == ("agent", "Good morning!", question)
    assert (record.finish_reason, record.model, record.seed) == ("stop", reply.model, 2**63 - 1)
    assert record.alternatives == (Alternative("Hi.", -0.5, -1.5),)
    assert (record.superseded, record.client_id, record.options) == (False, None, None)
    assert generation(engine, turn.message_id) == {
        "message_id": turn.message_id,
        "finish_reason": "stop",
        "model": reply.model,
        "options": {"decoding": "sample", "temperature": 0.7},
        "seed": 2**63 - 1,
        "token_ids": [17, 4, 3],
        "logprobs": [-0.1, -1 / 3, -2.5e-8],
        "alternatives": [{"text": "Hi.", "score": -0.5, "logprob": -1.5, "token_ids": [9, 3]}],
        "queued_ms": 0.5,
        "first_token_ms": 12.25,
        "total_ms": 80.0,
        "confidence": 0.25,
        "withheld": "What a morning!",
    }


def generation(engine: Engine, message_id: str) -> dict[str, Any]:
    with reading(engine) as connection:
        query = select(Generation.__table__).where(Generation.message_id == message_id)
        return dict(connection.execute(query).mappings().one())


def test_a_repeated_reply_id_gives_the_same_turn(store: Store, conversation: str) -> None:
    question = say(store, conversation, "hello")
    first = store.add_reply(conversation, reply_to(question))
    say(store, conversation, "more")
    assert store.add_reply(conversation, reply_to(question)) == replace(first, created=False)
    assert store.last_seq(conversation) == 3


def test_a_reply_id_in_a_race_is_one_message(store: Store, conversation: str) -> None:
    question = say(store, conversation, "hello")
    turns = together(6, lambda _: store.add_reply(conversation, reply_to(question)))
    assert sum(turn.created for turn in turns) == 1
    assert {turn.seq for turn in turns} == {2}


def test_a_reply_belongs_to_a_user_turn_of_its_conversation(store: Store, conversation: str) -> None:
    other = store.open_conversation(store.new_visitor().visitor_id)
    elsewhere = say(store, other, "hello")
    question = say(store, conversation, "hello")
    answer = store.add_reply(conversation, reply_to(question)).message_id
    for wrong in (elsewhere, answer, "0" * 32, *UNSTORABLE):
        with pytest.raises(StoreValueError, match="answers: is no user turn of this conversation"):
            store.add_reply(conversation, reply_to(wrong, "lost"))
    assert store.last_seq(conversation) == 2


def test_a_reply_replaces_only_a_reply_to_the_same_turn(store: Store, conversation: str) -> None:
    first, second = say(store, conversation, "one"), say(store, conversation, "two")
    to_first = store.add_reply(conversation, reply_to(first, "to one")).message_id
    for wrong in (to_first, second, "0" * 32, *UNSTORABLE):
        with pytest.raises(StoreValueError, match="replaces: is no reply to the same user turn"):
            store.add_reply(conversation, reply_to(second, "to two", replaces=wrong))
    assert store.history(conversation)[-1] == ("user", "two")


def test_a_regenerated_reply_takes_the_place_of_the_old_one(store: Store, conversation: str) -> None:
    question = say(store, conversation, "hello")
    old = store.add_reply(conversation, reply_to(question, "old")).message_id
    new = store.add_reply(conversation, reply_to(question, "new", replaces=old))
    newest = store.add_reply(conversation, reply_to(question, "newest", replaces=new.message_id))
    assert new.replaces == old
    assert newest.replaces == new.message_id
    assert [(m.text, m.replaces, m.superseded) for m in store.messages(conversation)[1:]] == [
        ("old", None, True),
        ("new", old, True),
        ("newest", new.message_id, False),
    ]
    assert store.history(conversation) == [("user", "hello"), ("agent", "newest")]
    assert store.add_reply(conversation, reply_to(question, "new", replaces=old)) == replace(
        new, created=False
    )
    assert store.history(conversation)[-1] == ("agent", "newest")


def test_a_second_reply_takes_the_place_of_the_first_though_it_does_not_say_so(
    store: Store, conversation: str
) -> None:
    """Two servers may both find the same unanswered turn after a crash."""
    question = say(store, conversation, "hello")
    first = store.add_reply(conversation, reply_to(question, "first")).message_id
    assert store.add_reply(conversation, reply_to(question, "second")).replaces == first
    assert store.history(conversation) == [("user", "hello"), ("agent", "second")]


def test_replies_that_race_for_a_turn_leave_one_current(store: Store, conversation: str) -> None:
    question = say(store, conversation, "hello")
    together(6, lambda number: store.add_reply(conversation, reply_to(question, f"reply {number}")))
    messages = store.messages(conversation)
    assert [message.superseded for message in messages] == [False, *[True] * 5, False]
    assert [message.replaces for message in messages[2:]] == [m.message_id for m in messages[1:-1]]


def test_the_database_itself_refuses_two_current_replies(
    store: Store, conversation: str, engine: Engine
) -> None:
    question = say(store, conversation, "hello")
    store.add_reply(conversation, reply_to(question))
    second = {
        "id": "second",
        "conversation_id": conversation,
        "seq": 3,
        "role": "agent",
        "text": "",
        "created_at": datetime.now(UTC),
        "answers": question,
        "superseded": False,
    }
    with pytest.raises(IntegrityError), writing(engine) as connection:
        connection.execute(insert(Message).values(second))


# --- reading ----------------------------------------------------------------------------------------


def test_messages_after_a_number(store: Store, conversation: str) -> None:
    for number in range(1, 6):
        say(store, conversation, str(number))

    def texts(**bounds: int) -> str:
        return "".join(message.text for message in store.messages(conversation, **bounds))

    assert texts() == "12345"
    assert texts(after_seq=3) == "45"
    assert texts(after_seq=1, limit=2) == "23"
    assert texts(after_seq=5) == texts(after_seq=2**80) == texts(limit=0) == texts(limit=-1) == ""
    assert texts(after_seq=-1, limit=2**80) == "12345"


def test_a_regenerated_reply_to_an_earlier_turn_is_read_in_its_place(store: Store, conversation: str) -> None:
    first = say(store, conversation, "one")
    old = store.add_reply(conversation, reply_to(first, "old")).message_id
    second = say(store, conversation, "two")
    store.add_reply(conversation, reply_to(second, "to two"))
    store.add_reply(conversation, reply_to(first, "new", replaces=old))
    assert store.history(conversation) == [
        ("user", "one"),
        ("agent", "new"),
        ("user", "two"),
        ("agent", "to two"),
    ]


def test_the_history_up_to_a_turn_has_no_reply_to_it(store: Store, conversation: str) -> None:
    first = say(store, conversation, "one")
    store.add_reply(conversation, reply_to(first, "to one"))
    second = say(store, conversation, "two")
    to_second = store.add_reply(conversation, reply_to(second, "to two")).message_id
    assert store.history(conversation, answering=first) == [("user", "one")]
    assert store.history(conversation, answering=second) == [
        ("user", "one"),
        ("agent", "to one"),
        ("user", "two"),
    ]
    for wrong in (to_second, "0" * 32, *UNSTORABLE):
        with pytest.raises(StoreValueError, match="answering: is no user turn"):
            store.history(conversation, answering=wrong)


def test_a_reply_cut_off_before_its_first_word_is_not_read(store: Store, conversation: str) -> None:
    for nothing in ("", " \n"):
        question = say(store, conversation, f"hello{nothing}")
        store.add_reply(conversation, reply_to(question, nothing, finish_reason="cancelled"))
        assert store.unanswered(conversation) is None
    assert store.history(conversation) == [("user", "hello"), ("user", "hello \n")]
    assert [message.text for message in store.messages(conversation)] == ["hello", "", "hello \n", " \n"]


def test_the_last_user_turn_waits_until_it_is_answered(store: Store, conversation: str) -> None:
    assert store.unanswered(conversation) is None
    first = store.add_user_turn(conversation, "1", "hello", {"seed": 5})
    waiting = store.unanswered(conversation)
    assert waiting is not None
    assert (waiting.message_id, waiting.options) == (first.message_id, {"seed": 5})
    store.add_reply(conversation, reply_to(first.message_id))
    assert store.unanswered(conversation) is None
    second = say(store, conversation, "and then")
    store.add_reply(conversation, reply_to(first.message_id, "again"))
    waiting = store.unanswered(conversation)
    assert waiting is not None
    assert waiting.message_id == second


def test_what_was_said_is_known_by_its_client_id_and_its_current_answer(
    store: Store, conversation: str
) -> None:
    other = store.open_conversation(store.new_visitor().visitor_id)
    question = store.add_user_turn(conversation, "1", "hello", {}).message_id
    assert store.has_said(conversation, "1")
    assert not store.has_said(conversation, "2")
    assert not store.has_said(other, "1")
    assert store.answer(conversation, question) is None
    store.add_reply(conversation, reply_to(question, "old"))
    say(store, conversation, "and then")
    store.add_reply(conversation, reply_to(question, "new"))
    answer = store.answer(conversation, question)
    assert answer is not None
    assert answer.text == "new"
    assert store.answer(other, question) is None


def test_a_reply_is_found_in_its_own_conversation_only(store: Store, conversation: str) -> None:
    other = store.open_conversation(store.new_visitor().visitor_id)
    question = say(store, conversation, "hello")
    answer = store.add_reply(conversation, reply_to(question)).message_id
    assert store.reply_record(other, answer) is None
    assert store.reply_record(other, "reply Certainly.") is None
    assert store.reply_record(conversation, question) is None
    assert store.reply_record(conversation, "0" * 32) is None


def test_an_empty_conversation(store: Store, conversation: str) -> None:
    assert store.messages(conversation) == []
    assert store.history(conversation) == []
    assert store.last_seq(conversation) == 0


# --- ratings ----------------------------------------------------------------------------------------


def test_the_last_rating_counts(store: Store, conversation: str) -> None:
    answer = store.add_reply(conversation, reply_to(say(store, conversation, "hello"))).message_id

    def kept() -> tuple[str | None, str | None]:
        record = store.reply_record(conversation, answer)
        assert record is not None
        return record.rating, record.comment

    assert kept() == (None, None)
    for rating, comment in [
        ("up", None),
        ("up", None),
        ("down", "too short"),
        (None, "only words"),
        ("up", "👍"),
        (None, None),
        (None, None),
    ]:
        assert store.rate(conversation, answer, rating, comment)  # type: ignore[arg-type]
        assert kept() == (rating, comment)


def test_ratings_from_two_tabs_at_once_leave_one(store: Store, conversation: str) -> None:
    answer = store.add_reply(conversation, reply_to(say(store, conversation, "hello"))).message_id
    assert all(together(6, lambda number: store.rate(conversation, answer, "up", str(number))))
    record = store.reply_record(conversation, answer)
    assert record is not None
    assert record.comment in set("012345")


def test_only_replies_of_this_conversation_are_rated(store: Store, conversation: str) -> None:
    other = store.open_conversation(store.new_visitor().visitor_id)
    question = say(store, conversation, "hello")
    answer = store.add_reply(conversation, reply_to(question)).message_id
    assert not store.rate(conversation, question, "up", None)
    assert not store.rate(other, answer, "up", None)
    assert not store.rate(conversation, "0" * 32, "up", None)
    assert [message.rating for message in store.messages(conversation)] == [None, None]


def test_other_ratings_are_refused(store: Store, conversation: str) -> None:
    with pytest.raises(StoreValueError, match="rating: is neither up nor down"):
        store.rate(conversation, "any", "sideways", None)  # type: ignore[arg-type]
    with pytest.raises(StoreValueError, match="comment"):
        store.rate(conversation, "any", "up", "\0")


# --- times ------------------------------------------------------------------------------------------


def test_times_are_utc_to_the_microsecond_wherever_the_clock_stands(engine: Engine) -> None:
    moment = datetime(2026, 3, 29, 1, 59, 59, 123456, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    store = Store(engine, clock=lambda: moment)
    visitor = store.new_visitor().visitor_id
    conversation = store.open_conversation(visitor)
    say(store, conversation, "hello")
    [message], [summary] = store.messages(conversation), store.conversations(visitor)
    for time in (message.created_at, summary.created_at, summary.updated_at):
        assert time == moment
        assert time.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 1), engine.dialect)  # noqa: DTZ001


# --- keeping promises -------------------------------------------------------------------------------


def test_nothing_that_was_acknowledged_is_lost_when_the_process_is_killed(
    store: Store, conversation: str, database_url: str
) -> None:
    program = (
        "import itertools, sys\n"
        "from server.database import connect\n"
        "from server.store import Store\n"
        "store = Store(connect(sys.argv[1]))\n"
        "for number in itertools.count(1):\n"
        "    store.add_user_turn(sys.argv[2], str(number), 'hello', {})\n"
        "    print(number, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, database_url, conversation],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "50\n":
            process.kill()
            break
    acknowledged = 50 + sum(1 for _ in process.stdout)
    process.wait()
    process.stdout.close()
    kept = [message.seq for message in store.messages(conversation)]
    assert kept == list(range(1, len(kept) + 1))
    assert acknowledged <= len(kept) <= acknowledged + 1


def test_a_visitor_takes_everything_along(store: Store, conversation: str, engine: Engine) -> None:
    question = say(store, conversation, "hello")
    old = store.add_reply(conversation, reply_to(question, "old")).message_id
    store.add_reply(conversation, reply_to(question, "new", replaces=old))
    store.rate(conversation, old, "down", "not that")
    with writing(engine) as connection:
        connection.execute(text("DELETE FROM visitor"))
        for table in ("conversation", "message", "generation", "feedback"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0


def test_a_ping_changes_nothing(store: Store, engine: Engine) -> None:
    with reading(engine) as connection:
        before = connection.scalar(text("SELECT version_num FROM alembic_version"))
    store.ping()
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == before


def test_threads_that_cannot_wait_any_longer_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite the threads of a process queue for the write lock before they ask for it."""
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    inside, done = threading.Event(), threading.Event()

    def slow_clock() -> datetime:
        inside.set()
        done.wait()
        return datetime.now(UTC)

    store = Store(engine, clock=slow_clock)
    slow = threading.Thread(target=store.new_visitor)
    slow.start()
    inside.wait()
    monkeypatch.setattr(store_module, "WAIT_SECONDS", 0.01)
    with pytest.raises(StoreUnavailable, match="too many writers") as refusal:
        store.ping()
    assert refusal.value.busy
    done.set()
    slow.join()
    store.ping()
    engine.dispose()


def test_no_call_for_a_conversation_reads_other_conversations(tmp_path: Path) -> None:
    """Every statement of a chat finds its rows by an index, and history comes out of it in order."""
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    store = Store(engine)
    statements: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def remember(_c: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    grant = store.new_visitor()
    conversation = store.open_conversation(grant.visitor_id)
    question = say(store, conversation, "hello")
    answer = store.add_reply(conversation, reply_to(question)).message_id
    store.add_reply(conversation, reply_to(question, "again", replaces=answer))
    store.rate(conversation, answer, "up", None)
    store.visitor_of(grant.token)
    store.owns(grant.visitor_id, conversation)
    store.messages(conversation)
    store.history(conversation)
    store.last_seq(conversation)
    store.reply_record(conversation, answer)
    store.unanswered(conversation)
    store.has_said(conversation, "1")
    store.answer(conversation, question)
    planned = [statement for statement in statements if not statement.startswith(("BEGIN", "INSERT"))]
    assert len(planned) > 10
    with reading(engine) as connection:
        for statement in planned:
            unknowns = (None,) * statement.count("?")
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", unknowns).all()
            steps = [step.detail for step in plan]
            # What is asked for comes as a list; a table is never read from end to end.
            steps = [step for step in steps if step != "SCAN asked VIRTUAL TABLE INDEX 1:"]
            assert not [step for step in steps if "SCAN" in step or "TEMP B-TREE" in step], (statement, steps)
    engine.dispose()
