"""Readers, encoders, bridges, copying: held to their equations, one token at a time, in float64."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from chatbot.config import ModelConfig
from chatbot.encoders import (
    AveragingReader,
    ContinuousEncoder,
    ConvolutionalReader,
    RecurrentReader,
    TwoLevelEncoder,
)
from chatbot.model import Seq2Seq
from chatbot.packing import Packing, pack
from tests.small import SMALL

E, X = SMALL.embedding_size, SMALL.encoder_size
M = TypeVar("M", bound=nn.Module)
CONVERSATION = [[5, 6, 7, 8], [9], [10, 11]]


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(**SMALL.model_dump() | changes)


def randomized(module: M) -> M:
    torch.manual_seed(7)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def packed(sequences: list[Tensor]) -> tuple[Tensor, Packing]:
    packing = pack(torch.tensor([len(sequence) for sequence in sequences]))
    rows, columns = packing.row.tolist(), packing.column.tolist()
    return torch.stack([sequences[r][c] for r, c in zip(rows, columns, strict=True)]), packing


def sequences(*lengths: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(length, E, dtype=torch.float64) for length in lengths]


def test_the_convolutional_reader_is_its_equation() -> None:
    reader = randomized(ConvolutionalReader(config(turn_reader="convolutional", encoder_layers=2)))
    given = sequences(4, 1, 3)
    embedded, packing = packed(given)
    encodings, vectors = reader(embedded, packing)
    for row, sequence in enumerate(given):
        values = [reader.enter(x + reader.place.weight[t]) for t, x in enumerate(sequence)]
        for convolution in reader.convolutions:
            assert isinstance(convolution, nn.Conv1d)
            assert convolution.bias is not None
            weight, bias = convolution.weight, convolution.bias  # (2X, X, 3)
            padded = [torch.zeros(X, dtype=torch.float64), *values, torch.zeros(X, dtype=torch.float64)]
            values = [
                here
                + (out := sum(weight[:, :, k] @ padded[t + k] for k in range(3)) + bias)[:X]
                * torch.sigmoid(out[X:])
                for t, here in enumerate(values)
            ]
        torch.testing.assert_close(encodings[packing.row == row], torch.stack(values))
        torch.testing.assert_close(vectors[row], torch.stack(values).mean(0))


def test_the_averaging_reader_is_its_equation_and_blind_to_order() -> None:
    reader = randomized(AveragingReader(config(turn_reader="averaging", encoder_layers=2)))
    given = sequences(4, 1, 3)
    embedded, packing = packed(given)
    encodings, vectors = reader(embedded, packing)
    for row, sequence in enumerate(given):
        values = sequence
        for layer in reader.layers:
            assert isinstance(layer, nn.Linear)
            values = torch.tanh(values @ layer.weight.T + layer.bias)
        torch.testing.assert_close(encodings[packing.row == row], values)
        torch.testing.assert_close(vectors[row], values.mean(0))
    turned, packing = packed([sequence.flip(0) for sequence in given])
    torch.testing.assert_close(reader(turned, packing)[1], vectors)


def gru_cell(layer: nn.Module, suffix: str, x: Tensor, h: Tensor) -> Tensor:
    """One step of a layer of torch's, as its documentation has it."""
    w, u = getattr(layer, f"weight_ih_l0{suffix}"), getattr(layer, f"weight_hh_l0{suffix}")
    b, c = getattr(layer, f"bias_ih_l0{suffix}"), getattr(layer, f"bias_hh_l0{suffix}")
    (i_r, i_z, i_n), (h_r, h_z, h_n) = (w @ x + b).chunk(3), (u @ h + c).chunk(3)
    r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
    return (1 - z) * torch.tanh(i_n + r * h_n) + z * h


def run_cell(layer: nn.Module, suffix: str, inputs: list[Tensor], h: Tensor) -> list[Tensor]:
    found = []
    for x in inputs:
        h = gru_cell(layer, suffix, x, h)
        found.append(h)
    return found


def zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


