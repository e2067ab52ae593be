"""Why a reply came out as it did: what it looked at, what is nearest to it, whether it is what was logged.

All of it is worked out anew from what was logged, with the model that made the reply, on a thread of its own
with one core: neither the engine nor the event loop nor who reads the inbox waits for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, select

from chatbot.model_directory import ModelBundle
from chatbot.tokenizer import SPECIALS, clip_turn
from chatbot.transcripts import Role
from chatbot.turn_states import state_of
from server.console import words
from server.console.bundles import KEPT, Shelf
from server.console.nearest import BUDGET, SHOWN, Gallery, Source, unlike
from server.console.training_turns import TrainingTurns
from server.console.words import Mask
from server.database import reading
from server.offload import Offload
from server.records import storable
from server.store_errors import UnknownConversation
from server.tables import Message
from server.verify import Finding, Logged, Verifier, read_before

REMEMBERED: Final = 64
"""Replies whose attention and verification are kept."""

Outcome = Literal["exact", "within", "mismatch", "unknown"]
_OUTCOMES: Final[dict[str, Outcome]] = {
    "exact": "exact",
    "within tolerance": "within",
    "mismatch": "mismatch",
    "cannot": "unknown",
}


class SourceTurn(BaseModel):
    """Words of a turn that the reply could look at. turn: the message's number in its conversation."""

    turn: int
    role: Role
    words: list[str]


class AttentionView(BaseModel):
    """weights: for each word of the reply, one for each word of all source turns, in their order; what is
    missing to 1 went to the marks where turns begin and end. A word of several tokens looks as they do on
    average, and is looked at as much as all of them.
    """

    words: list[str]
    source: list[SourceTurn]
    weights: list[list[float]]


class NeighbourView(BaseModel):
    """An approved turn much like this one: what the user had said, and the reply, which a reviewer may have
    corrected. similarity: cosine.

    source: a `review` approved it, an `operator` said it, or it comes from the file of an `import` or of the
    model's `training`. conversation: of the first two. file, transcript, turn: of the others; the file's
    name, the transcript's id, and the reply's place in it from 0.
    """

    model_config = ConfigDict(from_attributes=True)

    text: str
    reply: str
    similarity: float
    corrected: bool
    source: Source
    conversation: str | None
    file: str | None
    transcript: str | None
    turn: int | None

    def masked(self, mask: Mask) -> NeighbourView:
        """The same for who may not see personal data, which a name or an id may hold too."""
        hidden = {name: mask(getattr(self, name)) for name in ("text", "reply")}
        named = {name: getattr(self, name) for name in ("file", "transcript")}
        return self.model_copy(
            update=hidden | {name: None if text is None else mask(text) for name, text in named.items()}
        )


class VerifyView(BaseModel):
    """Whether the model gives the logged reply again (exact), other tokens but the logged log-probabilities
    (within), or neither. difference: the largest of a log-probability, in nats. reason: why it is not known.
    """

    outcome: Outcome
    difference: float | None
    reason: str


class ExplanationView(BaseModel):
    """attention: null for a model without it, or one that is there no more. compared: approved turns, and
    turns of the training files, among which the nearest were sought.
    """

    attention: AttentionView | None
    nearest: list[NeighbourView]
    verify: VerifyView
    compared: int


