"""Cases of docs/abuse.md that are about numbers, in full, against a server process."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from server.app import allow_sockets
from server.protocol import Ping, Pong
from server.settings import Settings
from tests.chat_client import ChatClient, chatting, run
from tests.databases import upgrade
from tests.live_server import ServerProcess, server_process
from tests.raw_client import PING, RawClient, frame, raw

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT = 500.0
"""Seconds for a whole test."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(found)
    return found


# --- 10: pings --------------------------------------------------------------------------------------------


async def waits(client: ChatClient, seconds: float) -> list[float]:
    """Seconds to each answer of somebody who asks again and again."""
    found: list[float] = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        await client.send(Ping())
        await client.expect(Pong)
        found.append(time.monotonic() - began)
        await asyncio.sleep(0.004)
    return found


async def flood(peer: RawClient, rate: int, seconds: float) -> tuple[int, int]:
    """Send so many pings a second; how many were sent, and answered meanwhile."""
    loop = asyncio.get_running_loop()
    peer.socket.setblocking(False)
    pong = len(frame(PING, masked=False))
    answered = sent = 0

    async def listen() -> None:
        nonlocal answered
        while data := await loop.sock_recv(peer.socket, 65536):
            answered += len(data) // pong

    listening = asyncio.create_task(listen())
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        due = round(rate * passed) - sent
        await loop.sock_sendall(peer.socket, frame(PING) * due)
        sent += due
        await asyncio.sleep(0.01)
    listening.cancel()
    return sent, answered


def test_ten_thousand_pings_a_second_cost_little_and_others_notice_nothing(
    tiny_model_dir: Path, url: str
) -> None:
    rate, seconds = 10_000, 5.0

    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            await waits(client, 1)
            used, began = server.cpu_seconds, time.monotonic()
            before = await waits(client, seconds)
            quiet = (server.cpu_seconds - used) / (time.monotonic() - began)
            with raw(server.address) as peer:
                peer.upgrade()
                used, began = server.cpu_seconds, time.monotonic()
                (sent, answered), during = await asyncio.gather(
                    flood(peer, rate, seconds), waits(client, seconds)
                )
                took = time.monotonic() - began
                flooded = (server.cpu_seconds - used) / took
        p99 = [statistics.quantiles(each, n=100)[-1] for each in (before, during)]
        print(f"p99 {p99[0] * 1000:.1f} and {p99[1] * 1000:.1f} ms, {quiet:.2f} and {flooded:.2f} cores")
        print(f"{sent} pings sent, {answered} answered in {took:.1f} s")
        assert sent > 0.9 * rate * seconds, "the flood was none"
        assert answered <= Settings().frames_per_second * (2 + took) + 400
        assert flooded - quiet < 0.25
        assert p99[1] < 2 * p99[0] + 0.05

    with server_process(url, tiny_model_dir) as server:
        run(test, LIMIT)


# --- 12: connections --------------------------------------------------------------------------------------


async def at_pace(rate: float, times: int, connect: Callable[[], Awaitable[float]]) -> list[float]:
    """Connect so often, so many times a second, whatever becomes of those before; seconds that each took."""

    async def one(number: int) -> float:
        await asyncio.sleep(number / rate)
        return await connect()

    return list(await asyncio.gather(*(one(number) for number in range(times))))


async def crowd(stack: AsyncExitStack, address: str, source: str, count: int) -> list[ChatClient]:
    """So many idle chats from one address."""
    found: list[ChatClient] = []

    async def come() -> None:
        client = await stack.enter_async_context(
            chatting(address, local_addr=(source, 0), ping_interval=None)
        )
        await client.hello()
        found.append(client)

    for begin in range(0, count, 50):
        await asyncio.gather(*(come() for _ in range(min(50, count - begin))))
    return found


async def refused(address: str, source: str, code: int) -> float:
    began = time.monotonic()
    async with chatting(address, local_addr=(source, 0)) as client:
        assert await client.closed() == code
    return time.monotonic() - began


async def served(address: str, source: str) -> float:
    began = time.monotonic()
    async with chatting(address, local_addr=(source, 0)) as client:
        await client.hello()
    return time.monotonic() - began


async def everybody_leaves(clients: Sequence[ChatClient]) -> None:
    for client in clients:
        client.socket.transport.abort()
    await asyncio.gather(*(client.socket.wait_closed() for client in clients))


def test_two_thousand_idle_connections_and_two_hundred_more_a_second(tiny_model_dir: Path, url: str) -> None:
    """Addresses of this machine are as many as one likes: 127.0.0.2, .3 and so on."""
    allow_sockets(3000)
    told = Settings()
    assert (told.connections_per_address, told.max_connections) == (1000, 2000)

    async def full(server: ServerProcess) -> int:
        """Both caps are reached; kilobytes that the server has then."""
        async with AsyncExitStack() as stack:
            first = await crowd(stack, server.address, "127.0.0.2", 1000)
            await refused(server.address, "127.0.0.2", 4429)
            second = await crowd(stack, server.address, "127.0.0.3", 1000)
            tries = await at_pace(200, 600, lambda: refused(server.address, "127.0.0.4", 1013))
            for one in (first[0], second[-1]):  # who is in is served as ever
                await one.say("hello", max_tokens=4)
                await one.reply()
            memory = server.resident_kilobytes
            print(f"refused in {statistics.median(tries) * 1000:.1f} ms, {max(tries) * 1000:.1f} at most")
            await everybody_leaves(first + second)
            return memory

    async def test() -> None:
        await at_pace(200, 200, lambda: served(server.address, "127.0.0.4"))
        empty = server.resident_kilobytes
        crowded = [await full(server)]
        tries = await at_pace(200, 600, lambda: served(server.address, "127.0.0.4"))
        print(f"served in {statistics.median(tries) * 1000:.1f} ms, {max(tries) * 1000:.1f} at most")
        await asyncio.sleep(1)
        after = server.resident_kilobytes
        crowded.append(await full(server))
        print(f"{empty} kB, then {crowded[0]} with 2000, {after} without, {crowded[1]} with them again")
        assert crowded[0] - empty < 2000 * 60, "kilobytes for each"
        # What was freed is there for the next ones; Python gives little of it back to the system.
        assert crowded[1] - crowded[0] < 0.1 * (crowded[0] - empty)
        assert after - crowded[0] < 0.1 * (crowded[0] - empty)

    more = ("--visitors-per-address", "10000", "--hello-seconds", "60")  # on a slow machine too
    with server_process(url, tiny_model_dir, *more) as server:
        run(test, LIMIT)
