"""The tables, the same on SQLite and PostgreSQL. docs/database.md tells what is written when.

A visitor has conversations, a conversation has messages numbered 1, 2, 3 … (`seq`), a message made by a
model has one generation record, and a message may have one feedback and one verdict. Whatever belongs to a
visitor goes when the visitor goes: every foreign key on that path cascades in the database itself.

API keys, operators, labels, canned replies, imports and jobs stand apart. Operators are disabled, never
deleted: who did what stays known. What names one holds their id without a foreign key.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from server import search_index


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
        list[str]: JSON(),
    }


class Visitor(Base):
    """Somebody who chats. Known again by a token of which only the SHA-256 (hex) is kept."""

    __tablename__ = "visitor"

    id: Mapped[str] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]


def _where(name: str, condition: str, *columns: str) -> Index:
    """An index of those conversations for which the condition holds."""
    return Index(
        f"ix_conversation_{name}", *columns, sqlite_where=text(condition), postgresql_where=text(condition)
    )


class Conversation(Base):
    """`last_seq` is the number of the newest message; its row is locked while the next one is added.

    owner: who answers, ``bot`` or ``operator``; then `operator_id` is which one.
    owner_version: counts changes of the owner, so that one change can be told from another.
    waiting_since: when the visitor asked for a person, or the bot abstained; None once a person has come.
    closed_at: when an operator was done with it; None again as soon as the visitor says something.
    reviewed_at: when a reviewer was done with it.
    model: fingerprint that made the newest reply. confidence: the lowest of its replies; None: not known.
    thumbs_down: whether the visitor dislikes a reply in it.
    """

    __tablename__ = "conversation"
    __table_args__ = (
        Index(None, "visitor_id", "updated_at"),
        # The inbox: the newest first. What most conversations have in common is passed over within the index,
        # what few have has an index of its own. server.console.filters says it in the same words.
        _where("inbox", "last_seq > 0", "updated_at", "id", "closed_at", "reviewed_at", "confidence"),
        _where("closed", "closed_at IS NOT NULL", "updated_at", "id"),
        _where("waiting", "waiting_since IS NOT NULL AND closed_at IS NULL", "updated_at", "id"),
        _where("taken", "owner = 'operator'", "updated_at", "id"),
        _where("reviewed", "reviewed_at IS NOT NULL", "updated_at", "id"),
        _where("disliked", "thumbs_down", "updated_at", "id"),
        _where("confidence", "confidence IS NOT NULL", "confidence", "reviewed_at"),
        Index(None, "model", "updated_at", "id"),
        # The review queue: server.console.review_queue says it in the same words.
        _where("unreviewed", "reviewed_at IS NULL AND model IS NOT NULL", "id"),
        _where("escalated", "waiting_since IS NOT NULL OR owner_version > 0", "updated_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    visitor_id: Mapped[str] = mapped_column(ForeignKey("visitor.id", ondelete="CASCADE"))
    last_seq: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    owner: Mapped[str] = mapped_column(server_default="bot")
    operator_id: Mapped[str | None]
    owner_version: Mapped[int] = mapped_column(server_default="0")
    waiting_since: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]
    reviewed_at: Mapped[datetime | None]
    model: Mapped[str | None]
    confidence: Mapped[float | None]
    thumbs_down: Mapped[bool] = mapped_column(server_default=false())


class Message(Base):
    """One turn, by the user or by the agent.

    client_id: the id under which a user's client sent it, so that a retry is harmless.
    options: the decoding options it was sent with, needed again if the server dies before it has answered.
    reply_id: the id under which a reply was streamed.
    answers: the user turn that a reply answers.
    replaces: the earlier reply to the same user turn whose place a regenerated one takes.
    superseded: True once another has taken its place; a user turn has at most one reply where it is False.
    operator_id: the person who wrote an agent's turn; None for what a model wrote.
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
        # The dashboard: server.console.statistics says it in the same words.
        Index(None, "created_at"),
        Index(
            "ix_message_by_operator",
            "created_at",
            sqlite_where=text("operator_id IS NOT NULL"),
            postgresql_where=text("operator_id IS NOT NULL"),
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
    operator_id: Mapped[str | None]


class Generation(Base):
    """How a model made a reply: enough to make it again, or to score it again and compare.

    model: the model's fingerprint. options: all decoding options as they were used. logprobs: one for each of
    token_ids, natural logarithm, from the unfiltered softmax. Times in milliseconds: waited for a slot,
    until the first token, and in all.
    confidence: the calibrated probability that the reply is acceptable; None for a model without calibration.
    withheld: what the model would have said, where the bot abstained and the message says so instead.
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
    confidence: Mapped[float | None]
    withheld: Mapped[str | None] = mapped_column(Text)


class Feedback(Base):
    """What the visitor thinks of a reply: the last word only."""

    __tablename__ = "feedback"
    __table_args__ = (
        CheckConstraint("rating IN ('up', 'down')", name="rating"),
        Index(None, "updated_at"),
    )

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


# --- operators --------------------------------------------------------------------------------------------


class Operator(Base):
    """Somebody who may log in to the console. password_hash: argon2id, with its parameters."""

    __tablename__ = "operator"
    __table_args__ = (CheckConstraint("role IN ('reviewer', 'admin')", name="role"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    password_hash: Mapped[str]
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class OperatorSession(Base):
    """A login. Of the cookie's token only the SHA-256 (hex) is kept. used_at: to the minute, about."""

    __tablename__ = "operator_session"

    token_hash: Mapped[str] = mapped_column(primary_key=True)
    operator_id: Mapped[str] = mapped_column(ForeignKey("operator.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    used_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class AuditEntry(Base):
    """Who did what. It never holds what anybody said.

    operator: the name; None for the command line. subject: the id or name of what it was done to.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index(None, "action", "operator", "at"),
        Index(None, "at", "id"),
        Index(None, "action", "at", "id"),
        Index(None, "operator", "at", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime]
    operator: Mapped[str | None]
    action: Mapped[str]
    subject: Mapped[str | None]
    details: Mapped[dict[str, Any] | None]


# --- review -----------------------------------------------------------------------------------------------


class Verdict(Base):
    """What a reviewer says of a bot's reply: the last word only.

    labels: reasons, from the team's list. corrected: what should have been said.
    """

    __tablename__ = "verdict"
    __table_args__ = (CheckConstraint("verdict IN ('good', 'bad')", name="verdict"),)

    message_id: Mapped[str] = mapped_column(ForeignKey("message.id", ondelete="CASCADE"), primary_key=True)
    operator_id: Mapped[str] = mapped_column(index=True)
    verdict: Mapped[str]
    labels: Mapped[list[str]]
    corrected: Mapped[str | None] = mapped_column(Text)
    note: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Label(Base):
    """A reason that reviewers may give. One that is archived is not offered any more."""

    __tablename__ = "label"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    archived_at: Mapped[datetime | None]


class Claim(Base):
    """A reviewer is at this conversation, so nobody else is given it before `until`."""

    __tablename__ = "claim"

    conversation_id: Mapped[str] = mapped_column(
        ForeignKey("conversation.id", ondelete="CASCADE"), primary_key=True
    )
    operator_id: Mapped[str] = mapped_column(index=True)
    until: Mapped[datetime]


# --- helping operators write ------------------------------------------------------------------------------


class CannedReply(Base):
    """A reply that operators keep ready; `{name}` in its text is a place to be filled in."""

    __tablename__ = "canned_reply"

    id: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)
    text: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime]


class Suggestion(Base):
    """What the model offered an operator, and what became of it.

    typed: what was in the box. offered: the texts. chosen: the one that was taken. distance: edits
    (Levenshtein, in code points) from it to what was sent. message_id: what was sent. milliseconds: to make
    them.
    """

    __tablename__ = "suggestion"
    __table_args__ = (
        CheckConstraint("outcome IN ('accepted', 'edited', 'ignored')", name="outcome"),
        Index(None, "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    conversation_id: Mapped[str] = mapped_column(
        ForeignKey("conversation.id", ondelete="CASCADE"), index=True
    )
    operator_id: Mapped[str]
    created_at: Mapped[datetime]
    model: Mapped[str]
    typed: Mapped[str] = mapped_column(Text)
    offered: Mapped[list[str]]
    milliseconds: Mapped[float]
    outcome: Mapped[str | None]
    chosen: Mapped[str | None] = mapped_column(Text)
    distance: Mapped[int | None]
    message_id: Mapped[str | None] = mapped_column(ForeignKey("message.id", ondelete="CASCADE"), index=True)


# --- topics -----------------------------------------------------------------------------------------------


class TopicMap(Base):
    """A map of conversations, made at one moment. clusters: for each its number, words, size, x and y."""

    __tablename__ = "topic_map"

    id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str]
    created_at: Mapped[datetime]
    clusters: Mapped[list[dict[str, Any]]]


class TopicPoint(Base):
    """Where a conversation lies on a map."""

    __tablename__ = "topic_point"

    map_id: Mapped[str] = mapped_column(ForeignKey("topic_map.id", ondelete="CASCADE"), primary_key=True)
    conversation_id: Mapped[str] = mapped_column(
        ForeignKey("conversation.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    cluster: Mapped[int]
    x: Mapped[float]
    y: Mapped[float]


# --- transcripts and personal data ------------------------------------------------------------------------


class ImportBatch(Base):
    """A file of transcripts that was uploaded. sha256: of the file as it came, in hex."""

    __tablename__ = "import_batch"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    operator_id: Mapped[str]
    created_at: Mapped[datetime]
    conversations: Mapped[int]


class ImportedTranscript(Base):
    """A conversation of such a file, in the transcript's form."""

    __tablename__ = "imported_transcript"

    batch_id: Mapped[str] = mapped_column(ForeignKey("import_batch.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    transcript: Mapped[dict[str, Any]]


class MaskedName(Base):
    """A name from the team's own list, masked where personal data is."""

    __tablename__ = "masked_name"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]


# --- retraining and rollout -------------------------------------------------------------------------------


class Job(Base):
    """A retraining: asked for, run one at a time in a process of its own, and its outcome.

    settings: as asked for. progress: the newest report of the process. result: the gate's decision and
    figures. directory: where the candidate and the process's files are. pid: of the process. cancel: whether
    somebody wants it to end.
    """

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="state"),
        Index(
            "uq_job_running",
            "state",
            unique=True,
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    operator_id: Mapped[str | None]
    base: Mapped[str]
    candidate: Mapped[str | None]
    directory: Mapped[str]
    settings: Mapped[dict[str, Any]]
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    pid: Mapped[int | None]
    cancel: Mapped[bool] = mapped_column(server_default=false())
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Pair(Base):
    """A logged turn that two models answer differently, and which answer a reviewer prefers, blind.

    group: pairs that are much alike have the same. swapped: whether the candidate's is shown first.
    gain: log-probability a token that the candidate gives its reply, less what it gives the base's.
    preferred: None until somebody has judged.
    """

    __tablename__ = "pair"
    __table_args__ = (
        CheckConstraint("preferred IN ('base', 'candidate', 'neither')", name="preferred"),
        UniqueConstraint("job_id", "message_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    message_id: Mapped[str] = mapped_column(ForeignKey("message.id", ondelete="CASCADE"), index=True)
    base_text: Mapped[str] = mapped_column(Text)
    candidate_text: Mapped[str] = mapped_column(Text)
    group: Mapped[str]
    gain: Mapped[float]
    swapped: Mapped[bool]
    preferred: Mapped[str | None]
    operator_id: Mapped[str | None]
    judged_at: Mapped[datetime | None]


class Rollout(Base):
    """A second model beside the one in use. At most one of a kind at a time.

    kind: a canary answers `share` of the new conversations; a shadow answers silently. share: 0 to 1.
    """

    __tablename__ = "rollout"
    __table_args__ = (
        CheckConstraint("kind IN ('canary', 'shadow')", name="kind"),
        Index(
            "uq_rollout_kind",
            "kind",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    model: Mapped[str]
    share: Mapped[float]
    operator_id: Mapped[str | None]
    began_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class ShadowReply(Base):
    """What a shadow would have said in the place of a reply."""

    __tablename__ = "shadow_reply"

    message_id: Mapped[str] = mapped_column(ForeignKey("message.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    logprob: Mapped[float]
    confidence: Mapped[float | None]
    created_at: Mapped[datetime]


# --- search -----------------------------------------------------------------------------------------------

for _dialect, _statements in search_index.STATEMENTS.items():
    for _statement in _statements:
        _ddl = DDL(_statement.replace("%", "%%"))  # type: ignore[no-untyped-call]
        event.listen(Base.metadata, "after_create", _ddl.execute_if(dialect=_dialect))
