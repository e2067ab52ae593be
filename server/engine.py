"""The thread that makes replies, and the event loop's way to it.

One thread owns one batcher and does nothing but step it while there is work: no other thread touches the
model, and the event loop never waits for arithmetic. Requests go over as commands, events come back once
per step.

    permit = engine.reserve()                          # at once, or EngineBusy
    async with engine.generate(request, permit) as events:
        async for event in events:                     # Piece …, then Finished or Failed
            …                                          # leaving early cancels the request

A request that fails gets `Failed`; when a batcher fails, all of its requests do, and it is replaced.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

import torch

from chatbot.options import DecodingOptions
from chatbot.replies import Event, Failed, Piece, ReplyRequest
from server import logs

log = logging.getLogger(__name__)

PROBE_WAIT: Final = 3.0
"""Seconds a health check waits for its one token, unless told otherwise."""
PROBES: Final = 8
"""Places in the batcher's waiting line that are kept for health checks."""
FRESH: Final = 1.0
"""Seconds for which a step that went well shows that the engine is alive."""
_PROBE_OPTIONS: Final = DecodingOptions(decoding="greedy", min_tokens=0, max_tokens=1, seed=0)


class Steps(Protocol):
    """What the engine needs of a batcher: `chatbot.batcher.Batcher`, or a scripted one in tests."""

    def submit(self, request: ReplyRequest) -> None: ...

    def cancel(self, request_id: str) -> None: ...

    def step(self) -> list[Event]: ...

    @property
    def idle(self) -> bool: ...


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


class Permit:
    """A place for one reply, held from before its question is committed until the reply has ended."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def release(self) -> None:
        """Give the place back; again is harmless."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds from handing a request over to its admission, its first text and its end."""

    queued_ms: float
    first_token_ms: float | None
    total_ms: float


class Generation:
    """The events of one reply. Left before its end, it is cancelled and nothing more is heard of it."""

    def __init__(self, request_id: str, permit: Permit, engine: Engine) -> None:
        self.id = request_id
        self.permit = permit
        self._engine = engine
        self._events: deque[Event] = deque()
        self._arrival = asyncio.Event()
        self._ended = False
        self._began = self._last = engine.now()
        self._taken: float | None = None
        self._first: float | None = None

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
        elif self._first is None and event.text:
            self._first = self._last
        self._events.append(event)
        self._arrival.set()


