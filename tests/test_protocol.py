"""The protocol: what is written can be read, what is broken is refused, what is documented is true."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import protocol
from server.protocol import (
    CLIENT_MESSAGES,
    SERVER_MESSAGES,
    ClientMessage,
    Close,
    Delta,
    FrameError,
    Hello,
    Message,
    Say,
    ServerMessage,
    encode,
    parse_client,
    parse_server,
)

DOCS = (Path(__file__).resolve().parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=protocol.MAX_ID)
values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | texts
finite = st.floats(allow_nan=False, allow_infinity=False)
option_sets = st.dictionaries(ids, st.none() | st.booleans() | st.integers(-99, 2**63 - 1) | finite | texts)
seqs = st.integers(0, 2**53 - 1)
ratings = st.sampled_from(["up", "down"])


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "id": ids,
    "token": texts,
    "conversation": ids,
    "message": ids,
    "reply": ids,
    "model": ids,
    "at": ids,
    "client_id": ids,
    "answers": ids,
    "replaces": ids,
    "field": ids,
    "text": texts,
    "comment": texts,
    "seq": seqs,
    "last_seq": seqs,
    "offset": seqs,
    "seed": st.integers(0, 2**63 - 1),
    "score": finite,
    "retry_after": finite,
    "reconnect_after": finite,
    "rating": ratings,
    "options": option_sets,
    "defaults": option_sets,
    "superseded": st.just(True),
    "waiting": st.just(True),
    "author": st.just("operator"),
    "role": st.sampled_from(["user", "agent"]),
    "owner": st.sampled_from(["bot", "operator"]),
    "code": st.sampled_from(get_args(protocol.ErrorCode)),
    "finish_reason": st.sampled_from(["stop", "length", "cancelled", "abstained"]),
    "alternatives": st.lists(
        st.builds(protocol.Alternative, text=texts, score=finite), min_size=1, max_size=3
    ).map(tuple),
    "replying": st.builds(protocol.Replying, reply=ids, text=texts),
    "limits": st.builds(protocol.Limits, max_text=seqs, max_tokens=seqs, max_frame=seqs),
}


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any message of a kind, optional fields present or not."""
    given_fields = {}
    for name, field in kind.model_fields.items():
        if name == "type":
            continue
        strategy = FIELDS[name] if name != "messages" else st.lists(messages(Message), max_size=2).map(tuple)
        optional = type(None) in get_args(field.annotation)
        given_fields[name] = maybe(strategy) if optional else strategy
    return st.builds(kind, **given_fields)


@settings(deadline=None)
@given(st.one_of([messages(kind) for kind in CLIENT_MESSAGES]))
def test_what_a_client_writes_the_server_reads(message: ClientMessage) -> None:
    assert parse_client(encode(message)) == message


@settings(deadline=None)
@given(st.one_of([messages(kind) for kind in SERVER_MESSAGES]))
def test_what_the_server_writes_a_client_reads(message: ServerMessage) -> None:
    assert parse_server(encode(message)) == message


@settings(deadline=None)
@given(st.one_of([messages(kind) for kind in SERVER_MESSAGES]))
def test_the_server_writes_plain_json(message: ServerMessage) -> None:
    assert json.loads(encode(message))["type"] == message.type


def test_fields_without_a_value_are_left_out_but_replying_is_not() -> None:
    written = json.loads(encode(Message(seq=1, message="m", role="user", text="hi")))
    assert written == {"type": "message", "seq": 1, "message": "m", "role": "user", "text": "hi"}
    ready = protocol.Ready(
        token="t",
        conversation="c",
        model="m",
        seq=0,
        messages=(),
        replying=None,
        defaults={},
        limits=protocol.Limits(max_text=1, max_tokens=1, max_frame=1),
    )
    assert json.loads(encode(ready))["replying"] is None


def test_offsets_and_texts_are_code_points() -> None:
    assert json.loads(encode(Delta(reply="r", offset=1, text="🙂é"))) == {
        "type": "delta",
        "reply": "r",
        "offset": 1,
        "text": "🙂é",
    }


def test_a_hello_needs_nothing() -> None:
    assert parse_client('{"type": "hello"}') == Hello(token=None, conversation=None, last_seq=0)


SAY = '{"type": "say", "id": "c", "text": %s}'

