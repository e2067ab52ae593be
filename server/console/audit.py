"""The audit log: who did what, and when. It never holds what anybody said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from server.database import reading
from server.records import storable
from server.tables import AuditEntry


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the log. operator: a name; None for the command line. subject: what it was done to."""

    id: int
    at: datetime
    operator: str | None
    action: str
    subject: str | None
    details: dict[str, Any] | None


def note(
    connection: Connection, operator: str | None, action: str, subject: str | None = None, **details: Any
) -> None:
    """Add an entry within the transaction of what it tells of, so that both are kept or neither.

    operator: the name of who did it; None for the command line. subject: an id or a name. details: JSON
    values, such as what a setting was before and after.
    """
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
    before: int | None = None,
    limit: int = 50,
) -> Sequence[Entry]:
    """The newest first. operator, action: only theirs, only such. before: only those with a smaller id."""
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
    if operator is not None:
        query = query.where(AuditEntry.operator == operator)
    if action is not None:
        query = query.where(AuditEntry.action == action)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    with reading(db) as connection:
        rows = connection.execute(query.order_by(AuditEntry.id.desc()).limit(limit))
        return [Entry(**row._mapping) for row in rows]
