"""Uploading transcripts, and the list of what was uploaded."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from server.console import imports
from server.console.context import Console
from server.console.imports import KnownFile, Upload
from server.console.sign_in import Admin, Asked, SignedIn
from server.http import ErrorBody

router = APIRouter(tags=["operator"], responses={401: {"model": ErrorBody}})

_BLOCK: Final = 2**20


class ProblemView(BaseModel):
    """line: from 1; 0 stands for the file as a whole."""

    model_config = ConfigDict(from_attributes=True)

    line: int
    reason: str


class ImportReport(BaseModel):
    """A file that was taken in."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    conversations: int
    problems: list[ProblemView] = []


class ErrorDetail(BaseModel):
    code: str
    message: str


class Refusal(BaseModel):
    """A file of which nothing was taken in, and why: the first problems, in the order of their lines."""

    error: ErrorDetail
    problems: list[ProblemView]


class ImportView(BaseModel):
    """operator: the name of who uploaded it."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    sha256: str
    conversations: int
    operator: str | None
    created_at: datetime


class ImportList(BaseModel):
    """The newest first."""

    imports: list[ImportView]


class Named(BaseModel):
    """name: of the file, to know it by later."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=1000)]


@router.post(
    "/imports",
    summary="Upload transcripts, plain or packed with gzip: all of them are taken in, or none",
    status_code=201,
    response_model=ImportReport,
    responses={400: {"model": Refusal}, 409: {"model": ErrorBody}},
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
)
async def upload(
    console: Asked, who: SignedIn, request: Request, named: Annotated[Named, Query()]
) -> Response:
    with Upload() as taken:
        try:
            await _receive(console, request, taken)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        if await console.offload(imports.known, console.db, taken.sha256):
            raise _known()
        if not taken.problems:
            steps = taken.check()
            while await console.offload(next, steps, steps) is None:
                pass  # others' searches take turns with it
        if taken.problems:
            return _refused(taken)
        try:
            stored = await console.offload(taken.store, console.db, named.name, who)
        except KnownFile:
            raise _known() from None
    return JSONResponse(ImportReport.model_validate(stored).model_dump(mode="json"), 201)


async def _receive(console: Console, request: Request, taken: Upload) -> None:
    """Everything that is sent, as far as it is not too much."""
    blocks: list[bytes] = []
    size = 0
    async for block in request.stream():
        blocks.append(block)
        size += len(block)
        if size >= _BLOCK:
            if not await console.offload(taken.add, b"".join(blocks)):
                return
            blocks, size = [], 0
    await console.offload(taken.add, b"".join(blocks))


def _known() -> HTTPException:
    return HTTPException(409, "this file was imported before")


def _refused(taken: Upload) -> JSONResponse:
    count = len(taken.problems)
    found = "1 problem" if count == 1 else f"{count} problems"
    more = " and perhaps more" if count == taken.bounds.problems else ""
    body = Refusal(
        error=ErrorDetail(code="bad_import", message=f"{found}{more}: nothing was imported"),
        problems=[ProblemView.model_validate(problem) for problem in taken.problems],
    )
    return JSONResponse(body.model_dump(), 400)


@router.get("/imports", summary="The files that were uploaded")
async def listed(console: Asked, _: SignedIn) -> ImportList:
    found = await console.offload(imports.imports, console.db)
    return ImportList(imports=[ImportView.model_validate(each) for each in found])


@router.delete("/imports/{batch}", summary="Forget a file and its conversations", status_code=204)
async def remove(console: Asked, who: Admin, batch: str) -> None:
    if not await console.offload(imports.remove, console.db, batch, who):
        raise HTTPException(404, "there is no such import")
