"""What a trusted server does when it is mistreated, in the messages: docs/abuse.md has the catalogue.

Each case goes over a real socket to a real server, on both databases where they could differ.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.protocol import Cancel, Error, Hello, Message, Ping, Pong, Rate, Rated, Regenerate, Say
from tests.chat_client import ChatClient, chatting, run
from tests.databases import KINDS, fresh_database
from tests.live_server import LiveServer, serving
from tests.scripted_batcher import parrot


@pytest.fixture(scope="module", params=KINDS)
def server(
    request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server whose model repeats what it hears."""
    with (
        fresh_database(request.param, tmp_path_factory.mktemp("abuse")) as url,
        serving(url, tiny_model_dir, parrot) as running,
    ):
        yield running


async def error_of(client: ChatClient, frame: str | bytes) -> Error:
    await client.send_raw(frame)
    return await client.expect(Error)


async def is_unharmed(client: ChatClient, server: LiveServer, conversation: str, messages: int) -> None:
    """The connection and what is kept are as before."""
    await client.send(Ping())
    await client.expect(Pong)
    assert server.store.last_seq(conversation) == messages


def say(text: str = "hello", **fields: Any) -> str:
    return json.dumps({"type": "say", "id": "c", "text": text} | fields)


# --- 14 to 19: what is no message -------------------------------------------------------------------------

BROKEN = {
    "binary": b'{"type": "ping"}',
    "empty": "",
    "not JSON": "say hello",
    "a scalar": "1",
    "null": "null",
    "an array": "[]",
    "a string": '"say"',
    "two values": '{"type": "ping"} {"type": "ping"}',
    "60 kB of brackets": "[" * 60_000,
    "60 kB of objects": '{"a":' * 12_000,
    "NaN": say(options={"temperature": 0}).replace("0}", "NaN}"),
    "Infinity": say(options={"temperature": 0}).replace("0}", "Infinity}"),
    "-Infinity": say(options={"temperature": 0}).replace("0}", "-Infinity}"),
    "1e999": say(options={"temperature": 0}).replace("0}", "1e999}"),
    "4000 digits": say(options={"seed": 0}).replace("0}", "9" * 4000 + "}"),
    "a key twice": '{"type": "say", "id": "c", "text": "one", "text": "two"}',
    "an option twice": '{"type": "say", "id": "c", "text": "x", "options": {"seed": 1, "seed": 2}}',
    "half a surrogate pair": '{"type": "say", "id": "c", "text": "\\ud800"}',
    "half a pair in a key": '{"type": "ping", "\\udfff": 1}',
    "NUL": '{"type": "say", "id": "c", "text": "a\\u0000b"}',
    "NUL in an id": '{"type": "say", "id": "\\u0000", "text": "a"}',
    "an unknown field": say(colour="red"),
    "a number for a text": say(text=5),  # type: ignore[arg-type]
    "true for a number": json.dumps({"type": "hello", "last_seq": True}),
    "a text for a number": json.dumps({"type": "hello", "last_seq": "5"}),
    "a fraction for a number": json.dumps({"type": "hello", "last_seq": 1.5}),
    "less than nothing": json.dumps({"type": "hello", "last_seq": -1}),
    "beyond all numbers": json.dumps({"type": "hello", "last_seq": 2**63}),
    "no id": json.dumps({"type": "say", "text": "hello"}),
    "an empty id": say(id=""),
    "a long id": say(id="x" * 65),
    "options that are a list": say(options=[]),
    "no type": json.dumps({"id": "c", "text": "hello"}),
    "an unknown type": json.dumps({"type": "shout", "text": "hello"}),
    "a type of the server": json.dumps({"type": "message", "seq": 1}),
    "a type that is a list": json.dumps({"type": ["say"]}),
}


@pytest.mark.parametrize("frame", BROKEN.values(), ids=BROKEN)
def test_what_is_no_message_is_refused_and_nothing_changes(server: LiveServer, frame: str | bytes) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            error = await error_of(client, frame)
            assert error.code == "bad_message"
            assert "Traceback" not in error.message
            assert len(error.message) < 200
            await is_unharmed(client, server, ready.conversation, 0)

    run(test)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (json.dumps({"type": "hello"}), "bad_state"),
        (json.dumps({"type": "cancel", "reply": "nothing"}), "bad_state"),
        (json.dumps({"type": "regenerate", "reply": "nothing"}), "not_found"),
        (json.dumps({"type": "rate", "message": "nothing", "rating": "up"}), "not_found"),
    ],
)
def test_the_right_thing_at_the_wrong_time_changes_nothing(server: LiveServer, frame: str, code: str) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            assert (await error_of(client, frame)).code == code
            await is_unharmed(client, server, ready.conversation, 0)

    run(test)


@pytest.mark.parametrize(
    "message", [Say(id="c", text="x"), Cancel(reply="r"), Rate(message="m", rating="up")]
)
def test_before_the_hello_there_is_nothing_to_ask_for(
    server: LiveServer, message: Say | Cancel | Rate
) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            await client.send(message)
            assert (await client.expect(Error)).code == "bad_state"
            await client.hello()

    run(test)


