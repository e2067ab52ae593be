"""``python -m benchmarks.training``: what training reaches, each figure beside a reference in the same run.

Pairs: sizes are "model S" (vocabulary 8000, embedding and hidden 512, two decoder layers) and 64 pairs of a
turn of 40 tokens and a reply of 20, a whole update with Adam. Beside it: the same model whose recurrences
torch differentiates; the bare kernels (`nn.GRU` layers of the same sizes and the softmax product, alone);
with ``--joeynmt PYTHON``, an interpreter that has JoeyNMT, its recurrent model with attention of the same
sizes.

Dialogues: replies learned a second from whole dialogues, beside pairs that read the last W tokens again for
every reply, for growing W: with this project's kernels and packing (``encoder = "window"``), and as JoeyNMT
learns such pairs, 64 of similar length at a time. ``--dialogues FILE`` takes real ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figures import interleaved, report
from benchmarks.peers import Trainer
from chatbot import cells
from chatbot.config import ModelConfig
from chatbot.model import DialogueBatch, Seq2Seq
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import read_transcripts
from training.batches import collate, plan_epoch, token_weights
from training.corpus import Corpus, corpus_of
from training.device import autocast, choose_device, choose_precision
from training.loss import linear_cross_entropy

PAIRS, SOURCE, TARGET = 64, 40, 20
MODEL_S = ModelConfig(embedding_size=512, encoder_size=256, state_size=512, hidden_size=512, dropout=0.0)
CONTEXTS = (100, 200, 400, 800)
BATCH_TOKENS = 6000
GEMM = 2048
"""Rows and columns of the product that the machine's rate is read from."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--joeynmt", metavar="PYTHON", help="an interpreter that has JoeyNMT 2.3")
    parser.add_argument("--dialogues", type=Path, metavar="FILE", help="transcripts to use")
    parser.add_argument("--only", choices=["pairs", "dialogues"])
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    if args.only != "dialogues":
        for precision in ("fp32", "bf16"):
            pairs(args.runs, device, precision, args.joeynmt)
    if args.only != "pairs":
        dialogues(args.runs, device, args.dialogues, args.joeynmt)


# ---- Pairs -------------------------------------------------------------------------------------------------


def pairs(runs: int, device: torch.device, precision: str, joeynmt: str | None) -> None:
    """Model S beside its references."""
    dtype = choose_precision(precision, device)
    rate = product_rate(device, dtype)  # before there is a peer whose idle threads would be in its way
    batch = collate(random_pairs(), range(PAIRS)).to(device)
    ours, torchs = learner(MODEL_S, batch, device, dtype), learner(MODEL_S, batch, device, dtype)

    def reference(step: Callable[[], None] = torchs) -> None:
        with mock.patch.object(cells, "run_gru", torch_gru):
            step()

    steps: list[Callable[[], None]] = [ours, reference, bare_kernels(device, dtype)]
    names = ["the same model, recurrences differentiated by torch", "bare GRU layers and softmax product"]
    peer = Trainer(joeynmt, torch.get_num_threads()) if joeynmt and precision == "fp32" else None
    if peer is not None:
        steps.append(peer.step)
        names.append("JoeyNMT 2.3, recurrent with attention, the same sizes")
    own, *others = interleaved(runs, *steps)
    with FlopCounterMode(display=False) as counter:
        ours()
    tokens = len(batch.targets)
    for name, timing in zip(names, others, strict=True):
        report(
            f"training_{precision}",
            tokens / own.median,
            "reply tokens/s",
            tokens / timing.median,
            name,
            device=str(device),
            threads=torch.get_num_threads(),
            gflop_per_step=round(counter.get_total_flops() / 1e9, 1),
            share_of_product_rate=round(counter.get_total_flops() / own.median / rate, 3),
        )
    if peer is not None:
        peer.close()


