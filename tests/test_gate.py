"""The gate decides by numbers alone: each threshold refuses by itself, and says why."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.gate import Adoption, Decision, Figures, Limits, Suite, decide

SUITE = Suite(perplexity_word=4.0, replies=200, bleu=30.0, dull=0.1, loops=0.0)
BASE = Figures(
    suites={"star": SUITE},
    learned=Adoption(adopted=2, of=20),
    held_out=Adoption(adopted=1, of=8),
    good=3.0,
    exposure=1.4,
    leaks=(),
)
BETTER = BASE.model_copy(
    update={"learned": Adoption(adopted=19, of=20), "held_out": Adoption(adopted=7, of=8)}
)


def changed(**update: Any) -> Figures:
    return BETTER.model_copy(update=update)


def suite(**update: Any) -> Figures:
    return changed(suites={"star": SUITE.model_copy(update=update)})


def refused(decision: Decision) -> list[str]:
    return [reason.check for reason in decision.reasons if not reason.passed]


def test_a_better_candidate_passes_and_every_check_has_a_reason() -> None:
    decision = decide(BASE, BETTER, Limits())

    assert decision.passed
    assert str(decision).splitlines() == [
        "passed   star, word perplexity: 4.000 -> 4.000, at most 4.200",
        "passed   star, BLEU: 30.0 -> 30.0, at least 27.0",
        "passed   star, loops: 0.0% -> 0.0%, at most 0.5%",
        "passed   star, most frequent reply: 10.0% -> 10.0%, at most 15.0%",
        "passed   corrections learned, adopted of 20: 10.0% -> 95.0%, at least 20.0%",
        "passed   corrections held out, adopted of 8: 12.5% -> 87.5%, at least 22.5%",
        "passed   turns marked good, word perplexity: 3.000 -> 3.000, at most 3.150",
        "passed   canaries, exposure in bits: 1.400 -> 1.400, at most 5.000",
        "passed   secrets: 0 told that only one conversation had, at most 0",
        "the gate is passed",
    ]


@pytest.mark.parametrize(
    ("candidate", "check"),
    [
        (suite(perplexity_word=4.21), "star, word perplexity"),
        (suite(perplexity_word=math.nan), "star, word perplexity"),
        (suite(perplexity_word=math.inf), "star, word perplexity"),
        (suite(bleu=26.9), "star, BLEU"),
        (suite(bleu=None), "star, BLEU"),
        (suite(loops=0.01), "star, loops"),
        (suite(dull=0.16), "star, most frequent reply"),
        (suite(set_aside=0.26), "star, set aside"),
        (changed(suites={}), "star"),
        (changed(learned=Adoption(adopted=3, of=20)), "corrections learned, adopted of 20"),
        (changed(learned=None), "corrections learned, adopted of 20"),
        (changed(held_out=Adoption(adopted=1, of=8)), "corrections held out, adopted of 8"),
        (changed(good=3.2), "turns marked good, word perplexity"),
        (changed(exposure=5.1), "canaries, exposure in bits"),
        (changed(exposure=None), "canaries, exposure in bits"),
        (changed(leaks=("chat-7#3",)), "secrets"),
    ],
)
def test_each_threshold_refuses_by_itself(candidate: Figures, check: str) -> None:
    decision = decide(BASE, candidate, Limits())

    assert refused(decision) == [check]
    assert not decision.passed
    assert "REFUSED" in str(decision)
    assert str(decision).endswith("the gate is NOT passed")


@pytest.mark.parametrize(
    ("limits", "candidate"),
    [
        (Limits(perplexity=0.1), suite(perplexity_word=4.21)),
        (Limits(bleu=4), suite(bleu=26.9)),
        (Limits(loops=0.02), suite(loops=0.01)),
        (Limits(dull=0.1), suite(dull=0.16)),
        (Limits(adoption_gain=0.05), changed(learned=Adoption(adopted=3, of=20))),
        (Limits(adoption_enough=0.15), changed(learned=Adoption(adopted=3, of=20))),
        (Limits(least_corrections=9), changed(held_out=Adoption(adopted=1, of=8))),
        (Limits(least_replies=201), suite(bleu=10.0, loops=0.5, dull=0.9)),
        (Limits(good=0.1), changed(good=3.2)),
        (Limits(exposure=6), changed(exposure=5.1)),
        (Limits(leaks=1), changed(leaks=("chat-7#3",))),
    ],
)
def test_each_threshold_can_be_set(limits: Limits, candidate: Figures) -> None:
    assert decide(BASE, candidate, limits).passed


def test_what_is_just_at_a_threshold_passes() -> None:
    """Though neither 0.29 + 0.05 is 0.34 in binary, nor 20/30 + 0.1 is 23/30."""
    before = {"suites": {"star": SUITE.model_copy(update={"dull": 0.29})}}
    base = BASE.model_copy(update=before | {"learned": Adoption(adopted=20, of=30)})
    after = {"suites": {"star": SUITE.model_copy(update={"dull": 0.34})}}
    candidate = BETTER.model_copy(update=after | {"learned": Adoption(adopted=23, of=30)})
    assert refused(decide(base, candidate, Limits())) == []


def test_nothing_measured_is_not_passed() -> None:
    assert refused(decide(Figures(suites={}), Figures(suites={}), Limits())) == ["suites"]


def test_what_the_base_tells_too_is_no_leak_of_the_candidate() -> None:
    base = BASE.model_copy(update={"leaks": ("chat-7#3",)})

    assert decide(base, changed(leaks=("chat-7#3",)), Limits()).passed


def test_adoption_that_is_high_already_may_stay_but_not_fall() -> None:
    base = BASE.model_copy(update={"learned": Adoption(adopted=19, of=20)})

    assert decide(base, BETTER, Limits()).passed
    worse = changed(learned=Adoption(adopted=18, of=20))
    assert refused(decide(base, worse, Limits())) == ["corrections learned, adopted of 20"]


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 2))
def test_less_perplexity_never_turns_a_pass_into_a_refusal(
    first: float, second: float, margin: float
) -> None:
    low, high = sorted((first, second))
    limits = Limits(perplexity=margin)

    assert decide(BASE, suite(perplexity_word=low), limits).passed >= (
        decide(BASE, suite(perplexity_word=high), limits).passed
    )
