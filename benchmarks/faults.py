"""What can be done to a server and to what it stands on, and undone, while clients talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias
from urllib.error import URLError

from websockets.asyncio.client import ClientConnection

from benchmarks import processes
from benchmarks.breakable import Cluster, SmallDisk, cluster, small_disk
from benchmarks.chats import Chat, hung_up

ROOT: Final = Path(__file__).resolve().parent.parent
STARTING: Final = 120.0
"""Seconds that a server may take to come up, or to end when it is told to."""
STEP_SECONDS: Final = 2.0
"""What the server is told for `--step-seconds`."""
PING_SECONDS: Final = 2.0
"""What the server is told for `--ping-seconds`."""
GONE: Final = 2 * PING_SECONDS + 6
"""Seconds after which nothing may be left of a peer that has fallen silent, on a busy machine too."""
DISK_MEGABYTES: Final = 256


@dataclass(frozen=True)
class Place:
    """A database at its newest migration, and what it stands on where that may be broken."""

    url: str
    disk: SmallDisk | None = None
    postgresql: Cluster | None = None


@contextmanager
def fresh_place(names: Sequence[str], private: bool = False) -> Iterator[Place]:
    """A place that the faults of these names can happen at.

    private: a PostgreSQL of its own; else an SQLite file, on a disk of its own if that is to be filled.
    Raises `breakable.Missing`.
    """
    if private:
        with cluster() as postgresql:
            yield Place(postgresql.url, postgresql=postgresql)
        return
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'killing.db'}"
        if "disk-full" not in names:
            yield Place(url)
            return
        with small_disk(Path(folder), DISK_MEGABYTES) as disk:
            yield Place(url, disk=disk)


class ServerProcess:
    """A server on a port that stays the same, over one database, started again whenever it has ended."""

    def __init__(self, url: str, models: Path | None) -> None:
        self.port = free_port()
        self._command = [
            *(sys.executable, "-m", "server", "serve", "--port", str(self.port), "--database-url", url),
            *([] if models is None else ["--models", str(models)]),
            *("--threads", "1", "--log-level", "error", "--drain-seconds", "1"),
            *("--step-seconds", str(STEP_SECONDS), "--ping-seconds", str(PING_SECONDS)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Come back once it answers. Raises RuntimeError when it does not come up."""
        process = self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        with process.stdout as output:
            line = output.readline()
        if not line.startswith(b"Turnwise is ready"):
            self.kill()
            raise RuntimeError(f"the server did not come up on port {self.port}")

    def signal_engine(self, number: signal.Signals) -> None:
        """To the process that makes the replies, if there is one just now."""
        assert self._process is not None
        for pid in processes.engines(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """As the power would: no goodbye."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def terminate(self) -> int:
        """Ask it to stop; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STARTING)

    @property
    def ready(self) -> bool:
        """What `/readyz` says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=20) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@dataclass(frozen=True)
class Scene:
    """What a fault happens to. seconds: that something is away. moments: where chance comes from."""

    place: Place
    server: ServerProcess
    clients: Sequence[Chat]
    seconds: float
    moments: random.Random


Act: TypeAlias = Callable[[Scene], Awaitable[list[str]]]
"""Break something and mend it; what went wrong with that."""


@dataclass(frozen=True)
class Fault:
    """lasting: whether the server is the same process afterwards, and has to get well by itself."""

    act: Act
    lasting: bool = True


async def _kill(scene: Scene) -> list[str]:
    await asyncio.to_thread(scene.server.kill)
    await asyncio.to_thread(scene.server.start)
    return []


async def _terminate(scene: Scene) -> list[str]:
    status = await asyncio.to_thread(scene.server.terminate)
    await asyncio.to_thread(scene.server.start)
    return [f"told to stop, the server ended with {status}"] if status else []


async def _fall_silent(scene: Scene) -> list[str]:
    """A quarter of the clients go on over other connections, and say nothing more on those they had."""
    left: list[ClientConnection] = []
    for _ in range(round(STARTING / 0.1)):  # they may all be on their way back from what was before
        some = scene.moments.sample(list(scene.clients), max(1, len(scene.clients) // 4))
        if left := [client.silent[-1] for client in some if client.fall_silent()]:
            break
        await asyncio.sleep(0.1)
    for _ in range(round(GONE / 0.1)):
        if all(map(hung_up, left)):
            break
        await asyncio.sleep(0.1)
    there = [each for each in left if not hung_up(each)]
    for each in left:
        each.transport.abort()
    return [f"{len(there)} peers that had fallen silent were there after {GONE:g} s"] if there else []


async def _end_engine(scene: Scene) -> list[str]:
    scene.server.signal_engine(signal.SIGKILL)
    return []


async def _hang_engine(scene: Scene) -> list[str]:
    """It stands still, until the server has had enough of that or the time is over."""
    scene.server.signal_engine(signal.SIGSTOP)
    await asyncio.sleep(scene.seconds)
    scene.server.signal_engine(signal.SIGCONT)
    return []


async def _for_a_while(scene: Scene, begin: Callable[[], None], end: Callable[[], None]) -> list[str]:
    await asyncio.to_thread(begin)
    await asyncio.sleep(scene.seconds)
    await asyncio.to_thread(end)
    return []


async def _fill_disk(scene: Scene) -> list[str]:
    disk = scene.place.disk
    assert disk is not None
    return await _for_a_while(scene, disk.fill, disk.free)


async def _stop_database(scene: Scene) -> list[str]:
    database = scene.place.postgresql
    assert database is not None
    return await _for_a_while(scene, database.stop, database.start)


async def _freeze_database(scene: Scene) -> list[str]:
    database = scene.place.postgresql
    assert database is not None
    return await _for_a_while(scene, database.freeze, database.thaw)


FAULTS: Final = {
    "kill": Fault(_kill, lasting=False),
    "terminate": Fault(_terminate, lasting=False),
    "half-open": Fault(_fall_silent),
    "engine-ends": Fault(_end_engine),
    "engine-hangs": Fault(_hang_engine),
    "disk-full": Fault(_fill_disk),
    "database-stops": Fault(_stop_database),
    "database-freezes": Fault(_freeze_database),
}
ON_SQLITE: Final = frozenset({"disk-full"})
"""For a disk of its own."""
ON_POSTGRESQL: Final = frozenset({"database-stops", "database-freezes"})
"""For one of its own."""


def available(private: bool, url: str | None) -> list[str]:
    """The faults that can happen to a private PostgreSQL, the database at `url`, or a fresh SQLite file."""
    if url is not None:
        own: frozenset[str] = frozenset()
    else:
        own = ON_POSTGRESQL if private else ON_SQLITE
    return [name for name in FAULTS if name in own or name not in ON_SQLITE | ON_POSTGRESQL]


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
