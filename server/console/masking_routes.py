"""The team's own list of names that are masked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine, delete, func, insert, select

from server.console import audit
from server.console.accounts import Identity
from server.console.masking import has_words, names_changed
from server.console.sign_in import Admin, Asked, SignedIn
from server.database import reading, writing
from server.http import ErrorBody
from server.records import storable
from server.tables import MaskedName

router = APIRouter(tags=["operator"], responses={401: {"model": ErrorBody}})

MAX_NAME: Final = 100
MAX_NAMES: Final = 20_000


class MaskedNames(BaseModel):
    """In order of the alphabet."""

    names: list[str]


class NameGiven(BaseModel):
    """A name, of one word or several."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


@router.get("/masked_names", summary="The names that are masked, of the team's own list")
async def masked_names(console: Asked, _: SignedIn) -> MaskedNames:
    return MaskedNames(names=await console.offload(_names, console.db))


@router.post("/masked_names", summary="Have a name masked; from now on it is, in all texts", status_code=201)
async def add(console: Asked, who: Admin, given: NameGiven) -> NameGiven:
    name = " ".join(given.name.split())
    if not storable(name) or not name.isprintable() or not has_words(name):
        raise HTTPException(400, "name: needs a letter or a digit, and nothing that cannot be seen")
    problem = await console.offload(_add, console.db, name, who)
    if problem is not None:
        raise HTTPException(*problem)
    return NameGiven(name=name)


@router.delete("/masked_names", summary="Have a name masked no more", status_code=204)
async def remove(console: Asked, who: Admin, given: NameGiven) -> None:
    if not storable(given.name) or not await console.offload(_remove, console.db, given.name, who):
        raise HTTPException(404, "there is no such name on the list")


def _names(db: Engine) -> list[str]:
    with reading(db) as connection:
        return sorted(connection.scalars(select(MaskedName.name)), key=lambda name: (name.casefold(), name))


def _add(db: Engine, name: str, who: Identity) -> tuple[int, str] | None:
    """The status and the words of a refusal."""
    with writing(db) as connection:
        if connection.scalar(select(MaskedName.name).where(MaskedName.name == name)) is not None:
            return 409, "the name is on the list already"
        if (connection.scalar(select(func.count()).select_from(MaskedName)) or 0) >= MAX_NAMES:
            return 409, f"the list holds {MAX_NAMES} names, and no more"
        connection.execute(insert(MaskedName).values(name=name, created_at=datetime.now(UTC)))
        audit.note(connection, who.name, "masked_name.add")
    names_changed(db)
    return None


def _remove(db: Engine, name: str, who: Identity) -> bool:
    with writing(db) as connection:
        if not connection.execute(delete(MaskedName).where(MaskedName.name == name)).rowcount:
            return False
        audit.note(connection, who.name, "masked_name.delete")
    names_changed(db)
    return True
