"""The server as a process: how it starts, how it is told to stop, and what is left when it is killed."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import uuid
from pathlib import Path

import pytest
import torch

from server import database, logs
from server.__main__ import main
from server.app import allow_sockets, listen
from server.engine import Engine, EngineUnhealthy
from server.memory import give_back_memory
from server.protocol import Message, Ready
from server.store import Store
from tests.chat_client import ChatClient, chatting, run
from tests.live_server import server_process

LONG = {"decoding": "sample", "min_tokens": 256, "max_tokens": 256}
"""Options of a reply that takes long enough to be interrupted."""


async def begin(client: ChatClient) -> str:
    """Say something, and wait until the first words of the reply are there; what was said."""
    text = f"question {uuid.uuid4().hex}"
    await client.say(text, text, **LONG)
    await client.first_words()
    return text


async def resume(address: str, ready: Ready) -> tuple[tuple[Message, ...], Message]:
    """What is there of a conversation, and the reply to its last turn."""
    async with chatting(address) as client:
        again = await client.hello(token=ready.token, conversation=ready.conversation)
        last = again.messages[-1]
        return again.messages, last if last.role == "agent" else await client.reply()


def test_killed_in_mid_reply_it_loses_no_acknowledged_message_and_answers_later(
    database_url: str, tiny_model_dir: Path
) -> None:
    begun: list[tuple[Ready, str]] = []

    with server_process(database_url, tiny_model_dir) as server:

        async def before() -> None:
            async with chatting(server.address) as first, chatting(server.address) as second:
                readies = [await first.hello(), await second.hello()]
                texts = await asyncio.gather(begin(first), begin(second))
                server.process.kill()
                await asyncio.gather(first.closed(), second.closed())
                begun.extend(zip(readies, texts, strict=True))

        run(before)

    store = Store(db := database.connect(database_url))
    kept = [store.messages(ready.conversation) for ready, _ in begun]
    db.dispose()
    assert [messages[0].text for messages in kept] == [text for _, text in begun]
    assert any(len(messages) == 1 for messages in kept), "killed too late: both replies were done"

    with server_process(database_url, tiny_model_dir) as server:

        async def after() -> None:
            outcomes = await asyncio.gather(*(resume(server.address, ready) for ready, _ in begun))
            for (ready, text), (messages, reply) in zip(begun, outcomes, strict=True):
                assert (messages[0].text, messages[0].seq) == (text, 1)
                assert (reply.seq, reply.answers) == (2, messages[0].message)
                async with chatting(server.address) as client:
                    await client.hello(token=ready.token, conversation=ready.conversation, last_seq=2)
                    again = await client.say(text, text, **LONG)
                    assert (again.message, again.seq) == (messages[0].message, 1)
                    assert await client.expect(Message) == reply

        run(after)


def test_told_to_stop_it_finishes_what_it_began_and_ends_well(tmp_path: Path, tiny_model_dir: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    database.upgrade(url)
    with server_process(url, tiny_model_dir) as server:

        async def test() -> None:
            async with chatting(server.address) as client:
                ready = await client.hello()
                await begin(client)
                assert server.resident_kilobytes < 550_000
                ending = asyncio.create_task(asyncio.to_thread(server.terminate))
                reply = await client.reply()
                assert reply.text == client.streamed(reply.reply or "")
                assert await client.closed() == 1001
                assert await ending == 0
                assert any(message.type == "going_away" for message in client.seen)
            store = Store(db := database.connect(url))
            assert store.messages(ready.conversation)[-1].text == reply.text
            db.dispose()

        run(test)


def test_it_makes_room_for_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    for count in (100, 2000, 10_000):
        allow_sockets(count)
    assert limits == [(1024, 4096), (2512, 4096), (4096, 4096)]


def test_what_keeps_it_from_starting_is_said_in_words(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "configure", lambda level: None)  # pytest has its own
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in [name for name in os.environ if name.startswith("TURNWISE_")]:
        monkeypatch.delenv(name)
    fresh = f"sqlite:///{tmp_path / 'fresh.db'}"
    database.upgrade(fresh)
    model = str(tiny_model_dir)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (["--database-url", fresh, "--models", model, "--port", port], "cannot listen on"),
            (["--database-url", fresh, "--models", f"{model}/none", "--port", "0"], "no such directory"),
            (["--database-url", f"sqlite:///{tmp_path / 'new.db'}", "--port", "0"], "db upgrade"),
            (["--database-url", "mysql://host/name", "--port", "0"], "neither sqlite nor postgresql"),
            (["--database-url", fresh, "--models", model, "--host", "a..b"], "cannot listen on a..b"),
            (["--database-url", fresh, "--models", model, "--device", "cuda", "--port", "0"], "no GPU"),
            (["--port", "many"], "--port"),
        ]
        for arguments, words in cases:
            assert main(["serve", *arguments]) == 1
            said = capsys.readouterr()
            assert words in said.err
            assert said.out == ""


def test_an_address_that_somebody_else_takes_meanwhile_is_said_in_words(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers that are begun at once both have the address, until one of them listens there."""
    monkeypatch.setattr(logs, "configure", lambda level: None)
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    database.upgrade(url)
    other = listen("127.0.0.1", 0)

    def outrun(host: str, port: int) -> socket.socket:
        listener = listen(host, port)
        other.listen()
        return listener

    monkeypatch.setattr("server.app.listen", outrun)
    port = str(other.getsockname()[1])
    with other, pytest.raises(SystemExit) as left:
        main(["serve", "--database-url", url, "--models", str(tiny_model_dir), "--port", port])
    assert left.value.code == 1
    said = capsys.readouterr()
    assert f"cannot listen on http://127.0.0.1:{port}: Address already in use" in said.err
    assert said.out == ""


def test_a_model_that_makes_no_token_is_why_it_does_not_start(
    tmp_path: Path, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unhealthy(self: Engine, wait: float = 0) -> None:
        raise EngineUnhealthy("no token within 60 s")

    monkeypatch.setattr(logs, "configure", lambda level: None)
    monkeypatch.setattr(Engine, "check", unhealthy)
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    database.upgrade(url)
    with pytest.raises(SystemExit) as left:
        main(["serve", "--database-url", url, "--models", str(tiny_model_dir), "--port", "0"])
    assert left.value.code == 3
    told = [record for record in caplog.records if record.getMessage() == "not_ready"]
    assert [record.__dict__["fields"] for record in told] == [{"reason": "the engine: no token within 60 s"}]


def test_what_was_freed_is_given_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    blocks = [bytes(60_000) for _ in range(2000)]  # too small to be mapped by themselves
    keep = blocks[-1]
    full = resident()
    del blocks
    give_back_memory()
    assert resident() < full - 20_000, "pages of 4 KiB: 120 MB were in use"
    assert keep
