"""Workers that are processes: the arithmetic has an interpreter of its own, and the event loop another.

Python lets one thread of a process run at a time. A step of the model is a few hundred calls of torch, so a
thread that steps hands the interpreter back and forth with the event loop as often, and waits for it each
time. A process waits for nobody, can be ended while its step does not return, and takes nothing along when it
dies.

    server ── socket pair, pickled ──  engine      commands one way, what came of each step the other
       └───── socket ── nursery ── fork ─┘

Processes are forked by the *nursery*, itself forked by the server before it has a thread or a socket: so they
share what importing torch has put into memory, and inherit nothing else. They end with the server, however it
ends: then the nursery reads the end of its socket, and kills them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import pickle
import select
import signal
import socket
import struct
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import torch

from chatbot.replies import Event, Load, Piece
from server import logs
from server.memory import set_aside
from server.worker import Clock, Command, MakeBatcher, Report, Stepping, Told

log = logging.getLogger(__name__)

CHUNK: Final = 1 << 18
"""Bytes that are read at a time."""
ENDING: Final = 2.0
"""Seconds that a process gets to end by itself."""
REAPING: Final = 60.0
"""Seconds after which the nursery looks whether processes have ended, at the latest."""
ENGINE: Final = "turnwise-engine"
"""What the processes that make replies are called, where the system lets them have a name."""
_LENGTH: Final = struct.Struct("<Q")
_SEND_BUFFER: Final = 1 << 20
_KILLED_FIRST: Final = "100"
"""Thousandths of all memory that Linux adds to what it has when there is none left; a retraining has more."""


class _Begin(NamedTuple):
    """The first thing that a process is told. threads: of the arithmetic."""

    make_batcher: MakeBatcher
    threads: int


class _State(NamedTuple):
    """What a process tells after each step. commands: that it has carried out since it began. pieces: (id,
    text), before any of `ends`.
    """

    commands: int
    moment: float
    taken: Sequence[str]
    pieces: Sequence[tuple[str, str]]
    ends: Sequence[Event]
    load: tuple[int, int]
    failures: int
    trouble: str | None
    idle: bool


class ProcessWorker:
    """threads: of the arithmetic. clock: seconds, monotonic, on which the process looks too. ended: called
    on the event loop when the process has ended though nobody wanted it to.
    """

    def __init__(
        self,
        make_batcher: MakeBatcher,
        report: Report,
        *,
        nursery: Nursery,
        threads: int,
        clock: Clock = time.monotonic,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._begin = _Begin(make_batcher, threads)
        self._report = report
        self._nursery = nursery
        self._now = clock
        self._on_end = ended
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._frames = _Frames()
        self._unsent: deque[memoryview] = deque()
        self._stopping = False
        self._ended = asyncio.Event()
        self._sent = 0
        self._pid: int | None = None
        self._told_at: float | None = None
        self._busy_since: float | None = None
        self.load = Load(0, 0)
        self.failures = 0
        self.trouble: str | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, once it has come up."""
        return self._pid

    @property
    def alive(self) -> bool:
        return self._socket is not None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            ours = self._nursery.fork()
        except OSError as error:  # no files, say
            logs.event(log, logging.ERROR, "engine_not_begun", error=logs.place(error))
            self._ended.set()
            return
        self._socket = ours
        self._loop.add_reader(ours, self._read)
        self._send(self._begin)

    def command(self, command: Command) -> None:
        self._sent += 1
        if self._busy_since is None:
            self._busy_since = self._now()
        self._send(command)

    def stop(self) -> None:
        """The process ends when it sees that nothing more will come."""
        self._stopping = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended already
                self._socket.shutdown(socket.SHUT_WR)

    def abandon(self) -> None:
        self._kill()
        self._close()

    async def join(self, wait: float) -> None:
        """What has not ended by then is killed, or sooner: nothing is lost with it."""
        try:
            async with asyncio.timeout(min(wait, ENDING)):
                await self._ended.wait()
        except TimeoutError:
            self.abandon()

    def overdue(self, first: float, later: float) -> bool:
        limit = first if self._told_at is None else later
        return self._busy_since is not None and self._now() - self._busy_since > limit

    def fresh(self, seconds: float) -> bool:
        if self._told_at is None or self._busy_since is not None or self.failures:
            return False
        return self._now() - self._told_at < seconds

    # --- inside -------------------------------------------------------------------------------------------

    def _send(self, what: object) -> None:
        if self._socket is None:
            return
        waiting = bool(self._unsent)
        self._unsent.append(memoryview(_packed(what)))
        if not waiting and not self._flush():
            assert self._loop is not None
            self._loop.add_writer(self._socket, self._write_on)

    def _flush(self) -> bool:
        """Write what the socket takes now; whether that was all."""
        assert self._socket is not None
        while self._unsent:
            try:
                written = self._socket.send(self._unsent[0])
            except BlockingIOError:
                return False
            except OSError:  # it has ended, which reading will tell
                self._unsent.clear()
                return True
            if written == len(self._unsent[0]):
                self._unsent.popleft()
            else:
                self._unsent[0] = self._unsent[0][written:]
        return True

    def _write_on(self) -> None:
        if self._flush():
            assert self._loop is not None
            assert self._socket is not None
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            if self._told_at is not None and not self._stopping:
                self._on_end()
            return
        if self._stopping:
            return
        for message in self._frames.of(data):
            if isinstance(message, int):
                self._pid = message
            else:
                self._hear(_State(*message))

    def _hear(self, state: _State) -> None:
        self.load, self.failures, self.trouble = Load(*state.load), state.failures, state.trouble
        now = self._now()
        if not self.failures:
            self._told_at = now
        self._busy_since = None if state.idle and state.commands == self._sent else now
        if state.taken or state.pieces or state.ends:
            pieces = [Piece(*piece) for piece in state.pieces]
            self._report(Told(state.taken, [*pieces, *state.ends], state.moment))

    def _kill(self) -> None:
        if self._pid is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def _close(self) -> None:
        if self._socket is not None:
            assert self._loop is not None
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
        self._ended.set()


