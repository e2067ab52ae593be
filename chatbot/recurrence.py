"""The GRU over packed sequences, with a backward pass made for CPUs.

    r_t = sigmoid(W_r x_t + U_r h_{t-1} + b)        (Cho et al. 2014; reset after the product)
    z_t = sigmoid(W_z x_t + U_z h_{t-1} + b)
    n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} + c_n))
    h_t = (1 - z_t) * n_t + z_t * h_{t-1}

Automatic differentiation of torch's CPU kernel adds up a gradient of the whole recurrent matrix at every
step, which costs more than the recurrence itself. Here the gates' gradients of all steps are kept, and U's
gradient is one product over them. On a GPU, and where no gradient is wanted, torch's own kernels run; under
autocast on a GPU they are kept in float32 (`run_kernel`).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

HALVED: Final = frozenset({"cuda"})
"""Devices on which autocast computes recurrent layers in float16, also where bf16 was asked for: without a
scaled loss small gradients become zero there, and autocast refuses to put what comes out beside bf16.
"""


def run_kernel(rnn: nn.RNNBase, inputs: Tensor, batch_sizes: Tensor | None, state: Any) -> tuple[Tensor, Any]:
    """``rnn`` by torch's own kernel: of packed ``inputs`` (P, X), or of whole steps (T, N, X) without
    ``batch_sizes``. Outputs, and the last states in the form of ``state``.

    Autocast is off for it where it would take `HALVED`. cuDNN multiplies float32 on tensor cores all the same
    (TF32).
    """
    device = inputs.device.type
    if device not in HALVED or not torch.is_autocast_enabled(device):
        return _call(rnn, inputs, batch_sizes, state)
    with torch.autocast(device, enabled=False):
        states = state if isinstance(state, tuple) else (state,)
        wide = tuple(None if one is None else one.float() for one in states)
        return _call(rnn, inputs.float(), batch_sizes, wide if isinstance(state, tuple) else wide[0])


def _call(rnn: nn.RNNBase, inputs: Tensor, batch_sizes: Tensor | None, state: Any) -> tuple[Tensor, Any]:
    if batch_sizes is None:
        outputs, last = rnn(inputs, state)
        return outputs, last
    packed, last = rnn(PackedSequence(inputs, batch_sizes), state)
    return packed.data, last


def run_gru(
    gru: nn.GRU, inputs: Tensor, batch_sizes: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``gru`` over packed ``inputs`` (P, X) from ``state`` (layers * directions, N, H) in sorted order, or
    zeros.

    Returns the packed outputs (P, directions * H) and the last states, exactly as ``gru`` itself would.
    """
    if inputs.device.type != "cpu" or not torch.is_grad_enabled() or gru.training is False:
        return run_kernel(gru, inputs, batch_sizes, state)
    sizes: list[int] = batch_sizes.tolist()
    lasts: list[Tensor] = []
    for layer in range(gru.num_layers):
        directions = []
        for direction in range(2 if gru.bidirectional else 1):
            suffix = f"_l{layer}{'_reverse' if direction else ''}"
            initial = inputs.new_zeros(sizes[0], gru.hidden_size) if state is None else state[len(lasts)]
            outputs, last = _layer(gru, suffix, inputs, sizes, initial, reverse=bool(direction))
            directions.append(outputs)
            lasts.append(last)
        inputs = torch.cat(directions, dim=1) if len(directions) > 1 else directions[0]
    return inputs, torch.stack(lasts)


def _layer(
    gru: nn.GRU, suffix: str, inputs: Tensor, sizes: list[int], initial: Tensor, *, reverse: bool
) -> tuple[Tensor, Tensor]:
    weight_ih, weight_hh = getattr(gru, "weight_ih" + suffix), getattr(gru, "weight_hh" + suffix)
    bias_ih, bias_hh = getattr(gru, "bias_ih" + suffix), getattr(gru, "bias_hh" + suffix)
    products = F.linear(inputs, weight_ih, bias_ih)
    low = products.dtype
    wide = torch.promote_types(low, torch.float32)
    outputs, last = _Recurrence.apply(  # type: ignore[no-untyped-call]
        products.to(wide), initial.to(wide), weight_hh, bias_hh, sizes, reverse, low
    )
    return outputs, last


