"""Beam search over one reply: paths and scores in, the paths to extend out; the model is somewhere else.

    live      ┌ [ Sure][,]           each step extends every live path by every token; the best `beam_size`
    paths     ├ [ Sure][.]           continuations live on, and an end that ranks among them finishes its path
              └ [ Yes][,]
    finished    [ Sure][.]<end>      ranked by score = log-probability / length penalty

The search stops when no live path can still get in front of the `n_best` best finished ones. A path's total
only falls, and with a length penalty of alpha >= 0 the divisor grows with length, so a live path cannot come
to score more than its total so far over the penalty of the longest reply allowed. The best finished path is
then the best of all that this beam can reach, not merely the first to arrive.

At ``max_tokens`` the live paths are cut off there and ranked among the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from chatbot.decoding import FORBIDDEN
from chatbot.options import DecodingOptions


def length_penalty(tokens: int, alpha: float) -> float:
    """The divisor of a path's log-probability, equation 14 of Wu et al. (2016); 1 for alpha 0."""
    return math.pow((5 + tokens) / 6, alpha)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One path: a beginning of a reply, or a whole one."""

    ids: tuple[int, ...] = ()
    total: float = 0.0
    """Sum of the scores that guided the search: log-probabilities, after the repetition penalty if any."""
    logprobs: tuple[float, ...] = ()
    """The model's own log-probability of each id."""
    finish_reason: Literal["stop", "length"] = "length"

    def score(self, alpha: float) -> float:
        return self.total / length_penalty(len(self.ids), alpha)


class _Candidate(NamedTuple):
    """A live path and a token that may follow it."""

    rank: float  # total, less the diversity penalty; for choosing among siblings and cousins only
    parent: int
    token: int
    total: float


class Beam:
    """The search for one reply. Its first ``len(live)`` rows belong to the live paths, in their order."""

    def __init__(
        self,
        options: DecodingOptions,
        end_id: int,
        *,
        same: Callable[[tuple[int, ...]], Hashable] = lambda ids: ids,
    ) -> None:
        """``same`` maps ids to what two replies must differ in to count as two, such as their text."""
        self._size = options.beam_size
        self._wanted = options.n_best
        self._alpha = options.length_penalty
        self._diversity = options.diversity_penalty
        self._longest = options.max_tokens
        self._end_id = end_id
        self._same = same
        self._finished: list[Hypothesis] = []
        self.live: list[Hypothesis] = [Hypothesis()]

    @property
    def done(self) -> bool:
        return not self.live

    def advance(self, scores: Tensor, logprobs: Tensor) -> list[int]:
        """Extend the live paths by one token.

        ``scores`` (live, V) after all constraints guide the search, ``logprobs`` (live, V) are only recorded.
        Returns the old row of each path that lives on, (new live,): where its decoder state is to be taken
        from.
        """
        chosen, ended = self._select(self._candidates(scores))
        taken = [*chosen, *ended]
        recorded = logprobs[[c.parent for c in taken], [c.token for c in taken]].tolist() if taken else []
        extended = [self._extend(c, logprob) for c, logprob in zip(taken, recorded, strict=True)]
        self.live = extended[: len(chosen)]
        finished = extended[len(chosen) :]
        if self.live and len(self.live[0].ids) == self._longest:
            finished, self.live = [*finished, *self.live], []
        self._finished = self._ranked([*self._finished, *finished])
        if self._decided():
            self.live = []
        return [c.parent for c in chosen[: len(self.live)]]

    def settled(self) -> tuple[int, ...]:
        """The ids that every reply this search can still return begins with."""
        first, *others = [h.ids for h in (*self.live, *self._finished[:1])]
        for ids in others:
            first = first[: _common(first, ids)]
        return first

    def best(self) -> list[Hypothesis]:
        """The finished replies, best first, at most ``n_best``."""
        return list(self._finished)

    def _candidates(self, scores: Tensor) -> list[_Candidate]:
        """Continuations worth a look, best first; ties go to the earlier path, then to the smaller token.

        The ``beam_size + 1`` best of each row (and what ties with the last) are enough: one may be the end.
        """
        floor = scores.topk(min(self._size + 1, scores.shape[1]), dim=1).values[:, -1:]
        rows, tokens = torch.nonzero((scores >= floor) & (scores > FORBIDDEN), as_tuple=True)
        siblings: list[list[tuple[float, int]]] = [[] for _ in self.live]
        for row, token, value in zip(
            rows.tolist(), tokens.tolist(), scores[rows, tokens].tolist(), strict=True
        ):
            siblings[row].append((-value, token))
        candidates = [
            _Candidate(hypothesis.total - cost - self._diversity * rank, row, token, hypothesis.total - cost)
            for row, hypothesis in enumerate(self.live)
            for rank, (cost, token) in enumerate(sorted(siblings[row]))
        ]
        return sorted(candidates, key=lambda c: (-c.rank, c.parent, c.token))

    def _select(self, candidates: Sequence[_Candidate]) -> tuple[list[_Candidate], list[_Candidate]]:
        """The ``beam_size`` best continuations, and the ends that rank above the last of them."""
        chosen: list[_Candidate] = []
        ended: list[_Candidate] = []
        for candidate in candidates:
            if len(chosen) == self._size:
                break
            (ended if candidate.token == self._end_id else chosen).append(candidate)
        return chosen, ended

    def _extend(self, candidate: _Candidate, logprob: float) -> Hypothesis:
        parent = self.live[candidate.parent]
        return Hypothesis(
            ids=(*parent.ids, candidate.token),
            total=candidate.total,
            logprobs=(*parent.logprobs, logprob),
            finish_reason="stop" if candidate.token == self._end_id else "length",
        )

    def _ranked(self, hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The ``n_best`` best distinct of ``hypotheses``, best first; of equals, the earlier."""
        first: dict[Hashable, Hypothesis] = {}
        for hypothesis in sorted(hypotheses, key=lambda h: -h.score(self._alpha)):
            first.setdefault(self._same(hypothesis.ids), hypothesis)
        return list(first.values())[: self._wanted]

    def _decided(self) -> bool:
        """Whether no live path can still reach the replies to be returned."""
        if len(self._finished) < self._wanted:
            return False
        reach = max((h.total for h in self.live), default=FORBIDDEN) / length_penalty(
            self._longest, self._alpha
        )
        return self._finished[-1].score(self._alpha) >= reach


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
