"""Limits and fairness: what one connection, visitor or address may use, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from chatbot.options import DecodingOptions
from chatbot.replies import Failed, Finished, Piece, ReplyRequest
from server.engine import Engine
from server.limits import (
    KNOWN,
    MAX_HEAD,
    MAX_HEADERS,
    MAX_LINE,
    AsgiMessage,
    FairLine,
    Pace,
    Rates,
    Receive,
    RequestLimit,
    Scope,
    SendAsgi,
    Shares,
    as_peers,
    excess_of,
    visitor_key,
)
from server.protocol import Accepted, Error, Ready, Say
from server.worker import ThreadWorker
from tests.chat_client import ChatClient, chatting
from tests.live_server import LiveServer, serving
from tests.scripted_batcher import Gate, ScriptedBatcher, parrot


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(in_time())


# --- so many a second -------------------------------------------------------------------------------------


def test_a_pace_allows_a_burst_and_then_its_rate() -> None:
    now = [100.0]
    pace = Pace(rate=2, burst=3, clock=lambda: now[0])
    assert [pace.ask() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] += 0.25
    assert pace.ask() == 0.25
    now[0] += 0.25
    assert pace.ask() == 0
    now[0] += 1000
    assert pace.full
    assert [pace.ask() for _ in range(4)] == [0, 0, 0, 0.5]


def test_a_pace_gives_credit_and_waits_for_it() -> None:
    now = [0.0]
    pace = Pace(rate=10, burst=5, clock=lambda: now[0])
    assert pace.take(4) == 0
    assert pace.take(11) == 1.0
    now[0] += 1
    assert pace.take(0) == 0


@given(st.lists(st.floats(0, 3), max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_no_more_than_the_burst_and_the_rate_in_any_time(waits: list[float], rate: int, burst: int) -> None:
    now = [0.0]
    pace = Pace(rate, burst, clock=lambda: now[0])
    allowed = []
    for wait in waits:
        now[0] += wait
        if pace.ask() == 0:
            allowed.append(now[0])
    for first in range(len(allowed)):
        for last in range(first, len(allowed)):
            assert last - first + 1 <= burst + rate * (allowed[last] - allowed[first]) + 1e-6


def test_rates_are_each_keys_own_and_the_idle_are_forgotten() -> None:
    now = [0.0]
    rates = Rates(rate=1, burst=1, clock=lambda: now[0])
    assert rates.ask("a") == 0
    assert rates.ask("a") == 1
    assert rates.ask("b") == 0
    now[0] += 10
    for number in range(3 * KNOWN):
        assert rates.ask(str(number)) == 0
        now[0] += 0.01
    assert len(rates) <= 2 * KNOWN
    assert rates.ask(str(3 * KNOWN - 1)) > 0  # who was here just now is remembered


# --- so many at the same time -----------------------------------------------------------------------------


def test_shares_are_each_keys_own_and_come_back() -> None:
    shares = Shares(2)
    assert [shares.take("a") for _ in range(3)] == [True, True, False]
    assert shares.take("b")
    shares.give_back("a")
    assert shares.take("a")
    for key in "aab":
        shares.give_back(key)
    assert len(shares) == 0


# --- turns ------------------------------------------------------------------------------------------------


def test_everybodys_first_comes_before_anybodys_second() -> None:
    line: FairLine[str] = FairLine()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        line.put(item[0], item)
    assert line.first() == "a1"
    assert [line.take() for _ in range(2)] == ["a1", "b1"]
    line.put("d", "d1")
    assert [line.take() for _ in range(len(line))] == ["c1", "a2", "d1", "c2", "a3"]
    with pytest.raises(LookupError):
        line.take()
    with pytest.raises(LookupError):
        line.first()


def test_what_is_removed_is_out_of_the_line() -> None:
    line: FairLine[str] = FairLine()
    for item in ("a1", "a2", "b1"):
        line.put(item[0], item)
    assert line.remove("a", "a1")
    assert not line.remove("a", "a1")
    assert not line.remove("z", "z1")
    assert line.remove("b", "b1")
    assert (list(line), len(line)) == (["a2"], 1)
    line.clear()
    assert (list(line), len(line)) == ([], 0)


@given(st.lists(st.sampled_from("abcde"), max_size=40))
def test_turns_are_in_order_for_each_and_even_among_all(owners: list[str]) -> None:
    line: FairLine[tuple[str, int]] = FairLine()
    for number, owner in enumerate(owners):
        line.put(owner, (owner, number))
    taken = []
    while line:
        first = line.first()
        taken.append(line.take())
        assert taken[-1] == first
    assert sorted(taken) == sorted((owner, number) for number, owner in enumerate(owners))
    left = Counter(owners)
    for owner in set(owners):
        numbers = [number for each, number in taken if each == owner]
        assert all(one < next_one for one, next_one in pairwise(numbers))
    served: Counter[str] = Counter()
    for owner, _ in taken:  # nobody is served twice more often than another who still waits
        assert all(served[owner] <= served[other] for other in left if left[other] > served[other])
        served[owner] += 1


OPTIONS = DecodingOptions(seed=1)


def ask(name: str, options: DecodingOptions = OPTIONS) -> ReplyRequest:
    return ReplyRequest(name, (("user", name),), options)


async def until(condition: Callable[[], bool]) -> None:
    """Let the other threads go on until it is so; the test's own time limit bounds it."""
    for _ in count():
        if condition():
            return
        await asyncio.sleep(0)


