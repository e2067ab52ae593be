"""Replies that grow token by token, greedy or sampled, and the way back out of one that was said before.

Several samples may be drawn side by side, each with its own chance; the best is shown when all are there.

A single path has no other to fall back on. Forbidding the end of a reply that has been said before would only
make the bot say all of it again and then something more. So a line that is about to become an earlier reply,
word for word, goes back to the place where leaving that reply costs least, takes anything else there, and
goes on from the state that the decoder had:

    earlier    [Is][ there][ anything][ else][?]
    line       [Is][ there][ anything][ else][?] and now <end>
    leaving    at [Is]     log p([Goodbye])
               at [ else]  log p([Is]) + log p([ there]) + log p([ anything]) + log p([ I])
    line       [Goodbye]

That is the likeliest beginning of another reply, as far as one can know: the tokens up to there and the
runner-up. Until a line has left every earlier reply, nothing of it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from chatbot.candidates import Candidate, ranked
from chatbot.decoding import FORBIDDEN, Sampling, choose_likeliest, choose_sampled, uniforms
from chatbot.notes import Note
from chatbot.options import MAX_TOKENS, DecodingOptions
from chatbot.repeats import EarlierReplies

RETURNS: Final = 8
"""A line that has gone back so often stays as it is: it is short of other things to say."""


class Place(NamedTuple):
    """A choice that a line has made, and what is needed to make another."""

    state: Tensor  # (F,) of the decoder, before the last token was read
    reached: float  # score of the line up to there
    leaving: float  # score of the line up to there and the best token that was not taken


@dataclass(slots=True)
class Trail:
    """The choices of a line that may yet turn out to be an earlier reply."""

    earlier: EarlierReplies
    places: list[Place] = field(default_factory=list)
    reached: float = 0.0
    tried: dict[int, frozenset[int]] = field(default_factory=dict)
    """By position, ids that led to an earlier reply."""

    def mark(self, state: Tensor, score: float, runner_up: float) -> None:
        """Remember a choice: the state it was made from, the scores of the token taken and of the next
        best.
        """
        self.places.append(Place(state, self.reached, self.reached + runner_up))
        self.reached += score

    def turn_back(self, ids: Sequence[int]) -> int | None:
        """The position to go back to from ``ids``, which say an earlier reply; None when there is none.

        Not to where only punctuation was left to say: whatever followed, all the words would be there again.
        """
        ends = [at for at in range(len(ids)) if at == len(ids) - 1 or not self.earlier.say(ids[:at])]
        best = max(ends, key=lambda at: self.places[at].leaving)
        if self.places[best].leaving == FORBIDDEN:
            return None
        self.tried = {at: tried for at, tried in self.tried.items() if at <= best}
        self.tried[best] = self.tried.get(best, frozenset()) | {ids[best]}
        self.reached = self.places[best].reached
        return best


@dataclass(slots=True)
class Line:
    """A single path, greedy or sampled."""

    end_id: int
    longest: int
    seed: int = 0
    trail: Trail | None = None
    """As long as it is there, each choice is to be marked in it."""
    returns: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def finish_reason(self) -> Literal["stop", "length"] | None:
        """None while it grows. The end comes before the length: a reply that just fits is not cut off."""
        if self.ids and self.ids[-1] == self.end_id:
            return "stop"
        return "length" if len(self.ids) == self.longest else None

    @property
    def avoid(self) -> frozenset[int]:
        """Ids that are not to be taken here again."""
        return frozenset() if self.trail is None else self.trail.tried.get(len(self.ids), frozenset())

    @property
    def draw(self) -> int:
        """Number of the next draw of chance: the position, and past all of those after going back."""
        return len(self.ids) + MAX_TOKENS * self.returns

    def settled(self) -> Sequence[int]:
        """The ids that are certain to stay."""
        return self.ids if self.trail is None else ()

    def append(self, token: int, logprob: float, note: Note | None = None) -> Tensor | None:
        """One token further, or back: then the state (F,) to go on from."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if note is not None:
            self.notes.append(note)
        if self.trail is None:
            return None
        if self.finish_reason is not None and self.trail.earlier.say(self.ids):
            return self._go_back(self.trail)
        if self.finish_reason is not None or not self.trail.earlier.begin(self.ids):
            self.trail = None
        return None

    def _go_back(self, trail: Trail) -> Tensor | None:
        at = trail.turn_back(self.ids) if self.returns < RETURNS else None
        if at is None:
            self.trail = None
            return None
        state = trail.places[at].state
        self.returns += 1
        del self.ids[at:], self.logprobs[at:], self.notes[at:], trail.places[at:]
        return state


