"""What makes replies, and the event loop's way to it.

One worker owns one batcher and does nothing but step it while there is work: a process
(server.engine_process) or a thread (server.worker). Nobody else touches the model, and the event loop never
waits for arithmetic. Requests go over as commands, events come back once per step.

    permit = engine.reserve()                          # at once, or EngineBusy
    async with engine.generate(request, permit) as events:
        async for event in events:                     # Piece …, then Finished or Failed
            …                                          # leaving early cancels the request

A request that fails gets `Failed`; when a batcher fails, all of its requests do, and it is replaced. So is a
worker whose step does not return. When a worker has ended (a process can be killed), another one makes its
replies from the start, once: a reply is a function of its request, and what was told of it is not told again.

Another model takes over by `Engine.switch`: a permit belongs to the model that was in use when it was given,
so what is under way ends on the model it began on, with a worker for each; the old one goes with its last
permit. `Engine.add` has another model work beside the one in use, for those who `reserve` with its name.

While all of a model's rows are taken, requests wait here, and their owners take turns (limits.FairLine): the
batcher's own line, first come first served, is only ever long enough that no row is idle.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Final, Self

from chatbot.options import DecodingOptions
from chatbot.replies import Event, Failed, Finished, Load, Piece, ReplyRequest
from chatbot.terms import rows_needed
from server import logs
from server.limits import FairLine
from server.speaker import Speaker
from server.worker import BeginWorker, MakeBatcher, Steps, ThreadWorker, Told, Worker

__all__ = ["Engine", "EngineBusy", "EngineUnhealthy", "Generation", "Permit", "Steps", "Timing"]

log = logging.getLogger(__name__)

PROBE_WAIT: Final = 3.0
"""Seconds a health check waits for its one token, unless told otherwise."""
PROBES: Final = 8
"""Places in the batcher's waiting line that are kept for health checks."""
FRESH: Final = 1.0
"""Seconds for which a step that went well shows that the engine is alive."""
STEP_LIMIT: Final = 30.0
"""Seconds that a step may take before its worker is given up, unless told otherwise."""
FIRST_STEP_LIMIT: Final = 300.0
"""The same for a first step, which loads the model: from a slow disk, or to a GPU that has yet to come up."""
STUCK: Final = 4
"""Threads given up that may still hang at a time: each keeps a batcher. With so many, no other is begun."""
AHEAD: Final = 8
"""One row in so many is promised in advance: a row that comes free is not idle while its end is told here."""
STOP_WAIT: Final = 20.0
"""Seconds that stopping waits for a step under way."""
_NOT_MADE: Final = "the reply could not be made"
_NOBODY: Final = Speaker("", DecodingOptions(), DecodingOptions.checked)
_PROBE_OPTIONS: Final = DecodingOptions(decoding="greedy", min_tokens=0, max_tokens=1, seed=0)


class EngineBusy(Exception):
    """All places are taken. `retry_after`: seconds, about what one reply takes."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"no place for another reply; try again in {self.retry_after:g} s"


class EngineUnhealthy(Exception):
    """The engine does not produce tokens; `reason` says why, without anybody's text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False, slots=True)
class _Station:
    """A model and the worker that makes its replies.

    held: permits that belong to it. line: what it has not been given yet. rows: what it has, in rows.
    """

    speaker: Speaker
    make_batcher: MakeBatcher
    worker: Worker | None = None
    held: int = 0
    line: FairLine[Generation] = field(default_factory=FairLine)
    rows: int = 0


