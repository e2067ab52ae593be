"""One thread that writes: what waits for it goes into one transaction and is acknowledged after its commit.

A commit waits for the disk, whether it holds one message or a hundred. While the thread waits for one, the
next requests gather; there is no lingering, so a request that comes alone is carried out at once.

    submit(carry_out, request) ──▶ queue ──▶ BEGIN, carry_out(connection, requests), …, COMMIT ──▶ futures

Requests of a kind, that is with the same `carry_out`, are handed over together, in their order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

from server.database import WAIT_SECONDS, writing
from server.store_errors import StoreError, StoreUnavailable

Request = TypeVar("Request")
Result = TypeVar("Result")
CarryOut = Callable[[Connection, Sequence[Request]], Sequence[Result | StoreError]]
"""Carries out requests in their order and gives what became of each.

A StoreError in the place of a result refuses one request that has written nothing. Anything that is raised
undoes the transaction. It may be called again with the same requests.
"""

Observe = Callable[[float, Sequence[tuple[Any, Any]]], None]
"""Told of each transaction that is kept: its seconds, and each request with what became of it."""

WAITING: Final = 4096
"""Requests that may wait; the next one is refused as busy."""
TOGETHER: Final = 256
"""Requests in one transaction at most: it holds the lock of each of their conversations."""


@dataclass(frozen=True, slots=True)
class _Job:
    carry_out: CarryOut[Any, Any]
    request: Any
    future: Future[Any]


class Writer:
    """Give it `start` before anybody waits for an answer, and `close` at the end.

    observe: called on the thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        waiting: int = WAITING,
        together: int = TOGETHER,
        observe: Observe = lambda *_: None,
    ) -> None:
        self._engine = engine
        self._waiting = waiting
        self._together = together
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        # A second signal ends the process without waiting for a database that does not answer.
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Carry out what waits, then end the thread. Requests are refused from here on."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests that wait for a transaction."""
        return len(self._jobs)

    def submit(self, carry_out: CarryOut[Request, Result], request: Request) -> Future[Result]:
        """The future has the result, or the error, once that is on the disk. It cannot be cancelled.

        Raises StoreUnavailable when too many wait. The future raises what `carry_out` gives or raises for
        this request, and StoreUnavailable when it is not known to be kept.
        """
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            if self._closing:
                raise StoreUnavailable("the server is stopping", busy=True)
            if len(self._jobs) >= self._waiting:
                raise StoreUnavailable("too many writes are waiting", busy=True)
            self._jobs.append(_Job(carry_out, request, future))
            self._changed.notify()
        return future

    # --- on the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while jobs := self._next():
            self._keep(jobs)

    def _next(self) -> list[_Job]:
        """Whatever waits, once something does; nothing when the writer is closed and all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            return [self._jobs.popleft() for _ in range(min(len(self._jobs), self._together))]

    def _keep(self, jobs: Sequence[_Job]) -> None:
        begun = threading.Event()
        try:
            outcomes = self._transaction(jobs, begun)
        except StoreUnavailable as error:
            if len(jobs) > 1 and error.busy and begun.is_set():  # one row that another server has locked
                self._keep_one_by_one(jobs)
            else:
                _refuse(jobs, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to a request, not to the thread
            if len(jobs) > 1:
                self._keep_one_by_one(jobs)
            else:
                jobs[0].future.set_exception(error)
        else:
            for job, outcome in zip(jobs, outcomes, strict=True):
                _settle(job, outcome)

    def _keep_one_by_one(self, jobs: Sequence[_Job]) -> None:
        """A transaction each, so that only those fail that are at fault, but not for ever."""
        until = time.monotonic() + 2 * WAIT_SECONDS
        for at, job in enumerate(jobs):
            if time.monotonic() > until:
                _refuse(jobs[at:], StoreUnavailable("another server holds what is to be written", busy=True))
                return
            try:
                [outcome] = self._transaction([job], threading.Event())
            except StoreUnavailable as error:
                if not error.busy:
                    _refuse(jobs[at:], error)
                    return
                job.future.set_exception(error)
            except Exception as error:  # noqa: BLE001 - as above
                job.future.set_exception(error)
            else:
                _settle(job, outcome)

    def _transaction(self, jobs: Sequence[_Job], begun: threading.Event) -> list[Any]:
        """What became of each job, all of it committed. `begun` is set once the database has let us in."""
        kinds: dict[CarryOut[Any, Any], list[int]] = {}
        for at, job in enumerate(jobs):
            kinds.setdefault(job.carry_out, []).append(at)
        outcomes: list[Any] = [None] * len(jobs)
        began_at = time.monotonic()
        with writing(self._engine) as connection:
            begun.set()
            for carry_out, places in kinds.items():
                found = carry_out(connection, [jobs[at].request for at in places])
                for at, outcome in zip(places, found, strict=True):
                    outcomes[at] = outcome
        self._observe(
            time.monotonic() - began_at,
            [(job.request, outcome) for job, outcome in zip(jobs, outcomes, strict=True)],
        )
        return outcomes


def _settle(job: _Job, outcome: object) -> None:
    if isinstance(outcome, StoreError):
        job.future.set_exception(outcome)
    else:
        job.future.set_result(outcome)


def _refuse(jobs: Sequence[_Job], error: StoreUnavailable) -> None:
    for job in jobs:  # an error of its own for each: raising one adds to its traceback
        job.future.set_exception(StoreUnavailable(error.reason, busy=error.busy))
