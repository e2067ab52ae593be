"""The shape of a model: every number that decides which tensors exist and how they are wired."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(ge=1, le=65536)]


class ModelConfig(BaseModel):
    """Shape of a `chatbot.model.Seq2Seq`; saved as ``config.json`` of a model directory."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["turnwise-1"] = "turnwise-1"
    """Form of the model directory; a reader refuses one that it does not know."""
    vocab_size: Annotated[int, Field(ge=5, le=1_000_000)] = 8000
    """V, tokens including the special ones."""
    embedding_size: Size = 384
    """E, of the one table that encoder, decoder and softmax share."""
    encoder_size: Size = 256
    """Width of each direction of the GRU inside a turn; token encodings have twice that."""
    state_size: Size = 512
    """C, of the GRU that carries the conversation from turn to turn."""
    hidden_size: Size = 512
    """H, of every decoder layer and of the attention memory."""
    decoder_layers: Annotated[int, Field(ge=2, le=8)] = 2
    """L: one bottom GRU, and L - 1 top GRUs that also read the attention context."""
    memory_tokens: Annotated[int, Field(ge=1, le=4096)] = 192
    """W, the most token encodings before a reply that its decoder can attend to."""
    turn_ages: Annotated[int, Field(ge=1, le=256)] = 16
    """How many distances in turns the attention tells apart; older turns share the last one."""
    max_turn_tokens: Annotated[int, Field(ge=3, le=4096)] = 160
    """S, the longest turn that is read, with its role and end tokens; what is over is cut off."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of activations dropped between layers in training."""
