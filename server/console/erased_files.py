"""The files of retrainings in which an erased visitor's conversations lie."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, select, update

from server.console import audit, job_process
from server.console.job_files import forget_texts
from server.database import reading, writing
from server.tables import Job

_ID: Final = re.compile(rb"[0-9a-f]{32}")
_LINE: Final = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Traces:
    """By which ids a visitor's words are found in files."""

    visitor: frozenset[str]
    conversations: frozenset[str]
    messages: frozenset[str]

    @property
    def all(self) -> frozenset[bytes]:
        return frozenset(each.encode() for each in self.visitor | self.conversations | self.messages)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """datasets: jobs whose texts were removed. cancelled: those that were running. models: fingerprints of
    candidates that have learned from the conversations. left: directories that could not be read, or whose
    texts could not be removed.
    """

    datasets: int = 0
    cancelled: int = 0
    models: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def clean_jobs(db: Engine, traces: Traces, operator: str | None) -> Cleaned:
    """Remove the files of every retraining that reads the conversations, and end those that run.

    A running one whose files are on another machine is ended in any case. Raises StoreUnavailable.
    """
    with reading(db) as connection:
        jobs = connection.execute(select(Job.id, Job.state, Job.directory, Job.candidate)).all()
    ids = traces.all
    datasets = cancelled = 0
    models: list[str] = []
    left: list[str] = []
    for job in jobs:
        directory = Path(job.directory)
        running = job.state == "running"
        try:
            if not directory.is_dir():
                cancelled += running and _cancel(db, job.id, operator)
                continue
            next(directory.iterdir(), None)  # one that may not be read would seem to be empty
            if _is_read(directory, ids, unfinished=running):
                cancelled += running and _cancel(db, job.id, operator)
                if not job_process.lives(directory):  # or whoever watches over it does so at its end
                    forget_texts(directory)
                datasets += 1
            if job.candidate is not None and _has_learned(directory, traces.conversations):
                models.append(job.candidate)
        except OSError:
            left.append(job.directory)
            cancelled += running and _cancel(db, job.id, operator)
    return Cleaned(datasets, cancelled, tuple(models), tuple(left))


def _cancel(db: Engine, job: str, operator: str | None) -> bool:
    with writing(db) as connection:
        wanted = update(Job).where(Job.id == job, Job.state == "running", ~Job.cancel)
        if not connection.execute(wanted.values(cancel=True)).rowcount:
            return False
        audit.note(connection, operator, "job.cancel", job, because="visitor.erase")
    return True


def _is_read(directory: Path, ids: Set[bytes], *, unfinished: bool) -> bool:
    """Whether a file of the directory holds one of the conversations, or may: one that is being written."""
    if unfinished and any(directory.glob(".*.jsonl.gz.*")):
        return True
    return any(_mentions(file, ids) for file in directory.glob("*.jsonl.gz"))


def _mentions(file: Path, ids: Set[bytes]) -> bool:
    try:
        with gzip.open(file) as stream:
            while line := stream.readline(_LINE):
                if not ids.isdisjoint(_ID.findall(line)):
                    return True
    except FileNotFoundError:
        return False
    except (EOFError, OSError, zlib.error):  # nobody knows what is in it
        return True
    return False


def _has_learned(directory: Path, conversations: Set[str]) -> bool:
    """Whether a manifest of the directory names one of the conversations among those that were learned."""
    for file in directory.glob("*.manifest.json"):
        try:
            listed = json.loads(file.read_text(encoding="utf-8"))["conversations"]
        except (OSError, ValueError, KeyError):
            continue
        for each in listed:
            own = str(each.get("id", "")).rpartition("/")[2]
            if own in conversations and str(each.get("name", "")).startswith("learned"):
                return True
    return False
