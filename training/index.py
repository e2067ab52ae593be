"""An index of what a model was trained on (`chatbot.turn_index`), from the transcripts themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from chatbot.model_directory import ModelBundle
from chatbot.transcripts import Transcript, read_transcripts
from chatbot.turn_index import LONGEST, MOST, IndexBuilder, IndexedTurn
from chatbot.turn_states import Turns, answers, parts_before, states_after

AT_ONCE = 32
"""Transcripts whose states are worked out together."""
READ_AHEAD = 1024
"""Transcripts that are sorted by their replies, so that those worked out together have about as many."""


class NothingToIndex(ValueError):
    """Files without a reply that could be shown, or a model without states."""


class _Reading(NamedTuple):
    """A transcript, and which of its turns are wanted."""

    file: str
    transcript: Transcript
    places: list[int]


def index(
    bundle: ModelBundle,
    files: Sequence[Path],
    out: Path,
    *,
    most: int = MOST,
    done: Callable[[int, int], None] = lambda turn, turns: None,
) -> tuple[int, int]:
    """Write the index of ``files`` to ``out``; how many turns it has, and of how many replies. Of more than
    ``most`` replies, as many are taken at even distances.

    done: is told how many turns of how many there are. Raises `NothingToIndex`, TranscriptError and OSError.
    """
    if bundle.model.encoder is None:
        raise NothingToIndex("the model has no encoder whose states could be compared")
    replies = sum(len(_replies(transcript)) for file in files for transcript in read_transcripts(file))
    if not replies:
        raise NothingToIndex("no agent turn in the files follows a user turn")
    builder = IndexBuilder(min(most, replies), list(dict.fromkeys(file.name for file in files)))
    chosen = _chosen(files, replies, most)
    while group := list(islice(chosen, READ_AHEAD)):
        group.sort(key=lambda each: len(each.places))
        for start in range(0, len(group), AT_ONCE):
            _add(builder, bundle, group[start : start + AT_ONCE])
            done(len(builder), min(most, replies))
    builder.write(out, bundle.fingerprint, replies)
    return len(builder), replies


def _replies(transcript: Transcript) -> list[int]:
    """Places of the replies that were learned, as far as they can be shown."""
    turns = transcript.turns
    return [
        place
        for place in answers(_said(transcript))
        if turns[place].weight > 0 and len(turns[place].text) + len(turns[place - 1].text) <= LONGEST
    ]


def _said(transcript: Transcript) -> Turns:
    return [(turn.role, turn.text) for turn in transcript.turns]


def _chosen(files: Sequence[Path], replies: int, most: int) -> Iterator[_Reading]:
    """The transcripts that have one of the chosen replies."""
    wanted = min(most, replies)
    numbers = count()
    for file in files:
        for transcript in read_transcripts(file):
            found = zip(_replies(transcript), numbers, strict=False)
            places = [place for place, n in found if n * wanted // replies < (n + 1) * wanted // replies]
            if places:
                yield _Reading(file.name, transcript, places)


def _add(builder: IndexBuilder, bundle: ModelBundle, group: Sequence[_Reading]) -> None:
    parts = [parts_before(_said(each.transcript), each.places) for each in group]
    for number, states in enumerate(states_after(bundle, parts)):
        rows = [row for row, each in enumerate(group) if number < len(each.places)]
        builder.add(states[rows], [_turn(group[row], group[row].places[number]) for row in rows])


def _turn(reading: _Reading, place: int) -> IndexedTurn:
    file, transcript, _ = reading
    question, reply = transcript.turns[place - 1 : place + 1]
    return IndexedTurn(file, transcript.id, place, question.text, reply.text)
