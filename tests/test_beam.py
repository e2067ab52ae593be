"""Beam search against its definition: brute force over every path, and a beam that is never stopped early."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatbot.beam import LEAST_ATTENTION, Beam, Hypothesis, coverage, length_penalty
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


def gaze(ids: Ids) -> list[float]:
    """What every path looks at: weights of three tokens that should be looked at, and of others."""
    rng = random.Random(f"gaze {ids}")
    weights = [rng.random() ** 3 for _ in range(4)]
    return [weight / sum(weights) for weight in weights[:3]]


def search(beam: Beam, step: Step) -> Iterator[Beam]:
    """The beam after every step."""
    while not beam.done:
        scores = torch.tensor([step(h.ids) for h in beam.live], dtype=torch.float64)
        attention = torch.tensor([gaze(h.ids) for h in beam.live], dtype=torch.float64)
        before = scores.clone()
        parents = beam.advance(scores, scores, attention)
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


def score(total: float, ids: Ids, alpha: float, beta: float = 0.0) -> float:
    """Equation 14 of Wu et al. (2016)."""
    looks = [gaze(ids[:at]) for at in range(len(ids))]
    covered = sum(math.log(max(min(math.fsum(weights), 1), 1e-6)) for weights in zip(*looks, strict=True))
    return total / math.pow((5 + len(ids)) / 6, alpha) + beta * covered


ALPHAS = st.sampled_from([0.0, 0.6, 1.0, 2.5])
BETAS = st.sampled_from([0.0, 0.2, 2.0])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    longest=st.integers(1, 5),
    n_best=st.integers(1, 6),
    alpha=ALPHAS,
    beta=BETAS,
    sharpness=st.sampled_from([0.3, 2.0]),
    forbidden=st.sampled_from([0.0, 0.4]),
)
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_replies(
    seed: int, longest: int, n_best: int, alpha: float, beta: float, sharpness: float, forbidden: float
) -> None:
    # Of paths of one length the likeliest are kept, which are the best only where coverage does not count.
    longest = min(longest, 4) if beta else longest
    step = toy(seed, 3, sharpness, forbidden)
    options = DecodingOptions(
        decoding="beam",
        beam_size=16,
        n_best=n_best,
        length_penalty=alpha,
        coverage_penalty=beta,
        min_tokens=0,
        max_tokens=longest,
    )
    everything = every_reply(step, longest)
    ranked = sorted(everything, key=lambda path: -score(path[1], path[0], alpha, beta))[:n_best]
    replies = found(options, step)
    assert [h.ids for h in replies] == [ids for ids, _ in ranked]
    assert [h.total for h in replies] == pytest.approx([total for _, total in ranked])
    assert [h.score(alpha) for h in replies] == pytest.approx([score(t, i, alpha, beta) for i, t in ranked])
    assert all(sum(h.logprobs) == pytest.approx(h.total) for h in replies)
    assert all(h.finish_reason == ("stop" if h.ids[-1] == END else "length") for h in replies)


class Patient(Beam):
    """A beam that goes on to the longest reply, whatever it has found."""

    def _decided(self, group: object) -> bool:
        return False


OPTIONS = st.builds(
    lambda size, n_best, alpha, beta, diversity, longest: DecodingOptions(
        decoding="beam",
        beam_size=size,
        n_best=min(size, n_best),
        length_penalty=alpha,
        coverage_penalty=beta,
        diversity_penalty=diversity,
        min_tokens=0,
        max_tokens=longest,
    ),
    st.integers(1, 5),
    st.integers(1, 3),
    ALPHAS,
    BETAS,
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


@dataclass
class SlowGroup:
    live: list[tuple[Ids, float]] = field(default_factory=lambda: [((), 0.0)])
    finished: list[tuple[Ids, float]] = field(default_factory=list)


def slow_beam(step: Step, options: DecodingOptions) -> list[tuple[Ids, float]]:
    """Beam search in the plainest words. A group ends when it has nothing to gain any more."""
    groups = [SlowGroup() for _ in range(options.beam_groups)]
    width = options.beam_size // options.beam_groups

    def goodness(path: tuple[Ids, float]) -> float:
        return score(path[1], path[0], options.length_penalty, options.coverage_penalty)

    for length in range(1, options.max_tokens + 1):
        said: list[int] = []
        for group in [group for group in groups if group.live]:
            candidates = []
            for ids, total in group.live:
                guided = [
                    (p - options.group_penalty * said.count(token), token, p)
                    for token, p in enumerate(step(ids))
                ]
                for rank, (guide, token, logprob) in enumerate(sorted(guided, key=lambda one: -one[0])):
                    cost = options.diversity_penalty * rank
                    candidates.append((total + guide - cost, (*ids, token), total + logprob))
            group.live = []
            for _, ids, total in sorted(candidates, key=lambda candidate: -candidate[0]):
                if len(group.live) == width:
                    break
                (group.finished if ids[-1] == END else group.live).append((ids, total))
            said += [ids[-1] for ids, _ in group.live]
            if length == options.max_tokens:
                group.finished += group.live
                group.live = []
            wanted = min(options.n_best, width)
            group.finished = sorted(group.finished, key=lambda path: -goodness(path))[:wanted]
            reach = max((total for _, total in group.live), default=-math.inf)
            reach /= math.pow((5 + options.max_tokens) / 6, options.length_penalty)
            if len(group.finished) == wanted and goodness(group.finished[-1]) >= reach:
                group.live = []
    finished = sorted((path for group in groups for path in group.finished), key=lambda path: -goodness(path))
    return list(dict(finished).items())[: options.n_best]


GROUPED = st.builds(
    lambda groups, width, n_best, alpha, beta, diversity, penalty, longest: DecodingOptions(
        decoding="beam",
        beam_size=groups * width,
        beam_groups=groups,
        group_penalty=penalty,
        n_best=min(groups * width, n_best),
        length_penalty=alpha,
        coverage_penalty=beta,
        diversity_penalty=diversity,
        min_tokens=0,
        max_tokens=longest,
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 8),
    ALPHAS,
    BETAS,
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([0.0, 0.3, 5.0]),
    st.integers(1, 7),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), OPTIONS | GROUPED)
@example(0, DecodingOptions(decoding="beam", beam_size=1, min_tokens=0, max_tokens=3))
def test_a_narrow_beam_does_what_its_definition_says(seed: int, options: DecodingOptions) -> None:
    step = toy(seed, 4, 1.0)
    assert [h.ids for h in found(options, step)] == [ids for ids, _ in slow_beam(step, options)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), OPTIONS | GROUPED, st.sampled_from([0.3, 4.0]))
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


def test_groups_without_a_penalty_search_the_same() -> None:
    step = toy(8, 6, 1.0)
    one = DecodingOptions(decoding="beam", beam_size=2, n_best=2, min_tokens=0, max_tokens=6)
    three = one.model_copy(update={"beam_size": 6, "beam_groups": 3, "group_penalty": 0.0})
    assert found(three, step) == found(one, step)


def test_a_group_pays_for_the_tokens_of_those_before_it() -> None:
    """One token is likeliest everywhere; with a penalty, every group but the first begins with another."""

    def step(ids: Ids) -> list[float]:
        return [math.log(p) for p in ((0.1, 0.5, 0.25, 0.15) if not ids else (0.97, 0.01, 0.01, 0.01))]

    def beginnings(penalty: float) -> list[int]:
        options = DecodingOptions(
            decoding="beam", beam_size=3, beam_groups=3, group_penalty=penalty, n_best=3, min_tokens=0
        )
        return [h.ids[0] for h in found(options, step)]

    assert beginnings(0.0) == [1]
    assert beginnings(0.3) == [1]
    assert beginnings(0.5) == [1, 2]
    assert beginnings(2.0) == [1, 2, 3]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_parents_say_where_each_path_came_from(groups: int) -> None:
    step = toy(3, 5, 1.0)
    options = DecodingOptions(
        decoding="beam", beam_size=4, beam_groups=groups, min_tokens=0, max_tokens=6, n_best=4
    )
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


def test_the_coverage_penalty_is_that_of_wu_et_al() -> None:
    seen = torch.tensor([[0.5, 3.0, 1.0], [0.25, 0.5, 0.0]], dtype=torch.float64)
    expected = [math.log(0.5), math.log(0.25) + math.log(0.5) + math.log(LEAST_ATTENTION)]
    assert coverage(seen, 2.0).tolist() == pytest.approx([2 * value for value in expected])


def test_replies_that_count_as_the_same_are_found_once() -> None:
    def parity(ids: Sequence[int]) -> int:
        return sum(ids) % 2

    step = toy(5, 6, 0.5)
    options = DecodingOptions(decoding="beam", beam_size=6, n_best=4, min_tokens=0, max_tokens=4)
    *_, beam = search(Beam(options, END, same=parity), step)
    assert sorted(parity(h.ids) for h in beam.best()) == [0, 1]
