"""Which conversation a reviewer looks at next: the most useful first, and no two reviewers the same one.

Whoever is given a conversation has a claim on it for a while, renewed by each verdict and on request. One
that was escalated, disliked or answered without confidence comes before the others, the three in turn; every
fifth is drawn by lot from all, so that what nobody complains about is looked at too.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Engine,
    Select,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from server.console import audit
from server.console.accounts import Identity
from server.database import reading, writing
from server.records import storable
from server.tables import AuditEntry, Claim, Conversation, Verdict

CLAIMED: Final = timedelta(minutes=10)
"""For which a conversation is nobody else's."""
QUIET: Final = timedelta(minutes=1)
"""Without a word, before a conversation is given to a reviewer: nobody likes to be judged while talking."""
LOT: Final = 5
"""Every so manieth conversation is drawn by lot."""
HELD: Final = 20
"""Claims that one reviewer may hold; with one more the oldest ends."""
_TRIED: Final = 8
"""Conversations that are looked up at a time: others may claim the first ones meanwhile."""
_ROUNDS: Final = 5

Reason = Literal["low_confidence", "thumbs_down", "escalated", "random"]
_TURNS: Final[tuple[Reason, ...]] = ("thumbs_down", "escalated", "low_confidence")

# Written out, not bound: the partial indexes of the table are found by these words.
_UNREVIEWED: Final = "conversation.reviewed_at IS NULL AND conversation.model IS NOT NULL"
UNREVIEWED: Final[ColumnElement[bool]] = literal_column(_UNREVIEWED, Boolean)
# SQLite would rather look up every conversation that has a model.
_COUNT: Final = {
    "sqlite": f"SELECT count(*) FROM conversation INDEXED BY ix_conversation_unreviewed WHERE {_UNREVIEWED}",
    "postgresql": f"SELECT count(*) FROM conversation WHERE {_UNREVIEWED}",
}
_WORDS: Final[dict[Reason, str]] = {
    "thumbs_down": "conversation.thumbs_down",
    "escalated": "(conversation.waiting_since IS NOT NULL OR conversation.owner_version > 0)",
    "low_confidence": "conversation.confidence IS NOT NULL",
}


class Given(BaseModel):
    """What to look at next, why, and until when nobody else is given it."""

    conversation: str
    reason: Reason
    until: datetime


class DoneBy(BaseModel):
    """Conversations that an operator has finished."""

    operator: str
    today: int
    all: int


class Progress(BaseModel):
    """waiting: conversations with a reply of the bot that nobody has reviewed. Today begins at midnight UTC;
    one that is finished twice, because it went on in between, counts twice there.
    """

    waiting: int
    reviewed_today: int
    reviewed_all: int
    by: list[DoneBy]
    corrections: int


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What an operator may be given now: `given` before, none of `skip`."""

    operator: Identity
    given: int
    skip: Sequence[str]
    now: datetime


class Queue:
    """For any thread. It knows how many each operator was given since the server began, and by that whether
    the next is drawn by lot.
    """

    def __init__(self, db: Engine, clock: Callable[[], datetime] = utc_now) -> None:
        self._db = db
        self._clock = clock
        self._given: Counter[str] = Counter()
        self._lock = threading.Lock()

    def next(self, who: Identity, skip: Sequence[str] = ()) -> Given | None:
        """Claim a conversation; None when there is none left. skip: none of these.

        Raises StoreUnavailable.
        """
        with self._lock:
            given = self._given[who.id]
            self._given[who.id] += 1
        skip = [name for name in skip if storable(name)]
        for _ in range(_ROUNDS):
            wish = _Wish(who, given, skip, self._clock())
            with reading(self._db) as connection:
                reason, candidates = _candidates(connection, wish)
            if not candidates:
                break
            with writing(self._db) as connection:
                found = _claim(connection, wish, candidates, reason)
            if found is not None:
                return found
        return None


def order(operator: str, given: int) -> list[Reason]:
    """The reasons in the order in which they are tried for an operator who was given so many before."""
    number = zlib.crc32(operator.encode()) % LOT + given
    turn = number % len(_TURNS)
    kinds: list[Reason] = [*_TURNS[turn:], *_TURNS[:turn]]
    return ["random", *kinds] if number % LOT == 0 else [*kinds, "random"]


def renew(connection: Connection, conversation: str, operator: str) -> None:
    """The operator is still at it: a claim of theirs holds from now."""
    connection.execute(
        update(Claim)
        .where(Claim.conversation_id == conversation, Claim.operator_id == operator)
        .values(until=utc_now() + CLAIMED)
    )


def keep(db: Engine, who: Identity, conversation: str, now: datetime | None = None) -> bool:
    """Whether the operator has the conversation for a while from now: not when somebody else does, or when
    there is none. Raises StoreUnavailable.
    """
    if not storable(conversation):
        return False
    now = now or utc_now()
    with writing(db) as connection:
        query = select(Conversation.id).where(Conversation.id == conversation)
        if connection.scalar(query.with_for_update(key_share=True)) is None:
            return False
        return _hold(connection, who, conversation, now)


def done(db: Engine, who: Identity, conversation: str) -> bool:
    """The conversation is reviewed, and nobody's. False when there is none. Raises StoreUnavailable."""
    if not storable(conversation):
        return False
    query = select(Conversation.reviewed_at, Conversation.updated_at).where(Conversation.id == conversation)
    with writing(db) as connection:
        found = connection.execute(query.with_for_update(key_share=True)).one_or_none()
        if found is None:
            return False
        if found.reviewed_at is None or found.reviewed_at < found.updated_at:
            finished = update(Conversation).where(Conversation.id == conversation)
            connection.execute(finished.values(reviewed_at=utc_now()))
            audit.note(connection, who.name, "review.done", conversation)
        connection.execute(delete(Claim).where(Claim.conversation_id == conversation))
    return True


