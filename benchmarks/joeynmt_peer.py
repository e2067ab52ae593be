"""JoeyNMT as a training benchmark's peer: in an interpreter of its own, one update whenever it is asked.

``python joeynmt_peer.py THREADS`` builds "model S" with JoeyNMT's own builder (recurrent, Bahdanau attention,
input feeding) and reads a line of JSON, a list of pairs of token ids. Then, for every line on its standard
input, it makes one pass over those pairs, 64 of similar length for each update, and answers with a line. With
an empty list, a pass is one update on 64 random pairs. It imports nothing of this project but what is beside
it, so any environment with JoeyNMT 2.3 can run it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from joeynmt_model import (  # type: ignore[import-not-found]
    BEGIN,
    END,
    PADDING,
    SOURCE,
    TARGET,
    VOCABULARY,
    WORDS,
    batch_of,
    begin,
    build,
)

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]

PAIRS = 64


def learner(torch: Any, pairs: Pairs) -> Callable[[], None]:
    model = build()
    model.loss_function = ("crossentropy", 0.0)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if not pairs:
        draw = torch.randint(VOCABULARY, (PAIRS, SOURCE + TARGET - 1)).tolist()
        pairs = [(row[:SOURCE], row[SOURCE:]) for row in draw]
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))
    batches = [padded(torch, pairs[start : start + PAIRS]) for start in range(0, len(pairs), PAIRS)]

    def step() -> None:
        for batch in batches:
            batch.sort_by_src_length()
            loss, *_ = model(return_type="loss", **vars(batch))
            optimizer.zero_grad()
            batch.normalize(loss, "tokens").backward()
            optimizer.step()

    return step


def padded(torch: Any, pairs: Pairs) -> Any:
    """One batch. Ids are brought into the range of words; replies get their begin and end."""
    ids = [
        [torch.tensor([WORDS + token % (VOCABULARY - WORDS) for token in side]) for side in pair]
        for pair in pairs
    ]
    replies = [torch.cat([torch.tensor([BEGIN]), reply.long(), torch.tensor([END])]) for _, reply in ids]
    pad = torch.nn.utils.rnn.pad_sequence
    return batch_of(
        torch,
        pad([source for source, _ in ids], batch_first=True, padding_value=PADDING),
        torch.tensor([len(source) for source, _ in ids]),
        pad(replies, batch_first=True, padding_value=PADDING),
    )


def main() -> None:
    step = learner(begin(int(sys.argv[1])), json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    for _ in sys.stdin:
        step()
        print("done", flush=True)


if __name__ == "__main__":
    main()
