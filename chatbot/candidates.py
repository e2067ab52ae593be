"""Whole replies of which one is to be chosen: the end of every search."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from chatbot.notes import Note
from chatbot.replies import FinishReason


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reply that its search has finished."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """The model's own log-probability of each id."""
    finish_reason: FinishReason
    score: float
    """By which it is compared with others of the same search."""
    notes: tuple[Note, ...] = ()


def ranked(candidates: Iterable[Candidate], same: Callable[[tuple[int, ...]], Hashable]) -> list[Candidate]:
    """The candidates, best first and of equals the earlier first; of those with the same ``same`` only the
    best.
    """
    first: dict[Hashable, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: -c.score):
        first.setdefault(same(candidate.ids), candidate)
    return list(first.values())
