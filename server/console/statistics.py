"""What the dashboard draws: figures by day (UTC), by model, and in all.

The database adds everything up. Times are rounded there, by half a millisecond or a fortieth of themselves at
most, and counted by rounded time: a percentile is read from some hundreds of such counts a day, however many
replies there were, on SQLite and PostgreSQL alike.

What was said of a day's replies is known for good, unless a visitor is erased: they are added up once, and
again only when the day has another number of messages than it had. All else is asked for anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time, timedelta
from time import monotonic
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Date,
    Double,
    Engine,
    String,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import InstrumentedAttribute

from server import logs
from server.database import reading
from server.offload import Offload
from server.store_errors import StoreUnavailable
from server.tables import Conversation, Feedback, Generation, Message, Suggestion

log = logging.getLogger(__name__)

DAYS: Final = 30
"""Shown unless a range is asked for."""
MOST_DAYS: Final = 366
CHUNK: Final = {"sqlite": MOST_DAYS, "postgresql": 31}
"""Days that are asked for at a time: PostgreSQL gives up a question that takes it long (server.database)."""
KEPT_FOR: Final = 300.0
"""Seconds for which figures of days that are over may be told again: they change little, by late thumbs."""
TODAY_KEPT_FOR: Final = 10.0
"""The same for a day that is not over, so that asking again and again costs little."""

TOGETHER: Final = 100
"""Days whose messages are counted in one question: SQLite takes 500 of them at most."""
MOST_KEPT: Final = 2 * MOST_DAYS
"""Days whose replies are remembered."""
CLOCKS: Final = timedelta(days=1)
"""More than the clocks of two servers differ by: what follows from something else bears a later time, or
nearly.
"""

_STEPS: Final = ((100.0, 1.0), (1_000.0, 5.0), (10_000.0, 50.0))
_COARSEST: Final = 500.0
"""Milliseconds: below so many, times are told apart by so many."""


@dataclass(slots=True)
class Figures:
    """Of a day, of a model, or of all. docs/operators.md says what each counts."""

    conversations: int = 0
    handled_alone: int = 0
    messages: int = 0
    operator_messages: int = 0
    covered: int = 0
    replies: int = 0
    thumbs_up: int = 0
    thumbs_down: int = 0
    abstained: int = 0
    shown: int = 0
    accepted: int = 0
    edited: int = 0
    ignored: int = 0
    first_token_ms: Counter[float] = field(default_factory=Counter)
    total_ms: Counter[float] = field(default_factory=Counter)

    def add(self, **counts: int | None) -> None:
        for name, number in counts.items():
            setattr(self, name, getattr(self, name) + int(number or 0))

    def include(self, other: Figures) -> None:
        for each in fields(self):
            value = getattr(other, each.name)
            if isinstance(value, Counter):
                getattr(self, each.name).update(value)
            else:
                self.add(**{each.name: value})


@dataclass(frozen=True, slots=True)
class Statistics:
    """All days of a range in order, all models with something in it, those with most replies first."""

    days: dict[date, Figures]
    models: dict[str, Figures]
    total: Figures


Part = dict[str | None, Figures]
"""What belongs to a model, and under None what belongs to none."""
Parts = dict[date, Part]


def percentile(counts: Mapping[float, int], share: float) -> float | None:
    """The least value that at least this share of what was counted is not above; None for nothing."""
    rank = math.ceil(share * sum(counts.values()) - 1e-9)
    below = 0
    for value in sorted(counts):
        below += counts[value]
        if below >= rank:
            return value
    return None


class Dashboard:
    """Adds up figures. What was found is told again for `KEPT_FOR` or `TODAY_KEPT_FOR` seconds.

    A year of a busy server takes seconds, so it has a thread of its own, and who asks meanwhile waits for
    what the first finds. clock: seconds, monotonic.
    """

    def __init__(
        self,
        db: Engine,
        *,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._db, self._clock, self._now = db, clock, now
        self._offload = Offload(1, "statistics")
        self._known: dict[date, tuple[float, Part]] = {}  # until when, and what
        self._replies: dict[date, tuple[int, Part]] = {}  # among how many messages, and what

    async def warm_up(self) -> None:
        """Add up the replies of the last days, the newest first, so that nobody who asks waits for that.

        It rests as long as it works. A database that does not answer is left alone.
        """
        today = self._now().astimezone(UTC).date()
        days = [today - timedelta(n) for n in range(DAYS)]
        try:
            for day, messages in (await self._offload(_messages_of, self._db, days)).items():
                began = self._clock()
                await self._offload(self._replies_of, day, messages)
                await asyncio.sleep(self._clock() - began)
        except StoreUnavailable as error:
            logs.event(log, logging.WARNING, "warm_up_failed", error=logs.place(error))

    async def ask(self, first: date, last: date) -> Statistics:
        """`figures`, from the event loop."""
        return await self._offload(self.figures, first, last)

    def close(self) -> None:
        """Wait for what is being added up."""
        self._offload.close()

    def figures(self, first: date, last: date) -> Statistics:
        """Those of all days from `first` to `last`, both included. One thread at a time."""
        days = [first + timedelta(n) for n in range((last - first).days + 1)]
        parts = self._parts(days)
        found = Statistics({}, defaultdict(Figures), Figures())
        for day in days:
            found.days[day] = Figures()
            for model, part in parts[day].items():
                found.days[day].include(part)
                found.total.include(part)
                if model is not None:
                    found.models[model].include(part)
        models = sorted(found.models.items(), key=lambda item: (-item[1].replies, item[0]))
        return Statistics(found.days, dict(models), found.total)

    def _parts(self, days: list[date]) -> Parts:
        began, today = self._clock(), self._now().astimezone(UTC).date()
        self._known = {day: known for day, known in self._known.items() if began < known[0]}
        most = CHUNK[self._db.dialect.name]
        missing = [day for day in days if day not in self._known]
        parts = {day: self._known[day][1] for day in days if day in self._known}
        while missing:
            chunk = [day for day in missing if (day - missing[0]).days < most]
            missing = missing[len(chunk) :]
            found = _count_in_parts(self._db, chunk[0], chunk[-1])
            for day, part in found.items():
                for model, figures in self._replies_of(day, part[None].messages).items():
                    part[model].include(figures)
            parts |= found
            ended = self._clock()
            for day, part in found.items():
                self._known[day] = ended + (KEPT_FOR if day < today else TODAY_KEPT_FOR), part
        return parts

    def _replies_of(self, day: date, messages: int) -> Part:
        """messages: how many there are of the day."""
        if not messages:
            return {}
        known = self._replies.pop(day, None)
        if known is None or known[0] != messages:
            known = messages, _replies(self._db, day)
        self._replies[day] = known
        while len(self._replies) > MOST_KEPT:
            del self._replies[next(iter(self._replies))]
        return known[1]


# ---- Counting ----------------------------------------------------------------------------------------------


def count(db: Engine, first: date, last: date) -> Parts:
    """What there is of all days from `first` to `last`, both included, but for their replies."""
    days = [first + timedelta(n) for n in range((last - first).days + 1)]
    parts: Parts = {day: defaultdict(Figures) for day in days}
    begin, end = _midnight(first), _midnight(last + timedelta(1))
    with reading(db) as connection:
        for counted in (_conversations, _messages, _messages_by_operators, _feedback, _suggestions):
            counted(connection, begin, end, parts)
    return parts


def _count_in_parts(db: Engine, first: date, last: date) -> Parts:
    """`count`, of half of the days at a time where all of them take longer than the database lets them."""
    try:
        return count(db, first, last)
    except StoreUnavailable as error:
        if not error.busy or first == last:
            raise
    middle = first + (last - first) // 2
    return _count_in_parts(db, first, middle) | _count_in_parts(db, middle + timedelta(1), last)


def _of(parts: Parts, day: str | date, model: str | None = None) -> Figures:
    return parts[date.fromisoformat(day) if isinstance(day, str) else day][model]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _conversations(connection: Connection, begin: datetime, end: datetime, parts: Parts) -> None:
    # An operator can only have said something where the owner has changed: the others need no look.
    person = select(Message.id).where(
        Message.conversation_id == Conversation.id, Message.operator_id.is_not(None)
    )
    alone = and_(Conversation.waiting_since.is_(None), or_(Conversation.owner_version == 0, ~person.exists()))
    day = _day(connection, Conversation.created_at)
    query = (
        select(day, Conversation.model, func.count(), _how_many(alone))
        .where(Conversation.created_at >= begin, Conversation.created_at < end)
        # The index of the inbox leads past those that were over before.
        .where(literal_column("conversation.last_seq > 0"), Conversation.updated_at >= begin - CLOCKS)
        .group_by(day, Conversation.model)
    )
    for at, model, conversations, handled_alone in connection.execute(query):
        _of(parts, at, model).add(conversations=conversations, handled_alone=handled_alone)


def _messages(connection: Connection, begin: datetime, end: datetime, parts: Parts) -> None:
    for day, messages in _counted(connection, list(parts)).items():
        parts[day][None].add(messages=messages)


def _messages_of(db: Engine, days: list[date]) -> dict[date, int]:
    """How many there are of each day, where there are any."""
    with reading(db) as connection:
        return {day: messages for day, messages in _counted(connection, days).items() if messages}


def _counted(connection: Connection, days: list[date]) -> dict[date, int]:
    """Messages of each day, which is a stretch of an index."""
    found: dict[date, int] = {}
    for several in (days[at : at + TOGETHER] for at in range(0, len(days), TOGETHER)):
        stretches = [
            select(literal(number).label("day"), func.count().label("messages"))
            .select_from(Message)
            .where(Message.created_at >= _midnight(day), Message.created_at < _midnight(day + timedelta(1)))
            for number, day in enumerate(several)
        ]
        found |= {several[number]: n for number, n in connection.execute(union_all(*stretches))}
    return found


def _messages_by_operators(connection: Connection, begin: datetime, end: datetime, parts: Parts) -> None:
    day = _day(connection, Message.created_at)
    theirs = and_(
        literal_column("message.operator_id IS NOT NULL"),  # as the index has it
        Message.created_at >= begin,
        Message.created_at < end,
    )
    for at, messages in connection.execute(select(day, func.count()).where(theirs).group_by(day)):
        _of(parts, at).add(operator_messages=messages)
    covered = (
        select(day, func.count(Message.id.distinct()))
        .join(Suggestion, Suggestion.message_id == Message.id)
        .where(theirs, Suggestion.outcome.in_(("accepted", "edited")))
        .group_by(day)
    )
    for at, messages in connection.execute(covered):
        _of(parts, at).add(covered=messages)


def _replies(db: Engine, day: date) -> Part:
    """What models have said on that day."""
    made = (
        select(
            Generation.model.label("model"),
            case(
                (or_(Generation.withheld.is_not(None), Generation.finish_reason == "abstained"), 1), else_=0
            ).label("abstained"),
            _rounded(Generation.first_token_ms).label("first"),
            _rounded(Generation.total_ms).label("whole"),
        )
        .select_from(Message)
        .join(Generation, Generation.message_id == Message.id)
        .where(Message.created_at >= _midnight(day), Message.created_at < _midnight(day + timedelta(1)))
        .cte("made")
        .prefix_with("MATERIALIZED")  # the join is made once for both
    )
    times = [
        select(
            made.c.model,
            literal(kind).label("kind"),
            column.label("time"),
            func.count().label("count"),
            func.sum(made.c.abstained).label("abstained"),
        ).group_by(made.c.model, column)
        for kind, column in (("first_token_ms", made.c.first), ("total_ms", made.c.whole))
    ]
    part: Part = defaultdict(Figures)
    with reading(db) as connection:
        for row in connection.execute(union_all(*times)):
            figures = part[row.model]
            if row.time is not None:
                getattr(figures, row.kind)[row.time] += row._mapping["count"]
            if row.kind == "total_ms":  # every reply has one
                figures.add(replies=row._mapping["count"], abstained=row.abstained)
    return part


def _feedback(connection: Connection, begin: datetime, end: datetime, parts: Parts) -> None:
    day = _day(connection, Message.created_at)
    # Written as an expression, so that SQLite goes from the thumbs to their messages and not the other way.
    said = func.coalesce(Message.created_at, Feedback.updated_at)
    query = (
        select(
            day, Generation.model, _how_many(Feedback.rating == "up"), _how_many(Feedback.rating == "down")
        )
        .select_from(Feedback)
        .join(Message, Message.id == Feedback.message_id)
        .outerjoin(Generation, Generation.message_id == Feedback.message_id)
        .where(Feedback.updated_at >= begin - CLOCKS, said >= begin, said < end)
        .group_by(day, Generation.model)
    )
    for at, model, up, down in connection.execute(query):
        _of(parts, at, model).add(thumbs_up=up, thumbs_down=down)


def _suggestions(connection: Connection, begin: datetime, end: datetime, parts: Parts) -> None:
    day = _day(connection, Suggestion.created_at)
    query = (
        select(
            day,
            Suggestion.model,
            func.count(),
            _how_many(Suggestion.outcome == "accepted"),
            _how_many(Suggestion.outcome == "edited"),
            _how_many(Suggestion.outcome == "ignored"),
        )
        .where(Suggestion.created_at >= begin, Suggestion.created_at < end)
        .group_by(day, Suggestion.model)
    )
    for at, model, shown, accepted, edited, ignored in connection.execute(query):
        _of(parts, at, model).add(shown=shown, accepted=accepted, edited=edited, ignored=ignored)


def _day(connection: Connection, moment: InstrumentedAttribute[datetime]) -> ColumnElement[Any]:
    """The day of a moment in UTC: on SQLite, where a moment is kept as text, as `2026-11-21`."""
    if connection.dialect.name == "sqlite":
        return func.substr(moment, 1, 10, type_=String)
    return cast(func.timezone("UTC", moment), Date)


def _how_many(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def _rounded(milliseconds: InstrumentedAttribute[Any]) -> ColumnElement[float]:
    """To the nearest step; what is under a step of the next size is told apart by it."""

    def to(step: float) -> ColumnElement[float]:
        return func.round(milliseconds / step, type_=Double) * step

    return case(
        (milliseconds.is_(None), None),
        *((milliseconds < below, to(step)) for below, step in _STEPS),
        else_=to(_COARSEST),
    )
