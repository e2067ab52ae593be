"""A process that works for a job, in the job's directory: begun so that it outlives the server, found again
by another one, and ended.

It has the priority of what nobody waits for, and is the first to go when memory runs out. While it lives it
holds a lock on a file of the directory, so whether it lives is never a guess. Its id is on the disk before it
begins to work; with the moment it began and the machine's boot, that tells it from another process which got
the same id later.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from server.settings import PREFIX

ROOT: Final = Path(__file__).resolve().parents[2]
"""Where the packages are, in a checkout as in an installation."""
NICE: Final = 15
"""Of 19: a chat always goes first."""
OUT_OF_MEMORY: Final = "500"
"""Of 1000, on Linux: added to the share of memory that a process uses when the kernel looks for a victim."""
REFUSED: Final = 3
"""Status of a retraining that made a candidate which the gate refuses."""
STATUS_WAIT: Final = 5.0
"""Seconds at most from the moment in which a process gives its lock back to the one in which it is gone."""
PROCESS: Final = "process.json"
_LOCK: Final = "process.lock"
_WAIT_FOR_GO: Final = 'read go && exec "$@"'
"""A server that dies before it has noted the process leaves none behind: `read` fails."""


@dataclass(frozen=True, slots=True)
class Process:
    """began: as the kernel counts it. machine: this boot of it, and where its process ids hold."""

    pid: int
    began: str | None
    machine: str


class Child:
    """A process begun by this server, which its system keeps until it is asked for how it ended."""

    def __init__(self, opened: subprocess.Popen[bytes]) -> None:
        self._opened = opened

    def gone(self) -> None:
        """It lives no longer: have the system forget it, which may take it a moment."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._opened.wait(STATUS_WAIT)

    @property
    def complained(self) -> bool:
        """Whether it has ended by itself, with the status of a failure."""
        status = self._opened.returncode
        return status is not None and status > 0 and status != REFUSED

    def leave(self) -> None:
        """It goes on without this server."""
        if self._opened.poll() is None:
            self._opened.returncode = 0  # or its going unwaited for would be taken for an oversight


def begin(arguments: Sequence[str], directory: Path, log: Path, threads: int) -> tuple[Process, Child]:
    """Run `python -m …` with `directory` as its own; what it prints is added to the file `log`.

    Raises OSError.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    bounds = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads)
    )
    with (directory / _LOCK).open("a") as lock, log.open("ab") as output:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened = subprocess.Popen(
            ["/bin/sh", "-c", _WAIT_FOR_GO, "sh", sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**kept, **bounds, "PYTHONUNBUFFERED": "1"},
            process_group=0,  # what a terminal sends to the server is not for it
            pass_fds=(lock.fileno(),),
        )
    child = Child(opened)
    process = Process(opened.pid, _began(opened.pid), _machine())
    try:
        os.setpriority(os.PRIO_PROCESS, opened.pid, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        with contextlib.suppress(OSError):
            Path(f"/proc/{opened.pid}/oom_score_adj").write_text(OUT_OF_MEMORY, encoding="ascii")
        keep(directory / PROCESS, asdict(process))
        assert opened.stdin is not None
        opened.stdin.write(b"go\n")
    except BaseException:
        opened.kill()
        opened.wait()
        raise
    finally:
        if opened.stdin is not None:
            with contextlib.suppress(OSError):
                opened.stdin.close()
    return process, child


def found(directory: Path) -> Process | None:
    """The process that was last begun in the directory, whether or not it lives."""
    try:
        kept = json.loads((directory / PROCESS).read_text(encoding="utf-8"))
        return Process(**kept)
    except (OSError, ValueError, TypeError):
        return None


def lives(directory: Path) -> bool:
    """Whether a process works in the directory, here or on another machine that shares it."""
    try:
        with (directory / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def send(process: Process, number: signal.Signals) -> bool:
    """Send a signal to the process and its children. False when it is not there, or not this machine's."""
    if process.machine != _machine() or process.began != _began(process.pid):
        return False
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this server, and no other, has the file until the block ends."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the machine's boot; None where there is no telling."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return status.rpartition(")")[2].split()[19]  # the name before it may hold spaces and parentheses


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return os.uname().nodename


def keep(path: Path, values: dict[str, Any]) -> None:
    """The file is there whole or not at all, also after a power cut."""
    aside = path.with_suffix(".aside")
    with aside.open("w", encoding="utf-8") as stream:
        json.dump(values, stream)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)
