"""What decoding needs of a model: met by `chatbot.model.Seq2Seq`, and by several of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from chatbot.config import ModelConfig
from chatbot.model import DialogueBatch, Step
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer


class Decoder(Protocol):
    """Reads conversations and goes on with replies, one token at a time, a row each.

    What it keeps of conversations is its own affair, but for this: states are (B, F), and a memory is a named
    tuple of tensors that all begin with (B, M), with ``tokens``, ``age`` and ``mask`` as those of
    `chatbot.model.Memory` are.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def bias(self) -> Tensor:
        """It is on the device that everything is on."""

    @property
    def gives_logprobs(self) -> bool:
        """Whether the logits of a step are log-probabilities already."""

    def empty_context(self, batch: int) -> Any:
        """The context of conversations in which nothing has been said."""

    def encode_conversations(
        self, conversations: Sequence[Sequence[Sequence[int]]], context: Any = None
    ) -> Any:
        """The context of each conversation, of ids of turns that follow what ``context`` has read."""

    def join(self, contexts: Sequence[Any]) -> Any:
        """One context with the rows of several."""

    def split(self, context: Any) -> list[Any]:
        """A context for each row."""

    def start(self, context: Any) -> tuple[Tensor, Any]:
        """States (B, F) and a memory for replies."""

    def step(self, tokens: Tensor, state: Tensor, memory: Any) -> Step:
        """One token further for ``tokens`` (B,). Pure."""

    def token_losses(self, batch: DialogueBatch) -> Tensor:
        """Negative log-likelihood (Q,) in nats of each reply token of whole dialogues."""


class Bundle(Protocol):
    """A decoder with all that a reply needs: a `chatbot.model_directory.ModelBundle`, or several as one."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def model(self) -> Decoder: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def defaults(self) -> DecodingOptions: ...

    @property
    def fingerprint(self) -> str: ...


def extent(mask: Tensor) -> Tensor:
    """Columns of each row up to its last valid one: ``mask`` (B, M) -> (B,)."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(1) if mask.shape[1] else mask.new_zeros(len(mask), dtype=torch.int64)


class TokenizersDiffer(ValueError):
    """Models that are to work together and do not read and write the same tokens."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one, other)
        self.one, self.other = one, other

    def __str__(self) -> str:
        return f"{self.one} and {self.other} cannot work together: their tokenizers differ"


def require_one_tokenizer(bundles: Sequence[Bundle]) -> None:
    """Raises `TokenizersDiffer` unless all of ``bundles`` have the same tokenizer."""
    first = bundles[0].tokenizer
    for bundle in bundles[1:]:
        if bundle.tokenizer is not first and bundle.tokenizer.to_json() != first.to_json():
            raise TokenizersDiffer(bundles[0].fingerprint, bundle.fingerprint)
