"""``python -m training evaluate MODEL FILE…``: the figures of a model on transcripts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from chatbot.cli import add_company, add_options, given_options, in_words, load_rerankers, load_together
from chatbot.decoder import TokenizersDiffer
from chatbot.model_directory import ModelDirectoryError
from chatbot.options import DecodingOptions, OptionError
from chatbot.transcripts import TranscriptError, read_transcripts
from training.device import choose_device
from training.evaluate import Evaluation, NothingToEvaluate, ReplyFailed, measure, plain_greedy, summarize

USAGE_ERROR = 2
EXPECTED = (
    ModelDirectoryError,
    TokenizersDiffer,
    TranscriptError,
    NothingToEvaluate,
    ReplyFailed,
    OSError,
)
"""Troubles that are told in their own words."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a model directory, or a directory of them with one in use")
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="transcripts; several are measured together and apart",
    )
    add_company(parser)
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--device", default="auto", help="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")
    some = parser.add_mutually_exclusive_group()
    some.add_argument(
        "--max-replies",
        type=_count,
        metavar="N",
        help="let the model answer only N turns, always the same ones; perplexities stay those of all",
    )
    some.add_argument("--no-generate", action="store_true", help="perplexities only")
    add_options(
        parser, "Of the model's own replies: greedy unless given, whatever the model's own defaults are."
    )


def run(args: argparse.Namespace) -> int:
    """Status 0 when every figure was found; 2 for an option out of range, 1 for any other trouble."""
    try:
        report = evaluate_files(args)
    except OptionError as error:
        print(f"--{error.field.replace('_', '-')} {error.reason}", file=sys.stderr)
        return USAGE_ERROR
    except (
        ModelDirectoryError,
        TokenizersDiffer,
        TranscriptError,
        NothingToEvaluate,
        ReplyFailed,
        OSError,
    ) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    print(json.dumps(report, ensure_ascii=False) if args.json else _in_words(report))
    return 0


def evaluate_files(args: argparse.Namespace) -> dict[str, Any]:
    """The figures over all files, the model, how its replies were decoded, and the figures of each file."""
    overrides = given_options(args)
    device = _device(args.device)
    transcripts = [list(read_transcripts(file)) for file in args.files]
    bundle = load_together([args.model, *args.ensemble], device=str(device))
    options = DecodingOptions.merged(plain_greedy(bundle), overrides)
    options.require_vocabulary(bundle.config.vocab_size)
    rerankers = load_rerankers(args, bundle, device=str(device))
    rerankers.require(options)
    measured = measure(
        bundle,
        [transcript for part in transcripts for transcript in part],
        options=options,
        max_replies=0 if args.no_generate else args.max_replies,
        rerankers=rerankers,
        progress=sys.stderr.isatty(),
    )
    report = summarize(measured).model_dump()
    report["model"] = bundle.fingerprint
    for name, helper in (("language_model", rerankers.language_model), ("reverse_model", rerankers.reverse)):
        if helper is not None:
            report[name] = helper.fingerprint
    report["options"] = options.model_dump(mode="json") if report["generated"] else None
    if len(args.files) > 1:
        report["files"] = {}
        start = 0
        for file, part in zip(args.files, transcripts, strict=True):
            end = start + len(part)
            own = [item for item in measured if start <= item.reference.transcript < end]
            report["files"][str(file)] = summarize(own).model_dump() if own else None
            start = end
    return report


def _device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise OptionError("device", f"{name}: {reason}") from None


def _in_words(report: dict[str, Any]) -> str:
    blocks = [_figures(f"model {report['model']}", report)]
    for file, figures in report.get("files", {}).items():
        blocks.append(f"{file}\n  nothing to predict" if figures is None else _figures(file, figures))
    return "\n\n".join(blocks)


def _figures(title: str, figures: dict[str, Any]) -> str:
    lines = [title]
    for name in Evaluation.model_fields:
        value = figures[name]
        if value is not None:
            lines.append(f"  {name:26} " + (f"{value:12.4f}" if isinstance(value, float) else f"{value:7}"))
    return "\n".join(lines)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return int(text)
