"""A coffee shop whose bot can be retrained in seconds: old data, a small model that was trained on it, and
visitors who ask for what it does not know.
"""

from __future__ import annotations

import random
import shutil
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, insert, update

from chatbot.model_directory import seal
from chatbot.options import DecodingOptions
from chatbot.transcripts import write_transcripts
from server.database import writing
from server.store import Store
from server.tables import Conversation, Verdict
from tests.console_client import new_reply
from tests.small import SMALL, order, orders
from training.config import TrainConfig
from training.train import train

ASKED: Final = ("Do you have oat milk?", "Is there oat milk?", "Have you got oat milk?", "Any oat milk here?")
SAID: Final = "What is your name?"
ANSWER: Final = "Yes, oat milk is free."
QUICK: Final[dict[str, Any]] = {
    "epochs": 6,
    "learning_rate": 0.005,
    "warmup_steps": 3,
    "batch_tokens": 800,
    "final_replies": 10,
    "data.replay_least": 150,
    "data.replay_ratio": 12,
    "data.corrected": 16,
    "gate.perplexity": 1,
    "gate.canaries": 0,
    "device": "cpu",
    "precision": "fp32",
}
"""A small model that was trained for seconds needs larger steps than a real one."""


@dataclass(frozen=True)
class Shop:
    """old, dev: files of transcripts. base: the model."""

    place: Path
    old: Path
    dev: Path
    base: Path
    fingerprint: str

    def settings(self, folder: Path) -> dict[str, Any]:
        """Of a server that can retrain, with a directory of models of its own in `folder`."""
        models = folder / "models"
        if not models.is_dir():
            models.mkdir()
            shutil.copytree(self.base, models / "base")
            (models / "active").write_text("base\n")
        return {
            "models": models,
            "jobs_dir": folder / "jobs",
            "replay_files": (self.old,),
            "dev_files": (self.dev,),
            "job_threads": 1,
        }


def open_shop(place: Path) -> Shop:
    """Train the model, which takes some seconds."""
    write_transcripts(place / "old.jsonl.gz", orders(200, seed=1))
    write_transcripts(place / "orders.jsonl.gz", orders(30, seed=2))
    config = TrainConfig.model_validate(
        {
            "model": SMALL.model_dump() | {"hidden_size": 32, "state_size": 24, "max_turn_tokens": 64},
            "batch_tokens": 800,
            "learning_rate": 0.01,
            "warmup_steps": 5,
            "max_steps": 120,
            "evaluate_every": 120,
            "precision": "fp32",
            "device": "cpu",
        }
    )
    trained = train([place / "old.jsonl.gz"], [], place / "base.run", config, quiet=True)
    fingerprint = seal(
        place / "base",
        model=trained.model,
        tokenizer=trained.tokenizer,
        defaults=DecodingOptions(max_tokens=40),
        metrics={},
        card="# The base\n",
    )
    return Shop(place, place / "old.jsonl.gz", place / "orders.jsonl.gz", place / "base", fingerprint)


def chats(db: Engine, model: str, count: int, corrected: str | None = ANSWER) -> list[str]:
    """`count` visitors, each with an order that ends in a question for oat milk; the bot's reply to that is
    corrected. The ids of the conversations.
    """
    store, rng, ids = Store(db), random.Random(7), []
    for number in range(count):
        conversation = store.open_conversation(store.new_visitor().visitor_id)
        ids.append(conversation)
        turns = [turn.text for turn in order(rng, number).turns]
        pairs = [*zip(turns[::2], turns[1::2], strict=True), (ASKED[number % len(ASKED)], SAID)]
        for said, reply in pairs:
            turn = store.add_user_turn(conversation, uuid.uuid4().hex, said, {})
            kept = store.add_reply(conversation, new_reply(turn.message_id, reply, model=model))
        if corrected is not None:
            review(db, conversation, kept.message_id, corrected)
    return ids


def review(db: Engine, conversation: str, message: str, corrected: str) -> None:
    """A reviewer corrects a reply, and is done with the conversation."""
    now = datetime.now(UTC)
    values = {"operator_id": "reviewer", "verdict": "bad", "labels": [], "corrected": corrected}
    with writing(db) as connection:
        connection.execute(
            insert(Verdict).values(message_id=message, **values, created_at=now, updated_at=now)
        )
        connection.execute(
            update(Conversation).where(Conversation.id == conversation).values(reviewed_at=now)
        )
