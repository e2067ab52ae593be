"""``python -m training import FORMAT SOURCE… -o OUT.jsonl.gz``: any supported source to transcripts."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from chatbot.cli import in_words
from chatbot.transcripts import Transcript, TranscriptError, write_transcripts
from training.importers import FORMATS, Importer, SourceError


class ImportReport(BaseModel):
    """What an import wrote, and how often it left something out for which reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: int
    conversations: int
    turns: int
    user_turns: int
    agent_turns: int
    skipped: dict[str, int]

    def __str__(self) -> str:
        sides = f"{self.user_turns} of users, {self.agent_turns} of agents"
        head = f"{self.conversations} conversations, {self.turns} turns ({sides}) from {self.files} file(s)"
        return "\n".join([head, *(f"skipped: {count} × {reason}" for reason, count in self.skipped.items())])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A sub-command for every format, with the options of that format."""
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name, importer in FORMATS.items():
        form = formats.add_parser(name, help=importer.summary, description=importer.summary)
        form.add_argument(
            "sources", nargs="+", type=Path, metavar="SOURCE", help="a file, or a directory of them"
        )
        form.add_argument(
            "-o", "--output", type=Path, required=True, metavar="OUT", help=".jsonl, or .jsonl.gz to compress"
        )
        form.add_argument("--json", action="store_true", help="report as JSON on standard output")
        importer.add_arguments(form)


def run(args: argparse.Namespace) -> int:
    """Status 0 when everything was imported; else 1, the reason on standard error, and no output file."""
    try:
        importer = FORMATS[args.format].from_arguments(args)
        report = import_transcripts(importer, args.sources, args.output, progress=sys.stderr.isatty())
    except (SourceError, TranscriptError, OSError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    print(json.dumps(report.model_dump()) if args.json else report)
    return 0


def import_transcripts(
    importer: Importer, sources: Sequence[Path], output: Path, *, progress: bool = False
) -> ImportReport:
    """Write the transcripts of all sources to ``output``; a failure leaves nothing there.

    Raises `SourceError` or `TranscriptError` naming file, line and reason, and OSError.
    """
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise SourceError(str(output), "", "the output is named .jsonl or .jsonl.gz")
    files = importer.files(sources)
    if output.exists() and any(file.exists() and output.samefile(file) for file in files):
        raise SourceError(str(output), "", "the output is one of the sources")
    tally: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    with tqdm(disable=not progress, unit=" conversations") as bar:

        def counted() -> Iterator[Transcript]:
            for transcript in _unique(importer, files, skipped):
                tally.update(turn.role for turn in transcript.turns)
                bar.update()
                yield transcript

        conversations = write_transcripts(output, counted())
    return ImportReport(
        files=len(files),
        conversations=conversations,
        turns=tally.total(),
        user_turns=tally["user"],
        agent_turns=tally["agent"],
        skipped=dict(sorted(skipped.items())),
    )


def _unique(importer: Importer, files: Sequence[Path], skipped: Counter[str]) -> Iterator[Transcript]:
    """All transcripts of all files. Raises `SourceError` for an id that was used before."""
    first_use: dict[str, Path] = {}

    def skip(reason: str) -> None:
        skipped[reason] += 1

    for file in files:
        for transcript in importer.read(file, skip):
            if transcript.id in first_use:
                reason = f"id {transcript.id!r} was already used in {first_use[transcript.id]}"
                raise SourceError(str(file), "", reason)
            first_use[transcript.id] = file
            yield transcript
