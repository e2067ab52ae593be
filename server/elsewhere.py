"""Several servers on one database: each looks, once a second, at what the others have written.

A conversation may have sockets on one server and its operator on another. The database alone decides who
answers and in which order things were said; this brings the news to those who listen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from server import logs
from server.ledger import Refusal
from server.store import StoreError

log = logging.getLogger(__name__)

EVERY: Final = 1.0
"""Seconds between two looks."""


async def follow(
    *looks: Callable[[], Awaitable[None]], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Look, in this order, until cancelled."""
    while True:
        await sleep(EVERY)
        for look in looks:
            try:
                await look()
            except (StoreError, Refusal) as error:  # a database that is away now is asked again
                logs.event(log, logging.WARNING, "look_failed", error=logs.place(error))
