"""Judging replies: verdicts, labels, and the queue of conversations to look at."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final, ParamSpec, TypeVar

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from server.console import review, review_queue
from server.console.context import Console
from server.console.review import GivenVerdict, LabelView, ReviewError, VerdictView
from server.console.review_queue import Progress, Reason
from server.console.sign_in import Admin, Asked, SignedIn
from server.http import ErrorBody

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MAX_SKIP: Final = 500
_STATUS: Final = {"unknown": 404, "conflict": 409, "invalid": 400}


router = APIRouter(
    tags=["operator"],
    responses={code: {"model": ErrorBody} for code in (401, 403, 404, 409)},
)


class NewLabel(BaseModel):
    """A reason that reviewers may give, in the team's words."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str


class LabelChange(BaseModel):
    """archived: whether it is offered no more."""

    model_config = ConfigDict(extra="forbid", strict=True)

    archived: bool


class LabelList(BaseModel):
    """All labels, by name."""

    labels: list[LabelView]


class Wish(BaseModel):
    """skip: conversations that are not wanted now. Claims on them hold until they are released."""

    model_config = ConfigDict(extra="forbid", strict=True)

    skip: Annotated[list[str], Field(max_length=MAX_SKIP)] = []


class Next(BaseModel):
    """What to look at next, why, and until when nobody else is given it; null when there is nothing left."""

    conversation: str | None
    reason: Reason | None = None
    until: datetime | None = None


# --- verdicts ---------------------------------------------------------------------------------------------


@router.put("/messages/{message_id}/verdict", summary="Judge a reply of the bot, or correct it")
async def judge(console: Asked, who: SignedIn, message_id: str, given: GivenVerdict) -> VerdictView:
    """It takes the place of the verdict before, whoever's that was."""
    most = console.settings.max_text
    judged = await _do(console, review.judge, console.db, who, message_id, given, most)
    assert judged.verdict is not None
    if judged.changed:
        _tell(console, judged.conversation)
    return judged.verdict


@router.delete("/messages/{message_id}/verdict", summary="Take a verdict back", status_code=204)
async def take_back(console: Asked, who: SignedIn, message_id: str) -> None:
    judged = await _do(console, review.take_back, console.db, who, message_id)
    if judged.changed:
        _tell(console, judged.conversation)


# --- labels -----------------------------------------------------------------------------------------------


@router.get("/labels", summary="The team's labels")
async def labels(console: Asked, _: SignedIn) -> LabelList:
    return LabelList(labels=await _do(console, review.labels, console.db))


@router.post("/labels", summary="Add a label", status_code=201)
async def add_label(console: Asked, who: Admin, given: NewLabel) -> LabelView:
    return await _do(console, review.add_label, console.db, who, given.name)


@router.patch("/labels/{name:path}", summary="Offer a label no more, or again")
async def change_label(console: Asked, who: Admin, name: str, given: LabelChange) -> LabelView:
    return await _do(console, review.archive_label, console.db, who, name, given.archived)


# --- the queue --------------------------------------------------------------------------------------------


@router.post("/review/next", summary="Claim the conversation that is most worth a look")
async def next_conversation(console: Asked, who: SignedIn, wish: Wish | None = None) -> Next:
    given = await _do(console, console.queue.next, who, wish.skip if wish is not None else [])
    return Next(conversation=None) if given is None else Next.model_validate(given.model_dump())


@router.post("/conversations/{conversation_id}/review/done", summary="Finish a review", status_code=204)
async def done(console: Asked, who: SignedIn, conversation_id: str) -> None:
    if not await _do(console, review_queue.done, console.db, who, conversation_id):
        raise HTTPException(404, "there is no such conversation")
    _tell(console, conversation_id)


@router.post("/conversations/{conversation_id}/review/keep", summary="Renew a claim", status_code=204)
async def keep(console: Asked, who: SignedIn, conversation_id: str) -> None:
    if not await _do(console, review_queue.keep, console.db, who, conversation_id):
        raise HTTPException(409, "somebody else has been given this conversation meanwhile, or it is gone")


@router.post("/conversations/{conversation_id}/review/release", summary="Give a claim back", status_code=204)
async def release(console: Asked, who: SignedIn, conversation_id: str) -> None:
    if not await _do(console, review_queue.release, console.db, who, conversation_id):
        raise HTTPException(404, "there is no such conversation")


@router.get("/review/progress", summary="What is reviewed and what waits")
async def progress(console: Asked, _: SignedIn) -> Progress:
    return await _do(console, review_queue.progress, console.db)


async def _do(
    console: Console, call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """The call on one of the console's threads. Raises HTTPException for a ReviewError."""
    try:
        return await console.offload(call, *args, **kwargs)
    except ReviewError as error:
        raise HTTPException(_STATUS[error.kind], error.reason) from None


def _tell(console: Console, conversation: str) -> None:
    """Tell operators who look on that a conversation was reviewed."""
    console.live.changed(conversation, "reviewed")
