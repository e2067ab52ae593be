"""``python -m benchmarks.serving``: the shipped model behind real WebSockets, from a few chats to a thousand.

A server process with its default settings (but for limits on one address, which all clients have) over a
fresh SQLite file; the clients are another process, on the same cores. Chats never pause: a visitor says
eight things, the next one as soon as they are answered, leaves, and another visitor comes. Replies are made
with the model's own options but for the number of tokens, always 20. Beside it, in turn and with as many
threads: the batcher alone, that has as many such conversations and neither sockets nor a database.

    memory      of a connection that has said hello and nothing else
    length      the first token of turns 2, 4, 50 and 500 of a conversation
    load        first token, time per token, tokens a second, the event loop's lag, for each number of chats
    refusing    how many of 1000 that speak at the same moment are answered, and how soon the others are told
    peers       with ``--transformers PYTHON``, an interpreter that has it: `generate` of models of random
                weights in the sizes of GPT-2 small and BlenderbotSmall, each beside one chat and 16
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import resource
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.figures import report
from benchmarks.load import (
    Busy,
    Chat,
    Exchange,
    Place,
    Round,
    ServerProcess,
    chats,
    percentile,
    pinging,
    server_process,
    talk,
)
from benchmarks.transformers_peer import Generator
from chatbot import model_directory
from chatbot.batcher import Batcher
from chatbot.options import DecodingOptions
from chatbot.replies import Finished, Piece, ReplyRequest
from chatbot.transcripts import Role
from server import database
from server.app import allow_sockets
from server.recipe import Recipe
from server.settings import Settings
from server.store import NewReply, Store
from server.writer import Writer

TOKENS: Final = 20
OPTIONS: Final[dict[str, Any]] = {"min_tokens": TOKENS, "max_tokens": TOKENS}
TEXTS: Final = (
    "Hello, I would like to book a table for four people tonight",
    "My order has not arrived yet, can you have a look where it is?",
    "What is the weather going to be like tomorrow in the north?",
    "I forgot my password and cannot get into my account",
    "Is there a cheap hotel with free parking near the station?",
    "Yes, that would be fine, thank you",
    "Can you change the time to half past seven, please?",
    "How long does the delivery take?",
)
OPENINGS: Final = (
    "I have",
    "Okay, that is",
    "Your wish is",
    "All of this is",
    "Sure,",
    "Thank you,",
    "Great,",
)
LONG: Final = " ".join(TEXTS[:3])
"""About as many tokens as a peer's prompt."""
LIMITS: Final = ("--connections-per-address", "4000", "--visitors-per-address", "100000")
CROWD: Final = 1000
WAITING: Final = 328
"""Requests that wait in the batcher alone, as many as in the server's."""
TURNS: Final = (2, 4, 50, 500)
AIMS: Final = {"share": 0.6, "lag_ms": 20.0, "idle_bytes": 32 * 1024, "flat": 1.2}
KINDS: Final = ("gpt2", "blenderbot")
PARTS: Final = ("memory", "length", "load", "refusing", "peers")


@dataclass(frozen=True)
class Plan:
    """threads: of the model. warm_up, seconds: of each round under load. repeats: of short measurements."""

    threads: int
    warm_up: float
    seconds: float
    rounds: int
    repeats: int
    levels: tuple[int, ...]
    crowd: int
    models: Path | None = None
    engine: str = "process"

    @property
    def settings(self) -> Settings:
        return Settings(threads=self.threads, models=self.models)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the server's command line."""
        models = () if self.models is None else ("--models", str(self.models))
        told = ("--threads", str(self.threads), "--engine", self.engine, "--log-level", "error")
        return (*told, *LIMITS, *models)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=1, help="for the model's arithmetic")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round under load")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before each of them")
    parser.add_argument("--rounds", type=int, default=3, help="for each number of chats")
    parser.add_argument("--repeats", type=int, default=10, help="of a short measurement")
    parser.add_argument("--chats", type=int, nargs="+", default=[1, 16, 128, 1000], help="at once")
    parser.add_argument("--crowd", type=int, default=CROWD, help="chats that are refused, or idle")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--models", type=Path, metavar="DIR", help="default: the model that ships")
    parser.add_argument("--engine", choices=["process", "thread"], default="process", help="of the server")
    parser.add_argument("--transformers", metavar="PYTHON", help="an interpreter that has it")
    args = parser.parse_args(arguments)
    plan = Plan(
        args.threads,
        args.warm_up,
        args.seconds,
        args.rounds,
        args.repeats,
        tuple(args.chats),
        args.crowd,
        args.models,
        args.engine,
    )
    allow_sockets(max(plan.crowd, *plan.levels) + 100)
    parts: dict[str, Callable[[Plan, ServerProcess], None]] = {
        "memory": idling,
        "length": lengths,
        "load": loaded,
        "refusing": refusing,
        "peers": partial(beside_transformers, python=args.transformers),
    }
    with serving(plan) as server:
        for part, measure in parts.items():
            if part in args.only and (part != "peers" or args.transformers):
                measure(plan, server)


