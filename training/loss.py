"""Cross-entropy over a large vocabulary without ever holding all its logits.

`torch.nn.functional.linear_cross_entropy` does the same since torch 2.13, but without per-token weights or
label smoothing, and was the slower of the two where both were tried, on a CPU in bf16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chatbot.model import Copying

CHUNK = 1024
"""Tokens whose logits exist at a time."""


def linear_cross_entropy(
    readouts: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    *,
    copying: Copying | None = None,
    smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the loss, and the plain negative log-likelihood (Q,) in nats, which carries no
    gradient.

    ``readouts`` (Q, E), ``weight`` (V, E), ``bias`` (V,), ``targets`` (Q,) int64, ``token_weights`` (Q,).
    Products run in ``dtype``, the softmax in float32. With label smoothing s (Szegedy et al. 2016) the target
    distribution is ``(1 - s)`` on the target and ``s / V`` everywhere. With ``copying`` the likelihood of a
    target is that of the mixture, and smoothing is of the softmax alone.
    """
    none = targets.new_zeros(0)
    generate, copied = copying or (none, none)
    loss, nll = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        readouts, weight, bias, targets, token_weights, generate, copied, smoothing, dtype
    )
    return loss, nll


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients of a chunk are computed while its logits are at hand, and scaled in ``backward``."""

    @staticmethod
    def forward(
        ctx: Any,
        readouts: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        generate: Tensor,
        copied: Tensor,
        smoothing: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        readouts_low, weight_low, bias_low = readouts.to(dtype), weight.to(dtype), bias.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        d_readouts = torch.empty_like(readouts)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        d_generate, d_copied = torch.zeros_like(generate), torch.zeros_like(copied)
        nll = torch.empty(len(readouts), dtype=wide, device=readouts.device)
        loss = torch.zeros((), dtype=wide, device=readouts.device)
        for start in range(0, len(readouts), CHUNK):
            part = slice(start, start + CHUNK)
            target, share = targets[part, None], token_weights[part, None].to(wide)
            logits = torch.addmm(bias_low, readouts_low[part], weight_low.t()).to(wide)
            log_p = logits.log_softmax(1)
            nll[part] = -log_p.gather(1, target)[:, 0]
            responsible = torch.ones_like(share)  # the softmax's part in the likelihood of each target
            if len(generate):
                generated = generate[part] - nll[part]
                nll[part] = -torch.logaddexp(generated, copied[part])
                responsible = (generated + nll[part]).exp()[:, None]
                d_generate[part] = -(1 - smoothing) * (responsible * share)[:, 0]
                d_copied[part] = -(1 - smoothing) * ((1 - responsible) * share)[:, 0]
            smooth = -log_p.mean(1) if smoothing else 0.0
            loss += (((1 - smoothing) * nll[part] + smoothing * smooth) * share[:, 0]).sum()
            kept = responsible * (1 - smoothing)
            d_logits = log_p.exp_().mul_((kept + smoothing) * share)
            d_logits.scatter_add_(1, target, -kept * share)
            if smoothing:
                d_logits -= share * (smoothing / logits.shape[1])
            d_bias += d_logits.sum(0)
            low = d_logits.to(dtype)
            d_readouts[part] = low @ weight_low
            d_weight += low.t() @ readouts_low[part]
        ctx.save_for_backward(d_readouts, d_weight, d_bias, d_generate, d_copied)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        d_readouts, d_weight, d_bias, d_generate, d_copied = (d * scale for d in ctx.saved_tensors)
        return d_readouts, d_weight, d_bias, None, None, d_generate, d_copied, None, None
