"""One reply in the making: its search, its rules, the rows it holds and the text it has shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from chatbot import notes
from chatbot.beam import Beam
from chatbot.candidates import Candidate
from chatbot.lines import Growing, Line, Lines
from chatbot.notes import Note, Remembered
from chatbot.replies import Alternative, Event, Finished, FinishReason, Piece, Reply, ReplyRequest
from chatbot.rules import Path, Rules
from chatbot.tokenizer import TextStream, Tokenizer


class Strand(NamedTuple):
    """A live path and the row that it is in."""

    row: int
    path: Path
    line: Line | None  # that the path is of, if it is not one of a beam's


@dataclass(eq=False, slots=True)
class Flight:
    """A request that holds rows of the batch."""

    request: ReplyRequest
    conversation: list[list[int]]
    """Ids of each turn, oldest first."""
    rules: Rules
    search: Lines | Beam
    tokenizer: Tokenizer
    stream: TextStream
    rows: list[int] = field(default_factory=list)
    pushed: int = 0
    text: str = ""
    remembered: Remembered | None = None
    """What there is to look at; None where nobody asks."""

    @property
    def live(self) -> list[Strand]:
        """The paths being extended."""
        if isinstance(self.search, Beam):
            live = zip(self.rows, self.search.live, strict=False)
            return [Strand(row, Path(self.rules, path.ids), None) for row, path in live]
        return [
            Strand(self.rows[i], Path(self.rules, line.ids, line.avoid), line) for i, line in self.search.live
        ]

    def growing(self, strands: Sequence[Strand], first: int, notes: Sequence[Note] | None) -> list[Growing]:
        """Live lines, to be extended by the rows of scores from ``first`` on."""
        return [
            Growing(line, self.request.options, first + n, row, None if notes is None else notes[n])
            for n, (row, _, line) in enumerate(strands)
            if line is not None
        ]

    @property
    def done(self) -> bool:
        return self.search.done

    # ---- What it looks at ----------------------------------------------------------------------------------

    @property
    def takes_notes(self) -> bool:
        return self.request.options.top_alternatives > 0 or self.request.options.attention

    @property
    def looks(self) -> bool:
        """Whether it matters what it looks at."""
        return self.request.options.coverage_penalty > 0 or self.request.options.attention

    def remember(self, memory: Any, row: int) -> None:
        """Begin with row ``row`` of ``memory``."""
        if self.looks:
            self.remembered = Remembered.of(memory, row)

    def seen(self, attention: Tensor | None) -> Tensor | None:
        """Of ``attention`` (live, M), that to the turn that is answered, (live, I). None unless asked for."""
        if attention is None or self.remembered is None or not self.request.options.coverage_penalty:
            return None
        return attention[:, self.remembered.answered]

    def notes(self, logprobs: Tensor, attention: Tensor | None) -> list[Note]:
        """Notes of the live paths: ``logprobs`` (live, V), ``attention`` (live, M) where it matters."""
        if attention is None or self.remembered is None:
            attention = logprobs[:, :0]
        else:
            attention = attention[:, list(self.remembered.columns)]
        return notes.take_notes(logprobs, attention, self.request.options.top_alternatives)

    # ---- What it says --------------------------------------------------------------------------------------

    def progress(self) -> list[Event]:
        """Text that is certain to be in the reply and has not been shown."""
        showable = self._showable()
        return self._show("".join(map(self.stream.push, showable[self.pushed :])), len(showable))

    def finish(self, candidates: Sequence[Candidate]) -> list[Event]:
        """The rest of the text, and the reply: the first of ``candidates``, best first."""
        options = self.request.options
        best = candidates[0]
        several = options.decoding == "beam" or (options.decoding == "sample" and options.samples > 1)
        alternatives = tuple(
            Alternative(self.tokenizer.decode(c.ids), c.ids, sum(c.logprobs), c.score)
            for c in candidates[: options.n_best if several else 0]
        )
        return self._end(best.ids, best.logprobs, best.finish_reason, best.notes, alternatives)

    def cancel(self) -> list[Event]:
        """The reply as far as it has been shown."""
        ids, leader = tuple(self._showable()), self.search.leader()
        return self._end(ids, leader.logprobs[: len(ids)], "cancelled", leader.notes[: len(ids)])

    def _showable(self) -> Sequence[int]:
        return self.rules.showable(self.search.settled())

    def _end(
        self,
        ids: tuple[int, ...],
        logprobs: Sequence[float],
        reason: FinishReason,
        noted: Sequence[Note],
        alternatives: tuple[Alternative, ...] = (),
    ) -> list[Event]:
        rest = "".join([*map(self.stream.push, ids[self.pushed :]), self.stream.finish()])
        events = self._show(rest, len(ids))
        options, attention = self.request.options, None
        if options.attention and self.remembered is not None:
            attention = notes.attention(noted, self.remembered, self.tokenizer)
        reply = Reply(
            text=self.text,
            token_ids=ids,
            logprobs=tuple(logprobs),
            finish_reason=reason,
            seed=options.seed or 0,
            alternatives=alternatives,
            top=notes.alternatives(noted, self.tokenizer) if options.top_alternatives else (),
            attention=attention,
        )
        return [*events, Finished(self.request.id, reply)]

    def _show(self, text: str, upto: int) -> list[Event]:
        self.pushed = upto
        self.text += text
        return [Piece(self.request.id, text)] if text else []
