"""A model as a CPU serves it: weights in 8 bits, and what does not change worked out beforehand.

A step of a few rows is as fast as its weights can be read. In 8 bits they are a quarter of the bytes, and
processors with AVX2 multiply them as they are (chatbot.int8). A step of the decoder then is::

    bottom layer   table[y] + U b               the embeddings' products with the input weights are one table
    attention      softmax(b (K + R)^T) K       what age adds to a score is in the keys when a reply starts
    top layers     s Q([b; c] / s)              Q: 8 bits on both sides, s the row's largest value
    softmax        s Q(r / s) + bias

8 bits turn the last digit of a sum, which depends on the order it is taken in, into a step of a whole level
now and then, and that step into another reply. So nothing is added up that rounds: products are sums of whole
numbers, and so is attention, whose queries, keys and weights are whole numbers of few enough bits. A row is
then in the same state, bit for bit, whatever shares its batch, and however its conversation was read.

What a model says and its log-probabilities are those of these weights: close to float32, and not the same
(docs/serving-precision.md has how close). It cannot be trained.

Shapes: B rows, M memory, H hidden, E embedding, V vocabulary, F state, X input, Y output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatbot import int8
from chatbot.cells import Recurrence
from chatbot.config import ModelConfig
from chatbot.encoders import Encoder
from chatbot.model import Context, DialogueBatch, Seq2Seq, Step
from chatbot.model_directory import ModelBundle

Precision = Literal["auto", "float32", "int8"]
"""As it is asked for; ``auto`` is int8 where that is faster and this module can do it."""

_LEVELS: Final = 127
"""Steps of a key between 0 and 1."""
_SMALLEST: Final = 1e-20
"""The least scale."""
_WEIGHTS: Final = 2.0**16
"""Steps of attention weights between 0 and 1."""
_QUERY: Final = 128.0
"""Steps of a query between 0 and 1."""
_MOST_COLUMNS: Final = 256
_MOST_HIDDEN: Final = 1024
"""Up to these sizes sums of such steps have at most 24 bits: float32 adds them up without rounding."""
_LANES: Final = 32
"""What does not fill up this many values is computed one by one, where tanh has another last digit."""
_FINE: Final = 256
"""Steps of attention scores to a nat, of which 12 are looked at: what is further behind has no weight."""
_CHANCES: Final = (torch.arange(-12 * _FINE, 1) / _FINE).exp().mul(_WEIGHTS).round()
_ROWS: Final = 1024
"""Embeddings that are multiplied at a time when a model is loaded."""
_HIDDEN: Final = torch.tensor(-1e30)
"""Score of what may not be looked at."""
_NONE: Final = torch.tensor(0.0)


class ServedMemory(NamedTuple):
    """What the decoder attends to while one reply is made, worked out when it starts.

    Keys are whole numbers of 8 bits (as float32), each with a scale of its own.
    """

    keys: Tensor  # (B, M, H) whole numbers, zero where there is none
    tokens: Tensor  # (B, M) int64
    age: Tensor  # (B, M) int64
    mask: Tensor  # (B, M) bool
    compared: Tensor  # (B, M, H) whole numbers: what a query is multiplied with, its age in it
    unit: Tensor  # (B, M) what 1 is worth in a product of ``compared`` with a query
    weight: Tensor  # (B, M) 1, or 0 where there is none
    share: Tensor  # (B, M) scale of a key, the largest of its row being `_WEIGHTS`
    scale: Tensor  # (B, M) what 1 is worth in a sum of ``keys``, the same in a row
    first: Tensor  # (B, M) int64, the first column with the same token


def obstacle(config: ModelConfig, device: str = "cpu") -> str | None:
    """Why a model cannot be served in 8 bits here; None where it can."""
    return f"it runs on {device}" if device != "cpu" else int8.missing() or unfit(config)


def unfit(config: ModelConfig) -> str | None:
    """Why a model cannot be served in 8 bits anywhere; None where that depends on the machine."""
    for wrong, reason in (
        (config.cell != "gru", f"its cell is {config.cell}, not gru"),
        (config.attention == "additive", "its attention is additive"),
        (
            config.attention != "none"
            and (config.memory_tokens > _MOST_COLUMNS or config.hidden_size > _MOST_HIDDEN),
            f"it attends to more than {_MOST_COLUMNS} tokens, or with more than {_MOST_HIDDEN} values",
        ),
        (
            any(size % _LANES for size in (config.hidden_size, config.encoder_size, config.state_size)),
            f"its sizes are no multiples of {_LANES}",
        ),
        (config.context_input, "its decoder reads the context at every step"),
    ):
        if wrong:
            return reason
    return None


def served(bundle: ModelBundle, precision: Precision) -> ModelBundle:
    """``bundle`` in the precision asked for, or as it is where `obstacle` names a reason.

    The parts that both have in common are shared.
    """
    if precision == "float32" or obstacle(bundle.config, bundle.model.bias.device.type) is not None:
        return bundle
    return replace(bundle, model=ServedSeq2Seq(bundle.model))


def precision_of(model: object) -> Literal["float32", "int8"]:
    """What a decoder computes in."""
    return "int8" if isinstance(model, ServedSeq2Seq) else "float32"


class ServedSeq2Seq(Seq2Seq):
    """A `Seq2Seq` in 8 bits. Not to be trained, moved or saved."""

    _step: Callable[..., Any]

    def __init__(self, model: Seq2Seq) -> None:
        """Reads ``model`` once, and shares its embeddings. `obstacle` must find none."""
        nn.Module.__init__(self)
        self.config, self.layers_size = model.config, model.layers_size
        self.embedding, self.bias = model.embedding, model.bias
        with torch.inference_mode():
            self._prepare_encoder(model)
            self._prepare_decoder(model)
        self.eval()
        self._step = self._traced_step()

    def _prepare_encoder(self, model: Seq2Seq) -> None:
        config = model.config
        self.encoder = _lowered(model.encoder)
        if config.encoder != "none" and config.bridge == "projection":
            self.bridge = cast(nn.Linear, int8.Int8Linear(model.bridge.weight, model.bridge.bias))
        if config.attention != "none":
            projection = model.memory_projection
            self.memory_projection = cast(nn.Linear, int8.Int8Linear(projection.weight, projection.bias))
            self.attention = model.attention
        if config.attention == "bilinear":
            compare = model.attention.compare.weight.t().contiguous()
            self._compare = int8.Int8Linear(compare, compare.new_zeros(len(compare)))

    def _prepare_decoder(self, model: Seq2Seq) -> None:
        config, table = self.config, model.embedding.weight
        bottom = cast(nn.GRU, model.bottom.layers[0])
        tops = [] if model.top is None else [cast(nn.GRU, layer) for layer in model.top.layers]
        self._cell, self._tops = int8.Cell(bottom), nn.ModuleList(int8.Layer(layer) for layer in tops)
        self._table, self._table_scale = _table(table, bottom, self._cell.new_bias)
        weight, bias = model.readout.weight.detach(), model.readout.bias.detach()
        if config.copying:
            # The gate is one more output of the readout, but for what it has of the token read last.
            gate = model.copy_gate.weight[0]
            of_token = gate[None, -config.embedding_size :]
            self._gate_of_token = F.linear(table, of_token, model.copy_gate.bias)
            weight = torch.cat([weight, gate[None, : -config.embedding_size]])
            bias = torch.cat([bias, bias.new_zeros(1)])
        self._readout = int8.Int8Linear(weight, bias)
        self._softmax = int8.Int8Linear(model.output_table, model.bias)

    def _traced_step(self) -> Callable[..., Any]:
        with torch.inference_mode():
            state, memory = self.start(self.encode_conversations([[[0, 0]]]))
        parts = [self._cell, *self._tops, self._readout, self._softmax]
        return int8.traced(self._one_step, parts, [torch.zeros(1, dtype=torch.int64), state, *memory])

    @property
    def output_table(self) -> Tensor:
        raise TypeError("the served softmax is in 8 bits")

    def start(self, context: Context) -> tuple[Tensor, Any]:
        """Decoder state (B, F) and memory for a reply to ``context``."""
        state, memory = super().start(context)
        columns = memory.mask.float()
        if self.config.attention == "none":
            nothing = columns.new_zeros(*columns.shape, 0)
            return state, ServedMemory(
                nothing, *memory[1:], nothing, columns, columns, columns, columns, memory.tokens
            )
        compared = memory.keys
        if self.config.attention == "bilinear":
            compared = self._compare(compared.flatten(0, 1)).view_as(compared)
        compared = compared + self.attention.age(memory.age)
        if self.config.attention == "scaled":
            compared = compared / self.config.hidden_size**0.5
        compared, unit = _whole(compared)
        keys, scale = _whole(memory.keys * columns.unsqueeze(2))
        most = scale.amax(1, True) if scale.shape[1] else scale
        first = memory.tokens
        if self.config.copying and memory.tokens.shape[1]:
            first = (memory.tokens.unsqueeze(2) == memory.tokens.unsqueeze(1)).byte().argmax(2)
        return state, ServedMemory(
            keys,
            *memory[1:],
            compared=compared,
            unit=unit / _QUERY,
            weight=columns,
            share=scale / most * _WEIGHTS,
            scale=(most / _WEIGHTS).expand_as(scale),
            first=first,
        )

    def step(self, tokens: Tensor, state: Tensor, memory: Any) -> Step:
        """One token further for ``tokens`` (B,) from ``state`` (B, F). Pure."""
        nothing = self.config.attention != "none" and not memory.mask.shape[1]
        step = self._one_step if nothing else self._step
        return Step(*step(tokens, state, *memory))

    def _one_step(self, tokens: Tensor, state: Tensor, *fields: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`step` of the ``fields`` of a memory, for logits, state and attention."""
        memory = ServedMemory(*fields)
        layers = torch.split(state, self.config.hidden_size, 1)
        products = F.embedding(tokens, self._table).float().mul_(F.embedding(tokens, self._table_scale))
        gates, new = torch.split(products, self._cell.sizes, 1)
        outputs = [self._cell.step(gates, new, layers[0])]
        top = bottom = outputs[0]
        seen, weights = self._look_at(bottom, memory)
        tops = cast(Iterable[int8.Layer], self._tops)
        for number, (layer, before) in enumerate(zip(tops, layers[1:], strict=True)):
            inputs = top if number else self._beside(bottom, seen)
            outputs.append(layer.step(inputs, before))
            top = outputs[-1] + top if self.config.residual and number else outputs[-1]
        if self._tops and self.config.residual:
            top = top + bottom
        logits = self._logits(self._beside(top, seen), tokens, weights, memory)
        return logits, torch.cat(outputs, 1), weights

    def _look_at(self, query: Tensor, memory: ServedMemory) -> tuple[Tensor | None, Tensor]:
        """(B, H) -> what is seen (B, H) and weights (B, M).

        All that is added up are whole numbers, so the longest memory of the batch, which decides the order
        in which that is done, changes nothing. Exponentials are looked up for the same reason: their last
        digit depends on the place in a vector.
        """
        if self.config.attention == "none":
            return None, query.new_zeros(memory.mask.shape)
        if not memory.mask.shape[1]:
            return torch.zeros_like(query), query.new_zeros(memory.mask.shape)
        whole = torch.mul(query, _QUERY).round_().unsqueeze(1)
        products = torch.bmm(whole, memory.compared.transpose(1, 2)).squeeze(1)
        scores = torch.where(memory.mask, products.mul_(memory.unit), _HIDDEN)
        behind = scores.sub_(scores.amax(1, True)).mul_(_FINE).add_(len(_CHANCES) - 0.5)
        chances = _CHANCES[behind.fmax(_NONE).long()].mul_(memory.weight)  # fmax: what is no number is 0
        weights = chances / chances.sum(1, True).clamp_(min=1)
        shares = torch.mul(weights, memory.share).round_().unsqueeze(1)
        return torch.bmm(shares, memory.keys).squeeze(1) * memory.scale[:, :1], weights

    def _logits(self, values: Tensor, tokens: Tensor, weights: Tensor, memory: ServedMemory) -> Tensor:
        """(B, 2H) -> (B, V): logits, or with copying log-probabilities."""
        readout = self._readout(values)
        if not self.config.copying:
            return cast(Tensor, self._softmax(readout))
        readout, gate = torch.split(readout, [self.config.embedding_size, 1], 1)
        logprobs: Tensor = self._softmax(readout).log_softmax(1)
        gate = gate + F.embedding(tokens, self._gate_of_token)
        if not memory.mask.shape[1]:
            return logprobs
        return _mix(logprobs, gate, weights, memory)

    def forward(self, batch: DialogueBatch) -> Any:
        raise TypeError("a model in 8 bits is served, not trained")

    def token_losses(self, batch: DialogueBatch) -> Tensor:
        """Negative log-likelihood (Q,) in nats of each reply token, as the steps of serving have it."""
        conversations, replies = _conversations(batch)
        state, memory = self.start(self.encode_conversations(conversations))
        packing, losses, first = batch.replies, [], 0
        state, memory = state[packing.sorted], ServedMemory(*(field[packing.sorted] for field in memory))
        assert len(state) == len(replies)
        for size in packing.batch_sizes.tolist():
            part = slice(first, first + size)
            step = self.step(batch.inputs[part], state[:size], ServedMemory(*(f[:size] for f in memory)))
            state = step.state
            losses.append(F.cross_entropy(step.logits, batch.targets[part], reduction="none"))
            first += size
        return torch.cat(losses)


