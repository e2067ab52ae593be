"""API keys: who may use the HTTP API. Only the command line adds and revokes them.

A key has 256 random bits, so one SHA-256 is enough to keep it by: there is nothing to guess that a slow hash
could protect. Keys are looked up by their hash for every request, and a key that is revoked is refused from
the next one on.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, bindparam, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from server import logs
from server.console import audit
from server.database import reading, writing
from server.desk import new_id
from server.records import storable
from server.store_errors import StoreError, StoreUnavailable
from server.tables import ApiKey
from server.writer import Writer

log = logging.getLogger(__name__)

PREFIX: Final = "tw-"
"""What every key begins with, so that people and scanners know one when they see it."""
MAX_NAME: Final = 64
MAX_KEY: Final = 256
"""Code points beyond which nothing is a key."""
NOTED_EVERY: Final = timedelta(minutes=1)
"""How much later a key's last use must be to be written."""


class KeyNameError(StoreError, ValueError):
    """A name that no key can be given, or that no key has. Attributes: name, reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"the key {self.name!r}: {self.reason}"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key without the key."""

    id: str
    name: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Use:
    key_id: str
    at: datetime


class Keys:
    """The keys in a database; all calls may be made from any thread, and wait for it.

    writer: what carries out notes of a key's last use; without one they are not made.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        writer: Writer | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._clock = clock
        self._noted: dict[str, datetime] = {}

    def add(self, name: str) -> str:
        """A new key, which is seen only here. Raises KeyNameError, StoreUnavailable."""
        if not storable(name) or not name.isprintable() or name != name.strip():
            raise KeyNameError(name, "a name has printable characters, and no space around them")
        if not 1 <= len(name) <= MAX_NAME:
            raise KeyNameError(name, f"a name has 1 to {MAX_NAME} characters")
        key = PREFIX + secrets.token_urlsafe(32)
        taken = select(ApiKey.id).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
        values = {"id": new_id(), "name": name, "key_hash": _hash(key), "created_at": self._clock()}
        there = KeyNameError(name, "there is one of that name; revoke it first, or choose another name")
        try:
            with writing(self._engine) as connection:
                if connection.scalar(taken) is not None:
                    raise there
                connection.execute(insert(ApiKey).values(values))
                audit.note(connection, None, "key.add", name)
        except IntegrityError:  # somebody else's was first by less than a look
            raise there from None
        return key

    def records(self) -> list[KeyRecord]:
        """All keys, the oldest first, revoked ones too."""
        query = select(
            ApiKey.id, ApiKey.name, ApiKey.created_at, ApiKey.last_used_at, ApiKey.revoked_at
        ).order_by(ApiKey.created_at, ApiKey.id)
        with reading(self._engine) as connection:
            return [KeyRecord(**row._mapping) for row in connection.execute(query)]

    def revoke(self, name: str) -> None:
        """The key of that name does not hold any more. Raises KeyNameError, StoreUnavailable."""
        statement = update(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
        with writing(self._engine) as connection:
            found = storable(name) and connection.execute(statement.values(revoked_at=self._clock())).rowcount
            if found:
                audit.note(connection, None, "key.revoke", name)
        if not found:
            raise KeyNameError(name, "no key that holds has this name")

    def holder(self, key: str) -> str | None:
        """The id of a key that holds, or None. Raises StoreUnavailable."""
        if not storable(key) or len(key) > MAX_KEY:
            return None
        hashed = _hash(key)
        query = select(ApiKey.id, ApiKey.key_hash, ApiKey.last_used_at).where(
            ApiKey.key_hash == hashed, ApiKey.revoked_at.is_(None)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        # How long an index searches may depend on the hash, which tells nothing about 256 random bits; what
        # lets somebody in is compared in constant time all the same.
        if row is None or not hmac.compare_digest(row.key_hash, hashed):
            return None
        self._note(row.id, row.last_used_at)
        return str(row.id)

    def _note(self, key_id: str, last: datetime | None) -> None:
        """Have the use written, unless that was done within the last minute. Nobody waits for it."""
        now = self._clock()
        last = max(filter(None, (last, self._noted.get(key_id))), default=None)
        if self._writer is None or (last is not None and now - last < NOTED_EVERY):
            return
        self._noted[key_id] = now
        try:
            noted = self._writer.submit(_note_uses, _Use(key_id, now))
        except StoreUnavailable as error:
            logs.event(log, logging.WARNING, "key_use_not_noted", error=logs.place(error))
            return
        noted.add_done_callback(lambda done: _tell(done.exception()))


def _note_uses(connection: Connection, uses: Sequence[_Use]) -> list[StoreError | None]:
    # In one order, so that servers do not wait for each other in a ring.
    rows = [{"key": use.key_id, "at": use.at} for use in sorted(uses, key=lambda use: use.key_id)]
    connection.execute(_USED, rows)
    return [None] * len(uses)


_USED: Final = (
    update(ApiKey)
    .where(
        ApiKey.id == bindparam("key"),
        or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < bindparam("at")),
    )
    .values(last_used_at=bindparam("at"))
)


def _tell(error: BaseException | None) -> None:
    if error is not None:
        logs.event(log, logging.WARNING, "key_use_not_noted", error=logs.place(error))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
