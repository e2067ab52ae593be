"""Saying again what was said before: runs of tokens, and whole replies word for word.

A bot that has asked a question and did not understand the answer is inclined to ask the same again, for it is
still the likeliest question. Two things are looked at, both in the bot's own turns only: the visitor's words
must stay sayable, or no name could be confirmed.

    runs of n tokens    [ What][ is][ your] + [ name]    do not come again                  (`Runs`)
    whole replies       what is your name                are not all of a reply again       (`EarlierReplies`)
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Final

from chatbot.tokenizer import SPECIALS, Tokenizer

REMEMBERED: Final = 16384
"""Turns whose words are remembered: some megabytes."""
_WORDS: Final = re.compile(r"\w+")


class Runs:
    """The runs of ``size`` ids in some turns.

    A run with a digit in it does not count: a time or a price that is said twice must stay the same.
    """

    def __init__(self, turns: Iterable[Sequence[int]], size: int, tokenizer: Tokenizer) -> None:
        self._tail = size - 1
        self._following: dict[tuple[int, ...], set[int]] = {}
        for turn in turns:
            ids = [token for token in turn if token >= len(SPECIALS)]
            for start in range(len(ids) - size + 1):
                *before, last = run = ids[start : start + size]
                if not any(_has_digit(tokenizer.token_bytes(token)) for token in run):
                    self._following.setdefault(tuple(before), set()).add(last)

    def after(self, ids: Sequence[int]) -> Collection[int]:
        """Ids that would complete one of the runs at the end of ``ids``."""
        if not self._following or len(ids) < self._tail:
            return ()
        return self._following.get(tuple(ids[len(ids) - self._tail :]), ())


def repeated_ngrams(ids: Sequence[int], size: int) -> set[int]:
    """Ids that would complete a run of ``size`` ids which ``ids`` already holds; none for size 0."""
    if not 0 < size <= len(ids):
        return set()
    tail = tuple(ids[len(ids) - size + 1 :])
    return {ids[i + size - 1] for i in range(len(ids) - size + 1) if tuple(ids[i : i + size - 1]) == tail}


class EarlierReplies:
    """What the bot has said in this conversation, reply by reply, in turns of at least ``least`` words.

    Two texts are the same word for word when they differ in nothing but case, punctuation and white space.
    Shorter turns ("You're welcome!") may come as often as they fit; none is looked at for ``least`` 0.
    """

    def __init__(self, turns: Iterable[Sequence[int]], least: int, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        spoken = [_words(tokenizer, tuple(turn)) for turn in turns] if least else []
        self._said = frozenset(words for words, count in spoken if count >= least)

    def __bool__(self) -> bool:
        return bool(self._said)

    def say(self, ids: Sequence[int]) -> bool:
        """Whether the text of ``ids`` is one of them."""
        return bool(self._said) and _spell(self._tokenizer, ids) in self._said

    def begin(self, ids: Sequence[int]) -> bool:
        """Whether one of them begins with the text of ``ids``, or is all of it: it may yet be said again."""
        words = _spell(self._tokenizer, ids)
        at = bisect_left(self._sorted, words)
        return at < len(self._sorted) and self._sorted[at].startswith(words)

    @cached_property
    def _sorted(self) -> list[str]:
        """Whatever begins with some words comes right after them."""
        return sorted(self._said)


def _spell(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The words of ``ids``, as they are compared."""
    spelling = b"".join(map(tokenizer.token_bytes, ids))
    return " ".join(_WORDS.findall(spelling.decode(errors="ignore").casefold()))


@lru_cache(REMEMBERED)
def _words(tokenizer: Tokenizer, ids: tuple[int, ...]) -> tuple[str, int]:
    """The same of a whole turn, and how many: asked again for every reply to a conversation."""
    words = _spell(tokenizer, ids)
    return words, len(words.split())


def _has_digit(spelling: bytes) -> bool:
    return any(0x30 <= byte <= 0x39 for byte in spelling)
