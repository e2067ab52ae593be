"""Transcripts that were uploaded: taken in whole or not at all, within bounds, with a report by line.

    the upload, on the disk ──► read once, line by line ──► sound? ──► one transaction
                                        └──► problems, each with its line

What it may cost is bounded before anything in it is believed (`Bounds`). A file that was taken in before is
known by its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from types import TracebackType
from typing import IO, Any, Final, Self

from sqlalchemy import JSON, Connection, Engine, Text, bindparam, cast, delete, insert, select
from sqlalchemy.exc import IntegrityError

from chatbot.transcripts import Transcript, TranscriptError, parse_transcript
from server.console import audit
from server.console.accounts import Identity
from server.database import reading, writing
from server.desk import new_id
from server.records import check_json, storable
from server.store_errors import StoreValueError
from server.tables import ImportBatch, ImportedTranscript, Operator

MIB: Final = 2**20
MAX_NAME: Final = 200
MAX_ID: Final = 200
MAX_REASON: Final = 300
SHOWN: Final = 200
"""Imports in a list, the newest."""
_GZIP: Final = b"\x1f\x8b"
_BLOCK: Final = 64 * 1024
_ROWS: Final = 500


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an upload may cost. upload: bytes as they come. unpacked: bytes after gzip, and `ratio` times the
    upload at most, from the first MiB on. line: bytes of one. lines: with empty ones. parts: that a gzip file
    was put together of. problems: after which no more are looked for.
    """

    upload: int = 64 * MIB
    unpacked: int = 64 * MIB
    ratio: int = 200
    line: int = MIB
    lines: int = 200_000
    conversations: int = 100_000
    parts: int = 1000
    problems: int = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """line: from 1; 0 stands for the file as a whole."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Imported:
    """A file that was taken in. operator: the name of who did it."""

    id: str
    name: str
    sha256: str
    conversations: int
    operator: str | None
    created_at: datetime


class KnownFile(Exception):
    """The same file was taken in before."""


class _Refused(Exception):
    """What makes it useless to read on."""


class _Enough(Exception):
    """No more problems are looked for."""


@dataclass
class Upload(AbstractContextManager["Upload"]):
    """A file that is being uploaded, kept on the disk without a name until the block ends.

    problems: what is wrong with it, in the order of its lines. conversations: those read so far.
    """

    bounds: Bounds = Bounds()
    problems: list[Problem] = field(default_factory=list)
    conversations: int = 0
    _size: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)
    _raw: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    _sound: IO[bytes] = field(default_factory=tempfile.TemporaryFile)  # a line of JSON for each conversation

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()
        self._sound.close()

    @property
    def sha256(self) -> str:
        return str(self._hash.hexdigest())

    def add(self, block: bytes) -> bool:
        """The next bytes of the file. False, with a problem noted, when they are too many."""
        self._size += len(block)
        if self._size > self.bounds.upload:
            self._note(0, f"the file has more than {self.bounds.upload} bytes")
            return False
        self._hash.update(block)
        self._raw.write(block)
        return True

    def check(self) -> Iterator[None]:
        """Read the file, a little at each step."""
        seen: dict[str, int] = {}
        number = read = 0
        try:
            for number, line in enumerate(self._lines(), start=1):
                self._take(number, line, seen)
                read += len(line)
                if read > MIB // 4:
                    read = 0
                    yield
        except _Refused as refused:
            with suppress(_Enough):
                self._note(number + 1, str(refused))
        except _Enough:
            return
        if not self.problems and not self.conversations:
            self._note(0, "there is no conversation in it")

    def _take(self, number: int, line: bytes, seen: dict[str, int]) -> None:
        if number > self.bounds.lines:
            self._note(number, f"the file has more than {self.bounds.lines} lines")
            raise _Enough
        if not line.strip():
            return
        try:
            transcript = parse_transcript(line, "", number)
            kept = _kept(transcript)
        except TranscriptError as error:
            self._note(number, error.reason)
        except StoreValueError as error:
            self._note(number, f"{error.field} {error.reason}")
        else:
            first = seen.setdefault(transcript.id, number)
            if first != number:
                self._note(number, f"the id {transcript.id!r} was already used on line {first}")
                return
            self.conversations += 1
            if self.conversations > self.bounds.conversations:
                self._note(number, f"the file has more than {self.bounds.conversations} conversations")
                raise _Enough
            self._sound.write(kept + b"\n")

    def _note(self, line: int, reason: str) -> None:
        self.problems.append(Problem(line, reason[:MAX_REASON]))
        if line and len(self.problems) == self.bounds.problems:
            raise _Enough

    def _lines(self) -> Iterator[bytes]:
        """The lines, without their ends. Never more than one of them, and a block, is in memory."""
        rest = b""
        begun = False
        for block in self._blocks():
            if block and not begun:
                begun = True
                _refuse_utf16(block)
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                self._refuse_endless(line)
                yield line
            self._refuse_endless(rest)
        if rest:
            yield rest

    def _refuse_endless(self, line: bytes) -> None:
        if len(line) > self.bounds.line:
            raise _Refused(f"the line has more than {self.bounds.line} bytes")

    def _blocks(self) -> Iterator[bytes]:
        """The file, unpacked if it is packed."""
        self._raw.seek(0)
        packed = self._raw.read(2) == _GZIP
        self._raw.seek(0)
        most = self.bounds.unpacked
        if packed:
            most = min(most, max(MIB, self.bounds.ratio * self._size))
        size = 0
        for block in self._unpacked() if packed else iter(lambda: self._raw.read(_BLOCK), b""):
            size += len(block)
            if size > most:
                raise _Refused(f"the file unpacks to more than {most} bytes")
            yield block

    def _unpacked(self) -> Iterator[bytes]:
        part, parts = zlib.decompressobj(31), 1
        try:
            while packed := self._raw.read(_BLOCK):
                while packed:
                    if part.eof:  # gzip files put together are a gzip file
                        part, parts = zlib.decompressobj(31), parts + 1
                    if parts > self.bounds.parts:
                        raise _Refused(f"the file is put together of more than {self.bounds.parts} parts")
                    yield part.decompress(packed, _BLOCK)
                    packed = part.unused_data if part.eof else part.unconsumed_tail
        except zlib.error:
            raise _Refused("the file is damaged: it cannot be unpacked from here on") from None
        if not part.eof:
            raise _Refused("the file ends too early: it was not packed or not uploaded whole")

    def store(self, db: Engine, name: str, who: Identity) -> Imported:
        """Take the file in, when it is sound.

        Raises `KnownFile` and StoreUnavailable; nothing of it is kept then.
        """
        assert not self.problems, "what has problems is not taken in"
        batch = {
            "id": new_id(),
            "name": clean_name(name),
            "sha256": self.sha256,
            "created_at": datetime.now(UTC),
            "conversations": self.conversations,
        }
        try:
            with writing(db) as connection:
                connection.execute(insert(ImportBatch).values(operator_id=who.id, **batch))
                self._insert(connection, str(batch["id"]))
                audit.note(
                    connection, who.name, "import.add", str(batch["id"]), conversations=self.conversations
                )
        except IntegrityError:
            raise KnownFile from None
        return Imported(operator=who.name, **batch)  # type: ignore[arg-type]

    def _insert(self, connection: Connection, batch: str) -> None:
        # The lines are JSON already: taken apart and put together again they would hold up the chats twice.
        text: Any = bindparam("transcript", type_=Text())
        if connection.dialect.name == "postgresql":
            text = cast(text, JSON)
        query = insert(ImportedTranscript).values(batch_id=batch, number=bindparam("number"), transcript=text)
        self._sound.seek(0)
        numbered = enumerate(self._sound, start=1)
        while rows := [{"number": n, "transcript": line.decode()} for n, line in islice(numbered, _ROWS)]:
            connection.execute(query, rows)


def _kept(transcript: Transcript) -> bytes:
    """The transcript as it is stored. Raises StoreValueError for what one of the databases cannot hold."""
    if len(transcript.id) > MAX_ID:
        raise StoreValueError("id", f"has more than {MAX_ID} characters")
    plain = transcript.model_dump(exclude_unset=True)
    for turn in plain["turns"]:
        turn.pop("at", None)  # a datetime, which is sound
    check_json("the conversation", plain)
    return json.dumps(transcript.model_dump(mode="json", exclude_unset=True), ensure_ascii=False).encode()


def _refuse_utf16(block: bytes) -> None:
    if block.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in block[:64]:
        raise _Refused("the text is not UTF-8 but UTF-16 or binary: save it as UTF-8")


def clean_name(name: str) -> str:
    """A file's name as it may be listed: its last part, on one line, without what cannot be seen."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(c if c.isprintable() and unicodedata.category(c) != "Cf" else " " for c in last)
    return " ".join(shown.split())[:MAX_NAME].strip() or "without a name"


def imports(db: Engine) -> Sequence[Imported]:
    """The newest first."""
    query = (
        select(
            ImportBatch.id,
            ImportBatch.name,
            ImportBatch.sha256,
            ImportBatch.conversations,
            Operator.name.label("operator"),
            ImportBatch.created_at,
        )
        .outerjoin(Operator, Operator.id == ImportBatch.operator_id)
        .order_by(ImportBatch.created_at.desc(), ImportBatch.id)
        .limit(SHOWN)
    )
    with reading(db) as connection:
        return [Imported(**row._mapping) for row in connection.execute(query)]


def known(db: Engine, sha256: str) -> bool:
    with reading(db) as connection:
        return connection.scalar(select(ImportBatch.id).where(ImportBatch.sha256 == sha256)) is not None


def remove(db: Engine, batch: str, who: Identity) -> bool:
    """Forget a file and its conversations. False when there is no such file."""
    if not storable(batch):
        return False
    with writing(db) as connection:
        count = connection.scalar(select(ImportBatch.conversations).where(ImportBatch.id == batch))
        if count is None:
            return False
        connection.execute(delete(ImportBatch).where(ImportBatch.id == batch))
        audit.note(connection, who.name, "import.delete", batch, conversations=count)
    return True