class Lines:
    """The search for one reply on one line, or on several of which the best is taken. Line i is in row i."""

    def __init__(self, lines: Sequence[Line], same: Callable[[tuple[int, ...]], Hashable]) -> None:
        """``same`` maps ids to what two samples must differ in to count as two, such as their text."""
        self._lines = lines
        self._same = same

    @property
    def live(self) -> list[tuple[int, Line]]:
        """The lines that still grow, each with its row."""
        if len(self._lines) == 1:  # nearly always
            return [] if self.done else [(0, self._lines[0])]
        return [(row, line) for row, line in enumerate(self._lines) if line.finish_reason is None]

    @property
    def done(self) -> bool:
        return all(line.finish_reason is not None for line in self._lines)

    def settled(self) -> Sequence[int]:
        """The ids that the reply is certain to begin with."""
        return self._lines[0].settled() if len(self._lines) == 1 else ()

    def leader(self) -> Line:
        """A line that begins with what is settled."""
        return self._lines[0]

    def candidates(self) -> list[Candidate]:
        """The finished replies, by their mean log-probability, best first."""
        whole = [
            Candidate(
                tuple(line.ids),
                tuple(line.logprobs),
                line.finish_reason,
                sum(line.logprobs) / len(line.logprobs),
                tuple(line.notes),
            )
            for line in self._lines
            if line.finish_reason is not None
        ]
        return ranked(whole, self._same)


class Growing(NamedTuple):
    """A line that is to get its next token."""

    line: Line
    options: DecodingOptions
    at: int  # its row of scores
    row: int  # its row of decoder states
    note: Note | None


def extend_lines(
    lines: Sequence[Growing], scores: Tensor, logprobs: Tensor, states: Mapping[int, Tensor]
) -> list[tuple[int, Tensor]]:
    """Take every line one token further, chosen by ``scores`` (B, V) after all constraints; ``logprobs``
    (B, V) are recorded.

    ``states`` holds, for the rows of lines with a trail, the decoder state (F,) before this step. Returns the
    rows that go back, each with the state to go on from.
    """
    if not lines:
        return []
    at = [growing.at for growing in lines]
    whole = at == list(range(len(scores)))
    tokens = _choose(lines, scores if whole else scores[at])
    chosen = tokens.tolist()
    recorded = (logprobs if whole else logprobs[at]).gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
    for growing, (score, runner_up) in _on_trail(lines, scores, chosen):
        assert growing.line.trail is not None
        growing.line.trail.mark(states[growing.row], score, runner_up)
    turned = [
        (growing.row, growing.line.append(token, logprob, growing.note))
        for growing, token, logprob in zip(lines, chosen, recorded, strict=True)
    ]
    return [(row, state) for row, state in turned if state is not None]


def _choose(lines: Sequence[Growing], scores: Tensor) -> Tensor:
    """The next token of every line, (n,), by its row of ``scores`` (n, V)."""
    sampled = [i for i, growing in enumerate(lines) if growing.options.decoding == "sample"]
    if not sampled:
        return choose_likeliest(scores)
    chance = uniforms([lines[i].line.seed for i in sampled], [lines[i].line.draw for i in sampled])
    sampling = Sampling.of([lines[i].options for i in sampled], scores.shape[1])
    rows = scores if len(sampled) == len(lines) else scores[sampled]
    drawn = torch.from_numpy(choose_sampled(rows, chance, sampling)).to(scores.device)
    if rows is scores:
        return drawn
    tokens = choose_likeliest(scores)
    tokens[sampled] = drawn
    return tokens


def _on_trail(
    lines: Sequence[Growing], scores: Tensor, chosen: Sequence[int]
) -> list[tuple[Growing, tuple[float, float]]]:
    """For each line with a trail, the scores of the token chosen and of the best other."""
    pairs = zip(lines, chosen, strict=True)
    wary = [(growing, token) for growing, token in pairs if growing.line.trail is not None]
    if not wary:
        return []
    rows = scores[[growing.at for growing, _ in wary]]
    values, ids = (part.tolist() for part in rows.topk(2, dim=1))
    taken = rows[range(len(wary)), [token for _, token in wary]].tolist()
    return [
        (growing, (score, best[1] if best_ids[0] == token else best[0]))
        for (growing, token), score, best, best_ids in zip(wary, taken, values, ids, strict=True)
    ]
