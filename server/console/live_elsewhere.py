"""What happens on other servers of the database, for the streams of this one.

    the database ──once a second, while a stream is open──▶ Elsewhere.look ──▶ Live.changed ──▶ streams

A look reads what bears a time of the last `WINDOW`: transactions end in another order than they began in, and
clocks differ, so it reads a little more than what came since the last look. It costs three short searches of
indexes, however many streams there are.

What this server has done itself is told when it is done, a moment after its commit. So a look tells only what
the look before has read too, and what nobody here has told meanwhile. Messages are known by their numbers; of
anything else, a deed that was told here later than the time it bears is taken to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, Row, Select, and_, literal_column, select

from server.console.live import WAITING, Live
from server.database import reading
from server.offload import Offload
from server.presence import Change
from server.tables import AuditEntry, Conversation, Feedback, Message

WINDOW: Final = timedelta(seconds=15)
"""A commit is given up after ten seconds; the rest is for clocks that differ."""
MOST: Final = WAITING
"""Changes of a kind that a look reads, the newest: a reader who is behind by as many loses the stream."""
DEEDS: Final[dict[str, Change]] = {
    "conversation.take": "owner",
    "conversation.hand_back": "owner",
    "conversation.close": "closed",
    "conversation.reopen": "closed",
    "review.done": "reviewed",
}
"""Actions of the audit log, and what they change of a conversation."""


class Deed(NamedTuple):
    """A change that is known by its time."""

    conversation: str
    change: Change
    at: datetime


class Said(NamedTuple):
    """The newest message of a conversation. reply: whether the bot said it."""

    seq: int
    reply: bool


class News(NamedTuple):
    """What a look has read, of messages by conversation."""

    said: dict[str, Said]
    deeds: list[Deed]


class Elsewhere:
    """Lives on the event loop; reads on `offload`'s threads. now: a moment in UTC."""

    def __init__(
        self,
        db: Engine,
        live: Live,
        offload: Offload,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._db, self._live, self._offload, self._now = db, live, offload, now
        self._seqs: dict[str, tuple[int, datetime]] = {}  # of the newest message that was told, and when
        self._told: dict[tuple[str, Change], datetime] = {}
        self._read = News({}, [])
        live.listen(self._hear)

    async def look(self) -> None:
        """Tell the streams what they have not been told. Raises StoreUnavailable."""
        if not self._live.watched:
            self._forget()
            return
        since = self._now() - WINDOW
        before, self._read = self._read, await self._offload(read, self._db, since)
        for deed in set(self._read.deeds).intersection(before.deeds):
            self._tell_deed(deed)
        for conversation, said in self._read.said.items():
            if conversation in before.said and before.said[conversation].seq > self._seq(conversation):
                self._live.changed(conversation, "replied" if said.reply else "said", said.seq)
        self._seqs = {
            each: (seq, at)
            for each, (seq, at) in self._seqs.items()
            if at >= since or each in self._read.said
        }
        self._told = {key: at for key, at in self._told.items() if at >= since}

    def _tell_deed(self, deed: Deed) -> None:
        key = deed.conversation, deed.change
        if key not in self._told or self._told[key] < deed.at:
            self._live.changed(deed.conversation, deed.change)
            # The other server's clock may be ahead; and the last stream may have ended during the look.
            self._told[key] = max(self._told.get(key, deed.at), deed.at)

    def _hear(self, conversation: str, change: Change, seq: int | None) -> None:
        """Something was told here."""
        if self._live.watched:
            now = self._told[conversation, change] = self._now()
            if seq is not None:
                self._seqs[conversation] = max(seq, self._seq(conversation)), now

    def _seq(self, conversation: str) -> int:
        return self._seqs[conversation][0] if conversation in self._seqs else 0

    def _forget(self) -> None:
        self._read = News({}, [])
        self._seqs.clear()
        self._told.clear()


def read(db: Engine, since: datetime) -> News:
    """What bears a time at or after `since`. Raises StoreUnavailable."""
    with reading(db) as connection:
        talks = _newest(connection, _TALKS.where(Conversation.updated_at >= since))
        done = _newest(connection, _DONE.where(AuditEntry.at >= since))
        ratings = _newest(connection, _RATINGS.where(Feedback.updated_at >= since))
    said = {row.id: Said(row.last_seq, row.reply_id is not None) for row in talks}
    waits = [Deed(row.id, "waiting", row.waiting_since) for row in talks if row.waiting_since is not None]
    deeds = [Deed(row.subject, DEEDS[row.action], row.at) for row in done]
    rated = [Deed(row.conversation_id, "rated", row.updated_at) for row in ratings]
    return News(said, [each for each in (*waits, *deeds, *rated) if each.at >= since])


def _newest(connection: Connection, query: Select[*tuple[Any, ...]]) -> Sequence[Row[*tuple[Any, ...]]]:
    """The newest `MOST`, the oldest of them first."""
    return connection.execute(query.limit(MOST)).all()[::-1]


_TALKS: Final = (
    select(Conversation.id, Conversation.last_seq, Conversation.waiting_since, Message.reply_id)
    .join(Message, and_(Message.conversation_id == Conversation.id, Message.seq == Conversation.last_seq))
    .where(literal_column("conversation.last_seq > 0"))  # as the index has it
    .order_by(Conversation.updated_at.desc())
)
_DONE: Final = (
    select(AuditEntry.subject, AuditEntry.action, AuditEntry.at)
    .where(AuditEntry.action.in_(DEEDS))
    .order_by(AuditEntry.at.desc())
)
_RATINGS: Final = (
    select(Message.conversation_id, Feedback.updated_at)
    .join(Message, Message.id == Feedback.message_id)
    .order_by(Feedback.updated_at.desc())
)
