"""The proof of learning: in seconds every cell and every attention learns to turn digit strings around."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from chatbot.config import AttentionKind, CellKind, ModelConfig
from chatbot.model import Seq2Seq
from training.batches import collate, token_weights
from training.corpus import Corpus
from training.loss import linear_cross_entropy

USER, AGENT, END, ZERO = 1, 2, 3, 4
PAIRS = 64
ENOUGH = 0.9
SIZES: dict[str, Any] = {
    "vocab_size": ZERO + 10,
    "embedding_size": 24,
    "encoder_size": 24,
    "hidden_size": 48,
    "dropout": 0.0,
    "encoder": "last_turn",
}


def pairs(rng: np.random.Generator, length: int) -> tuple[Corpus, np.ndarray[Any, Any]]:
    """A string of digits said by the user, and the same from its end by the agent."""
    digits = rng.integers(ZERO, ZERO + 10, (PAIRS, length))
    column = np.ones((PAIRS, 1), np.int64)
    said = np.hstack([USER * column, digits, END * column])
    answered = np.hstack([AGENT * column, digits[:, ::-1], END * column])
    tokens = np.stack([said, answered], axis=1)
    return Corpus(
        tokens=tokens.astype(np.uint32).ravel(),
        turn_start=np.arange(2 * PAIRS + 1) * (length + 2),
        turn_is_reply=np.tile([False, True], PAIRS),
        turn_weight=np.ones(2 * PAIRS, np.float32),
        dialogue_start=np.arange(0, 2 * PAIRS + 1, 2),
    ), digits


def learn(length: int, steps: int, rate: float = 0.01, **changes: Any) -> float:
    """Train, and return the share of new strings that greedy decoding turns around without a mistake."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    model = Seq2Seq(ModelConfig(**(SIZES | changes))).train()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        batch = collate(pairs(rng, length)[0], range(PAIRS))
        readouts, copying = model(batch)
        weights = token_weights(batch) / len(batch.targets)
        loss, _ = linear_cross_entropy(
            readouts, model.output_table, model.bias, batch.targets, weights, copying=copying
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()
    return reversed_share(model.eval(), *pairs(rng, length))


def reversed_share(model: Seq2Seq, corpus: Corpus, digits: np.ndarray[Any, Any]) -> float:
    turns = corpus.tokens.reshape(2 * PAIRS, -1)[::2]
    with torch.inference_mode():
        state, memory = model.start(model.encode_conversations([[turn.tolist()] for turn in turns]))
        token = torch.full((PAIRS,), AGENT)
        found = []
        for _ in range(digits.shape[1]):
            logits, state, _ = model.step(token, state, memory)
            token = logits.argmax(1)
            found.append(token.numpy())
    return float((np.stack(found, axis=1) == digits[:, ::-1]).all(1).mean())


@pytest.mark.parametrize("cell", get_args(CellKind))
def test_every_cell_learns_to_reverse(cell: CellKind) -> None:
    assert learn(5, 200, cell=cell) > ENOUGH


@pytest.mark.parametrize("attention", [kind for kind in get_args(AttentionKind) if kind != "none"])
def test_every_attention_learns_what_no_fixed_vector_holds(attention: AttentionKind) -> None:
    """At this length a model without attention, trained as long, gets hardly a string right."""
    assert learn(12, 200, attention=attention) > ENOUGH


def test_without_attention_the_same_length_is_too_long() -> None:
    assert learn(12, 200, attention="none") < 0.1