def _lowered(encoder: Encoder | None) -> Encoder | None:
    """A copy of ``encoder`` whose GRU layers are in 8 bits; the rest of it stays in float32."""
    lowered = copy.deepcopy(encoder)
    for module in [] if lowered is None else list(lowered.modules()):
        if isinstance(module, Recurrence):
            module.layers = nn.ModuleList(int8.Int8Gru(cast(nn.GRU, layer)) for layer in module.layers)
    return lowered


def _table(embeddings: Tensor, gru: nn.GRU, new_bias: Tensor) -> tuple[Tensor, Tensor]:
    """What every token gives to the gates, n's with its bias: whole numbers (V, 3H) of 8 bits, and what 1 is
    worth, (V, 1).
    """
    weight = cast(Tensor, gru.weight_ih_l0)
    # The biases of r and z are with the recurrent products.
    bias = torch.cat([torch.zeros(2 * len(new_bias)), new_bias])
    table = torch.empty(len(embeddings), len(weight), dtype=torch.int8)
    scales = torch.empty(len(embeddings), 1)
    for start in range(0, len(embeddings), _ROWS):
        part = slice(start, start + _ROWS)
        products = F.linear(embeddings[part], weight, bias)
        scales[part] = products.abs().amax(1, True).clamp_(min=_SMALLEST) / _LEVELS
        table[part] = products.div_(scales[part]).round_().to(torch.int8)
    return table, scales


