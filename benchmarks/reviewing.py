"""``python -m benchmarks.reviewing``: what the console adds to a reviewer's time, by keyboard alone.

A server process with its default settings and the shipped model, over a fresh SQLite file. People have
chatted with it; a reviewer in a real Chromium goes through the queue: reads for a moment, gives each reply a
verdict by a key, corrects one now and then, and presses the key for the next conversation. Every moment is
taken in the page.

    next      from the key that ends a review until the next conversation is drawn: verdicts are saved, this
              conversation is put away, another is claimed, fetched and shown
    verdict   from the key of a verdict until it is drawn

Of each: the half and the 95 of 100 that took less, in milliseconds. The reference is a tenth of a review
where 360 are done in an hour. `an_hour` is how many the same run would do of nothing but keys, without
reading.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Page, sync_playwright
from sqlalchemy import func, select, update

from benchmarks.figures import report
from benchmarks.load import Chat, percentile, server_process
from benchmarks.serving import LIMITS, TEXTS
from server import database
from server.console.accounts import Accounts
from server.console.review_queue import QUIET
from server.database import reading, writing
from server.tables import Conversation

LIMIT_MS: Final = 1000.0
CHROMIUM: Final = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
OPTIONS: Final[dict[str, Any]] = {"max_tokens": 24}
TURNS: Final = 3
"""Turns of a visitor in a conversation."""
AT_ONCE: Final = 8
CORRECTED: Final = 4
"""Every so manieth conversation has a reply corrected."""
PATIENCE_MS: Final = 60_000

WATCH: Final = """(what) => {
  const before = document.querySelector(".conversation");
  const drawn = {
    next: () => document.querySelector(".conversation") !== before
      && document.querySelector(".turn.selected") !== null,
    verdict: () => [...document.querySelectorAll(".verdict [aria-pressed=true]")].length > judged,
  };
  const judged = document.querySelectorAll(".verdict [aria-pressed=true]").length;
  window.taken = new Promise((done) => {
    addEventListener("keydown", () => {
      const began = performance.now();
      const look = () => drawn[what]()
        ? requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)))
        : requestAnimationFrame(look);
      look();
    }, { once: true, capture: true });
  });
}"""
"""Promises `taken`: milliseconds from the next key to the first frame after that in which it is drawn."""


@dataclass
class Taken:
    """Milliseconds of each. keys: seconds of all reviews without the reading."""

    next: list[float] = field(default_factory=list)
    verdict: list[float] = field(default_factory=list)
    keys: float = 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reviewing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--conversations", type=int, default=40)
    parser.add_argument("--read", type=float, default=1.0, help="seconds before the first key of each")
    parser.add_argument("--models", type=Path, metavar="DIR", help="default: the model that ships")
    args = parser.parse_args(arguments)
    models = () if args.models is None else ("--models", str(args.models))
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'turnwise.db'}"
        database.upgrade(url)
        password = secrets.token_urlsafe(16)
        db = database.connect(url)
        Accounts(db).add("reviewer", "reviewer", password)
        with server_process(url, "--threads", "1", *LIMITS, *models) as server:
            asyncio.run(chatted(server.port, args.conversations + 1))  # one more, to be shown at the end
            with writing(db) as connection:  # nobody's conversation is reviewed while it goes on
                quiet = datetime.now(UTC) - 2 * QUIET - timedelta(minutes=1)
                connection.execute(update(Conversation).values(updated_at=quiet))
            found = reviewed(f"http://127.0.0.1:{server.port}", password, args.conversations, args.read)
        with reading(db) as connection:
            done = connection.scalar(select(func.count()).where(Conversation.reviewed_at.is_not(None)))
        db.dispose()
        if done != args.conversations:
            raise RuntimeError(f"{done} of {args.conversations} reviews are in the database")
    tell(found)


async def chatted(port: int, conversations: int) -> None:
    """So many visitors have said something, and were answered."""
    places = asyncio.Semaphore(AT_ONCE)

    async def visitor(number: int) -> None:
        async with places:
            chat = await Chat.opened(port)
            for turn in range(TURNS):
                await chat.say(TEXTS[(number + turn) % len(TEXTS)], OPTIONS)
            chat.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(conversations):
            tasks.create_task(visitor(number))


def reviewed(address: str, password: str, conversations: int, read: float) -> Taken:
    """So many of the queue, one after the other."""
    found = Taken()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(PATIENCE_MS)
        sign_in(page, address, password)
        for number in range(conversations):
            page.wait_for_timeout(1000 * read)
            began = time.perf_counter()
            judge(page, found, correcting=number % CORRECTED == CORRECTED - 1)
            found.next.append(timed(page, "next", "d"))
            found.keys += time.perf_counter() - began
        browser.close()
    return found


def sign_in(page: Page, address: str, password: str) -> None:
    page.goto(f"{address}/operator/review")
    page.get_by_label("Name").fill("reviewer")
    page.get_by_label("Password", exact=True).fill(password)
    page.keyboard.press("Enter")
    page.locator(".turn.selected").wait_for()


def judge(page: Page, found: Taken, *, correcting: bool) -> None:
    """Each reply is good; with `correcting`, the last one is not, and is written anew."""
    replies = page.locator(".turns > .turn.bot").count()
    for number in range(replies):
        if correcting and number == replies - 1:
            page.keyboard.press("c")
            page.keyboard.type("I am sorry, I cannot help with that.")
            page.keyboard.press("Control+Enter")
            page.locator(".correction").wait_for()
        else:
            found.verdict.append(timed(page, "verdict", "g"))


def timed(page: Page, what: str, key: str) -> float:
    """Milliseconds from the key until it is drawn."""
    page.evaluate(WATCH, what)
    page.keyboard.press(key)
    return float(page.evaluate("() => window.taken"))


def tell(found: Taken) -> None:
    of = "a tenth of a review at 360 an hour"
    for name, times in (("next", found.next), ("verdict", found.verdict)):
        for of_100 in (50, 95):
            more = {"reviews": len(found.next), "an_hour": round(3600 * len(found.next) / found.keys)}
            report(f"reviewing_{name}_p{of_100}", percentile(times, of_100), "ms", LIMIT_MS, of, **more)


if __name__ == "__main__":
    main()
