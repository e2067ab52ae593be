"""Canary and shadow: who is answered by which model, what is kept, and what the console says of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import func, select

from chatbot.model_directory import ACTIVE, load
from chatbot.tokenizer import Tokenizer
from server import database, rollouts
from server.console.accounts import Accounts, Identity
from server.console.rollouts import RolloutRefused, begin, compare, end, plans
from server.protocol import Delta
from server.protocol import Message as Said
from server.rollouts import portion
from server.store_errors import StoreUnavailable
from server.tables import AuditEntry, Generation, Message, ShadowReply
from tests.chat_client import chatting
from tests.console_client import console_over, run
from tests.live_server import LiveServer, serving
from tests.models import seal_tiny

PASSWORD = "correct horse battery"


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    """Two models, `one` in use."""
    found = tmp_path / "models"
    for seed, name in enumerate(("one", "two")):
        seal_tiny(found / name, tiny_tokenizer, seed)
    (found / ACTIVE).write_text("one\n")
    return found


def someone(db: sqlalchemy.Engine) -> Identity:
    return Accounts(db).add("ana", "admin", PASSWORD)


async def until(condition: Callable[[], Awaitable[bool] | bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.05)


async def answers(server: LiveServer, count: int) -> list[tuple[str, str]]:
    """Conversation and model of the replies to as many new visitors."""
    found = []
    for _ in range(count):
        async with chatting(server.address) as client:
            ready = await client.hello()
            await client.say("Hello", decoding="greedy")
            found.append((ready.conversation, (await client.reply()).model or ""))
    return found


def rows(db: sqlalchemy.Engine, query: Any) -> list[Any]:
    with database.reading(db) as connection:
        return list(connection.execute(query).all())


def test_ids_are_spread_evenly_and_always_alike() -> None:

    numbers = [
        portion(uuid.UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128).hex) for n in range(4000)
    ]
    assert 0.18 < sum(number < 0.2 for number in numbers) / 4000 < 0.22
    assert all(0 <= number < 1 for number in numbers)
    assert portion("0" * 32) == 0.0


def test_a_canary_answers_its_share_of_new_conversations_and_no_old_one(folder: Path, tmp_path: Path) -> None:
    one, two = (load(folder / name).fingerprint for name in ("one", "two"))

    async def test(server: LiveServer, db: sqlalchemy.Engine) -> None:
        async with chatting(server.address) as old:
            await old.hello()
            await old.say("Hello", decoding="greedy")
            assert (await old.reply()).model == one
            who = someone(db)
            begin(db, who, "canary", two, 0.5)
            engine = server.server._application._engine
            await until(lambda: engine.speaker_of(two) is not None)
            found = await answers(server, 24)
            assert {model for _, model in found} == {one, two}
            assert all((model == two) == (portion(talk) < 0.5) for talk, model in found)
            await old.say("And again", decoding="greedy")
            assert (await old.reply()).model == one
            told = compare(db, "canary")
            assert told is not None
            assert told.candidate.replies == sum(model == two for _, model in found)
            assert told.live.replies == sum(model == one for _, model in found)
            assert end(db, who, "canary")
            await until(lambda: engine.speaker_of(two) is None)
            assert {model for _, model in await answers(server, 4)} == {one}

    over(folder, tmp_path, test)


def test_a_shadow_is_asked_the_same_and_heard_by_nobody(folder: Path, tmp_path: Path) -> None:
    one, two = (load(folder / name).fingerprint for name in ("one", "two"))

    async def test(server: LiveServer, db: sqlalchemy.Engine) -> None:
        begin(db, someone(db), "shadow", two, 1.0)
        engine = server.server._application._engine
        await until(lambda: engine.speaker_of(two) is not None)
        found = await answers(server, 6)
        assert {model for _, model in found} == {one}
        await until(lambda: len(rows(db, select(ShadowReply.message_id))) == 6)
        kept = rows(
            db, select(ShadowReply.message_id, ShadowReply.model, ShadowReply.text, ShadowReply.logprob)
        )
        said = rows(db, select(Message.id).where(Message.role == "agent"))
        assert {row.message_id for row in kept} == {row.id for row in said}
        assert {row.model for row in kept} == {two}
        # All were asked the same with the same options, so the shadow says the same to all.
        assert len({row.text for row in kept}) == 1
        assert all(row.logprob < 0 for row in kept)
        told = compare(db, "shadow")
        assert told is not None
        assert (told.candidate.replies, told.live.replies) == (6, 6)
        assert len(told.changed) == told.candidate.different == 6

    over(folder, tmp_path, test)


def test_what_a_shadow_said_may_be_lost_in_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The database may be away just then. Nothing of it is left for the event loop to complain of."""
    two = load(folder / "two").fingerprint

    def away(connection: Any, rows: Any) -> Any:
        raise StoreUnavailable("the disk is full")

    async def test(server: LiveServer, db: sqlalchemy.Engine) -> None:
        monkeypatch.setattr(rollouts, "_keep", away)
        begin(db, someone(db), "shadow", two, 1.0)
        engine = server.server._application._engine
        await until(lambda: engine.speaker_of(two) is not None)
        await answers(server, 1)
        await until(lambda: "shadow_lost" in caplog.messages)

    over(folder, tmp_path, test)
    assert not [line for line in caplog.messages if "never retrieved" in line]


