"""What a visitor may ask of the model: everything that the model can follow, and nothing that unblocks."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatbot.model_directory import ModelBundle, load, seal
from chatbot.options import DecodingOptions, OptionError
from server.protocol import Error, Say
from server.speaker import Speaker, speaker_of
from tests.chat_client import chatting
from tests.live_server import serving


@pytest.fixture(scope="module")
def bundle(tiny_model_dir: Path) -> ModelBundle:
    return replace(load(tiny_model_dir), defaults=DecodingOptions(blocked=("bad word",), no_repeat_reply=4))


@pytest.fixture(scope="module")
def speaker(bundle: ModelBundle) -> Speaker:
    return speaker_of(bundle, rows=8)


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_reply": 0, "no_repeat_context_ngram": 3},
        {"decoding": "beam", "beam_size": 8, "beam_groups": 4, "group_penalty": 1.0, "coverage_penalty": 0.2},
        {"decoding": "sample", "samples": 8, "n_best": 8},
        {"top_alternatives": 20, "attention": True},
    ],
)
def test_every_option_is_passed_on(speaker: Speaker, options: dict[str, Any]) -> None:
    merged = speaker.options(options).model_dump()
    assert {name: merged[name] for name in options} == options


def test_a_visitor_adds_to_the_blocked_phrases_and_takes_none_away(speaker: Speaker) -> None:
    assert speaker.options({"blocked": []}).blocked == ("bad word",)
    assert speaker.options({"blocked": ["worse"]}).blocked == ("bad word", "worse")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prefix": "A bad word, "}, "prefix"),
        ({"prefix": "far too many words " * 8, "max_tokens": 5}, "prefix"),
        ({"decoding": "beam", "beam_size": 9}, "beam_size"),
        ({"decoding": "sample", "samples": 9}, "samples"),
        ({"top_k": 331}, "top_k"),
        ({"mmi_lambda": 0.5}, "mmi_lambda"),
        ({"mmi_reverse": 0.5}, "mmi_reverse"),
        ({"blocked": [f"word {n}" for n in range(100)]}, "blocked"),
    ],
)
def test_what_the_batcher_would_refuse_is_refused_first(
    speaker: Speaker, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(OptionError) as refused:
        speaker.options(options)
    assert refused.value.field == field


def test_what_is_blocked_is_kept_from_visitors_in_both_senses(bundle: ModelBundle, tmp_path: Path) -> None:
    """A reply of a server whose model blocks a letter; who asks for the defaults does not read the list."""
    letters = tuple("aeiou")
    model = tmp_path / "model"
    seal(
        model,
        model=bundle.model,
        tokenizer=bundle.tokenizer,
        defaults=DecodingOptions(max_tokens=8, blocked=letters),
        metrics={},
        card="x",
    )

    async def talk(address: str) -> None:
        async with asyncio.timeout(60), chatting(address) as client:
            ready = await client.hello()
            assert ready.defaults["max_tokens"] == 8
            assert "blocked" not in ready.defaults
            options: dict[str, Any] = {"samples": 4, "n_best": 4, "no_repeat_reply": 1, "blocked": ["y"]}
            await client.say("Hello", decoding="sample", **options)
            reply = await client.reply()
            assert reply.alternatives
            for text in (reply.text, *(alternative.text for alternative in reply.alternatives)):
                assert not {*letters, "y"} & set(re.findall(r"[^\W_]+", text.casefold()))
            await client.send(Say(id="again", text="Hello", options={"mmi_lambda": 1.0}))
            refused = await client.expect(Error)
            assert (refused.code, refused.field) == ("bad_option", "mmi_lambda")

    with serving(f"sqlite:///{tmp_path / 'turnwise.db'}", model) as running:
        asyncio.run(talk(running.address))


def test_options_said_again_are_the_same_and_others_are_not(speaker: Speaker) -> None:
    once = speaker.options({"temperature": 0.5, "seed": 1})
    assert speaker.options({"temperature": 0.5, "seed": 1}) is once
    assert speaker.options({"temperature": 0.25, "seed": 1}).temperature == 0.25
    assert speaker.options({"top_k": 1}).top_k == 1
    for _ in range(2):  # true is no 1, though Python takes them for equal
        with pytest.raises(OptionError, match="top_k"):
            speaker.options({"top_k": True})


def test_options_that_are_long_or_no_json_are_looked_at_each_time(speaker: Speaker) -> None:
    long = {"prefix": "word " * 4 + " " * 600, "max_tokens": 256}
    with pytest.raises(OptionError, match="prefix"):
        speaker.options({"prefix": b"bytes"})
    with pytest.raises(OptionError):
        speaker.options(long | {"temperature": -1})
