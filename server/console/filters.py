"""Which conversations are meant: the filters of the inbox, of exports and of whatever else picks some.

`conditions` says it in SQL, for queries that read all of what they find. For a page of the inbox that is too
slow where a filter is answered by another table: there `Needle`s are looked for, see `server.console.inbox`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Protocol, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Select,
    String,
    literal,
    literal_column,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from server.console import search
from server.records import Rating, storable
from server.tables import Conversation, Feedback, Message, TopicMap, TopicPoint, Verdict

UNSURE: Final = 0.5
"""A conversation with a confidence below it counts as one of low confidence."""

Condition = ColumnElement[bool]

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?([Zz]|[+-]\d\d:\d\d)")


def _time(given: object) -> object:
    if isinstance(given, str) and not _TIME.fullmatch(given):
        raise ValueError("write a time as 2025-01-31T09:00:00Z")
    return given


def _in_utc(given: datetime) -> datetime:
    try:
        return given.astimezone(UTC)
    except OverflowError:
        raise ValueError("there is no such time in UTC") from None


def _keepable(given: str) -> str:
    if not storable(given):
        raise ValueError("it may hold neither NUL nor half of a surrogate pair")
    return given


Time = Annotated[datetime, BeforeValidator(_time), AfterValidator(_in_utc)]
Text = Annotated[str, AfterValidator(_keepable)]
State = Literal["all", "open", "waiting", "taken", "closed"]


class Filters(BaseModel):
    """All must hold. One that is not given holds for every conversation in which something was said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: State = Field(
        "open",
        description="open: not closed; waiting for a person; taken over by one; closed; or all",
    )
    mine: bool = Field(False, description="taken over by whoever asks")
    reviewed: bool | None = Field(None, description="whether a reviewer was done with it")
    rating: Rating | None = Field(None, description="what the visitor thinks of a reply in it")
    confidence_below: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="the lowest confidence of its replies"
    )
    model: Text | None = Field(None, description="fingerprint of the model that made its newest reply")
    label: Text | None = Field(None, description="a reason that a reviewer gave for a reply in it")
    verdict: Literal["good", "bad"] | None = Field(None, description="what a reviewer says of a reply in it")
    cluster: int | None = Field(
        None, ge=0, lt=2**31, description="number of its topic on the newest map of topics"
    )
    from_: Time | None = Field(None, alias="from", description="newest message at this time or after it")
    to: Time | None = Field(None, description="newest message before this time")
    q: Text | None = Field(
        None,
        description="words that are all in one of its messages; in quotation marks they follow each other, "
        "and the last one may be the beginning of a word",
    )

    @model_validator(mode="after")
    def _check_times(self) -> Filters:
        if self.from_ is not None and self.to is not None and self.from_ > self.to:
            raise ValueError("from is later than to")
        return self

    @property
    def words(self) -> search.Words | None:
        """What is searched for; None if nothing is."""
        return search.parse(self.q) if self.q and not self.q.isspace() else None


# Written out, not bound: a partial index is found by the words that it was made with.
SPOKEN: Final[Condition] = literal_column("conversation.last_seq > 0")
CLOSED: Final[Condition] = literal_column("conversation.closed_at IS NOT NULL")
NOT_CLOSED: Final[Condition] = literal_column("conversation.closed_at IS NULL")
WAITING: Final[Condition] = literal_column("conversation.waiting_since IS NOT NULL")
TAKEN: Final[Condition] = literal_column("conversation.owner = 'operator'")
REVIEWED: Final[Condition] = literal_column("conversation.reviewed_at IS NOT NULL")
NOT_REVIEWED: Final[Condition] = literal_column("conversation.reviewed_at IS NULL")
DISLIKED: Final[Condition] = literal_column("conversation.thumbs_down")

_STATES: Final[dict[State, tuple[Condition, ...]]] = {
    "all": (),
    "open": (NOT_CLOSED,),
    "waiting": (WAITING, NOT_CLOSED),
    "taken": (TAKEN, NOT_CLOSED),
    "closed": (CLOSED,),
}


def conditions(filters: Filters, operator: str | None = None) -> list[Condition]:
    """What must hold for `Conversation`. operator: the id of whoever asks, for `mine`."""
    found = plain_conditions(filters, operator)
    found += [Conversation.id.in_(rows.found) for rows in _rows(filters)]
    if filters.words is not None:
        found.append(search.containing(filters.words))
    return found


