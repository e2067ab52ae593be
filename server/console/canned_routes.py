"""Routes of the replies that operators keep ready."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path
from pydantic import BaseModel, ConfigDict, Field

from server.console import canned
from server.console.canned import MAX_TEXT, MAX_TITLE, TitleTaken, TooMany
from server.console.sign_in import Asked, SignedIn
from server.http import ErrorBody
from server.protocol import MAX_ID
from server.store import StoreValueError

Id = Annotated[str, Path(max_length=MAX_ID)]

router = APIRouter(
    prefix="/canned",
    tags=["operator"],
    responses={code: {"model": ErrorBody} for code in (401, 404, 409)},
)


class CannedGiven(BaseModel):
    """title: how it is found. text: `{name}` in it is a place to be filled in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: Annotated[str, Field(max_length=MAX_TITLE, pattern=r"\S")]
    text: Annotated[str, Field(max_length=MAX_TEXT, pattern=r"\S")]


class CannedView(BaseModel):
    """A reply that is kept ready. places: the names to be filled in, in the order of the text."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    title: str
    text: str
    places: list[str]
    updated_at: datetime


class CannedList(BaseModel):
    """All of them, by title."""

    canned: list[CannedView]


@router.get("", summary="The replies that are kept ready")
async def listed(console: Asked, who: SignedIn) -> CannedList:
    found = await console.offload(canned.every, console.db)
    return CannedList(canned=[CannedView.model_validate(each) for each in found])


@router.post("", summary="Keep a reply ready", status_code=201)
async def add(console: Asked, who: SignedIn, given: CannedGiven) -> CannedView:
    try:
        made = await console.offload(canned.add, console.db, who.name, given.title.strip(), given.text)
    except (TitleTaken, TooMany) as error:
        raise HTTPException(409, str(error)) from None
    except StoreValueError as error:
        raise HTTPException(400, str(error)) from None
    return CannedView.model_validate(made)


@router.put("/{canned_id}", summary="Change a reply that is kept ready")
async def replace(console: Asked, who: SignedIn, canned_id: Id, given: CannedGiven) -> CannedView:
    try:
        made = await console.offload(
            canned.replace, console.db, who.name, canned_id, given.title.strip(), given.text
        )
    except TitleTaken as error:
        raise HTTPException(409, str(error)) from None
    except StoreValueError as error:
        raise HTTPException(400, str(error)) from None
    if made is None:
        raise _missing()
    return CannedView.model_validate(made)


@router.delete("/{canned_id}", summary="Keep a reply ready no longer", status_code=204)
async def remove(console: Asked, who: SignedIn, canned_id: Id) -> None:
    if not await console.offload(canned.remove, console.db, who.name, canned_id):
        raise _missing()


def _missing() -> HTTPException:
    return HTTPException(404, "there is no such canned reply")
