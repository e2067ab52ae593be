"""What deleting rows leaves behind in a database's files, and how it goes.

SQLite overwrites deleted rows (`secure_delete`), but not everything that was ever a row: when many go, it
moves those between them to other pages, and copies are left in what is then unused. So texts are blotted out
in their place first. The full-text index keeps deleted words until its segments are merged, and the
write-ahead log keeps pages as they were until it is emptied.

On PostgreSQL rows that were deleted lie in the files until VACUUM gives their space to others.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    Text,
    case,
    cast,
    func,
    inspect,
    null,
    type_coerce,
    update,
)
from sqlalchemy.exc import DBAPIError

from server.tables import Base, Pair

Condition = ColumnElement[bool]
SECONDS: Final = 60.0
"""For each part, at most; it goes on beside the chats."""
_MERGED_PAGES: Final = 256
_PAUSE: Final = 0.05


def blot_out(connection: Connection, table: type[Base], where: Condition) -> None:
    """Put blanks in the place of all texts of rows that are about to be deleted, or written anew.

    Does nothing on PostgreSQL, where it would make one more copy.
    """
    if connection.dialect.name != "sqlite":
        return
    columns = [
        each
        for each in table.__table__.columns
        if isinstance(each.type, Text | JSON) or each is Pair.__table__.c.group
    ]
    # Of the same length, so that the row stays where it is. JSON is text to SQLite.
    blanks = {
        each.name: case(
            (each.is_(None), null()),
            else_=func.printf("%*s", func.length(cast(type_coerce(each, Text), LargeBinary)), ""),
        )
        for each in columns
    }
    if blanks:
        connection.execute(update(table).where(where).values(blanks))


def cleanse(
    db: Engine, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> tuple[bool | None, bool | None]:
    """`(emptied, vacuumed)`: whether the write-ahead log is empty, None on PostgreSQL; and whether VACUUM
    has run, None on SQLite.
    """
    if db.dialect.name == "postgresql":
        return None, _vacuum(db)
    end = clock() + SECONDS
    raw = db.raw_connection()
    try:
        connection: Any = raw.driver_connection
        try:
            merged = True
            for index in _indexes(connection):
                merged &= _merge(connection, index, lambda: clock() < end)
            while not (emptied := _empty_log(connection)) and clock() < end:
                sleep(_PAUSE)
        except sqlite3.Error:
            return False, None
        return merged and emptied, None
    finally:
        raw.close()


def _indexes(connection: sqlite3.Connection) -> list[str]:
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL TABLE%fts5%'"
    return [name for (name,) in connection.execute(query)]


def _merge(connection: sqlite3.Connection, index: str, may_go_on: Callable[[], bool]) -> bool:
    """Merge all segments of a full-text index into one, which leaves deleted words out.

    A little at a time: chats write in between. False when it could not be finished.
    """
    quoted = '"' + index.replace('"', '""') + '"'
    pages = -_MERGED_PAGES
    while may_go_on():
        before = connection.total_changes
        try:
            connection.execute(f"INSERT INTO {quoted}({quoted}, rank) VALUES ('merge', {pages})")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            continue
        if connection.total_changes - before < 2:  # as its documentation tells the end
            return True
        pages = _MERGED_PAGES
    return False


def _empty_log(connection: sqlite3.Connection) -> bool:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def _vacuum(db: Engine) -> bool:
    """VACUUM cannot be part of a transaction, and takes its time; the connection is not used again."""
    try:
        with db.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.detach()
            connection.exec_driver_sql(f"SET statement_timeout = '{SECONDS:.0f}s'")
            tables = inspect(connection).get_table_names()
            quote = connection.dialect.identifier_preparer.quote
            names = ", ".join(map(quote, sorted(tables)))
            connection.exec_driver_sql(f"VACUUM {names}")
    except DBAPIError:
        return False
    return True
