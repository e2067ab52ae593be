"""What waits to be written to one chat socket.

A client that reads slowly gets fewer and larger deltas instead of a growing queue: a delta that follows one
still waiting is merged into it. Everything else counts against a bound; a socket that falls behind it is
closed, and its client finds whatever it missed in the database when it comes back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from server.protocol import Close, Delta, ServerMessage


@dataclass(frozen=True, slots=True)
class Closing:
    """The last item of a mailbox: how to close the socket."""

    code: int
    reason: str


class Mailbox:
    """Messages in order, deltas merged. One reader; all of it belongs on the event loop.

    size: messages that may wait before the socket counts as too slow. A client's own requests are not read
    while half as many wait (`room`), so that only what others cause can fill it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: deque[ServerMessage | Closing] = deque()
        self._arrival = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: ServerMessage) -> None:
        """Add a message; nothing once the mailbox is closed."""
        if self.closed:
            return
        if isinstance(message, Delta) and self._merge(message):
            return
        if len(self._waiting) >= self._size:
            self._waiting.clear()
            self.close(Close.TRY_LATER, "reading too slowly")
            return
        self._waiting.append(message)
        self._arrival.set()
        if len(self._waiting) * 2 > self._size:
            self._room.clear()

    def admit(self, backlog: Sequence[ServerMessage]) -> None:
        """Add what the client asked for and is in memory anyway: it is no falling behind."""
        self._size += len(backlog)
        for message in backlog:
            self.put(message)

    def close(self, code: int, reason: str) -> None:
        """Nothing more is taken; what waits is still delivered, then `Closing`. The first close decides."""
        if self.closed:
            return
        self.closed = True
        self._waiting.append(Closing(code, reason))
        self._arrival.set()
        self._room.set()

    async def get(self) -> ServerMessage | Closing:
        """The next item; waits for one."""
        while not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()
        item = self._waiting.popleft()
        if len(self._waiting) * 2 <= self._size:
            self._room.set()
        return item

    async def room(self) -> None:
        """Wait until the reader has caught up with at least half of the bound, or the mailbox is closed."""
        await self._room.wait()

    def _merge(self, delta: Delta) -> bool:
        """Only into the last one waiting: between two deltas of a reply may stand its successor's first."""
        last = self._waiting[-1] if self._waiting else None
        if (
            not isinstance(last, Delta)
            or last.reply != delta.reply
            or last.offset + len(last.text) != delta.offset
        ):
            return False
        self._waiting[-1] = Delta(reply=last.reply, offset=last.offset, text=last.text + delta.text)
        return True
