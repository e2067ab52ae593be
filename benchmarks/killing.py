"""Make a server fail again and again while people talk, and see that nothing acknowledged is lost or doubled.

    python -m benchmarks.killing [--faults NAME … | all] [--kills 50] [--chats 32] [--models DIR]
                                 [--database-url URL | --postgresql]

A real server process is ended by SIGKILL, or made to fail in the other ways of `--faults`, at random moments,
over a fresh SQLite file, the database at URL, or a PostgreSQL of its own:

    kill              SIGKILL, and another process
    terminate         SIGTERM in the middle of replies, and another process
    half-open         a quarter of the clients are gone without a word, and come back on other connections
    engine-ends       the process that makes the replies is killed
    engine-hangs      it stands still for some seconds
    disk-full         there is no room for the database for some seconds (SQLite; needs the right to mount)
    database-stops    PostgreSQL crashes and is away for some seconds (--postgresql)
    database-freezes  the same, but its connections stay open and nobody answers

The clients come back by themselves: each goes on with its conversation where it was and says again what was
not acknowledged, with the same id. After a fault that the server process outlives, each client has to be
answered again before the next one. At the end every conversation is read from the database and compared with
what its client was told. One JSON line a figure; the exit status is 0 only if nothing is lost, doubled, out
of order or left without an answer (`wrong`), and nobody waited too long for the next one (`late`).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.breakable import Missing
from benchmarks.chats import Chat
from benchmarks.faults import FAULTS, STARTING, Place, Scene, ServerProcess, available, fresh_place
from benchmarks.figures import report
from server import database
from server.store import MessageRecord, Store

RECOVERING: Final = 60.0
"""Seconds in which every client has to be answered again once what was broken is mended."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. resumed: connections that went on with a conversation. problems: what is wrong.
    late: who was not answered in time after a fault; a machine that does other things too may be why.

    recoveries: for each fault that the process outlived, the seconds until everybody was answered again.
    """

    faults: tuple[str, ...]
    accepted: int
    replies: int
    resumed: int
    problems: tuple[str, ...]
    late: tuple[str, ...] = ()
    recoveries: dict[str, list[float]] = field(default_factory=dict)

    @property
    def acknowledged(self) -> int:
        """Messages that a client was told are kept: its own, and replies that it has seen complete."""
        return self.accepted + self.replies


# --- a run ------------------------------------------------------------------------------------------------


async def run(
    place: Place,
    models: Path | None,
    faults: Sequence[str],
    *,
    chats: int,
    longest: float,
    seconds: float = 10.0,
    seed: int = 0,
) -> Outcome:
    """Serve the database of `place` and make the server fail in each of these ways, in this order.

    longest: seconds from one fault to the next, at most. seconds: that what is broken stays so. seed: of the
    moments.
    """
    moments = random.Random(seed)
    await asyncio.to_thread(database.upgrade, place.url)
    server = ServerProcess(place.url, models)
    clients = [Chat(f"chat{number}") for number in range(chats)]
    scene = Scene(place, server, clients, seconds, moments)
    problems: list[str] = []
    late: list[str] = []
    recoveries: dict[str, list[float]] = {}
    tasks = [asyncio.create_task(client.run(server.port)) for client in clients]
    try:
        await asyncio.to_thread(server.start)
        for name in faults:
            await asyncio.sleep(moments.uniform(0.05, longest))
            problems += await FAULTS[name].act(scene)
            if FAULTS[name].lasting:
                took, left = await recovery(scene)
                recoveries.setdefault(name, []).append(took)
                late += [f"after {name}: {problem}" for problem in left]
        for client in clients:
            client.stopping = True
        async with asyncio.timeout(STARTING):
            await asyncio.gather(*tasks)
        await asyncio.to_thread(server.terminate)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(server.kill)
    problems += [problem for client in clients for problem in client.problems]
    problems += await asyncio.to_thread(compare, place.url, clients)
    return Outcome(
        tuple(faults),
        sum(len(client.accepted) for client in clients),
        sum(client.replies for client in clients),
        sum(client.resumed for client in clients),
        tuple(problems),
        tuple(late),
        recoveries,
    )


async def recovery(scene: Scene) -> tuple[float, list[str]]:
    """Seconds until each client has been answered once more, and who has not been."""
    now = asyncio.get_running_loop().time
    began, before = now(), {client.name: client.turns for client in scene.clients}
    while waiting := [each.name for each in scene.clients if each.turns == before[each.name]]:
        if now() - began > RECOVERING:
            return now() - began, [f"{name} was not answered within {RECOVERING:g} s" for name in waiting]
        await asyncio.sleep(0.02)
    took = now() - began
    ready = await asyncio.to_thread(lambda: scene.server.ready)
    return took, [] if ready else ["/readyz is red"]


def drawn(names: Sequence[str], times: int, seed: int) -> list[str]:
    """So many faults of these kinds, each as often as the others, in any order."""
    found = [names[number % len(names)] for number in range(times)]
    random.Random(seed).shuffle(found)
    return found


# --- what is wrong ----------------------------------------------------------------------------------------


def compare(url: str, clients: Sequence[Chat]) -> list[str]:
    """What is wrong with the database, given what the clients were told."""
    engine = database.connect(url)
    try:
        store = Store(engine)
        return [problem for client in clients for problem in _compare_one(store, client)]
    finally:
        engine.dispose()


def _compare_one(store: Store, client: Chat) -> list[str]:
    if client.conversation is None:
        return [f"{client.name}: never came in"]
    kept: list[MessageRecord] = []
    while page := store.messages(client.conversation, len(kept), 500):
        kept += page
    found = {record.seq: (record.message_id, record.role, record.text) for record in kept}
    problems = []
    if [record.seq for record in kept] != list(range(1, len(kept) + 1)):
        problems.append(f"{client.name}: the numbers have gaps")
    lost = [seq for seq, message in client.known.items() if found.get(seq) != message]
    if lost:
        problems.append(
            f"{client.name}: {len(lost)} acknowledged messages are lost or changed, {lost[0]} first"
        )
    doubled = [said for said, times in Counter(r.client_id for r in kept if r.client_id).items() if times > 1]
    if doubled:
        problems.append(f"{client.name}: {doubled[0]} is kept more than once")
    answers = Counter(record.answers for record in kept if record.role == "agent")
    return problems + [
        f"{client.name}: {record.client_id} has {answers[record.message_id]} answers"
        for record in kept
        if record.role == "user" and answers[record.message_id] != 1
    ]


# --- the command ------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    faults = drawn(options.faults, options.kills, options.seed)
    try:
        with _place(options) as place:
            outcome = asyncio.run(
                run(
                    place,
                    options.models,
                    faults,
                    chats=options.chats,
                    longest=options.longest,
                    seconds=options.seconds,
                    seed=options.seed,
                )
            )
            kind = database.parse(place.url).drivername
    except Missing as reason:
        print(reason, file=sys.stderr)
        return 2
    report(
        f"killing_{kind}_wrong",
        len(outcome.problems),
        "messages or conversations",
        outcome.acknowledged,
        "acknowledged messages",
        faults=Counter(outcome.faults),
        accepted=outcome.accepted,
        replies=outcome.replies,
        resumed=outcome.resumed,
    )
    waited = sum(map(len, outcome.recoveries.values())) * options.chats
    if waited:
        report(
            f"killing_{kind}_late", len(outcome.late), "answers", waited, "answers waited for after a fault"
        )
    for name, seconds in outcome.recoveries.items():
        what = "the longest that is waited for"
        report(
            f"recovery_{kind}_{name}",
            statistics.median(seconds),
            "s",
            RECOVERING,
            what,
            longest=round(max(seconds), 3),
        )
    for problem in [*outcome.problems[:20], *outcome.late[:20]]:
        print(problem, file=sys.stderr)
    return 1 if outcome.problems or outcome.late else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.killing", description="Make the server fail while people talk."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--database-url", metavar="URL", help="default: a fresh SQLite file")
    where.add_argument("--postgresql", action="store_true", help="a PostgreSQL of its own, to be broken too")
    parser.add_argument("--models", type=Path, metavar="DIR", help="default: the model that ships")
    parser.add_argument(
        "--faults",
        nargs="+",
        choices=[*FAULTS, "all"],
        default=["kill"],
        metavar="NAME",
        help=f"{', '.join(FAULTS)}; all: those that can be had there (default: kill)",
    )
    parser.add_argument("--kills", type=int, default=50, help="faults in all (default: 50)")
    parser.add_argument("--chats", type=int, default=32)
    parser.add_argument(
        "--longest", type=float, default=6.0, help="seconds from one fault to the next, at most"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="that what is broken stays so (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    there = available(options.postgresql, options.database_url)
    if "all" in options.faults:
        options.faults = there
    if missing := [name for name in options.faults if name not in there]:
        parser.error(f"{', '.join(missing)}: not with this database")
    return options


@contextmanager
def _place(options: argparse.Namespace) -> Iterator[Place]:
    if options.database_url is not None:
        yield Place(options.database_url)
        return
    with fresh_place(options.faults, options.postgresql) as place:
        yield place


if __name__ == "__main__":
    sys.exit(main())
