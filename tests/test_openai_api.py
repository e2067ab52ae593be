"""The OpenAI-compatible API, asked by OpenAI's own library and by clients that mistreat it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from sqlalchemy import func, select

from chatbot import model_directory
from chatbot.batcher import Batcher
from chatbot.model_directory import ACTIVE
from chatbot.options import DecodingOptions
from chatbot.replies import Finished, ReplyRequest
from chatbot.tokenizer import Tokenizer
from server import logs, openai_api, openai_request
from server.database import connect, reading
from server.keys import Keys
from server.openai_stop import StopStrings
from server.store_errors import StoreUnavailable
from server.tables import Conversation, Message
from tests.live_server import LiveServer, serving
from tests.models import seal_tiny
from tests.scripted_batcher import ScriptedBatcher, parrot

HELLO: list[Any] = [{"role": "user", "content": "one two three"}]


FOREVER: list[Any] = [{"role": "user", "content": "forever"}]


def talk(request: ReplyRequest) -> list[str]:
    """Repeats the last turn, but has far more to say to one of them than anybody waits for."""
    return ["word "] * 1_000_000 if request.turns[-1][1] == "forever" else parrot(request)


@dataclass
class Api:
    """A live server, a key to it, and OpenAI's library set up with nothing but these."""

    live: LiveServer
    key: str
    keys: Keys
    client: OpenAI

    @property
    def batcher(self) -> ScriptedBatcher:
        assert self.live.batcher is not None
        return self.live.batcher


