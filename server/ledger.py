"""What conversations need of the store, in the protocol's words, from the event loop.

The store keeps records; sessions speak of tokens, turns and replies. Whatever a client may not do, or what
is not there, is a `Refusal` that carries the error to be sent. Reading is a trip to the store's threads;
what is written waits for the writer's next commit, on no thread at all. What a model reads to answer a new
turn is in memory as a rule (server.histories), however long the conversation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from chatbot.transcripts import Role
from server.desk import Along
from server.histories import HISTORY_BYTES, Histories
from server.offload import Offload
from server.protocol import Accepted, Alternative, Error, Message, OwnerName
from server.session import Judge, Open, Post
from server.store import (
    ClientIdConflict,
    ConversationFull,
    MessageRecord,
    NewReply,
    Ownership,
    Store,
    StoredTurn,
    UnknownConversation,
)

Result = TypeVar("Result")

PAGE = 1000
"""Messages read at a time."""

History = Sequence[tuple[Role, str]]


class Refusal(Exception):
    """A request that is not carried out, and the protocol's error for it."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.code)
        self.error = error


@dataclass(frozen=True, slots=True)
class Admission:
    """A visitor's token and the conversation they have come for."""

    token: str
    conversation: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A conversation as it stands. unanswered: its last user turn, if the bot is to answer it."""

    last_seq: int
    messages: tuple[Message, ...]
    unanswered: MessageRecord | None
    ownership: Ownership


@dataclass(frozen=True, slots=True)
class Taken:
    """A turn that is in the store.

    said: the turn as a message; None when it was there before.
    answer: the reply to a turn that was there before.
    history: what the model reads to answer it; None when it is not to be answered now.
    owner: who answers the conversation.
    """

    accepted: Accepted
    said: Message | None
    answer: Message | None
    history: History | None
    owner: OwnerName


@dataclass(frozen=True, slots=True)
class OperatorSay:
    """What an operator says. id: their client's own, so that saying it again is harmless.

    along: writes more in the same transaction, if the turn is new.
    """

    id: str
    text: str
    operator: str
    along: Along | None = None


@dataclass(frozen=True, slots=True)
class OwnerWish:
    """That another answers from now on. by: the operator whose wish it is.

    version: of the ownership that they know. taken: by them; else by the bot. along: as above.
    """

    by: str
    version: int
    taken: bool
    along: Along | None = None


class Ledger:
    """max_messages: how many one conversation may hold. histories: bytes that may be kept in memory of what
    models have read.
    """

    def __init__(
        self, store: Store, offload: Offload, max_messages: int, histories: int = HISTORY_BYTES
    ) -> None:
        self._store = store
        self._offload = offload
        self._max_messages = max_messages
        self._histories = Histories(histories)

    async def let_in(self, request: Open) -> Admission:
        """Who comes without a token or a conversation gets one. Another's is refused as if missing."""
        if request.token is None:
            if request.conversation is not None:
                raise Refusal(_no_conversation())
            grant, kept = self._store.submit_visitor()
            await _committed(kept)
            visitor, token = grant.visitor_id, grant.token
        else:
            token = request.token
            known = await self._offload(self._store.visitor_of, token)
            if known is None:
                raise Refusal(Error(code="unauthenticated", message="this token is not known"))
            visitor = known
        if request.conversation is None:
            conversation, kept = self._store.submit_conversation(visitor)
            await _committed(kept)
            return Admission(token, conversation)
        if not await self._offload(self._store.owns, visitor, request.conversation):
            raise Refusal(_no_conversation())
        return Admission(token, request.conversation)

    async def snapshot(self, conversation: str, after_seq: int) -> Snapshot:
        return await self._offload(self._read_snapshot, conversation, after_seq)

    def _read_snapshot(self, conversation: str, after_seq: int) -> Snapshot:
        last_seq = self._store.last_seq(conversation)
        if after_seq > last_seq:
            raise Refusal(Error(code="bad_state", message="last_seq is beyond the end of the conversation"))
        found: list[Message] = []
        while page := self._store.messages(conversation, after_seq, PAGE):
            found += map(message, page)
            after_seq = page[-1].seq
            if len(page) < PAGE:
                break
        ownership = self._ownership(conversation)
        unanswered = self._store.unanswered(conversation) if ownership.owner == "bot" else None
        return Snapshot(last_seq, tuple(found), unanswered, ownership)

    def _ownership(self, conversation: str) -> Ownership:
        found = self._store.ownership(conversation)
        if found is None:
            raise UnknownConversation(conversation)
        return found

    async def take(self, conversation: str, post: Post) -> Taken:
        """Commit a turn, or find it committed, then with its answer if there is one."""
        try:
            turn = await _committed(
                self._store.submit_user_turn(
                    conversation, post.id, post.text, post.overrides, self._max_messages
                )
            )
        except ClientIdConflict:
            reason = "this id was used before in this conversation, with another text"
            raise Refusal(Error(code="conflict", message=reason, id=post.id)) from None
        except ConversationFull:
            raise Refusal(self._full(post.id)) from None
        accepted = Accepted(id=post.id, message=turn.message_id, seq=turn.seq)
        if not turn.created:
            return await self._offload(self._find_again, conversation, accepted, turn.owner)
        history = self._histories.say(conversation, turn, post.text)
        if turn.owner == "operator":
            return Taken(accepted, _said(turn, post), None, None, turn.owner)
        if history is None:
            history = tuple(await self.history(conversation, turn.message_id))
            self._histories.learn(conversation, turn, history)
        return Taken(accepted, _said(turn, post), None, history, turn.owner)

    def _find_again(self, conversation: str, accepted: Accepted, owner: OwnerName) -> Taken:
        """What has become of a turn that was there before."""
        unanswered = self._store.unanswered(conversation) if owner == "bot" else None
        if unanswered is not None and unanswered.message_id == accepted.message:
            history = self._store.history(conversation, answering=accepted.message)
            return Taken(accepted, None, None, history, owner)
        answer = self._store.answer(conversation, accepted.message)
        return Taken(accepted, None, None if answer is None else message(answer), None, owner)

    async def history(self, conversation: str, answering: str) -> History:
        """What the model reads to answer a turn."""
        return await self._offload(self._store.history, conversation, answering=answering)

    async def question_of(self, conversation: str, reply: str) -> tuple[str, History]:
        """The turn that a reply answers, by its message id, and what the model reads to answer it again."""
        return await self._offload(self._find_question, conversation, reply)

    def _find_question(self, conversation: str, reply: str) -> tuple[str, History]:
        record = self._store.reply_record(conversation, reply)
        if record is None or record.answers is None:
            raise Refusal(Error(code="not_found", message="no such reply", id=reply))
        if self._ownership(conversation).owner == "operator":
            raise Refusal(taken_over(reply))
        if self._store.last_seq(conversation) >= self._max_messages:
            raise Refusal(self._full(reply))
        return record.answers, self._store.history(conversation, answering=record.answers)

    async def add_reply(self, conversation: str, reply: NewReply) -> Message:
        """Commit a finished reply. Raises `TakenOver` where an operator answers by now."""
        turn = await _committed(self._store.submit_reply(conversation, reply))
        self._histories.answer(conversation, turn, reply)
        return Message(
            seq=turn.seq,
            message=turn.message_id,
            role="agent",
            text=reply.text,
            at=turn.created_at.isoformat(),
            reply=reply.reply_id,
            answers=reply.answers,
            replaces=turn.replaces,
            finish_reason=reply.finish_reason,
            model=reply.model,
            seed=reply.seed,
            alternatives=_alternatives([(a["text"], a["score"]) for a in reply.alternatives]),
        )

    def forget(self, conversation: str) -> None:
        """It was erased: nothing of it stays in memory."""
        self._histories.forget(conversation)

    async def rate(self, conversation: str, request: Judge) -> None:
        kept = self._store.submit_rating(conversation, request.message, request.rating, request.comment)
        if not await _committed(kept):
            raise Refusal(Error(code="not_found", message="no such reply", id=request.message))

    # --- who answers --------------------------------------------------------------------------------------

    async def unanswered(self, conversation: str) -> MessageRecord | None:
        """The last user turn, if nothing answers it."""
        return await self._offload(self._store.unanswered, conversation)

    async def standing(self, conversations: Sequence[str]) -> dict[str, tuple[int, Ownership]]:
        """The number of the newest message, and who answers, of each conversation."""
        return await self._offload(self._store.standing, conversations)

    async def want_person(self, conversation: str) -> Ownership:
        """Note that the visitor asks for a person."""
        return await _committed(self._store.submit_person_wanted(conversation))

    async def change_owner(self, conversation: str, wish: OwnerWish) -> Ownership:
        """Raises `OwnerChanged`, `UnknownConversation`."""
        operator = wish.by if wish.taken else None
        return await _committed(
            self._store.submit_owner(conversation, wish.version, wish.by, operator, wish.along)
        )

    async def close(self, conversation: str, by: str, closed: bool, along: Along | None) -> Ownership:
        """Raises `OwnerChanged` where another operator has it, `UnknownConversation`."""
        return await _committed(self._store.submit_closing(conversation, by, closed, along))

    async def intervene(self, conversation: str, say: OperatorSay) -> tuple[Message, bool]:
        """Commit what an operator says, or find it committed; and whether it is new.

        Raises `OwnerChanged`, `ClientIdConflict`, `ConversationFull`, `UnknownConversation`.
        """
        turn = await _committed(
            self._store.submit_operator_turn(
                conversation, say.id, say.text, say.operator, self._max_messages, say.along
            )
        )
        if turn.created:
            self._histories.intervene(conversation, turn, say.text)
        sent = Message(
            seq=turn.seq,
            message=turn.message_id,
            role="agent",
            text=say.text,
            author="operator",
            at=turn.created_at.isoformat(),
        )
        return sent, turn.created

    def _full(self, about: str) -> Error:
        reason = f"a conversation holds at most {self._max_messages} messages; begin a new one"
        return Error(code="too_long", message=reason, id=about)


