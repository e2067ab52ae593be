"""The encoder's state before a reply, by which turns are compared.

Shapes: B conversations, C the summary that a reply starts from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import torch

from chatbot.model_directory import ModelBundle
from chatbot.tokenizer import clip_turn
from chatbot.transcripts import Role

WINDOW: Final = 12
"""Turns that are read for a state, the one that is answered included: what is long ago changes it little."""

Turns = Sequence[tuple[Role, str]]


def answers(said: Turns) -> Iterator[int]:
    """Places of agents' turns that come right after a user's."""
    for place in range(1, len(said)):
        if said[place][0] == "agent" and said[place - 1][0] == "user" and said[place][1].strip():
            yield place


def parts_before(said: Turns, places: Sequence[int]) -> list[Turns]:
    """What is read before each of the turns at `places`, besides what was read before the one before it."""
    return [said[max(start, end - WINDOW) : end] for start, end in pairwise([0, *places])]


def state_of(bundle: ModelBundle, conversations: Sequence[Turns]) -> np.ndarray:
    """The encoder's summary of the last turns of each conversation, of length 1: float32 (B, C)."""
    return states_after(bundle, [[turns[-WINDOW:]] for turns in conversations])[0]


def states_after(bundle: ModelBundle, conversations: Sequence[Sequence[Turns]]) -> list[np.ndarray]:
    """The same after the first part of each conversation, after the second, and so on: each (B, C). A
    conversation of fewer parts keeps the state it has.
    """
    model, limit = bundle.model, bundle.config.max_turn_tokens
    count = max(map(len, conversations), default=0)
    if model.encoder is None:
        return [np.zeros((len(conversations), 0), dtype=np.float32)] * count
    found: list[np.ndarray] = []
    context = model.empty_context(len(conversations))
    with torch.inference_mode():
        for number in range(count):
            ids = [
                [
                    clip_turn(bundle.tokenizer.encode_turn(role, text), limit)
                    for role, text in (parts[number] if number < len(parts) else ())
                ]
                for parts in conversations
            ]
            context = model.encode_conversations(ids, context)
            states = model.encoder.summary(context.state).float()
            found.append(torch.nn.functional.normalize(states, dim=1).numpy())
    return found
