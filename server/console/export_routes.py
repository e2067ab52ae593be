"""Conversations as a file to take away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Final

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import StreamingResponse
from pydantic import Field
from sqlalchemy import Engine

from server.console import audit
from server.console.context import Console
from server.console.exports import AUDITED, Export, Format
from server.console.filters import Filters, conditions
from server.console.masking import masker
from server.console.sign_in import Asked, SignedIn
from server.database import reading, writing
from server.http import ErrorBody

router = APIRouter(
    tags=["operator"],
    responses={400: {"model": ErrorBody}, 401: {"model": ErrorBody}, 403: {"model": ErrorBody}},
)

MEDIA: Final[dict[Format, tuple[str, str]]] = {
    "jsonl": ("conversations.jsonl", "application/jsonl"),
    "reviewed": ("reviewed.jsonl", "application/jsonl"),
    "csv": ("messages.csv", "text/csv; charset=utf-8"),
}
"""What a file of each format is called, and its type."""


class Wanted(Filters):
    """Which conversations, and how."""

    format: Format = Field(
        "jsonl",
        description="jsonl: transcripts; reviewed: transcripts for retraining, of conversations in which a "
        "reviewer or an operator said something; csv: a row a message",
    )
    mask: bool = Field(True, description="hide personal data; false is for admins only")

    def asked(self) -> list[str]:
        """The names of the filters; what is searched for may be a person's name."""
        return sorted(self.model_fields_set - {"format", "mask"})


@router.get(
    "/export",
    summary="Conversations as a file",
    response_class=StreamingResponse,
    responses={200: {"content": {media: {} for _, media in MEDIA.values()}}},
)
async def export(console: Asked, who: SignedIn, wanted: Annotated[Wanted, Query()]) -> StreamingResponse:
    if not wanted.mask and who.role != "admin":
        raise HTTPException(403, "only an admin may export personal data")
    pieces = await console.offload(begin, console.db, wanted, who.id, who.name)
    first = await console.offload(next, pieces, b"")  # what goes wrong at once is an error, not a broken file
    name, media = MEDIA[wanted.format]
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_streamed(console, first, pieces), media_type=media, headers=headers)


def begin(db: Engine, wanted: Wanted, operator_id: str, operator: str) -> Iterator[bytes]:
    """The pieces of the file; that it was asked for is in the audit log."""
    with writing(db) as connection:
        audit.note(
            connection,
            operator,
            AUDITED,
            format=wanted.format,
            masked=wanted.mask,
            filters=wanted.asked(),
        )
    hide = None
    if wanted.mask:
        with reading(db) as connection:
            hide = masker(connection)
    return Export(db, wanted.format, conditions(wanted, operator_id), hide).pieces()


async def _streamed(console: Console, first: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """No further piece is made before the one before has been sent."""
    piece: bytes | None = first
    while piece is not None:
        yield piece
        piece = await console.offload(next, pieces, None)
