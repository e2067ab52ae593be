"""An index of turns: replies that a model was trained on, each with the encoder's state before it.

One safetensors file, of one model, which is mapped into memory and never read as a whole:

    states  (N, C) float16    of length 1
    places  (N, 2) int32      number of the file, and of the turn in its transcript, from 0
    ends    (N, 3) int64      where transcript id, question and reply end in `texts`
    texts   (P,)   uint8      UTF-8, one after the other

Its metadata names the form, the model's fingerprint, the files, and how many replies there were to choose
from. It holds texts of the training files, so it lies beside a model and never in its directory.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORM: Final = "turnwise-index-1"
SUFFIX: Final = ".safetensors"
MOST: Final = 200_000
"""Turns of an index: 205 MB of states of the shipped model."""
LONGEST: Final = 8000
"""Code points of question and reply together; what is longer is left out, for half a text could show half of
an address, which is not known as one when it is masked.
"""
AT_ONCE: Final = 1024
"""States that are widened and multiplied together: they stay in the processor's cache."""

_SHAPES: Final = {
    "states": (torch.float16, 2),
    "places": (torch.int32, 2),
    "ends": (torch.int64, 2),
    "texts": (torch.uint8, 1),
}


class TurnIndexError(ValueError):
    """A file that cannot be used as an index: which one and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class IndexedTurn(NamedTuple):
    """A reply of a training file. turn: counted from 0."""

    file: str
    transcript: str
    turn: int
    question: str
    reply: str


class IndexBuilder:
    """Gathers the turns of an index, in any order; they are as many as was said, or fewer."""

    def __init__(self, turns: int, files: Sequence[str]) -> None:
        """files: names, each once."""
        self._most = turns
        self._files = list(files)
        self._numbers = {name: number for number, name in enumerate(files)}
        self._states: NDArray[np.float16] | None = None
        self._places = np.zeros((turns, 2), dtype=np.int32)
        self._ends = np.zeros((turns, 3), dtype=np.int64)
        self._texts = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, states: NDArray[np.float32], turns: Sequence[IndexedTurn]) -> None:
        """states: of length 1, (B, C), one for each of the turns."""
        if self._states is None:
            self._states = np.zeros((self._most, states.shape[1]), dtype=np.float16)
        self._states[self._count : self._count + len(turns)] = states
        for row, turn in enumerate(turns, start=self._count):
            self._places[row] = self._numbers[turn.file], turn.turn
            for column, text in enumerate((turn.transcript, turn.question, turn.reply)):
                self._texts += text.encode(errors="replace")
                self._ends[row, column] = len(self._texts)
        self._count += len(turns)

    def write(self, path: Path, model: str, replies: int) -> None:
        """The file is there whole or not at all; one that is there is replaced. model: its fingerprint.
        replies: of the files, from which the turns were chosen.

        Raises OSError.
        """
        assert self._states is not None, "an index has turns"
        arrays: dict[str, NDArray[Any]] = {"states": self._states, "places": self._places, "ends": self._ends}
        tensors = {name: torch.from_numpy(array[: self._count]) for name, array in arrays.items()}
        tensors["texts"] = torch.frombuffer(self._texts, dtype=torch.uint8)
        told = {"form": FORM, "model": model, "files": json.dumps(self._files), "replies": str(replies)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as aside:
            try:
                save_file(tensors, Path(aside) / path.name, told)
            except SafetensorError as error:
                raise OSError(f"{path}: cannot be written: {error}") from None
            (Path(aside) / path.name).replace(path)


class TurnIndex:
    """An index that was opened. For any thread."""

    def __init__(self, path: Path) -> None:
        """Raises `TurnIndexError`."""
        self.path = path
        told, tensors = _opened(path)
        self.model = told["model"]
        """Fingerprint of the model that the states are of."""
        self._files = _file_names(path, told)
        self._states, self._places, self._ends, self._texts = (tensors[name] for name in _SHAPES)
        self._check()

    def __len__(self) -> int:
        return len(self._states)

    @property
    def width(self) -> int:
        """C of its states."""
        return self._states.shape[1]

    def nearest(self, state: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        """The `count` turns nearest to `state` (C,), of length 1: row and cosine similarity, best first."""
        wanted = torch.from_numpy(state)
        similarities = torch.empty(len(self))
        wide = torch.empty(AT_ONCE, self.width)  # one for all parts: one each would leave memory in pieces
        with torch.inference_mode():
            for start in range(0, len(self), AT_ONCE):
                part = self._states[start : start + AT_ONCE]
                torch.mv(wide[: len(part)].copy_(part), wanted, out=similarities[start : start + len(part)])
            similarities.nan_to_num_(nan=-1.0).clamp_(-1, 1)
            best = similarities.topk(min(count, len(self)))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def turn(self, row: int) -> IndexedTurn:
        """The turn of a row."""
        file, turn = self._places[row].tolist()
        begin = int(self._ends[row - 1, 2]) if row else 0
        texts = []
        for end in self._ends[row].tolist():
            texts.append(self._texts[begin:end].numpy().tobytes().decode(errors="replace"))
            begin = end
        return IndexedTurn(self._files[file], texts[0], turn, texts[1], texts[2])

    def _check(self) -> None:
        """That no row points out of the file."""
        count, ends = len(self), self._ends.flatten()
        whole = self._places.shape == (count, 2) and self._ends.shape == (count, 3)
        if whole and count:
            files, turns = self._places[:, 0], self._places[:, 1]
            whole = bool(
                (ends.diff() >= 0).all()
                and ends[0] >= 0
                and ends[-1] == len(self._texts)
                and ((files >= 0) & (files < len(self._files)) & (turns >= 0)).all()
            )
        if not whole:
            raise TurnIndexError(self.path, "its parts do not fit together")


def _opened(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata, and tensors that are views of the file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise TurnIndexError(path, "it is not a plain file")
        with safe_open(path, framework="pt") as opened:
            told: dict[str, str] = opened.metadata() or {}
            if told.get("form") != FORM or "model" not in told:
                raise TurnIndexError(path, f"it is not an index of turns ({FORM})")
            if set(opened.keys()) != _SHAPES.keys():
                raise TurnIndexError(path, f"it does not hold {', '.join(_SHAPES)}")
            tensors = {name: opened.get_tensor(name) for name in _SHAPES}
    except OSError as error:
        raise TurnIndexError(path, f"it cannot be read: {error.strerror or 'no reason was given'}") from None
    except SafetensorError:
        raise TurnIndexError(path, "it is not a whole safetensors file") from None
    for name, (kind, dimensions) in _SHAPES.items():
        if tensors[name].dtype != kind or tensors[name].ndim != dimensions:
            raise TurnIndexError(path, f"{name} has another type or shape")
    return told, tensors


def _file_names(path: Path, told: dict[str, str]) -> list[str]:
    try:
        names: Any = json.loads(told.get("files", ""))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TurnIndexError(path, "its list of files cannot be read")
    return names
