"""The encoder-decoder: a conversation in, a reply out.

An encoder (chatbot.encoders) reads turns; a reply starts from its state and attends (chatbot.attention) to
the encodings of at most the last W tokens before it:

    bottom layer reads the shifted reply      b_t = RNN(e(y_{t-1}), b_{t-1})
    attention looks from its outputs          a_t = softmax(b_t K^T + b_t R_age^T),  c_t = a_t K
    top layers read both                      d_t = RNN([b_t; c_t], d_{t-1})
    softmax shares the embedding table        p(y_t) = softmax(E W [d_t; c_t])
    and may share with copying                p(y_t) = g_t p(y_t) + (1 - g_t) sum_{i: x_i = y_t} a_ti

No layer feeds attention back into the bottom layer, so under teacher forcing each layer is one kernel over
whole sequences; and with two levels a turn's encodings depend on that turn alone, so a conversation is
encoded once, turn by turn as it grows. The products are not scaled by 1 / sqrt(H) (Vaswani et al. 2017)
unless asked for: with GRU outputs, which lie between -1 and 1, attention then stayed all but uniform.
docs/models.md has all that `ModelConfig` can choose.

Shapes: B rows, N turns, A replies, P packed tokens, Q packed reply tokens, S turn length, M memory length, D
dialogues, H hidden, C summary, F state, E embedding, V vocabulary, L decoder layers. Nothing is stored on
modules between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatbot.attention import Attention, at_least_float32
from chatbot.cells import Recurrence
from chatbot.config import ModelConfig
from chatbot.encoders import Turns, make_encoder
from chatbot.packing import Packing, pack


class Context(NamedTuple):
    """What a conversation keeps between turns, a row each."""

    state: Tensor  # (B, F) the encoder's state after the last turn
    memory: Tensor  # (B, M, H) token encodings, oldest first, left-aligned, M <= W
    tokens: Tensor  # (B, M) int64, the token of each encoding
    turn: Tensor  # (B, M) int64, index of the turn that each encoding comes from
    length: Tensor  # (B,) int64, valid encodings
    turns: Tensor  # (B,) int64, turns read so far


class Memory(NamedTuple):
    """What the decoder attends to while one reply is made."""

    keys: Tensor  # (B, M, H)
    tokens: Tensor  # (B, M) int64
    age: Tensor  # (B, M) int64, distance in turns, from 0 for the turn just before the reply
    mask: Tensor  # (B, M) bool, True where there is an encoding


class Step(NamedTuple):
    """One token further, a row each."""

    logits: Tensor  # (B, V) of the next token
    state: Tensor  # (B, F) all that the decoder carries on
    attention: Tensor  # (B, M) weights of what it looked at; each row adds up to 1, or is zero without memory


class Copying(NamedTuple):
    """How a pointer-generator shares out probability, natural logarithms."""

    generate: Tensor  # (Q,) log of the share that the softmax gets
    copied: Tensor  # (Q,) log of the probability that the target is copied, the share of copying in it


class Readouts(NamedTuple):
    """What teacher forcing comes to, before the softmax."""

    values: Tensor  # (Q, E), to be multiplied with the output table
    copying: Copying | None = None


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

    @property
    def said(self) -> Turns:
        """The turns alone, as an encoder reads them."""
        return Turns(self.tokens, self.turns, self.dialogue, self.position, self.offset, self.sizes)


class _Source(NamedTuple):
    """What the replies of a batch start from and attend to. R rows: dialogues, or a window for each reply."""

    state: Tensor  # (A, F) the encoder's state before each reply
    keys: Tensor  # (R, M, H)
    tokens: Tensor  # (R, M) int64
    turn: Tensor  # (R, M) int64, the position of each token's turn in its dialogue
    row: Tensor  # (A,) int64, the row of each reply
    upto: Tensor  # (A,) int64, the tokens of that row that come before the reply


class Seq2Seq(nn.Module):
    """Recurrent encoder-decoder over conversations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, summary = config.hidden_size, config.summary_size
        given = summary if config.context_input else 0
        seen = 0 if config.attention == "none" else hidden
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.encoder = make_encoder(config)
        self.bottom = Recurrence(config.cell, config.embedding_size + given, hidden)
        self.top = (
            Recurrence(
                config.cell,
                hidden + seen,
                hidden,
                layers=config.decoder_layers - 1,
                residual=config.residual,
                dropout=config.dropout,
            )
            if config.decoder_layers > 1
            else None
        )
        self.layers_size = self.bottom.state_size + (self.top.state_size if self.top else 0)
        if config.encoder != "none" and config.bridge == "projection":
            self.bridge = nn.Linear(summary, self.layers_size)
        if config.attention != "none":
            self.memory_projection = nn.Linear(config.encoding_size, hidden)
            self.attention = Attention(
                config.attention, hidden, ages=config.turn_ages, additive_size=config.attention_size
            )
        if config.copying:
            self.copy_gate = nn.Linear(hidden + seen + config.embedding_size, 1)
        self.readout = nn.Linear(hidden + seen + given, config.embedding_size)
        if not config.tied:
            self.output = nn.Embedding(config.vocab_size, config.embedding_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot inputs, orthogonal recurrences (Saxe et al. 2014), small embeddings for the tied softmax,
        open forget gates (Jozefowicz et al. 2015), and copying that begins as the exception.
        """
        tables = ("embedding.weight", "output.weight", "age.weight", "place.weight")
        for name, parameter in self.named_parameters():
            if "weight_hh" in name:
                for gate in torch.split(parameter.data, parameter.shape[1]):
                    nn.init.orthogonal_(gate)
            elif parameter.dim() == 1:
                nn.init.zeros_(parameter)
            elif name.endswith(tables):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                nn.init.xavier_uniform_(parameter)
            if self.config.cell.startswith("lstm") and ("bias_ih" in name or ".bias_l0" in name):
                nn.init.ones_(parameter.data.chunk(4)[1])
        if self.config.copying:
            nn.init.constant_(self.copy_gate.bias, 2.0)

    @property
    def gives_logprobs(self) -> bool:
        """Whether the logits of a step are log-probabilities already."""
        return self.config.copying

    @property
    def output_table(self) -> Tensor:
        """(V, E) of the softmax."""
        return self.embedding.weight if self.config.tied else self.output.weight

    # Encoding

    def empty_context(self, batch: int) -> Context:
        """The context of ``batch`` conversations in which nothing has been said."""
        like = self.bias
        counts = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return Context(
            state=like.new_zeros(batch, self.encoder.state_size if self.encoder else 0),
            memory=like.new_zeros(batch, 0, self.config.hidden_size),
            tokens=counts.new_zeros(batch, 0),
            turn=counts.new_zeros(batch, 0),
            length=counts,
            turns=counts.clone(),
        )

    def encode(self, turns: Tensor, lengths: Tensor, context: Context) -> Context:
        """Read one more turn in each row. ``turns`` (B, S) ids, ``lengths`` (B,); a row of length 0 stays as
        it is.
        """
        rows = torch.nonzero(lengths > 0).squeeze(1)
        if not len(rows):
            return context
        packing = pack(lengths[rows].cpu()).to(turns.device)
        one = torch.zeros_like(rows)
        said = Turns(
            tokens=turns[rows[packing.row], packing.column],
            packing=packing,
            dialogue=torch.arange(len(rows), device=rows.device),
            position=one,
            offset=one,
            sizes=(len(rows), 1, len(packing.batch_sizes)),
        )
        said = said.reversed() if self.config.reverse_input else said
        context = context._replace(turns=context.turns + (lengths > 0))
        if self.encoder is None:
            return context
        if self.config.encoder == "window":
            return self._read_windows(self._remember(said, rows, None, context))
        encodings, states = self.encoder.read_turn(self._embed(said.tokens), packing, context.state[rows])
        context = context._replace(state=context.state.index_copy(0, rows, states))
        return self._remember(said, rows, self._as_memory(encodings), context)

    def encode_conversations(
        self, conversations: Sequence[Sequence[Sequence[int]]], context: Context | None = None
    ) -> Context:
        """Read all turns of each conversation in one pass; the same values as `encode`, turn after turn.

        ``conversations[b][t]`` are the ids of turn t, in the form of `Tokenizer.encode_turn`. They follow
        what row b of ``context`` has read; without one, they are all that was said.
        """
        context = context or self.empty_context(len(conversations))
        counts = torch.tensor([len(conversation) for conversation in conversations], device=self.bias.device)
        context = context._replace(turns=context.turns + counts)
        rows = torch.nonzero(counts > 0).squeeze(1)
        if self.encoder is None or not len(rows):
            return context
        said = _turns_of([conversation for conversation in conversations if conversation], self.bias.device)
        said = said.reversed() if self.config.reverse_input else said
        if self.config.encoder == "window":
            return self._read_windows(self._remember(said, rows, None, context))
        before = context.state[rows]
        encodings, states = self.encoder.read_dialogues(self._embed(said.tokens), said, before)
        last = counts[rows].cumsum(0) - 1
        context = context._replace(state=context.state.index_copy(0, rows, states[last]))
        return self._remember(said, rows, self._as_memory(encodings), context)

    @staticmethod
    def join(contexts: Sequence[Context]) -> Context:
        """One context with the rows of several, in their order."""
        width = max(context.memory.shape[1] for context in contexts)
        return Context(
            state=torch.cat([context.state for context in contexts]),
            memory=torch.cat([_widened(context.memory, width) for context in contexts]),
            tokens=torch.cat([_widened(context.tokens, width) for context in contexts]),
            turn=torch.cat([_widened(context.turn, width) for context in contexts]),
            length=torch.cat([context.length for context in contexts]),
            turns=torch.cat([context.turns for context in contexts]),
        )

    @staticmethod
    def split(context: Context) -> list[Context]:
        """A context for each row, which shares no memory with the others and is no larger than it must be."""
        rows = []
        for b, length in enumerate(context.length.tolist()):
            one = Context(*(values[b : b + 1] for values in context))
            rows.append(
                Context(
                    state=one.state.clone(),
                    memory=one.memory[:, :length].clone(),
                    tokens=one.tokens[:, :length].clone(),
                    turn=one.turn[:, :length].clone(),
                    length=one.length.clone(),
                    turns=one.turns.clone(),
                )
            )
        return rows

    def _embed(self, tokens: Tensor) -> Tensor:
        return self._drop(self.embedding(tokens))

    def _as_memory(self, encodings: Tensor) -> Tensor | None:
        """(P, X) -> (P, H), None where nothing attends."""
        if self.config.attention == "none":
            return None
        projected: Tensor = self.memory_projection(self._drop(encodings))
        return projected

    def _remember(self, said: Turns, rows: Tensor, encodings: Tensor | None, context: Context) -> Context:
        """Append what was ``said`` in ``rows`` (D,) to their memories, with its ``encodings`` (P, H) if any.

        ``context.turns`` counts these turns already.
        """
        if encodings is None and self.config.encoder != "window":
            return context
        dialogue = said.dialogue[said.packing.row]
        row = rows[dialogue]
        new = torch.zeros_like(context.length).index_add_(0, rows[said.dialogue], said.packing.lengths)
        slot = context.length[row] + said.slot
        first = context.turns[rows] - torch.bincount(said.dialogue, minlength=len(rows))
        turn = (first[said.dialogue] + said.position)[said.packing.row]
        length = context.length + new
        width = int(length.max())
        tokens = _widened(context.tokens, width).index_put((row, slot), said.tokens)
        memory = _widened(context.memory, width)
        if encodings is not None:
            memory = memory.index_put((row, slot), encodings.to(memory.dtype))
        turns = _widened(context.turn, width).index_put((row, slot), turn)
        return self._keep_last(context._replace(memory=memory, tokens=tokens, turn=turns, length=length))

    def _read_windows(self, context: Context) -> Context:
        """Encode anew all that is remembered."""
        rows = torch.nonzero(context.length > 0).squeeze(1)
        if not len(rows) or self.encoder is None:
            return context
        packing = pack(context.length[rows].cpu()).to(rows.device)
        embedded = self._embed(context.tokens[rows[packing.row], packing.column])
        encodings, states = self.encoder.read_turn(embedded, packing, context.state[rows])
        context = context._replace(state=context.state.index_copy(0, rows, states))
        keys = self._as_memory(encodings)
        if keys is None:
            return context
        where = (rows[packing.row], packing.column)
        return context._replace(memory=context.memory.index_put(where, keys.to(context.memory.dtype)))

    def _keep_last(self, context: Context) -> Context:
        """Drop all but the last W encodings of each row, and columns that no row uses."""
        width, limit = int(context.length.max()), self.config.memory_tokens
        if width <= limit:
            return context._replace(
                memory=context.memory[:, :width],
                tokens=context.tokens[:, :width],
                turn=context.turn[:, :width],
            )
        kept = context.length.clamp(max=limit)
        first = context.length - kept
        index = first[:, None] + torch.arange(limit, device=first.device)
        index = index.clamp(max=width - 1)
        memory = context.memory.gather(1, index[:, :, None].expand(-1, -1, context.memory.shape[2]))
        tokens, turn = context.tokens.gather(1, index), context.turn.gather(1, index)
        return context._replace(memory=memory, tokens=tokens, turn=turn, length=kept)

    # Decoding

    def start(self, context: Context) -> tuple[Tensor, Memory]:
        """Decoder state (B, F) and memory for a reply to ``context``."""
        attends = self.config.attention != "none"
        length = context.length if attends else torch.zeros_like(context.length)
        columns = torch.arange(context.memory.shape[1], device=context.length.device)
        mask = columns < length[:, None]
        age = context.turns[:, None] - 1 - context.turn
        if self.config.encoder == "last_turn":
            mask = mask & (age == 0)
        age = age.clamp(0, self.config.turn_ages - 1)
        return self._first_state(context.state), Memory(context.memory, context.tokens, age, mask)

    def step(self, tokens: Tensor, state: Tensor, memory: Memory) -> Step:
        """One token further for ``tokens`` (B,) from ``state`` (B, F). Pure."""
        layers, summary = state[:, : self.layers_size], state[:, self.layers_size :]
        embedded = self._embed(tokens)
        bottom, bottom_state = self.bottom.step(
            torch.cat([embedded, summary], dim=1), layers[:, : self.bottom.state_size]
        )
        seen, weights = self._look(bottom, memory)
        top, top_state = bottom, bottom_state[:, :0]
        if self.top is not None:
            top, top_state = self.top.step(
                self._beside(self._drop(bottom), seen), layers[:, self.bottom.state_size :]
            )
            top = top + bottom if self.config.residual else top
        logits = F.linear(self._read_out(top, seen, summary), self.output_table, self.bias)
        if self.config.copying:
            gate = self._gate(top, seen, embedded, memory.mask.any(1))
            logits = _mixed(logits, gate, weights, memory.tokens)
        return Step(logits, torch.cat([bottom_state, top_state, summary], dim=1), weights)

    def _look(self, bottom: Tensor, memory: Memory) -> tuple[Tensor | None, Tensor]:
        """Attention of one token: ``bottom`` (B, H) -> what is seen (B, H), weights (B, M)."""
        if self.config.attention == "none":
            return None, bottom.new_zeros(memory.mask.shape)
        seen, weights = self.attention(
            bottom.unsqueeze(1), memory.keys, memory.age.unsqueeze(1), memory.mask.unsqueeze(1)
        )
        return seen[:, 0], weights[:, 0]

    def _first_state(self, state: Tensor) -> Tensor:
        """Encoder states (B, F) -> decoder states (B, F)."""
        if self.encoder is None:
            return self.bias.new_zeros(len(state), self.layers_size)
        summary = self.encoder.summary(state)
        if self.config.bridge == "projection":
            layers = torch.tanh(self.bridge(summary))
        else:
            layers = summary.repeat(1, self.layers_size // summary.shape[1])
        return torch.cat([layers, summary], dim=1) if self.config.context_input else layers

    def _beside(self, values: Tensor, *others: Tensor | None) -> Tensor:
        return torch.cat([values, *(other for other in others if other is not None)], dim=-1)

    def _read_out(self, top: Tensor, seen: Tensor | None, summary: Tensor) -> Tensor:
        """(…, H), (…, H), (…, C or 0) -> (…, E), to be multiplied with the output table."""
        return self._drop(self.readout(self._beside(self._drop(top), seen, summary)))

    def _gate(self, top: Tensor, seen: Tensor | None, embedded: Tensor, some: Tensor) -> Tensor:
        """Logit of generating rather than copying, (…,); ``some`` (…,) is whether there is anything to
        copy.
        """
        gate = self.copy_gate(self._beside(top, seen, embedded)).squeeze(-1)
        return at_least_float32(gate).masked_fill(~some, torch.inf)

    def _drop(self, values: Tensor) -> Tensor:
        return F.dropout(values, self.config.dropout, self.training)

    # Teacher forcing

    def forward(self, batch: DialogueBatch) -> Readouts:
        """Readouts of all reply tokens of whole dialogues: turns are one pass, replies another."""
        source = self._read_source(batch)
        state = self._first_state(source.state)[batch.replies.sorted]
        layers = state[:, : self.layers_size]
        summary = state[batch.replies.unsorted, self.layers_size :][batch.replies.row]
        embedded = self._embed(batch.inputs)
        sizes = batch.replies.batch_sizes
        bottom, _ = self.bottom(
            torch.cat([embedded, summary], dim=1), sizes, layers[:, : self.bottom.state_size]
        )
        seen, copied = self._attend(bottom, source, batch)
        top = bottom
        if self.top is not None:
            inputs = self._beside(self._drop(bottom), seen)
            top, _ = self.top(inputs, sizes, layers[:, self.bottom.state_size :])
            top = top + bottom if self.config.residual else top
        values = self._read_out(top, seen, summary)
        if copied is None:
            return Readouts(values)
        gate = self._gate(top, seen, embedded, source.upto[batch.replies.row] > 0)
        return Readouts(values, Copying(F.logsigmoid(gate), F.logsigmoid(-gate) + _log(copied)))

    def logits(self, readouts: Tensor) -> Tensor:
        """(Q, E) of `forward` -> (Q, V)."""
        return F.linear(readouts, self.output_table, self.bias)

    def token_losses(self, batch: DialogueBatch) -> Tensor:
        """Negative log-likelihood (Q,) in nats of each reply token, in the order of ``batch.targets``."""
        readouts, copying = self.forward(batch)
        pieces = [
            F.cross_entropy(at_least_float32(self.logits(part)), target, reduction="none")
            for part, target in zip(
                torch.split(readouts, 2048), torch.split(batch.targets, 2048), strict=True
            )
        ]
        losses = torch.cat(pieces)
        return losses if copying is None else -torch.logaddexp(copying.generate - losses, copying.copied)

    def _read_source(self, batch: DialogueBatch) -> _Source:
        said = batch.said.reversed() if self.config.reverse_input else batch.said
        if self.encoder is None:
            nothing = batch.reply_turn.new_zeros(len(batch.reply_turn))
            empty = self.bias.new_zeros(1, 0, self.config.hidden_size)
            ids = nothing.new_zeros(1, 0)
            return _Source(self.bias.new_zeros(len(nothing), 0), empty, ids, ids, nothing, nothing)
        if self.config.encoder == "window":
            return self._read_reply_windows(said, batch.reply_turn)
        encodings, states = self.encoder.read_dialogues(self._embed(said.tokens), said)
        first = said.position[batch.reply_turn] == 0  # nothing comes before it
        state = states[(batch.reply_turn - 1).clamp(min=0)].masked_fill(first[:, None], 0)
        row, slot = said.dialogue[said.packing.row], said.slot
        keys, shape = self._as_memory(encodings), (said.sizes[0], said.sizes[2])
        return _Source(
            state=state,
            keys=state.new_zeros(*shape, 0) if keys is None else _scatter(keys, row, slot, *shape),
            tokens=_scatter_ids(said.tokens, row, slot, shape),
            turn=_scatter_ids(said.position[said.packing.row], row, slot, shape),
            row=said.dialogue[batch.reply_turn],
            upto=said.offset[batch.reply_turn],
        )

    def _read_reply_windows(self, said: Turns, reply_turn: Tensor) -> _Source:
        """The last W tokens before each reply, each read by itself: a row of the source for each reply."""
        assert self.encoder is not None
        row, slot, shape = said.dialogue[said.packing.row], said.slot, (said.sizes[0], said.sizes[2])
        tokens = _scatter_ids(said.tokens, row, slot, shape)
        turn = _scatter_ids(said.position[said.packing.row], row, slot, shape)
        end = said.offset[reply_turn]
        count = end.clamp(max=self.config.memory_tokens)
        state = self.bias.new_zeros(len(reply_turn), self.encoder.state_size)
        some = torch.nonzero(count > 0).squeeze(1)
        width = int(count.max()) if len(some) else 0
        at = ((end - count)[:, None] + torch.arange(width, device=end.device)).clamp(max=shape[1] - 1)
        dialogue = said.dialogue[reply_turn]
        source = _Source(
            state=state,
            keys=state.new_zeros(len(reply_turn), width, self.config.hidden_size),
            tokens=tokens[dialogue[:, None], at],
            turn=turn[dialogue[:, None], at],
            row=torch.arange(len(reply_turn), device=end.device),
            upto=count,
        )
        if not len(some):
            return source
        packing = pack(count[some].cpu()).to(end.device)
        where = (some[packing.row], packing.column)
        encodings, states = self.encoder.read_turn(self._embed(source.tokens[where]), packing, state[some])
        source = source._replace(state=states.new_zeros(state.shape).index_copy(0, some, states))
        keys = self._as_memory(encodings)
        if keys is None:
            return source
        return source._replace(keys=keys.new_zeros(source.keys.shape).index_put(where, keys))

    def _attend(
        self, queries: Tensor, source: _Source, batch: DialogueBatch
    ) -> tuple[Tensor | None, Tensor | None]:
        """Attention of all replies at once: ``queries`` (Q, H) packed -> what is seen (Q, H), and with
        copying the attention on each target, (Q,).

        A reply that starts at token o of its dialogue sees the W tokens before o, as it will when it is
        served.
        """
        if self.config.attention == "none":
            return None, None
        row = source.row[batch.replies.row]
        slot, width = _slots_of_queries(batch.replies, source.row, source.keys.shape[0])
        shape = (source.keys.shape[0], width)
        rows = _scatter(queries, row, slot, *shape)
        upto = _scatter_ids(source.upto[batch.replies.row], row, slot, shape)[:, :, None]
        position = batch.position[batch.reply_turn][batch.replies.row]
        before = _scatter_ids(position, row, slot, shape)[:, :, None] - 1
        column = torch.arange(source.keys.shape[1], device=queries.device)
        mask = (column < upto) & (column >= upto - self.config.memory_tokens)
        age = before - source.turn[:, None, :]
        if self.config.encoder == "last_turn":
            mask = mask & (age == 0)
        seen, weights = self.attention(rows, source.keys, age.clamp(0, self.config.turn_ages - 1), mask)
        seen = seen[row, slot].to(queries.dtype)
        if not self.config.copying:
            return seen, None
        targets = _scatter_ids(batch.targets, row, slot, shape)
        on_target = (weights * (source.tokens[:, None, :] == targets[:, :, None])).sum(2)
        return seen, on_target[row, slot]


def _mixed(logits: Tensor, gate: Tensor, weights: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities (B, V) of generating from ``logits`` (B, V) or copying one of ``tokens`` (B, M).

    ``gate`` (B,) is the logit of generating, ``weights`` (B, M) the attention. Only what is remembered is
    mixed: over the whole vocabulary the logarithms would cost more than the rest of a step.
    """
    mixed = logits.log_softmax(1) + F.logsigmoid(gate)[:, None]
    attended = torch.zeros_like(logits).scatter_add_(1, tokens, weights.to(logits.dtype))
    copied = F.logsigmoid(-gate)[:, None] + attended.gather(1, tokens).log()
    return mixed.scatter(1, tokens, torch.logaddexp(mixed.gather(1, tokens), copied))


def _turns_of(conversations: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Turns:
    """Conversations, at least one of which has a turn, as one batch of turns."""
    flat = [turn for conversation in conversations for turn in conversation]
    counts = torch.tensor([len(conversation) for conversation in conversations])
    lengths = torch.tensor([len(turn) for turn in flat])
    dialogue = torch.repeat_interleave(torch.arange(len(conversations)), counts)
    packing = pack(lengths)
    starts = lengths.cumsum(0) - lengths
    totals = torch.zeros(len(conversations), dtype=torch.int64).index_add_(0, dialogue, lengths)
    ids = torch.tensor([token for turn in flat for token in turn])
    return Turns(
        tokens=ids[starts[packing.row] + packing.column].to(device),
        packing=packing.to(device),
        dialogue=dialogue.to(device),
        position=torch.cat([torch.arange(count) for count in counts.tolist()]).to(device),
        offset=(starts - (totals.cumsum(0) - totals)[dialogue]).to(device),
        sizes=(len(conversations), int(counts.max()), int(totals.max())),
    )


def _widened(values: Tensor, width: int) -> Tensor:
    """(B, M, …) with zeros up to ``width`` columns."""
    wide = values.new_zeros(values.shape[0], width, *values.shape[2:])
    wide[:, : values.shape[1]] = values
    return wide


def _log(probability: Tensor) -> Tensor:
    """Natural logarithm, minus infinity with a gradient of zero at 0."""
    some = probability > 0
    return torch.where(some, probability.where(some, 1.0).log(), -torch.inf)


def _slots_of_queries(replies: Packing, row_of_reply: Tensor, rows: int) -> tuple[Tensor, int]:
    """A column for every reply token among those of its row, (Q,), and the number of columns.

    Replies lie row by row.
    """
    lengths = replies.lengths
    before = lengths.cumsum(0) - lengths
    totals = torch.zeros(rows, dtype=torch.int64, device=lengths.device)
    totals.index_add_(0, row_of_reply, lengths)
    first = totals.cumsum(0) - totals
    slot = (before - first[row_of_reply])[replies.row] + replies.column
    return slot, int(totals.max())


def _scatter(values: Tensor, row: Tensor, column: Tensor, rows: int, columns: int) -> Tensor:
    """(P, X) -> (rows, columns, X), zero where nothing is put."""
    flat = values.new_zeros(rows * columns, values.shape[1])
    return flat.index_copy(0, row * columns + column, values).view(rows, columns, -1)


def _scatter_ids(values: Tensor, row: Tensor, column: Tensor, shape: tuple[int, int]) -> Tensor:
    """(P,) -> shape (rows, columns), zero where nothing is put."""
    return values.new_zeros(shape).index_put((row, column), values)
