"""``python -m benchmarks.inbox``: how long the inbox and the dashboard take among a million messages.

A database is filled with made-up conversations that overlap, as they do when many visitors chat, some of whom
come back after a long time; how often words occur follows Zipf's law. Then pages are asked for as the console
asks: the first and the fiftieth, with each filter, and searches for words that are common, rare, follow each
other, or are combined with filters. Each figure is the median over the rounds, against the limit of 100 ms;
`cpu` is for how long this process itself worked for it, whatever else the machine was doing.

`dashboard` is for the figures of the last 30 days, against 300 ms, once the replies of each day have been
added up, as a server does when it starts; `dashboard_first` includes that.

A database that is given by its URL should be made for this: what is written there stays, so that it can be
measured again.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, func, insert, select, text

from benchmarks.figures import report
from server.console import inbox
from server.console.filters import Filters
from server.console.inbox import Place
from server.console.statistics import DAYS, KEPT_FOR, Dashboard
from server.database import connect, reading, upgrade, writing
from server.tables import (
    Base,
    Conversation,
    Feedback,
    Generation,
    Message,
    TopicMap,
    TopicPoint,
    Verdict,
    Visitor,
)

LIMIT: Final = 100.0
"""Milliseconds."""
DASHBOARD_LIMIT: Final = 300.0
BEGIN: Final = datetime(2025, 1, 1, tzinfo=UTC)
OPERATOR: Final = "f" * 32
MODELS: Final = ("a" * 64, "b" * 64, "c" * 64)
VOCABULARY: Final = 30_000
LIVE: Final = 300
"""Conversations that go on at the same time."""
RETURNS: Final = 0.005
"""Share of messages that are said in a conversation of any time before."""
FIRST_TIMES: Final = 3
"""Rounds of what is added up from nothing."""
TOGETHER: Final = 20_000
"""Rows in one transaction."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inbox", description=__doc__)
    parser.add_argument("--database-url", help="brought to the newest migration; default: a temporary file")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--conversations", type=int, default=120_000)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        url = args.database_url or f"sqlite:///{Path(folder) / 'turnwise.db'}"
        upgrade(url)
        engine = connect(url)
        try:
            measure(engine, args.messages, args.conversations, args.rounds)
        finally:
            engine.dispose()


def measure(engine: Engine, messages: int, conversations: int, rounds: int) -> None:
    words = vocabulary()
    with reading(engine) as connection:
        there = connection.scalar(select(func.count()).select_from(Message)) or 0
    if there < messages:
        fill(engine, words, messages - there, conversations)
        if engine.dialect.name == "postgresql":  # as autovacuum does in the course of time
            with writing(engine) as connection:
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("ANALYZE"))
    scenes = {name: asking(engine, filters) for name, filters in filters_of(words).items()}
    scenes["page_50"] = asking(engine, {}, place_of(engine, 50))
    scenes["counts"] = counting(engine)
    size = {"messages": max(there, messages), "conversations": conversations}
    time_scenes(engine, scenes, rounds, LIMIT, size)
    newest = newest_message(engine)
    board = dashboard(engine, newest)
    scenes = {"dashboard": adding_up(lambda: board, newest.date())}
    time_scenes(engine, scenes, rounds, DASHBOARD_LIMIT, size)
    scenes = {"dashboard_first": adding_up(lambda: dashboard(engine, newest), newest.date())}
    time_scenes(engine, scenes, min(rounds, FIRST_TIMES), DASHBOARD_LIMIT, size)


