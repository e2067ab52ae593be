"""How far conversations have been read: their encoder states, kept between replies.

A conversation grows by a turn or two between replies. `Readings` keeps, of those that spoke last, the
context after the turns that were read, so that the next reply costs the new turns alone::

    turn 1 … turn 499 | turn 500, turn 501        read before | read now

Nothing depends on it but time: what is not kept, or does not begin the conversation that is asked for, is
read from the first turn on, to the same values.

A long conversation is read in parts (`Reader`), between steps of the replies in flight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chatbot.flight import Flight
from chatbot.transcripts import Role

Turns = tuple[tuple[Role, str], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """A conversation as far as it has been read."""

    turns: Turns
    ids: tuple[tuple[int, ...], ...]
    """Of each turn, whole."""
    context: Any
    """Of a `chatbot.decoder.Decoder`, one row; None where nothing has been read."""
    before: Reading | None = None
    """Without the reply that was read as soon as it was made: it may be made anew."""

    @property
    def size(self) -> int:
        """Bytes, about: tensors as they are, text and ids as Python holds them."""
        words = sum(len(text) for _, text in self.turns) + 8 * sum(map(len, self.ids))
        own = _tensor_bytes(self.context) + words + 200 * len(self.turns)
        return own + (_tensor_bytes(self.before.context) if self.before else 0)

    def of(self, turns: Turns) -> Reading | None:
        """This reading or the one before it, whichever ``turns`` begin with."""
        if self.turns == turns[: len(self.turns)]:
            return self
        return self.before.of(turns) if self.before else None


NOTHING = Reading((), (), None)


class Readings:
    """The readings of the conversations that spoke last. limit: bytes that they may take, about; 0 keeps
    none.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, Reading] = OrderedDict()  # the one used last comes last
        self._sizes: dict[str, int] = {}  # adding one up takes as long as its conversation
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Bytes kept, about; never above the limit."""
        return self._size

    def find(self, conversation: str, turns: Turns) -> Reading:
        """What has been read of ``turns``; `NOTHING` where other turns were."""
        kept = self._kept.get(conversation)
        reading = kept and kept.of(turns)
        if not reading:
            return NOTHING
        self._kept.move_to_end(conversation)
        return reading

    def keep(self, conversation: str, reading: Reading) -> None:
        """Remember a reading under the conversation's name, which is not empty, and forget the oldest."""
        self.forget(conversation)
        size = reading.size
        if not conversation or size > self._limit:
            return
        self._kept[conversation], self._sizes[conversation] = reading, size
        self._size += size
        while self._size > self._limit:
            self.forget(next(iter(self._kept)))

    def forget(self, conversation: str) -> None:
        """Read it anew next time."""
        if self._kept.pop(conversation, None) is not None:
            self._size -= self._sizes.pop(conversation)


@dataclass(eq=False, slots=True)
class Reader:
    """A request whose conversation is being read; it has been promised ``rows`` rows."""

    flight: Flight
    rows: int
    ids: tuple[tuple[int, ...], ...]
    read: int
    """Turns read so far, ``context`` is what they came to."""
    context: Any

    @property
    def done(self) -> bool:
        return self.read == len(self.flight.conversation)

    def next(self, tokens: int | None) -> list[list[int]]:
        """The turns to be read next: about as many ``tokens``, one turn at least; None for all of them."""
        rest = self.flight.conversation[self.read :]
        if tokens is None:
            return rest
        count, room = 1, tokens - sum(map(len, rest[:1]))
        while count < len(rest) and len(rest[count]) <= room:
            room -= len(rest[count])
            count += 1
        return rest[:count]

    def reading(self) -> Reading:
        """All that was read."""
        return Reading(self.flight.request.turns, self.ids, self.context)


def promised(readers: Iterable[Reader]) -> int:
    """Rows that readers will take."""
    return sum(reader.rows for reader in readers)


def _tensor_bytes(context: Any) -> int:
    if isinstance(context, Tensor):
        return context.nbytes
    return sum(map(_tensor_bytes, context)) if isinstance(context, tuple) else 0
