"""``python -m training train``: transcripts in, a sealed model directory out."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import torch

from chatbot.cli import in_words, read_text
from chatbot.model_directory import ModelBundle, ModelDirectoryError, find_model, load, seal
from chatbot.options import DecodingOptions
from chatbot.transcripts import TranscriptError, read_transcripts, write_aside
from training import checkpoint
from training.calibrate import calibrated
from training.card import model_card
from training.config import ConfigError, TrainConfig, load_config
from training.corpus import OtherCorpus
from training.distributed import join_world, launch
from training.evaluate import Measured, ReplyFailed, measure, summarize
from training.train import Diverged, NothingToLearn, Stopped, Trained, names_of, train

log = logging.getLogger(__name__)

Troubles = (
    ConfigError,
    TranscriptError,
    NothingToLearn,
    checkpoint.OtherModel,
    OtherCorpus,
    Diverged,
    Stopped,
    ReplyFailed,
    ModelDirectoryError,
    OSError,
)
"""What a run may end with other than a model; each says why."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train",
        action="extend",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="transcripts to learn",
    )
    parser.add_argument(
        "--dev",
        action="extend",
        nargs="*",
        type=Path,
        default=[],
        metavar="FILE",
        help="transcripts for decisions",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the sealed model; the run itself is kept in DIR.run",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE.toml", help="fields of training.config.TrainConfig"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one field, e.g. minutes=30"
    )
    parser.add_argument(
        "--base", type=Path, metavar="MODEL", help="begin with the weights, tokenizer and shape of this model"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in DIR.run")
    parser.add_argument(
        "--card", type=Path, metavar="FILE.md", help="text for the model card: data, licences, limits"
    )
    parser.add_argument(
        "--json", action="store_true", help="report as one JSON object, without a progress bar"
    )


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop = Event()
    try:
        config = load_config(args.config, args.set)
        card = read_text(args.card) if args.card else ""
        work = args.out.parent / f"{args.out.name}.run"
        resume = args.resume or _is_ours(work)
        if args.out.exists() and _is_ours(work):  # killed between sealing and its end
            print(f"{args.out} is sealed already", file=sys.stderr)
            return 0
        _check_places(args, work, resume)
        base = load(find_model(args.base)) if args.base else None
        with join_world(config.device) as world:
            with stopping_by_signal(stop):
                trained = train(
                    args.train,
                    args.dev,
                    work,
                    config,
                    resume=resume,
                    quiet=args.json,
                    world=world,
                    stop=stop,
                    base=base,
                )
            if world.first:
                report = _seal(args.out, trained, config, card, args, base)
                print(json.dumps(report) if args.json else _in_words(report))
    except Troubles as error:
        print(in_words(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


@contextmanager
def stopping_by_signal(stop: Event) -> Iterator[None]:
    """While training, Ctrl-C and SIGTERM end it between two updates; before and after, they do as ever."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _check_places(args: argparse.Namespace, work: Path, resume: bool) -> None:
    """Find out before the training what would spoil its end, then take ``work``, where the run is kept."""
    if args.out.exists():
        raise FileExistsError(f"{args.out} is there already: name another --out")
    missing = [str(file) for file in [*args.train, *args.dev] if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}")
    if os.environ.get("RANK", "0") != "0":
        return
    began = checkpoint.exists(work / "last")
    if began and not resume:
        raise FileExistsError(f"{work} holds a run: --resume continues it, or remove it")
    if args.resume and not began:
        log.info("%s holds no run to go on from: this one begins", work)
    if (name := launch()) is not None and not _is_ours(work):
        with write_aside(work / "launch") as stream:
            stream.write(name.encode())


def _is_ours(work: Path) -> bool:
    """Whether this very torchrun began or took up the run in ``work``: what it starts again goes on, while a
    new torchrun has to say --resume.
    """
    mark = work / "launch"
    return mark.is_file() and mark.read_text("utf-8") == launch()


def _seal(
    out: Path,
    trained: Trained,
    config: TrainConfig,
    card: str,
    args: argparse.Namespace,
    base: ModelBundle | None,
) -> dict[str, Any]:
    progress = trained.progress
    measured = _measured(trained, args, config)
    metrics = {
        "perplexity_word": trained.perplexity_word,
        "dev": {name: summarize(items).model_dump() for name, items in measured.items()},
        **calibrated(item for items in measured.values() for item in items),
        "steps": progress.step,
        "best_step": progress.best_step,
        "epochs": progress.epoch,
        "seconds": round(progress.seconds, 1),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "train": [file.name for file in args.train],
        **({"base": base.fingerprint} if base else {}),
        "config": config.model_dump(mode="json") | {"model": trained.model.config.model_dump(mode="json")},
    }
    fingerprint = seal(
        out,
        model=trained.model,
        tokenizer=trained.tokenizer,
        defaults=DecodingOptions(),
        metrics=metrics,
        card=model_card(metrics, card),
        dtype=DTYPES[config.weights],
    )
    return {
        "model": str(out),
        "fingerprint": fingerprint,
        **{k: v for k, v in metrics.items() if k not in ("config", "dev")},
    }


def _measured(trained: Trained, args: argparse.Namespace, config: TrainConfig) -> dict[str, list[Measured]]:
    """Every turn of each dev file, with greedy replies to a fixed sample of them."""
    bundle = trained.bundle(args.out)
    return {
        name: measure(
            bundle,
            list(read_transcripts(file)),
            max_replies=config.final_replies,
            progress=not args.json and sys.stderr.isatty(),
        )
        for file, name in zip(args.dev, names_of(args.dev), strict=True)
    }


def _in_words(report: dict[str, Any]) -> str:
    figures = "".join(f"\n  {name:20} {value:8.2f}" for name, value in report["perplexity_word"].items())
    return (
        f"{report['model']}  {report['fingerprint']}\n{report['parameters']:,} parameters"
        f"\n{report['steps']:,} updates in {report['seconds']:.0f} s, best after {report['best_step']:,}"
        f"\nword perplexity{figures or ': no dev part'}"
    )
