"""``python -m benchmarks.decoding [MODEL]``: tokens a second of the batcher and of the bare step.

The reference runs `Seq2Seq.step` and nothing else over as many rows: what is between the two is admission,
choosing tokens, beams and text.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.figures import interleaved, report
from chatbot.batcher import Batcher, Finished, ReplyRequest
from chatbot.model_directory import SHIPPED, ModelBundle, find_model, load
from chatbot.options import DecodingOptions

TOKENS = 20
ROWS = (
    ("greedy", 1, 1),
    ("greedy", 32, 1),
    ("sample", 1, 1),
    ("sample", 32, 1),
    ("beam", 1, 5),
    ("beam", 16, 5),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    bundle = load(find_model(args.model), device=args.device)
    for decoding, replies, beam in ROWS:
        timings = interleaved(
            args.runs, partial(answer, bundle, decoding, replies, beam), bare_steps(bundle, replies * beam)
        )
        speed, bare = (replies * TOKENS / timing.median for timing in timings)
        report(
            f"{decoding}_{replies}" + (f"_beam_{beam}" if beam > 1 else ""),
            speed,
            "tokens/s",
            bare,
            "the bare decoder step over as many rows",
            threads=torch.get_num_threads(),
            device=args.device,
        )


def answer(bundle: ModelBundle, decoding: str, replies: int, beam: int) -> None:
    """As many replies of exactly `TOKENS` tokens at once, from request to text."""
    options = DecodingOptions.checked(
        {"decoding": decoding, "beam_size": beam, "min_tokens": TOKENS, "max_tokens": TOKENS, "seed": 1}
    )
    batcher = Batcher(bundle, rows=replies * beam)
    for number in range(replies):
        batcher.submit(
            ReplyRequest(str(number), (("user", "Hello, I would like to book a table."),), options)
        )
    finished = 0
    while finished < replies:
        finished += sum(isinstance(event, Finished) for event in batcher.step())


def bare_steps(bundle: ModelBundle, rows: int) -> Callable[[], None]:
    """The decoder alone."""
    turn = bundle.tokenizer.encode_turn("user", "Hello, I would like to book a table.")
    tokens = torch.full((rows,), bundle.tokenizer.agent_id, device=bundle.model.bias.device)

    def run() -> None:
        with torch.inference_mode():
            state, memory = bundle.model.start(bundle.model.encode_conversations([[turn]] * rows))
            for _ in range(TOKENS):
                _, state, _ = bundle.model.step(tokens, state, memory)

    return run


if __name__ == "__main__":
    main()
