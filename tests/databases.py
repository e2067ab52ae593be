"""A fresh database for one test, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

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


@cache
def _why_not() -> str | None:
    try:
        administer("SELECT 1")
    except OperationalError as error:
        return str(error.orig).partition("\n")[0]
    return None
