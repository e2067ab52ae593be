"""Beam search against its definition: brute force over every path, and a beam that is never stopped early."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatbot.beam import Beam, Hypothesis, length_penalty
from chatbot.decoding import FORBIDDEN
from chatbot.options import DecodingOptions

END = 0
Ids = tuple[int, ...]
Step = Callable[[Ids], list[float]]
"""The log-probabilities of every token after some ids: the whole of a toy model."""


def toy(seed: int, vocabulary: int, sharpness: float, forbidden: float = 0.0) -> Step:
    """A model without structure: a random distribution after every path, the same for the same seed."""

    def step(ids: Ids) -> list[float]:
        rng = random.Random(f"{seed} {ids}")
        logits = [rng.gauss(0, sharpness) for _ in range(vocabulary)]
        total = math.log(math.fsum(map(math.exp, logits)))
        keep = rng.randrange(vocabulary)
        return [
            FORBIDDEN if i != keep and rng.random() < forbidden else logit - total
            for i, logit in enumerate(logits)
        ]

    return step


def search(beam: Beam, step: Step) -> Iterator[Beam]:
    """The beam after every step."""
    while not beam.done:
        scores = torch.tensor([step(h.ids) for h in beam.live], dtype=torch.float64)
        before = scores.clone()
        parents = beam.advance(scores, scores)
        assert torch.equal(scores, before)
        assert len(parents) == len(beam.live)
        yield beam


def found(options: DecodingOptions, step: Step) -> list[Hypothesis]:
    *_, last = search(Beam(options, END), step)
    return last.best()


def every_reply(step: Step, longest: int) -> Iterator[tuple[Ids, float]]:
    """Every path that ended or was cut off, with its log-probability, by exhaustion."""
    unfinished: list[tuple[Ids, float]] = [((), 0.0)]
    while unfinished:
        ids, total = unfinished.pop()
        for token, logprob in enumerate(step(ids)):
            path = (*ids, token), total + logprob
            if logprob == FORBIDDEN:
                continue
            if token == END or len(path[0]) == longest:
                yield path
            else:
                unfinished.append(path)


def score(total: float, ids: Ids, alpha: float) -> float:
    return total / math.pow((5 + len(ids)) / 6, alpha)


ALPHAS = st.sampled_from([0.0, 0.6, 1.0, 2.5])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    longest=st.integers(1, 5),
    n_best=st.integers(1, 6),
    alpha=ALPHAS,
    sharpness=st.sampled_from([0.3, 2.0]),
    forbidden=st.sampled_from([0.0, 0.4]),
)
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_replies(
    seed: int, longest: int, n_best: int, alpha: float, sharpness: float, forbidden: float
) -> None:
    step = toy(seed, 3, sharpness, forbidden)
    options = DecodingOptions(
        decoding="beam",
        beam_size=16,
        n_best=n_best,
        length_penalty=alpha,
        min_tokens=0,
        max_tokens=longest,
    )
    ranked = sorted(every_reply(step, longest), key=lambda path: -score(path[1], path[0], alpha))[:n_best]
    replies = found(options, step)
    assert [h.ids for h in replies] == [ids for ids, _ in ranked]
    assert [h.total for h in replies] == pytest.approx([total for _, total in ranked])
    assert [h.score(alpha) for h in replies] == pytest.approx([score(t, i, alpha) for i, t in ranked])
    assert all(sum(h.logprobs) == pytest.approx(h.total) for h in replies)
    assert all(h.finish_reason == ("stop" if h.ids[-1] == END else "length") for h in replies)


class Patient(Beam):
    """A beam that goes on to the longest reply, whatever it has found."""

    def _decided(self) -> bool:
        return False


OPTIONS = st.builds(
    lambda size, n_best, alpha, diversity, longest: DecodingOptions(
        decoding="beam",
        beam_size=size,
        n_best=min(size, n_best),
        length_penalty=alpha,
        diversity_penalty=diversity,
        min_tokens=0,
        max_tokens=longest,
    ),
    st.integers(1, 5),
    st.integers(1, 3),
    ALPHAS,
    st.sampled_from([0.0, 0.4, 3.0]),
    st.integers(1, 9),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), OPTIONS)
def test_stopping_early_loses_nothing(seed: int, options: DecodingOptions) -> None:
    step = toy(seed, 5, 1.5)
    *_, patient = search(Patient(options, END), step)
    assert found(options, step) == patient.best()


def test_the_search_stops_when_the_best_can_no_longer_be_beaten() -> None:
    def step(ids: Ids) -> list[float]:
        return [math.log(0.9), math.log(0.1)] if len(ids) == 2 else [math.log(0.1), math.log(0.9)]

    options = DecodingOptions(decoding="beam", beam_size=2, min_tokens=0, max_tokens=200)
    steps = list(search(Beam(options, END), step))
    assert len(steps) == 3
    assert steps[-1].best()[0].ids == (1, 1, END)


def test_a_finished_path_that_a_longer_one_can_still_beat_does_not_stop_the_search() -> None:
    """With a length penalty, nearly certain tokens raise the score of a path that is behind now."""
    certain = math.log(0.999)

    def step(ids: Ids) -> list[float]:
        if not ids:
            return [math.log(0.6), math.log(0.4)]
        return [certain, math.log(0.001)] if len(ids) == 9 else [math.log(0.001), certain]

    options = DecodingOptions(decoding="beam", beam_size=2, length_penalty=2, min_tokens=0, max_tokens=20)
    assert found(options, step)[0].ids == (*(1,) * 9, END)


def slow_beam(step: Step, options: DecodingOptions) -> list[tuple[Ids, float]]:
    """Beam search in the plainest words, without early stopping."""
    live: list[tuple[Ids, float]] = [((), 0.0)]
    finished: list[tuple[Ids, float]] = []
    for length in itertools.count(1):
        candidates = []
        for ids, total in live:
            ranked = sorted(enumerate(step(ids)), key=lambda pair: -pair[1])
            for rank, (token, logprob) in enumerate(ranked):
                cost = options.diversity_penalty * rank
                candidates.append((total + logprob - cost, (*ids, token), total + logprob))
        live = []
        for _, ids, total in sorted(candidates, key=lambda candidate: -candidate[0]):
            if len(live) == options.beam_size:
                break
            (finished if ids[-1] == END else live).append((ids, total))
        if length == options.max_tokens or not live:
            break
    finished += live
    finished.sort(key=lambda path: -score(path[1], path[0], options.length_penalty))
    return finished[: options.n_best]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), OPTIONS)
@example(0, DecodingOptions(decoding="beam", beam_size=1, min_tokens=0, max_tokens=3))
def test_a_narrow_beam_does_what_its_definition_says(seed: int, options: DecodingOptions) -> None:
    step = toy(seed, 4, 1.0)
    assert [h.ids for h in found(options, step)] == [ids for ids, _ in slow_beam(step, options)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), OPTIONS, st.sampled_from([0.3, 4.0]))
def test_what_is_settled_only_grows_and_begins_the_reply(
    seed: int, options: DecodingOptions, sharpness: float
) -> None:
    step = toy(seed, 4, sharpness)
    settled = [beam.settled() for beam in search(Beam(options, END), step)]
    final = found(options, step)[0].ids
    assert settled[-1] == final
    for earlier, later in itertools.pairwise(settled):
        assert later[: len(earlier)] == earlier


def test_ties_are_settled_by_order() -> None:
    def even(_: Ids) -> list[float]:
        return [math.log(0.25)] * 4

    options = DecodingOptions(decoding="beam", beam_size=2, n_best=2, min_tokens=0, max_tokens=2)
    assert [h.ids for h in found(options, even)] == [(END,), (1, END)]


def test_parents_say_where_each_path_came_from() -> None:
    step = toy(3, 5, 1.0)
    options = DecodingOptions(decoding="beam", beam_size=4, min_tokens=0, max_tokens=6)
    beam = Beam(options, END)
    while not beam.done:
        before = [h.ids for h in beam.live]
        scores = torch.tensor([step(ids) for ids in before], dtype=torch.float64)
        parents = beam.advance(scores, scores)
        assert [h.ids[:-1] for h in beam.live] == [before[parent] for parent in parents]


def test_guidance_and_record_are_kept_apart() -> None:
    """The repetition penalty changes what guides the search, not the log-probabilities that are reported."""
    options = DecodingOptions(decoding="beam", beam_size=1, min_tokens=0, max_tokens=1)
    beam = Beam(options, END)
    beam.advance(torch.tensor([[-9.0, -1.0, -2.0]]), torch.tensor([[-9.0, -3.0, -0.5]]))
    (reply,) = beam.best()
    assert (reply.ids, reply.total, reply.logprobs) == ((1,), -1.0, (-3.0,))


@pytest.mark.parametrize(("tokens", "alpha", "expected"), [(1, 2.0, 1.0), (7, 1.0, 2.0), (7, 0.0, 1.0)])
def test_the_length_penalty_is_that_of_wu_et_al(tokens: int, alpha: float, expected: float) -> None:
    assert length_penalty(tokens, alpha) == expected


def test_replies_that_count_as_the_same_are_found_once() -> None:
    def parity(ids: Sequence[int]) -> int:
        return sum(ids) % 2

    step = toy(5, 6, 0.5)
    options = DecodingOptions(decoding="beam", beam_size=6, n_best=4, min_tokens=0, max_tokens=4)
    *_, beam = search(Beam(options, END, same=parity), step)
    assert sorted(parity(h.ids) for h in beam.best()) == [0, 1]
