"""Canary and shadow: a second model beside the one in use."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from server import models
from server.console import rollouts
from server.console.masking import masker
from server.console.model_list import models_directory
from server.console.rollouts import Comparison, RolloutRefused
from server.console.sign_in import Admin, Asked, SignedIn
from server.database import reading
from server.http import ErrorBody
from server.rollouts import Kind, Plan

router = APIRouter(
    prefix="/rollouts",
    tags=["operator"],
    responses={code: {"model": ErrorBody} for code in (401, 403, 404, 409)},
)


class RolloutGiven(BaseModel):
    """model: fingerprint of one in the server's directory. share: of new conversations (canary), of replies
    (shadow).
    """

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    model: Annotated[str, Field(min_length=1, max_length=64)]
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class PlanView(BaseModel):
    """A rollout that goes on."""

    model_config = ConfigDict(from_attributes=True)

    model: str
    share: float
    began_at: datetime


class RolloutsView(BaseModel):
    canary: PlanView | None
    shadow: PlanView | None


class FiguresView(BaseModel):
    """Of replies since the rollout began. different: of a shadow's, those other than what was said."""

    model_config = ConfigDict(from_attributes=True)

    conversations: int
    replies: int
    thumbs_up: int
    thumbs_down: int
    abstained: int
    different: int
    confidence: float | None


class DifferentView(BaseModel):
    """A reply, and what the shadow would have said."""

    conversation: str
    message: str
    live: str
    candidate: str


class ComparisonView(BaseModel):
    live: FiguresView
    candidate: FiguresView
    changed: list[DifferentView]


@router.get("", summary="The canary and the shadow")
async def going(console: Asked, _: SignedIn) -> RolloutsView:
    found = await console.offload(rollouts.plans, console.db)
    return RolloutsView(canary=_shown(found.get("canary")), shadow=_shown(found.get("shadow")))


@router.post("", summary="Have another model answer beside the one in use", status_code=201)
async def begin(console: Asked, who: Admin, given: RolloutGiven) -> PlanView:
    directory = models_directory(console.settings)
    try:
        found = await console.offload(models.by_fingerprint, directory, given.model)
    except OSError:
        raise HTTPException(503, "the models' directory cannot be read") from None
    if found is None:
        raise HTTPException(404, "there is no such model in the server's directory")
    if given.model == console.engine.speaker.fingerprint:
        raise HTTPException(409, "this model is in use for everybody")
    try:
        plan = await console.offload(rollouts.begin, console.db, who, given.kind, given.model, given.share)
    except RolloutRefused as refusal:
        raise HTTPException(409, str(refusal)) from None
    return PlanView.model_validate(plan)


@router.delete("/{kind}", summary="End it", status_code=204)
async def end(console: Asked, who: Admin, kind: Kind) -> None:
    if not await console.offload(rollouts.end, console.db, who, kind):
        raise HTTPException(404, f"there is no {kind}")


@router.get("/{kind}/comparison", summary="How it does beside the model in use")
async def comparison(console: Asked, _: SignedIn, kind: Kind) -> ComparisonView:
    found = await console.offload(_compared, console.db, kind)
    if found is None:
        raise HTTPException(404, f"there is no {kind}")
    return found


def _shown(plan: Plan | None) -> PlanView | None:
    return None if plan is None else PlanView.model_validate(plan)


def _compared(db: Any, kind: Kind) -> ComparisonView | None:
    found: Comparison | None = rollouts.compare(db, kind)
    if found is None:
        return None
    with reading(db) as connection:
        mask = masker(connection).mask
    return ComparisonView(
        live=FiguresView.model_validate(found.live),
        candidate=FiguresView.model_validate(found.candidate),
        changed=[
            DifferentView(
                conversation=each.conversation,
                message=each.message,
                live=mask(each.live),
                candidate=mask(each.candidate),
            )
            for each in found.changed
        ],
    )
