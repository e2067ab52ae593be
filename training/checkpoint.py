"""The state of a run on disk: everything that the next update depends on, without pickles.

A checkpoint is two files in a directory that is written aside and renamed: ``tensors.safetensors`` (weights,
Adam's moments) and ``state.json`` (where the run is); each update draws its randomness from the seed and its
number. A run killed at any moment finds the last whole one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer


class OtherModel(ValueError):
    """A checkpoint that does not fit the model it is to be put into."""


@dataclass
class Progress:
    """Where a run is."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0  # updates done
    seconds: float = 0.0  # time spent training
    best: float = float("inf")  # lowest dev loss, nats a word
    best_step: int = 0
    waited: int = 0  # readings since
    dev: str | None = None  # hash of the dev part that says so, None for one of before it was noted
    order: dict[str, int] | None = None  # what the order of the batches depends on, the same


def save(
    path: Path, model: nn.Module, optimizer: Optimizer, progress: Progress, mean: nn.Module | None = None
) -> None:
    """Replace the checkpoint at ``path``; ``mean`` is a running mean of the model's weights.

    Raises OSError, on a full disk for example; the checkpoint that was there stays.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    if mean is not None:
        tensors |= {f"mean.{name}": value for name, value in mean.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        _write({name: value.contiguous() for name, value in tensors.items()}, aside / "tensors.safetensors")
        (aside / "state.json").write_text(json.dumps(asdict(progress)))
        _sync(aside)
        _swap(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as error:  # how the library says that it could not write
        raise OSError(f"{file.parent.parent}: no checkpoint could be written: {error}") from None


def exists(path: Path) -> bool:
    """Whether there is a checkpoint; puts back one that a kill between two renames left beside."""
    old = _old(path)
    if not path.exists() and old.exists():
        old.rename(path)
    return path.exists()


def remove(path: Path) -> None:
    """Leave nothing of the checkpoint at ``path``, nor of one that a kill left half-written beside it."""
    for leftover in (path, *path.parent.glob(f".{path.name}.*")):
        shutil.rmtree(leftover, ignore_errors=True)


def load(
    path: Path, model: nn.Module, optimizer: Optimizer | None = None, mean: nn.Module | None = None
) -> Progress:
    """Put a run back to where it was: weights, and with ``optimizer`` and ``mean`` also those.

    Raises `OtherModel` when the weights are of another shape.
    """
    tensors = load_file(path / "tensors.safetensors")
    try:
        model.load_state_dict(_under(tensors, "model."))
        if mean is not None:  # where a run without one goes on with one, it begins there
            mean.load_state_dict(_under(tensors, "mean.") or _under(tensors, "model."))
    except RuntimeError:
        raise OtherModel(
            f"{path} holds a model of another shape: resume with the settings it was begun with"
        ) from None
    if optimizer is not None:
        _load_optimizer(optimizer, _under(tensors, "optimizer."))
    return Progress(**json.loads((path / "state.json").read_text()))


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _swap(aside: Path, path: Path) -> None:
    """A directory cannot replace another in one rename: `exists` mends a kill between the two."""
    old = _old(path)
    if exists(path):
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    aside.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _sync(directory: Path) -> None:
    for file in directory.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
