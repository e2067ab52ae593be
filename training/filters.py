"""What is kept from training, whoever sent it: pure functions of texts.

personal data      masked (`chatbot.personal_data`), unless public: said by agents to several visitors
loops              a reply that says the same again and again
near-duplicates    turns that differ in little, by MinHash (Broder 1997)
generic replies    the entropy of the questions that a reply answers (Csaky et al. 2019)
foreign language   a count of common little words: a light guess, off unless asked for
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from functools import lru_cache
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from chatbot.personal_data import find_personal

Count = Annotated[int, Field(ge=0)]
Language = Literal["de", "en", "es", "fr", "it", "nl"]


class FilterConfig(BaseModel):
    """The bounds of the clean-up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    visitor_replies: Count = 50
    """Replies that are learned from one visitor, at most."""
    alike: Count = 3
    """Of these, pairs of question and reply that are nearly the same."""
    generic_entropy: Annotated[float, Field(ge=0)] = 4.0
    """Nats above which the questions of a reply are too different for it to be informative."""
    generic_keep: Count = 20
    """Copies of such a reply that are learned all the same: a greeting is one."""
    public_after: Annotated[int, Field(ge=1)] = 3
    """Visitors to whom an agent must have said an address or number for it not to be personal."""
    rejected_after: Annotated[int, Field(ge=1)] = 3
    """Corrections of one and the same reply after which old data no longer teaches that reply."""
    language: Language | None = None
    """The only language that is learned; none takes all."""


def plain(text: str) -> str:
    """The words of a text, for comparing: blind to case, punctuation and spacing."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def same_words(one: str, other: str) -> bool:
    """Blind to case, punctuation and spacing, but not to vowel signs, currencies and emoji."""
    return plain(one) == plain(other) and _signs(one) == _signs(other)


def _signs(text: str) -> list[str]:
    """What `plain` leaves out though it can change what is said: marks, symbols and percents."""
    composed = unicodedata.normalize("NFC", text)
    return [sign for sign in composed if sign == "%" or unicodedata.category(sign)[0] in "MS"]


# ---- Personal data ---------------------------------------------------------------------------------


def mask(text: str, public: Set[str], counts: Counter[str]) -> str:
    """The text with ``[email]``, ``[card]`` and ``[phone]`` for what is not ``public``; counted by kind.

    A card number is never public.
    """
    for item in reversed(list(find_personal(text))):
        if item.kind == "card" or item.value not in public:
            counts[f"{item.kind} masked"] += 1
            text = f"{text[: item.start]}[{item.kind}]{text[item.end :]}"
    return text


_NUMBER: Final = re.compile(r"(?<!\w)\d(?:[ .-]?\d){4,}(?!\w)")
_STREET: Final = re.compile(
    r"\b\d{1,5} (?:[A-Z]\w+ ){1,3}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Drive|Boulevard|Square|Court)\b"
    r"|\b[A-ZÄÖÜ]\w+(?:stra(?:ß|ss)e|weg|platz|gasse|allee) \d{1,4}\b"
)


def secrets_in(text: str) -> list[str]:
    """What should not come out if only one conversation had it: numbers of five digits and more, e-mail and
    street addresses, each in the form of `squeezed`.
    """
    emails = [item.value for item in find_personal(text) if item.kind == "email"]
    found = [*_NUMBER.findall(text), *_STREET.findall(text), *emails]
    return list(dict.fromkeys(map(squeezed, found)))


def squeezed(text: str) -> str:
    """Letters and digits alone: a secret is one however it is spaced."""
    return re.sub(r"[\W_]", "", text.casefold())


# ---- Loops -----------------------------------------------------------------------------------------


def is_loop(text: str) -> bool:
    """Whether a run of up to eight words comes three times in a row, a single one four times."""
    words = plain(text).split()
    for size in range(1, 9):
        times = 4 if size == 1 else 3
        for start in range(len(words) - size * times + 1):
            run = words[start : start + size]
            if words[start : start + size * times] == run * times:
                return True
    return False


# ---- Near-duplicates -------------------------------------------------------------------------------

SHINGLE: Final = 5
BANDS: Final = 4
ROWS: Final = 4
_PRIME: Final = np.uint64(4294967291)  # below 2^32: products fit 64 bits
_random = np.random.default_rng(1997)
_A: Final = _random.integers(1, int(_PRIME), BANDS * ROWS, dtype=np.uint64)
_B: Final = _random.integers(0, int(_PRIME), BANDS * ROWS, dtype=np.uint64)


def bands(text: str) -> tuple[bytes, ...]:
    """`BANDS` keys of a text: two texts that share one are most likely nearly the same.

    MinHash of the character 5-grams of its words, digits all alike, in bands of four: texts with a Jaccard
    similarity of 0.9 share a band with probability 0.99, of 0.7 with 0.67, of 0.3 with 0.03.
    """
    return _bands(re.sub(r"\d", "0", plain(text)).ljust(SHINGLE).encode())


@lru_cache(maxsize=1 << 14)  # a flood is one text many times
def _bands(spelled: bytes) -> tuple[bytes, ...]:
    shingles = {zlib.crc32(spelled[i : i + SHINGLE]) for i in range(len(spelled) - SHINGLE + 1)}
    values = np.fromiter(shingles, np.uint64, len(shingles))[:, None]
    least = ((values * _A + _B) % _PRIME).min(axis=0).reshape(BANDS, ROWS)
    return tuple(bytes([number]) + row.tobytes() for number, row in enumerate(least))


# ---- Generic replies -------------------------------------------------------------------------------


def entropies(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Of each reply in ``(question, reply)``, in the form of `plain`: -sum p log p over the questions that it
    answers, in nats. "I do not know" answers everything and is far above "The museum opens at nine".
    """
    questions: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question, reply in pairs:
        questions[plain(reply)][plain(question)] += 1
    return {reply: _entropy(counts) for reply, counts in questions.items()}


def _entropy(counts: Mapping[str, int]) -> float:
    total = sum(counts.values())
    return -math.fsum(n / total * math.log(n / total) for n in counts.values())


# ---- Language --------------------------------------------------------------------------------------

_LITTLE_WORDS: Final[Mapping[Language, str]] = {
    "de": "ich und nicht der das ist es sie mit mir wir ein eine zu den auf für bitte kann wie",
    "en": "the and you is i to of it my what can please for your not that have do with this",
    "es": "que de no el la los por una con para es mi su qué como pero muy usted hola está",
    "fr": "je le la les pas vous est un une et pour que dans mon votre avec des ce il bonjour",
    "it": "che di non il la per un una sono con mi è ho come questo del grazie vorrei più gli",
    "nl": "ik het een de niet en je van dat is mijn u voor met maar wat kan naar ook heb",
}


def is_foreign(texts: Iterable[str], wanted: Language) -> bool:
    """Whether the texts are rather in another language: at least three of its little words, and more than
    twice as many as of the wanted one. Short conversations and languages not listed pass.
    """
    words = [word for text in texts for word in plain(text).split()]
    hits: dict[Language, int] = {}
    for name, text in _LITTLE_WORDS.items():
        little = frozenset(text.split())
        hits[name] = sum(word in little for word in words)
    others = max(count for name, count in hits.items() if name != wanted)
    return others >= 3 and others > 2 * hits[wanted]
