"""Who is there: the conversations that somebody listens to or that are being answered, and whom to tell.

What happens to one of them durably happens while its lock is held (`held`). Everything here belongs on the
event loop.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Literal, TypeAlias

from server import logs
from server.engine import Engine
from server.limits import Who
from server.live_conversation import Live, Seat
from server.mailbox import Mailbox
from server.protocol import Close, Delta, OwnerName

log = logging.getLogger(__name__)

Change: TypeAlias = Literal["said", "replied", "owner", "waiting", "rated", "closed", "reviewed", "erased"]
Observer: TypeAlias = Callable[[str, Change, int | None], None]
"""Told which conversation has changed, in what way, and up to which message all is known here."""


class Presence:
    """engine: where replies are called off that nobody is to hear. sockets: at most, of a conversation."""

    def __init__(self, engine: Engine, sockets: int) -> None:
        self._engine = engine
        self._sockets = sockets
        self._live: dict[str, Live] = {}
        self._observers: list[Observer] = []

    def __iter__(self) -> Iterator[Live]:
        return iter(list(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    def find(self, conversation: str) -> Live | None:
        """None where nobody is and nothing is being done."""
        return self._live.get(conversation)

    @asynccontextmanager
    async def held(self, conversation: str) -> AsyncIterator[Live]:
        """The conversation, for one at a time."""
        live = self._live.get(conversation) or Live(conversation)
        self._live[conversation] = live
        live.users += 1
        try:
            async with live.lock:
                yield live
        finally:
            live.users -= 1
            self.forget_idle(live)

    def forget_idle(self, live: Live) -> None:
        if live.idle:
            self._live.pop(live.id, None)

    # --- who listens --------------------------------------------------------------------------------------

    def sit(self, live: Live, mailbox: Mailbox, who: Who) -> Seat:
        """A socket's place; when there are too many, the oldest is closed."""
        seat = Seat(live.id, mailbox, who)
        live.seats.append(seat)
        if len(live.seats) > self._sockets:
            live.seats.pop(0).mailbox.close(Close.REPLACED, "the conversation is open in too many places")
        return seat

    def leave(self, seat: Seat) -> None:
        live = self._live.get(seat.conversation)
        if live is not None and seat in live.seats:
            live.seats.remove(seat)
            self.forget_idle(live)

    def watch(self, conversation: str, mailbox: Mailbox) -> None:
        """Let an operator look on: what visitors are sent from now on, and the running reply so far."""
        live = self._live.setdefault(conversation, Live(conversation))
        live.listeners.append(mailbox)
        if live.running is not None:
            mailbox.put(Delta(reply=live.running.id, offset=0, text=live.running.text))

    def unwatch(self, conversation: str, mailbox: Mailbox) -> None:
        live = self._live.get(conversation)
        if live is not None and mailbox in live.listeners:
            live.listeners.remove(mailbox)
            self.forget_idle(live)

    def send_away(self, live: Live, reason: str) -> None:
        """Close all sockets of visitors, and call a running reply off."""
        self.drop(live)
        for seat in live.seats:
            seat.mailbox.close(Close.UNAUTHENTICATED, reason)
        live.seats.clear()
        self.forget_idle(live)

    # --- what they are told -------------------------------------------------------------------------------

    def learn_owner(self, live: Live, owner: OwnerName, waiting: bool = False) -> bool:
        """Who answers is known anew: all are told if that is news, and an operator silences the bot."""
        if owner == "operator":
            self.drop(live)
        if (owner, waiting) == (live.owner, live.waiting):
            return False
        changed: Change = "waiting" if owner == live.owner else "owner"
        live.owner, live.waiting = owner, waiting
        live.broadcast(live.owner_event)
        self.tell(live, changed)
        return True

    def drop(self, live: Live) -> None:
        """Nothing more of a running reply is sent, and it is not kept."""
        if live.running is not None:
            running, live.running = live.running, None
            self._engine.cancel(running.id)
            logs.event(log, logging.INFO, "reply_dropped", reply=running.id)

    def observe(self, observer: Observer) -> None:
        """Have `observer` told of every change in any conversation, on the event loop."""
        self._observers.append(observer)

    def tell(self, live: Live, change: Change) -> None:
        for observer in self._observers:
            observer(live.id, change, live.seq)
