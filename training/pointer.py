"""A pointer network (Vinyals, Fortunato and Jaitly 2015): its answer to a list is positions in that list.

    e_1 … e_N = encoder GRU over the inputs x_1 … x_N      e_0 is learned and stands for "the end"
    d_i       = decoder GRU over x at the last pointer      d_0 is the encoder's last state
    u_ij      = vᵀ tanh(W_1 e_j + W_2 d_i)
    p(answer_i = j | answers before, x) = softmax_j(u_i)

So the attention itself is the output, over as many choices as there are inputs. Shapes: B rows, N inputs of D
numbers, T answers, H hidden, Q answers of all rows in packed order.

    python -m training.pointer sort | hull
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from chatbot.packing import Packing, pack
from chatbot.recurrence import run_gru

END = 0
"""The answer that ends a row; input j is answer j + 1."""
Points = NDArray[np.float64]


class Puzzles(NamedTuple):
    """Lists of unequal lengths with what is to be pointed at; zeros after each row's end."""

    inputs: Tensor  # (B, N, D) float
    lengths: Tensor  # (B,) int64, at least 1
    answers: Tensor  # (B, T) int64, input j as j + 1, then END


class Memory(NamedTuple):
    """What the decoder knows of the inputs; place 0 is the end."""

    keys: Tensor  # (B, N + 1, H): W_1 e_j
    mask: Tensor  # (B, N + 1) bool, places that exist
    state: Tensor  # (1, B, H): d_0


