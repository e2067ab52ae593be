"""Taskmaster (Byrne et al. 2019 and later): JSON files that hold a list of conversations each.

The releases differ in the case of the speakers' names and in what they annotate; the utterances are alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter

from chatbot.transcripts import Role, Transcript
from training.importers.source import Skip, expand, joined, read_document

_ROLES: Final[dict[str, Role]] = {"user": "user", "assistant": "agent"}


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class _Utterance(BaseModel):  # a publisher's record: segments and annotations are not needed here
    speaker: Annotated[Literal["user", "assistant"], BeforeValidator(_lower)]
    text: str


class _Conversation(BaseModel):
    conversation_id: Annotated[str, Field(min_length=1)]
    utterances: list[_Utterance]


_DOCUMENT: Final = TypeAdapter(list[_Conversation])


@dataclass(frozen=True, slots=True)
class Taskmaster:
    """Conversations of a Taskmaster corpus."""

    id_prefix: str = "tm4-"

    name: ClassVar[str] = "taskmaster"
    summary: ClassVar[str] = "Taskmaster, JSON files of conversations"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--id-prefix",
            default="tm4-",
            help="put before the conversation's id; the default suits Taskmaster-4 (default: %(default)s)",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(id_prefix=args.id_prefix)

    def files(self, sources: Sequence[Path]) -> list[Path]:
        return expand(sources, "*.json", "*.json.gz")

    def read(self, path: Path, skip: Skip) -> Iterator[Transcript]:
        for conversation in read_document(path, _DOCUMENT, "conversation"):
            turns = joined((_ROLES[said.speaker], said.text) for said in conversation.utterances)
            if turns:
                yield Transcript(id=self.id_prefix + conversation.conversation_id, turns=turns)
            else:
                skip("nobody says anything")
