"""What may be written to conversations, decided about one request after the other, then written at once.

Whatever moves a conversation on (a turn, a rating, a change of its owner) is a request to one desk: their
order is the order in which the conversation lives through them, also when several of them share a
transaction. A request that is refused has written nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, assert_never

from sqlalchemy import Connection, insert

from server import lookups
from server.lookups import Head
from server.records import NewReply, Ownership, Rating, StoredTurn, storable
from server.store_errors import (
    ClientIdConflict,
    ConversationFull,
    OwnerChanged,
    StoreError,
    StoreValueError,
    TakenOver,
    UnknownConversation,
)
from server.tables import Feedback, Generation, Message

Along = Callable[[Connection], None]
"""Writes something more in the same transaction."""


@dataclass(frozen=True, slots=True)
class NewUserTurn:
    """most: messages that the conversation may hold, this one included; None for any number."""

    conversation_id: str
    client_id: str
    text: str
    options: Mapping[str, Any]
    most: int | None


@dataclass(frozen=True, slots=True)
class ReplyTurn:
    """What the bot says. Refused while an operator owns the conversation."""

    conversation_id: str
    reply: NewReply


@dataclass(frozen=True, slots=True)
class OperatorTurn:
    """What an operator says. Refused unless the conversation is theirs. most: as above."""

    conversation_id: str
    client_id: str
    text: str
    operator_id: str
    most: int | None
    along: Along | None = None


@dataclass(frozen=True, slots=True)
class NewRating:
    conversation_id: str
    message_id: str
    rating: Rating | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class NewOwner:
    """Give the conversation to an operator, or back to the bot (`operator_id` None).

    version: of the ownership that is to be changed; any other is refused. by: the operator who wants it;
    only who has a conversation may give it back.
    """

    conversation_id: str
    version: int
    by: str
    operator_id: str | None
    along: Along | None = None


@dataclass(frozen=True, slots=True)
class PersonWanted:
    """The visitor asks for a person."""

    conversation_id: str


@dataclass(frozen=True, slots=True)
class NewClosing:
    """An operator is done with the conversation, which goes back to the bot, or not so done after all.

    Refused when it is another operator's.
    """

    conversation_id: str
    by: str
    closed: bool
    along: Along | None = None


Turn = NewUserTurn | ReplyTurn | OperatorTurn
Request = Turn | NewRating | NewOwner | PersonWanted | NewClosing
Outcome = StoredTurn | Ownership | bool


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(slots=True)
class _Pending:
    """What is to be written. recount: conversations whose confidence and thumbs are to be found out anew."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    generations: list[dict[str, Any]] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    feedback: dict[str, NewRating] = field(default_factory=dict)
    recount: set[str] = field(default_factory=set)
    along: list[Along] = field(default_factory=list)


