"""Beam search over one reply: paths and scores in, the paths to extend out; the model is somewhere else.

    live      ┌ [ Sure][,]           each step extends every live path by every token; the best `beam_size`
    paths     ├ [ Sure][.]           continuations live on, and an end that ranks among them finishes its path
              └ [ Yes][,]
    finished    [ Sure][.]<end>      ranked by score = log-probability / length penalty + coverage

The search stops when no live path can still get in front of the `n_best` best finished ones. A path's total
only falls, with a length penalty of alpha >= 0 the divisor grows with length, and coverage is at most 0: so a
live path cannot come to score more than its total so far over the penalty of the longest reply allowed. The
best finished path is then the best of all that this beam can reach, not merely the first to arrive.

At ``max_tokens`` the live paths are cut off there and ranked among the others.

A beam may be divided into groups that search side by side (Vijayakumar et al. 2018). In each step a group
pays for every path of the groups before it that has just taken the same token, so it goes elsewhere:

    group 1   [ Sure]  [ Okay]       pays nothing
    group 2   [ Yes]   [ Of]         [ Sure] and [ Okay] cost `group_penalty`
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from chatbot.candidates import Candidate
from chatbot.decoding import FORBIDDEN
from chatbot.notes import Note
from chatbot.options import DecodingOptions

LEAST_ATTENTION: Final = 1e-6
"""A token that was looked at less is as good as not looked at."""


def length_penalty(tokens: int, alpha: float) -> float:
    """The divisor of a path's log-probability, equation 14 of Wu et al. (2016); 1 for alpha 0."""
    return math.pow((5 + tokens) / 6, alpha)


def coverage(attention: Tensor, beta: float) -> Tensor:
    """What is added to the scores of replies that did not look at all they should, (B,), at most 0.

    The coverage penalty of Wu et al. (2016, equation 14). ``attention`` (B, I) is the sum over a reply's
    tokens of the weights of each token that it should have looked at. A weight of zero counts as
    `LEAST_ATTENTION`.
    """
    return beta * attention.clamp(LEAST_ATTENTION, 1.0).log().sum(1)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One path: a beginning of a reply, or a whole one."""

    ids: tuple[int, ...] = ()
    total: float = 0.0
    """Sum of the scores that guided the search: log-probabilities, after the repetition penalty if any."""
    logprobs: tuple[float, ...] = ()
    """The model's own log-probability of each id."""
    finish_reason: Literal["stop", "length"] = "length"
    coverage: float = 0.0
    """What is added to its score if it ends here; at most 0, and never falls."""
    notes: tuple[Note, ...] = ()

    def score(self, alpha: float) -> float:
        return self.total / length_penalty(len(self.ids), alpha) + self.coverage


class _Candidate(NamedTuple):
    """A live path and a token that may follow it."""

    rank: float  # total, less the penalties of siblings and groups; for choosing who lives on, and no more
    parent: int  # its row in the group
    token: int
    total: float
    score: float  # of the token alone


class Shortlist(NamedTuple):
    """The best scores of each row, found for many replies at once, in descending order."""

    scores: list[list[float]]
    ids: list[list[int]]
    """Of equal scores, any; the last of a row is there to tell whether it equals the one before."""

    def rows(self, span: slice) -> Shortlist:
        return Shortlist(self.scores[span], self.ids[span])


class _Record(NamedTuple):
    """What is recorded of a row in a step."""

    coverage: float  # of a reply that ends with it
    notes: tuple[Note, ...]  # one, or none


_NOTHING: Final = _Record(0.0, ())


@dataclass(slots=True)
class _Group:
    """Paths that compete with each other."""

    live: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    finished: list[Hypothesis] = field(default_factory=list)


