"""The tokenized corpus and its batches: everything is there once, and the order can be taken up again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Transcript, TranscriptError, write_transcripts
from tests.small import orders, transcript
from training.batches import collate, in_order, plan_epoch, prefetch, token_weights
from training.corpus import Corpus, corpus_of, open_corpus


def small_corpus(tokenizer: Tokenizer, count: int = 60) -> Corpus:
    return corpus_of(orders(count), tokenizer, max_turn_tokens=100)


def test_it_holds_the_turns_as_the_tokenizer_writes_them(tiny_tokenizer: Tokenizer) -> None:
    corpus = small_corpus(tiny_tokenizer, 5)
    turns = [turn for one in orders(5) for turn in one.turns]
    for number, turn in enumerate(turns):
        ids = corpus.tokens[corpus.turn_start[number] : corpus.turn_start[number + 1]]
        assert ids.tolist() == tiny_tokenizer.encode_turn(turn.role, turn.text)
        assert corpus.turn_is_reply[number] == (turn.role == "agent")
    assert np.diff(corpus.dialogue_start).tolist() == [len(one.turns) for one in orders(5)]


def test_long_turns_are_clipped_and_long_dialogues_cut(tiny_tokenizer: Tokenizer) -> None:
    corpus = corpus_of(orders(30), tiny_tokenizer, max_turn_tokens=10, max_dialogue_tokens=25)
    assert corpus.turn_lengths().max() == 10
    assert (corpus.tokens[corpus.turn_start[1:] - 1] == tiny_tokenizer.end_id).all()
    assert corpus.dialogue_tokens().max() <= 25
    assert len(corpus) > 30


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["user", "agent"]), st.integers(0, 9), st.integers(0, 1)))),
    st.integers(2, 12),
    st.integers(4, 40),
)
def test_it_is_what_one_turn_after_the_other_gives(
    conversations: list[list[tuple[str, int, int]]], max_turn: int, max_dialogue: int
) -> None:
    transcripts = [
        Transcript.model_validate(
            {"id": f"{i}", "turns": [{"role": r, "text": "a" * n, "weight": w} for r, n, w in turns]}
        )
        for i, turns in enumerate(conversations)
    ]
    tokenizer = Tokenizer.train([], vocab_size=300)  # a token for each letter
    found = corpus_of(transcripts, tokenizer, max_turn_tokens=max_turn, max_dialogue_tokens=max_dialogue)
    lengths, replies, counts = [], [], []
    for turns in conversations:
        count = size = 0
        for number, (role, letters, weight) in enumerate(turns):
            length = min(max_turn, len(tokenizer.encode("a" * letters)) + 2)
            if count and size + length > max_dialogue:
                counts.append(count)
                count = size = 0
            replies.append(role == "agent" and weight > 0 and (count > 0 or number == 0))
            lengths.append(length)
            count, size = count + 1, size + length
        counts += [count] if count else []
    assert found.turn_lengths().tolist() == lengths
    assert found.turn_is_reply.tolist() == replies
    assert np.diff(found.dialogue_start).tolist() == counts
    assert found.dialogue_replies().sum() == sum(replies)


def test_turns_of_no_weight_are_context_only(tiny_tokenizer: Tokenizer) -> None:
    one = transcript("hi", "bad answer", "again", "good answer")
    turns = [one.turns[0], one.turns[1].model_copy(update={"weight": 0.0}), *one.turns[2:]]
    turns[3] = turns[3].model_copy(update={"weight": 3.0})
    corpus = corpus_of([Transcript(id="w", turns=tuple(turns))], tiny_tokenizer, max_turn_tokens=100)
    assert corpus.turn_is_reply.tolist() == [False, False, False, True]
    batch = collate(corpus, [0])
    assert set(token_weights(batch).tolist()) == {3.0}
    assert batch.turns.lengths.numel() == 4


def test_the_cache_is_found_again_and_follows_its_sources(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    file, cache = tmp_path / "a.jsonl.gz", tmp_path / "cache"
    write_transcripts(file, orders(10))

    def read(*, max_turn_tokens: int = 50, max_dialogue_tokens: int = 500) -> Corpus:
        return open_corpus(
            [file],
            tiny_tokenizer,
            cache=cache,
            max_turn_tokens=max_turn_tokens,
            max_dialogue_tokens=max_dialogue_tokens,
        )

    first = read()
    kept = sorted(path.name for path in cache.iterdir())
    assert np.array_equal(read().tokens, first.tokens)
    assert sorted(path.name for path in cache.iterdir()) == kept
    read(max_turn_tokens=9)
    write_transcripts(file, orders(11))
    assert len(read()) == 11
    assert len(list(cache.iterdir())) == 3


def test_a_malformed_source_leaves_no_cache(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"id": "a", "turns": []}\n{"id"\n')
    with pytest.raises(TranscriptError, match=r"bad\.jsonl:2"):
        open_corpus(
            [file], tiny_tokenizer, cache=tmp_path / "cache", max_turn_tokens=50, max_dialogue_tokens=500
        )
    assert list((tmp_path / "cache").iterdir()) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(16, 600), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_is_every_dialogue_once_under_the_budget(budget: int, seed: int, epoch: int) -> None:
    tokenizer = Tokenizer.train(["hello"], vocab_size=300)
    corpus = small_corpus(tokenizer, 40)
    plan = plan_epoch(corpus, budget=budget, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(plan).tolist()) == list(range(40))
    sizes = corpus.dialogue_tokens()
    assert all(len(part) == 1 or sizes[part].max() * len(part) <= budget for part in plan)
    again = plan_epoch(corpus, budget=budget, seed=seed, epoch=epoch)
    assert all(np.array_equal(a, b) for a, b in zip(plan, again, strict=True))


def test_the_order_of_a_seed_never_changes() -> None:
    """A later version that goes on with a run finds its place by a number."""
    sizes = [5, 9, 4, 7, 30, 6, 8, 5, 12, 10]
    corpus = Corpus(
        tokens=np.zeros(sum(sizes), np.uint16),
        turn_start=np.concatenate([[0], np.cumsum(sizes)]),
        turn_is_reply=np.ones(len(sizes), np.bool_),
        turn_weight=np.ones(len(sizes), np.float32),
        dialogue_start=np.arange(len(sizes) + 1),
    )
    plan = plan_epoch(corpus, budget=24, seed=3, epoch=1)
    assert [batch.tolist() for batch in plan] == [[8], [2, 0, 7, 5], [1, 9], [4], [3, 6]]


def test_epochs_differ(tiny_tokenizer: Tokenizer) -> None:
    corpus = small_corpus(tiny_tokenizer)
    plans = [plan_epoch(corpus, budget=300, seed=1, epoch=epoch) for epoch in range(2)]
    assert [part.tolist() for part in plans[0]] != [part.tolist() for part in plans[1]]


def test_reading_in_order_is_everything_once(tiny_tokenizer: Tokenizer) -> None:
    corpus = small_corpus(tiny_tokenizer)
    assert sorted(np.concatenate(in_order(corpus, budget=500)).tolist()) == list(range(60))


def test_dialogues_without_a_reply_are_left_out(tiny_tokenizer: Tokenizer) -> None:
    corpus = corpus_of(
        [transcript("only a question", name="a"), *orders(3)], tiny_tokenizer, max_turn_tokens=50
    )
    assert 0 not in np.concatenate(plan_epoch(corpus, budget=300, seed=1, epoch=0))
    assert 0 not in np.concatenate(in_order(corpus, budget=300))


def test_prefetching_keeps_the_order_and_ends_early_without_a_trace(tiny_tokenizer: Tokenizer) -> None:
    corpus = small_corpus(tiny_tokenizer)
    plan = plan_epoch(corpus, budget=300, seed=1, epoch=0)
    for batch, dialogues in zip(prefetch(corpus, plan), plan, strict=True):
        assert batch is not None
        assert torch.equal(batch.targets, collate(corpus, dialogues).targets)
    stream = prefetch(corpus, plan, depth=1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # must not wait for a thread that waits for it


def test_an_error_while_collating_reaches_the_consumer(tiny_tokenizer: Tokenizer) -> None:
    corpus = small_corpus(tiny_tokenizer)
    with pytest.raises(IndexError):
        list(prefetch(corpus, [np.asarray([10_000])]))
