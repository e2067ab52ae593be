"""Which models there are, which one answers, and changing that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from chatbot.model_directory import ModelDirectoryError
from server import models
from server.console import audit
from server.console.accounts import Identity
from server.console.model_list import Listed, listed, models_directory
from server.console.sign_in import Admin, Asked, SignedIn
from server.database import writing
from server.http import ErrorBody
from server.models import Change

router = APIRouter(
    tags=["operator"],
    responses={code: {"model": ErrorBody} for code in (401, 403, 404, 409)},
)


class ReasonView(BaseModel):
    """One thing that the gate looked at."""

    name: str
    passed: bool
    text: str


class GateView(BaseModel):
    """What the gate says of a model, against the one that it was retrained from."""

    passed: bool
    reasons: list[ReasonView]


class ModelView(BaseModel):
    """A model of the server's directory. in_use: it is the one that is meant; until the server has loaded it,
    another one answers. base: fingerprint of what it was retrained from. metrics: perplexities and figures of
    its replies. gate: None for one that no gate has judged.
    """

    fingerprint: str
    name: str
    in_use: bool
    promoted_at: str | None
    base: str | None
    metrics: dict[str, Any]
    gate: GateView | None


class ModelList(BaseModel):
    """in_use: fingerprint of the model that answers on this server. previous: name of the one that a rollback
    would put in use.
    """

    models: list[ModelView]
    in_use: str
    previous: str | None


class Promotion(BaseModel):
    """model: fingerprint or name. force: also when the gate refuses it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=255)]
    force: bool = False


class ChangeView(BaseModel):
    """Which model is in use now, and the name of the one before."""

    model: str
    fingerprint: str
    before: str | None


@router.get("/models", summary="Models, and which one is in use")
async def list_models(console: Asked, _: SignedIn) -> ModelList:
    directory = models_directory(console.settings)
    try:
        found = await console.offload(listed, directory)
        previous = await console.offload(models.previous, directory)
    except (ModelDirectoryError, OSError):
        raise HTTPException(503, "the models' directory cannot be read") from None
    views = [ModelView.model_validate(each, from_attributes=True) for each in found]
    return ModelList(models=views, in_use=console.engine.speaker.fingerprint, previous=previous)


@router.post("/models/promote", summary="Put a model in use")
async def promote(console: Asked, who: Admin, asked: Promotion) -> ChangeView:
    directory = models_directory(console.settings)
    try:
        found = await console.offload(listed, directory)
    except (ModelDirectoryError, OSError):
        raise HTTPException(503, "the models' directory cannot be read") from None
    # By name first: a calibrated copy has the fingerprint of its original.
    wanted = next((each for each in found if asked.model == each.name), None)
    wanted = wanted or next((each for each in found if asked.model == each.fingerprint), None)
    if wanted is None:
        raise HTTPException(404, "there is no such model")
    if _refused(wanted) and not asked.force:
        reasons = "; ".join(r["name"] for r in (wanted.gate or {})["reasons"] if not r["passed"])
        raise HTTPException(409, f"the gate refuses this model ({reasons}); it takes force to promote it")
    forced = _refused(wanted)
    return await _change(
        console,
        who,
        "promote",
        wanted.fingerprint,
        lambda: models.promote(directory, wanted.name, rows=console.settings.rows),
        {"name": wanted.name, **({"forced": True} if forced else {})},
    )


@router.post("/models/rollback", summary="Put the model in use that was before")
async def rollback(console: Asked, who: Admin) -> ChangeView:
    directory = models_directory(console.settings)
    return await _change(
        console,
        who,
        "rollback",
        None,
        lambda: models.rollback(directory, rows=console.settings.rows),
        {},
    )


async def _change(
    console: Asked,
    who: Identity,
    action: Literal["promote", "rollback"],
    subject: str | None,
    change: Callable[[], Change],
    details: dict[str, Any],
) -> ChangeView:
    try:
        done = await console.offload(_audited, console.db, who, f"model.{action}", subject, change, details)
    except ModelDirectoryError as error:
        raise HTTPException(409, error.reason) from None
    except OSError as error:
        raise HTTPException(409, f"the models' directory cannot be changed: {error.strerror}") from None
    console.look_for_model()
    return ChangeView.model_validate(done, from_attributes=True)


def _audited(
    db: Engine,
    who: Identity,
    action: str,
    subject: str | None,
    change: Callable[[], Change],
    details: dict[str, Any],
) -> Change:
    """Noted before it is done: trying a model takes seconds, for which no transaction may be open, and there
    must be no change that nobody knows of. What then fails is noted as well.
    """
    with writing(db) as connection:
        audit.note(connection, who.name, action, subject, **details)
    try:
        return change()
    except (ModelDirectoryError, OSError) as error:
        reason = error.reason if isinstance(error, ModelDirectoryError) else error.strerror
        with writing(db) as connection:
            audit.note(connection, who.name, f"{action}.failed", subject, **details, reason=reason)
        raise


def _refused(model: Listed) -> bool:
    return model.gate is not None and not model.gate["passed"]
