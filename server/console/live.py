"""What happens now, for operators who look on: a hub that all conversations tell of their changes.

    Conversations ──observe──▶ Live.changed ──▶ Feed of each stream ──▶ server-sent events

What other servers do is found by `server.console.live_elsewhere`.

A feed keeps what its reader has not had yet, each change of each conversation once; a reader who falls far
behind loses the stream and comes back for a fresh look. While nobody looks on, a change costs one look at an
empty set. All of it belongs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from server.console.accounts import Session
from server.presence import Change, Observer

WAITING: Final = 2000
"""Changes that may wait for a reader."""
STREAMS: Final = 12
"""That one operator may have open: two a tab, and a few tabs."""


class Feed:
    """Changes in the order in which they were first told. One reader."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, Change], None] = {}
        self._arrival = asyncio.Event()
        self.closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, conversation: str, change: Change) -> None:
        if self.closed:
            return
        self._waiting[conversation, change] = None
        if len(self._waiting) > WAITING:
            self._waiting.clear()
            self.close()
        self._arrival.set()

    def close(self) -> None:
        """What waits is still given out."""
        self.closed = True
        self._arrival.set()

    async def get(self) -> tuple[str, Change] | None:
        """The next change; waits for one. None at the end."""
        while not self._waiting:
            if self.closed:
                return None
            self._arrival.clear()
            await self._arrival.wait()
        first = next(iter(self._waiting))
        del self._waiting[first]
        return first


class Closable(Protocol):
    """What a stream reads from; closed, the stream ends."""

    def close(self) -> None: ...


class TooManyStreams(Exception):
    """The operator has as many streams as they may."""


class Live:
    """Feeds of changes, and all streams that are open, so that they can be ended."""

    def __init__(self) -> None:
        self._feeds: set[Feed] = set()
        self._listeners: list[Observer] = []
        self._streams: dict[Closable, str] = {}
        self._by_operator: Counter[str] = Counter()
        self._stopping = False

    def __len__(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    @property
    def watched(self) -> bool:
        """Whether there is a feed."""
        return bool(self._feeds)

    def changed(self, conversation: str, change: Change, seq: int | None = None) -> None:
        """Something has happened, and is in the database. seq: of the newest message, where it is known."""
        for feed in self._feeds:
            feed.put(conversation, change)
        for listener in self._listeners:
            listener(conversation, change, seq)

    def listen(self, listener: Observer) -> None:
        """Have `listener` told of what every feed is given."""
        self._listeners.append(listener)

    def feed(self) -> Feed:
        """A feed of what happens from now on; give it to `forget` afterwards."""
        feed = Feed()
        self._feeds.add(feed)
        return feed

    def forget(self, feed: Feed) -> None:
        self._feeds.discard(feed)

    def admit(self, session: Session, source: Closable) -> Callable[[], None]:
        """Count a stream that reads from `source`; gives a call for its end.

        Raises TooManyStreams.
        """
        operator = session.operator.id
        if self._by_operator[operator] >= STREAMS:
            raise TooManyStreams
        self._by_operator[operator] += 1
        self._streams[source] = operator
        if self._stopping:
            source.close()
        return lambda: self._leave(source)

    def _leave(self, source: Closable) -> None:
        operator = self._streams.pop(source, None)
        if operator is not None:
            self._by_operator[operator] -= 1
            if not self._by_operator[operator]:
                del self._by_operator[operator]

    def close(self) -> None:
        """The server is stopping: streams that are open end, and so does every new one."""
        self._stopping = True
        for source in list(self._streams):
            source.close()
