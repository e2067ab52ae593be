"""A month of a made-up help desk, for tests and pictures of the console's figures.

    python -m tests.console_month sqlite:///turnwise.db models

fills a database that is new with conversations, operators, a retraining and what it would change.
Ada is an admin, her password "correct horse battery".
`models` becomes a directory of three models that are nearly the same, of which the gate has refused one.
"""

from __future__ import annotations

import argparse
import math
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import torch
from sqlalchemy import Engine, insert

from chatbot import model_directory
from server import database
from server.console import audit
from server.console.accounts import Accounts
from server.console.changes import Answered, store_pairs
from server.database import writing
from server.tables import (
    CannedReply,
    Conversation,
    Feedback,
    Generation,
    ImportBatch,
    Job,
    Label,
    MaskedName,
    Message,
    Suggestion,
    Verdict,
    Visitor,
)
from tests.databases import upgrade

PASSWORD: Final = "correct horse battery"
GATE: Final = [
    ("dev, word perplexity", "24.1, at most 24.9 (was 24.4)"),
    ("dev, BLEU", "8.31, at least 7.61 (was 8.11)"),
    ("corrections, adopted", "52 of 60 (87 %), at least 50 % (was 3 %)"),
    ("good turns, worse by", "0.021 nats a token, at most 0.1"),
    ("loops", "0.4 %, at most 1.0 % (was 0.4 %)"),
    ("secrets", "0 of 40 planted ones come out, 0 of 318 numbers"),
]
"""What the gate looked at, and what it says."""
LABELS: Final = ["Wrong fact", "Did not understand", "Too long", "Not polite"]
CANNED: Final = [
    ("Greeting", "Hello {name}, this is {operator}. How can I help you?"),
    ("Refund is on its way", "Your refund of {amount} was sent today. It takes three to five working days."),
    ("Closing", "You are welcome. Have a good day!"),
]

Exchange = tuple[str, str]
SUBJECTS: Final[list[tuple[float, float, list[Exchange]]]] = [
    # How often, how well the bot does, and what is said.
    (
        5,
        0.9,
        [
            ("I would like to book a table for {n} on {day}", "Certainly. At what time?"),
            ("a table by the window at the restaurant please, {n} people", "I have booked a table for you."),
            ("does the restaurant have vegetarian food", "Yes, there are several vegetarian dishes."),
            ("can we move our dinner table to {day}", "Of course, your table is moved."),
        ],
    ),
    (
        4,
        0.8,
        [
            ("where is my parcel, it should have come on {day}", "It is with the carrier and on its way."),
            ("the tracking of my parcel has not changed since {day}", "I am sorry. Let me look it up."),
            ("please deliver the parcel to my neighbour", "I have told the carrier."),
            ("my parcel came damaged, the box was open", "I am sorry to hear that. We send a new one."),
        ],
    ),
    (
        3,
        0.45,
        [
            ("I want a refund for the order I cancelled on {day}", "The refund takes a few days."),
            ("you charged my card twice, I need the money back", "I do not know about that."),
            ("how long does a refund to my card take", "Three to five working days."),
            ("the refund is {n} euros too little", "I am not sure I understand."),
        ],
    ),
    (
        3,
        0.85,
        [
            ("what will the weather be like on {day}", "It will be sunny with a light wind."),
            ("will it rain in the mountains on {day}", "There may be some rain in the afternoon."),
            ("is it cold outside, do I need a coat", "It is four degrees. A coat is a good idea."),
        ],
    ),
    (
        3,
        0.7,
        [
            ("I need an appointment with the doctor on {day}", "Which doctor would you like to see?"),
            ("can I cancel my appointment with doctor Morgan", "Your appointment is cancelled."),
            ("is the doctor free in the morning, it is my knee", "The doctor is free at ten."),
        ],
    ),
    (
        2,
        0.6,
        [
            ("I forgot my password and cannot log in", "I can send you a link to set a new password."),
            ("the link to reset my password has expired", "Here is a new link."),
            ("my account is locked after too many logins", "I have unlocked your account."),
        ],
    ),
    (
        2,
        0.8,
        [
            (
                "book a flight to Lisbon for {n} people on {day}",
                "There is a flight at nine. Shall I book it?",
            ),
            ("how much luggage can I take on my flight", "One bag of up to twenty kilograms."),
            ("my flight was cancelled, what now", "I can offer you another flight on {day}."),
        ],
    ),
]
DAYS: Final = ["Monday", "Tuesday", "Thursday", "Friday", "Saturday"]


