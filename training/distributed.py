"""One run on several processes: each takes a part of every batch, and their gradients are added.

Under ``torchrun`` the environment names rank and size; without it there is one process and every call here is
free. The loss is normalized by the weight of the whole batch, so any number of processes gives the same
update, to rounding. When one of them dies, the others fail at the next sum, and torchrun may start all of
them again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

LONGEST_WAIT: Final = timedelta(days=2)
"""While the first process reads and tokenizes a large corpus the others wait for hours; torch would give up
after 10 minutes between GPUs and after 30 elsewhere. One that has died is noticed all the same.
"""


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine: the GPU it takes
    waiting: distributed.ProcessGroup | None = None  # for waiting longer than for a sum

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier(self.waiting)

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


def launch() -> str | None:
    """What tells this torchrun from any other, the same for processes that it starts again; None without
    one.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name == "none":  # torchrun's default, the same for every launch
        return f"{os.uname().nodename} {os.getppid()}"
    return name


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The world that torchrun's environment describes; NCCL between GPUs, gloo otherwise."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    store, rank, _ = next(rendezvous("env://"))
    distributed.init_process_group(
        "nccl" if gpus else "gloo", store=PrefixStore(_round(), store), rank=rank, world_size=size
    )
    try:
        waiting = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        yield World(rank, size, int(os.environ.get("LOCAL_RANK", "0")), waiting)
    finally:
        distributed.destroy_process_group()


def _round() -> str:
    """Where in torchrun's store the processes leave their addresses for each other.

    torchrun keeps the store when it starts them again, with the addresses of the dead ones in it
    (pytorch/pytorch#135712). On one machine they all know how often that happened; the launchers of several
    machines each count for themselves.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}" if alone else "any"
