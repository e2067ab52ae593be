"""How words are counted, so that perplexities compare across tokenizers and with n-gram models of words."""

from __future__ import annotations

import re
from typing import Final

_WORD: Final = re.compile(r"\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, and every other sign that is not white space by itself."""
    return _WORD.findall(text)


def count_words(text: str) -> int:
    """Words of one turn: those of its text, and one more for its end."""
    return 1 + sum(1 for _ in _WORD.finditer(text))
