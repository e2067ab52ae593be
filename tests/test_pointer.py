"""The pointer network: its equations, its data, and that it learns to sort and to find hulls."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.pointer import (
    END,
    PointerNetwork,
    Points,
    Puzzles,
    accuracy,
    area,
    convex_hull,
    generate,
    is_simple,
    learn,
    main,
    turn,
)


def network(size: int = 2, hidden: int = 8, *, seed: int = 3) -> PointerNetwork:
    """Untrained, in float64, with a start and an end that are not zero."""
    torch.manual_seed(seed)
    model = PointerNetwork(size, hidden).double()
    for parameter in (model.start, model.end):
        torch.nn.init.normal_(parameter)
    return model


def puzzles(task: str, batch: int, least: int, most: int, *, seed: int = 5) -> Puzzles:
    found = generate(task, np.random.default_rng(seed), batch, least, most)
    return found._replace(inputs=found.inputs.double())


def alone(batch: Puzzles, row: int) -> Puzzles:
    """One row of a batch, without its padding."""
    length, count = int(batch.lengths[row]), int((batch.answers[row] != END).sum())
    return Puzzles(
        batch.inputs[row : row + 1, :length],
        batch.lengths[row : row + 1],
        batch.answers[row : row + 1, : count + 1],
    )


def table(model: PointerNetwork, batch: Puzzles, row: int) -> Tensor:
    """log p of every answer of a row, (T, N + 1), under teacher forcing."""
    scores, answers = model.forward(batch)
    mine = answers.row == row
    return scores[mine][answers.column[mine].argsort()]


def test_attention_is_the_equation_of_the_paper() -> None:
    """u_ij = vᵀ tanh(W_1 e_j + W_2 d_i), and a softmax over j, one number at a time."""
    model, (queries, places, hidden) = network(), (3, 4, 8)
    encoded, decoded = torch.randn(queries, places, hidden).double(), torch.randn(queries, hidden).double()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    found = model.attend(decoded, model.key(encoded), mask)
    w1, w2, v = (layer.weight.tolist() for layer in (model.key, model.query, model.energy))
    for i in range(queries):
        u = []
        for j in [j for j in range(places) if mask[i, j]]:
            inner = [
                sum(
                    w1[h][k] * encoded[i, j, k].item() + w2[h][k] * decoded[i, k].item()
                    for k in range(hidden)
                )
                for h in range(hidden)
            ]
            u.append(sum(v[0][h] * math.tanh(inner[h]) for h in range(hidden)))
        total = sum(math.exp(energy) for energy in u)
        expected = [energy - math.log(total) for energy in u] + [-math.inf] * (places - len(u))
        assert found[i].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("task", ["sort", "hull"])
def test_neither_padding_nor_neighbours_change_a_value(task: str) -> None:
    batch = puzzles(task, 9, 1, 7)
    model = network(batch.inputs.shape[2])
    longer = batch._replace(inputs=torch.nn.functional.pad(batch.inputs, (0, 0, 0, 3), value=1e3))
    found = model.greedy(batch.inputs, batch.lengths, distinct=True)
    assert torch.equal(model.greedy(longer.inputs, batch.lengths, distinct=True)[:, :8], found)
    losses = []
    for row, length in enumerate(batch.lengths.tolist()):
        one = alone(batch, row)
        expected = table(model, one, 0)
        for padded in (batch, longer):
            scores = table(model, padded, row)
            torch.testing.assert_close(scores[:, : length + 1], expected, rtol=0, atol=1e-12)
            assert (scores[:, length + 1 :] == -math.inf).all()
        own = model.greedy(one.inputs, one.lengths, distinct=True)[0]
        assert found[row, : length + 1].tolist() == own.tolist()
        losses.append((model.loss(one), one.answers.numel()))
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    torch.testing.assert_close(model.loss(batch), mean, rtol=0, atol=1e-12)


def test_teacher_forcing_equals_step_by_step() -> None:
    model, batch = network(), puzzles("hull", 1, 6, 6)
    memory, shown = model.read(batch.inputs, batch.lengths), model.start[None]
    expected = table(model, batch, 0)
    for number, answer in enumerate([*batch.answers[0][batch.answers[0] != END].tolist(), END]):
        scores, memory = model.step(shown, memory)
        torch.testing.assert_close(scores[0], expected[number], rtol=0, atol=1e-12)
        shown = batch.inputs[:, answer - 1]


def test_distinct_answers_are_distinct_and_the_rest_is_not_promised() -> None:
    """An untrained network repeats itself, unless it is kept from doing so."""
    model, batch = network(seed=4), puzzles("hull", 40, 1, 8)
    with torch.no_grad():
        model.end.copy_(-50 * (model.energy.weight @ model.key.weight)[0])  # it hardly ever ends by itself
    free, distinct = (model.greedy(batch.inputs, batch.lengths, distinct=only) for only in (False, True))
    for row, length in zip(distinct.tolist(), batch.lengths.tolist(), strict=True):
        pointed = row[: row.index(END)]
        assert len(set(pointed)) == len(pointed) <= length
        assert set(row[len(pointed) :]) == {END}
    assert any(len({*row} - {END}) < sum(answer != END for answer in row) for row in free.tolist())


def corners_by_force(points: Points) -> set[tuple[int, int]]:
    """The hull's edges: pairs with no point on their right, by trying all of them."""
    pairs = itertools.permutations(range(len(points)), 2)
    return {
        (a, b)
        for a, b in pairs
        if all(turn(points[a], points[b], points[c]) > 0 for c in range(len(points)) if c not in (a, b))
    }


