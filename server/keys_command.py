"""What `python -m server key …` prints."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime

from server import database, settings
from server.keys import KeyRecord, Keys


def add(arguments: Namespace) -> int:
    def work(keys: Keys) -> None:
        key = keys.add(arguments.name)
        if arguments.json:
            print(json.dumps({"name": arguments.name, "key": key}, ensure_ascii=False))
        else:
            print(f"the key of {arguments.name}; it is shown only now:\n{key}")

    return _with_keys(arguments, work)


def list_keys(arguments: Namespace) -> int:
    def work(keys: Keys) -> None:
        found = keys.records()
        if arguments.json:
            print(json.dumps([asdict(key) for key in found], ensure_ascii=False, default=_moment))
        else:
            print("\n".join(map(_line, found)) or "no key")

    return _with_keys(arguments, work)


def revoke(arguments: Namespace) -> int:
    def work(keys: Keys) -> None:
        keys.revoke(arguments.name)
        if arguments.json:
            print(json.dumps({"name": arguments.name, "revoked": True}, ensure_ascii=False))
        else:
            print(f"the key of {arguments.name} does not hold any more")

    return _with_keys(arguments, work)


def _with_keys(arguments: Namespace, work: Callable[[Keys], None]) -> int:
    """The exit status of `work` over the database's keys. Raises StoreError."""
    db = database.connect(settings.load(arguments).database_url)
    try:
        database.require_newest(db)
        work(Keys(db))
    finally:
        db.dispose()
    return 0


def _line(key: KeyRecord) -> str:
    used = "never used" if key.last_used_at is None else f"last used {_moment(key.last_used_at)}"
    state = used if key.revoked_at is None else f"revoked {_moment(key.revoked_at)}"
    return f"{key.name}  added {_moment(key.created_at)}  {state}"


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
