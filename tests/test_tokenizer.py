"""Text to ids and back, whole and in pieces."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.tokenizer import AGENT, END, TextStream, Tokenizer, clip_turn
from tests.small import orders, texts

TOKENIZER = Tokenizer.train(texts(orders(200)), vocab_size=400)
any_text = st.text(st.characters(codec="utf-8"), max_size=60)


@given(any_text)
def test_normal_form_is_a_fixed_point(text: str) -> None:
    normal = TOKENIZER.normalize(text)
    assert TOKENIZER.normalize(normal) == normal


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).map(str.strip).filter(bool))
def test_plain_words_come_back_unchanged(text: str) -> None:
    assert TOKENIZER.normalize(text) == text


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
def test_pieces_add_up_and_are_never_half_a_character(ids: list[int]) -> None:
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in ids]
    for piece in pieces:
        piece.encode("utf-8")  # a lone surrogate would raise
    assert "".join(pieces) + stream.finish() == TOKENIZER.decode(ids)


def test_a_character_of_several_tokens_appears_at_once() -> None:
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in TOKENIZER.encode("ok 🐙!")]
    assert "🐙" in pieces
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces.count("") >= 3


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    stream = TextStream(TOKENIZER)
    shown = "".join(stream.push(token) for token in TOKENIZER.encode("🐙")[:-1])
    assert shown + stream.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  two   words\t", "two words"),
        ("I do n't know . Is n't it 7 ?", "I don't know. Isn't it 7?"),
        ("What 's up ?", "What's up?"),
        ("yes , please !", "yes, please!"),
        ("smile :) and :( too", "smile :) and :( too"),
        ("cp file . now", "cp file . now"),
        ("two\nlines", "two\nlines"),
        ("e\u0301", "é"),
        ("", ""),
        ("   ", ""),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert TOKENIZER.normalize(text) == normal


def test_what_looks_like_a_special_token_is_text() -> None:
    ids = TOKENIZER.encode(f"{END}{AGENT}")
    assert not {TOKENIZER.pad_id, TOKENIZER.user_id, TOKENIZER.agent_id, TOKENIZER.end_id} & set(ids)
    assert TOKENIZER.decode(ids) == f"{END}{AGENT}"


def test_turns_are_framed_by_role_and_end() -> None:
    body = TOKENIZER.encode("latte")
    assert TOKENIZER.encode_turn("user", "latte") == [TOKENIZER.user_id, *body, TOKENIZER.end_id]
    assert TOKENIZER.encode_turns([("agent", "latte"), ("user", "")]) == [
        [TOKENIZER.agent_id, *body, TOKENIZER.end_id],
        [TOKENIZER.user_id, TOKENIZER.end_id],
    ]


def test_a_word_is_the_same_token_wherever_it_stands() -> None:
    assert TOKENIZER.encode("latte") == TOKENIZER.encode("A latte")[-1:]


def test_digits_stand_alone() -> None:
    assert [TOKENIZER.token_bytes(token) for token in TOKENIZER.encode("in 2026")[-3:]] == [b"0", b"2", b"6"]


def test_clipping_keeps_the_end() -> None:
    ids = TOKENIZER.encode_turn("user", "one two three four")
    assert clip_turn(ids, 4) == [*ids[:3], TOKENIZER.end_id]
    assert clip_turn(ids, 400) == ids


@settings(max_examples=20)
@given(any_text)
def test_saved_and_read_back_it_is_the_same(text: str) -> None:
    again = Tokenizer.from_json(TOKENIZER.to_json())
    assert again.encode(text) == TOKENIZER.encode(text)


def test_lowercase_is_an_option() -> None:
    lower = Tokenizer.train(texts(orders(50)), vocab_size=330, lowercase=True)
    assert lower.normalize("Hello LATTE") == "hello latte"
    assert TOKENIZER.normalize("Hello LATTE") == "Hello LATTE"


@pytest.mark.parametrize("text", ["{}", "not json", '{"model": 5}'])
def test_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a tokenizer"):
        Tokenizer.from_json(text)


def test_a_foreign_vocabulary_is_refused() -> None:
    foreign = TOKENIZER.to_json().replace(END, "</s>")
    with pytest.raises(ValueError, match="first tokens"):
        Tokenizer.from_json(foreign)


@pytest.mark.parametrize(
    "probe", ["a" * 50_000, "!" * 50_000, " \n" * 25_000 + "x", "\u0301" * 50_000, "1" * 50_000]
)
def test_a_hostile_text_costs_linear_time(probe: str) -> None:
    began = time.perf_counter()
    TOKENIZER.encode(probe)
    assert time.perf_counter() - began < 2.0


def test_with_dropout_a_text_is_spelled_in_many_ways_that_all_read_the_same() -> None:
    tokenizer = Tokenizer.train(["hello there, how are you?"] * 5, vocab_size=300)
    varied = tokenizer.with_dropout(0.5)
    spellings = {tuple(varied.encode("hello there")) for _ in range(40)}
    assert len(spellings) > 5
    assert {tokenizer.decode(ids) for ids in spellings} == {"hello there"}
    assert {tuple(tokenizer.encode("hello there")) for _ in range(5)} == {
        tuple(tokenizer.encode("hello there"))
    }
    assert varied.vocab_size == tokenizer.vocab_size
