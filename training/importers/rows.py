"""Rows of CSV and TSV files with the number of the line that each begins on."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from chatbot.transcripts import MAX_LINE_BYTES
from training.importers.source import SourceError, read_lines

_DELIMITERS = ",;\t|"
_EXCELS_NOTE = re.compile(r'"?sep=(.)"?\s*')
"""A line that Excel writes, and reads, before the header."""


class Table:
    """A delimited file with a header line. Opening it reads the header; `rows` goes through the rest once.

    Fields may be quoted with ``"`` and then hold delimiters and line breaks (RFC 4180), unless ``quotes`` is
    off. A first line ``sep=;`` names the delimiter. Columns without a name and rows of empty fields, as
    spreadsheets leave them, are passed over. Raises `SourceError` for an empty file, a repeated column, a
    broken quote, or a row of another width.
    """

    def __init__(self, path: Path, *, delimiter: str, encoding: str, quotes: bool = True) -> None:
        self.path = path
        csv.field_size_limit(MAX_LINE_BYTES)  # of the whole process; a pasted log takes more than the default
        lines = read_lines(path, encoding)
        first = next(lines, "")
        note = _EXCELS_NOTE.fullmatch(first)
        self._lines_before = 1 if note else 0
        if note:
            delimiter = note[1]
        self._reader = csv.reader(
            lines if note else chain([first], lines),
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
            strict=True,
        )
        header = next(self._records(), None)
        if header is None:
            raise SourceError(str(path), "line 1", "the file is empty")
        self.header: Sequence[str] = [name.strip() for name in header[1]]
        repeated = sorted({name for name in self.header if name and self.header.count(name) > 1})
        if repeated:
            raise SourceError(str(path), "line 1", f"column {repeated[0]!r} occurs more than once")

    def column(self, name: str, option: str = "") -> int:
        """Position of a column, named by ``option``. Raises `SourceError` that lists those there are."""
        if name not in self.header:
            there = ", ".join(map(repr, self.header))
            reason = f"no column {name!r}; the columns are {there}{self._hint(option)}"
            raise SourceError(str(self.path), f"line {1 + self._lines_before}", reason)
        return self.header.index(name)

    def _hint(self, option: str) -> str:
        """What may help: when the whole header was taken for one column, another delimiter."""
        inside = [mark for mark in _DELIMITERS if len(self.header) == 1 and mark in self.header[0]]
        if option and inside:
            return f" (see --delimiter: is it {inside[0]!r}?)"
        return f" (see {option})" if option else ""

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """``(line, fields)`` of every row that is not blank."""
        for line, fields in self._records():
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(self.header):
                reason = f"{len(fields)} fields where the header has {len(self.header)}"
                raise SourceError(str(self.path), f"line {line}", reason)
            yield line, fields

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            line = self._reader.line_num + 1 + self._lines_before
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise SourceError(str(self.path), f"line {line}", str(error)) from None
            if fields:
                yield line, fields
