"""``python -m training calibrate``: the same model sealed again, with a calibration of its confidence."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from chatbot.cli import in_words
from chatbot.confidence import KEY, Calibration
from chatbot.model_directory import ModelDirectoryError, find_model, load, seal
from chatbot.transcripts import TranscriptError, read_transcripts
from training.calibrate import ACCEPTABLE, Example, TooFewReplies, calibrate, examples
from training.card import with_confidence
from training.card_command import stored_dtype
from training.evaluate import NothingToEvaluate, ReplyFailed, measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a sealed model directory")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="transcripts that it has not learned from"
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="the same model, sealed anew"
    )
    parser.add_argument(
        "--acceptable",
        type=float,
        default=ACCEPTABLE,
        metavar="CHRF",
        help=f"chrF with a person's reply from which on a reply is acceptable (default {ACCEPTABLE:g})",
    )
    parser.add_argument(
        "--max-replies", type=int, default=500, metavar="N", help="turns of each file that are answered (500)"
    )
    parser.add_argument("--json", action="store_true", help="report as one JSON object")


def run(args: argparse.Namespace) -> int:
    try:
        if args.out.exists():
            raise FileExistsError(f"{args.out} exists already; a sealed model is never overwritten")
        bundle = load(find_model(args.model))
        found: list[Example] = []
        for file in args.files:
            # Answered as the model is used, so that it is these log-probabilities that are calibrated.
            measured = measure(
                bundle,
                list(read_transcripts(file)),
                options=bundle.defaults,
                max_replies=args.max_replies,
                progress=not args.json and sys.stderr.isatty(),
            )
            found += examples(measured)
        calibration = calibrate(found, args.acceptable)
        fingerprint = seal(
            args.out,
            model=bundle.model,
            tokenizer=bundle.tokenizer,
            defaults=bundle.defaults,
            metrics={**bundle.metrics, KEY: calibration.model_dump(mode="json")},
            card=with_confidence(bundle.card, calibration),
            dtype=stored_dtype(bundle.metrics),
        )
    except (
        ModelDirectoryError,
        TranscriptError,
        NothingToEvaluate,
        ReplyFailed,
        TooFewReplies,
        OSError,
    ) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"fingerprint": fingerprint, **calibration.model_dump(mode="json")}))
    else:
        print(f"{args.out}  {fingerprint}\n{table(calibration)}")
    return 0


def table(calibration: Calibration) -> str:
    """What the calibration is worth, for people."""
    lines = [
        f"{calibration.judged} replies, {calibration.share:.1%} of chrF {calibration.acceptable:g} or more",
        f"calibration error {calibration.error:.3f}",
        f"area under the risk-coverage curve {calibration.area:.3f} ({1 - calibration.share:.3f} by chance)",
        "threshold  answered  not acceptable",
    ]
    lines += [
        f"{point.threshold:9.3f}  {point.coverage:8.0%}  {point.risk:14.1%}" for point in calibration.curve
    ]
    return "\n".join(lines)
