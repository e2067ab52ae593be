"""The tables, the same on SQLite and PostgreSQL. docs/database.md tells what is written when.

A visitor has conversations, a conversation has messages numbered 1, 2, 3 … (`seq`), a message made by a
model has one generation record, and a message may have one feedback. Whatever belongs to a visitor goes
when the visitor goes: every foreign key on that path cascades in the database itself. API keys stand apart.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """A moment. SQLite forgets time zones and PostgreSQL answers in the session's: here it is UTC in and out.

    Raises ValueError for a datetime without a time zone, which could be any of 38 moments.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(),
        list[int]: JSON(),
        list[float]: JSON(),
    }


class Visitor(Base):
    """Somebody who chats. Known again by a token of which only the SHA-256 (hex) is kept."""

    __tablename__ = "visitor"

    id: Mapped[str] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]


class Conversation(Base):
    """`last_seq` is the number of the newest message; its row is locked while the next one is added."""

    __tablename__ = "conversation"
    __table_args__ = (Index(None, "visitor_id", "updated_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    visitor_id: Mapped[str] = mapped_column(ForeignKey("visitor.id", ondelete="CASCADE"))
    last_seq: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Message(Base):
    """One turn, by the user or by the agent.

    client_id: the id under which a user's client sent it, so that a retry is harmless.
    options: the decoding options it was sent with, needed again if the server dies before it has answered.
    reply_id: the id under which a reply was streamed.
    answers: the user turn that a reply answers.
    replaces: the earlier reply to the same user turn whose place a regenerated one takes.
    superseded: True once another has taken its place; a user turn has at most one reply where it is False.
    """

    __tablename__ = "message"
    __table_args__ = (
        UniqueConstraint("conversation_id", "seq"),
        UniqueConstraint("conversation_id", "client_id"),
        UniqueConstraint("conversation_id", "reply_id"),
        CheckConstraint("seq >= 1", name="seq"),
        CheckConstraint("role IN ('user', 'agent')", name="role"),
        Index(
            "uq_message_current_reply",
            "answers",
            unique=True,
            sqlite_where=text("NOT superseded"),
            postgresql_where=text("NOT superseded"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversation.id", ondelete="CASCADE"))
    seq: Mapped[int]
    role: Mapped[str]
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    client_id: Mapped[str | None]
    options: Mapped[dict[str, Any] | None]
    reply_id: Mapped[str | None]
    answers: Mapped[str | None] = mapped_column(ForeignKey("message.id", ondelete="CASCADE"), index=True)
    replaces: Mapped[str | None] = mapped_column(ForeignKey("message.id", ondelete="SET NULL"), index=True)
    superseded: Mapped[bool]


class Generation(Base):
    """How a model made a reply: enough to make it again, or to score it again and compare.

    model: the model's fingerprint. options: all decoding options as they were used. logprobs: one for each of
    token_ids, natural logarithm, from the unfiltered softmax. Times in milliseconds: waited for a slot,
    until the first token, and in all.
    """

    __tablename__ = "generation"

    message_id: Mapped[str] = mapped_column(ForeignKey("message.id", ondelete="CASCADE"), primary_key=True)
    finish_reason: Mapped[str]
    model: Mapped[str]
    options: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)
    token_ids: Mapped[list[int]]
    logprobs: Mapped[list[float]]
    alternatives: Mapped[list[dict[str, Any]]]
    queued_ms: Mapped[float]
    first_token_ms: Mapped[float | None]
    total_ms: Mapped[float]


class Feedback(Base):
    """What the visitor thinks of a reply: the last word only."""

    __tablename__ = "feedback"
    __table_args__ = (CheckConstraint("rating IN ('up', 'down')", name="rating"),)

    message_id: Mapped[str] = mapped_column(ForeignKey("message.id", ondelete="CASCADE"), primary_key=True)
    rating: Mapped[str | None]
    comment: Mapped[str | None] = mapped_column(Text)
    updated_at: Mapped[datetime]


class ApiKey(Base):
    """What a program shows to use the HTTP API. Of the key itself only the SHA-256 (hex) is kept.

    name: whose it is, in the owner's words; no two keys that hold have the same. last_used_at: to the minute,
    about. revoked_at: None as long as it holds.
    """

    __tablename__ = "api_key"
    __table_args__ = (
        Index(
            "uq_api_key_name",
            "name",
            unique=True,
            sqlite_where=text("revoked_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    key_hash: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
