"""What models read, kept in memory for the conversations that spoke last.

A conversation's messages are numbered without gaps, and whatever changes what a model reads of it is a new
message: so a history that is known up to number n and is then told of number n + 1 is known up to there,
whoever else writes to the database. Any other number means that something was written elsewhere, and the
history is forgotten, to be read again.

    known up to 7     told of 8  ──▶  known up to 8
                      told of 9  ──▶  forgotten: another server has written 8

Belongs on the event loop.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from chatbot.transcripts import Role
from server.store import NewReply, StoredTurn

HISTORY_BYTES: Final = 16 << 20
"""That the histories of a server may take: some tens of thousands of turns."""

Turns = tuple[tuple[Role, str], ...]


@dataclass(slots=True)
class _Known:
    """A history up to message `seq`. last: id of its last user turn. size: bytes, about."""

    seq: int
    turns: Turns
    last: str
    size: int


class Histories:
    """limit: bytes that they may take, about; those used longest ago are forgotten first, 0 keeps none."""

    def __init__(self, limit: int = HISTORY_BYTES) -> None:
        self._limit = limit
        self._known: OrderedDict[str, _Known] = OrderedDict()  # the one used last comes last
        self._size = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def size(self) -> int:
        """Bytes kept, about; never above the limit."""
        return self._size

    def say(self, conversation: str, turn: StoredTurn, text: str) -> Turns | None:
        """A user turn is new in the database: all that the model reads to answer it, if that is known."""
        if turn.seq == 1:
            self.learn(conversation, turn, (("user", text),))
            return (("user", text),)
        known = self._follows(conversation, turn)
        if known is None:
            return None
        return self._append(conversation, known, turn.seq, ("user", text), last=turn.message_id)

    def answer(self, conversation: str, turn: StoredTurn, reply: NewReply) -> None:
        """A reply is in the database."""
        known = self._follows(conversation, turn)
        if known is None:
            return
        if turn.replaces is not None or reply.answers != known.last or known.turns[-1][0] == "agent":
            self.forget(conversation)  # it takes another's place, or belongs somewhere in the middle
        elif reply.text.strip():
            self._append(conversation, known, turn.seq, ("agent", reply.text), last=known.last)
        else:
            known.seq = turn.seq  # without a word in it, it is not read

    def intervene(self, conversation: str, turn: StoredTurn, text: str) -> None:
        """What an operator said is in the database. It stands where it was said."""
        known = self._follows(conversation, turn)
        if known is None:
            return
        if text.strip():
            self._append(conversation, known, turn.seq, ("agent", text), last=known.last)
        else:
            known.seq = turn.seq

    def learn(self, conversation: str, turn: StoredTurn, turns: Turns) -> None:
        """What the model reads to answer a user turn, read from the database after that was new there."""
        self.forget(conversation)
        size = sum(map(_size, turns))
        if size <= self._limit:
            self._known[conversation] = _Known(turn.seq, turns, turn.message_id, size)
            self._size += size
            self._make_room()

    def forget(self, conversation: str) -> None:
        if (known := self._known.pop(conversation, None)) is not None:
            self._size -= known.size

    # --- inside -------------------------------------------------------------------------------------------

    def _follows(self, conversation: str, turn: StoredTurn) -> _Known | None:
        """What is known up to the message before `turn`; None, and forgotten, if it is up to another."""
        known = self._known.get(conversation)
        if known is not None and known.seq != turn.seq - 1:
            self.forget(conversation)
            return None
        return known

    def _append(
        self, conversation: str, known: _Known, seq: int, turn: tuple[Role, str], *, last: str
    ) -> Turns:
        known.seq, known.turns, known.last = seq, (*known.turns, turn), last
        known.size += _size(turn)
        self._size += _size(turn)
        self._known.move_to_end(conversation)
        self._make_room()
        return known.turns

    def _make_room(self) -> None:
        while self._size > self._limit:
            _, oldest = self._known.popitem(last=False)
            self._size -= oldest.size


def _size(turn: tuple[Role, str]) -> int:
    # The pair, its place in the history, and its text; a role's name is there once.
    return sys.getsizeof(turn) + 8 + sys.getsizeof(turn[1])
