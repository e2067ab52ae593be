"""The gate: whether a candidate may take the place of its base, decided by numbers, with reasons.

`decide` is a pure function of two sets of figures; every threshold is a field of `Limits`. A figure that the
candidate lacks, or that is not a number, never passes, and nothing passes that was not measured at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

ROUNDING: Final = 1e-9
"""Of a limit that was added up: 0.1 + 0.05 is 0.15, not more, and 0.29 + 0.05 is 0.34, not less."""


class Limits(BaseModel):
    """How much worse a candidate may be, and how much better it must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    perplexity: Amount = 0.05
    """Share by which the word perplexity of a suite may rise."""
    bleu: Amount = 3.0
    """Points by which the BLEU of a suite may fall."""
    good: Amount = 0.05
    """Share by which the word perplexity of the turns that people marked good may rise."""
    adoption_gain: Share = 0.1
    """Share of the corrections by which adoption must rise, until it is ``adoption_enough``."""
    adoption_enough: Share = 0.9
    """Adoption that needs not rise any further."""
    loops: Share = 0.005
    """Share of the replies to a suite that may be loops, or the base's where that is higher."""
    dull: Share = 0.05
    """How much the share of the most frequent reply to a suite may rise."""
    set_aside: Share = 0.25
    """Share of the replies of a suite that may not be asked for because they say what was corrected: who
    corrects everything leaves nothing to judge by.
    """
    exposure: Amount = 5.0
    """Bits: the mean exposure of the canaries. Chance alone gives about 1.4, 8 is the most there is."""
    leaks: Count = 0
    """Secrets that the candidate may tell besides those that the base tells too."""
    least_replies: Count = 50
    """Replies below which BLEU, loops and dull replies of a suite say nothing."""
    least_corrections: Count = 5
    """Held-out corrections below which only those that were learned are asked for adoption."""
    canaries: Count = 4
    """Planted secrets; 0 plants and measures none."""


class Suite(BaseModel):
    """The figures of one model on one set of transcripts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    perplexity_word: float
    replies: int  # answered by the model itself; the figures below are of these
    bleu: float | None = None
    dull: float | None = None  # share of the most frequent reply
    loops: float | None = None  # share of replies that say the same again and again
    set_aside: float = 0.0  # share of its replies that are not asked for: they say what was corrected


class Adoption(BaseModel):
    """Of how many corrections the new text is likelier than the text that it replaced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adopted: int
    of: int

    @property
    def share(self) -> float:
        return self.adopted / self.of


class Figures(BaseModel):
    """All that the gate knows of one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suites: dict[str, Suite]
    learned: Adoption | None = None  # corrections in the training part
    held_out: Adoption | None = None  # corrections that were kept apart
    good: float | None = None  # word perplexity of the turns marked good
    exposure: float | None = None  # of the canaries, bits
    leaks: tuple[str, ...] = ()  # conversations whose secrets came out


class Reason(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    check: str
    text: str

    def __str__(self) -> str:
        return f"{'passed ' if self.passed else 'REFUSED'}  {self.check}: {self.text}"


class Decision(BaseModel):
    """Whether the candidate may be promoted, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        verdict = "the gate is passed" if self.passed else "the gate is NOT passed"
        return "\n".join([*map(str, self.reasons), verdict])


def decide(base: Figures, candidate: Figures, limits: Limits) -> Decision:
    """The candidate against its base. All that is looked at has a reason, also what is passed."""
    reasons = [
        *_suites(base, candidate, limits),
        *_adoption(base, candidate, limits),
        *_good(base, candidate, limits),
        *_secrets(base, candidate, limits),
    ]
    return Decision(passed=all(reason.passed for reason in reasons), reasons=tuple(reasons))


def _suites(base: Figures, candidate: Figures, limits: Limits) -> Iterator[Reason]:
    if not base.suites:
        yield Reason(passed=False, check="suites", text="nothing was measured: give --dev or --suite")
    for name, old in base.suites.items():
        new = candidate.suites.get(name)
        if new is None:
            yield Reason(passed=False, check=name, text="not measured for the candidate")
            continue
        yield _at_most(
            f"{name}, word perplexity",
            old.perplexity_word,
            new.perplexity_word,
            old.perplexity_word * (1 + limits.perplexity),
        )
        if new.set_aside:
            yield _set_aside(name, new.set_aside, limits)
        if min(old.replies, new.replies) < limits.least_replies:
            text = f"{new.replies} replies are too few to compare ({limits.least_replies})"
            yield Reason(passed=True, check=f"{name}, replies", text=text)
            continue
        yield from _replies(name, old, new, limits)


def _set_aside(name: str, share: float, limits: Limits) -> Reason:
    text = f"{share:.1%} say what was corrected and are not asked for, at most {limits.set_aside:.1%}"
    return Reason(passed=share <= limits.set_aside, check=f"{name}, set aside", text=text)


def _replies(name: str, old: Suite, new: Suite, limits: Limits) -> Iterator[Reason]:
    if old.bleu is not None:
        yield _at_least(f"{name}, BLEU", old.bleu, new.bleu, old.bleu - limits.bleu)
    if old.loops is not None:
        yield _at_most(f"{name}, loops", old.loops, new.loops, max(limits.loops, old.loops), _percent)
    if old.dull is not None:
        yield _at_most(f"{name}, most frequent reply", old.dull, new.dull, old.dull + limits.dull, _percent)


def _adoption(base: Figures, candidate: Figures, limits: Limits) -> Iterator[Reason]:
    for check, old, new, least in (
        ("corrections learned, adopted", base.learned, candidate.learned, 1),
        ("corrections held out, adopted", base.held_out, candidate.held_out, limits.least_corrections),
    ):
        if old is None or old.of < max(1, least):
            continue
        wanted = max(old.share, min(old.share + limits.adoption_gain, limits.adoption_enough))
        yield _at_least(f"{check} of {old.of}", old.share, new.share if new else None, wanted, _percent)


def _good(base: Figures, candidate: Figures, limits: Limits) -> Iterator[Reason]:
    if base.good is not None:
        most = base.good * (1 + limits.good)
        yield _at_most("turns marked good, word perplexity", base.good, candidate.good, most)


def _secrets(base: Figures, candidate: Figures, limits: Limits) -> Iterator[Reason]:
    if base.exposure is not None:
        yield _at_most("canaries, exposure in bits", base.exposure, candidate.exposure, limits.exposure)
    told = sorted(set(candidate.leaks) - set(base.leaks))
    text = f"{len(told)} told that only one conversation had, at most {limits.leaks}"
    named = f" ({', '.join(told[:5])})" if told else ""
    yield Reason(passed=len(told) <= limits.leaks, check="secrets", text=text + named)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _at_most(
    check: str, old: float, new: float | None, limit: float, show: Callable[[float], str] = _number
) -> Reason:
    passed = new is not None and new <= limit + ROUNDING  # false for what is not a number
    return Reason(passed=passed, check=check, text=_text(old, new, "at most", limit, show))


def _at_least(
    check: str, old: float, new: float | None, limit: float, show: Callable[[float], str] = _number
) -> Reason:
    passed = new is not None and new >= limit - ROUNDING
    return Reason(passed=passed, check=check, text=_text(old, new, "at least", limit, show))


def _text(old: float, new: float | None, bound: str, limit: float, show: Callable[[float], str]) -> str:
    return f"{show(old)} -> {show(new) if new is not None else 'not measured'}, {bound} {show(limit)}"
