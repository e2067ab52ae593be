"""Text of a stranger on a terminal: shown, never obeyed."""

from __future__ import annotations

import unicodedata
from typing import Final

_ESCAPED: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Unicode categories that steer a terminal or show nothing: control and format characters (ANSI escapes,
carriage returns, bidirectional marks, zero-width characters), surrogates, private and unassigned ones, line
separators."""


def printable(text: str) -> str:
    r"""``text`` with what a terminal could obey written out: ``"\x1b[31m"`` as the characters ``\x1b[31m``.

    Line feeds stay. Works on any piece of a text, so a stream of pieces may be shown one by one.
    """
    return "".join(c if c == "\n" or unicodedata.category(c) not in _ESCAPED else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
