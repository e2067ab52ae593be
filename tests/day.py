"""A day of the review loop, as its people live it: visitors chat over sockets, reviewers judge and correct
over HTTP, an owner retrains, promotes and takes back. The server is a process of its own over an SQLite file.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import httpx
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import aliased

from chatbot.model_directory import seal
from chatbot.options import DecodingOptions
from chatbot.transcripts import Transcript, write_transcripts
from server import database
from server.console.accounts import Accounts, Role
from server.console.review_queue import QUIET
from server.database import reading, writing
from server.protocol import Message, Rate, Rated
from server.tables import Conversation, Generation, Verdict
from server.tables import Message as Row
from server.verify import Verifier
from tests.chat_client import ChatClient, chatting
from tests.console_client import PASSWORD
from tests.databases import upgrade
from tests.live_server import server_process
from tests.shop import Shop
from tests.small import SMALL, order
from training.config import TrainConfig
from training.train import train

API: Final = "/api/operator"
PEOPLE: Final[dict[str, Role]] = {"olga": "admin", "ann": "reviewer", "bob": "reviewer"}
AT_ONCE: Final = 8
"""Visitors who chat at the same time."""
PATIENCE: Final = 3000.0
"""Seconds for a retraining."""

Judge = Callable[[str, str], dict[str, Any] | None]
"""What a reviewer says of a reply: `judge(what it answers, the reply)` is a verdict's body, or None."""


# --- a coffee shop that is asked questions ----------------------------------------------------------------

FACTS: Final = {
    "wifi": "Yes, the wifi is free.",
    "parking": "You can park behind the shop.",
    "a terrace": "The terrace is on the roof.",
    "cake": "Cake is three euros a slice.",
    "a toilet": "The toilet is downstairs.",
}
"""What the bot of the shop has learned to tell."""
THING: Final = "oat milk"
ANSWER: Final = "Oat milk is free."
"""What it has not: reviewers have to teach it."""
ASKED: Final = (
    "Do you have {}?",
    "Is there {}?",
    "Have you got {}?",
    "I am looking for {}.",
    "What about {}?",
    "I need {}, do you have that?",
)
IN_OTHER_WORDS: Final = (
    "Can I find {} here?",
    "Do you offer {} too?",
    "Tell me, is there {}?",
    "Would you happen to have {}?",
    "How about {}?",
)
"""Ways to ask, for what the bot knows in all of them, and for what it does not know in the first only."""


def _talk(rng: random.Random, number: int) -> Transcript:
    """An order, or the beginning of one, and questions."""
    turns = [turn.model_dump(include={"role", "text"}) for turn in order(rng, number).turns]
    if rng.random() < 0.25:
        turns = []
    for _ in range(rng.choice([0, 1, 1, 2]) if turns else 1):
        thing = rng.choice(list(FACTS))
        turns.append({"role": "user", "text": rng.choice([*ASKED, *IN_OTHER_WORDS]).format(thing)})
        turns.append({"role": "agent", "text": FACTS[thing]})
    return Transcript.model_validate({"id": f"talk-{number}", "turns": turns})


def talks(count: int, seed: int) -> list[Transcript]:
    rng = random.Random(seed)
    return [_talk(rng, number) for number in range(count)]


def user_turns(transcript: Transcript) -> list[str]:
    return [turn.text for turn in transcript.turns if turn.role == "user"]


def open_shop(place: Path) -> Shop:
    """Train the shop's model, which takes some seconds; it knows its talks by heart, nearly."""
    write_transcripts(place / "old.jsonl.gz", talks(300, seed=1))
    write_transcripts(place / "talks.jsonl.gz", talks(60, seed=2))
    sizes = {"embedding_size": 32, "encoder_size": 16, "state_size": 32, "hidden_size": 32}
    spans = {"vocab_size": 600, "memory_tokens": 48, "max_turn_tokens": 64}
    config = TrainConfig.model_validate(
        {
            "model": SMALL.model_dump() | sizes | spans,
            "batch_tokens": 1500,
            "learning_rate": 0.01,
            "warmup_steps": 10,
            "max_steps": 150,
            "evaluate_every": 150,
            "precision": "fp32",
            "device": "cpu",
        }
    )
    trained = train([place / "old.jsonl.gz"], [], place / "base.run", config, quiet=True)
    fingerprint = seal(
        place / "base",
        model=trained.model,
        tokenizer=trained.tokenizer,
        defaults=DecodingOptions(max_tokens=40),
        metrics={},
        card="# The shop's\n",
    )
    return Shop(place, place / "old.jsonl.gz", place / "talks.jsonl.gz", place / "base", fingerprint)


# --- the server and its people ----------------------------------------------------------------------------


