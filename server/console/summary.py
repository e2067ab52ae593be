"""A conversation in a line of the inbox."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel
from sqlalchemy import Connection, ScalarSelect, func, select

from server.console.words import Mask
from server.tables import Conversation, Message, Operator, Verdict

TITLE: Final = 80
PREVIEW: Final = 160
"""Characters at most."""


class VerdictCounts(BaseModel):
    """Replies that a reviewer says are good, and bad."""

    good: int = 0
    bad: int = 0


class Summary(BaseModel):
    """A conversation in a line.

    visitor: the beginning of the visitor's id. title: of the first thing they said. preview: of the newest
    message. messages: their number. owner, operator: who answers. confidence: the lowest of its replies.
    match: the part of a message in which what was searched for is; null where nothing was.
    """

    id: str
    visitor: str
    title: str
    preview: str
    created_at: datetime
    updated_at: datetime
    messages: int
    owner: Literal["bot", "operator"]
    operator: str | None
    owner_version: int
    waiting_since: datetime | None
    closed_at: datetime | None
    reviewed_at: datetime | None
    model: str | None
    confidence: float | None
    thumbs_down: bool
    verdicts: VerdictCounts
    match: str | None = None


def summary(connection: Connection, conversation: str, mask: Mask) -> Summary | None:
    """None when there is no such conversation."""
    found = summaries(connection, [conversation], mask)
    return found[0] if found else None


def summaries(connection: Connection, conversations: Sequence[str], mask: Mask) -> list[Summary]:
    """Those of the conversations that there are, in that order. mask: for whole texts, not yet cut."""
    if not conversations:
        return []
    verdicts = _verdicts(connection, conversations)
    query = (
        select(
            Conversation.id,
            func.substr(Conversation.visitor_id, 1, 8).label("visitor"),
            _first_said().label("title"),
            _newest().label("preview"),
            Conversation.created_at,
            Conversation.updated_at,
            Conversation.last_seq.label("messages"),
            Conversation.owner,
            Operator.name.label("operator"),
            Conversation.owner_version,
            Conversation.waiting_since,
            Conversation.closed_at,
            Conversation.reviewed_at,
            Conversation.model,
            Conversation.confidence,
            Conversation.thumbs_down,
        )
        .outerjoin(Operator, Operator.id == Conversation.operator_id)
        .where(Conversation.id.in_(conversations))
    )
    found = {row.id: dict(row._mapping) for row in connection.execute(query)}
    for key, values in found.items():
        values["title"] = one_line(mask(values["title"] or ""), TITLE)
        values["preview"] = one_line(mask(values["preview"] or ""), PREVIEW)
        values["verdicts"] = verdicts.get(key, VerdictCounts())
    return [Summary(**found[key]) for key in conversations if key in found]


def one_line(text: str, length: int) -> str:
    """The beginning of a text: at most so many characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _first_said() -> ScalarSelect[Any]:
    return (
        select(Message.text)
        .where(Message.conversation_id == Conversation.id, Message.role == "user")
        .order_by(Message.seq)
        .limit(1)
        .scalar_subquery()
    )


def _newest() -> ScalarSelect[Any]:
    return (
        select(Message.text)
        .where(Message.conversation_id == Conversation.id, Message.seq == Conversation.last_seq)
        .scalar_subquery()
    )


def _verdicts(connection: Connection, conversations: Sequence[str]) -> dict[str, VerdictCounts]:
    query = (
        select(Message.conversation_id, Verdict.verdict, func.count().label("count"))
        .join(Verdict, Verdict.message_id == Message.id)
        .where(Message.conversation_id.in_(conversations))
        .group_by(Message.conversation_id, Verdict.verdict)
    )
    found: dict[str, VerdictCounts] = {}
    for row in connection.execute(query):
        setattr(found.setdefault(row.conversation_id, VerdictCounts()), row.verdict, row.count)
    return found
