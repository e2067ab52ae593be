"""What was going on while a reply was made, written down token by token for those who ask.

A `Note` is taken of a row in a step: what else was likely there, and what the row looked at. All paths that
go on from the row share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from chatbot.replies import Attention, RememberedToken, TokenAlternative
from chatbot.tokenizer import SPECIALS, Tokenizer

ATTENDED: Final = 64
"""Remembered tokens that are told about, those with the most attention; a memory can hold thousands."""


class Note(NamedTuple):
    """Of one token of a reply."""

    likeliest: tuple[tuple[int, float], ...]  # ids and the model's own log-probabilities, likeliest first
    attention: tuple[float, ...]  # a weight for each remembered token


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a reply can look at."""

    columns: tuple[int, ...]
    """Where it is in the memory."""
    tokens: tuple[int, ...]
    ages: tuple[int, ...]
    """Of the turn that each token is from: 0 for the turn just before the reply."""

    @classmethod
    def of(cls, memory: Any, row: int) -> Remembered:
        """Row ``row`` of a decoder's memory."""
        columns = torch.nonzero(memory.mask[row]).squeeze(1)
        tokens, ages = memory.tokens[row, columns].tolist(), memory.age[row, columns].tolist()
        return cls(tuple(columns.tolist()), tuple(tokens), tuple(ages))

    @property
    def answered(self) -> list[int]:
        """Columns of the words in the turn that is answered."""
        words = zip(self.columns, self.tokens, self.ages, strict=True)
        return [column for column, token, age in words if age == 0 and token >= len(SPECIALS)]


def take_notes(logprobs: Tensor, attention: Tensor, likeliest: int) -> list[Note]:
    """A note of each row: ``logprobs`` (B, V) before any option acts, ``attention`` (B, M)."""
    values, ids = logprobs.topk(min(likeliest, logprobs.shape[1]), dim=1)
    return [
        Note(tuple(zip(row_ids, row_values, strict=True)), tuple(weights))
        for row_ids, row_values, weights in zip(
            ids.tolist(), values.tolist(), attention.tolist(), strict=True
        )
    ]


def alternatives(notes: Sequence[Note], tokenizer: Tokenizer) -> tuple[tuple[TokenAlternative, ...], ...]:
    """For each token, what was likeliest there."""
    return tuple(
        tuple(TokenAlternative(token, piece(tokenizer, token), p) for token, p in note.likeliest)
        for note in notes
    )


def attention(notes: Sequence[Note], remembered: Remembered, tokenizer: Tokenizer) -> Attention:
    """What each token looked at, of the `ATTENDED` remembered tokens that were looked at most."""
    columns = range(len(remembered.tokens))
    totals = [sum(note.attention[column] for note in notes) for column in columns]
    kept = sorted(sorted(columns, key=lambda column: -totals[column])[:ATTENDED])
    return Attention(
        tuple(
            RememberedToken(token, piece(tokenizer, token), age)
            for token, age in ((remembered.tokens[column], remembered.ages[column]) for column in kept)
        ),
        tuple(tuple(note.attention[column] for column in kept) for note in notes),
    )


def piece(tokenizer: Tokenizer, token: int) -> str:
    """A token for people to read: its text with the space before it, or its name."""
    return SPECIALS[token] if token < len(SPECIALS) else tokenizer.token_bytes(token).decode(errors="replace")
