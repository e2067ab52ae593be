"""Every cell against its equation, written out step by step in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chatbot.cells import Recurrence
from chatbot.config import CellKind
from chatbot.packing import pack

CELLS: tuple[CellKind, ...] = get_args(CellKind)
X, H = 3, 4
Parameters = dict[str, Tensor]
State = tuple[Tensor, Tensor]  # h, c; c is not used by cells without one
every_cell = pytest.mark.parametrize("cell", CELLS)


def parts(layer: nn.Module, suffix: str) -> Parameters:
    """The parameters of one direction, by name."""
    return {
        name.removesuffix(f"_l0{suffix}"): value
        for name, value in layer.named_parameters()
        if name.endswith(f"_l0{suffix}")
    }


def gru(p: Parameters, x: Tensor, state: State) -> State:
    (w_r, w_z, w_n), (u_r, u_z, u_n) = p["weight_ih"].chunk(3), p["weight_hh"].chunk(3)
    (b_r, b_z, b_n), (c_r, c_z, c_n) = p["bias_ih"].chunk(3), p["bias_hh"].chunk(3)
    h, c = state
    r = torch.sigmoid(w_r @ x + b_r + u_r @ h + c_r)
    z = torch.sigmoid(w_z @ x + b_z + u_z @ h + c_z)
    n = torch.tanh(w_n @ x + b_n + r * (u_n @ h + c_n))
    return (1 - z) * n + z * h, c


def gru_reset_before(p: Parameters, x: Tensor, state: State) -> State:
    (w_r, w_z, w_n), (u_r, u_z, u_n) = p["weight_ih"].chunk(3), p["weight_hh"].chunk(3)
    b_r, b_z, b_n = p["bias"].chunk(3)
    h, c = state
    r = torch.sigmoid(w_r @ x + u_r @ h + b_r)
    z = torch.sigmoid(w_z @ x + u_z @ h + b_z)
    n = torch.tanh(w_n @ x + u_n @ (r * h) + b_n)
    return (1 - z) * n + z * h, c


def lstm(p: Parameters, x: Tensor, state: State) -> State:
    h, c = state
    i, f, g, o = (p["weight_ih"] @ x + p["bias_ih"] + p["weight_hh"] @ h + p["bias_hh"]).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_peephole(p: Parameters, x: Tensor, state: State) -> State:
    h, c = state
    (w_i, w_f, w_g, w_o), (u_i, u_f, u_g, u_o) = p["weight_ih"].chunk(4), p["weight_hh"].chunk(4)
    (b_i, b_f, b_g, b_o), (p_i, p_f, p_o) = p["bias"].chunk(4), p["peephole"].chunk(3)
    i = torch.sigmoid(w_i @ x + u_i @ h + p_i * c + b_i)
    f = torch.sigmoid(w_f @ x + u_f @ h + p_f * c + b_f)
    new = f * c + i * torch.tanh(w_g @ x + u_g @ h + b_g)
    o = torch.sigmoid(w_o @ x + u_o @ h + p_o * new + b_o)
    return o * torch.tanh(new), new


def rnn(p: Parameters, x: Tensor, state: State) -> State:
    h, c = state
    return torch.tanh(p["weight_ih"] @ x + p["bias_ih"] + p["weight_hh"] @ h + p["bias_hh"]), c


EQUATIONS: dict[CellKind, Callable[[Parameters, Tensor, State], State]] = {
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "lstm": lstm,
    "lstm_peephole": lstm_peephole,
    "rnn": rnn,
}


def recurrence(cell: CellKind, layers: int, bidirectional: bool, residual: bool = False) -> Recurrence:
    torch.manual_seed(2)
    made = Recurrence(cell, X, H, layers=layers, bidirectional=bidirectional, residual=residual).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def initial(made: Recurrence, row: Tensor, layer: int, direction: int, cell: CellKind) -> State:
    own = row.view(len(made.layers), made.directions, -1)[layer, direction]
    return (own[:H], own[H:]) if cell.startswith("lstm") else (own, own)


def written_out(made: Recurrence, cell: CellKind, inputs: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (T, D * H) and last state (F,) of one sequence (T, X), a step at a time."""
    lasts = []
    for index, layer in enumerate(made.layers):
        directions = []
        for direction in range(made.directions):
            p = parts(layer, "_reverse" if direction else "")
            state = initial(made, row, index, direction, cell)
            found = []
            for x in inputs.flip(0) if direction else inputs:
                state = EQUATIONS[cell](p, x, state)
                found.append(state[0])
            directions.append(torch.stack(found[::-1] if direction else found))
            lasts += [*state] if cell.startswith("lstm") else [state[0]]
        outputs = torch.cat(directions, dim=1)
        inputs = outputs + inputs if made.residual and index else outputs
    return inputs, torch.cat(lasts)


