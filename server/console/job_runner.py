"""The thread that runs retrainings: it claims one, begins its processes one after the other, relays what they
tell, and ends it.

What is to be done next is read off the job's directory alone, so whoever comes after a server that was killed
goes on where it was, with the same process if that still lives:

    data written? ──► training.retrain ──► candidate judged ──► training.index, if the gate passed it
                                                            ──► training.compare ──► pairs kept, done

A server watches over a job by a lock on the job's directory. A job whose directory is on another machine is
that machine's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from chatbot.model_directory import ModelDirectoryError
from chatbot.turn_index import SUFFIX
from server import logs, models
from server.console import job_data, job_process, jobs
from server.console.changes import answered_of, store_pairs
from server.console.job_files import (
    ATTEMPTS,
    REASON_LINES,
    Attempts,
    Places,
    Told,
    Work,
    forget_texts,
    read_lines,
    tail,
)
from server.console.job_process import Child, Process
from server.console.jobs import Record
from server.console.model_list import models_directory, outcome_of
from server.database import writing
from server.settings import Settings
from server.store_errors import StoreUnavailable

log = logging.getLogger(__name__)

POLL: Final = 1.0
"""Seconds between looks at a process: its progress is kept about so often."""
IDLE: Final = 5.0
"""Seconds between looks for a job, when no one has asked this very server for it."""
HEARTBEAT: Final = 5.0
"""Seconds after which progress is kept again, though nothing is new."""
GRACE: Final = 20.0
"""Seconds from SIGTERM, on which training keeps a checkpoint, to SIGKILL."""
STOP_WAIT: Final = 30.0


class JobFailed(Exception):
    """There will be no candidate; why, for operators."""


class JobRunner:
    """start and stop may each be called once. A job that runs goes on after `stop`, without this server."""

    def __init__(self, db: Engine, settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._watch: Watch | None = None
        self._asked = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look at once; from any thread."""
        self._asked.set()

    def retire(self) -> None:
        """Begin nothing more; from any thread."""
        self._stopping = True
        self._asked.set()

    def stop(self) -> None:
        self.retire()
        if self._thread.is_alive():
            self._thread.join(STOP_WAIT)

    def _run(self) -> None:
        self._quietly(self._sweep)
        while not self._stopping:
            busy = self._quietly(self.look)
            self._asked.wait(POLL if busy else IDLE)
            self._asked.clear()
        if self._watch is not None:
            self._watch.leave()

    def _quietly(self, work: Any) -> bool:
        """Whether there is more to do soon. What goes wrong is logged, and tried again."""
        try:
            return bool(work())
        except StoreUnavailable:
            return False  # everybody says so already
        except Exception as error:  # noqa: BLE001 - the next look may do better, and chats go on
            logs.event(log, logging.ERROR, "jobs_trouble", error=logs.place(error))
            return False

    def _sweep(self) -> None:
        """Leave no texts of jobs that have ended, however their server ended."""
        for directory in jobs.ended(self._db):
            if directory.is_dir():
                forget_texts(directory)

    def look(self) -> bool:
        """Take up a job or go on with it; whether there is one."""
        if self._watch is None:
            self._watch = self._take_up()
        if self._watch is not None and self._watch.go_on():
            self._watch.leave()
            self._watch = None
            self._asked.set()  # another one may be waiting
        return self._watch is not None

    def _take_up(self) -> Watch | None:
        found = jobs.running(self._db)
        if found is not None and not found.directory.is_dir():
            jobs.fail_silent(self._db)
            return None
        if found is None and jobs.missing(self._settings) is None:
            found = jobs.claim(self._db, self._settings.jobs_dir)
            if found is not None:
                logs.event(log, logging.INFO, "job_begins", job=found.id)
        if found is None:
            return None
        places = Places.of(found)
        try:
            places.make()
        except OSError as error:
            why = f"cannot make the directory {places.directory}: {error.strerror}"
            with writing(self._db) as connection:
                jobs.end(connection, found.id, "failed", {"error": why})
            return None
        hold = ExitStack()
        if not hold.enter_context(job_process.locked(places.directory / "watch.lock")):
            hold.close()
            return None  # another server of this machine watches over it
        return Watch(self._db, self._settings, found, places, hold)


