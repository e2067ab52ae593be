"""Fitting a calibration (`chatbot.confidence`) to replies whose right answer is known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor

from chatbot.confidence import FEATURES, KEY, Calibration, Point, features
from training.evaluate import Measured

ACCEPTABLE: Final = 40.0
"""chrF with the person's reply from which on a reply counts as acceptable, unless told otherwise."""
LEAST: Final = 100
"""Replies below which nothing is fitted."""
RIDGE: Final = 1.0
"""Weight of half the squared weights beside the sum of the losses, of standardized features."""
STEPS: Final = 50
"""Newton steps at most; about ten are taken."""
BINS: Final = 10
COVERAGES: Final = tuple(share / 20 for share in range(20, 0, -1))


class TooFewReplies(ValueError):
    """A calibration cannot be fitted to so few replies, or to replies that are all alike."""


@dataclass(frozen=True, slots=True)
class Example:
    """A reply of the model: the conversation it is from, its tokens' log-probabilities, its chrF with what a
    person said there (0 to 100).
    """

    conversation: str
    logprobs: Sequence[float]
    chrf: float


def examples(measured: Iterable[Measured]) -> list[Example]:
    """Of all that the model has answered with at least one token."""
    chrf = CHRF()
    return [
        Example(
            item.reference.name.rpartition("#")[0],
            item.reply.logprobs,
            chrf.sentence_score(item.reply.text, [item.reference.text]).score,
        )
        for item in measured
        if item.reply is not None and item.reply.logprobs
    ]


def calibrate(found: Sequence[Example], acceptable: float = ACCEPTABLE) -> Calibration:
    """Fitted to half of the conversations (by the hash of their names), judged by the others.

    Raises `TooFewReplies`.
    """
    if len(found) < LEAST:
        raise TooFewReplies(f"{len(found)} replies are too few to calibrate with; {LEAST} are needed")
    halves: tuple[list[Example], list[Example]] = ([], [])
    for example in found:
        halves[hashlib.sha256(f"calibrate:{example.conversation}".encode()).digest()[0] % 2].append(example)
    labels = [[example.chrf >= acceptable for example in half] for half in halves]
    if any(len(set(each)) < 2 for each in labels):
        raise TooFewReplies("replies that are all acceptable, or all not, tell nothing")
    weights, bias = fit(_matrix(halves[0]), torch.tensor(labels[0], dtype=torch.float64))
    probabilities = torch.sigmoid(_matrix(halves[1]) @ weights + bias)
    good = torch.tensor(labels[1], dtype=torch.float64)
    curve = risk_coverage(probabilities, good)
    return Calibration(
        weights=tuple(weights.tolist()),
        bias=float(bias),
        acceptable=acceptable,
        fitted=len(halves[0]),
        judged=len(halves[1]),
        share=float(good.mean()),
        error=calibration_error(probabilities, good),
        area=_area(probabilities, good),
        curve=tuple(curve),
    )


def calibrated(measured: Iterable[Measured]) -> dict[str, Any]:
    """What goes into the metrics of a model that has answered: nothing where that is too little."""
    try:
        return {KEY: calibrate(examples(measured)).model_dump(mode="json")}
    except TooFewReplies:
        return {}


def fit(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (features) and bias of the logistic regression of labels (n, each 0 or 1) on inputs (n,
    features), float64.

    Newton's method on the mean loss with a ridge (Bishop 2006, 4.3.3) over standardized inputs.
    """
    mean, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-9)
    design = torch.cat([torch.ones(len(inputs), 1, dtype=inputs.dtype), (inputs - mean) / scale], 1)
    ridge = torch.full((design.shape[1],), RIDGE / len(labels), dtype=inputs.dtype)
    ridge[0] = 0.0
    solution = torch.zeros(design.shape[1], dtype=inputs.dtype)
    for _ in range(STEPS):
        probabilities = torch.sigmoid(design @ solution)
        gradient = design.T @ (probabilities - labels) / len(labels) + ridge * solution
        spread = (probabilities * (1 - probabilities)).clamp_min(1e-9)
        curvature = design.T @ (design * spread[:, None]) / len(labels) + torch.diag(ridge + 1e-9)
        change = torch.linalg.solve(curvature, gradient)
        solution = solution - change
        if float(change.abs().max()) < 1e-10:
            break
    weights = solution[1:] / scale
    return weights, solution[0] - weights @ mean


def risk_coverage(probabilities: Tensor, good: Tensor) -> list[Point]:
    """What is left and what is wrong with it, at `COVERAGES`; both (n)."""
    order = probabilities.argsort(descending=True, stable=True)
    right = good[order].cumsum(0)
    points = []
    for coverage in COVERAGES:
        count = max(1, round(coverage * len(order)))
        threshold = 0.0 if count == len(order) else float(probabilities[order[count - 1]])
        points.append(
            Point(
                threshold=threshold,
                coverage=count / len(order),
                risk=1 - float(right[count - 1]) / count,
            )
        )
    return points


def calibration_error(probabilities: Tensor, good: Tensor) -> float:
    """Mean distance between what is promised and what comes, over `BINS` bins of about equal count."""
    order = probabilities.argsort(stable=True)
    error = 0.0
    for places in order.tensor_split(BINS):
        if len(places):
            error += len(places) * abs(float(probabilities[places].mean() - good[places].mean()))
    return error / len(order)


def _area(probabilities: Tensor, good: Tensor) -> float:
    order = probabilities.argsort(descending=True, stable=True)
    counts = torch.arange(1, len(order) + 1, dtype=good.dtype)
    return float((1 - good[order].cumsum(0) / counts).mean().clamp(0, 1))


def _matrix(found: Sequence[Example]) -> Tensor:
    """(n, features), float64."""
    rows = [features(example.logprobs) for example in found]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(FEATURES))
