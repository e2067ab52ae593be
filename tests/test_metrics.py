"""Metrics: each counts what it says, in base units, and is documented."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chatbot.replies import Failed, Finished, Reply
from server import http
from server.database import connect
from server.engine import Timing
from server.keys import Keys
from server.metrics import LAG_EVERY, Metrics
from tests.chat_client import chatting
from tests.live_server import LiveServer, serving
from tests.scripted_batcher import parrot

DOCS = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


@pytest.fixture
def server(tiny_model_dir: Path, tmp_path: Path) -> Iterator[LiveServer]:
    with serving(f"sqlite:///{tmp_path / 'turnwise.db'}", tiny_model_dir, parrot, rows=2, waiting=0) as live:
        yield live


def ask(server: LiveServer, path: str, key: str = "") -> tuple[int, str, str]:
    connection = HTTPConnection(urlsplit(server.address).netloc, timeout=20)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        return response.status, response.headers["content-type"], response.read().decode()
    finally:
        connection.close()


def values(text: str) -> dict[str, float]:
    """`{"name{label=value}": value}` of every sample."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def read(server: LiveServer) -> dict[str, float]:
    status, kind, text = ask(server, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return values(text)


# --- of a server that is used -------------------------------------------------------------------------------


def test_a_chat_is_counted(server: LiveServer) -> None:
    before = read(server)
    assert before["turnwise_replies_total{outcome=stop}"] == 0  # the probe at the start is no reply
    assert before["turnwise_connections"] == 0

    async def talk() -> dict[str, float]:
        async with chatting(server.address) as client:
            await client.hello()
            await client.say("one two three", "1")
            await client.reply()
            await client.say("one two three", "1")  # again, which changes nothing
            return await asyncio.to_thread(read, server)

    after = asyncio.run(talk())
    assert after["turnwise_connections"] == 1
    assert after["turnwise_replies_total{outcome=stop}"] == 1
    assert after["turnwise_reply_tokens_total"] == 1  # the script's
    for name in ("reply_seconds", "reply_first_token_seconds", "reply_queue_seconds"):
        assert after[f"turnwise_{name}_count"] == 1
        assert 0 <= after[f"turnwise_{name}_sum"] < 20
    assert after["turnwise_messages_committed_total{role=user}"] == 1
    assert after["turnwise_messages_committed_total{role=agent}"] == 1
    assert after["turnwise_commit_requests_sum"] >= 4  # visitor, conversation, turn and its repetition, reply
    assert after["turnwise_commit_seconds_count"] == after["turnwise_commit_requests_count"] >= 3
    assert (after["turnwise_places"], after["turnwise_rows"]) == (2, 2)
    assert after["turnwise_replies_refused_total"] == 0


def test_what_is_busy_is_seen_while_it_is(server: LiveServer) -> None:
    async def hold() -> tuple[dict[str, float], dict[str, float]]:
        async with (
            chatting(server.address) as first,
            chatting(server.address) as second,
            chatting(server.address) as third,
        ):
            for client in (first, second, third):
                await client.hello()
            server.gate.close()
            for client in (first, second):
                await client.say("one two")
            server.gate.let(2)
            for client in (first, second):
                await client.first_words()
            await third.send_raw('{"type": "say", "id": "1", "text": "no place for me"}')
            while (await third.receive()).type != "error":
                pass
            during = await asyncio.to_thread(read, server)
            server.gate.open()
            for client in (first, second):
                await client.reply()
            return during, await asyncio.to_thread(read, server)

    during, after = asyncio.run(hold())
    assert during["turnwise_places_in_use"] == during["turnwise_rows_in_use"] == 2
    assert during["turnwise_connections"] == 3
    assert during["turnwise_replies_refused_total"] == 1
    assert after["turnwise_places_in_use"] == after["turnwise_rows_in_use"] == 0
    assert after["turnwise_replies_waiting"] == after["turnwise_writes_waiting"] == 0


def test_the_api_is_counted_by_status(server: LiveServer) -> None:
    engine = connect(str(server.store._engine.url))
    key = Keys(engine).add("tests")
    engine.dispose()
    ask(server, "/v1/models", key)
    ask(server, "/v1/models/none", key)
    ask(server, "/v1/models")
    found = read(server)
    counts = {name: value for name, value in found.items() if name.startswith("turnwise_api_requests_total")}
    assert counts == {f"turnwise_api_requests_total{{status={status}}}": 1 for status in (200, 401, 404)}


def test_the_process_and_the_model_are_told_of(server: LiveServer) -> None:
    found = read(server)
    model = json.loads(ask(server, "/version")[2])["model"]
    assert found[f"turnwise_model_info{{fingerprint={model}}}"] == 1
    assert found[f"turnwise_info{{version={http.version()}}}"] == 1
    assert found["process_resident_memory_bytes"] > 2**20
    assert found["process_open_fds"] > 3
    assert any(name.startswith("python_gc_collections_total") for name in found)


def test_nobodys_words_or_addresses_are_in_it(server: LiveServer) -> None:
    async def talk() -> str:
        async with chatting(server.address) as client:
            ready = await client.hello()
            await client.say("my secret")
            await client.reply()
            return ready.token

    token = asyncio.run(talk())
    text = ask(server, "/metrics")[2]
    for hidden in ("secret", token, "127.0.0.1"):
        assert hidden not in text


# --- who may read it ----------------------------------------------------------------------------------------


def test_it_can_be_kept_for_those_who_have_a_key(tiny_model_dir: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    with serving(url, tiny_model_dir, parrot, metrics="key") as server:
        engine = connect(url)
        key = Keys(engine).add("prometheus")
        engine.dispose()
        for wrong in ("", "tw-wrong"):
            status, _, text = ask(server, "/metrics", wrong)
            assert (status, json.loads(text)["error"]["code"]) == (401, "unauthenticated")
        assert ask(server, "/metrics", key)[0] == 200


def test_it_can_be_switched_off(tiny_model_dir: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    with serving(url, tiny_model_dir, parrot, metrics="off") as server:
        assert ask(server, "/metrics")[0] == 404


# --- alone --------------------------------------------------------------------------------------------------


def ended(tokens: int, reason: str = "stop") -> Finished:
    ids = tuple(range(tokens))
    return Finished("x", Reply("", ids, (-1.0,) * tokens, reason, 0, ()))  # type: ignore[arg-type]


def test_every_outcome_is_counted_as_what_it_is() -> None:
    metrics = Metrics("1")
    metrics.reply_ended(ended(11), Timing(10, 110, 1110))
    metrics.reply_ended(ended(1, "length"), Timing(0, 5, 5))
    metrics.reply_ended(ended(0, "cancelled"), Timing(2000, None, 2000))
    metrics.reply_ended(Failed("x", "no"), Timing(0, None, 30))
    found = values(metrics.text().decode())
    for outcome in ("stop", "length", "cancelled", "failed"):
        assert found[f"turnwise_replies_total{{outcome={outcome}}}"] == 1
    assert found["turnwise_reply_tokens_total"] == 12
    assert found["turnwise_reply_queue_seconds_sum"] == pytest.approx(2.01)
    assert found["turnwise_reply_seconds_sum"] == pytest.approx(3.145)
    assert found["turnwise_reply_first_token_seconds_sum"] == pytest.approx(0.115)
    assert found["turnwise_reply_first_token_seconds_count"] == 2
    assert found["turnwise_token_seconds_sum"] == pytest.approx(0.1)  # a second for the ten after the first
    assert found["turnwise_token_seconds_count"] == 1


def test_the_loops_lag_is_what_it_came_too_late() -> None:
    metrics = Metrics("1")
    now = [50.0]
    late = iter([0.0, 0.03, 0.5])

    async def sleep(seconds: float) -> None:
        assert seconds == LAG_EVERY
        now[0] += seconds + next(late)

    async def test() -> None:
        with pytest.raises(RuntimeError):  # the end of the script
            await metrics.watch_loop(lambda: now[0], sleep)

    asyncio.run(test())
    found = values(metrics.text().decode())
    assert found["turnwise_event_loop_lag_seconds_sum"] == pytest.approx(0.53)
    assert found["turnwise_event_loop_lag_seconds_bucket{le=0.02}"] == 1
    assert found["turnwise_event_loop_lag_seconds_bucket{le=0.05}"] == 2
    assert found["turnwise_event_loop_lag_seconds_count"] == 3


def test_a_running_server_samples_its_loop(server: LiveServer) -> None:
    deadline = 200
    while not read(server)["turnwise_event_loop_lag_seconds_count"]:
        deadline -= 1
        assert deadline, "nothing was sampled"


def test_every_metric_is_documented_with_its_kind(server: LiveServer) -> None:
    rows = dict(
        re.findall(r"^\| `(turnwise_\w+)(?:\{\w+\})?` \| (\w+) \|", DOCS.read_text("utf-8"), re.MULTILINE)
    )
    found = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in text_string_to_metric_families(ask(server, "/metrics")[2])
        if family.name.startswith("turnwise_") and not family.name.endswith("_created")
    }
    assert rows == found
