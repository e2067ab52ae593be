"""Encoders: maps from the tokens of a conversation to hidden states, each incremental by turn.

A *reader* turns the tokens of a sequence into an encoding each, and into one vector for all of them. An
*encoder* makes a conversation of turns: it has a state that each new turn moves on, and gives the *summary*
of that state which a reply starts from:

    two_level    a reader for every turn by itself, a recurrence over the turns' vectors
                                                              (Sordoni et al. 2015, Serban et al. 2016)
    last_turn    a reader for every turn by itself; the vector of the last one is all that is kept
                                                              (Sutskever et al. 2014, Vinyals and Le 2015)
    continuous   one recurrence over all tokens, from the first turn to the last
    window       a reader for the last W tokens, whatever turns they are of; read anew for every reply

Shapes: B conversations, N turns of D dialogues, P packed tokens, E embedding, X encoding, C summary, F state.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatbot.cells import Recurrence
from chatbot.config import ModelConfig
from chatbot.packing import Packing, pack

KERNEL = 3
"""Tokens that a convolution sees at a time."""


class Turns(NamedTuple):
    """All turns of some dialogues, as one packed batch of short sequences."""

    tokens: Tensor  # (P,) int64, packed
    packing: Packing  # over N turns
    dialogue: Tensor  # (N,) int64, the dialogue of each turn; turns lie dialogue by dialogue
    position: Tensor  # (N,) int64, its index there
    offset: Tensor  # (N,) int64, tokens of that dialogue before it
    sizes: tuple[int, int, int]  # D dialogues, most turns, most tokens in one of them

    @property
    def slot(self) -> Tensor:
        """Where each packed token stands in its dialogue, (P,)."""
        return self.offset[self.packing.row] + self.packing.column

    def reversed(self) -> Turns:
        """The same with each turn's tokens from the last to the first."""
        packing = self.packing
        first = packing.batch_sizes.to(self.tokens.device).cumsum(0) - packing.batch_sizes.to(
            self.tokens.device
        )
        column = packing.lengths[packing.row] - 1 - packing.column
        return self._replace(tokens=self.tokens[first[column] + packing.unsorted[packing.row]])


# ---- Readers -----------------------------------------------------------------------------------------------


