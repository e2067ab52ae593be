"""Routes of what happens now, as server-sent events: in all conversations, and in one."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from fastapi import APIRouter, HTTPException, Path, Query
from starlette.responses import Response

from server.console import takeover
from server.console.accounts import Session
from server.console.context import Console
from server.console.live import Closable, TooManyStreams
from server.console.masking import Masker, masker
from server.console.sign_in import Asked, Login, SignedIn
from server.console.streams import EventStream, event
from server.database import reading
from server.http import ErrorBody
from server.mailbox import Closing, Mailbox
from server.protocol import MAX_ID, Close, Delta, Message, Owner, Rated, ServerMessage

MAILBOX: Final = 256
"""Messages of one conversation that may wait for an operator's browser."""
HELD_WORDS: Final = 8
"""Words at the end of a reply that are not shown masked yet: they may be half a number or half a name."""
_STREAM: Final = {"content": {"text/event-stream": {}}, "description": "Server-sent events"}
_WORD: Final = re.compile(r"\S+")

router = APIRouter(tags=["operator"], responses={429: {"model": ErrorBody}})


@router.get(
    "/events",
    summary="What changes, in any conversation",
    response_class=Response,
    responses={200: _STREAM},
)
async def events(console: Asked, session: Login, who: SignedIn) -> Response:
    feed = console.live.feed()

    async def read() -> bytes | None:
        change = await feed.get()
        return None if change is None else event("changed", {"conversation": change[0], "what": change[1]})

    return _stream(console, session, feed, read, lambda: console.live.forget(feed))


@router.get(
    "/conversations/{conversation}/events",
    summary="What happens in one conversation, a running reply included",
    response_class=Response,
    responses={200: _STREAM, 404: {"model": ErrorBody}},
)
async def conversation_events(
    console: Asked,
    session: Login,
    who: SignedIn,
    conversation: Annotated[str, Path(max_length=MAX_ID)],
    mask: Annotated[
        bool, Query(description="Mask what admins would see; reviewers always have it so")
    ] = False,
) -> Response:
    if not await console.offload(takeover.exists, console, conversation):
        raise HTTPException(404, "no such conversation")
    hidden = await console.offload(_masker, console) if mask or who.role != "admin" else None
    letters = _Letters(hidden)
    mailbox = Mailbox(MAILBOX)

    async def read() -> bytes | None:
        while not isinstance(item := await mailbox.get(), Closing):
            if (piece := letters.of(item)) is not None:
                return piece
        return None

    stream = _stream(
        console,
        session,
        _MailboxSource(mailbox),
        read,
        lambda: console.conversations.unwatch(conversation, mailbox),
    )
    console.conversations.watch(conversation, mailbox)
    return stream


class _MailboxSource:
    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    def close(self) -> None:
        self._mailbox.close(Close.GOING_AWAY, "the stream ends")


class _Letters:
    """What operators get of what visitors are sent. hidden: masks the text of a reply in the making."""

    def __init__(self, hidden: Masker | None) -> None:
        self._hidden = hidden
        self._reply = ""
        self._text = ""

    def of(self, item: ServerMessage) -> bytes | None:
        match item:
            case Message():
                return event("message", {"id": item.message, "seq": item.seq})
            case Owner():
                return event("owner", {"owner": item.owner, "waiting": bool(item.waiting)})
            case Rated():
                return event("rated", {"message": item.message, "rating": item.rating})
            case Delta():
                return event("delta", self._delta(item))
            case _:
                return None

    def _delta(self, delta: Delta) -> dict[str, str | int]:
        """Masked, the text is given whole each time: what comes later may change what is before it."""
        if self._hidden is None:
            return {"reply": delta.reply, "offset": delta.offset, "text": delta.text}
        if delta.reply != self._reply:
            self._reply, self._text = delta.reply, ""
        self._text = self._text[: delta.offset] + delta.text
        shown = settled(self._hidden.mask(self._text))
        return {"reply": delta.reply, "offset": 0, "text": shown}


def settled(text: str) -> str:
    """A masked text without its last words, whose mask the next ones could change."""
    words = [word.start() for word in _WORD.finditer(text)]
    return text[: words[-HELD_WORDS]] if len(words) > HELD_WORDS else ""


def _masker(console: Console) -> Masker:
    with reading(console.db) as connection:
        return masker(connection)


def _stream(
    console: Console,
    session: Session,
    source: Closable,
    read: Callable[[], Awaitable[bytes | None]],
    ended: Callable[[], None],
) -> Response:
    """A stream that ends with its session, and with the server. Raises HTTPException 429."""
    try:
        leave = console.live.admit(session, source)
    except TooManyStreams:
        ended()
        raise HTTPException(429, "too many streams are open; close a tab", {"retry-after": "5"}) from None
    no_more = console.accounts.on_end(session, source.close)

    def end() -> None:
        no_more()
        leave()
        ended()

    async def holds() -> bool:
        return await console.offload(console.accounts.still_signed_in, session)

    return EventStream(read, holds, end)
