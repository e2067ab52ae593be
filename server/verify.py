"""Whether logged replies are what their model says: each is made again, and scored again.

    exact              the same tokens came out, with the logged log-probabilities
    within tolerance   other tokens came out, but the model gives the logged ones the logged log-probabilities
    mismatch           it does not
    cannot             there is nothing to compare with, and why

Arithmetic in another order (other rows in the batch, another machine) moves log-probabilities in their last
digits, and now and then a choice between two tokens that are equally good.

A server may compute in 8 bits (chatbot.served), which says other things than float32. So a reply is scored in
every precision that this machine has, and held against the one that is nearest. Where 8 bits are not to be
had, a reply that is near enough to have been made in them cannot be told from one that was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from sqlalchemy import Engine, select

from chatbot import int8, model_directory
from chatbot.batcher import Batcher
from chatbot.model_directory import ModelBundle
from chatbot.options import DecodingOptions, OptionError
from chatbot.replies import Failed, Finished, Reply, ReplyRequest
from chatbot.served import precision_of, served, unfit
from chatbot.terms import rows_needed
from chatbot.tokenizer import clip_turn
from chatbot.transcripts import Role
from server import models
from server.database import reading
from server.replying import storable
from server.store_errors import UnknownConversation
from server.tables import Conversation, Generation, Message

TOLERANCE: Final = 0.01
"""Nats by which a log-probability may differ from the logged one."""

LOWERED: Final = 0.5
"""Nats by which 8 bits may differ from float32."""

Verdict = Literal["exact", "within tolerance", "mismatch", "cannot"]


@dataclass(frozen=True, slots=True)
class Finding:
    """seq: the reply's number in its conversation. difference: the largest of a log-probability, in nats.
    precision: what the model computed in that came nearest.
    """

    seq: int
    message: str
    model: str | None
    verdict: Verdict
    reason: str = ""
    tokens: int = 0
    difference: float | None = None
    precision: str | None = None


@dataclass(frozen=True, slots=True)
class Logged:
    """A message, and how it was made if a model made it."""

    seq: int
    id: str
    role: Role
    text: str
    answers: str | None
    made: Any = None


class Verifier:
    """Checks conversations of one database against the models in one directory, each loaded once."""

    def __init__(
        self,
        db: Engine,
        directory: Path,
        tolerance: float = TOLERANCE,
        find: Callable[[str], ModelBundle | None] | None = None,
    ) -> None:
        """find: gives a model by its fingerprint, where others have loaded it already."""
        self._db = db
        self._directory = directory
        self._tolerance = tolerance
        self._find = find
        self._bundles: dict[str, ModelBundle | None] = {}
        self._in_8_bits: dict[str, ModelBundle] = {}

    def verify(self, conversation: str) -> list[Finding]:
        """A finding for each reply, in order. Raises `UnknownConversation` and `StoreUnavailable`."""
        logged = self.logged(conversation)
        return [self.check(logged, reply) for reply in logged if reply.role == "agent"]

    def logged(self, conversation: str) -> list[Logged]:
        """Its messages, in order. Raises as `verify` does."""
        messages = (
            select(
                Message.seq,
                Message.id,
                Message.role,
                Message.text,
                Message.answers,
                Generation.model,
                Generation.options,
                Generation.seed,
                Generation.token_ids,
                Generation.logprobs,
                Generation.finish_reason,
                Generation.withheld,
            )
            .outerjoin(Generation, Generation.message_id == Message.id)
            .where(Message.conversation_id == conversation)
            .order_by(Message.seq)
        )
        with reading(self._db) as connection:
            if connection.scalar(select(Conversation.id).where(Conversation.id == conversation)) is None:
                raise UnknownConversation(conversation)
            rows = connection.execute(messages).all()
        return [
            Logged(row.seq, row.id, row.role, row.text, row.answers, None if row.model is None else row)
            for row in rows
        ]

    def _bundle(self, fingerprint: str) -> ModelBundle | None:
        if self._find is not None:
            return self._find(fingerprint)
        if fingerprint not in self._bundles:
            path = models.by_fingerprint(self._directory, fingerprint)
            self._bundles[fingerprint] = None if path is None else model_directory.load(path)
        return self._bundles[fingerprint]

    def check(self, logged: Sequence[Logged], reply: Logged) -> Finding:
        """One reply of a conversation's messages."""
        made = reply.made
        if made is None:
            return Finding(reply.seq, reply.id, None, "cannot", "no model made it")

        def found(
            verdict: Verdict,
            reason: str = "",
            difference: float | None = None,
            precision: str | None = None,
        ) -> Finding:
            size = len(made.token_ids)
            return Finding(reply.seq, reply.id, made.model, verdict, reason, size, difference, precision)

        bundle = self._bundle(made.model)
        if bundle is None:
            return found("cannot", f"its model is not in {self._directory}")
        if _changed(bundle, reply):
            return found("cannot", "its text is not what was logged with it: it was masked or changed since")
        before = read_before(logged, reply)
        if not before:
            return found("cannot", "the turn it answers is gone")
        turns = [(message.role, message.text) for message in before]
        if any(self._was_changed(message) for message in before):
            return found("cannot", "an earlier reply was masked or changed since")
        try:
            options = DecodingOptions.checked({**made.options, "seed": made.seed})
        except OptionError as error:
            return found("cannot", f"its options are not understood: {error.field}")
        if any(token >= bundle.config.vocab_size for token in made.token_ids):
            return found("mismatch", "it holds tokens that its model does not have")
        if len(made.token_ids) != len(made.logprobs):
            return found("mismatch", "it has not one log-probability for each token")
        nearest, difference = self._nearest(bundle, turns, made)
        told = precision_of(nearest.model)
        if difference > self._tolerance:
            if difference <= LOWERED and int8.missing() and unfit(bundle.config) is None:
                return found("cannot", "in 8 bits it may be right; this machine has none", difference, told)
            return found("mismatch", "its log-probabilities are not those of its model", difference, told)
        again = make(nearest, turns, options)
        if again is None:
            return found("cannot", "its model cannot follow its options alone", difference, told)
        cancelled = made.finish_reason == "cancelled"
        tokens = again.token_ids[: len(made.token_ids)] if cancelled else again.token_ids
        if tuple(tokens) == tuple(made.token_ids):
            why = "cancelled: its beginning is checked" if cancelled else ""
            return found("exact", why, difference, told)
        return found("within tolerance", "other tokens came out", difference, told)

    def _nearest(
        self, bundle: ModelBundle, turns: Sequence[tuple[Role, str]], made: Any
    ) -> tuple[ModelBundle, float]:
        """The precision whose log-probabilities come nearest to the logged ones, and how near."""
        lowered = self._lowered(bundle)
        found = [
            (each, _difference(score(each, turns, made.token_ids), made.logprobs))
            for each in ([bundle] if lowered is bundle else [bundle, lowered])
        ]
        return min(found, key=lambda one: one[1])

    def _lowered(self, bundle: ModelBundle) -> ModelBundle:
        """`bundle` in 8 bits, or as it is where there are none."""
        if bundle.fingerprint not in self._in_8_bits:
            self._in_8_bits[bundle.fingerprint] = served(bundle, "int8")
        return self._in_8_bits[bundle.fingerprint]

    def _was_changed(self, message: Logged) -> bool:
        """Whether a message is known to read otherwise than when it was said."""
        bundle = self._bundle(message.made.model) if message.made is not None else None
        return bundle is not None and _changed(bundle, message)


