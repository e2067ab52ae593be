"""Replies that operators keep ready.

`{name}` in a text is a place for something to be filled in before it is sent: up to 60 characters of a line
between braces. Any other brace is just a brace.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, Engine, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from server.console import audit
from server.database import reading, writing
from server.desk import new_id
from server.records import check_text
from server.tables import CannedReply

PLACE: Final = re.compile(r"\{([^{}\n]{1,60})\}")
MAX_TITLE: Final = 100
MAX_TEXT: Final = 4000
MOST: Final = 1000
"""Canned replies that there may be: the list is given whole."""


class TitleTaken(ValueError):
    """Another canned reply has this title, which leads to it."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.title = title

    def __str__(self) -> str:
        return f"there is a canned reply with the title {self.title!r} already"


class TooMany(ValueError):
    """There are as many as there may be."""

    def __str__(self) -> str:
        return f"there are {MOST} canned replies already"


@dataclass(frozen=True, slots=True)
class Canned:
    """places: names of what is to be filled in, in the order of the text, each once."""

    id: str
    title: str
    text: str
    updated_at: datetime

    @property
    def places(self) -> list[str]:
        return list(dict.fromkeys(PLACE.findall(self.text)))


def every(db: Engine) -> list[Canned]:
    """All of them, by title."""
    query = select(CannedReply.id, CannedReply.title, CannedReply.text, CannedReply.updated_at)
    with reading(db) as connection:
        rows = connection.execute(query.order_by(func.lower(CannedReply.title), CannedReply.id)).all()
    return [Canned(*row) for row in rows]


def add(db: Engine, operator: str, title: str, text: str) -> Canned:
    """A new one. Raises TitleTaken, TooMany, StoreValueError."""
    made = Canned(new_id(), _checked("title", title), _checked("text", text), datetime.now(UTC))

    def change(connection: Connection) -> bool:
        if (connection.scalar(select(func.count()).select_from(CannedReply)) or 0) >= MOST:
            raise TooMany
        connection.execute(
            insert(CannedReply).values(
                id=made.id, title=made.title, text=made.text, updated_at=made.updated_at
            )
        )
        audit.note(connection, operator, "canned.add", made.id)
        return True

    _change(db, title, change)
    return made


def replace(db: Engine, operator: str, canned_id: str, title: str, text: str) -> Canned | None:
    """Another title and text for one; None where there is none with this id. Raises TitleTaken,
    StoreValueError.
    """
    made = Canned(canned_id, _checked("title", title), _checked("text", text), datetime.now(UTC))

    def change(connection: Connection) -> bool:
        values = {"title": made.title, "text": made.text, "updated_at": made.updated_at}
        found = connection.execute(update(CannedReply).where(CannedReply.id == canned_id).values(values))
        if found.rowcount:
            audit.note(connection, operator, "canned.replace", canned_id)
        return bool(found.rowcount)

    return made if _change(db, title, change) else None


def remove(db: Engine, operator: str, canned_id: str) -> bool:
    """Whether there was one."""
    with writing(db) as connection:
        found = connection.execute(delete(CannedReply).where(CannedReply.id == canned_id))
        if found.rowcount:
            audit.note(connection, operator, "canned.delete", canned_id)
        return bool(found.rowcount)


def _change(db: Engine, title: str, change: Callable[[Connection], bool]) -> bool:
    try:
        with writing(db) as connection:
            return change(connection)
    except IntegrityError:  # of the table's constraints only the title's can be hurt
        raise TitleTaken(title) from None


def _checked(field: str, text: str) -> str:
    check_text(field, text)
    return text
