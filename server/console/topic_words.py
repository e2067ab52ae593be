"""The words that tell groups of conversations from each other.

A word is shown only if more than one visitor said it in that group, in letters only, and never what
`console.masking` masks: a label does not tell what somebody said.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from server.console.masking import Masker

WORDS: Final = 6
"""Of a group, at most."""
VISITORS: Final = 2
"""Who must have said a word in a group for it to be shown."""

_REST: Final = 32
"""Conversations between two rests."""
_LETTERS: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_MASK: Final = re.compile(r"\[(?:email|phone|card|name)\]")
_APOSTROPHE: Final = re.compile("['’]")
_STOP: Final = """
    a about after again all also am an and any anything are arent as at back be because been before
    being but by bye can cannot cant could did didnt do does doesnt doing done dont down each else
    for from further get give go going good goodbye got great had has have having he hello help her
    here hers hey hi him his how i id if ill im in into is isnt it its ive just know let lets like
    look made make me more most much my need no nope not now of off ok okay on once one only or
    other our out over own please really right said same see she should so some something such sure
    tell than thank thanks that thats the their them then there these they thing think this those
    through to too two under until up us use very want was way we well were what whats when where
    which while who whom why will with wont would yeah yep yes you your yours
"""
_STOP_WORDS: Final = frozenset(_STOP.split())


def telling_words(
    conversations: Iterable[tuple[int, str, Iterable[str]]],
    mask: Masker,
    rest: Callable[[], None] = lambda: None,
) -> dict[int, list[str]]:
    """The words that tell each group from the others best, best first. A conversation is its group, its
    visitor, and what they said.

    By class-based tf-idf (Grootendorst 2022): a word w of group c weighs tf(w, c) log(1 + A / f(w)), with f
    its count in all groups and A the words of a group on average. What counts is how many visitors said a
    word: one who says it ten thousand times says it once.
    """
    said: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for number, (group, visitor, texts) in enumerate(conversations):
        for word in words_of(texts, mask):
            said[group][word].add(visitor)
        if number % _REST == 0:
            rest()
    counts = {
        group: {word: len(visitors) for word, visitors in words.items() if len(visitors) >= VISITORS}
        for group, words in said.items()
    }
    overall: Counter[str] = Counter()
    for words in counts.values():
        overall.update(words)
    average = overall.total() / max(1, len(counts))

    def best(words: Mapping[str, int]) -> list[str]:
        all_of_them = sum(words.values())
        weights = {
            word: count / all_of_them * math.log(1 + average / overall[word]) for word, count in words.items()
        }
        return sorted(words, key=lambda word: (-weights[word], word))[:WORDS]

    return {group: best(words) for group, words in counts.items()}


def words_of(texts: Iterable[str], mask: Masker) -> set[str]:
    """The words of some texts that may say what they are about: letters only, nothing that is masked."""
    return {
        word.casefold()
        for text in texts
        for word in _LETTERS.findall(_MASK.sub(" ", mask.mask(text)))
        if len(word) > 2 and _APOSTROPHE.sub("", word.casefold()) not in _STOP_WORDS
    }
