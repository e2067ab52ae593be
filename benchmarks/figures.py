"""Timing two things in turn, and the JSON line that says how they compare."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of each run."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleaved(runs: int, *work: Callable[[], object], warm_up: int = 2) -> list[Timing]:
    """Time each piece of ``work`` ``runs`` times, in turn, so that a slow moment hits all."""
    for _ in range(warm_up):
        for each in work:
            each()
    found: list[list[float]] = [[] for _ in work]
    for _ in range(runs):
        for times, each in zip(found, work, strict=True):
            began = time.perf_counter()
            each()
            times.append(time.perf_counter() - began)
    return [Timing(tuple(times)) for times in found]


def report(name: str, value: float, unit: str, reference: float, of: str, **more: object) -> None:
    """One figure; ``ratio`` is value over reference, medians both, None for a reference of 0."""
    figure = {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "reference": round(reference, 3),
        "reference_is": of,
        "ratio": round(value / reference, 3) if reference else None,
    }
    print(json.dumps(figure | more), flush=True)
