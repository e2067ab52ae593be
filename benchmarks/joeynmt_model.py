"""What JoeyNMT's interpreters share: "model S" as JoeyNMT builds it, and quiet beginnings.

Scripts that JoeyNMT runs import it from beside them, so it imports nothing of this project, and JoeyNMT only
when it is called.
"""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace
from typing import Any, Final

VOCABULARY: Final = 8000
SIZE: Final = 512
LAYERS: Final = 2
SOURCE: Final = 40
"""Tokens of a source."""
TARGET: Final = 20
"""Tokens of a reply."""
UNKNOWN, PADDING, BEGIN, END = range(4)
"""Ids of the special tokens; words come after them."""
WORDS: Final = END + 1


def begin(threads: int) -> Any:
    """torch with so many threads and a fixed seed, nothing on standard output that nobody asked for."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return torch


def build() -> Any:
    """Recurrent, Bahdanau attention, input feeding, no dropout; random weights, source and target alike."""
    from joeynmt.model import build_model  # type: ignore[import-not-found]
    from joeynmt.vocabulary import Vocabulary  # type: ignore[import-not-found]

    special = {
        f"{name}_{kind}": value
        for name, token, number in (
            ("unk", "<unk>", UNKNOWN),
            ("pad", "<pad>", PADDING),
            ("bos", "<s>", BEGIN),
            ("eos", "</s>", END),
        )
        for kind, value in (("token", token), ("id", number))
    }
    words = [f"w{number}" for number in range(VOCABULARY - WORDS)]
    vocabulary = Vocabulary(words, SimpleNamespace(**special, sep_token=None, sep_id=None, lang_tags=[]))
    shape = {
        "type": "recurrent",
        "rnn_type": "gru",
        "embeddings": {"embedding_dim": SIZE, "scale": False, "dropout": 0.0},
        "num_layers": LAYERS,
        "dropout": 0.0,
    }
    encoder = shape | {"hidden_size": SIZE // 2, "bidirectional": True}
    decoder = shape | {
        "hidden_size": SIZE,
        "hidden_dropout": 0.0,
        "input_feeding": True,
        "init_hidden": "bridge",
        "attention": "bahdanau",
    }
    return build_model({"encoder": encoder, "decoder": decoder}, src_vocab=vocabulary, trg_vocab=vocabulary)


def batch_of(torch: Any, source: Any, lengths: Any, target: Any) -> Any:
    """A batch on the CPU. source: ids [B, S]; lengths: [B]; target: ids [B, T], or None for a search."""
    from joeynmt.batch import Batch  # type: ignore[import-not-found]

    return Batch(
        src=source,
        src_length=lengths,
        src_prompt_mask=None,
        trg=target,
        trg_prompt_mask=None,
        indices=torch.arange(len(source)),
        device=torch.device("cpu"),
        pad_index=PADDING,
        eos_index=END,
    )
