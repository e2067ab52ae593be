"""What `python -m server operator …` does and prints."""

from __future__ import annotations

import getpass
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime

from server import database, settings
from server.console.accounts import Account, AccountError, Accounts


def add(arguments: Namespace) -> int:
    def work(accounts: Accounts) -> None:
        new = accounts.add(arguments.name, arguments.role, ask_password())
        _say(arguments, f"{new.name} may sign in as {new.role}", **asdict(new))

    return _with_accounts(arguments, work)


def list_operators(arguments: Namespace) -> int:
    def work(accounts: Accounts) -> None:
        found = accounts.accounts()
        if arguments.json:
            print(json.dumps([asdict(account) for account in found], ensure_ascii=False, default=_moment))
        else:
            print("\n".join(map(_line, found)) or "no operator")

    return _with_accounts(arguments, work)


def disable(arguments: Namespace) -> int:
    def work(accounts: Accounts) -> None:
        changed = accounts.change(_named(accounts, arguments.name).id, disabled=True)
        _say(arguments, f"{changed.name} cannot sign in any more", name=changed.name, disabled=True)

    return _with_accounts(arguments, work)


def enable(arguments: Namespace) -> int:
    def work(accounts: Accounts) -> None:
        changed = accounts.change(_named(accounts, arguments.name).id, disabled=False)
        _say(arguments, f"{changed.name} may sign in again", name=changed.name, disabled=False)

    return _with_accounts(arguments, work)


def password(arguments: Namespace) -> int:
    def work(accounts: Accounts) -> None:
        changed = accounts.change(_named(accounts, arguments.name).id, password=ask_password())
        words = f"{changed.name} has a new password, and is signed out everywhere"
        _say(arguments, words, name=changed.name, password_set=True)

    return _with_accounts(arguments, work)


def ask_password() -> str:
    """Twice from the terminal, where it is not shown, or the first line of standard input.

    Raises AccountError.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.readline().removesuffix("\n").removesuffix("\r")
        if not line:
            raise AccountError("invalid", "the first line of standard input is to be the password")
        return line
    try:
        first = getpass.getpass("Password: ")
        again = getpass.getpass("The same again: ")
    except EOFError:
        raise AccountError("invalid", "no password was given") from None
    if first != again:
        raise AccountError("invalid", "these were two different passwords")
    return first


def _named(accounts: Accounts, name: str) -> Account:
    """Raises AccountError."""
    found = accounts.named(name)
    if found is None:
        raise AccountError("unknown", f"there is no operator {name!r}")
    return found


def _with_accounts(arguments: Namespace, work: Callable[[Accounts], None]) -> int:
    """The exit status of `work` over the database's operators. Raises StoreError."""
    db = database.connect(settings.load(arguments).database_url)
    try:
        database.require_newest(db)
        work(Accounts(db))
    finally:
        db.dispose()
    return 0


def _say(arguments: Namespace, words: str, **fields: object) -> None:
    print(json.dumps(fields, ensure_ascii=False) if arguments.json else words)


def _line(account: Account) -> str:
    seen = (
        "not seen of late" if account.last_seen_at is None else f"last seen {_moment(account.last_seen_at)}"
    )
    state = seen if account.disabled_at is None else f"disabled {_moment(account.disabled_at)}"
    return f"{account.name}  {account.role}  added {_moment(account.created_at)}  {state}"


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
