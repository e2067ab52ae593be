"""What goes into the batcher and what comes out: requests, replies, and the events on the way to a reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chatbot.options import DecodingOptions
from chatbot.transcripts import Role

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """A conversation to be answered. ``id`` is the caller's, unique among the requests in the batcher."""

    id: str
    turns: tuple[tuple[Role, str], ...]
    options: DecodingOptions


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the N best replies of a beam search."""

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    """The model's log-probability of the whole reply, natural logarithm."""
    score: float
    """What the N best are ranked by: the log-probability that guided the search over the length penalty."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply and how it came about."""

    text: str
    token_ids: tuple[int, ...]
    """With the end token, unless the reply was cut off."""
    logprobs: tuple[float, ...]
    """The model's own log-probability of each token, before any option acts on it."""
    finish_reason: FinishReason
    seed: int
    alternatives: tuple[Alternative, ...]
    """The N best of a beam search, best first: the first is this reply. Empty for greedy and sampling."""


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of a reply. Pieces follow each other; all together they are its text."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    id: str
    reply: Reply


@dataclass(frozen=True, slots=True)
class Failed:
    """No reply, and why. ``message`` may be shown to anyone; ``field`` is the option at fault, if any."""

    id: str
    message: str
    field: str | None = None


Event = Piece | Finished | Failed
