"""A small world of our own making: transcripts, and a model of them small enough to train in a test."""

from __future__ import annotations

import random
from collections.abc import Sequence

from chatbot.config import ModelConfig
from chatbot.transcripts import Transcript, Turn

SMALL = ModelConfig(
    vocab_size=330,
    embedding_size=16,
    encoder_size=8,
    state_size=12,
    hidden_size=16,
    decoder_layers=2,
    memory_tokens=24,
    turn_ages=4,
    max_turn_tokens=24,
    dropout=0.0,
)
"""Everything a real model has, in the least size; the attention window is shorter than the conversations."""

DRINKS = ("latte", "mocha", "espresso", "green tea", "hot chocolate")
SIZES = ("small", "medium", "large")
NAMES = ("Ana", "Björn", "Chidi", "Dana", "Zoë")


def order(rng: random.Random, number: int) -> Transcript:
    """Somebody orders a drink."""
    drink, size, name = rng.choice(DRINKS), rng.choice(SIZES), rng.choice(NAMES)
    turns = [
        ("user", rng.choice(["Hello!", "Hi there", "good morning"])),
        ("agent", "Hello, what can I get you?"),
        ("user", f"A {drink}, please."),
        ("agent", f"Which size would you like for the {drink}?"),
        ("user", f"{size}, thanks"),
        ("agent", f"One {size} {drink}. What is your name?"),
        ("user", name),
        ("agent", f"Thank you, {name}. Your {drink} will be ready in {rng.randint(2, 9)} minutes."),
    ]
    kept = turns[: rng.choice([2, 4, 6, 8])]
    return Transcript.model_validate(
        {"id": f"order-{number}", "turns": [{"role": role, "text": text} for role, text in kept]}
    )


def orders(count: int, seed: int = 0) -> list[Transcript]:
    """``count`` conversations, the same for the same seed."""
    rng = random.Random(seed)
    return [order(rng, number) for number in range(count)]


def transcript(*texts: str, name: str = "t", first: str = "user") -> Transcript:
    """A conversation of alternating roles."""
    roles = ("user", "agent") if first == "user" else ("agent", "user")
    turns = tuple(Turn.model_validate({"role": roles[i % 2], "text": text}) for i, text in enumerate(texts))
    return Transcript(id=name, turns=turns)


def texts(transcripts: Sequence[Transcript]) -> list[str]:
    """Every turn's text."""
    return [turn.text for t in transcripts for turn in t.turns]
