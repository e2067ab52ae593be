"""Full-text search over everything that was said, by what a person types.

What is typed is only ever words: `say "order number" stat` asks for messages that hold `say`, then, anywhere,
`order` directly followed by `number`, and a word that begins with `stat`. There are no operators; quotation
marks without a partner, `%`, `_` and the like part words and mean nothing else. Case does not matter, accents
do. Both databases are asked for the same; `server.search_index` is what they look in.

All words must be in one message. The last word, if it is not within quotation marks and nothing follows it,
stands for all words that begin with it, from `PREFIX` characters on.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Self

from sqlalchemy import (
    ARRAY,
    JSON,
    Boolean,
    ColumnElement,
    Connection,
    Integer,
    Select,
    String,
    any_,
    false,
    func,
    literal,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from server.tables import Conversation, Message

MOST_WORDS: Final = 64
"""More than that are found nowhere."""
PREFIX: Final = 3
"""Characters from which on the last word stands for longer ones: fewer begin too many words."""
COMMON: Final = 20_000
"""Messages. On SQLite a last word that is in more of them, as it stands, stands for itself only."""


@dataclass(frozen=True, slots=True)
class Words:
    """What is looked for. phrases: each of one word or more, which follow each other; no words are nowhere.

    prefix: the last phrase is one word, the beginning of the words that are meant.
    """

    phrases: tuple[tuple[str, ...], ...]
    prefix: bool = False

    @property
    def is_nowhere(self) -> bool:
        return not 0 < sum(map(len, self.phrases)) <= MOST_WORDS

    def exactly(self) -> Words:
        """The same, with the last word as it stands."""
        return Words(self.phrases)

    def last(self) -> Words:
        """The last phrase alone, as it stands."""
        return Words(self.phrases[-1:])

    def fts5(self) -> str:
        """As FTS5 reads it."""
        written = ['"' + " ".join(phrase) + '"' for phrase in self.phrases]
        return " AND ".join(written) + ("*" if self.prefix else "")

    def tsquery(self) -> str:
        """As PostgreSQL's to_tsquery reads it."""
        written = [" <-> ".join(f"'{word}'" for word in phrase) for phrase in self.phrases]
        return " & ".join(f"({phrase})" for phrase in [*written[:-1], written[-1] + ":*" * self.prefix])


def parse(typed: str) -> Words:
    """What somebody means who types that. Takes any text."""
    typed = unicodedata.normalize("NFC", typed)
    phrases: dict[tuple[str, ...], None] = {}
    prefix = False
    end = 0
    for quoted in re.finditer(r'"([^"]*)"', typed):
        phrases |= dict.fromkeys((word,) for word in _words(typed[end : quoted.start()]))
        phrases |= dict.fromkeys([tuple(_words(quoted[1]))])
        end = quoted.end()
    loose = _words(typed[end:])
    phrases |= dict.fromkeys((word,) for word in loose)
    if loose and len(loose[-1]) >= PREFIX and typed.endswith(loose[-1]):
        # In the last place, wherever it stood before.
        del phrases[(loose[-1],)]
        phrases[(loose[-1],)] = None
        prefix = True
    phrases.pop((), None)
    return Words(tuple(phrases), prefix)


def _words(typed: str) -> list[str]:
    """Letters and digits with the marks on them. What a database parts further it looks for as a phrase."""
    return ["".join(run) for inside, run in groupby(typed, _is_inside) if inside]


