"""Live conversations: who listens to which, and the one reply that each may have in the making.

A reply belongs to its conversation, not to the socket that asked for it: it goes on when the socket goes,
every socket of the conversation sees it, and one that comes late is told how far it is. What happens to a
conversation durably happens under its lock, first in the database and then on the sockets, so that every
socket sees the same order.

Everything here belongs on the event loop; the store works on its own threads, the model on the engine's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from chatbot.options import MAX_TOKENS, DecodingOptions, OptionError
from chatbot.replies import Failed, Piece, Reply, ReplyRequest
from server import logs
from server.engine import Engine, EngineBusy, Generation, Permit
from server.ledger import History, Ledger, Refusal, Snapshot
from server.limits import Rates, Shares, Who, visitor_key
from server.mailbox import Mailbox
from server.protocol import (
    MAX_FRAME,
    Accepted,
    Close,
    Delta,
    Error,
    Limits,
    Message,
    Rated,
    Ready,
    Replying,
    ServerMessage,
)
from server.session import Judge, Open, Post, Redo
from server.speaker import Speaker
from server.store import MessageRecord, NewReply, StoreUnavailable

log = logging.getLogger(__name__)

READY_BYTES: Final = 512 * 1024
"""Of messages in a `ready`; the rest follows in frames of its own. Many clients refuse 1 MiB."""
RETRY_AFTER: Final = 1.0
"""Seconds after which a say that met a running reply is worth another try."""
RECONNECT_AFTER: Final = 2.0
"""Seconds after which a client of a stopping server should come back."""
COMMITS: Final = 3
"""Attempts to keep a finished reply while the database is only busy."""
SEEDS: Final = 2**53
"""Seeds drawn here are below this: a browser's numbers hold them exactly."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """max_text: code points of a turn. sockets: that may listen to one conversation.

    replies_per_visitor, replies_per_address: in the making, waiting ones included. visitors_per_address: new
    ones in a minute.
    """

    max_text: int
    sockets: int
    replies_per_visitor: int
    replies_per_address: int
    visitors_per_address: int


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
    """A reply in the making; `text` is what has been streamed of it."""

    id: str
    question: Question
    options: DecodingOptions
    generation: Generation
    text: str = ""


@dataclass(eq=False, slots=True)
class Live:
    """A conversation that somebody listens to or that is being answered.

    users: calls that hold the lock or wait for it.
    """

    id: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    seats: list[Seat] = field(default_factory=list)
    running: Running | None = None
    users: int = 0

    @property
    def idle(self) -> bool:
        return not self.seats and self.running is None and self.users == 0

    def broadcast(self, message: ServerMessage, but: Seat | None = None) -> None:
        for seat in self.seats:
            if seat is not but:
                seat.mailbox.put(message)


class Conversations:
    """Carries out what sessions ask for. What cannot be raises `Refusal` and has changed nothing."""

    def __init__(self, ledger: Ledger, engine: Engine, bounds: Bounds) -> None:
        self._ledger = ledger
        self._engine = engine
        self._bounds = bounds
        self._by_visitor = Shares(bounds.replies_per_visitor)
        self._by_address = Shares(bounds.replies_per_address)
        self._newcomers = Rates(bounds.visitors_per_address / 60, bounds.visitors_per_address)
        self._live: dict[str, Live] = {}
        self._replies: set[asyncio.Task[None]] = set()
        self._stopping = False

    # --- what sessions ask for ----------------------------------------------------------------------------

    async def open(self, request: Open, mailbox: Mailbox, address: str) -> Seat:
        """Let a visitor in. `ready` is the first thing in their mailbox, then what happens from there on.

        address: what the visitor's requests are counted for besides the visitor.

        A last turn without an answer (the server was stopped, or the reply failed) is answered now.
        """
        if request.token is None and (wait := self._newcomers.ask(address)):
            raise _busy("too many new visitors from this address", None, math.ceil(wait))
        admission = await self._ledger.let_in(request)
        who = Who(visitor_key(admission.token), address)
        async with self._held(admission.conversation) as live:
            snapshot = await self._ledger.snapshot(live.id, request.last_seq)
            failure = None
            if snapshot.unanswered is not None and live.running is None:
                failure = await self._answer_late(live, snapshot.unanswered, who)
            ready, rest = self._ready(admission.token, live, snapshot)
            mailbox.put(ready)
            mailbox.admit(rest)
            if failure is not None:
                mailbox.put(failure)
            return self._seat(live, mailbox, who)

    def leave(self, seat: Seat) -> None:
        """The socket is gone. A running reply goes on."""
        live = self._live.get(seat.conversation)
        if live is not None and seat in live.seats:
            live.seats.remove(seat)
            self._forget_idle(live)

    async def say(self, seat: Seat, post: Post) -> None:
        """Commit a turn, acknowledge it, have it answered. Said again, it gives the same and no more."""
        async with self._held(seat.conversation) as live:
            if live.running is not None:
                self._say_meanwhile(seat, live.running.question, post)
                return
            with self._reserved(seat.who, post.id) as place:
                options = place.options(post.overrides, post.id)
                taken = await self._ledger.take(live.id, post)
                seat.mailbox.put(taken.accepted)
                if taken.said is not None:
                    live.broadcast(taken.said, but=seat)
                if taken.answer is not None:
                    seat.mailbox.put(taken.answer)
                if taken.history is not None:
                    asked = (taken.accepted, post.text)
                    question = Question(taken.accepted.message, post.id, options, taken.history, asked)
                    self._begin(live, question, place)

    async def stop(self, seat: Seat, reply: str) -> None:
        """End a running reply; what there is of it is kept."""
        live = self._live.get(seat.conversation)
        if live is None or live.running is None or live.running.id != reply:
            raise Refusal(Error(code="bad_state", message="no such reply is running", id=reply))
        self._engine.cancel(reply)

    async def redo(self, seat: Seat, request: Redo) -> None:
        """Answer the same turn once more; the new reply takes the old one's place."""
        async with self._held(seat.conversation) as live:
            if live.running is not None:
                raise _busy("a reply is running", request.reply)
            with self._reserved(seat.who, request.reply) as place:
                options = place.options(request.overrides, request.reply)
                turn, history = await self._ledger.question_of(live.id, request.reply)
                self._begin(live, Question(turn, request.reply, options, history), place)

    async def judge(self, seat: Seat, request: Judge) -> None:
        """Keep what the visitor thinks of a reply, and show it on all of their sockets."""
        async with self._held(seat.conversation) as live:
            await self._ledger.rate(live.id, request)
            live.broadcast(Rated(message=request.message, rating=request.rating))

    @property
    def replies(self) -> int:
        """Replies in the making."""
        return len(self._replies)

    async def drain(self, seconds: float) -> None:
        """Begin no more replies; let those under way finish for `seconds`, then end and keep them."""
        self._stopping = True
        if self._replies:
            await asyncio.wait(self._replies, timeout=seconds)
        for live in self._live.values():
            if live.running is not None:
                self._engine.cancel(live.running.id)
        if self._replies:
            await asyncio.wait(self._replies, timeout=RECONNECT_AFTER)

    # --- who is there -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _held(self, conversation: str) -> AsyncIterator[Live]:
        live = self._live.get(conversation) or Live(conversation)
        self._live[conversation] = live
        live.users += 1
        try:
            async with live.lock:
                yield live
        finally:
            live.users -= 1
            self._forget_idle(live)

    def _forget_idle(self, live: Live) -> None:
        if live.idle:
            self._live.pop(live.id, None)

    def _seat(self, live: Live, mailbox: Mailbox, who: Who) -> Seat:
        seat = Seat(live.id, mailbox, who)
        live.seats.append(seat)
        if len(live.seats) > self._bounds.sockets:
            live.seats.pop(0).mailbox.close(Close.REPLACED, "the conversation is open in too many places")
        return seat

    def _ready(self, token: str, live: Live, snapshot: Snapshot) -> tuple[Ready, Sequence[Message]]:
        """The answer to a hello, and the messages that do not fit into it."""
        fitting = _fitting(snapshot.messages)
        running = live.running
        ready = Ready(
            token=token,
            conversation=live.id,
            model=self._engine.speaker.fingerprint,
            seq=snapshot.last_seq,
            messages=snapshot.messages[:fitting],
            replying=None if running is None else Replying(reply=running.id, text=running.text),
            # What is blocked is nobody's reading matter.
            defaults=self._engine.speaker.defaults.model_dump(exclude={"blocked"}),
            limits=Limits(max_text=self._bounds.max_text, max_tokens=MAX_TOKENS, max_frame=MAX_FRAME),
        )
        return ready, snapshot.messages[fitting:]

    def _say_meanwhile(self, seat: Seat, question: Question, post: Post) -> None:
        """A say while a reply is in the making: fine when it is the one being answered, else too early."""
        if question.asked is None or question.asked[0].id != post.id:
            raise _busy("a reply is running", post.id)
        accepted, text = question.asked
        if text != post.text:
            reason = "this id was used before in this conversation, with another text"
            raise Refusal(Error(code="conflict", message=reason, id=post.id))
        seat.mailbox.put(accepted)

    # --- one reply ----------------------------------------------------------------------------------------

    def _reserved(self, who: Who, about: str | None) -> _Place:
        """A place in the engine, to be taken before anything is committed; `Refusal` at once when full."""
        if self._stopping:
            raise _busy("the server is stopping", about, RECONNECT_AFTER)
        if not self._by_visitor.take(who.visitor):
            raise _busy("you have too many replies in the making", about)
        if not self._by_address.take(who.address):
            self._by_visitor.give_back(who.visitor)
            raise _busy("too many replies are being made for this address", about)
        try:
            permit = self._engine.reserve(who.visitor)
        except EngineBusy as error:
            self._give_back(who)
            raise _busy("too many replies are waiting", about, error.retry_after) from None
        permit.on_release(lambda: self._give_back(who))
        return _Place(permit)

    def _give_back(self, who: Who) -> None:
        self._by_visitor.give_back(who.visitor)
        self._by_address.give_back(who.address)

    async def _answer_late(self, live: Live, turn: MessageRecord, who: Who) -> Error | None:
        """Begin the reply that a turn never got; the error to be shown when that cannot be done now."""
        try:
            with self._reserved(who, turn.client_id) as place:
                try:
                    options = place.speaker.options(turn.options or {})
                except OptionError:  # said to another model, which took what this one does not
                    options = place.speaker.defaults
                history = await self._ledger.history(live.id, turn.message_id)
                asked = None
                if turn.client_id is not None:
                    accepted = Accepted(id=turn.client_id, message=turn.message_id, seq=turn.seq)
                    asked = (accepted, turn.text)
                self._begin(live, Question(turn.message_id, turn.client_id, options, history, asked), place)
        except Refusal as refusal:
            return refusal.error
        return None

    def _begin(self, live: Live, question: Question, place: _Place) -> None:
        options = question.options
        if options.seed is None:
            options = options.model_copy(update={"seed": secrets.randbelow(SEEDS)})
        reply = uuid.uuid4().hex
        generation = self._engine.generate(
            ReplyRequest(reply, tuple(question.history), options, live.id), place.pass_on()
        )
        live.running = Running(reply, question, options, generation)
        # An empty piece names the reply before its first word is there, so that it can be stopped at once.
        live.broadcast(Delta(reply=reply, offset=0, text=""))
        task = asyncio.create_task(self._follow(live, live.running), name=f"reply {reply}")
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)

    async def _follow(self, live: Live, running: Running) -> None:
        """Stream a reply to whoever listens, and keep it."""
        try:
            async with running.generation as events:
                async for event in events:
                    if isinstance(event, Piece):
                        piece = storable(event.text)
                        live.broadcast(Delta(reply=running.id, offset=len(running.text), text=piece))
                        running.text += piece
                    elif isinstance(event, Failed):
                        self._fail(live, running, event)
                    else:
                        await self._finish(live, running, event.reply)
        except Exception as error:  # noqa: BLE001 - one reply's fault must not become the server's
            logs.event(log, logging.ERROR, "reply_lost", reply=running.id, error=logs.place(error))
            self._fail(live, running, Failed(running.id, "the reply could not be kept"))
        finally:
            self._forget_idle(live)

    async def _finish(self, live: Live, running: Running, reply: Reply) -> None:
        new = self._new_reply(running, reply)
        async with self._held(live.id):
            for attempt in range(1, COMMITS + 1):
                try:
                    message = await self._ledger.add_reply(live.id, new)
                    break
                except StoreUnavailable as error:
                    if not error.busy or attempt == COMMITS:
                        raise
            live.running = None
            live.broadcast(message)
        logs.event(
            log, logging.INFO, "reply", reply=running.id, tokens=len(reply.token_ids),
            finish_reason=reply.finish_reason, **asdict(running.generation.timing),
        )  # fmt: skip

    def _new_reply(self, running: Running, reply: Reply) -> NewReply:
        timing = running.generation.timing
        return NewReply(
            reply_id=running.id,
            answers=running.question.message,
            text=storable(reply.text),
            finish_reason=reply.finish_reason,
            model=running.generation.permit.speaker.fingerprint,
            options=running.options.model_dump(),
            seed=reply.seed,
            token_ids=reply.token_ids,
            logprobs=reply.logprobs,
            alternatives=[asdict(a) | {"text": storable(a.text)} for a in reply.alternatives],
            queued_ms=timing.queued_ms,
            first_token_ms=timing.first_token_ms,
            total_ms=timing.total_ms,
        )

    def _fail(self, live: Live, running: Running, failed: Failed) -> None:
        """The turn stays unanswered: it is answered when it is said again, or at the next hello."""
        live.running = None
        logs.event(log, logging.WARNING, "reply_failed", reply=running.id)
        about = running.question.about
        if failed.field is not None:
            live.broadcast(Error(code="bad_option", message=failed.message, id=about, field=failed.field))
        else:
            live.broadcast(Error(code="internal", message=failed.message, id=about, retry_after=RETRY_AFTER))


