"""Reading a logged conversation, and why its replies came out as they did."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from server.console import conversation
from server.console.accounts import Identity
from server.console.conversation import ConversationView
from server.console.explanation import ExplanationView
from server.console.masking import Masker, masker
from server.console.sign_in import Asked, SignedIn
from server.database import reading
from server.http import ErrorBody

router = APIRouter(tags=["operator"], responses={401: {"model": ErrorBody}, 404: {"model": ErrorBody}})


class Look(BaseModel):
    """mask: whether personal data is hidden; reviewers see nothing else."""

    model_config = ConfigDict(extra="forbid")

    mask: bool = Field(False, description="hide personal data; for reviewers it is always hidden")

    def hides(self, who: Identity) -> bool:
        return self.mask or who.role != "admin"


@router.get(
    "/conversations/{conversation_id}",
    summary="A conversation with all that is known of it",
    response_model=ConversationView,
)
async def read_conversation(
    console: Asked, who: SignedIn, conversation_id: str, look: Annotated[Look, Query()]
) -> Response:
    def read() -> str | None:
        found = conversation.read(console.db, console.shelf, conversation_id, masked=look.hides(who))
        return None if found is None else found.model_dump_json()

    return _json(await console.offload(read), "there is no such conversation")


@router.get(
    "/messages/{message_id}/explanation",
    summary="Why a reply came out as it did",
    response_model=ExplanationView,
)
async def explain(console: Asked, who: SignedIn, message_id: str, look: Annotated[Look, Query()]) -> Response:
    """Worked out anew from what was logged: it takes a moment, the first time for a model some seconds."""
    explainer = console.explainer
    in_use = console.engine.speaker.fingerprint

    def read() -> str | None:
        mask = Masker(kinds=()).mask
        if look.hides(who):
            with reading(console.db) as connection:
                mask = masker(connection).mask
        found = explainer.explain(message_id, mask, in_use)
        return None if found is None else found.model_dump_json()

    return _json(await explainer.offload(read), "there is no such reply")


def _json(written: str | None, missing: str) -> Response:
    """An answer that was written on another thread: of a long conversation it is megabytes."""
    if written is None:
        raise HTTPException(404, missing)
    return Response(written, media_type="application/json")
