"""Continuous batching: all replies in flight go one token further in one step of the model.

Sans-I/O: no clock, no threads, no sockets. One owner calls `Batcher.submit`, `Batcher.cancel` and
`Batcher.step`, and hands on the events that a step returns::

    batcher.submit(ReplyRequest("1", (("user", "Hello!"),), options))
    while not batcher.idle:
        for event in batcher.step():
            ...                       # Piece("1", "Hi"), Piece("1", " there"), Finished("1", reply)

A step lets go of cancelled replies, admits waiting ones in the order they came (their conversations are
read in one batch, from where they were last left), feeds every row its last token, and chooses the next token
of every path under the options of its own request. A reply is a function of model, conversation, options and
seed, whatever shares its batch.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from chatbot.beam import Beam, Shortlist
from chatbot.decoder import Bundle
from chatbot.decoding import constrain, derived_seed, likeliest
from chatbot.flight import Flight, Strand
from chatbot.lines import Growing, Line, Lines, Trail, extend_lines
from chatbot.options import DecodingOptions, OptionError
from chatbot.readings import Reader, Reading, Readings, Turns, promised
from chatbot.repeats import EarlierReplies
from chatbot.replies import (
    Alternative,
    Event,
    Failed,
    Finished,
    FinishReason,
    Load,
    Piece,
    Reply,
    ReplyRequest,
)
from chatbot.reranking import Rerankers, reranks
from chatbot.rules import Rules
from chatbot.slots import Slots
from chatbot.terms import Terms, rows_needed
from chatbot.tokenizer import TextStream, Tokenizer, clip_turn

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

Live = Sequence[tuple[Flight, Sequence[Strand]]]
"""Replies, each with its live paths."""

ALONE: Final = 8
"""Times as much is read in a step that holds up no reply in flight."""
_log: Final = logging.getLogger(__name__)
_UNREADABLE: Final = "the conversation could not be read"
_NOT_A_NUMBER: Final = "the model computed something that is not a number"


class BatcherFull(Exception):
    """No room in the waiting line."""


class Batcher:
    """Makes replies side by side. Not thread-safe, and after `step` has raised, to be replaced.

    rows: paths decoded at the same time, each beam counting as ``beam_size`` of them.
    waiting: requests that may wait for rows. rerankers: models that help to choose a reply; raises
    `TokenizersDiffer` when theirs is not that of ``bundle``.

    reading: tokens of conversations that are read between two steps of replies in flight, about, so that a
    long conversation does not hold them up; None for all of them. Nobody in flight, `ALONE` times as many, so
    that a step still returns soon: what is cancelled meanwhile or comes new waits for no more than that.
    kept: bytes that the states of conversations may take between their replies.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        rows: int = 64,
        waiting: int = 256,
        rerankers: Rerankers | None = None,
        reading: int | None = None,
        kept: int = 0,
    ) -> None:
        self._bundle = bundle
        self._rows = rows
        self._waiting_limit = waiting
        self._device = bundle.model.bias.device
        self._rerankers = rerankers or Rerankers()
        self._rerankers.require_tokenizer(bundle)
        self._terms = Terms(bundle.tokenizer, rows, self._rerankers)
        self._slots = Slots(bundle.model, rows)
        self._waiting: deque[ReplyRequest] = deque()
        self._reading = reading
        self._readings = Readings(kept)
        self._readers: dict[str, Reader] = {}
        self._flights: dict[str, Flight] = {}
        self._ahead: dict[str, Turns] = {}
        self._cancelled: dict[str, None] = {}

    def submit(self, request: ReplyRequest) -> None:
        """Put a request into the waiting line; the next steps answer it.

        Raises `BatcherFull`, and ValueError for an id that is in use, a conversation without turns, or
        sampling without a seed. What else is wrong with a request comes back as its `Failed`.
        """
        if self._knows(request.id):
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
        if self._knows(request_id):
            self._cancelled[request_id] = None

    @property
    def room(self) -> int:
        """How many requests the waiting line still takes."""
        return self._waiting_limit - len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self._busy and not self._ahead

    @property
    def _busy(self) -> bool:
        return bool(self._waiting or self._readers or self._flights)

    @property
    def load(self) -> Load:
        """What it is busy with."""
        return Load(self._rows - self._slots.free, len(self._waiting) + len(self._readers))

    def step(self) -> list[Event]:
        """One token further for every reply in flight. Pieces of a reply come in order, then its end.

        When there is none, a reply that was made is read, so that the next one to its conversation need not.
        """
        with torch.inference_mode():
            if not self._busy:
                self._read_ahead()
            events = [*self._drop_cancelled(), *self._admit()]
            if self._readers:
                events += self._read()
            if self._flights:
                events += self._advance()
        return events

    def _knows(self, request_id: str) -> bool:
        return (
            request_id in self._flights
            or request_id in self._readers
            or any(request_id == request.id for request in self._waiting)
        )

    # ---- Coming and going ----------------------------------------------------------------------------------

    def _drop_cancelled(self) -> list[Event]:
        events: list[Event] = []
        for request_id in self._cancelled:
            if request_id in self._flights:
                flight = self._flights[request_id]
                events += flight.cancel()
                self._release(flight)
        waiting = [request for request in self._waiting if request.id in self._cancelled]
        for request in waiting:
            self._waiting.remove(request)
        reading = [self._readers.pop(one).flight.request for one in self._cancelled if one in self._readers]
        for request in (*reading, *waiting):
            events.append(Finished(request.id, Reply("", (), (), "cancelled", request.options.seed or 0, ())))
        self._cancelled.clear()
        return events

    def _admit(self) -> list[Event]:
        """Promise rows to waiting requests, in order, until the first that does not fit."""
        events: list[Event] = []
        free = self._slots.free - promised(self._readers.values())
        while self._waiting:
            needed = rows_needed(self._waiting[0].options)
            if free < needed <= self._rows:
                break
            request = self._waiting.popleft()
            try:
                self._readers[request.id] = self._prepare(request, needed)
            except OptionError as error:
                events.append(Failed(request.id, str(error), error.field))
            except Exception as error:  # noqa: BLE001 - one bad request must not stop the others
                events.append(_unreadable(request.id, error))
            else:
                free -= needed
        return events

    def _prepare(self, request: ReplyRequest, rows: int) -> Reader:
        """All that a request needs but its rows. Raises `OptionError` for what this model cannot follow."""
        options, tokenizer = request.options, self._bundle.tokenizer
        self._ahead.pop(request.conversation, None)
        granted = self._terms.grant(options)
        known = self._readings.find(request.conversation, request.turns)
        new = tokenizer.encode_turns(request.turns[len(known.turns) :])
        turns = (*known.ids, *map(tuple, new))
        own = [ids for (role, _), ids in zip(request.turns, turns, strict=True) if role == "agent"]
        limit = self._bundle.config.max_turn_tokens
        flight = Flight(
            request=request,
            conversation=[clip_turn(turn, limit) for turn in turns],
            rules=Rules.of(options, granted, tokenizer, own),
            search=_search(options, tokenizer, own),
            tokenizer=tokenizer,
            stream=TextStream(tokenizer),
        )
        return Reader(flight, rows, turns, len(known.turns), known.context)

    def _read(self) -> list[Event]:
        """Read on in all conversations that were admitted, and begin the replies to those that are read."""
        readers = list(self._readers.values())
        share = None
        if self._reading is not None:
            share = (self._reading if self._flights else ALONE * self._reading) // len(readers)
        return self._read_on(readers, share)

    def _read_on(self, readers: Sequence[Reader], share: int | None) -> list[Event]:
        """Read the next turns of ``readers``; when that fails, find out for whom."""
        try:
            self._begin(self._encode(readers, [reader.next(share) for reader in readers]))
        except Exception as error:  # noqa: BLE001 - the same
            if len(readers) > 1:
                return [event for reader in readers for event in self._read_on([reader], share)]
            request = readers[0].flight.request
            del self._readers[request.id]
            return [_unreadable(request.id, error)]
        return []

    def _encode(self, readers: Sequence[Reader], turns: Sequence[list[list[int]]]) -> list[Reader]:
        """Read ``turns[i]`` for ``readers[i]``. Those that have read all."""
        model = self._bundle.model
        before = None
        if any(reader.context is not None for reader in readers):
            nothing = model.empty_context(1)
            before = model.join([nothing if r.context is None else r.context for r in readers])
        contexts = model.split(model.encode_conversations(turns, before))
        for reader, context, new in zip(readers, contexts, turns, strict=True):
            reader.context, reader.read = context, reader.read + len(new)
        return [reader for reader in readers if reader.done]

    def _read_ahead(self) -> None:
        """Read what was said last in one of the conversations that have been answered."""
        if not self._ahead:
            return
        conversation, turns = self._ahead.popitem()
        known = self._readings.find(conversation, turns)
        if len(known.turns) != len(turns) - 1:
            return
        model, limit = self._bundle.model, self._bundle.config.max_turn_tokens
        try:
            (new,) = self._bundle.tokenizer.encode_turns(turns[-1:])
            context = model.encode_conversations([[clip_turn(new, limit)]], model.join([known.context]))
        except Exception as error:  # noqa: BLE001 - nobody has asked for it
            _log.error("a reply was not read: %s", type(error).__name__)
            return
        reading = Reading(turns, (*known.ids, tuple(new)), model.split(context)[0], known)
        self._readings.keep(conversation, reading)

    def _begin(self, readers: Sequence[Reader]) -> None:
        """Give rows to conversations that have been read."""
        if not readers:
            return
        model, flights = self._bundle.model, [reader.flight for reader in readers]
        state, memory = model.start(model.join([reader.context for reader in readers]))
        for b, flight in enumerate(flights):
            flight.remember(memory, b)
        self._slots.add(flights, [reader.rows for reader in readers], state, memory)
        for reader, flight in zip(readers, flights, strict=True):
            del self._readers[flight.request.id]
            self._flights[flight.request.id] = flight
            self._readings.keep(flight.request.conversation, reader.reading())

    def _release(self, flight: Flight) -> None:
        self._slots.release(flight)
        del self._flights[flight.request.id]

    # ---- One token further ---------------------------------------------------------------------------------

    def _advance(self) -> list[Event]:
        live = [(flight, flight.live) for flight in self._flights.values()]
        wary = [row for _, strands in live for row, _, line in strands if line is not None and line.trail]
        states = {row: self._slots.state(row) for row in wary}
        logits, attention = self._slots.step(self._last_tokens(live))
        sums = logits.sum(1).tolist()  # finite only if all that is added up is
        failed = [
            flight for flight, strands in live if not all(math.isfinite(sums[row]) for row, _, _ in strands)
        ]
        sound = [(flight, strands) for flight, strands in live if flight not in failed] if failed else live
        self._extend(sound, logits, attention, states)
        events: list[Event] = []
        for flight, _ in live:
            if flight in failed:
                events.append(Failed(flight.request.id, _NOT_A_NUMBER))
                self._readings.forget(flight.request.conversation)
                self._release(flight)
            elif flight.done:
                events += self._finish(flight)
                self._remember(flight.request, events[-1])
                self._release(flight)
            else:
                events += flight.progress()
        return events

    def _finish(self, flight: Flight) -> list[Event]:
        """The end of a reply whose search is over."""
        candidates, options = flight.search.candidates(), flight.request.options
        if reranks(options):
            candidates = self._rerankers.rerank(candidates, flight.conversation[-1], options)
            if not all(math.isfinite(candidate.score) for candidate in candidates):
                return [Failed(flight.request.id, _NOT_A_NUMBER)]
        return flight.finish(candidates)

    def _remember(self, request: ReplyRequest, end: Event) -> None:
        """Have a reply read in advance, if the reading of its conversation is kept."""
        if isinstance(end, Finished) and self._readings.find(request.conversation, request.turns).turns:
            self._ahead[request.conversation] = (*request.turns, ("agent", end.reply.text))
            if len(self._ahead) > self._rows:
                del self._ahead[next(iter(self._ahead))]

    def _last_tokens(self, live: Live) -> list[int]:
        """The token that each row in use reads next; rows without a live path read anything."""
        agent = self._bundle.tokenizer.agent_id
        tokens = [agent] * (self._rows - self._slots.free)
        for _, strands in live:
            for row, path, _ in strands:
                tokens[row] = path.ids[-1] if path.ids else agent
        return tokens

    def _extend(self, live: Live, logits: Tensor, attention: Tensor, states: Mapping[int, Tensor]) -> None:
        """Choose the next token of every path from ``logits`` (rows in use, V).

        ``attention`` (rows in use, M) is what the rows have looked at; ``states`` holds, by row, what lines
        that may go back have come from.
        """
        every = [strand for _, strands in live for strand in strands]
        if not every:
            return
        rows = [strand.row for strand in every]
        if rows != list(range(len(logits))):
            logits = logits[rows]
        logprobs = logits if self._bundle.model.gives_logprobs else logits.log_softmax(1)
        scores = constrain(logits, logprobs, [strand.path for strand in every])
        best = _shortlist(live, scores)
        growing: list[Growing] = []
        moved: list[tuple[int, int]] = []
        first = 0
        for flight, strands in live:
            span = slice(first, first + len(strands))
            looks = attention[rows[span]] if flight.looks else None
            notes = flight.notes(logprobs[span], looks) if flight.takes_notes else None
            if isinstance(flight.search, Beam):
                seen = flight.seen(looks)
                shortlist = best.rows(span) if best is not None and flight.search.shortlist else None
                parents = flight.search.advance(scores[span], logprobs[span], seen, notes, shortlist)
                moved += zip(flight.rows, (flight.rows[parent] for parent in parents), strict=False)
            else:
                growing += flight.growing(strands, first, notes)
            first = span.stop
        # The decoder states of all beams are rearranged at once.
        self._slots.copy_states([target for target, _ in moved], [source for _, source in moved])
        for row, state in extend_lines(growing, scores, logprobs, states):
            self._slots.restore(row, state)