class Watch:
    """One running job, watched over by this server alone as long as it holds `hold`."""

    def __init__(
        self, db: Engine, settings: Settings, record: Record, places: Places, hold: ExitStack
    ) -> None:
        self._db, self._settings, self._record, self._places, self._hold = db, settings, record, places, hold
        self._attempts = Attempts(places)
        self._told: dict[Work, Told] = {
            work: Told(places.progress(work)) for work in ("retrain", "index", "compare")
        }
        self._process: Process | None = job_process.found(places.directory)
        self._child: Child | None = None
        self._kept: tuple[float, dict[str, Any]] = (0.0, {})
        self._term_at: float | None = None

    def leave(self) -> None:
        """The process goes on, if it lives; another server may watch over it from now on."""
        if self._child is not None:
            self._child.leave()
        self._hold.close()

    def go_on(self) -> bool:
        """Do what there is to do by now; whether the job is over."""
        for told in self._told.values():
            told.read_on()
        record = jobs.job(self._db, self._record.id)
        if record is None or record.state != "running":
            return self._given_up()
        if job_process.lives(self._places.directory):
            if record.cancel:
                self._make_end()
            self._report()
            return False
        if self._child is not None:
            self._child.gone()
        for told in self._told.values():  # what it told last
            told.read_on()
        if record.cancel:
            return self._cancelled()
        try:
            return self._next(record)
        except JobFailed as failure:
            return self._end("failed", {"error": str(failure)})

    # --- what is to be done ---------------------------------------------------------------------------

    def _next(self, record: Record) -> bool:
        places = self._places
        if not places.candidate.is_dir():
            if not places.reviewed.is_file():
                self._report("writing what was reviewed")
                self._write_data(record)
            self._begin("retrain", self._retraining(record))
            return False
        if record.result is None:
            self._judge()
            return False
        if self._lacks_index(record.result):
            self._make_index(record, record.result)
            return False
        if not places.answers.is_file():
            try:
                self._compare(record)
            except JobFailed as failure:  # a candidate that could not be compared is a candidate all the same
                return self._end("done", record.result | self._install() | {"changes_error": str(failure)})
            return False
        return self._keep_changes(record.result)

    def _write_data(self, record: Record) -> None:
        try:
            if record.use_imports:
                job_data.write_imported(self._db, self._places.imported)
            job_data.write_reviewed(self._db, self._places.reviewed)
        except OSError as error:
            raise JobFailed(f"cannot write what was reviewed: {error.strerror}") from None

    def _retraining(self, record: Record) -> list[str]:
        told, places = self._settings, self._places
        base = models.by_fingerprint(models_directory(told), record.base)
        if base is None:
            raise JobFailed(f"the model {record.base} is not in the models' directory any more")
        files = {
            "--reviewed": [places.reviewed],
            "--imported": [places.imported] if places.imported.is_file() else [],
            "--replay": told.replay_files,
            "--dev": told.dev_files,
        }
        given = [f"{key}={job_data.setting(value)}" for key, value in record.settings.items()]
        return [
            *("training", "retrain", "--resume", "--base", str(base.absolute())),
            *(part for option, each in files.items() if each for part in (option, *map(_whole, each))),
            *("--out", _whole(places.candidate), "--progress", _whole(places.progress("retrain"))),
            *(part for setting in given for part in ("--set", setting)),
        ]

    def _judge(self) -> None:
        """Keep what the gate said of the sealed candidate."""
        found = outcome_of(self._places.candidate)
        if found is None:
            raise JobFailed("the candidate cannot be read")
        jobs.judged(self._db, self._record.id, found.fingerprint, found.result)
        forget_texts(self._places.directory)  # the rest needs none of it

    def _lacks_index(self, result: dict[str, Any]) -> bool:
        return bool(result.get("passed")) and "index_error" not in result and not self._index().is_file()

    def _index(self) -> Path:
        return self._settings.indexes / f"{self._places.name}{SUFFIX}"

    def _make_index(self, record: Record, result: dict[str, Any]) -> None:
        """Of the old data alone: what was reviewed or uploaded is in the database, where it can be erased."""
        files = [_whole(file) for file in self._settings.replay_files]
        out = ("--out", _whole(self._index()), "--progress", _whole(self._places.progress("index")))
        try:
            self._settings.indexes.mkdir(mode=0o700, parents=True, exist_ok=True)  # it will hold texts
            self._begin("index", ["training", "index", _whole(self._places.candidate), *files, *out])
        except (JobFailed, OSError) as failure:  # replies of the candidate can be explained without
            why = str(failure) if isinstance(failure, JobFailed) else failure.strerror
            self._child = None
            assert record.candidate is not None, "it was judged"
            jobs.judged(self._db, record.id, record.candidate, result | {"index_error": why})

    def _compare(self, record: Record) -> None:
        failed = self._exhausted("compare")
        if failed is not None:
            raise JobFailed(failed)
        base = models.by_fingerprint(models_directory(self._settings), record.base)
        if base is None:
            raise JobFailed(f"the model {record.base} is not in the models' directory any more")
        places = self._places
        self._report("reading logged turns")
        job_data.write_questions(self._db, places.questions)
        both = (str(base.absolute()), _whole(places.candidate))
        self._begin(
            "compare",
            [
                *("training", "compare", *both, _whole(places.questions), "-o", _whole(places.answers)),
                *("--progress", _whole(places.progress("compare"))),
            ],
        )

    def _keep_changes(self, result: dict[str, Any]) -> bool:
        try:
            asked, changed = answered_of(read_lines(self._places.answers))
        except (OSError, ValueError, KeyError, TypeError):
            unread = {"changes_error": "the comparison cannot be read"}
            return self._end("done", result | self._install() | unread)
        result |= self._install()
        self._report()
        forget_texts(self._places.directory)
        with writing(self._db) as connection:
            kept = store_pairs(connection, self._record.id, changed)
            compared = {"compared": {"questions": asked, "changed": kept}}
            jobs.end(connection, self._record.id, "done", result | compared)
        return self._over("done")

    def _install(self) -> dict[str, Any]:
        """Put the candidate among the models, where it can be promoted."""
        directory = models_directory(self._settings)
        try:
            name = models.take_in(directory, self._places.candidate, rows=self._settings.rows)
            with contextlib.suppress(OSError):
                shutil.copyfile(self._places.manifest, directory / self._places.manifest.name)
        except (ModelDirectoryError, OSError) as error:
            reason = error.reason if isinstance(error, ModelDirectoryError) else error.strerror
            return {"not_installed": reason, "model": str(self._places.candidate)}
        return {"model": name}

    # --- processes ------------------------------------------------------------------------------------

    def _begin(self, work: Work, arguments: list[str]) -> None:
        failed = self._exhausted(work)
        if failed is not None:
            raise JobFailed(failed)
        told = self._told[work]
        self._attempts.note(work, told.reached, again=told.ended == "stopped")
        if self._child is not None:
            self._child.leave()
        threads = self._settings.job_threads or max(1, (os.cpu_count() or 1) // 2)
        try:
            self._process, self._child = job_process.begin(
                arguments, self._places.directory, self._places.log, threads
            )
        except OSError as error:
            raise JobFailed(f"cannot begin a process: {error.strerror}") from None
        told.ended = None
        self._term_at = None
        logs.event(log, logging.INFO, "job_process", job=self._record.id, work=work, pid=self._process.pid)
        self._report()

    def _exhausted(self, work: Work) -> str | None:
        """Why the process is not begun again: it has failed, or vanished too often."""
        told = self._told[work]
        if told.ended == "stopped":  # by whoever stops everything, such as a machine that goes down
            return None
        if told.ended == "failed" or (self._child is not None and self._child.complained):
            return self._reason()
        if self._attempts.count(work, told.reached) >= ATTEMPTS:
            return f"the process was killed {ATTEMPTS} times, perhaps for want of memory. {self._reason()}"
        return None

    def _reason(self) -> str:
        return "\n".join(tail(self._places.log, REASON_LINES)) or "it said nothing"

    def _make_end(self) -> None:
        """SIGTERM, and some time later SIGKILL. One on another machine ends by itself, or not at all."""
        if self._process is None:
            return
        if self._term_at is None:
            self._term_at = time.monotonic()
            job_process.send(self._process, signal.SIGTERM)
        elif time.monotonic() - self._term_at > GRACE:
            job_process.send(self._process, signal.SIGKILL)

    # --- telling --------------------------------------------------------------------------------------

    def _report(self, phase: str | None = None) -> None:
        """Keep where the process is, with its curve and the end of its log."""
        training = self._told["retrain"]
        latest = next((told for told in reversed(self._told.values()) if told.now), training)
        summary = latest.summary()
        if phase is not None:
            summary = dict.fromkeys(summary) | {"phase": phase}
        progress = {**summary, "curve": training.curve(), "log": tail(self._places.log)}
        kept_at, kept = self._kept
        now = time.monotonic()
        if progress != kept or now - kept_at >= HEARTBEAT:
            jobs.report(self._db, self._record.id, progress, self._process.pid if self._process else None)
            self._kept = (now, progress)

    # --- the end --------------------------------------------------------------------------------------

    def _end(self, state: jobs.State, result: dict[str, Any] | None) -> bool:
        self._report()
        forget_texts(self._places.directory)  # first: a job that has ended has none
        with writing(self._db) as connection:
            jobs.end(connection, self._record.id, state, result)
        return self._over(state)

    def _cancelled(self) -> bool:
        self._end("cancelled", None)
        shutil.rmtree(self._places.candidate, ignore_errors=True)
        self._index().unlink(missing_ok=True)
        return True

    def _given_up(self) -> bool:
        """Somebody else has ended the job, or deleted it."""
        if job_process.lives(self._places.directory):
            self._make_end()
            return False
        return self._over("given up")

    def _over(self, state: str) -> bool:
        forget_texts(self._places.directory)
        if (models_directory(self._settings) / self._places.name).is_dir():  # one copy is enough
            shutil.rmtree(self._places.candidate, ignore_errors=True)
        logs.event(log, logging.INFO, "job_ends", job=self._record.id, state=state)
        return True


def _whole(path: Path) -> str:
    return str(path.absolute())
