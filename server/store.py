"""Everything the server knows of visitors and conversations, as plain calls.

Each call is one transaction, and when it has returned, what it wrote is on the disk. All of it may be
called from any thread; it waits for the disk, so never call it on an event loop. docs/database.md lists
what is written when.

Any call raises StoreUnavailable. Ids that cannot exist (NUL, half a surrogate pair) are simply not found.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, Engine, Row, Select, delete, func, insert, or_, select, update
from sqlalchemy import text as sql
from sqlalchemy.exc import IntegrityError

from server.database import WAIT_SECONDS, reading, writing
from server.records import (
    Alternative,
    ConversationSummary,
    FinishReason,
    MessageRecord,
    NewReply,
    Rating,
    StoredTurn,
    VisitorGrant,
    check_json,
    check_key,
    check_text,
    storable,
)
from server.store_errors import (
    ClientIdConflict,
    StoreError,
    StoreUnavailable,
    StoreValueError,
    UnknownConversation,
    UnknownVisitor,
)
from server.tables import Conversation, Feedback, Generation, Message, Visitor

if TYPE_CHECKING:
    from chatbot.transcripts import Role

__all__ = [
    "Alternative",
    "ClientIdConflict",
    "ConversationSummary",
    "FinishReason",
    "MessageRecord",
    "NewReply",
    "Rating",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "StoreValueError",
    "StoredTurn",
    "UnknownConversation",
    "UnknownVisitor",
    "VisitorGrant",
]

TITLE_LENGTH = 80
MAX_INTEGER = 2**31 - 1
"""Largest `seq` and largest row count that both databases take."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Store:
    def __init__(self, engine: Engine, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._engine = engine
        self._clock = clock
        # SQLite lets one transaction write at a time and has the others ask again and again, with growing
        # pauses; threads of one process can simply queue.
        self._turnstile = threading.Lock() if engine.dialect.name == "sqlite" else None

    # --- visitors ---------------------------------------------------------------------------------

    def new_visitor(self) -> VisitorGrant:
        """A visitor with a token of 256 bits."""
        grant = VisitorGrant(visitor_id=_new_id(), token=secrets.token_urlsafe(32))
        with self._writing() as connection:
            connection.execute(
                insert(Visitor).values(
                    id=grant.visitor_id, token_hash=_hash(grant.token), created_at=self._clock()
                )
            )
        return grant

    def visitor_of(self, token: str) -> str | None:
        """The visitor's id, or None for a token that was never given out."""
        if not storable(token):
            return None
        with reading(self._engine) as connection:
            return connection.scalar(select(Visitor.id).where(Visitor.token_hash == _hash(token)))

    # --- conversations ----------------------------------------------------------------------------

    def open_conversation(self, visitor_id: str) -> str:
        """The id of a new conversation, which nobody can guess.

        Raises UnknownVisitor.
        """
        conversation_id = _new_id()
        now = self._clock()
        if not storable(visitor_id):
            raise UnknownVisitor(visitor_id)
        try:
            with self._writing() as connection:
                connection.execute(
                    insert(Conversation).values(
                        id=conversation_id, visitor_id=visitor_id, last_seq=0, created_at=now, updated_at=now
                    )
                )
        except IntegrityError:  # a fresh id cannot clash: it is the foreign key
            raise UnknownVisitor(visitor_id) from None
        return conversation_id

    def owns(self, visitor_id: str, conversation_id: str) -> bool:
        """Whether the conversation exists and is this visitor's; nothing tells the two apart."""
        if not (storable(visitor_id) and storable(conversation_id)):
            return False
        query = select(Conversation.id).where(
            Conversation.id == conversation_id, Conversation.visitor_id == visitor_id
        )
        with reading(self._engine) as connection:
            return connection.scalar(query) is not None

    def conversations(self, visitor_id: str, limit: int = 50) -> list[ConversationSummary]:
        """The visitor's conversations in which something was said, the one that was last active first."""
        if not storable(visitor_id):
            return []
        opening = (
            select(func.substr(Message.text, 1, 4 * TITLE_LENGTH))
            .where(Message.conversation_id == Conversation.id, Message.role == "user")
            .order_by(Message.seq)
            .limit(1)
            .scalar_subquery()
        )
        query = (
            select(
                Conversation.id, Conversation.created_at, Conversation.updated_at, opening.label("opening")
            )
            .where(Conversation.visitor_id == visitor_id, Conversation.last_seq > 0)
            .order_by(Conversation.updated_at.desc(), Conversation.id.desc())
            .limit(_clip(limit))
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [
            ConversationSummary(row.id, _title(row.opening), row.created_at, row.updated_at) for row in rows
        ]

    # --- what is said -----------------------------------------------------------------------------

    def add_user_turn(
        self, conversation_id: str, client_id: str, text: str, options: Mapping[str, Any]
    ) -> StoredTurn:
        """Keep what the user said, once: the same client id with the same text gives the stored turn again.

        Raises ClientIdConflict (same client id, other text), UnknownConversation, StoreValueError.
        """
        check_key("client_id", client_id)
        check_text("text", text)
        check_json("options", options)
        with self._writing() as connection:
            seq = 1 + _lock(connection, conversation_id)
            repeated = connection.execute(
                select(Message.id, Message.seq, Message.created_at, Message.text).where(
                    Message.conversation_id == conversation_id, Message.client_id == client_id
                )
            ).one_or_none()
            if repeated is not None:
                if repeated.text != text:
                    raise ClientIdConflict(client_id)
                return StoredTurn(repeated.id, repeated.seq, repeated.created_at, created=False)
            turn = StoredTurn(_new_id(), seq, self._clock(), created=True)
            _append(
                connection,
                conversation_id,
                turn,
                role="user",
                text=text,
                client_id=client_id,
                options=dict(options),
            )
            return turn

    def add_reply(self, conversation_id: str, reply: NewReply) -> StoredTurn:
        """Keep a finished reply and how it was made, once: the same reply id gives the stored turn again.

        If the user turn has a current reply already, whether or not `replaces` says so, that one becomes
        superseded: the latest reply of a user turn is the one that counts.

        Raises UnknownConversation, StoreValueError (also when `answers` is no user turn of this
        conversation, or `replaces` no reply to it).
        """
        reply.check()
        with self._writing() as connection:
            seq = 1 + _lock(connection, conversation_id)
            repeated = connection.execute(
                select(Message.id, Message.seq, Message.created_at, Message.replaces).where(
                    Message.conversation_id == conversation_id, Message.reply_id == reply.reply_id
                )
            ).one_or_none()
            if repeated is not None:
                return StoredTurn(
                    repeated.id, repeated.seq, repeated.created_at, created=False, replaces=repeated.replaces
                )
            _check_place(connection, conversation_id, reply)
            replaced = _supersede(connection, reply.answers)
            turn = StoredTurn(_new_id(), seq, self._clock(), created=True, replaces=replaced)
            _append(
                connection,
                conversation_id,
                turn,
                role="agent",
                text=reply.text,
                reply_id=reply.reply_id,
                answers=reply.answers,
            )
            _record_generation(connection, turn.message_id, reply)
            return turn

    def rate(self, conversation_id: str, message_id: str, rating: Rating | None, comment: str | None) -> bool:
        """Keep what the visitor thinks of a reply, in place of what they thought before.

        None and None takes it back. False, and nothing is written, unless the message is a reply of this
        conversation.

        Raises StoreValueError.
        """
        if rating not in ("up", "down", None):
            raise StoreValueError("rating", "is neither up nor down")
        if comment is not None:
            check_text("comment", comment)
        if not (storable(conversation_id) and storable(message_id)):
            return False
        reply = select(Message.id).where(
            Message.id == message_id, Message.conversation_id == conversation_id, Message.role == "agent"
        )
        with self._writing() as connection:
            # The lock makes the visitor's last word the one that stays when two tabs speak at once.
            if connection.scalar(reply.with_for_update()) is None:
                return False
            connection.execute(delete(Feedback).where(Feedback.message_id == message_id))
            if rating is not None or comment is not None:
                connection.execute(
                    insert(Feedback).values(
                        message_id=message_id, rating=rating, comment=comment, updated_at=self._clock()
                    )
                )
            return True

    # --- what was said ----------------------------------------------------------------------------

    def messages(self, conversation_id: str, after_seq: int = 0, limit: int = 1000) -> list[MessageRecord]:
        """All messages with a greater `seq`, superseded ones too, in order."""
        if not storable(conversation_id):
            return []
        query = (
            _records()
            .where(Message.conversation_id == conversation_id, Message.seq > _clip(after_seq))
            .order_by(Message.seq)
            .limit(_clip(limit))
        )
        with reading(self._engine) as connection:
            return [_record(row) for row in connection.execute(query)]

    def history(self, conversation_id: str, answering: str | None = None) -> list[tuple[Role, str]]:
        """What the model reads: every user turn, followed by its current reply if that has a word in it.

        With `answering`, the message id of a user turn, everything up to that turn and no reply to it.

        Raises StoreValueError when `answering` is no user turn of this conversation.
        """
        if not storable(conversation_id):
            return []
        query = (
            select(Message.id, Message.seq, Message.role, Message.text, Message.answers)
            .where(Message.conversation_id == conversation_id, ~Message.superseded)
            .order_by(Message.seq)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        seq_of = {row.id: row.seq for row in rows if row.role == "user"}
        # A reply belongs behind its own turn, also when it was made again after others.
        rows = sorted(rows, key=lambda row: (seq_of.get(row.answers or "", row.seq), row.seq))
        if answering is not None:
            if answering not in seq_of:
                raise StoreValueError("answering", "is no user turn of this conversation")
            rows = rows[: 1 + [row.id for row in rows].index(answering)]
        return [(cast("Role", row.role), row.text) for row in rows if row.role == "user" or row.text.strip()]

    def last_seq(self, conversation_id: str) -> int:
        """The number of the newest message; 0 when there is none."""
        if not storable(conversation_id):
            return 0
        with reading(self._engine) as connection:
            return (
                connection.scalar(select(Conversation.last_seq).where(Conversation.id == conversation_id))
                or 0
            )

    def reply_record(self, conversation_id: str, message_or_reply_id: str) -> MessageRecord | None:
        """The reply of this conversation that has either id."""
        if not (storable(conversation_id) and storable(message_or_reply_id)):
            return None
        query = _records().where(
            Message.conversation_id == conversation_id,
            Message.role == "agent",
            or_(Message.id == message_or_reply_id, Message.reply_id == message_or_reply_id),
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _record(row)

    def has_said(self, conversation_id: str, client_id: str) -> bool:
        """Whether a user turn of this conversation was sent under this client id."""
        if not (storable(conversation_id) and storable(client_id)):
            return False
        query = select(Message.id).where(
            Message.conversation_id == conversation_id, Message.client_id == client_id
        )
        with reading(self._engine) as connection:
            return connection.scalar(query) is not None

    def answer(self, conversation_id: str, message_id: str) -> MessageRecord | None:
        """The current reply to a user turn of this conversation."""
        if not (storable(conversation_id) and storable(message_id)):
            return None
        query = _records().where(
            Message.conversation_id == conversation_id, Message.answers == message_id, ~Message.superseded
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _record(row)

    def unanswered(self, conversation_id: str) -> MessageRecord | None:
        """The last user turn, if nothing answers it yet (the server was stopped before it could)."""
        if not storable(conversation_id):
            return None
        last = (
            _records()
            .where(Message.conversation_id == conversation_id, Message.role == "user")
            .order_by(Message.seq.desc())
            .limit(1)
        )
        with reading(self._engine) as connection:
            row = connection.execute(last).one_or_none()
            if row is None:
                return None
            answered = connection.scalar(select(Message.id).where(Message.answers == row.id).limit(1))
            return None if answered is not None else _record(row)

    # --- health -----------------------------------------------------------------------------------

    def ping(self) -> None:
        """Write something of no consequence: the only question to which a full or read-only disk answers no.

        It costs what keeping a message costs.
        """
        with self._writing() as connection:
            connection.execute(sql("UPDATE alembic_version SET version_num = version_num"))

    # --- inside -----------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self._turnstile is None:
            with writing(self._engine) as connection:
                yield connection
            return
        if not self._turnstile.acquire(timeout=WAIT_SECONDS):
            raise StoreUnavailable("too many writers are waiting", busy=True)
        try:
            with writing(self._engine) as connection:
                yield connection
        finally:
            self._turnstile.release()


def _new_id() -> str:
    return uuid.uuid4().hex


def _hash(token: str) -> str:
    # A token has 256 random bits: nothing can be guessed, so no salt and no slow hash is needed.
    return hashlib.sha256(token.encode()).hexdigest()


def _clip(number: int) -> int:
    return max(0, min(number, MAX_INTEGER))


def _title(opening: str) -> str:
    line = " ".join(opening.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"


def _lock(connection: Connection, conversation_id: str) -> int:
    """Nobody else adds to this conversation until the transaction ends; its last seq.

    Raises UnknownConversation.
    """
    last_seq = None
    if storable(conversation_id):
        last_seq = connection.scalar(
            select(Conversation.last_seq).where(Conversation.id == conversation_id).with_for_update()
        )
    if last_seq is None:
        raise UnknownConversation(conversation_id)
    return last_seq


def _append(connection: Connection, conversation_id: str, turn: StoredTurn, **values: Any) -> None:
    connection.execute(
        insert(Message).values(
            id=turn.message_id,
            conversation_id=conversation_id,
            seq=turn.seq,
            created_at=turn.created_at,
            replaces=turn.replaces,
            superseded=False,
            **values,
        )
    )
    connection.execute(
        update(Conversation)
        .where(Conversation.id == conversation_id)
        .values(last_seq=turn.seq, updated_at=turn.created_at)
    )


def _check_place(connection: Connection, conversation_id: str, reply: NewReply) -> None:
    """Raises StoreValueError unless the reply belongs to a user turn of this conversation."""
    ids = [key for key in (reply.answers, reply.replaces) if key is not None and storable(key)]
    found = {
        row.id: row
        for row in connection.execute(
            select(Message.id, Message.role, Message.answers).where(
                Message.id.in_(ids), Message.conversation_id == conversation_id
            )
        )
    }
    if reply.answers not in found or found[reply.answers].role != "user":
        raise StoreValueError("answers", "is no user turn of this conversation")
    if reply.replaces is not None and (
        reply.replaces not in found or found[reply.replaces].answers != reply.answers
    ):
        raise StoreValueError("replaces", "is no reply to the same user turn")


def _supersede(connection: Connection, answered: str) -> str | None:
    """The current reply to a user turn is no longer; its message id, None if there is none."""
    current = connection.scalar(select(Message.id).where(Message.answers == answered, ~Message.superseded))
    if current is not None:
        connection.execute(update(Message).where(Message.id == current).values(superseded=True))
    return current


def _record_generation(connection: Connection, message_id: str, reply: NewReply) -> None:
    connection.execute(
        insert(Generation).values(
            message_id=message_id,
            finish_reason=reply.finish_reason,
            model=reply.model,
            options=dict(reply.options),
            seed=reply.seed,
            token_ids=list(reply.token_ids),
            logprobs=list(reply.logprobs),
            alternatives=[dict(alternative) for alternative in reply.alternatives],
            queued_ms=reply.queued_ms,
            first_token_ms=reply.first_token_ms,
            total_ms=reply.total_ms,
        )
    )


def _records() -> Select[Any]:
    return (
        select(
            Message.seq,
            Message.id,
            Message.role,
            Message.text,
            Message.created_at,
            Message.client_id,
            Message.options,
            Message.reply_id,
            Message.answers,
            Message.replaces,
            Message.superseded,
            Generation.finish_reason,
            Generation.model,
            Generation.seed,
            Generation.alternatives,
            Feedback.rating,
            Feedback.comment,
        )
        .outerjoin(Generation, Generation.message_id == Message.id)
        .outerjoin(Feedback, Feedback.message_id == Message.id)
    )


def _record(row: Row[Any]) -> MessageRecord:
    values = dict(row._mapping)
    alternatives = values.pop("alternatives")
    if alternatives is not None:
        alternatives = tuple(Alternative(a["text"], a["score"], a["logprob"]) for a in alternatives)
    return MessageRecord(message_id=values.pop("id"), alternatives=alternatives, **values)
