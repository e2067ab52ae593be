"""Native JSON lines: checked and passed on unchanged, unknown keys included."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from chatbot.transcripts import Transcript, read_transcripts
from training.importers.source import Skip, expand


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Transcripts that are in their final form already; importing joins files and checks every line."""

    name: ClassVar[str] = "jsonl"
    summary: ClassVar[str] = "native transcripts, JSON lines (.jsonl, .jsonl.gz)"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """There is nothing to choose."""

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls()

    def files(self, sources: Sequence[Path]) -> list[Path]:
        return expand(sources, "*.jsonl", "*.jsonl.gz")

    def read(self, path: Path, skip: Skip) -> Iterator[Transcript]:
        return read_transcripts(path)
