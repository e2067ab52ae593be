"""``python -m benchmarks.training``: reply tokens learned a second, beside the same model on torch's own GRU.

Sizes are "model S": vocabulary 8000, embedding and hidden 512, two decoder layers; 64 pairs of a turn of 40
tokens and a reply of 20. The reference differs in one thing: torch differentiates its recurrences (`nn.GRU`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from benchmarks.figures import interleaved, report
from chatbot import model as chatbot_model
from chatbot.config import ModelConfig
from chatbot.model import DialogueBatch, Seq2Seq
from training.batches import collate, token_weights
from training.corpus import Corpus
from training.device import autocast, choose_device, choose_precision
from training.loss import linear_cross_entropy

PAIRS, SOURCE, TARGET = 64, 40, 20
MODEL_S = ModelConfig(embedding_size=512, encoder_size=256, state_size=512, hidden_size=512, dropout=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    batch = collate(random_pairs(), range(PAIRS)).to(device)
    for precision in ("fp32", "bf16"):
        dtype = choose_precision(precision, device)
        ours, torchs = learner(batch, device, dtype), learner(batch, device, dtype)

        def reference(step: Callable[[], None] = torchs) -> None:
            with mock.patch.object(chatbot_model, "run_gru", torch_gru):
                step()

        timings = interleaved(args.runs, ours, reference)
        speed, reference_speed = (len(batch.targets) / timing.median for timing in timings)
        report(
            f"training_{precision}",
            speed,
            "reply tokens/s",
            reference_speed,
            "the same model, recurrences differentiated by torch",
            device=str(device),
            threads=torch.get_num_threads(),
        )


def learner(batch: DialogueBatch, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """One whole update of a fresh model: forward, loss, backward, clipping, Adam."""
    torch.manual_seed(0)
    model = Seq2Seq(MODEL_S).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    weights = token_weights(batch) / len(batch.targets)

    def step() -> None:
        with autocast(device, dtype):
            readouts = model(batch)
        loss, _ = linear_cross_entropy(
            readouts, model.embedding.weight, model.bias, batch.targets, weights, dtype=dtype
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def torch_gru(
    gru: nn.GRU, inputs: Tensor, batch_sizes: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`chatbot.recurrence.run_gru` as torch would do it."""
    outputs, last = gru(PackedSequence(inputs, batch_sizes), state)
    return outputs.data, last


def random_pairs() -> Corpus:
    """Dialogues of one question and one answer; their tokens are random, their lengths fixed."""
    rng = np.random.default_rng(0)
    lengths = np.tile([SOURCE, TARGET + 1], PAIRS)
    start = np.concatenate([[0], np.cumsum(lengths)])
    return Corpus(
        tokens=rng.integers(4, MODEL_S.vocab_size, start[-1], dtype=np.uint32),
        turn_start=start,
        turn_is_reply=np.tile([False, True], PAIRS),
        turn_weight=np.ones(2 * PAIRS, np.float32),
        dialogue_start=np.arange(0, 2 * PAIRS + 1, 2),
    )


if __name__ == "__main__":
    main()
