"""The console's stream of changes, where the changes are made on other servers of the database."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from server.console.live import Live
from server.console.live_elsewhere import Elsewhere, read
from server.database import connect, writing
from server.offload import Offload
from server.session import Judge
from server.store import Store, StoreUnavailable
from server.tables import AuditEntry
from tests.console_client import TestConsole, console_over, run
from tests.scripted_batcher import parrot
from tests.test_console_takeover import come, speak, take


def test_the_console_hears_of_every_change_on_another_server(database_url: str, tiny_model_dir: Path) -> None:
    async def test() -> None:
        async with (
            console_over(models=tiny_model_dir, url=database_url, script=parrot) as here,
            console_over(models=tiny_model_dir, url=database_url, script=parrot) as there,
        ):
            ann, bob = await here.sign_in("reviewer", "ann"), await there.sign_in("reviewer", "bob")
            visitor, ready = await come(there)
            path = f"/api/operator/conversations/{ready.conversation}"
            async with here.stream(ann, "/api/operator/events") as stream:

                async def hears(what: str) -> None:
                    """On PostgreSQL the server looks by itself."""
                    if here.db.dialect.name == "sqlite":
                        for _ in range(2):
                            await here.desk.elsewhere.look()
                    told = {"conversation": ready.conversation, "what": what}
                    while json.loads((await stream.event())[1]) != told:
                        pass

                await visitor.say("hello")
                reply = await visitor.reply()
                await hears("replied")
                await visitor.conversations.judge(visitor.seat, Judge(reply.message, "up", None))
                await hears("rated")
                await visitor.conversations.summon(visitor.seat)
                await hears("waiting")
                assert (await take(bob, ready.conversation)).status_code == 200
                await hears("owner")
                await speak(bob, ready.conversation, "Here I am.")
                await hears("said")
                assert (await bob.post(f"{path}/close")).status_code == 204
                await hears("closed")
                assert (await bob.post(f"{path}/review/done")).status_code == 204
                await hears("reviewed")

    asyncio.run(test())


def test_what_a_server_does_itself_is_told_once(database_url: str, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        visitor, ready = await come(console)
        feed = console.desk.live.feed()
        await console.desk.elsewhere.look()
        await visitor.say("hello")
        reply = await visitor.reply()
        await visitor.conversations.judge(visitor.seat, Judge(reply.message, "up", None))
        await visitor.conversations.summon(visitor.seat)
        await take(ann, ready.conversation)
        await ann.post(f"/api/operator/conversations/{ready.conversation}/close")
        told = [(await feed.get() or ("", ""))[1] for _ in range(len(feed))]
        assert sorted(told) == ["closed", "owner", "rated", "replied", "said", "waiting"]
        for _ in range(3):
            await console.desk.elsewhere.look()
        assert len(feed) == 0

    run(console_over(url=database_url, models=tiny_model_dir, script=parrot), test)


class Lookout:
    """Two servers' worth of a database: what is written to it, and what the streams of another one hear."""

    def __init__(self, db: Engine) -> None:
        self.db, self.live = db, Live()
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        self.clock = self.now
        self.elsewhere = Elsewhere(db, self.live, Offload(1, "test"), now=lambda: self.now)
        self.store = Store(db, clock=lambda: self.clock)
        self.feed = self.live.feed()

    def say(self, late: float = 0.0, talk: str | None = None) -> str:
        """Something was said, by the clock of another server, so many seconds ago."""
        self.clock = self.now - timedelta(seconds=late)
        talk = talk or self.store.open_conversation(self.store.new_visitor().visitor_id)
        self.store.add_user_turn(talk, uuid.uuid4().hex, "hello", {})
        return talk

    def hears(self, seconds: float = 2.0) -> list[tuple[str, str]]:
        """What looks have told, one a second."""

        async def look() -> list[tuple[str, str]]:
            for _ in range(round(seconds)):
                self.now += timedelta(seconds=1)
                await self.elsewhere.look()
            return [await self.feed.get() or ("", "") for _ in range(len(self.feed))]

        return asyncio.run(look())


def test_what_was_committed_late_or_by_another_clock_is_heard_once(engine: Engine) -> None:
    lookout = Lookout(engine)
    assert lookout.hears() == []
    talk = lookout.say(late=8)
    assert lookout.hears() == [(talk, "said")]
    assert lookout.hears(20) == []
    ahead = lookout.say(late=-4, talk=talk)
    assert lookout.hears() == [(ahead, "said")]
    with writing(engine) as connection:
        deed = {"at": lookout.now + timedelta(seconds=4), "action": "conversation.take", "subject": talk}
        connection.execute(insert(AuditEntry).values(deed))
    assert lookout.hears() == [(talk, "owner")]
    assert lookout.hears(30) == []
    lookout.say(late=16, talk=talk)
    assert lookout.hears() == []  # whoever wrote that gave up long ago


def test_the_last_stream_may_end_during_a_look(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    lookout = Lookout(engine)
    talk = lookout.say()
    with writing(engine) as connection:
        deed = {"at": lookout.now, "action": "conversation.take", "subject": talk}
        connection.execute(insert(AuditEntry).values(deed))
    assert lookout.hears(1) == []

    def leave(*arguments: Any) -> Any:
        lookout.live.forget(lookout.feed)
        return read(*arguments)

    monkeypatch.setattr("server.console.live_elsewhere.read", leave)
    assert lookout.hears(1) == []


def test_a_look_is_bounded_and_nobody_looks_for_nobody(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookout = Lookout(engine)
    monkeypatch.setattr("server.console.live_elsewhere.MOST", 2)
    talks = [lookout.say(late=late) for late in (3, 2, 1)]
    assert lookout.hears() == [(talk, "said") for talk in talks[1:]]
    away = connect(f"sqlite:///{tmp_path / 'none.db'}")
    live = Live()
    elsewhere = Elsewhere(away, live, Offload(1, "test"))
    asyncio.run(elsewhere.look())
    live.feed()
    with pytest.raises(StoreUnavailable):
        asyncio.run(elsewhere.look())
    away.dispose()
