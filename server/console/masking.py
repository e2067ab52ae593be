"""Personal data as others see it: `[email]`, `[card]`, `[phone]` and `[name]` in its place.

What the first three are says `chatbot.personal_data`; names are those of the team's own list.
"""

from __future__ import annotations

import re
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Final, Literal, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, select

from chatbot.personal_data import find_personal
from server.tables import MaskedName

Kind = Literal["email", "card", "phone", "name"]
KINDS: Final[frozenset[Kind]] = frozenset({"email", "card", "phone", "name"})

CACHED_SECONDS: Final = 5.0
"""How old the list of names may be that another server process has changed."""

_GAP: Final = 3
"""Characters at most between two words of a name."""


class _Word(NamedTuple):
    folded: str
    start: int
    end: int


class Masker:
    """Masks texts. The same text gives the same result, and masking that again changes nothing.

    names: whole words, in any case: "Ann Lee" is found in "ANN  LEE?" and not in "Ann Leeds". In scripts that
    do not put spaces between words it is found anywhere. kinds: what is masked.

    Mask a text before it is cut: half an address is not known as one.
    """

    def __init__(self, names: Iterable[str] = (), kinds: Iterable[Kind] = KINDS) -> None:
        self._kinds = frozenset(kinds)
        self._names: set[tuple[str, ...]] = set()
        self._lengths: dict[str, set[int]] = {}  # of the names, in words, by their first
        self._unspaced: set[str] = set()
        self._unspaced_lengths: dict[str, set[int]] = {}
        for name in names if "name" in self._kinds else ():
            self._add(tuple(word.folded for word in _words(name)))

    def _add(self, words: tuple[str, ...]) -> None:
        if words and all(map(_is_unspaced, words)):
            whole = "".join(words)
            self._unspaced.add(whole)
            self._unspaced_lengths.setdefault(whole[0], set()).add(len(whole))
        elif words:
            self._names.add(words)
            self._lengths.setdefault(words[0], set()).add(len(words))

    def mask(self, text: str) -> str:
        """The text with a word in brackets for each piece of personal data."""
        text = named = self._mask_numbers(text)
        if self._unspaced and not text.isascii():
            named = _replaced(named, ((start, end, "name") for start, end in self._find_unspaced(named)))
        if self._may_name(named):
            named = _replaced(named, ((start, end, "name") for start, end in self._find_names(named)))
        # A name that is also a currency has hidden what the number before it is.
        return text if named == text else self._mask_numbers(named)

    def _mask_numbers(self, text: str) -> str:
        if self._kinds <= {"name"}:
            return text
        found = (item for item in find_personal(text) if item.kind in self._kinds)
        return _replaced(text, ((item.start, item.end, item.kind) for item in found))

    def _may_name(self, text: str) -> bool:
        """A quick look: whether a name may begin somewhere."""
        if not self._names:
            return False
        if text.isascii():
            return not self._lengths.keys().isdisjoint(_ASCII_WORD.findall(text.lower()))
        return any(_folded(word) in self._lengths for word in _word_pattern().findall(text))

    def _find_names(self, text: str) -> Iterator[tuple[int, int]]:
        words = list(_words(text))
        place = 0
        while place < len(words):
            size = self._name_at(text, words, place)
            if size:
                yield words[place].start, words[place + size - 1].end
            place += max(size, 1)

    def _name_at(self, text: str, words: list[_Word], place: int) -> int:
        """How many words from here on are a name, the longest that there is; 0: none."""
        for size in sorted(self._lengths.get(words[place].folded, ()), reverse=True):
            found = words[place : place + size]
            gaps = (text[a.end : b.start] for a, b in pairwise(found))
            if tuple(word.folded for word in found) in self._names and all(map(_may_part, gaps)):
                return size
        return 0

    def _find_unspaced(self, text: str) -> Iterator[tuple[int, int]]:
        """Names within words, for scripts in which a word may be a whole sentence."""
        for word in _words(text):
            place = word.start
            while place < word.end:
                lengths = self._unspaced_lengths.get(text[place], ())
                ends = (place + length for length in sorted(lengths, reverse=True))
                end = next(
                    (end for end in ends if end <= word.end and text[place:end] in self._unspaced), None
                )
                if end is not None:
                    yield place, end
                place = end or place + 1


def _may_part(gap: str) -> bool:
    """Whether two words with this between them may be of one name."""
    return len(gap) <= _GAP and all(character.isspace() or character in "-‐‑'’._" for character in gap)


def _replaced(text: str, found: Iterable[tuple[int, int, str]]) -> str:
    parts: list[str] = []
    place = 0
    for start, end, kind in found:
        parts += [text[place:start], f"[{kind}]"]
        place = end
    return "".join([*parts, text[place:]]) if parts else text


def _words(text: str) -> Iterator[_Word]:
    """The words of a text, blind to case and to how accents are written; the masks in it are none."""
    for match in _word_pattern().finditer(text):
        if match.lastgroup == "word":
            yield _Word(_folded(match["word"]), match.start(), match.end())


def _folded(word: str) -> str:
    return word.lower() if word.isascii() else unicodedata.normalize("NFKC", word.casefold())


_ASCII_WORD: Final = re.compile(r"[a-z0-9]+")


@cache
def _word_pattern() -> re.Pattern[str]:
    """A mask, or letters and digits with the marks that are written above, below and beside them."""
    marks = "".join(chr(n) for n in range(sys.maxunicode) if unicodedata.category(chr(n)).startswith("M"))
    masks = "|".join(sorted(KINDS))
    return re.compile(rf"\[(?:{masks})\]|(?P<word>[^\W_](?:[^\W_]|[{marks}])*+)")


_UNSPACED: Final = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")


def _is_unspaced(word: str) -> bool:
    return all(unicodedata.name(character, "").startswith(_UNSPACED) for character in word)


# --- the team's list --------------------------------------------------------------------------------------


class _Cache:
    """The masker of each database, for a short time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: WeakKeyDictionary[Engine, tuple[float, Masker]] = WeakKeyDictionary()

    def get(self, connection: Connection) -> Masker:
        now = self._clock()
        with self._lock:
            made_at, kept = self._kept.get(connection.engine, (float("-inf"), None))
        if kept is not None and now - made_at < CACHED_SECONDS:
            return kept
        made = Masker(connection.scalars(select(MaskedName.name)))
        with self._lock:
            self._kept[connection.engine] = (now, made)
        return made

    def forget(self, db: Engine) -> None:
        with self._lock:
            self._kept.pop(db, None)


_cache = _Cache()


def masker(connection: Connection) -> Masker:
    """What masks for those who read from this database, with the names of its list."""
    return _cache.get(connection)


def names_changed(db: Engine) -> None:
    """Call after the list has changed: who asks now gets the new one."""
    _cache.forget(db)


def has_words(name: str) -> bool:
    """Whether there is anything in a name by which it could be found."""
    return any(True for _ in _words(name))
