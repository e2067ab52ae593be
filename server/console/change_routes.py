"""What would change with a candidate: side by side, and as blind pairs to be judged."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from chatbot.transcripts import Role
from server.console import changes, jobs
from server.console.accounts import Identity
from server.console.changes import Choice, JudgedAlready, Preferred
from server.console.masking import masker
from server.console.sign_in import Asked, SignedIn
from server.database import reading
from server.http import ErrorBody

router = APIRouter(
    tags=["operator"], responses={code: {"model": ErrorBody} for code in (400, 401, 403, 404, 409)}
)


class Look(BaseModel):
    """group: only changes of it. cursor: `next` of the page before. mask: hide personal data, which for
    reviewers is always hidden.
    """

    model_config = ConfigDict(extra="forbid")

    order: Literal["worst", "best"] = "best"
    group: Annotated[str, Field(max_length=64)] | None = None
    cursor: Annotated[str, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    mask: bool = False


class TurnView(BaseModel):
    role: Role
    text: str


class ChangeView(BaseModel):
    """A logged turn that the candidate answers otherwise. before: the turns up to it. gain: nats a token by
    which the candidate finds its own reply likelier. preferred: what somebody has judged, blind.
    """

    pair: str
    message: str
    conversation: str
    before: list[TurnView]
    base_text: str
    candidate_text: str
    gain: float
    group: str
    preferred: Preferred | None


class GroupView(BaseModel):
    """Changes of replies that are much alike. example: one of these replies."""

    group: str
    count: int
    example: str


class ChangeList(BaseModel):
    """wins, losses, ties: of the candidate, judged blind. groups: of all changes, the largest first."""

    changes: list[ChangeView]
    groups: list[GroupView]
    wins: int
    losses: int
    ties: int
    next: str | None


class BlindPair(BaseModel):
    """Two replies to the last of `turns`, in an order that tells nothing. pair: None when all are judged."""

    pair: str | None
    turns: list[TurnView] = []
    first: str | None = None
    second: str | None = None


class Judgement(BaseModel):
    """Which reply of a pair is the better one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    preferred: Choice


class Kept(BaseModel):
    """It is kept."""


@router.get("/jobs/{job_id}/changes", summary="What a candidate would answer otherwise")
async def list_changes(
    console: Asked, who: SignedIn, job_id: str, look: Annotated[Look, Query()]
) -> ChangeList:
    after = _place(look.cursor)
    await _known(console, job_id)
    page = await console.offload(changes.page, console.db, job_id, look.order, look.group, after, look.limit)
    mask = await console.offload(_mask, console.db, who, asked=look.mask)
    return ChangeList(
        changes=[
            ChangeView(
                pair=each.pair,
                message=each.message,
                conversation=each.conversation,
                before=_turns(each.before, mask),
                base_text=mask(each.base_text),
                candidate_text=mask(each.candidate_text),
                gain=each.gain,
                group=each.group,
                preferred=each.preferred,
            )
            for each in page.changes
        ],
        groups=[GroupView(group=g.group, count=g.count, example=mask(g.example)) for g in page.groups],
        wins=page.wins,
        losses=page.losses,
        ties=page.ties,
        next=None if page.next is None else _cursor(page.next),
    )


@router.post("/jobs/{job_id}/pairs/next", summary="Two replies to compare")
async def next_pair(console: Asked, who: SignedIn, job_id: str) -> BlindPair:
    await _known(console, job_id)
    found = await console.offload(changes.blind, console.db, job_id)
    if found is None:
        return BlindPair(pair=None)
    mask = await console.offload(_mask, console.db, who, asked=False)
    turns = _turns(found.turns, mask)
    return BlindPair(pair=found.pair, turns=turns, first=mask(found.first), second=mask(found.second))


@router.post("/pairs/{pair_id}", summary="Which reply is better")
async def judge(console: Asked, who: SignedIn, pair_id: str, given: Judgement) -> Kept:
    try:
        found = await console.offload(changes.judge, console.db, pair_id, given.preferred, who)
    except JudgedAlready:
        raise HTTPException(409, "somebody has judged this pair already") from None
    if not found:
        raise HTTPException(404, "there is no such pair")
    return Kept()


async def _known(console: Asked, job_id: str) -> None:
    if await console.offload(jobs.job, console.db, job_id) is None:
        raise HTTPException(404, "there is no such retraining")


def _mask(db: Engine, who: Identity, *, asked: bool) -> Callable[[str], str]:
    if who.role == "admin" and not asked:
        return str
    with reading(db) as connection:
        return masker(connection).mask


def _turns(turns: list[tuple[Role, str]], mask: Callable[[str], str]) -> list[TurnView]:
    return [TurnView(role=role, text=mask(text)) for role, text in turns]


def _cursor(place: tuple[float, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _place(cursor: str | None) -> tuple[float, str] | None:
    """Raises HTTPException 400."""
    if cursor is None:
        return None
    try:
        gain, pair = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(gain, float) and math.isfinite(gain) and isinstance(pair, str) and "\0" not in pair:
            return gain, pair
    except (ValueError, TypeError, binascii.Error):
        pass
    raise HTTPException(400, "cursor: there is no such page")
