"""From tokens to what people read: each token's text, masked where personal data is, and words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from chatbot.tokenizer import TextStream, Tokenizer
from server.console.masking import KINDS
from server.replying import storable

Mask = Callable[[str], str]
"""A text with what nobody need see replaced by `[email]` and the like."""

_MASKS: Final = re.compile(rf"\[(?:{'|'.join(sorted(KINDS))})\]")


class Piece(NamedTuple):
    """A stretch of text, and the tokens (their places in the turn) that it stands for."""

    text: str
    tokens: tuple[int, ...]


def texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """The text of each token as the database keeps it; together they are `Tokenizer.decode`'s.

    A character that several tokens make belongs to the last of them. Tokens that the tokenizer does not have
    are without text.
    """
    stream = TextStream(tokenizer)
    found = [stream.push(token) if 0 <= token < tokenizer.vocab_size else "" for token in tokens]
    rest = stream.finish()
    if found:
        found[-1] += rest
    return [storable(text) for text in found]


def masked(parts: Sequence[str], mask: Mask) -> list[Piece]:
    """A piece for each part, which together read as the masked text; parts that a replacement touches are
    one piece.
    """
    whole = "".join(parts)
    shown = mask(whole)
    ends = list(accumulate(map(len, parts)))
    cuts = {end: end for end in ends} if shown == whole else _cuts(whole, shown)
    pieces: list[Piece] = []
    tokens: list[int] = []
    begin = 0
    for place, end in enumerate(ends):
        tokens.append(place)
        cut = len(shown) if place == len(ends) - 1 else cuts.get(end)
        if cut is not None and cut >= begin:
            pieces.append(Piece(shown[begin:cut], tuple(tokens)))
            tokens, begin = [], cut
    return pieces


def words(pieces: Sequence[Piece]) -> list[Piece]:
    """What stands between white space. A piece without a letter or sign of its own goes with the next."""
    found: list[Piece] = []
    text, tokens = "", tuple[int, ...]()
    for piece in pieces:
        if text.strip() and (text[-1].isspace() or piece.text[:1].isspace()):
            found.append(Piece(text.strip(), tokens))
            text, tokens = "", ()
        text, tokens = text + piece.text, tokens + piece.tokens
    if text.strip():
        found.append(Piece(text.strip(), tokens))
    return found


def _cuts(whole: str, shown: str) -> dict[int, int]:
    """Places of `whole` at which it can be cut, with the same places in `shown`: none is within a mask. What
    was kept is found from left to right, so a mask may seem to stand for less than it does.
    """
    kept = _MASKS.split(shown)
    masks = _MASKS.findall(shown)
    cuts: dict[int, int] = {}
    place = at = 0
    for number, text in enumerate(kept):
        if number == len(masks):
            place = max(place, len(whole) - len(text))
        elif number:
            place = whole.find(text, place)
        if place < 0 or not whole.startswith(text, place):
            return {}
        if text:
            cuts.update({place + step: at + step for step in range(len(text) + 1)})
        place, at = place + len(text) + 1, at + len(text) + len(masks[number] if number < len(masks) else "")
    return cuts
