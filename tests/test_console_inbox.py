"""The inbox: filters, search and pages, over the real application and on both databases."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import Engine, delete, func, insert, select, text, update

from server import database
from server.console import cleansing, filters, inbox, search
from server.console.filters import Filters, conditions
from server.console.inbox import BadCursor, Place
from server.console.search import Words, excerpt, parse
from server.database import connect, reading, writing
from server.desk import new_id
from server.tables import (
    Conversation,
    Feedback,
    Message,
    Operator,
    TopicMap,
    TopicPoint,
    Verdict,
    Visitor,
)
from tests.console_client import TestConsole, console_over
from tests.databases import KINDS, fresh_database, upgrade

START = datetime(2025, 3, 1, 9, tzinfo=UTC)
MODEL = "a" * 64
CHECK = "INSERT INTO message_search (message_search, rank) VALUES ('integrity-check', 1)"
"""Whether the index holds exactly what the messages hold."""


class Desk:
    """A database, written to directly."""

    def __init__(self, db: Engine) -> None:
        self.db = db
        self.visitor = new_id()
        self.minutes = 0
        with writing(db) as connection:
            connection.execute(insert(Visitor).values(id=self.visitor, token_hash=new_id(), created_at=START))

    def talk(self, *texts: str, at: datetime | None = None, **columns: Any) -> str:
        """A conversation with these messages, of the user and of the agent in turn; its id."""
        self.minutes += 1
        at = at or START + timedelta(minutes=self.minutes)
        conversation = new_id()
        values = {"visitor_id": self.visitor, "created_at": at, "updated_at": at, "last_seq": len(texts)}
        rows = [
            {
                "id": new_id(),
                "conversation_id": conversation,
                "seq": seq,
                "role": "user" if seq % 2 else "agent",
                "text": each,
                "created_at": at,
                "superseded": False,
            }
            for seq, each in enumerate(texts, 1)
        ]
        with writing(self.db) as connection:
            connection.execute(insert(Conversation).values(id=conversation, **values | columns))
            if rows:
                connection.execute(insert(Message), rows)
        return conversation

    def messages(self, conversation: str) -> list[str]:
        query = select(Message.id).where(Message.conversation_id == conversation).order_by(Message.seq)
        with reading(self.db) as connection:
            return list(connection.scalars(query))

    def judge(self, message: str, verdict: str, *labels: str) -> None:
        values = {"operator_id": "o", "verdict": verdict, "created_at": START, "updated_at": START}
        with writing(self.db) as connection:
            connection.execute(insert(Verdict).values(message_id=message, labels=list(labels), **values))

    def found(self, operator: str | None = None, **filters: Any) -> list[str]:
        """The ids on all pages of the inbox, which must be those that `conditions` finds."""
        given = Filters.model_validate(filters)
        listed = self.pages(given, operator, limit=3)
        newest = select(Conversation.id).order_by(Conversation.updated_at.desc(), Conversation.id.desc())
        with reading(self.db) as connection:
            assert list(connection.scalars(newest.where(*conditions(given, operator)))) == listed
        return listed

    def pages(self, filters: Filters, operator: str | None = None, limit: int = 3) -> list[str]:
        listed: list[str] = []
        after = None
        while True:
            page = inbox.page(self.db, filters, operator, after=after, limit=limit)
            assert len(page.conversations) <= limit
            listed += [each.id for each in page.conversations]
            if page.next is None:
                return listed
            assert len(page.conversations) == limit
            after = Place.of(page.next)

    def found_apart(self, q: str | None, **more: Any) -> list[str]:
        """What a reader of everything would find. A last word that is common stands for itself."""
        newest = select(Conversation.id).order_by(Conversation.updated_at.desc(), Conversation.id.desc())
        with reading(self.db) as connection:
            ordered = list(connection.scalars(newest.where(*conditions(Filters.model_validate(more)))))
            said = connection.execute(select(Message.conversation_id, Message.text)).all()
        if q is None:
            return ordered
        words = parse(q)
        exact = sum(words.phrases[-1][0] in row.text.split() for row in said)
        prefix = words.prefix and not (self.db.dialect.name == "sqlite" and exact > search.COMMON)
        matching = {row.conversation_id for row in said if holds(row.text, words.phrases, prefix)}
        return [each for each in ordered if each in matching]


def holds(said: str, phrases: Sequence[tuple[str, ...]], prefix: bool) -> bool:
    padded = f" {said} "
    if prefix:
        return f" {phrases[-1][0]}" in padded and holds(said, phrases[:-1], False)
    return all(f" {' '.join(phrase)} " in padded for phrase in phrases)


@pytest.fixture(scope="module", params=KINDS)
def shared_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    with fresh_database(request.param, tmp_path_factory.mktemp("inbox")) as url:
        upgrade(url)
        engine = connect(url)
        yield engine
        engine.dispose()


@pytest.fixture
def desk(shared_engine: Engine) -> Iterator[Desk]:
    """An empty database."""
    yield Desk(shared_engine)
    with writing(shared_engine) as connection:
        connection.execute(delete(Visitor))
        connection.execute(delete(TopicMap))


# --- filters ----------------------------------------------------------------------------------------------


def test_each_filter_finds_its_conversations_the_newest_first(desk: Desk) -> None:
    at = START
    desk.talk()  # nothing was said in it
    plain = desk.talk("hello")
    waiting = desk.talk("a person please", waiting_since=at)
    taken = desk.talk("hi", owner="operator", operator_id="anna")
    closed = desk.talk("bye", closed_at=at, waiting_since=at)
    reviewed = desk.talk("one", reviewed_at=at)
    disliked = desk.talk("two", "no", thumbs_down=True)
    unsure = desk.talk("three", confidence=0.2)
    sure = desk.talk("four", confidence=0.9, model=MODEL)
    everything = [sure, unsure, disliked, reviewed, closed, taken, waiting, plain]
    opened = [each for each in everything if each != closed]

    assert desk.found() == desk.found(state="open") == opened
    assert desk.found(state="all") == everything
    assert desk.found(state="waiting") == [waiting]
    assert desk.found(state="taken") == [taken]
    assert desk.found(state="closed") == [closed]
    assert desk.found("anna", mine=True) == [taken]
    assert desk.found("bert", mine=True) == []
    assert desk.found(reviewed=True) == [reviewed]
    assert desk.found(reviewed=False) == [each for each in opened if each != reviewed]
    assert desk.found(rating="down") == [disliked]
    assert desk.found(confidence_below=0.5) == [unsure]
    assert desk.found(confidence_below=0.95) == [sure, unsure]
    assert desk.found(model=MODEL) == [sure]
    assert desk.found(model="%") == []
    assert desk.found(confidence_below=0.95, model=MODEL) == [sure]
    assert desk.found(confidence_below=0.5, model=MODEL) == []


def test_times_are_those_of_the_newest_message_from_the_first_and_before_the_second(desk: Desk) -> None:
    early, middle, late = (desk.talk("x", at=START + timedelta(hours=hours)) for hours in range(3))
    one, two = "2025-03-01T11:00:00+01:00", "2025-03-01T11:00:00Z"
    assert desk.found(**{"from": one}) == [late, middle]
    assert desk.found(to=two) == [middle, early]
    assert desk.found(**{"from": one, "to": two}) == [middle]
    assert desk.found(**{"from": one, "to": one}) == []


def test_ratings_verdicts_and_labels_are_those_of_any_reply(desk: Desk) -> None:
    one, two, three = (desk.talk("q", "a", "q", "a") for _ in range(3))
    desk.judge(desk.messages(one)[1], "bad", "rude", 'not "quite" true')
    desk.judge(desk.messages(one)[3], "good")
    desk.judge(desk.messages(two)[3], "bad", "rude-ish", "late")
    with writing(desk.db) as connection:
        liked = {"rating": "up", "updated_at": START}
        connection.execute(insert(Feedback).values(message_id=desk.messages(three)[1], **liked))
    assert desk.found(rating="up") == [three]
    assert desk.found(verdict="bad") == [two, one]
    assert desk.found(verdict="good") == [one]
    assert desk.found(label="rude") == [one]
    assert desk.found(label='not "quite" true') == [one]
    assert desk.found(label="rud") == desk.found(label="%") == desk.found(label='rude","') == []
    # Of one and the same reply: the good one has no label.
    assert desk.found(label="rude", verdict="good") == []
    assert desk.found(label="late", verdict="bad") == [two]


def test_a_cluster_is_one_of_the_newest_map(desk: Desk) -> None:
    one, two = desk.talk("one"), desk.talk("two")
    with writing(desk.db) as connection:
        for number, (name, first, second) in enumerate([("old", 1, 1), ("new", 2, 3)]):
            at = START + timedelta(days=number)
            connection.execute(insert(TopicMap).values(id=name, model=MODEL, created_at=at, clusters=[]))
            rows = [
                {"map_id": name, "conversation_id": talk, "cluster": cluster, "x": 0, "y": 0}
                for talk, cluster in ((one, first), (two, second))
            ]
            connection.execute(insert(TopicPoint), rows)
    assert desk.found(cluster=1) == []
    assert desk.found(cluster=2) == [one]
    assert desk.found(cluster=3) == [two]


def test_counts_are_those_of_the_filters_beside_which_they_stand(desk: Desk) -> None:
    desk.talk()
    desk.talk("hello")
    desk.talk("a person please", waiting_since=START)
    for operator in ("anna", "anna", "bert"):
        desk.talk("hi", owner="operator", operator_id=operator)
    desk.talk("bye", closed_at=START, confidence=0.1)
    desk.talk("one", reviewed_at=START, thumbs_down=True, confidence=0.6)
    counts = inbox.counts(desk.db, "anna")
    expected: dict[str, dict[str, Any]] = {
        "open": {},
        "waiting": {"state": "waiting"},
        "taken": {"state": "taken"},
        "mine": {"mine": True},
        "unreviewed": {"state": "all", "reviewed": False},
        "thumbs_down": {"state": "all", "rating": "down"},
        "low_confidence": {"state": "all", "confidence_below": 0.5},
    }
    found = {name: len(desk.found("anna", **filters)) for name, filters in expected.items()}
    assert counts.model_dump() == found
    assert list(found.values()) == [6, 1, 3, 2, 6, 1, 1]


# --- search -----------------------------------------------------------------------------------------------


def test_all_words_are_in_one_message_and_the_last_may_be_a_beginning(desk: Desk) -> None:
    order = desk.talk("Where is my ORDER number 4711?", "It is on its way.")
    other = desk.talk("I ordered two", "your number is up, said the order")
    assert desk.found(q="order number ") == [other, order]
    assert desk.found(q='"order number" ') == desk.found(q='"Order  NUMBER"') == [order]
    assert desk.found(q="order") == [other, order]
    assert desk.found(q="ordere") == [other]
    assert desk.found(q="order ") == [other, order]
    assert desk.found(q="ordere ") == desk.found(q='"ordere"') == []
    assert desk.found(q="or") == []  # too short for a beginning
    assert desk.found(q="order two ") == []  # never in one message
    assert desk.found(q="way where") == []
    assert desk.found(q="4711") == [order]
    assert desk.found(q="nowhere") == []
    assert desk.found(q="") == desk.found(q="  ") == [other, order]


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("50% off", "50%"),
        ("50% off", "%"),
        ("snake_case", "snake"),
        ("snake_case", "case"),
        ("a col:x here", "col:x"),
        ('he said "wait" twice', '"wait'),
        ('he said "wait" twice', 'said "wait" "'),
        ("it's fine", "it's"),
        ("NOT that AND this OR NEAR(a b)", "NOT"),
        ("NOT that AND this OR NEAR(a b)", "NEAR(a b)"),
        ("NOT that AND this OR NEAR(a b)", "this OR"),
        ("a* b^ {c} -d +e", "c} -d +e"),
        ("mail ann.lee@shop.example.com today", "shop"),
        ("mail ann.lee@shop.example.com today", "ann.lee@shop.example.com"),
        ("see https://shop.example.com/a/b.html?x=1", "example"),
        ("version 1.2.3-beta at 12:30", "1.2.3"),
        ("version 1.2.3-beta at 12:30", "beta"),
        ("on 2025-03-01", "2025-03-01"),
        ("Ich hätte gern Größe 40", "größe"),
        ("Ich hätte gern Größe 40", "gro\u0308ße"),
        ("где мой заказ", "ЗАКАЗ"),
        ("ελληνικά γράμματα", "γράμ"),
        ("我的订单在哪里", "我的订单在哪里"),
        ("मेरा ऑर्डर कहाँ है", "ऑर्डर"),
        ("ok 👍 then", "👍"),
        ("x <script>alert(1)</script>", "<script>"),
        ("back\\slash and 'quotes'", "back\\slash"),
        ("back\\slash and 'quotes'", "'quotes'"),
    ],
)
def test_what_is_typed_is_words_and_nothing_else(desk: Desk, said: str, typed: str) -> None:
    talk = desk.talk(said)
    desk.talk("something else altogether: 5 ff")
    expected = [] if typed in ("%", "👍") else [talk]
    assert desk.found(q=typed) == expected


@pytest.mark.parametrize(
    "typed",
    [
        "%a" * 30_000,
        '"' * 60_000,
        '"a' * 30_000,
        "a* " * 20_000,
        " OR ".join("abc" * 9_000),
        " ".join(map(str, range(12_000))),
        "(" * 60_000,
        "\u0300" * 60_000,
        "a" * 60_000,
    ],
    ids=lambda typed: repr(typed[:6]),
)
def test_endless_searches_end_at_once(desk: Desk, typed: str) -> None:
    desk.talk("a b c")
    began = time.monotonic()
    inbox.page(desk.db, Filters(q=typed))
    assert time.monotonic() - began < 2


TYPED = st.text(st.sampled_from("ab\"'*:^%_-+(){}\\& |!<>.,~\0é\u0300 \t١中²ﬁ"), max_size=30)


@given(typed=TYPED)
def test_whatever_is_typed_is_taken(shared_engine: Engine, typed: str) -> None:
    filters = Filters(q=typed.replace("\0", ""))
    inbox.page(shared_engine, filters)
    with reading(shared_engine) as connection:
        connection.execute(select(Conversation.id).where(*conditions(filters))).all()


def test_the_index_follows_what_is_changed_and_deleted(desk: Desk) -> None:
    talk = desk.talk("the first wording")
    with writing(desk.db) as connection:
        connection.execute(
            update(Message).where(Message.conversation_id == talk).values(text="quite another")
        )
    assert desk.found(q="wording") == []
    assert desk.found(q="another") == [talk]
    with writing(desk.db) as connection:
        connection.execute(delete(Visitor))
        if connection.dialect.name == "sqlite":
            connection.execute(text(CHECK))
            hits = "SELECT count(*) FROM message_search WHERE message_search MATCH 'another'"
            assert connection.scalar(text(hits)) == 0


def test_searching_combines_with_every_filter(desk: Desk) -> None:
    both = desk.talk("a latte please", "no", thumbs_down=True)
    desk.talk("an espresso please", "no", thumbs_down=True)
    desk.talk("a latte please", "yes")
    desk.judge(desk.messages(both)[1], "bad", "rude")
    assert desk.found(q="latte", rating="down") == [both]
    assert desk.found(q="latte", label="rude") == [both]
    assert desk.found(q="espresso", label="rude") == []
    assert desk.found(q="latte", verdict="bad", state="all") == [both]
    assert desk.found(q="latte", state="closed") == []


# --- both ways to a page ----------------------------------------------------------------------------------


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few conversations take every turning that a million messages take."""
    monkeypatch.setattr(search, "FEW", 4)
    monkeypatch.setattr(filters, "FEW", 3)
    monkeypatch.setattr(search, "COMMON", 12)
    monkeypatch.setattr(search, "LOOKUP", 1)
    monkeypatch.setattr(search, "STRETCH", 5)
    monkeypatch.setattr(inbox, "FIRST_STEP", 2)
    monkeypatch.setattr(inbox, "LAST_STEP", 4)
    monkeypatch.setattr(inbox, "WALKED", 12)


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("seed", range(3))
def test_both_ways_and_the_database_find_the_same(desk: Desk, seed: int) -> None:
    rng = random.Random(seed)
    words = ["common", "commonly", "rare", "alpha", "beta", "commoner"]
    talks = []
    for _ in range(30):
        said = [" ".join(rng.choices(words, [9, 2, 1, 4, 4, 1], k=3)) for _ in range(rng.randint(1, 4))]
        talks.append(desk.talk(*said, thumbs_down=rng.random() < 0.3))
    # Some go on after a long time: their messages are no neighbours in the index.
    with writing(desk.db) as connection:
        for number, talk in enumerate(rng.sample(talks, 8)):
            later = {"updated_at": START + timedelta(days=2, minutes=number // 2)}  # some at the same moment
            connection.execute(update(Conversation).where(Conversation.id == talk).values(**later))
        agents = select(Message.id).where(Message.role == "agent").order_by(Message.id)
        replies = list(connection.scalars(agents))
    for message in rng.sample(replies, len(replies) // 2):
        desk.judge(message, rng.choice(["good", "bad"]), *rng.sample(["x", "y"], rng.randint(0, 2)))
    for q in ("common ", "comm", "common", "rare ", '"alpha beta"', "alpha common", "none"):
        plain = desk.found_apart(q)
        for limit in (2, 200):
            assert desk.pages(Filters(q=q), limit=limit) == plain, q
        for more in ({}, {"rating": "down"}, {"label": "x", "verdict": "good"}):
            other = desk.found_apart(None, **more)
            assert desk.found(q=q, **more) == [each for each in plain if each in other], q
    assert desk.pages(Filters(verdict="bad")) == desk.found_apart(None, verdict="bad")


def test_a_page_goes_on_where_the_one_before_ended_whatever_happened_meanwhile(desk: Desk) -> None:
    talks = [desk.talk(str(number)) for number in range(6)]
    first = inbox.page(desk.db, Filters(), limit=3)
    assert first.next is not None
    with writing(desk.db) as connection:
        # The last of the page is erased, one that was to come moves up, a new one comes.
        connection.execute(delete(Conversation).where(Conversation.id == talks[3]))
        later = {"updated_at": START + timedelta(days=1)}
        connection.execute(update(Conversation).where(Conversation.id == talks[1]).values(**later))
    desk.talk("new", at=START + timedelta(days=2))
    second = inbox.page(desk.db, Filters(), after=Place.of(first.next), limit=3)
    assert [each.id for each in second.conversations] == [talks[2], talks[0]]
    assert second.next is None


def test_conversations_of_the_same_moment_are_all_seen(desk: Desk) -> None:
    talks = {desk.talk("x", at=START) for _ in range(10)}
    listed = desk.pages(Filters(), limit=3)
    assert len(listed) == 10
    assert set(listed) == talks


# --- traces -----------------------------------------------------------------------------------------------


def test_what_was_erased_is_in_no_byte_of_the_files(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    rng = random.Random(5)
    desk = Desk(engine)
    others = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(2000)]
    for _ in range(60):
        desk.talk(*(" ".join(rng.choices(others, k=12)) for _ in range(10)))
    stranger = Desk(engine)
    secrets = [f"xq{number}zyx{'w' * (number % 7)}" for number in range(200)]
    for number in range(0, 200, 4):
        stranger.talk(" ".join(secrets[number : number + 4]), "we are sorry")
        desk.talk(" ".join(rng.choices(others, k=12)))
    assert len(desk.pages(Filters(q="sorry"), limit=200)) == 50
    assert traces(tmp_path, secrets)
    with writing(engine) as connection:
        connection.execute(delete(Visitor).where(Visitor.id == stranger.visitor))
    assert cleansing.cleanse(engine) == (True, None)
    assert traces(tmp_path, secrets) == []
    assert desk.pages(Filters(q=secrets[0])) == []
    assert len(desk.pages(Filters(q=others[0]), limit=200)) > 1
    with writing(engine) as connection:
        connection.execute(text(CHECK))
    engine.dispose()


def traces(folder: Path, secrets: Sequence[str]) -> list[str]:
    """The index keeps a word's end behind the beginning that it shares with the one before."""
    held = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    return [secret for secret in secrets if secret[-9:].encode() in held or b"zyx" in held]


@pytest.mark.parametrize("copied", [False, True])
def test_the_index_is_right_after_a_vacuum_and_in_a_backup(tmp_path: Path, copied: bool) -> None:
    """Rowids stay, though SQLite does not promise it for a table without an INTEGER PRIMARY KEY."""
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    desk = Desk(engine)
    talks = [desk.talk(f"number{each}", "and so on") for each in range(30)]
    with writing(engine) as connection:
        connection.execute(delete(Conversation).where(Conversation.id.in_(talks[:20:2])))
    engine.dispose()
    with closing(sqlite3.connect(tmp_path / "turnwise.db")) as connection:
        connection.execute(f"VACUUM INTO '{tmp_path / 'copy.db'}'" if copied else "VACUUM")
    desk.db = engine = connect(f"sqlite:///{tmp_path / 'copy.db'}" if copied else url)
    late = desk.talk("number31")
    assert desk.found(q="number29") == [talks[29]]
    assert desk.found(q="number31") == [late]
    with writing(engine) as connection:
        connection.execute(text(CHECK))
    engine.dispose()


def test_messages_of_before_the_index_are_found(tmp_path: Path) -> None:
    path = tmp_path / "turnwise.db"
    path.touch()
    engine = connect(f"sqlite:///{path}")
    config = database._config()
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
    desk = Desk(engine)
    talk = desk.talk("long ago")
    upgrade(f"sqlite:///{path}")
    assert desk.found(q="ago") == [talk]
    engine.dispose()


# --- what is typed, and what is shown ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", Words(())),
        ("say hello", Words((("say",), ("hello",)), prefix=True)),
        ("say hello ", Words((("say",), ("hello",)))),
        ('"say hello"', Words((("say", "hello"),))),
        ('a "say hello" to', Words((("a",), ("say", "hello"), ("to",)))),
        ('a "say hello" too', Words((("a",), ("say", "hello"), ("too",)), prefix=True)),
        ('a "say', Words((("a",), ("say",)), prefix=True)),
        ("dog cat dog", Words((("cat",), ("dog",)), prefix=True)),
        ('"" "%" x_y', Words((("x",), ("y",)))),
    ],
)
def test_what_is_looked_for(typed: str, words: Words) -> None:
    assert parse(typed) == words


def test_more_words_than_anybody_types_are_nowhere(desk: Desk) -> None:
    said = " ".join(f"w{number}" for number in range(search.MOST_WORDS + 1))
    talk = desk.talk(said)
    assert desk.found(q=said) == []
    assert desk.found(q=said.partition(" ")[2]) == [talk]


def test_an_excerpt_is_around_the_first_match() -> None:
    said = "word " * 50 + "Needle, " + "word " * 50
    found = excerpt(said, parse("need"), 60)
    assert len(found) <= 60
    assert "Needle" in found
    assert found.startswith("…")
    assert found.endswith("…")
    assert excerpt(said, parse("absent"), 20) == "word word word word…"
    assert excerpt(" short\n text ", parse("text"), 60) == "short text"
    assert excerpt("x" * 100 + " end", parse("end"), 30).endswith(" end")


@given(said=st.text(), typed=TYPED, length=st.integers(2, 50))
def test_an_excerpt_is_never_longer(said: str, typed: str, length: int) -> None:
    assert len(excerpt(said, parse(typed), length)) <= length


@given(moment=st.datetimes(), identity=st.uuids())
def test_a_cursor_says_the_place(moment: datetime, identity: Any) -> None:
    place = Place(moment.replace(tzinfo=UTC), identity.hex)
    assert Place.of(place.cursor()) == place


@given(cursor=st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: raw.hex()))
def test_no_other_text_is_a_cursor(cursor: str) -> None:
    with pytest.raises(BadCursor):
        Place.of(cursor)


