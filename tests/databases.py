"""A fresh database for one test, on SQLite and on PostgreSQL.

`upgrade` here is for tests of something else than migrations: every migration runs once in a process for each
kind of database, and what they have made is made again from then on, in a tenth of the time.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from server import database

KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
POSTGRES = os.environ.get("TURNWISE_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database: a new file in `folder`, or a schema that is dropped afterwards."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'turnwise.db'}"
        return
    reason = _why_not()
    if reason is not None:
        pytest.skip(f"no PostgreSQL at {make_url(POSTGRES).render_as_string()}: {reason}")
    schema = f"turnwise_{uuid.uuid4().hex}"
    administer(f"CREATE SCHEMA {schema}")
    try:
        url = make_url(POSTGRES).update_query_dict({"options": f"-csearch_path={schema}"})
        yield url.render_as_string(hide_password=False)
    finally:
        administer(f"DROP SCHEMA {schema} CASCADE")


def administer(*statements: str) -> None:
    """Run statements on PostgreSQL beside the code under test, each committed at once."""
    url = make_url(POSTGRES).set(drivername="postgresql+psycopg").update_query_dict({"connect_timeout": "3"})
    with create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def upgrade(url: str) -> None:
    """Bring a database to the newest migration, as `server.database.upgrade` does; an empty one sooner."""
    parsed = make_url(url)
    if parsed.drivername == "sqlite":
        path = Path(parsed.database or "")
        if path.parent.is_dir() and not path.exists():
            content = _sqlite_file()
            path.touch(0o600)
            path.write_bytes(content)
            return
    else:
        with _connected(parsed) as connection:
            if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
                connection.exec_driver_sql(_postgres_statements())
                return
    database.upgrade(url)


@cache
def _sqlite_file() -> bytes:
    """A database file at the newest migration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "turnwise.db")
        database.upgrade(f"sqlite:///{path}")
        return path.read_bytes()


@cache
def _postgres_statements() -> str:
    """All that the migrations say to an empty schema; what they do to rows does nothing there."""
    said: list[str] = []

    def note(connection: Connection, cursor: object, statement: str, parameters: object, *_: object) -> None:
        if not parameters:
            said.append(statement)

    with fresh_database("postgres", Path()) as url:
        event.listen(Engine, "before_cursor_execute", note)
        try:
            database.upgrade(url)
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    return ";\n".join(said)


@contextmanager
def _connected(url: URL) -> Iterator[Connection]:
    """One transaction on PostgreSQL."""
    found = url.set(drivername="postgresql+psycopg").update_query_dict({"connect_timeout": "3"})
    with create_engine(found, poolclass=NullPool).begin() as connection:
        yield connection


@cache
def _why_not() -> str | None:
    try:
        administer("SELECT 1")
    except OperationalError as error:
        return str(error.orig).partition("\n")[0]
    return None
