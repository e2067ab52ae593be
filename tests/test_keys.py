"""API keys: shown once, kept hashed, refused once revoked; and the command that looks after them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import Engine, select, text

from server.__main__ import main
from server.console.audit import entries
from server.database import connect, reading
from server.keys import KeyNameError, Keys
from server.store_errors import StoreUnavailable
from server.tables import ApiKey
from server.writer import Writer
from tests.databases import KINDS, fresh_database, upgrade

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with fresh_database(request.param, tmp_path) as url:
        upgrade(url)
        engine = connect(url)
        yield engine
        engine.dispose()


def test_a_key_lets_its_holder_in_and_is_kept_as_a_hash_only(engine: Engine) -> None:
    keys = Keys(engine)
    key = keys.add("shop")
    assert keys.holder(key) == keys.records()[0].id
    assert key.startswith("tw-")
    assert len(key) >= 3 + 43  # 256 bits in base64
    with reading(engine) as connection:
        row = connection.execute(text("SELECT * FROM api_key")).one()
    assert row.key_hash == hashlib.sha256(key.encode()).hexdigest()
    assert not any(key[3:] in str(value) for value in row)


def test_of_two_keys_of_one_name_at_the_same_moment_one_is_made(engine: Engine) -> None:
    keys = Keys(engine)
    for number in range(8):
        together = Barrier(2)

        def add(name: str = f"shop {number}", together: Barrier = together) -> bool:
            together.wait(10)
            try:
                keys.add(name)
            except KeyNameError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            made = [pool.submit(add), pool.submit(add)]
        assert sorted(one.result() for one in made) == [False, True]


@pytest.mark.parametrize("wrong", ["", "tw-", "\0", "\ud800", "é", "x" * 100_000])
def test_nothing_else_lets_anybody_in(engine: Engine, wrong: str) -> None:
    keys = Keys(engine)
    key = keys.add("shop")
    for attempt in (
        wrong,
        key + wrong if wrong else key[:-1],
        key.upper(),
        hashlib.sha256(key.encode()).hexdigest(),
    ):
        assert keys.holder(attempt) is None


def test_a_revoked_key_is_refused_and_its_name_may_be_used_again(engine: Engine) -> None:
    clock = Clock()
    keys = Keys(engine, clock=clock)
    old, other = keys.add("shop"), keys.add("desk")
    keys.revoke("shop")
    assert keys.holder(old) is None
    assert keys.holder(other) is not None
    with pytest.raises(KeyNameError, match="no key that holds"):
        keys.revoke("shop")
    clock.now += timedelta(days=1)
    new = keys.add("shop")
    assert keys.holder(new) is not None
    assert keys.holder(old) is None
    assert [(key.name, key.revoked_at is None) for key in keys.records()].count(("shop", True)) == 1


@pytest.mark.parametrize(
    "name", ["", " shop", "shop ", "a\nb", "\x1b[31m", "\0", "\ud800", "x" * 65, "\u202epohs"]
)
def test_a_name_is_something_that_can_be_shown(engine: Engine, name: str) -> None:
    with pytest.raises(KeyNameError):
        Keys(engine).add(name)
    assert Keys(engine).records() == []


def test_two_keys_that_hold_have_two_names(engine: Engine) -> None:
    keys = Keys(engine)
    key = keys.add("shop")
    with pytest.raises(KeyNameError, match="there is one of that name"):
        keys.add("shop")
    assert keys.holder(key) is not None
    with pytest.raises(KeyNameError):
        keys.revoke("\0")


# --- when it was used -------------------------------------------------------------------------------------


def last_used(engine: Engine) -> datetime | None:
    with reading(engine) as connection:
        return connection.scalar(select(ApiKey.last_used_at))


class Counted(Writer):
    """A writer that counts what it is given."""

    requests = 0

    def submit(self, carry_out, request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        self.requests += 1
        return super().submit(carry_out, request)


def test_the_last_use_is_written_at_most_once_a_minute(engine: Engine) -> None:
    clock = Clock()
    key = Keys(engine, clock=clock).add("shop")
    moments = []
    for seconds in (0, 59, 60, 61, 130):
        clock.now = START + timedelta(seconds=seconds)
        writer = Counted(engine)
        writer.start()
        keys = Keys(engine, writer=writer, clock=clock)  # another server: it knows what the database knows
        for _ in range(3):
            assert keys.holder(key) is not None
        writer.close()
        assert writer.requests <= 1
        moments.append(last_used(engine))
    assert moments == [START, START, *[START + timedelta(seconds=60)] * 2, START + timedelta(seconds=130)]


def test_an_earlier_note_does_not_undo_a_later_one(engine: Engine) -> None:
    key = Keys(engine).add("shop")
    for now in (START + timedelta(hours=1), START):
        writer = Writer(engine)
        keys = Keys(engine, writer=writer, clock=lambda now=now: now)  # type: ignore[misc]
        keys._note(keys.records()[0].id, None)
        writer.start()
        writer.close()
    assert Keys(engine).holder(key) is not None
    assert last_used(engine) == START + timedelta(hours=1)


def test_a_use_that_cannot_be_written_keeps_nobody_out(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    closed = Writer(engine)
    closed.close()
    key = Keys(engine).add("shop")
    keys = Keys(engine, writer=closed)
    assert keys.holder(key) is not None
    assert [record.getMessage() for record in caplog.records] == ["key_use_not_noted"]
    assert key not in caplog.text


def test_a_missing_database_is_not_a_missing_key() -> None:
    engine = connect("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable):
        Keys(engine).holder("tw-x")
    engine.dispose()


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    return url


def test_the_command_adds_lists_and_revokes(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "list", "--database-url", url]) == 0
    assert capsys.readouterr().out == "no key\n"
    assert main(["key", "add", "shop", "--database-url", url]) == 0
    key = capsys.readouterr().out.splitlines()[-1]
    engine = connect(url)
    assert Keys(engine).holder(key) is not None
    assert main(["key", "list", "--database-url", url]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("shop  added 20")
    assert listed.endswith("never used\n")
    assert key[3:] not in listed
    assert main(["key", "revoke", "shop", "--database-url", url]) == 0
    assert Keys(engine).holder(key) is None
    capsys.readouterr()
    assert main(["key", "list", "--database-url", url]) == 0
    assert "revoked 20" in capsys.readouterr().out
    noted = [(entry.operator, entry.action, entry.subject, entry.details) for entry in entries(engine)]
    assert noted == [(None, "key.revoke", "shop", None), (None, "key.add", "shop", None)]
    engine.dispose()


def test_the_command_speaks_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "add", "Büro", "--json", "--database-url", url]) == 0
    added = json.loads(capsys.readouterr().out)
    assert added.keys() == {"name", "key"}
    assert main(["key", "list", "--json", "--database-url", url]) == 0
    [record] = json.loads(capsys.readouterr().out)
    assert record.keys() == {"id", "name", "created_at", "last_used_at", "revoked_at"}
    assert (record["name"], record["revoked_at"]) == ("Büro", None)
    assert main(["key", "revoke", "Büro", "--json", "--database-url", url]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "Büro", "revoked": True}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["add", "shop"], "one of that name"),
        (["revoke", "desk"], "no key that holds"),
        (["add", " "], "printable"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(
    url: str, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "add", "shop", "--database-url", url]) == 0
    capsys.readouterr()
    assert main(["key", *arguments, "--database-url", url]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert complaint in said.err
    assert said.err.count("\n") == 1
    engine = connect(url)
    assert [entry.action for entry in entries(engine)] == ["key.add"]
    engine.dispose()


def test_a_reader_that_has_left_is_no_traceback(url: str) -> None:
    """As `python -m server key list | head -1` may find it."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "server", "key", "list", "--database-url", url]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_database_that_is_not_set_up_is_named_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "add", "shop", "--database-url", f"sqlite:///{tmp_path / 'none.db'}"]) == 1
    assert "db upgrade" in capsys.readouterr().err
