"""``python -m training index``: what a model was trained on, so that replies can be explained by it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from chatbot.cli import in_words
from chatbot.model_directory import ModelDirectoryError, find_model, load
from chatbot.transcripts import TranscriptError
from chatbot.turn_index import MOST, SUFFIX
from training.index import NothingToIndex, index
from training.progress import Reporter

PHASE = "indexing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a sealed model directory")
    add("files", nargs="+", type=Path, metavar="FILE", help="the transcripts that it was trained on")
    add("-o", "--out", type=Path, required=True, metavar=f"INDEX{SUFFIX}", help="the index; it holds texts")
    add("--most", type=_count, default=MOST, metavar="N", help=f"turns at most, evenly chosen ({MOST})")
    add("--progress", type=Path, metavar="FILE", help="append what is being done as JSON lines")
    add("--json", action="store_true", help="report as one JSON object, without a progress bar")


def _count(text: str) -> int:
    if not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"not from 1 to {MOST}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    reporter = Reporter(args.progress)
    ended = "failed"
    try:
        if args.out.suffix != SUFFIX:
            raise NothingToIndex(
                f"{args.out}: name a file that ends in {SUFFIX}, or the server passes it over"
            )
        reporter.phase(PHASE)
        bundle = load(find_model(args.model))
        with tqdm(unit=" turns", disable=args.json or not sys.stderr.isatty()) as bar:

            def done(turn: int, turns: int) -> None:
                bar.total = turns
                bar.update(turn - bar.n)
                reporter.step(PHASE, turn, turns)

            turns, replies = index(bundle, args.files, args.out, most=args.most, done=done)
        ended = "done"
    except (ModelDirectoryError, TranscriptError, NothingToIndex, OSError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    finally:
        reporter.phase(ended)
    report = {"index": str(args.out), "model": bundle.fingerprint, "turns": turns, "replies": replies}
    print(json.dumps(report) if args.json else f"{args.out}  {turns} turns of {replies} replies")
    return 0
