"""Where a model is trained and in which precision its products run."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` takes a GPU when there is one, each process of a machine its own.

    Raises RuntimeError for a device that torch does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():  # a torch without CUDA has no words of its own for it
            raise RuntimeError("torch finds no GPU here")
        torch.cuda.set_device(device)
    torch.empty(0, device=device)
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` takes bf16 on a GPU and on a CPU with products of its own for it, twice as fast or more."""
    if name == "auto":
        fast = device.type == "cuda" or _multiplies_bf16()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Matrix products in ``dtype``; weights, sums and softmax stay in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _multiplies_bf16() -> bool:
    """Whether this processor has bf16 products, in matrix tiles (AMX) or in vectors (AVX-512)."""
    able = torch.cpu.get_capabilities()
    return any(able.get(instructions, False) for instructions in ("amx_bf16", "avx512_bf16"))