@pytest.fixture(scope="module")
def api(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One whose model repeats what it is told."""
    yield from started(tmp_path_factory.mktemp("api"), tiny_model_dir, talk)


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One with the untrained model."""
    yield from started(tmp_path_factory.mktemp("api"), tiny_model_dir, None)


def started(folder: Path, models: Path, script: Any, **settings: Any) -> Iterator[Api]:
    url = f"sqlite:///{folder / 'turnwise.db'}"
    with serving(url, models, script, **{"replies_per_key": 100, **settings}) as live:
        engine = connect(url)
        keys = Keys(engine)
        key = keys.add("tests")
        with library(live, key) as client:
            yield Api(live, key, keys, client)
        engine.dispose()


def library(live: LiveServer, key: str) -> OpenAI:
    past_proxies = openai.DefaultHttpxClient(trust_env=False)
    return OpenAI(
        base_url=f"{live.address}/v1", api_key=key, max_retries=0, timeout=20, http_client=past_proxies
    )


def post(api: Api, body: Any, *, key: str | None = None) -> HTTPResponse:
    """A request of our own making; `body` is sent as it is if it is bytes."""
    connection = HTTPConnection(urlsplit(api.live.address).netloc, timeout=20)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {key or api.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", data, headers)
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def answer(response: HTTPResponse) -> Any:
    return json.loads(response.body)  # type: ignore[attr-defined]


def asking(**more: Any) -> dict[str, Any]:
    return {"model": "turnwise", "messages": HELLO, **more}


def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread is about to do."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


# --- the library ------------------------------------------------------------------------------------------


def test_the_library_gets_a_reply(api: Api) -> None:
    found = api.client.chat.completions.create(model="turnwise", messages=HELLO)
    assert found.object == "chat.completion"
    assert found.id.startswith("chatcmpl-")
    assert found._request_id == found.id
    assert found.model == found.system_fingerprint
    assert found.model.startswith("tw-")
    assert abs(found.created - time.time()) < 60
    [choice] = found.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "one two three ")
    assert found.usage is not None
    assert found.usage.completion_tokens == 1  # the script's
    assert found.usage.total_tokens == found.usage.prompt_tokens + 1


def test_the_library_gets_a_reply_as_it_is_made(api: Api) -> None:
    chunks = list(api.client.chat.completions.create(model="turnwise", messages=HELLO, stream=True))
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert pieces == ["one ", "two ", "three "]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_when_that_is_asked_for(api: Api) -> None:
    whole = api.client.chat.completions.create(model="turnwise", messages=HELLO)
    *chunks, last = api.client.chat.completions.create(
        model="turnwise", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_the_librarys_own_stream_puts_the_pieces_together(api: Api) -> None:
    with api.client.chat.completions.stream(model="turnwise", messages=HELLO) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "one two three "


def test_the_asynchronous_library_works_as_well(api: Api) -> None:
    async def talk() -> tuple[str | None, str]:
        past_proxies = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=f"{api.live.address}/v1", api_key=api.key, http_client=past_proxies
        ) as client:
            plain = await client.chat.completions.create(model="turnwise", messages=HELLO)
            stream = await client.chat.completions.create(model="turnwise", messages=HELLO, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return plain.choices[0].message.content, "".join(pieces)

    assert asyncio.run(talk()) == ("one two three ", "one two three ")


def test_a_reply_goes_back_into_the_conversation_as_it_came(api: Api) -> None:
    first = api.client.chat.completions.create(model="turnwise", messages=HELLO)
    more: list[Any] = [*HELLO, first.choices[0].message, {"role": "user", "content": "four"}]
    second = api.client.chat.completions.create(model="turnwise", messages=more)
    assert second.choices[0].message.content == "four "
    turns = (("user", "one two three"), ("agent", "one two three "), ("user", "four"))
    assert api.batcher.requests[-1].turns == turns
    parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a b", "c")]}]
    third = api.client.chat.completions.create(model="turnwise", messages=parts)
    assert third.choices[0].message.content == "a bc "


def test_the_model_goes_by_two_names(api: Api) -> None:
    alias, fingerprint = api.client.models.list().data
    assert alias.id == "turnwise"
    assert fingerprint.id.startswith("tw-")
    assert (fingerprint.object, fingerprint.owned_by) == ("model", "turnwise")
    assert api.client.models.retrieve(fingerprint.id) == fingerprint
    named = api.client.chat.completions.create(model=fingerprint.id, messages=HELLO)
    assert named.model == fingerprint.id
    with pytest.raises(openai.NotFoundError) as refused:
        api.client.models.retrieve("gpt-4o")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as refused:
        api.client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_without_a_key_nobody_gets_anything(api: Api) -> None:
    revoked = api.keys.add("revoked")
    with library(api.live, revoked) as client:
        client.models.list()
        api.keys.revoke("revoked")
        for key in ("tw-wrong", revoked):
            client.api_key = key
            for ask in (
                client.models.list,
                lambda: client.models.retrieve("turnwise"),
                lambda: client.chat.completions.create(model="turnwise", messages=HELLO),
            ):
                with pytest.raises(openai.AuthenticationError) as refused:
                    ask()
                assert refused.value.code == "invalid_api_key"
                assert refused.value.type == "authentication_error"
                assert refused.value.response.headers["www-authenticate"] == "Bearer"
                assert key not in str(refused.value)


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer \u00e9"]
)
def test_only_a_bearer_of_the_whole_key_is_let_in(api: Api, value: str) -> None:
    connection = HTTPConnection(urlsplit(api.live.address).netloc, timeout=20)
    connection.request("GET", "/v1/models", headers={"authorization": value.format(key=api.key)})
    response = connection.getresponse()
    assert response.status == 401
    assert json.loads(response.read())["error"]["code"] == "invalid_api_key"
    connection.close()


# --- the untrained model: what options do -------------------------------------------------------------------


def alone(models: Path, turns: Any, **options: Any) -> Finished:
    """The reply of a batcher that makes no other."""
    bundle = model_directory.load(models)
    batcher = Batcher(bundle, rows=16)
    batcher.submit(ReplyRequest("x", turns, DecodingOptions.merged(bundle.defaults, options)))
    while True:
        for event in batcher.step():
            if isinstance(event, Finished):
                return event


def test_the_reply_is_the_models_own(tiny: Api, tiny_model_dir: Path) -> None:
    found = tiny.client.chat.completions.create(
        model="turnwise", messages=HELLO, temperature=0.7, top_p=0.9, max_tokens=9, seed=5
    )
    [choice] = found.choices
    turns = (("user", "one two three"),)
    reply = alone(
        tiny_model_dir, turns, decoding="sample", temperature=0.7, top_p=0.9, max_tokens=9, seed=5
    ).reply
    assert choice.message.content == reply.text.replace("\0", "\ufffd")
    assert choice.finish_reason == reply.finish_reason == "length"
    assert found.usage is not None
    assert found.usage.completion_tokens == len(reply.token_ids) == 9
    tokenizer = model_directory.load(tiny_model_dir).tokenizer
    assert found.usage.prompt_tokens == len(tokenizer.encode_turn("user", "one two three"))
    assert choice.model_extra == {"seed": 5}


def test_no_temperature_is_no_chance(tiny: Api, tiny_model_dir: Path) -> None:
    found = [
        tiny.client.chat.completions.create(model="turnwise", messages=HELLO, temperature=0)
        .choices[0]
        .message
        for _ in range(2)
    ]
    greedy = alone(tiny_model_dir, (("user", "one two three"),), decoding="greedy", seed=0).reply
    assert [one.content for one in found] == [greedy.text.replace("\0", "\ufffd")] * 2


def test_several_replies_have_seeds_of_their_own(tiny: Api) -> None:
    def ask(**more: Any) -> list[tuple[int, str | None]]:
        found = tiny.client.chat.completions.create(model="turnwise", messages=HELLO, temperature=1.0, **more)
        assert [choice.index for choice in found.choices] == list(range(len(found.choices)))
        return [((choice.model_extra or {})["seed"], choice.message.content) for choice in found.choices]

    three = ask(n=3, seed=10)
    assert [seed for seed, _ in three] == [10, 11, 12]
    assert len({text for _, text in three}) == 3
    assert [ask(seed=seed)[0] for seed, _ in three] == three
    assert [seed for seed, _ in ask(n=2, seed=2**63 - 1)] == [2**63 - 1, 0]


def test_several_replies_are_streamed_side_by_side(tiny: Api) -> None:
    settings: dict[str, Any] = {"model": "turnwise", "messages": HELLO, "temperature": 1.0, "n": 3, "seed": 4}
    whole = tiny.client.chat.completions.create(**settings)
    texts = {0: "", 1: "", 2: ""}
    ends: dict[int, str | None] = {}
    for chunk in tiny.client.chat.completions.create(stream=True, **settings):
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}


