"""The batcher: whatever shares a batch, every reply is what it would be alone, and only the guilty fail."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatbot.batcher import Batcher, BatcherFull, Event, Finished, Piece, Reply, ReplyRequest
from chatbot.model import Context, Memory, Seq2Seq
from chatbot.model_directory import ModelBundle
from chatbot.options import DecodingOptions
from chatbot.slots import Slots
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Role
from tests.batching import (
    Bigram,
    Tree,
    ask,
    bigram_bundle,
    bigram_table,
    bundle_of,
    check_pieces,
    drain,
    failures,
    replies,
    until_idle,
)
from tests.small import SMALL

A, B, C = 36, 37, 38
END, AGENT = Tokenizer.end_id, Tokenizer.agent_id
Turns = tuple[tuple[Role, str], ...]
HELLO: Turns = (("user", "Hello"),)
LONG: Turns = (("user", "Hello!"), ("agent", "Hello, what can I get you?")) * 6 + (("user", "A latte"),)


def request(name: str, turns: Turns = HELLO, /, **options: object) -> ReplyRequest:
    return ReplyRequest(name, turns, DecodingOptions.checked({"max_tokens": 12, **options}))


# ---- Any interleaving equals a solo run --------------------------------------------------------------------

POOL = (
    request("greedy"),
    request("empty", (("user", ""),), no_repeat_ngram=1),
    request("long", LONG, min_tokens=5),
    request("sampled", LONG, decoding="sample", seed=11, temperature=1.3),
    request(
        "filtered", HELLO, decoding="sample", seed=11, top_k=40, top_p=0.9, min_p=0.01, prefix="Thank yo"
    ),
    request(
        "penalized", (("agent", "Hello"), ("user", "no")), decoding="sample", seed=3, repetition_penalty=2
    ),
    request("beam", LONG, decoding="beam", beam_size=4, n_best=3, length_penalty=1),
    request("best", LONG, decoding="sample", seed=11, samples=3, n_best=3, attention=True),
    request("noted", LONG, decoding="beam", coverage_penalty=0.5, top_alternatives=3, attention=True),
    request("groups", LONG, decoding="beam", beam_size=4, beam_groups=2, n_best=4, group_penalty=1),
    request("pair", HELLO, decoding="beam", beam_size=2, n_best=2, max_tokens=9, diversity_penalty=0.5),
    request("prefixed", HELLO, decoding="beam", beam_size=3, prefix="Zoë la"),
)

SAID: Turns = tuple(
    turn for word in ("A", "B", "C", "AB", "BA", "CA", "CB", "ACB") for turn in (*HELLO, ("agent", word))
)
WANDERERS = (
    request("plain", HELLO, min_tokens=0),
    request("three", HELLO, decoding="sample", seed=3, min_tokens=0, samples=3, n_best=3),
    request("new-three", SAID + HELLO, decoding="sample", seed=5, min_tokens=0, samples=3, no_repeat_reply=1),
    request("new", SAID + HELLO, min_tokens=0, no_repeat_reply=1),
    request("newer", SAID + HELLO, decoding="sample", seed=3, min_tokens=0, no_repeat_reply=1),
    request("newest", SAID + HELLO, decoding="beam", beam_size=3, min_tokens=0, no_repeat_reply=1),
)
"""Requests to a `Tree`, whose rows must go on from the right states."""


@pytest.fixture(scope="module")
def lively(tiny_tokenizer: Tokenizer) -> ModelBundle:
    """An untrained model in float64 whose distributions are sharp enough to differ and which does end."""
    torch.manual_seed(3)
    model = Seq2Seq(SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        model.bias[END] += 4.0
    return bundle_of(model, tiny_tokenizer)


@pytest.fixture(scope="module")
def wayward(tiny_tokenizer: Tokenizer) -> ModelBundle:
    """Every path of it is another."""
    config = SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})
    return bundle_of(Tree(config, [A, B, C, END], 6), tiny_tokenizer)


@pytest.fixture(scope="module")
def solo(lively: ModelBundle) -> dict[str, Reply]:
    return {one.id: replies(drain(Batcher(lively), one))[one.id] for one in POOL}


def test_the_pool_is_worth_batching(solo: dict[str, Reply]) -> None:
    assert {reply.finish_reason for reply in solo.values()} == {"stop", "length"}
    assert len({(reply.token_ids, reply.alternatives) for reply in solo.values()}) >= len(POOL) - 2
    assert len({len(reply.token_ids) for reply in solo.values()}) > 3


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, len(POOL) - 1)),
        st.tuples(st.just("cancel"), st.integers(0, len(POOL) - 1)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(
    ACTIONS, st.sampled_from([4, 7, 64]), st.sampled_from([None, 1, 20]), st.sampled_from([0, 9000, 10**6])
)
def test_any_interleaving_equals_a_solo_run(
    lively: ModelBundle,
    solo: dict[str, Reply],
    actions: list[tuple[str, int]],
    rows: int,
    reading: int | None,
    kept: int,
) -> None:
    """However much is read at a time and whatever is kept: some of the pool go on where others were."""
    pool = [replace(one, conversation=str(number % 3)) for number, one in enumerate(POOL)]
    interleave(Batcher(lively, rows=rows, reading=reading, kept=kept), pool, solo, actions)


@settings(max_examples=40, deadline=None)
@given(ACTIONS, st.sampled_from([4, 7, 64]))
def test_any_interleaving_equals_a_solo_run_where_paths_go_their_own_ways(
    wayward: ModelBundle, actions: list[tuple[str, int]], rows: int
) -> None:
    alone = {one.id: replies(drain(Batcher(wayward), one))[one.id] for one in WANDERERS}
    interleave(Batcher(wayward, rows=rows), WANDERERS, alone, actions)


def interleave(
    batcher: Batcher, pool: Sequence[ReplyRequest], alone: dict[str, Reply], actions: list[tuple[str, int]]
) -> None:
    """Submit, cancel and step as ``actions`` say; whoever gets to the end has the reply that it has alone."""
    under_way: set[str] = set()
    events: list[Event] = []
    copies = 0
    for action, number in [*actions, ("step", 10_000)]:
        one = pool[number % len(pool)]
        if action == "submit":
            copies += 1
            batcher.submit(replace(one, id=f"{one.id} {copies}"))
            under_way.add(f"{one.id} {copies}")
        elif action == "cancel":
            same_kind = sorted(each for each in under_way if each.split()[0] == one.id)
            for each in same_kind[:1]:
                batcher.cancel(each)
        else:
            for _ in range(number):
                if batcher.idle:
                    break
                new = batcher.step()
                under_way -= {event.id for event in new if isinstance(event, Finished)}
                events += new
    assert batcher.idle
    check_pieces(events)
    assert not failures(events)
    assert len(replies(events)) == copies
    for name, reply in replies(events).items():
        same_as(reply, alone[name.split()[0]])


def same_as(reply: Reply, alone: Reply) -> None:
    if reply.finish_reason == "cancelled":
        assert reply.token_ids == alone.token_ids[: len(reply.token_ids)]
        assert reply.logprobs == pytest.approx(alone.logprobs[: len(reply.logprobs)])
        assert len(reply.logprobs) == len(reply.token_ids)
        assert not reply.alternatives
        return
    assert (reply.text, reply.token_ids, reply.finish_reason) == (
        alone.text,
        alone.token_ids,
        alone.finish_reason,
    )
    assert reply.logprobs == pytest.approx(alone.logprobs)
    assert [a.token_ids for a in reply.alternatives] == [a.token_ids for a in alone.alternatives]
    assert [a.score for a in reply.alternatives] == pytest.approx([a.score for a in alone.alternatives])
    assert [[a.id for a in place] for place in reply.top] == [[a.id for a in place] for place in alone.top]
    assert [a.logprob for place in reply.top for a in place] == pytest.approx(
        [a.logprob for place in alone.top for a in place]
    )
    assert (reply.attention is None) == (alone.attention is None)
    if reply.attention is not None and alone.attention is not None:
        assert reply.attention.remembered == alone.attention.remembered
        assert sum(reply.attention.weights, ()) == pytest.approx(sum(alone.attention.weights, ()))


@pytest.mark.parametrize("one", POOL, ids=lambda one: one.id)
def test_a_reply_is_what_the_model_says_of_it(
    lively: ModelBundle, solo: dict[str, Reply], one: ReplyRequest
) -> None:
    """Every log-probability is found again by scoring the reply's ids step by step."""
    model, tokenizer = lively.model, lively.tokenizer
    reply = solo[one.id]
    with torch.inference_mode():
        conversation = [tokenizer.encode_turn(role, text)[:24] for role, text in one.turns]
        state, memory = model.start(model.encode_conversations([conversation]))
        for last, token, logprob in zip(
            [AGENT, *reply.token_ids], reply.token_ids, reply.logprobs, strict=False
        ):
            logits, state, _ = model.step(torch.tensor([last]), state, memory)
            assert logits.log_softmax(1)[0, token].item() == pytest.approx(logprob)
    assert reply.text == tokenizer.decode(reply.token_ids)