@dataclass
class Month:
    """What is there. talks: ids of conversations, the oldest first. said: of their first turns."""

    talks: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def new_id() -> str:
    return uuid.uuid4().hex


class Filler:
    """Writes conversations that look like real ones, the same for the same seed, as few rows at a time."""

    def __init__(self, models: Sequence[str], operator: str, now: datetime, seed: int) -> None:
        self.models, self.operator, self.now = models, operator, now
        self.random = random.Random(seed)
        self.rows: dict[type[Any], list[dict[str, Any]]] = {}
        self.month = Month()

    def add(self, table: type[Any], **values: Any) -> None:
        self.rows.setdefault(table, []).append(values)

    def write(self, db: Engine) -> None:
        with writing(db) as connection:
            for table, rows in self.rows.items():
                connection.execute(insert(table), rows)
        self.rows = {}

    def talk(self, at: datetime) -> None:
        """A conversation that begins then, about one subject, now and then with a person in it."""
        chance = self.random
        _, skill, exchanges = chance.choices(SUBJECTS, [weight for weight, _, _ in SUBJECTS])[0]
        visitor, talk = new_id(), new_id()
        self.month.talks.append(talk)
        new = (self.now - at) < timedelta(days=8)
        model = self.models[-1 if new else 0]
        sure, disliked, seq = 1.0, False, 0
        self.add(Visitor, id=visitor, token_hash=new_id(), created_at=at)
        place = len(self.rows.setdefault(Conversation, []))
        self.add(Conversation)
        for ask, answer in chance.sample(exchanges, chance.randint(1, len(exchanges))):
            words = {"n": str(chance.randint(2, 8)), "day": chance.choice(DAYS)}
            confidence = min(0.99, max(0.05, chance.gauss(skill, 0.17)))
            abstains = confidence < 0.3
            asked = self.message(talk, seq + 1, "user", ask.format(**words), at)
            text = "I am not sure. Shall I fetch a person?" if abstains else answer.format(**words)
            said = self.message(talk, seq + 2, "agent", text, at, answers=asked)
            self.generation(said, model, confidence, answer if abstains else None)
            seq, sure = seq + 2, min(sure, confidence)
            at += timedelta(seconds=chance.randint(20, 120))
            if chance.random() < 0.25:
                liked = chance.random() < skill
                disliked = disliked or not liked
                self.add(
                    Feedback, message_id=said, rating="up" if liked else "down", comment=None, updated_at=at
                )
            if chance.random() < 0.12:
                good = chance.random() < skill
                self.verdict(said, good, at)
        self.month.said.append(asked)
        person = sure < 0.35 and chance.random() < 0.8
        waiting = sure < 0.35 and not person and new
        if person:
            seq += 1
            helped = self.message(
                talk, seq, "agent", "A person here. I have seen to it.", at, by=self.operator
            )
            self.suggestion(talk, helped, model, at)
        self.rows[Conversation][place] = {
            "id": talk,
            "visitor_id": visitor,
            "last_seq": seq,
            "created_at": at,
            "updated_at": at,
            "owner_version": int(person),
            "waiting_since": at if waiting else None,
            "closed_at": at if not new else None,
            "model": model,
            "confidence": sure,
            "thumbs_down": disliked,
        }

    def message(self, talk: str, seq: int, role: str, text: str, at: datetime, **more: Any) -> str:
        message = new_id()
        self.add(
            Message,
            id=message,
            conversation_id=talk,
            seq=seq,
            role=role,
            text=text,
            created_at=at + timedelta(milliseconds=seq),
            answers=more.get("answers"),
            superseded=False,
            operator_id=more.get("by"),
        )
        return message

    def generation(self, message: str, model: str, confidence: float, withheld: str | None) -> None:
        first = self.random.lognormvariate(3.4, 0.45)
        self.add(
            Generation,
            message_id=message,
            finish_reason="stop",
            model=model,
            options={"decoding": "beam", "beam_size": 4},
            seed=1,
            token_ids=[1, 2],
            logprobs=[-0.25, -0.5],
            alternatives=[],
            queued_ms=0.4,
            first_token_ms=first,
            total_ms=first + self.random.lognormvariate(4.2, 0.4),
            confidence=confidence,
            withheld=withheld,
        )

    def verdict(self, message: str, good: bool, at: datetime) -> None:
        self.add(
            Verdict,
            message_id=message,
            operator_id=self.operator,
            verdict="good" if good else "bad",
            labels=[] if good else [self.random.choice(LABELS)],
            corrected=None,
            note=None,
            created_at=at,
            updated_at=at,
        )

    def suggestion(self, talk: str, message: str, model: str, at: datetime) -> None:
        outcome = self.random.choices(["accepted", "edited", "ignored", None], [5, 3, 3, 1])[0]
        taken = outcome in ("accepted", "edited")
        self.add(
            Suggestion,
            id=new_id(),
            conversation_id=talk,
            operator_id=self.operator,
            created_at=at,
            model=model,
            typed="A",
            offered=["A person here."],
            milliseconds=40.0,
            outcome=outcome,
            chosen="A person here." if taken else None,
            distance=4 if taken else None,
            message_id=message if taken else None,
        )