def _whole(values: Tensor) -> tuple[Tensor, Tensor]:
    """``values`` (B, M, H) as whole numbers from -127 to 127, and what 1 is worth, (B, M)."""
    scale = values.abs().amax(2).clamp_(min=_SMALLEST) / _LEVELS
    return (values / scale.unsqueeze(2)).round_(), scale


def _mix(logprobs: Tensor, gate: Tensor, weights: Tensor, memory: ServedMemory) -> Tensor:
    """``logprobs`` (B, V) of generating and attention ``weights`` (B, M), shared out by ``gate`` (B, 1), the
    logit of generating. Rows without memory generate. Writes into ``logprobs``, which is a step's own.
    """
    gate = torch.where(memory.weight.amax(1, keepdim=True) > 0, gate, torch.inf)
    logprobs += F.logsigmoid(gate)
    attended = torch.zeros_like(weights).scatter_add_(1, memory.first, weights).gather(1, memory.first)
    copied = attended.log_().add_(F.logsigmoid(-gate))
    return logprobs.scatter_(1, memory.tokens, torch.logaddexp(logprobs.gather(1, memory.tokens), copied))


def _conversations(batch: DialogueBatch) -> tuple[list[list[list[int]]], Sequence[int]]:
    """The turns before each reply of ``batch``, and the turn that each reply is."""
    turns: list[list[int]] = [[0] * length for length in batch.turns.lengths.tolist()]
    for token, row, column in zip(
        batch.tokens.tolist(), batch.turns.row.tolist(), batch.turns.column.tolist(), strict=True
    ):
        turns[row][column] = token
    position, replies = batch.position.tolist(), batch.reply_turn.tolist()
    return [[turns[turn] for turn in range(reply - position[reply], reply)] for reply in replies], replies