# ---- Coming and going --------------------------------------------------------------------------------------


@pytest.fixture
def endless(tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer) -> ModelBundle:
    """Says A for ever."""
    return bigram_bundle(tiny_model.config, tiny_tokenizer, {AGENT: {A: 1}, A: {A: 1}})


def test_pieces_come_one_token_at_a_time(endless: ModelBundle) -> None:
    batcher = Batcher(endless)
    batcher.submit(request("a", max_tokens=3))
    assert batcher.step() == [Piece("a", "A")]
    assert batcher.step() == [Piece("a", "A")]
    piece, finished = batcher.step()
    assert piece == Piece("a", "A")
    assert isinstance(finished, Finished)
    assert batcher.idle
    assert batcher.step() == []


def test_requests_join_and_leave_between_steps(endless: ModelBundle) -> None:
    batcher = Batcher(endless)
    batcher.submit(request("a", max_tokens=3))
    batcher.step()
    batcher.submit(request("b", max_tokens=1))
    assert {event.id for event in batcher.step()} == {"a", "b"}
    assert {event.id for event in batcher.step()} == {"a"}
    assert batcher.idle


def test_requests_wait_for_rows_in_the_order_they_came(endless: ModelBundle) -> None:
    batcher = Batcher(endless, rows=2)
    batcher.submit(request("a", max_tokens=2))
    batcher.submit(request("b", max_tokens=2))
    batcher.submit(request("wide", max_tokens=1, decoding="beam", beam_size=2))
    batcher.submit(request("narrow", max_tokens=1))
    order = [event.id for event in drain(batcher) if isinstance(event, Finished)]
    assert order == ["a", "b", "wide", "narrow"]


