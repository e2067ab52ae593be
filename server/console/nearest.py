"""Turns like this one that people have approved: what the bot has learned, or will learn, to say there.

They are found by the encoder's state before the reply (`chatbot.turn_states`), which a `Gallery` keeps for
one model, newest first, and compares by cosine similarity: one matrix product. Its turns are

    replies marked good, corrected replies       of reviewed conversations
    what operators said                          of conversations that were taken over
    agents' turns                                of imported transcripts

Only ids and states are kept, never texts: those are read when a turn is shown, so what was erased, judged
otherwise or deleted in the meantime does not come back. A gallery grows while it is asked, for a bounded time
each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from sqlalchemy import Connection, Engine, Select, and_, func, or_, select
from sqlalchemy.orm import aliased

from chatbot.model_directory import ModelBundle
from chatbot.transcripts import Transcript
from chatbot.turn_states import WINDOW, Turns, answers, parts_before, states_after
from server.database import reading
from server.tables import Conversation, ImportBatch, ImportedTranscript, Message, Verdict

MOST: Final = 20_000
"""Turns of a gallery: 40 MB of states of the shipped model."""
BUDGET: Final = 0.4
"""Seconds that a gallery may grow before it answers."""
AT_ONCE: Final = 16
"""Replies, or transcripts, whose states are worked out together."""
MOST_OF_ONE: Final = 64
"""Turns of one transcript."""
SHOWN: Final = 5

Source = Literal["review", "operator", "import", "training"]
"""Where a turn comes from; of what a gallery has, never the last."""


class Said(NamedTuple):
    """A reply of a conversation, by its message."""

    message: str


class Imported(NamedTuple):
    """An agent's turn of an imported transcript. turn: counted from 0."""

    batch: str
    number: int
    turn: int


Key = Said | Imported


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A turn like the one that is explained: the question, the reply, cosine similarity, whether a reviewer
    wrote the reply, and its conversation; for a transcript, its file, its id, and the reply's place from 0.
    """

    text: str
    reply: str
    similarity: float
    corrected: bool
    source: Source
    conversation: str | None = None
    file: str | None = None
    transcript: str | None = None
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class _Reading:
    """A conversation to be read part by part, and which key the state after each part is of."""

    keys: list[Key]
    parts: list[Turns]


class Gallery:
    """Approved turns as one model sees them. For one thread."""

    def __init__(
        self,
        db: Engine,
        bundle: ModelBundle,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._bundle = bundle
        self._most = most
        self._clock = clock
        self._keys: list[Key] = []
        self._states = np.zeros((0, 0), dtype=np.float32)
        self._done: set[tuple[str, ...]] = set()
        self._signs: tuple[object, ...] | None = None
        self._waiting: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def complete(self) -> bool:
        """Whether it had all turns when it was last asked."""
        return not self._waiting

    def grow(self, seconds: float = BUDGET) -> None:
        """Take in what is new, the newest first, for about that long; at least a few turns.

        Raises StoreUnavailable.
        """
        until = self._clock() + seconds
        self._look()
        while self._waiting and len(self._keys) < self._most:
            part, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            self._add(part)
            if self._clock() >= until:
                return
        if len(self._keys) >= self._most:
            self._waiting = []

    def find(self, state: np.ndarray, count: int = SHOWN, without: Iterable[str] = ()) -> list[Neighbour]:
        """The approved turns nearest to `state` (C,), best first. without: messages that are left out.

        Raises StoreUnavailable.
        """
        if not self._keys or not state.size:
            return []
        similarities = self._states[: len(self._keys)] @ state
        best = min(len(self._keys), 8 * count)
        places = np.argpartition(-similarities, best - 1)[:best]
        ranked = [(self._keys[place], float(similarities[place])) for place in places]
        ranked.sort(key=lambda one: -one[1])
        left_out = set(without)
        with reading(self._db) as connection:
            texts = _texts(connection, [key for key, _ in ranked])
        found = [
            replace(texts[key], similarity=similarity)
            for key, similarity in ranked
            if key in texts and not (isinstance(key, Said) and key.message in left_out)
        ]
        return unlike(found)[:count]

    # --- growing ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See what there is, unless nothing has changed since."""
        with reading(self._db) as connection:
            signs = tuple(connection.execute(_SIGNS).one())
            if signs == self._signs:
                return
            listed = [*_listed(connection, self._most)]
        self._signs = signs
        if len(self._keys) >= self._most:
            self._forget_all_but(set(listed))
        self._waiting = [unit for unit in listed if unit not in self._done]

    def _forget_all_but(self, listed: set[tuple[str, ...]]) -> None:
        kept = [place for place, key in enumerate(self._keys) if _unit(key) in listed]
        self._states = self._states[kept]
        self._keys = [self._keys[place] for place in kept]
        self._done &= listed

    def _add(self, units: Sequence[tuple[str, ...]]) -> None:
        with reading(self._db) as connection:
            found = [each for unit in units for each in _readings(connection, unit)]
        for number, states in enumerate(states_after(self._bundle, [each.parts for each in found])):
            rows = [row for row, each in enumerate(found) if number < len(each.keys)]
            self._append([found[row].keys[number] for row in rows], states[rows])
        self._done.update(units)

    def _append(self, keys: Sequence[Key], states: np.ndarray) -> None:
        have = len(self._keys)
        keys = keys[: self._most - have]
        states = states[: len(keys)]
        if have + len(keys) > len(self._states):
            room = min(max(2 * have, 1024), self._most)
            grown = np.zeros((max(room, have + len(keys)), states.shape[1]), dtype=np.float32)
            if have:
                grown[:have] = self._states[:have]
            self._states = grown
        self._states[have : have + len(keys)] = states
        self._keys += keys


