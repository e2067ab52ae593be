"""The chat over real sockets: a real server in a thread, the `websockets` client, a database on the
disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import select
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from chatbot.replies import ReplyRequest
from server.protocol import (
    Accepted,
    Cancel,
    Delta,
    Error,
    Hello,
    Human,
    Message,
    Owner,
    Ping,
    Pong,
    Rate,
    Rated,
    Ready,
    Regenerate,
    Say,
    encode,
)
from server.store import Store, StoreUnavailable
from tests.chat_client import ChatClient, chatting, run
from tests.live_server import LiveServer, serving
from tests.raw_client import TEXT, raw
from tests.scripted_batcher import parrot

pytest_plugins = ["tests.chat_fixtures"]


@pytest.fixture
def gate(server: LiveServer) -> Iterator[LiveServer]:
    """The same server, whose next steps wait to be let through."""
    server.gate.close()
    yield server
    server.gate.open()


async def refusal(client: ChatClient) -> Error:
    return await client.expect(Error)


# --- a conversation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"decoding": "greedy"},
        {"decoding": "sample", "temperature": 1.5, "seed": 2**63 - 1},
        {"decoding": "beam", "beam_size": 4, "n_best": 3},
    ],
    ids=lambda options: str(options["decoding"]),
)
def test_a_reply_of_the_model_is_streamed_and_kept(
    tiny_model_dir: Path, url: str, options: dict[str, Any]
) -> None:
    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as client:
            ready = await client.hello()
            assert (ready.seq, ready.messages, ready.replying) == (0, (), None)
            assert ready.defaults["max_tokens"] == 12
            accepted = await client.say("A latte, please.", **options)
            reply = await client.reply()
            assert (accepted.seq, reply.seq) == (1, 2)
            assert reply.answers == accepted.message
            assert reply.model == ready.model
            assert reply.finish_reason in ("stop", "length")
            assert reply.reply
            assert client.streamed(reply.reply) == reply.text
            assert options["decoding"] != "beam" or (
                reply.alternatives
                and len(reply.alternatives) == 3
                and reply.alternatives[0].text == reply.text
            )
            assert reply.seed == options.get("seed", reply.seed)
            kept = running.store.messages(ready.conversation)
            assert [(m.seq, m.role, m.text) for m in kept] == [
                (1, "user", "A latte, please."),
                (2, "agent", reply.text),
            ]

    with serving(url, tiny_model_dir) as running:
        run(partial(test, running))


def test_the_model_reads_the_conversation_so_far(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            for text in ("first", "second"):
                await client.say(text)
                await client.reply()

    run(test)
    assert server.batcher is not None
    assert server.batcher.requests[-1].turns == (("user", "first"), ("agent", "first "), ("user", "second"))


def test_a_seed_is_drawn_when_none_is_given(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            seeds = set()
            for _ in range(3):
                await client.say("hi", decoding="sample")
                seeds.add((await client.reply()).seed)
            assert len(seeds) == 3

    run(test)


def test_the_first_delta_names_the_reply_before_its_first_word(gate: LiveServer) -> None:
    async def test() -> None:
        async with chatting(gate.address) as client:
            await client.hello()
            await client.say("hello")
            delta = await client.expect(Delta)
            assert (delta.offset, delta.text) == (0, "")
            gate.gate.open()
            assert (await client.reply()).reply == delta.reply

    run(test)


def test_strange_texts_are_ordinary_turns(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            texts = ["", "   ", "🙂🙂", "\u202eabc\u200b", "\x1b[31mred", "'; DROP TABLE message; --"]
            for text in texts:
                await client.say(text)
                await client.reply()
            said = [m.text for m in server.store.messages(ready.conversation) if m.role == "user"]
            assert said == texts

    run(test)


# --- saying it again --------------------------------------------------------------------------------------


def test_a_repeated_say_gives_the_same_and_no_second_reply(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            first = await client.say("hello", "once")
            reply = await client.reply()
            assert await client.say("hello", "once") == first
            assert await client.expect(Message) == reply
        async with chatting(server.address) as other:
            await other.hello(token=ready.token, conversation=ready.conversation, last_seq=2)
            assert await other.say("hello", "once") == first
            assert await other.expect(Message) == reply
        assert server.store.last_seq(ready.conversation) == 2

    run(test)


def test_a_say_repeated_while_its_reply_runs_is_accepted_again(gate: LiveServer) -> None:
    async def test() -> None:
        async with chatting(gate.address) as client:
            ready = await client.hello()
            first = await client.say("hello", "once")
            assert await client.say("hello", "once") == first
            await client.send(Say(id="once", text="goodbye"))
            while not isinstance(answer := await client.receive(), Error):
                pass
            assert (answer.code, answer.id) == ("conflict", "once")
            gate.gate.open()
            await client.reply()
            assert gate.store.last_seq(ready.conversation) == 2

    run(test)


def test_the_same_say_in_a_race_is_one_turn_and_one_reply(server: LiveServer) -> None:
    async def one(ready: Ready) -> tuple[Accepted, Message]:
        async with chatting(server.address) as client:
            await client.hello(token=ready.token, conversation=ready.conversation)
            await client.send(Say(id="race", text="hello"))
            accepted = None
            while True:
                message = await client.receive()
                if isinstance(message, Accepted):
                    accepted = message
                if isinstance(message, Message) and message.role == "agent" and accepted:
                    return accepted, message

    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            outcomes = await asyncio.gather(*(one(ready) for _ in range(5)))
            assert {(a.message, a.seq, m.message, m.seq) for a, m in outcomes} == {
                (outcomes[0][0].message, 1, outcomes[0][1].message, 2)
            }
            assert server.store.last_seq(ready.conversation) == 2

    run(test)


def test_a_say_repeated_in_a_full_conversation_is_accepted_again(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as client:
            ready = await client.hello()
            first = await client.say("hello", "once")
            reply = await client.reply()
            await client.send(Say(id="more", text="hello"))
            error = await refusal(client)
            assert (error.code, error.id, error.field) == ("too_long", "more", None)
            assert await client.say("hello", "once") == first
            assert await client.expect(Message) == reply
            await client.send(Say(id="once", text="goodbye"))
            assert (await refusal(client)).code == "conflict"
            assert running.store.last_seq(ready.conversation) == 2

    with serving(url, tiny_model_dir, parrot, max_messages=2) as running:
        run(partial(test, running))


def test_a_repeated_say_gives_a_reply_that_was_made_again_much_later(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            accepted = await client.say("hello", "once")
            first = await client.reply()
            for number in range(10):
                await client.say(f"and {number}")
                await client.reply()
            await client.send(Regenerate(reply=first.message))
            again = await client.reply()
            assert (again.replaces, again.seq) == (first.message, 23)
            assert await client.say("hello", "once") == accepted
            assert await client.expect(Message) == again

    run(test)


def test_an_id_with_another_text_is_a_conflict(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            await client.say("hello", "once")
            await client.reply()
            await client.send(Say(id="once", text="goodbye"))
            error = await refusal(client)
            assert (error.code, error.id) == ("conflict", "once")
            assert server.store.last_seq(ready.conversation) == 2

    run(test)


def test_a_restart_changes_nothing_about_a_repeated_say(tiny_model_dir: Path, url: str) -> None:
    async def before(running: LiveServer) -> tuple[Ready, Accepted, Message]:
        async with chatting(running.address) as client:
            return await client.hello(), await client.say("hello", "once"), await client.reply()

    async def after(running: LiveServer, known: tuple[Ready, Accepted, Message]) -> None:
        ready, accepted, reply = known
        async with chatting(running.address) as client:
            again = await client.hello(token=ready.token, conversation=ready.conversation)
            assert again.messages[1] == reply
            assert again.messages[0].client_id == "once"
            assert await client.say("hello", "once") == accepted
            assert await client.expect(Message) == reply

    found: list[tuple[Ready, Accepted, Message]] = []

    async def remember(running: LiveServer) -> None:
        found.append(await before(running))

    with serving(url, tiny_model_dir, parrot) as running:
        run(partial(remember, running))
    with serving(url, tiny_model_dir, parrot) as running:
        run(partial(after, running, found[0]))


# --- one reply at a time ----------------------------------------------------------------------------------


def test_a_say_while_a_reply_runs_is_told_to_wait_and_leaves_nothing(gate: LiveServer) -> None:
    async def test() -> None:
        async with chatting(gate.address) as client:
            ready = await client.hello()
            await client.say("one")
            await client.expect(Delta)
            await client.send(Say(id="early", text="two"))
            error = await refusal(client)
            assert (error.code, error.id) == ("busy", "early")
            assert error.retry_after
            assert gate.store.last_seq(ready.conversation) == 1
            gate.gate.open()
            await client.reply()
            assert (await client.say("two", "early")).seq == 3
            assert (await client.reply()).text == "two "

    run(test)


def test_a_thousand_says_at_once_are_one_turn_and_a_thousand_busies(gate: LiveServer) -> None:
    async def test() -> None:
        async with chatting(gate.address) as flood, chatting(gate.address) as other:
            ready = await flood.hello()
            await other.hello()
            for number in range(1000):
                await flood.send(Say(id=str(number), text=f"say {number}"))
            await other.send(Ping())
            await other.expect(Pong)
            answers = [await flood.receive() for _ in range(1001)]
            assert sum(isinstance(answer, Error) and answer.code == "busy" for answer in answers) == 999
            assert gate.store.last_seq(ready.conversation) == 1
            gate.gate.open()
            assert (await flood.reply()).text == "say 0 "

    run(test)


def test_a_full_engine_refuses_at_once_and_keeps_nothing(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        running.gate.close()
        async with chatting(running.address) as first, chatting(running.address) as second:
            await first.hello()
            ready = await second.hello()
            await first.say("mine")
            await second.send(Say(id="s", text="theirs"))
            error = await refusal(second)
            assert (error.code, error.id) == ("busy", "s")
            assert error.retry_after
            assert running.store.last_seq(ready.conversation) == 0
            running.gate.open()
            await first.reply()
            await second.say("theirs", "s")
            assert (await second.reply()).text == "theirs "

    with serving(url, tiny_model_dir, parrot, rows=1, waiting=0) as running:
        run(partial(test, running))


# --- sockets come and go ----------------------------------------------------------------------------------


def test_a_reply_goes_on_without_its_socket_and_is_kept(gate: LiveServer) -> None:
    async def test() -> None:
        async with chatting(gate.address) as client:
            ready = await client.hello()
            await client.say("one two three")
            gate.gate.let(1)
            await client.first_words()
        gate.gate.open()
        async with chatting(gate.address) as back:
            again = await back.hello(token=ready.token, conversation=ready.conversation, last_seq=1)
            found = again.messages[0] if again.messages else await back.reply()
            assert found.text == "one two three "

    run(test)


def test_who_comes_back_hears_the_rest(gate: LiveServer) -> None:
    async def test() -> None:
        async with chatting(gate.address) as client:
            ready = await client.hello()
            await client.say("one two three")
            gate.gate.let(1)
            delta = await client.first_words()
            assert delta.text == "one "
        async with chatting(gate.address) as back:
            again = await back.hello(token=ready.token, conversation=ready.conversation, last_seq=0)
            assert [m.text for m in again.messages] == ["one two three"]
            assert again.replying is not None
            assert (again.replying.reply, again.replying.text) == (delta.reply, "one ")
            gate.gate.let(1)
            more = await back.expect(Delta)
            assert (more.reply, more.offset, more.text) == (delta.reply, 4, "two ")
            gate.gate.open()
            assert (await back.reply()).text == "one two three "

    run(test)


def test_all_sockets_of_a_conversation_see_the_same(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as speaker, chatting(server.address) as listener:
            ready = await speaker.hello()
            await listener.hello(token=ready.token, conversation=ready.conversation)
            accepted = await speaker.say("hello there", "c-1")
            reply = await speaker.reply()
            said = await listener.expect(Message)
            assert (said.role, said.text, said.client_id) == ("user", "hello there", "c-1")
            assert (said.seq, said.message) == (accepted.seq, accepted.message)
            assert await listener.reply() == reply
            assert reply.reply
            assert listener.streamed(reply.reply) == reply.text
            await listener.send(Rate(message=reply.message, rating="up"))
            assert await speaker.until(Rated) == await listener.until(Rated)

    run(test)


def test_a_resumed_client_gets_what_it_missed_and_no_more(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            for text in ("one", "two", "three"):
                await client.say(text)
                await client.reply()
        for last_seq in range(7):
            async with chatting(server.address) as back:
                again = await back.hello(
                    token=ready.token, conversation=ready.conversation, last_seq=last_seq
                )
                assert again.seq == 6
                assert [m.seq for m in again.messages] == list(range(last_seq + 1, 7))
                assert again.token == ready.token

    run(test)


def test_a_long_conversation_comes_in_frames_that_clients_take(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
        for number in range(40):
            server.store.add_user_turn(ready.conversation, str(number), "x" * 30_000, {})
        async with chatting(server.address) as back:
            again = await back.hello(token=ready.token, conversation=ready.conversation)
            assert again.seq == 40
            assert 0 < len(again.messages) < 40
            rest = [await back.until(Message) for _ in range(40 - len(again.messages))]
            assert [m.seq for m in (*again.messages, *rest)] == list(range(1, 41))

    run(test)


def test_a_turn_that_nothing_answers_is_answered_at_the_next_hello(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
        server.store.add_user_turn(ready.conversation, "c-1", "still there?", {"temperature": 0.5})
        async with chatting(server.address) as back:
            again = await back.hello(token=ready.token, conversation=ready.conversation)
            assert again.replying is not None
            assert (await back.reply()).text == "still there? "
            assert server.batcher is not None
            assert server.batcher.requests[-1].options.temperature == 0.5
        async with chatting(server.address) as back:
            again = await back.hello(token=ready.token, conversation=ready.conversation)
            assert (again.replying, again.seq) == (None, 2)

    run(test)


def test_the_oldest_socket_of_a_crowded_conversation_gives_way(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as first, chatting(running.address) as second:
            ready = await first.hello()
            await second.hello(token=ready.token, conversation=ready.conversation)
            async with chatting(running.address) as third:
                await third.hello(token=ready.token, conversation=ready.conversation)
                assert await first.closed() == 4409
                await second.say("still here")

    with serving(url, tiny_model_dir, parrot, sockets_per_conversation=2) as running:
        run(partial(test, running))


# --- what else visitors do --------------------------------------------------------------------------------


def test_a_reply_can_be_stopped_and_what_there_is_of_it_is_kept(gate: LiveServer) -> None:
    async def test() -> None:
        async with chatting(gate.address) as client:
            ready = await client.hello()
            await client.say("word " * 700)
            gate.gate.let(3)
            delta = await client.first_words()
            await client.send(Cancel(reply=delta.reply))
            await client.send(Ping())
            await client.until(Pong)
            gate.gate.let(1)
            reply = await client.reply()
            assert reply.finish_reason == "cancelled"
            assert reply.text == client.streamed(delta.reply)
            assert 1 <= len(reply.text.split()) <= 4
            assert gate.store.messages(ready.conversation)[-1].finish_reason == "cancelled"
            gate.gate.open()
            await client.send(Cancel(reply=delta.reply))
            assert (await refusal(client)).code == "bad_state"

    run(test)


def test_another_reply_takes_the_place_of_the_last_one(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            accepted = await client.say("hello")
            first = await client.reply()
            assert first.reply
            await client.send(Regenerate(reply=first.reply, options={"temperature": 2.0}))
            second = await client.reply()
            assert (second.replaces, second.answers) == (first.message, accepted.message)
            await client.send(Regenerate(reply=second.message))
            third = await client.reply()
            assert third.replaces == second.message
            assert server.batcher is not None
            assert server.batcher.requests[-1].turns == (("user", "hello"),)
            assert server.batcher.requests[-2].options.temperature == 2.0
            kept = server.store.messages(ready.conversation)
            assert [(m.seq, m.superseded) for m in kept] == [(1, False), (2, True), (3, True), (4, False)]
            await client.send(Regenerate(reply=accepted.message))
            assert (await refusal(client)).code == "not_found"

    run(test)


def test_a_rating_is_kept_and_the_last_word_counts(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            accepted = await client.say("hello")
            reply = await client.reply()
            await client.send(Rate(message=reply.message, rating="up"))
            assert await client.expect(Rated) == Rated(message=reply.message, rating="up")
            await client.send(Rate(message=reply.message, rating="down", comment="too short"))
            await client.expect(Rated)
            kept = server.store.messages(ready.conversation)[-1]
            assert (kept.rating, kept.comment) == ("down", "too short")
            for missing in (accepted.message, "nothing"):
                await client.send(Rate(message=missing, rating="up"))
                error = await refusal(client)
                assert (error.code, error.id) == ("not_found", missing)
            await client.send(Human())
            assert await client.expect(Owner) == Owner(owner="bot", waiting=True)

    run(test)


# --- strangers --------------------------------------------------------------------------------------------


def test_anothers_conversation_is_as_missing_as_a_missing_one(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as owner, chatting(server.address) as stranger:
            theirs = await owner.hello()
            await owner.say("private")
            reply = await owner.reply()
            mine = await stranger.hello()
            await stranger.say("hello")
            await stranger.reply()
            assert reply.reply
            for message in (
                Rate(message=reply.message, rating="up"),
                Regenerate(reply=reply.reply),
                Cancel(reply=reply.reply),
            ):
                await stranger.send(message)
                assert (await refusal(stranger)).code in ("not_found", "bad_state")
        answers = []
        for conversation in (theirs.conversation, "0" * 32, "", "\u2028"):
            async with chatting(server.address) as stranger:
                await stranger.send(Hello(token=mine.token, conversation=conversation))
                answers.append(await refusal(stranger))
                await stranger.hello(token=mine.token)
        assert {(answer.code, answer.message) for answer in answers} == {
            ("not_found", "no such conversation")
        }

    run(test)


def test_an_unknown_token_is_shown_out(server: LiveServer) -> None:
    async def test() -> None:
        for token in ("", "x" * 43):
            async with chatting(server.address) as client:
                await client.send(Hello(token=token))
                assert (await refusal(client)).code == "unauthenticated"
                assert await client.closed() == 4401

    run(test)


def test_who_claims_to_have_seen_more_than_there_is_starts_over(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
        async with chatting(server.address) as client:
            await client.send(Hello(token=ready.token, conversation=ready.conversation, last_seq=2**53 - 1))
            assert (await refusal(client)).code == "bad_state"
            await client.hello(token=ready.token, conversation=ready.conversation)

    run(test)


# --- bad frames -------------------------------------------------------------------------------------------


def test_a_bad_frame_is_an_error_and_the_chat_goes_on(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            for frame in (
                b"\x00\x01",
                "",
                "{",
                "[]",
                '{"type":"say","id":"c","text":"\\ud800"}',
                "[" * 60_000,
            ):
                await client.send_raw(frame)
                assert (await refusal(client)).code == "bad_message"
            await client.send(Say(id="c", text="x", options={"temperature": 1e-40}))
            error = await refusal(client)
            assert (error.code, error.id, error.field) == ("bad_option", "c", "temperature")
            await client.send(Say(id="c", text="x", options={"prefix": "x" * 1000, "max_tokens": 1}))
            assert (await refusal(client)).field == "prefix"
            await client.send(Say(id="c", text="x" * 4001))
            assert (await refusal(client)).code == "too_long"
            await client.say("x" * 4000, "c")
            await client.reply()

    run(test)


def test_nothing_but_bad_frames_ends_the_connection(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            for _ in range(30):
                await client.send_raw("rubbish")
            assert await client.closed() == 1008
            assert len(client.seen) == 21

    run(test)


def test_a_frame_has_64_kibibytes(server: LiveServer) -> None:
    def frame(size: int) -> str:
        text = json.dumps({"type": "say", "id": "c", "text": ""})
        return text[:-2] + "x" * (size - len(text)) + text[-2:]

    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            await client.send_raw(frame(65_536))
            assert (await refusal(client)).code == "too_long"
            await client.send_raw(frame(65_537))
            assert await client.closed() == 1009

    run(test)


def test_text_is_utf_8(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address) as client:
            await client.socket.send(b'{"type": "ping", "\xff": 1}', text=True)
            assert await client.closed() == 1007

    run(test)


def test_compression_is_not_negotiated(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address, compression="deflate") as client:
            assert client.socket.protocol.extensions == []

    run(test)


# --- the door ---------------------------------------------------------------------------------------------


def test_pages_of_this_host_and_of_allowed_ones_may_connect(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        for origin in (None, running.address, "https://shop.example"):
            async with chatting(running.address, origin=origin) as client:
                await client.hello()
        port = running.address.rpartition(":")[2]
        for origin in (
            "null",
            "https://evil.example",
            "http://127.0.0.1",
            f"http://127.0.0.1.evil.example:{port}",
            f"http://127.0.0.1:{port}0",
            "https://shop.example.evil.example",
            "https://shop.example:8443",
        ):
            with pytest.raises(InvalidStatus) as refused:
                async with chatting(running.address, origin=origin):
                    pass
            assert refused.value.response.status_code == 403
            assert json.loads(refused.value.response.body)["error"]["code"] == "forbidden"

    with serving(url, tiny_model_dir, parrot, allowed_origins=("https://shop.example",)) as running:
        run(partial(test, running))


def test_the_subprotocol_is_chat_v1_or_nothing_is_said_of_it(server: LiveServer) -> None:
    async def test() -> None:
        async with chatting(server.address, subprotocols=("chat.v2", "chat.v1")) as client:
            assert client.socket.subprotocol == "chat.v1"
        async with chatting(server.address, subprotocols=()) as client:
            assert client.socket.subprotocol is None
            await client.hello()
        with pytest.raises(InvalidStatus) as refused:
            async with chatting(server.address, subprotocols=("chat.v2",)):
                pass
        assert refused.value.response.status_code == 400

    run(test)


def test_who_says_no_hello_is_shown_out(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as silent, chatting(running.address) as chatty:
            await chatty.send(Ping())
            assert await silent.closed() == 4408
            assert await chatty.closed() == 4408
        async with chatting(running.address) as refused:
            await refused.send(Hello(conversation="0" * 32))
            assert await refused.closed() == 4408

    with serving(url, tiny_model_dir, parrot, hello_seconds=0.2) as running:
        run(partial(test, running))


def test_there_are_so_many_sockets_for_an_address_and_in_all(tiny_model_dir: Path, tmp_path: Path) -> None:
    async def test(running: LiveServer, code: int) -> None:
        async with chatting(running.address) as first, chatting(running.address):
            await first.hello()
            async with chatting(running.address) as third:
                assert await third.closed() == code
        async with chatting(running.address) as later:
            await later.hello()

    cases = itertools.product([("connections_per_address", 4429), ("max_connections", 1013)])
    for ((setting, code),) in cases:
        url = f"sqlite:///{tmp_path / setting}.db"
        with serving(url, tiny_model_dir, parrot, **{setting: 2}) as running:
            run(partial(test, running, code))


def test_a_peer_that_answers_no_ping_is_gone_after_two_intervals(tiny_model_dir: Path, url: str) -> None:
    with (
        serving(url, tiny_model_dir, parrot, ping_seconds=0.2) as running,
        raw(running.address) as silent,
    ):
        silent.upgrade()
        silent.frame(TEXT, b'{"type": "hello"}')
        assert silent.ended()


def test_a_peer_that_never_reads_is_gone_as_soon(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        while True:  # there is one place, and it comes free
            async with chatting(running.address) as next_one:
                with contextlib.suppress(ConnectionClosed):
                    await next_one.hello()
                    return

    with serving(url, tiny_model_dir, parrot, ping_seconds=1, max_connections=1) as running:
        grant = running.store.new_visitor()
        conversation = running.store.open_conversation(grant.visitor_id)
        for number in range(100):  # 6 MB: more than the kernel's buffers take
            running.store.add_user_turn(conversation, str(number), "x" * 60_000, {})
        with raw(running.address, receive_buffer=4096) as deaf:
            deaf.upgrade()
            deaf.frame(TEXT, encode(Hello(token=grant.token, conversation=conversation)).encode())
            select.select([deaf.socket], [], [], 20)  # something has come, and stays where it is
            run(partial(test, running))


# --- when something fails ---------------------------------------------------------------------------------


def test_a_reply_that_fails_is_an_error_and_can_be_asked_for_again(tiny_model_dir: Path, url: str) -> None:
    faults = [RuntimeError("my secret")]

    def script(request: ReplyRequest) -> list[str]:
        if faults and not request.id.startswith("probe"):
            raise faults.pop()
        return parrot(request)

    async def test(running: LiveServer) -> None:
        async with chatting(running.address) as client:
            ready = await client.hello()
            await client.say("hello", "once")
            await client.expect(Delta)
            error = await refusal(client)
            assert (error.code, error.id) == ("internal", "once")
            assert "secret" not in error.message
            assert running.store.last_seq(ready.conversation) == 1
            await client.say("hello", "once")
            assert (await client.reply()).text == "hello "

    with serving(url, tiny_model_dir, script) as running:
        run(partial(test, running))


def test_without_its_database_a_say_is_refused_and_later_taken(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise StoreUnavailable("database is locked", busy=True)

    async def test() -> None:
        async with chatting(server.address) as client:
            await client.hello()
            with monkeypatch.context() as patch:
                patch.setattr(Store, "submit_user_turn", locked)
                await client.send(Say(id="c", text="hello"))
                error = await refusal(client)
                assert (error.code, error.id) == ("busy", "c")
                assert error.retry_after
            await client.say("hello", "c")
            await client.reply()

    run(test)


def test_a_reply_that_cannot_be_kept_is_made_again(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreUnavailable("disk is full")

    async def test() -> None:
        async with chatting(server.address) as client:
            ready = await client.hello()
            with monkeypatch.context() as patch:
                patch.setattr(Store, "submit_reply", full)
                await client.say("hello", "c")
                while not isinstance(answer := await client.receive(), Error):
                    assert not isinstance(answer, Message)
                assert (answer.code, answer.id) == ("internal", "c")
        async with chatting(server.address) as back:
            await back.hello(token=ready.token, conversation=ready.conversation, last_seq=1)
            assert (await back.reply()).text == "hello "

    run(test)


def test_logs_have_no_texts_tokens_or_addresses(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> str:
        async with chatting(server.address) as client:
            ready = await client.hello()
            await client.say("my secret is 4711")
            await client.reply()
            await client.send_raw("my secret is 4711")
            await refusal(client)
            return ready.token

    with caplog.at_level(logging.DEBUG, "server"):
        token = asyncio.run(test())
    logged = [(record.getMessage(), getattr(record, "fields", {})) for record in caplog.records]
    assert any(name == "reply" for name, _ in logged)
    for secret in ("4711", token, "127.0.0.1"):
        assert secret not in str(logged)


# --- the end ----------------------------------------------------------------------------------------------


def test_a_server_that_stops_finishes_its_replies_first(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        running.gate.close()
        async with chatting(running.address) as client, chatting(running.address) as idle:
            ready = await client.hello()
            await idle.hello()
            await client.say("one two three")
            running.gate.let(1)
            await client.first_words()
            running.stop()
            while (message := await client.receive()).type != "going_away":
                assert message.type == "delta"
            await client.send(Say(id="late", text="one more"))
            while not isinstance(message := await client.receive(), Error):
                pass
            assert (message.code, message.id) == ("busy", "late")
            running.gate.open()
            assert (await client.reply()).text == "one two three "
            assert await client.closed() == 1001
            assert await idle.closed() == 1001
            assert [message.type for message in idle.seen] == ["ready", "going_away"]
            assert running.store.last_seq(ready.conversation) == 2

    with serving(url, tiny_model_dir, parrot) as running:
        run(partial(test, running))


def test_a_reply_that_takes_too_long_is_cut_off_and_kept(tiny_model_dir: Path, url: str) -> None:
    async def test(running: LiveServer) -> None:
        running.gate.close()
        async with chatting(running.address) as client:
            await client.hello()
            await client.say("word " * 700)
            running.gate.let(2)
            await client.first_words()
            running.stop()
            while not isinstance(message := await client.receive(), Message):
                running.gate.let(1)
            assert message.finish_reason == "cancelled"
            assert message.text == client.streamed(message.reply or "")
            assert await client.closed() == 1001

    with serving(url, tiny_model_dir, parrot, drain_seconds=0) as running:
        run(partial(test, running))
