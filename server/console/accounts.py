"""Operators: who they are, how they prove it, and their sessions.

Plain calls on the database, from any thread. A session is told by a token of 256 random bits, which only the
browser has: the database keeps its SHA-256, and the CSRF token is derived from it. A session is looked up for
every request, so one that was ended, here or by another server, is refused from the next request on.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, cast

import sqlalchemy
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from server.console import audit, passwords
from server.console.endings import Endings
from server.database import reading, writing
from server.desk import new_id
from server.records import storable
from server.store_errors import StoreError, StoreUnavailable
from server.tables import Operator, OperatorSession

Role = Literal["reviewer", "admin"]

MAX_NAME: Final = 64
TOKEN_LENGTH: Final = 43
"""Characters of a token: 256 bits in base64."""
IDLE: Final = timedelta(hours=2)
"""A session that is not used for so long is over."""
LIFETIME: Final = timedelta(hours=12)
"""A session is over by then, however much it is used: a shift with its breaks."""
NOTED_EVERY: Final = timedelta(minutes=1)
"""How much later a session's last use must be to be written."""
KEPT: Final = timedelta(days=90)
"""For how long a session that is over still tells when its operator was last seen."""


class AccountError(StoreError, ValueError):
    """An account cannot be had, or changed, like that. kind: taken, invalid, unknown or last_admin."""

    def __init__(self, kind: Literal["taken", "invalid", "unknown", "last_admin"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Identity:
    """An operator who is signed in."""

    id: str
    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Session:
    """A login that holds. key: the token's hash, by which it is kept. csrf: what its page sends along."""

    key: str
    operator: Identity
    csrf: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Account:
    """An operator as admins see them. last_seen_at: to the minute, about; None: never, or long ago."""

    id: str
    name: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None
    last_seen_at: datetime | None


class Accounts:
    """by: the name of the operator who asks for a change; None for the command line."""

    def __init__(
        self, db: sqlalchemy.Engine, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._db = db
        self._clock = clock
        self._endings = Endings()

    # --- accounts -----------------------------------------------------------------------------------------

    def add(self, name: str, role: Role, password: str, by: str | None = None) -> Identity:
        """A new operator. Slow: the password is hashed. Raises AccountError, StoreUnavailable."""
        name = _checked_name(name)
        kept = _hashed(password, name)
        new = Identity(new_id(), name, role)
        taken = AccountError("taken", "there is an operator of that name")
        values = {"id": new.id, "name": name, "role": role, "password_hash": kept}
        try:
            with writing(self._db) as connection:
                # Ana and ana would be taken for each other.
                if name.casefold() in map(str.casefold, connection.scalars(select(Operator.name))):
                    raise taken
                connection.execute(insert(Operator).values(**values, created_at=self._clock()))
                audit.note(connection, by, "operator.add", name, role=role)
        except IntegrityError:
            raise taken from None
        return new

    def accounts(self) -> list[Account]:
        """All operators by name, disabled ones too. Raises StoreUnavailable."""
        with reading(self._db) as connection:
            return [_account(row) for row in connection.execute(_ACCOUNTS.order_by(Operator.name))]

    def named(self, name: str) -> Account | None:
        """The operator of that name. Raises StoreUnavailable."""
        if not storable(name):
            return None
        with reading(self._db) as connection:
            row = connection.execute(_ACCOUNTS.where(Operator.name == _normal(name))).one_or_none()
        return None if row is None else _account(row)

    def change(
        self,
        operator_id: str,
        *,
        role: Role | None = None,
        password: str | None = None,
        disabled: bool | None = None,
        by: str | None = None,
    ) -> Account:
        """Change what is not None. All sessions of the operator end, unless it is only being enabled.

        Slow with a password, which is hashed. Raises AccountError (also when nobody would be left who is an
        admin and not disabled), StoreUnavailable.
        """
        account = self._by_id(operator_id)
        values: dict[str, Any] = {}
        if role is not None and role != account.role:
            values["role"] = role
        if disabled is not None and disabled != (account.disabled_at is not None):
            values["disabled_at"] = self._clock() if disabled else None
        if password is not None:
            values["password_hash"] = _hashed(password, account.name)
        ended: list[str] = []
        if values:
            with writing(self._db) as connection:
                if role == "reviewer" or disabled:
                    _keep_an_admin(connection, besides=operator_id)
                connection.execute(update(Operator).where(Operator.id == operator_id).values(values))
                if values.get("disabled_at") or values.keys() & {"password_hash", "role"}:
                    ended = self._end(connection, OperatorSession.operator_id == operator_id)
                for action, details in _changes(account, values):
                    audit.note(connection, by, action, account.name, **details)
        self._endings.tell(ended)
        return self._by_id(operator_id)

    def _by_id(self, operator_id: str) -> Account:
        if storable(operator_id):
            with reading(self._db) as connection:
                row = connection.execute(_ACCOUNTS.where(Operator.id == operator_id)).one_or_none()
            if row is not None:
                return _account(row)
        raise AccountError("unknown", "there is no such operator")

    # --- proving it ---------------------------------------------------------------------------------------

    def sign_in(self, name: str, password: str) -> tuple[Identity, str] | None:
        """A new session: whose, and its token, which is seen only here. None: name or password is wrong.

        Slow, and as slow for a name that nobody has. Raises StoreUnavailable.
        """
        query = select(Operator.id, Operator.password_hash).where(
            Operator.name == _normal(name), Operator.disabled_at.is_(None)
        )
        found = None
        if storable(name) and len(name) <= MAX_NAME:
            with reading(self._db) as connection:
                found = connection.execute(query).one_or_none()
        right = passwords.matches(passwords.NOBODYS if found is None else found.password_hash, password)
        if found is None or not right:
            return None
        renewed = _hashed_anew(password, name) if passwords.outdated(found.password_hash) else None
        return self._open(found.id, found.password_hash, renewed)

    def _open(self, operator_id: str, proved: str, renewed: str | None) -> tuple[Identity, str] | None:
        """None if the password was changed, or the account disabled, while it was being checked."""
        now, token = self._clock(), secrets.token_urlsafe(32)
        # The row is locked, so that whoever disables the account ends this session as well.
        query = select(Operator.id, Operator.name, Operator.role).where(
            Operator.id == operator_id, Operator.password_hash == proved, Operator.disabled_at.is_(None)
        )
        with writing(self._db) as connection:
            row = connection.execute(query.with_for_update()).one_or_none()
            if row is None:
                return None
            if renewed is not None:
                connection.execute(
                    update(Operator).where(Operator.id == operator_id).values(password_hash=renewed)
                )
            connection.execute(delete(OperatorSession).where(OperatorSession.expires_at < now - KEPT))
            connection.execute(
                insert(OperatorSession).values(
                    token_hash=_key(token),
                    operator_id=operator_id,
                    created_at=now,
                    used_at=now,
                    expires_at=now + LIFETIME,
                )
            )
            audit.note(connection, row.name, "session.start")
        return Identity(row.id, row.name, row.role), token

    def change_password(self, session: Session, old: str, new: str) -> bool:
        """Whether `old` was right; then `new` holds, and all other sessions of the operator have ended.

        Slow. Raises AccountError, StoreUnavailable.
        """
        operator = session.operator
        with reading(self._db) as connection:
            kept = connection.scalar(select(Operator.password_hash).where(Operator.id == operator.id))
        if kept is None or not passwords.matches(kept, old):
            return False
        made = _hashed(new, operator.name)
        with writing(self._db) as connection:
            changed = connection.execute(
                update(Operator)
                .where(Operator.id == operator.id, Operator.password_hash == kept)
                .values(password_hash=made)
            ).rowcount
            if not changed:
                return False
            others = sqlalchemy.and_(
                OperatorSession.operator_id == operator.id, OperatorSession.token_hash != session.key
            )
            ended = self._end(connection, others)
            audit.note(connection, operator.name, "password.change", operator.name)
        self._endings.tell(ended)
        return True

    # --- sessions -----------------------------------------------------------------------------------------

    def find(self, token: str) -> Session | None:
        """The session that a token tells, if it holds; that is a use of it. Raises StoreUnavailable."""
        if len(token) != TOKEN_LENGTH or not token.isascii():
            return None
        key, now = _key(token), self._clock()
        with reading(self._db) as connection:
            row = connection.execute(_holding(key, now)).one_or_none()
        # How long an index searches may depend on the hash, which tells nothing about 256 random bits; what
        # lets somebody in is compared in constant time all the same.
        if row is None or not hmac.compare_digest(row.token_hash, key):
            return None
        if now - row.used_at >= NOTED_EVERY:
            self._note_use(key, now)
        return Session(key, Identity(row.id, row.name, cast("Role", row.role)), csrf_of(token))

    def still_signed_in(self, session: Session) -> bool:
        """Whether the session holds. To ask is no use of it. Raises StoreUnavailable."""
        with reading(self._db) as connection:
            return connection.execute(_holding(session.key, self._clock())).one_or_none() is not None

    def close(self, session: Session) -> None:
        """End the session. Raises StoreUnavailable."""
        with writing(self._db) as connection:
            ended = self._end(connection, OperatorSession.token_hash == session.key)
            if ended:
                audit.note(connection, session.operator.name, "session.end")
        self._endings.tell(ended)

    def on_end(self, session: Session, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called on this event loop when the session ends by what is done on this server.

        A session may also end by time, or by what is done elsewhere: ask `still_signed_in` now and then as
        well. Gives a call that takes the wish back.
        """
        return self._endings.add(session.key, callback)

    def _note_use(self, key: str, now: datetime) -> None:
        try:
            with writing(self._db) as connection:
                connection.execute(
                    update(OperatorSession)
                    .where(OperatorSession.token_hash == key, OperatorSession.used_at < now)
                    .values(used_at=now)
                )
        except StoreUnavailable:
            return  # a database that is busy right now is asked again by the next request

    def _end(self, connection: Connection, which: sqlalchemy.ColumnElement[bool]) -> list[str]:
        """End sessions that have not ended yet; their keys."""
        now = self._clock()
        ended: Iterable[str] = connection.scalars(
            update(OperatorSession)
            .where(which, OperatorSession.expires_at > now)
            .values(expires_at=now)
            .returning(OperatorSession.token_hash)
        )
        return list(ended)


_ACCOUNTS: Final = (
    select(
        Operator.id,
        Operator.name,
        Operator.role,
        Operator.created_at,
        Operator.disabled_at,
        func.max(OperatorSession.used_at).label("last_seen_at"),
    )
    .outerjoin(OperatorSession, OperatorSession.operator_id == Operator.id)
    .group_by(Operator.id)
)


def csrf_of(token: str) -> str:
    """What a page has to send along with every change: nobody can tell the token from it."""
    return hmac.new(token.encode(), b"turnwise operator csrf", hashlib.sha256).hexdigest()


def csrf_matches(session: Session, given: list[str]) -> bool:
    """Whether what a request sent along is the one token of the session, compared in constant time."""
    return len(given) == 1 and hmac.compare_digest(given[0].encode(), session.csrf.encode())


def _key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _holding(key: str, now: datetime) -> sqlalchemy.Select[*tuple[Any, ...]]:
    return (
        select(OperatorSession.token_hash, OperatorSession.used_at, Operator.id, Operator.name, Operator.role)
        .join(Operator, Operator.id == OperatorSession.operator_id)
        .where(
            OperatorSession.token_hash == key,
            OperatorSession.expires_at > now,
            OperatorSession.used_at > now - IDLE,
            Operator.disabled_at.is_(None),
        )
    )


def _account(row: sqlalchemy.Row[*tuple[Any, ...]]) -> Account:
    return Account(**row._mapping)


def _keep_an_admin(connection: Connection, besides: str) -> None:
    # Locked in one order, so that two admins who demote each other at the same time do not both succeed.
    admins = connection.scalars(
        select(Operator.id)
        .where(Operator.role == "admin", Operator.disabled_at.is_(None))
        .order_by(Operator.id)
        .with_for_update()
    ).all()
    if list(admins) == [besides]:
        raise AccountError("last_admin", "nobody would be left who is an admin")


def _changes(account: Account, values: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    if "role" in values:
        yield "role.change", {"role": values["role"], "was": account.role}
    if "disabled_at" in values:
        yield "operator.enable" if values["disabled_at"] is None else "operator.disable", {}
    if "password_hash" in values:
        yield "password.set", {}


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _checked_name(name: str) -> str:
    """Raises AccountError."""
    name = _normal(name)
    if not storable(name) or not name.isprintable() or name != name.strip():
        raise AccountError("invalid", "a name has printable characters, and no space around them")
    if not 1 <= len(name) <= MAX_NAME:
        raise AccountError("invalid", f"a name has 1 to {MAX_NAME} characters")
    if name.casefold() == audit.COMMAND_LINE:
        raise AccountError("invalid", "the audit log calls another by that name")
    return name


def _hashed(password: str, name: str) -> str:
    """Raises AccountError."""
    try:
        return passwords.hashed(password, name)
    except passwords.PasswordError as error:
        raise AccountError("invalid", str(error)) from None


def _hashed_anew(password: str, name: str) -> str | None:
    """None for a password that was allowed once and is not any more: it stays as it is kept."""
    try:
        return passwords.hashed(password, name)
    except passwords.PasswordError:
        return None
