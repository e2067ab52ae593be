"""Erasing a visitor: from the tables, the search index, the files of retrainings and the write-ahead log.

Foreign keys take along whatever belongs to a visitor. What does not hang on them is looked for here: uploaded
transcripts of the same conversations, words on topic maps, and files that a retraining reads.

Out of reach are models that have learned from the conversations (they are named), exports that somebody has
taken away (they are counted), and backups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    delete,
    func,
    or_,
    select,
    text,
    update,
)

from server.console import audit, cleansing
from server.console.erased_files import Traces, clean_jobs
from server.console.exports import AUDITED, pseudonym
from server.database import reading, writing
from server.records import storable
from server.tables import (
    AuditEntry,
    Base,
    Conversation,
    Feedback,
    Generation,
    ImportBatch,
    ImportedTranscript,
    Message,
    Pair,
    ShadowReply,
    Suggestion,
    TopicMap,
    TopicPoint,
    Verdict,
    Visitor,
)

ERASED: Final = "visitor.erase"
"""In the audit log, whoever was erased by their id."""
OF_MESSAGES: Final[Mapping[str, type[Base]]] = {
    "generations": Generation,
    "ratings": Feedback,
    "verdicts": Verdict,
    "pairs": Pair,
    "shadow_replies": ShadowReply,
}
OF_CONVERSATIONS: Final[Mapping[str, type[Base]]] = {"suggestions": Suggestion, "topic_points": TopicPoint}
"""Rows that go with a message or a conversation, and are counted."""

_AT_ONCE: Final = 1000
SECONDS: Final = 60
"""For a visitor who has said very much, on PostgreSQL."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What there was of a visitor, as counts of rows, and what became of the rest.

    imported: conversations of uploaded files. topic_words: taken off topic maps. datasets: retrainings whose
    files held the conversations, and hold no texts any more; jobs_cancelled: those that were running. models:
    fingerprints of candidates that had learned from the conversations. files_left: directories of retrainings
    whose texts could not be removed. exports: made since the visitor came.
    log_emptied: whether no trace is left in SQLite's write-ahead log; None on PostgreSQL. vacuumed: whether
    PostgreSQL was told to free the space; None on SQLite.
    """

    visitor: str
    conversations: int = 0
    messages: int = 0
    generations: int = 0
    ratings: int = 0
    verdicts: int = 0
    pairs: int = 0
    shadow_replies: int = 0
    suggestions: int = 0
    topic_points: int = 0
    topic_words: int = 0
    imported: int = 0
    datasets: int = 0
    jobs_cancelled: int = 0
    models: tuple[str, ...] = ()
    files_left: tuple[str, ...] = ()
    exports: int = 0
    log_emptied: bool | None = None
    vacuumed: bool | None = None


def visitor_of(db: Engine, *, visitor: str | None = None, conversation: str | None = None) -> str | None:
    """The visitor's id, given that or one of their conversations; None when there is none. Given their id,
    that of one who was erased as well.
    """
    if not storable(visitor or "") or not storable(conversation or ""):
        return None
    query = select(Visitor.id).where(Visitor.id == visitor)
    if conversation is not None:
        query = select(Conversation.visitor_id).where(Conversation.id == conversation)
        if visitor is not None:
            query = query.where(Conversation.visitor_id == visitor)
    with reading(db) as connection:
        found = connection.scalar(query)
        erased = found is None and conversation is None and _was_erased(connection, visitor)
        return visitor if erased else found


def _was_erased(connection: Connection, visitor: str | None) -> bool:
    noted = select(AuditEntry.id).where(AuditEntry.action == ERASED, AuditEntry.subject == visitor)
    return visitor is not None and connection.scalar(noted.limit(1)) is not None


def conversations_of(db: Engine, visitor: str) -> list[str]:
    with reading(db) as connection:
        return list(connection.scalars(select(Conversation.id).where(Conversation.visitor_id == visitor)))


def erase(db: Engine, visitor: str, operator: str | None) -> Erased | None:
    """Erase a visitor; None when there is none. operator: the name of who does it; None: the command line.

    One who was erased is looked for in the database's files once more: that may not have come to its end.

    Raises StoreUnavailable. Once the rows are gone they stay gone, whatever happens to the rest.
    """
    with writing(db) as connection:
        gone = _erase_rows(connection, visitor, operator)
        again = gone is None and _was_erased(connection, visitor)
    if again:
        emptied, vacuumed = cleansing.cleanse(db)
        return Erased(visitor, log_emptied=emptied, vacuumed=vacuumed)
    if gone is None:
        return None
    erased, traces = gone
    cleaned = clean_jobs(db, traces, operator)
    emptied, vacuumed = cleansing.cleanse(db)
    return replace(
        erased,
        datasets=cleaned.datasets,
        jobs_cancelled=cleaned.cancelled,
        models=cleaned.models,
        files_left=cleaned.left,
        log_emptied=emptied,
        vacuumed=vacuumed,
    )


def _erase_rows(connection: Connection, visitor: str, operator: str | None) -> tuple[Erased, Traces] | None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL statement_timeout = '{SECONDS}s'"))
    # Locked, so that no conversation of theirs begins before they are gone.
    query = select(Visitor.token_hash, Visitor.created_at).where(Visitor.id == visitor).with_for_update()
    found = connection.execute(query).one_or_none()
    if found is None:
        return None
    conversations = select(Conversation.id).where(Conversation.visitor_id == visitor)
    messages = select(Message.id).where(Message.conversation_id.in_(conversations))
    known_as = pseudonym(visitor, found.token_hash)
    traces = Traces(
        frozenset({visitor, known_as}),
        frozenset(connection.scalars(conversations)),
        frozenset(connection.scalars(messages)),
    )
    counts: dict[str, Any] = {
        name: _count(connection, table, table.message_id.in_(messages))  # type: ignore[attr-defined]
        for name, table in OF_MESSAGES.items()
    } | {
        name: _count(connection, table, table.conversation_id.in_(conversations))  # type: ignore[attr-defined]
        for name, table in OF_CONVERSATIONS.items()
    }
    erased = Erased(
        visitor,
        conversations=len(traces.conversations),
        messages=len(traces.messages),
        topic_words=_erase_topic_words(connection, conversations),
        imported=_erase_imported(connection, conversations, (visitor, known_as)),
        exports=_count(
            connection, AuditEntry, AuditEntry.action == AUDITED, AuditEntry.at >= found.created_at
        ),
        **counts,
    )
    cleansing.blot_out(connection, Message, Message.conversation_id.in_(conversations))
    for table in OF_MESSAGES.values():
        cleansing.blot_out(connection, table, table.message_id.in_(messages))  # type: ignore[attr-defined]
    cleansing.blot_out(connection, Suggestion, Suggestion.conversation_id.in_(conversations))
    connection.execute(delete(Visitor).where(Visitor.id == visitor))
    audit.note(connection, operator, ERASED, visitor, **_numbers(erased))
    return erased, traces


def _numbers(erased: Erased) -> dict[str, int]:
    values = {each.name: getattr(erased, each.name) for each in fields(erased)}
    return {name: value for name, value in values.items() if type(value) is int and value}


def _count(connection: Connection, table: type[Base], *where: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).select_from(table).where(*where)) or 0


def _erase_imported(connection: Connection, conversations: Select[str], visitor: tuple[str, str]) -> int:
    """Uploaded transcripts of these conversations, or that name the visitor; how many.

    They are there when an export was uploaded again.
    """
    transcript = ImportedTranscript.transcript
    theirs = or_(
        transcript["id"].as_string().in_(conversations),
        transcript["visitor"].as_string().in_(visitor),
        transcript["meta", "visitor"].as_string().in_(visitor),
    )
    keys = select(ImportedTranscript.batch_id, ImportedTranscript.number).where(theirs)
    numbers: dict[str, list[int]] = {}
    for batch, number in connection.execute(keys):
        numbers.setdefault(batch, []).append(number)
    for batch, found in sorted(numbers.items()):
        for start in range(0, len(found), _AT_ONCE):
            these = and_(
                ImportedTranscript.batch_id == batch,
                ImportedTranscript.number.in_(found[start : start + _AT_ONCE]),
            )
            cleansing.blot_out(connection, ImportedTranscript, these)
            connection.execute(delete(ImportedTranscript).where(these))
        fewer = {"conversations": ImportBatch.conversations - len(found)}
        connection.execute(update(ImportBatch).where(ImportBatch.id == batch).values(fewer))
    return sum(map(len, numbers.values()))


def _erase_topic_words(connection: Connection, conversations: Select[str]) -> int:
    """Take words that the visitor said off the topics in which their conversations are; how many."""
    places = select(TopicPoint.map_id, TopicPoint.cluster).where(
        TopicPoint.conversation_id.in_(conversations)
    )
    clusters: dict[str, set[int]] = {}
    for map_id, number in connection.execute(places.distinct()):
        clusters.setdefault(map_id, set()).add(number)
    if not clusters:
        return 0
    texts = connection.scalars(select(Message.text).where(Message.conversation_id.in_(conversations)))
    said = {word for each in texts for word in _words(each)}
    taken = 0
    for map_id, numbers in clusters.items():
        kept: list[dict[str, Any]] = []
        for cluster in connection.scalar(select(TopicMap.clusters).where(TopicMap.id == map_id)) or ():
            words = cluster.get("words") or []
            if cluster.get("number") in numbers:
                others = [word for word in words if not said & set(_words(str(word)))]
                taken += len(words) - len(others)
                cluster = {**cluster, "words": others}
            kept.append(cluster)
        cleansing.blot_out(connection, TopicMap, TopicMap.id == map_id)
        connection.execute(update(TopicMap).where(TopicMap.id == map_id).values(clusters=kept))
    return taken


def _words(said: str) -> list[str]:
    return re.findall(r"\w+", said.casefold())
