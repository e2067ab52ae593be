"""Products with 8-bit weights, and GRU layers made of them: torch's FBGEMM, for processors with AVX2.

    x W^T = s_x s_W (q_x q_W^T)         q: whole numbers of 8 bits, their products summed in 32

Each output has its own scale s_W. Inputs are brought between -1 and 1, each row by its own largest value
(GRU states lie there already). Weights use 7 of their 8 bits: processors without VNNI add two products at a
time up in 16 bits, which 2 * 255 * 63 fits and 2 * 255 * 127 does not. Sums of whole numbers are exact in any
order, so a row's products are the same, bit for bit, whatever shares its batch.

Shapes: N rows, X input, Y output, H hidden, P packed tokens, T steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from chatbot.cells import LoopedLayer

_LEVELS: Final = 127
"""Steps of an input's 8 bits on either side of zero."""
_WEIGHT_LEVELS: Final = 63
"""Steps of a weight."""
_ZERO: Final = 128
"""What stands for zero in the inputs, which are unsigned."""
_SMALLEST: Final = 1e-20
"""The least scale: a row of zeros is divided by it."""
_TOGETHER: Final = 8
"""Sequences up to which both directions run in one product, though half of it is thrown away."""


def missing() -> str | None:
    """Why this machine has no such products; None if it has."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return "this build of torch has no 8-bit products"
    if not hasattr(torch, "quantize_per_channel"):
        return "this version of torch cannot pack 8-bit weights"
    if not torch.cpu.get_capabilities().get("avx2", False):
        return "this processor has no 8-bit products (AVX2)"
    return None


class Product(nn.Module):
    """``x W^T + b`` for rows between -1 and 1; what lies outside is cut off."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """``weight`` (Y, X), ``bias`` (Y,); copied."""
        super().__init__()
        weight = weight.detach().float()
        scales = (weight.abs().amax(1) / _WEIGHT_LEVELS).clamp(min=_SMALLEST).double()
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        engine = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # Quantized tensors are to leave torch one day; packing is all that they are used for here.
            warnings.simplefilter("ignore")
            quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            torch.backends.quantized.engine = "fbgemm"
            try:
                packed = torch.ops.quantized.linear_prepack(
                    quantized, None if bias is None else bias.detach()
                )
            finally:
                torch.backends.quantized.engine = engine
        self.packed = packed

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, X) -> (N, Y)."""
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return cast(Tensor, multiply(inputs, 1 / _LEVELS, _ZERO, self.packed))