@pytest.mark.parametrize(
    "times",
    [
        {"from": "2025-03-01"},
        {"from": "2025-03-01T10:00:00"},
        {"from": "1700000000"},
        {"from": "10000-01-01T00:00:00Z"},
        {"to": "9999-12-31T23:59:59-10:00"},
        {"to": "0001-01-01T00:00:00+10:00"},
        {"to": "2025-02-30T10:00:00Z"},
        {"from": "2025-03-02T00:00:00Z", "to": "2025-03-01T00:00:00Z"},
    ],
)
def test_what_is_no_time_is_refused(times: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Filters.model_validate(times)


# --- over HTTP --------------------------------------------------------------------------------------------


def over_http(tmp_path: Path, tiny_model_dir: Path, test: Any) -> None:
    async def with_console() -> None:
        async with console_over(tmp_path, tiny_model_dir) as console:
            await test(console, await console.sign_in("reviewer"))

    asyncio.run(with_console())


def test_the_inbox_over_http(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole, client: httpx.AsyncClient) -> None:
        said = "Mail me at ann@example.com about order 12 "
        first = await asyncio.to_thread(console.conversation, [(said, "We will"), ("thanks", None)])
        second = await asyncio.to_thread(console.conversation, [("hello\nthere " + "x" * 200, "hi")])
        reply = first.replies[0]
        answer = await client.put(f"/api/operator/messages/{reply}/verdict", json={"verdict": "good"})
        assert answer.status_code == 200, answer.text

        answer = await client.get("/api/operator/conversations")
        assert answer.status_code == 200, answer.text
        assert answer.json()["next"] is None
        newest, oldest = answer.json()["conversations"]
        assert (newest["id"], oldest["id"]) == (second.id, first.id)
        assert newest["title"].startswith("hello there xxx")
        assert len(newest["title"]) == 80
        assert oldest["title"] == "Mail me at [email] about order 12"
        assert oldest["preview"] == "thanks"
        assert oldest["messages"] == 3
        assert oldest["visitor"] == first.visitor[:8]
        assert oldest["verdicts"] == {"good": 1, "bad": 0}
        assert oldest["match"] is None
        assert (oldest["owner"], oldest["operator"], oldest["owner_version"]) == ("bot", None, 0)
        one = await client.get(f"/api/operator/conversations/{first.id}")
        assert one.json()["conversation"] == oldest

        answer = await client.get("/api/operator/conversations", params={"q": "example order"})
        assert [each["match"] for each in answer.json()["conversations"]] == [
            "Mail me at [email] about order 12"
        ]
        admin = await console.sign_in("admin")
        for mask, title in ((None, "ann@example.com"), ("false", "ann@example.com"), ("true", "[email]")):
            params = {"q": "example"} if mask is None else {"q": "example", "mask": mask}
            answer = await admin.get("/api/operator/conversations", params=params)
            [only] = answer.json()["conversations"]
            assert title in only["title"]
            assert title in only["match"]
        answer = await client.get("/api/operator/conversations", params={"q": "example", "mask": "false"})
        assert "[email]" in answer.json()["conversations"][0]["match"]

        counts = (await client.get("/api/operator/counts")).json()
        assert counts == {
            "open": 2,
            "waiting": 0,
            "taken": 0,
            "mine": 0,
            "unreviewed": 2,
            "thumbs_down": 0,
            "low_confidence": 0,
        }

    over_http(tmp_path, tiny_model_dir, test)


def test_pages_over_http_and_who_has_taken_over(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole, client: httpx.AsyncClient) -> None:
        talks = [await asyncio.to_thread(console.conversation, [(f"no {n}", None)]) for n in range(5)]
        seen: list[str] = []
        params = {"limit": "2"}
        for _ in range(3):
            answer = (await client.get("/api/operator/conversations", params=params)).json()
            seen += [each["id"] for each in answer["conversations"]]
            params = {"limit": "2", "cursor": answer["next"]}
        assert answer["next"] is None
        assert seen == [talk.id for talk in reversed(talks)]

        taken = talks[2].id
        answer = await client.post(f"/api/operator/conversations/{taken}/take", json={"version": 0})
        assert answer.status_code == 200, answer.text
        for params in ({"mine": "true"}, {"state": "taken"}):
            [only] = (await client.get("/api/operator/conversations", params=params)).json()["conversations"]
            assert (only["id"], only["owner"], only["operator"]) == (taken, "operator", "reviewer")
        other = await console.sign_in("admin")
        answer = await other.get("/api/operator/conversations", params={"mine": "true"})
        assert answer.json() == {"conversations": [], "next": None}
        with reading(console.db) as connection:
            assert connection.scalar(select(func.count()).select_from(Operator)) == 2

    over_http(tmp_path, tiny_model_dir, test)


REFUSED = [
    "sort=id",
    "page=1",
    "from_=2025-03-01T00:00:00Z",
    "limit=0",
    "limit=-1",
    "limit=201",
    "limit=1000000000",
    "limit=9223372036854775808",
    "limit=1.5",
    "limit=",
    "cursor=",
    "cursor=0",
    "cursor=%00",
    "cursor=9223372036854775808",
    f"cursor={Place(START, '0' * 32).cursor()}x",
    "state=deleted",
    "rating=sideways",
    "verdict=ugly",
    "confidence_below=nan",
    "confidence_below=1.1",
    "confidence_below=-0.1",
    "confidence_below=1e999",
    "cluster=-1",
    "cluster=9223372036854775808",
    "reviewed=perhaps",
    "mine=2",
    "mask=2",
    "from=yesterday",
    "from=10000-01-01T00:00:00Z",
    "to=9999-12-31T23:59:59-10:00",
    "from=2025-03-02T00:00:00Z&to=2025-03-01T00:00:00Z",
    "q=%00",
    "label=%00",
    "model=a%00b",
]


def test_bad_queries_are_refused_and_nobody_else_is_answered(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole, client: httpx.AsyncClient) -> None:
        for query in REFUSED:
            answer = await client.get(f"/api/operator/conversations?{query}")
            assert answer.status_code == 400, query
            assert set(answer.json()) == {"error"}, query
        nobody = await console.client()
        for path in ("conversations", "counts", "conversations?limit=0"):
            assert (await nobody.get(f"/api/operator/{path}")).status_code == 401
        answer = await client.get("/api/operator/conversations", params={"q": "%a" * 1500})
        assert answer.json() == {"conversations": [], "next": None}
        answer = await client.get("/api/operator/conversations", params={"q": "<script>", "label": "<svg>"})
        assert answer.json() == {"conversations": [], "next": None}

    over_http(tmp_path, tiny_model_dir, test)
