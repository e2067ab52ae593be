"""Reading what a server counts, at `/metrics`, for the time between two looks."""

from __future__ import annotations

import math
import urllib.request
from dataclasses import dataclass
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

WAIT = 10.0


@dataclass(frozen=True)
class Scrape:
    """Values by sample name and, for a histogram, upper bound; other labels are not looked at."""

    values: dict[tuple[str, str | None], float]

    @classmethod
    def of(cls, url: str) -> Self:
        with urllib.request.urlopen(url, timeout=WAIT) as answer:
            return cls.read(answer.read().decode())

    @classmethod
    def read(cls, text: str) -> Self:
        families = text_string_to_metric_families(text)
        return cls({(s.name, s.labels.get("le")): s.value for family in families for s in family.samples})

    def quantile(self, name: str, share: float, since: Scrape) -> float:
        """What that share of a histogram's observations since another look is not above, within a bucket by
        interpolation; above the last bound, that bound. NaN where there was none.
        """
        buckets = sorted(
            (float(bound), value - since.values.get((key, bound), 0))
            for (key, bound), value in self.values.items()
            if key == f"{name}_bucket" and bound is not None
        )
        if not buckets or not buckets[-1][1]:
            return math.nan
        wanted, below, lower = share * buckets[-1][1], 0.0, 0.0
        for upper, count in buckets:
            if count >= wanted and count > below and upper < math.inf:
                return lower + (wanted - below) / (count - below) * (upper - lower)
            if upper < math.inf:
                below, lower = count, upper
        return lower
