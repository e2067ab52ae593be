"""How often replies in the making are told of, when there are many.

Telling a client of a token costs the event loop about as long as the model needs to choose it: with a frame
for each token of sixty replies, it would do nothing else.
Nobody reads that fast. So the more replies there are, the more of their text goes into one piece: each tells
of itself `EACH` seconds less often for every other one, while the first text of a reply and its end never
wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from chatbot.replies import Event, Piece

FEW: Final = 4
"""So many replies tell of every token."""
EACH: Final = 0.002
"""Seconds between two pieces of a reply, for every reply more. A piece costs the event loop some 0.0001."""
LONGEST: Final = 0.05
"""Seconds between two pieces at most: text that grows 20 times a second still flows."""


class Pacing:
    """One worker's events. clock: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._now = clock
        self._told: dict[str, float] = {}  # replies that have begun to speak, and when they were last told of
        self._held: dict[str, str] = {}

    def due(self, events: Iterable[Event]) -> list[Event]:
        """What is to be told now of these events and those held back; of each reply in order."""
        now = self._now()
        told: list[Event] = []
        for event in events:
            if isinstance(event, Piece):
                self._held[event.id] = self._held.get(event.id, "") + event.text
                continue
            if text := self._held.pop(event.id, ""):
                told.append(Piece(event.id, text))
            self._told.pop(event.id, None)
            told.append(event)
        pause = min(LONGEST, EACH * max(0, len(self._told) - FEW))
        for reply in [reply for reply in self._held if now - self._told.get(reply, -math.inf) >= pause]:
            self._told[reply] = now
            told.append(Piece(reply, self._held.pop(reply)))
        return told
