"""Modified Kneser-Ney against a plain implementation of its equations, and numbers found by hand."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from training.ngram import (
    END,
    FALLBACK_DISCOUNTS,
    UNKNOWN,
    NGramModel,
    Sequences,
    Spelling,
    Vocabulary,
    discounts_of,
)

BEGIN = -1


class PlainModel:
    """The equations of the paper, one n-gram at a time, over dictionaries."""

    def __init__(self, sequences: Sequence[Sequence[int]], symbols: int, order: int) -> None:
        self.symbols, self.order = symbols, order
        padded = [(BEGIN, *sequence) for sequence in sequences]
        count = Counter(
            sequence[i : i + n]
            for sequence in padded
            for n in range(1, order + 1)
            for i in range(len(sequence) - n + 1)
        )
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for gram in count:
            before[gram[1:]].add(gram[0])
        self.adjusted: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
        for gram in count:
            if gram != (BEGIN,):
                whole = len(gram) == order or gram[0] == BEGIN
                self.adjusted[gram[:-1]][gram[-1]] = count[gram] if whole else len(before[gram])
        self.discounts = [self._discounts(n) for n in range(1, order + 1)]

    def _discounts(self, n: int) -> tuple[float, float, float]:
        found = [a for u, after in self.adjusted.items() if len(u) == n - 1 for a in after.values()]
        n1, n2, n3, n4 = (found.count(k) for k in (1, 2, 3, 4))
        if not (n1 and n2 and n3 and n4):
            return FALLBACK_DISCOUNTS
        y = n1 / (n1 + 2 * n2)
        discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return discounts if min(discounts) > 0 else FALLBACK_DISCOUNTS

    def probability(self, word: int, context: tuple[int, ...]) -> float:
        lower = self.probability(word, context[1:]) if context else 1 / self.symbols
        after = self.adjusted.get(context)
        if not after:
            return lower
        discount = [0.0, *self.discounts[len(context)]]
        total = sum(after.values())
        taken = sum(discount[min(a, 3)] for a in after.values())
        own = after.get(word, 0)
        return (own - discount[min(own, 3)]) / total + taken / total * lower

    def log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        logs = []
        for sequence in sequences:
            padded = (BEGIN, *sequence)
            for i in range(1, len(padded)):
                context = padded[max(0, i - self.order + 1) : i]
                logs.append(math.log(self.probability(padded[i], context)))
        return logs


def chatter(symbols: int, count: int, seed: int) -> list[list[int]]:
    """Sequences in which some symbols are frequent, and each makes a few others likely; some are empty."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(symbols)]
    sequences = []
    for _ in range(count):
        sequence: list[int] = []
        while rng.random() < 0.85:
            follow = sequence and rng.random() < 0.6
            sequence.append(
                (3 * sequence[-1] + 1) % symbols if follow else rng.choices(range(symbols), weights)[0]
            )
        sequences.append(sequence)
    return sequences


TRAIN = chatter(11, 150, seed=1)
OTHER = chatter(11, 60, seed=2)
SYMBOLS = 13
"""Two more than ever occur."""


@pytest.mark.parametrize("order", range(1, 8))
def test_every_probability_is_that_of_the_plain_model(order: int) -> None:
    model = NGramModel.train(Sequences.of(TRAIN), symbols=SYMBOLS, order=order)
    plain = PlainModel(TRAIN, SYMBOLS, order)

    for sequences in (TRAIN, [*OTHER, [11, 12, 0, 12]]):
        np.testing.assert_allclose(
            model.log_probabilities(Sequences.of(sequences)), plain.log_probabilities(sequences), rtol=1e-12
        )


def test_the_discounts_here_are_estimated_and_not_all_the_same() -> None:
    discounts = NGramModel.train(Sequences.of(TRAIN), symbols=SYMBOLS, order=4).discounts

    assert discounts[0] == FALLBACK_DISCOUNTS  # eleven symbols, none of them rare
    assert FALLBACK_DISCOUNTS not in discounts[1:]
    assert len(set(discounts)) == 4


