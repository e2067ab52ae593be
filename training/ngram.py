"""n-gram models with interpolated modified Kneser-Ney smoothing, of words and of their spelling.

With a(g) the adjusted count of an n-gram g, u a context of n - 1 symbols and u' = u without its first one:

    p_n(w | u) = (a(uw) - D(a(uw))) / a(u·) + γ(u) p_n-1(w | u')         p_0(w) = 1 / V
    γ(u)       = (D1 N1(u·) + D2 N2(u·) + D3 N3+(u·)) / a(u·)             1 for a context never seen

a(g) is the count at the highest order, below it the number of different symbols that stand before g
(Kneser and Ney 1995), and the count again where nothing can stand before g because it begins a sequence
(Heafield et al. 2013). Nk(u·) are the different symbols w with a(uw) = k, D(k) the discount of that count;
each order has three, for 1, 2 and from 3 on (Chen and Goodman 1999).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FALLBACK_DISCOUNTS: Final = (0.5, 1.0, 1.5)
"""For an order whose counts are too few to estimate them."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences of symbols from 0 on, one after the other."""

    symbols: Ints  # (T,)
    start: Ints  # (S + 1,): sequence s is symbols[start[s] : start[s + 1]]

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> Sequences:
        lengths: list[int] = []
        symbols: list[int] = []
        for sequence in sequences:
            symbols.extend(sequence)
            lengths.append(len(sequence))
        return cls(np.asarray(symbols, np.int64), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @property
    def lengths(self) -> Ints:
        """Symbols of each sequence, (S,)."""
        return np.diff(self.start)

    def take(self, chosen: Ints) -> Sequences:
        """The sequences of these numbers, in that order."""
        lengths = self.lengths[chosen]
        start = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.start[chosen] - start[:-1], lengths)
        return Sequences(self.symbols[np.arange(start[-1]) + shift], start)


# ---- Kneser-Ney ------------------------------------------------------------------------------------


class NGramModel:
    """A trained model: for each order a sorted table of n-grams, found by binary search.

    An n-gram is one integer, the number of its first n - 1 symbols in the table below times (V + 1) plus its
    last symbol, so that any order fits into 64 bits. The symbol V stands before each sequence.
    """

    def __init__(self, symbols: int, levels: Sequence[_Level]) -> None:
        self._symbols = symbols
        self._levels = tuple(levels)

    @classmethod
    def train(cls, sequences: Sequences, *, symbols: int, order: int) -> NGramModel:
        """Of ``symbols`` different ones (V), with contexts of up to ``order`` - 1. Sequences hold their own
        ends, if these are to be predicted.

        Without anything to learn from, every symbol is equally likely. Raises ValueError for an order below 1
        and for a symbol outside 0 to V - 1.
        """
        if order < 1:
            raise ValueError(f"order {order}: must be at least 1")
        stream = _Stream.of(sequences, symbols)
        counted: list[_Counted] = []
        number = np.zeros_like(stream.symbol)  # of the empty context, which all share
        for size in range(1, order + 1):
            counted.append(_Counted.of(stream.keys(number, size)))
            number = counted[-1].number
        adjusted = [*map(_adjusted, counted[:-1], counted[1:]), counted[-1].count]
        adjusted[0] = np.where(counted[0].keys == symbols, 0, adjusted[0])  # V itself is never predicted
        contexts = [1, *(len(table.keys) for table in counted[:-1])]
        return cls(
            symbols,
            [
                _Level.of(t.keys, a, c, symbols + 1)
                for t, a, c in zip(counted, adjusted, contexts, strict=True)
            ],
        )

    @property
    def discounts(self) -> list[tuple[float, float, float]]:
        """D1, D2 and D3+ of each order, from 1 on."""
        return [level.discounts for level in self._levels]

    def log_probabilities(self, sequences: Sequences) -> Floats:
        """Natural logarithm of each symbol's probability after those before it in its sequence, (T,)."""
        stream = _Stream.of(sequences, self._symbols)
        number = np.zeros_like(stream.symbol)
        probability = np.full(len(number), 1 / self._symbols)
        for size, level in enumerate(self._levels, start=1):
            keys = stream.keys(number, size)
            context = keys // (self._symbols + 1)  # -1 stays -1
            number = level.find(keys)
            probability *= level.rest[context]
            probability += level.share[number]
        logs: Floats = np.log(probability[stream.place > 0])
        return logs


@dataclass(frozen=True, slots=True)
class _Stream:
    """Sequences with the symbol V before each."""

    symbol: Ints  # (P,)
    place: Ints  # (P,) in its sequence, 0 for V itself
    radix: int  # V + 1

    @classmethod
    def of(cls, sequences: Sequences, symbols: int) -> _Stream:
        if np.any((sequences.symbols < 0) | (sequences.symbols >= symbols)):
            raise ValueError(f"symbols must be from 0 to {symbols - 1}")
        symbol = np.insert(sequences.symbols, sequences.start[:-1], symbols)
        starts = sequences.start[:-1] + np.arange(len(sequences.start) - 1)
        place = np.arange(len(symbol)) - np.repeat(starts, sequences.lengths + 1)
        return cls(symbol, place, symbols + 1)

    def keys(self, below: Ints, size: int) -> Ints:
        """Of the n-gram of ``size`` that ends at each place, (P,); -1 where its context is not in the table
        below, whose numbers are ``below``, or where it would begin before its sequence.
        """
        context = np.roll(below, 1)
        known = (context >= 0) & (self.place >= size - 1)
        return np.where(known, context * self.radix + self.symbol, -1)