@dataclass
class Desk:
    """A running server with an admin, `owner`, and two reviewers who are signed in to it."""

    address: str
    url: str
    db: Engine
    models: Path
    owner: httpx.AsyncClient
    reviewers: tuple[httpx.AsyncClient, httpx.AsyncClient]

    def manifest(self, model: str) -> dict[str, Any]:
        """Of the candidate with this name: what it has learned."""
        found: dict[str, Any] = json.loads((self.models / f"{model}.manifest.json").read_text("utf-8"))
        return found

    async def version(self) -> str:
        """Fingerprint of the model that answers."""
        return str((await self.owner.get("/version")).json()["model"])


@contextmanager
def _process(url: str, told: dict[str, Any]) -> Iterator[str]:
    flags = ["--jobs-dir", str(told["jobs_dir"]), "--job-threads", str(told["job_threads"])]
    for name in ("replay_files", "dev_files"):
        flags += [f"--{name.replace('_', '-')}", ",".join(map(str, told[name]))]
    with server_process(url, told["models"], *flags, "--device", "cpu") as server:
        yield server.address
        assert server.process.poll() is None, "the server has not lived through the day"


@asynccontextmanager
async def opened(folder: Path, told: dict[str, Any]) -> AsyncIterator[Desk]:
    """told: settings of the server, as `Shop.settings` gives them."""
    url = f"sqlite:///{folder / 'turnwise.db'}"
    upgrade(url)
    db = database.connect(url)
    accounts = Accounts(db)
    for name, role in PEOPLE.items():
        accounts.add(name, role, PASSWORD)
    try:
        with _process(url, told) as address:
            async with AsyncExitStack() as stack:
                olga, ann, bob = [
                    await stack.enter_async_context(_signed_in(address, name)) for name in PEOPLE
                ]
                yield Desk(address, url, db, told["models"], olga, (ann, bob))
    finally:
        db.dispose()