BROKEN = {
    "": "not JSON",
    "hello": "not JSON",
    '{"type": "ping"': "not JSON",
    '{"type": "ping"} {}': "not JSON",
    '\ufeff{"type": "ping"}': "not JSON",
    "5": "a JSON object",
    "null": "a JSON object",
    '["ping"]': "a JSON object",
    "[" * 60_000: "nested too deeply",
    '{"a":' * 12_000: "nested too deeply",
    '{"type": "say", "id": "c", "text": "x", "options": {"a": {"b": {"c": {}}}}}': "nested too deeply",
    '{"type": "ping", "type": "ping"}': "twice",
    SAY % '"x", "options": {"top_k": 1, "top_k": 2}': "twice",
    SAY % '"x", "options": {"temperature": NaN}': "NaN",
    SAY % '"x", "options": {"temperature": -Infinity}': "-Infinity",
    SAY % '"x", "options": {"temperature": 1e999}': "too large",
    SAY % f'"x", "options": {{"seed": {"9" * 4000}}}': "digits",
    SAY % '"\\ud800"': "surrogate",
    SAY % '"\\udc00\\ud800"': "surrogate",
    SAY % '"a\\u0000b"': "NUL",
    SAY % '"x", "options": {"\\ud800": 1}': "surrogate",
    SAY % '"a\nb"': "not JSON",
    SAY % "5": "text: ",
    SAY % "true": "text: ",
    SAY % "null": "text: ",
    SAY % '"x", "loud": true': "loud: no such field",
    SAY % '"x", "options": []': "options: ",
    '{"type": "say", "text": "x"}': "id: ",
    '{"type": "say", "id": "", "text": "x"}': "id: ",
    f'{{"type": "say", "id": "{"c" * 65}", "text": "x"}}': "id: ",
    '{"text": "x"}': "type: missing",
    '{"type": "shout"}': "type: must be one of hello, say",
    '{"type": 1}': "type: must be one of",
    '{"type": ["ping"]}': "type: must be one of",
    '{"type": "hello", "last_seq": -1}': "last_seq: ",
    '{"type": "hello", "last_seq": 1.5}': "last_seq: ",
    '{"type": "hello", "last_seq": "1"}': "last_seq: ",
    '{"type": "hello", "last_seq": true}': "last_seq: ",
    '{"type": "hello", "last_seq": 9007199254740992}': "last_seq: ",
    f'{{"type": "hello", "token": "{"t" * 257}"}}': "token: ",
    '{"type": "rate", "message": "m", "rating": "sideways"}': "rating: ",
    f'{{"type": "rate", "message": "m", "rating": "up", "comment": "{"x" * 2001}"}}': "comment: ",
    '{"type": "cancel"}': "reply: ",
    '{"type": "ready"}': "type: must be one of",
}


@pytest.mark.parametrize(("frame", "reason"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_frame_is_refused_in_words(frame: str, reason: str) -> None:
    with pytest.raises(FrameError) as refused:
        parse_client(frame)
    assert reason in refused.value.reason
    assert len(refused.value.reason) < 200


kinds = st.sampled_from([kind.model_fields["type"].default for kind in CLIENT_MESSAGES])
names = st.sampled_from(sorted({name for kind in CLIENT_MESSAGES for name in kind.model_fields} | {"loud"}))


@settings(deadline=None)
@given(kinds, st.dictionaries(names, values | st.lists(values, max_size=2) | option_sets, max_size=4))
def test_any_frame_is_read_or_refused(kind: str, fields: dict[str, Any]) -> None:
    with contextlib.suppress(FrameError):
        message = parse_client(json.dumps({"type": kind, **fields}))
        assert json.loads(encode(message)).items() >= fields.items()


def test_a_refusal_says_which_say_it_is_about_and_repeats_nothing_of_it() -> None:
    with pytest.raises(FrameError) as refused:
        parse_client('{"type": "say", "id": "c-7", "text": ["my secret"]}')
    assert (refused.value.about, refused.value.field) == ("c-7", "text")
    assert "secret" not in refused.value.reason


def test_a_say_keeps_its_text_to_the_letter() -> None:
    text = " \u202e\u200b\x1b[31m é́́ 🙂\t\n"
    say = parse_client(json.dumps({"type": "say", "id": "c", "text": text}))
    assert isinstance(say, Say)
    assert say.text == text


# --- the documentation ------------------------------------------------------------------------------


def examples(side: str) -> list[str]:
    blocks = re.findall(rf"^```json {side}\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def table(text: str) -> list[str]:
    """The words in code that begin the rows of a table."""
    rows = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`(\w+)`", row)]


def test_every_example_is_a_message() -> None:
    clients = [parse_client(example) for example in examples("client")]
    servers = [parse_server(example) for example in examples("server")]
    assert {type(message) for message in clients} == set(CLIENT_MESSAGES)
    assert {type(message) for message in servers} == set(SERVER_MESSAGES)


def test_the_examples_use_every_field() -> None:
    used: dict[str, set[str]] = {}
    for example in [*examples("client"), *examples("server")]:
        frame = json.loads(example)
        used.setdefault(frame["type"], set()).update(frame)
    for kind in (*CLIENT_MESSAGES, *SERVER_MESSAGES):
        assert used[kind.model_fields["type"].default] == set(kind.model_fields), kind.__name__


def test_every_message_has_its_section() -> None:
    for heading, kinds in (
        ("What clients send", CLIENT_MESSAGES),
        ("What the server sends", SERVER_MESSAGES),
    ):
        documented = re.findall(r"^### `(\w+)`$", section(heading), re.MULTILINE)
        assert documented == [kind.model_fields["type"].default for kind in kinds]


def test_every_error_code_and_message_field_has_its_row() -> None:
    errors = section("What the server sends").partition("### `error`")[2]
    assert set(table(errors)) == set(get_args(protocol.ErrorCode))
    fields = section("What the server sends").partition("### `message`")[2].partition("### ")[0]
    assert set(table(fields)) == set(Message.model_fields) - {"type"}


def test_every_close_code_has_its_row() -> None:
    documented = [int(code) for code in re.findall(r"^\| (\d{4}) \|", section("Close codes"), re.MULTILINE)]
    assert documented == sorted(value for name, value in vars(Close).items() if name.isupper())
