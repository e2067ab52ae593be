"""Following the file that names the model in use, while the server runs.

Once a second, and at once on SIGHUP, the models' directory is asked which model is meant. Another one is
loaded and tried by a worker of its own; then new replies go to it, and those under way finish on the old one.
One that cannot be used is logged, and the old one goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from chatbot.model_directory import SUMS, ModelDirectoryError, SealedModel, describe, find_model
from server import logs
from server.engine import Engine, EngineUnhealthy
from server.speaker import Speaker, speaker_of
from server.worker import MakeBatcher

log = logging.getLogger(__name__)

POLL: Final = 1.0
"""Seconds between looks at the directory."""


class Meant(NamedTuple):
    """A model directory, and its hashes: another model under the same name is another model."""

    path: Path
    sums: bytes


class HotSwap:
    """make_batcher: for a model that has to make replies before it is used."""

    def __init__(
        self,
        engine: Engine,
        directory: Path,
        rows: int,
        make_batcher: Callable[[SealedModel], MakeBatcher],
    ) -> None:
        self._engine = engine
        self._directory = directory
        self._rows = rows
        self._make_batcher = make_batcher
        self._seen: Meant | str | None = None
        self._asked = asyncio.Event()

    def look_now(self) -> None:
        """Look at once, and try a model again that was refused."""
        self._seen = None
        self._asked.set()

    async def follow(self, began_with: Path) -> None:
        """Until cancelled. `began_with`: the model directory that the engine works with."""
        self._seen = await asyncio.to_thread(self._look)
        if isinstance(self._seen, Meant) and self._seen.path != began_with:
            self._seen = None
        while True:
            try:
                async with asyncio.timeout(POLL):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            await self.look()

    async def look(self) -> None:
        """Switch if another model is meant than the last time, and it can be used."""
        meant = await asyncio.to_thread(self._look)
        if meant == self._seen:
            return
        self._seen = meant
        if isinstance(meant, str):
            logs.event(log, logging.ERROR, "model_refused", reason=meant)
            return
        try:
            sealed = await asyncio.to_thread(describe, meant.path)
            before, after = self._engine.speaker, speaker_of(sealed, self._rows)
            if _heard(after) == _heard(before):
                self._engine.have_moved(self._make_batcher(sealed))  # where it was before may be deleted
                return
            await self._engine.switch(self._make_batcher(sealed), after)
        except (ModelDirectoryError, EngineUnhealthy) as error:
            logs.event(log, logging.ERROR, "model_refused", reason=str(error))
            return
        except Exception as error:  # noqa: BLE001 - out of memory, say: the old model goes on
            logs.event(log, logging.ERROR, "model_refused", error=logs.place(error))
            return
        logs.event(log, logging.INFO, "model_switched", model=sealed.fingerprint, before=before.fingerprint)

    def _look(self) -> Meant | str:
        """The model that is meant, or why there is no telling."""
        try:
            path = find_model(self._directory)
            return Meant(path, (path / SUMS).read_bytes())
        except ModelDirectoryError as error:
            return str(error)
        except OSError as error:
            return f"{self._directory}: {error.strerror}"


def _heard(speaker: Speaker) -> tuple[object, ...]:
    """What a reply can tell: `training calibrate` seals the same model, fingerprint and all, anew."""
    return speaker.fingerprint, speaker.defaults, speaker.calibration
