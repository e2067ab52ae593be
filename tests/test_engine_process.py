"""The engine in a process of its own: what it is told and tells, and what if it dies or hangs."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks import processes
from benchmarks.processes import gone
from benchmarks.prometheus import Scrape
from chatbot.options import DecodingOptions
from chatbot.replies import Failed, Finished, Piece, ReplyRequest
from server.engine import Engine, EngineUnhealthy
from server.engine_process import Nursery, ProcessWorker, _Frames, _packed
from server.speaker import Speaker
from server.worker import MakeBatcher, Report
from tests.chat_client import chatting, run
from tests.databases import upgrade
from tests.hanging_server import WORD
from tests.live_server import ServerProcess, server_process
from tests.scripted_batcher import ScriptedBatcher, parrot
from tests.test_engine import collect, end_of, text_of

OPTIONS = DecodingOptions(seed=1)
HANG = "hang"
DIE = "die"


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


def obedient(request: ReplyRequest) -> list[str]:
    """Says the user's words, unless they are something to be done; in the process, of course."""
    words = parrot(request)
    if DIE in request.turns[-1][1]:
        os.kill(os.getpid(), signal.SIGKILL)
    if HANG in request.turns[-1][1]:
        time.sleep(1000)
    return words


def make_obedient() -> ScriptedBatcher:
    return ScriptedBatcher(obedient)


def make_none(reason: str) -> ScriptedBatcher:
    raise MemoryError(reason)


def make_who() -> ScriptedBatcher:
    return ScriptedBatcher(lambda _: [str(os.getpid())])


def request(name: str, text: str = "one two three") -> ReplyRequest:
    return ReplyRequest(name, (("user", text),), OPTIONS)


@asynccontextmanager
async def running(
    nursery: Nursery, make_batcher: MakeBatcher = make_obedient, step_limit: float = 30
) -> AsyncIterator[Engine]:
    def begin(make_batcher: MakeBatcher, report: Report) -> ProcessWorker:
        return ProcessWorker(make_batcher, report, nursery=nursery, threads=1, ended=engine.look_after)

    engine = Engine(make_batcher, capacity=64, begin_worker=begin, step_limit=step_limit)
    engine.start()
    try:
        async with asyncio.timeout(30):
            yield engine
    finally:
        await engine.stop()


async def said(engine: Engine, text: str = "one two three", name: str = "a") -> str:
    return text_of(await collect(engine.generate(request(name, text))))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - it is another process that makes it so
        await asyncio.sleep(0.01)


def test_replies_come_from_another_process_piece_by_piece(nursery: Nursery) -> None:
    async def test() -> None:
        async with running(nursery) as engine:
            events = await collect(engine.generate(request("a")))
            assert [event.text for event in events if isinstance(event, Piece)] == ["one ", "two ", "three "]
            end = end_of(events)
            assert isinstance(end, Finished)
            assert end.reply.text == "one two three "
            names = [f"reply {number}" for number in range(20)]
            replies = await asyncio.gather(*(said(engine, f"{name} " * 30, name) for name in names))
            assert replies == [f"{name} " * 30 for name in names]
            await engine.check()
        async with running(nursery, make_who) as engine:
            pid = int(await said(engine))
            assert pid not in (os.getpid(), nursery.pid)
            assert not gone(pid)
        await until(lambda: gone(pid))

    asyncio.run(test())


def test_a_conversation_larger_than_the_socket_takes_is_carried_over_whole(nursery: Nursery) -> None:
    long = "word " * 400_000

    async def test() -> None:
        async with running(nursery) as engine:
            first, second = engine.generate(request("long", long)), engine.generate(request("b"))
            async with first:
                assert isinstance(await anext(first), Piece)
            assert text_of(await collect(second)) == "one two three "

    asyncio.run(test())


def test_a_cancelled_reply_ends(nursery: Nursery) -> None:
    async def test() -> None:
        async with running(nursery) as engine:
            generation = engine.generate(request("a", "word " * 100_000))
            await anext(generation)
            engine.cancel("a")
            end = end_of(await collect(generation))
            assert isinstance(end, Finished)
            assert end.reply.finish_reason == "cancelled"

    asyncio.run(test())


