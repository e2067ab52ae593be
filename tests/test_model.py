"""The model's promises, in float64: in one pass or step by step, alone or among others, one result."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

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


def model(**changes: int) -> Seq2Seq:
    torch.manual_seed(5)
    made = Seq2Seq(SMALL.model_copy(update={"vocab_size": TOKENIZER.vocab_size} | changes)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)  # away from where everything is nearly linear
    return made


MODEL = model()


def turn_by_turn(conversation: Conversation) -> Context:
    context = MODEL.empty_context(1)
    for turn in conversation:
        context = MODEL.encode(torch.tensor([turn]), torch.tensor([len(turn)]), context)
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


def logits_by_step(context: Context, inputs: list[int]) -> Tensor:
    state, memory = MODEL.start(context)
    found = []
    for token in inputs:
        logits, state = MODEL.step(torch.tensor([token]), state, memory)
        found.append(logits[0])
    return torch.stack(found)


@settings(max_examples=30, deadline=None)
@given(st.lists(conversations, min_size=1, max_size=4))
def test_all_at_once_or_turn_by_turn_the_context_is_the_same(several: list[Conversation]) -> None:
    at_once = MODEL.encode_conversations(several)
    for row, conversation in enumerate(several):
        same_context(row_of(at_once, row), turn_by_turn(conversation))


@settings(max_examples=20, deadline=None)
@given(st.lists(conversations, min_size=2, max_size=4), turn_ids)
def test_rows_advance_independently(several: list[Conversation], turn: list[int]) -> None:
    """One row reads a turn, the others do not: padding and neighbors change nothing."""
    before = MODEL.encode_conversations(several)
    padded = torch.zeros(len(several), len(turn) + 3, dtype=torch.int64)
    padded[1, : len(turn)] = torch.tensor(turn)
    lengths = torch.zeros(len(several), dtype=torch.int64)
    lengths[1] = len(turn)
    after = MODEL.encode(padded, lengths, before)
    same_context(row_of(after, 0), row_of(before, 0))
    same_context(row_of(after, 1), turn_by_turn([*several[1], turn]))


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


@pytest.mark.parametrize("seed", range(3))
def test_forward_equals_repeated_step(seed: int) -> None:
    """Teacher forcing over a batch of dialogues gives what serving would, token by token."""
    transcripts = [
        *orders(6, seed),
        transcript("Hello, can I help?", "a mocha", "ok", name="agent-first", first="agent"),
    ]
    corpus = corpus_of(transcripts, TOKENIZER, max_turn_tokens=1000)
    batch = collate(corpus, range(len(transcripts)))
    with torch.no_grad():
        losses, forward = MODEL.token_losses(batch), MODEL.logits(MODEL(batch))
    for reply, (before, ids) in enumerate(by_transcript(transcripts)):
        rows = batch.replies.row == reply
        stepped = logits_by_step(MODEL.encode_conversations([before]), ids[:-1])
        torch.testing.assert_close(forward[rows], stepped)
        expected = nn.functional.cross_entropy(stepped, torch.tensor(ids[1:]), reduction="none")
        torch.testing.assert_close(losses[rows].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_reply_never_sees_what_comes_after_it() -> None:
    first = transcript("Hello", "Hi there", "a mocha", "Which size would you like?")
    other = transcript("Hello", "Hi there", "something else altogether", "No.")
    found = []
    for one in (first, other):
        batch = collate(corpus_of([one], TOKENIZER, max_turn_tokens=1000), [0])
        with torch.no_grad():
            found.append(MODEL.token_losses(batch)[batch.replies.row == 0])
    assert torch.equal(*found)


def test_the_reply_depends_on_every_part_of_the_conversation() -> None:
    """State, attention and the ages of turns all reach the logits: none of them is dead wiring."""
    base = [[5, 6, 7], [8, 9]]
    state, memory = MODEL.start(MODEL.encode_conversations([base]))
    token = torch.tensor([TOKENIZER.agent_id])
    logits, _ = MODEL.step(token, state, memory)
    for changed in (
        (state * 0, memory),
        (state, memory._replace(keys=memory.keys * 0)),
        (state, memory._replace(age=memory.age + 1)),
        (state, memory._replace(mask=memory.mask & (memory.age < 1))),
    ):
        assert not torch.allclose(MODEL.step(token, *changed)[0], logits, atol=1e-4)


def test_an_empty_conversation_can_be_answered() -> None:
    for context in (MODEL.empty_context(2), MODEL.encode_conversations([[], []])):
        state, memory = MODEL.start(context)
        logits, _ = MODEL.step(torch.tensor([TOKENIZER.agent_id] * 2), state, memory)
        assert logits.shape == (2, TOKENIZER.vocab_size)
        assert logits.isfinite().all()


def test_step_leaves_its_arguments_alone() -> None:
    state, memory = MODEL.start(MODEL.encode_conversations([[[5, 6, 7]]]))
    kept = [value.clone() for value in (state, *memory)]
    MODEL.step(torch.tensor([9]), state, memory)
    assert all(torch.equal(a, b) for a, b in zip(kept, (state, *memory), strict=True))


def test_dropout_acts_in_training_only() -> None:
    made = Seq2Seq(SMALL.model_copy(update={"vocab_size": 330, "dropout": 0.5}))
    batch = collate(corpus_of(orders(2), TOKENIZER, max_turn_tokens=100), [0, 1])
    made.train()
    assert not torch.equal(made(batch), made(batch))
    made.eval()
    assert torch.equal(made(batch), made(batch))