def test_log_probabilities_are_the_models(tiny: Api, tiny_model_dir: Path) -> None:
    settings: dict[str, Any] = {
        "model": "turnwise",
        "messages": HELLO,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
        "max_tokens": 6,
    }
    [choice] = tiny.client.chat.completions.create(**settings).choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    reply = alone(tiny_model_dir, (("user", "one two three"),), decoding="greedy", seed=0, max_tokens=6).reply
    bundle = model_directory.load(tiny_model_dir)
    spelled = [bundle.tokenizer.token_bytes(token) for token in reply.token_ids]
    assert [bytes(one.bytes or ()) for one in choice.logprobs.content] == spelled
    assert [one.logprob for one in choice.logprobs.content] == pytest.approx(reply.logprobs, abs=1e-4)
    for one in choice.logprobs.content:
        best = [top.logprob for top in one.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert one.logprob == pytest.approx(best[0])  # greedy takes the likeliest
    *_, last = tiny.client.chat.completions.create(stream=True, **settings)
    assert last.choices[0].logprobs is not None
    assert last.choices[0].logprobs.model_dump() == choice.logprobs.model_dump()


def test_a_beam_tells_its_alternatives(tiny: Api) -> None:
    [choice] = tiny.client.chat.completions.create(
        model="turnwise",
        messages=HELLO,
        max_tokens=5,
        extra_body={"decoding": "beam", "beam_size": 4, "n_best": 3},
    ).choices
    alternatives = (choice.model_extra or {})["alternatives"]
    assert len(alternatives) == 3
    assert alternatives[0]["text"] == choice.message.content
    scores = [one["score"] for one in alternatives]
    assert scores == sorted(scores, reverse=True)


def test_alternatives_end_before_a_stop_string_too(tiny: Api) -> None:
    def asked(**more: Any) -> Any:
        [choice] = tiny.client.chat.completions.create(
            model="turnwise",
            messages=HELLO,
            max_tokens=8,
            seed=1,
            extra_body={"decoding": "sample", "samples": 4, "n_best": 4},
            **more,
        ).choices
        return choice.message.content, [one["text"] for one in (choice.model_extra or {})["alternatives"]]

    said, alternatives = asked()
    stop = said[2:4]
    assert asked(stop=stop) == (said[:2], [text.partition(stop)[0] for text in alternatives])


def test_the_model_may_change_while_people_ask(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    models = tmp_path / "models"
    one, two = (seal_tiny(models / name, tiny_tokenizer, seed) for seed, name in enumerate(("one", "two")))
    (models / ACTIVE).write_text("one\n")
    for api in started(tmp_path, models, None):
        create = api.client.chat.completions.create
        assert create(model="turnwise", messages=HELLO).model == one
        (models / ACTIVE).write_text("two\n")
        until(lambda: api.client.models.list().data[1].id == two)  # noqa: B023
        assert create(model="turnwise", messages=HELLO).model == two
        with pytest.raises(openai.NotFoundError):
            create(model=one, messages=HELLO)


# --- options ------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "decoding": "beam",
    "temperature": 0.5,
    "samples": 3,
    "top_k": 7,
    "top_p": 0.5,
    "min_p": 0.25,
    "beam_size": 6,
    "n_best": 2,
    "beam_groups": 2,
    "group_penalty": 0.75,
    "length_penalty": 0.5,
    "coverage_penalty": 0.25,
    "diversity_penalty": 0.5,
    "max_tokens": 9,
    "min_tokens": 2,
    "no_repeat_ngram": 3,
    "no_repeat_context_ngram": 3,
    "no_repeat_reply": 4,
    "repetition_penalty": 1.5,
    "blocked": ["never"],
    "prefix": "Well",
    "seed": 77,
}
"""For each option a value that is not its default. Options that want other models are refused by name."""


def test_every_option_is_accounted_for() -> None:
    other_models = {"mmi_lambda", "mmi_gamma", "mmi_reverse", "mmi_length"}
    by_another_name = {"top_alternatives", "attention"}
    assert OPTIONS.keys() | other_models | by_another_name == DecodingOptions.model_fields.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_reaches_the_model(api: Api, name: str) -> None:
    assert post(api, asking(**{name: OPTIONS[name]})).status == 200
    found = getattr(api.batcher.requests[-1].options, name)
    assert found == (tuple(OPTIONS[name]) if isinstance(OPTIONS[name], list) else OPTIONS[name])


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, {}),
        ({"temperature": None, "top_p": None, "n": None, "stop": None, "stream": None}, {}),
        ({"temperature": 0}, {"decoding": "greedy"}),
        ({"temperature": 0.0, "top_p": 1}, {"decoding": "greedy", "top_p": 1}),
        ({"temperature": 1}, {"decoding": "sample", "temperature": 1}),
        ({"top_p": 0.5}, {"decoding": "sample", "top_p": 0.5}),
        ({"temperature": 0, "decoding": "beam"}, {"decoding": "beam"}),
        ({"temperature": 0.5, "decoding": "greedy"}, {"decoding": "greedy", "temperature": 0.5}),
        ({"max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 7, "max_tokens": 7}, {"max_tokens": 7}),
        ({"logprobs": True, "top_logprobs": 4}, {"top_alternatives": 4}),
        ({"seed": 9}, {"seed": 9}),
    ],
)
def test_openais_parameters_become_options(asked: dict[str, Any], options: dict[str, Any]) -> None:
    found = openai_request.parse(json.dumps(asking(**asked)).encode(), LIMITS)
    assert found.overrides == options


