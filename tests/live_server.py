"""Real servers for tests: one in a thread, whose model can be a script, and one in a process, which can be
killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes
from chatbot import model_directory
from server import database
from server.app import Application, Server, address_of, configuration, listen
from server.settings import Settings
from server.store import Store
from tests.databases import upgrade
from tests.scripted_batcher import Gate, Script, ScriptedBatcher

ROOT = Path(__file__).resolve().parent.parent

PYTHON = (sys.executable, "-W", "error", "-m")
SERVE = (*PYTHON, "server", "serve")
"""The command, in which a warning is an error as in the tests."""


@dataclass
class LiveServer:
    """A server that listens. `store` sees what it keeps; `gate` holds the model's steps back when it is
    closed.
    """

    address: str
    store: Store
    gate: Gate
    batcher: ScriptedBatcher | None
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        """Ask it to stop, as SIGTERM does, and return at once."""
        self.server.should_exit = True


class _Announcing(Server):
    """Says when it listens."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.listening = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.listening.set()


@contextmanager
def serving(url: str, models: Path, script: Script | None = None, **settings: Any) -> Iterator[LiveServer]:
    """A server in a thread on a port of its own, over the database at `url`, which is brought up to date
    first.

    With `script`, a scripted batcher stands in for the model's.
    """
    upgrade(url)
    told = Settings(
        host="127.0.0.1", port=0, database_url=url, models=models, threads=1, device="cpu", **settings
    )
    db = database.connect(url)
    gate = Gate()
    batcher = None if script is None else ScriptedBatcher(script, gate)
    model = model_directory.describe(model_directory.find_model(models))
    application = Application(told, model, db, None if batcher is None else lambda: batcher)
    with listen(told.host, told.port) as listener:
        address = address_of(listener)
        server = _Announcing(configuration(application, told), application, address)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
        thread.start()
        try:
            assert server.listening.wait(60)
            assert server.started
            yield LiveServer(address, Store(db), gate, batcher, server, thread)
        finally:
            gate.open()
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server did not stop"
            db.dispose()


@dataclass
class ServerProcess:
    """A server in a process of its own."""

    address: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """As the power would: no goodbye."""
        self.process.kill()
        self.process.wait(30)

    def terminate(self) -> int:
        """Ask it to stop; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    @property
    def resident_kilobytes(self) -> int:
        """Of all its processes; what they share counts once."""
        return processes.memory(self.process.pid) // 1024

    @property
    def cpu_seconds(self) -> float:
        """That all its processes have used so far."""
        return processes.cpu_seconds(self.process.pid)


def clean_environment() -> dict[str, str]:
    """This process's, without what would be a setting of the server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TURNWISE_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


@contextmanager
def server_process(
    url: str, models: Path, *arguments: str, module: str = "server"
) -> Iterator[ServerProcess]:
    """`python -m server serve` over a database that is up to date, on a port of its own."""
    process = subprocess.Popen(
        [
            *PYTHON,
            module,
            "serve",
            "--port",
            "0",
            "--threads",
            "1",
            "--database-url",
            url,
            "--models",
            models,
            *arguments,
        ],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Turnwise is ready: "), f"instead of an address: {line!r}"
        yield ServerProcess(line.removeprefix("Turnwise is ready: ").strip(), process)
    finally:
        process.kill()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()
