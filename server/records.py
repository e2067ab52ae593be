"""What goes into the store and what comes out of it, and what may go in at all.

Text with NUL or half a surrogate pair is kept by one database and refused by the other, NaN likewise, and
an endless id fits into no index. They are refused here, in the same words for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from server.store_errors import StoreValueError

if TYPE_CHECKING:
    from chatbot.transcripts import Role

FinishReason = Literal["stop", "length", "cancelled", "abstained"]
Rating = Literal["up", "down"]
Owner = Literal["bot", "operator"]

MAX_KEY = 128
"""Longest client id or reply id, in code points."""


@dataclass(frozen=True, slots=True)
class VisitorGrant:
    """A new visitor, and the only time that the token is seen: the store keeps its hash."""

    visitor_id: str
    token: str


@dataclass(frozen=True, slots=True)
class ConversationSummary:
    """A line of a visitor's side list; `title` is the start of the first thing they said."""

    id: str
    title: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """Where a turn is kept. `created` is False when it was there already and nothing has changed.

    `replaces` is the message that a reply has taken the place of. `owner` is who answers the conversation as
    of this transaction.
    """

    message_id: str
    seq: int
    created_at: datetime
    created: bool
    replaces: str | None = None
    owner: Owner = "bot"


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who answers a conversation, and how it stands with its visitor.

    operator_id: which operator, when one does. version: counts changes of the owner. waiting: the visitor
    wants a person and none has come yet. closed: an operator was done with it, and nothing was said since.
    began: when the conversation was opened; None where nobody asked.
    """

    owner: Owner = "bot"
    operator_id: str | None = None
    version: int = 0
    waiting: bool = False
    closed: bool = False
    began: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewReply:
    """A finished reply to be kept.

    answers: message id of the user turn. replaces: the reply to the same turn that it was regenerated from,
    if any. options: all decoding options that were used. logprobs: one for each of token_ids. alternatives:
    for each a dict of text, score, logprob, token_ids. Times in milliseconds. confidence: the calibrated
    probability that it is acceptable; None: not known. withheld: what the model would have said, where `text`
    says something else instead.
    """

    reply_id: str
    answers: str
    text: str
    finish_reason: FinishReason
    model: str
    options: Mapping[str, Any]
    seed: int
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    alternatives: Sequence[Mapping[str, Any]]
    queued_ms: float
    first_token_ms: float | None
    total_ms: float
    replaces: str | None = None
    confidence: float | None = None
    withheld: str | None = None

    def check(self) -> None:
        """Raises StoreValueError, naming the field."""
        check_key("reply_id", self.reply_id)
        check_text("text", self.text)
        check_text("model", self.model)
        if self.withheld is not None:
            check_text("withheld", self.withheld)
        if self.finish_reason not in get_args(FinishReason):
            raise StoreValueError("finish_reason", f"is none of {', '.join(get_args(FinishReason))}")
        if not 0 <= self.seed < 2**63:
            raise StoreValueError("seed", "is not within 0 and 2^63 - 1")
        if len(self.token_ids) != len(self.logprobs):
            raise StoreValueError(
                "logprobs", f"{len(self.logprobs)} of them for {len(self.token_ids)} tokens"
            )
        for field in (
            "options",
            "token_ids",
            "logprobs",
            "alternatives",
            "queued_ms",
            "first_token_ms",
            "total_ms",
            "confidence",
        ):
            check_json(field, getattr(self, field))
        for alternative in self.alternatives:
            missing = {"text", "score", "logprob"} - alternative.keys()
            if missing:
                raise StoreValueError("alternatives", f"one is without {', '.join(sorted(missing))}")


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the N best replies of a beam search; `score` is what they are ranked by."""

    text: str
    score: float
    logprob: float


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """A message as it is kept; what only a reply or only a user turn has is None on the other.

    `options` are those a user turn was sent with; a reply's are in its generation record. `operator_id` is
    that of the person who wrote an agent's turn; None for a model's.
    """

    seq: int
    message_id: str
    role: Role
    text: str
    created_at: datetime
    client_id: str | None
    options: dict[str, Any] | None
    reply_id: str | None
    answers: str | None
    replaces: str | None
    superseded: bool
    finish_reason: FinishReason | None
    model: str | None
    seed: int | None
    alternatives: tuple[Alternative, ...] | None
    rating: Rating | None
    comment: str | None
    operator_id: str | None = None


def storable(text: str) -> bool:
    """Whether both databases keep this text as it is: no NUL, no half of a surrogate pair."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(field: str, text: str) -> None:
    """Raises StoreValueError."""
    if not storable(text):
        raise StoreValueError(field, "holds NUL or half of a surrogate pair")


def check_key(field: str, key: str) -> None:
    """Raises StoreValueError for an id, chosen by somebody else, that no index should hold."""
    check_text(field, key)
    if not 1 <= len(key) <= MAX_KEY:
        raise StoreValueError(field, f"has {len(key)} characters, not 1 to {MAX_KEY}")


def check_json(field: str, value: object) -> None:
    """Raises StoreValueError for what JSON, or one of the databases, cannot hold."""
    if value is None or isinstance(value, bool | int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise StoreValueError(field, f"holds {value}")
    elif isinstance(value, str):
        check_text(field, value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise StoreValueError(field, f"has a key that is {type(key).__name__}, not str")
            check_text(field, key)
            check_json(field, item)
    elif isinstance(value, Sequence):
        for item in value:
            check_json(field, item)
    else:
        raise StoreValueError(field, f"holds {type(value).__name__}, which is not JSON")
