"""transformers as a serving benchmark's peer: in an interpreter of its own, a `generate` when asked.

``python transformers_peer.py KIND THREADS`` builds a model of random weights, then answers each line on its
standard input, a number of prompts, with a line ``FIRST WHOLE``: seconds until the first new token of random
prompts of 40 tokens, and until all 20 of each, greedily and in one batch. It imports nothing of this project,
so any environment with transformers can run it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

PROMPT, NEW = 40, 20


class Generator:
    """The other interpreter, seen from the benchmark. kind: gpt2 or blenderbot."""

    def __init__(self, python: str, kind: str, threads: int) -> None:
        command = [python, str(Path(__file__)), kind, str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        words = self._answer().split()
        if words[:1] != ["ready"]:
            raise RuntimeError(f"the peer said {' '.join(words)!r} instead of 'ready'")
        self.version, self.parameters = words[1], int(words[2])

    def generate(self, prompts: int) -> tuple[float, float]:
        """Seconds to the first token, and to the last. Raises RuntimeError when the peer has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{prompts}\n")
        words = self._answer().split()
        if len(words) != 2:
            raise RuntimeError(f"the peer said {' '.join(words)!r} instead of two times")
        return float(words[0]), float(words[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def model_of(transformers: Any, kind: str) -> Any:
    if kind == "gpt2":  # the sizes of GPT-2 small, which are DialoGPT-small's
        config = transformers.GPT2Config(
            vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12
        )
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.BlenderbotSmallConfig(  # those of BlenderbotSmall with 90 million parameters
        vocab_size=54944,
        d_model=512,
        encoder_layers=8,
        decoder_layers=8,
        encoder_attention_heads=16,
        decoder_attention_heads=16,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
    )
    return transformers.BlenderbotSmallForConditionalGeneration(config).eval()


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers  # type: ignore[import-not-found]

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    model = model_of(transformers, sys.argv[1])

    def generate(prompts: int, new: int) -> float:
        ids = torch.randint(10, model.config.vocab_size, (prompts, PROMPT))
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                min_new_tokens=new,
                max_new_tokens=new,
                use_cache=True,
                pad_token_id=0,
            )
        return time.perf_counter() - began

    print("ready", transformers.__version__, sum(p.numel() for p in model.parameters()), flush=True)
    for line in sys.stdin:
        first = generate(int(line), 1)  # nothing that tells of tokens as they come takes a batch
        print(first, generate(int(line), NEW), flush=True)


if __name__ == "__main__":
    main()
