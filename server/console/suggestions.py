"""What the model would write in an operator's place, completed from what they have typed.

The live engine makes them, beside the replies to visitors: a beam in groups that go different ways
(chatbot.beam), whose first tokens must spell what is typed (chatbot.prefix). While there is a line, operators
and visitors take turns for rows of the batch, one each. Whoever asks anew for a conversation wants the older
answer no more: it is cancelled.

A prefix is forced one token a step, so only the end of a long text is; the sentences before it are read in
one go, as a turn of the agent:

    typed      Good morning. I have found your booking, which is for two people. Would you li
    read       Good morning. I have found your booking, which is for two people.
    forced                                                                       Would you li
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import sqlalchemy
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from chatbot.options import MAX_TOKENS, DecodingOptions, OptionError
from chatbot.replies import Alternative, Failed, Finished, Reply, ReplyRequest
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Role
from server.console import audit
from server.console.accounts import Identity
from server.console.distance import levenshtein
from server.console.masking import Masker, masker
from server.database import reading, writing
from server.desk import new_id
from server.engine import Engine, EngineBusy, Generation, Permit
from server.records import storable
from server.speaker import Speaker
from server.store import Store
from server.tables import Conversation, Message, Suggestion

NEW_TOKENS: Final = 24
"""Tokens that a suggestion adds to what is typed, at most: a sentence or two."""
FEW_TOKENS: Final = 12
"""The same while the model has much to do: half a suggestion in time is better than a whole one too late."""
BUSY: Final = 8
"""Rows of the batch in use from which on it has."""
PATHS: Final = 6
"""Of the beam: rows of the batch that it takes."""
GROUPS: Final = 3
FORCED: Final = 120
"""Characters at the end of what is typed that are forced token by token, about."""
AT_ONCE: Final = 4
"""Requests that one operator may have under way, each for another conversation."""
PATIENCE: Final = 3.0
"""Seconds after which nobody wants a suggestion any more."""
ALIKE: Final = 0.6
"""Suggestions that share this much of their words say the same."""

_GAP: Final = re.compile(r"\s+")
_SENTENCE_GAP: Final = re.compile(r"(?<=[.!?…])\s+")
_SENTENCE_END: Final = re.compile(r"[.!?…][\"')\]]*(?=\s|$)")
_WORD: Final = re.compile(r"\w+")

Turns = Sequence[tuple[Role, str]]
Outcome = Literal["accepted", "edited", "ignored"]


class Superseded(Exception):
    """The same operator has asked anew for the same conversation."""


class NotMade(Exception):
    """The model could not."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A text that begins with what was typed. logprob: of what the model said, natural logarithm."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Offers:
    """Best first, and the fingerprint of the model that made them."""

    offers: tuple[Offer, ...]
    model: str


@dataclass(eq=False, slots=True)
class Attempt:
    """A request on its way, until a newer one takes its place."""

    owner: str
    conversation: str
    superseded: bool = False
    generation: Generation | None = None

    def require_newest(self) -> None:
        """Raises `Superseded`."""
        if self.superseded:
            raise Superseded

    async def give_way(self) -> None:
        self.superseded = True
        if self.generation is not None:
            await self.generation.aclose()


@dataclass(eq=False, slots=True)
class Suggestions:
    """The requests under way. Belongs on the event loop."""

    _under_way: dict[tuple[str, str], Attempt] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._under_way)

    @asynccontextmanager
    async def attempt(self, operator: str, conversation: str) -> AsyncIterator[Attempt]:
        """The operator's newest request for a conversation; an older one is cancelled.

        Raises `EngineBusy` when they have `AT_ONCE` others under way.
        """
        key = (operator, conversation)
        if (older := self._under_way.pop(key, None)) is not None:
            await older.give_way()
        if sum(owner == operator for owner, _ in self._under_way) >= AT_ONCE:
            raise EngineBusy(1.0)
        attempt = self._under_way[key] = Attempt(f"operator {operator}", conversation)
        try:
            yield attempt
        finally:
            if self._under_way.get(key) is attempt:
                del self._under_way[key]