def test_a_cancelled_reply_ends_with_what_was_shown(endless: ModelBundle) -> None:
    batcher = Batcher(endless)
    batcher.submit(request("a"))
    batcher.submit(request("b", max_tokens=4))
    batcher.step()
    batcher.step()
    batcher.cancel("a")
    batcher.cancel("a")
    batcher.cancel("nobody")
    events = batcher.step()
    assert isinstance(events[0], Finished)
    reply = events[0].reply
    assert (reply.text, reply.token_ids, reply.finish_reason) == ("AA", (A, A), "cancelled")
    assert reply.logprobs == pytest.approx((0.0, 0.0))
    assert replies(until_idle(batcher))["b"].text == "AAAA"


def test_a_request_cancelled_before_its_turn_gets_an_empty_reply(endless: ModelBundle) -> None:
    batcher = Batcher(endless, rows=1)
    batcher.submit(request("a", max_tokens=2))
    batcher.submit(request("b", decoding="sample", seed=9))
    batcher.step()
    batcher.cancel("b")
    assert replies(until_idle(batcher))["b"] == Reply("", (), (), "cancelled", 9, ())


def test_a_cancelled_beam_keeps_only_what_all_paths_share(lively: ModelBundle) -> None:
    batcher = Batcher(lively)
    batcher.submit(request("beam", decoding="beam", beam_size=4, prefix="Thank you ", max_tokens=40))
    shown = ""
    for _ in range(4):
        shown += "".join(event.text for event in batcher.step() if isinstance(event, Piece))
    batcher.cancel("beam")
    (finished,) = (event for event in batcher.step() if isinstance(event, Finished))
    assert finished.reply.text == shown
    assert shown.startswith("Thank")


def test_a_beam_shows_what_its_paths_share_before_it_is_done(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer
) -> None:
    fork = {AGENT: {A: 1.0}, A: {B: 0.6, C: 0.4}, B: {END: 0.5, C: 0.5}, C: {END: 1.0}}
    batcher = Batcher(bigram_bundle(tiny_model.config, tiny_tokenizer, fork))
    batcher.submit(request("beam", decoding="beam", beam_size=2))
    steps = []
    while not batcher.idle:
        steps.append(batcher.step())
    # At first the beam is filled up with anything at all; then both paths begin with A.
    assert steps[:2] == [[], [Piece("beam", "A")]]
    assert steps[2][0] == Piece("beam", "C")
    assert len(steps) == 3


def test_half_a_character_is_held_back(tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer) -> None:
    first, second = (
        next(token for token in range(4, 260) if tiny_tokenizer.token_bytes(token) == bytes([byte]))
        for byte in "ë".encode()
    )
    halves = {AGENT: {first: 1.0}, first: {second: 1.0}, second: {END: 1.0}}
    batcher = Batcher(bigram_bundle(tiny_model.config, tiny_tokenizer, halves))
    batcher.submit(request("a"))
    assert batcher.step() == []
    assert batcher.step() == [Piece("a", "ë")]