class _Recurrence(torch.autograd.Function):
    """One layer in one direction. The state and all gates are kept in float32 or wider, products run in
    ``low``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        products: Tensor,
        initial: Tensor,
        weight: Tensor,
        bias: Tensor,
        sizes: list[int],
        reverse: bool,
        low: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        hidden = weight.shape[1]
        weight_low, bias_low = weight.t().to(low), bias.to(low)
        gates = torch.empty_like(products)  # (P, 3H): r, z, n
        inner = products.new_empty(len(products), hidden)  # (P, H): U_n h + c_n
        before = torch.empty_like(inner)  # (P, H): the state each step started from
        outputs = torch.empty_like(inner)
        state = initial.clone()  # (N, H), sorted longest first; rows not running keep their last state
        for start, size in steps(sizes, reverse):
            rows = slice(start, start + size)
            h = state[:size]
            before[rows] = h
            recurrent = torch.addmm(bias_low, h.to(low), weight_low)
            r_z = gates[rows, : 2 * hidden]
            torch.add(products[rows, : 2 * hidden], recurrent[:, : 2 * hidden], out=r_z).sigmoid_()
            inner[rows] = recurrent[:, 2 * hidden :]
            n = torch.addcmul(products[rows, 2 * hidden :], r_z[:, :hidden], inner[rows]).tanh_()
            gates[rows, 2 * hidden :] = n
            torch.lerp(n, h, r_z[:, hidden:], out=outputs[rows])
            state[:size] = outputs[rows]
        ctx.save_for_backward(gates, inner, before, weight)
        ctx.sizes, ctx.reverse, ctx.low, ctx.rows = sizes, reverse, low, len(initial)
        return outputs, state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_outputs, d_last = grads
        gates, inner, before, weight = ctx.saved_tensors
        low, hidden = ctx.low, weight.shape[1]
        weight_low = weight.to(low)
        reset, update, new = gates[:, :hidden], gates[:, hidden : 2 * hidden], gates[:, 2 * hidden :]
        keep = 1 - update
        # What each gate's gradient is multiplied with does not depend on later steps: computed for all steps
        # at once.
        to_new = keep * (1 - new * new)
        to_update = (before - new) * update * keep
        to_reset = inner * reset * (1 - reset)
        d_products = torch.empty_like(gates)
        d_recurrent = torch.empty(len(gates), 3 * hidden, dtype=low)
        d_state = d_last.clone()
        for start, size in reversed(steps(ctx.sizes, ctx.reverse)):
            rows = slice(start, start + size)
            d_h = d_state[:size] + d_outputs[rows]
            d_new = torch.mul(d_h, to_new[rows], out=d_products[rows, 2 * hidden :])
            torch.mul(d_h, to_update[rows], out=d_products[rows, hidden : 2 * hidden])
            torch.mul(d_new, to_reset[rows], out=d_products[rows, :hidden])
            d_recurrent[rows, : 2 * hidden] = d_products[rows, : 2 * hidden]
            d_recurrent[rows, 2 * hidden :] = d_new * reset[rows]
            torch.addcmul(d_recurrent[rows] @ weight_low, d_h, update[rows], out=d_state[:size])
        d_weight = (d_recurrent.t() @ before.to(low)).to(weight.dtype)
        d_bias = d_recurrent.to(weight.dtype).sum(0)
        return d_products, d_state, d_weight, d_bias, None, None, None


def steps(sizes: list[int], reverse: bool) -> list[tuple[int, int]]:
    """First packed token and number of rows of each step, in the order in which they run."""
    starts, total = [], 0
    for size in sizes:
        starts.append((total, size))
        total += size
    return starts[::-1] if reverse else starts
