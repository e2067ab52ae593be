"""What conversations need of the store, in the protocol's words: a method is a trip to its thread.

The store keeps records; sessions speak of tokens, turns and replies. Whatever a client may not do, or what
is not there, is a `Refusal` that carries the error to be sent. Nothing here belongs on the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatbot.transcripts import Role
from server.protocol import Accepted, Alternative, Error, Message
from server.session import Judge, Open, Post
from server.store import ClientIdConflict, MessageRecord, NewReply, Store, StoredTurn

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
    """A conversation as it stands. unanswered: its last user turn, unless that has a reply."""

    last_seq: int
    messages: tuple[Message, ...]
    unanswered: MessageRecord | None


@dataclass(frozen=True, slots=True)
class Taken:
    """A turn that is in the store.

    said: the turn as a message; None when it was there before.
    answer: the reply to a turn that was there before.
    history: what the model reads to answer it; None when it is not to be answered now.
    """

    accepted: Accepted
    said: Message | None
    answer: Message | None
    history: History | None


class Ledger:
    """max_messages: how many one conversation may hold."""

    def __init__(self, store: Store, max_messages: int) -> None:
        self._store = store
        self._max_messages = max_messages

    def let_in(self, request: Open) -> Admission:
        """Who comes without a token or a conversation gets one. Another's is refused as if missing."""
        if request.token is None and request.conversation is not None:
            raise Refusal(_no_conversation())
        if request.token is None:
            grant = self._store.new_visitor()
            visitor, token = grant.visitor_id, grant.token
        else:
            known = self._store.visitor_of(request.token)
            if known is None:
                raise Refusal(Error(code="unauthenticated", message="this token is not known"))
            visitor, token = known, request.token
        if request.conversation is None:
            return Admission(token, self._store.open_conversation(visitor))
        if not self._store.owns(visitor, request.conversation):
            raise Refusal(_no_conversation())
        return Admission(token, request.conversation)

    def snapshot(self, conversation: str, after_seq: int) -> Snapshot:
        last_seq = self._store.last_seq(conversation)
        if after_seq > last_seq:
            raise Refusal(Error(code="bad_state", message="last_seq is beyond the end of the conversation"))
        found: list[Message] = []
        while page := self._store.messages(conversation, after_seq, PAGE):
            found += map(message, page)
            after_seq = page[-1].seq
            if len(page) < PAGE:
                break
        return Snapshot(last_seq, tuple(found), self._store.unanswered(conversation))

    def take(self, conversation: str, post: Post) -> Taken:
        """Commit a turn, or find it committed, then with its answer if there is one."""
        full = self._store.last_seq(conversation) >= self._max_messages
        # A turn that is in it already needs no place: whoever says it again hears that it arrived.
        if full and not self._store.has_said(conversation, post.id):
            raise Refusal(self._full(post.id))
        try:
            turn = self._store.add_user_turn(conversation, post.id, post.text, post.overrides)
        except ClientIdConflict:
            reason = "this id was used before in this conversation, with another text"
            raise Refusal(Error(code="conflict", message=reason, id=post.id)) from None
        accepted = Accepted(id=post.id, message=turn.message_id, seq=turn.seq)
        if turn.created:
            return Taken(accepted, _said(turn, post), None, self.history(conversation, turn.message_id))
        unanswered = self._store.unanswered(conversation)
        if unanswered is not None and unanswered.message_id == turn.message_id:
            return Taken(accepted, None, None, self.history(conversation, turn.message_id))
        answer = self._store.answer(conversation, turn.message_id)
        return Taken(accepted, None, None if answer is None else message(answer), None)

    def history(self, conversation: str, answering: str) -> History:
        """What the model reads to answer a turn."""
        return self._store.history(conversation, answering=answering)

    def question_of(self, conversation: str, reply: str) -> tuple[str, History]:
        """The turn that a reply answers, by its message id, and what the model reads to answer it again."""
        record = self._store.reply_record(conversation, reply)
        if record is None or record.answers is None:
            raise Refusal(Error(code="not_found", message="no such reply", id=reply))
        if self._store.last_seq(conversation) >= self._max_messages:
            raise Refusal(self._full(reply))
        return record.answers, self.history(conversation, record.answers)

    def add_reply(self, conversation: str, reply: NewReply) -> Message:
        """Commit a finished reply."""
        turn = self._store.add_reply(conversation, reply)
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

    def rate(self, conversation: str, request: Judge) -> None:
        if not self._store.rate(conversation, request.message, request.rating, request.comment):
            raise Refusal(Error(code="not_found", message="no such reply", id=request.message))

    def _full(self, about: str) -> Error:
        reason = f"a conversation holds at most {self._max_messages} messages; begin a new one"
        return Error(code="too_long", message=reason, id=about)


def message(record: MessageRecord) -> Message:
    """A stored message as it is sent."""
    found = record.alternatives
    return Message(
        seq=record.seq,
        message=record.message_id,
        role=record.role,
        text=record.text,
        at=record.created_at.isoformat(),
        client_id=record.client_id,
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


def _no_conversation() -> Error:
    return Error(code="not_found", message="no such conversation")
