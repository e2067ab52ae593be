"""Another model takes over while people are talking: no reply fails, and each is of the model it names."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from chatbot.confidence import KEY, Calibration
from chatbot.model_directory import ACTIVE, ModelDirectoryError, SealedModel, load
from chatbot.tokenizer import Tokenizer
from server import database, models
from server.engine import Engine
from server.hot_swap import HotSwap
from server.speaker import speaker_of
from server.verify import Verifier
from server.worker import Steps
from tests.chat_client import ChatClient, chatting
from tests.databases import upgrade
from tests.live_server import server_process, serving
from tests.models import seal_tiny
from tests.scripted_batcher import ScriptedBatcher, parrot

CHATS = 8


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    """Two models, `one` in use."""
    found = tmp_path / "models"
    for seed, name in enumerate(("one", "two")):
        seal_tiny(found / name, tiny_tokenizer, seed)
    (found / ACTIVE).write_text("one\n")
    return found


async def talk_until(client: ChatClient, model: str) -> list[str]:
    """Say one thing after another until `model` replies; the models of all replies. No error may come."""
    seen: list[str] = []
    while seen[-1:] != [model]:
        await client.say("Hello", decoding="sample", min_tokens=6)
        reply = await client.reply()
        seen.append(reply.model or "")
    return seen


def version(address: str) -> str:
    with urllib.request.urlopen(f"{address}/version", timeout=20) as response:
        return str(json.load(response)["model"])


def test_promotion_and_rollback_under_load_lose_no_reply(folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    one, two = (load(folder / name).fingerprint for name in ("one", "two"))
    conversations: list[str] = []

    async def test(address: str) -> None:
        async with asyncio.timeout(90):
            await asyncio.gather(*(chat(address, number) for number in range(CHATS)))

    async def chat(address: str, number: int) -> None:
        async with chatting(address) as client:
            conversations.append((await client.hello()).conversation)
            assert await talk_until(client, one) == [one]
            if number == 0:
                await asyncio.to_thread(models.promote, folder, "two")
            assert set(await talk_until(client, two)) <= {one, two}
            if number == 0:
                await asyncio.to_thread(models.rollback, folder)
            assert set(await talk_until(client, one)) <= {one, two}

    with serving(url, folder) as server:
        asyncio.run(test(server.address))
        assert version(server.address) == one
    db = database.connect(url)
    found = [finding for each in conversations for finding in Verifier(db, folder).verify(each)]
    db.dispose()
    assert {finding.model for finding in found} == {one, two}
    assert {finding.verdict for finding in found} <= {"exact", "within tolerance"}


def test_a_process_follows_and_is_not_killed_by_sighup(folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    two = load(folder / "two").fingerprint

    async def talk(address: str) -> None:
        async with asyncio.timeout(60), chatting(address) as client:
            await client.hello()
            await talk_until(client, two)
        async with chatting(address) as client:
            assert (await client.hello()).model == two

    with server_process(url, folder) as server:
        models.promote(folder, "two")
        server.process.send_signal(signal.SIGHUP)
        asyncio.run(talk(server.address))
        assert server.terminate() == 0


def test_a_model_that_cannot_be_used_changes_nothing(
    folder: Path, tiny_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = load(folder / "one")
    seal_tiny(folder / "three", tiny_tokenizer, 3)
    tried: list[str] = []

    def make_batcher(model: SealedModel) -> Steps:
        tried.append(model.path.name)
        raise ModelDirectoryError(model.path, "it stutters")

    async def test() -> None:
        engine = Engine(lambda: ScriptedBatcher(parrot), capacity=1, speaker=speaker_of(bundle, 8))
        engine.start()
        swap = HotSwap(engine, folder, 8, lambda model: partial(make_batcher, model))
        (folder / "two" / "config.json").write_text("{}")
        for name in ("two", "three", "nobody"):
            (folder / ACTIVE).write_text(f"{name}\n")
            for _ in range(2):  # it is refused once, not every second
                await swap.look()
        assert engine.speaker.fingerprint == bundle.fingerprint
        await engine.check()
        await engine.stop()

    with caplog.at_level(logging.ERROR, "server"):
        asyncio.run(test())
    told = [record for record in caplog.records if record.getMessage() == "model_refused"]
    assert [
        reason in record.__dict__["fields"]["reason"]
        for reason, record in zip(("config.json", "three: it stutters", "'nobody'"), told, strict=True)
    ] == [True] * 3
    assert tried == ["three"]


def test_the_same_model_with_a_calibration_takes_over(folder: Path, tiny_tokenizer: Tokenizer) -> None:
    """`training calibrate` seals it anew: its fingerprint stays, and its replies get a confidence."""
    bundle = load(folder / "one")
    figures = {"acceptable": 40, "fitted": 1, "judged": 1, "share": 0.5, "error": 0, "area": 0.5, "curve": ()}
    sure = Calibration.model_validate({"weights": (0.0, 0.0, 0.0, 0.0), "bias": 1.0, **figures})
    metrics = {KEY: sure.model_dump(mode="json")}
    assert seal_tiny(folder / "calibrated", tiny_tokenizer, 0, metrics=metrics) == bundle.fingerprint

    async def test() -> None:
        engine = Engine(lambda: ScriptedBatcher(parrot), capacity=1, speaker=speaker_of(bundle, 8))
        engine.start()
        swap = HotSwap(engine, folder, 8, lambda _: lambda: ScriptedBatcher(parrot))
        await swap.look()
        seen = [engine.speaker.calibration]
        models.promote(folder, "calibrated")
        await swap.look()
        assert [*seen, engine.speaker.calibration] == [None, sure]
        await engine.stop()

    asyncio.run(test())
