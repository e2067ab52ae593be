"""The GRU made for CPUs against torch's own, values and gradients, and against its equation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from chatbot.packing import pack
from chatbot.recurrence import run_gru


def gru(layers: int, bidirectional: bool) -> nn.GRU:
    torch.manual_seed(3)
    return nn.GRU(5, 7, layers, bidirectional=bidirectional).double().train()


def values_and_gradients(run: Callable[[], tuple[Tensor, Tensor]], wanted: list[Tensor]) -> list[Tensor]:
    outputs, last = run()
    mixed = torch.sin(torch.arange(outputs.numel(), dtype=torch.float64)).view_as(outputs)
    return [outputs, last, *torch.autograd.grad((outputs * mixed).sum() + (last * last).sum(), wanted)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from([(1, True), (2, False), (2, True)])
)
def test_it_is_torchs_gru(lengths: list[int], form: tuple[int, bool]) -> None:
    module = gru(*form)
    packing = pack(torch.tensor(lengths))
    inputs = torch.randn(sum(lengths), 5, dtype=torch.float64, requires_grad=True)
    state = torch.randn(form[0] * (1 + form[1]), len(lengths), 7, dtype=torch.float64, requires_grad=True)
    wanted = [inputs, state, *module.parameters()]

    def reference() -> tuple[Tensor, Tensor]:
        outputs, last = module(PackedSequence(inputs, packing.batch_sizes), state)
        return outputs.data, last

    ours = values_and_gradients(lambda: run_gru(module, inputs, packing.batch_sizes, state), wanted)
    for mine, theirs in zip(ours, values_and_gradients(reference, wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_without_gradients_the_values_are_the_same() -> None:
    module, packing = gru(1, True), pack(torch.tensor([3, 1, 2]))
    inputs = torch.randn(6, 5, dtype=torch.float64)
    trained, _ = run_gru(module, inputs.requires_grad_(), packing.batch_sizes)
    served, _ = run_gru(module.eval(), inputs, packing.batch_sizes)
    torch.testing.assert_close(trained, served)


def test_one_step_is_the_equation() -> None:
    module, packing = gru(1, False), pack(torch.tensor([1]))
    x, h = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 1, 7, dtype=torch.float64)
    w_r, w_z, w_n, u_r, u_z, u_n, b_r, b_z, b_n, c_r, c_z, c_n = (
        part for parameter in module.parameters() for part in parameter.chunk(3)
    )
    r = torch.sigmoid(x @ w_r.T + b_r + h[0] @ u_r.T + c_r)
    z = torch.sigmoid(x @ w_z.T + b_z + h[0] @ u_z.T + c_z)
    n = torch.tanh(x @ w_n.T + b_n + r * (h[0] @ u_n.T + c_n))
    outputs, _ = run_gru(module, x, packing.batch_sizes, h)
    torch.testing.assert_close(outputs, (1 - z) * n + z * h[0])


@pytest.mark.parametrize("reverse", [False, True])
def test_products_in_bf16_stay_near(reverse: bool) -> None:
    module, packing = gru(1, reverse).float(), pack(torch.tensor([9, 4, 1]))
    inputs = torch.randn(14, 5)
    exact, _ = run_gru(module, inputs, packing.batch_sizes)
    with torch.autocast("cpu", torch.bfloat16):
        near, _ = run_gru(module, inputs, packing.batch_sizes)
    assert near.dtype == torch.float32
    assert 0 < ((near - exact).norm() / exact.norm()).item() < 0.02
