"""Attention of decoder outputs over token encodings that know how many turns ago they were said.

    dot        a = softmax(q . k + q . R_age)                                (Luong et al. 2015)
    scaled     a = softmax((q . k + q . R_age) / sqrt(H))                    (Vaswani et al. 2017)
    bilinear   a = softmax(q . W k + q . R_age)                              (Luong et al. 2015, "general")
    additive   a = softmax(v . tanh(W_q q + W_k k) + q . R_age)              (Bahdanau et al. 2015)

R_age is a vector for each distance in turns (relative positions, Shaw et al. 2018). Shapes: R rows, T queries
of a row, M encodings of a row, H hidden, A width of the additive hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chatbot.config import AttentionKind

AT_ONCE = 2**24
"""Values of additive attention's hidden layer that may exist at a time."""


class Attention(nn.Module):
    """Compares, and adds up what is looked at."""

    def __init__(self, kind: AttentionKind, size: int, *, ages: int, additive_size: int) -> None:
        super().__init__()
        self.kind = kind
        self.age = nn.Embedding(ages, size)
        if kind == "bilinear":
            self.compare = nn.Linear(size, size, bias=False)
        if kind == "additive":
            self.of_query = nn.Linear(size, additive_size)
            self.of_key = nn.Linear(size, additive_size, bias=False)
            self.weigh = nn.Linear(additive_size, 1, bias=False)

    def forward(self, query: Tensor, keys: Tensor, age: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen (R, T, H), and the weights (R, T, M); a query that may see nothing gets zeros.

        ``query`` (R, T, H), ``keys`` (R, M, H), ``age`` and ``mask`` (R, T, M) or (R, 1, M).
        """
        if not keys.shape[1]:
            return torch.zeros_like(query), query.new_zeros(*query.shape[:2], 0)
        by_age = query @ self.age.weight.t()  # (R, T, ages)
        scores = self._scores(query, keys) + by_age.gather(2, age.expand(-1, query.shape[1], -1))
        if self.kind == "scaled":
            scores = scores / query.shape[2] ** 0.5
        scores = at_least_float32(scores)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * mask.any(-1, keepdim=True)
        return torch.bmm(weights.to(keys.dtype), keys), weights

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        if self.kind == "additive":
            query, keys = self.of_query(query), self.of_key(keys)
            if query.shape[1] * keys.numel() <= AT_ONCE:
                return self._add_up(query, keys)
            # A row at a time, and anew for the gradient: (R, T, M, A) is gigabytes.
            rows, recompute = zip(query, keys, strict=True), torch.is_grad_enabled()
            return torch.stack(
                [
                    checkpoint(self._add_up, q, k, use_reentrant=False) if recompute else self._add_up(q, k)
                    for q, k in rows
                ]
            )
        if self.kind == "bilinear":
            query = self.compare(query)
        return query @ keys.transpose(1, 2)

    def _add_up(self, query: Tensor, keys: Tensor) -> Tensor:
        """``query`` (…, T, A), ``keys`` (…, M, A) -> (…, T, M)."""
        compared = torch.tanh(query.unsqueeze(-2) + keys.unsqueeze(-3))
        scores: Tensor = self.weigh(compared).squeeze(-1)
        return scores


def at_least_float32(values: Tensor) -> Tensor:
    """Softmaxes are never taken in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