LIMITS = openai_request.Limits(messages=4, text=20, choices=3)


@pytest.mark.parametrize(
    "neutral",
    [
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {
            "response_format": {"type": "text"},
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
        },
        {"user": "u-1", "safety_identifier": "s", "prompt_cache_key": "k", "store": False, "metadata": {}},
        {"service_tier": "auto", "modalities": ["text"], "functions": [], "function_call": "none"},
        {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}},
        {"reasoning_effort": "none", "verbosity": None, "audio": None, "anything": None},
    ],
)
def test_what_asks_for_nothing_is_taken(neutral: dict[str, Any]) -> None:
    assert openai_request.parse(json.dumps(asking(**neutral)).encode(), LIMITS).overrides == {}


# --- what is refused ----------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # What is asked, the field that is named, the code.
    ({"model": None}, "model", "bad_request"),
    ({"model": 5}, "model", "bad_request"),
    ({"messages": None}, "messages", "bad_request"),
    ({"messages": []}, "messages", "bad_request"),
    ({"messages": "hello"}, "messages", "bad_request"),
    ({"messages": {"role": "user"}}, "messages", "bad_request"),
    ({"messages": ["hello"]}, "messages.0", "bad_request"),
    ({"messages": [{}]}, "messages.0.role", "unsupported_role"),
    ({"messages": [{"role": 5, "content": "x"}]}, "messages.0.role", "unsupported_role"),
    ({"messages": [{"role": "system", "content": "be nice"}, *HELLO]}, "messages.0.role", "unsupported_role"),
    ({"messages": [{"role": "developer", "content": "x"}, *HELLO]}, "messages.0.role", "unsupported_role"),
    ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages.1.role", "unsupported_role"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages.1.role", "bad_request"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "bad_request"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "bad_request"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "bad_request"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0", "bad_request"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content.0",
        "bad_request",
    ),
    ({"messages": [{**HELLO[0], "name": "Ana"}]}, "messages.0.name", "unsupported_parameter"),
    ({"messages": [{**HELLO[0], "tool_calls": [{}]}]}, "messages.0.tool_calls", "unsupported_parameter"),
    ({"messages": [{**HELLO[0], "colour": "red"}]}, "messages.0.colour", "unknown_parameter"),
    ({"messages": [{"role": "user", "content": "x" * 4001}]}, "messages.0.content", "too_long"),
    ({"messages": HELLO * 2001}, "messages", "too_long"),
    ({"colour": "red"}, "colour", "unknown_parameter"),
    ({"attention": True}, "attention", "unknown_parameter"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    ({"presence_penalty": False}, "presence_penalty", "unsupported_parameter"),
    ({"frequency_penalty": -1}, "frequency_penalty", "unsupported_parameter"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"store": True}, "store", "unsupported_parameter"),
    ({"user": "x" * 257}, "user", "bad_request"),
    ({"stream": 1}, "stream", "bad_request"),
    ({"stream": "true"}, "stream", "bad_request"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "bad_request"),
    ({"stream": True, "stream_options": {"colour": 1}}, "stream_options", "bad_request"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "bad_request"),
    ({"n": 0}, "n", "bad_option"),
    ({"n": 9}, "n", "bad_option"),
    ({"n": 10**9}, "n", "bad_option"),
    ({"n": 1.0}, "n", "bad_option"),
    ({"n": True}, "n", "bad_option"),
    ({"n": "2"}, "n", "bad_option"),
    ({"n": 2, "temperature": 0}, "n", "bad_request"),
    ({"n": 2, "decoding": "beam"}, "n", "bad_request"),
    ({"stop": ""}, "stop", "bad_request"),
    ({"stop": ["a"] * 5}, "stop", "bad_request"),
    ({"stop": ["a", 5]}, "stop", "bad_request"),
    ({"stop": "x" * 101}, "stop", "bad_request"),
    ({"stop": 5}, "stop", "bad_request"),
    ({"stop": 0}, "stop", "bad_request"),
    ({"stop": False}, "stop", "bad_request"),
    ({"stop": {}}, "stop", "bad_request"),
    ({"logprobs": 5}, "logprobs", "bad_request"),
    ({"top_logprobs": 3}, "top_logprobs", "bad_request"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "bad_option"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "bad_option"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "bad_request"),
    ({"max_tokens": True, "max_completion_tokens": 1}, "max_completion_tokens", "bad_request"),
    ({"max_tokens": 1, "max_completion_tokens": True}, "max_completion_tokens", "bad_request"),
    # The mistreatment of options, in OpenAI's names and ours.
    ({"temperature": -1}, "temperature", "bad_option"),
    ({"temperature": 1e-40}, "temperature", "bad_option"),
    ({"temperature": 1e9}, "temperature", "bad_option"),
    ({"temperature": "1"}, "temperature", "bad_option"),
    ({"temperature": True}, "temperature", "bad_option"),
    ({"temperature": False}, "temperature", "bad_option"),
    ({"temperature": 0, "decoding": "sample"}, "temperature", "bad_option"),
    ({"top_k": -1}, "top_k", "bad_option"),
    ({"top_k": 1000}, "top_k", "bad_option"),
    ({"top_k": 1.5}, "top_k", "bad_option"),
    ({"top_p": 0}, "top_p", "bad_option"),
    ({"top_p": -1}, "top_p", "bad_option"),
    ({"top_p": 2}, "top_p", "bad_option"),
    ({"seed": -1}, "seed", "bad_option"),
    ({"seed": 2**63}, "seed", "bad_option"),
    ({"seed": 1.0}, "seed", "bad_option"),
    ({"max_tokens": 0}, "max_tokens", "bad_option"),
    ({"max_tokens": 10**9}, "max_tokens", "bad_option"),
    ({"max_completion_tokens": 10**9}, "max_completion_tokens", "bad_option"),
    ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", "bad_option"),
    ({"decoding": "magic"}, "decoding", "bad_option"),
    ({"decoding": "beam", "beam_size": 10**6}, "beam_size", "bad_option"),
    ({"decoding": "beam", "n_best": 10**9}, "n_best", "bad_option"),
    ({"length_penalty": -1}, "length_penalty", "bad_option"),
    ({"mmi_lambda": 0.5}, "mmi_lambda", "bad_option"),
    ({"prefix": "x" * 1001}, "prefix", "bad_option"),
]


