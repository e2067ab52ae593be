"""What the store writes, many requests of a kind at a time: a few statements for all of them.

Each method of `Writes` is a `CarryOut` (server/writer.py): it looks up all that its requests depend on,
decides about one after the other in their order, and then writes everything at once. A request that is
refused has written nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Executable,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy import text as sql
from sqlalchemy.orm import InstrumentedAttribute

from server.records import NewReply, Rating, StoredTurn, storable
from server.store_errors import (
    ClientIdConflict,
    ConversationFull,
    StoreError,
    StoreValueError,
    UnknownConversation,
    UnknownVisitor,
)
from server.tables import Conversation, Feedback, Generation, Message, Visitor


@dataclass(frozen=True, slots=True)
class NewVisitor:
    visitor_id: str
    token_hash: str


@dataclass(frozen=True, slots=True)
class NewConversation:
    conversation_id: str
    visitor_id: str


@dataclass(frozen=True, slots=True)
class NewUserTurn:
    """most: messages that the conversation may hold, this one included; None for any number."""

    conversation_id: str
    client_id: str
    text: str
    options: Mapping[str, Any]
    most: int | None


@dataclass(frozen=True, slots=True)
class ReplyTurn:
    conversation_id: str
    reply: NewReply


@dataclass(frozen=True, slots=True)
class NewRating:
    conversation_id: str
    message_id: str
    rating: Rating | None
    comment: str | None


Turn = NewUserTurn | ReplyTurn


def new_id() -> str:
    return uuid.uuid4().hex


class Writes:
    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock

    def visitors(self, connection: Connection, requests: Sequence[NewVisitor]) -> list[StoreError | None]:
        rows = [
            {"id": each.visitor_id, "token_hash": each.token_hash, "created_at": self._clock()}
            for each in requests
        ]
        connection.execute(insert(Visitor), rows)
        return [None] * len(requests)

    def conversations(
        self, connection: Connection, requests: Sequence[NewConversation]
    ) -> list[StoreError | None]:
        # Locked as a foreign key locks it: nobody erases the visitor before the commit.
        query = select(Visitor.id).where(Visitor.id.in_({each.visitor_id for each in requests}))
        known = set(connection.scalars(query.with_for_update(read=True, key_share=True)))
        outcomes: list[StoreError | None] = []
        rows = []
        for each in requests:
            if each.visitor_id not in known:
                outcomes.append(UnknownVisitor(each.visitor_id))
                continue
            now = self._clock()
            rows.append(
                {
                    "id": each.conversation_id,
                    "visitor_id": each.visitor_id,
                    "last_seq": 0,
                    "created_at": now,
                    "updated_at": now,
                }
            )
            outcomes.append(None)
        if rows:
            connection.execute(insert(Conversation), rows)
        return outcomes

    def turns(self, connection: Connection, requests: Sequence[Turn]) -> list[StoredTurn | StoreError]:
        """What users said and what they were answered."""
        desk = _Desk(connection, requests, self._clock)
        outcomes: list[StoredTurn | StoreError] = []
        for each in requests:
            try:
                outcomes.append(desk.say(each) if isinstance(each, NewUserTurn) else desk.answer(each))
            except StoreError as refusal:
                outcomes.append(refusal)
        desk.flush(connection)
        return outcomes

    def ratings(self, connection: Connection, requests: Sequence[NewRating]) -> list[bool | StoreError]:
        return [self._rate(connection, each) for each in requests]

    def _rate(self, connection: Connection, request: NewRating) -> bool:
        reply = select(Message.id).where(
            Message.id == request.message_id,
            Message.conversation_id == request.conversation_id,
            Message.role == "agent",
        )
        # The lock makes the visitor's last word the one that stays when two tabs speak at once.
        if connection.scalar(reply.with_for_update(key_share=True)) is None:
            return False
        connection.execute(delete(Feedback).where(Feedback.message_id == request.message_id))
        if request.rating is not None or request.comment is not None:
            connection.execute(
                insert(Feedback).values(
                    message_id=request.message_id,
                    rating=request.rating,
                    comment=request.comment,
                    updated_at=self._clock(),
                )
            )
        return True

    def pings(self, connection: Connection, requests: Sequence[None]) -> list[StoreError | None]:
        connection.execute(sql("UPDATE alembic_version SET version_num = version_num"))
        return [None] * len(requests)


# --- turns ------------------------------------------------------------------------------------------------

Key = tuple[str, str]
"""A conversation and a client id or reply id."""


@dataclass(slots=True)
class _Head:
    """Where a conversation ends."""

    last_seq: int
    updated_at: datetime | None = None


@dataclass(slots=True)
class _Pending:
    """Rows to be written."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    generations: list[dict[str, Any]] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)


