"""What would change with a candidate: logged turns that it answers otherwise than its base, and which of the
two answers people prefer when they do not know whose is whose.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar

from sqlalchemy import Connection, Engine, and_, delete, func, insert, or_, select, update

from chatbot.transcripts import Role, Transcript, Turn
from server.console import audit
from server.console.accounts import Identity
from server.database import reading, writing
from server.desk import new_id
from server.records import storable
from server.store import Store
from server.tables import Conversation, Generation, Message, Pair

QUESTIONS: Final = 500
"""Logged turns that are answered anew."""
SINCE: Final = timedelta(weeks=4)
OF_A_CONVERSATION: Final = 10
OF_A_VISITOR: Final = 20
"""Of these, so that nobody fills the list alone."""
CONVERSATIONS: Final = 5000
"""Conversations looked at, the newest."""
ALIKE: Final = 0.6
"""Share of common words from which two replies are in one group."""
GROUPS: Final = 50
BEFORE: Final = 6
"""Turns shown before the replies."""

Item = TypeVar("Item")

Order = Literal["worst", "best"]
Preferred = Literal["base", "candidate", "neither"]
Choice = Literal["first", "second", "neither"]


class JudgedAlready(Exception):
    """Somebody has judged the pair."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A logged turn, by its message's id, and what both models say to it. gain: see `server.tables.Pair`."""

    message: str
    base: str
    candidate: str
    gain: float


@dataclass(frozen=True, slots=True)
class Change:
    pair: str
    message: str
    conversation: str
    before: list[tuple[Role, str]]
    base_text: str
    candidate_text: str
    gain: float
    group: str
    preferred: Preferred | None


@dataclass(frozen=True, slots=True)
class Group:
    """Changes of replies that are much alike. example: one of the replies."""

    group: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Page:
    """wins, losses, ties: of the candidate, among what was judged. next: where the next page begins."""

    changes: list[Change]
    groups: list[Group]
    wins: int
    losses: int
    ties: int
    next: tuple[float, str] | None


@dataclass(frozen=True, slots=True)
class Blind:
    """A pair to be judged: what came before, and two replies whose models are not told."""

    pair: str
    turns: list[tuple[Role, str]]
    first: str
    second: str


# --- what is asked ----------------------------------------------------------------------------------------


def questions(db: Engine, *, now: datetime, limit: int = QUESTIONS) -> Iterator[Transcript]:
    """Conversations up to a visitor's turn that a model answered in the last weeks, the newest first, named
    by the turn's message id.
    """
    store = Store(db)
    count = 0
    of_visitor: dict[str, int] = {}
    for chunk in _chunks(_conversations(db, now - SINCE), 100):
        asked = _answered_by_models(db, [conversation for conversation, _ in chunk])
        for conversation, visitor in chunk:
            for message in asked.get(conversation, [])[:OF_A_CONVERSATION]:
                if count == limit:
                    return
                if of_visitor.get(visitor, 0) == OF_A_VISITOR:
                    break
                history = store.history(conversation, answering=message)
                turns = tuple(Turn(role=role, text=text) for role, text in history)
                of_visitor[visitor] = of_visitor.get(visitor, 0) + 1
                count += 1
                yield Transcript(id=message, turns=turns)


def _conversations(db: Engine, since: datetime) -> list[tuple[str, str]]:
    query = (
        select(Conversation.id, Conversation.visitor_id)
        .where(Conversation.updated_at >= since)
        .order_by(Conversation.updated_at.desc())
        .limit(CONVERSATIONS)
    )
    with reading(db) as connection:
        return [(row.id, row.visitor_id) for row in connection.execute(query)]


def _answered_by_models(db: Engine, conversations: Sequence[str]) -> dict[str, list[str]]:
    """Of each conversation, the ids of the user turns whose current reply a model made, the newest first."""
    query = (
        select(Message.conversation_id, Message.answers)
        .join(Generation, Generation.message_id == Message.id)
        .where(Message.conversation_id.in_(conversations), ~Message.superseded, Message.answers.is_not(None))
        .order_by(Message.seq.desc())
    )
    found: dict[str, list[str]] = {}
    with reading(db) as connection:
        for row in connection.execute(query):
            found.setdefault(row.conversation_id, []).append(row.answers)
    return found


