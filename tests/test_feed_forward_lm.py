"""The feed-forward language model against its equations, and its training on tiny languages."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training import feed_forward_lm
from training.feed_forward_lm import (
    LEARNING_RATE,
    PATIENCE,
    FeedForward,
    FeedForwardConfig,
    contexts_of,
    train,
)
from training.ngram import Sequences

SMALL = FeedForwardConfig(order=3, embedding=8, hidden=24, epochs=60)


def plain_log_probability(network: FeedForward, context: list[int], symbol: int) -> float:
    """The equations of the paper, number by number."""
    c, h, d = network.embedding.weight, network.hidden.weight, network.hidden.bias
    u, b = network.output.weight, network.output.bias
    w = None if network.direct is None else network.direct.weight
    x = [number for before in context for number in c[before].tolist()]
    hidden = [
        math.tanh(d[j].item() + sum(h[j, i].item() * x[i] for i in range(len(x)))) for j in range(len(d))
    ]
    y = []
    for v in range(len(b)):
        value = b[v].item() + sum(u[v, j].item() * hidden[j] for j in range(len(hidden)))
        if w is not None:
            value += sum(w[v, i].item() * x[i] for i in range(len(x)))
        y.append(value)
    return y[symbol] - math.log(sum(math.exp(value) for value in y))


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("order", [2, 4])
def test_every_probability_is_that_of_the_equations(order: int, direct: bool) -> None:
    torch.manual_seed(5)
    network = FeedForward(7, FeedForwardConfig(order=order, embedding=3, hidden=4, direct=direct)).double()
    sequences = [[0, 6, 2, 2, 1], [], [3], [5, 4]]
    padded = [([7] * (order - 1) + sequence) for sequence in sequences]

    expected = [
        plain_log_probability(network, sequence[i - order + 1 : i], sequence[i])
        for sequence in padded
        for i in range(order - 1, len(sequence))
    ]

    np.testing.assert_allclose(network.log_probabilities(Sequences.of(sequences)), expected, rtol=1e-12)


def test_the_direct_connections_are_used_only_where_asked_for() -> None:
    names = {name for name, _ in FeedForward(5, SMALL).named_parameters()}

    assert "direct.weight" not in names
    assert FeedForward(5, replace(SMALL, direct=True)).get_parameter("direct.weight").shape == (5, 16)


def test_contexts_hold_the_symbols_before_and_nothing_of_other_sequences() -> None:
    contexts = contexts_of(Sequences.of([[1, 2, 3, 4], [], [5], [6, 7]]), order=4, begin=9)

    assert contexts.tolist() == [[9, 9, 9], [9, 9, 1], [9, 1, 2], [1, 2, 3], [9, 9, 9], [9, 9, 9], [9, 9, 6]]


def mean_loss(network: FeedForward, sequences: Sequences) -> float:
    return -float(network.log_probabilities(sequences).mean())


def test_a_language_without_chance_is_learned_to_almost_no_loss() -> None:
    sentence = [0, 1, 0, 2, 0, 3, 1]  # what comes after 0 is told only by what stands before it
    sequences = Sequences.of([sentence] * 200)

    network = train(sequences, 4, SMALL)

    assert mean_loss(network, Sequences.of([sentence])) < 0.05


def test_one_symbol_of_context_cannot_learn_what_needs_two() -> None:
    sentence = [0, 1, 0, 2, 0, 3, 1]

    network = train(Sequences.of([sentence] * 100), 4, replace(SMALL, order=2))

    assert mean_loss(network, Sequences.of([sentence])) > 0.3


def weights(network: FeedForward) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


STRANGERS = Sequences.of([2 * s, 2 * s + 1] * 30 for s in range(20))
"""Sequences that have no symbol in common: learning some makes the others less likely."""


def test_what_does_not_help_with_the_held_out_sequences_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.optim.Optimizer] = []

    class Adam(torch.optim.Adam):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            used.append(self)

    monkeypatch.setattr(torch.optim, "Adam", Adam)

    network = train(STRANGERS, 40, replace(SMALL, epochs=1000))

    untrained = train(STRANGERS, 40, replace(SMALL, epochs=0))
    assert torch.equal(weights(network), weights(untrained))
    # It gave up after `PATIENCE` epochs, and halved the rate after each of them.
    assert used[0].param_groups[0]["lr"] == LEARNING_RATE / 2**PATIENCE


def test_the_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    sequences, config = Sequences.of([[0, 1, 2, 3]] * 30), replace(SMALL, epochs=2)
    torch.manual_seed(1)
    state = torch.get_rng_state()

    first, second, other = (weights(train(sequences, 4, replace(config, seed=seed))) for seed in (1, 1, 2))

    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())  # nobody else's random numbers are touched


def test_training_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_forward_lm, "BATCH", 4)
    sequences = Sequences.of([[0, 1, 2, 3]] * 100)  # of which 90 are learned, each an update

    def readings(seconds: float, minutes: float) -> int:
        """How often a clock was read that moves on each time."""
        times = count()
        train(sequences, 4, replace(SMALL, epochs=2, minutes=minutes), clock=lambda: seconds * next(times))
        return next(times)

    assert readings(seconds=100, minutes=1.5) == 2  # over before it begins
    assert 9 < readings(seconds=10, minutes=1.5) < 14  # within an epoch
    assert readings(seconds=0.4, minutes=1.5) > 2 * 90  # of two whole epochs


def test_a_single_sequence_is_learned_too() -> None:
    network = train(Sequences.of([[0, 1, 2]]), 3, replace(SMALL, epochs=300))

    assert mean_loss(network, Sequences.of([[0, 1, 2]])) < 0.5


def test_empty_sequences_make_no_difference() -> None:
    config = replace(SMALL, epochs=2)
    sequences = [[0, 1, 2], [2, 1]]

    plain = train(Sequences.of(sequences), 3, config)

    assert torch.equal(weights(plain), weights(train(Sequences.of([[], *sequences, []]), 3, config)))


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="no sequence"):
        train(Sequences.of([]), 3, SMALL)
    with pytest.raises(ValueError, match="no sequence"):
        train(Sequences.of([[]]), 3, SMALL)


def test_an_order_without_context_is_refused() -> None:
    with pytest.raises(ValueError, match="order 1"):
        FeedForward(3, replace(SMALL, order=1))


def test_nothing_to_score_has_no_probabilities() -> None:
    assert FeedForward(3, SMALL).log_probabilities(Sequences.of([])).shape == (0,)
