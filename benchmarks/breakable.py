"""What a database stands on, of a kind that may be broken: a PostgreSQL cluster, and a small disk."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


class Missing(Exception):
    """It cannot be had on this machine; the message says why."""


# --- PostgreSQL -------------------------------------------------------------------------------------------


class Cluster:
    """`url` leads to its database. Made in `folder` by `user`, since PostgreSQL refuses to run as root."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs = programs
        self._folder = folder
        self._user = user
        self._frozen: list[int] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", str(folder))

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    @property
    def running(self) -> bool:
        return (self._folder / "postmaster.pid").exists()

    def start(self) -> None:
        settings = f"-p {self._port} -k {self._folder} -c fsync=off -c listen_addresses=127.0.0.1"
        self._run(
            "pg_ctl", "-w", "-D", str(self._folder), "-l", str(self._folder / "log"), "-o", settings, "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash, from which the next start recovers; `fast` ends sessions in order."""
        self._run("pg_ctl", "-w", "-D", str(self._folder), "-m", mode, "stop")

    def freeze(self) -> None:
        """Stop all its processes where they are: connections stay open and nobody answers, until `thaw`."""
        parent = int((self._folder / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])
        self._freeze(parent)
        for child in _children(parent):  # it begins no more
            self._freeze(child)

    def thaw(self) -> None:
        for process in reversed(self._frozen):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
        self._frozen.clear()

    def execute(self, *statements: str) -> None:
        """Each in a transaction of its own."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def _freeze(self, process: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # ended meanwhile
            os.kill(process, signal.SIGSTOP)
            self._frozen.append(process)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            user=self._user,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # no pipe: the server that pg_ctl leaves behind would keep it open
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} {arguments}: exit status {done.returncode}")


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that runs. Raises `Missing` where PostgreSQL's server programs are not installed."""
    programs = _programs()
    if programs is None:
        raise Missing("PostgreSQL's server programs are not installed")
    user = None
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            raise Missing("there is no user postgres to run PostgreSQL as") from None
    # Where its user may enter, which is not so for every folder of whoever is asking.
    folder = Path(tempfile.mkdtemp(prefix="turnwise-cluster-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        made = Cluster(programs, folder, user)
        made.start()
        try:
            yield made
        finally:
            made.thaw()
            if made.running:
                made.stop()
    finally:
        shutil.rmtree(folder)


def _programs() -> Path | None:
    """Where initdb is: on the path, or where Debian puts it, the newest first."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]), reverse=True
    )
    return installed[0].parent if installed else None


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            status = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            # PID (NAME) STATE PARENT …, and a name may hold anything
            if int(status.rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


# --- a disk -----------------------------------------------------------------------------------------------


class SmallDisk:
    """`folder` is all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no byte to anybody."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (1 << 20, 65536, 4096, 1):
                with contextlib.suppress(OSError):  # there is no room for one more of this size
                    while filler.write(b"x" * size):
                        pass
        if free := shutil.disk_usage(self.folder).free:
            raise RuntimeError(f"{free} bytes are free")

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A file system in memory, mounted at `folder`. Raises `Missing` where that is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        raise Missing("there is no mount command") from None
    if done.returncode != 0:
        raise Missing("a file system may not be mounted here")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
