"""Schema-Guided Dialogue (Rastogi et al. 2019): JSON files that hold a list of dialogues each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter

from chatbot.transcripts import Role, Transcript
from training.importers.source import Skip, expand, joined, read_document

_ROLES: Final[dict[str, Role]] = {"USER": "user", "SYSTEM": "agent"}


class _Turn(BaseModel):  # a publisher's record: the annotation frames are not needed here
    speaker: Literal["USER", "SYSTEM"]
    utterance: str


class _Dialogue(BaseModel):
    dialogue_id: Annotated[str, Field(min_length=1)]
    turns: list[_Turn]


_DOCUMENT: Final = TypeAdapter(list[_Dialogue])


@dataclass(frozen=True, slots=True)
class Sgd:
    """Dialogues of the SGD (DSTC8) corpus. Its parts reuse numbers: import train, dev and test one by one."""

    id_prefix: str = "sgd-"

    name: ClassVar[str] = "sgd"
    summary: ClassVar[str] = "Schema-Guided Dialogue, dialogues_NNN.json"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--id-prefix", default="sgd-", help="put before the dialogue's id (default: %(default)s)"
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(id_prefix=args.id_prefix)

    def files(self, sources: Sequence[Path]) -> list[Path]:
        return expand(sources, "dialogues_*.json", "dialogues_*.json.gz")

    def read(self, path: Path, skip: Skip) -> Iterator[Transcript]:
        for dialogue in read_document(path, _DOCUMENT, "dialogue"):
            turns = joined((_ROLES[turn.speaker], turn.utterance) for turn in dialogue.turns)
            if turns:
                yield Transcript(id=self.id_prefix + dialogue.dialogue_id, turns=turns)
            else:
                skip("nobody says anything")
