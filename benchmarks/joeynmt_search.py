"""JoeyNMT as a decoding benchmark's peer: in an interpreter of its own, one search whenever it is asked.

``python joeynmt_search.py THREADS`` builds "model S" with JoeyNMT's own builder (recurrent, Bahdanau
attention, input feeding), then answers each line on its standard input, ``REPLIES BEAM``, with a line when
its own search has read as many random sources of 40 tokens and made replies of 20 tokens to them; a beam of
1 is greedy. It imports nothing of this project but what is beside it, so any environment with JoeyNMT 2.3 can
run it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from joeynmt_model import (  # type: ignore[import-not-found]
    SOURCE,
    TARGET,
    VOCABULARY,
    WORDS,
    batch_of,
    begin,
    build,
)


def searcher(torch: Any) -> Callable[[int, int], None]:
    from joeynmt.search import search  # type: ignore[import-not-found]

    model = build().eval()

    def run(replies: int, beam: int) -> None:
        sources = torch.randint(WORDS, VOCABULARY, (replies, SOURCE))
        found, _, _ = search(
            model=model,
            batch=batch_of(torch, sources, torch.full((replies,), SOURCE), None),
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
    torch = begin(int(sys.argv[1]))
    run = searcher(torch)
    print("ready", flush=True)
    for line in sys.stdin:
        replies, beam = map(int, line.split())
        with torch.no_grad():
            run(replies, beam)
        print("done", flush=True)


if __name__ == "__main__":
    main()
