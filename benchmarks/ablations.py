"""One change at a time: the same training with another model, and what it costs in perplexity and time.

    python -m benchmarks.ablations --train FILE --dev FILE --steps 600 --seeds 1 2 3 --out runs.jsonl
    python -m benchmarks.ablations --out runs.jsonl --table

Every variant differs from the base in one choice, and learns as many updates of the same batches. A run is
one line of ``--out``; runs that are there already are not repeated, so that it can be stopped at any time.
``--jobs`` run at a time, each with one thread: their seconds compare with each other alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from chatbot.config import ModelConfig
from training.config import load_config

BASE: Final = "base"
SIZES: Final = ("embedding_size", "encoder_size", "state_size", "hidden_size")
VARIANTS: Final[dict[str, tuple[str, ...]]] = {
    BASE: (),
    "one long recurrence": ("encoder=continuous", "bidirectional=false"),
    "window re-read": ("encoder=window",),
    "last turn only": ("encoder=last_turn",),
    "attention: none": ("attention=none",),
    "attention: none, state at every step": ("attention=none", "context_input=true"),
    "attention: scaled": ("attention=scaled",),
    "attention: bilinear": ("attention=bilinear",),
    "attention: additive": ("attention=additive",),
    "cell: LSTM": ("cell=lstm",),
    "cell: GRU, reset before": ("cell=gru_reset_before",),
    "cell: plain RNN": ("cell=rnn",),
    "one direction in a turn": ("bidirectional=false", "encoder_size*2"),
    "turns reversed": ("reverse_input=true",),
    "convolutional reader": ("turn_reader=convolutional", "encoder_size*2"),
    "averaging reader": ("turn_reader=averaging", "encoder_size*2"),
    "copying": ("copying=true",),
    "untied softmax": ("tied=false",),
    "one decoder layer": ("decoder_layers=1",),
    "three decoder layers, residual": ("decoder_layers=3", "residual=true"),
    "half as wide": tuple(f"{size}*0.5" for size in SIZES),
    "half as wide again": tuple(f"{size}*0.25" for size in SIZES),
    "twice the dropout": ("dropout*2",),
    "no dropout": ("dropout=0.0",),
}
"""Settings of the model that differ from the base's: ``=`` another value, ``*`` so many times as large."""


def main() -> None:
    """Run what is missing, or print the table of what is there."""
    args = _arguments()
    if args.table:
        print("\n".join(table(_read(args.out))))
        return
    done = {(run["variant"], run["seed"]) for run in _read(args.out)}
    missing = [(name, seed) for seed in args.seeds for name in args.variants if (name, seed) not in done]
    with ThreadPoolExecutor(args.jobs) as pool, args.out.open("a", encoding="utf-8") as stream:
        for run in pool.map(lambda one: train(args, *one), missing):
            stream.write(json.dumps(run) + "\n")
            stream.flush()


def train(args: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """One run. Raises `subprocess.CalledProcessError` when the training fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "training", "train", "--json", "--out", f"{folder}/model"]
        command += ["--train", *map(str, args.train), "--dev", *map(str, args.dev)]
        settings = [*args.set, *changes(variant, load_config(None, args.set).model)]
        settings += [f"seed={seed}", f"max_steps={args.steps}", "epochs=1000", "threads=1", "patience=1000"]
        settings += [f"evaluate_every={args.evaluate_every or args.steps}", "final_replies=0"]
        for setting in settings:
            command += ["--set", setting]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)
    kept = {key: report[key] for key in ("perplexity_word", "parameters", "seconds", "best_step")}
    return {"variant": variant, "seed": seed, "steps": args.steps, **kept}


def changes(variant: str, base: ModelConfig) -> Iterator[str]:
    """The settings of ``variant`` of a model ``base``."""
    for setting in VARIANTS[variant]:
        name, times, factor = setting.partition("*")
        if times:
            value = getattr(base, name)
            setting = f"{name}={type(value)(value * float(factor))}"
        yield f"model.{setting}"


def table(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a row for each variant, the mean over seeds, and the spread of the base's among them."""
    files = list(runs[0]["perplexity_word"]) if runs else []
    by_name = {name: [run for run in runs if run["variant"] == name] for name in VARIANTS}
    base = by_name[BASE]
    heads = [part for file in files for part in (file, "beside base")]
    yield "| " + " | ".join(["", *heads, "seeds", "parameters", "time"]) + " |"
    yield "|---" * (4 + len(heads)) + "|"
    for name, found in by_name.items():
        if not found:
            continue
        cells = [name]
        for file in files:
            values = [run["perplexity_word"][file] for run in found]
            ratio = _mean(values) / _mean([run["perplexity_word"][file] for run in base]) if base else 1.0
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells += [f"{_mean(values):.4g}{spread}", f"{ratio:.3f}"]
        time = _mean([run["seconds"] for run in found]) / _mean([run["seconds"] for run in base or found])
        cells += [str(len(found)), f"{found[0]['parameters'] / 1e6:.1f} M", f"{time:.2f}"]
        yield "| " + " | ".join(cells) + " |"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablations", description="The same training with one choice changed."
    )
    parser.add_argument("--train", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--dev", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--steps", type=int, default=600, help="updates of each run (default 600)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--evaluate-every", type=int, metavar="STEPS", help="the end alone if left out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--table", action="store_true", help="print what --out holds, and run nothing")
    args = parser.parse_args()
    if not args.table and not (args.train and args.dev):
        parser.error("--train and --dev are needed")
    return args


if __name__ == "__main__":
    main()
