"""Verdicts and corrections of the bot's replies, and the team's labels.

A reply has one verdict, the last word of whoever spoke last; the audit log knows the others. Judging a reply
does not finish its conversation: that is `review_queue.done`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, Row, delete, func, insert, select, update

from server.console import audit, review_queue
from server.console.accounts import Identity
from server.console.masking import masker
from server.console.words import Mask
from server.database import reading, writing
from server.records import storable
from server.tables import Label, Message, Operator, Verdict

MAX_LABEL: Final = 64
"""Code points of a label's name."""
MAX_LABELS: Final = 200
"""Labels that a team may have, the archived ones included."""
MAX_OF_REPLY: Final = 20
"""Labels of one verdict."""

Judgement = Literal["good", "bad"]


class ReviewError(ValueError):
    """What cannot be done, and why. kind: there is no such thing, it is not for that, or it is not right."""

    def __init__(self, kind: Literal["unknown", "conflict", "invalid"], reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return self.reason


class GivenVerdict(BaseModel):
    """What a reviewer says of a reply. labels: reasons, from the team's list. corrected: what should have
    been said.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    verdict: Judgement
    labels: Annotated[list[str], Field(max_length=MAX_OF_REPLY)] = []
    corrected: str | None = None
    note: str | None = None


class VerdictView(BaseModel):
    """The last word on a reply. operator: whose."""

    verdict: Judgement
    labels: list[str]
    corrected: str | None
    note: str | None
    operator: str
    updated_at: datetime


class LabelView(BaseModel):
    """A reason that reviewers may give. uses: verdicts that have it."""

    name: str
    archived: bool
    uses: int


@dataclass(frozen=True, slots=True)
class Judged:
    """changed: False when the same had been said before by the same person."""

    verdict: VerdictView | None
    conversation: str
    changed: bool


# --- verdicts ---------------------------------------------------------------------------------------------


def judge(db: Engine, who: Identity, message: str, given: GivenVerdict, max_text: int) -> Judged:
    """Keep a verdict in place of the one before, texts as they are written. max_text: code points of a
    correction, and of a note.

    A reviewer sees texts masked, and may send one back that way, with another label, say: then the text stays
    what it was. The verdict that is answered has the texts that were given.

    Raises ReviewError and StoreUnavailable.
    """
    corrected = _text("corrected", given.corrected, max_text)
    if given.corrected is not None and corrected is None:
        raise ReviewError("invalid", "corrected: there is no word in it")
    values: dict[str, Any] = {
        "operator_id": who.id,
        "verdict": given.verdict,
        "labels": list(dict.fromkeys(given.labels)),
        "corrected": corrected,
        "note": _text("note", given.note, max_text),
    }
    answered = {key: value for key, value in values.items() if key != "operator_id"}
    with writing(db) as connection:
        conversation = _locked_reply(connection, message)
        before = connection.execute(select(Verdict).where(Verdict.message_id == message)).one_or_none()
        _check_labels(connection, values["labels"], before.labels if before is not None else ())
        review_queue.renew(connection, conversation, who.id)
        if before is not None and who.role != "admin":
            mask = masker(connection).mask
            values["corrected"] = _unmasked(values["corrected"], before.corrected, mask)
            values["note"] = _unmasked(values["note"], before.note, mask)
        if before is not None and values.items() <= dict(before._mapping).items():
            view = VerdictView(**answered, operator=who.name, updated_at=before.updated_at)
            return Judged(view, conversation, changed=False)
        now = datetime.now(UTC)
        if before is None:
            row = {"message_id": message, "created_at": now, "updated_at": now}
            connection.execute(insert(Verdict).values(values | row))
        else:
            changed = update(Verdict).where(Verdict.message_id == message)
            connection.execute(changed.values(values | {"updated_at": now}))
        audit.note(
            connection,
            who.name,
            "verdict.set",
            message,
            conversation=conversation,
            verdict=given.verdict,
            labels=values["labels"],
            corrected=corrected is not None,
        )
    view = VerdictView(**answered, operator=who.name, updated_at=now)
    return Judged(view, conversation, changed=True)


def take_back(db: Engine, who: Identity, message: str) -> Judged:
    """Remove the verdict on a reply, if it has one. Raises ReviewError and StoreUnavailable."""
    with writing(db) as connection:
        conversation = _locked_reply(connection, message)
        gone = connection.execute(
            delete(Verdict).where(Verdict.message_id == message).returning(Verdict.message_id)
        ).all()
        if gone:
            audit.note(connection, who.name, "verdict.delete", message, conversation=conversation)
    return Judged(None, conversation, changed=bool(gone))


def _locked_reply(connection: Connection, message: str) -> str:
    """The conversation of a reply by the bot, which stays until the transaction ends; so does nobody else's
    verdict on it come in between.
    """
    query = select(Message.conversation_id, Message.role, Message.operator_id).where(Message.id == message)
    found = None
    if storable(message):
        found = connection.execute(query.with_for_update(key_share=True)).one_or_none()
    if found is None or found.role != "agent":
        raise ReviewError("unknown", "there is no such reply")
    if found.operator_id is not None:
        raise ReviewError("conflict", "an operator said that; only the bot is judged")
    return str(found.conversation_id)


def _text(field: str, text: str | None, most: int) -> str | None:
    """A text as it is kept, None for one without a word."""
    if text is None or not text.strip():
        return None
    if len(text) > most:
        raise ReviewError("invalid", f"{field}: it is longer than {most} characters")
    if not storable(text):
        raise ReviewError("invalid", f"{field}: it holds NUL or half of a surrogate pair")
    return text


def _unmasked(given: str | None, before: str | None, mask: Mask) -> str | None:
    """The text before, if what is given is how it is shown to reviewers."""
    return before if given is not None and before is not None and given == mask(before) else given


def _check_labels(connection: Connection, names: Sequence[str], had: Sequence[str]) -> None:
    """Raises ReviewError unless all are labels that may be given; those that it `had` may stay."""
    new = [name for name in names if name not in had]
    asked = [name for name in new if storable(name)]
    offered = select(Label.name).where(Label.name.in_(asked), Label.archived_at.is_(None))
    known = set(connection.scalars(offered)) if asked else set()
    for name in new:
        if name not in known:
            shown = name if len(name) <= MAX_LABEL else f"{name[:MAX_LABEL]}…"
            raise ReviewError("invalid", f"labels: {shown!r} is no label that may be given")


def _view(row: Row[*tuple[Any, ...]], operator: str) -> VerdictView:
    return VerdictView(
        verdict=row.verdict,
        labels=row.labels,
        corrected=row.corrected,
        note=row.note,
        operator=operator,
        updated_at=row.updated_at,
    )


def verdicts(connection: Connection, messages: Sequence[str]) -> dict[str, VerdictView]:
    """The verdicts on messages, by their ids."""
    query = (
        select(Verdict, func.coalesce(Operator.name, "").label("operator"))
        .outerjoin(Operator, Operator.id == Verdict.operator_id)
        .where(Verdict.message_id.in_(messages))
    )
    return {row.message_id: _view(row, row.operator) for row in connection.execute(query)}


# --- labels -----------------------------------------------------------------------------------------------


def labels(db: Engine) -> list[LabelView]:
    """All labels, by name. Raises StoreUnavailable."""
    with reading(db) as connection:
        used = _uses(connection)
        rows = connection.execute(select(Label.name, Label.archived_at)).all()
    found = [
        LabelView(name=row.name, archived=row.archived_at is not None, uses=used.get(row.name, 0))
        for row in rows
    ]
    return sorted(found, key=lambda label: (label.name.casefold(), label.name))


def add_label(db: Engine, who: Identity, name: str) -> LabelView:
    """Add a label. Raises ReviewError and StoreUnavailable."""
    name = " ".join(name.split())
    if not name or len(name) > MAX_LABEL or not storable(name) or not name.isprintable():
        raise ReviewError("invalid", f"name: 1 to {MAX_LABEL} characters that can be seen")
    with writing(db) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("LOCK TABLE label IN SHARE ROW EXCLUSIVE MODE")
        known = connection.scalars(select(Label.name)).all()
        if name.casefold() in {other.casefold() for other in known}:
            raise ReviewError("conflict", f"there is a label {name!r} already")
        if len(known) >= MAX_LABELS:
            raise ReviewError("conflict", f"there are {MAX_LABELS} labels already")
        connection.execute(insert(Label).values(name=name, created_at=datetime.now(UTC)))
        audit.note(connection, who.name, "label.add", name)
    return LabelView(name=name, archived=False, uses=0)


def archive_label(db: Engine, who: Identity, name: str, archived: bool) -> LabelView:
    """Offer a label no more, or again; verdicts keep it. Raises ReviewError and StoreUnavailable."""
    with writing(db) as connection:
        query = select(Label.archived_at).where(Label.name == name)
        found = None
        if storable(name):
            found = connection.execute(query.with_for_update()).one_or_none()
        if found is None:
            raise ReviewError("unknown", "there is no such label")
        if (found.archived_at is not None) != archived:
            moment = datetime.now(UTC) if archived else None
            connection.execute(update(Label).where(Label.name == name).values(archived_at=moment))
            audit.note(connection, who.name, "label.archive" if archived else "label.restore", name)
        return LabelView(name=name, archived=archived, uses=_uses(connection).get(name, 0))


def _uses(connection: Connection) -> dict[str, int]:
    """Verdicts of each label."""
    split = func.json_each if connection.dialect.name == "sqlite" else func.json_array_elements_text
    given = split(Verdict.labels).table_valued("value", name="given")
    query = select(given.c.value, func.count()).select_from(Verdict).join(given, Verdict.labels.is_not(None))
    return {row[0]: row[1] for row in connection.execute(query.group_by(given.c.value))}
