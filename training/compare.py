"""What changes when one model takes the place of another: both answer the same questions, word for word.

Replies are greedy, without the models' own defaults, so that nothing differs but the models. A change is
weighed by the candidate itself:

    gain = log p(its own reply) / tokens - log p(the base's reply) / tokens        nats a token

A large gain is a change that the candidate is sure of, a small one a change that might as well not be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatbot.batcher import ReplyRequest
from chatbot.decoder import Bundle
from chatbot.model_directory import ModelBundle
from chatbot.transcripts import Transcript, Turn
from training.evaluate import find_references, generate, plain_greedy, reply_losses
from training.progress import Reporter


@dataclass(frozen=True, slots=True)
class Compared:
    """One question and both replies. gain: None where they are the same."""

    id: str
    base: str
    candidate: str
    gain: float | None


def compare(
    base: ModelBundle, candidate: ModelBundle, questions: Sequence[Transcript], reporter: Reporter
) -> list[Compared]:
    """Both models on ``questions``, conversations that end in a user turn, in their order.

    Raises `ReplyFailed`.
    """
    before = _answers(base, questions, "answering with the base", reporter)
    after = _answers(candidate, questions, "answering with the candidate", reporter)
    changed = [n for n, texts in enumerate(zip(before, after, strict=True)) if texts[0] != texts[1]]
    reporter.phase("weighing the changes", step=0, steps=len(changed))
    asked = [questions[n] for n in changed]
    old = _losses(candidate, asked, [before[n] for n in changed])
    new = _losses(candidate, asked, [after[n] for n in changed])
    gains = dict(zip(changed, (a - b for a, b in zip(old, new, strict=True)), strict=True))
    return [Compared(question.id, before[n], after[n], gains.get(n)) for n, question in enumerate(questions)]


def _answers(bundle: Bundle, questions: Sequence[Transcript], phase: str, reporter: Reporter) -> list[str]:
    options = plain_greedy(bundle)
    requests = (
        ReplyRequest(str(number), tuple((turn.role, turn.text) for turn in question.turns), options)
        for number, question in enumerate(questions)
    )
    texts = [""] * len(questions)
    for count, (number, reply) in enumerate(generate(bundle, requests), start=1):
        texts[number] = reply.text
        reporter.step(phase, count, len(questions))
    return texts


def _losses(bundle: ModelBundle, questions: Sequence[Transcript], replies: Sequence[str]) -> list[float]:
    """Of each reply to its question, nats a token, its end included."""
    if not questions:
        return []
    spelled = [
        Transcript(
            id=question.id,
            turns=(
                *(Turn(role=turn.role, text=turn.text, weight=0.0) for turn in question.turns),
                Turn(role="agent", text=reply),
            ),
        )
        for question, reply in zip(questions, replies, strict=True)
    ]
    references = find_references(spelled, bundle.tokenizer, bundle.config.max_turn_tokens)
    losses = reply_losses(bundle, spelled, references)
    return [loss / reference.tokens for loss, reference in zip(losses, references, strict=True)]