def _is_inside(character: str) -> bool:
    """Whether it is part of a word."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


class Matching(FunctionElement[bool]):
    """Whether the row of `message` holds the words."""

    type = Boolean()
    inherit_cache = True
    name = "matching"

    def __init__(self, words: Words) -> None:
        super().__init__(literal(words.fts5(), String), literal(words.tsquery(), String))

    def self_group(self, against: Any = None) -> Self:
        return self  # SQLite has no booleans, and SQLAlchemy would write `… = 1`


class MatchingBeginning(Matching):
    """The same for words of which the last may be a beginning."""

    inherit_cache = True
    name = "matching_beginning"

    def __init__(self, words: Words) -> None:
        texts = (words.fts5(), words.tsquery(), words.exactly().fts5(), words.last().fts5())
        FunctionElement.__init__(self, *(literal(each, String) for each in texts), literal(COMMON))


@compiles(Matching, "sqlite")
def _match_sqlite(element: Matching, compiler: SQLCompiler, **options: Any) -> str:
    fts5, *_ = element.clauses
    return _among_rowids(compiler.process(fts5, **options))


@compiles(MatchingBeginning, "sqlite")
def _match_beginning_sqlite(element: MatchingBeginning, compiler: SQLCompiler, **options: Any) -> str:
    fts5, _, exactly, last, common = (compiler.process(each, **options) for each in element.clauses)
    hits = f"SELECT 1 FROM message_search WHERE message_search MATCH {last} LIMIT {common} + 1"
    return _among_rowids(f"(SELECT iif(count(*) > {common}, {exactly}, {fts5}) FROM ({hits}))")


def _among_rowids(fts5: str) -> str:
    return f"(message.rowid IN (SELECT rowid FROM message_search WHERE message_search MATCH {fts5}))"


@compiles(Matching, "postgresql")
@compiles(MatchingBeginning, "postgresql")
def _match_postgresql(element: Matching, compiler: SQLCompiler, **options: Any) -> str:
    _, tsquery, *_ = element.clauses
    return f"(message.words @@ to_tsquery('simple', {compiler.process(tsquery, **options)}))"


def containing(words: Words) -> ColumnElement[bool]:
    """Whether a conversation has a message with the words."""
    if words.is_nowhere:
        return false()
    return Conversation.id.in_(found(words))


def found(words: Words) -> Select[str]:
    """The conversation of each message with the words."""
    return select(Message.conversation_id).where(_matching(words))


def _matching(words: Words) -> Matching:
    return MatchingBeginning(words) if words.prefix else Matching(words)


# --- looking ----------------------------------------------------------------------------------------------

FEW: Final = 2500
"""Matches that are all looked at, rather than the newest conversations until a page is full."""


class Search:
    """What the words find, within one transaction. Made by `search`."""

    def few(self) -> set[str] | None:
        """All conversations that hold the words; None if they are in more than `FEW` messages."""
        raise NotImplementedError

    def among(self, conversations: Sequence[str]) -> set[str]:
        """Those of the conversations that hold the words."""
        raise NotImplementedError

    def texts(self, conversations: Sequence[str]) -> dict[str, str]:
        """A message with the words of each of these conversations, which were found before."""
        raise NotImplementedError


def search(connection: Connection, words: Words) -> Search:
    if connection.dialect.name == "sqlite":
        return _SqliteSearch(connection, without_common_prefix(connection, words))
    return _PostgresqlSearch(connection, words)


class _PostgresqlSearch(Search):
    def __init__(self, connection: Connection, words: Words) -> None:
        self._connection = connection
        self._words = words

    def few(self) -> set[str] | None:
        rows = self._connection.scalars(found(self._words).limit(FEW + 1)).all()
        return set(rows) if len(rows) <= FEW else None

    def among(self, conversations: Sequence[str]) -> set[str]:
        query = select(Message.conversation_id).where(*self._in(conversations)).distinct()
        return set(self._connection.scalars(query))

    def texts(self, conversations: Sequence[str]) -> dict[str, str]:
        query = select(Message.conversation_id, Message.text).where(*self._in(conversations))
        rows = self._connection.execute(query.order_by(Message.seq))
        return {row.conversation_id: row.text for row in rows}

    def _in(self, conversations: Sequence[str]) -> tuple[ColumnElement[bool], ...]:
        # Written so that no index is asked for all matches first: there may be very many, and few messages.
        matching = _matching(self._words).is_(true())
        return matching, one_of(self._connection, Message.conversation_id, conversations)


_ROWID: Final = literal_column("message.rowid", Integer)
LOOKUP: Final = 400
"""Matches that are gone through in the time in which one message is looked up in the index."""
STRETCH: Final = 20_000
"""Matches that are gone through in a few milliseconds."""


class _SqliteSearch(Search):
    """FTS5 goes through the matches between two rowids in a fraction of a microsecond each, but takes as long
    as for hundreds of them to say whether one certain message matches; and reading a row of a big table takes
    as long as for dozens. So whether a conversation is among the matches is found out from its messages'
    rowids, which an index knows, and the matches between these.
    """

    def __init__(self, connection: Connection, words: Words) -> None:
        self._connection = connection
        self._words = words
        query = (
            "SELECT rowid FROM message_search WHERE message_search MATCH :words ORDER BY rowid DESC LIMIT :n"
        )
        rows = connection.scalars(text(query), {"words": words.fts5(), "n": FEW + 1})
        self._first: Sequence[int] = rows.all()
        self._newest: dict[str, int] = {}

    def few(self) -> set[str] | None:
        """The newest match in each conversation is remembered, here and below."""
        if len(self._first) > FEW:
            return None
        query = (
            select(Message.conversation_id, func.max(_ROWID).label("rowid"))
            .where(_ROWID.in_(_values(self._first)))
            .group_by(Message.conversation_id)
        )
        self._newest = {row.conversation_id: row.rowid for row in self._connection.execute(query)}
        return set(self._newest)

    def among(self, conversations: Sequence[str]) -> set[str]:
        query = (
            select(Message.conversation_id, func.json_group_array(_ROWID))
            .where(one_of(self._connection, Message.conversation_id, conversations))
            .group_by(Message.conversation_id)
        )
        of_each: dict[str, list[int]] = {
            conversation: json.loads(rowids) for conversation, rowids in self._connection.execute(query)
        }
        in_order = sorted(rowid for rowids in of_each.values() for rowid in rowids)
        # A few visitors have come back after a long time. The others are decided about without going so far.
        begin = len(in_order) // 32 if self._between(in_order) > STRETCH else 0
        matched = self._remember(of_each, self._matches(in_order[begin:]))
        early = set(in_order[:begin]).intersection(
            rowid
            for conversation, rowids in of_each.items()
            if conversation not in matched
            for rowid in rowids
        )
        return matched | self._remember(of_each, self._matches(sorted(early)))

    def texts(self, conversations: Sequence[str]) -> dict[str, str]:
        rowids = [self._newest[each] for each in conversations]
        query = select(Message.conversation_id, Message.text).where(_ROWID.in_(_values(rowids)))
        return {row.conversation_id: row.text for row in self._connection.execute(query)}

    def _remember(self, of_each: Mapping[str, Iterable[int]], matches: set[int]) -> set[str]:
        """The conversations that the matches are in."""
        newest = {
            conversation: max(found)
            for conversation, rowids in of_each.items()
            if (found := matches.intersection(rowids))
        }
        self._newest |= newest
        return set(newest)

    def _matches(self, rowids: Sequence[int]) -> set[int]:
        """Those of the messages that match, found in the cheaper way. rowids: in order."""
        if not rowids:
            return set()
        given = {
            "words": self._words.fts5(),
            "rowids": json.dumps(rowids),
            "low": rowids[0],
            "high": rowids[-1],
        }
        if not self._words.prefix and self._between(rowids) > LOOKUP * len(rowids):
            query = _LOOKED_UP
        else:
            query = _GONE_THROUGH
        return set(self._connection.scalars(text(query), given))

    def _between(self, rowids: Sequence[int]) -> float:
        """About how many matches there are in all between the first and the last of these."""
        if not rowids or not self._first:
            return 0
        density = len(self._first) / (self._first[0] - self._first[-1] + 1)
        return density * (rowids[-1] - rowids[0])


_GONE_THROUGH: Final = (
    "SELECT value FROM json_each(:rowids) WHERE value IN (SELECT rowid FROM message_search "
    "WHERE message_search MATCH :words AND rowid BETWEEN :low AND :high)"
)
_LOOKED_UP: Final = (
    "SELECT rowid FROM message_search "
    "WHERE message_search MATCH :words AND rowid IN (SELECT value FROM json_each(:rowids))"
)


def _values(given: Sequence[str] | Sequence[int]) -> Select[Any]:
    """As a table of one column."""
    values = func.json_each(literal(list(given), JSON)).table_valued("value")
    return select(values.c.value)


def one_of(
    connection: Connection, column: ColumnElement[str] | InstrumentedAttribute[str], given: Sequence[str]
) -> ColumnElement[bool]:
    """Whether the column is one of these. However many there are, they are one parameter."""
    if connection.dialect.name == "sqlite":
        return column.in_(_values(given))
    return column == any_(literal(list(given), ARRAY(String)))


def without_common_prefix(connection: Connection, words: Words) -> Words:
    """The same, but for a last word so common that nobody means longer ones: there are too many of both."""
    if not words.prefix:
        return words
    count = (
        "SELECT count(*) FROM (SELECT 1 FROM message_search WHERE message_search MATCH :words LIMIT :most)"
    )
    last = {"words": words.last().fts5(), "most": COMMON + 1}
    return words.exactly() if connection.scalar(text(count), last) == COMMON + 1 else words


# --- showing ----------------------------------------------------------------------------------------------


def excerpt(said: str, words: Words, length: int) -> str:
    """At most so many characters around the first of the words, on one line; else the beginning."""
    line = " ".join(said.split())
    if len(line) <= length:
        return line
    ends = [r"\b"] * len(words.phrases)
    if words.prefix:
        ends[-1] = ""
    patterns = [
        r"\b" + r"[\W_]+".join(map(re.escape, phrase)) + end
        for phrase, end in zip(words.phrases, ends, strict=True)
    ]
    match = re.search("|".join(patterns), line, re.IGNORECASE) if patterns else None
    begin = max(0, match.start() - length // 3) if match else 0
    begin = min(begin, len(line) - length)
    part = line[begin : begin + length]
    if begin:
        part = "…" + part[1:]
    return part if begin + length >= len(line) else part[:-1].rstrip() + "…"
