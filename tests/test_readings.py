"""Conversations are read once: kept between replies, in parts when they are long, to the same values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from chatbot.batcher import ALONE, Batcher, Event, Finished, Piece, Reply, ReplyRequest
from chatbot.config import ModelConfig
from chatbot.ensemble import Ensemble
from chatbot.model import Context, Seq2Seq
from chatbot.model_directory import ModelBundle
from chatbot.options import DecodingOptions
from chatbot.readings import NOTHING, Reading, Readings
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Role
from tests.batching import bundle_of, drain, replies, until_idle
from tests.small import SMALL

ROLES: tuple[Role, Role] = ("user", "agent")
TURNS: tuple[tuple[Role, str], ...] = tuple((ROLES[n % 2], f"Turn {n} of many") for n in range(41))
OPTIONS = DecodingOptions(max_tokens=6, min_tokens=6)
ROOM = 10**7

SHAPES = {
    "two_level": {},
    "lstm": {"cell": "lstm"},
    "gru_reset_before": {"cell": "gru_reset_before"},
    "continuous": {"encoder": "continuous", "bidirectional": False},
    "deep continuous": {"encoder": "continuous", "bidirectional": False, "encoder_layers": 2, "cell": "lstm"},
    "window": {"encoder": "window"},
    "last_turn": {"encoder": "last_turn"},
    "none": {"encoder": "none", "attention": "none"},
    "reversed": {"reverse_input": True},
    "convolutional": {"turn_reader": "convolutional"},
    "without attention": {"attention": "none"},
}


class Counting(Seq2Seq):
    """Counts the turns and the tokens that it reads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.passes: list[list[int]] = []
        self.most = 0

    def encode_conversations(
        self, conversations: Sequence[Sequence[Sequence[int]]], context: Context | None = None
    ) -> Context:
        self.passes.append([len(conversation) for conversation in conversations])
        self.most = max(self.most, sum(len(turn) for turns in conversations for turn in turns))
        return super().encode_conversations(conversations, context)


@pytest.fixture
def counting(tiny_tokenizer: Tokenizer) -> tuple[Counting, ModelBundle]:
    torch.manual_seed(5)
    model = Counting(SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})).double()
    return model, bundle_of(model, tiny_tokenizer)


def request(
    name: str, upto: int, conversation: str = "c", options: DecodingOptions = OPTIONS
) -> ReplyRequest:
    return ReplyRequest(name, TURNS[:upto], options, conversation)


def answer(batcher: Batcher, one: ReplyRequest) -> Reply:
    """As soon as it is made: the batcher has no idle step."""
    batcher.submit(one)
    while True:
        for event in batcher.step():
            if isinstance(event, Finished):
                return event.reply


# ---- The model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_reading_on_is_reading_all(shape: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = Seq2Seq(ModelConfig(**{**SMALL.model_dump(), **shape})).double().eval()
    torch.manual_seed(2)
    whole = [
        [torch.randint(5, 60, (n,)).tolist() for n in lengths]
        for lengths in ([3, 9, 4, 1, 7], [2], [5, 5, 8, 2], [])
    ]
    cuts = [2, 1, 0, 0]
    with torch.inference_mode():
        first = [turns[:cut] for turns, cut in zip(whole, cuts, strict=True)]
        rest = [turns[cut:] for turns, cut in zip(whole, cuts, strict=True)]
        parts = model.split(model.encode_conversations(first))
        on = model.encode_conversations(rest, model.join(parts))
        at_once = model.encode_conversations(whole)
        for one, other in zip(model.start(on), model.start(at_once), strict=True):
            for a, b in zip(_tensors(one), _tensors(other), strict=True):
                torch.testing.assert_close(a.double(), b.double())


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def test_an_ensemble_reads_on(tiny_tokenizer: Tokenizer) -> None:
    models = []
    for seed, encoder in enumerate(("two_level", "window")):
        torch.manual_seed(seed)
        models.append(Seq2Seq(SMALL.model_copy(update={"encoder": encoder})).double().eval())
    ensemble = Ensemble(models)
    with torch.inference_mode():
        read = ensemble.split(ensemble.encode_conversations([[[5, 6]], [[7]]]))
        on = ensemble.encode_conversations([[[8, 9]], []], ensemble.join(read))
        state, _ = ensemble.start(on)
        at_once, _ = ensemble.start(ensemble.encode_conversations([[[5, 6], [8, 9]], [[7]]]))
    torch.testing.assert_close(state, at_once)