@pytest.mark.parametrize(("asked", "param", "code"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(
    api: Api, asked: dict[str, Any], param: str, code: str
) -> None:
    before = len(api.batcher.requests)
    response = post(api, asking(**asked))
    error = answer(response)["error"]
    assert response.status == 400
    assert error.keys() == {"code", "message", "type", "param"}
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"].startswith(f"{param}: ")
    assert len(api.batcher.requests) == before


def test_the_library_tells_what_was_wrong(api: Api) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        api.client.chat.completions.create(model="turnwise", messages=HELLO, temperature=9)
    assert (refused.value.param, refused.value.code) == ("temperature", "bad_option")
    assert "must be a number from 0.05 to 5" in refused.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"\xff\xfe",
        b"5",
        b"null",
        b"[]",
        b"[" * 60_000,
        b'{"model": "turnwise", "messages": ' + b"[" * 20 + b"]" * 20 + b"}",
        b'{"model": "turnwise", "model": "turnwise"}',
        b'{"model": "turnwise", "temperature": NaN}',
        b'{"model": "turnwise", "temperature": Infinity}',
        b'{"model": "turnwise", "temperature": 1e999}',
        b'{"model": "turnwise", "length_penalty": NaN}',
        b'{"model": "turnwise", "seed": ' + b"9" * 4000 + b"}",
        b'{"model": "turnwise", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "turnwise", "messages": [{"role": "user", "content": "\\u0000"}]}',
        b'{"model": "turnwise", "\\u0000": 1}',
    ],
)
def test_what_is_no_request_is_refused(api: Api, body: bytes) -> None:
    response = post(api, body)
    assert (response.status, answer(response)["error"]["code"]) == (400, "bad_message")