def release(db: Engine, who: Identity, conversation: str) -> bool:
    """The operator does not look at it after all. False when there is no such conversation.

    Raises StoreUnavailable.
    """
    if not storable(conversation):
        return False
    with writing(db) as connection:
        mine = delete(Claim).where(Claim.operator_id == who.id, Claim.conversation_id == conversation)
        if connection.scalar(mine.returning(Claim.conversation_id)) is not None:
            audit.note(connection, who.name, "review.release", conversation)
        query = select(Conversation.id).where(Conversation.id == conversation)
        return connection.scalar(query) is not None


def progress(db: Engine, now: datetime | None = None) -> Progress:
    """How much there is to do and who has done what. Raises StoreUnavailable."""
    midnight = (now or utc_now()).replace(hour=0, minute=0, second=0, microsecond=0)
    reviewed = select(func.count()).select_from(Conversation).where(Conversation.reviewed_at.is_not(None))
    by = (
        select(AuditEntry.operator, func.count().label("all"))
        .add_columns(func.count().filter(AuditEntry.at >= midnight).label("today"))
        .where(AuditEntry.action == "review.done")
        .group_by(AuditEntry.operator)
        .order_by(func.count().desc(), AuditEntry.operator)
    )
    corrections = select(func.count()).select_from(Verdict).where(Verdict.corrected.is_not(None))
    with reading(db) as connection:
        done_by = [
            DoneBy(operator=row.operator or "", today=row.today, all=row.all)
            for row in connection.execute(by)
        ]
        return Progress(
            waiting=connection.scalar(text(_COUNT[connection.dialect.name])) or 0,
            reviewed_today=sum(each.today for each in done_by),
            reviewed_all=connection.scalar(reviewed) or 0,
            by=done_by,
            corrections=connection.scalar(corrections) or 0,
        )


# --- choosing and claiming --------------------------------------------------------------------------------


def _candidates(connection: Connection, wish: _Wish) -> tuple[Reason, list[str]]:
    """Conversations that may be given now, best first, and why."""
    for reason in order(wish.operator.id, wish.given):
        for query in _queries(reason, wish):
            found = list(connection.scalars(query))
            if found:
                return reason, found
    return "random", []


def _queries(reason: Reason, wish: _Wish) -> list[Select[str]]:
    taken = (
        select(Claim.conversation_id)
        .where(Claim.conversation_id == Conversation.id, Claim.until > wish.now)
        .exists()
    )
    free = (
        select(Conversation.id)
        .where(UNREVIEWED, Conversation.updated_at < wish.now - QUIET, ~taken)
        .where(Conversation.id.not_in(wish.skip))
        .limit(_TRIED)
    )
    if reason == "random":
        # Ids are random: what comes after a random one is drawn by lot.
        lot = hashlib.sha256(f"{wish.operator.id} {wish.given}".encode()).hexdigest()[:32]
        by_id = free.order_by(Conversation.id)
        return [by_id.where(Conversation.id >= lot), by_id.where(Conversation.id < lot)]
    best: ColumnElement[Any] = Conversation.updated_at.desc()
    if reason == "low_confidence":
        best = Conversation.confidence.asc()
    return [free.where(literal_column(_WORDS[reason], Boolean)).order_by(best)]


def _claim(connection: Connection, wish: _Wish, candidates: Sequence[str], reason: Reason) -> Given | None:
    """Claim the first of the candidates that is still free."""
    # What somebody is writing to, or claiming, is passed over. On SQLite nobody else writes meanwhile.
    rows = connection.scalars(
        select(Conversation.id)
        .where(Conversation.id.in_(candidates), UNREVIEWED)
        .with_for_update(skip_locked=True, key_share=True)
    )
    free = set(rows)
    for conversation in candidates:
        if conversation not in free or not _hold(
            connection, wish.operator, conversation, wish.now, anew=True
        ):
            continue
        _drop_oldest(connection, wish.operator)
        audit.note(connection, wish.operator.name, "review.claim", conversation, reason=reason)
        return Given(conversation=conversation, reason=reason, until=wish.now + CLAIMED)
    return None


def _hold(
    connection: Connection, who: Identity, conversation: str, now: datetime, *, anew: bool = False
) -> bool:
    """Whether the operator has it from now; ``anew``: and had not before. It decides by what is committed,
    not by what was seen before.
    """
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"operator_id": who.id, "until": now + CLAIMED}
    statement: Any = insert(Claim).values(conversation_id=conversation, **values)
    free = Claim.until <= now
    statement = statement.on_conflict_do_update(
        index_elements=[Claim.conversation_id],
        set_=values,
        where=free if anew else or_(free, Claim.operator_id == who.id),
    )
    return connection.scalar(statement.returning(Claim.conversation_id)) is not None


def _drop_oldest(connection: Connection, who: Identity) -> None:
    kept = (
        select(Claim.conversation_id)
        .where(Claim.operator_id == who.id)
        .order_by(Claim.until.desc(), Claim.conversation_id)
        .limit(HELD)
    )
    mine = list(connection.scalars(kept))
    if len(mine) == HELD:
        connection.execute(
            delete(Claim).where(Claim.operator_id == who.id, Claim.conversation_id.not_in(mine))
        )