def read_before(logged: Sequence[Logged], reply: Logged) -> list[Logged]:
    """What a model read to make `reply`, as the conversation stood then; nothing where the turn it answers is
    gone.
    """
    before = [message for message in logged if message.seq < reply.seq]
    latest = {message.answers: message.id for message in before if message.role == "agent"}
    place = {message.id: message.seq for message in before if message.role == "user"}
    read = [
        message
        for message in before
        if message.role == "user"
        or (message.text.strip() and (message.answers is None or latest[message.answers] == message.id))
    ]
    # As in `Store.history`: a reply stands behind its own turn, what an operator said in its place.
    read.sort(key=lambda message: (place.get(message.answers or "", message.seq), message.seq))
    answered = [number for number, message in enumerate(read, 1) if message.id == reply.answers]
    return read[: answered[0]] if answered else []


def make(bundle: ModelBundle, turns: Sequence[tuple[Role, str]], options: DecodingOptions) -> Reply | None:
    """The reply, alone in its batcher; None when the batcher fails it."""
    batcher = Batcher(bundle, rows=rows_needed(options), waiting=1)
    batcher.submit(ReplyRequest("again", tuple(turns), options))
    while not batcher.idle:
        for event in batcher.step():
            if isinstance(event, Failed):
                return None
            if isinstance(event, Finished):
                return event.reply
    return None


def score(bundle: ModelBundle, turns: Sequence[tuple[Role, str]], tokens: Sequence[int]) -> list[float]:
    """The log-probability of each of `tokens`, natural logarithm, given those before it."""
    model, tokenizer, limit = bundle.model, bundle.tokenizer, bundle.config.max_turn_tokens
    conversation = [clip_turn(turn, limit) for turn in tokenizer.encode_turns(turns)]
    logprobs: list[float] = []
    with torch.inference_mode():
        state, memory = model.start(model.encode_conversations([conversation]))
        last = tokenizer.agent_id
        for token in tokens:
            logits, state, _ = model.step(torch.tensor([last], device=state.device), state, memory)
            logprobs.append(float(logits.log_softmax(1)[0, token]))
            last = token
    return logprobs


def _difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max((abs(a - b) for a, b in zip(one, other, strict=True)), default=0.0)


def _changed(bundle: ModelBundle, reply: Logged) -> bool:
    """Whether a reply's text is other than what its tokens say."""
    if any(token >= bundle.config.vocab_size for token in reply.made.token_ids):
        return False  # that is another fault, and is said by its own name
    said = reply.text if reply.made.withheld is None else reply.made.withheld
    return said != storable(bundle.tokenizer.decode(reply.made.token_ids))