def unlike(found: Iterable[Neighbour]) -> list[Neighbour]:
    """Of those with the same question and reply, the first."""
    kept: dict[tuple[str, str], Neighbour] = {}
    for one in found:
        kept.setdefault((one.text.strip().casefold(), one.reply.strip().casefold()), one)
    return list(kept.values())


# --- what the database has --------------------------------------------------------------------------------

_APPROVED = or_(Verdict.verdict == "good", Verdict.corrected.is_not(None))
_SIGNS = select(
    select(func.count()).select_from(Verdict).scalar_subquery(),
    select(func.max(Verdict.updated_at)).scalar_subquery(),
    select(func.count()).select_from(ImportBatch).scalar_subquery(),
    select(func.max(ImportBatch.created_at)).scalar_subquery(),
    select(func.count()).select_from(Conversation).where(Conversation.owner_version > 0).scalar_subquery(),
    select(func.max(Conversation.updated_at)).where(Conversation.owner_version > 0).scalar_subquery(),
)
"""What changes whenever there may be other turns."""


def _unit(key: Key) -> tuple[str, ...]:
    """What a key is listed as: a reply by itself, a transcript as a whole."""
    return (key.message,) if isinstance(key, Said) else (key.batch, str(key.number))


def _listed(connection: Connection, most: int) -> Iterator[tuple[str, ...]]:
    """Approved replies, newest first, then transcripts, newest first."""
    reviewed = (
        select(Verdict.message_id, Verdict.updated_at)
        .where(_APPROVED)
        .order_by(Verdict.updated_at.desc(), Verdict.message_id)
        .limit(most)
    )
    spoken = (
        select(Message.id, Message.created_at)
        .join(Conversation, Conversation.id == Message.conversation_id)
        .where(Conversation.owner_version > 0, Message.operator_id.is_not(None))
        .order_by(Message.created_at.desc(), Message.id)
        .limit(most)
    )
    replies = [(at, key) for query in (reviewed, spoken) for key, at in connection.execute(query)]
    replies.sort(reverse=True)
    yield from ((key,) for _, key in replies[:most])
    transcripts = (
        select(ImportedTranscript.batch_id, ImportedTranscript.number)
        .join(ImportBatch, ImportBatch.id == ImportedTranscript.batch_id)
        .order_by(ImportBatch.created_at.desc(), ImportBatch.id, ImportedTranscript.number)
        .limit(most)
    )
    yield from ((row.batch_id, str(row.number)) for row in connection.execute(transcripts))


