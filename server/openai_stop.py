"""Stop strings: a reply ends where one of them would begin, and none of it is ever shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Text in, text out, piece by piece; what may be the beginning of a stop string is held back.

    Of several, the one that is complete first counts, so the result does not depend on how the text is cut
    into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What may be shown by now. Once `stopped`, nothing more."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in text]
        if found:
            self.stopped, self._held = True, ""
            end, minus_length = min(found)
            return text[: end + minus_length]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        shown, self._held = text[: len(text) - held], text[len(text) - held :]
        return shown

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def cut(text: str, stops: Sequence[str]) -> str:
    """A whole text, up to a stop string."""
    stop = StopStrings(stops)
    return stop.push(text) + stop.finish()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
