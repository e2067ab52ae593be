"""How sure a model is of a reply, as a probability that can be believed.

A model's own log-probabilities say which of two replies it prefers, not how often such replies are right. A
calibration, fitted once per model on replies whose right answer is known (`python -m training calibrate`),
turns them into the probability that the reply is acceptable: close enough to what a person said there.

    p = 1 / (1 + exp(-(b + w · x)))          logistic regression, Cox 1958; for calibration, Platt 1999

x are the `FEATURES` of the log-probabilities of the reply's tokens, which are logged with every reply: the
confidence of an old reply can be computed again. The risk-coverage curve (El-Yaniv and Wiener 2010) says what
a threshold costs: how many replies are left, and how many of these are not acceptable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

KEY: Final = "confidence"
"""In the metrics of a model."""
FEATURES: Final = ("mean", "least", "first", "length")
"""Mean, smallest and first log-probability of the tokens (nats), and the logarithm of their number."""
LEAST: Final = -30.0
"""Nats; less likely tokens count as this, so that one of probability 0 leaves numbers."""

Probability = Annotated[float, Field(ge=0, le=1)]


class Point(BaseModel):
    """If only replies of at least this confidence are given: which share these are, and how many of them are
    not acceptable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    threshold: Probability
    coverage: Probability
    risk: Probability


class Calibration(BaseModel):
    """A fitted calibration and what it was found to be worth on replies that it was not fitted to."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weights: tuple[float, ...]
    """One for each of `FEATURES`."""
    bias: float
    acceptable: Annotated[float, Field(ge=0, le=100)]
    """chrF with a person's reply from which on a reply counted as acceptable."""
    fitted: Annotated[int, Field(ge=1)]
    """Replies it was fitted to."""
    judged: Annotated[int, Field(ge=1)]
    """Other replies, of other conversations: what the figures below are of."""
    share: Probability
    """Of acceptable ones among them."""
    error: Probability
    """Expected calibration error, in ten bins of equal count (Naeini et al. 2015)."""
    area: Probability
    """Under the risk-coverage curve; without any order of the replies it would be 1 - share."""
    curve: tuple[Point, ...]
    """From a coverage of 1 downwards."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.weights) != len(FEATURES):
            raise ValueError(f"there are {len(FEATURES)} features")
        return self

    def confidence(self, logprobs: Sequence[float]) -> float:
        """Probability that a reply with these log-probabilities of its tokens (nats) is acceptable; 0 for one
        without a token.
        """
        if not logprobs:
            return 0.0
        return logistic(self.bias + sum(w * x for w, x in zip(self.weights, features(logprobs), strict=True)))


def features(logprobs: Sequence[float]) -> tuple[float, ...]:
    """`FEATURES` of a reply of at least one token."""
    bounded = [max(value, LEAST) for value in logprobs]
    return (math.fsum(bounded) / len(bounded), min(bounded), bounded[0], math.log(len(bounded)))


def logistic(score: float) -> float:
    """1 / (1 + exp(-score)), also where the power does not fit into a float."""
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    power = math.exp(max(score, -700.0))
    return power / (1 + power)


def calibration_of(metrics: Mapping[str, Any]) -> Calibration | None:
    """The calibration that a model carries in its metrics; None for a model without one.

    Raises ValueError for one that makes no sense.
    """
    if KEY not in metrics:
        return None
    try:
        return Calibration.model_validate(metrics[KEY])
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, (KEY, *problem["loc"])))
        raise ValueError(f"{place}: {problem['msg']}") from None