def fill(
    db: Engine,
    operator: str,
    models: Sequence[str] = ("tw-old", "tw-new"),
    *,
    talks: int = 600,
    days: int = 30,
    seed: int = 1,
) -> Month:
    """So many conversations, the newest today. operator: the id of who helped. models: the newest is last."""
    now = datetime.now(UTC)
    filler = Filler(models, operator, now, seed)
    filler.add(Label, name="Rude", created_at=now, archived_at=now)
    for name in LABELS:
        filler.add(Label, name=name, created_at=now, archived_at=None)
    for title, text in CANNED:
        filler.add(CannedReply, id=new_id(), title=title, text=text, updated_at=now)
    for name in ("Alexis Moreau", "Morgan"):
        filler.add(MaskedName, name=name, created_at=now)
    ages = []
    for _ in range(talks):
        age = days * filler.random.random() ** 1.15  # there are more of them each week
        weekend = (now - timedelta(days=age)).weekday() >= 5
        ages.append(age if not weekend or filler.random.random() < 0.45 else days * filler.random.random())
    for age in sorted(ages, reverse=True):
        filler.talk(now - timedelta(days=age, minutes=5))
    filler.write(db)
    return filler.month


def gate(passed: bool = True) -> dict[str, Any]:
    """A decision as a job's result has it."""
    reasons = [{"name": name, "passed": True, "text": text} for name, text in GATE]
    if not passed:
        reasons[1] = {"name": "dev, BLEU", "passed": False, "text": "6.02, at least 7.61 (was 8.11)"}
    return {"passed": passed, "reasons": reasons}


