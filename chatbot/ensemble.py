"""Several models with one tokenizer that answer as one: the mean of their probabilities (Hansen and Salamon
1990; in sequence to sequence learning, Sutskever et al. 2014).

    p(y_t | y_<t, conversation) = 1/K Σ_k p_k(y_t | y_<t, conversation)

Each member reads the conversation and carries its own state; states lie side by side in a row, and so do the
memories. Members may differ in everything but the tokenizer. Where one remembers more than another, both
memories end with the newest token:

    member 1    [Hi][ there][ A][ latte]
    member 2          ·        [ A][ latte]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import Tensor

from chatbot.config import ModelConfig
from chatbot.decoder import Bundle, Decoder, extent, require_one_tokenizer
from chatbot.model import DialogueBatch, Memory, Step
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer


class EnsembleMemory(tuple[Tensor, ...]):
    """Tensors (B, M, …): tokens, age and mask of what any member remembers, then each member's memory."""

    __slots__ = ()

    @classmethod
    def _make(cls, values: Iterable[Tensor]) -> Self:
        return cls(values)

    @property
    def tokens(self) -> Tensor:
        return self[0]

    @property
    def age(self) -> Tensor:
        return self[1]

    @property
    def mask(self) -> Tensor:
        return self[2]

    def members(self) -> list[Memory]:
        """The memory of each member."""
        size = len(Memory._fields)
        return [Memory._make(self[at : at + size]) for at in range(3, len(self), size)]


class Ensemble:
    """Has the face of a model (`chatbot.decoder.Decoder`) and the mean of its members' probabilities."""

    def __init__(self, members: Sequence[Decoder]) -> None:
        self._members = tuple(members)
        configs = [member.config for member in members]
        self.config: ModelConfig = configs[0].model_copy(
            update={
                "memory_tokens": max(config.memory_tokens for config in configs),
                "max_turn_tokens": min(config.max_turn_tokens for config in configs),
            }
        )
        with torch.inference_mode():
            states = [member.start(member.encode_conversations([[]]))[0] for member in members]
        self._sizes = [state.shape[1] for state in states]

    @property
    def bias(self) -> Tensor:
        return self._members[0].bias

    @property
    def gives_logprobs(self) -> bool:
        return True

    def empty_context(self, batch: int) -> tuple[Any, ...]:
        """The context that each member begins with."""
        return tuple(member.empty_context(batch) for member in self._members)

    def encode_conversations(
        self, conversations: Sequence[Sequence[Sequence[int]]], context: tuple[Any, ...] | None = None
    ) -> tuple[Any, ...]:
        """The context that each member has."""
        before = context or (None,) * len(self._members)
        return tuple(
            member.encode_conversations(conversations, own)
            for member, own in zip(self._members, before, strict=True)
        )

    def join(self, contexts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """One context with the rows of several, in their order."""
        return tuple(
            member.join(own) for member, own in zip(self._members, zip(*contexts, strict=True), strict=True)
        )

    def split(self, context: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """A context for each row."""
        parts = (member.split(own) for member, own in zip(self._members, context, strict=True))
        return list(zip(*parts, strict=True))

    def start(self, context: tuple[Any, ...]) -> tuple[Tensor, EnsembleMemory]:
        """States (B, ΣF) and memories for replies."""
        begun = [member.start(own) for member, own in zip(self._members, context, strict=True)]
        memories = _aligned([cast(Memory, memory) for _, memory in begun])
        tokens, age, mask = memories[0].tokens, memories[0].age, memories[0].mask
        for memory in memories[1:]:
            tokens = torch.where(mask, tokens, memory.tokens)
            age = torch.where(mask, age, memory.age)
            mask = mask | memory.mask
        fields = (field for memory in memories for field in memory)
        return torch.cat([state for state, _ in begun], dim=1), EnsembleMemory((tokens, age, mask, *fields))

    def step(self, tokens: Tensor, state: Tensor, memory: EnsembleMemory) -> Step:
        """One token further. The logits are log-probabilities; the attention is the mean, without what a
        member sees where another sees another token.
        """
        own = zip(self._members, torch.split(state, self._sizes, dim=1), memory.members(), strict=True)
        steps = [member.step(tokens, part, remembered) for member, part, remembered in own]
        logprobs = torch.stack([step.logits.log_softmax(1) for step in steps])
        attention = [
            step.attention * (remembered.tokens == memory.tokens)
            for step, remembered in zip(steps, memory.members(), strict=True)
        ]
        return Step(
            logprobs.logsumexp(0) - math.log(len(steps)),
            torch.cat([step.state for step in steps], dim=1),
            torch.stack(attention).mean(0),
        )

    def token_losses(self, batch: DialogueBatch) -> Tensor:
        """Negative log-likelihood (Q,) in nats of each reply token."""
        likelihoods = torch.stack([-member.token_losses(batch) for member in self._members])
        return math.log(len(self._members)) - likelihoods.logsumexp(0)


def _aligned(memories: Sequence[Memory]) -> list[Memory]:
    """The memories, of equal width, each row moved to the right so that all end in the same column."""
    width = max(memory.mask.shape[1] for memory in memories)
    lengths = torch.stack([extent(memory.mask) for memory in memories])  # (K, B)
    return [
        Memory._make(_moved(field, shift, width) for field in memory)
        for memory, shift in zip(memories, lengths.amax(0) - lengths, strict=True)
    ]


def _moved(values: Tensor, shift: Tensor, width: int) -> Tensor:
    """``values`` (B, M, …) as (B, width, …), row b moved to the right by ``shift[b]``; zero elsewhere."""
    moved = values.new_zeros(len(values), width, *values.shape[2:])
    source = torch.arange(width, device=values.device) - shift[:, None]  # (B, width)
    row, column = torch.nonzero((source >= 0) & (source < values.shape[1]), as_tuple=True)
    moved[row, column] = values[row, source[row, column]]
    return moved


@dataclass(frozen=True)
class EnsembleBundle:
    """Several bundles as one. Options that nobody gave are those of the first."""

    members: tuple[Bundle, ...]

    def __post_init__(self) -> None:
        """Raises `chatbot.decoder.TokenizersDiffer`."""
        require_one_tokenizer(self.members)

    @cached_property
    def model(self) -> Ensemble:
        return Ensemble([member.model for member in self.members])

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.members[0].tokenizer

    @property
    def defaults(self) -> DecodingOptions:
        return self.members[0].defaults

    @property
    def fingerprint(self) -> str:
        return "+".join(member.fingerprint for member in self.members)
