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
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

from chatbot.options import DecodingOptions, OptionError
from chatbot.replies import Failed, Piece, Reply, ReplyRequest
from server import logs
from server.desk import Along
from server.engine import Engine
from server.greeting import greeting
from server.ledger import Ledger, OperatorSay, OwnerWish, Refusal, Taken, taken_over
from server.limits import Rates, Who, visitor_key
from server.live_conversation import Live, Question, Running, Seat
from server.mailbox import Mailbox
from server.places import RECONNECT_AFTER, RETRY_AFTER, Place, Places, busy
from server.protocol import (
    Accepted,
    Close,
    Delta,
    Error,
    Message,
    OwnerName,
    Rated,
)
from server.rollouts import Overheard, Rollouts
from server.session import Judge, Open, Post, Redo
from server.store import MessageRecord, NewReply, Ownership, StoreUnavailable, TakenOver

log = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class Abstention:
    """When the bot says that it is not sure, and in which words. below: a confidence; 0: never."""

    below: float = 0.0
    words: str = ""

    def instead(self, confidence: float) -> str | None:
        """What is said in the place of a reply of this confidence; None where the reply may be given."""
        return self.words if confidence < self.below else None


Change: TypeAlias = Literal["said", "replied", "owner", "waiting", "rated", "closed", "reviewed"]
Observer: TypeAlias = Callable[[str, Change], None]
"""Told which conversation has changed, and in what way."""