def plain_conditions(filters: Filters, operator: str | None = None) -> list[Condition]:
    """Those that the row of the conversation answers."""
    found = [SPOKEN, *_STATES[filters.state]]
    if filters.mine:
        found += [TAKEN, Conversation.operator_id == operator]
    if filters.reviewed is not None:
        found.append(REVIEWED if filters.reviewed else NOT_REVIEWED)
    if filters.rating == "down":
        found.append(DISLIKED)
    if filters.confidence_below is not None:
        found.append(Conversation.confidence < filters.confidence_below)
    if filters.model is not None:
        found.append(Conversation.model == filters.model)
    if filters.from_ is not None:
        found.append(Conversation.updated_at >= filters.from_)
    if filters.to is not None:
        found.append(Conversation.updated_at < filters.to)
    return found


# --- what other tables answer -----------------------------------------------------------------------------


FEW: Final = 4000
"""Rows that are all looked at, rather than the newest conversations until a page is full."""


class Needle(Protocol):
    """A filter that is looked for, within one transaction."""

    def few(self) -> set[str] | None:
        """All conversations for which it holds, if that is quickly told; else None."""

    def among(self, conversations: Sequence[str]) -> set[str]:
        """Those of the conversations for which it holds."""


@dataclass(frozen=True, slots=True)
class Rows:
    """counted: a row for each match. found: the conversation of each. tested: the same, to be narrowed down
    to some conversations by its only column. Told apart so that SQLite begins where there is least to read.
    """

    counted: Select[str]
    found: Select[str]
    tested: Select[str]


@dataclass(frozen=True, slots=True)
class RowsNeedle:
    connection: Connection
    rows: Rows

    def few(self) -> set[str] | None:
        if len(self.connection.execute(self.rows.counted.limit(FEW + 1)).all()) > FEW:
            return None
        return set(self.connection.scalars(self.rows.found))

    def among(self, conversations: Sequence[str]) -> set[str]:
        [column] = self.rows.tested.selected_columns
        query = self.rows.tested.where(search.one_of(self.connection, column, conversations))
        return set(self.connection.scalars(query.distinct()))


def needles(connection: Connection, filters: Filters) -> list[Needle]:
    """Without the search."""
    return [RowsNeedle(connection, rows) for rows in _rows(filters)]


def _rows(filters: Filters) -> list[Rows]:
    found = []
    judged: list[Condition] = []
    if filters.verdict is not None:
        judged.append(Verdict.verdict == filters.verdict)
    if filters.label is not None:
        judged.append(HasLabel(filters.label))
    if judged:
        found.append(_of_messages(Verdict.message_id, *judged))
    if filters.rating == "up":
        found.append(_of_messages(Feedback.message_id, Feedback.rating == "up"))
    if filters.cluster is not None:
        newest = select(TopicMap.id).order_by(TopicMap.created_at.desc(), TopicMap.id.desc()).limit(1)
        points = select(TopicPoint.conversation_id).where(
            TopicPoint.map_id == newest.scalar_subquery(), TopicPoint.cluster == filters.cluster
        )
        found.append(Rows(points, points, points))
    return found


def _of_messages(message: InstrumentedAttribute[str], *where: Condition) -> Rows:
    counted = select(message).where(*where)
    conversation = select(Message.conversation_id)
    return Rows(
        counted,
        found=conversation.where(Message.id.in_(counted)),
        tested=conversation.where(counted.where(message == Message.id).exists()),
    )


class HasLabel(FunctionElement[bool]):
    """Whether a verdict has the label."""

    type = Boolean()
    inherit_cache = True
    name = "has_label"

    def __init__(self, label: str) -> None:
        super().__init__(Verdict.labels, literal(label, String))

    def self_group(self, against: Any = None) -> Self:
        return self  # SQLite has no booleans, and SQLAlchemy would write `… = 1`


@compiles(HasLabel, "sqlite")
def _has_label_sqlite(element: HasLabel, compiler: SQLCompiler, **options: Any) -> str:
    labels, label = (compiler.process(each, **options) for each in element.clauses)
    return f"(EXISTS (SELECT 1 FROM json_each({labels}) AS label WHERE label.value = {label}))"


@compiles(HasLabel, "postgresql")
def _has_label_postgresql(element: HasLabel, compiler: SQLCompiler, **options: Any) -> str:
    labels, label = (compiler.process(each, **options) for each in element.clauses)
    return f"jsonb_exists(CAST({labels} AS jsonb), {label})"