@pytest.mark.parametrize(
    "text", ["", "  ", "🙂🙂", "qqqq zzzz", "\x1b[31m\u202e\u200b" + "e\u0301" * 50, "a" * 4000]
)
def test_odd_texts_get_an_ordinary_reply(tiny: Api, text: str) -> None:
    response = post(tiny, asking(messages=[{"role": "user", "content": text}], max_tokens=3))
    assert response.status == 200
    assert answer(response)["usage"]["completion_tokens"] <= 3


def test_a_body_has_a_limit(api: Api) -> None:
    empty = len(json.dumps(asking(user="")))
    most = {"messages": [{"role": "user", "content": "x"}], "model": "turnwise"}
    padding = openai_request.MAX_BODY - len(json.dumps(most))
    assert empty
    assert post(api, json.dumps(most).encode() + b" " * padding).status == 200
    for more in (1, 100_000):
        response = post(api, json.dumps(most).encode() + b" " * (padding + more))
        assert (response.status, answer(response)["error"]["code"]) == (413, "too_long")


def test_a_slow_body_is_not_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_api, "BODY_SECONDS", 0.05)
    for key in (api.key, "tw-wrong"):
        with raw(api, json.dumps(asking()).encode(), key=key, missing=1) as peer:
            assert status_of(peer) == 408


def test_other_methods_are_refused(api: Api) -> None:
    for method, path in (("GET", "/v1/chat/completions"), ("POST", "/v1/models"), ("DELETE", "/v1/models/x")):
        connection = HTTPConnection(urlsplit(api.live.address).netloc, timeout=20)
        connection.request(method, path, headers={"authorization": f"Bearer {api.key}"})
        response = connection.getresponse()
        assert response.status == 405
        assert response.headers["allow"]
        error = json.loads(response.read())["error"]
        assert (error["code"], error["type"]) == ("method_not_allowed", "invalid_request_error")
        connection.close()


def test_an_address_that_is_not_there_is_told_in_openai_s_words(api: Api) -> None:
    with (
        openai.OpenAI(api_key=api.key, base_url=f"{api.live.address}/v1", max_retries=0) as client,
        pytest.raises(openai.NotFoundError) as refused,
    ):
        client.embeddings.create(model="turnwise", input="hello")
    assert refused.value.type == "not_found_error"
    assert refused.value.code == "not_found"
    assert refused.value.param is None