def two_level(model: Seq2Seq) -> tuple[list[Tensor], Tensor]:
    """Memory and state of `CONVERSATION`, written out."""
    encoder = model.encoder
    assert isinstance(encoder, TwoLevelEncoder)
    assert isinstance(encoder.reader, RecurrentReader)
    layer, carry = encoder.reader.recurrence.layers[0], encoder.carry.layers[0]
    memory: list[Tensor] = []
    state = zeros(SMALL.state_size)
    for turn in CONVERSATION:
        embedded = [model.embedding.weight[token] for token in turn]
        forward = run_cell(layer, "", embedded, zeros(X))
        backward = run_cell(layer, "_reverse", embedded[::-1], zeros(X))[::-1]
        encodings = [torch.cat(pair) for pair in zip(forward, backward, strict=True)]
        memory += [model.memory_projection.weight @ e + model.memory_projection.bias for e in encodings]
        state = gru_cell(carry, "", torch.cat([forward[-1], backward[0]]), state)
    return memory, state


def continuous(model: Seq2Seq) -> tuple[list[Tensor], Tensor]:
    encoder = model.encoder
    assert isinstance(encoder, ContinuousEncoder)
    tokens = [model.embedding.weight[token] for turn in CONVERSATION for token in turn]
    outputs = run_cell(encoder.recurrence.layers[0], "", tokens, zeros(X))
    memory = [model.memory_projection.weight @ o + model.memory_projection.bias for o in outputs]
    return memory, outputs[-1]


@pytest.mark.parametrize("encoder", ["two_level", "continuous"])
def test_the_encoder_is_its_equation(encoder: str) -> None:
    model = randomized(Seq2Seq(config(encoder=encoder, bidirectional=encoder == "two_level")))
    context = model.encode_conversations([CONVERSATION])
    memory, state = two_level(model) if encoder == "two_level" else continuous(model)
    torch.testing.assert_close(context.memory[0], torch.stack(memory))
    torch.testing.assert_close(context.state[0], state)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"copying": True},
        {"context_input": True},
        {"bridge": "copy", "state_size": SMALL.hidden_size},
        {"tied": False},
        {"decoder_layers": 1},
    ],
    ids=str,
)
def test_the_decoder_is_its_equations(changes: dict[str, Any]) -> None:
    """Two tokens of a reply, each value computed by hand from the weights."""
    model = randomized(Seq2Seq(config(**changes)))
    context = model.encode_conversations([CONVERSATION])
    keys, state = context.memory[0], context.state[0]
    ages = [2, 2, 2, 2, 1, 0, 0]
    tokens = [token for turn in CONVERSATION for token in turn]
    layers = SMALL.hidden_size * model.config.decoder_layers
    start = (
        torch.tanh(model.bridge.weight @ state + model.bridge.bias)
        if model.config.bridge == "projection"
        else torch.cat([state] * (layers // len(state)))
    )
    b, *rest = torch.split(start, SMALL.hidden_size)
    given = [state] if model.config.context_input else []
    table = model.embedding.weight if model.config.tied else model.output.weight
    decoder_state, memory = model.start(context)
    for token in (3, 12):
        embedded = model.embedding.weight[token]
        b = gru_cell(model.bottom.layers[0], "", torch.cat([embedded, *given]), b)
        by_age = torch.stack([b @ model.attention.age.weight[age] for age in ages])
        weights = (keys @ b + by_age).softmax(0)
        seen = weights @ keys
        top = b
        if rest:
            assert model.top is not None
            rest = [gru_cell(model.top.layers[0], "", torch.cat([b, seen]), rest[0])]
            top = rest[0]
        readout = model.readout.weight @ torch.cat([top, seen, *given]) + model.readout.bias
        p = (table @ readout + model.bias).softmax(0)
        if model.config.copying:
            gate = torch.sigmoid(
                model.copy_gate.weight[0] @ torch.cat([top, seen, embedded]) + model.copy_gate.bias[0]
            )
            p = gate * p
            for at, source in enumerate(tokens):
                p[source] = p[source] + (1 - gate) * weights[at]
        logits, decoder_state, attention = model.step(torch.tensor([token]), decoder_state, memory)
        torch.testing.assert_close(logits[0].softmax(0), p)
        torch.testing.assert_close(attention[0], weights)