# --- what has changed -------------------------------------------------------------------------------------


def store_pairs(connection: Connection, job: str, answered: Sequence[Answered]) -> int:
    """Keep those of `answered` whose message is still there; their number. What was kept before goes."""
    connection.execute(delete(Pair).where(Pair.job_id == job))
    groups = dict(zip([each.message for each in answered], grouped([e.base for e in answered]), strict=True))
    count = 0
    for chunk in _chunks(answered, 200):
        wanted = select(Message.id).where(Message.id.in_([each.message for each in chunk]))
        # Locked as a foreign key locks them: nobody erases them before the commit.
        there = set(connection.scalars(wanted.with_for_update(read=True, key_share=True)))
        rows = [
            {
                "id": new_id(),
                "job_id": job,
                "message_id": each.message,
                "base_text": each.base,
                "candidate_text": each.candidate,
                "group": groups[each.message],
                "gain": each.gain,
                "swapped": bool(secrets.randbelow(2)),
            }
            for each in chunk
            if each.message in there
        ]
        if rows:
            connection.execute(insert(Pair), rows)
        count += len(rows)
    return count


def grouped(texts: Sequence[str]) -> list[str]:
    """For each text the name of its group, which tells nothing of it.

    A text joins the first group with whose first text it shares most words.
    """
    leaders: list[tuple[frozenset[str], str]] = []
    names: dict[str, str] = {}
    for text in texts:
        words = _words(text)
        key = " ".join(words)
        if key in names:
            continue
        mine = frozenset(words)
        name = next((name for theirs, name in leaders if _common(mine, theirs) >= ALIKE), None)
        if name is None:
            name = hashlib.sha256(key.encode()).hexdigest()[:12]
            leaders.append((mine, name))
        names[key] = name
    return [names[" ".join(_words(text))] for text in texts]


def _words(text: str) -> list[str]:
    """In lower case, without punctuation, every number the same."""
    return re.findall(r"\w+", re.sub(r"\d+", "0", text.lower()))


