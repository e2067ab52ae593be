"""Erasing a visitor."""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.console import erasing
from server.console.sign_in import Admin, Asked
from server.http import ErrorBody

router = APIRouter(tags=["operator"], responses={401: {"model": ErrorBody}, 404: {"model": ErrorBody}})

Id = Annotated[str, Field(min_length=1, max_length=128)]


class Whom(BaseModel):
    """visitor: their id. conversation: one of theirs, with all others they had. One of the two, or both."""

    model_config = ConfigDict(extra="forbid", strict=True)

    visitor: Id | None = None
    conversation: Id | None = None

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if self.visitor is None and self.conversation is None:
            raise ValueError("name a visitor or a conversation")
        return self


class ErasedView(BaseModel):
    """How much there was of the visitor: all counts are of rows that are gone.

    imported: conversations of uploaded files. topic_words: taken off topic maps. datasets: retrainings whose
    files held the conversations and hold no texts any more; jobs_cancelled: those that were running. models:
    that have learned from the conversations. files_left: directories of retrainings whose texts could not be
    removed. exports: files made since the visitor came, which may hold them.
    log_emptied: whether SQLite's write-ahead log is free of them; null on PostgreSQL. vacuumed: whether
    PostgreSQL has freed the space; null on SQLite.
    """

    model_config = ConfigDict(from_attributes=True)

    visitor: str
    conversations: int
    messages: int
    generations: int
    ratings: int
    verdicts: int
    pairs: int
    shadow_replies: int
    suggestions: int
    topic_points: int
    topic_words: int
    imported: int
    datasets: int
    jobs_cancelled: int
    models: list[str]
    files_left: list[str]
    exports: int
    log_emptied: bool | None
    vacuumed: bool | None


@router.post("/erase", summary="Erase a visitor, everywhere; nothing brings them back")
async def erase(console: Asked, who: Admin, whom: Whom) -> ErasedView:
    visitor = await console.offload(
        erasing.visitor_of, console.db, visitor=whom.visitor, conversation=whom.conversation
    )
    erased = None
    if visitor is not None:
        conversations = await console.offload(erasing.conversations_of, console.db, visitor)
        erased = await console.offload(erasing.erase, console.db, visitor, who.name)
        console.conversations.forget(conversations)
        for conversation in conversations:
            console.live.changed(conversation, "erased")
    if erased is None:
        raise HTTPException(404, "there is no such visitor")
    return ErasedView.model_validate(erased)
