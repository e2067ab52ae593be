"""Live conversations: who listens to which, and the one reply that each may have in the making.

A reply belongs to its conversation, not to the socket that asked for it: it goes on when the socket goes,
every socket of the conversation sees it, and one that comes late is told how far it is. What happens to a
conversation durably happens under its lock, first in the database and then on the sockets, so that every
socket sees the same order.

Everything here belongs on the event loop; the store works on its own threads, the model on the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from chatbot.options import DecodingOptions
from server.desk import Along
from server.engine import Engine
from server.greeting import greeting
from server.ledger import Ledger, OperatorSay, OwnerWish, Refusal, Taken, taken_over
from server.limits import Rates, Who, visitor_key
from server.live_conversation import Live, Question, Seat
from server.mailbox import Mailbox
from server.places import Place, Places, busy
from server.presence import Observer, Presence
from server.protocol import Error, Message, Rated
from server.replying import Abstention, Replying
from server.rollouts import Rollouts
from server.session import Judge, Open, Post, Redo
from server.store import Ownership


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


class Conversations:
    """Carries out what sessions ask for. What cannot be raises `Refusal` and has changed nothing."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        bounds: Bounds,
        abstention: Abstention | None = None,
        rollouts: Rollouts | None = None,
    ) -> None:
        """rollouts: who else may answer, or is asked as well."""
        self._ledger = ledger
        self._engine = engine
        self._max_text = bounds.max_text
        self._newcomers = Rates(bounds.visitors_per_address / 60, bounds.visitors_per_address)
        self._presence = Presence(engine, bounds.sockets)
        places = Places(engine, bounds.replies_per_visitor, bounds.replies_per_address)
        self._replying = Replying(
            self._presence, ledger, engine, places, abstention or Abstention(), rollouts
        )

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
        async with self._presence.held(admission.conversation) as live:
            snapshot = await self._ledger.snapshot(live.id, request.last_seq)
            self._presence.learn_owner(live, snapshot.ownership.owner, snapshot.ownership.waiting)
            live.began = snapshot.ownership.began
            if not live.seats:
                live.seq = snapshot.last_seq
            failure = None
            if snapshot.unanswered is not None and live.running is None:
                failure = await self._replying.answer_late(live, snapshot.unanswered, who)
            speaker, most = self._engine.speaker, self._max_text
            ready, rest = greeting(admission.token, live, snapshot, speaker, most)
            mailbox.put(ready)
            mailbox.admit(rest)
            if failure is not None:
                mailbox.put(failure)
            return self._presence.sit(live, mailbox, who)

    def leave(self, seat: Seat) -> None:
        """The socket is gone. A running reply goes on."""
        self._presence.leave(seat)

    async def say(self, seat: Seat, post: Post) -> None:
        """Commit a turn, acknowledge it, have it answered. Said again, it gives the same and no more."""
        async with self._presence.held(seat.conversation) as live:
            if live.running is not None:
                self._say_meanwhile(seat, live.running.question, post)
                return
            if live.owner == "operator":
                taken = await self._keep(seat, live, post)
                if taken.history is not None:  # given back to the bot, on another server
                    with self._replying.reserve(live, seat.who, post.id) as place:
                        self._answer(live, post, place.options(post.overrides, post.id), taken, place)
                return
            with self._replying.reserve(live, seat.who, post.id) as place:
                options = place.options(post.overrides, post.id)
                self._answer(live, post, options, await self._keep(seat, live, post), place)

    async def stop(self, seat: Seat, reply: str) -> None:
        """End a running reply; what there is of it is kept."""
        live = self._presence.find(seat.conversation)
        if live is None or live.running is None or live.running.id != reply:
            raise Refusal(Error(code="bad_state", message="no such reply is running", id=reply))
        self._engine.cancel(reply)

    async def redo(self, seat: Seat, request: Redo) -> None:
        """Answer the same turn once more; the new reply takes the old one's place."""
        async with self._presence.held(seat.conversation) as live:
            if live.running is not None:
                raise busy("a reply is running", request.reply)
            if live.owner == "operator":
                raise Refusal(taken_over(request.reply))
            with self._replying.reserve(live, seat.who, request.reply) as place:
                options = place.options(request.overrides, request.reply)
                turn, history = await self._ledger.question_of(live.id, request.reply)
                self._replying.begin(live, Question(turn, request.reply, options, history), place)

    async def judge(self, seat: Seat, request: Judge) -> None:
        """Keep what the visitor thinks of a reply, and show it on all of their sockets."""
        async with self._presence.held(seat.conversation) as live:
            await self._ledger.rate(live.id, request)
            live.broadcast(Rated(message=request.message, rating=request.rating))
            self._presence.tell(live, "rated")

    async def summon(self, seat: Seat) -> None:
        """The visitor asks for a person. Noted once; asked again, they hear how it stands."""
        async with self._presence.held(seat.conversation) as live:
            if live.owner == "bot" and not live.waiting:
                owned = await self._ledger.want_person(live.id)
                self._presence.learn_owner(live, owned.owner, owned.waiting)
            else:
                seat.mailbox.put(live.owner_event)

    # --- what operators ask for ---------------------------------------------------------------------------

    async def change_owner(self, conversation: str, wish: OwnerWish) -> Ownership:
        """An operator takes the conversation over, or gives it back to the bot, if it is as they think.

        Taken over, the bot says nothing from the commit on: what it was saying is dropped. Given back, it
        answers a last turn that nobody has answered.

        Raises `OwnerChanged`, `UnknownConversation`.
        """
        async with self._presence.held(conversation) as live:
            with live.silent():
                owned = await self._ledger.change_owner(conversation, wish)
                if not self._presence.learn_owner(
                    live, owned.owner, owned.waiting
                ):  # from one operator to another
                    self._presence.tell(live, "owner")
            if owned.owner == "bot":
                await self._replying.answer_last(live)
            return owned

    async def close(self, conversation: str, by: str, closed: bool, along: Along | None = None) -> Ownership:
        """An operator is done with the conversation, which is the bot's again; or is not so after all.

        Raises `OwnerChanged` where another operator has it, `UnknownConversation`.
        """
        async with self._presence.held(conversation) as live:
            before = live.owner
            owned = await self._ledger.close(conversation, by, closed, along)
            self._presence.learn_owner(live, owned.owner, owned.waiting)
            self._presence.tell(live, "closed")
            if before == "operator" and owned.owner == "bot":
                await self._replying.answer_last(live)
            return owned

    async def intervene(self, conversation: str, say: OperatorSay) -> Message:
        """An operator speaks in a conversation that they have taken over. Said again, it gives the same.

        Raises `OwnerChanged`, `ClientIdConflict`, `ConversationFull`, `UnknownConversation`.
        """
        async with self._presence.held(conversation) as live:
            message, new = await self._ledger.intervene(conversation, say)
            if new:
                self._presence.learn_owner(live, "operator")
                live.broadcast(message)
                live.sent(message.seq)
                self._presence.tell(live, "said")
            return message

    def forget(self, conversations: Iterable[str]) -> None:
        """They were erased: their sockets are closed, and nothing of them stays in memory."""
        for conversation in conversations:
            self._ledger.forget(conversation)
            live = self._presence.find(conversation)
            if live is not None:
                self._presence.send_away(live, "the conversation was erased")

    def watch(self, conversation: str, mailbox: Mailbox) -> None:
        """Let an operator look on: what visitors are sent from now on, and the running reply so far."""
        self._presence.watch(conversation, mailbox)

    def unwatch(self, conversation: str, mailbox: Mailbox) -> None:
        self._presence.unwatch(conversation, mailbox)

    def observe(self, observer: Observer) -> None:
        """Have `observer` told of every change in any conversation, on the event loop."""
        self._presence.observe(observer)

    # --- what the server does -----------------------------------------------------------------------------

    async def look_elsewhere(self) -> None:
        """Show to who listens here what other servers have written since.

        Raises `StoreUnavailable`.
        """
        present = [live.id for live in self._presence if live.seats or live.listeners]
        for conversation, (last_seq, ownership) in (await self._ledger.standing(present)).items():
            live = self._presence.find(conversation)
            if live is not None and live.behind(last_seq, ownership):
                await self._catch_up(conversation, last_seq)

    @property
    def replies(self) -> int:
        """Replies in the making."""
        return len(self._replying)

    async def drain(self, seconds: float) -> None:
        """Begin no more replies; let those under way finish for `seconds`, then end and keep them."""
        await self._replying.drain(seconds)

    async def _catch_up(self, conversation: str, last_seq: int) -> None:
        async with self._presence.held(conversation) as live:
            live.seq = last_seq if live.seq is None else live.seq
            news = await self._ledger.snapshot(conversation, live.seq)
            was = live.owner
            self._presence.learn_owner(live, news.ownership.owner, news.ownership.waiting)
            live.seq = news.last_seq
            for message in news.messages:
                live.broadcast(message)
                self._presence.tell(live, "said" if message.reply is None else "replied")
            if was == "operator" and live.owner == "bot":
                await self._replying.answer_last(live)

    # --- a turn -------------------------------------------------------------------------------------------

    async def _keep(self, seat: Seat, live: Live, post: Post) -> Taken:
        """Commit a turn, acknowledge it and show it to the others."""
        taken = await self._ledger.take(live.id, post)
        if taken.owner != live.owner:  # changed on another server
            self._presence.learn_owner(live, taken.owner)
        seat.mailbox.put(taken.accepted)
        if taken.said is not None:
            live.broadcast(taken.said, but=seat)
            live.sent(taken.said.seq)
            self._presence.tell(live, "said")
        if taken.answer is not None:
            seat.mailbox.put(taken.answer)
        return taken

    def _answer(self, live: Live, post: Post, options: DecodingOptions, taken: Taken, place: Place) -> None:
        """Begin the reply to a turn that was just kept, if it is to have one."""
        if taken.history is not None:
            asked = (taken.accepted, post.text)
            question = Question(taken.accepted.message, post.id, options, taken.history, asked)
            self._replying.begin(live, question, place)

    def _say_meanwhile(self, seat: Seat, question: Question, post: Post) -> None:
        """A say while a reply is in the making: fine when it is the one being answered, else too early."""
        if question.asked is None or question.asked[0].id != post.id:
            raise busy("a reply is running", post.id)
        accepted, text = question.asked
        if text != post.text:
            reason = "this id was used before in this conversation, with another text"
            raise Refusal(Error(code="conflict", message=reason, id=post.id))
        seat.mailbox.put(accepted)
