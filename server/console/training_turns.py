"""The turns that a model was trained on, from the indexes in a folder (`python -m training index`).

An index is used for the model whose fingerprint it names. One that cannot be used is logged once, with the
reason, and passed over.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import numpy as np

from chatbot.turn_index import SUFFIX, TurnIndex, TurnIndexError
from server import logs
from server.console.nearest import Neighbour

log = logging.getLogger(__name__)

MOST_FILES: Final = 64
"""Files of the folder that are opened, the newest; each takes some memory even while it is not searched."""

LOOKED_AT: Final = 512
"""Turns whose texts are read: files say the same over and over, greetings above all."""

Sign = tuple[int, int, int]


class TrainingTurns:
    """The indexes in `directory`, which need not exist. For one thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._opened: dict[str, tuple[Sign, TurnIndex | None]] = {}

    def nearest(self, model: str, state: np.ndarray) -> tuple[list[Neighbour], int]:
        """Turns nearest to `state` (C,) that the model was trained on, the best first and some of them alike,
        and among how many they were sought.
        """
        found: list[Neighbour] = []
        compared = 0
        for index in self._of(model):
            if index.width != len(state):
                self._refuse(index.path, f"its states have {index.width} numbers, the model's {len(state)}")
                continue
            compared += len(index)
            found += [_neighbour(index, *each) for each in index.nearest(state, LOOKED_AT)]
        found.sort(key=lambda one: -one.similarity)
        return found, compared

    def _of(self, model: str) -> list[TurnIndex]:
        self._look()
        return [index for _, index in self._opened.values() if index is not None and index.model == model]

    def _look(self) -> None:
        """Open what is new or another, and let go of what is no longer there."""
        signs = self._signs()
        self._opened = {name: kept for name, kept in self._opened.items() if signs.get(name) == kept[0]}
        for name, sign in signs.items():
            if name not in self._opened:
                self._opened[name] = (sign, None)
                try:
                    self._opened[name] = (sign, TurnIndex(self._directory / name))
                except TurnIndexError as error:
                    self._refuse(error.path, error.reason)

    def _signs(self) -> dict[str, Sign]:
        """What tells each file of the folder from another one of its name; the newest files."""
        found: list[tuple[int, str, Sign]] = []
        try:
            paths = [*self._directory.glob(f"*{SUFFIX}")]
        except OSError:
            return {}
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                continue  # it has just gone
            sign = (status.st_mtime_ns, status.st_size, status.st_ino)
            if not path.name.startswith("."):
                found.append((status.st_mtime_ns, path.name, sign))
        found.sort(reverse=True)
        return {name: sign for _, name, sign in found[:MOST_FILES]}

    def _refuse(self, path: Path, reason: str) -> None:
        self._opened[path.name] = (self._opened[path.name][0], None)
        logs.event(log, logging.WARNING, "index_refused", index=path.name, reason=reason)


def _neighbour(index: TurnIndex, row: int, similarity: float) -> Neighbour:
    file, transcript, turn, question, reply = index.turn(row)
    return Neighbour(question, reply, similarity, False, "training", None, file, transcript, turn)
