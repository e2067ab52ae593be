"""Connections to the database, transactions on it, and the migration it must be at.

`connect` gives an engine for a plain URL and touches nothing yet; `reading` and `writing` are the only two
ways the server opens a transaction; `upgrade` brings a database to the newest migration and
`require_newest` insists on it.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

from server.store_errors import DatabaseUrlError, NewerDatabase, OutdatedDatabase, StoreUnavailable

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
"""Beside the server's package, in a checkout as in an installation, whatever the working directory."""

WAIT_SECONDS = 5.0
"""How long a transaction waits for a lock or for a connection from the pool before it is refused as busy."""
UPGRADE_WAIT_SECONDS = 600.0
"""How long an upgrade waits for another one: big tables take a while."""
POOL_SIZE = 16
"""Connections at most. SQLite writes one at a time; PostgreSQL has 100 in all, for all replicas."""

_UPGRADE_LOCK = 0x7475726E77697365  # "turnwise": the key of PostgreSQL's advisory lock
_upgrading = threading.Lock()  # alembic keeps the running migration in a global


def connect(url: str) -> Engine:
    """An engine for `sqlite:///file.db` or `postgresql://user:password@host/name`.

    A relative SQLite file is taken from the present working directory, once and for all. The file is never
    created here (see `upgrade`): a misspelled name is an error, not an empty database.

    Raises DatabaseUrlError.
    """
    parsed = parse(url)
    if parsed.drivername == "sqlite":
        return _sqlite_engine(parsed)
    engine = _postgresql_engine(parsed)
    event.listen(engine, "connect", _limit_waiting)
    return engine


def parse(url: str) -> URL:
    """A URL with a plain `sqlite` or `postgresql` scheme, an SQLite file as an absolute path.

    Raises DatabaseUrlError.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number is a ValueError, which would quote it
        raise DatabaseUrlError("write sqlite:///file.db or postgresql://user:password@host/name") from None
    if parsed.host is not None and "@" in parsed.host:  # errors show the host, never the password
        raise DatabaseUrlError("an @ in a password is written %40")
    if parsed.drivername == "postgres":
        parsed = parsed.set(drivername="postgresql")
    if "+" in parsed.drivername:
        plain = parsed.drivername.partition("+")[0]
        raise DatabaseUrlError(
            f"the driver is the server's choice: write {plain}:// for {parsed.drivername}://"
        )
    if parsed.drivername not in ("sqlite", "postgresql"):
        raise DatabaseUrlError(f"{parsed.drivername} is neither sqlite nor postgresql")
    return _sqlite_file(parsed) if parsed.drivername == "sqlite" else parsed


def _sqlite_file(parsed: URL) -> URL:
    if parsed.host:
        raise DatabaseUrlError(
            "an SQLite URL has three slashes before a relative file and four before an absolute one"
        )
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseUrlError("an SQLite database in memory would forget every conversation: name a file")
    if parsed.query:
        raise DatabaseUrlError("an SQLite URL takes no parameters")
    return parsed.set(database=str(Path(parsed.database).absolute()))


def masked(url: URL) -> str:
    """The URL as it may be shown: every password, also one given as a parameter, as `***`."""
    hidden = {key: "***" for key in url.query if "password" in key.lower()}
    return url.set(query={**url.query, **hidden}).render_as_string(hide_password=True)


# --- transactions ---------------------------------------------------------------------------------


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes nothing; on SQLite its statements see one moment and block nobody.

    Raises StoreUnavailable.
    """
    with _translated(), engine.begin() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is on the disk when the block has ended without an error.

    On SQLite it takes the write lock at once (BEGIN IMMEDIATE): one that reads first and upgrades its lock
    later fails without waiting when another has written in between.

    Raises StoreUnavailable; then nothing was written, or, if it was the commit that failed, perhaps
    everything.
    """
    with _translated(), engine.connect() as connection:
        connection.execution_options(write=True)
        with connection.begin():
            yield connection


@contextmanager
def _translated() -> Iterator[None]:
    """What the driver says about the state of the database becomes one error; our own mistakes stay."""
    try:
        yield
    except (IntegrityError, DataError):
        raise
    except PoolTimeout:
        raise StoreUnavailable("all connections are in use", busy=True) from None
    except DBAPIError as error:
        reason = str(error.orig).partition("\n")[0]
        raise StoreUnavailable(reason, busy=_is_busy(error.orig)) from error


_BUSY_STATES = {
    "40P01": "deadlock detected",
    "53300": "too many connections",
    "55P03": "lock not available",
    "57014": "statement timeout",
}


def _is_busy(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        # Extended codes (SQLITE_BUSY_SNAPSHOT and the like) carry the primary one in their low byte.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return getattr(error, "sqlstate", None) in _BUSY_STATES


# --- SQLite ---------------------------------------------------------------------------------------


def _sqlite_engine(url: URL, *, for_upgrade: bool = False) -> Engine:
    path = Path(url.database or "")
    wait = UPGRADE_WAIT_SECONDS if for_upgrade else WAIT_SECONDS
    # Changing a table on SQLite means to copy it and drop the old one, and dropping a table under foreign
    # keys deletes whatever refers to it. An upgrade therefore runs without and checks them all at its end.
    foreign_keys = "OFF" if for_upgrade else "ON"

    def open_file() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw",
            uri=True,
            timeout=wait,
            # The driver's own transactions begin too late, at the first write, and miss every CREATE.
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # With less than FULL a power cut takes acknowledged messages along.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(f"PRAGMA foreign_keys = {foreign_keys}")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = (
        create_engine(url, creator=open_file, poolclass=NullPool, hide_parameters=True)
        if for_upgrade
        else create_engine(
            url,
            creator=open_file,
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=WAIT_SECONDS,
            hide_parameters=True,
        )
    )
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _create_file(path: Path) -> None:
    """An empty database file that only its owner can read; an existing one is left as it is.

    SQLite gives the write-ahead log beside it the same permissions.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreUnavailable(f"cannot open {path}: {error.strerror}") from None


