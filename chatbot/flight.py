"""One reply in the making: its search, its rules, the rows it holds and the text it has shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from chatbot.beam import Beam
from chatbot.decoding import Path, Rules
from chatbot.replies import Alternative, Event, Finished, FinishReason, Piece, Reply, ReplyRequest
from chatbot.tokenizer import TextStream, Tokenizer


@dataclass(slots=True)
class Line:
    """A single path, greedy or sampled: the same face as `Beam` has."""

    end_id: int
    longest: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def append(self, token: int, logprob: float) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while it grows. The end comes before the length: a reply that just fits is not cut off."""
        if self.ids and self.ids[-1] == self.end_id:
            return "stop"
        return "length" if len(self.ids) == self.longest else None


@dataclass(eq=False, slots=True)
class Flight:
    """A request that holds rows of the batch."""

    request: ReplyRequest
    conversation: list[list[int]]
    """Ids of each turn, oldest first."""
    rules: Rules
    search: Line | Beam
    tokenizer: Tokenizer
    stream: TextStream
    rows: list[int] = field(default_factory=list)
    pushed: int = 0
    text: str = ""

    @property
    def paths(self) -> list[Path]:
        """The paths being extended; path i is in ``rows[i]``."""
        if isinstance(self.search, Beam):
            return [Path(self.rules, hypothesis.ids) for hypothesis in self.search.live]
        return [Path(self.rules, self.search.ids)]

    @property
    def done(self) -> bool:
        return self.search.done if isinstance(self.search, Beam) else self.search.finish_reason is not None

    def progress(self) -> list[Event]:
        """Text that is certain to be in the reply and has not been shown."""
        settled = self.search.settled() if isinstance(self.search, Beam) else self.search.ids
        return self._show("".join(map(self.stream.push, settled[self.pushed :])), len(settled))

    def finish(self) -> list[Event]:
        """The rest of the text, and the reply."""
        if isinstance(self.search, Beam):
            best, *_ = found = self.search.best()
            ids, logprobs, reason = best.ids, best.logprobs, best.finish_reason
            alpha = self.request.options.length_penalty
            alternatives = tuple(
                Alternative(self.tokenizer.decode(h.ids), h.ids, sum(h.logprobs), h.score(alpha))
                for h in found
            )
            return self._end(ids, logprobs, reason, alternatives)
        assert self.search.finish_reason is not None, "finish before done"
        return self._end(tuple(self.search.ids), tuple(self.search.logprobs), self.search.finish_reason)

    def cancel(self) -> list[Event]:
        """The reply as far as it has been shown."""
        if isinstance(self.search, Beam):
            ids = self.search.settled()
            return self._end(ids, self.search.live[0].logprobs[: len(ids)], "cancelled")
        return self._end(tuple(self.search.ids), tuple(self.search.logprobs), "cancelled")

    def _end(
        self,
        ids: tuple[int, ...],
        logprobs: tuple[float, ...],
        reason: FinishReason,
        alternatives: tuple[Alternative, ...] = (),
    ) -> list[Event]:
        rest = "".join([*map(self.stream.push, ids[self.pushed :]), self.stream.finish()])
        events = self._show(rest, len(ids))
        seed = self.request.options.seed or 0
        return [
            *events,
            Finished(self.request.id, Reply(self.text, ids, logprobs, reason, seed, alternatives)),
        ]

    def _show(self, text: str, upto: int) -> list[Event]:
        self.pushed = upto
        self.text += text
        return [Piece(self.request.id, text)] if text else []
