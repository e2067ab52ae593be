"""``python -m training compare``: how two models answer the same questions."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from chatbot.cli import in_words
from chatbot.model_directory import ModelDirectoryError, find_model, load
from chatbot.transcripts import Transcript, TranscriptError, read_transcripts, write_aside
from training.compare import compare
from training.evaluate import ReplyFailed
from training.progress import Reporter


class NotAQuestion(ValueError):
    """A conversation that nobody waits in for a reply."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("base", type=Path, metavar="BASE", help="the model that answers now")
    add("candidate", type=Path, metavar="CANDIDATE", help="the model that might")
    add("questions", type=Path, metavar="FILE", help="transcripts that each end in a user turn")
    add("-o", "--out", type=Path, required=True, metavar="OUT.jsonl", help="both replies, a line a question")
    add("--progress", type=Path, metavar="FILE", help="append what is being done as JSON lines")
    add("--json", action="store_true", help="report as one JSON object")


def run(args: argparse.Namespace) -> int:
    reporter = Reporter(args.progress)
    ended = "failed"
    try:
        reporter.phase("reading")
        base, candidate = load(find_model(args.base)), load(find_model(args.candidate))
        found = compare(base, candidate, _questions(args.questions), reporter)
        with write_aside(args.out) as stream:
            for each in found:
                stream.write(json.dumps(asdict(each), ensure_ascii=False).encode() + b"\n")
        ended = "done"
    except (ModelDirectoryError, TranscriptError, NotAQuestion, ReplyFailed, OSError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    finally:
        reporter.phase(ended)
    changed = sum(each.gain is not None for each in found)
    report = {"questions": len(found), "changed": changed}
    print(json.dumps(report) if args.json else f"{changed} of {len(found)} replies differ")
    return 0


def _questions(path: Path) -> list[Transcript]:
    found = list(read_transcripts(path))
    for transcript in found:
        if not transcript.turns or transcript.turns[-1].role != "user":
            raise NotAQuestion(f"{path}: conversation {transcript.id!r} does not end in a user turn")
    return found
