"""The model's promises, in float64 and whatever its shape: in one pass or step by step, alone or among
others, one result.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chatbot.config import ModelConfig
from chatbot.model import Context, Seq2Seq
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Transcript
from tests.small import SMALL, orders, texts, transcript
from training.batches import collate
from training.corpus import corpus_of

TOKENIZER = Tokenizer.train(texts(orders(200)), vocab_size=SMALL.vocab_size)
Conversation = list[list[int]]
turn_ids = st.lists(st.integers(4, 60), min_size=1, max_size=9)
conversations = st.lists(turn_ids, max_size=7)


SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "gru_reset_before": {"cell": "gru_reset_before"},
    "lstm": {"cell": "lstm"},
    "lstm_peephole": {"cell": "lstm_peephole"},
    "rnn": {"cell": "rnn"},
    "deep": {"encoder_layers": 3, "decoder_layers": 4, "residual": True, "cell": "lstm"},
    "one_decoder_layer": {"decoder_layers": 1},
    "one_direction": {"bidirectional": False},
    "reversed": {"reverse_input": True, "bidirectional": False},
    "convolutional": {"turn_reader": "convolutional", "encoder_layers": 2},
    "averaging": {"turn_reader": "averaging", "encoder_layers": 2},
    "continuous": {"encoder": "continuous", "bidirectional": False},
    "continuous_deep": {
        "encoder": "continuous",
        "bidirectional": False,
        "encoder_layers": 2,
        "cell": "lstm",
        "reverse_input": True,
    },
    "window": {"encoder": "window"},
    "window_convolutional": {"encoder": "window", "turn_reader": "convolutional", "reverse_input": True},
    "last_turn": {"encoder": "last_turn"},
    "language_model": {"encoder": "none", "attention": "none"},
    "bridge_copy": {"bridge": "copy", "state_size": 16},
    "context_input": {"context_input": True, "attention": "none"},
    "no_attention": {"attention": "none"},
    "scaled": {"attention": "scaled"},
    "bilinear": {"attention": "bilinear"},
    "additive": {"attention": "additive", "attention_size": 6},
    "copying": {"copying": True},
    "copying_window": {"copying": True, "encoder": "window", "decoder_layers": 1},
    "untied": {"tied": False, "context_input": True},
}
"""Each choice of `ModelConfig` by itself, and some together."""
NO_MEMORY = ("language_model", "no_attention", "context_input")


@cache
def model(**changes: Any) -> Seq2Seq:
    torch.manual_seed(5)
    values = SMALL.model_dump() | {"vocab_size": TOKENIZER.vocab_size} | changes
    made = Seq2Seq(ModelConfig(**values)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)  # away from where everything is nearly linear
    return made


MODEL = model()
every_shape = pytest.mark.parametrize("shape", SHAPES)


def turn_by_turn(conversation: Conversation, model: Seq2Seq = MODEL) -> Context:
    context = model.empty_context(1)
    for turn in conversation:
        context = model.encode(torch.tensor([turn]), torch.tensor([len(turn)]), context)
    return context


def same_context(a: Context, b: Context) -> None:
    assert torch.equal(a.length, b.length)
    assert torch.equal(a.turns, b.turns)
    torch.testing.assert_close(a.state, b.state)
    for row, length in enumerate(a.length.tolist()):
        torch.testing.assert_close(a.memory[row, :length], b.memory[row, :length])
        assert torch.equal(a.turn[row, :length], b.turn[row, :length])


def row_of(context: Context, row: int) -> Context:
    return Context(*(value[row : row + 1] for value in context))


def logits_by_step(context: Context, inputs: list[int], model: Seq2Seq = MODEL) -> Tensor:
    state, memory = model.start(context)
    found = []
    for token in inputs:
        logits, state, _ = model.step(torch.tensor([token]), state, memory)
        found.append(logits[0])
    return torch.stack(found)


@every_shape
@settings(max_examples=12, deadline=None)
@given(several=st.lists(conversations, min_size=1, max_size=4))
def test_all_at_once_or_turn_by_turn_the_context_is_the_same(shape: str, several: list[Conversation]) -> None:
    one = model(**SHAPES[shape])
    at_once = one.encode_conversations(several)
    for row, conversation in enumerate(several):
        same_context(row_of(at_once, row), turn_by_turn(conversation, one))


@every_shape
@settings(max_examples=6, deadline=None)
@given(several=st.lists(conversations, min_size=2, max_size=4), turn=turn_ids)
def test_rows_advance_independently(shape: str, several: list[Conversation], turn: list[int]) -> None:
    """One row reads a turn, the others do not: padding and neighbors change nothing."""
    one = model(**SHAPES[shape])
    before = one.encode_conversations(several)
    padded = torch.zeros(len(several), len(turn) + 3, dtype=torch.int64)
    padded[1, : len(turn)] = torch.tensor(turn)
    lengths = torch.zeros(len(several), dtype=torch.int64)
    lengths[1] = len(turn)
    after = one.encode(padded, lengths, before)
    same_context(row_of(after, 0), row_of(before, 0))
    same_context(row_of(after, 1), turn_by_turn([*several[1], turn], one))


def test_memory_holds_the_last_w_tokens() -> None:
    conversation = [[5] * 9, [6] * 9, [7] * 9]
    context = MODEL.encode_conversations([conversation])
    assert context.length.tolist() == [SMALL.memory_tokens]
    assert context.turn[0].tolist() == [0] * 6 + [1] * 9 + [2] * 9
    whole = model(memory_tokens=1000)
    everything = whole.encode_conversations([conversation])
    torch.testing.assert_close(context.memory[0], everything.memory[0, 3:])


def test_reading_a_turn_costs_its_own_length() -> None:
    """The cost of a turn must not grow with the conversation: the same products for turn 2 and turn 60."""
    from torch.utils.flop_counter import FlopCounterMode

    def cost(context: Context) -> int:
        with FlopCounterMode(display=False) as counter:
            MODEL.encode(torch.tensor([[5, 6, 7]]), torch.tensor([3]), context)
        return int(counter.get_total_flops())

    early, late = turn_by_turn([[5, 6]]), turn_by_turn([[5, 6, 7]] * 60)
    assert cost(early) == cost(late) > 0


def by_transcript(transcripts: list[Transcript]) -> list[tuple[Conversation, list[int]]]:
    """Every reply of the transcripts with the turns before it."""
    found = []
    for one in transcripts:
        turns = [TOKENIZER.encode_turn(turn.role, turn.text) for turn in one.turns]
        found += [(turns[:i], turn) for i, turn in enumerate(turns) if one.turns[i].role == "agent"]
    return found


@every_shape
@pytest.mark.parametrize("seed", range(2))
def test_forward_equals_repeated_step(shape: str, seed: int) -> None:
    """Teacher forcing over a batch of dialogues gives what serving would, token by token."""
    one = model(**SHAPES[shape])
    transcripts = [
        *orders(6, seed),
        transcript("Hello, can I help?", "a mocha", "ok", name="agent-first", first="agent"),
    ]
    corpus = corpus_of(transcripts, TOKENIZER, max_turn_tokens=1000)
    batch = collate(corpus, range(len(transcripts)))
    with torch.no_grad():
        losses, forward = one.token_losses(batch), one.logits(one(batch).values)
    for reply, (before, ids) in enumerate(by_transcript(transcripts)):
        rows = batch.replies.row == reply
        stepped = logits_by_step(one.encode_conversations([before]), ids[:-1], one)
        expected = nn.functional.cross_entropy(stepped, torch.tensor(ids[1:]), reduction="none")
        torch.testing.assert_close(losses[rows].double(), expected, rtol=1e-5, atol=1e-5)
        if not one.config.copying:
            torch.testing.assert_close(forward[rows], stepped)


def test_a_reply_never_sees_what_comes_after_it() -> None:
    first = transcript("Hello", "Hi there", "a mocha", "Which size would you like?")
    other = transcript("Hello", "Hi there", "something else altogether", "No.")
    found = []
    for one in (first, other):
        batch = collate(corpus_of([one], TOKENIZER, max_turn_tokens=1000), [0])
        with torch.no_grad():
            found.append(MODEL.token_losses(batch)[batch.replies.row == 0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_the_reply_depends_on_every_part_of_the_conversation() -> None:
    """State, attention and the ages of turns all reach the logits: none of them is dead wiring."""
    base = [[5, 6, 7], [8, 9]]
    state, memory = MODEL.start(MODEL.encode_conversations([base]))
    token = torch.tensor([TOKENIZER.agent_id])
    logits, *_ = MODEL.step(token, state, memory)
    for changed in (
        (state * 0, memory),
        (state, memory._replace(keys=memory.keys * 0)),
        (state, memory._replace(age=memory.age + 1)),
        (state, memory._replace(mask=memory.mask & (memory.age < 1))),
    ):
        assert not torch.allclose(MODEL.step(token, *changed)[0], logits, atol=1e-4)


@every_shape
def test_an_empty_conversation_can_be_answered(shape: str) -> None:
    one = model(**SHAPES[shape])
    for context in (one.empty_context(2), one.encode_conversations([[], []])):
        state, memory = one.start(context)
        logits, *_ = one.step(torch.tensor([TOKENIZER.agent_id] * 2), state, memory)
        assert logits.shape == (2, TOKENIZER.vocab_size)
        assert logits.isfinite().all()


@every_shape
def test_step_leaves_its_arguments_alone(shape: str) -> None:
    one = model(**SHAPES[shape])
    state, memory = one.start(one.encode_conversations([[[5, 6, 7]]]))
    kept = [value.clone() for value in (state, *memory)]
    one.step(torch.tensor([9]), state, memory)
    assert all(torch.equal(a, b) for a, b in zip(kept, (state, *memory), strict=True))


def test_dropout_acts_in_training_only() -> None:
    made = Seq2Seq(SMALL.model_copy(update={"vocab_size": 330, "dropout": 0.5}))
    batch = collate(corpus_of(orders(2), TOKENIZER, max_turn_tokens=100), [0, 1])
    made.train()
    assert not torch.equal(made(batch).values, made(batch).values)
    made.eval()
    assert torch.equal(made(batch).values, made(batch).values)


@every_shape
def test_attention_is_told(shape: str) -> None:
    """The weights of a step add up to one over what may be seen; without attention or memory they are
    zero.
    """
    one = model(**SHAPES[shape])
    for conversation in ([], [[5, 6, 7], [8, 9, 5, 6]]):
        state, memory = one.start(one.encode_conversations([conversation]))
        weights = one.step(torch.tensor([9]), state, memory).attention
        assert weights.shape == memory.mask.shape
        expected = float(bool(conversation) and shape not in NO_MEMORY)
        assert weights.sum().item() == pytest.approx(expected)
        assert not weights[~memory.mask].any()


def test_a_language_model_knows_nothing_of_the_conversation() -> None:
    one = model(**SHAPES["language_model"])
    contexts = [one.encode_conversations([[]]), one.encode_conversations([[[5, 6, 7], [8]]])]
    found = [logits_by_step(context, [9, 5], one) for context in contexts]
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("encoder", ["two_level", "continuous", "window"])
def test_an_encoder_of_conversations_knows_the_turn_before_the_last(encoder: str) -> None:
    one = model(encoder=encoder, bidirectional=encoder != "continuous")
    found = [logits_by_step(one.encode_conversations([[first, [8, 9]]]), [9], one) for first in ([5], [6])]
    assert not torch.allclose(found[0], found[1])


def test_an_encoder_of_last_turns_does_not() -> None:
    one = model(encoder="last_turn")
    found = [logits_by_step(one.encode_conversations([[first, [8, 9]]]), [9], one) for first in ([5], [6])]
    torch.testing.assert_close(*found)


def test_reversal_changes_what_is_read_not_what_is_written() -> None:
    plain, reverse = model(bidirectional=False), model(bidirectional=False, reverse_input=True)
    turns = [[5, 6, 7], [8, 9]]
    there = logits_by_step(plain.encode_conversations([turns]), [9, 5], plain)
    back = logits_by_step(reverse.encode_conversations([[t[::-1] for t in turns]]), [9, 5], reverse)
    torch.testing.assert_close(there, back)
    assert not torch.allclose(logits_by_step(reverse.encode_conversations([turns]), [9, 5], reverse), there)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder": "continuous"}, "bidirectional = false"),
        ({"encoder": "continuous", "bidirectional": False, "turn_reader": "averaging"}, "recurrent"),
        ({"encoder": "none"}, "attention must be none"),
        ({"encoder": "none", "attention": "none", "context_input": True}, "context_input"),
        ({"copying": True, "attention": "none"}, "copying needs attention"),
        ({"bridge": "copy", "hidden_size": 20}, "hidden_size 12"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_words(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ModelConfig(**SMALL.model_dump() | changes)