async def finish(engine: Engine, request: ReplyRequest, owner: str | None = None) -> str:
    generation = engine.generate(request, engine.reserve(owner))
    return "".join([event.text async for event in generation if isinstance(event, Piece)])


def test_a_visitor_with_many_replies_does_not_push_others_back() -> None:
    batcher = ScriptedBatcher(parrot, gate := Gate())
    gate.close()

    async def test() -> None:
        engine = Engine(lambda: batcher, capacity=200, rows=4)
        engine.start()
        greedy = [asyncio.create_task(finish(engine, ask(f"greedy{n}"), "greedy")) for n in range(100)]
        await asyncio.sleep(0)  # lets them ask
        others = [asyncio.create_task(finish(engine, ask(f"other{n}"), f"other{n}")) for n in range(3)]
        await asyncio.sleep(0)
        gate.open()
        assert await asyncio.gather(*others) == [f"other{n} " for n in range(3)]
        assert len(await asyncio.gather(*greedy)) == 100
        await engine.stop()

    run(test)
    order = [request.id for request in batcher.requests]
    assert max(order.index(f"other{n}") for n in range(3)) < 4 + 1 + 2 * 3 + 1
    assert sorted(order) == sorted({*order})


def test_requests_of_many_rows_wait_for_them_and_impossible_ones_do_not() -> None:
    batcher = ScriptedBatcher(parrot, gate := Gate())
    gate.close()
    wide = DecodingOptions(decoding="beam", beam_size=6)

    async def test() -> None:
        engine = Engine(lambda: batcher, capacity=20, rows=8)
        engine.start()
        tasks = [asyncio.create_task(finish(engine, ask(str(n), wide), str(n))) for n in range(4)]
        await asyncio.sleep(0)
        gate.let(1)
        await until(lambda: bool(batcher.requests))
        # 12 of 8 rows, with one more in advance, would be too many.
        assert [request.id for request in batcher.requests] == ["0"]
        gate.open()
        await asyncio.gather(*tasks)
        too_wide = DecodingOptions(decoding="beam", beam_size=16)
        assert await finish(engine, ask("too wide", too_wide)) == "too wide "
        await engine.stop()

    run(test)


def test_who_waits_for_a_row_can_be_cancelled_at_once() -> None:
    batcher = ScriptedBatcher(parrot, gate := Gate())
    gate.close()

    async def test() -> None:
        engine = Engine(lambda: batcher, capacity=8, rows=1)
        engine.start()
        running = [
            engine.generate(ask(name)) for name in ("a", "b", "c")
        ]  # c is in the line: one, and one ahead
        engine.cancel("c")
        [end] = [event async for event in running[2] if not isinstance(event, Piece)]
        assert isinstance(end, Finished)
        assert end.reply.finish_reason == "cancelled"
        gate.open()
        for generation in running[:2]:
            ends = [event async for event in generation if not isinstance(event, Piece)]
            assert isinstance(ends[-1], Finished)
        await engine.stop()

    run(test)


def test_a_thread_that_is_given_up_fails_those_in_the_line_too() -> None:
    now = [0.0]
    gates: list[Gate] = []

    def make_batcher() -> ScriptedBatcher:
        gates.append(Gate())
        gates[0].close()
        return ScriptedBatcher(parrot, gates[-1])

    async def test() -> None:
        engine = Engine(make_batcher, capacity=8, rows=1, step_limit=30, clock=lambda: now[0])
        engine.start()
        generations = [engine.generate(ask(str(n))) for n in range(5)]
        worker = generations[0].permit.station.worker
        assert isinstance(worker, ThreadWorker)
        await until(lambda: worker.step_began is not None)
        now[0] += 1000
        engine.look_after()
        for generation in generations:
            assert [type(event) async for event in generation] == [Failed]
        assert await finish(engine, ask("after")) == "after "
        gates[0].open()
        await engine.stop()

    run(test)


# --- over real sockets ------------------------------------------------------------------------------------


async def refused(client: ChatClient, client_id: str) -> Error:
    await client.send(Say(id=client_id, text="more"))
    while not isinstance(message := await client.receive(), Error):
        pass
    return message


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'turnwise.db'}"