def learner(
    config: ModelConfig, batch: DialogueBatch, device: torch.device, dtype: torch.dtype
) -> Callable[[], None]:
    """One whole update of a fresh model: forward, loss, backward, clipping, Adam."""
    torch.manual_seed(0)
    model = Seq2Seq(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    weights = token_weights(batch) / len(batch.targets)

    def step() -> None:
        with autocast(device, dtype):
            readouts, _ = model(batch)
        loss, _ = linear_cross_entropy(
            readouts, model.output_table, model.bias, batch.targets, weights, dtype=dtype
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _wait(device)

    return step


def torch_gru(
    gru: nn.GRU, inputs: Tensor, batch_sizes: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`chatbot.recurrence.run_gru` as torch would do it."""
    outputs, last = gru(PackedSequence(inputs, batch_sizes), state)
    return outputs.data, last


def bare_kernels(device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Forward and backward of model S's GRU layers and its softmax product; no loss, attention or
    optimizer.
    """
    size, embedding = MODEL_S.hidden_size, MODEL_S.embedding_size
    encoder = nn.GRU(embedding, MODEL_S.encoder_size, bidirectional=True).to(device)
    bottom, top = nn.GRU(embedding, size).to(device), nn.GRU(2 * size, size).to(device)
    softmax = nn.Linear(embedding, MODEL_S.vocab_size).to(device)
    source, target, both, readouts = (
        torch.randn(length, PAIRS, width, device=device, requires_grad=True)
        for length, width in (
            (SOURCE, embedding),
            (TARGET, embedding),
            (TARGET, 2 * size),
            (TARGET, embedding),
        )
    )

    def step() -> None:
        with autocast(device, dtype):
            outputs = [encoder(source)[0], bottom(target)[0], top(both)[0], softmax(readouts)]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        _wait(device)

    return step


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product."""
    a, b = torch.randn(2, GEMM, GEMM, device=device, dtype=dtype)

    def multiply() -> None:
        a @ b
        _wait(device)

    return 2 * GEMM**3 / interleaved(5, multiply)[0].median


def random_pairs() -> Corpus:
    """Dialogues of one question and one answer; their tokens are random, their lengths fixed."""
    return random_dialogues([[SOURCE, TARGET + 1]] * PAIRS)


# ---- Dialogues ---------------------------------------------------------------------------------------------


def dialogues(runs: int, device: torch.device, file: Path | None, joeynmt: str | None) -> None:
    """Whole dialogues in one pass, beside the last tokens read again for every reply."""
    corpus = real_dialogues(file) if file else random_dialogues([[14] * 22 for _ in range(60)])
    dtype = choose_precision("auto", device)
    plan = plan_epoch(corpus, budget=BATCH_TOKENS, seed=0, epoch=0)
    batch = collate(corpus, plan[0]).to(device)
    for tokens in CONTEXTS:
        ours = learner(MODEL_S.model_copy(update={"memory_tokens": tokens}), batch, device, dtype)
        window = MODEL_S.model_copy(update={"memory_tokens": tokens, "encoder": "window"})
        steps = [ours, learner(window, batch, device, dtype)]
        names = [f"the last {tokens} tokens read again for every reply"]
        peer = None
        if joeynmt:
            pairs = list(reply_pairs(corpus, plan[0].tolist(), tokens))
            peer = Trainer(joeynmt, torch.get_num_threads(), pairs)
            steps.append(peer.step)
            names.append(f"JoeyNMT 2.3, recurrent with attention, pairs with the last {tokens} tokens")
        own, *others = interleaved(runs, *steps)
        replies = len(batch.reply_turn)
        for name, timing in zip(names, others, strict=True):
            report(
                f"training_dialogues_{tokens}",
                replies / own.median,
                "replies/s",
                replies / timing.median,
                name,
                device=str(device),
                threads=torch.get_num_threads(),
                replies=replies,
            )
        if peer is not None:
            peer.close()


def reply_pairs(
    corpus: Corpus, dialogues: Sequence[int], context: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Every reply of some dialogues without its role and end, after the last tokens before it."""
    for dialogue in dialogues:
        first, end = corpus.dialogue_start[dialogue], corpus.dialogue_start[dialogue + 1]
        for turn in range(first, end):
            if corpus.turn_is_reply[turn]:
                begin, stop = corpus.turn_start[turn], corpus.turn_start[turn + 1]
                before = corpus.tokens[max(corpus.turn_start[first], begin - context) : begin]
                yield before.tolist(), corpus.tokens[begin + 1 : stop - 1].tolist()


def real_dialogues(file: Path) -> Corpus:
    """The first few hundred of a file, with a tokenizer of their own."""
    transcripts = [one for one, _ in zip(read_transcripts(file), range(400), strict=False)]
    texts = (turn.text for one in transcripts for turn in one.turns)
    tokenizer = Tokenizer.train(texts, vocab_size=MODEL_S.vocab_size)
    return corpus_of(transcripts, tokenizer, max_turn_tokens=MODEL_S.max_turn_tokens)


def random_dialogues(lengths: Sequence[Sequence[int]]) -> Corpus:
    """Dialogues of random tokens; every second turn is a reply. ``lengths[d][t]`` tokens of turn t."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate([np.asarray(own) for own in lengths])
    start = np.concatenate([[0], np.cumsum(sizes)])
    return Corpus(
        tokens=rng.integers(4, MODEL_S.vocab_size, start[-1], dtype=np.uint32),
        turn_start=start,
        turn_is_reply=np.concatenate([np.arange(len(own)) % 2 == 1 for own in lengths]),
        turn_weight=np.ones(len(sizes), np.float32),
        dialogue_start=np.concatenate([[0], np.cumsum([len(own) for own in lengths])]),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