class RecurrentReader(nn.Module):
    """A recurrence over the tokens, in one direction or in both (Schuster and Paliwal 1997)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recurrence = Recurrence(
            config.cell,
            config.embedding_size,
            config.encoder_size,
            layers=config.encoder_layers,
            bidirectional=config.bidirectional,
            residual=config.residual,
            dropout=config.dropout,
        )

    def forward(self, embedded: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """``embedded`` (P, E) packed -> encodings (P, X), the ends of all directions (N, X)."""
        outputs, last = self.recurrence(embedded, packing.batch_sizes)
        return outputs, self.recurrence.last_outputs(last)[packing.unsorted]


class ConvolutionalReader(nn.Module):
    """Convolutions with gated linear units over tokens that know their place (Gehring et al. 2017).

    The vector of a sequence is the mean of its encodings.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.encoder_size
        self.dropout = config.dropout
        self.place = nn.Embedding(config.max_turn_tokens, config.embedding_size)
        self.enter = nn.Linear(config.embedding_size, width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, 2 * width, KERNEL, padding=KERNEL // 2) for _ in range(config.encoder_layers)
        )

    def forward(self, embedded: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        # A window is longer than any turn: its far end shares the last place.
        place = packing.column.clamp(max=self.place.num_embeddings - 1)
        entered = self.enter(embedded + self.place(place))
        rows, longest = len(packing.lengths), len(packing.batch_sizes)
        values = entered.new_zeros(rows, longest, entered.shape[1])
        values = values.index_put((packing.row, packing.column), entered).transpose(1, 2)  # (N, X, S)
        inside = torch.arange(longest, device=values.device) < packing.lengths[:, None]
        for convolution in self.convolutions:
            dropped = F.dropout(values, self.dropout, self.training)
            values = (values + F.glu(convolution(dropped), dim=1)) * inside[:, None]  # padding stays zero
        vectors = values.sum(2) / packing.lengths[:, None]
        return values.transpose(1, 2)[packing.row, packing.column], vectors


class AveragingReader(nn.Module):
    """No order at all: an encoding for every token by itself, their mean for the sequence (Iyyer et al.
    2015).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.embedding_size, *[config.encoder_size] * config.encoder_layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, embedded: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            embedded = torch.tanh(layer(embedded))
        sums = embedded.new_zeros(len(packing.lengths), embedded.shape[1]).index_add(0, packing.row, embedded)
        return embedded, sums / packing.lengths[:, None]


def make_reader(config: ModelConfig) -> nn.Module:
    """The reader that a shape calls for."""
    kinds = {
        "recurrent": RecurrentReader,
        "convolutional": ConvolutionalReader,
        "averaging": AveragingReader,
    }
    return kinds[config.turn_reader](config)


# ---- Encoders ----------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """What a model asks of an encoder. ``state_size`` is F, the width of what a conversation keeps."""

    state_size: int

    def read_turn(self, embedded: Tensor, packing: Packing, state: Tensor) -> tuple[Tensor, Tensor]:
        """One more turn in each row: ``embedded`` (P, E), ``state`` (N, F) -> encodings (P, X), state (N,
        F).
        """
        raise NotImplementedError

    def read_dialogues(
        self, embedded: Tensor, turns: Turns, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Every turn of every dialogue at once, from ``state`` (D, F) or zeros: ``embedded`` (P, E) ->
        encodings (P, X), states (N, F).

        Row n of the states is that after turn n: what `read_turn` would have come to, turn after turn.
        """
        raise NotImplementedError

    def summary(self, state: Tensor) -> Tensor:
        """What a reply starts from: ``state`` (B, F) -> (B, C)."""
        return state


class TwoLevelEncoder(Encoder):
    """Turns by themselves, and a recurrence over them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.reader = make_reader(config)
        self.carry = Recurrence(config.cell, config.encoding_size, config.state_size)
        self.state_size = self.carry.state_size

    def read_turn(self, embedded: Tensor, packing: Packing, state: Tensor) -> tuple[Tensor, Tensor]:
        encodings, vectors = self._read(embedded, packing)
        return encodings, self.carry.step(vectors, state)[1]

    def read_dialogues(
        self, embedded: Tensor, turns: Turns, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        encodings, vectors = self._read(embedded, turns.packing)
        dialogues, most, _ = turns.sizes
        if (
            self.carry.state_size != self.carry.output_size
        ):  # an LSTM's kernel tells its cells only at the end
            return encodings, self._carry_by_steps(vectors, turns, state)
        padded = vectors.new_zeros(most, dialogues, vectors.shape[1])
        padded = padded.index_put((turns.position, turns.dialogue), vectors)
        outputs, _ = self.carry(padded.flatten(0, 1), torch.full((most,), dialogues), state)
        return encodings, outputs[turns.position * dialogues + turns.dialogue]

    def summary(self, state: Tensor) -> Tensor:
        return self.carry.last_outputs(state)

    def _carry_by_steps(self, vectors: Tensor, turns: Turns, state: Tensor | None) -> Tensor:
        if state is None:
            state = vectors.new_zeros(turns.sizes[0], self.state_size)
        places = []
        states = []
        for position in range(turns.sizes[1]):
            here = torch.nonzero(turns.position == position).squeeze(1)
            _, moved = self.carry.step(vectors[here], state[turns.dialogue[here]])
            # Under autocast a reader without a recurrence begins this in a narrower type.
            wide = torch.promote_types(state.dtype, moved.dtype)
            state = state.to(wide).index_copy(0, turns.dialogue[here], moved.to(wide))
            places.append(here)
            states.append(moved)
        return torch.cat(states)[torch.cat(places).argsort()]

    def _read(self, embedded: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        encodings, vectors = self.reader(embedded, packing)
        return encodings, F.dropout(vectors, self.dropout, self.training)


class LastTurnEncoder(Encoder):
    """Turns by themselves; nothing is carried on."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.reader = make_reader(config)
        self.state_size = config.encoding_size

    def read_turn(self, embedded: Tensor, packing: Packing, state: Tensor) -> tuple[Tensor, Tensor]:
        encodings, vectors = self.reader(embedded, packing)
        return encodings, vectors

    def read_dialogues(
        self, embedded: Tensor, turns: Turns, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        encodings, vectors = self.reader(embedded, turns.packing)
        return encodings, vectors


class ContinuousEncoder(Encoder):
    """One recurrence that never starts anew."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recurrence = Recurrence(
            config.cell,
            config.embedding_size,
            config.encoder_size,
            layers=config.encoder_layers,
            residual=config.residual,
            dropout=config.dropout,
        )
        self.state_size = self.recurrence.state_size

    def read_turn(self, embedded: Tensor, packing: Packing, state: Tensor) -> tuple[Tensor, Tensor]:
        encodings, last = self.recurrence(embedded, packing.batch_sizes, state[packing.sorted])
        return encodings, last[packing.unsorted]

    def read_dialogues(
        self, embedded: Tensor, turns: Turns, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states of a kernel's inner layers and cells are not told, so of them the rows hold zeros."""
        row, slot = turns.dialogue[turns.packing.row], turns.slot
        lengths = torch.zeros(turns.sizes[0], dtype=torch.int64, device=row.device)
        lengths.index_add_(0, turns.dialogue, turns.packing.lengths)
        whole = pack(lengths.cpu()).to(row.device)
        at = torch.empty(turns.sizes[0], turns.sizes[2], dtype=torch.int64, device=row.device)
        at[row, slot] = torch.arange(len(row), device=row.device)  # which packed token stands where
        before = None if state is None else state[whole.sorted]
        outputs, last = self.recurrence(embedded[at[whole.row, whole.column]], whole.batch_sizes, before)
        place = torch.empty_like(row)
        place[at[whole.row, whole.column]] = torch.arange(len(row), device=row.device)
        encodings = outputs[place]
        ends = at[turns.dialogue, turns.offset + turns.packing.lengths - 1]
        states = self._with_outputs(encodings[ends])
        final = turns.position == torch.bincount(turns.dialogue)[turns.dialogue] - 1
        return encodings, torch.where(final[:, None], last[whole.unsorted[turns.dialogue]], states)

    def summary(self, state: Tensor) -> Tensor:
        return self.recurrence.last_outputs(state)

    def _with_outputs(self, outputs: Tensor) -> Tensor:
        """States (N, F) of which only what the last layer put out is known."""
        before = outputs.new_zeros(len(outputs), self.state_size - self.recurrence.layer_state)
        after = outputs.new_zeros(len(outputs), self.recurrence.layer_state - outputs.shape[1])
        return torch.cat([before, outputs, after], dim=1)


def make_encoder(config: ModelConfig) -> Encoder | None:
    """The encoder that a shape calls for; None for a language model."""
    match config.encoder:
        case "two_level":
            return TwoLevelEncoder(config)
        case "continuous":
            return ContinuousEncoder(config)
        case "last_turn" | "window":  # the model says what is read: a turn, or the window's tokens
            return LastTurnEncoder(config)
        case "none":
            return None
