"""Recurrent layers over packed sequences, one interface for all cells.

    gru               r, z = sigmoid(W x_t + U h_{t-1} + b),  n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} +
    c_n))
                      h_t = (1 - z) * n + z * h_{t-1}               reset after the product, as cuDNN has it
    gru_reset_before  the same with n = tanh(W_n x_t + U_n (r * h_{t-1}) + b_n)          (Cho et al. 2014)
    lstm              i, f, o = sigmoid(W x_t + U h_{t-1} + b),  g = tanh(W_g x_t + U_g h_{t-1} + b_g)
                      c_t = f * c_{t-1} + i * g,  h_t = o * tanh(c_t)    (Hochreiter and Schmidhuber 1997)
    lstm_peephole     i and f also see p * c_{t-1}, o sees p * c_t       (Gers and Schmidhuber 2000)
    rnn               h_t = tanh(W x_t + U h_{t-1} + b)                                       (Elman 1990)

A layer's state is one row for each sequence: h, or [h; c] for an LSTM; of all layers and directions it lies
side by side. Shapes: P packed tokens, N sequences in sorted order (chatbot.packing), X input, H hidden, D
directions, S state of one layer in one direction, F = layers * D * S.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatbot.config import CellKind
from chatbot.recurrence import run_gru, run_kernel, steps


class Recurrence(nn.Module):
    """A stack of recurrent layers."""

    def __init__(
        self,
        cell: CellKind,
        input_size: int,
        hidden_size: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.directions = 2 if bidirectional else 1
        self.hidden_size, self.residual, self.dropout = hidden_size, residual, dropout
        self.output_size = self.directions * hidden_size
        widths = [input_size, *[self.output_size] * (layers - 1)]
        self.layers = nn.ModuleList(_layer(cell, width, hidden_size, bidirectional) for width in widths)
        self.layer_state = self.directions * hidden_size * (2 if cell.startswith("lstm") else 1)
        self.state_size = layers * self.layer_state

    def forward(
        self, inputs: Tensor, batch_sizes: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Packed ``inputs`` (P, X) from ``state`` (N, F) or zeros -> outputs (P, D * H), last states (N,
        F).
        """
        if state is None:
            state = inputs.new_zeros(int(batch_sizes[0]), self.state_size)
        lasts: list[Tensor] = []
        for index, (layer, initial) in enumerate(zip(self.layers, self._split(state), strict=True)):
            if index:
                inputs = F.dropout(inputs, self.dropout, self.training)
            outputs, last = _run(layer, inputs, batch_sizes, initial)
            lasts.append(last)
            inputs = outputs + inputs if self.residual and index else outputs
        return inputs, torch.cat(lasts, dim=1)

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token further: ``inputs`` (B, X), ``state`` (B, F) -> outputs (B, H), state (B, F)."""
        lasts: list[Tensor] = []
        for index, (layer, before) in enumerate(zip(self.layers, self._split(state), strict=True)):
            if index:
                inputs = F.dropout(inputs, self.dropout, self.training)
            outputs, last = _step(layer, inputs, before)
            lasts.append(last)
            inputs = outputs + inputs if self.residual and index else outputs
        return inputs, torch.cat(lasts, dim=1)

    def last_outputs(self, state: Tensor) -> Tensor:
        """What the last layer put out last: (N, F) -> (N, D * H), forward and backward ends side by side."""
        top = state[:, -self.layer_state :].view(len(state), self.directions, -1)
        return top[:, :, : self.hidden_size].flatten(1)

    def _split(self, state: Tensor) -> tuple[Tensor, ...]:
        return torch.split(state, self.layer_state, dim=1)


def _layer(cell: CellKind, input_size: int, hidden_size: int, bidirectional: bool) -> nn.Module:
    match cell:
        case "gru":
            return nn.GRU(input_size, hidden_size, bidirectional=bidirectional)
        case "lstm":
            return nn.LSTM(input_size, hidden_size, bidirectional=bidirectional)
        case "rnn":
            return nn.RNN(input_size, hidden_size, bidirectional=bidirectional)
        case "gru_reset_before":
            return GruResetBefore(input_size, hidden_size, bidirectional)
        case "lstm_peephole":
            return LstmPeephole(input_size, hidden_size, bidirectional)


def _run(layer: nn.Module, inputs: Tensor, batch_sizes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One layer, both directions of it: state (N, D * S) -> outputs (P, D * H), last states (N, D * S)."""
    match layer:
        case nn.GRU():
            outputs, last = run_gru(layer, inputs, batch_sizes, _by_direction(state, layer.hidden_size))
            return outputs, _by_row(last)
        case nn.RNN():
            outputs, last = run_kernel(layer, inputs, batch_sizes, _by_direction(state, layer.hidden_size))
            return outputs, _by_row(last)
        case nn.LSTM():
            h, c = _by_direction(state, 2 * layer.hidden_size).chunk(2, dim=2)
            outputs, (h, c) = run_kernel(layer, inputs, batch_sizes, (h.contiguous(), c.contiguous()))
            return outputs, _by_row(torch.cat([h, c], dim=2))
        case LoopedLayer():
            return layer(inputs, batch_sizes, state)  # type: ignore[no-any-return]
    raise TypeError(f"no recurrent layer: {type(layer).__name__}")


