"""Rows of CSV and TSV files with the number of the line that each begins on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.importers.source import SourceError, read_lines


class Table:
    """A delimited file with a header line. Opening it reads the header; `rows` goes through the rest once.

    Fields may be quoted with ``"`` and then hold delimiters and line breaks (RFC 4180), unless ``quotes`` is
    off. Raises `SourceError` for an empty file, a repeated column, a broken quote, or a row of another width.
    """

    def __init__(self, path: Path, *, delimiter: str, encoding: str, quotes: bool = True) -> None:
        self.path = path
        self._reader = csv.reader(
            read_lines(path, encoding),
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
            strict=True,
        )
        header = next(self._records(), None)
        if header is None:
            raise SourceError(str(path), "line 1", "the file is empty")
        self.header: Sequence[str] = [name.strip() for name in header[1]]
        repeated = sorted({name for name in self.header if self.header.count(name) > 1})
        if repeated:
            raise SourceError(str(path), "line 1", f"column {repeated[0]!r} occurs more than once")

    def column(self, name: str) -> int:
        """Position of a column. Raises `SourceError` that lists the columns there are."""
        if name not in self.header:
            there = ", ".join(map(repr, self.header))
            raise SourceError(str(self.path), "line 1", f"no column {name!r}; the columns are {there}")
        return self.header.index(name)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """``(line, fields)`` of every row that is not blank."""
        for line, fields in self._records():
            if len(fields) != len(self.header):
                reason = f"{len(fields)} fields where the header has {len(self.header)}"
                raise SourceError(str(self.path), f"line {line}", reason)
            yield line, fields

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            line = self._reader.line_num + 1
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise SourceError(str(self.path), f"line {line}", str(error)) from None
            if fields:
                yield line, fields