class Desk:
    """What a set of requests depends on, kept up to date while they are decided about in their order."""

    def __init__(
        self, connection: Connection, requests: Sequence[Request], clock: Callable[[], datetime]
    ) -> None:
        self._clock = clock
        said = [each for each in requests if isinstance(each, NewUserTurn | OperatorTurn)]
        replies = [each for each in requests if isinstance(each, ReplyTurn)]
        ratings = [each for each in requests if isinstance(each, NewRating)]
        # Nobody else adds to these conversations from here on. Locked in one order, so that servers do not
        # wait for each other in a ring; what the next queries see is what the last holder has committed.
        self._heads = lookups.heads(connection, (each.conversation_id for each in requests))
        self._said = {
            (row.conversation_id, row.client_id): (_stored(row), row.text, row.operator_id)
            for row in lookups.by_key(
                connection, "client_id", ((each.conversation_id, each.client_id) for each in said)
            )
        }
        self._replied = {
            (row.conversation_id, row.reply_id): _stored(row)
            for row in lookups.by_key(
                connection, "reply_id", ((r.conversation_id, r.reply.reply_id) for r in replies)
            )
        }
        answered = {r.reply.answers for r in replies}
        named = answered | {r.reply.replaces for r in replies if r.reply.replaces is not None}
        named |= {each.message_id for each in ratings}
        self._places = {row.id: row for row in lookups.by_id(connection, filter(storable, named))}
        self._current = lookups.current(connection, (key for key in self._places if key in answered))
        self._new: dict[str, dict[str, Any]] = {}
        self._pending = _Pending()

    def decide(self, request: Request) -> Outcome | StoreError:
        """What becomes of a request once `flush` has written it."""
        try:
            return self._decide(request)
        except StoreError as refusal:
            return refusal

    def _decide(self, request: Request) -> Outcome:
        match request:
            case NewUserTurn():
                return self._say(request)
            case ReplyTurn():
                return self._answer(request)
            case OperatorTurn():
                return self._say_as_operator(request)
            case NewRating():
                return self._rate(request)
            case NewOwner():
                return self._change_owner(request)
            case PersonWanted():
                return self._want_person(request)
            case NewClosing():
                return self._close(request)
            case _:
                assert_never(request)

    def flush(self, connection: Connection) -> None:
        pending = self._pending
        lookups.execute(connection, lookups.SUPERSEDE, [{"message_id": each} for each in pending.superseded])
        lookups.execute(connection, insert(Message), pending.messages)
        lookups.execute(connection, insert(Generation), pending.generations)
        lookups.execute(connection, lookups.FORGET, [{"message": each} for each in pending.feedback])
        lookups.execute(connection, insert(Feedback), self._feedback())
        self._heads.write(connection)
        if pending.recount:
            connection.execute(lookups.recount(pending.recount))
        for along in pending.along:
            along(connection)

    # --- turns ----------------------------------------------------------------------------------------

    def _say(self, request: NewUserTurn) -> StoredTurn:
        head = self._head(request.conversation_id)
        found = self._find_said(head, request, None)
        if found is not None:
            return found
        turn = self._append(
            head,
            request.conversation_id,
            None,
            role="user",
            text=request.text,
            client_id=request.client_id,
            options=dict(request.options),
        )
        head.closed_at = None
        self._said[request.conversation_id, request.client_id] = turn, request.text, None
        return turn

    def _say_as_operator(self, request: OperatorTurn) -> StoredTurn:
        head = self._head(request.conversation_id)
        found = self._find_said(head, request, request.operator_id)
        if found is not None:
            return found
        if head.operator_id != request.operator_id:
            raise OwnerChanged(request.conversation_id, head.owner_version)
        turn = self._append(
            head,
            request.conversation_id,
            None,
            role="agent",
            text=request.text,
            client_id=request.client_id,
            operator_id=request.operator_id,
        )
        self._said[request.conversation_id, request.client_id] = turn, request.text, request.operator_id
        self._also(request.along)
        return turn

    def _find_said(
        self, head: Head, request: NewUserTurn | OperatorTurn, speaker: str | None
    ) -> StoredTurn | None:
        """The turn that was said under this id before; None when there is none, and room for it.

        speaker: an operator's id; None for the visitor.
        """
        found = self._said.get((request.conversation_id, request.client_id))
        if found is not None:
            turn, text, by = found
            if (text, by) != (request.text, speaker):
                raise ClientIdConflict(request.client_id)
            return replace(turn, created=False, owner=head.owner)
        if request.most is not None and head.last_seq >= request.most:
            raise ConversationFull(request.conversation_id, request.most)
        return None

    def _answer(self, request: ReplyTurn) -> StoredTurn:
        reply = request.reply
        head = self._head(request.conversation_id)
        key = (request.conversation_id, reply.reply_id)
        if key in self._replied:
            return replace(self._replied[key], created=False, owner=head.owner)
        if head.owner == "operator":
            raise TakenOver(request.conversation_id)
        self._check_place(request.conversation_id, reply)
        replaced = self._current.get(reply.answers)
        if replaced is not None:
            self._supersede(request.conversation_id, replaced)
        turn = self._append(
            head,
            request.conversation_id,
            replaced,
            role="agent",
            text=reply.text,
            reply_id=reply.reply_id,
            answers=reply.answers,
        )
        head.model = reply.model
        if reply.confidence is not None:
            head.confidence = min(reply.confidence, 1.0 if head.confidence is None else head.confidence)
        if reply.finish_reason == "abstained":
            head.waiting_since = head.waiting_since or turn.created_at
        self._pending.generations.append(_generation(turn.message_id, reply))
        self._current[reply.answers] = turn.message_id
        self._replied[key] = turn
        return turn

    def _append(self, head: Head, conversation_id: str, replaces: str | None, **values: Any) -> StoredTurn:
        turn = StoredTurn(
            new_id(), head.last_seq + 1, self._clock(), created=True, replaces=replaces, owner=head.owner
        )
        row = _BLANK | values
        row |= {
            "id": turn.message_id,
            "conversation_id": conversation_id,
            "seq": turn.seq,
            "created_at": turn.created_at,
            "replaces": replaces,
        }
        self._pending.messages.append(row)
        self._new[turn.message_id] = row
        head.last_seq, head.updated_at = turn.seq, turn.created_at
        return turn

    def _check_place(self, conversation_id: str, reply: NewReply) -> None:
        """Raises StoreValueError unless the reply belongs to a user turn of this conversation."""
        answered = self._places.get(reply.answers)
        if answered is None or answered.conversation_id != conversation_id or answered.role != "user":
            raise StoreValueError("answers", "is no user turn of this conversation")
        if reply.replaces is not None:
            replaced = self._places.get(reply.replaces)
            if replaced is None or replaced.answers != reply.answers:
                raise StoreValueError("replaces", "is no reply to the same user turn")

    def _supersede(self, conversation_id: str, message_id: str) -> None:
        self._pending.recount.add(conversation_id)
        if message_id in self._new:
            self._new[message_id]["superseded"] = True
        else:
            self._pending.superseded.append(message_id)

    # --- ratings --------------------------------------------------------------------------------------

    def _rate(self, request: NewRating) -> bool:
        """Whether there is such a reply of the bot."""
        rated = self._places.get(request.message_id)
        if rated is None or rated.conversation_id != request.conversation_id:
            return False
        if rated.role != "agent" or rated.operator_id is not None:
            return False
        self._pending.feedback[request.message_id] = request
        self._pending.recount.add(request.conversation_id)
        return True

    def _feedback(self) -> list[dict[str, Any]]:
        return [
            {
                "message_id": each.message_id,
                "rating": each.rating,
                "comment": each.comment,
                "updated_at": self._clock(),
            }
            for each in self._pending.feedback.values()
            if each.rating is not None or each.comment is not None
        ]

    # --- who answers ----------------------------------------------------------------------------------

    def _change_owner(self, request: NewOwner) -> Ownership:
        head = self._head(request.conversation_id)
        if head.owner_version != request.version:
            raise OwnerChanged(request.conversation_id, head.owner_version)
        if request.operator_id is None and head.operator_id != request.by:
            raise OwnerChanged(request.conversation_id, head.owner_version)
        if request.operator_id != head.operator_id:
            _hand_over(head, request.operator_id)
            self._also(request.along)
        return head.ownership

    def _want_person(self, request: PersonWanted) -> Ownership:
        head = self._head(request.conversation_id)
        if head.owner == "bot" and head.waiting_since is None:
            head.waiting_since = head.updated_at = self._clock()
            head.closed_at = None
        return head.ownership

    def _close(self, request: NewClosing) -> Ownership:
        head = self._head(request.conversation_id)
        if head.operator_id not in (None, request.by):
            raise OwnerChanged(request.conversation_id, head.owner_version)
        if request.closed != (head.closed_at is not None):
            head.closed_at = self._clock() if request.closed else None
            self._also(request.along)
        if request.closed and head.owner == "operator":
            _hand_over(head, None)
        if request.closed:
            head.waiting_since = None
        return head.ownership

    def _head(self, conversation_id: str) -> Head:
        head = self._heads.get(conversation_id)
        if head is None:
            raise UnknownConversation(conversation_id)
        return head

    def _also(self, along: Along | None) -> None:
        if along is not None:
            self._pending.along.append(along)