# --- PostgreSQL -----------------------------------------------------------------------------------

_PATIENCE = {
    "application_name": "turnwise",
    "connect_timeout": "5",
    # A database whose machine is gone answers nothing at all; these end the wait for it after about 15 s.
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "15000",
}
"""Connection parameters of libpq; the same ones in the URL win."""


def _postgresql_engine(url: URL, *, for_upgrade: bool = False) -> Engine:
    driver_url = url.set(drivername="postgresql+psycopg", query={**_PATIENCE, **url.query})
    if for_upgrade:
        return create_engine(driver_url, poolclass=NullPool, hide_parameters=True)
    return create_engine(
        driver_url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=WAIT_SECONDS,
        pool_pre_ping=True,  # a restarted server costs nobody an error
        hide_parameters=True,
    )


def _limit_waiting(dbapi_connection: DBAPIConnection, _record: object) -> None:
    """Nobody waits for ever, neither for a lock nor for a replica that stopped within a transaction."""
    milliseconds = int(WAIT_SECONDS * 1000)
    cursor = dbapi_connection.cursor()
    for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
        cursor.execute(f"SET {setting} = {milliseconds}")
    cursor.close()
    dbapi_connection.commit()


# --- migrations -----------------------------------------------------------------------------------


def upgrade(url: str) -> str:
    """Bring the database to the newest migration and return that; a missing SQLite file is created.

    All of it is one transaction under a lock: it happens whole or not at all, and of several upgrades at
    once the others wait for the first and then find nothing to do.

    Raises DatabaseUrlError, NewerDatabase, StoreUnavailable.
    """
    parsed = parse(url)
    newest = _newest()
    if parsed.drivername == "sqlite":
        _create_file(Path(parsed.database or ""))
        engine = _sqlite_engine(parsed, for_upgrade=True)
    else:
        engine = _postgresql_engine(parsed, for_upgrade=True)
    with _upgrading, writing(engine) as connection:
        if parsed.drivername == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        found = _revision(connection)
        if found == newest:
            return newest
        if found is not None:
            _refuse_newer(found, newest)
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, newest)
        if parsed.drivername == "sqlite":
            _check_foreign_keys(connection)
    return newest


def require_newest(engine: Engine) -> None:
    """Insist that the database is at the newest migration this code knows.

    Raises OutdatedDatabase (which carries the command to run), NewerDatabase, StoreUnavailable.
    """
    newest = _newest()
    url = engine.url.set(drivername=engine.url.get_backend_name())
    missing = url.drivername == "sqlite" and not Path(url.database or "").exists()
    found = None
    if not missing:
        with reading(engine) as connection:
            found = _revision(connection)
    if found == newest:
        return
    if found is not None:
        _refuse_newer(found, newest)
    given = {key: value for key, value in url.query.items() if _PATIENCE.get(key) != value}
    shown = masked(url.set(query=given))
    raise OutdatedDatabase(found, newest, f"python -m server db upgrade --database-url {shlex.quote(shown)}")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _newest() -> str:
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    assert newest is not None, "the first migration is part of every installation"
    return newest


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(found: str, newest: str) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found not in known:
        raise NewerDatabase(found, newest)


def _check_foreign_keys(connection: Connection) -> None:
    dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if dangling:
        tables = ", ".join(sorted({row[0] for row in dangling}))
        raise StoreUnavailable(
            f"the upgrade would leave rows in {tables} that refer to nothing; it was undone"
        )
