"""What a trusted server does when it is mistreated, below the messages; docs/abuse.md has the catalogue."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import ssl
import statistics
import time
from functools import partial
from pathlib import Path

import pytest

from server.chat_socket import Scope
from server.limits import MAX_HEADERS, from_this_machine
from server.protocol import Error, Hello, Ping, Pong
from server.settings import Settings
from server.wire import ChatProtocol
from tests.chat_client import ChatClient, chatting, run
from tests.live_server import LiveServer, serving
from tests.raw_client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, UPGRADE, frame, raw
from tests.scripted_batcher import parrot

pytest_plugins = ["tests.chat_fixtures"]

SAY_PING = b'{"type": "ping"}'


def still_serves(server: LiveServer) -> None:
    """Somebody else notices nothing."""

    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            await client.say("still there?")
            assert (await client.reply()).text == "still there? "

    run(test)


def status_of(head: bytes) -> int:
    return int(head.split(b" ", 2)[1])


# --- 1: who may come --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("programs", "code"), [("nobody", 4401), ("loopback", None), ("anyone", None)])
def test_a_program_begins_without_a_token_only_where_it_may(
    tiny_model_dir: Path, url: str, programs: str, code: int | None
) -> None:
    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as program:
            await program.send(Hello())
            assert await said_no(program) == code
        async with chatting(running.address, origin=running.address) as page:
            token = (await page.hello()).token
        async with chatting(running.address) as program:
            await program.hello(token=token)

    async def said_no(program: ChatClient) -> int | None:
        if not isinstance(message := await program.receive(), Error):
            return None
        assert (message.code, message.message) == ("unauthenticated", "a program needs a token here")
        return await program.closed()

    with serving(url, tiny_model_dir, parrot, programs=programs) as running:
        run(partial(test, running))


def test_behind_a_proxy_that_nobody_vouches_for_a_program_is_not_of_this_machine(server: LiveServer) -> None:
    async def test() -> None:
        forwarded = {"X-Forwarded-For": "203.0.113.7"}
        async with chatting(server.address, additional_headers=forwarded) as program:
            await program.send(Hello())
            assert (await program.expect(Error)).code == "unauthenticated"
            assert await program.closed() == 4401

    run(test)


@pytest.mark.parametrize(
    ("client", "headers", "local"),
    [
        (("127.0.0.1", 5), [], True),
        (("127.8.9.1", 5), [], True),
        (("::1", 5), [], True),
        (("::ffff:127.0.0.1", 5), [], True),
        (("::ffff:192.0.2.1", 5), [], False),
        (("192.0.2.1", 5), [], False),
        (("127.0.0.1", 5), [(b"x-forwarded-for", b"192.0.2.1")], False),
        (("127.0.0.1", 5), [(b"forwarded", b"for=192.0.2.1")], False),
        (("localhost.evil.example", 5), [], False),
        (None, [], False),
    ],
)
def test_what_is_of_this_machine(
    client: tuple[str, int] | None, headers: list[tuple[bytes, bytes]], local: bool
) -> None:
    scope: Scope = {"client": client, "headers": headers}
    assert from_this_machine(scope) is local


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://127.0.0.1.evil.example"])
def test_a_foreign_page_is_refused_on_loopback_too(
    server: LiveServer, origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    with raw(server.address) as client:
        client.request(*UPGRADE, f"Origin: {origin}")
        assert status_of(client.head()) == 403
        assert client.ended()
    assert not caplog.records, "a page's fault is none of the server's"


# --- 2 and 3: handshakes that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "statuses"),
    [
        ([*UPGRADE[:5], "Sec-WebSocket-Version: 12"], {426, 400}),
        ([*UPGRADE[:4], "Sec-WebSocket-Version: 13"], {400}),
        ([*UPGRADE[:4], "Sec-WebSocket-Key: short", "Sec-WebSocket-Version: 13"], {400}),
        ([*UPGRADE, "Sec-WebSocket-Protocol: \u00ff"], {400}),
        (["POST /v1/chat HTTP/1.1", *UPGRADE[1:]], {405}),
        (["POST /v1/chat HTTP/1.1", *UPGRADE[1:], "Content-Length: 5"], {405}),
        ([*UPGRADE, "Content-Length: 5"], {400}),
        ([*UPGRADE, "Transfer-Encoding: chunked"], {400}),
        ([*UPGRADE, *(f"X-{n}: 1" for n in range(MAX_HEADERS))], {431}),
        ([*UPGRADE, *(f"X-{n}: 1" for n in range(300))], {431}),
        ([*UPGRADE, "X-Long: " + "x" * 8_200], {431}),
        ([*UPGRADE, "X-Long: " + "x" * 100_000], {400, 431}),
        (["GET /v1/chat?" + "x" * 8_200 + " HTTP/1.1", *UPGRADE[1:]], {431, 414}),
        (["GET /v1/chat?" + "x" * 20_000 + " HTTP/1.1", *UPGRADE[1:]], {400, 414}),
        (["GET /" + "x" * 20_000 + " HTTP/1.1", "Host: {host}"], {400, 414}),
        (["GET / HTTP/1.1", "Host: {host}", *(f"X-{n}: 1" for n in range(300))], {431}),
        (["GET / HTTP/1.1", "Host: {host}", "X-Long: " + "x" * 100_000], {400, 431}),
        (["GET / HTTP/1.1"], {400}),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, set) else f"{value[0][:24]} {value[-1][:24]}",
)
def test_a_handshake_that_is_none_is_refused_at_once(
    server: LiveServer, lines: list[str], statuses: set[int]
) -> None:
    with raw(server.address) as client:
        began = time.monotonic()
        client.request(*lines)
        assert status_of(client.head()) in statuses
        error = json.loads(client.rest())["error"]
        assert error.keys() == {"code", "message"}
        assert time.monotonic() - began < Settings().request_seconds / 2, "it waited for a timeout"
    still_serves(server)


def test_as_many_headers_as_there_may_be_are_taken(server: LiveServer) -> None:
    with raw(server.address) as client:
        client.request(*UPGRADE, *(f"X-{n}: {'x' * 80}" for n in range(MAX_HEADERS - len(UPGRADE) + 1)))
        assert status_of(client.head()) == 101


# --- 4: slowly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET / HT",
        b"GET /v1/chat HTTP/1.1\r\nUpgrade: websocket\r\nConnec",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["nothing", "a line", "a header", "a second request"],
)
def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(
    tiny_model_dir: Path, url: str, beginning: bytes
) -> None:
    """The last one has its first request answered, and is slow with the next."""
    with serving(url, tiny_model_dir, parrot, request_seconds=0.5) as running, raw(running.address) as client:
        client.send(beginning)
        began = time.monotonic()
        client.socket.settimeout(0.05)
        while time.monotonic() - began < 20:
            try:
                client.send(b"G")
                if not client.socket.recv(4096):
                    break
            except TimeoutError:
                pass
            except OSError:
                break
        else:
            pytest.fail("it is still being waited for")
    assert Settings().request_seconds < 10


def test_who_takes_too_long_is_told_so(tiny_model_dir: Path, url: str) -> None:
    with serving(url, tiny_model_dir, parrot, request_seconds=0.2) as running, raw(running.address) as client:
        client.send(b"GET / HTTP/1.1\r\nHos")
        assert status_of(client.head()) == 408
        assert client.ended()


def test_a_request_in_time_is_not_cut_off(tiny_model_dir: Path, url: str) -> None:
    """The time is for the head: a chat lives longer than that."""

    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as client:
            await client.hello()
            for _ in range(4):
                await asyncio.sleep(0.1)
                await client.send(Ping())
                await client.expect(Pong)

    with serving(url, tiny_model_dir, parrot, request_seconds=0.2) as running:
        run(partial(test, running))


# --- 5: not HTTP ------------------------------------------------------------------------------------------


def test_what_is_not_http_is_refused_with_one_short_line_in_the_log(
    server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    client_hello = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_hello.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    for garbage in (outgoing.read(), bytes(range(256)) * 8, b"\r\n" * 40, b"\x00" * 64, b"SSH-2.0-x\r\n\r\n"):
        caplog.clear()
        with raw(server.address) as client:
            client.send(garbage)
            assert client.head()[:12] in (b"", b"HTTP/1.1 400")
            assert client.ended()
        assert len(caplog.records) <= 1
        assert all(len(record.getMessage()) < 100 for record in caplog.records)
    still_serves(server)


@pytest.mark.parametrize(
    ("path", "waits", "status"), [("/nowhere", False, 404), ("/v1/chat/completions", True, 400)]
)
def test_a_body_that_is_none_is_no_error_of_the_server(
    server: LiveServer, caplog: pytest.LogCaptureFixture, path: str, waits: bool, status: int
) -> None:
    """Whether its request is answered before or waits for the body."""
    with raw(server.address) as client:
        client.request(f"POST {path} HTTP/1.1", "Host: {host}", "Transfer-Encoding: chunked")
        head = b"" if waits else client.head()
        client.send(b"no length of a chunk\r\n")
        assert status_of(head or client.head()) == status
        assert b"HTTP/1.1" not in client.rest(), "one request, one answer"
    still_serves(server)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- 6 to 9: frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, SAY_PING, masked=False),
        frame(0x3),
        frame(0xB),
        bytes([0x80 | 0x40 | TEXT, 0x80, 0, 0, 0, 0]),
        bytes([0x80 | 0x20 | TEXT, 0x80, 0, 0, 0, 0]),
        frame(PING, b"x" * 126),
        frame(PING, b"x", fin=False),
        frame(CONTINUATION, b"x"),
        frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"),
        frame(CLOSE, (1005).to_bytes(2, "big")),
        frame(CLOSE, (999).to_bytes(2, "big")),
        frame(CLOSE, b"\x03"),
    ],
    ids=[
        "unmasked", "reserved opcode", "reserved control opcode", "RSV1", "RSV2", "long ping",
        "fragmented ping", "stray continuation", "new message in another", "close 1005", "close 999",
        "half a close code",
    ],
)  # fmt: skip
def test_a_frame_against_the_rules_is_1002(server: LiveServer, data: bytes) -> None:
    with raw(server.address) as client:
        client.upgrade()
        client.send(data)
        assert client.close_code() == 1002
        assert client.ended()


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, b'{"\xff": 1}'),
        frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"(", fin=True),
        frame(TEXT, b"\xed\xa0\x80"),
        frame(CLOSE, (1000).to_bytes(2, "big") + b"\xff"),
    ],
    ids=["whole", "split", "half a surrogate pair", "in a close"],
)
def test_text_that_is_not_utf_8_is_1007(
    server: LiveServer, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with raw(server.address) as client:
        client.upgrade()
        client.send(data)
        assert client.close_code() == 1007
    assert len(caplog.records) <= 1


def test_a_character_may_be_split_over_fragments(server: LiveServer) -> None:
    with raw(server.address) as client:
        client.upgrade()
        text = '{"type": "hello", "token": "é🙂"}'.encode()
        for at in range(len(text)):
            client.frame(TEXT if at == 0 else CONTINUATION, text[at : at + 1], fin=at == len(text) - 1)
        found = client.next_frame()
        assert found is not None
        assert b'"unauthenticated"' in found[1]  # it was read: such a token is nobody's


def test_a_frame_that_claims_2_to_62_bytes_is_refused_by_its_header(server: LiveServer) -> None:
    with raw(server.address) as client:
        client.upgrade()
        client.send(bytes([0x80 | BINARY, 0x80 | 127]) + (2**62).to_bytes(8, "big") + b"\0\0\0\0")
        assert client.close_code() == 1009


def test_fragments_that_add_up_are_refused(server: LiveServer) -> None:
    with raw(server.address) as client:
        client.upgrade()
        client.frame(TEXT, b"x" * 40_000, fin=False)
        client.frame(CONTINUATION, b"x" * 25_537, fin=False)
        assert client.close_code() == 1009


def test_empty_fragments_take_no_memory_and_no_more_than_their_pace(tiny_model_dir: Path, url: str) -> None:
    with (
        serving(url, tiny_model_dir, parrot, frames_per_second=50_000) as running,
        raw(running.address) as client,
    ):
        client.upgrade()
        client.frame(TEXT, b"", fin=False)
        client.send(frame(CONTINUATION, b"", fin=False) * 200_000)
        client.frame(PING, b"through")
        found = client.next_frame()
        assert found == (PONG, b"through")
        [protocol] = chat_protocols()
        assert len(protocol.frames) == 1
        client.frame(CONTINUATION, SAY_PING)
        found = client.next_frame()
        assert found == (TEXT, b'{"type":"pong"}')


def test_compression_is_not_to_be_had(server: LiveServer) -> None:
    with raw(server.address) as client:
        client.request(*UPGRADE, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
        head = client.head()
        assert status_of(head) == 101
        assert b"extensions" not in head.lower()


# --- 10 to 13: too much of it, and nothing at all ---------------------------------------------------------


def test_a_flood_of_pings_is_read_at_its_pace_and_others_notice_nothing(
    tiny_model_dir: Path, url: str
) -> None:
    rate, sent = 200, 20_000

    async def others(running: LiveServer) -> None:
        async with chatting(running.address) as client:
            await client.hello()
            waits = []
            for _ in range(100):
                began = time.monotonic()
                await client.send(Ping())
                await client.expect(Pong)
                waits.append(time.monotonic() - began)
            assert statistics.quantiles(waits, n=100)[-1] < 1

    with (
        serving(url, tiny_model_dir, parrot, frames_per_second=rate) as running,
        raw(running.address) as flood,
    ):
        flood.upgrade()
        began = time.monotonic()
        flood.send(frame(PING) * sent)
        run(partial(others, running))
        flood.socket.settimeout(0.2)
        answered = 0
        try:
            while answered < 3 * rate and (found := flood.next_frame()) is not None:
                answered += found[0] == PONG
        except TimeoutError:
            pass
        # A burst of two seconds, and a chunk that was taken on credit.
        assert answered <= rate * (2 + time.monotonic() - began) + 400
        assert answered < sent / 4


def test_a_flood_of_messages_is_read_at_its_pace_and_loses_none(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as client:
            await client.hello()
            began = time.monotonic()
            for _ in range(400):
                await client.send(Ping())
            for _ in range(400):
                await client.expect(Pong)
            assert time.monotonic() - began > 1  # 200 at once, then 100 a second, one turn on credit

    with serving(url, tiny_model_dir, parrot, frames_per_second=100) as running:
        run(partial(test, running))


def test_who_reads_a_byte_at_a_time_is_gone_as_soon_as_who_reads_none(tiny_model_dir: Path, url: str) -> None:
    with serving(url, tiny_model_dir, parrot, ping_seconds=0.3) as running:
        grant = running.store.new_visitor()
        conversation = running.store.open_conversation(grant.visitor_id)
        for number in range(100):
            running.store.add_user_turn(conversation, str(number), "x" * 60_000, {})
        with raw(running.address) as slow:
            slow.upgrade()
            hello = f'{{"type": "hello", "token": "{grant.token}", "conversation": "{conversation}"}}'
            slow.frame(TEXT, hello.encode())
            began = time.monotonic()
            while chat_protocols():
                assert time.monotonic() - began < 20
                time.sleep(0.01)
                slow.socket.recv(1)


def test_a_server_that_closes_does_not_wait_for_a_peer_that_does_not_read(
    tiny_model_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.wire.CLOSING", 0.3)
    with serving(url, tiny_model_dir, parrot, hello_seconds=0.2) as running, raw(running.address) as deaf:
        deaf.upgrade()
        began = time.monotonic()
        while chat_protocols():  # told 4408, it neither answers nor hangs up
            assert time.monotonic() - began < 10
            time.sleep(0.01)


def test_connections_that_come_and_go_leave_nothing(tiny_model_dir: Path, url: str) -> None:
    async def wave(running: LiveServer) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(60):
                group.create_task(one(running))

    async def one(running: LiveServer) -> None:
        async with chatting(running.address) as client:
            await client.hello()

    with serving(url, tiny_model_dir, parrot, connections_per_address=100) as running:
        for _ in range(5):  # three times as many as there may be at a time
            run(partial(wave, running))
        began = time.monotonic()
        while chat_protocols():
            assert time.monotonic() - began < 20
            time.sleep(0.01)
        still_serves(running)


def test_connections_without_a_request_are_counted_and_the_next_is_cut_off(
    tiny_model_dir: Path, url: str
) -> None:
    with serving(url, tiny_model_dir, parrot, connections_per_address=3, request_seconds=30) as running:
        idle = [raw(running.address) for _ in range(3)]
        clients = [each.__enter__() for each in idle]
        with raw(running.address) as fourth:
            assert fourth.ended()
        clients[0].upgrade()  # a chat is counted as a chat from here on
        with raw(running.address) as fifth:
            fifth.request("GET /livez HTTP/1.1", "Host: {host}")
            assert status_of(fifth.head()) == 200
        for each in idle:
            each.__exit__(None, None, None)


def test_a_peer_that_is_not_there_is_gone_within_40_seconds() -> None:
    """Two intervals, as test_server.py measures with short ones."""
    assert 2 * Settings().ping_seconds < 40


def test_an_http_flood_is_answered_429_and_health_is_not_counted(tiny_model_dir: Path, url: str) -> None:
    with (
        serving(url, tiny_model_dir, parrot, requests_per_address=5) as running,
        raw(running.address) as client,
    ):
        heads = []
        for _ in range(6):
            client.request("GET /version HTTP/1.1", "Host: {host}")
            heads.append(client.head())
            client.socket.settimeout(0.5)
        assert [status_of(head[head.index(b"HTTP/1.1") :]) for head in heads] == [200] * 5 + [429]
        assert b"retry-after: " in heads[-1]
    with (
        serving(url, tiny_model_dir, parrot, requests_per_address=1) as running,
        raw(running.address) as client,
    ):
        for _ in range(3):
            client.request("GET /livez HTTP/1.1", "Host: {host}")
            assert b" 200 " in client.head()


def test_new_visitors_come_at_their_pace_and_known_ones_always(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as first, chatting(running.address) as second:
            token = (await first.hello()).token
            await second.send(Hello())
            error = await second.expect(Error)
            assert error.code == "busy"
            assert error.retry_after
            assert 1 <= error.retry_after <= 60
            await second.hello(token=token)  # the refusal was no fault, and who is known comes in

    with serving(url, tiny_model_dir, parrot, visitors_per_address=1) as running:
        run(partial(test, running))


def chat_protocols() -> list[ChatProtocol]:
    """The WebSockets that the process still knows of."""
    gc.collect()
    return [
        each for each in gc.get_objects() if type(each) is ChatProtocol
    ]  # isinstance would ask each for its class
