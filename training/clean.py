"""From transcripts of many sources to one training part: what is dropped, and why, is counted."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from itertools import chain, count, pairwise

from chatbot.transcripts import Transcript, Turn

MAX_CHARACTERS = 4000
"""A longer turn is a paste, not speech."""


def clean(
    transcripts: Iterable[Transcript], held_out: Iterable[Transcript], counts: Counter[str]
) -> Iterator[Transcript]:
    """The conversations worth learning from, in order; ``counts`` is filled with what became of each.

    Dropped: a conversation whose words already came, or are among ``held_out``; one in which no agent
    answers; one with an empty or overlong turn, or with characters that are not text. An id that an earlier
    conversation has, as one of another file may, is numbered: a file holds every id once.
    """
    taken: set[str] = set()
    seen = {hash_of_words(transcript) for transcript in held_out}
    reserved = len(seen)
    for transcript in transcripts:
        reason = fault_of(transcript)
        key = hash_of_words(transcript)
        if reason is None and key in seen:
            reason = "duplicate or held out" if reserved else "duplicate"
        counts[reason or "kept"] += 1
        if reason is None:
            seen.add(key)
            name = _new_id(transcript.id, taken)
            taken.add(name)
            yield transcript if name == transcript.id else transcript.model_copy(update={"id": name})


def is_dev(transcript: Transcript, share: float) -> bool:
    """Whether a conversation belongs to the dev part, by the hash of what was said: the same in every run."""
    return int.from_bytes(hash_of_words(transcript)[:8], "big") < share * 2**64


def _new_id(wanted: str, taken: Container[str]) -> str:
    numbered = (f"{wanted}-{number}" for number in count(2))
    return next(name for name in chain([wanted], numbered) if name not in taken)


def fault_of(transcript: Transcript) -> str | None:
    """Why a conversation cannot be learned from; None for a sound one."""
    turns = transcript.turns
    if not any(a.role == "user" and b.role == "agent" for a, b in pairwise(turns)):
        return "no reply"
    if any(not turn.text.strip() for turn in turns):
        return "empty turn"
    if any(len(turn.text) > MAX_CHARACTERS for turn in turns):
        return "overlong turn"
    if any(_is_not_text(turn) for turn in turns):
        return "not text"
    return None


def _is_not_text(turn: Turn) -> bool:
    """Control characters, private use, lone surrogates or U+FFFD: traces of a broken encoding or of binary
    data. Carriage returns are not: Windows ends its lines with them.
    """
    return any(
        c == "\ufffd" or (c not in "\n\r\t" and unicodedata.category(c) in ("Cc", "Co", "Cs"))
        for c in turn.text
    )


def hash_of_words(transcript: Transcript) -> bytes:
    """Hash of what was said, blind to case and spacing."""
    digest = hashlib.blake2b(digest_size=16)
    for turn in transcript.turns:
        digest.update(turn.role.encode() + b"\0" + " ".join(turn.text.casefold().split()).encode() + b"\0")
    return digest.digest()
