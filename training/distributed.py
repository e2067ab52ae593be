"""One run on several processes: each takes a part of every batch, and their gradients are added.

Under ``torchrun`` the environment names rank and size; without it there is one process and every call here is
free. The loss is normalized by the weight of the whole batch, so any number of processes gives the same
update, to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine: the GPU it takes

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def add(self, values: Tensor) -> Tensor:
        """The sum of all processes' ``values``, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over all processes, as one message."""
        if self.size == 1:
            return
        used = [p for p in parameters if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        flat = self.add(torch.cat([grad.reshape(-1) for grad in grads]))
        for parameter, part in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
            parameter.grad = part.view_as(parameter)


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The world that torchrun's environment describes; NCCL between GPUs, gloo otherwise."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    distributed.init_process_group("nccl" if gpus else "gloo")
    try:
        yield World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        distributed.destroy_process_group()
