"""The feed-forward neural language model of Bengio et al. (2003), also called a time-delay network.

    x = (C(w t-n+1), …, C(w t-1))                the n - 1 symbols before, looked up and joined
    y = b + U tanh(d + H x)  [+ W x]             W, the direct connections, only where asked for
    P(w t | before) = softmax(y)

Trained by Adam (Kingma and Ba 2015) on the cross-entropy. After each epoch it predicts a tenth of the
sequences, from which it never learns: where that got no better the learning rate is halved, and what is kept
is the network as it was at its best.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from training.ngram import Floats, Ints, Sequences

BATCH: Final = 256
"""Symbols that are learned between two updates."""
SCORED: Final = 4096
"""Symbols that are scored at once; bounds memory, changes no figure."""
LEARNING_RATE: Final = 2e-3
"""Of Adam, at first."""
EMBEDDING_DEVIATION: Final = 0.1
"""Of the initial embeddings; with torch's 1 the hidden layer begins saturated."""
HELD_OUT: Final = 0.1
PATIENCE: Final = 3
"""Readings of the held-out sequences without a new best after which training ends."""


@dataclass(frozen=True, slots=True)
class FeedForwardConfig:
    """Shape and training of one model."""

    order: int = 5  # n, from 2 on
    embedding: int = 60
    hidden: int = 100
    direct: bool = False
    epochs: int = 20  # at most
    minutes: float | None = None  # at most; a run that the clock ends does not repeat exactly
    seed: int = 1  # of initial weights, order, and of what is held out


class FeedForward(nn.Module):
    """The network over V symbols. Symbol V fills the places before a sequence begins."""

    def __init__(self, symbols: int, config: FeedForwardConfig) -> None:
        super().__init__()
        if config.order < 2:
            raise ValueError(f"order {config.order}: must be at least 2, one symbol to go by")
        inputs = (config.order - 1) * config.embedding
        self.order = config.order
        self.begin = symbols
        self.embedding = nn.Embedding(symbols + 1, config.embedding)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_DEVIATION)
        self.hidden = nn.Linear(inputs, config.hidden)
        self.output = nn.Linear(config.hidden, symbols)
        self.direct = nn.Linear(inputs, symbols, bias=False) if config.direct else None

    def forward(self, contexts: Tensor) -> Tensor:
        """y (B, V) after ``contexts`` (B, n - 1) int64, in which the oldest symbol comes first."""
        x = self.embedding(contexts).flatten(1)  # (B, (n - 1) E)
        y: Tensor = self.output(torch.tanh(self.hidden(x)))
        return y if self.direct is None else y + self.direct(x)

    @torch.inference_mode()
    def log_probabilities(self, sequences: Sequences) -> Floats:
        """Natural logarithm of each symbol's probability after those before it in its sequence, (T,)."""
        device = self.output.weight.device
        contexts = contexts_of(sequences, self.order, self.begin)
        logs = [np.zeros(0)]
        for first in range(0, len(contexts), SCORED):
            y = self(torch.from_numpy(contexts[first : first + SCORED]).to(device))
            targets = torch.from_numpy(sequences.symbols[first : first + SCORED]).to(device)
            logs.append(-F.cross_entropy(y, targets, reduction="none").double().cpu().numpy())
        return np.concatenate(logs)


def contexts_of(sequences: Sequences, order: int, begin: int) -> Ints:
    """The ``order`` - 1 symbols before each symbol, oldest first, (T, n - 1); ``begin`` before a sequence."""
    place = np.arange(len(sequences.symbols)) - np.repeat(sequences.start[:-1], sequences.lengths)
    before = [
        np.where(place >= back, np.roll(sequences.symbols, back), begin) for back in range(order - 1, 0, -1)
    ]
    return np.stack(before, axis=1)


def train(
    sequences: Sequences,
    symbols: int,
    config: FeedForwardConfig,
    *,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.monotonic,
    progress: bool = False,
) -> FeedForward:
    """A model of ``symbols`` different ones (V). The same seed gives the same model, the clock permitting.

    A single sequence is held out and learned. Raises ValueError without any, and for an order below 2.
    """
    if not len(sequences.symbols):
        raise ValueError("no sequence to learn")
    sequences = sequences.take(np.flatnonzero(sequences.lengths))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        run = _Run(sequences, symbols, config, device or torch.device("cpu"), clock)
        with tqdm(total=config.epochs, unit=" epochs", disable=not progress) as bar:
            while not run.finished():
                run.epoch()
                bar.set_postfix(held_out=f"{run.best:.3f}")
                bar.update()
    return run.best_model()


class _Run:
    """Training between two epochs: the network as it is, and as it was at its best."""

    def __init__(
        self,
        sequences: Sequences,
        symbols: int,
        config: FeedForwardConfig,
        device: torch.device,
        clock: Callable[[], float],
    ) -> None:
        order = torch.randperm(len(sequences.lengths)).numpy()
        apart = max(1, round(HELD_OUT * len(order)))
        learned = sequences.take(order[apart:] if len(order) > 1 else order)
        self.held_out = sequences.take(order[:apart])
        self.network = FeedForward(symbols, config).to(device)
        self.contexts = torch.from_numpy(contexts_of(learned, config.order, symbols)).to(device)
        self.targets = torch.from_numpy(learned.symbols).to(device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), LEARNING_RATE, fused=device.type in ("cpu", "cuda")
        )
        self.clock, self.began, self.config = clock, clock(), config
        self.epochs = self.waited = 0
        self.best, self.weights = self._loss(), copy.deepcopy(self.network.state_dict())

    def finished(self) -> bool:
        return self.epochs >= self.config.epochs or self.waited >= PATIENCE or self._late()

    def epoch(self) -> None:
        """Learn every symbol once, in a new order, or until time is up; then read what is held out."""
        order = torch.randperm(len(self.targets)).to(self.targets.device)
        for first in range(0, len(order), BATCH):
            if self._late():
                break
            chosen = order[first : first + BATCH]
            self.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(self.network(self.contexts[chosen]), self.targets[chosen]).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.epochs += 1
        loss = self._loss()
        if loss < self.best:
            self.best, self.waited = loss, 0
            self.weights = copy.deepcopy(self.network.state_dict())
        else:
            self.waited += 1
            for group in self.optimizer.param_groups:
                group["lr"] /= 2

    def best_model(self) -> FeedForward:
        self.network.load_state_dict(self.weights)
        return self.network.eval()

    def _late(self) -> bool:
        return self.config.minutes is not None and self.clock() - self.began >= 60 * self.config.minutes

    def _loss(self) -> float:
        """Of a held-out symbol, in nats."""
        return -float(self.network.log_probabilities(self.held_out).mean())