@pytest.mark.parametrize("order", range(1, 8))
def test_after_every_context_the_probabilities_sum_to_one(order: int) -> None:
    model = NGramModel.train(Sequences.of(TRAIN), symbols=SYMBOLS, order=order)
    contexts = [sequence[:end] for sequence in TRAIN[:20] + OTHER[:20] for end in range(len(sequence) + 1)]

    for context in [[], [12], [12, 3], *contexts]:
        logs = model.log_probabilities(Sequences.of([*context, symbol] for symbol in range(SYMBOLS)))
        last = logs.reshape(SYMBOLS, -1)[:, -1]
        assert np.exp(last).sum() == pytest.approx(1, abs=1e-12)


def test_single_symbols_by_hand() -> None:
    model = NGramModel.train(Sequences.of([[0, 0, 1]]), symbols=3, order=1)
    left = 1.5 / 3  # D2 of the symbol seen twice, D1 of the other

    found = np.exp(model.log_probabilities(Sequences.of([[0, 1, 2]])))

    np.testing.assert_allclose(found, [(2 - 1) / 3 + left / 3, (1 - 0.5) / 3 + left / 3, left / 3])


def test_pairs_by_hand() -> None:
    model = NGramModel.train(Sequences.of([[0, 1], [0, 1], [2, 1]]), symbols=3, order=2)
    # 0 follows the beginning, 1 follows 0 and 2, 2 follows the beginning: counts of 1, 2 and 1.
    single = [0.5 / 4 + 0.5 / 3, 1 / 4 + 0.5 / 3, 0.5 / 4 + 0.5 / 3]

    found = np.exp(model.log_probabilities(Sequences.of([[0, 1], [2, 0]])))

    np.testing.assert_allclose(
        found,
        [
            (2 - 1) / 3 + 1.5 / 3 * single[0],  # twice of three begin with 0, once with 2
            (2 - 1) / 2 + 1 / 2 * single[1],
            (1 - 0.5) / 3 + 1.5 / 3 * single[2],
            0.5 * single[0],  # 2 and 0 never stood together
        ],
    )


def test_many_symbols_and_a_high_order_do_not_collide() -> None:
    symbols = 10**6
    train, other = ([[symbols - 1 - s for s in sequence] for sequence in part] for part in (TRAIN, OTHER))
    model = NGramModel.train(Sequences.of(train), symbols=symbols, order=7)

    expected = PlainModel(train, symbols, 7).log_probabilities(other)

    np.testing.assert_allclose(model.log_probabilities(Sequences.of(other)), expected, rtol=1e-12)


def test_what_was_never_seen_is_equally_likely() -> None:
    model = NGramModel.train(Sequences.of([]), symbols=8, order=3)

    np.testing.assert_allclose(np.exp(model.log_probabilities(Sequences.of([[1, 2, 3]]))), 1 / 8)


@pytest.mark.parametrize("sequences", [[[]], [[0]], [[0, 0]], [[0], [0], [0]], [[0, 1, 2, 3]] * 5])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_tiny_corpora_leave_something_to_every_symbol(sequences: list[list[int]], order: int) -> None:
    model = NGramModel.train(Sequences.of(sequences), symbols=5, order=order)

    logs = model.log_probabilities(Sequences.of([[0, 1, 2, 3], [4, 4], [0, 0, 0]]))

    assert np.isfinite(logs).all()
    assert set(model.discounts) == {FALLBACK_DISCOUNTS}


def test_discounts_by_hand() -> None:
    counts = np.array([1] * 4 + [2] * 3 + [3] * 2 + [4] + [9, 0])  # y = 4 / (4 + 6)

    assert discounts_of(counts) == pytest.approx((1 - 0.8 * 3 / 4, 2 - 1.2 * 2 / 3, 3 - 1.6 * 1 / 2))