@asynccontextmanager
async def _signed_in(address: str, name: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=address, headers={"origin": address}, timeout=60) as client:
        answer = await client.post(f"{API}/login", json={"name": name, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        client.headers["x-csrf-token"] = answer.json()["csrf"]
        yield client


# --- visitors ---------------------------------------------------------------------------------------------


@dataclass
class Visit:
    """A visitor's conversation: what was said, and the reply to each."""

    token: str = ""
    conversation: str = ""
    said: list[str] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [reply.text for reply in self.replies]


async def visit(
    address: str,
    turns: Sequence[str],
    *,
    token: str | None = None,
    rate: Callable[[str, str], Literal["up", "down"] | None] = lambda *_: None,
    **options: Any,
) -> Visit:
    """One conversation on a socket of its own. rate: what the visitor thinks of a reply, by what was said."""
    async with chatting(address) as client:
        ready = await client.hello(**({"token": token} if token else {}))
        found = Visit(ready.token or token or "", ready.conversation)
        for text in turns:
            reply = await _say(client, text, **options)
            found.said.append(text)
            found.replies.append(reply)
            rating = rate(text, reply.text)
            if rating is not None:
                await client.send(Rate(message=reply.message, rating=rating))
                await client.until(Rated)
    return found


async def _say(client: ChatClient, text: str, **options: Any) -> Message:
    """Its reply, and there is but one of it."""
    accepted = await client.say(text, **options)
    reply = await client.reply()
    assert reply.answers == accepted.message
    return reply


async def visits(address: str, all_turns: Sequence[Sequence[str]], **how: Any) -> list[Visit]:
    """Each from another visitor, some at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(turns: Sequence[str]) -> Visit:
        async with places:
            return await visit(address, turns, **how)

    return list(await asyncio.gather(*map(one, all_turns)))


async def ask(address: str, all_turns: Sequence[Sequence[str]], **options: Any) -> list[Visit]:
    """The same questions to whichever model answers now: one visitor after the other, with the same seeds, so
    that the same model says the same.
    """
    return [await visit(address, turns, seed=number, **options) for number, turns in enumerate(all_turns, 1)]


# --- reviewers --------------------------------------------------------------------------------------------


def an_hour_later(db: Engine) -> None:
    """Nobody's conversation is given to a reviewer while they may still be writing."""
    with writing(db) as connection:
        connection.execute(
            update(Conversation).values(updated_at=datetime.now(UTC) - QUIET - timedelta(hours=1))
        )


async def review(client: httpx.AsyncClient, judge: Judge) -> list[str]:
    """One after the other, as the queue gives them out, until nothing is left; the conversations."""
    seen: list[str] = []
    while True:
        given = (await client.post(f"{API}/review/next", json={})).json()["conversation"]
        if given is None:
            return seen
        seen.append(given)
        await look_at(client, given, judge)


async def look_at(client: httpx.AsyncClient, conversation: str, judge: Judge) -> None:
    """Judge the bot's replies of a conversation, and be done with it."""
    found = (await client.get(f"{API}/conversations/{conversation}")).json()
    said = {message["id"]: message["text"] for message in found["messages"]}
    for message in found["messages"]:
        if message["author"] == "bot" and not message["superseded"]:
            verdict = judge(said[message["answers"]], message["text"])
            if verdict is not None:
                kept = await client.put(f"{API}/messages/{message['id']}/verdict", json=verdict)
                assert kept.status_code == 200, kept.text
    done = await client.post(f"{API}/conversations/{conversation}/review/done")
    assert done.status_code == 204, done.text


def correcting(asks: Callable[[str], bool], answer: str, most: int, good: Judge = lambda *_: None) -> Judge:
    """Corrects replies to what `asks` to `answer`, so many; has the others judged by `good`."""
    left = most

    def judge(said: str, reply: str) -> dict[str, Any] | None:
        nonlocal left
        if not asks(said):
            return good(said, reply)
        if left == 0:
            return None
        left -= 1
        return {"verdict": "bad", "corrected": answer}

    return judge


# --- the owner --------------------------------------------------------------------------------------------


async def retrained(client: httpx.AsyncClient, settings: dict[str, Any]) -> dict[str, Any]:
    """Ask for a retraining and wait for its end; the job."""
    asked = await client.post(f"{API}/jobs", json={"settings": settings})
    assert asked.status_code == 200, asked.text
    async with asyncio.timeout(PATIENCE):
        while True:
            found: dict[str, Any] = (await client.get(f"{API}/jobs/{asked.json()['id']}")).json()
            if found["state"] not in ("queued", "running"):
                return found
            await asyncio.sleep(0.2)


async def changed_under_load(
    desk: Desk, change: Callable[[], Any], after: str, talks: Sequence[Sequence[str]]
) -> list[Visit]:
    """Visitors talk, going round in their turns, while the model in use is changed to `after`; they go on
    until it has answered each of them twice.
    """
    begun = [asyncio.Event() for _ in talks]

    async def talk(number: int) -> Visit:
        async with chatting(desk.address) as client:
            ready = await client.hello()
            found = Visit(ready.token, ready.conversation)
            while [reply.model for reply in found.replies[-2:]] != [after, after]:
                text = talks[number][len(found.said) % len(talks[number])]
                found.said.append(text)
                found.replies.append(await _say(client, text))
                if len(found.said) == 2:
                    begun[number].set()
            told = [m.answers for m in client.seen if isinstance(m, Message) and m.role == "agent"]
            assert len(told) == len(set(told)) == len(found.said), "a reply came twice, or not at all"
        return found

    async def owner() -> None:
        for event in begun:
            await event.wait()
        answer = await change()
        assert answer.status_code == 200, answer.text
        assert answer.json()["fingerprint"] == after

    async with asyncio.timeout(180), asyncio.TaskGroup() as group:
        tasks = [group.create_task(talk(number)) for number in range(len(talks))]
        group.create_task(owner())
    return [task.result() for task in tasks]


# --- what there is to see afterwards ----------------------------------------------------------------------


def replies_of(db: Engine, conversation: str) -> Counter[str]:
    """How many replies each turn of the visitor has in the database, by message."""
    said = select(Row.id).where(Row.conversation_id == conversation, Row.role == "user")
    answered = (
        select(Row.answers, func.count())
        .join(Generation, Generation.message_id == Row.id)
        .where(Row.conversation_id == conversation)
        .group_by(Row.answers)
    )
    with reading(db) as connection:
        found = Counter(dict.fromkeys(connection.scalars(said), 0))
        found.update({str(message): count for message, count in connection.execute(answered).all()})
    return found


def corrected_questions(db: Engine) -> list[str]:
    """What visitors had said where a reply was corrected."""
    asked, reply = aliased(Row), aliased(Row)
    query = (
        select(asked.text)
        .join(reply, reply.answers == asked.id)
        .join(Verdict, Verdict.message_id == reply.id)
        .where(Verdict.corrected.is_not(None))
    )
    with reading(db) as connection:
        return list(connection.scalars(query))


def verified(desk: Desk, found: Sequence[Visit]) -> Counter[str]:
    """What comes of making all replies again, as `python -m server verify` does it."""
    verifier = Verifier(desk.db, desk.models)
    return Counter(finding.verdict for one in found for finding in verifier.verify(one.conversation))


def lineages(manifest: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The replies of each reviewed conversation in a manifest, by its id."""
    return {line["id"]: line["replies"] for line in manifest["conversations"] if line["part"] == "reviewed"}


class Clock:
    """Seconds of each part of a day."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part], self._last = round(now - self._last, 1), now
