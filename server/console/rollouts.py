"""Beginning and ending canaries and shadows, and how they do beside the model in use."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Engine, Select, case, func, insert, select, update

from server.console import audit
from server.console.accounts import Identity
from server.database import reading, writing
from server.rollouts import Kind, Plan, going_on
from server.tables import Conversation, Feedback, Generation, Message, Rollout, ShadowReply

CHANGED: Final = 20
"""Replies that differ which are shown, the newest first."""


class RolloutRefused(Exception):
    """A rollout that cannot begin; the words say why."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of replies by one model since a rollout began. confidence: their mean; None where none is known.

    different: of a shadow's, how many are other than what was said.
    """

    conversations: int = 0
    replies: int = 0
    thumbs_up: int = 0
    thumbs_down: int = 0
    abstained: int = 0
    different: int = 0
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Different:
    """A reply, and what the shadow would have said in its place."""

    conversation: str
    message: str
    live: str
    candidate: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """live: of the other models' replies since the rollout began; for a shadow, of those that it answered
    too.
    """

    live: Figures
    candidate: Figures
    changed: list[Different]


def plans(db: Engine) -> dict[Kind, Plan]:
    """What goes on. Raises StoreUnavailable, as all of these."""
    return {plan.kind: plan for plan in going_on(db)}


def begin(db: Engine, who: Identity, kind: Kind, model: str, share: float) -> Plan:
    """Raises `RolloutRefused` while another one of its kind goes on."""
    now = datetime.now(UTC)
    with writing(db) as connection:
        going = select(Rollout.id).where(Rollout.kind == kind, Rollout.ended_at.is_(None))
        if connection.scalar(going) is not None:
            raise RolloutRefused(f"another {kind} goes on: end it first")
        connection.execute(
            insert(Rollout).values(
                id=uuid.uuid4().hex,
                kind=kind,
                model=model,
                share=share,
                operator_id=who.id,
                began_at=now,
                ended_at=None,
            )
        )
        audit.note(connection, who.name, f"{kind}.begin", model, share=share)
    return Plan(kind, model, share, now)


def end(db: Engine, who: Identity, kind: Kind) -> bool:
    """False when there is none."""
    with writing(db) as connection:
        going = select(Rollout.model).where(Rollout.kind == kind, Rollout.ended_at.is_(None))
        model = connection.scalar(going)
        if model is None:
            return False
        ended = update(Rollout).where(Rollout.kind == kind, Rollout.ended_at.is_(None))
        connection.execute(ended.values(ended_at=datetime.now(UTC)))
        audit.note(connection, who.name, f"{kind}.end", model)
    return True


def compare(db: Engine, kind: Kind) -> Comparison | None:
    """None when there is no such rollout. Texts are not masked."""
    plan = plans(db).get(kind)
    if plan is None:
        return None
    if kind == "shadow":
        return _shadow(db, plan)
    made = Message.created_at >= plan.began_at
    began = Conversation.created_at >= plan.began_at
    with reading(db) as connection:
        candidate = connection.execute(_replies(made, began, Generation.model == plan.model)).one()
        live = connection.execute(_replies(made, began, Generation.model != plan.model)).one()
    return Comparison(Figures(**live._mapping), Figures(**candidate._mapping), [])


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _replies(*conditions: ColumnElement[bool]) -> Select[Any]:
    """`Figures` of the replies for which all of it holds."""
    return (
        select(
            func.count(func.distinct(Message.conversation_id)).label("conversations"),
            func.count().label("replies"),
            _count(Feedback.rating == "up").label("thumbs_up"),
            _count(Feedback.rating == "down").label("thumbs_down"),
            _count(Generation.finish_reason == "abstained").label("abstained"),
            func.avg(Generation.confidence).label("confidence"),
        )
        .select_from(Message)
        .join(Generation, Generation.message_id == Message.id)
        .join(Conversation, Conversation.id == Message.conversation_id)
        .outerjoin(Feedback, Feedback.message_id == Message.id)
        .where(*conditions)
    )


def _shadow(db: Engine, plan: Plan) -> Comparison:
    asked = (ShadowReply.model == plan.model, ShadowReply.created_at >= plan.began_at)
    said = func.coalesce(Generation.withheld, Message.text)
    both = (
        select(ShadowReply.message_id)
        .join(Message, Message.id == ShadowReply.message_id)
        .join(Generation, Generation.message_id == Message.id)
        .where(*asked)
    )
    with reading(db) as connection:
        shadow = connection.execute(
            both.with_only_columns(
                func.count(func.distinct(Message.conversation_id)).label("conversations"),
                func.count().label("replies"),
                _count(ShadowReply.text != said).label("different"),
                func.avg(ShadowReply.confidence).label("confidence"),
            )
        ).one()
        live = connection.execute(_replies(Message.id.in_(both))).one()
        changed = connection.execute(
            both.with_only_columns(Message.conversation_id, Message.id, said.label("live"), ShadowReply.text)
            .where(ShadowReply.text != said)
            .order_by(ShadowReply.created_at.desc())
            .limit(CHANGED)
        ).all()
    return Comparison(
        Figures(**live._mapping),
        Figures(**shadow._mapping),
        [Different(*row) for row in changed],
    )
