"""What the decoding tests share: bundles around models whose probabilities are written down by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from chatbot.batcher import Batcher, Event, Failed, Finished, Piece, Reply, ReplyRequest
from chatbot.config import ModelConfig
from chatbot.model import Context, Memory, Seq2Seq, Step
from chatbot.model_directory import ModelBundle
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer

Probabilities = Mapping[int, Mapping[int, float]]

ALMOST_NEVER = -40.0
"""Logit of what a table of probabilities leaves out: possible, but nothing that a test waits for."""


class Bigram(Seq2Seq):
    """A model whose next token depends on the last one only, by a table of logits (V, V)."""

    def __init__(self, config: ModelConfig, table: Tensor) -> None:
        super().__init__(config)
        self.table = table

    def step(self, tokens: Tensor, state: Tensor, memory: Memory) -> Step:
        return Step(self.table[tokens], state, memory.mask.double())


class Tree(Seq2Seq):
    """A model without structure: after every path another distribution over a few tokens, the same for the
    same seed. It knows a path by its state alone, so a row that goes on from a wrong state is found out.
    """

    def __init__(self, config: ModelConfig, tokens: Sequence[int], seed: int, sharpness: float = 1.0) -> None:
        super().__init__(config)
        self.tokens, self.seed, self.sharpness = list(tokens), seed, sharpness

    def start(self, context: Context) -> tuple[Tensor, Memory]:
        return torch.zeros(len(context.state), 1, dtype=torch.float64), super().start(context)[1]

    def step(self, tokens: Tensor, state: Tensor, memory: Memory) -> Step:
        after = (state * 31 + tokens[:, None] + 1) % 2**31  # exact in a double
        return Step(torch.stack([self.after(int(path)) for path in after]), after, memory.mask.double())

    def after(self, path: int) -> Tensor:
        """Logits (V,) after the path that a state stands for."""
        rng = random.Random(f"{self.seed} {path}")
        logits = torch.full((self.config.vocab_size,), ALMOST_NEVER, dtype=torch.float64)
        for token in self.tokens:
            logits[token] = rng.gauss(0, self.sharpness)
        return logits

    def following(self, ids: Sequence[int]) -> Tensor:
        """The same after a reply that begins with ``ids``."""
        path = 0
        for token in (Tokenizer.agent_id, *ids):
            path = (path * 31 + token + 1) % 2**31
        return self.after(path)


def bigram_table(size: int, probabilities: Probabilities) -> Tensor:
    """Logits of a table ``{token: {next: probability}}``; anything may follow a token without a row."""
    table = torch.zeros(size, size, dtype=torch.float64)
    for token, following in probabilities.items():
        table[token] = ALMOST_NEVER
        for after, probability in following.items():
            table[token, after] = math.log(probability)
    return table


def bigram_bundle(config: ModelConfig, tokenizer: Tokenizer, probabilities: Probabilities) -> ModelBundle:
    return bundle_of(Bigram(config, bigram_table(tokenizer.vocab_size, probabilities)), tokenizer)


def bundle_of(model: Seq2Seq, tokenizer: Tokenizer) -> ModelBundle:
    return ModelBundle(
        path=Path("nowhere"),
        config=model.config,
        model=model.eval(),
        tokenizer=tokenizer,
        defaults=DecodingOptions(),
        metrics={},
        card="",
        fingerprint="tw-test",
    )


def ask(bundle: ModelBundle, options: DecodingOptions, text: str = "Hello") -> Reply:
    """The reply to one user turn, alone in its batcher. Its pieces have been checked against it."""
    events = drain(Batcher(bundle), ReplyRequest("only", (("user", text),), options))
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1].reply


def drain(batcher: Batcher, *requests: ReplyRequest) -> list[Event]:
    """All events until the batcher is idle. The pieces of each reply are checked against its text."""
    for request in requests:
        batcher.submit(request)
    events = until_idle(batcher)
    check_pieces(events)
    return events


def until_idle(batcher: Batcher) -> list[Event]:
    events: list[Event] = []
    while not batcher.idle:
        events += batcher.step()
    return events


def check_pieces(events: list[Event]) -> None:
    """Pieces are never empty, add up to the reply's text, and nothing follows the end of a reply."""
    shown: dict[str, str] = {}
    ended: set[str] = set()
    for event in events:
        assert event.id not in ended
        match event:
            case Piece(id=id, text=text):
                assert text
                shown[id] = shown.get(id, "") + text
            case Finished(id=id, reply=reply):
                assert shown.get(id, "") == reply.text
                ended.add(id)
            case Failed(id=id):
                ended.add(id)


def replies(events: list[Event]) -> dict[str, Reply]:
    return {event.id: event.reply for event in events if isinstance(event, Finished)}


def failures(events: list[Event]) -> dict[str, Failed]:
    return {event.id: event for event in events if isinstance(event, Failed)}