def test_the_waiting_line_is_bounded(endless: ModelBundle) -> None:
    batcher = Batcher(endless, rows=1, waiting=2)
    batcher.submit(request("a"))
    batcher.submit(request("b"))
    assert batcher.room == 0
    with pytest.raises(BatcherFull):
        batcher.submit(request("c"))
    batcher.step()
    batcher.submit(request("c"))


def test_an_id_belongs_to_one_request_at_a_time(endless: ModelBundle) -> None:
    batcher = Batcher(endless)
    batcher.submit(request("a", max_tokens=1))
    with pytest.raises(ValueError, match="'a'"):
        batcher.submit(request("a"))
    drain(batcher)
    drain(batcher, request("a", max_tokens=1))


def test_what_no_caller_should_ask_for_is_refused_at_once(endless: ModelBundle) -> None:
    batcher = Batcher(endless)
    with pytest.raises(ValueError, match="seed"):
        batcher.submit(request("a", decoding="sample"))
    with pytest.raises(ValueError, match="turn"):
        batcher.submit(request("a", ()))
    assert batcher.idle


# ---- Only the guilty fail ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 999}, "top_k: must be a whole number from 0 to 330, the size of the vocabulary"),
        ({"decoding": "beam", "beam_size": 9}, "beam_size: must be a whole number from 1 to 8 here"),
        ({"prefix": "many words here, " * 5}, "max_tokens"),
    ],
)
def test_an_option_that_this_model_cannot_follow_fails_alone(
    endless: ModelBundle, options: dict[str, object], message: str
) -> None:
    events = drain(Batcher(endless, rows=8), request("a"), request("bad", **options), request("b"))
    assert replies(events).keys() == {"a", "b"}
    failed = failures(events)["bad"]
    assert message in failed.message
    assert failed.field in options


def test_a_text_that_cannot_be_read_fails_alone(endless: ModelBundle) -> None:
    events = drain(Batcher(endless), request("a"), request("bad", (("user", "\ud800"),)), request("b"))
    assert replies(events).keys() == {"a", "b"}
    assert failures(events)["bad"].message == "the conversation could not be read"


class Squeamish(Bigram):
    """Refuses conversations of three turns."""

    def encode_conversations(
        self, conversations: Sequence[Sequence[Sequence[int]]], context: Context | None = None
    ) -> Context:
        if any(len(conversation) == 3 for conversation in conversations):
            raise RuntimeError("three of what?")
        return super().encode_conversations(conversations, context)


def test_a_conversation_that_cannot_be_encoded_fails_alone(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer
) -> None:
    table = bigram_table(tiny_tokenizer.vocab_size, {AGENT: {A: 1}, A: {END: 1}})
    batcher = Batcher(bundle_of(Squeamish(tiny_model.config, table), tiny_tokenizer))
    events = drain(batcher, request("a"), request("bad", HELLO * 3), request("b", HELLO * 2))
    assert {name: reply.text for name, reply in replies(events).items()} == {"a": "A", "b": "A"}
    assert failures(events)["bad"].message == "the conversation could not be read"


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["greedy", "sample", "beam"])
def test_what_is_not_a_number_fails_alone(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer, mode: str, poison: float
) -> None:
    table = bigram_table(tiny_tokenizer.vocab_size, {AGENT: {A: 1}, A: {A: 1}})
    table[B, C] = poison
    batcher = Batcher(bundle_of(Bigram(tiny_model.config, table), tiny_tokenizer))
    bad = request("bad", decoding=mode, seed=1, prefix="B ")
    chain = tiny_tokenizer.encode("B")
    assert chain[-1] == B
    events = drain(batcher, request("a"), bad, request("b", decoding="beam"))
    assert failures(events)["bad"].message == "the model computed something that is not a number"
    assert replies(events)["a"].text == replies(events)["b"].text == "A" * 12