def _readings(connection: Connection, unit: tuple[str, ...]) -> Iterator[_Reading]:
    """What was said up to the turns that the replies of a unit answer."""
    if len(unit) == 1:
        turns = _turns_before(connection, unit[0])
        if turns:
            yield _Reading([Said(unit[0])], [turns])
        return
    batch, number = unit[0], int(unit[1])
    transcript = _transcript(connection, batch, number)
    said = [(turn.role, turn.text) for turn in transcript.turns] if transcript is not None else []
    places = [*islice(answers(said), MOST_OF_ONE)]
    if places:
        keys: list[Key] = [Imported(batch, number, place) for place in places]
        yield _Reading(keys, parts_before(said, places))


def _turns_before(connection: Connection, message: str) -> Turns:
    reply, asked = aliased(Message), aliased(Message)
    upto = connection.execute(
        select(reply.conversation_id, func.coalesce(asked.seq, reply.seq - 1).label("seq"))
        .outerjoin(asked, asked.id == reply.answers)
        .where(reply.id == message)
    ).one_or_none()
    if upto is None:
        return []
    before = (
        select(Message.role, Message.text)
        .where(Message.conversation_id == upto.conversation_id, Message.seq <= upto.seq)
        .where(~Message.superseded)
        .order_by(Message.seq.desc())
        .limit(WINDOW)
    )
    return [(row.role, row.text) for row in connection.execute(before) if row.text.strip()][::-1]


def _transcript(connection: Connection, batch: str, number: int) -> Transcript | None:
    kept = connection.scalar(
        select(ImportedTranscript.transcript).where(
            ImportedTranscript.batch_id == batch, ImportedTranscript.number == number
        )
    )
    return None if kept is None else Transcript.model_validate(kept)


def _texts(connection: Connection, keys: Sequence[Key]) -> dict[Key, Neighbour]:
    """Each turn that is still there and approved, with a similarity of 0."""
    found: dict[Key, Neighbour] = {}
    said = [key.message for key in keys if isinstance(key, Said)]
    for row in connection.execute(_shown(said)) if said else ():
        if row.question is not None:
            source: Source = "operator" if row.verdict is None else "review"
            corrected = row.corrected is not None
            conversation = row.conversation_id
            found[Said(row.id)] = Neighbour(row.question, row.reply, 0.0, corrected, source, conversation)
    for key in keys:
        if isinstance(key, Imported):
            file = connection.scalar(select(ImportBatch.name).where(ImportBatch.id == key.batch))
            transcript = _transcript(connection, key.batch, key.number)
            turns = [(turn.role, turn.text) for turn in transcript.turns] if transcript is not None else []
            if transcript is not None and key.turn in answers(turns):
                question, reply = turns[key.turn - 1][1], turns[key.turn][1]
                place = (file, transcript.id, key.turn)
                found[key] = Neighbour(question, reply, 0.0, False, "import", None, *place)
    return found


def _shown(messages: Sequence[str]) -> Select[Any]:
    reply, asked, user = aliased(Message), aliased(Message), aliased(Message)
    question = (
        select(user.text)
        .where(
            user.conversation_id == reply.conversation_id,
            user.role == "user",
            user.seq <= func.coalesce(asked.seq, reply.seq),
        )
        .order_by(user.seq.desc())
        .limit(1)
        .correlate(reply, asked)
        .scalar_subquery()
    )
    return (
        select(
            reply.id,
            reply.conversation_id,
            question.label("question"),
            func.coalesce(Verdict.corrected, reply.text).label("reply"),
            Verdict.corrected,
            Verdict.message_id.label("verdict"),
        )
        .outerjoin(asked, asked.id == reply.answers)
        .outerjoin(Verdict, and_(Verdict.message_id == reply.id, _APPROVED))
        .where(reply.id.in_(messages), or_(reply.operator_id.is_not(None), Verdict.message_id.is_not(None)))
    )
