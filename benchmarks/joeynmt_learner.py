"""JoeyNMT as a learning benchmark's peer: trained for so many minutes in an interpreter of its own.

``python joeynmt_learner.py FOLDER`` reads ``FOLDER/job.json`` and the pairs beside it, trains with JoeyNMT's
own builder, loop, optimizer and schedule, and writes ``FOLDER/result.json``: updates, parameters, the summed
loss of the test pairs in nats, and its replies to the chosen ones, by greedy and by beam search. It imports
nothing of this project, so any environment with JoeyNMT 2.3 can run it.

Time spent on reading the dev part does not count: JoeyNMT's own validation would search, too, and is
replaced by the loss alone, which is all that its schedule and its choice of the best weights need.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Final

TRANSFORMER: Final = {
    "type": "transformer",
    "num_layers": 4,
    "num_heads": 4,
    "hidden_size": 256,
    "ff_size": 1024,
}
LONGEST: Final = 128
"""Tokens of a reply that is learned."""
SEARCHES: Final = {"greedy": 1, "beam": 5}


def recurrent(dropout: float) -> dict[str, Any]:
    """Its GRU with Bahdanau attention and input feeding, in the sizes of this project's defaults."""
    embeddings = {"embedding_dim": 512, "scale": False, "dropout": dropout}
    shape = {"type": "recurrent", "rnn_type": "gru", "embeddings": embeddings, "dropout": dropout}
    more = {
        "hidden_dropout": dropout,
        "input_feeding": True,
        "init_hidden": "bridge",
        "attention": "bahdanau",
    }
    return {
        "initializer": "xavier_uniform",
        "bias_initializer": "zeros",
        "embed_initializer": "normal",
        "embed_init_weight": 0.1,
        "tied_embeddings": True,
        "tied_softmax": True,
        "encoder": shape | {"hidden_size": 256, "num_layers": 1, "bidirectional": True},
        "decoder": shape | more | {"hidden_size": 512, "num_layers": 2},
    }


def transformer(dropout: float) -> dict[str, Any]:
    """Its transformer, as deep and wide as about the same number of parameters allows."""
    embeddings = {"embedding_dim": TRANSFORMER["hidden_size"], "scale": True, "dropout": 0.0}
    half = TRANSFORMER | {"embeddings": embeddings, "dropout": dropout, "layer_norm": "pre"}
    return {
        "initializer": "xavier_uniform",
        "bias_initializer": "zeros",
        "embed_initializer": "xavier_uniform",
        "tied_embeddings": True,
        "tied_softmax": True,
        "encoder": dict(half),
        "decoder": dict(half),
    }


TRAINING: Final[dict[str, dict[str, Any]]] = {
    "recurrent": {
        "learning_rate": 0.001,
        "scheduling": "plateau",
        "patience": 1,
        "decrease_factor": 0.5,
        "learning_rate_min": 1e-8,
        "clip_grad_norm": 1.0,
        "adam_betas": [0.9, 0.999],
    },
    "transformer": {
        "learning_rate": 0.001,
        "scheduling": "warmupinversesquareroot",
        "learning_rate_warmup": 800,
        "learning_rate_min": 1e-8,
        "clip_grad_norm": 1.0,
        "adam_betas": [0.9, 0.98],
    },
}