class Conversations:
    """Carries out what sessions ask for. What cannot be raises `Refusal` and has changed nothing."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        bounds: Bounds,
        abstention: Abstention = Abstention(),
        rollouts: Rollouts | None = None,
    ) -> None:
        """rollouts: who else may answer, or is asked as well."""
        self._ledger = ledger
        self._engine = engine
        self._bounds = bounds
        self._abstention = abstention
        self._rollouts = rollouts
        self._places = Places(engine, bounds.replies_per_visitor, bounds.replies_per_address)
        self._newcomers = Rates(bounds.visitors_per_address / 60, bounds.visitors_per_address)
        self._live: dict[str, Live] = {}
        self._replies: set[asyncio.Task[None]] = set()
        self._observers: list[Observer] = []

    # --- what sessions ask for ----------------------------------------------------------------------------

    async def open(self, request: Open, mailbox: Mailbox, address: str) -> Seat:
        """Let a visitor in. `ready` is the first thing in their mailbox, then what happens from there on.

        address: what the visitor's requests are counted for besides the visitor.

        A last turn without an answer (the server was stopped, or the reply failed) is answered now.
        """
        if request.token is None and (wait := self._newcomers.ask(address)):
            raise busy("too many new visitors from this address", None, math.ceil(wait))
        admission = await self._ledger.let_in(request)
        who = Who(visitor_key(admission.token), address)
        async with self._held(admission.conversation) as live:
            snapshot = await self._ledger.snapshot(live.id, request.last_seq)
            self._learn_owner(live, snapshot.ownership.owner, snapshot.ownership.waiting)
            live.began = snapshot.ownership.began
            if not live.seats:
                live.seq = snapshot.last_seq
            failure = None
            if snapshot.unanswered is not None and live.running is None:
                failure = await self._answer_late(live, snapshot.unanswered, who)
            speaker, most = self._engine.speaker, self._bounds.max_text
            ready, rest = greeting(admission.token, live, snapshot, speaker, most)
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
            if live.owner == "operator":
                taken = await self._keep(seat, live, post)
                if taken.history is not None:  # given back to the bot, on another server
                    with self._places.reserve(seat.who, post.id, self._canary(live)) as place:
                        self._answer(live, post, place.options(post.overrides, post.id), taken, place)
                return
            with self._places.reserve(seat.who, post.id, self._canary(live)) as place:
                options = place.options(post.overrides, post.id)
                self._answer(live, post, options, await self._keep(seat, live, post), place)

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
                raise busy("a reply is running", request.reply)
            if live.owner == "operator":
                raise Refusal(taken_over(request.reply))
            with self._places.reserve(seat.who, request.reply, self._canary(live)) as place:
                options = place.options(request.overrides, request.reply)
                turn, history = await self._ledger.question_of(live.id, request.reply)
                self._begin(live, Question(turn, request.reply, options, history), place)

    async def judge(self, seat: Seat, request: Judge) -> None:
        """Keep what the visitor thinks of a reply, and show it on all of their sockets."""
        async with self._held(seat.conversation) as live:
            await self._ledger.rate(live.id, request)
            live.broadcast(Rated(message=request.message, rating=request.rating))
            self._tell(live, "rated")

    async def summon(self, seat: Seat) -> None:
        """The visitor asks for a person. Noted once; asked again, they hear how it stands."""
        async with self._held(seat.conversation) as live:
            if live.owner == "bot" and not live.waiting:
                owned = await self._ledger.want_person(live.id)
                self._learn_owner(live, owned.owner, owned.waiting)
            else:
                seat.mailbox.put(live.owner_event)

    # --- what operators ask for ---------------------------------------------------------------------------

    async def change_owner(self, conversation: str, wish: OwnerWish) -> Ownership:
        """An operator takes the conversation over, or gives it back to the bot, if it is as they think.

        Taken over, the bot says nothing from the commit on: what it was saying is dropped. Given back, it
        answers a last turn that nobody has answered.

        Raises `OwnerChanged`, `UnknownConversation`.
        """
        async with self._held(conversation) as live:
            with live.silent():
                owned = await self._ledger.change_owner(conversation, wish)
                if not self._learn_owner(live, owned.owner, owned.waiting):  # from one operator to another
                    self._tell(live, "owner")
            if owned.owner == "bot":
                await self._answer_last(live)
            return owned

    async def close(self, conversation: str, by: str, closed: bool, along: Along | None = None) -> Ownership:
        """An operator is done with the conversation, which is the bot's again; or is not so after all.

        Raises `OwnerChanged` where another operator has it, `UnknownConversation`.
        """
        async with self._held(conversation) as live:
            before = live.owner
            owned = await self._ledger.close(conversation, by, closed, along)
            self._learn_owner(live, owned.owner, owned.waiting)
            self._tell(live, "closed")
            if before == "operator" and owned.owner == "bot":
                await self._answer_last(live)
            return owned

    async def intervene(self, conversation: str, say: OperatorSay) -> Message:
        """An operator speaks in a conversation that they have taken over. Said again, it gives the same.

        Raises `OwnerChanged`, `ClientIdConflict`, `ConversationFull`, `UnknownConversation`.
        """
        async with self._held(conversation) as live:
            message, new = await self._ledger.intervene(conversation, say)
            if new:
                self._learn_owner(live, "operator")
                live.broadcast(message)
                live.sent(message.seq)
                self._tell(live, "said")
            return message

    def forget(self, conversations: Iterable[str]) -> None:
        """They were erased: their sockets are closed, and nothing of them stays in memory."""
        for conversation in conversations:
            self._ledger.forget(conversation)
            live = self._live.get(conversation)
            if live is not None:
                self._drop(live)
                for seat in live.seats:
                    seat.mailbox.close(Close.UNAUTHENTICATED, "the conversation was erased")
                live.seats.clear()
                self._forget_idle(live)

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
            self._forget_idle(live)

    async def look_elsewhere(self) -> None:
        """Show to who listens here what other servers have written since.

        Raises `StoreUnavailable`.
        """
        present = [live.id for live in self._live.values() if live.seats or live.listeners]
        for conversation, (last_seq, ownership) in (await self._ledger.standing(present)).items():
            live = self._live.get(conversation)
            if live is not None and live.behind(last_seq, ownership):
                await self._catch_up(conversation, last_seq)

    def observe(self, observer: Observer) -> None:
        """Have `observer` told of every change in any conversation, on the event loop."""
        self._observers.append(observer)

    # --- what the server does -----------------------------------------------------------------------------

    @property
    def replies(self) -> int:
        """Replies in the making."""
        return len(self._replies)

    async def drain(self, seconds: float) -> None:
        """Begin no more replies; let those under way finish for `seconds`, then end and keep them."""
        self._places.close()
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

    def _learn_owner(self, live: Live, owner: OwnerName, waiting: bool = False) -> bool:
        """Who answers is known anew: all are told if that is news, and an operator silences the bot."""
        if owner == "operator":
            self._drop(live)
        if (owner, waiting) == (live.owner, live.waiting):
            return False
        changed: Change = "waiting" if owner == live.owner else "owner"
        live.owner, live.waiting = owner, waiting
        live.broadcast(live.owner_event)
        self._tell(live, changed)
        return True

    def _drop(self, live: Live) -> None:
        """Nothing more of a running reply is sent, and it is not kept."""
        if live.running is not None:
            running, live.running = live.running, None
            self._engine.cancel(running.id)
            logs.event(log, logging.INFO, "reply_dropped", reply=running.id)

    async def _catch_up(self, conversation: str, last_seq: int) -> None:
        async with self._held(conversation) as live:
            live.seq = last_seq if live.seq is None else live.seq
            news = await self._ledger.snapshot(conversation, live.seq)
            was = live.owner
            self._learn_owner(live, news.ownership.owner, news.ownership.waiting)
            for message in news.messages:
                live.broadcast(message)
                self._tell(live, "said" if message.reply is None else "replied")
            live.seq = news.last_seq
            if was == "operator" and live.owner == "bot":
                await self._answer_last(live)

    def _tell(self, live: Live, change: Change) -> None:
        for observer in self._observers:
            observer(live.id, change)

    async def _keep(self, seat: Seat, live: Live, post: Post) -> Taken:
        """Commit a turn, acknowledge it and show it to the others."""
        taken = await self._ledger.take(live.id, post)
        if taken.owner != live.owner:  # changed on another server
            self._learn_owner(live, taken.owner)
        seat.mailbox.put(taken.accepted)
        if taken.said is not None:
            live.broadcast(taken.said, but=seat)
            live.sent(taken.said.seq)
            self._tell(live, "said")
        if taken.answer is not None:
            seat.mailbox.put(taken.answer)
        return taken

    def _answer(self, live: Live, post: Post, options: DecodingOptions, taken: Taken, place: Place) -> None:
        """Begin the reply to a turn that was just kept, if it is to have one."""
        if taken.history is not None:
            asked = (taken.accepted, post.text)
            question = Question(taken.accepted.message, post.id, options, taken.history, asked)
            self._begin(live, question, place)

    def _say_meanwhile(self, seat: Seat, question: Question, post: Post) -> None:
        """A say while a reply is in the making: fine when it is the one being answered, else too early."""
        if question.asked is None or question.asked[0].id != post.id:
            raise busy("a reply is running", post.id)
        accepted, text = question.asked
        if text != post.text:
            reason = "this id was used before in this conversation, with another text"
            raise Refusal(Error(code="conflict", message=reason, id=post.id))
        seat.mailbox.put(accepted)

    # --- one reply ----------------------------------------------------------------------------------------

    async def _answer_late(self, live: Live, turn: MessageRecord, who: Who) -> Error | None:
        """Begin the reply that a turn never got; the error to be shown when that cannot be done now."""
        try:
            with self._places.reserve(who, turn.client_id, self._canary(live)) as place:
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

    async def _answer_last(self, live: Live) -> None:
        """The bot has the conversation again: a visitor who is there and waits for an answer gets it."""
        if not live.seats or live.running is not None:
            return
        turn = await self._ledger.unanswered(live.id)
        if turn is None:
            return
        failure = await self._answer_late(live, turn, live.seats[-1].who)
        if failure is not None:
            live.broadcast(failure)

    def _begin(self, live: Live, question: Question, place: Place) -> None:
        options = question.options
        if options.seed is None:
            options = options.model_copy(update={"seed": secrets.randbelow(SEEDS)})
        reply = uuid.uuid4().hex
        generation = self._engine.generate(
            ReplyRequest(reply, tuple(question.history), options, live.id), place.pass_on()
        )
        guarded = self._abstention.below > 0 and generation.permit.speaker.calibration is not None
        live.running = Running(reply, question, options, generation, guarded)
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
                        live.stream(running, storable(event.text))
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
            if live.running is not running:
                return  # taken over meanwhile
            try:
                message = await self._keep_reply(live.id, new)
            except TakenOver:  # on another server
                self._learn_owner(live, "operator")
                return
            live.running = None
            live.broadcast(message)
            live.sent(message.seq)
            self._tell(live, "replied")
            if message.finish_reason == "abstained":
                self._learn_owner(live, live.owner, waiting=True)
        if self._rollouts is not None and reply.finish_reason != "cancelled":
            history = running.question.history
            self._rollouts.overhear(Overheard(message.message, live.id, new.model, history, running.options))
        logs.event(
            log, logging.INFO, "reply", reply=running.id, tokens=len(reply.token_ids),
            finish_reason=reply.finish_reason, **asdict(running.generation.timing),
        )  # fmt: skip

    async def _keep_reply(self, conversation: str, reply: NewReply) -> Message:
        for attempt in range(1, COMMITS + 1):
            try:
                return await self._ledger.add_reply(conversation, reply)
            except StoreUnavailable as error:
                if not error.busy or attempt == COMMITS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _new_reply(self, running: Running, reply: Reply) -> NewReply:
        timing = running.generation.timing
        speaker = running.generation.permit.speaker
        calibration = speaker.calibration
        confidence = None if calibration is None else calibration.confidence(reply.logprobs)
        said, text = storable(reply.text), None
        # What was stopped by the visitor is theirs to read as it is.
        if confidence is not None and reply.finish_reason != "cancelled":
            text = self._abstention.instead(confidence)
        return NewReply(
            reply_id=running.id,
            answers=running.question.message,
            text=said if text is None else text,
            finish_reason=reply.finish_reason if text is None else "abstained",
            withheld=None if text is None else said,
            confidence=confidence,
            model=speaker.fingerprint,
            options=running.options.model_dump(),
            seed=reply.seed,
            token_ids=reply.token_ids,
            logprobs=reply.logprobs,
            # What is withheld is not shown as one of several either.
            alternatives=[]
            if text is not None
            else [asdict(a) | {"text": storable(a.text)} for a in reply.alternatives],
            queued_ms=timing.queued_ms,
            first_token_ms=timing.first_token_ms,
            total_ms=timing.total_ms,
        )

    def _canary(self, live: Live) -> str | None:
        """The model that answers here, if it is not the one in use."""
        return None if self._rollouts is None else self._rollouts.model_for(live.id, live.began)

    def _fail(self, live: Live, running: Running, failed: Failed) -> None:
        """The turn stays unanswered: it is answered when it is said again, or at the next hello."""
        if live.running is not running:
            return  # nobody waits for it any more
        live.running = None
        logs.event(log, logging.WARNING, "reply_failed", reply=running.id)
        about = running.question.about
        if failed.field is not None:
            live.broadcast(Error(code="bad_option", message=failed.message, id=about, field=failed.field))
        else:
            live.broadcast(Error(code="internal", message=failed.message, id=about, retry_after=RETRY_AFTER))


def storable(text: str) -> str:
    """What a model wrote, without NUL: it has a token for every byte, and no database keeps that one."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