class _Desk:
    """What a set of turns depends on, kept up to date while they are decided about in their order."""

    def __init__(
        self, connection: Connection, requests: Sequence[Turn], clock: Callable[[], datetime]
    ) -> None:
        self._clock = clock
        users = [each for each in requests if isinstance(each, NewUserTurn)]
        replies = [each for each in requests if isinstance(each, ReplyTurn)]
        # Nobody else adds to these conversations from here on. Locked in one order, so that servers do not
        # wait for each other in a ring; what the next queries see is what the last holder has committed.
        self._heads = _heads(connection, (each.conversation_id for each in requests))
        self._said = {
            (row.conversation_id, row.client_id): (_stored(row), row.text)
            for row in _by_key(connection, "client_id", ((u.conversation_id, u.client_id) for u in users))
        }
        self._replied = {
            (row.conversation_id, row.reply_id): _stored(row)
            for row in _by_key(
                connection, "reply_id", ((r.conversation_id, r.reply.reply_id) for r in replies)
            )
        }
        named = {key for r in replies for key in (r.reply.answers, r.reply.replaces) if key is not None}
        self._places = {row.id: row for row in _by_id(connection, filter(storable, named))}
        self._current = _current(connection, (key for key in self._places))
        self._new: dict[str, dict[str, Any]] = {}
        self._pending = _Pending()

    def say(self, request: NewUserTurn) -> StoredTurn:
        head = self._head(request.conversation_id)
        key = (request.conversation_id, request.client_id)
        if key in self._said:
            turn, text = self._said[key]
            if text != request.text:
                raise ClientIdConflict(request.client_id)
            return turn
        if request.most is not None and head.last_seq >= request.most:
            raise ConversationFull(request.conversation_id, request.most)
        turn = self._append(
            head,
            request.conversation_id,
            None,
            role="user",
            text=request.text,
            client_id=request.client_id,
            options=dict(request.options),
        )
        self._said[key] = (replace(turn, created=False), request.text)
        return turn

    def answer(self, request: ReplyTurn) -> StoredTurn:
        reply = request.reply
        head = self._head(request.conversation_id)
        key = (request.conversation_id, reply.reply_id)
        if key in self._replied:
            return self._replied[key]
        self._check_place(request.conversation_id, reply)
        replaced = self._current.get(reply.answers)
        if replaced is not None:
            self._supersede(replaced)
        turn = self._append(
            head,
            request.conversation_id,
            replaced,
            role="agent",
            text=reply.text,
            reply_id=reply.reply_id,
            answers=reply.answers,
        )
        self._pending.generations.append(_generation(turn.message_id, reply))
        self._current[reply.answers] = turn.message_id
        self._replied[key] = replace(turn, created=False)
        return turn

    def flush(self, connection: Connection) -> None:
        pending = self._pending
        _execute(connection, _SUPERSEDE, [{"message_id": each} for each in pending.superseded])
        _execute(connection, insert(Message), pending.messages)
        _execute(connection, insert(Generation), pending.generations)
        moved = [
            {"conversation": key, "seq": head.last_seq, "at": head.updated_at}
            for key, head in self._heads.items()
            if head.updated_at is not None
        ]
        _execute(connection, _MOVE, moved)

    def _head(self, conversation_id: str) -> _Head:
        head = self._heads.get(conversation_id)
        if head is None:
            raise UnknownConversation(conversation_id)
        return head

    def _append(self, head: _Head, conversation_id: str, replaces: str | None, **values: Any) -> StoredTurn:
        turn = StoredTurn(new_id(), head.last_seq + 1, self._clock(), created=True, replaces=replaces)
        row = _BLANK | values
        row |= {
            "id": turn.message_id,
            "conversation_id": conversation_id,
            "seq": turn.seq,
            "created_at": turn.created_at,
            "replaces": replaces,
        }
        self._pending.messages.append(row)
        self._new[turn.message_id] = row
        head.last_seq, head.updated_at = turn.seq, turn.created_at
        return turn

    def _check_place(self, conversation_id: str, reply: NewReply) -> None:
        """Raises StoreValueError unless the reply belongs to a user turn of this conversation."""
        answered = self._places.get(reply.answers)
        if answered is None or answered.conversation_id != conversation_id or answered.role != "user":
            raise StoreValueError("answers", "is no user turn of this conversation")
        if reply.replaces is not None:
            replaced = self._places.get(reply.replaces)
            if replaced is None or replaced.answers != reply.answers:
                raise StoreValueError("replaces", "is no reply to the same user turn")

    def _supersede(self, message_id: str) -> None:
        if message_id in self._new:
            self._new[message_id]["superseded"] = True
        else:
            self._pending.superseded.append(message_id)


