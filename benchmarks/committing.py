"""``python -m benchmarks.committing``: messages a second that are on the disk when they are acknowledged.

Clients on one event loop each say the next thing once the last one is acknowledged, as the server has it:
once with the writer, which commits together what waits, and for reference with one transaction for each
message on the store's threads. The two take turns. What was written is deleted at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, delete

from benchmarks.figures import report
from server.app import STORE_THREADS
from server.database import connect, upgrade, writing
from server.offload import Offload
from server.store import Store, StoredTurn
from server.tables import Visitor
from server.writer import Writer

WORDS = "Hello, my order has not arrived yet; could you please have a look where it is?"
ALONE = "the same with one transaction for each message"

Say = Callable[[str, str], Awaitable[StoredTurn]]
"""Conversation and client id; done when the message is acknowledged."""


@dataclass(frozen=True)
class Round:
    """waits: seconds until each message was acknowledged."""

    seconds: float
    waits: tuple[float, ...]

    @property
    def rate(self) -> float:
        return len(self.waits) / self.seconds

    def percentile(self, of_100: int) -> float:
        """Milliseconds within which that share of the messages was acknowledged."""
        return 1000 * statistics.quantiles(self.waits, n=100, method="inclusive")[of_100 - 1]


FIGURES: tuple[tuple[str, str, Callable[[Round], float]], ...] = (
    ("", "messages/s", lambda found: found.rate),
    ("_p50", "ms", lambda found: found.percentile(50)),
    ("_p99", "ms", lambda found: found.percentile(99)),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.committing", description=__doc__)
    parser.add_argument("--database-url", help="brought to the newest migration; default: a temporary file")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = args.database_url or f"sqlite:///{Path(folder) / 'turnwise.db'}"
        upgrade(url)
        engine = connect(url)
        try:
            measure(engine, args.clients, args.seconds, args.rounds)
        finally:
            engine.dispose()


def measure(engine: Engine, clients: int, seconds: float, rounds: int) -> None:
    writer = Writer(engine)
    writer.start()
    store, alone = Store(engine, writer=writer), Store(engine)
    offload = Offload(STORE_THREADS[engine.dialect.name], "store")
    visitor = alone.new_visitor().visitor_id
    conversations = [alone.open_conversation(visitor) for _ in range(clients)]

    def together(conversation: str, client_id: str) -> Awaitable[StoredTurn]:
        return asyncio.wrap_future(store.submit_user_turn(conversation, client_id, WORDS, {}))

    def one_by_one(conversation: str, client_id: str) -> Awaitable[StoredTurn]:
        return offload(alone.add_user_turn, conversation, client_id, WORDS, {})

    grouped: list[Round] = []
    single: list[Round] = []
    try:
        for number in range(rounds):
            grouped.append(asyncio.run(talk(together, conversations, f"g{number}", seconds)))
            single.append(asyncio.run(talk(one_by_one, conversations, f"s{number}", seconds)))
    finally:
        writer.close()
        offload.close()
        with writing(engine) as connection:
            connection.execute(delete(Visitor).where(Visitor.id == visitor))
    name = f"commit_{engine.dialect.name}"
    for suffix, unit, of in FIGURES:
        value, reference = (statistics.median(map(of, rounds)) for rounds in (grouped, single))
        report(name + suffix, value, unit, reference, ALONE, clients=clients)


async def talk(say: Say, conversations: list[str], prefix: str, seconds: float) -> Round:
    """Every conversation's client talks for that long; all of them are waited for."""
    waits: list[float] = []
    began = time.perf_counter()

    async def client(conversation: str) -> None:
        number = 0
        while (asked := time.perf_counter()) < began + seconds:
            await say(conversation, f"{prefix}.{number}")
            waits.append(time.perf_counter() - asked)
            number += 1

    await asyncio.gather(*map(client, conversations))
    return Round(time.perf_counter() - began, tuple(waits))


if __name__ == "__main__":
    main()
