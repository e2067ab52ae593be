"""The WebSocket layer of the chat beside the bare library, in the Autobahn test suite.

    python -m benchmarks.autobahn --wstest COMMAND [--folder FOLDER] [--cases 1.* …]

An echo server made of the chat socket's own layer (`server.wire` on uvicorn, the same options but for the
size of a frame and its pace, since the suite sends messages of 16 MiB) and one of bare `websockets` go
through the same cases. One JSON line a figure; the exit status is 0 only if every case that the library
passes is passed here as well.

The suite, autobahntestsuite 0.8.2, needs Python 2.7 and is no part of the project. COMMAND starts it, split
as a shell would, without arguments; FOLDER is where it is started and leaves its reports. For one that lives
in a directory of its own, made by `debootstrap`:

    --folder ROOT/tmp/autobahn --wstest "chroot ROOT env -C /tmp/autobahn /usr/local/bin/wstest"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.figures import report
from server.app import listen
from server.wire import Wire

MAX_SIZE: Final = 17 << 20
"""Bytes of the largest message: the suite's, and a little."""
AT_ITS_PACE: Final = 1_000_000.0
"""Frames a second: no bound, since the suite measures what is done with frames and not how many are taken."""
PASSED: Final = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
NOT_RUN: Final = frozenset({"UNIMPLEMENTED"})
LIMIT: Final = 1200.0
"""Seconds that the suite may take."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.autobahn", description="Run the Autobahn test suite, beside websockets."
    )
    parser.add_argument("--wstest", required=True, help="command that starts autobahntestsuite's wstest")
    parser.add_argument("--folder", type=Path, help="where the command runs (default: a temporary folder)")
    parser.add_argument("--cases", nargs="+", default=["*"], help="cases to be run (default: all)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        found = asyncio.run(compare(shlex.split(options.wstest), folder, options.cases))
        return tell(found, time.perf_counter() - began)


async def compare(wstest: Sequence[str], folder: Path, cases: Sequence[str]) -> dict[str, dict[str, str]]:
    """How each agent behaved in each case: agent → case → Autobahn's word for it."""
    async with ours() as turnwise, bare() as websockets:
        agents = {"turnwise": turnwise, "websockets": websockets}
        specification = {
            "outdir": "./reports",
            "servers": [{"agent": name, "url": f"ws://127.0.0.1:{port}"} for name, port in agents.items()],
            "cases": list(cases),
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        await asyncio.to_thread(
            (folder / "spec.json").write_text, json.dumps(specification), encoding="ascii"
        )
        process = await asyncio.create_subprocess_exec(
            *wstest, "-m", "fuzzingclient", "-s", "spec.json", cwd=folder, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(LIMIT):
            status = await process.wait()
        if status != 0:
            raise SystemExit(f"the suite ended with status {status}")
    written = json.loads(await asyncio.to_thread((folder / "reports" / "index.json").read_text, "utf-8"))
    return {agent: {case: each["behavior"] for case, each in written[agent].items()} for agent in agents}


def tell(found: dict[str, dict[str, str]], seconds: float) -> int:
    """Print the figures; the exit status."""
    ours, theirs = found["turnwise"], found["websockets"]
    behind = sorted(case for case, word in theirs.items() if word in PASSED and ours[case] not in PASSED)
    run = {agent: [c for c, word in cases.items() if word not in NOT_RUN] for agent, cases in found.items()}
    report(
        "autobahn_passed",
        sum(word in PASSED for word in ours.values()),
        "cases",
        sum(word in PASSED for word in theirs.values()),
        "bare websockets",
        run=len(run["turnwise"]),
        not_passed={case: ours[case] for case in run["turnwise"] if ours[case] not in PASSED},
        reference_not_passed={case: theirs[case] for case in run["websockets"] if theirs[case] not in PASSED},
        behind=behind,
        seconds=round(seconds, 1),
    )
    return 1 if behind or not run["turnwise"] else 0


# --- the two servers --------------------------------------------------------------------------------------


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that gives back what it gets."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        kept = {key: value for key, value in message.items() if key != "type"}
        await send({"type": "websocket.send", **kept})


class _Server(uvicorn.Server):
    """Does not take the program's signals."""

    def install_signal_handlers(self) -> None:
        pass


@asynccontextmanager
async def ours() -> AsyncIterator[int]:
    """The echo behind the chat socket's layer; its port."""
    config = Wire(
        echo,
        request_seconds=8,
        per_address=None,
        frames_per_second=AT_ITS_PACE,
        ws_max_size=MAX_SIZE,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    with listen("127.0.0.1", 0) as listener:
        listener.listen(128)
        server = _Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield _port(listener)
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def bare() -> AsyncIterator[int]:
    """The echo of bare `websockets`; its port."""

    async def handle(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(
        handle, "127.0.0.1", 0, compression=None, max_size=MAX_SIZE, ping_interval=None, logger=_silent()
    ) as server:
        yield _port(next(iter(server.sockets)))


def _silent() -> logging.Logger:
    """The suite misbehaves on purpose."""
    logger = logging.getLogger(f"{__name__}.bare")
    logger.setLevel(logging.CRITICAL + 1)
    return logger


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main())