class Permit:
    """A place for one reply, held from before its question is committed until the reply has ended.

    `speaker` is the model that the reply will be made by, whichever is in use by then. `owner` is who takes
    turns with others for it.
    """

    def __init__(
        self, station: _Station, places: int, give_back: Callable[[], None], owner: str | None = None
    ) -> None:
        self.station = station
        self.places = places
        self.owner = owner
        self._give_back: list[Callable[[], None]] = [give_back]

    @property
    def speaker(self) -> Speaker:
        return self.station.speaker

    def release(self) -> None:
        """Give the place back; again is harmless."""
        callbacks, self._give_back = self._give_back, []
        for give_back in callbacks:
            give_back()

    def on_release(self, give_back: Callable[[], None]) -> None:
        """Have something else given back with the place."""
        self._give_back.append(give_back)


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds from handing a request over to its admission, its first text and its end."""

    queued_ms: float
    first_token_ms: float | None
    total_ms: float


OnEnd = Callable[[Finished | Failed, Timing], None]


class Generation:
    """The events of one reply. Left before its end, it is cancelled and nothing more is heard of it."""

    def __init__(self, request: ReplyRequest, permit: Permit, engine: Engine) -> None:
        self.id = request.id
        self.request = request
        self.permit = permit
        self.owner = permit.owner or request.id
        self.rows = 0
        self._engine = engine
        self._events: deque[Event] = deque()
        self._arrival = asyncio.Event()
        self._ended = False
        self._began = self._last = engine.now()
        self._taken: float | None = None
        self._first: float | None = None
        self._told = 0  # characters
        self._heard = 0  # of the worker that makes it now
        self._again = False
        self._end_wanted = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._arrival.clear()
            await self._arrival.wait()
        return self._events.popleft()

    async def aclose(self) -> None:
        """Want nothing more of this reply. The batcher drops it, unless it has ended."""
        if not self._ended:
            self._ended = True
            self._arrival.set()
            self._engine.cancel(self.id)

    def want_end(self) -> None:
        """By the engine: its end was asked for."""
        self._end_wanted = True

    def end_due(self) -> bool:
        """By the engine: whether its worker is to end it now. One that makes it again goes on until it has
        said what was told: a reply is kept as far as it was shown.
        """
        due = self._end_wanted and (self._ended or self._heard >= self._told)
        self._end_wanted = self._end_wanted and not due
        return due

    def begin_again(self) -> bool:
        """By the engine, when what made it has ended: whether another worker is to make it."""
        if self._ended or self._again:
            return False
        self._again, self._heard = True, 0
        return True

    @property
    def timing(self) -> Timing:
        def since_start(moment: float) -> float:
            return round((moment - self._began) * 1000, 3)

        taken = self._last if self._taken is None else self._taken
        first = None if self._first is None else since_start(self._first)
        return Timing(since_start(taken), first, since_start(self._last))

    def taken(self, moment: float) -> None:
        """By the engine: the batcher has it since `moment`."""
        self._taken = moment

    def deliver(self, event: Event) -> None:
        """By the engine, on the event loop."""
        if self._ended:
            return
        self._last = self._engine.now()
        if not isinstance(event, Piece):
            self._ended = True
        elif not (event := self._news(event)).text:
            return
        elif self._first is None:
            self._first = self._last
        self._events.append(event)
        self._arrival.set()

    def _news(self, piece: Piece) -> Piece:
        """What of it was not told before a worker ended. The same text comes again; should it differ (float32
        computes other last digits in other company), only the end of the reply has it as it is.
        """
        news = piece.text[max(0, self._told - self._heard) :]
        self._heard += len(piece.text)
        self._told = max(self._told, self._heard)
        return Piece(piece.id, news)


class Engine:
    """Makes replies by a worker, or by two while one model takes over from another.

    make_batcher: called by the worker, before the first request and after a failure.
    begin_worker: makes a worker, to be started yet; a thread if left out.
    capacity: replies under way at the same time, waiting ones included; the batcher must take `PROBES` more.
    rows: that the batcher decodes at the same time; None when it is to have all requests at once.
    speaker: the model that the batcher belongs to.
    threads: for the arithmetic of a thread's step; the event loop needs a core to itself to stay quick.
    step_limit: seconds after which a step is taken to hang.
    clock: seconds, monotonic; asked from both sides.
    on_end: told of each reply that has ended. on_refusal: of each that there was no place for.
    """

    def __init__(
        self,
        make_batcher: MakeBatcher,
        *,
        capacity: int,
        begin_worker: BeginWorker | None = None,
        rows: int | None = None,
        speaker: Speaker = _NOBODY,
        threads: int = 1,
        step_limit: float = STEP_LIMIT,
        clock: Callable[[], float] = time.monotonic,
        on_end: OnEnd = lambda *_: None,
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self.now = clock
        self.capacity = capacity
        self._on_end = on_end
        self._on_refusal = on_refusal
        self._begin_worker = begin_worker or partial(ThreadWorker, threads=threads, clock=clock)
        self._step_limit = step_limit
        self._watch: asyncio.Task[None] | None = None
        self._free = capacity
        self._rows = rows
        self._generations: dict[str, Generation] = {}
        self._reply_seconds = 1.0
        self._probe_ids = itertools.count()
        self._station = _Station(speaker, make_batcher)
        self._stations = [self._station]
        self._beside: dict[str, _Station] = {}
        self._stuck: list[Worker] = []
        self._retired: list[Worker] = []

    def start(self) -> None:
        """Start the worker; events come back to the running event loop."""
        self._begin(self._station)
        self._watch = asyncio.create_task(self._keep_watch(), name="engine watch")

    async def stop(self) -> None:
        """End the workers after their present steps; what is still under way fails."""
        if self._watch is not None:
            self._watch.cancel()
        workers = [station.worker for station in self._stations if station.worker is not None]
        for worker in workers:
            worker.stop()
        wait = min(STOP_WAIT, self._step_limit)
        await asyncio.gather(*(worker.join(wait) for worker in (*workers, *self._retired)))
        for station in self._stations:
            self._fail_all(station, "the server is stopping")

    @property
    def threads_left(self) -> bool:
        """Once it was stopped: whether a thread is in a step that does not return."""
        workers = (*self._stuck, *(station.worker for station in self._stations))
        return any(worker is not None and worker.alive for worker in workers)

    async def switch(self, make_batcher: MakeBatcher, speaker: Speaker) -> None:
        """Have `reserve` give places with another model, once that has made a token; what has a permit keeps
        its own. Raises `EngineUnhealthy` when it makes none; then nothing has changed.
        """
        station = await self._ready(make_batcher, speaker)
        before, self._station = self._station, station
        self._retire_unused(before)

    async def add(self, make_batcher: MakeBatcher, speaker: Speaker) -> None:
        """Have another model ready beside the one in use, with rows and a worker of its own.

        Raises `EngineUnhealthy` when it makes no token.
        """
        station = await self._ready(make_batcher, speaker)
        self.remove(speaker.fingerprint)
        self._beside[speaker.fingerprint] = station

    def have_moved(self, make_batcher: MakeBatcher) -> None:
        """The model in use is to be made like that from its next worker on."""
        self._station.make_batcher = make_batcher

    def remove(self, fingerprint: str) -> None:
        """Give no more places with a model that was added; it goes with its last permit."""
        station = self._beside.pop(fingerprint, None)
        if station is not None:
            self._retire_unused(station)

    @property
    def speaker(self) -> Speaker:
        """The model that makes new replies."""
        return self._station.speaker

    def speaker_of(self, fingerprint: str) -> Speaker | None:
        """A model that places are given with, the one in use among them."""
        if fingerprint == self._station.speaker.fingerprint:
            return self._station.speaker
        station = self._beside.get(fingerprint)
        return None if station is None else station.speaker

    @property
    def places_in_use(self) -> int:
        """Replies under way, waiting ones included."""
        return self.capacity - self._free

    @property
    def load(self) -> Load:
        """Of all batchers, after the last step of each, and of the lines before them."""
        loads = [station.worker.load for station in self._stations if station.worker is not None]
        waiting = sum(len(station.line) for station in self._stations)
        return Load(sum(load.rows for load in loads), waiting + sum(load.waiting for load in loads))

    @property
    def pid(self) -> int | None:
        """Of the process that makes new replies, if it is not this one."""
        return None if self._station.worker is None else self._station.worker.pid

    @property
    def trouble(self) -> str | None:
        """What went wrong with its last step, in words for whoever runs the server."""
        return None if self._station.worker is None else self._station.worker.trouble

    @property
    def failures(self) -> int:
        """Failures of the batcher since it last made a step."""
        return 0 if self._station.worker is None else self._station.worker.failures

    def reserve(self, owner: str | None = None, model: str | None = None) -> Permit:
        """A place for one more reply. Raises `EngineBusy` at once when there is none.

        owner: takes turns with other owners when there is a line; None for a request that is its own.
        model: fingerprint of one that was added; left out or not there (any more), it is the one in use.
        """
        if self._free <= 0:
            self._on_refusal()
            raise EngineBusy(float(max(1, math.ceil(self._reply_seconds))))
        self._free -= 1
        return self._permit(1, owner, self._beside.get(model or ""))

    def generate(self, request: ReplyRequest, permit: Permit | None = None) -> Generation:
        """Hand a request over. The permit is given back with the reply's last event.

        Raises ValueError for an id that is under way, `EngineBusy` when there is no permit to be had.
        """
        if request.id in self._generations:
            raise ValueError("a request with this id is under way")
        generation = Generation(request, permit or self.reserve(), self)
        self._generations[request.id] = generation
        station = generation.permit.station
        if generation.permit.places:
            station.line.put(generation.owner, generation)
            self._hand_over(station)
        elif station.worker is not None:  # a health check waits for nobody
            station.worker.command(request)
        return generation

    def cancel(self, request_id: str) -> None:
        """End a reply early; its `Finished` comes with the next step. Unknown ids are ignored."""
        generation = self._generations.get(request_id)
        if generation is None or (worker := generation.permit.station.worker) is None:
            return
        if generation.permit.station.line.remove(generation.owner, generation):
            worker.command(generation.request)  # the batcher drops it before it takes any rows
        generation.want_end()
        if generation.end_due():
            worker.command(request_id)

    async def check(self, wait: float = PROBE_WAIT) -> None:
        """Have one token decoded within `wait` seconds, unless a step has only just gone well.

        Raises `EngineUnhealthy`.
        """
        worker = self._station.worker
        if worker is None or self._hangs(worker):
            raise EngineUnhealthy("its step hangs" if self._stuck or worker else "it is not running")
        if not worker.alive:
            raise EngineUnhealthy("it is not running")
        if not worker.fresh(FRESH):
            await self._probe(self._station, wait)

    def look_after(self) -> None:
        """Others take the place of workers that have ended, with their replies, and of those that hang, whose
        replies fail.
        """
        self._stuck = [worker for worker in self._stuck if worker.alive]
        self._retired = [worker for worker in self._retired if worker.alive]
        for station in list(self._stations):
            worker = station.worker
            if worker is not None and not worker.alive:
                logs.event(log, logging.ERROR, "engine_ended", model=station.speaker.fingerprint)
                self._begin_again(station)
            elif worker is not None and self._hangs(worker):
                logs.event(log, logging.ERROR, "engine_hangs", model=station.speaker.fingerprint)
                worker.abandon()
                if worker.alive:
                    self._stuck.append(worker)
                station.worker = None
            if station.worker is None:
                self._fail_all(station, _NOT_MADE)
                if station in self._stations and len(self._stuck) < STUCK:
                    self._begin(station)

    # --- inside -------------------------------------------------------------------------------------------

    async def _keep_watch(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._step_limit / 4))
            try:
                self.look_after()
            except Exception as error:  # noqa: BLE001 - no memory for a thread, say: the next time there may be
                logs.event(log, logging.ERROR, "engine_not_begun", error=logs.place(error))

    def _begin(self, station: _Station) -> Worker:
        worker: Worker = self._begin_worker(station.make_batcher, lambda told: self._hear(worker, told))
        station.worker = worker
        worker.start()
        return worker

    def _begin_again(self, station: _Station) -> None:
        """Another worker for one that has ended, and for what that had not finished."""
        station.worker = None
        waiting = {each.id for each in station.line}
        handed = [
            each
            for each in self._generations.values()
            if each.permit.station is station and each.id not in waiting
        ]
        again = [each for each in handed if each.begin_again()]
        self._deliver(None, [Failed(each.id, _NOT_MADE) for each in handed if each not in again])
        if station not in self._stations:  # nobody is left who waits for it
            return
        worker = self._begin(station)
        for each in again:
            worker.command(each.request)
            if each.end_due():
                worker.command(each.id)
        self._hand_over(station)

    async def _ready(self, make_batcher: MakeBatcher, speaker: Speaker) -> _Station:
        """A model that has made a token. Raises `EngineUnhealthy`."""
        station = _Station(speaker, make_batcher)
        self._stations.append(station)
        permit = self._permit(0, station=station)  # or it would go with that of the probe
        try:
            self._begin(station)
            await self._probe(station, max(FIRST_STEP_LIMIT, self._step_limit))
        except EngineUnhealthy as error:
            trouble = None if station.worker is None else station.worker.trouble
            permit.release()
            raise EngineUnhealthy(trouble or error.reason) from error
        except BaseException:
            permit.release()
            raise
        station.held -= 1  # it is not given back, but put to use
        return station

    async def _probe(self, station: _Station, wait: float) -> None:
        """Have one token made within `wait` seconds. Raises `EngineUnhealthy`."""
        request = ReplyRequest(f"probe-{next(self._probe_ids)}", (("user", "hello"),), _PROBE_OPTIONS)
        try:
            async with (
                asyncio.timeout(wait),
                self.generate(request, self._permit(0, station=station)) as events,
            ):
                async for event in events:
                    if isinstance(event, Failed):
                        raise EngineUnhealthy("a decode step failed")
        except TimeoutError:
            raise EngineUnhealthy(f"no token within {wait:g} s") from None

    def _hangs(self, worker: Worker) -> bool:
        return worker.overdue(max(FIRST_STEP_LIMIT, self._step_limit), self._step_limit)

    def _hand_over(self, station: _Station) -> None:
        """Give the worker what its batcher has rows for, and a little more."""
        most = math.inf if self._rows is None else self._rows + max(1, self._rows // AHEAD)
        while station.line and station.worker is not None:
            # More rows than there are is refused by the batcher, in its own words.
            rows = min(rows_needed(station.line.first().request.options), self._rows or 1)
            if station.rows and station.rows + rows > most:
                return
            generation = station.line.take()
            generation.rows = rows
            station.rows += rows
            station.worker.command(generation.request)

    def _permit(self, places: int, owner: str | None = None, station: _Station | None = None) -> Permit:
        station = station or self._station
        station.held += 1

        def give_back() -> None:
            self._free += places
            station.held -= 1
            self._retire_unused(station)

        return Permit(station, places, give_back, owner)

    def _retire_unused(self, station: _Station) -> None:
        if station is self._station or station.held or station not in self._stations:
            return
        if station in self._beside.values():
            return
        self._stations.remove(station)
        if station.worker is not None:
            station.worker.stop()
            self._retired.append(station.worker)

    def _fail_all(self, station: _Station, reason: str) -> None:
        station.line.clear()
        under_way = [reply for reply, each in self._generations.items() if each.permit.station is station]
        self._deliver(station.worker, [Failed(reply, reason) for reply in under_way])

    def _hear(self, worker: Worker, told: Told) -> None:
        for request_id in told.taken:
            generation = self._generations.get(request_id)
            if generation is not None and generation.permit.station.worker is worker:
                generation.taken(told.moment)
        self._deliver(worker, told.events)

    def _deliver(self, worker: Worker | None, events: Sequence[Event]) -> None:
        for event in events:
            generation = self._generations.get(event.id)
            if generation is None or generation.permit.station.worker is not worker:
                continue
            generation.deliver(event)
            if isinstance(event, Piece):
                if worker is not None and generation.end_due():
                    worker.command(event.id)
            else:
                del self._generations[event.id]
                generation.permit.station.rows -= generation.rows
                self._hand_over(generation.permit.station)
                generation.permit.release()
                timing = generation.timing
                self._reply_seconds += 0.1 * (timing.total_ms / 1000 - self._reply_seconds)
                if generation.permit.places:  # a health check has none
                    self._on_end(event, timing)
