"""JoeyNMT as a decoding benchmark's peer: in an interpreter of its own, one search whenever it is asked.

``python joeynmt_search.py THREADS`` builds "model S" with JoeyNMT's own builder (recurrent, Bahdanau
attention, input feeding), then answers each line on its standard input, ``REPLIES BEAM``, with a line when
its own search has read as many random sources of 40 tokens and made replies of 20 tokens to them; a beam of
1 is greedy. It imports nothing of this project, so any environment with JoeyNMT 2.3 can run it.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VOCABULARY, SIZE, LAYERS, SOURCE, TARGET = 8000, 512, 2, 40, 20


class Searcher:
    """The other interpreter, seen from the benchmark."""

    def __init__(self, python: str, threads: int) -> None:
        command = [python, str(Path(__file__)), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._expect("ready")

    def search(self, replies: int, beam: int) -> None:
        """One search. Raises RuntimeError when the peer has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{replies} {beam}\n")
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


def searcher(torch: Any) -> Callable[[int, int], None]:
    from joeynmt.batch import Batch  # type: ignore[import-not-found]
    from joeynmt.model import build_model  # type: ignore[import-not-found]
    from joeynmt.search import search  # type: ignore[import-not-found]
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
    decoder = {
        "hidden_size": SIZE,
        "hidden_dropout": 0.0,
        "input_feeding": True,
        "init_hidden": "bridge",
        "attention": "bahdanau",
    }
    encoder = {"hidden_size": SIZE // 2, "bidirectional": True}
    cfg = {"encoder": shape | encoder, "decoder": shape | decoder}
    model = build_model(cfg, src_vocab=vocabulary, trg_vocab=vocabulary).eval()

    def batch_of(replies: int) -> Any:
        return Batch(
            src=torch.randint(4, VOCABULARY, (replies, SOURCE)),
            src_length=torch.full((replies,), SOURCE),
            src_prompt_mask=None,
            trg=None,
            trg_prompt_mask=None,
            indices=torch.arange(replies),
            device=torch.device("cpu"),
            pad_index=1,
            eos_index=3,
        )

    def run(replies: int, beam: int) -> None:
        found, _, _ = search(
            model=model,
            batch=batch_of(replies),
            max_output_length=TARGET,
            min_output_length=TARGET,
            beam_size=beam if beam > 1 else 0,
            beam_alpha=-1,
            n_best=1,
            generate_unk=True,
            return_prob="none",
        )
        if found.shape != (replies, TARGET):
            raise RuntimeError(f"JoeyNMT made {found.shape}")

    return run


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(0)
    run = searcher(torch)
    print("ready", flush=True)
    for line in sys.stdin:
        replies, beam = map(int, line.split())
        with torch.no_grad():
            run(replies, beam)
        print("done", flush=True)


if __name__ == "__main__":
    main()
