"""What goes into the batcher and what comes out: requests, replies, and the events on the way to a reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from chatbot.options import DecodingOptions
from chatbot.transcripts import Role

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """A conversation to be answered. ``id`` is the caller's, unique among the requests in the batcher."""

    id: str
    turns: tuple[tuple[Role, str], ...]
    options: DecodingOptions
    conversation: str = ""
    """What the caller calls it, for the batcher to remember how far it has read; empty for no need."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the N best replies of a beam search, or of several samples."""

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    """The model's log-probability of the whole reply, natural logarithm."""
    score: float
    """What the N best are ranked by; `docs/decoding.md` says how it is made up."""


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """A token that was likely at some place of a reply."""

    id: int
    text: str
    """With the space before it; the name of a special token."""
    logprob: float
    """The model's own, before any option acts on it, natural logarithm."""


@dataclass(frozen=True, slots=True)
class RememberedToken:
    """A token of the conversation that a reply could look at."""

    id: int
    text: str
    age: int
    """In turns, 0 for the turn just before the reply; the oldest that the model tells apart stands for all
    older ones.
    """


@dataclass(frozen=True, slots=True)
class Attention:
    """What a reply looked at."""

    remembered: tuple[RememberedToken, ...]
    """In the order of the conversation; of a long one, those that were looked at most."""
    weights: tuple[tuple[float, ...], ...]
    """For each token of the reply, a weight of each remembered token; 1 in all, if none is left out."""


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
    """The N best of a beam search or of several samples, best first: the first is this reply. Else empty."""
    top: tuple[tuple[TokenAlternative, ...], ...] = ()
    """For each token, the likeliest at its place; empty unless asked for."""
    attention: Attention | None = None
    """None unless asked for."""


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


class Load(NamedTuple):
    """What a batcher is busy with: rows in use, and requests that wait for rows or are being read."""

    rows: int
    waiting: int
