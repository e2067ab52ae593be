"""Connections and transactions: what is set on them, what they wait for, what their failures look like."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from server import database
from server.database import connect, masked, parse, reading, upgrade, writing
from server.store import Store
from server.store_errors import DatabaseUrlError, OutdatedDatabase, StoreUnavailable
from tests.databases import administer, fresh_database

ROOT = Path(__file__).resolve().parent.parent

# --- URLs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "write sqlite:///file.db or postgresql://"),
        ("turnwise.db", "write sqlite:///file.db or postgresql://"),
        ("mysql://localhost/chats", "mysql is neither sqlite nor postgresql"),
        ("postgresql+psycopg2://localhost/chats", "write postgresql:// for postgresql+psycopg2://"),
        ("sqlite+aiosqlite:///chats.db", "write sqlite:// for sqlite+aiosqlite://"),
        ("sqlite://chats.db", "three slashes"),
        ("sqlite://", "would forget every conversation"),
        ("sqlite:///:memory:", "would forget every conversation"),
        ("sqlite:///chats.db?mode=memory", "takes no parameters"),
        ("postgresql://anna@localhost:many/chats", "write sqlite:///file.db or postgresql://"),
        ("postgresql://anna@localhost:/chats", "write sqlite:///file.db or postgresql://"),
    ],
)
def test_other_urls_are_refused_in_words(url: str, complaint: str) -> None:
    with pytest.raises(DatabaseUrlError, match=re.escape(complaint)):
        connect(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql//anna:geheim@localhost/chats",
        "postgresql://anna:streng@geheim@localhost/chats",
        "postgresql://anna:streng@ge:heim@localhost/chats",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(DatabaseUrlError) as refusal:
        connect(url)
    assert "heim" not in str(refusal.value)


def test_a_relative_file_stays_where_it_is_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    upgrade("sqlite:///chats.db")
    engine = connect("sqlite:///chats.db")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    Store(engine).ping()
    engine.dispose()


@pytest.mark.parametrize("name", ["a b.db", "ü.db", "a#b.db", "100%.db", "it's.db"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    url = f"sqlite:///{tmp_path}/{name}".replace("%", "%25")
    upgrade(url)
    engine = connect(url)
    Store(engine).ping()
    engine.dispose()
    assert (tmp_path / name).exists()


def test_postgres_may_be_written_short() -> None:
    assert parse("postgres://anna@localhost/chats") == parse("postgresql://anna@localhost/chats")


def test_no_password_is_shown() -> None:
    url = parse("postgresql://anna:geheim@localhost/chats?sslpassword=geheim&sslmode=require")
    assert "geheim" not in masked(url)
    assert "sslmode=require" in masked(url)
    assert "anna:***@localhost" in masked(url)


# --- what is set ------------------------------------------------------------------------------------


def test_sqlite_is_durable_strict_and_forgets_what_it_is_told_to_forget(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    with reading(engine) as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        }
    engine.dispose()
    full = 2
    assert settings == {
        "journal_mode": "wal",
        "synchronous": full,
        "foreign_keys": 1,
        "secure_delete": 1,
        "busy_timeout": database.WAIT_SECONDS * 1000,
    }


def test_a_new_file_and_its_log_are_for_their_owner_only(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    Store(engine).new_visitor()
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    engine.dispose()
    assert modes == {"turnwise.db": 0o600, "turnwise.db-wal": 0o600, "turnwise.db-shm": 0o600}


def test_an_existing_file_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "turnwise.db"
    file.touch()
    file.chmod(0o640)
    upgrade(f"sqlite:///{file}")
    assert file.stat().st_mode & 0o777 == 0o640


def test_connecting_creates_no_file(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'misspelled.db'}")
    with pytest.raises(StoreUnavailable):
        Store(engine).ping()
    with pytest.raises(OutdatedDatabase, match="has not been set up"):
        database.require_newest(engine)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.postgres
def test_postgresql_waits_for_nothing_for_ever(tmp_path: Path) -> None:
    with fresh_database("postgres", tmp_path) as url:
        engine = connect(url)
        with reading(engine) as connection:
            for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                assert connection.scalar(text(f"SHOW {setting}")) == "5s"
        engine.dispose()


@pytest.mark.postgres
def test_connection_parameters_of_the_url_win(tmp_path: Path) -> None:
    with fresh_database("postgres", tmp_path) as url:
        engine = connect(f"{url}&application_name=mine")
        with reading(engine) as connection:
            assert connection.scalar(text("SHOW application_name")) == "mine"
        with pytest.raises(OutdatedDatabase) as refusal:
            database.require_newest(engine)
        assert "application_name=mine" in refusal.value.command
        assert "keepalives" not in refusal.value.command
        engine.dispose()


# --- transactions -----------------------------------------------------------------------------------


def count(engine: Engine) -> int:
    with reading(engine) as connection:
        number: int = connection.execute(text("SELECT count(*) FROM visitor")).scalar_one()
    return number


def add(connection: Any, name: str) -> None:
    values = {"id": name, "hash": name, "now": "2026-01-01 00:00:00+00:00"}
    connection.execute(
        text("INSERT INTO visitor (id, token_hash, created_at) VALUES (:id, :hash, :now)"), values
    )


def test_an_error_in_the_block_undoes_it(engine: Engine) -> None:

    def fail_after_writing() -> None:
        with writing(engine) as connection:
            add(connection, "a")
            raise KeyError("a mistake of ours")

    with pytest.raises(KeyError):
        fail_after_writing()
    assert count(engine) == 0


def test_readers_are_not_held_up_by_a_writer_and_do_not_see_half_of_it(engine: Engine) -> None:
    with writing(engine) as connection:
        add(connection, "a")
        assert count(engine) == 0
        add(connection, "b")
    assert count(engine) == 2


def test_on_sqlite_a_writer_has_the_lock_before_its_first_statement(tmp_path: Path) -> None:
    """One that asks for it only after reading is refused, however patient, if another has written since."""
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    other = sqlite3.connect(tmp_path / "turnwise.db", timeout=0, isolation_level=None)
    with writing(engine), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    with reading(engine):
        other.execute("BEGIN IMMEDIATE")
    other.close()
    engine.dispose()


def test_on_sqlite_a_reader_sees_one_moment(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    with reading(engine) as connection:
        before = connection.execute(text("SELECT count(*) FROM visitor")).scalar_one()
        with writing(engine) as other:
            add(other, "a")
        assert connection.execute(text("SELECT count(*) FROM visitor")).scalar_one() == before
    engine.dispose()


# --- when the database is not well ------------------------------------------------------------------


def test_a_lock_that_is_not_given_is_busy_and_passes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = connect(database_url)
    store = Store(other)
    conversation = store.open_conversation(store.new_visitor().visitor_id)
    with writing(other) as connection:
        connection.execute(text("UPDATE conversation SET last_seq = last_seq"))
        monkeypatch.setattr(database, "WAIT_SECONDS", 0.05)
        engine = connect(database_url)
        store = Store(engine)
        with pytest.raises(StoreUnavailable, match="the database is busy") as refusal:
            store.add_user_turn(conversation, "1", "hello", {})
        assert refusal.value.busy
    assert store.add_user_turn(conversation, "1", "hello", {}).created
    engine.dispose()
    other.dispose()


def test_a_pool_without_a_free_connection_is_busy(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.05)
    engine = connect(database_url)
    held = [engine.connect() for _ in range(database.POOL_SIZE)]
    with pytest.raises(StoreUnavailable, match="all connections are in use") as refusal:
        Store(engine).ping()
    assert refusal.value.busy
    for connection in held:
        connection.close()
    Store(engine).ping()
    engine.dispose()


def test_a_full_disk_is_unavailable_until_there_is_room(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    store = Store(engine)
    conversation = store.open_conversation(store.new_visitor().visitor_id)
    kept = store.add_user_turn(conversation, "1", "hello", {})
    room = 1

    @event.listens_for(engine, "checkout")
    def limit(dbapi_connection: sqlite3.Connection, *_: object) -> None:
        dbapi_connection.execute(f"PRAGMA max_page_count = {room}")

    long = "x" * 100_000
    with pytest.raises(StoreUnavailable, match="disk is full") as refusal:
        store.add_user_turn(conversation, "2", long, {})
    assert not refusal.value.busy
    assert [message.message_id for message in store.messages(conversation)] == [kept.message_id]
    room = 1_000_000
    assert store.add_user_turn(conversation, "2", long, {}).seq == 2
    engine.dispose()


def test_a_read_only_database_fails_the_ping_but_can_be_read(database_url: str) -> None:
    engine = connect(database_url)
    visitor = Store(engine).new_visitor()
    forbidden = {
        "sqlite": "PRAGMA query_only = ON",
        "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    }
    engine.dispose()

    @event.listens_for(engine, "connect")
    def forbid(dbapi_connection: Any, _: object) -> None:
        dbapi_connection.cursor().execute(forbidden[engine.dialect.name])
        dbapi_connection.commit()

    with pytest.raises(StoreUnavailable, match=r"read-?only") as refusal:
        Store(engine).ping()
    assert not refusal.value.busy
    assert Store(engine).visitor_of(visitor.token) == visitor.visitor_id
    engine.dispose()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "turnwise.db").write_text("Dear diary, " * 1000)
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    engine = connect(url)
    with pytest.raises(StoreUnavailable, match="not a database"):
        database.require_newest(engine)
    with pytest.raises(StoreUnavailable, match="not a database"):
        upgrade(url)


def test_a_database_without_tables_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "turnwise.db").touch()
    engine = connect(f"sqlite:///{tmp_path / 'turnwise.db'}")
    with pytest.raises(StoreUnavailable, match="no such table"):
        Store(engine).ping()
    engine.dispose()


def test_nobody_at_the_address_is_unavailable() -> None:
    engine = connect("postgresql://anna:geheim@127.0.0.1:1/chats")
    with pytest.raises(StoreUnavailable) as refusal:
        Store(engine).ping()
    assert not refusal.value.busy
    assert "geheim" not in str(refusal.value)


@pytest.mark.postgres
def test_a_restarted_postgresql_costs_nobody_an_error(tmp_path: Path) -> None:
    with fresh_database("postgres", tmp_path) as url:
        upgrade(url)
        engine = connect(f"{url}&application_name={tmp_path.name}")
        held = [engine.connect() for _ in range(3)]
        for connection in held:
            connection.close()
        administer(
            "SELECT pg_terminate_backend(pid, 3000) FROM pg_stat_activity "
            f"WHERE application_name = '{tmp_path.name}'"
        )
        for _ in held:
            Store(engine).ping()
        engine.dispose()


def test_a_failure_shows_nothing_of_what_was_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    store = Store(engine)
    conversation = store.open_conversation(store.new_visitor().visitor_id)
    with writing(engine) as connection:
        connection.execute(text("ALTER TABLE message RENAME COLUMN options TO gone"))
    secret = uuid.uuid4().hex
    with caplog.at_level(logging.DEBUG):
        try:
            store.add_user_turn(conversation, "1", secret, {"prefix": secret})
        except StoreUnavailable:
            logging.getLogger(__name__).exception("kept for the operator")
    assert "no column named options" in caplog.text
    assert secret not in caplog.text
    engine.dispose()


def told(word: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Do what docs/deploy.md tells to do for SQLite in the block that has this word."""
    guide = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    found = re.findall(r"^```sh\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    [block] = [each for each in found if "turnwise.db" in each and word in each]
    commands = block.replace(".venv/bin/python", sys.executable)
    around = {name: value for name, value in os.environ.items() if not name.startswith("TURNWISE_")}
    around |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        commands, shell=True, cwd=folder, env=around, capture_output=True, text=True, check=False
    )


