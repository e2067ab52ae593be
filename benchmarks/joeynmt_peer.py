"""JoeyNMT as a training benchmark's peer: in an interpreter of its own, one update whenever it is asked.

``python joeynmt_peer.py THREADS`` builds "model S" with JoeyNMT's own builder (recurrent, Bahdanau attention,
input feeding), then takes one update on 64 random pairs for every line on its standard input and answers each
with a line. With a line of JSON, a list of pairs of token ids, as its first, a step is one pass over those
pairs, 64 of similar length for each update. It imports nothing of this project, so any environment with
JoeyNMT 2.3 can run it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]

VOCABULARY, SIZE, LAYERS, PAIRS, SOURCE, TARGET = 8000, 512, 2, 64, 40, 20


class Peer:
    """The other interpreter, seen from the benchmark."""

    def __init__(self, python: str, threads: int, pairs: Pairs = ()) -> None:
        command = [python, str(Path(__file__)), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(pairs) + "\n")
        self._expect("ready")

    def step(self) -> None:
        """One update. Raises RuntimeError when the peer has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._expect("done")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise RuntimeError(f"the peer said {said!r} instead of {word!r}")


def learner(torch: Any, pairs: Pairs) -> Callable[[], None]:
    from joeynmt.batch import Batch  # type: ignore[import-not-found]
    from joeynmt.model import build_model  # type: ignore[import-not-found]
    from joeynmt.vocabulary import Vocabulary  # type: ignore[import-not-found]

    special = {
        f"{name}_{kind}": value
        for number, (name, token) in enumerate(
            [("unk", "<unk>"), ("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>")]
        )
        for kind, value in (("token", token), ("id", number))
    }
    words = [f"w{number}" for number in range(VOCABULARY - 4)]
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
    model = build_model({"encoder": encoder, "decoder": decoder}, src_vocab=vocabulary, trg_vocab=vocabulary)
    model.loss_function = ("crossentropy", 0.0)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if not pairs:
        draw = torch.randint(VOCABULARY, (PAIRS, SOURCE + TARGET - 1)).tolist()
        pairs = [(row[:SOURCE], row[SOURCE:]) for row in draw]
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))

    def batch_of(some: Pairs) -> Any:
        padded = torch.nn.utils.rnn.pad_sequence
        ids = [
            [torch.tensor([4 + token % (VOCABULARY - 4) for token in side]) for side in pair] for pair in some
        ]
        replies = [torch.cat([torch.tensor([2]), reply.long(), torch.tensor([3])]) for _, reply in ids]
        return Batch(
            src=padded([source for source, _ in ids], batch_first=True, padding_value=1),
            src_length=torch.tensor([len(source) for source, _ in ids]),
            src_prompt_mask=None,
            trg=padded(replies, batch_first=True, padding_value=1),
            trg_prompt_mask=None,
            indices=torch.arange(len(ids)),
            device=torch.device("cpu"),
            pad_index=1,
            eos_index=3,
        )

    batches = [batch_of(pairs[start : start + PAIRS]) for start in range(0, len(pairs), PAIRS)]

    def step() -> None:
        for batch in batches:
            batch.sort_by_src_length()
            loss, *_ = model(return_type="loss", **vars(batch))
            optimizer.zero_grad()
            batch.normalize(loss, "tokens").backward()
            optimizer.step()

    return step


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(0)
    step = learner(torch, json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    for _ in sys.stdin:
        step()
        print("done", flush=True)


if __name__ == "__main__":
    main()
