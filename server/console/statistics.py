"""What the dashboard draws: figures by day (UTC), by model, and in all.

The database adds everything up. Times are rounded there, by half a millisecond or a fortieth of themselves at
most, and counted by rounded time: a percentile is read from some hundreds of such counts a day, however many
replies there were, on SQLite and PostgreSQL alike.
"""

from __future__ import annotations

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
    Double,
    Engine,
    String,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import InstrumentedAttribute

from server.database import reading
from server.offload import Offload
from server.store_errors import StoreUnavailable
from server.tables import Conversation, Feedback, Generation, Message, Suggestion

DAYS: Final = 30
"""Shown unless a range is asked for."""
MOST_DAYS: Final = 366
CHUNK: Final = {"sqlite": MOST_DAYS, "postgresql": 31}
"""Days that are asked for at a time: PostgreSQL gives up a question that takes it long (server.database),
SQLite reads all messages for every question.
"""
KEPT_FOR: Final = 300.0
"""Seconds for which figures of days that are over may be told again: they change little, by late thumbs."""
TODAY_KEPT_FOR: Final = 10.0
"""The same for a day that is not over, so that asking again and again costs little."""

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


Parts = dict[date, dict[str | None, Figures]]
"""Of each day, what belongs to a model, and under None what belongs to none."""


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
        self._known: dict[date, tuple[float, dict[str | None, Figures]]] = {}  # until when, and what

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
            parts |= found
            ended = self._clock()
            for day, part in found.items():
                self._known[day] = ended + (KEPT_FOR if day < today else TODAY_KEPT_FOR), part
        return parts


# ---- Counting ----------------------------------------------------------------------------------------------


def count(db: Engine, first: date, last: date) -> Parts:
    """What there is of all days from `first` to `last`, both included."""
    days = [first + timedelta(n) for n in range((last - first).days + 1)]
    parts: Parts = {day: defaultdict(Figures) for day in days}
    begin, end = (datetime.combine(day, time(), UTC) for day in (first, last + timedelta(1)))
    with reading(db) as connection:
        for counted in (_conversations, _messages, _replies, _feedback, _suggestions):
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


def _of(parts: Parts, day: str, model: str | None = None) -> Figures:
    return parts[date.fromisoformat(day)][model]


def _conversations(connection: Connection, begin: datetime, end: datetime, parts: Parts) -> None:
    # An operator can only have said something where the owner has changed: the others need no look.
    person = select(Message.id).where(
        Message.conversation_id == Conversation.id, Message.operator_id.is_not(None)
    )
    alone = and_(Conversation.waiting_since.is_(None), or_(Conversation.owner_version == 0, ~person.exists()))
    day = _day(connection, Conversation.created_at)
    query = (
        select(day, Conversation.model, func.count(), _how_many(alone))
        .where(Conversation.created_at >= begin, Conversation.created_at < end, Conversation.last_seq > 0)
        .group_by(day, Conversation.model)
    )
    for at, model, conversations, handled_alone in connection.execute(query):
        _of(parts, at, model).add(conversations=conversations, handled_alone=handled_alone)


def _messages(connection: Connection, begin: datetime, end: datetime, parts: Parts) -> None:
    day = _day(connection, Message.created_at)
    within = and_(Message.created_at >= begin, Message.created_at < end)
    said = select(day, func.count(), _how_many(Message.operator_id.is_not(None)))
    for at, messages, by_operators in connection.execute(said.where(within).group_by(day)):
        _of(parts, at).add(messages=messages, operator_messages=by_operators)
    covered = (
        select(day, func.count(Message.id.distinct()))
        .join(Suggestion, Suggestion.message_id == Message.id)
        .where(within, Suggestion.outcome.in_(("accepted", "edited")))
        .group_by(day)
    )
    for at, messages in connection.execute(covered):
        _of(parts, at).add(covered=messages)


def _replies(connection: Connection, begin: datetime, end: datetime, parts: Parts) -> None:
    made = (
        select(
            _day(connection, Message.created_at).label("day"),
            Generation.model.label("model"),
            case(
                (or_(Generation.withheld.is_not(None), Generation.finish_reason == "abstained"), 1), else_=0
            ).label("abstained"),
            _rounded(Generation.first_token_ms).label("first"),
            _rounded(Generation.total_ms).label("whole"),
        )
        .select_from(Message)
        .join(Generation, Generation.message_id == Message.id)
        .where(Message.created_at >= begin, Message.created_at < end)
        .cte("made")
        .prefix_with("MATERIALIZED")  # the join is made once for both
    )
    times = [
        select(
            made.c.day,
            made.c.model,
            literal(kind).label("kind"),
            column.label("time"),
            func.count().label("count"),
            func.sum(made.c.abstained).label("abstained"),
        ).group_by(made.c.day, made.c.model, column)
        for kind, column in (("first_token_ms", made.c.first), ("total_ms", made.c.whole))
    ]
    for row in connection.execute(union_all(*times)):
        figures = _of(parts, row.day, row.model)
        if row.time is not None:
            getattr(figures, row.kind)[row.time] += row._mapping["count"]
        if row.kind == "total_ms":  # every reply has one
            figures.add(replies=row._mapping["count"], abstained=row.abstained)


def _feedback(connection: Connection, begin: datetime, end: datetime, parts: Parts) -> None:
    day = _day(connection, Message.created_at)
    query = (
        select(
            day, Generation.model, _how_many(Feedback.rating == "up"), _how_many(Feedback.rating == "down")
        )
        .select_from(Feedback)
        .join(Message, Message.id == Feedback.message_id)
        .outerjoin(Generation, Generation.message_id == Feedback.message_id)
        .where(Message.created_at >= begin, Message.created_at < end)
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


def _day(connection: Connection, moment: InstrumentedAttribute[datetime]) -> ColumnElement[str]:
    """The day of a moment in UTC, as `2026-11-21`."""
    if connection.dialect.name == "sqlite":  # where a moment is kept as text, in UTC
        return func.substr(moment, 1, 10, type_=String)
    return func.to_char(func.timezone("UTC", moment), "YYYY-MM-DD", type_=String)


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