def time_scenes(
    engine: Engine, scenes: dict[str, Callable[[], int]], rounds: int, limit: float, size: dict[str, int]
) -> None:
    """They take turns; the first round, which fills the caches, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in scenes}
    working: dict[str, list[float]] = {name: [] for name in scenes}
    found: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, ask in scenes.items():
            began, worked = time.perf_counter(), time.thread_time()
            found[name] = ask()
            if number:
                seconds[name].append(time.perf_counter() - began)
                working[name].append(time.thread_time() - worked)
    for name, times in seconds.items():
        report(
            f"inbox_{engine.dialect.name}_{name}",
            1000 * statistics.median(times),
            "ms",
            limit,
            "the limit",
            p95=round(percentile(times, 95), 3),
            cpu=round(1000 * statistics.median(working[name]), 3),
            shown=found[name],
            **size,
        )


def percentile(seconds: Sequence[float], of_100: int) -> float:
    """In milliseconds."""
    if len(seconds) == 1:
        return 1000 * seconds[0]
    return 1000 * statistics.quantiles(seconds, n=100, method="inclusive")[of_100 - 1]


# --- what is asked for ------------------------------------------------------------------------------------


def filters_of(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Queries of the inbox, by name. words: the most common first."""
    most, common, middle, rare = words[0], words[20], words[600], words[-50]
    return {
        "first_page": {},
        "everything": {"state": "all"},
        "waiting": {"state": "waiting"},
        "taken": {"state": "taken"},
        "mine": {"mine": True},
        "closed": {"state": "closed"},
        "reviewed": {"state": "all", "reviewed": True},
        "unreviewed": {"state": "all", "reviewed": False},
        "thumbs_down": {"state": "all", "rating": "down"},
        "thumbs_up": {"state": "all", "rating": "up"},
        "unsure": {"state": "all", "confidence_below": 0.5},
        "very_unsure": {"state": "all", "confidence_below": 0.001},
        "old_model": {"state": "all", "model": MODELS[0]},
        "bad": {"state": "all", "verdict": "bad"},
        "label": {"state": "all", "label": "rare"},
        "cluster": {"state": "all", "cluster": 3},
        "time": {"state": "all", "from": "2025-01-03T00:00:00Z", "to": "2025-01-04T00:00:00Z"},
        "search_most_common": {"state": "all", "q": f"{most} "},
        "search_common": {"state": "all", "q": f"{common} "},
        "search_middle": {"state": "all", "q": f"{middle} "},
        "search_rare": {"state": "all", "q": f"{rare} "},
        "search_nothing": {"state": "all", "q": "xxxxxxxx "},
        "search_beginning": {"state": "all", "q": common[:3]},
        "search_as_typed": {"state": "all", "q": common},
        "search_phrase": {"state": "all", "q": f'"{most} {words[1]}"'},
        "search_rare_phrase": {"state": "all", "q": f'"{common} {middle}"'},
        "search_two": {"state": "all", "q": f"{common} {words[30]} "},
        "search_common_waiting": {"state": "waiting", "q": f"{common} "},
        "search_common_down": {"state": "all", "rating": "down", "q": f"{common} "},
        "search_common_label": {"state": "all", "label": "rare", "q": f"{common} "},
        "search_common_bad": {"state": "all", "verdict": "bad", "q": f"{common} "},
        "search_rare_closed": {"state": "closed", "q": f"{rare} "},
    }


def asking(engine: Engine, filters: dict[str, Any], after: Place | None = None) -> Callable[[], int]:
    """Gives how many conversations there are on the page."""
    given = Filters.model_validate(filters)
    return lambda: len(inbox.page(engine, given, OPERATOR, after=after).conversations)


def counting(engine: Engine) -> Callable[[], int]:
    return lambda: inbox.counts(engine, OPERATOR).open


def dashboard(engine: Engine, newest: datetime) -> Dashboard:
    """One that has shown nothing in the last minutes, whenever it is asked."""
    clock = itertools.count(0.0, KEPT_FOR + 1)
    return Dashboard(engine, clock=lambda: next(clock), now=lambda: newest)


def adding_up(board: Callable[[], Dashboard], last: date) -> Callable[[], int]:
    """Gives how many replies the default range has."""
    return lambda: board().figures(last - timedelta(DAYS - 1), last).total.replies


def newest_message(engine: Engine) -> datetime:
    with reading(engine) as connection:
        return connection.execute(select(func.max(Message.created_at))).scalar_one()


def place_of(engine: Engine, page: int) -> Place | None:
    """Where that page begins, as one comes to it: page by page."""
    after: Place | None = None
    for _ in range(page - 1):
        found = inbox.page(engine, Filters(), OPERATOR, after=after)
        if found.next is None:
            break
        after = Place.of(found.next)
    return after


# --- what there is ----------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    rng = random.Random(7)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "on")]
    made = dict.fromkeys("".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(2 * VOCABULARY))
    return list(made)[:VOCABULARY]


