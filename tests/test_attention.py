"""Every kind of attention against its equation, one weight at a time in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from chatbot.attention import Attention
from chatbot.config import AttentionKind

H, AGES = 5, 3
KINDS: tuple[AttentionKind, ...] = ("dot", "scaled", "bilinear", "additive")


def attention(kind: AttentionKind) -> Attention:
    torch.manual_seed(4)
    made = Attention(kind, H, ages=AGES, additive_size=7).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


SCORES: dict[AttentionKind, Callable[[Attention, Tensor, Tensor, Tensor], Tensor]] = {
    "dot": lambda a, q, k, r: q @ k + q @ r,
    "scaled": lambda a, q, k, r: (q @ k + q @ r) / math.sqrt(H),
    "bilinear": lambda a, q, k, r: q @ a.compare.weight.T @ k + q @ r,
    "additive": lambda a, q, k, r: (
        torch.tanh(a.of_query.weight @ q + a.of_query.bias + a.of_key.weight @ k) @ a.weigh.weight[0] + q @ r
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_equation(kind: AttentionKind) -> None:
    made = attention(kind)
    query, keys = torch.randn(2, 3, H, dtype=torch.float64), torch.randn(2, 4, H, dtype=torch.float64)
    age, mask = torch.randint(0, AGES, (2, 3, 4)), torch.rand(2, 3, 4) < 0.7
    mask[0, 0], mask[:, :, 0] = False, True
    mask[1, 2] = False  # one that may see nothing
    query.requires_grad_()
    seen, weights = made(query, keys, age, mask)
    assert weights.requires_grad
    for row in range(2):
        for t in range(3):
            open_to = [m for m in range(4) if mask[row, t, m]]
            scores = [
                SCORES[kind](made, query[row, t], keys[row, m], made.age.weight[age[row, t, m]])
                for m in open_to
            ]
            expected = torch.zeros(4, dtype=torch.float64)
            if open_to:
                expected[open_to] = torch.stack(scores).softmax(0)
            torch.testing.assert_close(weights[row, t], expected)
            torch.testing.assert_close(seen[row, t], expected @ keys[row])


def test_additive_attention_a_row_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = attention("additive")
    query, keys = torch.randn(3, 2, H, dtype=torch.float64), torch.randn(3, 4, H, dtype=torch.float64)
    age, mask = torch.zeros(3, 1, 4, dtype=torch.int64), torch.ones(3, 1, 4, dtype=torch.bool)

    def gradients() -> list[Tensor]:
        weights = made(query, keys, age, mask)[1]
        return list(torch.autograd.grad((weights**2).sum(), list(made.parameters())))

    at_once = gradients()
    monkeypatch.setattr("chatbot.attention.AT_ONCE", 0)
    for mine, expected in zip(gradients(), at_once, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind: AttentionKind) -> None:
    made = attention(kind)
    query, keys = torch.randn(1, 2, H, dtype=torch.float64), torch.randn(1, 4, H, dtype=torch.float64)
    age, mask = torch.tensor([[[0, 1, 2, 2]]]), torch.ones(1, 1, 4, dtype=torch.bool)

    def run(q: Tensor, k: Tensor) -> Tensor:
        seen: Tensor = made(q, k, age, mask)[0]
        return seen

    assert torch.autograd.gradcheck(run, (query.requires_grad_(), keys.requires_grad_()))
    run(query, keys).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())
