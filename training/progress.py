"""Progress for programs: JSON lines in a file, which whoever began the run reads while it grows.

    {"at": "…", "phase": "training", "step": 3, "steps": 60, "loss": 1.25, "seconds_left": 41.0}

The last line of a run that came to an end by itself has the phase `done`, `stopped` or `failed`; one that was
killed has none of them.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

POINTS: Final = 1000
"""Lines of one phase, about, however many steps it has."""


class Reporter:
    """Appends to ``path``; without one it says nothing. A line is with the system when a call returns."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def phase(self, name: str, **values: float | str | bool | None) -> None:
        """A phase begins, or the run ends."""
        self._write({"phase": name, **values})

    def step(
        self,
        phase: str,
        step: int,
        steps: int,
        *,
        loss: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """``step`` of ``steps`` is done; of very many, most are left out. Loss in nats a token."""
        if step % (1 + steps // POINTS) and step != steps:
            return
        values: dict[str, float | str | None] = {"phase": phase, "step": step, "steps": steps}
        if loss is not None:
            values["loss"] = round(loss, 5)
        if seconds_left is not None:
            values["seconds_left"] = round(seconds_left, 1)
        self._write(values)

    def _write(self, values: dict[str, float | str | None]) -> None:
        if self._path is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"at": at, **values}) + "\n")
