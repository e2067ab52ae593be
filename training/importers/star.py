"""STAR (Mosig, Mehri and Kober 2020): one JSON file per dialogue between a user and a human wizard.

A dialogue is a list of events. What was on the user's screen are the user's ``utter`` events and the wizard's
``utter`` and ``pick_suggestion`` events; queries, instructions and requests for suggestions are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Self

from pydantic import BaseModel, TypeAdapter

from chatbot.transcripts import Role, Transcript
from training.importers.source import Skip, SourceError, expand, joined, read_document

_SPOKEN: Final[dict[tuple[str, str], Role]] = {
    ("User", "utter"): "user",
    ("Wizard", "utter"): "agent",
    ("Wizard", "pick_suggestion"): "agent",
}


class _Event(BaseModel):  # a publisher's record: what is not needed here is ignored
    Agent: str
    Action: str
    Text: str | None = None


class _Dialogue(BaseModel):
    DialogueID: int
    Events: list[_Event]


_DOCUMENT: Final = TypeAdapter(_Dialogue)


@dataclass(frozen=True, slots=True)
class Star:
    """Dialogues of the STAR corpus."""

    id_prefix: str = "star-"

    name: ClassVar[str] = "star"
    summary: ClassVar[str] = "STAR, one JSON file per dialogue"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--id-prefix", default="star-", help="put before the dialogue's number (default: %(default)s)"
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(id_prefix=args.id_prefix)

    def files(self, sources: Sequence[Path]) -> list[Path]:
        return expand(sources, "*.json")

    def read(self, path: Path, skip: Skip) -> Iterator[Transcript]:
        dialogue = read_document(path, _DOCUMENT, "dialogue")
        said: list[tuple[Role, str]] = []
        for number, event in enumerate(dialogue.Events):
            role = _SPOKEN.get((event.Agent, event.Action))
            if role is None:
                continue
            if event.Text is None:
                raise SourceError(str(path), f"Events.{number}", f"{event.Agent} {event.Action} has no Text")
            said.append((role, event.Text))
        turns = joined(said)
        if turns:
            yield Transcript(id=f"{self.id_prefix}{dialogue.DialogueID}", turns=turns)
        else:
            skip("nobody says anything")