# ---- What is kept ------------------------------------------------------------------------------------------


def test_only_what_is_new_is_read(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    batcher = Batcher(bundle, kept=ROOM)
    for upto in (1, 3, 3, 9):
        answer(batcher, request(str(upto), upto))
    assert model.passes == [[1], [2], [0], [6]]


def test_a_reply_does_not_depend_on_what_is_kept(counting: tuple[Counting, ModelBundle]) -> None:
    _, bundle = counting
    keeping, forgetting = Batcher(bundle, kept=ROOM), Batcher(bundle)
    for upto in (1, 3, 7, 41):
        assert answer(keeping, request("x", upto)).logprobs == pytest.approx(
            answer(forgetting, request("x", upto)).logprobs, rel=1e-9
        )


def test_other_turns_are_read_from_the_first(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    batcher = Batcher(bundle, kept=ROOM)
    answer(batcher, request("a", 5))
    changed: tuple[tuple[Role, str], ...] = (*TURNS[:2], ("user", "Something else"), *TURNS[3:7])
    answer(batcher, ReplyRequest("b", changed, OPTIONS, "c"))
    answer(batcher, request("c", 5))
    assert model.passes == [[5], [7], [5]]


def test_without_a_name_nothing_is_kept(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    batcher = Batcher(bundle, kept=ROOM)
    for name in ("a", "b"):
        answer(batcher, request(name, 5, ""))
    assert model.passes == [[5], [5]]


def test_a_reading_that_led_to_no_number_is_not_kept(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    batcher = Batcher(bundle, kept=ROOM)
    bias = model.bias.detach().clone()
    with torch.no_grad():
        model.bias[7] = torch.nan
    assert not replies(drain(batcher, request("a", 5)))
    with torch.no_grad():
        model.bias.copy_(bias)
    answer(batcher, request("b", 5))
    assert model.passes == [[5], [5]]


def _reading(turns: int, tokens: int) -> Reading:
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    counts = torch.tensor([tokens]), torch.tensor([turns])
    context = Context(torch.zeros(1, 4), torch.zeros(1, tokens, 8), ids, ids, *counts)
    return Reading(TURNS[:turns], ((1, 2),) * turns, context)


def test_a_reading_with_the_one_before_it_takes_the_room_of_both() -> None:
    one = _reading(2, 100)
    assert replace(_reading(3, 100), before=one).size > 1.7 * one.size


def test_what_was_used_last_is_kept_within_the_bound() -> None:
    one = _reading(2, 100)
    assert one.size > 100 * 8 * 4
    readings = Readings(3 * one.size)
    for name in "abc":
        readings.keep(name, one)
    assert readings.find("a", TURNS) is one
    readings.keep("d", one)
    assert readings.find("b", TURNS) is NOTHING
    assert [readings.find(name, TURNS) is one for name in "acd"] == [True] * 3
    assert readings.size == 3 * one.size
    readings.keep("e", _reading(4, 1000))  # larger than all there is
    assert len(readings) == 3
    readings.keep("a", _reading(4, 150))
    assert readings.size <= 3 * one.size


# ---- Read in advance ---------------------------------------------------------------------------------------


def talk(batcher: Batcher, turns: int) -> list[tuple[str, ...]]:
    """A conversation in which the visitor says what is in `TURNS`, and the batcher is idle in between."""
    said: list[tuple[Role, str]] = []
    logprobs = []
    for number, turn in enumerate(TURNS[: 2 * turns : 2]):
        said.append(turn)
        reply = replies(drain(batcher, ReplyRequest(str(number), tuple(said), OPTIONS, "c")))[str(number)]
        said.append(("agent", reply.text))
        logprobs.append(tuple(f"{each:.9f}" for each in reply.logprobs))
    return logprobs


def test_a_reply_is_read_before_the_visitor_goes_on(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    said = talk(Batcher(bundle, kept=ROOM), 4)
    assert model.passes == [[1]] * 8
    assert said == talk(Batcher(bundle), 4)


def test_a_reply_that_was_read_can_be_made_anew(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    batcher = Batcher(bundle, kept=ROOM)
    first = replies(drain(batcher, request("a", 5)))["a"]
    assert model.passes == [[5], [1]]
    assert replies(drain(batcher, request("b", 5)))["b"].token_ids == first.token_ids
    assert model.passes == [[5], [1], [0], [1]]


def test_nothing_is_read_in_advance_while_there_is_something_to_do(
    counting: tuple[Counting, ModelBundle],
) -> None:
    model, bundle = counting
    batcher = Batcher(bundle, kept=ROOM)
    batcher.submit(request("a", 1, "a", OPTIONS.model_copy(update={"min_tokens": 30, "max_tokens": 30})))
    batcher.submit(request("b", 1, "b", OPTIONS.model_copy(update={"min_tokens": 3, "max_tokens": 3})))
    ended: list[str] = []
    while "a" not in ended:
        ended += [event.id for event in batcher.step() if isinstance(event, Finished)]
        assert len(model.passes) == 1
    assert not batcher.idle
    drain(batcher)
    assert model.passes == [[1, 1], [1], [1]]


def test_what_is_to_be_read_in_advance_is_bounded(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    batcher = Batcher(bundle, rows=2, kept=ROOM)
    for number in range(6):
        answer(batcher, request(str(number), 1, str(number)))
    drain(batcher)
    assert len(model.passes) == 6 + 2


def test_a_reply_that_cannot_be_read_is_left(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    batcher = Batcher(bundle, kept=ROOM)
    answer(batcher, request("a", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "encode_conversations", lambda *_: 1 / 0)
        assert batcher.step() == []
    assert batcher.idle
    answer(batcher, request("b", 3))
    assert model.passes == [[1], [2]]


# ---- In parts ----------------------------------------------------------------------------------------------


def test_a_long_conversation_does_not_hold_up_replies_in_flight(
    counting: tuple[Counting, ModelBundle],
) -> None:
    model, bundle = counting
    batcher = Batcher(bundle, reading=30)
    alone = answer(Batcher(bundle), request("long", 41))
    batcher.submit(
        replace(request("short", 1), options=OPTIONS.model_copy(update={"max_tokens": 60, "min_tokens": 60}))
    )
    batcher.step()
    model.passes.clear()
    model.most = 0
    batcher.submit(request("long", 41))
    events: list[Event] = []
    shown = 0
    while not any(event.id == "long" for event in events):
        events += batcher.step()
        shown += 1
    assert shown > 5
    assert len(model.passes) > 5
    assert model.most <= 30
    assert sum(map(sum, model.passes)) == 41
    assert any(isinstance(event, Piece) and event.id == "short" for event in events)
    assert replies([*events, *until_idle(batcher)])["long"].token_ids == alone.token_ids


def test_with_nobody_in_flight_more_is_read_at_once(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    answer(Batcher(bundle), request("long", 41))
    tokens = model.most
    model.passes.clear()
    answer(Batcher(bundle, reading=math.ceil(tokens / ALONE)), request("long", 41))
    assert model.passes == [[41]]


def test_a_step_returns_soon_with_nobody_in_flight_too(counting: tuple[Counting, ModelBundle]) -> None:
    model, bundle = counting
    alone = answer(Batcher(bundle), request("long", 41))
    tokens = model.most
    model.passes.clear()
    model.most = 0
    batcher = Batcher(bundle, reading=tokens // (4 * ALONE))
    batcher.submit(request("long", 41))
    assert replies(until_idle(batcher))["long"].token_ids == alone.token_ids
    assert len(model.passes) >= 4
    assert sum(map(sum, model.passes)) == 41
    assert model.most <= tokens // 4


def test_a_conversation_that_is_being_read_is_cancelled(counting: tuple[Counting, ModelBundle]) -> None:
    _, bundle = counting
    batcher = Batcher(bundle, rows=2, reading=1)
    batcher.submit(request("short", 1))
    batcher.step()
    batcher.submit(request("long", 41))
    batcher.step()
    with pytest.raises(ValueError, match="answered already"):
        batcher.submit(request("long", 41))
    batcher.cancel("long")
    assert replies(batcher.step())["long"].finish_reason == "cancelled"
    batcher.submit(request("next", 3))
    assert replies(until_idle(batcher)).keys() == {"short", "next"}


def test_rows_are_promised_while_a_conversation_is_read(counting: tuple[Counting, ModelBundle]) -> None:
    _, bundle = counting
    batcher = Batcher(bundle, rows=3, reading=1)
    batcher.submit(request("short", 1))
    batcher.step()
    wide = OPTIONS.model_copy(update={"decoding": "beam", "beam_size": 2})
    batcher.submit(request("long", 41, options=wide))
    batcher.submit(request("late", 1))
    found = replies(until_idle(batcher))
    assert found.keys() == {"short", "long", "late"}
