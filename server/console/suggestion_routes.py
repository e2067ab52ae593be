"""Routes of the suggestions that operators get while they type."""

from __future__ import annotations

import math
import time
from typing import Annotated, Final

from fastapi import APIRouter, HTTPException, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from server.console import suggestions
from server.console.sign_in import Asked, SignedIn
from server.console.suggestions import NotMade, Offers, Outcome, OutcomeError, Superseded
from server.engine import EngineBusy
from server.http import ErrorBody
from server.protocol import MAX_ID
from server.records import storable

MAX_COUNT: Final = 5
MAX_TYPED: Final = 16_000
"""Characters, as long as a setting lets messages be."""

Id = Annotated[str, Path(max_length=MAX_ID)]

router = APIRouter(
    tags=["operator"],
    responses={code: {"model": ErrorBody} for code in (401, 404)},
)


class Typed(BaseModel):
    """What is in the box so far, to the last character, and how many suggestions are wanted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    typed: Annotated[str, Field(max_length=MAX_TYPED)] = ""
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 3


class OfferView(BaseModel):
    """A text that begins with what is typed. logprob: of what the model said, natural logarithm."""

    model_config = ConfigDict(from_attributes=True)

    text: str
    logprob: float


class Suggested(BaseModel):
    """The best first. id: for their outcome; null when there are none. milliseconds: that it took."""

    id: str | None
    suggestions: list[OfferView]
    milliseconds: float


class OutcomeGiven(BaseModel):
    """What became of suggestions. chosen: the one that was taken. sent: what the operator sent in the end;
    message: its id, whose text goes before `sent`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    outcome: Outcome
    chosen: Annotated[str | None, Field(max_length=2 * MAX_TYPED)] = None
    sent: Annotated[str | None, Field(max_length=MAX_TYPED)] = None
    message: Annotated[str | None, Field(max_length=MAX_ID)] = None


class Distance(BaseModel):
    """Edits (Levenshtein, code points) from what was chosen to what was sent; null if either is missing."""

    distance: int | None


@router.post(
    "/conversations/{conversation}/suggestions",
    summary="What the model would write here, completed from what is typed",
    responses={code: {"model": ErrorBody} for code in (409, 429, 503)},
)
async def suggest(
    console: Asked, who: SignedIn, request: Request, conversation: Id, given: Typed
) -> Suggested:
    """Asking again for the same conversation cancels what is under way there, which answers 409."""
    began = time.perf_counter()
    if not storable(given.typed):
        raise HTTPException(400, "typed: holds NUL or half of a surrogate pair")
    try:
        async with console.suggestions.attempt(who.id, conversation) as attempt:
            ground = await console.offload(suggestions.ground, console.db, conversation)
            if ground is None:
                raise HTTPException(404, "there is no such conversation")
            made = await suggestions.make(console.engine, attempt, ground.turns, given.typed, given.count)
            if who.role != "admin":
                told = suggestions.shown_to_reviewers(made.offers, given.typed, ground.mask)
                made = Offers(told, made.model)
            milliseconds = round(1000 * (time.perf_counter() - began), 1)
            kept = None
            if made.offers and not await request.is_disconnected():
                kept = await console.offload(
                    suggestions.keep, console.db, who.id, conversation, given.typed, made, milliseconds
                )
            attempt.require_newest()
    except Superseded:
        raise HTTPException(409, "a newer request has taken the place of this one") from None
    except EngineBusy as busy:
        headers = {"retry-after": str(math.ceil(busy.retry_after))}
        raise HTTPException(429, "the model is busy: try again in a moment", headers) from None
    except TimeoutError:
        raise HTTPException(429, "the model is busy: try again in a moment", {"retry-after": "1"}) from None
    except NotMade:
        raise HTTPException(503, "the suggestions could not be made", {"retry-after": "1"}) from None
    return Suggested(
        id=kept,
        suggestions=[OfferView.model_validate(offer) for offer in made.offers],
        milliseconds=milliseconds,
    )


@router.post("/suggestions/{suggestion}/outcome", summary="Say what became of suggestions")
async def conclude(console: Asked, who: SignedIn, suggestion: Id, given: OutcomeGiven) -> Distance:
    """The last word counts."""
    try:
        distance = await console.offload(
            suggestions.conclude,
            console.db,
            who,
            suggestion,
            given.outcome,
            chosen=given.chosen,
            sent=given.sent,
            message=given.message,
        )
    except LookupError:
        raise HTTPException(404, "there are no such suggestions") from None
    except OutcomeError as error:
        raise HTTPException(400, error.reason) from None
    return Distance(distance=distance)