async def _committed(future: Future[Result]) -> Result:
    return await asyncio.wrap_future(future)


def message(record: MessageRecord) -> Message:
    """A stored message as it is sent."""
    found = record.alternatives
    return Message(
        seq=record.seq,
        message=record.message_id,
        role=record.role,
        text=record.text,
        author=None if record.operator_id is None else "operator",
        at=record.created_at.isoformat(),
        client_id=record.client_id if record.role == "user" else None,
        reply=record.reply_id,
        answers=record.answers,
        replaces=record.replaces,
        finish_reason=record.finish_reason,
        model=record.model,
        seed=record.seed,
        alternatives=None if found is None else _alternatives([(a.text, a.score) for a in found]),
        rating=record.rating,
        comment=record.comment,
        superseded=True if record.superseded else None,
    )


def _said(turn: StoredTurn, post: Post) -> Message:
    at = turn.created_at.isoformat()
    return Message(
        seq=turn.seq, message=turn.message_id, role="user", text=post.text, at=at, client_id=post.id
    )


def _alternatives(found: Sequence[tuple[str, float]]) -> tuple[Alternative, ...] | None:
    """None for a reply that was not chosen among several."""
    return tuple(Alternative(text=text, score=score) for text, score in found) or None


def taken_over(about: str) -> Error:
    return Error(code="bad_state", message="a person answers this conversation", id=about)


def _no_conversation() -> Error:
    return Error(code="not_found", message="no such conversation")
