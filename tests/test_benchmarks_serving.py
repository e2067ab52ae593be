"""The serving benchmark runs and reports what it promises; how fast is not asserted."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import load, serving, serving_picture, transformers_peer
from benchmarks.load import Busy, Chat, ChatFailed, Exchange, Round, chats, percentile
from benchmarks.prometheus import Scrape
from benchmarks.serving import OPTIONS, TEXTS, Plan
from chatbot.model_directory import describe
from chatbot.replies import ReplyRequest
from server.recipe import Recipe
from tests.live_server import LiveServer
from tests.live_server import serving as live_server

KEYS = {"name", "value", "unit", "reference", "reference_is", "ratio"}


def strict(text: str) -> dict[str, Any]:
    """JSON without NaN and infinity, which others do not read."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


PEER = """
import sys
print("ready", "1.2", 34, flush=True)
for line in sys.stdin:
    print(0.5, float(line), flush=True)
"""


@pytest.mark.slow
def test_serving_is_measured_beside_the_batcher(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peer.py").write_text(PEER)
    monkeypatch.setattr(transformers_peer, "__file__", str(tmp_path / "peer.py"))
    monkeypatch.setattr(serving, "TURNS", (2, 6))
    serving.main(
        [
            *("--models", str(tiny_model_dir), "--chats", "1", "3", "--rounds", "1", "--repeats", "2"),
            *("--seconds", "1", "--warm-up", "0.5", "--crowd", "20", "--transformers", sys.executable),
        ]
    )
    found = [strict(line) for line in capsys.readouterr().out.splitlines()]
    assert all(figure.keys() >= KEYS for figure in found)
    under_load = ["rate", "first_token_p50", "per_token_p50", "first_token_p99", "per_token_p99"]
    under_load += ["loop_lag_p99", "ping_p50", "ping_p99"]
    assert [figure["name"] for figure in found] == [
        "serving_idle_connection",
        *("serving_turn_2_first_token", "serving_turn_6_first_token"),
        *(f"serving_1_{name}" for name in under_load),
        *(f"serving_3_{name}" for name in under_load),
        "serving_refuses_after",
        *(
            f"serving_{level}_beside_{kind}_{name}"
            for kind in ("gpt2", "blenderbot")
            for level in (1, 16)
            for name in ("first_token", "rate")
        ),
    ]
    values = {figure["name"]: figure["value"] for figure in found}
    assert values["serving_refuses_after"] == 20  # nobody is refused
    assert all(values[f"serving_{level}_rate"] > 0 for level in (1, 3))


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[LiveServer]:
    """A server whose model repeats what it hears, word by word."""

    def script(request: ReplyRequest) -> list[str]:
        return [f"{word} " for word in request.turns[-1][1].split()]

    url = f"sqlite:///{tmp_path_factory.mktemp('load') / 'load.db'}"
    with live_server(url, tiny_model_dir, script, rows=2, waiting=0) as found:
        yield found


def port_of(server: LiveServer) -> int:
    return int(server.address.rpartition(":")[2])


def test_a_chat_is_timed_from_the_say_to_its_last_text(echo: LiveServer) -> None:
    async def talk() -> tuple[Exchange, Exchange, float]:
        async with chats(port_of(echo), 1) as (chat,):
            return await chat.say("one two", OPTIONS), await chat.say("x" * 200, OPTIONS), await chat.ping()

    first, second, ping = asyncio.run(talk())
    assert first.asked < first.first <= first.last < second.asked < second.first <= second.last
    assert first.tokens == OPTIONS["max_tokens"]
    assert ping > 0


def test_who_finds_no_place_is_told_when_to_come_back(echo: LiveServer) -> None:
    async def crowd() -> list[Exchange | BaseException]:
        async with chats(port_of(echo), 4) as clients:
            echo.gate.close()
            saying = [asyncio.create_task(chat.say("hello", OPTIONS)) for chat in clients]
            done: set[asyncio.Task[Exchange]] = set()
            while len(done) < 2:
                done, _ = await asyncio.wait(saying, return_when=asyncio.FIRST_COMPLETED)
            echo.gate.open()
            return await asyncio.gather(*saying, return_exceptions=True)

    outcomes = asyncio.run(crowd())
    busy = [outcome for outcome in outcomes if isinstance(outcome, Busy)]
    assert len(busy) == 2
    assert all(refusal.retry_after > 0 and refusal.seconds > 0 for refusal in busy)


def test_a_chat_that_is_refused_for_good_fails(echo: LiveServer) -> None:
    async def talk() -> None:
        async with chats(port_of(echo), 1) as (chat,):
            await chat.say("hello", OPTIONS | {"max_tokens": -1})

    with pytest.raises(ChatFailed, match="bad_option"):
        asyncio.run(talk())


def test_frames_are_found_however_they_come() -> None:
    texts = [b"a" * 5, b"b" * 300, b"c" * 70_000, b""]
    stream = b"".join(
        bytes([0x81])
        + (
            bytes([len(text)])
            if len(text) < 126
            else b"\x7e" + len(text).to_bytes(2)
            if len(text) < 65536
            else b"\x7f" + len(text).to_bytes(8)
        )
        + text
        for text in texts
    )
    for size in (1, 7, 1000, len(stream)):
        chat, found = Chat(), []
        for at in range(0, len(stream), size):
            chat._buffer += stream[at : at + size]
            found += list(chat._frames())
        assert found == [(1, text) for text in texts]


def test_a_frame_of_a_client_is_what_the_standard_says() -> None:
    assert load.frame(1, b"hi") == b"\x81\x82\0\0\0\0hi"
    assert load.frame(1, b"x" * 200)[:8] == b"\x81\xfe\x00\xc8\0\0\0\0"


def test_a_round_tells_its_rate_and_its_percentiles() -> None:
    exchanges = tuple(Exchange(0.0, 0.1 * n, 0.1 * n + 0.19, 20) for n in range(1, 102))
    found = Round(10.0, exchanges)
    assert found.tokens_per_second == 202.0
    assert found.first_token(50) == pytest.approx(5100)
    assert found.first_token(99) == pytest.approx(10_000)
    assert found.per_token(50) == pytest.approx(10)


def test_a_percentile_of_little() -> None:
    assert percentile([3.0], 99) == 3.0
    assert math.isnan(percentile([], 50))


METRICS = """
# TYPE lag_seconds histogram
lag_seconds_bucket{le="0.01"} %d
lag_seconds_bucket{le="0.02"} %d
lag_seconds_bucket{le="+Inf"} %d
"""


def test_a_quantile_is_that_of_what_came_since() -> None:
    before, after = Scrape.read(METRICS % (1000, 1000, 1000)), Scrape.read(METRICS % (1090, 1100, 1100))
    assert after.quantile("lag_seconds", 0.5, before) == pytest.approx(0.01 * 50 / 90)
    assert after.quantile("lag_seconds", 0.95, before) == pytest.approx(0.015)
    assert math.isnan(after.quantile("lag_seconds", 0.5, after))
    assert math.isnan(after.quantile("other_seconds", 0.5, before))
    beyond = Scrape.read(METRICS % (1000, 1000, 1010))
    assert beyond.quantile("lag_seconds", 0.99, before) == 0.02


def test_the_batcher_alone_answers_as_many_as_there_are(tiny_model_dir: Path) -> None:
    plan = Plan(1, 0.0, 0.5, 1, 1, (5,), 1, tiny_model_dir)
    sealed = describe(tiny_model_dir)
    found = serving.alone(Recipe.of(sealed, plan.settings, 16)(), sealed.defaults, 5, 0.0, 0.5)
    assert len(found.exchanges) > len(TEXTS)
    assert all(exchange.asked < exchange.last for exchange in found.exchanges)


def figures(levels: list[int]) -> list[str]:
    return [
        json.dumps({"name": f"serving_{level}_{name}", "value": level * number + 1.5, "chats": level})
        for number, name in enumerate(["rate", *(curve[0] for curve in serving_picture.CURVES)])
        for level in levels
    ]


def test_the_picture_shows_every_curve_at_every_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "figures").write_text("\n".join(figures([16, 1, 1000])))
    serving_picture.main([str(tmp_path / "figures")])
    svg = ET.fromstring(capsys.readouterr().out)
    words = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1", "16", "1000", *(label for _, label, *_ in serving_picture.CURVES)} <= set(words)
    dots = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
        for dot in svg.iter("{http://www.w3.org/2000/svg}circle")
    ]
    assert len(dots) == 3 * len(serving_picture.CURVES)
    left, right = serving_picture.LEFT, serving_picture.WIDTH - serving_picture.RIGHT
    middle = left + (right - left) * math.log(16, 1000)
    assert sorted({x for x, _ in dots}) == pytest.approx([left, middle, right], abs=0.1)
    assert all(serving_picture.TOP <= y <= serving_picture.HEIGHT - serving_picture.BOTTOM for _, y in dots)


def test_a_picture_of_one_load_is_none() -> None:
    with pytest.raises(ValueError, match="first_token_p99"):
        serving_picture.read(figures([16]))
