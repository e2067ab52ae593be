"""A recurrent language model of replies (Mikolov et al. 2010): the decoder of `Seq2Seq` alone, as a baseline.

It is trained by the ordinary loop, and its figures are those of `training.evaluate`, over the same words as
the other baselines and the chatbot itself; it has no unknown words. To keep one, for reranking, train it with
``python -m training train --set model.encoder=none --set model.attention=none``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from chatbot.config import ModelConfig
from chatbot.transcripts import read_transcripts
from training.config import TrainConfig
from training.evaluate import Evaluation, evaluate
from training.train import names_of, train


def measure_recurrent(
    train_files: Sequence[Path],
    dev_files: Sequence[Path],
    *,
    lowercase: bool,
    embedding: int,
    hidden: int,
    epochs: int,
    minutes: float | None,
    seed: int,
    device: str,
    quiet: bool,
) -> dict[str, Evaluation]:
    """Train one and read each dev file with it, without generating; raises what `training.train.train`
    does.
    """
    shape = ModelConfig(encoder="none", attention="none", embedding_size=embedding, hidden_size=hidden)
    config = TrainConfig(
        model=shape,
        lowercase=lowercase,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        device=device,
        warmup_steps=50,
        batch_tokens=5000,
    )
    with TemporaryDirectory() as place:
        trained = train(train_files, dev_files, Path(place) / "run", config, quiet=quiet)
        bundle = trained.bundle(Path(place))
        return {
            name: evaluate(bundle, list(read_transcripts(file)), max_replies=0)
            for name, file in zip(names_of(dev_files), dev_files, strict=True)
        }