def _common(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard's index; two texts without a word are alike."""
    return len(one & other) / len(one | other) if one or other else 1.0


# --- looking and judging ----------------------------------------------------------------------------------


def page(
    db: Engine, job: str, order: Order, group: str | None, after: tuple[float, str] | None, limit: int
) -> Page:
    """Changes in order of their gain, `limit` of them behind `after`; groups and counts are of all."""
    worst = order == "worst"
    query = (
        select(Pair, Message.conversation_id)
        .join(Message, Message.id == Pair.message_id)
        .where(Pair.job_id == job)
        .order_by(*((Pair.gain, Pair.id) if worst else (Pair.gain.desc(), Pair.id.desc())))
        .limit(limit + 1)
    )
    if group is not None:
        query = query.where(Pair.group == group)
    if after is not None:
        gain, identity = after
        further = Pair.gain > gain if worst else Pair.gain < gain
        same = Pair.id > identity if worst else Pair.id < identity
        query = query.where(or_(further, and_(Pair.gain == gain, same)))
    with reading(db) as connection:
        rows = connection.execute(query).all()
        judged = {preferred: count for preferred, count in connection.execute(_judged(job))}  # noqa: C416
        groups = _groups(connection, job)
        before = _turns_before(connection, [row.message_id for row in rows[:limit]])
    changes = [
        Change(
            pair=row.id,
            message=row.message_id,
            conversation=row.conversation_id,
            before=before[row.message_id],
            base_text=row.base_text,
            candidate_text=row.candidate_text,
            gain=row.gain,
            group=row.group,
            preferred=row.preferred,
        )
        for row in rows[:limit]
    ]
    following = (changes[-1].gain, changes[-1].pair) if len(rows) > limit else None
    return Page(
        changes,
        groups,
        wins=judged.get("candidate", 0),
        losses=judged.get("base", 0),
        ties=judged.get("neither", 0),
        next=following,
    )


def _judged(job: str) -> Any:
    return select(Pair.preferred, func.count()).where(Pair.job_id == job).group_by(Pair.preferred)


def _groups(connection: Connection, job: str) -> list[Group]:
    """The largest first."""
    count = func.count().label("count")
    query = (
        select(Pair.group, count, func.min(Pair.base_text).label("example"))
        .where(Pair.job_id == job)
        .group_by(Pair.group)
        .order_by(count.desc(), Pair.group)
        .limit(GROUPS)
    )
    return [Group(row.group, row[1], row.example) for row in connection.execute(query)]


def blind(db: Engine, job: str) -> Blind | None:
    """A pair that nobody has judged, any of them; None when there is none."""
    waiting = select(Pair.id).where(Pair.job_id == job, Pair.preferred.is_(None))
    with reading(db) as connection:
        ids = connection.scalars(waiting).all()
        if not ids:
            return None
        chosen = select(Pair).where(Pair.id == secrets.choice(ids))
        row = connection.execute(chosen).one()
        turns = _turns_before(connection, [row.message_id])[row.message_id]
    texts = (row.base_text, row.candidate_text)
    first, second = reversed(texts) if row.swapped else texts
    return Blind(row.id, turns, first, second)


def judge(db: Engine, pair: str, choice: Choice, who: Identity) -> bool:
    """Keep which reply an operator prefers, once. False when there is no such pair.

    Raises `JudgedAlready`, unless it was the same operator who said the same.
    """
    if not storable(pair):
        return False
    with writing(db) as connection:
        found = select(Pair.swapped, Pair.preferred, Pair.operator_id).where(Pair.id == pair)
        row = connection.execute(found.with_for_update()).one_or_none()
        if row is None:
            return False
        preferred = _meant(choice, swapped=row.swapped)
        if (row.preferred, row.operator_id) == (preferred, who.id):
            return True
        kept = (
            update(Pair)
            .where(Pair.id == pair, Pair.preferred.is_(None))
            .values(preferred=preferred, operator_id=who.id, judged_at=datetime.now(UTC))
        )
        if not connection.execute(kept).rowcount:
            raise JudgedAlready
        audit.note(connection, who.name, "pair.judge", pair)
    return True


def _meant(choice: Choice, *, swapped: bool) -> Preferred:
    if choice == "neither":
        return "neither"
    return "candidate" if (choice == "first") == swapped else "base"


def _turns_before(connection: Connection, messages: Sequence[str]) -> Mapping[str, list[tuple[Role, str]]]:
    """The last turns up to each user turn, that one last, as a model reads them."""
    found: dict[str, list[tuple[Role, str]]] = {message: [] for message in messages}
    asked = (
        select(Message.id, Message.conversation_id, Message.seq)
        .where(Message.id.in_(messages))
        .subquery("asked")
    )
    turns = (
        select(asked.c.id, Message.role, Message.text)
        .join(asked, asked.c.conversation_id == Message.conversation_id)
        .where(
            ~Message.superseded,
            or_(Message.seq < asked.c.seq, Message.id == asked.c.id),
            Message.seq > asked.c.seq - 2 * BEFORE,
        )
        .order_by(asked.c.id, Message.seq)
    )
    for row in connection.execute(turns):
        found[row.id].append((row.role, row.text))
    return {message: turns[-BEFORE:] for message, turns in found.items()}


def answered_of(lines: Iterable[Mapping[str, Any]]) -> tuple[int, list[Answered]]:
    """How many turns were answered, and those answered otherwise; from the lines of `training compare`.

    Raises KeyError, TypeError and ValueError for lines of another form.
    """
    count, found = 0, []
    for line in lines:
        count += 1
        if line["gain"] is not None:
            gain = float(line["gain"])
            if not math.isfinite(gain):
                raise ValueError("a gain is not a number")
            base, candidate = (_clean(str(line[key])) for key in ("base", "candidate"))
            found.append(Answered(str(line["id"]), base, candidate, gain))
    return count, found


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _clean(text: str) -> str:
    return text if storable(text) else text.encode(errors="replace").decode().replace("\0", "")