@contextmanager
def serving(plan: Plan) -> Iterator[ServerProcess]:
    """A server over a new database."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'turnwise.db'}"
        database.upgrade(url)
        with server_process(url, *plan.arguments) as server:
            yield server


# --- load -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A round, and what else was measured meanwhile.

    pings: seconds that they took. loop_lag: seconds that the event loop was late, 99 % of times at most.
    """

    round: Round
    pings: list[float]
    loop_lag: float
    server_cores: float
    client_cores: float


def loaded(plan: Plan, server: ServerProcess) -> None:
    """For each number of chats: the server and the batcher alone, in turn."""
    torch.set_num_threads(plan.threads)
    sealed = model_directory.describe(model_directory.find_model(plan.models or model_directory.SHIPPED))
    make_batcher = Recipe.of(sealed, plan.settings, WAITING)
    for level in plan.levels:
        found, bare = [], []
        for _ in range(plan.rounds):
            found.append(asyncio.run(serve(plan, server, level)))
            bare.append(alone(make_batcher(), sealed.defaults, level, plan.warm_up, plan.seconds))
        _report_load(level, found, bare, plan)


async def serve(plan: Plan, server: ServerProcess, level: int) -> Served:
    """So many chats at once."""
    async with chats(server.port, level) as first:
        began = time.perf_counter() + plan.warm_up
        with pinging(server.port, began, plan.seconds) as probe:
            talking = asyncio.create_task(talk(server.port, first, TEXTS, OPTIONS, began, plan.seconds))
            await asyncio.sleep(began - time.perf_counter())
            before = await asyncio.to_thread(server.metrics)
            cpu, own = server.cpu_seconds, _own_cpu()
            found = await talking
            length = time.perf_counter() - began
            used, mine = (server.cpu_seconds - cpu) / length, (_own_cpu() - own) / length
            after = await asyncio.to_thread(server.metrics)
            said, _ = await asyncio.to_thread(probe.communicate)
    lag = after.quantile("turnwise_event_loop_lag_seconds", 0.99, before)
    return Served(found, json.loads(said), lag, used, mine)