@pytest.mark.parametrize(
    "counts",
    [
        [],
        [2, 3, 4],
        [1, 3, 4],
        [1, 2, 4],
        [1, 2, 3],
        [1] * 9 + [2] + [3] * 9 + [4],  # D2 would be below 0
        [1] * 9 + [2] * 9 + [3] + [4] * 9,  # and here D3+
    ],
)
def test_discounts_that_cannot_be_estimated_are_the_fallback(counts: list[int]) -> None:
    assert discounts_of(np.array(counts, np.int64)) == FALLBACK_DISCOUNTS


def test_nothing_to_score_has_no_probabilities() -> None:
    model = NGramModel.train(Sequences.of(TRAIN), symbols=SYMBOLS, order=3)

    assert model.log_probabilities(Sequences.of([])).shape == (0,)
    assert model.log_probabilities(Sequences.of([[], []])).shape == (0,)


@pytest.mark.parametrize("symbol", [-1, 3])
def test_a_symbol_out_of_range_is_refused(symbol: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        NGramModel.train(Sequences.of([[0, symbol]]), symbols=3, order=2)
    with pytest.raises(ValueError, match="from 0 to 2"):
        NGramModel.train(Sequences.of([[0]]), symbols=3, order=2).log_probabilities(Sequences.of([[symbol]]))


def test_an_order_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="order 0"):
        NGramModel.train(Sequences.of([[0]]), symbols=3, order=0)


def test_sequences_are_taken_in_any_order() -> None:
    sequences = Sequences.of([[1, 2], [], [3], [4, 5, 6]])

    taken = sequences.take(np.array([3, 1, 0]))

    assert taken.symbols.tolist() == [4, 5, 6, 1, 2]
    assert taken.start.tolist() == [0, 3, 3, 5]
    assert taken.lengths.tolist() == [3, 0, 2]


# ---- Words -----------------------------------------------------------------------------------------

TURNS = [["yes", "we", "can"], ["no", "we", "can", "not"], []]


def test_a_vocabulary_keeps_what_is_seen_often_enough() -> None:
    vocabulary = Vocabulary.of(TURNS, min_count=2)

    assert list(vocabulary) == ["can", "we"]
    assert "we" in vocabulary
    assert "not" not in vocabulary
    assert vocabulary.symbols == 4
    assert Vocabulary.of(TURNS, min_count=1).symbols == 7
    assert Vocabulary.of(TURNS, min_count=3).symbols == 2


def test_turns_are_encoded_with_their_ends_and_the_unknown() -> None:
    vocabulary = Vocabulary.of(TURNS, min_count=2)

    encoded = vocabulary.encode(TURNS)

    assert encoded.symbols.tolist() == [UNKNOWN, 3, 2, END, UNKNOWN, 3, 2, UNKNOWN, END, END]
    assert encoded.start.tolist() == [0, 4, 9, 10]


def test_a_spelling_is_that_of_its_bytes_and_of_its_end() -> None:
    words = ["Anna", "Hanna", "Zoë", "Anna"]
    plain = PlainModel([[*word.encode(), 256] for word in words], 257, 6)
    spelling = Spelling.train(words)

    asked = ["Anna", "Anne", "Zo", "👍"]

    expected = [sum(plain.log_probabilities([[*word.encode(), 256]])) for word in asked]
    np.testing.assert_allclose(spelling.log_probabilities(asked), expected, rtol=1e-12)


def test_a_word_like_those_learned_is_likelier_than_any_other() -> None:
    spelling = Spelling.train(f"{street}street" for street in ("Mill", "High", "Oak", "Park", "Hill"))

    known, near, far = spelling.log_probabilities(["Millstreet", "Pinestreet", "五つ👍q\x00"])

    assert known > near > far
    assert math.isfinite(far)


def test_no_word_to_spell_costs_nothing() -> None:
    assert Spelling.train(["a"]).log_probabilities([]).tolist() == []


def test_without_words_to_learn_from_all_bytes_are_equally_likely() -> None:
    np.testing.assert_allclose(Spelling.train([]).log_probabilities(["ab"]), -3 * math.log(257))
