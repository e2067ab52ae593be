"""The statements behind `server.desk`: what it looks up for all of its requests, and what it writes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Executable,
    Row,
    Select,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute

from server.records import Owner, Ownership, storable
from server.tables import Conversation, Feedback, Generation, Message

Key = tuple[str, str]
"""A conversation and a client id or reply id."""


@dataclass(slots=True)
class Head:
    """Where a conversation stands, by the table's columns."""

    last_seq: int
    updated_at: datetime
    owner: Owner
    operator_id: str | None
    owner_version: int
    waiting_since: datetime | None
    closed_at: datetime | None
    model: str | None
    confidence: float | None

    @property
    def ownership(self) -> Ownership:
        return Ownership(
            self.owner,
            self.operator_id,
            self.owner_version,
            waiting=self.waiting_since is not None,
            closed=self.closed_at is not None,
        )


_COLUMNS = tuple(Head.__slots__)


class Heads(dict[str, Head]):
    """Those of some conversations, and what was read of each."""

    def __init__(self, rows: Iterable[Row[Any]]) -> None:
        self._read: dict[str, tuple[Any, ...]] = {row[0]: tuple(row[1:]) for row in rows}
        super().__init__({key: Head(*values) for key, values in self._read.items()})

    def write(self, connection: Connection) -> None:
        """What has changed, and nothing else: whatever is assigned has its indexes written anew."""
        by_columns: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for key, head in self.items():
            now = {
                name: value
                for name, before in zip(_COLUMNS, self._read[key], strict=True)
                if (value := getattr(head, name)) != before
            }
            if now:
                row = {"conversation": key} | {f"new_{name}": value for name, value in now.items()}
                by_columns.setdefault(tuple(now), []).append(row)
        for columns, rows in by_columns.items():
            connection.execute(_move(columns), rows)


@cache
def _move(columns: tuple[str, ...]) -> Update:
    return (
        update(Conversation)
        .where(Conversation.id == bindparam("conversation"))
        .values({name: bindparam(f"new_{name}") for name in columns})
    )


SUPERSEDE = update(Message).where(Message.id == bindparam("message_id")).values(superseded=True)
FORGET = delete(Feedback).where(Feedback.message_id == bindparam("message"))


def recount(conversations: Collection[str]) -> Update:
    """The lowest confidence of the replies that count, and whether one of them is disliked."""
    counting = Message.conversation_id == Conversation.id, ~Message.superseded
    lowest = (
        select(func.min(Generation.confidence))
        .join(Message, Message.id == Generation.message_id)
        .where(*counting)
        .correlate(Conversation)
        .scalar_subquery()
    )
    disliked = exists(
        select(Message.id)
        .join(Feedback, Feedback.message_id == Message.id)
        .where(*counting, Feedback.rating == "down")
        .correlate(Conversation)
    )
    return (
        update(Conversation)
        .where(Conversation.id.in_(sorted(conversations)))
        .values(confidence=lowest, thumbs_down=disliked)
    )


def execute(connection: Connection, statement: Executable, rows: Sequence[dict[str, Any]]) -> None:
    """The statement for each row; SQLAlchemy would take no rows for one without values."""
    if rows:
        connection.execute(statement, rows)


def heads(connection: Connection, conversations: Iterable[str]) -> Heads:
    """Of those that exist; on PostgreSQL their rows are locked, in the order of their ids."""
    query = select(Conversation.id, *(getattr(Conversation, name) for name in _COLUMNS)).where(
        Conversation.id.in_(sorted({key for key in conversations if storable(key)}))
    )
    if connection.dialect.name == "postgresql":
        query = query.order_by(Conversation.id).with_for_update()
    return Heads(connection.execute(query))


def by_key(connection: Connection, column: str, keys: Iterable[Key]) -> Iterable[Any]:
    """Messages by conversation and client id or reply id."""
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
        Message.operator_id,
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


def by_id(connection: Connection, ids: Iterable[str]) -> Iterable[Any]:
    """Messages by their ids."""
    asked = list(ids)
    if not asked:
        return ()
    return connection.execute(
        select(Message.id, Message.conversation_id, Message.role, Message.answers, Message.operator_id).where(
            Message.id.in_(asked)
        )
    )


def current(connection: Connection, answered: Iterable[str]) -> dict[str, str]:
    """The current replies to user turns, by the turns' message ids."""
    asked = list(answered)
    if not asked:
        return {}
    query = select(Message.answers, Message.id).where(Message.answers.in_(asked), ~Message.superseded)
    return {row.answers: row.id for row in connection.execute(query)}