def _step(layer: nn.Module, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    match layer:
        case nn.GRU() | nn.RNN():
            outputs, last = run_kernel(layer, inputs.unsqueeze(0), None, state.unsqueeze(0).contiguous())
            return outputs[0], last[0]
        case nn.LSTM():
            h, c = state.unsqueeze(0).chunk(2, dim=2)
            outputs, (h, c) = run_kernel(layer, inputs.unsqueeze(0), None, (h.contiguous(), c.contiguous()))
            return outputs[0], torch.cat([h[0], c[0]], dim=1)
        case LoopedLayer():
            last = layer.advance(layer.products(inputs, ""), state, "")
            return last[:, : layer.hidden_size], last
    raise TypeError(f"no recurrent layer: {type(layer).__name__}")


def _by_direction(state: Tensor, size: int) -> Tensor:
    """(N, D * S) -> (D, N, S)."""
    return state.view(len(state), -1, size).transpose(0, 1).contiguous()


def _by_row(state: Tensor) -> Tensor:
    """(D, N, S) -> (N, D * S)."""
    return state.transpose(0, 1).flatten(1)


# ---- Cells that torch has no kernel for --------------------------------------------------------------------


class LoopedLayer(nn.Module):
    """A layer whose steps are a loop: the products with the inputs are one matrix product, the rest is not.

    Parameters are named and shaped like those of torch's own layers: ``weight_ih_l0`` (gates * H, X) and so
    on, with ``_reverse`` for the second direction.
    """

    gates: int  # rows of H that a product has

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.suffixes = ("", "_reverse") if bidirectional else ("",)
        for suffix in self.suffixes:
            for name, *shape in (
                ("weight_ih", self.gates * hidden_size, input_size),
                ("weight_hh", self.gates * hidden_size, hidden_size),
                ("bias", self.gates * hidden_size),
            ):
                self.register_parameter(f"{name}_l0{suffix}", nn.Parameter(torch.zeros(*shape)))

    def products(self, inputs: Tensor, suffix: str) -> Tensor:
        """What the inputs (P, X) alone give to the gates, (P, gates * H)."""
        return F.linear(inputs, self._get("weight_ih", suffix), self._get("bias", suffix))

    def advance(self, products: Tensor, state: Tensor, suffix: str) -> Tensor:
        """One step: ``products`` (n, gates * H), ``state`` (n, S) -> next state (n, S), h in front."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, batch_sizes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        sizes: list[int] = batch_sizes.tolist()
        ran = [
            self._run_forward(self.products(inputs, suffix), sizes, initial)
            if not suffix
            else self._run_backward(self.products(inputs, suffix), sizes, initial)
            for suffix, initial in zip(self.suffixes, state.chunk(len(self.suffixes), dim=1), strict=True)
        ]
        outputs, lasts = zip(*ran, strict=True)
        return torch.cat(outputs, dim=1), torch.cat(lasts, dim=1)

    def _run_forward(self, products: Tensor, sizes: list[int], state: Tensor) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = []
        ended: list[Tensor] = []  # the last states of sequences that were over, the shortest first
        for start, size in steps(sizes, reverse=False):
            if size < len(state):
                ended.append(state[size:])
            state = self.advance(products[start : start + size], state[:size], "")
            outputs.append(state[:, : self.hidden_size])
        return torch.cat(outputs), torch.cat([state, *reversed(ended)])

    def _run_backward(self, products: Tensor, sizes: list[int], initial: Tensor) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = []
        state = initial[:0]
        for start, size in steps(sizes, reverse=True):
            if size > len(state):  # the last tokens of shorter sequences: they begin here
                state = torch.cat([state, initial[len(state) : size]])
            state = self.advance(products[start : start + size], state, "_reverse")
            outputs.append(state[:, : self.hidden_size])
        return torch.cat(outputs[::-1]), state

    def _get(self, name: str, suffix: str) -> Tensor:
        value: Tensor = getattr(self, f"{name}_l0{suffix}")
        return value


class GruResetBefore(LoopedLayer):
    """The GRU as first published: the reset gate acts before the product."""

    gates = 3

    def advance(self, products: Tensor, state: Tensor, suffix: str) -> Tensor:
        size = 2 * self.hidden_size
        weight = self._get("weight_hh", suffix)
        r, z = torch.sigmoid(products[:, :size] + F.linear(state, weight[:size])).chunk(2, dim=1)
        n = torch.tanh(products[:, size:] + F.linear(r * state, weight[size:]))
        return (1 - z) * n + z * state


class LstmPeephole(LoopedLayer):
    """An LSTM whose gates see the cell: input and forget gate the old one, the output gate the new one."""

    gates = 4

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool) -> None:
        super().__init__(input_size, hidden_size, bidirectional)
        for suffix in self.suffixes:
            self.register_parameter(f"peephole_l0{suffix}", nn.Parameter(torch.zeros(3 * hidden_size)))

    def advance(self, products: Tensor, state: Tensor, suffix: str) -> Tensor:
        h, c = state.chunk(2, dim=1)
        i, f, g, o = (products + F.linear(h, self._get("weight_hh", suffix))).chunk(4, dim=1)
        see_i, see_f, see_o = self._get("peephole", suffix).chunk(3)
        c = torch.sigmoid(f + see_f * c) * c + torch.sigmoid(i + see_i * c) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o + see_o * c) * torch.tanh(c), c], dim=1)