async def make(engine: Engine, attempt: Attempt, turns: Turns, typed: str, count: int) -> Offers:
    """At most `count` suggestions for the agent's next turn after `turns`; none where the model has none,
    such as for a text that holds a phrase it may not say.

    Raises `EngineBusy`, `Superseded`, `NotMade`, and TimeoutError after `PATIENCE`.
    """
    attempt.require_newest()
    permit = engine.reserve(attempt.owner)
    model = permit.speaker.fingerprint
    read, forced = divide(typed)
    turns = (*turns, ("agent", read)) if read.strip() else tuple(turns)
    new = FEW_TOKENS if engine.load.rows >= BUSY else NEW_TOKENS
    options = options_for(permit.speaker, forced, count, new) if turns else None
    if options is None:
        permit.release()
        return Offers((), model)
    reply = await _reply(
        engine, attempt, permit, ReplyRequest(new_id(), turns, options, _name(attempt, read))
    )
    alternatives = reply.alternatives or (Alternative(reply.text, reply.token_ids, sum(reply.logprobs), 0.0),)
    offers = [Offer(read + whole(each, len(forced)), each.logprob) for each in alternatives]
    return Offers(tuple(choose(offers, typed, count)), model)


def _name(attempt: Attempt, read: str) -> str:
    # What was read of a conversation is kept for the next reply (chatbot.readings), under its name. With what
    # is typed behind it, it is another conversation, which must not drive out the visitor's.
    return f"{attempt.owner} {attempt.conversation}" if read.strip() else attempt.conversation


async def _reply(engine: Engine, attempt: Attempt, permit: Permit, request: ReplyRequest) -> Reply:
    async with asyncio.timeout(PATIENCE), engine.generate(request, permit) as events:
        attempt.generation = events
        async for event in events:
            if isinstance(event, Failed):
                raise NotMade(event.message)
            if isinstance(event, Finished):
                attempt.require_newest()
                return event.reply
    attempt.require_newest()
    raise NotMade("the reply ended without an end")


def divide(typed: str) -> tuple[str, str]:
    """What is read of a text and what is forced; together they are the text.

    Of a long one, whole sentences are read, or, where the last sentence is long, whole words.
    """
    if len(typed) <= FORCED:
        return "", typed
    for gap in (_SENTENCE_GAP, _GAP):
        for match in gap.finditer(typed, len(typed) - FORCED - 1):
            return typed[: match.end()], typed[match.end() :]
    return typed[:-FORCED], typed[-FORCED:]


def options_for(speaker: Speaker, forced: str, count: int, new: int = NEW_TOKENS) -> DecodingOptions | None:
    """The model's own options, with a beam that goes `GROUPS` ways, begins with `forced` and adds at most
    `new` tokens; None where the model cannot begin so.
    """
    tokens = speaker.count_tokens([("agent", forced)])
    spelled = len(forced.encode()) + 1  # tokens at most, where the model knows no longer ones
    beam = {
        "decoding": "beam",
        "beam_size": PATHS,
        "beam_groups": GROUPS,
        "group_penalty": 1.0,
        "length_penalty": 1.0,
        "n_best": PATHS if count > 1 else 1,
    }
    ways: list[tuple[dict[str, Any], int]] = [
        (beam, tokens),
        (beam, spelled),
        ({"decoding": "greedy"}, spelled),  # on a server with fewer rows than the beam has paths
    ]
    for way, length in ways:
        most = min(MAX_TOKENS, length + new)
        try:
            return speaker.options({**way, "prefix": forced, "max_tokens": most})
        except OptionError:
            continue
    return None


def whole(alternative: Alternative, forced: int) -> str:
    """The text of a reply; one that was cut off, up to its last sentence, or its last word, behind the
    `forced` characters that it begins with.
    """
    text = alternative.text
    if alternative.token_ids[-1:] == (Tokenizer.end_id,):
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text, forced) if match.end() < len(text)]
    if ends:
        return text[: ends[-1]]
    gaps = [match.start() for match in _GAP.finditer(text, forced)]
    return text[: gaps[-1]] if gaps else text