def test_a_failure_of_the_whole_step_is_not_hidden(
    endless: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(endless.model, "step", broken)
    batcher = Batcher(endless)
    batcher.submit(request("a"))
    with pytest.raises(RuntimeError, match="no memory"):
        batcher.step()


# ---- Histories ---------------------------------------------------------------------------------------------


def test_a_turn_that_is_too_long_is_cut_and_answered(lively: ModelBundle) -> None:
    text = "latte " * 500
    longest = lively.config.max_turn_tokens
    ids = lively.tokenizer.encode_turn("user", text)[: longest - 1]
    cut = lively.tokenizer.decode(ids)
    assert ask(lively, DecodingOptions(max_tokens=8), text) == ask(lively, DecodingOptions(max_tokens=8), cut)


def test_the_history_matters(lively: ModelBundle) -> None:
    events = drain(Batcher(lively), request("short", HELLO), request("long", LONG[:-1] + HELLO))
    assert replies(events)["short"].logprobs != replies(events)["long"].logprobs


# ---- Slots -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Holder:
    rows: list[int] = field(default_factory=list)


def memory_of(model: Seq2Seq, *lengths: int, fill: float = 0.5) -> tuple[Tensor, Memory]:
    """States and memories that differ by row: row b is filled with ``fill + b``."""
    rows, width = len(lengths), max(lengths)
    values = fill + torch.arange(rows, dtype=torch.float32)
    state = values[:, None].expand(rows, model.config.decoder_layers * model.config.hidden_size)
    keys = values[:, None, None].expand(rows, width, model.config.hidden_size)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    nothing = torch.zeros(rows, width, dtype=torch.int64)
    return state, Memory(keys, nothing, nothing, mask)


def test_slots_step_every_row_as_if_it_were_alone(tiny_model: Seq2Seq) -> None:
    """Rows are moved about by releases; each holder still reads its own state and memory."""
    slots, holders = Slots(tiny_model, 8), [Holder() for _ in range(4)]
    with torch.inference_mode():
        state, memory = memory_of(tiny_model, 3, 7, 5, 2)
        slots.add(holders, [1, 3, 2, 1], state, memory)
        assert slots.free == 1
        slots.release(holders[0])
        slots.release(holders[2])
        assert slots.free == 4
        late = Holder()
        slots.add([late], [2], *memory_of(tiny_model, 4, fill=9.0))
        in_use = [holders[1], holders[3], late]
        assert sorted(row for holder in in_use for row in holder.rows) == list(range(6))
        logits, _ = slots.step([9] * 6)
        for holder, b in ((holders[1], 1), (holders[3], 3)):
            alone, *_ = tiny_model.step(
                torch.tensor([9]), state[b : b + 1], Memory(*(value[b : b + 1] for value in memory))
            )
            for row in holder.rows:
                assert torch.allclose(logits[row], alone[0], atol=1e-5)


def test_slots_keep_all_columns_up_to_the_last_that_counts(tiny_model: Seq2Seq) -> None:
    """Not every encoder lets its decoder see everything that it remembers."""
    slots = Slots(tiny_model, 2)
    with torch.inference_mode():
        state, memory = memory_of(tiny_model, 6, 3)
        memory = memory._replace(keys=torch.randn(memory.keys.shape), mask=memory.mask.clone())
        memory.mask[:, :2] = False
        slots.add([Holder(), Holder()], [1, 1], state, memory)
        expected = tiny_model.step(torch.tensor([9, 9]), state, memory)
        logits, attention = slots.step([9, 9])
        assert torch.allclose(logits, expected.logits, atol=1e-5)
        assert torch.allclose(attention, expected.attention, atol=1e-5)


def test_what_a_reply_leaves_in_its_row_does_not_reach_the_next(tiny_model: Seq2Seq) -> None:
    slots, first, second, third = Slots(tiny_model, 2), Holder(), Holder(), Holder()
    with torch.inference_mode():
        slots.add([first], [1], *memory_of(tiny_model, 6, fill=math.nan))
        slots.release(first)
        slots.add([second], [1], *memory_of(tiny_model, 2))
        slots.add([third], [1], *memory_of(tiny_model, 6))
        assert torch.isfinite(slots.step([9, 9])[0]).all()


def test_states_are_all_read_before_any_is_replaced(tiny_model: Seq2Seq) -> None:
    slots = Slots(tiny_model, 3)
    with torch.inference_mode():
        state, memory = memory_of(tiny_model, 2, 2, 2)
        slots.add([Holder(), Holder(), Holder()], [1, 1, 1], state, memory)
        slots.copy_states([0, 1, 2], [2, 0, 1])
        expected, *_ = tiny_model.step(torch.tensor([9, 9, 9]), state[[2, 0, 1]], memory)
        assert torch.allclose(slots.step([9, 9, 9])[0], expected, atol=1e-5)
        assert not torch.allclose(expected, expected.roll(1, 0), atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_rows_that_nobody_uses_take_no_memory(tiny_model: Seq2Seq) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    slots = Slots(tiny_model, 60_000)
    with torch.inference_mode():
        state, memory = memory_of(tiny_model, 3)
        before = resident()
        slots.add([Holder()], [1], state, memory)
        taken = resident() - before
    rows = slots._memory.keys
    assert rows.nbytes > 80 << 20
    assert taken < rows.nbytes / 2
    assert not rows[1:1000].any()
