"""Not saying again what was said before: runs of tokens, whole replies, and the way back out of one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.batcher import Batcher, Piece, Reply, ReplyRequest
from chatbot.config import ModelConfig
from chatbot.decoding import FORBIDDEN, Sampling, choose_sampled, uniforms
from chatbot.lines import RETURNS
from chatbot.options import MAX_TOKENS, DecodingOptions
from chatbot.repeats import EarlierReplies, Runs
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Role
from tests.batching import Probabilities, Tree, bigram_bundle, bundle_of, drain, replies
from tests.small import SMALL

A, B, C, D = 36, 37, 38, 39
END, AGENT = Tokenizer.end_id, Tokenizer.agent_id
MODES = ("greedy", "sample", "beam")
Ids = Sequence[int]


@pytest.fixture(scope="module")
def config(tiny_tokenizer: Tokenizer) -> ModelConfig:
    return SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})


def after(said: str, **options: object) -> ReplyRequest:
    """A request in a conversation in which the bot has said ``said``."""
    turns: tuple[tuple[Role, str], ...] = (("user", "B B B"), ("agent", said), ("user", "A A A A"))
    values = {"seed": 1, "min_tokens": 0, "max_tokens": 20, "temperature": 0.05, **options}
    return ReplyRequest("only", turns, DecodingOptions.checked(values))


# ---- Runs --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(A, D), max_size=8), max_size=3), st.lists(st.integers(A, D), max_size=8))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_runs_are_those_of_the_turns(
    tiny_tokenizer: Tokenizer, size: int, turns: list[list[int]], ids: list[int]
) -> None:
    runs = Runs([[AGENT, *turn, END] for turn in turns], size, tiny_tokenizer)
    known = {tuple(turn[i : i + size]) for turn in turns for i in range(len(turn) - size + 1)}
    expected = {last for last in range(A, D + 1) if tuple([*ids, last][-size:]) in known}
    assert set(runs.after(ids)) == (expected if len(ids) >= size - 1 else set())


def test_runs_do_not_cross_turns_or_reach_their_ends(tiny_tokenizer: Tokenizer) -> None:
    runs = Runs([[AGENT, A, END], [AGENT, B, END]], 2, tiny_tokenizer)
    assert not any(runs.after([token]) for token in (AGENT, A, B, END))


def test_numbers_stay_the_same_however_often_they_are_said(tiny_tokenizer: Tokenizer) -> None:
    def repeatable(text: str) -> list[bool]:
        ids = tiny_tokenizer.encode(text)
        runs = Runs([ids], 2, tiny_tokenizer)
        return [token not in runs.after(ids[:at]) for at, token in enumerate(ids)][1:]

    assert not any(repeatable("B" * 9))
    assert all(repeatable("10:30"))


ROUND: Probabilities = {AGENT: {A: 0.9, B: 0.1}, A: {A: 0.6, B: 0.4}, B: {END: 1.0}}


@pytest.mark.parametrize("mode", MODES)
def test_a_run_of_the_bots_own_turns_does_not_come_again(
    config: ModelConfig, tiny_tokenizer: Tokenizer, mode: str
) -> None:
    def said(**options: object) -> tuple[int, ...]:
        request = after("AAA", decoding=mode, max_tokens=3, **options)
        bundle = bigram_bundle(config, tiny_tokenizer, ROUND)
        return replies(drain(Batcher(bundle), request))["only"].token_ids

    turn = tiny_tokenizer.encode("AAA")
    assert turn[-2:] == [A, A]
    if mode != "beam":
        assert said() == (A, A, A)
    assert said(no_repeat_context_ngram=2) == (A, B, END)
    assert A not in said(no_repeat_context_ngram=1)


# ---- Earlier replies ---------------------------------------------------------------------------------------


def test_replies_are_the_same_whatever_their_case_and_punctuation(tiny_tokenizer: Tokenizer) -> None:
    encode = tiny_tokenizer.encode
    turns = [encode(text) for text in ("What is your name?", "You're welcome!", "Ok")]
    earlier = EarlierReplies(turns, 4, tiny_tokenizer)
    assert earlier
    assert earlier.say(encode("what IS your  name"))
    assert not earlier.say(encode("What is your name, please?"))
    assert not earlier.say(encode("You're welcome!"))
    assert EarlierReplies(turns, 3, tiny_tokenizer).say(encode("You're welcome."))
    assert EarlierReplies(turns, 1, tiny_tokenizer).say(encode("ok"))
    assert not EarlierReplies(turns, 0, tiny_tokenizer)
    assert not EarlierReplies([encode("!?")], 1, tiny_tokenizer)


def test_the_beginning_of_an_earlier_reply_may_yet_become_it(tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("What is your name?")
    earlier = EarlierReplies([ids], 4, tiny_tokenizer)
    assert all(earlier.begin(ids[:at]) for at in range(len(ids) + 1))
    assert not earlier.begin(tiny_tokenizer.encode("What was"))


QUESTION: Probabilities = {
    AGENT: {A: 0.7, C: 0.3},
    A: {B: 0.9, C: 0.1},
    B: {END: 0.95, A: 0.05},
    C: {END: 0.8, D: 0.2},
    D: {END: 1.0},
}
"""AB is the likeliest reply, C the next, ABAC … far behind."""


@pytest.mark.parametrize("mode", MODES)
def test_an_earlier_reply_is_not_given_again(
    config: ModelConfig, tiny_tokenizer: Tokenizer, mode: str
) -> None:
    def said(earlier: str, **options: object) -> Reply:
        bundle = bigram_bundle(config, tiny_tokenizer, QUESTION)
        return replies(drain(Batcher(bundle), after(earlier, decoding=mode, **options)))["only"]

    assert said("ab!").text == "AB"
    assert said("CD", no_repeat_reply=1).text == "AB"
    assert said("ab!", no_repeat_reply=2).text == "AB"
    again = said("ab!", no_repeat_reply=1)
    assert again.text == "C"
    assert again.finish_reason == "stop"
    # The record is that of the reply, not of the way to it.
    assert again.logprobs == pytest.approx((math.log(0.3), math.log(0.8)))
    told = said("ab!", no_repeat_reply=1, top_alternatives=1)
    assert [place[0].id for place in told.top] == [A, END]


def test_nothing_is_shown_before_it_is_certain(config: ModelConfig, tiny_tokenizer: Tokenizer) -> None:
    batcher = Batcher(bigram_bundle(config, tiny_tokenizer, QUESTION))
    batcher.submit(after("AB", no_repeat_reply=1))
    steps = [batcher.step() for _ in range(4)]
    assert steps[:3] == [[], [], []]
    assert steps[3] == [Piece("only", "C")]


def test_a_line_that_is_cancelled_before_it_is_certain_has_said_nothing(
    config: ModelConfig, tiny_tokenizer: Tokenizer
) -> None:
    batcher = Batcher(bigram_bundle(config, tiny_tokenizer, QUESTION))
    batcher.submit(after("AB", no_repeat_reply=1))
    batcher.step()
    batcher.step()
    batcher.cancel("only")
    assert replies(batcher.step())["only"] == Reply("", (), (), "cancelled", 1, ())


@pytest.mark.parametrize("mode", MODES)
def test_a_bot_that_can_say_nothing_else_says_it_again(
    config: ModelConfig, tiny_tokenizer: Tokenizer, mode: str
) -> None:
    bundle = bigram_bundle(config, tiny_tokenizer, {AGENT: {A: 1.0}, A: {A: 1.0, END: 1e-9}})
    request = after("AAA", decoding=mode, no_repeat_reply=1, prefix="AAA", max_tokens=3, top_k=1)
    forced = tiny_tokenizer.encode("AAA")
    assert len(forced) == 3
    assert replies(drain(Batcher(bundle), request))["only"].token_ids == tuple(forced)


WORDS = ["".join(word) for size in (1, 2, 3) for word in itertools.product("ABC", repeat=size)]


SOME_WORDS = st.sets(st.sampled_from(WORDS), max_size=9)


def slowly(model: Tree, tokenizer: Tokenizer, said: EarlierReplies, options: DecodingOptions) -> list[int]:
    """A guarded reply in the plainest words: every choice is made anew from the whole path."""
    ids: list[int] = []
    tried: dict[tuple[int, ...], set[int]] = {}
    certain = False
    turns = 0

    def scores(path: Ids) -> torch.Tensor:
        found = model.following(path).log_softmax(0)
        found[[0, 1, 2, *tried.get(tuple(path), ())]] = FORBIDDEN
        return found

    def reached(path: Ids) -> float:
        return sum(scores(path[:at])[token].item() for at, token in enumerate(path))

    while not ids or (ids[-1] != END and len(ids) < options.max_tokens):
        here = scores(ids)
        token = int(here.argmax())
        if options.decoding == "sample":
            chance = uniforms([options.seed or 0], [len(ids) + MAX_TOKENS * turns])
            sampling = Sampling.of([options], len(here))
            (token,) = choose_sampled(here[None], chance, sampling).tolist()
        ids.append(token)
        certain = certain or not said.begin(ids)
        ended = token == END or len(ids) == options.max_tokens
        if certain or not ended or not said.say(ids) or turns == RETURNS:
            continue

        def leaving(at: int, ids: Ids = tuple(ids)) -> float:
            others = scores(ids[:at])
            others[ids[at]] = FORBIDDEN
            return reached(ids[:at]) + others.max().item()

        best = max(
            (at for at in range(len(ids)) if at == len(ids) - 1 or not said.say(ids[:at])), key=leaving
        )
        for path in [path for path in tried if len(path) > best]:
            del tried[path]
        tried.setdefault(tuple(ids[:best]), set()).add(ids[best])
        del ids[best:]
        turns += 1
    return ids


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    earlier=SOME_WORDS | SOME_WORDS.map(lambda few: {*WORDS} - few),
    decoding=st.sampled_from(["greedy", "sample"]),
    longest=st.integers(1, 5),
)
def test_a_line_goes_back_to_where_leaving_costs_least(
    config: ModelConfig, tiny_tokenizer: Tokenizer, seed: int, earlier: set[str], decoding: str, longest: int
) -> None:
    model = Tree(config, [A, B, C, END], seed)
    options = DecodingOptions.checked(
        {
            "decoding": decoding,
            "seed": seed,
            "min_tokens": 0,
            "max_tokens": longest,
            "no_repeat_reply": 1,
            "temperature": 0.5,
        }
    )
    turns: list[tuple[Role, str]] = [turn for text in earlier for turn in (("agent", text), ("user", "AB"))]
    request = ReplyRequest("only", (("user", "Hello"), *turns), options)
    reply = replies(drain(Batcher(bundle_of(model, tiny_tokenizer)), request))["only"]
    own = [tiny_tokenizer.encode(text) for text in earlier]
    said = EarlierReplies(own, 1, tiny_tokenizer)
    assert list(reply.token_ids) == slowly(model, tiny_tokenizer, said, options)
    expected = [
        model.following(reply.token_ids[:at]).log_softmax(0)[token].item()
        for at, token in enumerate(reply.token_ids)
    ]
    assert reply.logprobs == pytest.approx(expected)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # Back to the second token, then to the first: what was tried there before was tried elsewhere.
        ({AGENT: {A: 0.8, C: 0.2}, A: {B: 0.6, C: 0.4}, B: {END: 1}, C: {B: 0.9, END: 0.1}}, "CB"),
        # Back to the second token, then to the third: the score begins anew where the line was cut.
        (
            {AGENT: {A: 0.92, C: 0.08}, A: {B: 0.6, C: 0.4}, B: {END: 1}, C: {B: 0.7, D: 0.3}, D: {END: 1}},
            "ACD",
        ),
    ],
)
def test_a_line_goes_back_twice(
    config: ModelConfig, tiny_tokenizer: Tokenizer, model: Probabilities, expected: str
) -> None:
    said: tuple[tuple[Role, str], ...] = (("agent", "AB"), ("agent", "ACB"), ("agent", "CBD"))
    turns: tuple[tuple[Role, str], ...] = (*said, ("user", "A"))
    request = ReplyRequest("only", turns, DecodingOptions(no_repeat_reply=1))
    bundle = bigram_bundle(config, tiny_tokenizer, model)
    assert replies(drain(Batcher(bundle), request))["only"].text == expected


def test_a_line_goes_back_a_bounded_number_of_times(config: ModelConfig, tiny_tokenizer: Tokenizer) -> None:
    """Everything short has been said before; at last one of it is said again."""
    short = ["".join(word) for size in (1, 2) for word in itertools.product("ABC", repeat=size)]
    turns: list[tuple[Role, str]] = [turn for text in short for turn in (("agent", text), ("user", "AB"))]
    options = DecodingOptions(no_repeat_reply=1, max_tokens=2)
    model = Tree(config, [A, B, C], 0)
    batcher = Batcher(bundle_of(model, tiny_tokenizer))
    batcher.submit(ReplyRequest("only", (("user", "Hello"), *turns), options))
    steps = 0
    while not batcher.idle:
        batcher.step()
        steps += 1
    assert steps <= 2 * (RETURNS + 1)
