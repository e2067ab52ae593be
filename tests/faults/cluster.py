"""A PostgreSQL cluster of a test's own, which it may stop, kill and reconfigure."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest


class Cluster:
    """`url` leads to its database. Made in `folder` by `user`, since PostgreSQL refuses to run as root."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs = programs
        self._folder = folder
        self._user = user
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", str(folder))

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        settings = f"-p {self._port} -k {self._folder} -c fsync=off -c listen_addresses=127.0.0.1"
        self._run(
            "pg_ctl", "-w", "-D", str(self._folder), "-l", str(self._folder / "log"), "-o", settings, "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash, from which the next start recovers; `fast` ends sessions in order."""
        self._run("pg_ctl", "-w", "-D", str(self._folder), "-m", mode, "stop")

    def execute(self, *statements: str) -> None:
        """Each in a transaction of its own."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

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
        assert done.returncode == 0, f"{program} {arguments}: exit status {done.returncode}"


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that runs; skips the test where PostgreSQL's server programs are missing."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's server programs are not installed")
    user = None
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("there is no user postgres to run PostgreSQL as")
    # Not in pytest's folder, which only its own user may enter.
    folder = Path(tempfile.mkdtemp(prefix="turnwise-cluster-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        made = Cluster(programs, folder, user)
        made.start()
        try:
            yield made
        finally:
            if (folder / "postmaster.pid").exists():
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
