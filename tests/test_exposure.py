"""Variations on teacher forcing: what the inputs become, and which places are learned."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from chatbot.model import DialogueBatch, Seq2Seq
from chatbot.packing import pack
from chatbot.tokenizer import Tokenizer
from tests.small import SMALL, orders, texts
from training import exposure
from training.batches import collate
from training.corpus import corpus_of
from training.exposure import draw, one_position, with_own_inputs

TOKENIZER = Tokenizer.train(texts(orders(50)), vocab_size=SMALL.vocab_size)


def world() -> tuple[Seq2Seq, DialogueBatch]:
    torch.manual_seed(0)
    model = Seq2Seq(SMALL.model_copy(update={"vocab_size": TOKENIZER.vocab_size})).eval()
    return model, collate(corpus_of(orders(8), TOKENIZER, max_turn_tokens=64), range(8))


def test_one_place_of_each_reply_is_drawn_uniformly() -> None:
    replies = pack(torch.tensor([3, 1, 5]))
    found: Counter[tuple[int, int]] = Counter()
    for _ in range(600):
        chosen = one_position(replies).bool()
        places = list(zip(replies.row[chosen].tolist(), replies.column[chosen].tolist(), strict=True))
        assert sorted(row for row, _ in places) == [0, 1, 2]
        found.update(places)
    assert len(found) == 9
    assert found[(1, 0)] == 600
    assert all(100 < found[(0, column)] < 300 for column in range(3))
    assert all(60 < found[(2, column)] < 200 for column in range(5))


def test_a_share_of_the_inputs_are_the_models_own_words() -> None:
    model, batch = world()
    with torch.no_grad():
        model.bias[77] = 1000.0  # it would always say 77
    first = batch.replies.column == 0
    assert torch.equal(with_own_inputs(model, batch, 0.0).inputs, batch.inputs)
    everywhere = with_own_inputs(model, batch, 1.0).inputs
    assert (everywhere[~first] == 77).all()
    assert torch.equal(everywhere[first], batch.inputs[first])
    some = with_own_inputs(model, batch, 0.5).inputs
    share = (some[~first] == 77).float().mean().item()
    assert 0.3 < share < 0.7
    assert torch.equal(some[some != 77], batch.inputs[some != 77])


def test_an_own_word_is_the_one_said_at_the_place_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = world()
    said = torch.arange(len(batch.targets)) + 1000
    monkeypatch.setattr(exposure, "draw", lambda *_: said)
    inputs = with_own_inputs(model, batch, 1.0).inputs
    replies = batch.replies
    place = {
        (row, column): index
        for index, (row, column) in enumerate(zip(replies.row.tolist(), replies.column.tolist(), strict=True))
    }
    for (row, column), index in place.items():
        if column:
            assert inputs[index] == 1000 + place[row, column - 1]


def test_words_are_drawn_from_the_models_distribution() -> None:
    model, batch = world()
    with torch.no_grad():
        model.readout.weight.zero_()
        model.bias.fill_(-1000.0)
        model.bias[[5, 6]] = torch.tensor([0.0, 0.0]) + torch.tensor([3.0, 1.0]).log()
        drawn = torch.cat([draw(model, batch) for _ in range(20)])
    assert set(drawn.tolist()) == {5, 6}
    assert (drawn == 5).float().mean().item() == pytest.approx(0.75, abs=0.03)
