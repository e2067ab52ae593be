"""How often somebody may try a password, and how many are looked at together.

A wrong password costs the account and the address one try each; both get them back slowly. A right one costs
nothing. Somebody who knows a name could use up its tries and so keep its owner out: an address from which the
account was signed in to lately has tries of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from server.limits import Rates

Result = TypeVar("Result")

TRIES_PER_ACCOUNT: Final = 5
ACCOUNT_SECONDS: Final = 60.0
"""Until an account has another try: 1440 guesses a day, beside the first ones."""
TRIES_PER_ADDRESS: Final = 15
ADDRESS_SECONDS: Final = 20.0
WAITING: Final = 8
"""Passwords that may wait to be looked at, one at a time; each takes about a fifth of a second and 64 MiB."""
RESERVED: Final = 8
"""Further places, for operators from where they were before: strangers in any number leave them these."""
WAIT_SECONDS: Final = 2.0
"""After which somebody for whom there was no room may try again."""
FAMILIAR: Final = 4096
"""Pairs of an account and an address that are remembered."""


class Busy(Exception):
    """Too much at once. seconds: after which it is worth another try."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Throttle:
    """Tries by account and by address, for names that exist and names that do not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts = Rates(1 / ACCOUNT_SECONDS, TRIES_PER_ACCOUNT, clock)
        self._addresses = Rates(1 / ADDRESS_SECONDS, TRIES_PER_ADDRESS, clock)
        self._familiar: OrderedDict[str, None] = OrderedDict()

    def begin(self, name: str, address: str) -> None:
        """Use up a try, before the password is looked at: guesses made at the same time count as well.

        Raises Busy, and then nothing was used up of the other's.
        """
        if wait := self._addresses.ask(address):
            raise Busy(wait)
        if wait := self._accounts.ask(self._key(name, address)):
            self._addresses.give_back(address)
            raise Busy(wait)

    def give_back(self, name: str, address: str) -> None:
        """The try was none: nobody looked at the password."""
        self._addresses.give_back(address)
        self._accounts.give_back(self._key(name, address))

    def right(self, name: str, address: str) -> None:
        """The password was right."""
        self.give_back(name, address)
        pair = _digest(name, address)
        self._familiar[pair] = None
        self._familiar.move_to_end(pair)
        if len(self._familiar) > FAMILIAR:
            self._familiar.popitem(last=False)

    def familiar(self, name: str, address: str) -> bool:
        """Whether the account was signed in to from there lately."""
        return _digest(name, address) in self._familiar

    def _key(self, name: str, address: str) -> str:
        pair = _digest(name, address)
        return pair if pair in self._familiar else _digest(name)


def _digest(*parts: str) -> str:
    """Of a name of any length; also what somebody typed into the wrong box is not kept."""
    return hashlib.sha256("\0".join(parts).casefold().encode("utf-8", "surrogatepass")).hexdigest()


class OneByOne:
    """Hashes one password at a time: the other cores, and the other threads, are for everybody else."""

    def __init__(self, waiting: int = WAITING, reserved: int = RESERVED) -> None:
        self._lock = asyncio.Lock()
        self._waiting = waiting
        self._reserved = reserved
        self._calls: set[asyncio.Task[Any]] = set()

    async def __call__(self, call: Callable[[], Awaitable[Result]], *, stranger: bool) -> Result:
        """What the call gives, once it is its turn. Raises Busy at once when too many wait already.

        A caller who is cancelled stops waiting; the turn is taken until the call itself has ended.
        """
        if len(self._calls) > self._waiting + (0 if stranger else self._reserved):
            raise Busy(WAIT_SECONDS)
        task = asyncio.create_task(self._run(call), name="password")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await asyncio.shield(task)

    async def _run(self, call: Callable[[], Awaitable[Result]]) -> Result:
        async with self._lock:
            return await call()


class Door:
    """What stands before every password that is checked or made."""

    def __init__(self) -> None:
        self.tries = Throttle()
        self.hashing = OneByOne()