class _Place:
    """A permit that is given back on leaving, unless it was passed on."""

    def __init__(self, permit: Permit) -> None:
        self._permit: Permit | None = permit

    @property
    def speaker(self) -> Speaker:
        """The model that the place is with."""
        assert self._permit is not None
        return self._permit.speaker

    def options(self, overrides: dict[str, Any], about: str) -> DecodingOptions:
        """As that model takes them. The session asked the model that was in use a moment ago.

        Raises `Refusal`.
        """
        try:
            return self.speaker.options(overrides)
        except OptionError as error:
            refused = Error(code="bad_option", message=str(error), id=about, field=error.field)
            raise Refusal(refused) from None

    def pass_on(self) -> Permit:
        permit, self._permit = self._permit, None
        assert permit is not None
        return permit

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._permit is not None:
            self._permit.release()


def storable(text: str) -> str:
    """What a model wrote, without NUL: it has a token for every byte, and no database keeps that one."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _busy(reason: str, about: str | None, retry_after: float = RETRY_AFTER) -> Refusal:
    return Refusal(Error(code="busy", message=reason, id=about, retry_after=retry_after))


def _fitting(messages: Sequence[Message]) -> int:
    """How many of the messages a `ready` holds, by an upper bound of their bytes that needs no encoding."""
    room = READY_BYTES
    for count, message in enumerate(messages):
        room -= 1000 + 6 * len(message.text) + 6 * len(message.comment or "")
        room -= sum(100 + 6 * len(alternative.text) for alternative in message.alternatives or ())
        if room < 0:
            return count
    return len(messages)