def settings(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """What would stand in JoeyNMT's configuration file."""
    side = {"level": "word", "lowercase": False, "voc_file": str(folder / "vocabulary.txt")}
    build = {"recurrent": recurrent, "transformer": transformer}[job["model"]]
    return {
        "name": "peer",
        "model_dir": str(folder / "run"),
        "use_cuda": False,
        "random_seed": job["seed"],
        "normalization": "tokens",
        "data": {
            "train": str(folder / "train"),
            "dev": str(folder / "dev"),
            "test": str(folder / "test"),
            "dataset_type": "plain",
            "src": side | {"lang": "src", "max_length": 1000},
            "trg": side | {"lang": "trg", "max_length": LONGEST},
        },
        "training": TRAINING[job["model"]]
        | {
            "normalization": "tokens",
            "optimizer": "adam",
            "label_smoothing": job["label_smoothing"],
            "batch_type": "token",
            "batch_size": job["batch_tokens"],
            "early_stopping_metric": "ppl",
            "epochs": 10**6,
            "validation_freq": job["evaluate_every"],
            "logging_freq": job["evaluate_every"],
            "keep_best_ckpts": 1,
            "print_valid_sents": [],
        },
        "testing": {
            "batch_type": "sentence",
            "batch_size": 32,
            "eval_metrics": [],
            "return_prob": "ref",
            "max_output_length": LONGEST,
        },
        "model": build(job["dropout"]),
    }


def _plateau(torch: Any) -> Any:
    """The schedule that JoeyNMT asks for with an argument that torch no longer takes."""

    def make(*arguments: Any, verbose: bool = False, **named: Any) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(*arguments, **named)

    return make


def main() -> None:
    """Train, score and search."""
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text("utf-8"))
    import torch

    torch.set_num_threads(job["threads"])
    from joeynmt import builders  # type: ignore[import-not-found]
    from joeynmt.config import parse_global_args, set_validation_args  # type: ignore[import-not-found]
    from joeynmt.loss import XentLoss  # type: ignore[import-not-found]
    from joeynmt.prediction import prepare  # type: ignore[import-not-found]
    from joeynmt.search import search  # type: ignore[import-not-found]
    from joeynmt.training import TrainManager  # type: ignore[import-not-found]

    logging.disable(logging.INFO)
    builders.ReduceLROnPlateau = _plateau(torch)
    (folder / "run").mkdir()
    args = parse_global_args(settings(folder, job), rank=0, mode="train")
    model, train_data, dev_data, test_data = prepare(args, rank=0, mode="train")

    class Timed(TrainManager):  # type: ignore[misc]
        """Ends when its time is up, and reads the dev part for its loss alone."""

        began = 0.0
        dev: tuple[tuple[float, float], ...] = ()

        def _train_step(self, batch: Any) -> Any:
            self.began = self.began or time.monotonic()
            if time.monotonic() - self.began > 60 * job["minutes"]:
                raise KeyboardInterrupt  # what its loop takes for the end
            return super()._train_step(batch)

        def _validate(self, valid_data: Any) -> None:
            paused = time.monotonic()
            loss = nats(valid_data)
            if self.scheduler_step_at == "validation":
                self.scheduler.step(metrics=loss)
            if not self.dev or loss < min(found for _, found in self.dev):
                torch.save(self.model.state_dict(), folder / "best.pt")
            self.dev += ((round(paused - self.began), loss),)
            self.began += time.monotonic() - paused

        def _save_checkpoint(self, new_best: bool, score: float) -> None:
            """Nothing is resumed."""

    def batches(data: Any) -> Any:
        return data.make_iter(
            batch_size=32,
            batch_type="sentence",
            shuffle=False,
            eos_index=model.eos_index,
            pad_index=model.pad_index,
            device=args.device,
        )

    def nats(data: Any) -> float:
        model.eval()
        plain = XentLoss(pad_index=model.pad_index)
        learned, model._loss_function = model._loss_function, plain
        total = 0.0
        with torch.no_grad():
            for batch in batches(data):
                batch.sort_by_src_length()
                loss, *_ = model(return_type="loss", **vars(batch))
                total += loss.item()
        model._loss_function = learned
        return total

    def replies(data: Any, width: int, chosen: list[int]) -> list[str]:
        """Of the chosen pairs alone, in their order; those of about one length together."""
        ordered = sorted(chosen, key=lambda number: len(data[number][1]))
        groups = [ordered[start : start + 32] for start in range(0, len(ordered), 32)]
        special = {"pad_index": model.pad_index, "eos_index": model.eos_index, "device": args.device}
        collate = functools.partial(data.collate_fn, **special)
        found: dict[int, str] = {}
        for numbers, batch in zip(
            groups, torch.utils.data.DataLoader(data, batch_sampler=groups, collate_fn=collate), strict=True
        ):
            order = batch.sort_by_src_length()
            output, *_ = search(
                model=model,
                batch=batch,
                max_output_length=job["longest"],
                beam_size=width,
                beam_alpha=1.0 if width > 1 else -1,
                n_best=1,
                min_output_length=1,
            )
            words = model.trg_vocab.arrays_to_sentences(arrays=output[order], cut_at_eos=True)
            found.update((number, " ".join(text)) for number, text in zip(numbers, words, strict=True))
        return [found[number] for number in chosen]

    trainer = Timed(
        rank=0,
        model=model,
        model_dir=args.model_dir,
        device=args.device,
        autocast=args.autocast,
        seed=args.seed,
        train_args=args.train,
        dev_args=set_validation_args(args.test),
    )
    trainer.train_and_validate(train_data=train_data, valid_data=dev_data)
    trainer._validate(dev_data)
    model.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    model.eval()
    result = {
        "updates": trainer.stats.steps,
        "parameters": sum(each.numel() for each in model.parameters()),
        "nll": nats(test_data),
        "dev": trainer.dev,
        "replies": {name: replies(test_data, width, job["chosen"]) for name, width in SEARCHES.items()},
    }
    (folder / "result.json").write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()
