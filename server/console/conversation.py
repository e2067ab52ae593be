"""A conversation as operators see it: every message, how each reply was made, what was thought of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, Row, Select, select

from chatbot.transcripts import Role
from server.console import words
from server.console.bundles import Shelf
from server.console.masking import Masker, masker
from server.console.review import VerdictView, verdicts
from server.console.summary import Summary, summary
from server.console.words import Mask
from server.database import reading
from server.records import FinishReason, Rating, storable
from server.tables import Feedback, Generation, Message, Operator, Verdict

TOLD: Final = 100_000
"""Tokens whose texts are told of one conversation, those of the newest replies: more than anybody reads."""


class TokenView(BaseModel):
    """A token of a reply, or several where something is masked. logprob: natural logarithm, of the least
    likely of them.
    """

    text: str
    logprob: float


class AlternativeView(BaseModel):
    """One of the best replies of a search. score: what they are ranked by."""

    text: str
    score: float
    logprob: float


class GenerationView(BaseModel):
    """How a model made a reply.

    seed: as a text, since numbers of JavaScript end at 2^53. confidence: calibrated probability that the
    reply is acceptable. withheld: what the bot did not say, where it abstained. tokens: their texts together
    are the message's text, or what was withheld; null where that is not so any more, or the model is there no
    more.
    """

    model: str
    finish_reason: FinishReason
    options: dict[str, Any]
    seed: str
    confidence: float | None
    withheld: str | None
    queued_ms: float
    first_token_ms: float | None
    total_ms: float
    tokens: list[TokenView] | None
    alternatives: list[AlternativeView]


class MessageView(BaseModel):
    """A turn. answers: the message that it is a reply to. superseded: whether another has taken its place.
    rating, comment: the visitor's.
    """

    id: str
    seq: int
    role: Role
    text: str
    at: datetime
    author: Literal["visitor", "bot", "operator"]
    operator: str | None
    answers: str | None
    superseded: bool
    rating: Rating | None
    comment: str | None
    verdict: VerdictView | None
    generation: GenerationView | None


class ConversationView(BaseModel):
    """masked: whether personal data is hidden."""

    conversation: Summary
    messages: list[MessageView]
    masked: bool


def read(db: Engine, shelf: Shelf, conversation: str, *, masked: bool) -> ConversationView | None:
    """All messages of a conversation, superseded ones too, in order; None when there is no such conversation.

    May load a model for its tokenizer. Raises StoreUnavailable.
    """
    if not storable(conversation):
        return None
    with reading(db) as connection:
        mask = (masker(connection) if masked else Masker(kinds=())).mask
        line = summary(connection, conversation, mask)
        if line is None:
            return None
        rows = connection.execute(_messages(conversation)).all()
        said = _verdicts(connection, conversation)
    told = _told(rows)
    messages = [_message(row, said.get(row.id), shelf if row.id in told else None, mask) for row in rows]
    return ConversationView(conversation=line, messages=messages, masked=masked)


def _messages(conversation: str) -> Select[*tuple[Any, ...]]:
    return (
        select(
            Message.id,
            Message.seq,
            Message.role,
            Message.text,
            Message.created_at,
            Message.answers,
            Message.superseded,
            Message.operator_id,
            Operator.name.label("operator"),
            Feedback.rating,
            Feedback.comment,
            Generation.model,
            Generation.finish_reason,
            Generation.options,
            Generation.seed,
            Generation.confidence,
            Generation.withheld,
            Generation.queued_ms,
            Generation.first_token_ms,
            Generation.total_ms,
            Generation.token_ids,
            Generation.logprobs,
            Generation.alternatives,
        )
        .outerjoin(Operator, Operator.id == Message.operator_id)
        .outerjoin(Feedback, Feedback.message_id == Message.id)
        .outerjoin(Generation, Generation.message_id == Message.id)
        .where(Message.conversation_id == conversation)
        .order_by(Message.seq)
    )


def _verdicts(connection: Connection, conversation: str) -> Mapping[str, VerdictView]:
    judged = (
        select(Verdict.message_id)
        .join(Message, Message.id == Verdict.message_id)
        .where(Message.conversation_id == conversation)
    )
    return verdicts(connection, list(connection.scalars(judged)))


def _told(rows: Sequence[Row[*tuple[Any, ...]]]) -> set[str]:
    """The messages whose tokens are told."""
    found: set[str] = set()
    left = TOLD
    for row in reversed(rows):
        left -= len(row.token_ids or ())
        if left >= 0:
            found.add(row.id)
    return found


def _message(
    row: Row[*tuple[Any, ...]], verdict: VerdictView | None, shelf: Shelf | None, mask: Mask
) -> MessageView:
    author: Literal["visitor", "bot", "operator"] = "visitor"
    if row.role == "agent":
        author = "bot" if row.operator_id is None else "operator"
    if verdict is not None:
        hidden = {"corrected": _hidden(verdict.corrected, mask), "note": _hidden(verdict.note, mask)}
        verdict = verdict.model_copy(update=hidden)
    return MessageView(
        id=row.id,
        seq=row.seq,
        role=row.role,
        text=mask(row.text),
        at=row.created_at,
        author=author,
        operator=row.operator,
        answers=row.answers,
        superseded=row.superseded,
        rating=row.rating,
        comment=_hidden(row.comment, mask),
        verdict=verdict,
        generation=None if row.model is None else _generation(row, shelf, mask),
    )


def _generation(row: Row[*tuple[Any, ...]], shelf: Shelf | None, mask: Mask) -> GenerationView:
    prefix = row.options.get("prefix")
    return GenerationView(
        model=row.model,
        finish_reason=row.finish_reason,
        options=row.options | ({"prefix": mask(prefix)} if isinstance(prefix, str) else {}),
        seed=str(row.seed),
        confidence=row.confidence,
        withheld=_hidden(row.withheld, mask),
        queued_ms=row.queued_ms,
        first_token_ms=row.first_token_ms,
        total_ms=row.total_ms,
        tokens=None if shelf is None else _tokens(row, shelf, mask),
        alternatives=[
            AlternativeView(text=mask(one["text"]), score=one["score"], logprob=one["logprob"])
            for one in row.alternatives
        ],
    )


def _tokens(row: Row[*tuple[Any, ...]], shelf: Shelf, mask: Mask) -> list[TokenView] | None:
    tokenizer = shelf.tokenizer(row.model)
    if tokenizer is None or len(row.token_ids) != len(row.logprobs):
        return None
    parts = words.texts(tokenizer, row.token_ids)
    if "".join(parts) != (row.text if row.withheld is None else row.withheld):
        return None  # it was masked or changed since
    return [
        TokenView(text=piece.text, logprob=min(row.logprobs[token] for token in piece.tokens))
        for piece in words.masked(parts, mask)
    ]


def _hidden(text: str | None, mask: Mask) -> str | None:
    return None if text is None else mask(text)
