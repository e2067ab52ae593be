"""Continuous batching: all replies in flight go one token further in one step of the model.

Sans-I/O: no clock, no threads, no sockets. One owner calls `Batcher.submit`, `Batcher.cancel` and
`Batcher.step`, and hands on the events that a step returns::

    batcher.submit(ReplyRequest("1", (("user", "Hello!"),), options))
    while not batcher.idle:
        for event in batcher.step():
            ...                       # Piece("1", "Hi"), Piece("1", " there"), Finished("1", reply)

A step lets go of cancelled replies, admits waiting ones in the order they came (their conversations are
encoded in one batch), feeds every row its last token, and chooses the next token of every path under the
options of its own request. A reply is a function of model, conversation, options and seed, whatever shares
its batch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from chatbot.beam import Beam
from chatbot.decoding import Path, Rules, Sampling, choose_likeliest, choose_sampled, constrain, uniforms
from chatbot.flight import Flight, Line
from chatbot.model_directory import ModelBundle
from chatbot.options import OptionError
from chatbot.prefix import ByteIndex, ForcedPrefix
from chatbot.replies import Alternative, Event, Failed, Finished, FinishReason, Piece, Reply, ReplyRequest
from chatbot.slots import Slots
from chatbot.tokenizer import TextStream, clip_turn

__all__ = [
    "Alternative",
    "Batcher",
    "BatcherFull",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Piece",
    "Reply",
    "ReplyRequest",
]

_log: Final = logging.getLogger(__name__)
_UNREADABLE: Final = "the conversation could not be read"
_NOT_A_NUMBER: Final = "the model computed something that is not a number"


class BatcherFull(Exception):
    """No room in the waiting line."""


class Batcher:
    """Makes replies side by side. Not thread-safe, and after `step` has raised, to be replaced.

    rows: paths decoded at the same time, each beam counting as ``beam_size`` of them.
    waiting: requests that may wait for rows.
    """

    def __init__(self, bundle: ModelBundle, *, rows: int = 64, waiting: int = 256) -> None:
        self._bundle = bundle
        self._rows = rows
        self._waiting_limit = waiting
        self._device = bundle.model.bias.device
        self._index = ByteIndex(bundle.tokenizer)
        self._slots = Slots(bundle.model, rows)
        self._waiting: deque[ReplyRequest] = deque()
        self._flights: dict[str, Flight] = {}
        self._cancelled: dict[str, None] = {}

    def submit(self, request: ReplyRequest) -> None:
        """Put a request into the waiting line; the next steps answer it.

        Raises `BatcherFull`, and ValueError for an id that is in use, a conversation without turns, or
        sampling without a seed. What else is wrong with a request comes back as its `Failed`.
        """
        if request.id in self._flights or any(request.id == other.id for other in self._waiting):
            raise ValueError(f"request {request.id!r} is being answered already")
        if not request.turns:
            raise ValueError("a conversation needs a turn to be answered")
        if request.options.decoding == "sample" and request.options.seed is None:
            raise ValueError("sampling needs a seed")
        if not self.room:
            raise BatcherFull
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        """Stop a reply: the next step returns it as it is. An id that is not in the batcher is ignored."""
        if request_id in self._flights or any(request_id == request.id for request in self._waiting):
            self._cancelled[request_id] = None

    @property
    def room(self) -> int:
        """How many requests the waiting line still takes."""
        return self._waiting_limit - len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self._waiting and not self._flights

    def step(self) -> list[Event]:
        """One token further for every reply in flight. Pieces of a reply come in order, then its end."""
        with torch.inference_mode():
            events = [*self._drop_cancelled(), *self._admit()]
            if self._flights:
                events += self._advance()
        return events

    # ---- Coming and going ----------------------------------------------------------------------------------

    def _drop_cancelled(self) -> list[Event]:
        events: list[Event] = []
        for request_id in self._cancelled:
            if request_id in self._flights:
                flight = self._flights[request_id]
                events += flight.cancel()
                self._release(flight)
        for request in [request for request in self._waiting if request.id in self._cancelled]:
            self._waiting.remove(request)
            events.append(Finished(request.id, Reply("", (), (), "cancelled", request.options.seed or 0, ())))
        self._cancelled.clear()
        return events

    def _admit(self) -> list[Event]:
        """Give rows to waiting requests, in order, until the first that does not fit."""
        events: list[Event] = []
        flights: list[Flight] = []
        free = self._slots.free
        while self._waiting:
            needed = _rows_needed(self._waiting[0])
            if free < needed <= self._rows:
                break
            request = self._waiting.popleft()
            try:
                flights.append(self._prepare(request))
            except OptionError as error:
                events.append(Failed(request.id, str(error), error.field))
            except Exception as error:  # noqa: BLE001 - one bad request must not stop the others
                events.append(_unreadable(request.id, error))
            else:
                free -= needed
        return [*events, *self._start(flights)]

    def _prepare(self, request: ReplyRequest) -> Flight:
        """All that a request needs but its rows. Raises `OptionError` for what this model cannot follow."""
        options, tokenizer = request.options, self._bundle.tokenizer
        options.require_vocabulary(tokenizer.vocab_size)
        if _rows_needed(request) > self._rows:
            raise OptionError("beam_size", f"must be a whole number from 1 to {self._rows} here")
        prefix = ForcedPrefix(options.prefix, tokenizer, self._index)
        if len(prefix.chain) > options.max_tokens:
            raise OptionError("prefix", f"has {len(prefix.chain)} tokens, more than max_tokens")
        limit = self._bundle.config.max_turn_tokens
        search: Line | Beam = Line(tokenizer.end_id, options.max_tokens)
        if options.decoding == "beam":
            search = Beam(options, tokenizer.end_id, same=tokenizer.decode)
        return Flight(
            request=request,
            conversation=[clip_turn(turn, limit) for turn in tokenizer.encode_turns(request.turns)],
            rules=Rules.of(options, prefix, tokenizer),
            search=search,
            tokenizer=tokenizer,
            stream=TextStream(tokenizer),
        )

    def _start(self, flights: Sequence[Flight]) -> list[Event]:
        """Encode the conversations and give them rows; when that fails, find out for whom."""
        if not flights:
            return []
        model = self._bundle.model
        try:
            state, memory = model.start(
                model.encode_conversations([flight.conversation for flight in flights])
            )
        except Exception as error:  # noqa: BLE001 - the same
            if len(flights) == 1:
                return [_unreadable(flights[0].request.id, error)]
            return [event for flight in flights for event in self._start([flight])]
        self._slots.add(flights, [_rows_needed(flight.request) for flight in flights], state, memory)
        self._flights.update((flight.request.id, flight) for flight in flights)
        return []

    def _release(self, flight: Flight) -> None:
        self._slots.release(flight)
        del self._flights[flight.request.id]

    # ---- One token further ---------------------------------------------------------------------------------

    def _advance(self) -> list[Event]:
        logits = self._slots.step(self._last_tokens())
        broken = (~torch.isfinite(logits.sum(1))).tolist()  # a sum is finite only if all that it adds up is
        failed = [f for f in self._flights.values() if any(broken[row] for row in f.rows[: len(f.paths)])]
        self._extend([f for f in self._flights.values() if f not in failed], logits)
        events: list[Event] = []
        for flight in list(self._flights.values()):
            if flight in failed:
                events.append(Failed(flight.request.id, _NOT_A_NUMBER))
            else:
                events += flight.finish() if flight.done else flight.progress()
            if flight in failed or flight.done:
                self._release(flight)
        return events

    def _last_tokens(self) -> list[int]:
        """The token that each row in use reads next; rows that a beam does not use read anything."""
        agent = self._bundle.tokenizer.agent_id
        tokens = [agent] * (self._rows - self._slots.free)
        for flight in self._flights.values():
            for row, path in zip(flight.rows, flight.paths, strict=False):
                tokens[row] = path.ids[-1] if path.ids else agent
        return tokens

    def _extend(self, flights: Sequence[Flight], logits: Tensor) -> None:
        """Choose the next token of every path of ``flights`` from ``logits`` (rows in use, V)."""
        paths: list[Path] = []
        rows: list[int] = []
        spans: list[slice] = []
        for flight in flights:
            own = flight.paths
            spans.append(slice(len(paths), len(paths) + len(own)))
            paths += own
            rows += flight.rows[: len(own)]
        if not paths:
            return
        logits = logits[rows]
        logprobs = logits.log_softmax(1)
        scores = constrain(logits, logprobs, paths)
        self._extend_lines(
            [(f, span.start) for f, span in zip(flights, spans, strict=True)], scores, logprobs
        )
        self._extend_beams(list(zip(flights, spans, strict=True)), scores, logprobs)

    def _extend_lines(self, flights: Sequence[tuple[Flight, int]], scores: Tensor, logprobs: Tensor) -> None:
        """Greedy and sampled replies; each flight comes with its row of ``scores`` and ``logprobs``."""
        lines = [(f.search, row, f.request.options) for f, row in flights if isinstance(f.search, Line)]
        greedy = [(line, row) for line, row, options in lines if options.decoding == "greedy"]
        sampled = [(line, row, options) for line, row, options in lines if options.decoding == "sample"]
        chosen = [(line, row) for line, row in greedy] + [(line, row) for line, row, _ in sampled]
        if not chosen:
            return
        tokens = []
        if greedy:
            tokens.append(choose_likeliest(scores[[row for _, row in greedy]]))
        if sampled:
            options = [options for _, _, options in sampled]
            chance = uniforms(
                torch.tensor([o.seed or 0 for o in options], device=self._device),
                torch.tensor([len(line.ids) for line, _, _ in sampled], device=self._device),
            )
            sampling = Sampling.of(options, scores.shape[1], self._device)
            tokens.append(choose_sampled(scores[[row for _, row, _ in sampled]], chance, sampling))
        token = torch.cat(tokens)
        logprob = logprobs[[row for _, row in chosen], token].tolist()
        for (line, _), t, p in zip(chosen, token.tolist(), logprob, strict=True):
            line.append(t, p)

    def _extend_beams(
        self, flights: Sequence[tuple[Flight, slice]], scores: Tensor, logprobs: Tensor
    ) -> None:
        """Beams; the decoder states of all of them are rearranged at once."""
        targets: list[int] = []
        sources: list[int] = []
        for flight, span in flights:
            if isinstance(flight.search, Beam):
                parents = flight.search.advance(scores[span], logprobs[span])
                targets += flight.rows[: len(parents)]
                sources += [flight.rows[parent] for parent in parents]
        self._slots.copy_states(targets, sources)


def _rows_needed(request: ReplyRequest) -> int:
    return request.options.beam_size if request.options.decoding == "beam" else 1


def _unreadable(request_id: str, error: Exception) -> Failed:
    # The text of an exception may quote a visitor, so it is shown only where somebody asked for everything.
    everything = error if _log.isEnabledFor(logging.DEBUG) else None
    _log.error("a request was not admitted: %s", type(error).__name__, exc_info=everything)
    return Failed(request_id, _UNREADABLE)