def test_a_missing_database_is_said_so_and_nothing_more(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise StoreUnavailable("could not connect to db.internal as turnwise")

    monkeypatch.setattr(Keys, "holder", gone)
    response = post(api, asking())
    assert response.status == 503
    assert response.headers["retry-after"] == "2"
    assert answer(response)["error"]["type"] == "server_error"
    assert b"db.internal" not in response.body  # type: ignore[attr-defined]


def test_a_fault_of_ours_shows_no_traceback(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("my secret")

    monkeypatch.setattr(Keys, "holder", broken)
    response = post(api, asking())
    assert (response.status, answer(response)["error"]["code"]) == (500, "internal")
    assert b"secret" not in response.body  # type: ignore[attr-defined]


def whole(text: str, stops: list[str]) -> str:
    """What is left of a text by definition: all before the stop string that is complete first."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(
    pieces=st.lists(st.text("ab", max_size=5), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
)
def test_stop_strings_do_not_depend_on_how_a_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    stop = StopStrings(stops)
    shown = [stop.push(piece) for piece in pieces]
    assert "".join([*shown, stop.finish()]) == whole("".join(pieces), stops)
    assert stop.stopped == any(each in "".join(pieces) for each in stops)


def test_a_text_is_held_back_no_longer_than_it_must_be() -> None:
    stop = StopStrings(["abc"])
    assert [stop.push(piece) for piece in ("x", "a", "b", "a", "x")] == ["x", "", "", "ab", "ax"]


# --- stop strings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("two", "one "),
        (["three", "two"], "one "),
        ("e t", "on"),
        ("one", ""),
        ("three ", "one two "),
        ("three  ", "one two three "),
        ("four", "one two three "),
    ],
)
def test_a_reply_ends_before_a_stop_string(api: Api, stop: Any, text: str, stream: bool) -> None:
    settings: dict[str, Any] = {"model": "turnwise", "messages": HELLO, "stop": stop}
    if stream:
        chunks = list(api.client.chat.completions.create(stream=True, **settings))
        found = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        [choice] = api.client.chat.completions.create(**settings).choices
        found, reason = choice.message.content or "", choice.finish_reason
    assert (found, reason) == (text, "stop")


def test_after_a_stop_string_nothing_more_is_made(api: Api) -> None:
    response = post(api, asking(messages=FOREVER, stop=["rd word"]))
    [choice] = answer(response)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("wo", "stop")
    assert api.batcher.cancelled[-1] == api.batcher.requests[-1].id
    assert api.batcher.idle


# --- who has gone, and who has too much ---------------------------------------------------------------------


def raw(api: Api, body: bytes, *, key: str | None = None, missing: int = 0) -> socket.socket:
    """A request over a bare socket, all but the last `missing` bytes of its body."""
    host, port = urlsplit(api.live.address).netloc.split(":")
    peer = socket.create_connection((host, int(port)), timeout=20)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key or api.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    peer.sendall(head.encode() + body[: len(body) - missing])
    return peer


def status_of(peer: socket.socket) -> int:
    """Of the response that has begun."""
    with peer.makefile("rb") as lines:
        return int(lines.readline().split()[1])


def test_a_reply_that_nobody_waits_for_is_cancelled_and_its_places_are_free(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    for api in started(tmp_path, tiny_model_dir, talk, rows=2, waiting=0, replies_per_key=2):
        for count, stream in enumerate((False, True, False), start=1):
            peer = raw(api, json.dumps(asking(messages=FOREVER, stream=stream, n=2, temperature=1)).encode())
            until(lambda: len(unending(api)) == 2 * count)  # noqa: B023
            assert post(api, asking()).status == 429
            peer.close()
            until(lambda: api.batcher.idle)  # noqa: B023
            assert set(api.batcher.cancelled) == unending(api)
            until(lambda: post(api, asking()).status == 200)  # noqa: B023


def unending(api: Api) -> set[str]:
    return {request.id for request in api.batcher.requests if request.turns[-1][1] == "forever"}


def test_who_comes_to_a_full_server_hears_when_to_come_back(tmp_path: Path, tiny_model_dir: Path) -> None:
    for api in started(tmp_path, tiny_model_dir, parrot, rows=1, waiting=0):
        api.live.gate.close()
        peer = raw(api, json.dumps(asking()).encode())
        until(lambda: not api.batcher.idle)  # noqa: B023
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as refused:
                api.client.chat.completions.create(model="turnwise", messages=HELLO, stream=stream)
            assert (refused.value.code, refused.value.type) == ("busy", "rate_limit_error")
            assert int(refused.value.response.headers["retry-after"]) >= 1
        response = post(api, asking(temperature=9))  # what is wrong is wrong, however busy it is
        assert response.status == 400
        api.live.gate.open()
        assert status_of(peer) == 200
        peer.close()
        until(lambda: post(api, asking()).status == 200)  # noqa: B023


def test_a_key_has_its_share_and_no_more(tmp_path: Path, tiny_model_dir: Path) -> None:
    for api in started(tmp_path, tiny_model_dir, parrot, replies_per_key=2):
        other = api.keys.add("other")
        assert answer(post(api, asking(n=3, temperature=1)))["error"]["param"] == "n"
        api.live.gate.close()
        peers = [raw(api, json.dumps(asking()).encode())]
        until(lambda: not api.batcher.idle)  # noqa: B023
        for body in (asking(n=2, temperature=1), asking(n=2, temperature=1, stream=True)):
            response = post(api, body)
            assert (response.status, answer(response)["error"]["code"]) == (429, "rate_limit_exceeded")
            assert response.headers["retry-after"] == "1"
        peers.append(raw(api, json.dumps(asking(stream=True)).encode()))
        assert status_of(peers[-1]) == 200
        assert post(api, asking()).status == 429
        peers.append(raw(api, json.dumps(asking()).encode(), key=other))
        api.live.gate.open()
        for peer in (peers[0], peers[2]):
            assert status_of(peer) == 200
        for peer in peers:
            peer.close()
        until(lambda: post(api, asking(n=2, temperature=1)).status == 200)  # noqa: B023


def test_a_server_that_stops_takes_nothing_more(tmp_path: Path, tiny_model_dir: Path) -> None:
    for api in started(tmp_path, tiny_model_dir, parrot):
        api.live.server._application.stopping = True
        response = post(api, asking())
        assert (response.status, answer(response)["error"]["code"]) == (503, "stopping")
        assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_stops_finishes_what_is_under_way(
    tmp_path: Path, tiny_model_dir: Path, stream: bool
) -> None:
    for api in started(tmp_path, tiny_model_dir, parrot):
        api.live.gate.close()
        with raw(api, json.dumps(asking(stream=stream)).encode()) as peer:
            until(lambda: not api.batcher.idle)  # noqa: B023
            api.live.stop()
            until(lambda: api.live.server._application.stopping)  # noqa: B023
            api.live.gate.open()
            with peer.makefile("rb") as lines:
                received = lines.read()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"three " in received
        assert b'"finish_reason":"stop"' in received


def test_a_reply_that_fails_is_an_error(tmp_path: Path, tiny_model_dir: Path) -> None:
    for api in started(tmp_path, tiny_model_dir, parrot):
        api.batcher.error = RuntimeError("my secret")
        with pytest.raises(openai.InternalServerError) as refused:
            api.client.chat.completions.create(model="turnwise", messages=HELLO)
        assert refused.value.code == "internal"
        assert "secret" not in str(refused.value)
        with pytest.raises(openai.APIError) as broken:
            list(api.client.chat.completions.create(model="turnwise", messages=HELLO, stream=True))
        assert (broken.value.code, broken.value.type) == ("internal", "server_error")
        assert "secret" not in str(broken.value)


def test_what_was_read_of_a_conversation_is_found_again_by_its_key_alone(api: Api) -> None:
    def name(messages: list[Any], key: str) -> str:
        assert post(api, asking(messages=messages), key=key).status == 200
        return api.batcher.requests[-1].conversation

    more = [*HELLO, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and four?"}]
    other = api.keys.add("neighbour")
    first = name(HELLO, api.key)
    assert name(more, api.key) == first != ""
    assert name(more, other) != first
    assert name(more[2:], api.key) != first
    assert "one two three" not in first


# --- what stays ---------------------------------------------------------------------------------------------


def test_nothing_is_kept_but_when_the_key_was_used(api: Api) -> None:
    assert post(api, asking()).status == 200
    with reading(api.keys._engine) as connection:
        assert connection.scalar(select(func.count()).select_from(Conversation)) == 0
        assert connection.scalar(select(func.count()).select_from(Message)) == 0
    until(lambda: api.keys.records()[0].last_used_at is not None)


def test_the_logs_name_no_text_and_no_key(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "server")
    assert (
        post(api, asking(messages=[{"role": "user", "content": "my secret"}], user="somebody")).status == 200
    )
    assert post(api, asking(colour="my secret", stop="my secret")).status == 400
    assert post(api, b'{"my secret": }').status == 400
    assert post(api, asking(), key="tw-secret").status == 401
    until(lambda: [each for each in caplog.records if getattr(each, "fields", {}).get("status") == 401])
    lines = [logs.LineFormatter().format(record) for record in caplog.records]
    events = [json.loads(line) for line in lines]
    assert [each["event"] for each in events].count("api_reply") == 1
    assert [each["event"] for each in events].count("api_refused") == 3
    text = "\n".join(lines)
    for hidden in ("secret", "somebody", api.key, "127.0.0.1"):
        assert hidden not in text
    reply = next(each for each in events if each["event"] == "api_reply")
    assert reply["key"] == api.keys.records()[0].id
    assert reply["tokens"] == 1
    assert reply["total_ms"] >= reply["queued_ms"] >= 0


# --- the page that tells of it ------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "openai-api.md").read_text("utf-8")


def test_every_parameter_is_documented() -> None:
    known = [
        *openai_request._TAKEN_APART - {"stream_options"},
        *openai_request._OURS,
        *openai_request._LABELS,
        *openai_request._NEUTRAL,
        "stream_options.include_usage",
    ]
    assert [name for name in known if f"`{name}`" not in PAGE] == []


def test_every_code_is_documented_with_its_status() -> None:
    source = "".join(
        (Path(openai_api.__file__).parent / f"openai_{part}.py").read_text("utf-8")
        for part in ("api", "request")
    )
    raised = {*re.findall(r"ApiError\(\s*(\d+), \"(\w+)\"", source)}
    raised |= {("429", code) for code in re.findall(r"_busy\(\"(\w+)\"", source)}
    raised |= {("400", code) for _, _, code in REFUSED}
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", PAGE, re.MULTILINE)
    documented = {(status, code) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert raised | {("400", "bad_message")} == documented


def test_its_example_runs(
    tiny: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            monkeypatch.delenv(variable, raising=False)
    [example] = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:8000", tiny.live.address).replace("tw-…", tiny.key), names)
    names["client"].close()
    assert capsys.readouterr().out.strip()