def test_a_directory_that_is_gone_for_a_while_ends_no_rollouts_for_good(folder: Path, tmp_path: Path) -> None:
    two = load(folder / "two").fingerprint

    async def test(server: LiveServer, db: sqlalchemy.Engine) -> None:
        who = someone(db)
        application = server.server._application
        followed, engine = application._rollouts, application._engine
        await asyncio.to_thread(folder.rename, tmp_path / "away")
        begin(db, who, "canary", two, 1.0)
        await until(lambda: bool(followed._refused))
        assert end(db, who, "canary")
        await asyncio.to_thread((tmp_path / "away").rename, folder)
        begin(db, who, "canary", two, 1.0)
        await until(lambda: engine.speaker_of(two) is not None)

    over(folder, tmp_path, test)


def over(
    folder: Path, tmp_path: Path, test: Callable[[LiveServer, sqlalchemy.Engine], Awaitable[None]]
) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    with serving(url, folder) as server:
        db = database.connect(url)
        try:
            asyncio.run(test(server, db))  # type: ignore[arg-type]
        finally:
            db.dispose()


def test_there_is_one_of_a_kind_and_all_of_it_is_audited(engine: sqlalchemy.Engine) -> None:
    who = someone(engine)
    plan = begin(engine, who, "canary", "tw-a", 0.1)
    begin(engine, who, "shadow", "tw-b", 1.0)
    with pytest.raises(RolloutRefused, match="canary"):
        begin(engine, who, "canary", "tw-c", 0.2)
    assert plans(engine)["canary"] == plan
    assert end(engine, who, "canary")
    assert not end(engine, who, "canary")
    assert set(plans(engine)) == {"shadow"}
    noted = select(AuditEntry.action, AuditEntry.subject).where(AuditEntry.action.like("canary%"))
    assert rows(engine, noted.order_by(AuditEntry.id)) == [("canary.begin", "tw-a"), ("canary.end", "tw-a")]
    begin(engine, who, "canary", "tw-c", 0.2)
    told = compare(engine, "canary")
    assert told is not None
    assert told.candidate.replies == 0


def test_the_routes_say_what_goes_on_and_admins_decide(folder: Path, tmp_path: Path) -> None:
    two = load(folder / "two").fingerprint

    async def test(console: Any) -> None:
        admin, reviewer = await console.sign_in("admin"), await console.sign_in("reviewer")
        path = "/api/operator/rollouts"
        given = {"kind": "canary", "model": two, "share": 0.25}
        assert (await reviewer.post(path, json=given)).status_code == 403
        assert (await admin.post(path, json={**given, "model": "tw-none"})).status_code == 404
        assert (await admin.post(path, json={**given, "share": 1.5})).status_code == 400
        one = load(folder / "one").fingerprint
        assert (await admin.post(path, json={**given, "model": one})).status_code == 409
        assert (await admin.post(path, json=given)).status_code == 201
        assert (await admin.post(path, json=given)).status_code == 409
        told = (await reviewer.get(path)).json()
        assert told["shadow"] is None
        assert (told["canary"]["model"], told["canary"]["share"]) == (two, 0.25)
        figures = (await reviewer.get(f"{path}/canary/comparison")).json()
        assert figures["candidate"]["replies"] == 0
        assert (await reviewer.get(f"{path}/shadow/comparison")).status_code == 404
        assert (await reviewer.delete(f"{path}/canary")).status_code == 403
        assert (await admin.delete(f"{path}/canary")).status_code == 204
        assert (await admin.delete(f"{path}/canary")).status_code == 404

    run(console_over(tmp_path, folder), test)


# --- abstention -------------------------------------------------------------------------------------------


def calibrated(bias: float) -> dict[str, Any]:
    """Metrics of a model that is always as sure as the bias says."""
    return {
        "confidence": {
            "weights": [0.0, 0.0, 0.0, 0.0],
            "bias": bias,
            "acceptable": 40.0,
            "fitted": 1,
            "judged": 1,
            "share": 0.5,
            "error": 0.0,
            "area": 0.5,
            "curve": [{"threshold": 0.0, "coverage": 1.0, "risk": 0.5}],
        }
    }


@pytest.mark.parametrize(("bias", "abstains"), [(-1.0, True), (1.0, False)])
def test_under_the_threshold_the_bot_says_so_and_asks_for_a_person(
    tmp_path: Path, tiny_tokenizer: Tokenizer, bias: float, abstains: bool
) -> None:
    models, url = tmp_path / "models", f"sqlite:///{tmp_path / 'turnwise.db'}"
    seal_tiny(models / "one", tiny_tokenizer, 1, metrics=calibrated(bias))

    async def test(server: LiveServer) -> tuple[str, Any, Any]:
        async with asyncio.timeout(60), chatting(server.address) as client:
            ready = await client.hello()
            await client.say("Hello", decoding="greedy", min_tokens=4)
            pieces = []
            while not (isinstance(message := await client.receive(), Said) and message.role == "agent"):
                if isinstance(message, Delta):
                    pieces.append(message.text)
            after = await client.receive() if abstains else None
            return ready.conversation, message, ("".join(pieces), after)

    with serving(url, models, abstain_below=0.5, abstain_words="Not sure.") as server:
        talk, message, (streamed, after) = asyncio.run(test(server))
        db = database.connect(url)
        [made] = rows(db, select(Generation.confidence, Generation.withheld, Generation.finish_reason))
        [waiting] = rows(db, select(func.count()).where(Message.conversation_id == talk))
        db.dispose()
        assert waiting[0] == 2
        assert streamed == ""
        if abstains:
            assert (message.text, message.finish_reason) == ("Not sure.", "abstained")
            assert (after.type, after.owner, after.waiting) == ("owner", "bot", True)
            assert made.withheld
            assert made.confidence < 0.5
        else:
            assert message.finish_reason != "abstained"
            assert message.text not in ("", "Not sure.")
            assert made.withheld is None
            assert made.confidence > 0.5
