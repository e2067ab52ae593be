"""Retrainings in the database: asked for, claimed, reported on, ended. One runs at a time in all servers.

    queued ──► running ──► done        there is a candidate, whether the gate passes it or not
       │          ├──────► failed      there is none, and `result` says why
       └──────────┴──────► cancelled

Every change is a compare-and-set on `state`. What only the servers need to know is in the job's directory
(server/console/job_files.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import Connection, Engine, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from server.console import audit
from server.console.accounts import Identity
from server.database import reading, writing
from server.desk import new_id
from server.records import storable
from server.settings import Settings, flag
from server.tables import Job, Operator

State = Literal["queued", "running", "done", "failed", "cancelled"]
MOST_QUEUED: Final = 10
SHOWN: Final = 50
"""Jobs in a list, the newest."""
SILENT: Final = timedelta(minutes=10)
"""A running job, which is heard of every few seconds, has lost its machine after so long a silence."""


class JobRefused(Exception):
    """Why a job cannot be queued or cancelled, in words for whoever asked."""


@dataclass(frozen=True, slots=True)
class Record:
    """A job as it is kept; see `server.tables.Job`. operator: the name of who asked for it."""

    id: str
    state: State
    operator: str | None
    base: str
    candidate: str | None
    directory: Path
    settings: dict[str, Any]
    use_imports: bool
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    pid: int | None
    cancel: bool
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


def queue(
    db: Engine, told: Settings, base: str, who: Identity, settings: Mapping[str, Any], *, use_imports: bool
) -> Record:
    """A retraining from model `base`, begun as soon as no other runs. settings: of
    `training.retrain_config.RetrainConfig`, checked before by `server.console.job_settings`.

    Raises `JobRefused`.
    """
    lacking = missing(told)
    if lacking is not None:
        raise JobRefused(lacking)
    job = new_id()
    with writing(db) as connection:
        waiting = connection.scalar(select(func.count()).select_from(Job).where(Job.state == "queued"))
        if waiting is not None and waiting >= MOST_QUEUED:
            raise JobRefused(f"{waiting} retrainings are waiting already")
        connection.execute(
            insert(Job).values(
                id=job,
                state="queued",
                operator_id=who.id,
                base=base,
                directory=str(told.jobs_dir.absolute() / job),
                settings={"set": dict(settings), "use_imports": use_imports},
                created_at=datetime.now(UTC),
            )
        )
        audit.note(connection, who.name, "job.queue", job, base=base, settings=dict(settings))
        found = _one(connection, job)
    assert found is not None, "it was inserted a moment ago"
    return found


def missing(told: Settings) -> str | None:
    """What the owner has to do before anything can be retrained here."""
    lacking = [name for name in ("replay_files", "dev_files") if not getattr(told, name)]
    if lacking:
        flags = " and ".join(map(flag, lacking))
        return (
            f"start the server with {flags}: retraining learns the old data again, so that it is not "
            "forgotten, and judges by data that it has not learned"
        )
    absent = [str(file) for file in (*told.replay_files, *told.dev_files) if not file.is_file()]
    return f"there is no such file on the server: {', '.join(absent)}" if absent else None


def jobs(db: Engine) -> list[Record]:
    """The newest first."""
    with reading(db) as connection:
        rows = connection.execute(_records().order_by(Job.created_at.desc(), Job.id.desc()).limit(SHOWN))
        return [_record(row._mapping) for row in rows]


def job(db: Engine, wanted: str) -> Record | None:
    if not storable(wanted):
        return None
    with reading(db) as connection:
        return _one(connection, wanted)


def cancel(db: Engine, wanted: str, who: Identity) -> Record | None:
    """One that waits is cancelled at once; one that runs is ended by the server that watches over it, or here
    when nothing has been heard of that for long. None when there is no such job.

    Raises `JobRefused` for one that has ended.
    """
    if not storable(wanted):
        return None
    now = datetime.now(UTC)
    with writing(db) as connection:
        connection.execute(select(Job.id).where(Job.id == wanted).with_for_update())
        found = _one(connection, wanted)
        if found is None:
            return None
        if found.state not in ("queued", "running"):
            raise JobRefused("it has ended already")
        values: dict[str, Any] = {"cancel": True}
        if found.state == "queued" or heard_of(found) < now - SILENT:
            values |= {"state": "cancelled", "ended_at": now}
        connection.execute(update(Job).where(Job.id == wanted).values(values))
        audit.note(connection, who.name, "job.cancel", wanted)
        return _one(connection, wanted)


# --- for the server that runs them ------------------------------------------------------------------------


def claim(db: Engine, jobs_dir: Path) -> Record | None:
    """The job that waits longest, running from now on, in `jobs_dir` of this machine; None when none waits or
    another one runs.
    """
    first = select(Job.id).where(Job.state == "queued").order_by(Job.created_at, Job.id).limit(1)
    with reading(db) as connection:
        wanted = connection.scalar(first)
        if wanted is None or connection.scalar(select(Job.id).where(Job.state == "running")) is not None:
            return None
    now = datetime.now(UTC)
    values = {"state": "running", "started_at": now, "directory": str(jobs_dir.absolute() / wanted)}
    begun = update(Job).where(Job.id == wanted, Job.state == "queued").values(values)
    try:
        with writing(db) as connection:
            if not connection.execute(begun).rowcount:
                return None
            return _one(connection, wanted)
    except IntegrityError:  # another server was first, with another job
        return None


def running(db: Engine) -> Record | None:
    with reading(db) as connection:
        row = connection.execute(_records().where(Job.state == "running")).one_or_none()
        return None if row is None else _record(row._mapping)


def report(db: Engine, wanted: str, progress: dict[str, Any], pid: int | None) -> None:
    """What there is to tell of a running job."""
    kept = {**progress, "at": datetime.now(UTC).isoformat()}
    with writing(db) as connection:
        connection.execute(
            update(Job).where(Job.id == wanted, Job.state == "running").values(progress=kept, pid=pid)
        )


def judged(db: Engine, wanted: str, candidate: str, result: dict[str, Any]) -> None:
    """There is a candidate, and the gate has decided."""
    with writing(db) as connection:
        connection.execute(
            update(Job)
            .where(Job.id == wanted, Job.state == "running")
            .values(candidate=candidate, result=result)
        )


def end(connection: Connection, wanted: str, state: State, result: dict[str, Any] | None) -> bool:
    """A running job is over. False when it was no longer running. result: None leaves it as it is."""
    values: dict[str, Any] = {"state": state, "ended_at": datetime.now(UTC), "pid": None}
    if result is not None:
        values["result"] = result
    ended = update(Job).where(Job.id == wanted, Job.state == "running").values(values)
    return bool(connection.execute(ended).rowcount)


def fail_silent(db: Engine) -> str | None:
    """Give up a running job whose machine has not been heard of for long; its id."""
    found = running(db)
    if found is None or heard_of(found) >= datetime.now(UTC) - SILENT:
        return None
    why = "the machine that it ran on has not been heard of; queue it again"
    with writing(db) as connection:
        return found.id if end(connection, found.id, "failed", {"error": why}) else None


def ended(db: Engine) -> list[Path]:
    """The directories of those that have ended, the newest first."""
    query = select(Job.directory).where(Job.ended_at.is_not(None)).order_by(Job.ended_at.desc())
    with reading(db) as connection:
        return [Path(directory) for directory in connection.scalars(query)]


def heard_of(found: Record) -> datetime:
    """When a running job was last reported on."""
    at = (found.progress or {}).get("at")
    return datetime.fromisoformat(at) if isinstance(at, str) else (found.started_at or found.created_at)


def _records() -> Select[Any]:
    columns = [column for column in Job.__table__.columns if column.name != "operator_id"]
    return select(*columns, Operator.name.label("operator")).outerjoin(
        Operator, Operator.id == Job.operator_id
    )


def _one(connection: Connection, wanted: str) -> Record | None:
    row = connection.execute(_records().where(Job.id == wanted)).one_or_none()
    return None if row is None else _record(row._mapping)


def _record(row: Mapping[Any, Any]) -> Record:
    values = dict(row)
    kept = values.pop("settings")
    return Record(
        **{**values, "directory": Path(values["directory"])},
        settings=kept.get("set", {}),
        use_imports=bool(kept.get("use_imports")),
    )
