"""The shape of a model: every choice that decides which tensors exist and how they are wired."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Size = Annotated[int, Field(ge=1, le=65536)]
Depth = Annotated[int, Field(ge=1, le=8)]
CellKind = Literal["gru", "gru_reset_before", "lstm", "lstm_peephole", "rnn"]
EncoderKind = Literal["two_level", "continuous", "window", "last_turn", "none"]
ReaderKind = Literal["recurrent", "convolutional", "averaging"]
AttentionKind = Literal["dot", "scaled", "bilinear", "additive", "none"]


class ModelConfig(BaseModel):
    """Shape of a `chatbot.model.Seq2Seq`; saved as ``config.json`` of a model directory.

    docs/models.md has the equation and the source of every choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["turnwise-1"] = "turnwise-1"
    """Form of the model directory; a reader refuses one that it does not know."""
    vocab_size: Annotated[int, Field(ge=5, le=1_000_000)] = 8000
    """V, tokens including the special ones."""
    embedding_size: Size = 384
    """E, of the one table that encoder, decoder and softmax share."""
    cell: CellKind = "gru"
    """What all recurrent layers are made of."""
    residual: bool = False
    """Whether a recurrent layer adds its input to its output, where both have one width."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of activations dropped between layers in training."""

    encoder: EncoderKind = "two_level"
    """How turns make up a conversation: a recurrence over turns, one long recurrence over all tokens, a
    window of the last tokens read anew for each reply, the last turn alone, or nothing (a language model).
    """
    turn_reader: ReaderKind = "recurrent"
    """How the tokens of a turn (or of a window) become encodings."""
    bidirectional: bool = True
    """Whether a recurrent reader also reads backwards."""
    reverse_input: bool = False
    """Whether every turn is read from its end to its beginning (Sutskever et al. 2014)."""
    encoder_layers: Depth = 1
    """Of the reader of turns."""
    encoder_size: Size = 256
    """Width of each direction of a turn's reader; token encodings have twice that where it reads both
    ways.
    """
    state_size: Size = 512
    """C, of the recurrence that carries a two-level conversation from turn to turn."""
    max_turn_tokens: Annotated[int, Field(ge=3, le=4096)] = 160
    """S, the longest turn that is read, with its role and end tokens; what is over is cut off."""

    bridge: Literal["projection", "copy"] = "projection"
    """What the decoder starts from: a learned projection of the encoder's state, or that state itself."""
    context_input: bool = False
    """Whether every decoder step also reads the encoder's state (Cho et al. 2014)."""
    hidden_size: Size = 512
    """H, of every decoder layer and of the attention memory."""
    decoder_layers: Depth = 2
    """L: one bottom layer, and L - 1 top layers that also read the attention context."""
    attention: AttentionKind = "dot"
    """How a decoder output and a token encoding are compared."""
    attention_size: Size = 128
    """Width of the hidden layer of additive attention."""
    memory_tokens: Annotated[int, Field(ge=1, le=4096)] = 192
    """W, the most token encodings before a reply that its decoder can attend to."""
    turn_ages: Annotated[int, Field(ge=1, le=256)] = 16
    """How many distances in turns the attention tells apart; older turns share the last one."""
    copying: bool = False
    """Whether a reply's tokens may also be copied from where attention looks (See et al. 2017)."""
    tied: bool = True
    """Whether the softmax shares the embedding table (Press and Wolf 2017)."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [
            words
            for wrong, words in (
                (
                    self.encoder == "continuous" and (self.bidirectional or self.turn_reader != "recurrent"),
                    "encoder continuous needs bidirectional = false and turn_reader recurrent",
                ),
                (
                    self.encoder == "none" and self.attention != "none",
                    "encoder none has nothing to attend to: attention must be none",
                ),
                (
                    self.encoder == "none" and self.context_input,
                    "encoder none has no state for context_input",
                ),
                (self.copying and self.attention == "none", "copying needs attention"),
                (
                    self.bridge == "copy"
                    and self.encoder != "none"
                    and self.summary_size != self.hidden_size,
                    f"bridge copy needs hidden_size {self.summary_size}, the width of the encoder's state",
                ),
            )
            if wrong
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def encoding_size(self) -> int:
        """D, the width of a token encoding."""
        both_ways = self.turn_reader == "recurrent" and self.bidirectional
        return self.encoder_size * (2 if both_ways else 1)

    @property
    def summary_size(self) -> int:
        """Width of what the decoder gets to know of a conversation without attention; C for two levels."""
        if self.encoder == "none":
            return 0
        return self.state_size if self.encoder == "two_level" else self.encoding_size
