"""Who wants to know when a session ends: the streams that were opened with it."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable


class Endings:
    """Callbacks by a session's key. `add` is for event loops, `tell` for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[object, tuple[asyncio.AbstractEventLoop, Callable[[], None]]]] = (
            defaultdict(dict)
        )

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, key: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call it once on this event loop when the session has ended. Gives a call that takes that back."""
        wish = object()
        with self._lock:
            self._waiting[key][wish] = (asyncio.get_running_loop(), callback)

        def take_back() -> None:
            with self._lock:
                wishes = self._waiting.get(key, {})
                wishes.pop(wish, None)
                if not wishes:
                    self._waiting.pop(key, None)

        return take_back

    def tell(self, keys: Iterable[str]) -> None:
        """These sessions have ended."""
        with self._lock:
            told = [wish for key in keys for wish in self._waiting.pop(key, {}).values()]
        for loop, callback in told:
            if not loop.is_closed():
                loop.call_soon_threadsafe(callback)