@pytest.mark.parametrize(
    ("setting", "same_visitor"), [("replies_per_visitor", True), ("connections_per_address", False)]
)
def test_a_visitor_and_an_address_have_so_many_replies_at_a_time(
    tiny_model_dir: Path, tmp_path: Path, setting: str, same_visitor: bool
) -> None:
    async def test(running: LiveServer) -> None:
        token = None
        conversations: list[tuple[str, Ready]] = []
        running.gate.close()
        for number in range(2):  # each leaves its reply behind, in the making
            async with chatting(running.address) as client:
                ready = await client.hello(token=token)
                token = ready.token if same_visitor else None
                conversations.append((ready.token, ready))
                await client.say("hello", str(number))
        async with chatting(running.address) as client:
            await client.hello(token=token)
            error = await refused(client, "x")
            assert (error.code, error.id) == ("busy", "x")
            assert error.retry_after
            running.gate.open()
            for known, ready in conversations:
                async with chatting(running.address) as back:
                    again = await back.hello(token=known, conversation=ready.conversation)
                    if again.seq < 2:
                        await back.reply()
            await client.say("more", "x")
            assert (await client.reply()).text == "more "

    with serving(url_in(tmp_path), tiny_model_dir, parrot, **{setting: 2}) as running:
        run(partial(test, running))


def test_a_visitor_in_a_hundred_chats_leaves_room_for_everybody_else(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    async def test(running: LiveServer) -> None:
        running.gate.close()
        async with chatting(running.address) as client:
            token = (await client.hello()).token
        taken = 0
        for number in range(100):
            async with chatting(running.address) as client:
                await client.hello(token=token)
                await client.send(Say(id=str(number), text="mine"))
                taken += isinstance(await client.receive(), Accepted)
        assert taken == 8
        async with chatting(running.address) as other:
            await other.hello()
            await other.say("theirs")
            running.gate.open()
            assert (await other.reply()).text == "theirs "
        assert running.batcher is not None
        order = [request.turns[-1][1] for request in running.batcher.requests if request.conversation]
        assert order.index("theirs") <= 4  # of two rows, one more in advance, and everybody's turn

    with serving(url_in(tmp_path), tiny_model_dir, parrot, rows=2, waiting=20) as running:
        run(partial(test, running))


# --- HTTP -------------------------------------------------------------------------------------------------


async def nothing(scope: Scope, receive: Receive, send: SendAsgi) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})


def request(path: str, client: tuple[str, int], headers: Any = ()) -> Scope:
    return {
        "type": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "client": client,
        "headers": list(headers),
    }  # fmt: skip


def test_requests_are_counted_by_address_and_health_is_not() -> None:
    now = [0.0]
    limit = RequestLimit(nothing, per_minute=2, clock=lambda: now[0])

    async def status(path: str, host: str) -> tuple[int, dict[bytes, bytes]]:
        sent: list[AsgiMessage] = []

        async def send(message: AsgiMessage) -> None:
            sent.append(message)

        async def receive() -> AsgiMessage:
            return {}

        await limit(request(path, (host, 1)), receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    async def test() -> None:
        assert [(await status("/", "192.0.2.1"))[0] for _ in range(3)] == [204, 204, 429]
        assert (await status("/", "192.0.2.1"))[1][b"retry-after"] == b"30"
        assert (await status("/", "192.0.2.2"))[0] == 204
        assert (await status("/readyz", "192.0.2.1"))[0] == 204
        assert (await status("/livez", "192.0.2.1"))[0] == 204
        now[0] += 30
        assert [(await status("/", "192.0.2.1"))[0] for _ in range(2)] == [204, 429]

    run(test)


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        ("127.0.0.1", "192.0.2.1"),
        ("::ffff:127.0.0.1", "192.0.2.1"),
        ("::ffff:10.9.8.7", "192.0.2.1"),
        ("2001:db8::7", "192.0.2.1"),
        ("::ffff:127.0.0.2", "::ffff:127.0.0.2"),
        ("::127.0.0.1", "::127.0.0.1"),
    ],
)
def test_a_proxy_is_known_on_a_socket_for_both_kinds_of_addresses(peer: str, seen: str) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        assert scope["client"][0] == seen

    trusted = as_peers(["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"])
    scope: Any = request("/", (peer, 1), [(b"x-forwarded-for", b"192.0.2.1")])
    run(lambda: ProxyHeadersMiddleware(answer, trusted)(scope, None, None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (MAX_LINE, [], None),
        (MAX_LINE + 1, [], 414),
        (1, [(b"a", b"b")] * MAX_HEADERS, None),
        (1, [(b"a", b"b")] * (MAX_HEADERS + 1), 431),
        (1, [(b"a", b"b" * (MAX_LINE - 1))], None),
        (1, [(b"a", b"b" * MAX_LINE)], 431),
        (1, [(b"a", b"b" * 999)] * (MAX_HEAD // 1000), None),
        (1000, [(b"a", b"b" * 999)] * (MAX_HEAD // 1000), 431),
    ],
)
def test_heads_have_a_size(target: int, headers: list[tuple[bytes, bytes]], status: int | None) -> None:
    found = excess_of(target, headers)
    assert (found and found[0]) == status


def test_a_visitors_key_is_not_the_token() -> None:
    assert visitor_key("a") == visitor_key("a") != visitor_key("b")
    assert "secret" not in visitor_key("secret\ud800")