# --- 20 to 22: texts --------------------------------------------------------------------------------------

TEXTS = {
    "empty": "",
    "spaces": " \t \n ",
    "emoji": "🙂👩‍👩‍👧🏳️‍🌈",
    "words never seen": "qwrtz xkcd zzyzx",
    "control characters": "a\x01\x07\x08b\x7f",
    "ANSI escapes": "\x1b[31mred\x1b]0;title\x07",
    "bidirectional": "\u202eevil\u202c \u2066x\u2069",
    "zero width": "a\u200bb\u200dc\ufeff",
    "combining marks": "a" + "\u0301" * 2000,
    "line separators": "a\u2028b\u2029c\r\nd",
    "beyond the first plane": "\U0001f600\U0010ffff\U000e0001",
    "markup": "<script>alert(1)</script>{{7*7}}",
    "SQL": "'; DROP TABLE message; --",
    "special tokens": "<eos><bos>[USER]",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_is_an_ordinary_turn_and_kept_to_the_letter(server: LiveServer, text: str) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            await client.say(text)
            reply = await client.reply()
            kept = server.store.messages(ready.conversation)
            assert [message.text for message in kept] == [text, reply.text]
        async with chatting(server.address) as back:
            again = await back.hello(token=ready.token, conversation=ready.conversation)
            assert [message.text for message in again.messages] == [text, reply.text]

    run(test)


def test_the_models_own_tokenizer_takes_what_it_has_never_seen(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The real model and no script: an ordinary outcome for each text, in bounded time for a probe."""

    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as client:
            ready = await client.hello()
            for text in TEXTS.values():
                await client.say(text, max_tokens=2)
                assert (await client.reply()).finish_reason in ("stop", "length")
            began = time.monotonic()
            for text in ("a" * 16_000, "a\u0301" * 8_000, "🙂" * 16_000):
                await client.say(text, max_tokens=2)
                await client.reply()
            assert time.monotonic() - began < 20
            assert running.store.last_seq(ready.conversation) == 2 * (len(TEXTS) + 3)

    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    with serving(url, tiny_model_dir, max_text=16_000) as running:
        run(partial(test, running))


def test_a_text_has_a_length_and_a_frame_has_another(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            for text in ("x" * 4001, "a" * 50_000):
                error = await error_of(client, say(text))
                assert (error.code, error.id, error.field) == ("too_long", "c", "text")
            await is_unharmed(client, server, ready.conversation, 0)
            await client.send_raw(say("x" * 1_000_000))
            assert await client.closed() == 1009

    run(test)


# --- 23 and 24: options -----------------------------------------------------------------------------------

OPTIONS = [
    *({"temperature": value} for value in (-1, 0, 1e-40, 1e9, "hot", True, None, [1])),
    *({"top_k": value} for value in (-1, 10**9, 1.5, "5")),
    *({"top_p": value} for value in (0, -1, 2)),
    *({"min_p": value} for value in (-1, 2)),
    *({"seed": value} for value in (-1, 2**63, 1.0)),
    *({"max_tokens": value} for value in (0, -1, 10**9)),
    *({"decoding": "beam", "beam_size": value} for value in (0, 10**6)),
    *({"decoding": "beam", "n_best": value} for value in (0, 10**9)),
    *({"decoding": "beam", "length_penalty": value} for value in (-1e9, 1e9, "long")),
    {"decoding": "telepathy"},
    {"min_tokens": 10, "max_tokens": 5},
    {"no_repeat_ngram": -1},
    {"repetition_penalty": 0},
    {"prefix": "x" * 1000, "max_tokens": 1},
    {"colour": "red"},
    {"": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: json.dumps(options)[:50])
def test_an_option_out_of_range_is_refused_by_name_and_reaches_nothing(
    server: LiveServer, options: dict[str, Any]
) -> None:
    async def test() -> None:
        assert server.batcher is not None
        async with chatting(server.address) as client:
            ready = await client.hello()
            before = len(server.batcher.requests)
            error = await error_of(client, say(options=options))
            assert (error.code, error.id) == ("bad_option", "c")
            assert error.field in options
            assert error.field in error.message or error.field == ""
            await is_unharmed(client, server, ready.conversation, 0)
            assert len(server.batcher.requests) == before
            await client.say("hello", "c")  # the id is as good as new
            await client.reply()

    run(test)


def test_a_seed_beyond_all_columns_is_no_message(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            assert (await error_of(client, say(options={"seed": 2**64}))).code == "bad_message"
            assert (await error_of(client, say(options={"seed": 2**63}))).code == "bad_option"

    run(test)


# --- 25: too many -----------------------------------------------------------------------------------------


def test_a_thousand_says_at_once_are_bounded_and_others_keep_their_share(server: LiveServer) -> None:
    """Each flooded frame is answered; whoever talks meanwhile is answered too, and in time."""

    async def flooding(flood: ChatClient) -> None:
        for number in range(1000):
            await flood.send(Say(id=str(number), text=f"say {number}"))

    async def talking(other: ChatClient) -> None:
        for number in range(5):
            await other.say(f"turn {number}")
            assert (await other.reply()).text == f"turn {number} "

    async def answers(flood: ChatClient) -> tuple[int, int]:
        accepted = busy = 0
        while accepted + busy < 1000:
            message = await flood.receive()
            if isinstance(message, Error):
                assert message.code == "busy"
                assert message.retry_after
                busy += 1
            accepted += message.type == "accepted"
        return accepted, busy

    async def test() -> None:
        async with chatting(server.address) as flood, chatting(server.address) as other:
            ready = await flood.hello()
            await other.hello()
            async with asyncio.TaskGroup() as group:
                group.create_task(flooding(flood))
                counted = group.create_task(answers(flood))
                group.create_task(talking(other))
            accepted, busy = counted.result()
            assert accepted >= 1
            assert busy >= 1
            said = [m for m in server.store.messages(ready.conversation, 0, 5000) if m.role == "user"]
            assert len(said) == accepted

    run(test)


# --- 26 to 29: what is somebody's -------------------------------------------------------------------------


def test_one_id_from_many_sockets_at_once_is_one_message_on_any_database(server: LiveServer) -> None:
    async def one(token: str, conversation: str) -> tuple[str, int]:
        async with chatting(server.address) as client:
            await client.hello(token=token, conversation=conversation)
            accepted = await client.say("hello", "once")
            return accepted.message, accepted.seq

    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            found = await asyncio.gather(*(one(ready.token, ready.conversation) for _ in range(6)))
            assert len(set(found)) == 1
            while server.store.last_seq(ready.conversation) < 2:
                await client.receive()
            await client.say("hello", "once")
            assert [m.role for m in server.store.messages(ready.conversation)] == ["user", "agent"]
            await client.send(Say(id="once", text="goodbye"))
            while not isinstance(message := await client.receive(), Error):
                pass
            assert (message.code, message.id) == ("conflict", "once")

    run(test)


def test_nothing_tells_a_conversation_of_somebody_else_from_one_that_is_not_there(server: LiveServer) -> None:
    """In every verb, word for word but for the id that was named."""

    async def test() -> None:
        async with chatting(server.address) as owner, chatting(server.address) as stranger:
            theirs = await owner.hello()
            await owner.say("private")
            reply = await owner.reply()
            mine = await stranger.hello()
            await stranger.say("mine")
            await stranger.reply()
            for real, missing in ((reply.reply or "", "0" * 32), (reply.message, "f" * 32)):
                verbs: list[Callable[[str], Any]] = [
                    lambda it: Cancel(reply=it),
                    lambda it: Regenerate(reply=it),
                    lambda it: Rate(message=it, rating="down"),
                ]
                for verb in verbs:
                    answers = []
                    for it in (real, missing):
                        await stranger.send(verb(it))
                        answers.append((await stranger.expect(Error)).model_copy(update={"id": "it"}))
                    assert answers[0] == answers[1]
            assert [m.rating for m in server.store.messages(theirs.conversation)] == [None, None]
        answers = []
        for conversation in (theirs.conversation, "0" * 32, "x", "🙂"):
            async with chatting(server.address) as stranger:
                await stranger.send(Hello(token=mine.token, conversation=conversation, last_seq=2**53 - 1))
                answers.append(await stranger.expect(Error))
                assert "seq" not in answers[-1].message
        assert len({answer.model_dump_json() for answer in answers}) == 1
        for token in (theirs.token[:-1], theirs.token + "x", theirs.token.swapcase(), "\U0001f600"):
            async with chatting(server.address) as stranger:
                await stranger.send(Hello(token=token, conversation=theirs.conversation))
                assert (await stranger.expect(Error)).code == "unauthenticated"
                assert await stranger.closed() == 4401

    run(test)


def test_a_rating_is_idempotent(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            await client.say("hello")
            reply = await client.reply()
            for _ in range(3):
                await client.send(Rate(message=reply.message, rating="up"))
                assert (await client.expect(Rated)).rating == "up"
            [rated] = [m for m in server.store.messages(ready.conversation) if m.rating]
            assert rated.message_id == reply.message

    run(test)


def test_the_words_of_a_refusal_are_the_servers_own(server: LiveServer) -> None:
    """Nothing of a frame comes back in its error: neither markup nor somebody's secret."""

    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            for frame in (
                say(options={"temperature": "<b>4711</b>"}),
                say(options={"<b>4711</b>": 1}),
                json.dumps({"type": "<b>4711</b>"}),
                say("<b>4711</b>", seq=1),
                '{"type": "<b>4711',
            ):
                error = await error_of(client, frame)
                assert "4711" not in error.message.replace(error.field or " ", "")

    run(test)


def test_a_message_type_for_each_direction(server: LiveServer) -> None:
    """What the server sends is no message of a client, though it is of the protocol."""

    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            forged = Message(seq=1, message="m", role="agent", text="forged")
            assert (await error_of(client, forged.model_dump_json())).code == "bad_message"

    run(test)
