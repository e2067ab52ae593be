"""Routes of taking over: who answers, what operators say, and when they are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final, Literal

from fastapi import APIRouter, HTTPException, Path
from pydantic import BaseModel, ConfigDict, Field

from server.console import takeover
from server.console.sign_in import Asked, SignedIn
from server.http import ErrorBody
from server.protocol import MAX_ID
from server.records import Ownership
from server.store import (
    ClientIdConflict,
    ConversationFull,
    OwnerChanged,
    StoreValueError,
    UnknownConversation,
)

Id = Annotated[str, Path(max_length=MAX_ID, description="The conversation's id")]

router = APIRouter(
    prefix="/conversations/{conversation}",
    tags=["operator"],
    responses={404: {"model": ErrorBody}, 409: {"model": ErrorBody}},
)

NOT_YOURS: Final = "a colleague was quicker: somebody else has changed who answers"
MAX_VERSION: Final = 2**31 - 1


class Known(BaseModel):
    """version: the conversation's owner_version as the page knows it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Annotated[int, Field(ge=0, le=MAX_VERSION)]


class Answering(BaseModel):
    """Who answers: the bot, or which operator, by name."""

    owner: Literal["bot", "operator"]
    operator: str | None
    owner_version: int


class Saying(BaseModel):
    """What an operator says. id: the page's own; sending it again is harmless."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    text: Annotated[str, Field(min_length=1)]


class Said(BaseModel):
    """The message's id, and its place in the conversation."""

    message: str
    seq: int


@router.post("/take", summary="Take the conversation over: the bot says nothing there from now on")
async def take(console: Asked, who: SignedIn, conversation: Id, known: Known) -> Answering:
    with _translated():
        return _answering(await takeover.take(console, who, conversation, known.version), who.name)


@router.post("/hand_back", summary="Let the bot answer again")
async def hand_back(console: Asked, who: SignedIn, conversation: Id, known: Known) -> Answering:
    with _translated():
        return _answering(await takeover.hand_back(console, who, conversation, known.version), who.name)


@router.post("/close", summary="Be done with the conversation; the bot has it again", status_code=204)
async def close(console: Asked, who: SignedIn, conversation: Id) -> None:
    with _translated():
        await takeover.close(console, who, conversation)


@router.post("/reopen", summary="Not be done with it after all", status_code=204)
async def reopen(console: Asked, who: SignedIn, conversation: Id) -> None:
    with _translated():
        await takeover.reopen(console, who, conversation)


@router.post("/messages", summary="Speak to the visitor of a conversation that one has taken over")
async def speak(console: Asked, who: SignedIn, conversation: Id, saying: Saying) -> Said:
    most = console.settings.max_text
    if len(saying.text) > most:
        raise HTTPException(400, f"text: a message has at most {most} characters")
    if not saying.text.strip():
        raise HTTPException(400, "text: there is not a word in it")
    with _translated():
        message = await takeover.speak(console, who, conversation, saying.id, saying.text)
    return Said(message=message.message, seq=message.seq)


@contextmanager
def _translated() -> Iterator[None]:
    """Refusals of the store as they are answered."""
    try:
        yield
    except OwnerChanged:
        raise HTTPException(409, NOT_YOURS) from None
    except ClientIdConflict:
        raise HTTPException(409, "id: was used before in this conversation, for something else") from None
    except ConversationFull:
        raise HTTPException(409, "the conversation holds as many messages as it may") from None
    except UnknownConversation:
        raise HTTPException(404, "no such conversation") from None
    except StoreValueError as error:
        raise HTTPException(400, str(error)) from None


def _answering(ownership: Ownership, name: str) -> Answering:
    """name: of the operator who asked, the only one it can be."""
    taken = ownership.owner == "operator"
    return Answering(owner=ownership.owner, operator=name if taken else None, owner_version=ownership.version)