class Beam:
    """The search for one reply. Its first ``len(live)`` rows belong to the live paths, in their order."""

    def __init__(
        self,
        options: DecodingOptions,
        end_id: int,
        *,
        same: Callable[[tuple[int, ...]], Hashable] = lambda ids: ids,
        keep_all: bool = False,
    ) -> None:
        """``same`` maps ids to what two replies must differ in to count as two, such as their text.

        ``keep_all``: find ``beam_size`` replies, of which any may be chosen in the end, and not ``n_best``.
        """
        self._width = options.beam_size // options.beam_groups
        self._keep_all = keep_all
        self._wanted = options.beam_size if keep_all else options.n_best
        self._alpha = options.length_penalty
        self._beta = options.coverage_penalty
        self._sibling_penalty = options.diversity_penalty
        self._group_penalty = options.group_penalty
        self._longest = options.max_tokens
        self._end_id = end_id
        self._same = same
        self._groups = [_Group() for _ in range(options.beam_groups)]
        self._unchanged = options.repetition_penalty == 1
        self._seen: Tensor | None = None  # (live, I) attention of each live path so far

    @property
    def live(self) -> list[Hypothesis]:
        """The paths to extend, group by group."""
        return [hypothesis for group in self._groups for hypothesis in group.live]

    @property
    def done(self) -> bool:
        return not any(group.live for group in self._groups)

    @property
    def shortlist(self) -> int:
        """How many of the best scores of each row `advance` would like to be given; 0 for none."""
        return 0 if len(self._groups) > 1 else self._width + 2

    def advance(
        self,
        scores: Tensor,
        logprobs: Tensor,
        attention: Tensor | None = None,
        notes: Sequence[Note] | None = None,
        best: Shortlist | None = None,
    ) -> list[int]:
        """Extend the live paths by one token.

        ``scores`` (live, V) after all constraints guide the search, ``logprobs`` (live, V) are only recorded.
        ``attention`` (live, I) are the weights in this step of the tokens that a reply should look at; they
        are not needed without a coverage penalty. ``notes`` of the live paths are kept, if there are any.
        ``best`` are the `shortlist` best of ``scores``, or more; then scores that no penalty has changed are
        log-probabilities.
        Returns the old row of each path that lives on, (new live,): where its decoder state is to be taken
        from.
        """
        if attention is not None:
            self._seen = attention if self._seen is None else self._seen + attention
        parents: list[int] = []
        taken: Counter[int] = Counter()
        first = 0
        for group in self._groups:
            rows = slice(first, first + len(group.live))
            if group.live:
                chosen = self._extend_group(
                    group, scores[rows], logprobs[rows], taken, self._records(rows, notes), best
                )
                parents += [first + candidate.parent for candidate in chosen[: len(group.live)]]
                taken.update(candidate.token for candidate in chosen)
            first = rows.stop
        self._seen = None if self._seen is None else self._seen[parents]
        return parents

    def settled(self) -> tuple[int, ...]:
        """The ids that every reply this search can still return begins with."""
        finished = [h for group in self._groups for h in group.finished]
        if not self._keep_all:
            finished = sorted(finished, key=lambda h: -h.score(self._alpha))[:1]
        first, *others = [h.ids for h in (*self.live, *finished)]
        for ids in others:
            first = first[: _common(first, ids)]
        return first

    def leader(self) -> Hypothesis:
        """A path that begins with what is settled."""
        return self.live[0]

    def best(self) -> list[Hypothesis]:
        """The finished replies, best first, at most ``n_best``."""
        return self._ranked((h for group in self._groups for h in group.finished), self._wanted)

    def candidates(self) -> list[Candidate]:
        """The same, to choose from."""
        return [
            Candidate(h.ids, h.logprobs, h.finish_reason, h.score(self._alpha), h.notes) for h in self.best()
        ]

    def _extend_group(
        self,
        group: _Group,
        scores: Tensor,
        logprobs: Tensor,
        taken: Counter[int],
        records: Sequence[_Record],
        best: Shortlist | None,
    ) -> list[_Candidate]:
        """Extend the live paths of a group. Returns what was chosen to live on, also if it no longer does."""
        chosen, ended = self._select(self._candidates(group, scores, taken, best))
        both = [*chosen, *ended]
        if best is not None and self._unchanged:
            recorded = [c.score for c in both]
        else:
            recorded = logprobs[[c.parent for c in both], [c.token for c in both]].tolist() if both else []
        extended = [
            self._extend(group.live[c.parent], c, p, records[c.parent])
            for c, p in zip(both, recorded, strict=True)
        ]
        group.live = extended[: len(chosen)]
        finished = extended[len(chosen) :]
        if group.live and len(group.live[0].ids) == self._longest:
            finished, group.live = [*finished, *group.live], []
        group.finished = self._ranked([*group.finished, *finished], min(self._wanted, self._width))
        if self._decided(group):
            group.live = []
        return chosen

    def _candidates(
        self, group: _Group, scores: Tensor, taken: Counter[int], best: Shortlist | None
    ) -> list[_Candidate]:
        """Continuations worth a look, best first; ties go to the earlier path, then to the smaller token.

        The ``width + 1`` best of each row (and what ties with the last) are enough: one may be the end.
        """
        siblings = None if best is None else self._listed(best)
        if siblings is None:
            siblings = self._found(scores, taken)
        candidates = [
            _Candidate(
                path.total - cost - self._sibling_penalty * place, row, token, path.total + score, score
            )
            for row, path in enumerate(group.live)
            for place, (cost, token, score) in enumerate(sorted(siblings[row]))
        ]
        return sorted(candidates, key=lambda c: (-c.rank, c.parent, c.token))

    def _listed(self, best: Shortlist) -> list[list[tuple[float, int, float]]] | None:
        """For each row, what is worth a look: its score with the sign turned, its id, its score. None where
        the list is too short to tell.
        """
        size = self._width + 1
        for values in best.scores:
            if len(values) > size and values[size] == values[size - 1] > FORBIDDEN:
                return None
        return [
            [
                (-score, token, score)
                for score, token in zip(values[:size], ids, strict=False)
                if score > FORBIDDEN
            ]
            for values, ids in zip(best.scores, best.ids, strict=True)
        ]

    def _found(self, scores: Tensor, taken: Counter[int]) -> list[list[tuple[float, int, float]]]:
        """The same from all ``scores`` (live, V), with what the groups before have ``taken``."""
        guided = scores
        if taken and self._group_penalty:
            guided = scores.clone()
            guided[:, list(taken)] -= self._group_penalty * scores.new_tensor(list(taken.values()))
        floor = guided.topk(min(self._width + 1, scores.shape[1]), dim=1).values[:, -1:]
        rows, tokens = torch.nonzero((guided >= floor) & (guided > FORBIDDEN), as_tuple=True)
        siblings: list[list[tuple[float, int, float]]] = [[] for _ in scores]
        for row, token, rank, score in zip(
            rows.tolist(),
            tokens.tolist(),
            guided[rows, tokens].tolist(),
            scores[rows, tokens].tolist(),
            strict=True,
        ):
            siblings[row].append((-rank, token, score))
        return siblings

    def _select(self, candidates: Sequence[_Candidate]) -> tuple[list[_Candidate], list[_Candidate]]:
        """The ``width`` best continuations, and the ends that rank above the last of them."""
        chosen: list[_Candidate] = []
        ended: list[_Candidate] = []
        for candidate in candidates:
            if len(chosen) == self._width:
                break
            (ended if candidate.token == self._end_id else chosen).append(candidate)
        return chosen, ended

    def _records(self, rows: slice, notes: Sequence[Note] | None) -> list[_Record]:
        """What is recorded of each row of a group."""
        count = rows.stop - rows.start
        if notes is None and self._seen is None:
            return [_NOTHING] * count
        coverages = [0.0] * count
        if self._beta and self._seen is not None:
            coverages = coverage(self._seen[rows], self._beta).tolist()
        taken = [()] * count if notes is None else [(note,) for note in notes[rows]]
        return [_Record(*record) for record in zip(coverages, taken, strict=True)]

    def _extend(
        self, parent: Hypothesis, candidate: _Candidate, logprob: float, record: _Record
    ) -> Hypothesis:
        return Hypothesis(
            ids=(*parent.ids, candidate.token),
            total=candidate.total,
            logprobs=(*parent.logprobs, logprob),
            finish_reason="stop" if candidate.token == self._end_id else "length",
            coverage=record.coverage,
            notes=(*parent.notes, *record.notes),
        )

    def _ranked(self, hypotheses: Iterable[Hypothesis], wanted: int) -> list[Hypothesis]:
        """The ``wanted`` best distinct of ``hypotheses``, best first; of equals, the earlier."""
        first: dict[Hashable, Hypothesis] = {}
        for hypothesis in sorted(hypotheses, key=lambda h: -h.score(self._alpha)):
            first.setdefault(self._same(hypothesis.ids), hypothesis)
        return list(first.values())[:wanted]

    def _decided(self, group: _Group) -> bool:
        """Whether no live path of ``group`` can still get among those of it that may be returned."""
        if len(group.finished) < min(self._wanted, self._width):
            return False
        reach = max((h.total for h in group.live), default=FORBIDDEN)
        return group.finished[-1].score(self._alpha) >= reach / length_penalty(self._longest, self._alpha)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
