"""The audit log: who did what, and when. It never holds what anybody said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, insert, select, tuple_

from server.database import reading
from server.records import storable
from server.tables import AuditEntry

ACTIONS: Final = frozenset(
    {
        *("session.start", "session.end", "password.change", "password.set"),
        *("operator.add", "operator.disable", "operator.enable", "role.change", "key.add", "key.revoke"),
        *("conversation.take", "conversation.hand_back", "conversation.close", "conversation.reopen"),
        *("conversation.speak", "conversations.export", "visitor.erase"),
        *("verdict.set", "verdict.delete", "label.add", "label.archive", "label.restore"),
        *("review.claim", "review.release", "review.done", "pair.judge", "suggestion.conclude"),
        *("canned.add", "canned.replace", "canned.delete", "masked_name.add", "masked_name.delete"),
        *("import.add", "import.delete", "topics.make", "job.queue", "job.cancel"),
        *("model.promote", "model.promote.failed", "model.rollback", "model.rollback.failed"),
        *("canary.begin", "canary.end", "shadow.begin", "shadow.end"),
    }
)
"""All that is ever noted: of what, and what was done to it. docs/operators.md has the same list."""

COMMAND_LINE: Final = "command line"
"""In the place of a name; no operator can have it."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the log. operator: a name; None for the command line. subject: what it was done to."""

    id: int
    at: datetime
    operator: str | None
    action: str
    subject: str | None
    details: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Place:
    """Before which entry a page begins."""

    at: datetime
    id: int

    def cursor(self) -> str:
        return f"{(self.at - _EPOCH) // timedelta(microseconds=1)}.{self.id}"

    @classmethod
    def of(cls, cursor: str) -> Place:
        """Raises ValueError for one that is none of ours."""
        match = re.fullmatch(r"([0-9]{1,18})\.([0-9]{1,18})", cursor, re.ASCII)
        try:
            if match is not None:
                return cls(_EPOCH + timedelta(microseconds=int(match[1])), int(match[2]))
        except OverflowError:
            pass
        raise ValueError("there is no such page")


def note(
    connection: Connection, operator: str | None, action: str, subject: str | None = None, **details: Any
) -> None:
    """Add an entry within the transaction of what it tells of, so that both are kept or neither.

    operator: the name of who did it; None for the command line. action: one of `ACTIONS`, or ValueError.
    subject: an id or a name. details: JSON values, such as what a setting was before and after.
    """
    if action not in ACTIONS:
        raise ValueError(f"{action} is not among the actions of the audit log")
    connection.execute(
        insert(AuditEntry).values(
            at=datetime.now(UTC),
            operator=operator,
            action=action,
            subject=subject,
            details=details or None,
        )
    )


def entries(
    db: Engine,
    *,
    operator: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    before: Place | None = None,
    limit: int = 50,
) -> Sequence[Entry]:
    """The newest first.

    operator, action: only theirs (`COMMAND_LINE`: nobody's), only such. since, until: only at this time or
    later, only before that time.
    before: only what comes after that entry in this order.
    """
    if not storable(operator or "") or not storable(action or ""):
        return []
    query = select(
        AuditEntry.id,
        AuditEntry.at,
        AuditEntry.operator,
        AuditEntry.action,
        AuditEntry.subject,
        AuditEntry.details,
    )
    if operator == COMMAND_LINE:
        query = query.where(AuditEntry.operator.is_(None))
    elif operator is not None:
        query = query.where(AuditEntry.operator == operator)
    if action is not None:
        query = query.where(AuditEntry.action == action)
    if since is not None:
        query = query.where(AuditEntry.at >= since)
    if until is not None:
        query = query.where(AuditEntry.at < until)
    if before is not None:
        query = query.where(tuple_(AuditEntry.at, AuditEntry.id) < tuple_(before.at, before.id))
    with reading(db) as connection:
        rows = connection.execute(query.order_by(AuditEntry.at.desc(), AuditEntry.id.desc()).limit(limit))
        return [Entry(**row._mapping) for row in rows]
