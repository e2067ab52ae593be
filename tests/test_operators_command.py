"""`python -m server operator …`: accounts from the command line."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from server import operators_command
from server.__main__ import main
from server.console.accounts import Accounts
from server.console.audit import entries
from server.database import connect
from tests.databases import upgrade
from tests.live_server import ROOT, clean_environment

PASSWORD = "correct horse battery"


class Command:
    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._url = url
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str, typed: str = "") -> int:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        return main(["operator", *arguments, "--database-url", self._url])


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(database_url, monkeypatch)


def test_whoever_thinks_better_of_it_sees_no_traceback(
    command: Command, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(operators_command, "ask_password", interrupted)
    assert command("add", "ana") == 130
    assert Accounts(engine).accounts() == []


def test_the_life_of_an_account(command: Command, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    accounts = Accounts(engine)
    assert command("add", "ana", "--role", "admin", typed=f"{PASSWORD}\nmore\n") == 0
    assert command("add", "ben", typed=PASSWORD) == 0
    assert [(a.name, a.role) for a in accounts.accounts()] == [("ana", "admin"), ("ben", "reviewer")]
    assert accounts.sign_in("ana", PASSWORD) is not None
    found = accounts.sign_in("ben", PASSWORD)
    assert found is not None

    assert command("password", "ben", typed="an entirely other one\r\n") == 0
    assert accounts.find(found[1]) is None
    assert accounts.sign_in("ben", "an entirely other one") is not None
    assert command("disable", "ben") == 0
    assert accounts.sign_in("ben", "an entirely other one") is None
    assert command("enable", "ben") == 0
    assert accounts.sign_in("ben", "an entirely other one") is not None

    capsys.readouterr()
    assert command("list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in listed] == [["ana", "admin"], ["ben", "reviewer"]]
    assert command("list", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [account["name"] for account in told] == ["ana", "ben"]
    assert not any("password" in key for account in told for key in account)
    actions = [entry.action for entry in reversed(entries(engine)) if entry.operator is None]
    assert actions == [
        "operator.add",
        "operator.add",
        "password.set",
        "operator.disable",
        "operator.enable",
    ]


@pytest.mark.parametrize(
    ("arguments", "typed", "words"),
    [
        (("add", "ana"), PASSWORD, "there is an operator of that name"),
        (("add", "ben"), "", "the first line of standard input is to be the password"),
        (("add", "ben"), "\n", "the first line of standard input is to be the password"),
        (("add", "ben"), "short\n", "a password has 10 to 256 characters"),
        (("add", ""), PASSWORD, "a name has 1 to 64 characters"),
        (("disable", "ana"), "", "nobody would be left who is an admin"),
        (("disable", "nobody"), "", "there is no operator 'nobody'"),
        (("password", "nobody"), PASSWORD, "there is no operator 'nobody'"),
        (("enable", "\x1b[31m"), "", r"there is no operator '\x1b[31m'"),
    ],
)
def test_what_is_refused(
    command: Command,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    typed: str,
    words: str,
) -> None:
    assert command("add", "ana", "--role", "admin", typed=PASSWORD) == 0
    capsys.readouterr()
    assert command(*arguments, typed=typed) == 1
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", words + "\n")
    assert [account.name for account in Accounts(engine).accounts()] == ["ana"]


@pytest.mark.parametrize(("again", "status"), [(PASSWORD, 0), ("something else", 1)])
def test_at_a_terminal_it_is_asked_for_twice_and_not_shown(tmp_path: Path, again: str, status: int) -> None:
    database_url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(database_url)
    screen, terminal = pty.openpty()
    program = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "from server.__main__ import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "operator", "add", "ana", "--database-url", database_url],
        cwd=ROOT,
        env=clean_environment(),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        shown = ""
        for prompt, line in (("Password: ", PASSWORD), ("The same again: ", again)):
            while not shown.endswith(prompt):
                shown += os.read(screen, 1024).decode()
            os.write(screen, f"{line}\n".encode())
        assert process.wait(60) == status
        shown += os.read(screen, 4096).decode()
    finally:
        process.kill()
        process.wait(30)
        os.close(screen)
    assert PASSWORD not in shown
    assert ("ana may sign in as reviewer" in shown) == (status == 0)
    engine = connect(database_url)
    assert bool(Accounts(engine).accounts()) == (status == 0)
    engine.dispose()
