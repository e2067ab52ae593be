"""The two-level encoder-decoder.

Every turn is read by itself by a bidirectional GRU (Cho et al. 2014); a second GRU carries the conversation's
state from turn to turn (Sordoni et al. 2015, Serban et al. 2016). A reply starts from that state and attends
(Luong et al. 2015) to the encodings of at most the last W tokens before it:

    bottom GRU reads the shifted reply        b_t = GRU(e(y_{t-1}), b_{t-1})
    attention looks from its outputs          a_t = softmax(b_t K^T + b_t R_age^T),  c_t = a_t K
    top GRUs read both                        d_t = GRU([b_t; c_t], d_{t-1})
    softmax shares the embedding table        p(y_t) = softmax(E W [d_t; c_t])

R_age is a vector for each distance in turns, so that the question just asked differs from one asked ten turns
ago (relative positions, Shaw et al. 2018). No layer feeds attention back into the bottom GRU, so under
teacher forcing each layer is one kernel over whole sequences; and a turn's encodings depend on that turn
alone, so a conversation is encoded once, turn by turn as it grows. The products are not scaled by 1 / sqrt(H)
(Vaswani et al. 2017): with GRU outputs, which lie between -1 and 1, attention then stayed all but uniform.

Shapes: B rows, N turns, A replies, P packed tokens, S turn length, M memory length, D dialogues, H hidden,
C state, E embedding, V vocabulary, L decoder layers. Nothing is stored on modules between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatbot.config import ModelConfig
from chatbot.packing import Packing, pack
from chatbot.recurrence import run_gru


class Context(NamedTuple):
    """What a conversation keeps between turns, a row each."""

    state: Tensor  # (B, C) the conversation's state after the last turn
    memory: Tensor  # (B, M, H) token encodings, oldest first, left-aligned, M <= W
    turn: Tensor  # (B, M) int64, index of the turn that each encoding comes from
    length: Tensor  # (B,) int64, valid encodings
    turns: Tensor  # (B,) int64, turns read so far


class Memory(NamedTuple):
    """What the decoder attends to while one reply is made."""

    keys: Tensor  # (B, M, H)
    age: Tensor  # (B, M) int64, distance in turns, from 0 for the turn just before the reply
    mask: Tensor  # (B, M) bool, True where there is an encoding


class DialogueBatch(NamedTuple):
    """Whole dialogues for teacher forcing: their turns as one packed recurrence, their replies as another."""

    tokens: Tensor  # (P,) int64, all turns, packed
    turns: Packing  # over N turns
    dialogue: Tensor  # (N,) int64, the dialogue of each turn
    position: Tensor  # (N,) int64, its index there
    offset: Tensor  # (N,) int64, tokens of that dialogue before it
    sizes: tuple[int, int, int]  # D dialogues, most turns, most tokens in one of them
    inputs: Tensor  # (Q,) int64, shifted replies, packed: <agent> y_1 .. y_n
    targets: Tensor  # (Q,) int64, y_1 .. y_n <end>
    replies: Packing  # over A replies
    reply_turn: Tensor  # (A,) int64, the turn (index into N) that each reply is
    weights: Tensor  # (A,) float32, training weight of each reply

    def to(self, device: torch.device | str) -> DialogueBatch:
        """The same batch on ``device``; packing sizes stay on the CPU, where the kernels want them."""
        moved = {
            name: value if name == "sizes" else value.to(device) for name, value in self._asdict().items()
        }
        return DialogueBatch(**moved)


class Seq2Seq(nn.Module):
    """GRU encoder-decoder over conversations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, encodings = config.hidden_size, 2 * config.encoder_size
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.turn_gru = nn.GRU(config.embedding_size, config.encoder_size, bidirectional=True)
        self.memory_projection = nn.Linear(encodings, hidden)
        self.state_gru = nn.GRU(encodings, config.state_size)
        self.bridge = nn.Linear(config.state_size, config.decoder_layers * hidden)
        self.bottom = nn.GRU(config.embedding_size, hidden)
        self.age = nn.Embedding(config.turn_ages, hidden)
        self.top = nn.GRU(2 * hidden, hidden, config.decoder_layers - 1)
        self.readout = nn.Linear(2 * hidden, config.embedding_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot inputs, orthogonal recurrences (Saxe et al. 2014), small embeddings for the tied softmax."""
        for name, parameter in self.named_parameters():
            if "weight_hh" in name:
                for gate in parameter.data.chunk(3):
                    nn.init.orthogonal_(gate)
            elif parameter.dim() == 1:
                nn.init.zeros_(parameter)
            elif name in ("embedding.weight", "age.weight"):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                nn.init.xavier_uniform_(parameter)

    # Encoding

    def empty_context(self, batch: int) -> Context:
        """The context of ``batch`` conversations in which nothing has been said."""
        like = self.bias
        counts = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return Context(
            state=like.new_zeros(batch, self.config.state_size),
            memory=like.new_zeros(batch, 0, self.config.hidden_size),
            turn=counts.new_zeros(batch, 0),
            length=counts,
            turns=counts.clone(),
        )

    def encode(self, turns: Tensor, lengths: Tensor, context: Context) -> Context:
        """Read one more turn in each row. ``turns`` (B, S) ids, ``lengths`` (B,); a row of length 0 stays as
        it is.
        """
        device = turns.device
        rows = torch.nonzero(lengths > 0).squeeze(1)
        if not len(rows):
            return context
        packing = pack(lengths[rows].cpu()).to(device)
        row, column = rows[packing.row], packing.column
        encodings, vectors = self._read_turns(turns[row, column], packing)
        states, _ = self.state_gru(vectors.unsqueeze(0), context.state[rows].unsqueeze(0))
        longest = int((context.length + lengths).max())
        memory = context.memory.new_zeros(len(lengths), longest, self.config.hidden_size)
        memory[:, : context.memory.shape[1]] = context.memory
        turn = context.turn.new_zeros(len(lengths), longest)
        turn[:, : context.turn.shape[1]] = context.turn
        slot = context.length[row] + column
        memory[row, slot] = encodings
        turn[row, slot] = context.turns[row]
        return self._keep_last(
            Context(
                state=context.state.index_copy(0, rows, states[0]),
                memory=memory,
                turn=turn,
                length=context.length + lengths,
                turns=context.turns + (lengths > 0),
            )
        )

    def encode_conversations(self, conversations: Sequence[Sequence[Sequence[int]]]) -> Context:
        """Read every turn of each conversation in one pass; the same values as `encode`, turn after turn.

        ``conversations[b][t]`` are the ids of turn t, in the form of `Tokenizer.encode_turn`.
        """
        device = self.bias.device
        flat = [turn for conversation in conversations for turn in conversation]
        context = self.empty_context(len(conversations))
        if not flat:
            return context
        counts = torch.tensor([len(conversation) for conversation in conversations], device=device)
        dialogue = torch.repeat_interleave(torch.arange(len(conversations), device=device), counts)
        position = torch.cat([torch.arange(len(c), device=device) for c in conversations])
        lengths = torch.tensor([len(turn) for turn in flat])
        packing = pack(lengths).to(device)
        ids = torch.tensor([token for turn in flat for token in turn], device=device)
        starts = (lengths.cumsum(0) - lengths).to(device)
        encodings, vectors = self._read_turns(ids[starts[packing.row] + packing.column], packing)
        states = self._read_states(vectors, dialogue, position, len(conversations), int(counts.max()))
        totals = torch.zeros(len(conversations), dtype=torch.int64, device=device)
        totals.index_add_(0, dialogue, lengths.to(device))
        before = (
            starts - (totals.cumsum(0) - totals)[dialogue]
        )  # tokens of the same conversation before each turn
        row, slot = dialogue[packing.row], before[packing.row] + packing.column
        memory = context.memory.new_zeros(len(conversations), int(totals.max()), self.config.hidden_size)
        memory[row, slot] = encodings
        turn = totals.new_zeros(memory.shape[:2])
        turn[row, slot] = position[packing.row]
        last = states[torch.arange(len(conversations), device=device), counts]
        return self._keep_last(Context(last, memory, turn, totals, counts))

    def _read_turns(self, tokens: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """The GRU inside a turn. ``tokens`` (P,) packed -> memory encodings (P, H), turn vectors (N, 2 *
        encoder).
        """
        embedded = self._drop(self.embedding(tokens))
        outputs, last = run_gru(self.turn_gru, embedded, packing.batch_sizes)
        vectors = torch.cat([last[0], last[1]], dim=1)[packing.unsorted]  # ends of both directions
        return self.memory_projection(self._drop(outputs)), self._drop(vectors)

    def _read_states(
        self, vectors: Tensor, dialogue: Tensor, position: Tensor, dialogues: int, most: int
    ) -> Tensor:
        """The GRU over turns. ``vectors`` (N, 2 * encoder) -> (D, most + 1, C); [:, t] is the state before
        turn t.
        """
        padded = vectors.new_zeros(most, dialogues, vectors.shape[1])
        padded = padded.index_put((position, dialogue), vectors)
        outputs, _ = self.state_gru(padded)
        first = outputs.new_zeros(1, dialogues, self.config.state_size)
        return torch.cat([first, outputs]).transpose(0, 1)

    def _keep_last(self, context: Context) -> Context:
        """Drop all but the last W encodings of each row, and columns that no row uses."""
        width, limit = int(context.length.max()), self.config.memory_tokens
        if width <= limit:
            return context._replace(memory=context.memory[:, :width], turn=context.turn[:, :width])
        kept = context.length.clamp(max=limit)
        first = context.length - kept
        index = first[:, None] + torch.arange(limit, device=first.device)
        index = index.clamp(max=width - 1)
        memory = context.memory.gather(1, index[:, :, None].expand(-1, -1, context.memory.shape[2]))
        return context._replace(memory=memory, turn=context.turn.gather(1, index), length=kept)

    # Decoding

    def start(self, context: Context) -> tuple[Tensor, Memory]:
        """Decoder state (L, B, H) and memory for a reply to ``context``."""
        columns = torch.arange(context.memory.shape[1], device=context.length.device)
        mask = columns < context.length[:, None]
        age = (context.turns[:, None] - 1 - context.turn).clamp(0, self.config.turn_ages - 1)
        return self._first_states(context.state), Memory(context.memory, age, mask)

    def step(self, tokens: Tensor, state: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """One token further: ``tokens`` (B,), ``state`` (L, B, H) -> logits (B, V), next state (L, B, H).
        Pure.
        """
        embedded = self._drop(self.embedding(tokens)).unsqueeze(0)
        bottom, bottom_state = self.bottom(embedded, state[:1].contiguous())
        query = bottom[0].unsqueeze(1)
        context = self._attend(query, memory.keys, memory.age.unsqueeze(1), memory.mask.unsqueeze(1))[:, 0]
        top, top_state = self.top(
            torch.cat([self._drop(bottom[0]), context], dim=1).unsqueeze(0), state[1:].contiguous()
        )
        logits = F.linear(self._read_out(top[0], context), self.embedding.weight, self.bias)
        return logits, torch.cat([bottom_state, top_state])

    def _first_states(self, state: Tensor) -> Tensor:
        """(B, C) -> (L, B, H)."""
        layers: Tensor = torch.tanh(self.bridge(state)).view(len(state), self.config.decoder_layers, -1)
        return layers.transpose(0, 1).contiguous()

    def _attend(self, query: Tensor, keys: Tensor, age: Tensor, mask: Tensor) -> Tensor:
        """Dot-product attention with turn ages; a query that may see nothing gets zeros.

        ``query`` (B, T, H), ``keys`` (B, M, H), ``age`` and ``mask`` (B, T, M) or (B, 1, M) -> (B, T, H).
        """
        if not keys.shape[1]:
            return torch.zeros_like(query)
        by_age = query @ self.age.weight.t()  # (B, T, ages)
        scores = query @ keys.transpose(1, 2)
        scores = _at_least_float32(scores + by_age.gather(2, age.expand(-1, query.shape[1], -1)))
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * mask.any(-1, keepdim=True)
        return torch.bmm(weights.to(keys.dtype), keys)

    def _read_out(self, top: Tensor, context: Tensor) -> Tensor:
        """(…, H), (…, H) -> (…, E), to be multiplied with the embedding table."""
        return self._drop(self.readout(torch.cat([self._drop(top), context], dim=-1)))

    def _drop(self, values: Tensor) -> Tensor:
        return F.dropout(values, self.config.dropout, self.training)

    # Teacher forcing

    def forward(self, batch: DialogueBatch) -> Tensor:
        """Readouts (Q, E) of all reply tokens of whole dialogues: turns are one pass, replies another."""
        dialogues, most_turns, most_tokens = batch.sizes
        encodings, vectors = self._read_turns(batch.tokens, batch.turns)
        states = self._read_states(vectors, batch.dialogue, batch.position, dialogues, most_turns)
        reply_dialogue = batch.dialogue[batch.reply_turn]
        start = self._first_states(states[reply_dialogue, batch.position[batch.reply_turn]])
        start = start[:, batch.replies.sorted]
        embedded = self._drop(self.embedding(batch.inputs))
        bottom, _ = run_gru(self.bottom, embedded, batch.replies.batch_sizes, start[:1].contiguous())
        slot = batch.offset[batch.turns.row] + batch.turns.column
        keys = _scatter(encodings, batch.dialogue[batch.turns.row], slot, dialogues, most_tokens)
        context = self._attend_in_dialogues(bottom, keys, batch)
        inputs = torch.cat([self._drop(bottom), context.to(bottom.dtype)], dim=1)
        top, _ = run_gru(self.top, inputs, batch.replies.batch_sizes, start[1:].contiguous())
        return self._read_out(top, context.to(top.dtype))

    def logits(self, readouts: Tensor) -> Tensor:
        """(Q, E) of `forward` -> (Q, V)."""
        return F.linear(readouts, self.embedding.weight, self.bias)

    def token_losses(self, batch: DialogueBatch) -> Tensor:
        """Negative log-likelihood (Q,) in nats of each reply token, in the order of ``batch.targets``."""
        readouts = self.forward(batch)
        pieces = [
            F.cross_entropy(_at_least_float32(self.logits(part)), target, reduction="none")
            for part, target in zip(
                torch.split(readouts, 2048), torch.split(batch.targets, 2048), strict=True
            )
        ]
        return torch.cat(pieces)

    def _attend_in_dialogues(self, queries: Tensor, keys: Tensor, batch: DialogueBatch) -> Tensor:
        """Attention of all replies of a dialogue at once. ``queries`` (Q, H) packed, ``keys`` (D, most, H) ->
        (Q, H).

        A reply that starts at token o of its dialogue sees the W tokens before o, as it will when it is
        served.
        """
        dialogue = batch.dialogue[batch.reply_turn][batch.replies.row]
        slot, width = _slots_of_queries(batch, dialogue)
        rows = _scatter(queries, dialogue, slot, keys.shape[0], width)
        turn_of_key = _scatter_ids(
            batch.position[batch.turns.row],
            batch.dialogue[batch.turns.row],
            batch.offset[batch.turns.row] + batch.turns.column,
            keys.shape[:2],
        )
        first = _scatter_ids(
            batch.offset[batch.reply_turn][batch.replies.row], dialogue, slot, rows.shape[:2]
        )
        turn = _scatter_ids(
            batch.position[batch.reply_turn][batch.replies.row], dialogue, slot, rows.shape[:2]
        )
        column = torch.arange(keys.shape[1], device=keys.device)
        mask = (column < first[:, :, None]) & (column >= first[:, :, None] - self.config.memory_tokens)
        age = (turn[:, :, None] - 1 - turn_of_key[:, None, :]).clamp(0, self.config.turn_ages - 1)
        return self._attend(rows, keys, age, mask)[dialogue, slot]


def _at_least_float32(values: Tensor) -> Tensor:
    """Softmaxes are never taken in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _slots_of_queries(batch: DialogueBatch, dialogue: Tensor) -> tuple[Tensor, int]:
    """A column for every reply token among those of its dialogue, (Q,), and the number of columns."""
    lengths = batch.replies.lengths
    reply_dialogue = batch.dialogue[batch.reply_turn]
    before = lengths.cumsum(0) - lengths  # replies come dialogue by dialogue
    totals = torch.zeros(batch.sizes[0], dtype=torch.int64, device=lengths.device)
    totals.index_add_(0, reply_dialogue, lengths)
    first = totals.cumsum(0) - totals
    slot = (before - first[reply_dialogue])[batch.replies.row] + batch.replies.column
    return slot, int(totals.max())


def _scatter(values: Tensor, row: Tensor, column: Tensor, rows: int, columns: int) -> Tensor:
    """(P, X) -> (rows, columns, X), zero where nothing is put."""
    flat = values.new_zeros(rows * columns, values.shape[1])
    return flat.index_copy(0, row * columns + column, values).view(rows, columns, -1)


def _scatter_ids(values: Tensor, row: Tensor, column: Tensor, shape: torch.Size) -> Tensor:
    """(P,) -> shape (rows, columns), zero where nothing is put."""
    return values.new_zeros(shape).index_put((row, column), values)
