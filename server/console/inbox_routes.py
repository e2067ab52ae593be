"""The list of conversations, and how many of each kind there are."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from pydantic import Field

from server.console import inbox
from server.console.filters import Filters
from server.console.inbox import BadCursor, Counts, Inbox, Place
from server.console.sign_in import Asked, SignedIn
from server.http import ErrorBody

router = APIRouter(tags=["operator"], responses={400: {"model": ErrorBody}, 401: {"model": ErrorBody}})


class Listing(Filters):
    """What is asked for, and which part of it."""

    cursor: str | None = Field(None, description="the `next` of the page before; none for the first page")
    limit: int = Field(50, ge=1, le=200, description="conversations on a page, at most")
    mask: bool = Field(False, description="hide personal data; for reviewers it is always hidden")


@router.get("/conversations", summary="Conversations, the one with the newest message first")
async def read_inbox(console: Asked, who: SignedIn, asked: Annotated[Listing, Query()]) -> Inbox:
    try:
        after = None if asked.cursor is None else Place.of(asked.cursor)
    except BadCursor as error:
        raise HTTPException(400, f"cursor: {error}") from None
    return await console.offload(
        inbox.page,
        console.db,
        asked,
        who.id,
        after=after,
        limit=asked.limit,
        masked=asked.mask or who.role != "admin",
    )


@router.get("/counts", summary="How many conversations there are of each kind")
async def read_counts(console: Asked, who: SignedIn) -> Counts:
    return await console.offload(inbox.counts, console.db, who.id)
