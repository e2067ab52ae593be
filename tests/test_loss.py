"""The chunked cross-entropy against the textbook one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from chatbot.model import Copying
from training import loss as module
from training.loss import linear_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_copying_the_likelihood_is_that_of_the_mixture(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    torch.manual_seed(0)
    shapes = [(10, 6), (9, 6), (9,), (10,), (10,)]
    mine = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    theirs = [value.detach().clone().requires_grad_() for value in mine]
    targets, weights = torch.randint(0, 9, (10,)), torch.rand(10, dtype=torch.float64)
    nowhere = torch.arange(10) % 3 == 0  # targets that are not in the conversation

    def shares(gate: Tensor, attention: Tensor) -> Copying:
        on_target = attention.sigmoid().masked_fill(nowhere, 0)
        log = torch.where(nowhere, -torch.inf, on_target.masked_fill(nowhere, 1).log())
        return Copying(F.logsigmoid(gate), F.logsigmoid(-gate) + log)

    readouts, weight, bias, gate, attention = mine
    copying = shares(gate, attention)
    total, nll = linear_cross_entropy(
        readouts, weight, bias, targets, weights, copying=copying, smoothing=smoothing, dtype=torch.float64
    )
    (total * 3).backward()  # type: ignore[no-untyped-call]
    logits, generate = F.linear(*theirs[:3]), theirs[3].sigmoid()
    softmax = logits.softmax(1)[torch.arange(10), targets]
    mixture = generate * softmax + (1 - generate) * theirs[4].sigmoid().masked_fill(nowhere, 0)
    smooth = -logits.log_softmax(1).mean(1)
    losses = -(1 - smoothing) * mixture.log() + smoothing * smooth
    ((losses * weights).sum() * 3).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(total, (losses * weights).sum())
    torch.testing.assert_close(nll, -mixture.log())
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_and_gradients_are_the_textbook_ones(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)  # ten tokens: two whole chunks and a part of one
    torch.manual_seed(0)
    shapes = [(10, 6), (9, 6), (9,)]
    mine = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    theirs = [value.detach().clone().requires_grad_() for value in mine]
    targets, weights = torch.randint(0, 9, (10,)), torch.rand(10, dtype=torch.float64)
    readouts, weight, bias = mine
    total, nll = linear_cross_entropy(
        readouts, weight, bias, targets, weights, smoothing=smoothing, dtype=torch.float64
    )
    (total * 3).backward()  # type: ignore[no-untyped-call]
    logits = F.linear(*theirs)
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    ((losses * weights).sum() * 3).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(total, (losses * weights).sum())
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none"))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
