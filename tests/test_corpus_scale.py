"""Corpora of millions of turns: memory is bounded by a group of conversations, not by their number.

A Python list of numbers takes 8 bytes a turn and more; 100 million turns would be gigabytes for each list.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import read_transcripts
from tests.small import orders, transcript
from training import corpus as corpus_module
from training.batches import plan_epoch, prefetch
from training.corpus import Corpus, build_corpus, corpus_of, open_corpus

TURNS, TURNS_EACH = 2_000_000, 25
SPARE_BYTES = 48 * 2**20
"""What building and reading `TURNS` turns may take besides what a small corpus takes: 25 bytes a turn, of
which 5 are the ids that tell a repeated conversation and 10 the pieces that the allocator does not join.
"""


def peak_of(work: Callable[[], object]) -> int:
    """The most memory that Python and numpy hold at once while ``work`` runs, bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_building_takes_no_memory_for_a_turn(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "READ_AHEAD", 10_000)
    one = transcript(*["yes"] * 20)

    def build(conversations: int) -> None:
        build_corpus(
            tmp_path,
            itertools.repeat(one, conversations),
            tiny_tokenizer,
            max_turn_tokens=50,
            max_dialogue_tokens=500,
        )

    build(100)  # what is only made once
    few, many = peak_of(lambda: build(200)), peak_of(lambda: build(2_200))
    assert np.load(tmp_path / "turn_is_reply.npy").sum() == 22_000
    assert many - few < 80_000  # two bytes for each of 40,000 turns


def test_planning_takes_memory_for_dialogues_only() -> None:
    dialogues, each = 20_000, 100
    corpus = Corpus(
        tokens=np.zeros(0, np.uint16),
        turn_start=np.arange(dialogues * each + 1) * 10,
        turn_is_reply=np.tile([False, True], dialogues * each // 2),
        turn_weight=np.ones(dialogues * each, np.float32),
        dialogue_start=np.arange(dialogues + 1) * each,
    )
    plan = plan_epoch(corpus, budget=10_000, seed=1, epoch=0)
    assert len(np.unique(np.concatenate(plan))) == dialogues
    peak = peak_of(lambda: plan_epoch(corpus, budget=10_000, seed=1, epoch=0))
    assert peak < dialogues * each * 8 / 4  # a quarter of one number a turn


def test_blocks_and_groups_leave_no_trace(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> tuple[Corpus, list[int]]:
        found = corpus_of(orders(50), tiny_tokenizer, max_turn_tokens=12, max_dialogue_tokens=40)
        return found, found.dialogue_replies().tolist()

    whole, replies = build()
    monkeypatch.setattr(corpus_module, "READ_AHEAD", 1)
    monkeypatch.setattr(corpus_module, "BLOCK", 7)
    parts, again = build()
    assert again == replies
    assert sum(replies) == whole.replies
    for name in Corpus.__dataclass_fields__:
        assert np.array_equal(getattr(parts, name), getattr(whole, name)), name
        assert getattr(parts, name).dtype == getattr(whole, name).dtype


def test_a_large_vocabulary_takes_four_bytes_a_token(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus_of(orders(3), tiny_tokenizer, max_turn_tokens=50)
    monkeypatch.setattr(tiny_tokenizer, "vocab_size", 2**16 + 1)
    large = corpus_of(orders(3), tiny_tokenizer, max_turn_tokens=50)
    assert (small.tokens.dtype.itemsize, large.tokens.dtype.itemsize) == (2, 4)
    assert np.array_equal(small.tokens, large.tokens)


def write_turns(file: Path, turns: int) -> None:
    """Conversations of short turns, as JSON lines."""
    rng = random.Random(1)
    words = ["yes", "no", "thanks", "hello", "a latte", "large, please", "the train to York", "at 5"]
    roles = ["user", "agent"] * TURNS_EACH
    bodies = [
        json.dumps([{"role": role, "text": rng.choice(words)} for role in roles[:TURNS_EACH]])
        for _ in range(100)
    ]
    with gzip.open(file, "wt", compresslevel=1, encoding="utf-8") as stream:
        for number in range(turns // TURNS_EACH):
            stream.write(f'{{"id": "{number}", "turns": {bodies[number % 100]}}}\n')


def read_within(file: Path, small: Path, cache: Path) -> None:
    """Build the corpus of ``file``, plan an epoch and take some batches of it, in a process whose memory
    cannot grow by more than `SPARE_BYTES` after it did the same with the file ``small``; prints figures.
    """
    tokenizer = Tokenizer.train(
        (turn.text for one in read_transcripts(small) for turn in one.turns), vocab_size=400
    )
    built, planned = [], []
    for source in (small, file):
        before = time.perf_counter()
        corpus = open_corpus([source], tokenizer, cache=cache, max_turn_tokens=50, max_dialogue_tokens=500)
        built.append(time.perf_counter() - before)
        plan = plan_epoch(corpus, budget=10_000, seed=1, epoch=0)
        planned.append(time.perf_counter() - before - built[-1])
        batches = list(itertools.islice(prefetch(corpus, plan), 20))
        if source == small:
            held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (held + SPARE_BYTES, held + SPARE_BYTES))
    size = sum(array.stat().st_size for array in max(cache.iterdir(), key=os.path.getmtime).iterdir())
    figures = {
        "turns": int(corpus.dialogue_start[-1]),
        "targets": sum(len(batch.targets) for batch in batches if batch is not None),
        "planned": sum(map(len, plan)),
        "turns_per_second": TURNS / built[1],
        "seconds_to_plan": planned[1],
        "bytes_per_turn": size / TURNS,
    }
    print(json.dumps(figures))


@pytest.mark.slow
def test_millions_of_turns_in_bounded_memory(tmp_path: Path) -> None:
    small, file = tmp_path / "small.jsonl.gz", tmp_path / "large.jsonl.gz"
    write_turns(small, 100_000)
    write_turns(file, TURNS)
    call = "import sys; from pathlib import Path; from tests.test_corpus_scale import read_within"
    done = subprocess.run(
        [sys.executable, "-c", f"{call}; read_within(*map(Path, sys.argv[1:]))", file, small, tmp_path / "c"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"RAYON_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "2"},  # a heap for each of many cores
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["turns"] == TURNS
    assert figures["planned"] == TURNS // TURNS_EACH
    assert figures["targets"] > 10_000
    assert figures["bytes_per_turn"] < 30