def _hand_over(head: Head, operator_id: str | None) -> None:
    """Somebody else answers from now on; a person who comes is no longer waited for."""
    head.owner = "bot" if operator_id is None else "operator"
    head.operator_id = operator_id
    head.owner_version += 1
    if operator_id is not None:
        head.waiting_since = head.closed_at = None


_BLANK: dict[str, Any] = {
    "client_id": None,
    "options": None,
    "reply_id": None,
    "answers": None,
    "superseded": False,
    "operator_id": None,
}
"""Every row names every column, so that one statement takes them all."""


def _stored(row: Any) -> StoredTurn:
    return StoredTurn(row.id, row.seq, row.created_at, created=False, replaces=row.replaces)


def _generation(message_id: str, reply: NewReply) -> dict[str, Any]:
    return {
        "message_id": message_id,
        "finish_reason": reply.finish_reason,
        "model": reply.model,
        "options": dict(reply.options),
        "seed": reply.seed,
        "token_ids": list(reply.token_ids),
        "logprobs": list(reply.logprobs),
        "alternatives": [dict(alternative) for alternative in reply.alternatives],
        "queued_ms": reply.queued_ms,
        "first_token_ms": reply.first_token_ms,
        "total_ms": reply.total_ms,
        "confidence": reply.confidence,
        "withheld": reply.withheld,
    }