class Engine:
    """Makes replies on a thread of its own.

    make_batcher: called on that thread, before the first request and after a failure.
    capacity: replies under way at the same time, waiting ones included; the batcher must take `PROBES` more.
    threads: for the arithmetic of one step; the event loop needs a core to itself to stay quick.
    clock: seconds, monotonic; asked from both sides.
    """

    def __init__(
        self,
        make_batcher: Callable[[], Steps],
        *,
        capacity: int,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now = clock
        self._make_batcher = make_batcher
        self._threads = threads
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # The event loop's own.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = capacity
        self._generations: dict[str, Generation] = {}
        self._reply_seconds = 1.0
        self._probe_ids = itertools.count()
        # Shared, under the condition's lock.
        self._changed = threading.Condition()
        self._commands: list[ReplyRequest | str] = []
        self._stopping = False
        # Written by the thread alone; one assignment each, so reading needs no lock.
        self._failures = 0
        self._stepped_at = -math.inf

    # --- on the event loop --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; events come back to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its present step; what is still under way fails."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        self._deliver([Failed(reply, "the server is stopping") for reply in self._generations])

    @property
    def failures(self) -> int:
        """Failures of the batcher since it last made a step."""
        return self._failures

    def reserve(self) -> Permit:
        """A place for one more reply. Raises `EngineBusy` at once when there is none."""
        if self._free <= 0:
            raise EngineBusy(float(max(1, math.ceil(self._reply_seconds))))
        self._free -= 1
        return Permit(self._give_back)

    def generate(self, request: ReplyRequest, permit: Permit | None = None) -> Generation:
        """Hand a request over. The permit is given back with the reply's last event.

        Raises ValueError for an id that is under way, `EngineBusy` when there is no permit to be had.
        """
        if request.id in self._generations:
            raise ValueError("a request with this id is under way")
        generation = Generation(request.id, permit or self.reserve(), self)
        self._generations[request.id] = generation
        self._command(request)
        return generation

    def cancel(self, request_id: str) -> None:
        """End a reply early; its `Finished` comes with the next step. Unknown ids are ignored."""
        if request_id in self._generations:
            self._command(request_id)

    async def check(self, wait: float = PROBE_WAIT) -> None:
        """Have one token decoded within `wait` seconds, unless a step has only just gone well.

        Raises `EngineUnhealthy`.
        """
        if not self._thread.is_alive():
            raise EngineUnhealthy("its thread is not running")
        if self._failures == 0 and self.now() - self._stepped_at < FRESH:
            return
        request = ReplyRequest(f"probe-{next(self._probe_ids)}", (("user", "hello"),), _PROBE_OPTIONS)
        unlimited = Permit(lambda: None)
        try:
            async with asyncio.timeout(wait), self.generate(request, unlimited) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        raise EngineUnhealthy("a decode step failed")
        except TimeoutError:
            raise EngineUnhealthy(f"no token within {wait:g} s") from None

    def _give_back(self) -> None:
        self._free += 1

    def _command(self, command: ReplyRequest | str) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def _taken(self, ids: list[str], moment: float) -> None:
        for request_id in ids:
            if generation := self._generations.get(request_id):
                generation.taken(moment)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            generation = self._generations.get(event.id)
            if generation is None:
                continue
            generation.deliver(event)
            if not isinstance(event, Piece):
                del self._generations[event.id]
                generation.permit.release()
                self._reply_seconds += 0.1 * (generation.timing.total_ms / 1000 - self._reply_seconds)

    # --- on the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # belongs to the thread that calls it
        batcher: Steps | None = None
        alive: set[str] = set()
        while True:
            commands = self._next_commands(wait=batcher is None or batcher.idle)
            if commands is None:
                return
            try:
                batcher = batcher or self._make_batcher()
                refused = _apply(commands, batcher, alive)
                events = refused + batcher.step()
                self._failures, self._stepped_at = 0, self.now()
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread lives on and the rest is told
                logs.event(log, logging.ERROR, "batcher_failed", error=logs.place(error), replies=len(alive))
                alive |= {command.id for command in commands if isinstance(command, ReplyRequest)}
                events = [Failed(reply, "the reply could not be made") for reply in alive]
                batcher, self._failures = None, self._failures + 1
            alive -= {event.id for event in events if not isinstance(event, Piece)}
            self._report(commands, events)

    def _next_commands(self, wait: bool) -> list[ReplyRequest | str] | None:
        """What is to be done before the next step; None when the engine is stopping."""
        with self._changed:
            while wait and not self._commands and not self._stopping:
                self._changed.wait()
            commands, self._commands = self._commands, []
            return None if self._stopping else commands

    def _report(self, commands: list[ReplyRequest | str], events: list[Event]) -> None:
        assert self._loop is not None
        if taken := [command.id for command in commands if isinstance(command, ReplyRequest)]:
            self._loop.call_soon_threadsafe(self._taken, taken, self.now())
        if events:
            self._loop.call_soon_threadsafe(self._deliver, events)


def _apply(commands: list[ReplyRequest | str], batcher: Steps, alive: set[str]) -> list[Event]:
    """Carry the commands out; a request that the batcher refuses fails alone."""
    refused: list[Event] = []
    for command in commands:
        if isinstance(command, str):
            batcher.cancel(command)
            continue
        try:
            batcher.submit(command)
            alive.add(command.id)
        except Exception as error:  # noqa: BLE001 - the other requests have nothing to do with it
            logs.event(log, logging.ERROR, "request_refused", error=logs.place(error))
            refused.append(Failed(command.id, "the reply could not be made"))
    return refused
