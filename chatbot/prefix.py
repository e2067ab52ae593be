"""Forced beginnings of a reply: the text a reply starts with, though the last word may still be growing.

An operator who typed ``I can he`` wants ``I can help``, but the tokens of ``he`` are not those that ``help``
begins with. So whole words are forced as the tokenizer spells them, and the last word (or the space after it)
by its bytes:

    prefix   "I can he"
    chain    [ I][ can][ he]              the tokenizer's own spelling; [ he] is the unfinished word
    allowed  [ I] · [ can] · [ he] [ hel] [ help] [ hello] …

At each place of the unfinished word a path may follow the chain, or take any token that covers all of the
rest. Every path ends up with exactly the bytes of the prefix in front, in spellings that training has shown
the model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from chatbot.tokenizer import Tokenizer


class ByteIndex:
    """The tokens of a vocabulary, found by the bytes that they begin with."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spelled = ((tokenizer.token_bytes(token), token) for token in range(tokenizer.vocab_size))
        self._sorted = sorted((spelling, token) for spelling, token in spelled if spelling)
        self._longest = max((len(spelling) for spelling, _ in self._sorted), default=0)

    def covering(self, rest: bytes) -> list[int]:
        """Ids of all tokens whose bytes begin with ``rest``."""
        found = []
        for spelling, token in self._sorted[bisect_left(self._sorted, (rest, -1)) :]:
            if not spelling.startswith(rest):
                break
            found.append(token)
        return found

    def longest(self, text: bytes) -> int:
        """The token that covers most of the beginning of ``text``. Raises ValueError when none does."""
        for size in range(min(self._longest, len(text)), 0, -1):
            at = bisect_left(self._sorted, (text[:size], -1))
            if at < len(self._sorted) and self._sorted[at][0] == text[:size]:
                return self._sorted[at][1]
        raise ValueError(f"no token begins with byte {text[0]:#04x}")


class ForcedPrefix:
    """Which tokens a reply may go on with so that its text begins with ``text``. Immutable."""

    def __init__(self, text: str, tokenizer: Tokenizer, index: ByteIndex) -> None:
        # Every text is encoded with a space in front, which decoding drops again (chatbot.tokenizer).
        target = b" " + text.encode() if text else b""
        self.chain = _spell(target, tokenizer.encode(text), tokenizer, index)
        """The tokens of a reply that is the prefix and nothing more."""
        spellings = [tokenizer.token_bytes(token) for token in self.chain]
        word = max((i for i, spelling in enumerate(spellings) if spelling[:1].isspace()), default=0)
        starts = list(accumulate(map(len, spellings), initial=0))
        self._allowed = tuple(
            (token,) if i < word else tuple(sorted({token, *index.covering(target[starts[i] :])}))
            for i, token in enumerate(self.chain)
        )

    def allowed(self, ids: Sequence[int]) -> tuple[int, ...] | None:
        """Ids that may follow ``ids``; None once the prefix is complete.

        A path leaves the chain only by a token that completes the prefix, so one that is off it is free.
        """
        if len(ids) >= len(self.chain) or tuple(ids) != self.chain[: len(ids)]:
            return None
        return self._allowed[len(ids)]


def _spell(target: bytes, encoded: Sequence[int], tokenizer: Tokenizer, index: ByteIndex) -> tuple[int, ...]:
    """``target`` as tokens: the tokenizer's own as long as they agree with it, from there the longest that
    fit.

    They disagree where encoding normalizes (two spaces to one, capitals of a lower-casing model).
    """
    chain: list[int] = []
    done = 0
    for token in encoded:
        spelling = tokenizer.token_bytes(token)
        if not target.startswith(spelling, done):
            break
        chain.append(token)
        done += len(spelling)
    while done < len(target):
        chain.append(index.longest(target[done:]))
        done += len(tokenizer.token_bytes(chain[-1]))
    return tuple(chain)
