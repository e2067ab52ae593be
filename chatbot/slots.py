"""Decoder states and memories of all replies in flight, as rows of a few large tensors.

A reply holds one row, or one for each path of its beam; rows in use are packed at the front, so that a step
runs on slices and copies nothing. Releasing a row moves the last one into its place:

    rows    0  1  2  3  4          0  1  2  3
    owner   a  b  b  c  d    b ->  a  d  c            (a slot knows its owner, an owner its rows)

Shapes: R rows in all, B rows in use, W memory columns, F state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from chatbot.decoder import Decoder, extent


class Owner(Protocol):
    """Whoever holds rows: the list is kept up to date as rows move."""

    rows: list[int]


class Slots:
    """Row tensors of a model's decoder, allocated when the first reply comes."""

    def __init__(self, model: Decoder, capacity: int) -> None:
        self._model = model
        self._capacity = capacity
        self._owners: list[Owner] = []
        self._lengths: list[int] = []
        self._written = [0] * capacity  # columns of each row of the memory that an earlier reply has used
        self._state: Tensor | None = None  # (R, F)
        self._memory: Any = None  # fields (R, W, …)
        self._used: tuple[int, int, Tensor, Any] | None = None  # rows, columns and what is cut out by them

    @property
    def free(self) -> int:
        return self._capacity - len(self._owners)

    def add(self, owners: Sequence[Owner], counts: Sequence[int], state: Tensor, memory: Any) -> None:
        """Give ``counts[b]`` rows to ``owners[b]``, each starting as row b of ``state`` and ``memory``."""
        own_state, own_memory = self._allocated(state, memory)
        width = memory.mask.shape[1]
        lengths = extent(memory.mask).tolist()
        for b, (owner, count) in enumerate(zip(owners, counts, strict=True)):
            first = len(self._owners)
            owner.rows = list(range(first, first + count))
            self._owners += [owner] * count
            self._lengths += [lengths[b]] * count
            own_state[first : first + count] = state[b]
            left = max(width, *self._written[first : first + count])
            self._written[first : first + count] = [width] * count
            for slots, values in zip(own_memory, memory, strict=True):
                slots[first : first + count, :width] = values[b]
                if left > width:
                    # What an earlier reply left is masked, but a NaN times a weight of zero is still a NaN.
                    slots[first : first + count, width:left] = 0

    def step(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Feed every row in use its token (B,) -> logits (B, V) and attention (B, M), M the longest memory in
        use; states are replaced by the next ones.
        """
        state, memory = self._in_use()
        logits, after, attention = self._model.step(torch.tensor(tokens, device=state.device), state, memory)
        state.copy_(after)
        return logits, attention

    def _in_use(self) -> tuple[Tensor, Any]:
        """The state (B, F) and the memory (B, M, …) of the rows in use: parts of the slots, not copies."""
        used, width = len(self._owners), max(self._lengths)
        if self._used is None or self._used[:2] != (used, width):
            assert self._state is not None, "step before add"
            memory = self._memory._make(values[:used, :width] for values in self._memory)
            self._used = used, width, self._state[:used], memory
        return self._used[2:]

    def state(self, row: int) -> Tensor:
        """What row ``row`` goes on from, (F,): a copy."""
        assert self._state is not None, "state before add"
        return self._state[row].clone()

    def restore(self, row: int, state: Tensor) -> None:
        """Let row ``row`` go on from ``state`` (F,)."""
        assert self._state is not None, "restore before add"
        self._state[row] = state

    def copy_states(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Row ``targets[i]`` goes on from the state of row ``sources[i]``; all are read, then all written."""
        if self._state is not None and list(targets) != list(sources):
            self._state[list(targets)] = self._state[list(sources)]

    def release(self, owner: Owner) -> None:
        """Take back all rows of ``owner``."""
        for row in sorted(owner.rows, reverse=True):
            self._move(len(self._owners) - 1, row)
            self._owners.pop()
            self._lengths.pop()
        owner.rows = []

    def _move(self, source: int, target: int) -> None:
        if source == target or self._state is None or self._memory is None:
            return
        self._state[target] = self._state[source]
        width = max(self._written[source], self._written[target])
        for values in self._memory:
            values[target, :width] = values[source, :width]
        self._written[target] = self._written[source]
        mover = self._owners[source]
        mover.rows[mover.rows.index(source)] = target
        self._owners[target] = mover
        self._lengths[target] = self._lengths[source]

    def _allocated(self, state: Tensor, memory: Any) -> tuple[Tensor, Any]:
        if self._state is None or self._memory is None:
            width = self._model.config.memory_tokens
            self._state = state.new_zeros(self._capacity, state.shape[1])
            self._memory = memory._make(_zeros(v, self._capacity, width, *v.shape[2:]) for v in memory)
        return self._state, self._memory


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """On a CPU, of pages that take no memory until a row that lies in them is used: most never are."""
    zeros = like.new_zeros(0)
    if like.device.type != "cpu" or like.dtype == torch.bfloat16:  # numpy has no bfloat16
        return zeros.new_zeros(shape)
    return torch.from_numpy(np.zeros(shape, zeros.numpy().dtype))
