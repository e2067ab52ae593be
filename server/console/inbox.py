"""Pages of the inbox: the newest conversations that the filters let through.

The order is that of (updated_at, id), and a page begins after the last conversation of the one before, so a
page deep down costs no more than the first. What is said meanwhile moves a conversation to the top: it may be
seen twice, but none is passed over that has kept its place.

Where filters are answered by other tables (words, verdicts, topics), there are two ways to a page. If one of
them holds for few conversations, these are looked at, all of them. Otherwise the newest conversations are
gone through, some hundred at a time, until the page is full. What is common is found quickly by the second
way, what is rare by the first. Filters that are common each and hardly ever meet are left to the database
after `WALKED` conversations.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, func, literal, select, tuple_

from server.console import search
from server.console.filters import (
    DISLIKED,
    NOT_CLOSED,
    NOT_REVIEWED,
    SPOKEN,
    TAKEN,
    UNSURE,
    WAITING,
    Filters,
    Needle,
    conditions,
    needles,
    plain_conditions,
)
from server.console.masking import Masker, masker
from server.console.summary import PREVIEW, Summary, summaries
from server.database import reading
from server.tables import Conversation, UtcDateTime

FIRST_STEP: Final = 128
LAST_STEP: Final = 1024
"""Conversations that are gone through at a time; the steps double."""
WALKED: Final = 4000

Head = Row[str, datetime]
"""`id` and `updated_at`."""


class BadCursor(ValueError):
    """A cursor that is none of ours."""


@dataclass(frozen=True, slots=True)
class Place:
    """After which conversation a page begins."""

    updated_at: datetime
    id: str

    def cursor(self) -> str:
        microseconds = (self.updated_at - _EPOCH) // timedelta(microseconds=1)
        return base64.urlsafe_b64encode(f"{microseconds}.{self.id}".encode()).decode().rstrip("=")

    @classmethod
    def of(cls, cursor: str) -> Place:
        """Raises BadCursor."""
        try:
            written = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            match = re.fullmatch(r"(-?[0-9]{1,18})\.([0-9a-f]{32})", written.decode("ascii"))
            if match is None:
                raise BadCursor
            return cls(_EPOCH + timedelta(microseconds=int(match[1])), match[2])
        except (binascii.Error, ValueError, OverflowError):
            raise BadCursor("it is none of ours") from None


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Inbox(BaseModel):
    """Conversations, the one with the newest message first. next: the cursor of the page after it."""

    conversations: list[Summary]
    next: str | None


class Counts(BaseModel):
    """Conversations that are open, wait for a person, were taken over (by whoever asks: mine), and, of all,
    those that nobody has reviewed, that the visitor dislikes, and of low confidence.
    """

    open: int
    waiting: int
    taken: int
    mine: int
    unreviewed: int
    thumbs_down: int
    low_confidence: int


def page(
    db: Engine,
    filters: Filters,
    operator: str | None = None,
    *,
    after: Place | None = None,
    limit: int = 50,
    masked: bool = True,
) -> Inbox:
    """A page of at most `limit` conversations. operator: the id of whoever asks. masked: hide personal data.

    Raises StoreUnavailable.
    """
    words = filters.words
    if words is not None and words.is_nowhere:
        return Inbox(conversations=[], next=None)
    with reading(db) as connection:
        looked = search.search(connection, words) if words is not None else None
        heads = _Asked(connection, filters, operator, looked).page(after, limit)
        shown = [head.id for head in heads[:limit]]
        texts = looked.texts(shown) if looked is not None else {}
        mask = (masker(connection) if masked else Masker(kinds=())).mask
        found = summaries(connection, shown, mask)
    if words is not None:
        for each in found:
            each.match = search.excerpt(mask(texts[each.id]), words, PREVIEW) if each.id in texts else None
    more = len(heads) > limit
    return Inbox(
        conversations=found,
        next=Place(heads[limit - 1].updated_at, heads[limit - 1].id).cursor() if more else None,
    )


class _Asked:
    """What was asked for, within one transaction."""

    def __init__(
        self, connection: Connection, filters: Filters, operator: str | None, looked: search.Search | None
    ) -> None:
        self._connection = connection
        self._plain = plain_conditions(filters, operator)
        self._all: Callable[[], list[ColumnElement[bool]]] = lambda: conditions(filters, operator)
        self._looked = looked
        self._needles: list[Needle] = needles(connection, filters)
        if looked is not None:
            self._needles.insert(0, looked)

    def page(self, after: Place | None, limit: int) -> Sequence[Head]:
        """One more than the limit, if there is one more."""
        if not self._needles:
            return self._newest(self._plain, after, limit + 1)
        for needle in reversed(self._needles):  # the search last: it takes longest to say
            few = needle.few()
            if few is not None:
                return self._of_few(sorted(few), needle, after, limit + 1)
        return self._walk(after, limit + 1)

    def _of_few(
        self, conversations: Sequence[str], found_by: Needle, after: Place | None, count: int
    ) -> list[Head]:
        query = _heads(self._plain, after).where(
            search.one_of(self._connection, Conversation.id, conversations)
        )
        # Sorted here: a database that is told to sort may prefer to read everything in that order.
        rows = self._connection.execute(query).all() if conversations else []
        rows = sorted(rows, key=lambda row: (row.updated_at, row.id), reverse=True)
        others = [needle for needle in self._needles if needle is not found_by]
        if not others:
            return rows[:count]
        found: list[Head] = []
        for begin in range(0, len(rows), FIRST_STEP):
            found += self._passing(others, rows[begin : begin + FIRST_STEP])
            if len(found) >= count:
                break
        return found[:count]

    def _walk(self, after: Place | None, count: int) -> list[Head]:
        found: list[Head] = []
        walked, step = 0, FIRST_STEP
        while walked < WALKED:
            heads = self._newest(self._plain, after, step)
            found += self._passing(self._needles, heads)
            if len(found) >= count or len(heads) < step:
                return found[:count]
            after = Place(heads[-1].updated_at, heads[-1].id)
            walked, step = walked + step, min(2 * step, LAST_STEP)
        rest = list(self._newest(self._all(), after, count - len(found)))
        if self._looked is not None and rest:
            self._looked.among([head.id for head in rest])
        return found + rest

    @staticmethod
    def _passing(needles: Sequence[Needle], heads: Sequence[Head]) -> list[Head]:
        passing = {head.id for head in heads}
        for needle in needles:
            passing = needle.among(sorted(passing)) if passing else passing
        return [head for head in heads if head.id in passing]

    def _newest(
        self, where: Sequence[ColumnElement[bool]], after: Place | None, count: int
    ) -> Sequence[Head]:
        newest = _heads(where, after).order_by(Conversation.updated_at.desc(), Conversation.id.desc())
        return self._connection.execute(newest.limit(count)).all()


def _heads(where: Sequence[ColumnElement[bool]], after: Place | None) -> Select[str, datetime]:
    query = select(Conversation.id, Conversation.updated_at).where(*where)
    if after is None:
        return query
    place = tuple_(literal(after.updated_at, UtcDateTime()), literal(after.id))
    return query.where(tuple_(Conversation.updated_at, Conversation.id) < place)


def counts(db: Engine, operator: str) -> Counts:
    """How many there are of each kind. operator: the id of whoever asks. Raises StoreUnavailable."""
    every = select(func.count()).select_from(Conversation)
    mine = Conversation.operator_id == operator
    both = select(
        func.count().filter(NOT_CLOSED).label("open"), func.count().filter(NOT_REVIEWED).label("unreviewed")
    )
    with reading(db) as connection:
        of_all = connection.execute(both.select_from(Conversation).where(SPOKEN)).one()

        def count(*where: ColumnElement[bool]) -> int:
            return connection.scalar(every.where(SPOKEN, *where)) or 0

        return Counts(
            open=of_all.open,
            waiting=count(WAITING, NOT_CLOSED),
            taken=count(TAKEN, NOT_CLOSED),
            mine=count(TAKEN, NOT_CLOSED, mine),
            unreviewed=of_all.unreviewed,
            thumbs_down=count(DISLIKED),
            low_confidence=count(Conversation.confidence < UNSURE),
        )
