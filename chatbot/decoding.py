"""Choosing the next token: constraints, greedy choice and sampling, over all rows of a batch at once.

    logits (B, V) ─ log-softmax ─> what is reported with each token
                  ─ constrain ───> what is chosen from ─> greedy · sample · beam (chatbot.beam)

Every function is pure: no argument is changed, and a row's result depends on that row alone. Chance comes
from a counter, not from a generator with a state: the number behind a choice is a hash of the reply's seed
and the position of the token, so a reply does not depend on what else is in the batch. Forbidden tokens have
the score `FORBIDDEN`.

Shapes: B rows, V vocabulary, n candidates.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence, Set
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from chatbot.options import MAX_SEED, DecodingOptions
from chatbot.rules import Path

FORBIDDEN: Final = -math.inf
_MORE: Final = 16
"""Times as many ids are looked at where the first few do not settle a draw."""

_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIXERS: Final = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST: Final = np.uint64(31)

# ---- Chance ------------------------------------------------------------------------------------------------


def uniforms(seeds: ArrayLike, positions: ArrayLike) -> NDArray[np.float64]:
    """Numbers in [0, 1), (B,), from ``seeds`` and ``positions`` (B,), whole numbers from 0 on, alone.

    The ``position``-th output of splitmix64 (Steele, Lea and Flood 2014), started from the hashed seed so
    that nearby seeds have unrelated sequences. Arithmetic is modulo 2^64.
    """
    start = _mix(np.asarray(seeds, np.uint64) + _GAMMA)
    bits = _mix(start + (np.asarray(positions, np.uint64) + 1) * _GAMMA)
    return (bits >> 11).astype(np.float64) * 2.0**-53


def derived_seed(base: int, name: str) -> int:
    """A seed for conversation ``name`` of a run with seed ``base``, the same whatever else the run holds."""
    digest = hashlib.sha256(f"{base}:{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") & MAX_SEED


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for bits, factor in _MIXERS:
        values = (values ^ (values >> bits)) * factor
    return values ^ (values >> _LAST)


# ---- Constraints -------------------------------------------------------------------------------------------


def constrain(logits: Tensor, logprobs: Tensor, paths: Sequence[Path]) -> Tensor:
    """Scores (B, V) to choose from: ``logprobs`` (the log-softmax of ``logits``) with every path's rules
    applied.

    Repetition is penalized before the softmax; forbidden ids are then taken out without rescaling the rest,
    so that the score of a path that no rule touches is its log-probability. A forced prefix goes before every
    other rule.
    """
    scores = penalize(logits, logprobs, paths)
    banned: list[Set[int]] = []
    forced: list[tuple[int, tuple[int, ...]]] = []
    for row, (rules, ids, avoid) in enumerate(paths):
        allowed = rules.forced(ids)
        if allowed is None:
            banned.append(rules.forbidden(ids) | avoid)
        else:
            forced.append((row, tuple(token for token in allowed if token not in avoid)))
            banned.append(frozenset())
    result = _without(scores, banned)
    for row, allowed in forced:
        column = torch.tensor(allowed, device=scores.device)
        result[row] = FORBIDDEN
        result[row, column] = scores[row, column]
    return result


def _without(scores: Tensor, banned: Sequence[Set[int]]) -> Tensor:
    """A copy of ``scores`` (B, V) with the ids ``banned`` in each row forbidden."""
    if all(ids == banned[0] for ids in banned):  # nearly always
        return scores.index_fill(1, _columns(frozenset(banned[0]), scores.device), FORBIDDEN)
    rows = [row for row, ids in enumerate(banned) for _ in ids]
    where = _indices(scores, rows, [column for ids in banned for column in ids])
    return scores.index_put(where, scores.new_tensor(FORBIDDEN))


@functools.lru_cache(maxsize=64)
def _columns(ids: frozenset[int], device: torch.device) -> Tensor:
    return torch.tensor(sorted(ids), dtype=torch.int64, device=device)


def penalize(logits: Tensor, logprobs: Tensor, paths: Sequence[Path]) -> Tensor:
    """Log-probabilities (B, V) after the repetition penalty of CTRL (Keskar et al. 2019, section 4.1).

    The logit of an id that a path already holds is divided by its penalty, or multiplied where it is
    negative.
    """
    rows: list[int] = []
    columns: list[int] = []
    factors: list[float] = []
    for row, (rules, ids, _) in enumerate(paths):
        if rules.repetition_penalty == 1:
            continue
        seen = set(ids)
        rows += [row] * len(seen)
        columns += seen
        factors += [rules.repetition_penalty] * len(seen)
    if not rows:
        return logprobs
    where = _indices(logits, rows, columns)
    values, factor = logits[where], logits.new_tensor(factors)
    penalized = logits.index_put(
        where, torch.where(values > 0, values / factor, values * factor)
    ).log_softmax(1)
    touched = sorted(set(rows))
    result = logprobs.clone()
    result[touched] = penalized[touched]
    return result


def _indices(like: Tensor, rows: list[int], columns: list[int]) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(rows, dtype=torch.int64, device=like.device),
        torch.tensor(columns, dtype=torch.int64, device=like.device),
    )


# ---- Choices -----------------------------------------------------------------------------------------------


BLOCK: Final = 64
"""Scores that are looked at together: the best of every block, then all of the best blocks."""
ENOUGH: Final = 2**15
"""Scores from which on blocks pay."""


def choose_likeliest(scores: Tensor) -> Tensor:
    """The likeliest id of each row, (B, V) -> (B,); the smallest of several that are."""
    if scores.numel() < ENOUGH or scores.shape[1] % BLOCK:
        return scores.argmax(1)
    blocks = scores.view(len(scores), -1, BLOCK)
    block = blocks.amax(2).argmax(1, keepdim=True)
    inside = blocks.gather(1, block.unsqueeze(2).expand(-1, -1, BLOCK)).argmax(2)
    return (block * BLOCK + inside).squeeze(1)


def likeliest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest of ``scores`` (B, V) in each row, in descending order, and their ids, (B, count);
    which of several equal ones is not defined.
    """
    if scores.numel() < ENOUGH or scores.shape[1] % BLOCK or scores.shape[1] // BLOCK < count:
        values, ids = scores.topk(count, dim=1)
        return values, ids
    blocks = scores.view(len(scores), -1, BLOCK)
    # What is among the best of a row lies in one of as many blocks, those with the highest maxima.
    best = blocks.amax(2).topk(count, dim=1, sorted=False).indices
    inside = blocks.gather(1, best.unsqueeze(2).expand(-1, -1, BLOCK)).flatten(1)
    values, at = inside.topk(count, dim=1)
    return values, best.gather(1, at // BLOCK) * BLOCK + at % BLOCK


class Sampling(NamedTuple):
    """The sampling options of B rows, a column of each."""

    temperature: NDArray[np.float64]  # (B,)
    top_k: NDArray[np.int64]  # (B,) 1 to V
    top_p: NDArray[np.float64]  # (B,)
    min_p: NDArray[np.float64]  # (B,)

    @classmethod
    def of(cls, options: Sequence[DecodingOptions], vocab_size: int) -> Sampling:
        return cls(
            np.array([o.temperature for o in options], np.float64),
            np.array([min(o.top_k or vocab_size, vocab_size) for o in options], np.int64),
            np.array([o.top_p for o in options], np.float64),
            np.array([o.min_p for o in options], np.float64),
        )

    def rows(self, chosen: NDArray[np.int64]) -> Sampling:
        return Sampling(self.temperature[chosen], self.top_k[chosen], self.top_p[chosen], self.min_p[chosen])


def choose_sampled(
    scores: Tensor, chance: NDArray[np.float64], sampling: Sampling, *, likeliest: int = 16
) -> NDArray[np.int64]:
    """An id for each row, (B, V) -> (B,), drawn from the softmax of ``scores / temperature`` that is left
    after ``top_k``, then ``top_p`` (Holtzman et al. 2020) of what that leaves, then ``min_p`` (Nguyen et al.
    2024).

    ``chance`` (B,) in [0, 1) picks a place in the cumulative distribution, likeliest id first and smaller ids
    before larger ones of the same score. Sorting a vocabulary costs more than the model's step, and a draw
    nearly always falls among the ``likeliest`` few: only rows that it could leave are looked at further, and
    in the end sorted, with the same result. Those few are all that leaves the device.
    """
    # As exact as the scores are; only what is drawn from is added up in float64.
    temperature = torch.from_numpy(sampling.temperature).to(scores.device, scores.dtype)
    scaled = (scores / temperature[:, None]).log_softmax(1)
    chosen = np.empty(len(scores), np.int64)
    rest = np.arange(len(scores))
    for count in (likeliest, _MORE * likeliest, scores.shape[1]):
        part = scaled if len(rest) == len(scaled) else scaled[rest]
        chosen[rest], certain = _draw(part, count, chance[rest], sampling.rows(rest))
        rest = rest[~certain]
        if not len(rest):
            break
    return chosen


def _draw(
    scores: Tensor, count: int, chance: NDArray[np.float64], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw among the ``count`` likeliest ids of each row of ``scores`` (B, V), which are log-probabilities.

    Returns ids (B,) and whether a row's ``count`` were enough to know that draw (B,).
    """
    vocabulary = scores.shape[1]
    if count >= vocabulary:
        values, ids = _fetched(scores.sort(dim=1, descending=True, stable=True))
        defined = np.ones(len(values), np.bool_)
    else:
        values, ids = _fetched(scores.topk(count + 1, dim=1))
        # Which of those with the last value came in is not defined.
        defined = (values[:, -2] > values[:, -1]) | (values[:, -1] == FORBIDDEN)
        values, ids = values[:, :-1], ids[:, :-1]
        order = np.lexsort((ids, -values))
        values, ids = np.take_along_axis(values, order, 1), np.take_along_axis(ids, order, 1)
    n = values.shape[1]
    each = np.arange(len(values))
    mass = np.exp(values)
    upto = mass.cumsum(1)  # (B, n) mass of the ids up to and including each
    last = np.minimum(sampling.top_k, n) - 1
    all_of_k = np.where(sampling.top_k < vocabulary, upto[each, last], 1.0)
    before = np.zeros_like(upto)
    before[:, 1:] = upto[:, :-1]
    kept_by_p = (before < (sampling.top_p * all_of_k)[:, None]) | (sampling.top_p == 1)[:, None]
    kept_by_min = mass >= sampling.min_p[:, None] * mass[:, :1]
    within_k = np.arange(n) <= last[:, None]
    # Each filter keeps a run from the front, and so does the last: no rounding draws what has no mass.
    kept = (kept_by_p & kept_by_min & within_k & (mass > 0)).sum(1).clip(min=1)
    unfiltered = (sampling.top_k == vocabulary) & (sampling.top_p == 1) & (sampling.min_p == 0)
    available = np.where(unfiltered, 1.0, upto[each, kept - 1])
    rank = (upto <= (chance * available)[:, None]).sum(1)
    certain = np.where(
        unfiltered,
        rank < n,
        (sampling.top_k <= n) | ((sampling.top_k == vocabulary) & (kept < n)),
    )
    return ids[each, np.minimum(rank, kept - 1)], defined & (certain | (n == vocabulary))


def _fetched(found: tuple[Tensor, Tensor]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values and ids, from wherever they were worked out."""
    values, ids = found
    return values.double().cpu().numpy(), ids.cpu().numpy()
