"""Self-dialogue corpus (Fainberg et al. 2018): a CSV row per dialogue, written by one person for both sides.

The columns ``Answer.sentence1``, ``Answer.sentence2`` … alternate between the two sides; the first is the
user. Where a sentence was left empty, its two neighbors, which are of one side, become one turn.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Self

from chatbot.transcripts import Role, Transcript
from training.importers.rows import Table
from training.importers.source import Skip, SourceError, encoding_name, expand, joined

_SENTENCE: Final = re.compile(r"Answer\.sentence(\d+)")
_ID: Final = "AssignmentId"
_SIDES: Final[tuple[Role, Role]] = ("user", "agent")
_UNANSWERED: Final = "{}"
"""What the questionnaire's export writes for an answer that was not given."""


@dataclass(frozen=True, slots=True)
class SelfDialogue:
    """Dialogues of the self-dialogue corpus."""

    id_prefix: str = "self_dialogue-"
    encoding: str = "utf-8-sig"

    name: ClassVar[str] = "self_dialogue"
    summary: ClassVar[str] = "self-dialogue corpus, Batch_*_batch_results.csv"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--id-prefix",
            default="self_dialogue-",
            help="put before the assignment's id (default: %(default)s)",
        )
        parser.add_argument(
            "--encoding", type=encoding_name, default="utf-8-sig", help="of the file (default: %(default)s)"
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(id_prefix=args.id_prefix, encoding=args.encoding)

    def files(self, sources: Sequence[Path]) -> list[Path]:
        return expand(sources, "*.csv", "*.csv.gz")

    def read(self, path: Path, skip: Skip) -> Iterator[Transcript]:
        table = Table(path, delimiter=",", encoding=self.encoding)
        identity = table.column(_ID)
        sentences = _sentence_columns(table)
        for line, row in table.rows():
            turns = joined(
                (_SIDES[place % 2], row[column] if row[column] != _UNANSWERED else "")
                for place, column in enumerate(sentences)
            )
            if not turns:
                skip("no sentence was written")
            elif not row[identity]:
                raise SourceError(str(path), f"line {line}", f"{_ID} is empty")
            else:
                yield Transcript(id=self.id_prefix + row[identity], turns=turns)


def _sentence_columns(table: Table) -> list[int]:
    """Positions of the sentence columns in the order of their numbers (the file sorts 10 before 2)."""
    matches = ((_SENTENCE.fullmatch(name), position) for position, name in enumerate(table.header))
    numbered = sorted((int(match[1]), position) for match, position in matches if match)
    if not numbered:
        raise SourceError(str(table.path), "line 1", "no column Answer.sentence1")
    return [position for _, position in numbered]
