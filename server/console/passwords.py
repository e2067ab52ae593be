"""Passwords: which may be chosen, and how they are kept (argon2id)."""

from __future__ import annotations

import unicodedata
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from server.records import storable

MIN_PASSWORD: Final = 10
MAX_PASSWORD: Final = 256

# One lane: a hash keeps one core busy and leaves the others to the chat. 64 MiB twice is above what OWASP
# asks of one lane (46 MiB once).
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=64 * 1024, parallelism=1)

NOBODYS: Final = (
    "$argon2id$v=19$m=65536,t=2,p=1$KmkhgVRCDXx9ZBP2s/7YDg$jlBSl0QPd86YGrsTjQaAlkyl5LF3PqwEdaq3cO+l21o"
)
"""What is checked for a name that nobody has, so that it takes as long as for one that somebody has: a hash
with the same parameters, of random bytes that were thrown away.
"""


class PasswordError(ValueError):
    """A password that cannot be chosen, and why."""


def hashed(password: str, name: str) -> str:
    """What is kept of the password, with its salt and parameters. Slow on purpose. Raises PasswordError.

    name: of whom it is for.
    """
    password = _normal(password)
    if not storable(password):
        raise PasswordError("the password holds characters that cannot be stored")
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise PasswordError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    if password.casefold() == _normal(name).casefold() or len(set(password)) < 3:
        raise PasswordError("that password would be the first guess; choose another")
    return _HASHER.hash(password)


def matches(kept: str, password: str) -> bool:
    """Whether `kept` was made from this password. Slow on purpose, also for one that nobody may have."""
    candidate = _normal(password)
    possible = storable(candidate) and len(candidate) <= MAX_PASSWORD
    try:
        _HASHER.verify(kept, candidate if possible else "")
    except (VerificationError, InvalidHashError):
        return False
    return possible


def outdated(kept: str) -> bool:
    """Whether it was made with other parameters than a hash is made with now."""
    return _HASHER.check_needs_rehash(kept)


def _normal(text: str) -> str:
    """The same characters, however a keyboard composes them."""
    return unicodedata.normalize("NFC", text)