def fill(engine: Engine, words: Sequence[str], messages: int, conversations: int) -> None:
    rng = random.Random(11)
    visitors = [_id(rng) for _ in range(max(1, conversations // 3))]
    _write(engine, Visitor, ({"id": each, "token_hash": _id(rng), "created_at": BEGIN} for each in visitors))
    course = _course(rng, messages, conversations)
    ids = [_id(rng) for _ in course.lengths]
    _write(engine, Conversation, _conversations(rng, ids, visitors, course))
    replies: list[str] = []
    _write(engine, Message, _messages(rng, words, course.order, ids, replies))
    _write(engine, Generation, _generations(rng, replies))
    _write(engine, Verdict, _verdicts(rng, rng.sample(replies, min(len(replies), 6000))))
    liked = rng.sample(replies, len(replies) // 50)
    later = BEGIN + timedelta(seconds=messages)
    _write(engine, Feedback, ({"message_id": each, "rating": "up", "updated_at": later} for each in liked))
    topics = {"id": _id(rng), "model": MODELS[2], "created_at": BEGIN, "clusters": []}
    _write(engine, TopicMap, iter([topics]))
    points = (
        {"map_id": topics["id"], "conversation_id": each, "cluster": rng.randrange(20), "x": 0.0, "y": 0.0}
        for each in ids[-20_000:]
    )
    _write(engine, TopicPoint, points)


@dataclass(slots=True)
class Course:
    """order: the conversation of each message in the order in which they were said. Of each conversation,
    the number of its messages and the places of its first and its last.
    """

    order: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


def _course(rng: random.Random, messages: int, conversations: int) -> Course:
    course = Course()
    live: list[int] = []
    share = conversations / messages
    for place in range(messages):
        if not live or rng.random() < share:
            live.append(len(course.lengths))
            course.lengths.append(0)
            course.begins.append(0)
            course.ends.append(0)
            if len(live) > LIVE:
                live[rng.randrange(LIVE)] = live.pop()
            number = live[-1]
        elif rng.random() < RETURNS:
            number = rng.randrange(len(course.lengths))
        else:
            number = live[int(rng.random() * len(live))]
        if not course.lengths[number]:
            course.begins[number] = place
        course.order.append(number)
        course.lengths[number] += 1
        course.ends[number] = place
    return course


def _conversations(
    rng: random.Random, ids: Sequence[str], visitors: Sequence[str], course: Course
) -> Iterator[dict[str, Any]]:
    for number, (key, length) in enumerate(zip(ids, course.lengths, strict=True)):
        at = _at(course.ends[number])
        taken = rng.random() < 0.0005
        closed = not taken and rng.random() < 0.3
        yield {
            "id": key,
            "visitor_id": rng.choice(visitors),
            "last_seq": length,
            "created_at": _at(course.begins[number]),
            "updated_at": at,
            "owner": "operator" if taken else "bot",
            "operator_id": rng.choice([OPERATOR, "e" * 32]) if taken else None,
            "owner_version": int(taken or rng.random() < 0.02),
            "waiting_since": at if not taken and rng.random() < 0.001 else None,
            "closed_at": at if closed else None,
            "reviewed_at": at if rng.random() < 0.05 else None,
            "model": _model(number / len(ids)),
            "confidence": rng.betavariate(5, 2),
            "thumbs_down": rng.random() < 0.03,
        }


def _messages(
    rng: random.Random, words: Sequence[str], order: Sequence[int], ids: Sequence[str], replies: list[str]
) -> Iterator[dict[str, Any]]:
    weights = list(itertools.accumulate(1 / (2 + rank) for rank in range(len(words))))
    said: dict[int, int] = {}
    for place, number in enumerate(order):
        seq = said[number] = said.get(number, 0) + 1
        key = _id(rng)
        if seq % 2 == 0:
            replies.append(key)
        yield {
            "id": key,
            "conversation_id": ids[number],
            "seq": seq,
            "role": "user" if seq % 2 else "agent",
            "text": " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(3, 20))),
            "created_at": _at(place),
            "client_id": str(place) if seq % 2 else None,
            "reply_id": key if seq % 2 == 0 else None,
            "superseded": False,
        }


def _generations(rng: random.Random, replies: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, each in enumerate(replies):
        length = rng.randint(4, 30)
        first = rng.lognormvariate(3, 1)
        yield {
            "message_id": each,
            "finish_reason": "stop" if rng.random() < 0.97 else "abstained",
            "model": _model(number / len(replies)),
            "options": {"decoding": "beam", "beam_size": 5, "temperature": 1.0, "max_tokens": 60},
            "seed": number,
            "token_ids": [rng.randrange(8000) for _ in range(length)],
            "logprobs": [-rng.random() for _ in range(length)],
            "alternatives": [],
            "queued_ms": 1.0,
            "first_token_ms": first,
            "total_ms": first + length * rng.uniform(2, 6),
            "confidence": rng.betavariate(5, 2),
        }


def _verdicts(rng: random.Random, replies: Sequence[str]) -> Iterator[dict[str, Any]]:
    for each in replies:
        labels = rng.sample(["wrong", "rude", "unclear", "too long"], rng.randint(0, 2))
        yield {
            "message_id": each,
            "operator_id": OPERATOR,
            "verdict": rng.choice(["good", "bad"]),
            "labels": [*labels, "rare"] if rng.random() < 0.02 else labels,
            "created_at": BEGIN,
            "updated_at": BEGIN,
        }


def _write(engine: Engine, table: type[Base], rows: Iterator[dict[str, Any]]) -> None:
    while part := list(itertools.islice(rows, TOGETHER)):
        with writing(engine) as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(insert(table), part)


def _model(age: float) -> str:
    """age: 0 for what was first, below 1 for what was last."""
    return MODELS[int(age * len(MODELS))]


def _id(rng: random.Random) -> str:
    return uuid.UUID(int=rng.getrandbits(128)).hex


def _at(place: int) -> datetime:
    return BEGIN + timedelta(seconds=place)


if __name__ == "__main__":
    main()