class Nursery:
    """A process that forks others. To be made while this process has one thread, and nothing open that
    should not be shared.
    """

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()  # what is shared stays shared: the collector writes to what it looks at
        self._control, theirs = socket.socketpair()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which numpy has and looks after
            self._pid = os.fork()
        if self._pid == 0:
            self._control.close()
            _in_a_process_of_its_own(partial(_nurse, theirs), "turnwise-nurse")
        theirs.close()
        self._control.settimeout(5.0)

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def alive(self) -> bool:
        """Whether it would hear."""
        try:
            return not select.select([self._control], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def fork(self) -> socket.socket:
        """Begin a process; the connection to it, which does not block. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return ours

    def close(self) -> None:
        """End it, and what it has forked."""
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _nurse(control: socket.socket) -> None:
    """Fork whenever asked, until the server is gone."""
    children: set[int] = set()
    control.settimeout(REAPING)
    while True:
        try:
            _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        except TimeoutError:
            descriptors = None
        children -= {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}
        if descriptors is None:
            continue
        if not descriptors:
            break
        with socket.socket(fileno=descriptors[0]) as connection:
            try:
                pid = os.fork()
            except OSError as error:  # no memory or too many processes: the next time there may be
                logs.event(log, logging.ERROR, "engine_not_begun", error=logs.place(error))
                continue
            if pid == 0:
                control.close()
                _in_a_process_of_its_own(partial(_engine, connection), ENGINE)
            children.add(pid)
    for pid in children:  # not waited for yet, so the number is still theirs
        os.kill(pid, signal.SIGKILL)


def _in_a_process_of_its_own(work: Callable[[], None], name: str) -> NoReturn:
    """After a fork, in the child. Ctrl-C and a service manager's SIGTERM reach it too, and are the server's
    to answer: replies under way are to be finished first.
    """
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or nobody could be waited for
        with contextlib.suppress(OSError):  # for `ps` and `top`, where the system has it
            Path("/proc/self/comm").write_text(name, encoding="ascii")
        work()
        status = 0
    except Exception as error:  # noqa: BLE001 - there is nobody above to tell
        logs.event(log, logging.ERROR, "engine_ended", error=logs.place(error))
    finally:
        os._exit(status)


def _engine(connection: socket.socket) -> None:
    """Make replies for the other end of `connection`, until that has no more to say."""
    with contextlib.suppress(OSError):  # rather this one than the server, which has what nobody else has
        Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST, encoding="ascii")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    connection.sendall(_packed(os.getpid()))
    inbox = _Inbox(connection)
    begin = inbox.wait()
    if not begin:
        return
    make_batcher, threads = begin[0]
    torch.set_num_threads(threads)
    stepping = Stepping(make_batcher, time.monotonic)
    carried_out, commands = 0, begin[1:]  # none, perhaps: the model is loaded before anybody asks
    set_up = False
    while not inbox.ended:
        told = stepping.step(commands)
        carried_out += len(commands)
        connection.sendall(_packed(tuple(_state(told, stepping, carried_out))))
        if not set_up and not stepping.failures:
            set_up = True
            set_aside()
        commands = inbox.wait() if stepping.idle else inbox.now()


def _state(told: Told, stepping: Stepping, commands: int) -> _State:
    return _State(
        commands,
        told.moment,
        told.taken,
        [(event.id, event.text) for event in told.events if isinstance(event, Piece)],
        [event for event in told.events if not isinstance(event, Piece)],
        (stepping.load.rows, stepping.load.waiting),
        stepping.failures,
        stepping.trouble,
        stepping.idle,
    )


class _Inbox:
    """What comes over a blocking socket, without a thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._frames = _Frames()
        self.ended = False

    def wait(self) -> list[Any]:
        """What has come, when something has; empty at the end."""
        found: list[Any] = []
        while not found and not self.ended:
            found = self._receive(0)
        return found + self.now()

    def now(self) -> list[Any]:
        """What has come by now."""
        found: list[Any] = []
        with contextlib.suppress(BlockingIOError):
            while not self.ended:
                found += self._receive(socket.MSG_DONTWAIT)
        return found

    def _receive(self, flags: int) -> list[Any]:
        try:
            data = self._socket.recv(CHUNK, flags)
        except ConnectionError:
            data = b""
        self.ended = not data
        return list(self._frames.of(data))


class _Frames:
    """Pickled objects in a stream of bytes, each after its length."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def of(self, data: bytes) -> Iterator[Any]:
        """What is whole with `data`."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            found = pickle.loads(memoryview(self._buffer)[_LENGTH.size : end].tobytes())
            del self._buffer[:end]
            yield found


def _packed(what: object) -> bytes:
    data = pickle.dumps(what, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data