class Attended(NamedTuple):
    """What each token of a reply looked at. weights: (T, M). places: the turn and the token in it of each of
    the M columns.
    """

    weights: np.ndarray
    places: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn that the model read. parts: the texts of its tokens, without the marks around them, also of
    those at the end of a long turn. read: how many of them the model read.
    """

    seq: int
    role: Role
    parts: list[str]
    read: int


@dataclass(frozen=True, slots=True)
class _Worked:
    """What does not change any more. state: (C,) of the encoder before the reply."""

    turns: list[_Turn]
    parts: list[str]
    attended: Attended | None
    state: np.ndarray | None
    finding: Finding


class Explainer:
    """offload: the one thread that `explain` may be called on."""

    def __init__(self, db: Engine, shelf: Shelf, indexes: Path, seconds: float = BUDGET) -> None:
        """indexes: folder with those of the files that models were trained on. seconds: that taking in
        approved turns may take, about, each time.
        """
        self.offload = Offload(1, "explain")
        self._db = db
        self._shelf = shelf
        self._trained_on = TrainingTurns(indexes)
        self._seconds = seconds
        self._verifier = Verifier(db, shelf.directory, find=shelf.bundle)
        self._verified: set[str] = set()
        self._kept: OrderedDict[str, _Worked] = OrderedDict()
        self._galleries: OrderedDict[str, Gallery] = OrderedDict()

    def explain(self, message: str, mask: Mask, in_use: str) -> ExplanationView | None:
        """None when there is no such message, or a visitor said it. in_use: fingerprint of the model that
        looks at what an operator said.

        Raises StoreUnavailable.
        """
        torch.set_num_threads(1)  # belongs to the thread that calls it
        found = self._find(message)
        if found is None:
            return None
        logged, reply = found
        worked = self._kept.get(message)
        if worked is None:
            worked = self._work(logged, reply, in_use)
            self._keep(message, worked)
        nearest, compared = self._nearest(worked, reply, in_use)
        return ExplanationView(
            attention=_view(worked, mask),
            nearest=[one.masked(mask) for one in nearest],
            verify=_verified(worked.finding),
            compared=compared,
        )

    def _find(self, message: str) -> tuple[list[Logged], Logged] | None:
        if not storable(message):
            return None
        query = select(Message.conversation_id).where(Message.id == message, Message.role == "agent")
        with reading(self._db) as connection:
            conversation = connection.scalar(query)
        if conversation is None:
            return None
        try:
            logged = self._verifier.logged(conversation)
        except UnknownConversation:
            return None
        return next(((logged, each) for each in logged if each.id == message), None)

    def _work(self, logged: Sequence[Logged], reply: Logged, in_use: str) -> _Worked:
        model = reply.made.model if reply.made is not None else in_use
        bundle = self._shelf.bundle(model)
        self._forget_verified(model)
        finding = self._verifier.check(logged, reply)
        read = read_before(logged, reply) if reply.made is not None else _before(logged, reply)
        if bundle is None or not read:
            return _Worked([], [], None, None, finding)
        said = [(turn.role, turn.text) for turn in read]
        state = state_of(bundle, [said])[0]
        if reply.made is None:
            return _Worked([], [], None, state, finding)
        whole = [bundle.tokenizer.encode_turn(role, text) for role, text in said]
        ids = [clip_turn(turn, bundle.config.max_turn_tokens) for turn in whole]
        turns = [
            _Turn(turn.seq, turn.role, words.texts(bundle.tokenizer, tokens[1:-1]), len(clipped) - 2)
            for turn, tokens, clipped in zip(read, whole, ids, strict=True)
        ]
        tokens = [
            token for token in reply.made.token_ids if len(SPECIALS) <= token < bundle.config.vocab_size
        ]
        return _Worked(
            turns, words.texts(bundle.tokenizer, tokens), attended(bundle, ids, tokens), state, finding
        )

    def _keep(self, message: str, worked: _Worked) -> None:
        self._kept[message] = worked
        while len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)

    def _forget_verified(self, model: str) -> None:
        """Let go of what was computed of models that are not looked at any more."""
        self._verified.add(model)
        if len(self._verified) > KEPT:
            self._verifier = Verifier(self._db, self._shelf.directory, find=self._shelf.bundle)
            self._verified = {model}

    def _nearest(self, worked: _Worked, reply: Logged, in_use: str) -> tuple[list[NeighbourView], int]:
        model = reply.made.model if reply.made is not None else in_use
        bundle = self._shelf.bundle(model) if worked.state is not None else None
        if bundle is None or worked.state is None or not worked.state.size:
            return [], 0
        gallery = self._galleries.get(model)
        if gallery is None:
            gallery = self._galleries[model] = Gallery(self._db, bundle)
            while len(self._galleries) > KEPT:
                self._galleries.popitem(last=False)
        self._galleries.move_to_end(model)
        gallery.grow(self._seconds)
        approved = gallery.find(worked.state, without=[reply.id])
        learned, of = self._trained_on.nearest(model, worked.state)
        # Approved turns come first: of two alike, the one that has a conversation to open is shown.
        found = unlike([*approved, *learned])
        found.sort(key=lambda one: -one.similarity)
        return [NeighbourView.model_validate(one) for one in found[:SHOWN]], len(gallery) + of


def attended(
    bundle: ModelBundle, conversation: Sequence[Sequence[int]], tokens: Sequence[int]
) -> Attended | None:
    """What each of `tokens`, a reply to `conversation`, looked at; None for a model without attention."""
    model, config = bundle.model, bundle.config
    if config.attention == "none" or not tokens:
        return None
    places = [
        (number, len(turn) - 1 - place if config.reverse_input else place)
        for number, turn in enumerate(conversation)
        for place in range(len(turn))
    ][-config.memory_tokens :]
    weights = []
    with torch.inference_mode():
        state, memory = model.start(model.encode_conversations([conversation]))
        last = bundle.tokenizer.agent_id
        for token in tokens:
            _, state, attention = model.step(torch.tensor([last]), state, memory)
            weights.append(attention[0])
            last = token
        columns = torch.nonzero(memory.mask[0]).squeeze(1)
        looked = torch.stack(weights)[:, columns].float().numpy()
    return Attended(looked, [places[column] for column in columns.tolist()])


def _before(logged: Sequence[Logged], reply: Logged) -> list[Logged]:
    """What had been said when an operator wrote `reply`."""
    latest = {
        message.answers: message.id for message in logged if message.answers and message.seq < reply.seq
    }
    return [
        message
        for message in logged
        if message.seq < reply.seq
        and message.text.strip()
        and (message.answers is None or latest[message.answers] == message.id)
    ]


def _view(worked: _Worked, mask: Mask) -> AttentionView | None:
    if worked.attended is None:
        return None
    # In a turn the mark of its role comes first: the first token is at place 1.
    column = {(turn, place - 1): number for number, (turn, place) in enumerate(worked.attended.places)}
    source: list[SourceTurn] = []
    looked: list[np.ndarray] = []
    for number, turn in enumerate(worked.turns):
        shown: list[str] = []
        for word in words.words(words.masked(turn.parts, mask)):
            tokens = [token for token in word.tokens if token < turn.read]
            columns = [column[number, token] for token in tokens if (number, token) in column]
            if columns:
                shown.append(word.text)
                looked.append(worked.attended.weights[:, columns].sum(1))
        if shown:
            source.append(SourceTurn(turn=turn.seq, role=turn.role, words=shown))
    replied = words.words(words.masked(worked.parts, mask))
    by_token = np.stack(looked, 1) if looked else np.zeros((len(worked.parts), 0))
    weights: Any = [by_token[list(word.tokens)].mean(0).round(4).tolist() for word in replied]
    return AttentionView(words=[word.text for word in replied], source=source, weights=weights)


def _verified(finding: Finding) -> VerifyView:
    outcome = _OUTCOMES[finding.verdict]
    # The whole reason names a directory of the server.
    reason = (
        "its model is not there any more" if finding.reason.startswith("its model is not") else finding.reason
    )
    difference = None if finding.difference is None else round(finding.difference, 6)
    return VerifyView(outcome=outcome, difference=difference, reason=reason)
