"""Everything the server knows of visitors and conversations, as plain calls.

When a call has returned, what it wrote is on the disk. All of it may be called from any thread; it waits
for the disk, so never call it on an event loop, except for the `submit_…` calls of a store that has a
`Writer`: they give a future at once, and whatever is submitted while another commit is on its way shares
the next one. Without a writer each call is one transaction of its own. docs/database.md lists what is
written when.

Any call raises StoreUnavailable. Ids that cannot exist (NUL, half a surrogate pair) are simply not found.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Connection, Engine, Row, Select, and_, func, or_, select

from server.database import WAIT_SECONDS, reading, writing
from server.desk import (
    Along,
    NewClosing,
    NewOwner,
    NewRating,
    NewUserTurn,
    OperatorTurn,
    PersonWanted,
    ReplyTurn,
    Turn,
    new_id,
)
from server.records import (
    Alternative,
    ConversationSummary,
    FinishReason,
    MessageRecord,
    NewReply,
    Owner,
    Ownership,
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
    ConversationFull,
    OwnerChanged,
    StoreError,
    StoreUnavailable,
    StoreValueError,
    TakenOver,
    UnknownConversation,
    UnknownVisitor,
)
from server.tables import Conversation, Feedback, Generation, Message, Visitor
from server.writer import CarryOut, Writer
from server.writes import NewConversation, NewVisitor, Writes

if TYPE_CHECKING:
    from chatbot.transcripts import Role

__all__ = [
    "Alternative",
    "ClientIdConflict",
    "ConversationFull",
    "ConversationSummary",
    "FinishReason",
    "MessageRecord",
    "NewReply",
    "OwnerChanged",
    "Ownership",
    "Rating",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "StoreValueError",
    "StoredTurn",
    "TakenOver",
    "UnknownConversation",
    "UnknownVisitor",
    "VisitorGrant",
]

Request = TypeVar("Request")
Result = TypeVar("Result")

TITLE_LENGTH = 80
MANY = 500
"""Conversations that one query asks for."""
MAX_INTEGER = 2**31 - 1
"""Largest `seq` and largest row count that both databases take."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Store:
    """writer: what carries out everything that is written; it is the owner's to start and to close."""

    def __init__(
        self, engine: Engine, *, clock: Callable[[], datetime] = utc_now, writer: Writer | None = None
    ) -> None:
        self._engine = engine
        self._writes = Writes(clock)
        self._writer = writer
        # SQLite lets one transaction write at a time and has the others ask again and again, with growing
        # pauses; threads of one process can simply queue.
        self._turnstile = threading.Lock() if engine.dialect.name == "sqlite" else None

    # --- visitors ---------------------------------------------------------------------------------

    def new_visitor(self) -> VisitorGrant:
        """A visitor with a token of 256 bits."""
        grant, kept = self.submit_visitor()
        kept.result()
        return grant

    def submit_visitor(self) -> tuple[VisitorGrant, Future[None]]:
        """The visitor exists once the future is done."""
        grant = VisitorGrant(visitor_id=new_id(), token=secrets.token_urlsafe(32))
        return grant, self._submit(self._writes.visitors, NewVisitor(grant.visitor_id, _hash(grant.token)))

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
        conversation_id, kept = self.submit_conversation(visitor_id)
        kept.result()
        return conversation_id

    def submit_conversation(self, visitor_id: str) -> tuple[str, Future[None]]:
        """The conversation exists once the future is done. Raises, or has, what open_conversation raises."""
        if not storable(visitor_id):
            raise UnknownVisitor(visitor_id)
        conversation_id = new_id()
        request = NewConversation(conversation_id, visitor_id)
        return conversation_id, self._submit(self._writes.conversations, request)

    def owns(self, visitor_id: str, conversation_id: str) -> bool:
        """Whether the conversation exists and is this visitor's; nothing tells the two apart."""
        if not (storable(visitor_id) and storable(conversation_id)):
            return False
        query = select(Conversation.id).where(
            Conversation.id == conversation_id, Conversation.visitor_id == visitor_id
        )
        with reading(self._engine) as connection:
            return connection.scalar(query) is not None

    def conversations(self, visitor_id: str, limit: int = 50, offset: int = 0) -> list[ConversationSummary]:
        """The visitor's conversations in which something was said, the one that was last active first.

        ``offset`` of them are passed over.
        """
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
            .offset(_clip(offset))
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [
            ConversationSummary(row.id, _title(row.opening), row.created_at, row.updated_at) for row in rows
        ]

    # --- what is said -----------------------------------------------------------------------------

    def add_user_turn(
        self,
        conversation_id: str,
        client_id: str,
        text: str,
        options: Mapping[str, Any],
        most: int | None = None,
    ) -> StoredTurn:
        """Keep what the user said, once: the same client id with the same text gives the stored turn again.

        A new turn needs a place among the `most` messages of the conversation; None: there is always one.

        Raises ClientIdConflict (same client id, other text), ConversationFull, UnknownConversation,
        StoreValueError.
        """
        return self.submit_user_turn(conversation_id, client_id, text, options, most).result()

    def submit_user_turn(
        self,
        conversation_id: str,
        client_id: str,
        text: str,
        options: Mapping[str, Any],
        most: int | None = None,
    ) -> Future[StoredTurn]:
        """As add_user_turn, whose errors it raises at once or in the future."""
        check_key("client_id", client_id)
        check_text("text", text)
        check_json("options", options)
        return self._submit_turn(NewUserTurn(conversation_id, client_id, text, options, most))

    def add_reply(self, conversation_id: str, reply: NewReply) -> StoredTurn:
        """Keep a finished reply and how it was made, once: the same reply id gives the stored turn again.

        If the user turn has a current reply already, whether or not `replaces` says so, that one becomes
        superseded: the latest reply of a user turn is the one that counts.

        Raises TakenOver while an operator owns the conversation, UnknownConversation, StoreValueError (also
        when `answers` is no user turn of this conversation, or `replaces` no reply to it).
        """
        return self.submit_reply(conversation_id, reply).result()

    def submit_reply(self, conversation_id: str, reply: NewReply) -> Future[StoredTurn]:
        """As add_reply, whose errors it raises at once or in the future."""
        reply.check()
        return self._submit_turn(ReplyTurn(conversation_id, reply))

    def submit_operator_turn(
        self,
        conversation_id: str,
        client_id: str,
        text: str,
        operator_id: str,
        most: int | None = None,
        along: Along | None = None,
    ) -> Future[StoredTurn]:
        """Keep what an operator said, once, as add_user_turn does for what a user said.

        along: writes more in the same transaction, if the turn is new.

        Raises, or has, ClientIdConflict (also when somebody else said something under the id), OwnerChanged
        unless the conversation is this operator's, ConversationFull, UnknownConversation, StoreValueError.
        """
        check_key("client_id", client_id)
        check_text("text", text)
        return self._submit_turn(OperatorTurn(conversation_id, client_id, text, operator_id, most, along))

    def rate(self, conversation_id: str, message_id: str, rating: Rating | None, comment: str | None) -> bool:
        """Keep what the visitor thinks of a reply, in place of what they thought before.

        None and None takes it back. False, and nothing is written, unless the message is a reply of the bot
        in this conversation.

        Raises StoreValueError.
        """
        return self.submit_rating(conversation_id, message_id, rating, comment).result()

    def submit_rating(
        self, conversation_id: str, message_id: str, rating: Rating | None, comment: str | None
    ) -> Future[bool]:
        """As rate, whose errors it raises at once or in the future."""
        if rating not in ("up", "down", None):
            raise StoreValueError("rating", "is neither up nor down")
        if comment is not None:
            check_text("comment", comment)
        if not (storable(conversation_id) and storable(message_id)):
            return _done(False)
        request = NewRating(conversation_id, message_id, rating, comment)
        return cast("Future[bool]", self._submit(self._writes.moves, request))

    # --- who answers ------------------------------------------------------------------------------

    def submit_owner(
        self,
        conversation_id: str,
        version: int,
        by: str,
        operator_id: str | None,
        along: Along | None = None,
    ) -> Future[Ownership]:
        """Give the conversation to an operator, or back to the bot; by: the operator who wants that.

        version: of the ownership that is to be changed. along: writes more in the same transaction, if
        anything changes.

        The future raises OwnerChanged when that is another, or when who has not got the conversation wants to
        give it back; UnknownConversation.
        """
        request = NewOwner(conversation_id, version, by, operator_id, along)
        return cast("Future[Ownership]", self._submit(self._writes.moves, request))

    def submit_person_wanted(self, conversation_id: str) -> Future[Ownership]:
        """The visitor asks for a person: noted once, unless one is there. Has UnknownConversation."""
        return cast("Future[Ownership]", self._submit(self._writes.moves, PersonWanted(conversation_id)))

    def submit_closing(
        self, conversation_id: str, by: str, closed: bool, along: Along | None = None
    ) -> Future[Ownership]:
        """An operator is done with the conversation, which is the bot's from then on; or is not so after all.

        The future raises OwnerChanged when another operator has it, UnknownConversation.
        """
        request = NewClosing(conversation_id, by, closed, along)
        return cast("Future[Ownership]", self._submit(self._writes.moves, request))

    def ownership(self, conversation_id: str) -> Ownership | None:
        """Who answers the conversation; None when there is none such."""
        if not storable(conversation_id):
            return None
        query = select(
            Conversation.owner,
            Conversation.operator_id,
            Conversation.owner_version,
            Conversation.waiting_since.is_not(None),
            Conversation.closed_at.is_not(None),
            Conversation.created_at,
        ).where(Conversation.id == conversation_id)
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Ownership(cast("Owner", row[0]), *row[1:])

    def standing(self, conversations: Sequence[str]) -> dict[str, tuple[int, Ownership]]:
        """The number of the newest message, and who answers, of those of the conversations that exist."""
        query = select(
            Conversation.id,
            Conversation.last_seq,
            Conversation.owner,
            Conversation.operator_id,
            Conversation.owner_version,
            Conversation.waiting_since.is_not(None),
            Conversation.closed_at.is_not(None),
        )
        found = {}
        with reading(self._engine) as connection:
            for at in range(0, len(conversations), MANY):
                some = query.where(Conversation.id.in_(conversations[at : at + MANY]))
                for row in connection.execute(some):
                    found[row[0]] = row[1], Ownership(cast("Owner", row[2]), *row[3:])
        return found

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
        """What the model reads: every user turn, followed by its current reply if that has a word in it, and
        what operators said, in its place.

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
        """Whether a turn of this conversation was sent under this client id."""
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
        """The last user turn, if nothing answers it yet: neither a reply (the server was stopped before it
        could) nor anything that an operator said after it.
        """
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
            answers = or_(
                Message.answers == row.id,
                and_(
                    Message.conversation_id == conversation_id,
                    Message.seq > row.seq,
                    Message.operator_id.is_not(None),
                ),
            )
            answered = connection.scalar(select(Message.id).where(answers).limit(1))
            return None if answered is not None else _record(row)

    # --- health -----------------------------------------------------------------------------------

    def ping(self) -> None:
        """Write something of no consequence: the only question to which a full or read-only disk answers no.

        It costs what keeping a message costs.
        """
        self._submit(self._writes.pings, None).result()

    # --- inside -----------------------------------------------------------------------------------

    def _submit_turn(self, turn: Turn) -> Future[StoredTurn]:
        return cast("Future[StoredTurn]", self._submit(self._writes.moves, turn))

    def _submit(self, carry_out: CarryOut[Request, Result], request: Request) -> Future[Result]:
        if self._writer is not None:
            return self._writer.submit(carry_out, request)
        with self._writing() as connection:
            [outcome] = carry_out(connection, [request])
        if isinstance(outcome, StoreError):
            raise outcome
        return _done(outcome)

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


def _done(result: Result) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def _hash(token: str) -> str:
    # A token has 256 random bits: nothing can be guessed, so no salt and no slow hash is needed.
    return hashlib.sha256(token.encode()).hexdigest()


def _clip(number: int) -> int:
    return max(0, min(number, MAX_INTEGER))


def _title(opening: str) -> str:
    line = " ".join(opening.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"


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
            Message.operator_id,
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
