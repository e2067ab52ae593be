"""A conversation while somebody listens to it or it is being answered: what the event loop knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from chatbot.options import DecodingOptions
from server.engine import Generation
from server.ledger import History
from server.limits import Who
from server.mailbox import Mailbox
from server.protocol import Accepted, Delta, OwnerName, Replying, ServerMessage
from server.protocol import Owner as OwnerEvent
from server.records import Ownership


@dataclass(eq=False, slots=True)
class Seat:
    """A socket's place in a conversation; what it asks for is counted for `who`."""

    conversation: str
    mailbox: Mailbox
    who: Who


@dataclass(frozen=True, slots=True)
class Question:
    """A turn to be answered.

    message: the turn's id.
    about: the id under which the asker looks for an error.
    asked: what a repetition of the say is answered with, and the text it must have; None when no say began
        the reply.
    """

    message: str
    about: str | None
    options: DecodingOptions
    history: History
    asked: tuple[Accepted, str] | None = None


@dataclass(eq=False, slots=True)
class Running:
    """A reply in the making; `text` is what has been streamed of it, `held` what has not been let out.

    guarded: whether nothing of it is to be let out before it is known how sure the model is of it.
    """

    id: str
    question: Question
    options: DecodingOptions
    generation: Generation
    guarded: bool = False
    text: str = ""
    held: str = ""

    @property
    def replying(self) -> Replying:
        return Replying(reply=self.id, text=self.text)


@dataclass(eq=False, slots=True)
class Live:
    """A conversation that somebody listens to or that is being answered.

    began: when it was opened; None as long as nobody has asked. listeners: operators who look on. owner,
    waiting: as they were when this server last heard of them. seq: up to which message all who listen have
    been sent everything; None as long as nobody knows. users: calls that hold the lock or wait for it.
    quiet: whether nothing of the running reply is to be let out now.
    """

    id: str
    began: datetime | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    seats: list[Seat] = field(default_factory=list)
    listeners: list[Mailbox] = field(default_factory=list)
    running: Running | None = None
    owner: OwnerName = "bot"
    waiting: bool = False
    seq: int | None = None
    users: int = 0
    quiet: bool = False

    @property
    def idle(self) -> bool:
        return not self.seats and not self.listeners and self.running is None and self.users == 0

    def behind(self, last_seq: int, ownership: Ownership) -> bool:
        """Whether the database knows of something that who listens here does not."""
        news = self.seq is None or last_seq > self.seq
        return news or (ownership.owner, ownership.waiting) != (self.owner, self.waiting)

    def sent(self, seq: int) -> None:
        """A message was kept and shown here. One that leaves a gap is shown again with what fills it."""
        if self.seq is not None and seq == self.seq + 1:
            self.seq = seq

    @property
    def owner_event(self) -> OwnerEvent:
        return OwnerEvent(owner=self.owner, waiting=self.waiting or None)

    def broadcast(self, message: ServerMessage, but: Seat | None = None) -> None:
        for seat in self.seats:
            if seat is not but:
                seat.mailbox.put(message)
        for listener in self.listeners:
            listener.put(message)

    def stream(self, running: Running, piece: str) -> None:
        """More of a reply; nothing of one that is not wanted any more."""
        if self.running is not running:
            return
        running.held += piece
        if not self.quiet and not running.guarded:
            self._let_out(running)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing of the running reply is let out within; what is held goes out afterwards if it still runs.

        For what may end it: between the commit that does and the moment we hear of it lies a thread.
        """
        self.quiet = True
        try:
            yield
        finally:
            self.quiet = False
            if self.running is not None and self.running.held and not self.running.guarded:
                self._let_out(self.running)

    def _let_out(self, running: Running) -> None:
        piece, running.held = running.held, ""
        self.broadcast(Delta(reply=running.id, offset=len(running.text), text=piece))
        running.text += piece