class PointerNetwork(nn.Module):
    """A bidirectional GRU encoder and a GRU decoder, joined by additive attention (Bahdanau et al. 2015)."""

    def __init__(self, input_size: int, hidden_size: int = 128) -> None:
        super().__init__()
        self.encoder = nn.GRU(input_size, hidden_size // 2, bidirectional=True)
        self.decoder = nn.GRU(input_size, hidden_size)
        self.start = nn.Parameter(torch.zeros(input_size))  # what the decoder reads first
        self.end = nn.Parameter(torch.zeros(hidden_size))  # e_0
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)  # W_1
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)  # W_2
        self.energy = nn.Linear(hidden_size, 1, bias=False)  # v

    def read(self, inputs: Tensor, lengths: Tensor) -> Memory:
        """Encode ``inputs`` (B, N, D), of which row b has ``lengths[b]``."""
        packing = pack(lengths.cpu()).to(inputs.device)
        outputs, last = run_gru(self.encoder, inputs[packing.row, packing.column], packing.batch_sizes)
        encoded = outputs.new_zeros(len(inputs), inputs.shape[1] + 1, outputs.shape[1])
        encoded[packing.row, packing.column + 1] = outputs
        encoded[:, END] = self.end
        mask = torch.arange(encoded.shape[1], device=inputs.device) <= packing.lengths[:, None]
        return Memory(self.key(encoded), mask, torch.cat([*last], dim=1)[packing.unsorted][None])

    def attend(self, hidden: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """log p of each place (Q, N + 1), for ``hidden`` (Q, H) over ``keys`` (Q, N + 1, H)."""
        energies = self.energy(torch.tanh(keys + self.query(hidden)[:, None]))[:, :, 0]
        return F.log_softmax(energies.masked_fill(~mask, -torch.inf), dim=1)

    def step(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """One answer: from the input last pointed at (B, D) to log p (B, N + 1) and what comes after."""
        _, state = self.decoder(inputs[None], memory.state)
        return self.attend(state[0], memory.keys, memory.mask), memory._replace(state=state)

    def forward(self, puzzles: Puzzles) -> tuple[Tensor, Packing]:
        """Teacher forcing: log p (Q, N + 1) of every answer with its end, in the order of the packing."""
        memory = self.read(puzzles.inputs, puzzles.lengths)
        answers = pack((puzzles.answers != END).sum(1).cpu() + 1).to(puzzles.inputs.device)
        before = puzzles.answers[answers.row, (answers.column - 1).clamp(min=0)]
        shown = puzzles.inputs[answers.row, (before - 1).clamp(min=0)]
        shown = torch.where((answers.column == 0)[:, None], self.start, shown)
        hidden, _ = run_gru(self.decoder, shown, answers.batch_sizes, memory.state[:, answers.sorted])
        return self.attend(hidden, memory.keys[answers.row], memory.mask[answers.row]), answers

    def loss(self, puzzles: Puzzles) -> Tensor:
        """Mean cross-entropy of the answers, nats."""
        scores, answers = self.forward(puzzles)
        targets = F.pad(puzzles.answers, (0, 1), value=END)  # a row that fills the table ends behind it
        return F.nll_loss(scores, targets[answers.row, answers.column])

    @torch.no_grad()
    def greedy(self, inputs: Tensor, lengths: Tensor, *, distinct: bool = False) -> Tensor:
        """The likeliest answer at every step, (B, N + 1) in the form of `Puzzles.answers`.

        ``distinct``: nothing is pointed at twice, as in a permutation.
        """
        memory = self.read(inputs, lengths)
        rows = torch.arange(len(inputs), device=inputs.device)
        found = [torch.ones_like(rows)]
        shown = self.start.expand(len(rows), -1)
        for _ in range(inputs.shape[1] + 1):
            scores, memory = self.step(shown, memory)
            choice = torch.where(found[-1] == END, END, scores.argmax(1))
            if distinct:
                mask = memory.mask.clone()
                mask[rows, choice] = choice == END
                memory = memory._replace(mask=mask)
            shown = inputs[rows, (choice - 1).clamp(min=0)]
            found.append(choice)
        return torch.stack(found[1:], dim=1)


def sorted_order(numbers: Points) -> list[int]:
    """Positions of ``numbers`` (N, 1) from the least to the greatest."""
    return [int(i) for i in np.argsort(numbers[:, 0], kind="stable")]


def convex_hull(points: Points) -> list[int]:
    """Positions of the hull's corners among ``points`` (N, 2), counter-clockwise from the least x.

    Andrew's monotone chain (1979). Points on an edge are no corners.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i, 0], points[i, 1]))
    chains = [_chain(points, order), _chain(points, order[::-1])]
    return [*chains[0][:-1], *chains[1][:-1]] or order[:1]


def _chain(points: Points, order: Sequence[int]) -> list[int]:
    chain: list[int] = []
    for i in order:
        while len(chain) > 1 and turn(points[chain[-2]], points[chain[-1]], points[i]) <= 0:
            chain.pop()
        chain.append(i)
    return chain


def turn(a: Points, b: Points, c: Points) -> float:
    """Twice the area of the triangle a, b, c; positive when it is counter-clockwise."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


TASKS: dict[str, tuple[int, Callable[[Points], list[int]]]] = {
    "sort": (1, sorted_order),
    "hull": (2, convex_hull),
}
"""Numbers an input has, and the rule for its answers."""


def generate(task: str, rng: np.random.Generator, batch: int, least: int, most: int) -> Puzzles:
    """``batch`` lists of ``least`` to ``most`` inputs, uniform in the unit cube."""
    size, solve = TASKS[task]
    lengths = rng.integers(least, most + 1, batch)
    inputs = rng.random((batch, most, size)) * (np.arange(most) < lengths[:, None])[:, :, None]
    answers = np.zeros((batch, most + 1), np.int64)
    for row, length in enumerate(lengths):
        found = solve(inputs[row, :length])
        answers[row, : len(found)] = np.asarray(found) + 1
    tensors = torch.from_numpy(inputs).float(), torch.from_numpy(lengths), torch.from_numpy(answers)
    return Puzzles(*tensors)


def accuracy(model: PointerNetwork, task: str, puzzles: Puzzles) -> dict[str, float]:
    """Shares of 1 of greedy answers, none of them repeated: the answers that are right where they stand, the
    rows without a mistake, and as in the paper for hulls the polygons without crossings (a model below 0.99
    has failed) and the part of the true hulls' area that they cover.
    """
    found = model.greedy(puzzles.inputs, puzzles.lengths, distinct=True)
    right, real = found == puzzles.answers, puzzles.answers != END
    figures = {
        "elements": right[real].double().mean().item(),
        "sequences": right.all(1).double().mean().item(),
    }
    if task == "hull":
        rows = zip(puzzles.inputs.double().numpy(), found, puzzles.answers, strict=True)
        hulls = [
            (points[ours[ours != END] - 1], points[truth[truth != END] - 1]) for points, ours, truth in rows
        ]
        covered = [area(ours) / area(truth) for ours, truth in hulls if is_simple(ours)]
        figures |= {"simple": len(covered) / len(hulls), "area": sum(covered) / max(1, len(covered))}
    return figures


def area(polygon: Points) -> float:
    """Of a simple polygon (K, 2)."""
    after = np.roll(polygon, -1, axis=0)
    return float(abs((polygon[:, 0] * after[:, 1] - polygon[:, 1] * after[:, 0]).sum()) / 2)


def is_simple(polygon: Points) -> bool:
    """Whether a polygon (K, 2) has three corners or more and no two edges that cross."""
    edges = list(zip(polygon, np.roll(polygon, -1, axis=0), strict=True))
    return len(edges) > 2 and not any(
        turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0
        for i, (a, b) in enumerate(edges)
        for c, d in edges[:i]
    )


def learn(
    task: str, sizes: tuple[int, int], *, steps: int, hidden: int, batch: int, rate: float, seed: int
) -> PointerNetwork:
    """Train on lists of ``sizes`` (least, most), new ones at every step: Adam, the rate falling to zero along
    a cosine, gradients clipped.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 0])
    model = PointerNetwork(TASKS[task][0], hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), unit="step", disable=None):
        optimizer.zero_grad(set_to_none=True)
        model.loss(generate(task, rng, batch, *sizes)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.pointer")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--sizes", type=int, nargs=2, default=(5, 10), metavar=("LEAST", "MOST"))
    parser.add_argument("--test", type=int, nargs="+", default=[5, 10, 15], metavar="N", help="list lengths")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.01, help="of learning, at its peak")
    parser.add_argument("--seed", type=int, default=1)
    settings = vars(parser.parse_args(argv))
    task, test = settings.pop("task"), settings.pop("test")
    model = learn(task, **settings)
    for length in test:
        puzzles = generate(task, np.random.default_rng([settings["seed"], 1, length]), 1000, length, length)
        figures = accuracy(model, task, puzzles).items()
        print(f"N = {length}" + "".join(f"  {name} {share:.1%}" for name, share in figures))


if __name__ == "__main__":
    main()