def test_the_hull_is_the_one_found_by_force() -> None:
    rng = np.random.default_rng(1)
    for count in [3, 4, 5, 8, 13, 20] * 10:
        points = rng.random((count, 2))
        hull = convex_hull(points)
        assert set(zip(hull, [*hull[1:], hull[0]], strict=True)) == corners_by_force(points)
        assert hull[0] == points[:, 0].argmin()


def test_points_on_an_edge_are_no_corners() -> None:
    square = np.asarray([[1, 1], [0, 0], [0.5, 0], [1, 0], [0, 1], [0.5, 0.5], [0, 0.5]])
    assert convex_hull(square) == [1, 3, 0, 4]
    assert convex_hull(np.asarray([[2.0, 2], [1, 1], [3, 3]])) == [1, 2]
    assert convex_hull(np.asarray([[2.0, 2]])) == [0]
    assert area(square[[1, 3, 0, 4]]) == 1
    assert is_simple(square[[1, 3, 0, 4]])
    assert not is_simple(square[[1, 0, 3, 4]])


def test_lists_are_sorted_and_end() -> None:
    batch = puzzles("sort", 50, 2, 6)
    for row in range(50):
        one = alone(batch, row)
        values = one.inputs[0, one.answers[0, :-1] - 1, 0].tolist()
        assert values == sorted(values)
        assert len(values) == int(one.lengths[0])
    assert set(batch.lengths.tolist()) == {2, 3, 4, 5, 6}


def test_it_learns_to_sort() -> None:
    model = learn("sort", (5, 5), steps=450, hidden=64, batch=64, rate=0.04, seed=1)
    figures = accuracy(model, "sort", generate("sort", np.random.default_rng(99), 1000, 5, 5))
    assert figures["sequences"] > 0.9


def test_the_command_measures_lengths_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    main(["hull", "--steps", "2", "--hidden", "8", "--batch", "4", "--sizes", "3", "4", "--test", "3", "6"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["N = 3", "N = 6"]
    assert all(name in lines[0] for name in ("elements", "sequences", "simple", "area"))


def test_the_commands_of_the_docs_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).resolve().parent.parent / "docs/pointer-network.md"
    commands = re.findall(
        r"^\.venv/bin/python -m training\.pointer (.*)$", page.read_text("utf-8"), re.MULTILINE
    )
    assert [command.split()[0] for command in commands] == ["sort", "hull"]
    for command in commands:
        main([*command.split(), "--steps", "2", "--test", "5"])
    assert capsys.readouterr().out.count("N = 5") == 2


@pytest.mark.slow
def test_it_learns_hulls() -> None:
    model = learn("hull", (5, 8), steps=1500, hidden=64, batch=64, rate=0.01, seed=1)
    for length in (5, 8):
        figures = accuracy(model, "hull", generate("hull", np.random.default_rng(99), 1000, length, length))
        assert figures["sequences"] > 0.6, length
        assert figures["simple"] > 0.99, length
        assert figures["area"] > 0.98, length
