"""Directories of tiny models, each with other weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from chatbot.model import Seq2Seq
from chatbot.model_directory import seal
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer
from tests.small import SMALL


def seal_tiny(
    path: Path, tokenizer: Tokenizer, seed: int, metrics: Mapping[str, Any] | None = None, **defaults: object
) -> str:
    """An untrained model made from `seed`, sealed at `path`; its fingerprint."""
    torch.manual_seed(seed)
    model = Seq2Seq(SMALL.model_copy(update={"vocab_size": tokenizer.vocab_size})).eval()
    options = DecodingOptions.checked({"max_tokens": 12, **defaults})
    return seal(
        path,
        model=model,
        tokenizer=tokenizer,
        defaults=options,
        metrics=metrics or {},
        card=f"# Tiny {seed}\n",
    )
