"""Making replies: one at a time in a conversation, streamed to whoever listens, kept before it counts.

A reply goes on when the socket that asked for it goes. Everything here belongs on the event loop; the model
works on the engine, the database on the writer's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from dataclasses import asdict, dataclass
from typing import Final

from chatbot.options import OptionError
from chatbot.replies import Failed, Piece, Reply, ReplyRequest
from server import logs
from server.engine import Engine
from server.ledger import Ledger, Refusal
from server.limits import Who
from server.live_conversation import Live, Question, Running
from server.places import RECONNECT_AFTER, RETRY_AFTER, Place, Places
from server.presence import Presence
from server.protocol import Accepted, Delta, Error, Message
from server.rollouts import Overheard, Rollouts
from server.store import MessageRecord, NewReply, StoreUnavailable, TakenOver

log = logging.getLogger(__name__)

COMMITS: Final = 3
"""Attempts to keep a finished reply while the database is only busy."""
SEEDS: Final = 2**53
"""Seeds drawn here are below this: a browser's numbers hold them exactly."""


@dataclass(frozen=True, slots=True)
class Abstention:
    """When the bot says that it is not sure, and in which words. below: a confidence; 0: never."""

    below: float = 0.0
    words: str = ""

    def instead(self, confidence: float) -> str | None:
        """What is said in the place of a reply of this confidence; None where the reply may be given."""
        return self.words if confidence < self.below else None


class Replying:
    """presence: who hears the replies. rollouts: who else may answer, or is asked as well."""

    def __init__(
        self,
        presence: Presence,
        ledger: Ledger,
        engine: Engine,
        places: Places,
        abstention: Abstention,
        rollouts: Rollouts | None,
    ) -> None:
        self._presence = presence
        self._ledger = ledger
        self._engine = engine
        self._places = places
        self._abstention = abstention
        self._rollouts = rollouts
        self._replies: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Replies in the making."""
        return len(self._replies)

    def reserve(self, live: Live, who: Who, about: str | None) -> Place:
        """A place for a reply, with the model that answers here; `Refusal` at once when there is none."""
        model = None if self._rollouts is None else self._rollouts.model_for(live.id, live.began)
        return self._places.reserve(who, about, model)

    async def drain(self, seconds: float) -> None:
        """Begin no more replies; let those under way finish for `seconds`, then end and keep them."""
        self._places.close()
        if self._replies:
            await asyncio.wait(self._replies, timeout=seconds)
        for live in self._presence:
            if live.running is not None:
                self._engine.cancel(live.running.id)
        if self._replies:
            await asyncio.wait(self._replies, timeout=RECONNECT_AFTER)

    async def answer_late(self, live: Live, turn: MessageRecord, who: Who) -> Error | None:
        """Begin the reply that a turn never got; the error to be shown when that cannot be done now."""
        try:
            with self.reserve(live, who, turn.client_id) as place:
                try:
                    options = place.speaker.options(turn.options or {})
                except OptionError:  # said to another model, which took what this one does not
                    options = place.speaker.defaults
                history = await self._ledger.history(live.id, turn.message_id)
                asked = None
                if turn.client_id is not None:
                    accepted = Accepted(id=turn.client_id, message=turn.message_id, seq=turn.seq)
                    asked = (accepted, turn.text)
                self.begin(live, Question(turn.message_id, turn.client_id, options, history, asked), place)
        except Refusal as refusal:
            return refusal.error
        return None

    async def answer_last(self, live: Live) -> None:
        """The bot has the conversation again: a visitor who is there and waits for an answer gets it."""
        if not live.seats or live.running is not None:
            return
        turn = await self._ledger.unanswered(live.id)
        if turn is None:
            return
        failure = await self.answer_late(live, turn, live.seats[-1].who)
        if failure is not None:
            live.broadcast(failure)

    def begin(self, live: Live, question: Question, place: Place) -> None:
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
            self._presence.forget_idle(live)

    async def _finish(self, live: Live, running: Running, reply: Reply) -> None:
        new = self._new_reply(running, reply)
        async with self._presence.held(live.id):
            if live.running is not running:
                return  # taken over meanwhile
            try:
                message = await self._keep_reply(live.id, new)
            except TakenOver:  # on another server
                self._presence.learn_owner(live, "operator")
                return
            live.running = None
            live.broadcast(message)
            live.sent(message.seq)
            self._presence.tell(live, "replied")
            if message.finish_reason == "abstained":
                self._presence.learn_owner(live, live.owner, waiting=True)
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