_BLANK: dict[str, Any] = {
    "client_id": None,
    "options": None,
    "reply_id": None,
    "answers": None,
    "superseded": False,
}
"""Every row names every column, so that one statement takes them all."""

_SUPERSEDE = update(Message).where(Message.id == bindparam("message_id")).values(superseded=True)
_MOVE = (
    update(Conversation)
    .where(Conversation.id == bindparam("conversation"))
    .values(last_seq=bindparam("seq"), updated_at=bindparam("at"))
)


def _execute(connection: Connection, statement: Executable, rows: Sequence[dict[str, Any]]) -> None:
    """The statement for each row; SQLAlchemy would take no rows for one without values."""
    if rows:
        connection.execute(statement, rows)


def _stored(row: Any) -> StoredTurn:
    return StoredTurn(row.id, row.seq, row.created_at, created=False, replaces=row.replaces)


def _heads(connection: Connection, conversations: Iterable[str]) -> dict[str, _Head]:
    query = select(Conversation.id, Conversation.last_seq).where(
        Conversation.id.in_(sorted({key for key in conversations if storable(key)}))
    )
    if connection.dialect.name == "postgresql":
        query = query.order_by(Conversation.id).with_for_update()
    return {row.id: _Head(row.last_seq) for row in connection.execute(query)}


def _by_key(connection: Connection, column: str, keys: Iterable[Key]) -> Iterable[Any]:
    asked = [list(key) for key in keys if all(map(storable, key))]
    if not asked:
        return ()
    if connection.dialect.name == "sqlite":
        return connection.execute(_by_json(column), {"asked": asked})
    return connection.execute(_by_pairs(column), {"asked": [tuple(key) for key in asked]})


def _keyed(column: InstrumentedAttribute[Any]) -> Select[Any]:
    return select(
        Message.conversation_id,
        column,
        Message.id,
        Message.seq,
        Message.created_at,
        Message.replaces,
        Message.text,
    )


@cache
def _by_json(column: str) -> Select[Any]:
    """SQLite reads the whole table for `(a, b) IN (VALUES …)`, but not for a join with the pairs."""
    key = getattr(Message, column)
    asked = func.json_each(bindparam("asked", type_=JSON)).table_valued("value", name="asked")
    return (
        _keyed(key)
        .select_from(asked)
        .join(
            Message,
            and_(
                Message.conversation_id == func.json_extract(asked.c.value, "$[0]"),
                key == func.json_extract(asked.c.value, "$[1]"),
            ),
        )
    )


@cache
def _by_pairs(column: str) -> Select[Any]:
    key = getattr(Message, column)
    return _keyed(key).where(tuple_(Message.conversation_id, key).in_(bindparam("asked", expanding=True)))


def _by_id(connection: Connection, ids: Iterable[str]) -> Iterable[Any]:
    asked = list(ids)
    if not asked:
        return ()
    return connection.execute(
        select(Message.id, Message.conversation_id, Message.role, Message.answers).where(
            Message.id.in_(asked)
        )
    )


def _current(connection: Connection, answered: Iterable[str]) -> dict[str, str]:
    """The current replies to user turns, by the turns' message ids."""
    asked = list(answered)
    if not asked:
        return {}
    query = select(Message.answers, Message.id).where(Message.answers.in_(asked), ~Message.superseded)
    return {row.answers: row.id for row in connection.execute(query)}


def _generation(message_id: str, reply: NewReply) -> dict[str, Any]:
    return {
        "message_id": message_id,
        "finish_reason": reply.finish_reason,
        "model": reply.model,
        "options": dict(reply.options),
        "seed": reply.seed,
        "token_ids": list(reply.token_ids),
        "logprobs": list(reply.logprobs),
        "alternatives": [dict(alternative) for alternative in reply.alternatives],
        "queued_ms": reply.queued_ms,
        "first_token_ms": reply.first_token_ms,
        "total_ms": reply.total_ms,
    }