@dataclass(frozen=True, slots=True)
class _Counted:
    """The n-grams of one size in a stream."""

    keys: Ints  # (G,) sorted
    count: Ints  # (G,)
    example: Ints  # (G,) a place where each ends
    number: Ints  # (P,) of the one that ends at each place, -1 for none

    @classmethod
    def of(cls, keys: Ints) -> _Counted:
        places = np.flatnonzero(keys >= 0)
        found, first, inverse, count = np.unique(
            keys[places], return_index=True, return_inverse=True, return_counts=True
        )
        number = np.full(len(keys), -1, np.int64)
        number[places] = inverse
        return cls(found, count, places[first], number)


def _adjusted(table: _Counted, above: _Counted) -> Ints:
    """Different symbols before each n-gram; its count where there cannot be one."""
    before = np.bincount(table.number[above.example], minlength=len(table.keys))
    return np.where(before > 0, before, table.count)


@dataclass(frozen=True, slots=True)
class _Level:
    """What one order adds to the probability of the order below."""

    keys: Ints  # (G,) sorted
    share: Floats  # (G + 1,): (a(uw) - D(a(uw))) / a(u·); the last, 0, is at -1 for what is not in the table
    rest: Floats  # γ of each context, by its number in the table below; the last, 1, likewise
    discounts: tuple[float, float, float]

    @classmethod
    def of(cls, keys: Ints, adjusted: Ints, contexts: int, radix: int) -> _Level:
        discounts = discounts_of(adjusted)
        discount = np.asarray([0.0, *discounts])[np.minimum(adjusted, 3)]
        context = keys // radix
        total = np.bincount(context, adjusted, contexts)
        taken = np.bincount(context, discount, contexts)
        seen = total > 0
        rest = np.where(seen, taken / np.where(seen, total, 1.0), 1.0)
        share = (adjusted - discount) / np.where(seen, total, 1.0)[context]
        return cls(keys, np.append(share, 0.0), np.append(rest, 1.0), discounts)

    def find(self, keys: Ints) -> Ints:
        """Number of each n-gram in this table, -1 where it is not in it."""
        place = np.searchsorted(self.keys, keys)
        found = place < len(self.keys)
        found[found] = self.keys[place[found]] == keys[found]
        return np.where(found, place, -1)


def discounts_of(counts: Ints) -> tuple[float, float, float]:
    """D1, D2 and D3+ from how many n-grams have a count of 1, 2, 3 and 4 (Chen and Goodman 1999).

    With Y = n1 / (n1 + 2 n2), Dk = k - (k + 1) Y n(k+1) / nk. In a tiny or very repetitive corpus one of the
    four is zero, or they do not fall and a discount is not above zero: then all three of the order are
    `FALLBACK_DISCOUNTS`, so that no count is taken back whole and every context leaves something to the rest.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(discount > 0 for discount in found) else FALLBACK_DISCOUNTS


# ---- Words -----------------------------------------------------------------------------------------

UNKNOWN: Final = 0
"""The symbol of all words that are not in a vocabulary."""
END: Final = 1
"""The symbol of a turn's end."""

SPELLING_ORDER: Final = 6
_WORD_END: Final = 256


class Vocabulary:
    """Words by number: those seen often enough, the class of all others, and the end of a turn."""

    def __init__(self, words: Iterable[str]) -> None:
        self._number: Mapping[str, int] = {word: number for number, word in enumerate(words, start=END + 1)}

    @classmethod
    def of(cls, turns: Iterable[Sequence[str]], min_count: int) -> Vocabulary:
        """The words that occur at least ``min_count`` times in ``turns``."""
        counts = Counter(word for turn in turns for word in turn)
        return cls(sorted(word for word, count in counts.items() if count >= min_count))

    def __contains__(self, word: str) -> bool:
        return word in self._number

    def __iter__(self) -> Iterator[str]:
        return iter(self._number)

    @property
    def symbols(self) -> int:
        """Different numbers: words, `UNKNOWN` and `END`."""
        return len(self._number) + 2

    def encode(self, turns: Iterable[Sequence[str]]) -> Sequences:
        """Turns as numbers, each with its end."""
        number = self._number
        return Sequences.of([*(number.get(word, UNKNOWN) for word in turn), END] for turn in turns)


class Spelling:
    """Probability of a word's bytes: an n-gram model of the 256 bytes and the word's end.

    Nothing but bytes is assumed, so every string of characters has a probability above zero.
    """

    def __init__(self, model: NGramModel) -> None:
        self._model = model

    @classmethod
    def train(cls, words: Iterable[str], order: int = SPELLING_ORDER) -> Spelling:
        """From words, each as often as it is given."""
        return cls(NGramModel.train(_spelled(words), symbols=_WORD_END + 1, order=order))

    def log_probabilities(self, words: Sequence[str]) -> Floats:
        """Natural logarithm of the probability of each word given that there is one, (number of words,)."""
        spelled = _spelled(words)
        logs = self._model.log_probabilities(spelled)
        word = np.repeat(np.arange(len(words)), spelled.lengths)
        return np.bincount(word, logs, len(words)).astype(np.float64)  # integers without any word


def _spelled(words: Iterable[str]) -> Sequences:
    return Sequences.of([*word.encode(), _WORD_END] for word in words)