def choose(offers: Sequence[Offer], typed: str, count: int) -> list[Offer]:
    """At most `count` of them, in their order, that add something to what is typed; those that differ in more
    than a word or two go before others.
    """
    distinct: dict[str, Offer] = {}
    for offer in offers:
        if offer.text.strip() != typed.strip():
            distinct.setdefault(" ".join(_WORD.findall(offer.text.casefold())), offer)
    chosen: list[Offer] = []
    spare: list[Offer] = []
    for offer in distinct.values():
        alike = any(_share(offer.text, other.text, len(typed)) >= ALIKE for other in chosen)
        (spare if alike else chosen).append(offer)
    kept = [*chosen, *spare][:count]
    return [offer for offer in distinct.values() if offer in kept]


def _share(one: str, other: str, known: int) -> float:
    """Of the words that two texts have behind their first `known` characters, the share that both have
    (Jaccard).
    """
    ours, theirs = ({*_WORD.findall(text[known:].casefold())} for text in (one, other))
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


# ---- What becomes of them ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ground:
    """What suggestions for a conversation are made from. mask: of personal data."""

    turns: Turns
    mask: Masker


class OutcomeError(ValueError):
    """An outcome that cannot be: `reason` names the field."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def ground(db: sqlalchemy.Engine, conversation: str) -> Ground | None:
    """None when there is no such conversation."""
    if not storable(conversation):
        return None
    with reading(db) as connection:
        if connection.scalar(select(Conversation.id).where(Conversation.id == conversation)) is None:
            return None
        mask = masker(connection)
    return Ground(Store(db).history(conversation), mask)


def shown_to_reviewers(offers: Sequence[Offer], typed: str, mask: Masker) -> tuple[Offer, ...]:
    """Those that tell nothing that is hidden from reviewers: a model copies numbers and names."""
    known = mask.mask(typed)
    return tuple(offer for offer in offers if mask.mask(offer.text) == known + offer.text[len(typed) :])


def keep(
    db: sqlalchemy.Engine, operator: str, conversation: str, typed: str, made: Offers, milliseconds: float
) -> str | None:
    """Remember what an operator (by id) is offered; its id, None if the conversation is gone."""
    suggestion = new_id()
    values = {
        "id": suggestion,
        "conversation_id": conversation,
        "operator_id": operator,
        "created_at": datetime.now(UTC),
        "model": made.model,
        "typed": typed,
        "offered": [offer.text for offer in made.offers],
        "milliseconds": milliseconds,
    }
    try:
        with writing(db) as connection:
            connection.execute(insert(Suggestion).values(values))
    except IntegrityError:
        return None
    return suggestion


def conclude(
    db: sqlalchemy.Engine,
    who: Identity,
    suggestion: str,
    outcome: Outcome,
    *,
    chosen: str | None,
    sent: str | None,
    message: str | None,
) -> int | None:
    """What became of a suggestion, the last word only; the edits from what was chosen to what was sent.

    sent: a text; message: the id of what was sent, if it has been. Raises LookupError for a suggestion that
    was not made for this operator, and OutcomeError.
    """
    if not storable(suggestion) or not storable(message or ""):
        raise LookupError
    with writing(db) as connection:
        found = connection.execute(
            select(Suggestion.conversation_id, Suggestion.offered).where(
                Suggestion.id == suggestion, Suggestion.operator_id == who.id
            )
        ).first()
        if found is None:
            raise LookupError
        if outcome == "ignored":
            chosen = None
        elif chosen not in found.offered:
            raise OutcomeError("chosen: this was not offered")
        if message is not None:
            said = connection.scalar(
                select(Message.text).where(
                    Message.id == message,
                    Message.conversation_id == found.conversation_id,
                    Message.operator_id == who.id,
                )
            )
            if said is None:
                raise OutcomeError("message: you have sent no such message in this conversation")
            sent = said
        distance = None if chosen is None or sent is None else levenshtein(chosen, sent)
        connection.execute(
            update(Suggestion)
            .where(Suggestion.id == suggestion)
            .values(outcome=outcome, chosen=chosen, distance=distance, message_id=message)
        )
        audit.note(connection, who.name, "suggestion.conclude", suggestion, outcome=outcome)
    return distance
