"""What a job's processes read: reviewed and imported conversations, and logged turns, as transcripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, select, tuple_

from chatbot.transcripts import Transcript, write_transcripts
from server.console import changes
from server.console.exports import reviewed_transcripts
from server.console.masking import Masker
from server.database import reading
from server.tables import ImportedTranscript, MaskedName

PAGE: Final = 200
"""Imported conversations read at a time."""


def write_reviewed(db: Engine, path: Path) -> int:
    """All conversations that reviewers have said something of; how many.

    The names of the team's list are masked. Addresses and numbers are left to retraining, which knows those
    that are public.
    """
    with reading(db) as connection:
        names = list(connection.scalars(select(MaskedName.name)))
    return write_transcripts(path, reviewed_transcripts(db, masking=Masker(names, kinds={"name"})))


def write_imported(db: Engine, path: Path) -> int:
    """All conversations of files that were uploaded; how many."""
    return write_transcripts(path, _imported(db))


def write_questions(db: Engine, path: Path) -> int:
    """Logged turns to be answered anew; how many."""
    return write_transcripts(path, changes.questions(db, now=datetime.now(UTC)))


def setting(value: bool | float | str) -> str:
    """A value as TOML has it."""
    return json.dumps(value)


def _imported(db: Engine) -> Iterator[Transcript]:
    after = ("", 0)
    place = (ImportedTranscript.batch_id, ImportedTranscript.number)
    while True:
        query = select(ImportedTranscript).where(tuple_(*place) > after).order_by(*place).limit(PAGE)
        with reading(db) as connection:
            rows = connection.execute(query).all()
        for row in rows:
            found = Transcript.model_validate(row.transcript)
            # Two files may use the same id.
            yield found.model_copy(update={"id": f"{row.batch_id}/{found.id}"})
        if not rows:
            return
        after = (rows[-1].batch_id, rows[-1].number)
