"""``python -m benchmarks.suggestions``: how soon an operator has suggestions, beside 100 ms.

A server process with its default settings and the shipped model, over a fresh SQLite file; an operator who is
signed in asks over HTTP, for one conversation after the other, with nothing typed, with one word, and with
half of a reply. That is done while nobody else speaks, while people chat who read and think for some seconds
between a reply and what they say next, and while as many chats that never pause (`benchmarks.serving`) keep
the model busy all the time. The conversations and replies are our own.

Of each: the half and the 95 of 100 that were answered sooner, in milliseconds, from the request to the whole
answer; how many suggestions there were on average; and while nobody else speaks, the milliseconds of a core
that the server spent, which another job on the machine does not change as much.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.figures import report
from benchmarks.load import Chat, ServerProcess, chats, percentile, server_process, talk
from benchmarks.serving import LIMITS, OPTIONS, TEXTS
from server import database
from server.console.accounts import Accounts
from server.store import NewReply, Store

AIM_MS: Final = 100.0
LENGTHS: Final = ("nothing", "word", "half")
API: Final = "/api/operator"
CONVERSATIONS: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (
        ("Hello!", "Hello, how can I help?", "I want a table for two on Friday evening"),
        "For what time should it be?",
    ),
    (
        ("I cannot get into my bank account, I have lost my PIN",),
        "I can help you with that. What is your name?",
    ),
    (
        ("Hi, I need a taxi", "Where should we pick you up?", "At the main station, please"),
        "Where would you like to go to?",
    ),
    (
        (
            "Is there a cheap hotel near the museum?",
            "There is one, the Old Mill.",
            "Does it have free parking?",
        ),
        "Yes, it has free parking. Would you like to book a room?",
    ),
    (
        ("What will the weather be like tomorrow?",),
        "It will be sunny. Is there anything else I can do for you?",
    ),
    (
        (
            "My order is late",
            "I am sorry. What is the number?",
            "It is 4 7 1 1",
            "Thank you.",
            "Where is it now?",
        ),
        "Your order is on its way and will be there tomorrow.",
    ),
)
"""What was said, visitor and agent in turn, and a reply of an operator."""
_PAUSE: Final = 0.02
"""Seconds between two requests."""


@dataclass(frozen=True)
class Plan:
    """threads: of the model. repeats: of every conversation with every length. think: seconds of people."""

    threads: int
    repeats: int
    chats: int
    think: float
    warm_up: float
    models: Path | None

    @property
    def arguments(self) -> tuple[str, ...]:
        models = () if self.models is None else ("--models", str(self.models))
        return ("--threads", str(self.threads), *LIMITS, *models)


@dataclass(frozen=True)
class Answered:
    """milliseconds: of each request. offered: suggestions of each. cpu_ms: of the server, on average."""

    milliseconds: tuple[float, ...]
    offered: tuple[int, ...]
    cpu_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suggestions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=1, help="for the model's arithmetic")
    parser.add_argument("--repeats", type=int, default=10, help="of each conversation with each length")
    parser.add_argument("--chats", type=int, default=16, help="under way at once, in the other parts")
    parser.add_argument("--think", type=float, default=5.0, help="seconds that people do, on average")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before each part")
    parser.add_argument("--models", type=Path, metavar="DIR", help="default: the model that ships")
    plan = Plan(**vars(parser.parse_args(arguments)))
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'turnwise.db'}"
        database.upgrade(url)
        password = secrets.token_urlsafe(16)
        conversations = begun(url, password)
        with server_process(url, *plan.arguments) as server, Desk.opened(server.port, password) as desk:
            asyncio.run(measured(plan, server, desk, conversations))


async def measured(plan: Plan, server: ServerProcess, desk: Desk, conversations: Sequence[str]) -> None:
    """All parts, reported."""
    await asyncio.to_thread(desk.warm_up, conversations, plan.warm_up)
    for length in LENGTHS:
        found = await asyncio.to_thread(ask, plan, server, desk, conversations, length)
        told(f"suggestions_{length}", found, chats=0, cpu_ms=round(found.cpu_ms, 1))
    for kind, speak in (("chats", people), ("chats_that_never_pause", flood)):
        async with chats(server.port, plan.chats) as first:
            others = asyncio.create_task(speak(plan, server, first))
            await asyncio.sleep(plan.warm_up)
            for length in LENGTHS:
                found = await asyncio.to_thread(ask, plan, server, desk, conversations, length)
                told(f"suggestions_{length}_beside_{kind}", found, chats=plan.chats)
            if others.done():
                others.result()  # chats do not stop but by failing
            others.cancel()
            await asyncio.gather(others, return_exceptions=True)


async def people(plan: Plan, _: ServerProcess, first: Sequence[Chat]) -> None:
    """Each says something, waits for the reply, and thinks for about `plan.think` seconds."""

    async def visitor(number: int, chat: Chat) -> None:
        for turn in itertools.count(number):
            await asyncio.sleep(random.uniform(0, 2) * plan.think)
            await chat.say(TEXTS[turn % len(TEXTS)], OPTIONS)

    async with asyncio.TaskGroup() as tasks:
        for number, chat in enumerate(first):
            tasks.create_task(visitor(number, chat))


async def flood(_: Plan, server: ServerProcess, first: Sequence[Chat]) -> None:
    """Each says the next thing as soon as it is answered."""
    await talk(server.port, first, TEXTS, OPTIONS, time.perf_counter(), 3600)


def told(name: str, found: Answered, **more: object) -> None:
    for of_100 in (50, 95):
        report(
            f"{name}_p{of_100}",
            percentile(found.milliseconds, of_100),
            "ms",
            AIM_MS,
            "the aim",
            requests=len(found.milliseconds),
            offered=round(sum(found.offered) / len(found.offered), 2),
            **more,
        )


def ask(plan: Plan, server: ServerProcess, desk: Desk, conversations: Sequence[str], length: str) -> Answered:
    """Each conversation in turn, `plan.repeats` times."""
    times, offered = [], []
    before = server.cpu_seconds
    for _ in range(plan.repeats):
        for conversation, (_, reply) in zip(conversations, CONVERSATIONS, strict=True):
            began = time.perf_counter()
            found = desk.suggest(conversation, typed(reply, length))
            times.append(1000 * (time.perf_counter() - began))
            offered.append(len(found))
            time.sleep(_PAUSE)
    spent = 1000 * (server.cpu_seconds - before) / len(times)
    return Answered(tuple(times), tuple(offered), spent)


def typed(reply: str, length: str) -> str:
    """Nothing of it, its first word, or half of it: as a rule, up to the middle of a word."""
    return {"nothing": "", "word": reply.split(maxsplit=1)[0], "half": reply[: len(reply) // 2]}[length]


def begun(url: str, password: str) -> list[str]:
    """An operator who may sign in, and the conversations, answered by somebody up to the last turn."""
    db = database.connect(url)
    Accounts(db).add("operator", "admin", password)
    store = Store(db)
    found = []
    for turns, _ in CONVERSATIONS:
        conversation = store.open_conversation(store.new_visitor().visitor_id)
        for at in range(0, len(turns), 2):
            said = store.add_user_turn(conversation, f"s{at}", turns[at], {}).message_id
            if at + 1 < len(turns):
                store.add_reply(conversation, _reply(f"r{at}", said, turns[at + 1]))
        found.append(conversation)
    db.dispose()
    return found


def _reply(reply_id: str, answers: str, text: str) -> NewReply:
    return NewReply(
        reply_id=reply_id,
        answers=answers,
        text=text,
        finish_reason="stop",
        model="benchmark",
        options={},
        seed=0,
        token_ids=[],
        logprobs=[],
        alternatives=[],
        queued_ms=0.0,
        first_token_ms=None,
        total_ms=0.0,
    )


class Desk:
    """An operator's browser: one connection that stays open."""

    def __init__(self, connection: HTTPConnection, port: int) -> None:
        self._connection = connection
        self._headers = {"content-type": "application/json", "origin": f"http://127.0.0.1:{port}"}

    @classmethod
    @contextmanager
    def opened(cls, port: int, password: str) -> Iterator[Self]:
        """Signed in."""
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            desk = cls(connection, port)
            desk._sign_in(password)
            yield desk
        finally:
            connection.close()

    def suggest(self, conversation: str, text: str) -> list[str]:
        """The texts that are offered."""
        _, found = self._post(f"{API}/conversations/{conversation}/suggestions", {"typed": text})
        return [each["text"] for each in found["suggestions"]]

    def warm_up(self, conversations: Sequence[str], seconds: float) -> None:
        end = time.perf_counter() + seconds
        while True:
            for conversation in conversations:
                self.suggest(conversation, "I")
            if time.perf_counter() >= end:
                return

    def _sign_in(self, password: str) -> None:
        cookie, found = self._post(f"{API}/login", {"name": "operator", "password": password})
        self._headers |= {"cookie": cookie.partition(";")[0], "x-csrf-token": found["csrf"]}

    def _post(self, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        self._connection.request("POST", path, json.dumps(body).encode(), self._headers)
        answer = self._connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"the server answered {answer.status}: {found}")
        return answer.headers.get("set-cookie", ""), found


if __name__ == "__main__":
    main()
