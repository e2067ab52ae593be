"""Transcripts: the one form of a conversation, as JSON lines (optionally gzip).

    {"id": "…", "turns": [{"role": "user" | "agent", "text": "…"}, …]}

Optional on a line: ``meta``. Optional on a turn: ``at`` (RFC 3339), ``author``, ``weight`` (of training,
default 1) and ``rating``. Unknown keys are kept through a round trip. A malformed line is a `TranscriptError`
that names file,
line and reason.
"""

from __future__ import annotations

import gzip
import os
import re
import tempfile
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

Role = Literal["user", "agent"]
MAX_LINE_BYTES = 16 * 2**20
"""A line longer than this is refused before it is parsed: one conversation never comes near it."""


class Turn(BaseModel):
    """What one side said before the other spoke again."""

    model_config = ConfigDict(frozen=True, extra="allow")

    role: Role
    text: Annotated[str, Field(strict=True)]
    at: AwareDatetime | None = None
    author: str | None = None
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    rating: Any = None


class Transcript(BaseModel):
    """One conversation, oldest turn first."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: Annotated[str, Field(strict=True, min_length=1)]
    turns: tuple[Turn, ...]
    meta: dict[str, Any] | None = None


class TranscriptError(ValueError):
    """A line that is not a transcript: where it is and what is wrong with it."""

    def __init__(self, source: str, line: int, reason: str) -> None:
        super().__init__(source, line, reason)
        self.source, self.line, self.reason = source, line, reason

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


def parse_transcript(line: str | bytes, source: str, number: int) -> Transcript:
    """One JSON line to a transcript. Raises `TranscriptError` (``number``: its 1-based line)."""
    if number == 1:  # some editors begin a file with a byte order mark
        line = line.removeprefix("\ufeff") if isinstance(line, str) else line.removeprefix(BOM_UTF8)
    if len(line) > MAX_LINE_BYTES:
        raise TranscriptError(source, number, f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        return Transcript.model_validate_json(line)
    except ValidationError as error:
        reason = _first_reason(error)
        if number == 1 and reason.startswith("Invalid JSON"):  # a table, say, or a list over several lines
            reason += " (transcripts are a line of JSON each; python -m training import makes them)"
        raise TranscriptError(source, number, reason) from None


def read_lines(lines: Iterable[str | bytes], source: str) -> Iterator[Transcript]:
    """Transcripts of JSON lines; blank lines are skipped, a repeated id is a `TranscriptError`."""
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        transcript = parse_transcript(line, source, number)
        first = seen.setdefault(transcript.id, number)
        if first != number:
            raise TranscriptError(source, number, f"id {transcript.id!r} was already used on line {first}")
        yield transcript


def read_transcripts(path: Path) -> Iterator[Transcript]:
    """Transcripts of a ``.jsonl`` or ``.jsonl.gz`` file, one at a time.

    Raises `TranscriptError` for a malformed line or a damaged gzip stream, OSError when it cannot be read.
    """
    opened: IO[bytes] = gzip.GzipFile(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[assignment]
    with opened as stream:
        yield from read_lines(_bounded_lines(stream, str(path)), str(path))


def render_transcript(transcript: Transcript) -> str:
    """The JSON line of a transcript, without a newline; only the keys that were given."""
    return transcript.model_dump_json(exclude_unset=True)


def write_transcripts(path: Path, transcripts: Iterable[Transcript]) -> int:
    """Write ``.jsonl`` or ``.jsonl.gz`` aside, then rename it into place: a reader sees all of it or nothing.

    Returns the number written. The same transcripts give the same bytes (no timestamp in the gzip header).
    """
    count = 0
    with write_aside(path) as raw, _packing(raw, path) as stream:
        for transcript in transcripts:
            stream.write(render_transcript(transcript).encode() + b"\n")
            count += 1
    return count


def _packing(raw: IO[bytes], path: Path) -> AbstractContextManager[IO[bytes]]:
    """What is written to, closed after an error too: Python 3.13 complains of one that is left open."""
    if path.suffix.lower() != ".gz":
        return nullcontext(raw)
    return gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)  # type: ignore[return-value]


@contextmanager
def write_aside(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name ``path`` only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.chmod(0o644)
        aside.replace(path)
    except BaseException:
        aside.unlink()
        raise


def _bounded_lines(stream: IO[bytes], source: str) -> Iterator[bytes]:
    """Lines of a binary stream, never more than the limit (plus one byte) in memory at once."""
    number = 1
    try:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            yield line
            number += 1
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TranscriptError(source, number, f"not readable as gzip: {error}") from None


def _first_reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":  # the parser counts lines, of which there is one
        return re.sub(r" at line \d+ (column \d+)$", r" at \1", str(first["msg"]))
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