def test_when_a_process_is_killed_another_goes_on_with_its_replies(
    nursery: Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    long = " ".join(map(str, range(60_000))) + " "

    async def test() -> None:
        async with running(nursery) as engine:
            replies = [engine.generate(request(name, long)) for name in ("a", "b")]
            heard = [await anext(reply) for reply in replies]
            worker = engine._station.worker
            assert isinstance(worker, ProcessWorker)
            os.kill(worker.pid or 0, signal.SIGKILL)
            began = time.monotonic()
            await until(lambda: engine._station.worker is not worker)
            assert time.monotonic() - began < 0.9, "without waiting for somebody to look"
            late = engine.generate(request("c"))
            for first, reply in zip(heard, replies, strict=True):
                events = [first, *await collect(reply)]
                assert text_of(events) == long
                assert isinstance(end_of(events), Finished)
            assert text_of(await collect(late)) == "one two three "
            await engine.check()

    with caplog.at_level(logging.ERROR, "server"):
        asyncio.run(test())
    assert [record.getMessage() for record in caplog.records] == ["engine_ended"]


def test_what_is_stopped_while_it_is_made_again_is_kept_as_far_as_it_was_shown(nursery: Nursery) -> None:
    long = " ".join(map(str, range(60_000))) + " "

    async def test() -> None:
        async with running(nursery) as engine:
            reply = engine.generate(request("a", long))
            shown = "".join([(await anext(reply)).text for _ in range(200)])  # type: ignore[union-attr]
            worker = engine._station.worker
            assert isinstance(worker, ProcessWorker)
            os.kill(worker.pid or 0, signal.SIGKILL)
            await until(lambda: engine._station.worker is not worker)
            engine.cancel("a")
            events = await collect(reply)
            end = end_of(events)
            assert isinstance(end, Finished)
            assert end.reply.finish_reason == "cancelled"
            assert end.reply.text == shown + text_of(events)
            assert len(end.reply.text) < len(long)

    asyncio.run(test())


def test_an_engine_without_files_for_another_process_begins_it_later(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> NoReturn:
        raise OSError(errno.EMFILE, "too many open files")

    async def test() -> None:
        async with running(nursery, step_limit=1) as engine:
            assert await said(engine) == "one two three "
            with monkeypatch.context() as patch:
                patch.setattr(socket, "socketpair", none_left)
                assert isinstance(end_of(await collect(engine.generate(request("b", DIE)))), Failed)
                with pytest.raises(EngineUnhealthy, match="not running"):
                    await engine.check()
            await until(lambda: engine._station.worker is not None and engine._station.worker.alive)
            assert await said(engine, "once more") == "once more "

    asyncio.run(test())


def test_a_reply_that_kills_its_process_is_not_made_a_third_time(
    nursery: Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with running(nursery) as engine:
            end = end_of(await collect(engine.generate(request("b", DIE))))
            assert end == Failed("b", "the reply could not be made")
            assert await said(engine, "once more") == "once more "

    with caplog.at_level(logging.ERROR, "server"):
        asyncio.run(test())
    assert [record.getMessage() for record in caplog.records] == ["engine_ended"] * 2


def test_a_process_whose_step_hangs_is_killed(nursery: Nursery) -> None:
    async def test() -> None:
        async with running(nursery, step_limit=0.5) as engine:
            assert await said(engine) == "one two three "
            worker = engine._station.worker
            assert isinstance(worker, ProcessWorker)
            assert worker.pid is not None
            end = end_of(await collect(engine.generate(request("b", HANG))))
            assert isinstance(end, Failed)
            await until(lambda: gone(worker.pid or 0))
            assert await said(engine, "once more") == "once more "
        assert not engine.threads_left, "nothing keeps the server from ending in good order"

    asyncio.run(test())


def test_a_process_that_is_stopped_is_noticed_with_the_next_reply(nursery: Nursery) -> None:
    """Not by its steps, of which none is under way."""

    async def test() -> None:
        async with running(nursery, step_limit=0.5) as engine:
            await said(engine)
            worker = engine._station.worker
            assert isinstance(worker, ProcessWorker)
            os.kill(worker.pid or 0, signal.SIGSTOP)
            assert isinstance(end_of(await collect(engine.generate(request("b")))), Failed)
            assert await said(engine, "once more") == "once more "

    asyncio.run(test())


def test_a_batcher_that_cannot_be_made_is_told_in_words(nursery: Nursery) -> None:
    async def test() -> None:
        async with running(nursery, partial(make_none, "no room")) as engine:
            assert isinstance(end_of(await collect(engine.generate(request("a")))), Failed)
            with pytest.raises(EngineUnhealthy, match="a decode step failed"):
                await engine.check()
            assert engine.failures >= 2, "for the reply and the check, and when it began, if that was before"
            assert engine.trouble is not None
            assert engine.trouble.startswith("MemoryError at test_engine_process.py")
            speaker = Speaker("tw-new", OPTIONS, lambda overrides: OPTIONS)
            await engine.switch(make_obedient, speaker)
            assert await said(engine) == "one two three "
            with pytest.raises(EngineUnhealthy, match="MemoryError"):
                await engine.add(partial(make_none, "no room"), speaker)
            assert await said(engine) == "one two three "
            assert len(engine._stations) == 1

    asyncio.run(test())


def test_an_engine_whose_processes_cannot_be_begun_is_not_healthy(nursery: Nursery) -> None:
    async def test() -> None:
        async with running(nursery) as engine:
            assert await said(engine) == "one two three "
            os.kill(nursery.pid, signal.SIGKILL)
            await until(lambda: not nursery.alive)
            assert await said(engine, "a process goes on without it") == "a process goes on without it "
            assert isinstance(end_of(await collect(engine.generate(request("b", DIE)))), Failed)
            with pytest.raises(EngineUnhealthy, match="not running"):
                await engine.check()

    asyncio.run(test())


def test_frames_come_whole_however_the_bytes_are_cut() -> None:
    messages = [["a" * length, length] for length in (0, 1, 1000, 70_000)]
    data = b"".join(_packed(message) for message in messages)
    for step in (1, 7, 1 << 16, len(data)):
        frames = _Frames()
        cut = [data[i : i + step] for i in range(0, len(data), step)]
        assert [message for piece in cut for message in frames.of(piece)] == messages


# --- of a whole server ------------------------------------------------------------------------------------


def engine_of(server: ServerProcess) -> int:
    """The process that makes the replies."""
    (found,) = processes.engines(server.process.pid)
    return found


@pytest.fixture
def server(tiny_model_dir: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    with server_process(url, tiny_model_dir) as found:
        yield found


def test_a_server_whose_engine_is_killed_answers_again(server: ServerProcess) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            for _ in range(3):
                await client.say("Hello", decoding="greedy")
                await client.reply()
                os.kill(engine_of(server), signal.SIGKILL)
                await until(lambda: bool(processes.engines(server.process.pid)))
            await client.say("Hello", decoding="greedy")
            await client.reply()

    run(test)


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_it_stops_in_good_order_while_a_step_does_not_return(
    tiny_model_dir: Path, tmp_path: Path, engine: str
) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    told = ("--engine", engine, "--step-seconds", "2", "--drain-seconds", "0.1")

    async def test(server: ServerProcess) -> None:
        async with chatting(server.address) as client:
            await client.hello()
            await client.say("Hello", decoding="greedy")
            await client.reply()
            await client.say(WORD, decoding="greedy")
            assert await asyncio.to_thread(server.terminate) == 0

    with server_process(url, tiny_model_dir, *told, module="tests.hanging_server") as server:
        run(partial(test, server))


def test_what_the_engine_uses_is_told_too(server: ServerProcess) -> None:
    found = Scrape.of(f"{server.address}/metrics").values
    mine, engines = (found[f"{name}process_start_time_seconds", None] for name in ("", "turnwise_engine_"))
    assert engines > mine
    assert found["turnwise_engine_process_resident_memory_bytes", None] > 2**20


def test_ctrl_c_and_sigterm_to_all_its_processes_end_a_server_in_good_order(server: ServerProcess) -> None:
    family = list(processes.family(server.process.pid))
    assert len(family) == 3
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for pid in family[1:]:
            os.kill(pid, number)
    assert not any(gone(pid) for pid in family)
    assert server.terminate() == 0
    assert all(gone(pid) for pid in family)


def test_nothing_of_a_server_that_was_killed_lives_on(server: ServerProcess) -> None:
    family = list(processes.family(server.process.pid))
    server.kill()
    end = time.monotonic() + 20
    while not all(gone(pid) for pid in family):
        assert time.monotonic() < end
        time.sleep(0.01)