def test_a_backup_taken_while_the_server_runs_is_whole_and_its_owners(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    visitor = Store(engine).new_visitor()
    assert told("VACUUM", tmp_path).returncode == 0
    assert told("VACUUM", tmp_path).returncode == 1, "nothing is overwritten"
    engine.dispose()
    assert stat.S_IMODE((tmp_path / "backup.db").stat().st_mode) == 0o600
    backup = connect(f"sqlite:///{tmp_path / 'backup.db'}")
    assert Store(backup).visitor_of(visitor.token) == visitor.visitor_id
    backup.dispose()


def test_there_is_no_backup_of_nothing(tmp_path: Path) -> None:
    assert told("VACUUM", tmp_path).returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_backup_is_put_back_in_place_of_what_a_killed_server_has_left(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    visitor = Store(engine).new_visitor()
    assert told("VACUUM", tmp_path).returncode == 0
    for _ in range(20):
        Store(engine).new_visitor()
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("turnwise.db", "turnwise.db-wal", "turnwise.db-shm", "backup.db"):
        shutil.copy(tmp_path / name, killed)
    engine.dispose()
    restored = told("install", killed)
    assert restored.returncode == 0, restored.stderr
    assert stat.S_IMODE((killed / "turnwise.db").stat().st_mode) == 0o600
    again = connect(f"sqlite:///{killed / 'turnwise.db'}")
    assert Store(again).visitor_of(visitor.token) == visitor.visitor_id
    with reading(again) as connection:
        assert connection.scalar(text("SELECT count(*) FROM visitor")) == 1
        assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
    again.dispose()
    assert told("install", killed).returncode == 1, "what was replaced is not replaced in turn"
