"""The thread that steps one batcher: commands in, events out, and nothing that goes wrong ends it."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Protocol

import torch

from chatbot.replies import Event, Failed, Load, Piece, ReplyRequest
from server import logs
from server.pacing import Pacing

log = logging.getLogger(__name__)

Report = Callable[[list[str], list[Event]], None]
"""Given the ids that the batcher has taken and the events of a step."""


class Steps(Protocol):
    """What the engine needs of a batcher: `chatbot.batcher.Batcher`, or a scripted one in tests."""

    def submit(self, request: ReplyRequest) -> None: ...

    def cancel(self, request_id: str) -> None: ...

    def step(self) -> list[Event]: ...

    @property
    def idle(self) -> bool: ...

    @property
    def load(self) -> Load: ...


class Worker:
    """make_batcher: called on the thread, before the first request and after a failure. report: called there
    too. clock: seconds, monotonic.
    """

    def __init__(
        self,
        make_batcher: Callable[[], Steps],
        report: Report,
        *,
        threads: int,
        clock: Callable[[], float],
    ) -> None:
        self._make_batcher = make_batcher
        self._report = report
        self._threads = threads
        self._now = clock
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Shared, under the condition's lock.
        self._changed = threading.Condition()
        self._commands: list[ReplyRequest | str] = []
        self._stopping = False
        # Written by the thread alone; one assignment each, so reading needs no lock.
        self.failures = 0
        self.stepped_at = -math.inf
        self.step_began: float | None = None
        self.load = Load(0, 0)

    def start(self) -> None:
        self._thread.start()

    def command(self, command: ReplyRequest | str) -> None:
        """Hand over a request, or the id of one to be cancelled."""
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after its present step."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, wait: float | None = None) -> None:
        self._thread.join(wait)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def overdue(self, first: float, later: float) -> bool:
        """Whether its present step takes longer than `later` seconds, or `first` if it has made none yet."""
        began = self.step_began
        limit = later if self.stepped_at > -math.inf else first
        return began is not None and self._now() - began > limit

    # --- on the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # belongs to the thread that calls it
        batcher: Steps | None = None
        alive: set[str] = set()
        pacing = Pacing(self._now)
        while True:
            commands = self._next_commands(wait=batcher is None or batcher.idle)
            if commands is None:
                return
            self.step_began = self._now()
            try:
                batcher = batcher or self._make_batcher()
                refused = _apply(commands, batcher, alive)
                events = refused + batcher.step()
                self.failures, self.stepped_at, self.load = 0, self._now(), batcher.load
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread lives on and the rest is told
                logs.event(log, logging.ERROR, "batcher_failed", error=logs.place(error), replies=len(alive))
                alive |= {command.id for command in commands if isinstance(command, ReplyRequest)}
                events = [Failed(reply, "the reply could not be made") for reply in alive]
                batcher, self.failures, self.load = None, self.failures + 1, Load(0, 0)
            self.step_began = None
            alive -= {event.id for event in events if not isinstance(event, Piece)}
            taken = [command.id for command in commands if isinstance(command, ReplyRequest)]
            self._report(taken, pacing.due(events))

    def _next_commands(self, wait: bool) -> list[ReplyRequest | str] | None:
        """What is to be done before the next step; None when the engine is stopping."""
        with self._changed:
            while wait and not self._commands and not self._stopping:
                self._changed.wait()
            commands, self._commands = self._commands, []
            return None if self._stopping else commands


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
