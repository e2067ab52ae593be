"""Batches of whole dialogues under a token budget, in an order that a resumed run can continue.

Dialogues of similar size share a batch: attention is a product over the longest of them. The order is a
function of (seed, epoch) alone, so the place in it is one number.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from queue import Queue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatbot.model import DialogueBatch
from chatbot.packing import pack
from training.corpus import Corpus

_END = StopIteration()
WINDOW = 50
"""Dialogues are sorted by size only within this many batches' worth, so that batches differ from epoch to
epoch.
"""


def plan_epoch(corpus: Corpus, *, budget: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The batches of an epoch: dialogue indices, at most ``budget`` tokens each (or one dialogue)."""
    order = np.random.default_rng([seed, epoch]).permutation(np.flatnonzero(corpus.dialogue_replies()))
    sizes = corpus.dialogue_tokens()
    mean = max(1.0, float(sizes.mean())) if len(sizes) else 1.0
    window = max(1, int(WINDOW * budget / mean))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(sizes[part], kind="stable")]
        batches += _fill(part, sizes[part], budget)
    np.random.default_rng([seed, epoch, 1]).shuffle(batches)
    return batches


def in_order(corpus: Corpus, *, budget: int) -> list[NDArray[np.int64]]:
    """Every dialogue that has a reply once, by size: for evaluation."""
    found = np.flatnonzero(corpus.dialogue_replies())
    sizes = corpus.dialogue_tokens()[found]
    order = np.argsort(sizes, kind="stable")
    return _fill(found[order], sizes[order], budget)


def collate(corpus: Corpus, dialogues: Sequence[int] | NDArray[np.int64]) -> DialogueBatch:
    """A batch of the dialogues with these indices, on the CPU."""
    chosen = np.asarray(dialogues, np.int64)
    begins, ends = corpus.dialogue_start[chosen], corpus.dialogue_start[chosen + 1]
    counts = ends - begins
    first = np.cumsum(counts) - counts
    dialogue = np.repeat(np.arange(len(counts)), counts)
    turns = np.arange(len(dialogue)) + (begins - first)[dialogue]
    lengths = corpus.turn_start[turns + 1] - corpus.turn_start[turns]
    before = np.cumsum(lengths) - lengths
    offset = before - before[first][dialogue]
    bounds = zip(corpus.turn_start[begins].tolist(), corpus.turn_start[ends].tolist(), strict=True)
    ids = np.concatenate([corpus.tokens[begin:end] for begin, end in bounds])
    flat, start = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(before)
    packing = pack(torch.from_numpy(lengths))
    reply_turn = torch.from_numpy(np.flatnonzero(corpus.turn_is_reply[turns]))
    replies = (
        pack(packing.lengths[reply_turn] - 1) if len(reply_turn) else pack(torch.ones(0, dtype=torch.int64))
    )
    at = start[reply_turn][replies.row] + replies.column
    totals = np.bincount(dialogue, weights=lengths).astype(np.int64)
    return DialogueBatch(
        tokens=flat[start[packing.row] + packing.column],
        turns=packing,
        dialogue=torch.from_numpy(dialogue),
        position=torch.from_numpy(np.arange(len(turns)) - first[dialogue]),
        offset=torch.from_numpy(offset),
        sizes=(len(counts), int(counts.max()), int(totals.max())),
        inputs=flat[at],
        targets=flat[at + 1],
        replies=replies,
        reply_turn=reply_turn,
        weights=torch.from_numpy(corpus.turn_weight[turns][reply_turn.numpy()]),
    )


def token_weights(batch: DialogueBatch) -> Tensor:
    """The training weight of each packed reply token, (Q,)."""
    return batch.weights[batch.replies.row]


def prefetch(
    corpus: Corpus, plan: Sequence[NDArray[np.int64]], depth: int = 4
) -> Iterator[DialogueBatch | None]:
    """Collate the batches of ``plan`` in a thread of their own, a few ahead of their use; None for an empty
    one.
    """
    ready: Queue[DialogueBatch | BaseException | None] = Queue(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            for dialogues in plan:
                if stopped.is_set():
                    return
                ready.put(collate(corpus, dialogues) if len(dialogues) else None)
            ready.put(_END)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            ready.put(error)

    thread = threading.Thread(target=work, name="collate", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.05)
            except Exception:  # noqa: BLE001 - only empties the queue so that the thread can end
                continue


def _fill(order: NDArray[np.int64], sizes: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Cut a list sorted by size into runs whose padded size, longest times count, stays within the budget."""
    batches: list[NDArray[np.int64]] = []
    start = 0
    for end, size in enumerate(sizes[1:].tolist(), start=1):
        if size * (end + 1 - start) > budget:
            batches.append(order[start:end])
            start = end
    return [*batches, order[start:]] if len(order) else batches
