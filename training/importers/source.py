"""What every importer shares: bounded reading, errors that name the place, turns of one role joined."""

from __future__ import annotations

import argparse
import codecs
import gzip
import io
import re
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, ClassVar, Final, Protocol, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from chatbot.transcripts import MAX_LINE_BYTES, Role, Transcript, Turn

MAX_DOCUMENT_BYTES: Final = 512 * 2**20
"""A JSON file is read whole; one that is or unpacks to more is refused before it fills the memory."""

_WORKBOOKS: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How .xlsx (and any ZIP archive) and .xls files begin."""

Skip = Callable[[str], None]
"""Told the reason whenever something of a source is left out on purpose."""

T = TypeVar("T")


class SourceError(ValueError):
    """A source that cannot be imported: which file, where in it, and why."""

    def __init__(self, source: str, place: str, reason: str) -> None:
        super().__init__(source, place, reason)
        self.source, self.place, self.reason = source, place, reason

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.place, self.reason) if part)


class Importer(Protocol):
    """One form of conversations outside, and how to read it. Instances hold the options of one import."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the command-line options of this form."""

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        """The importer that those options describe."""

    def files(self, sources: Sequence[Path]) -> list[Path]:
        """The files to read, in order: those named, and those of this form inside directories."""

    def read(self, path: Path, skip: Skip) -> Iterator[Transcript]:
        """Transcripts of one file. Raises `SourceError`, TranscriptError or OSError."""


def expand(sources: Sequence[Path], *patterns: str) -> list[Path]:
    """Files as they are; of directories, the files inside that match, ``2.json`` before ``10.json``. Windows
    programs also write ``A.CSV``.
    """
    files: list[Path] = []
    for source in sources:
        if not source.is_dir():
            files.append(source)
            continue
        inside = [
            path
            for path in source.iterdir()
            if any(fnmatchcase(path.name.lower(), pattern) for pattern in patterns) and path.is_file()
        ]
        if not inside:
            raise SourceError(str(source), "", f"the directory holds no {' or '.join(patterns)}")
        files += sorted(inside, key=_natural_order)
    return files


def read_document(path: Path, adapter: TypeAdapter[T], what: str) -> T:
    """A JSON file, optionally gzip, checked against a type; ``what`` names an item of a top-level list."""
    with _open_binary(path) as stream:
        try:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SourceError(str(path), "", f"not readable as gzip: {error}") from None
    if len(data) > MAX_DOCUMENT_BYTES:
        raise SourceError(str(path), "", f"longer than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SourceError(str(path), _json_place(first["loc"], what), first["msg"]) from None


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Lines of a text file, optionally gzip, with their line ends. Raises `SourceError` naming the line."""
    number = 0
    head = b""
    with _open_binary(path) as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
        try:
            head = stream.peek(4)[:4]  # type: ignore[attr-defined]
            if head in _WORKBOOKS:
                raise SourceError(str(path), "", "an Excel workbook or an archive: save a sheet as CSV UTF-8")
            while line := text.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise SourceError(str(path), f"line {number}", f"longer than {MAX_LINE_BYTES} characters")
                yield line
        except UnicodeError as error:  # utf-16 has no narrower one for a file without its mark
            # The decoder reads ahead of the lines, so the place is looked up from the start.
            place = f"line {_undecodable_line(path, encoding)}"
            why = error.reason if isinstance(error, UnicodeDecodeError) else error
            reason = f"not {encoding}: {why} (see --encoding: perhaps {_likely_encoding(head, encoding)})"
            raise SourceError(str(path), place, reason) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SourceError(str(path), f"line {number + 1}", f"not readable as gzip: {error}") from None


def encoding_name(text: str) -> str:
    """Type of an ``--encoding`` option: the name of a text encoding that Python knows."""
    try:
        "a".encode(text).decode(text)
    except (LookupError, UnicodeError):
        raise argparse.ArgumentTypeError(f"unknown text encoding {text!r}") from None
    return text


def one_line(text: str) -> str:
    """The text with every run of white space as one space and none around it."""
    return " ".join(text.split())


def joined(turns: Iterable[tuple[Role, str]]) -> tuple[Turn, ...]:
    """Turns on one line each, empty ones left out, consecutive ones of one role joined with a space."""
    merged: list[tuple[Role, list[str]]] = []
    for role, text in turns:
        line = one_line(text)
        if not line:
            continue
        if merged and merged[-1][0] == role:
            merged[-1][1].append(line)
        else:
            merged.append((role, [line]))
    return tuple(Turn(role=role, text=" ".join(lines)) for role, lines in merged)


def _open_binary(path: Path) -> IO[bytes]:
    return gzip.GzipFile(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _likely_encoding(head: bytes, wrong: str) -> str:
    """What a file that begins with ``head`` may be, if not ``wrong``."""
    if head[:2] in (BOM_UTF16_LE, BOM_UTF16_BE):
        return "utf-16"
    if b"\0" in head[:2]:
        return "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
    return "cp1252 of older Windows programs" if wrong.lower().startswith("utf-8") else "utf-8"


def _undecodable_line(path: Path, encoding: str) -> int:
    decoder = codecs.getincrementaldecoder(encoding)()
    number = 0
    with _open_binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                decoder.decode(line)
            except UnicodeError:
                return number
    return number


def _natural_order(path: Path) -> tuple[tuple[int, str], ...]:
    return tuple(
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)
    )


def _json_place(location: tuple[int | str, ...], what: str) -> str:
    """``(4, "turns", 2, "speaker")`` as ``dialogue 4, turns.2.speaker``; both count from 0."""
    if location and isinstance(location[0], int):
        head, *rest = location
        return ", ".join(part for part in (f"{what} {head}", ".".join(map(str, rest))) if part)
    return ".".join(map(str, location))