def progress(steps: int, of: int = 400, seed: int = 2) -> dict[str, Any]:
    """What a process has reported after so many updates."""
    chance = random.Random(seed)
    curve = [[at, 2.1 + 1.9 * math.exp(-at / 90) + chance.gauss(0, 0.06)] for at in range(1, steps + 1)]
    log = ["reading 214 reviewed conversations", "60 corrections, weight 8", "replay: 2,000 conversations"]
    log += [f"update {at} of {of}: loss {loss:.3f}" for at, loss in curve[:: max(1, steps // 8)]]
    left = {"phase": "training", "step": steps, "steps": of, "loss": curve[-1][1], "seconds_left": 95.0}
    return {**left, "curve": curve, "log": log}


def add_job(db: Engine, operator: str | None, base: str, state: str = "done", **more: Any) -> str:
    job, now = new_id(), datetime.now(UTC) - timedelta(hours=3) + timedelta(seconds=more.pop("age", 0))
    values = {
        "id": job,
        "state": state,
        "operator_id": operator,
        "base": base,
        "directory": "/nowhere",
        "settings": {"set": {"gate.adoption": 0.5}, "use_imports": True},
        "progress": progress(400),
        "created_at": now,
        "started_at": now + timedelta(seconds=2),
        "ended_at": None if state in ("queued", "running") else now + timedelta(minutes=14),
    }
    with writing(db) as connection:
        connection.execute(insert(Job).values(**{**values, **more}))
    return job


def done(changed: int, model: str, passed: bool = True) -> dict[str, Any]:
    """The result of a retraining."""
    return {**gate(passed), "figures": {}, "model": model, "compared": {"questions": 500, "changed": changed}}


def add_pairs(db: Engine, job: str, said: Sequence[str]) -> int:
    """Changes of so many turns."""
    olds = ["I do not know about that.", "I am not sure I understand.", "The refund takes a few days."]
    news = ["I am sorry. I have sent the money back to your card.", "Which order is it about?", "Hm."]
    answered = [
        Answered(message, olds[at % 3], f"{news[at % 3]}", round(1.4 - 0.23 * at, 3))
        for at, message in enumerate(said)
    ]
    with writing(db) as connection:
        return store_pairs(connection, job, answered)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database_url")
    parser.add_argument("models", type=Path, help="a directory to be made")
    told = parser.parse_args()
    told.models.mkdir()
    shipped = model_directory.load(model_directory.find_model(model_directory.SHIPPED))
    fingerprints: list[str] = []
    names = ["2026-05-02", "2026-06-11", "2026-06-12"]
    for name, passed in zip(names, (None, True, False), strict=True):
        with torch.no_grad():
            next(shipped.model.parameters()).mul_(1.0 + 1e-6)  # another fingerprint, the same replies
        judged: dict[str, Any] = {} if passed is None else {"gate": _as_trained(gate(passed))}
        fingerprints.append(
            model_directory.seal(
                told.models / name,
                model=shipped.model,
                tokenizer=shipped.tokenizer,
                defaults=shipped.defaults,
                metrics={**judged, "base": shipped.fingerprint},
                card=f"# {name}\n",
            )
        )
    (told.models / "active").write_text(f"{names[0]}\n", encoding="utf-8")
    upgrade(told.database_url)
    db = database.connect(told.database_url)
    ada = Accounts(db).add("Ada", "admin", PASSWORD)
    Accounts(db).add("Ben", "reviewer", PASSWORD)
    month = fill(db, ada.id, ("tw-4be1c0935a7d21f6", fingerprints[0]))
    base = fingerprints[0]
    job = add_job(db, ada.id, base, candidate=fingerprints[1], result=done(9, names[1]))
    add_pairs(db, job, month.said[-9:])
    add_job(db, ada.id, base, age=-90_000, result=done(31, names[2], passed=False))
    add_job(db, None, base, "failed", age=-500_000, result={"error": "the disk is full"})
    with writing(db) as connection:
        uploaded: dict[str, Any] = {
            "name": "branch-office.jsonl.gz",
            "sha256": new_id(),
            "operator_id": ada.id,
        }
        uploaded |= {"id": new_id(), "created_at": datetime.now(UTC), "conversations": 412}
        connection.execute(insert(ImportBatch).values(uploaded))
        audit.note(connection, "Ada", "label.add", "Too long")
        audit.note(connection, "Ada", "job.queue", job, settings={"gate.adoption": 0.5})
        audit.note(connection, "Ben", "conversations.export", None, format="csv", masked=True, filters=[])
        audit.note(connection, "Ada", "operator.add", "Ben", role="reviewer")
    db.dispose()


def _as_trained(decision: dict[str, Any]) -> dict[str, Any]:
    """As `training.gate` writes it."""
    reasons = [
        {"check": each["name"], "passed": each["passed"], "text": each["text"]}
        for each in decision["reasons"]
    ]
    return {"passed": decision["passed"], "reasons": reasons}


if __name__ == "__main__":
    main()
