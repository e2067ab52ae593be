"""The engine: one thread, one batcher, and nothing that goes wrong in it goes further than it must."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch

from chatbot.options import DecodingOptions
from chatbot.replies import Event, Failed, Finished, Piece, ReplyRequest
from server.engine import STUCK, Engine, EngineBusy, EngineUnhealthy, Generation, Permit, Steps
from server.speaker import Speaker
from server.worker import ThreadWorker
from tests.scripted_batcher import Gate, ScriptedBatcher, parrot

OPTIONS = DecodingOptions(seed=1)
SPEAKER = Speaker("tw-new", OPTIONS, lambda overrides: OPTIONS)


def request(name: str, text: str = "one two three") -> ReplyRequest:
    return ReplyRequest(name, (("user", text),), OPTIONS)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(in_time())


@asynccontextmanager
async def running(make_batcher: Callable[[], Steps], capacity: int = 8) -> AsyncIterator[Engine]:
    engine = Engine(make_batcher, capacity=capacity)
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def collect(generation: Generation) -> list[Event]:
    return [event async for event in generation]


async def place_in(engine: Engine) -> Permit:
    """The next place that comes free."""
    while True:
        try:
            return engine.reserve()
        except EngineBusy:
            await asyncio.sleep(0)  # only lets the event loop take its turn


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def end_of(events: list[Event]) -> Event:
    assert not isinstance(events[-1], Piece)
    assert all(isinstance(event, Piece) for event in events[:-1])
    return events[-1]


def test_a_reply_comes_in_pieces_and_ends() -> None:
    async def test() -> None:
        async with running(lambda: ScriptedBatcher(parrot)) as engine:
            events = await collect(engine.generate(request("a")))
        assert text_of(events) == "one two three "
        end = end_of(events)
        assert isinstance(end, Finished)
        assert end.reply.text == "one two three "

    run(test)


def test_replies_side_by_side_are_not_mixed_up() -> None:
    async def test() -> None:
        async with running(lambda: ScriptedBatcher(parrot)) as engine:
            names = ["alpha", "beta", "gamma"]
            asked = [collect(engine.generate(request(name, f"{name} " * 20))) for name in names]
            for name, events in zip(names, await asyncio.gather(*asked), strict=True):
                assert text_of(events) == f"{name} " * 20
                assert {event.id for event in events} == {name}

    run(test)


def test_only_the_engines_thread_touches_the_batcher() -> None:
    batcher = ScriptedBatcher(parrot)

    async def test() -> None:
        async with running(lambda: batcher) as engine:
            async with engine.generate(request("a")) as generation:
                await anext(generation)
            await engine.check()

    run(test)
    assert batcher.threads == {"engine"}


def test_arithmetic_gets_the_threads_it_was_told() -> None:
    found: list[int] = []

    def script(request: ReplyRequest) -> list[str]:
        found.append(torch.get_num_threads())
        return []

    async def test() -> None:
        engine = Engine(lambda: ScriptedBatcher(script), capacity=1, threads=3)
        engine.start()
        await collect(engine.generate(request("a")))
        await engine.stop()

    run(test)
    assert found == [3]


def test_a_full_engine_says_so_at_once_and_a_place_comes_back() -> None:
    gate = Gate()
    gate.close()

    async def test() -> None:
        async with running(lambda: ScriptedBatcher(parrot, gate), capacity=2) as engine:
            first = engine.generate(request("a"))
            permit = engine.reserve()
            with pytest.raises(EngineBusy) as full:
                engine.reserve()
            assert full.value.retry_after >= 1
            with pytest.raises(EngineBusy):
                engine.generate(request("b"))
            permit.release()
            permit.release()  # again changes nothing
            second = engine.generate(request("b"))
            with pytest.raises(EngineBusy):
                engine.reserve()
            gate.open()
            await asyncio.gather(collect(first), collect(second))
            engine.reserve()
            engine.reserve()

    run(test)


def test_a_cancelled_reply_ends_with_what_was_made() -> None:
    gate = Gate()
    gate.close()
    batcher = ScriptedBatcher(parrot, gate)

    async def test() -> None:
        async with running(lambda: batcher) as engine:
            generation = engine.generate(request("a", "word " * 1000))
            gate.let(2)
            first = [await anext(generation), await anext(generation)]
            engine.cancel("a")
            gate.let(1)  # a step may have been under way when the wish came
            rest = await collect(generation)
            end = end_of(rest)
            assert isinstance(end, Finished)
            assert end.reply.finish_reason == "cancelled"
            assert end.reply.text == text_of(first) + text_of(rest)
            assert len(end.reply.text.split()) in (2, 3)

    run(test)


def test_cancelling_what_is_not_there_does_nothing() -> None:
    batcher = ScriptedBatcher(parrot)

    async def test() -> None:
        async with running(lambda: batcher) as engine:
            engine.cancel("nobody")
            await collect(engine.generate(request("a")))
            engine.cancel("a")
            await collect(engine.generate(request("b")))

    run(test)
    assert batcher.cancelled == []


def test_a_generation_that_is_left_is_cancelled_and_gives_its_place_back() -> None:
    gate = Gate()
    gate.close()
    batcher = ScriptedBatcher(parrot, gate)

    async def test() -> None:
        async with running(lambda: batcher, capacity=1) as engine:
            async with engine.generate(request("a", "word " * 1000)) as generation:
                gate.let(1)
                await anext(generation)
            gate.open()
            permit = await place_in(engine)
            assert batcher.cancelled == ["a"]
            assert await collect(generation) == []
            again = engine.generate(request("b"), permit)
            assert text_of(await collect(again)) == "one two three "

    run(test)


def test_a_request_that_the_batcher_refuses_fails_alone() -> None:
    async def test() -> None:
        async with running(lambda: ScriptedBatcher(parrot, room=1)) as engine:
            both = [collect(engine.generate(request(name))) for name in ("a", "b")]
            first, second = await asyncio.gather(*both)
            assert isinstance(end_of(first), Finished)
            assert second == [Failed("b", "the reply could not be made")]

    run(test)


def test_when_the_batcher_breaks_its_replies_fail_and_the_next_ones_do_not() -> None:
    made: list[ScriptedBatcher] = []
    gate = Gate()
    gate.close()

    def make_batcher() -> ScriptedBatcher:
        made.append(ScriptedBatcher(parrot, gate))
        return made[-1]

    async def test() -> None:
        async with running(make_batcher, capacity=2) as engine:
            both = [engine.generate(request(name)) for name in ("a", "b")]
            gate.let(1)
            for generation in both:
                await anext(generation)
            made[0].error = RuntimeError("a tensor of another shape")
            gate.open()
            for events in await asyncio.gather(*map(collect, both)):
                assert isinstance(end_of(events), Failed)
            assert engine.failures == 1
            assert text_of(await collect(engine.generate(request("c")))) == "one two three "
            assert engine.failures == 0
            engine.reserve()
            engine.reserve()

    run(test)
    assert len(made) == 2


def test_a_batcher_that_cannot_be_made_fails_requests_and_health_until_it_can() -> None:
    faults = [MemoryError(), MemoryError()]

    def make_batcher() -> ScriptedBatcher:
        if faults:
            raise faults.pop()
        return ScriptedBatcher(parrot)

    async def test() -> None:
        async with running(make_batcher) as engine:
            assert isinstance(end_of(await collect(engine.generate(request("a")))), Failed)
            with pytest.raises(EngineUnhealthy, match="a decode step failed"):
                await engine.check()
            await engine.check()

    run(test)


def test_health_needs_a_token() -> None:
    gate = Gate()
    gate.close()

    async def test() -> None:
        async with running(lambda: ScriptedBatcher(parrot, gate)) as engine:
            with pytest.raises(EngineUnhealthy, match="no token within"):
                await engine.check(wait=0.01)
            gate.open()
            await engine.check()

    run(test)


def test_health_checks_take_no_places_from_visitors() -> None:
    async def test() -> None:
        async with running(lambda: ScriptedBatcher(parrot), capacity=1) as engine:
            permit = engine.reserve()
            await engine.check()
            with pytest.raises(EngineBusy):
                engine.reserve()
            permit.release()
            engine.reserve()

    run(test)


def test_an_engine_that_was_stopped_is_not_healthy_and_fails_what_was_under_way() -> None:
    gate = Gate()
    gate.close()

    async def test() -> None:
        engine = Engine(lambda: ScriptedBatcher(parrot, gate), capacity=1)
        engine.start()
        generation = engine.generate(request("a"))
        gate.let(1)
        await anext(generation)
        stopping = asyncio.ensure_future(engine.stop())
        gate.open()
        await stopping
        end = end_of(await collect(generation))
        assert isinstance(end, Failed | Finished)
        with pytest.raises(EngineUnhealthy, match="not running"):
            await engine.check()

    run(test)


def test_an_id_is_used_once_at_a_time() -> None:
    gate = Gate()
    gate.close()

    async def test() -> None:
        async with running(lambda: ScriptedBatcher(parrot, gate)) as engine:
            generation = engine.generate(request("a"))
            with pytest.raises(ValueError, match="under way"):
                engine.generate(request("a"))
            gate.open()
            await collect(generation)
            assert text_of(await collect(engine.generate(request("a")))) == "one two three "

    run(test)


def test_timing_tells_waiting_from_making() -> None:
    gate = Gate()
    gate.close()
    now = [10.0]

    async def test() -> None:
        engine = Engine(lambda: ScriptedBatcher(parrot, gate), capacity=1, clock=lambda: now[0])
        engine.start()
        generation = engine.generate(request("a", "one two"))
        now[0] += 0.1
        gate.let(1)
        await anext(generation)
        now[0] += 0.2
        gate.open()
        await collect(generation)
        await engine.stop()
        timing = generation.timing
        assert (timing.queued_ms, timing.first_token_ms, timing.total_ms) == (100, 100, 300)

    run(test)


def test_a_step_that_hangs_fails_its_replies_and_another_thread_goes_on() -> None:
    now = [0.0]
    gates: list[Gate] = []

    def make_batcher() -> ScriptedBatcher:
        gates.append(Gate())
        gates[0].close()
        return ScriptedBatcher(parrot, gates[-1])

    async def test() -> None:
        engine = Engine(make_batcher, capacity=1, step_limit=30, clock=lambda: now[0])
        engine.start()
        generation = engine.generate(request("a"))
        await first_piece_then_a_step(gates, generation)
        now[0] += 29
        engine.look_after()
        assert len(gates) == 1
        now[0] += 2
        with pytest.raises(EngineUnhealthy, match="hangs"):
            await engine.check()
        engine.look_after()
        assert end_of(await collect(generation)) == Failed("a", "the reply could not be made")
        assert text_of(await collect(engine.generate(request("b")))) == "one two three "
        await engine.check()
        gates[0].open()  # the old thread comes back: nobody hears of it
        assert text_of(await collect(engine.generate(request("a", "again")))) == "again "
        await engine.stop()

    run(test)
    assert len(gates) == 2


def test_threads_that_hang_do_not_pile_up() -> None:
    now = [0.0]
    gate = Gate()
    gate.close()
    made: list[ScriptedBatcher] = []

    def make_batcher() -> ScriptedBatcher:
        made.append(ScriptedBatcher(parrot, gate))
        return made[-1]

    async def test() -> None:
        engine = Engine(make_batcher, capacity=1, step_limit=30, clock=lambda: now[0])
        engine.start()
        for number in range(2 * STUCK):
            generation = engine.generate(request(str(number)))
            expected = min(number + 1, STUCK)
            await until(lambda expected=expected: len(made) == expected)  # type: ignore[misc]
            now[0] += 1000
            engine.look_after()
            assert isinstance(end_of(await collect(generation)), Failed)
        with pytest.raises(EngineUnhealthy, match="hangs"):
            await engine.check()
        gate.open()
        while True:
            engine.look_after()
            try:
                await engine.check()
                break
            except EngineUnhealthy:
                await asyncio.sleep(0)
        await engine.stop()

    run(test)
    assert len(made) == STUCK + 1


def test_after_a_switch_replies_under_way_end_where_they_began() -> None:
    old, new = ScriptedBatcher(parrot, gate := Gate()), ScriptedBatcher(lambda _: ["new"])
    gate.close()

    async def test() -> None:
        async with running(lambda: old, capacity=3) as engine:
            first = engine.generate(request("a"))
            permit = engine.reserve()
            await engine.switch(lambda: new, SPEAKER)
            second = engine.generate(request("b"))
            assert engine.speaker is SPEAKER
            assert text_of(await collect(second)) == "new"
            assert second.permit.speaker is SPEAKER
            late = engine.generate(request("c", "old"), permit)  # its place is with the old model
            with pytest.raises(EngineBusy):
                [engine.reserve() for _ in range(2)]
            gate.open()
            assert text_of(await collect(first)) == "one two three "
            assert text_of(await collect(late)) == "old "
            assert first.permit.speaker is late.permit.speaker is not SPEAKER
            await engine.check()

    run(test)
    assert [r.id for r in old.requests] == ["a", "c"]


def test_a_model_beside_answers_who_names_it_until_it_is_removed() -> None:
    mine, other = ScriptedBatcher(lambda _: ["mine"]), ScriptedBatcher(lambda _: ["other"])
    beside = replace(SPEAKER, fingerprint="tw-beside")

    async def test() -> None:
        async with running(lambda: mine, capacity=3) as engine:
            await engine.add(lambda: other, beside)
            assert engine.speaker_of("tw-beside") is beside
            named, plain = engine.reserve(model="tw-beside"), engine.reserve()
            engine.remove("tw-beside")
            late = engine.reserve(model="tw-beside")  # it is not there any more
            assert [permit.speaker is beside for permit in (named, plain, late)] == [True, False, False]
            replies = [
                engine.generate(request(name), permit)
                for name, permit in (("a", named), ("b", plain), ("c", late))
            ]
            assert [text_of(await collect(reply)) for reply in replies] == ["other", "mine", "mine"]
            assert engine.speaker_of("tw-beside") is None
            await until(lambda: named.station.worker is not None and not named.station.worker.alive)
            await engine.check()

    run(test)


async def first_piece_then_a_step(gates: list[Gate], generation: Generation) -> None:
    """Let the first batcher make one step, and wait until it is in the next."""
    await until(lambda: bool(gates))
    gates[0].let(1)
    await anext(generation)
    worker = generation.permit.station.worker
    assert isinstance(worker, ThreadWorker)
    await until(lambda: worker.step_began is not None)


async def until(condition: Callable[[], bool]) -> None:
    """Let the other threads go on until it is so; the test's own time limit bounds it."""
    for _ in itertools.count():
        if condition():
            return
        await asyncio.sleep(0)
