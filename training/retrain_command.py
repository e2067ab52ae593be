"""``python -m training retrain``: go on from a model with reviewed transcripts, and judge what came of it."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from chatbot.cli import in_words, read_text
from chatbot.model_directory import ModelBundle, find_model, load, seal
from chatbot.transcripts import write_aside
from training import checkpoint
from training.calibrate import calibrated
from training.card import model_card
from training.config import ConfigError, load_config
from training.dataset import Dataset, NothingReviewed, ReviewError, Sources, build
from training.evaluate import NothingToEvaluate
from training.gate import Decision, decide
from training.progress import Reporter
from training.retrain import Exam, Examined, examine, filtered, learn, make_exam
from training.retrain_config import RetrainConfig
from training.train import Stopped, Trained
from training.train_command import DTYPES, Troubles, stopping_by_signal

REFUSED = 3
"""Status of a run that made a candidate which the gate refuses."""
FILES = {
    "reviewed": "transcripts with verdicts and corrections",
    "replay": "the old data: a sample of it is learned again, so that it is not forgotten",
    "imported": "further new transcripts, between people",
    "suite": "transcripts to judge by, every turn of which is answered",
    "dev": "transcripts to judge by, a sample of which is answered",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", type=Path, required=True, metavar="MODEL", help="the model to go on from")
    for name, text in FILES.items():
        wanted = name in ("reviewed", "replay")
        add(
            f"--{name}",
            action="extend",
            nargs="+",
            type=Path,
            default=[],
            required=wanted,
            metavar="FILE",
            help=text,
        )
    add("--out", type=Path, required=True, metavar="DIR", help="the sealed candidate; the run is in DIR.run")
    add("--config", type=Path, metavar="FILE.toml", help="fields of training.retrain_config.RetrainConfig")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="one field, e.g. gate.bleu=2")
    add("--resume", action="store_true", help="go on from the last checkpoint in DIR.run")
    add("--gate-only", action="store_true", help="train nothing: judge the model that is at DIR again")
    add("--card", type=Path, metavar="FILE.md", help="text for the model card in place of the base's")
    add("--json", action="store_true", help="report as one JSON object, without a progress bar")
    add("--progress", type=Path, metavar="FILE", help="append what is being done as JSON lines")


def run(args: argparse.Namespace) -> int:
    """Status 0 when the gate is passed, `REFUSED` when not, 1 for trouble that left no candidate."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    reporter = Reporter(args.progress)
    ended = "failed"
    try:
        report = retrain(args, load_config(args.config, args.set, RetrainConfig), reporter)
        ended = "done"
    except (*Troubles, ReviewError, NothingReviewed, NothingToEvaluate) as error:
        ended = "stopped" if isinstance(error, Stopped) else "failed"
        print(in_words(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        ended = "stopped"
        print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        reporter.phase(ended)
    decision = Decision.model_validate(report["gate"])
    print(json.dumps(report, ensure_ascii=False) if args.json else _in_words(report, decision))
    return 0 if decision.passed else REFUSED


def retrain(args: argparse.Namespace, config: RetrainConfig, reporter: Reporter) -> dict[str, Any]:
    """Dataset, training, judgement and seal; what there is to report."""
    work = args.out.with_name(f"{args.out.name}.run")
    card = read_text(args.card) if args.card else None
    _check_places(args, work)
    reporter.phase("reading")
    base = load(find_model(args.base))
    sources = Sources(args.reviewed, args.replay, args.imported, args.suite, args.dev)
    dataset = build(sources, config.data, config.filters, base.fingerprint, config.gate.canaries)
    if not args.json:
        print("\n".join(filtered(dataset.counts)), file=sys.stderr)
    exam = make_exam(dataset, args.suite, args.dev, config)
    if args.gate_only:
        return _judge_again(args.out, base, exam, config, dataset, reporter)
    if args.resume:
        _check_same(work, dataset)
    stop = Event()
    with stopping_by_signal(stop):
        trained = learn(
            dataset, base, work, config, resume=args.resume, quiet=args.json, stop=stop, reporter=reporter
        )
    progress = not args.json and sys.stderr.isatty()
    judged, after = _judged(base, trained.bundle(args.out), exam, config, reporter, progress=progress)
    reporter.phase("sealing")
    with write_aside(_manifest_path(args.out)) as stream:
        stream.write(dataset.manifest_bytes())
    metrics = _metrics(trained, after, config, base, args) | judged | {"manifest_sha256": _sha256(dataset)}
    fingerprint = seal(
        args.out,
        model=trained.model,
        tokenizer=trained.tokenizer,
        defaults=base.defaults,
        metrics=metrics,
        card=_card(metrics, base, card),
        dtype=DTYPES[config.weights],
    )
    return _report(args.out, fingerprint, base, dataset) | judged


def _check_places(args: argparse.Namespace, work: Path) -> None:
    """Find out before the training what would spoil its end."""
    if args.gate_only and not args.out.is_dir():
        raise FileNotFoundError(f"{args.out} is not there: --gate-only judges a model that is")
    if not args.gate_only and args.out.exists():
        raise FileExistsError(f"{args.out} is there already: name another --out")
    files = [file for name in FILES for file in getattr(args, name)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}")
    if not args.gate_only and not args.resume and checkpoint.exists(work / "last"):
        raise FileExistsError(f"{work} holds a run: --resume continues it, or remove it")


def _check_same(work: Path, dataset: Dataset) -> None:
    """A run goes on only with what it was begun with."""
    kept = work / "manifest.json"
    if kept.is_file() and kept.read_bytes() != dataset.manifest_bytes():
        raise ConfigError(f"{work} was begun with other files or settings: remove it to begin anew")


def _judged(
    base: ModelBundle,
    candidate: ModelBundle,
    exam: Exam,
    config: RetrainConfig,
    reporter: Reporter,
    *,
    progress: bool = False,
) -> tuple[dict[str, Any], Examined]:
    """The decision with the figures it was made by, and how the candidate did."""
    examined = []
    for phase, bundle in (("judging the base", base), ("judging the candidate", candidate)):
        reporter.phase(phase)
        examined.append(examine(bundle, exam, progress=progress, done=partial(reporter.step, phase)))
    before, after = examined
    decision = decide(before.figures, after.figures, config.gate)
    figures = {
        "base": before.figures.model_dump(mode="json"),
        "candidate": after.figures.model_dump(mode="json"),
    }
    return {"gate": decision.model_dump(mode="json"), "figures": figures}, after


def _judge_again(
    out: Path, base: ModelBundle, exam: Exam, config: RetrainConfig, dataset: Dataset, reporter: Reporter
) -> dict[str, Any]:
    """A sealed model is never changed: what the gate says now goes beside it."""
    candidate = load(find_model(out))
    judged, _ = _judged(base, candidate, exam, config, reporter)
    report = _report(out, candidate.fingerprint, base, dataset) | judged
    with write_aside(out.with_name(f"{out.name}.gate.json")) as stream:
        stream.write((json.dumps(report, ensure_ascii=False, indent=2) + "\n").encode())
    return report


def _metrics(
    trained: Trained, after: Examined, config: RetrainConfig, base: ModelBundle, args: argparse.Namespace
) -> dict[str, Any]:
    progress = trained.progress
    return {
        "perplexity_word": {name: suite.perplexity_word for name, suite in after.suites.items()},
        "dev": {name: suite.model_dump() for name, suite in after.suites.items()},
        **calibrated(after.measured),
        "base": base.fingerprint,
        "steps": progress.step,
        "best_step": progress.best_step,
        "epochs": progress.epoch,
        "seconds": round(progress.seconds, 1),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "train": [file.name for file in [*args.reviewed, *args.imported, *args.replay]],
        "config": config.model_dump(mode="json") | {"model": trained.model.config.model_dump(mode="json")},
    }


def _card(metrics: dict[str, Any], base: ModelBundle, text: str | None) -> str:
    """The owner's text, or the base's own words on data and licence, which still hold; then the run and the
    gate.
    """
    inherited = base.card.partition("\n## The run")[0].partition("\n## Conversations")[0]
    text = text if text is not None else f"{inherited.strip()}\n\n_The words above are those of the base._\n"
    decision = Decision.model_validate(metrics["gate"])
    return (
        f"{model_card(metrics, text)}\n## The gate\n\nRetrained from `{base.fingerprint}`. The manifest of "
        f"what was learned has the SHA-256 `{metrics['manifest_sha256']}`.\n\n```\n{decision}\n```\n"
    )


def _manifest_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.manifest.json")


def _sha256(dataset: Dataset) -> str:
    return hashlib.sha256(dataset.manifest_bytes()).hexdigest()


def _report(out: Path, fingerprint: str, base: ModelBundle, dataset: Dataset) -> dict[str, Any]:
    return {
        "model": str(out),
        "fingerprint": fingerprint,
        "base": base.fingerprint,
        "manifest_sha256": _sha256(dataset),
        "counts": dict(sorted(dataset.counts.items())),
    }


def _in_words(report: dict[str, Any], decision: Decision) -> str:
    return f"{report['model']}  {report['fingerprint']}  from {report['base']}\n{decision}"
