"""What steps one batcher: commands in, events out, and nothing that goes wrong ends it.

`Stepping` is the work itself. It is done by a thread of the server (`ThreadWorker`), or by a process of its
own (server.engine_process), which shares neither an interpreter nor a fate with the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from chatbot.model_directory import ModelDirectoryError
from chatbot.replies import Event, Failed, Load, Piece, ReplyRequest
from server import logs
from server.pacing import Pacing

log = logging.getLogger(__name__)

Command = ReplyRequest | str
"""A reply to be made, or the id of one to be cancelled."""
Clock = Callable[[], float]
"""Seconds, monotonic."""


class Steps(Protocol):
    """What the engine needs of a batcher: `chatbot.batcher.Batcher`, or a scripted one in tests."""

    def submit(self, request: ReplyRequest) -> None: ...

    def cancel(self, request_id: str) -> None: ...

    def step(self) -> list[Event]: ...

    @property
    def idle(self) -> bool: ...

    @property
    def load(self) -> Load: ...


MakeBatcher = Callable[[], Steps]
"""Called where the batcher is to work, before the first request and after a failure."""


class Told(NamedTuple):
    """What came of a step. taken: requests that the batcher has now, since `moment` of the worker's clock."""

    taken: Sequence[str]
    events: Sequence[Event]
    moment: float


Report = Callable[[Told], None]


class Worker(Protocol):
    """Works in a thread or process of its own; all that is here is called on the event loop."""

    @property
    def load(self) -> Load:
        """Of the batcher, after its last step."""

    @property
    def failures(self) -> int:
        """Failures of the batcher since it last made a step."""

    @property
    def trouble(self) -> str | None:
        """What the last of them was, in words."""

    @property
    def pid(self) -> int | None:
        """Of its process, when it has one of its own."""

    def start(self) -> None:
        """Reports come to the running event loop."""

    def command(self, command: Command) -> None: ...

    def stop(self) -> None:
        """End after the present step."""

    def abandon(self) -> None:
        """End as soon as that can be."""

    async def join(self, wait: float) -> None:
        """Wait at most so many seconds for its end."""

    @property
    def alive(self) -> bool: ...

    def overdue(self, first: float, later: float) -> bool:
        """Whether its present step takes longer than `later` seconds, or `first` if it has made none yet."""

    def fresh(self, seconds: float) -> bool:
        """Whether a step has gone well in the last `seconds`, and none has begun since."""


BeginWorker = Callable[[MakeBatcher, Report], Worker]


class Stepping:
    """A batcher and its steps. Not thread-safe."""

    def __init__(self, make_batcher: MakeBatcher, clock: Clock) -> None:
        self._make_batcher = make_batcher
        self._now = clock
        self._batcher: Steps | None = None
        self._alive: set[str] = set()
        self._pacing = Pacing(clock)
        self.failures = 0
        self.trouble: str | None = None
        self.load = Load(0, 0)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until the next command."""
        return self._batcher is None or self._batcher.idle

    def step(self, commands: Sequence[Command]) -> Told:
        """Carry `commands` out and go one step further. Never raises: a failure is told."""
        try:
            self._batcher = self._batcher or self._make_batcher()
            refused = _apply(commands, self._batcher, self._alive)
            events = refused + self._batcher.step()
            self.failures, self.trouble, self.load = 0, None, self._batcher.load
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker lives on and the rest is told
            self.trouble = str(error) if isinstance(error, ModelDirectoryError) else logs.place(error)
            logs.event(log, logging.ERROR, "batcher_failed", error=self.trouble, replies=len(self._alive))
            self._alive |= {command.id for command in commands if isinstance(command, ReplyRequest)}
            events = [Failed(reply, "the reply could not be made") for reply in self._alive]
            self._batcher, self.failures, self.load = None, self.failures + 1, Load(0, 0)
        self._alive -= {event.id for event in events if not isinstance(event, Piece)}
        taken = [command.id for command in commands if isinstance(command, ReplyRequest)]
        return Told(taken, self._pacing.due(events), self._now())


class ThreadWorker:
    """report: called on the event loop. threads: of the arithmetic."""

    def __init__(self, make_batcher: MakeBatcher, report: Report, *, threads: int, clock: Clock) -> None:
        self._report = report
        self._threads = threads
        self._now = clock
        self._stepping = Stepping(make_batcher, clock)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Shared, under the condition's lock.
        self._changed = threading.Condition()
        self._commands: list[Command] = []
        self._stopping = False
        # Written by the thread alone; one assignment each, so reading needs no lock.
        self.stepped_at = -math.inf
        self.step_began: float | None = None

    @property
    def pid(self) -> None:
        return None

    @property
    def load(self) -> Load:
        return self._stepping.load

    @property
    def failures(self) -> int:
        return self._stepping.failures

    @property
    def trouble(self) -> str | None:
        return self._stepping.trouble

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def command(self, command: Command) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def abandon(self) -> None:
        """A thread cannot be ended from outside: it goes on until its step returns, if it ever does."""
        self.stop()

    async def join(self, wait: float) -> None:
        await asyncio.to_thread(self._thread.join, wait)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def overdue(self, first: float, later: float) -> bool:
        began = self.step_began
        limit = later if self.stepped_at > -math.inf else first
        return began is not None and self._now() - began > limit

    def fresh(self, seconds: float) -> bool:
        return self.failures == 0 and self.step_began is None and self._now() - self.stepped_at < seconds

    # --- on the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # belongs to the thread that calls it
        while True:
            commands = self._next_commands(wait=self._stepping.idle)
            if commands is None:
                return
            self.step_began = self._now()
            told = self._stepping.step(commands)
            if not self.failures:
                self.stepped_at = told.moment
            self.step_began = None
            if told.taken or told.events:
                self._tell(told)

    def _tell(self, told: Told) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._report, told)
        except RuntimeError:  # the loop is closed: a step that hung has come back too late
            self.stop()

    def _next_commands(self, wait: bool) -> list[Command] | None:
        """What is to be done before the next step; None when the engine is stopping."""
        with self._changed:
            while wait and not self._commands and not self._stopping:
                self._changed.wait()
            commands, self._commands = self._commands, []
            return None if self._stopping else commands


def _apply(commands: Sequence[Command], batcher: Steps, alive: set[str]) -> list[Event]:
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
