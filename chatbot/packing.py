"""Time-major packing: sequences of unequal length as one recurrence without padding.

Row r of the longest-first order is active while t < length; the tokens of step t of all active rows lie side
by side. It is the layout that cuDNN and torch's CPU kernels run on (`torch.nn.utils.rnn.PackedSequence`),
computed once with its inverse so that embeddings, attention and losses work on packed tokens directly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where each packed token comes from, for N sequences with P tokens in all."""

    batch_sizes: Tensor  # (longest,) int64 on the CPU, active rows at each step
    sorted: Tensor  # (N,) int64, sequence index of each sorted row
    unsorted: Tensor  # (N,) int64, sorted row of each sequence
    row: Tensor  # (P,) int64, sequence index of each packed token
    column: Tensor  # (P,) int64, its position in that sequence
    lengths: Tensor  # (N,) int64

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Packing:
        """On ``device``, except ``batch_sizes``, which the kernels read on the host."""
        return Packing(self.batch_sizes, *(value.to(device, non_blocking=non_blocking) for value in self[1:]))


def pack(lengths: Tensor) -> Packing:
    """Packing of sequences of ``lengths`` (N,), each at least 1, on the CPU."""
    longest = int(lengths.max()) if len(lengths) else 0
    order = torch.argsort(lengths, descending=True, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    steps = torch.arange(longest)
    active = lengths[order][None, :] > steps[:, None]  # (longest, N)
    step, rank = torch.nonzero(active, as_tuple=True)
    return Packing(active.sum(1), order, inverse, order[rank], step, lengths)
