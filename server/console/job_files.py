"""What lies in a job's directory, and what a process tells there.

reviewed.jsonl.gz  imported.jsonl.gz    what is learned; gone when the job has ended
NAME  NAME.run  NAME.manifest.json      the candidate, its training (gone as well), its lineage
questions.jsonl.gz  answers.jsonl       logged turns, and how both models answer them; gone as well
retrain.jsonl  index.jsonl              progress, as the processes tell it
log.txt  attempts.json                  what they print; how often they were begun
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from server.console.job_process import keep
from server.console.jobs import Record

Work = Literal["retrain", "index", "compare"]
ENDINGS: Final = ("done", "stopped", "failed")
"""Phases with which a process says that it ended by itself."""
CURVE: Final = 200
"""Points of a loss curve, about."""
LOG_LINES: Final = 40
LOG_BYTES: Final = 8192
LINE: Final = 300
REASON_LINES: Final = 4
ATTEMPTS: Final = 3
"""Times that a process may vanish, one after another, without getting further than before."""


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one job."""

    directory: Path
    name: str

    @classmethod
    def of(cls, record: Record) -> Places:
        """A candidate has a name that no other has, for it will lie among the models."""
        return cls(record.directory, f"retrained-{record.created_at:%Y%m%d}-{record.id[:6]}")

    @property
    def reviewed(self) -> Path:
        return self.directory / "reviewed.jsonl.gz"

    @property
    def imported(self) -> Path:
        return self.directory / "imported.jsonl.gz"

    @property
    def candidate(self) -> Path:
        return self.directory / self.name

    @property
    def manifest(self) -> Path:
        return self.directory / f"{self.name}.manifest.json"

    @property
    def questions(self) -> Path:
        return self.directory / "questions.jsonl.gz"

    @property
    def answers(self) -> Path:
        return self.directory / "answers.jsonl"

    @property
    def log(self) -> Path:
        return self.directory / "log.txt"

    def progress(self, work: Work) -> Path:
        return self.directory / f"{work}.jsonl"

    def make(self) -> None:
        """The directory, which only the server's user may read: it will hold texts. Raises OSError."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)


def forget_texts(directory: Path) -> None:
    """Leave nothing in a job's directory that anybody said."""
    for path in (*directory.glob("*.jsonl.gz"), *directory.glob(".*"), directory / "answers.jsonl"):
        if path.is_file():
            path.unlink(missing_ok=True)
    for path in directory.glob("*.run"):
        shutil.rmtree(path, ignore_errors=True)


# --- what a process tells ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Told:
    """The progress file of a process, read as it grows.

    reached: the last update of the training, from which a further attempt may go on. ended: how the process
    ended, if it said so.
    """

    path: Path
    at: int = 0
    now: dict[str, Any] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    reached: int = 0
    ended: str | None = None

    def read_on(self) -> None:
        for line in self._new_lines():
            phase, step, loss = line.get("phase"), line.get("step"), line.get("loss")
            if phase in ENDINGS:
                self.ended = phase
                continue
            self.ended, self.now = None, line
            if isinstance(step, int) and isinstance(loss, float):
                self.losses[step] = loss
                self.reached = max(self.reached, step)

    def _new_lines(self) -> Iterator[dict[str, Any]]:
        """Those that are whole; what is no object of JSON is passed over."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.at)
                new = stream.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self.at += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                parsed = json.loads(line, parse_constant=lambda _: None)  # no database keeps NaN
                if isinstance(parsed, dict):
                    yield parsed

    def curve(self) -> list[tuple[int, float]]:
        """Steps and losses, thinned; the last is always there."""
        points = sorted(self.losses.items())
        every = 1 + len(points) // CURVE
        return [point for n, point in enumerate(points, start=1) if n % every == 0 or n == len(points)]

    def summary(self) -> dict[str, Any]:
        return {key: self.now.get(key) for key in ("phase", "step", "steps", "loss", "seconds_left")}


def tail(log: Path, lines: int = LOG_LINES) -> list[str]:
    """The last lines of what the processes printed, each cut to some length, without control characters."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - LOG_BYTES))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    clean = ("".join(c for c in line if c.isprintable()).rstrip()[:LINE] for line in text.splitlines())
    return [line for line in clean if line][-lines:]


# --- attempts ---------------------------------------------------------------------------------------------


class Attempts:
    """How often a process was begun without getting further than the one before."""

    def __init__(self, places: Places) -> None:
        self._path = places.directory / "attempts.json"
        try:
            self._kept: dict[str, dict[str, int]] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._kept = {}

    def count(self, work: Work, reached: int) -> int:
        """Those so far, when the last one got to step `reached`."""
        kept = self._kept.get(work, {"count": 0, "reached": 0})
        return kept["count"] if reached <= kept["reached"] else 0

    def note(self, work: Work, reached: int, *, again: bool) -> None:
        """One more is about to begin. again: the last one was stopped in order, which counts as none."""
        count = self.count(work, reached)
        self._kept[work] = {"count": count if again else count + 1, "reached": reached}
        keep(self._path, self._kept)


def read_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The objects of a file of JSON lines. Raises OSError and ValueError."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
