"""What `python -m server export` and `erase` do: conversations as a file, and no trace of a visitor."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final, cast

import sqlalchemy
from pydantic import ValidationError
from tqdm import tqdm

from server import database, settings
from server.console import audit, erasing
from server.console.erasing import Erased
from server.console.exports import AUDITED, Export
from server.console.filters import Filters, conditions
from server.console.masking import masker

FILTER: Final = "filter_"
"""What the names of filters begin with among the parsed arguments."""


def export(arguments: Namespace) -> int:
    """Status 1 when the file is there already, or cannot be written."""
    told, filters = settings.load(arguments), _filters(arguments)
    path: Path = arguments.output
    try:
        with _connected(told) as db, _new_file(path, force=arguments.force) as stream:
            exported = _export(db, filters, arguments, stream)
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
        return 1
    report = {
        "file": str(path),
        "format": exported.format,
        "masked": exported.masking is not None,
        "conversations": exported.conversations,
        "messages": exported.messages,
    }
    how = "personal data masked" if report["masked"] else "with all personal data"
    words = f"{path}: {exported.conversations} conversations, {exported.messages} messages, {how}"
    print(json.dumps(report, ensure_ascii=False) if arguments.json else words)
    return 0


def _export(db: sqlalchemy.Engine, filters: Filters, arguments: Namespace, stream: IO[bytes]) -> Export:
    with database.writing(db) as connection:
        given = sorted(filters.model_fields_set)
        audit.note(
            connection,
            None,
            AUDITED,
            format=arguments.format,
            masked=not arguments.unmasked,
            filters=given,
        )
    hide = None
    if not arguments.unmasked:
        with database.reading(db) as connection:
            hide = masker(connection)
    exported = Export(db, arguments.format, conditions(filters), hide)
    quiet = True if arguments.json else None  # None: unless there is a terminal
    with tqdm(unit=" conversations", disable=quiet, leave=False) as bar:
        for piece in exported.pieces():
            stream.write(piece)
            bar.update(exported.conversations - bar.n)
    return exported


def _filters(arguments: Namespace) -> Filters:
    """All conversations, unless a filter says otherwise. Raises SettingsError."""
    given = {
        name.removeprefix(FILTER): value
        for name, value in vars(arguments).items()
        if name.startswith(FILTER) and value is not None
    }
    try:
        return Filters.model_validate({"state": "all", **given})
    except ValidationError as error:
        problems = [
            f"{settings.flag(str(each['loc'][0])) if each['loc'] else 'filters'}: "
            + each["msg"].removeprefix("Value error, ")
            for each in error.errors(include_input=False)
        ]
        raise settings.SettingsError(problems) from None


@contextmanager
def _new_file(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """A file that only its owner may read, under its name once the block has ended without an error, packed
    if its name ends in .gz. Raises FileExistsError unless `force`.
    """
    if path.exists() and not force:
        raise FileExistsError(0, "is there already; --force replaces it")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as raw:
            if path.suffix.lower() == ".gz":
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                    yield cast("IO[bytes]", packed)
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        if force:
            aside.replace(path)
        else:
            _place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _place(aside: Path, path: Path) -> None:
    """Give a file its name, unless something else has got it meanwhile."""
    try:
        os.link(aside, path)
    except FileExistsError:
        raise FileExistsError(0, "is there already; --force replaces it") from None
    except OSError:  # a file system without links
        aside.replace(path)


def erase(arguments: Namespace) -> int:
    """Status 1 when there is no such visitor, or when a trace of them may be left in files."""
    with _connected(settings.load(arguments)) as db:
        named = {"conversation" if arguments.conversation else "visitor": arguments.visitor}
        visitor = erasing.visitor_of(db, **named)
        erased = None if visitor is None else erasing.erase(db, visitor, None)
    if erased is None:
        print("there is no such visitor", file=sys.stderr)
        return 1
    print(json.dumps(asdict(erased)) if arguments.json else "\n".join(_told(erased)))
    if erased.log_emptied is False:
        print(
            "traces may be left in the database's files, which were in use: erase visitor "
            f"{erased.visitor} once more later",
            file=sys.stderr,
        )
    if erased.vacuumed is False:
        words = (
            "VACUUM was refused: the rows are gone, their space is not free yet; erase them once more later"
        )
        print(words, file=sys.stderr)
    for directory in erased.files_left:
        print(f"texts may be left in {directory}, where they could not be removed", file=sys.stderr)
    done = erased.log_emptied is not False and erased.vacuumed is not False and not erased.files_left
    return 0 if done else 1


def _told(erased: Erased) -> Iterator[str]:
    yield f"visitor {erased.visitor} is erased"
    for name, value in asdict(erased).items():
        if type(value) is int and value and name != "exports":
            yield f"{value:8}  {name.replace('_', ' ')}"
    if erased.models:
        yield f"models that have learned from what was said: {', '.join(erased.models)}"
    if erased.exports:
        yield f"exports since the visitor came, which may hold it: {erased.exports}"


@contextmanager
def _connected(told: settings.Settings) -> Iterator[sqlalchemy.Engine]:
    """Raises StoreError."""
    db = database.connect(told.database_url)
    try:
        database.require_newest(db)
        yield db
    finally:
        db.dispose()