def _shortlist(live: Live, scores: Tensor) -> Shortlist | None:
    """The best of ``scores`` (paths, V) of all beams at once; rows that are of none are looked at with them.

    None where no beam asks for it.
    """
    size = max((flight.search.shortlist for flight, _ in live if isinstance(flight.search, Beam)), default=0)
    if not size:
        return None
    values, ids = likeliest(scores, min(size, scores.shape[1]))
    return Shortlist(values.tolist(), ids.tolist())


def _search(
    options: DecodingOptions, tokenizer: Tokenizer, own_turns: Sequence[Sequence[int]]
) -> Lines | Beam:
    if options.decoding == "beam":
        return Beam(options, tokenizer.end_id, same=tokenizer.decode, keep_all=reranks(options))
    seed = options.seed or 0
    count = options.samples if options.decoding == "sample" else 1
    earlier = EarlierReplies(own_turns, options.no_repeat_reply, tokenizer)
    lines = [
        Line(
            tokenizer.end_id,
            options.max_tokens,
            derived_seed(seed, str(number)) if number else seed,
            Trail(earlier) if earlier else None,
        )
        for number in range(count)
    ]
    return Lines(lines, same=tokenizer.decode)


def _unreadable(request_id: str, error: Exception) -> Failed:
    # The text of an exception may quote a visitor, so it is shown only where somebody asked for everything.
    everything = error if _log.isEnabledFor(logging.DEBUG) else None
    _log.error("a request was not admitted: %s", type(error).__name__, exc_info=everything)
    return Failed(request_id, _UNREADABLE)