def alone(batcher: Batcher, defaults: DecodingOptions, level: int, warm_up: float, seconds: float) -> Round:
    """The batcher with so many conversations that never pause; what it has no room for waits outside."""
    options = DecodingOptions.merged(defaults, OPTIONS | {"seed": 1})
    began = time.perf_counter() + warm_up
    end = began + seconds
    histories: dict[str, list[tuple[Role, str]]] = {str(number): [] for number in range(level)}
    asked, first, found = dict.fromkeys(histories, 0.0), dict.fromkeys(histories, 0.0), []
    outside, visitors = deque(histories), itertools.count(level)

    def say(name: str) -> None:
        turns = histories[name]
        turns.append(("user", TEXTS[(len(turns) // 2 + int(name)) % len(TEXTS)]))
        asked[name], first[name] = time.perf_counter(), 0.0
        batcher.submit(ReplyRequest(name, tuple(turns), options, conversation=name))

    def answered(name: str, text: str) -> None:
        histories[name].append(("agent", text))
        if len(histories[name]) == 2 * len(TEXTS):  # they leave, and another visitor comes
            del histories[name], asked[name], first[name]
            name = str(next(visitors))
            histories[name] = []
        outside.append(name)

    while (now := time.perf_counter()) < end:
        while outside and batcher.room:
            say(outside.popleft())
        for event in batcher.step():
            now = time.perf_counter()
            if isinstance(event, Piece):
                first[event.id] = first[event.id] or now
                continue
            assert isinstance(event, Finished), "nothing that is said here can fail"
            if began <= now < end:
                found.append(Exchange(asked[event.id], first[event.id], now, TOKENS))
            answered(event.id, event.reply.text)
    return Round(seconds, tuple(found))


def _report_load(level: int, served: Sequence[Served], bare: Sequence[Round], plan: Plan) -> None:
    """Medians of the rounds."""
    rounds = [each.round for each in served]
    about = {"chats": level, "threads": plan.threads, "replies": sum(len(r.exchanges) for r in rounds)}

    def beside(name: str, unit: str, of: Callable[[Round], float], **more: object) -> None:
        value, reference = (statistics.median(map(of, found)) for found in (rounds, bare))
        report(f"serving_{level}_{name}", value, unit, reference, "the batcher alone", **about, **more)

    beside(
        "rate",
        "tokens/s",
        lambda found: found.tokens_per_second,
        refused=sum(found.refused for found in rounds),
        server_cores=round(statistics.median(each.server_cores for each in served), 2),
        client_cores=round(statistics.median(each.client_cores for each in served), 2),
    )
    for share in (50, 99):
        beside(f"first_token_p{share}", "ms", partial(Round.first_token, of_100=share))
        beside(f"per_token_p{share}", "ms", partial(Round.per_token, of_100=share))
    for name, seconds in (
        ("loop_lag_p99", [each.loop_lag for each in served]),
        ("ping_p50", [percentile(each.pings, 50) for each in served]),
        ("ping_p99", [percentile(each.pings, 99) for each in served]),
    ):
        value = 1000 * statistics.median(seconds)
        report(f"serving_{level}_{name}", value, "ms", AIMS["lag_ms"], "aim", **about)


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- memory, refusing -------------------------------------------------------------------------------------


def idling(plan: Plan, server: ServerProcess) -> None:
    """Memory of connections that have said hello, each to a conversation of its own."""

    async def grown() -> float:
        async with chats(server.port, plan.crowd // 10):  # what is made once and kept is made now
            pass
        await asyncio.sleep(1.0)
        before = server.resident
        async with chats(server.port, plan.crowd):
            return server.resident - before

    report(
        "serving_idle_connection",
        asyncio.run(grown()) / plan.crowd,
        "bytes",
        AIMS["idle_bytes"],
        "aim",
        connections=plan.crowd,
        server_mib=round(server.resident / 2**20),
    )


def refusing(plan: Plan, server: ServerProcess) -> None:
    """All of a crowd speak at the same moment, once."""

    async def speak() -> list[Exchange | Busy]:
        async with chats(server.port, plan.crowd) as clients:
            return await asyncio.gather(*(_said(chat) for chat in clients))

    outcomes = asyncio.run(speak())
    refusals = [1000 * outcome.seconds for outcome in outcomes if isinstance(outcome, Busy)]
    answered = [outcome for outcome in outcomes if isinstance(outcome, Exchange)]
    places = plan.settings.rows + plan.settings.waiting
    report(
        "serving_refuses_after", len(answered), "replies", places, "places: rows and waiting", said=plan.crowd
    )
    if refusals:
        last = 1000 * max(exchange.first_token for exchange in answered)
        for share in (50, 99):
            report(
                f"serving_refusal_p{share}",
                percentile(refusals, share),
                "ms",
                last,
                "the last first token of those answered",
                refused=len(refusals),
            )


async def _said(chat: Chat) -> Exchange | Busy:
    try:
        return await chat.say(TEXTS[0], OPTIONS)
    except Busy as busy:
        return busy


# --- length -----------------------------------------------------------------------------------------------


def lengths(plan: Plan, server: ServerProcess) -> None:
    """The first token at a conversation's turns; the server has seen the one or two turns before."""
    places = {turn: begun(server.url, turn, plan.repeats) for turn in TURNS}
    found = asyncio.run(_first_tokens(server.port, places))
    reference = statistics.median(found[TURNS[0]])
    for turn, times in found.items():
        report(
            f"serving_turn_{turn}_first_token",
            statistics.median(times),
            "ms",
            reference,
            f"turn {TURNS[0]}",
            aim=AIMS["flat"],
            conversations=len(times),
        )


async def _first_tokens(port: int, places: dict[int, list[Place]]) -> dict[int, list[float]]:
    """Milliseconds, by turn; the lengths take turns."""
    found: dict[int, list[float]] = {turn: [] for turn in places}
    for conversations in zip(*places.values(), strict=True):
        for turn, place in zip(places, conversations, strict=True):
            with contextlib.closing(await Chat.opened(port, place)) as chat:
                if turn > TURNS[0]:
                    await chat.say(TEXTS[1], OPTIONS)
                found[turn].append(1000 * (await chat.say(TEXTS[0], OPTIONS)).first_token)
    return found


def begun(url: str, turn: int, count: int) -> list[Place]:
    """Conversations whose next reply but one, or next for 2, will be turn `turn`."""
    engine = database.connect(url)
    writer = Writer(engine)
    writer.start()  # it commits together what the conversations get
    try:
        store = Store(engine, writer=writer)
        grants = [store.new_visitor() for _ in range(count)]
        names = [store.open_conversation(grant.visitor_id) for grant in grants]
        older = max(0, turn - 4) // 2
        for number in range(older):
            text = f"{TEXTS[number % len(TEXTS)]} ({number})"
            said = [store.submit_user_turn(name, f"old-{number}", text, {}) for name in names]
            replies = [_old_reply(number, turn.result().message_id) for turn in said]
            for kept in list(map(store.submit_reply, names, replies)):
                kept.result()
    finally:
        writer.close()
        engine.dispose()
    return [Place(grant.token, name, 2 * older) for grant, name in zip(grants, names, strict=True)]


def _old_reply(number: int, answers: str) -> NewReply:
    text = f"{OPENINGS[number % len(OPENINGS)]} noted as number {number}. Is there anything else I can do?"
    return NewReply(
        f"reply-{number}", answers, text, "stop", "seeded", {}, 0, [], [], [], 0.0, None, 0.0
    )  # fmt: skip


# --- peers ------------------------------------------------------------------------------------------------


def beside_transformers(plan: Plan, server: ServerProcess, *, python: str) -> None:
    """One chat and 16, beside `generate` for as many prompts in one batch; in turn, `repeats` times."""
    for kind in KINDS:
        with Generator(python, kind, plan.threads) as peer:
            for level in (1, 16):
                asyncio.run(_beside(plan, server.port, peer, kind, level))


async def _beside(plan: Plan, port: int, peer: Generator, kind: str, level: int) -> None:
    ours: list[list[Exchange]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(plan.repeats + 1):
        async with chats(port, level) as clients:  # in new conversations: nobody asks the same twice
            ours.append(list(await asyncio.gather(*(chat.say(LONG, OPTIONS) for chat in clients))))
        theirs.append(await asyncio.to_thread(peer.generate, level))
    del ours[0], theirs[0]  # a warm-up
    first = statistics.median(exchange.first_token for each in ours for exchange in each)
    whole = statistics.median(max(e.last for e in each) - min(e.asked for e in each) for each in ours)
    peer_first, peer_whole = (statistics.median(times) for times in zip(*theirs, strict=True))
    about = {"replies": level, "threads": plan.threads, "peer": peer.version, "parameters": peer.parameters}
    name, of = f"serving_{level}_beside_{kind}", f"transformers' generate, {kind}"
    report(f"{name}_first_token", 1000 * first, "ms", 1000 * peer_first, of, **about)
    report(f"{name}_rate", level * TOKENS / whole, "tokens/s", level * TOKENS / peer_whole, of, **about)


if __name__ == "__main__":
    main()
