"""``python -m training clean``: several files of transcripts to one training part."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from chatbot.cli import in_words
from chatbot.transcripts import Transcript, TranscriptError, read_transcripts, write_transcripts
from training.clean import clean, is_dev


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="transcripts, .jsonl or .jsonl.gz"
    )
    parser.add_argument("-o", "--out", required=True, type=Path, help="where the training part goes")
    parser.add_argument(
        "--held-out",
        action="extend",
        nargs="*",
        type=Path,
        default=[],
        metavar="FILE",
        help="never let these in",
    )
    parser.add_argument(
        "--dev", type=Path, metavar="FILE", help="keep a share of the conversations apart, here"
    )
    parser.add_argument(
        "--dev-share", type=_share, default=0.05, metavar="P", help="that share (default: 0.05)"
    )
    parser.add_argument("--json", action="store_true", help="report as one JSON object")


def run(args: argparse.Namespace) -> int:
    counts: Counter[str] = Counter(kept=0)
    apart: list[Transcript] = []
    if trouble := _wrong_names(args):
        print(trouble, file=sys.stderr)
        return 2
    try:
        kept = clean(_read(args.files), _read(args.held_out), counts)
        if args.dev:
            kept = _split(kept, args.dev_share, apart, args.dev)
        write_transcripts(args.out, kept)
        if args.dev:
            counts["of these for the dev part"] = len(apart)
    except (TranscriptError, OSError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    print(
        json.dumps(counts) if args.json else "\n".join(f"{n:8}  {what}" for what, n in counts.most_common())
    )
    return 0


def _wrong_names(args: argparse.Namespace) -> str | None:
    """Why the parts cannot be written where they are to go; None when they can."""
    read = {file.resolve() for file in [*args.files, *args.held_out]}
    parts = [part for part in (args.out, args.dev) if part]
    for part in parts:
        if not part.name.endswith((".jsonl", ".jsonl.gz")):
            return f"{part}: transcripts are named .jsonl or .jsonl.gz"
        if part.resolve() in read:
            return f"{part} is one of the files that are read"
    if len({part.resolve() for part in parts}) < len(parts):
        return f"{args.out} cannot be both --out and --dev"
    return None


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError("must be a number between 0 and 1")
    return share


def _split(
    transcripts: Iterable[Transcript], share: float, apart: list[Transcript], dev: Path
) -> Iterator[Transcript]:
    """The training part; the dev part is put into ``apart``, and written before the training part ends: where
    it cannot be, an earlier training part stays with its dev part.
    """
    for transcript in transcripts:
        if is_dev(transcript, share):
            apart.append(transcript)
        else:
            yield transcript
    write_transcripts(dev, apart)


def _read(files: Iterable[Path]) -> Iterator[Transcript]:
    for file in files:
        yield from read_transcripts(file)