@every_cell
@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    form=st.sampled_from([(1, False, False), (2, True, False), (3, False, True)]),
)
def test_it_is_the_equation(cell: CellKind, lengths: list[int], form: tuple[int, bool, bool]) -> None:
    made = recurrence(cell, *form)
    packing = pack(torch.tensor(lengths))
    sequences = [torch.randn(length, X, dtype=torch.float64) for length in lengths]
    packed = torch.stack(
        [sequences[r][c] for r, c in zip(packing.row.tolist(), packing.column.tolist(), strict=True)]
    )
    state = torch.randn(len(lengths), made.state_size, dtype=torch.float64)
    with torch.no_grad():
        outputs, last = made(packed, packing.batch_sizes, state[packing.sorted])
        for row, sequence in enumerate(sequences):
            expected, end = written_out(made, cell, sequence, state[row])
            torch.testing.assert_close(outputs[packing.row == row], expected)
            torch.testing.assert_close(last[packing.unsorted[row]], end)
            torch.testing.assert_close(
                made.last_outputs(last)[packing.unsorted[row]], last_of(made, cell, end)
            )


def last_of(made: Recurrence, cell: CellKind, end: Tensor) -> Tensor:
    return torch.cat([initial(made, end, -1, d, cell)[0] for d in range(made.directions)])


@every_cell
def test_step_by_step_is_all_at_once(cell: CellKind) -> None:
    made = recurrence(cell, 2, bidirectional=False, residual=True)
    inputs = torch.randn(5, X, dtype=torch.float64)
    with torch.no_grad():
        outputs, last = made(inputs, torch.ones(5, dtype=torch.int64))
        state = inputs.new_zeros(1, made.state_size)
        for x, expected in zip(inputs, outputs, strict=True):
            output, state = made.step(x[None], state)
            torch.testing.assert_close(output[0], expected)
    torch.testing.assert_close(state, last)


@every_cell
def test_gradients_reach_every_parameter_and_input(cell: CellKind) -> None:
    made = recurrence(cell, 2, bidirectional=True).train()
    inputs = torch.randn(6, X, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, made.state_size, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([2, 2, 1, 1])

    def run(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        outputs, last = made(x, sizes, s)
        return outputs, last

    assert torch.autograd.gradcheck(run, (inputs, state))
    outputs, last = run(inputs, state)
    (outputs.sum() + last.sum()).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_a_residual_layer_adds_its_input() -> None:
    plain, residual = recurrence("gru", 2, False), recurrence("gru", 2, False, residual=True)
    inputs, sizes = torch.randn(3, X, dtype=torch.float64), torch.tensor([3])
    first = recurrence("gru", 1, False)
    first.layers[0].load_state_dict(plain.layers[0].state_dict())
    torch.testing.assert_close(residual(inputs, sizes)[0] - plain(inputs, sizes)[0], first(inputs, sizes)[0])


def test_dropout_lies_between_layers_in_training() -> None:
    torch.manual_seed(0)
    made = Recurrence("gru", X, 64, layers=2, dropout=0.5)
    inputs, sizes = torch.randn(3, X), torch.tensor([3])
    assert not torch.equal(made(inputs, sizes)[0], made(inputs, sizes)[0])
    alone = Recurrence("gru", X, 64, layers=1, dropout=0.5)
    torch.testing.assert_close(alone(inputs, sizes)[0], alone(inputs, sizes)[0])
    made.eval()
    torch.testing.assert_close(made(inputs, sizes)[0], made(inputs, sizes)[0])


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_kernels_run_in_float32_where_autocast_would_take_float16(
    cell: CellKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recurrence(cell, 2, bidirectional=True).float().eval()
    packing = pack(torch.tensor([4, 2]))
    inputs, state = torch.randn(6, X), torch.randn(2, made.state_size)
    one = recurrence(cell, 2, bidirectional=False).float().eval()

    @torch.inference_mode()
    def run() -> list[Tensor]:
        last = torch.randn(2, one.state_size, generator=torch.Generator().manual_seed(1))
        return [*made(inputs, packing.batch_sizes, state), *one.step(inputs[:2], last)]

    exact = run()
    monkeypatch.setattr("chatbot.recurrence.HALVED", {"cpu"})  # as on a GPU
    with torch.autocast("cpu", torch.bfloat16):
        cast = run()
        assert torch.is_autocast_enabled("cpu")
    for value, wanted in zip(cast, exact, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, wanted)
