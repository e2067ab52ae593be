"""A second model beside the one in use, to see how it does before everybody gets it.

A **canary** answers a share of the conversations that begin after it: which ones is a matter of their ids, so
every server of the database says the same and a conversation keeps its model. A **shadow** answers nobody:
when a reply has been given, it is asked the same, with the same options and seed, and what it says is kept
beside the reply. It is only asked while nobody waits for a row.

Both are rows of the table `rollout`; every server looks there once a second, loads what is meant and adds it
to its engine.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple

import sqlalchemy
from sqlalchemy import Connection, insert, select

from chatbot.model_directory import ModelDirectoryError, SealedModel, describe
from chatbot.options import DecodingOptions
from chatbot.replies import Finished, Reply, ReplyRequest
from chatbot.transcripts import Role
from server import logs, models
from server.database import reading
from server.engine import Engine, EngineBusy, EngineUnhealthy
from server.offload import Offload
from server.speaker import speaker_of
from server.store import utc_now
from server.store_errors import StoreError
from server.tables import Message, Rollout, ShadowReply
from server.worker import MakeBatcher
from server.writer import Writer

log = logging.getLogger(__name__)

Kind = Literal["canary", "shadow"]

POLL: Final = 1.0
"""Seconds between looks at the table."""
SHADOWS: Final = 8
"""Replies that a shadow may have in the making; it is not asked for more."""


class Plan(NamedTuple):
    """A rollout that goes on. share: of the conversations that began after `began_at`."""

    kind: Kind
    model: str
    share: float
    began_at: datetime


@dataclass(frozen=True, slots=True)
class Overheard:
    """A reply that was given, and what a shadow needs to answer the same."""

    message: str
    conversation: str
    model: str
    history: Sequence[tuple[Role, str]]
    options: DecodingOptions


class Rollouts:
    """make_batcher: for a model that has to make replies before it is used."""

    def __init__(
        self,
        db: sqlalchemy.Engine,
        writer: Writer,
        engine: Engine,
        directory: Path,
        rows: int,
        make_batcher: Callable[[SealedModel], MakeBatcher],
    ) -> None:
        self._db = db
        self._writer = writer
        self._engine = engine
        self._directory = directory
        self._rows = rows
        self._make_batcher = make_batcher
        self._offload = Offload(1, "rollouts")
        self._plans: dict[Kind, Plan] = {}
        self._added: set[str] = set()
        self._refused: set[Plan] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except StoreError as error:
                logs.event(log, logging.WARNING, "rollouts_unknown", error=logs.place(error))
            await asyncio.sleep(POLL)

    async def look(self) -> None:
        """Load what is meant and not there yet, and drop what is not meant any more. Raises StoreError."""
        plans = {plan.kind: plan for plan in await self._offload(going_on, self._db)}
        wanted = {plan.model for plan in plans.values()} - {self._engine.speaker.fingerprint}
        for fingerprint in self._added - wanted:
            self._added.remove(fingerprint)
            self._engine.remove(fingerprint)
        for plan in plans.values():
            if plan.model in wanted and plan.model not in self._added and plan not in self._refused:
                await self._bring_in(plan)
        self._plans = plans

    async def close(self) -> None:
        """Nothing more is asked of a shadow; what it is saying is lost."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        self._offload.close()

    def model_for(self, conversation: str, began: datetime | None) -> str | None:
        """The canary's fingerprint, if it is to answer here; None where the model in use is."""
        plan = self._plans.get("canary")
        if plan is None or began is None or began < plan.began_at or plan.model not in self._added:
            return None
        return plan.model if portion(conversation) < plan.share else None

    def overhear(self, given: Overheard) -> None:
        """Ask the shadow as well, if there is one and nobody has to wait for it."""
        plan = self._plans.get("shadow")
        if plan is None or plan.model == given.model or plan.model not in self._added:
            return
        if portion(given.message) >= plan.share or len(self._asking) >= SHADOWS or self._engine.load.waiting:
            return
        task = asyncio.create_task(self._ask(plan.model, given), name="shadow")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    # --- inside -------------------------------------------------------------------------------------------

    async def _bring_in(self, plan: Plan) -> None:
        try:
            sealed = await self._offload(self._find, plan.model)
            await self._engine.add(self._make_batcher(sealed), speaker_of(sealed, self._rows))
        except (ModelDirectoryError, EngineUnhealthy) as error:
            self._refused.add(plan)
            logs.event(log, logging.ERROR, "rollout_refused", model=plan.model, reason=str(error))
            return
        except Exception as error:  # noqa: BLE001 - no directory or memory, say: what follows is followed
            self._refused.add(plan)
            logs.event(log, logging.ERROR, "rollout_refused", model=plan.model, error=logs.place(error))
            return
        self._added.add(plan.model)
        logs.event(log, logging.INFO, "rollout", kind=plan.kind, model=plan.model, share=plan.share)

    def _find(self, fingerprint: str) -> SealedModel:
        path = models.by_fingerprint(self._directory, fingerprint)
        if path is None:
            raise ModelDirectoryError(self._directory, f"it holds no model {fingerprint}")
        return describe(path)

    async def _ask(self, model: str, given: Overheard) -> None:
        try:
            permit = self._engine.reserve("shadow", model)
        except EngineBusy:
            return
        if permit.speaker.fingerprint != model:  # gone meanwhile
            permit.release()
            return
        name = f"shadow-{next(self._numbers)}"
        request = ReplyRequest(name, tuple(given.history), given.options, given.conversation)
        calibration = permit.speaker.calibration
        async with self._engine.generate(request, permit) as events:
            async for event in events:
                if isinstance(event, Finished):
                    sure = None if calibration is None else calibration.confidence(event.reply.logprobs)
                    row = _row(given.message, model, event.reply, sure)
                    await self._kept(row)

    async def _kept(self, row: dict[str, object]) -> None:
        """Nobody waits for it: what the database does not take is lost."""
        try:
            await asyncio.wrap_future(self._writer.submit(_keep, row))
        except StoreError as error:
            logs.event(log, logging.WARNING, "shadow_lost", error=logs.place(error))


def portion(name: str) -> float:
    """A number in [0, 1) that is as good as random, and the same for the same id (32 hexadecimal digits)."""
    return int(name[-8:], 16) / 2**32


def going_on(db: sqlalchemy.Engine) -> list[Plan]:
    """Raises StoreUnavailable."""
    query = select(Rollout.kind, Rollout.model, Rollout.share, Rollout.began_at).where(
        Rollout.ended_at.is_(None)
    )
    with reading(db) as connection:
        return [Plan(*row) for row in connection.execute(query)]  # type: ignore[arg-type]


def _row(message: str, model: str, reply: Reply, confidence: float | None) -> dict[str, object]:
    return {
        "message_id": message,
        "model": model,
        "text": reply.text.replace("\0", "\N{REPLACEMENT CHARACTER}"),
        "logprob": sum(reply.logprobs),
        "confidence": confidence,
        "created_at": utc_now(),
    }


def _keep(connection: Connection, rows: Sequence[dict[str, object]]) -> list[StoreError | None]:
    """Beside replies that are still there: a visitor may have been erased meanwhile."""
    asked = [row["message_id"] for row in rows]
    there = set(connection.scalars(select(Message.id).where(Message.id.in_(asked))))
    kept = [row for row in rows if row["message_id"] in there]
    if kept:
        connection.execute(insert(ShadowReply), kept)
    return [None] * len(rows)