class _Stepper(nn.Module):
    """A function of tensors as a module: what it calls in 8 bits is ``parts`` of it."""

    def __init__(self, function: Callable[..., Any], parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self._function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Any:
        return self._function(*inputs)


def traced(
    function: Callable[..., Any], parts: Iterable[nn.Module], examples: Sequence[Tensor]
) -> Callable[..., Any]:
    """The operations of ``function``, pure and the same for all inputs, without Python between them.

    For few rows the calls take as long as what is called. ``parts`` are the modules with products that it
    calls; ``examples`` are inputs whose sizes may differ from later ones. Results are the same, bit for bit.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        # TorchScript is to leave torch one day, for compilers that a user's machine would need.
        warnings.simplefilter("ignore")
        trace: Callable[..., Callable[..., Any]] = torch.jit.trace
        return trace(_Stepper(function, parts).eval(), tuple(examples), check_trace=False)


def scaled(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, X) brought between -1 and 1, and what they were divided by, (N, 1). NaN stays NaN in both."""
    scale = inputs.abs().amax(1, True).clamp_(min=_SMALLEST)
    return inputs / scale, scale


class Int8Linear(nn.Module):
    """`nn.Linear` for rows of any size."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """``weight`` (Y, X), ``bias`` (Y,)."""
        super().__init__()
        self._product, self._bias = Product(weight), bias.detach().clone()

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, X) -> (N, Y)."""
        values, scale = scaled(inputs)
        return torch.addcmul(self._bias, self._product(values), scale)


class Cell(nn.Module):
    """One step of a GRU layer, given the products of its inputs (chatbot.recurrence has the equations)."""

    def __init__(self, gru: nn.GRU, suffix: str = "_l0") -> None:
        super().__init__()
        hidden = gru.hidden_size
        self.sizes = [2 * hidden, hidden]
        of_inputs, of_states = _parameter(gru, "bias_ih", suffix), _parameter(gru, "bias_hh", suffix)
        # r and z take both biases at once; n takes that of its inputs apart from that of its states.
        self.new_bias = of_inputs[2 * hidden :].clone()
        both = torch.cat([(of_inputs + of_states)[: 2 * hidden], of_states[2 * hidden :]])
        self.weight, self.bias = _parameter(gru, "weight_hh", suffix), both
        self._recurrent = Product(self.weight, both)

    def step(self, gates: Tensor, new: Tensor, state: Tensor, scale: Tensor | None = None) -> Tensor:
        """``gates`` (N, 2H) and ``new`` (N, H) are the inputs' products, n's with its bias; ``scale`` (N, 1)
        is what ``gates`` are still to be multiplied with. ``state`` (N, H) -> the next.
        """
        own_gates, own_new = torch.split(self._recurrent(state), self.sizes, 1)
        own_gates = own_gates.add_(gates) if scale is None else own_gates.addcmul_(gates, scale)
        reset, update = own_gates.sigmoid_().chunk(2, 1)
        return torch.lerp(torch.addcmul(new, reset, own_new).tanh_(), state, update)


class Layer(nn.Module):
    """One step of a GRU layer, given its inputs."""

    def __init__(self, gru: nn.GRU, suffix: str = "_l0") -> None:
        super().__init__()
        self.cell = Cell(gru, suffix)
        self._inputs = Product(_parameter(gru, "weight_ih", suffix))

    def step(self, inputs: Tensor, state: Tensor) -> Tensor:
        """``inputs`` (N, X), ``state`` (N, H) -> the next."""
        values, scale = scaled(inputs)
        gates, new = torch.split(self._inputs(values), self.cell.sizes, 1)
        return self.cell.step(gates, torch.addcmul(self.cell.new_bias, new, scale), state, scale)

    def products(self, inputs: Tensor) -> Tensor:
        """What inputs of many steps (P, X) give to the gates, (P, 3H), n's with its bias."""
        values, scale = scaled(inputs)
        products: Tensor = self._inputs(values).mul_(scale)
        products[:, self.cell.sizes[0] :] += self.cell.new_bias
        return products


class Int8Gru(LoopedLayer):
    """`nn.GRU` over packed sequences, one layer of it, in both directions or in one."""

    gates = 3

    def __init__(self, gru: nn.GRU) -> None:
        nn.Module.__init__(self)
        self.hidden_size = gru.hidden_size
        self.suffixes = ("", "_reverse") if gru.bidirectional else ("",)
        self._layers = nn.ModuleDict({f"l0{suffix}": Layer(gru, f"_l0{suffix}") for suffix in self.suffixes})
        self._steps = {suffix: self._traced_cell(suffix) for suffix in self.suffixes}
        self._step_both: Callable[..., Any] | None = None
        if gru.bidirectional:
            cells = [self._layer(suffix).cell for suffix in self.suffixes]
            self._both = Product(
                torch.cat([cell.weight for cell in cells]), torch.cat([cell.bias for cell in cells])
            )
            self._step_both = traced(self._advance_both, [self._both], self._examples(2, 1))

    def _layer(self, suffix: str) -> Layer:
        return cast(Layer, self._layers[f"l0{suffix}"])

    def _traced_cell(self, suffix: str) -> Callable[..., Any]:
        cell = self._layer(suffix).cell
        return traced(cell.step, [cell], self._examples(1))

    def _examples(self, *rows: int) -> list[Tensor]:
        size = self.hidden_size
        return [torch.zeros(*rows, width) for width in (2 * size, size, size)]

    def products(self, inputs: Tensor, suffix: str) -> Tensor:
        return self._layer(suffix).products(inputs)

    def advance(self, products: Tensor, state: Tensor, suffix: str) -> Tensor:
        gates, new = torch.split(products, [2 * self.hidden_size, self.hidden_size], 1)
        return cast(Tensor, self._steps[suffix](gates, new, state))

    def forward(self, inputs: Tensor, batch_sizes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(state)
        if self._step_both is None or rows > _TOGETHER or int(batch_sizes[-1]) != rows:
            return super().forward(inputs, batch_sizes, state)
        return self._run_both(self._step_both, inputs, len(batch_sizes), state)

    def _run_both(
        self, step: Callable[..., Any], inputs: Tensor, longest: int, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Few sequences of one length: what a step costs is calls, so both directions share theirs."""
        rows, size = len(state), self.hidden_size
        forward, backward = (
            self.products(inputs, suffix).view(longest, rows, 3 * size) for suffix in self.suffixes
        )
        products = torch.stack([forward, backward.flip(0)], 1)  # (T, 2, N, 3H)
        gates, new = (part.unbind(0) for part in torch.split(products, [2 * size, size], 3))
        hidden = state.view(rows, 2, size).transpose(0, 1).contiguous()  # (2, N, H)
        outputs: list[Tensor] = []
        for own_gates, own_new in zip(gates, new, strict=True):
            hidden = step(own_gates, own_new, hidden)
            outputs.append(hidden)
        found = torch.stack(outputs)  # (T, 2, N, H)
        ordered = torch.cat([found[:, 0], found[:, 1].flip(0)], 2)
        return ordered.view(longest * rows, 2 * size), hidden.transpose(0, 1).reshape(rows, 2 * size)

    def _advance_both(self, gates: Tensor, new: Tensor, hidden: Tensor) -> Tensor:
        """``gates`` (2, N, 2H), ``new`` and ``hidden`` (2, N, H) -> the next. The product has the weights of
        both directions for every row; each row's own half is used.
        """
        size = self.hidden_size
        every = self._both(hidden.view(-1, size)).view(2, -1, 2, 3 * size)
        own_gates, candidate = torch.split(every.diagonal(0, 0, 2).permute(2, 0, 1), [2 * size, size], 2)
        reset, update = own_gates.add_(gates).sigmoid_().chunk(2, 2)
        return torch.lerp(torch.addcmul(new, reset, candidate).tanh_(), hidden, update)


def _parameter(gru: nn.GRU, name: str, suffix: str) -> Tensor:
    value: Tensor = getattr(gru, name + suffix)
    return value.detach()
