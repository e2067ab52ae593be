"""Answering many conversations: transcripts in, JSON lines out, in the same order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from chatbot.batcher import Batcher, Failed, Finished, Reply, ReplyRequest
from chatbot.decoder import Bundle
from chatbot.decoding import derived_seed
from chatbot.notes import piece
from chatbot.options import DecodingOptions
from chatbot.reranking import Rerankers
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Transcript, TranscriptError, parse_transcript


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation to be answered, and the line it came from."""

    line: int
    transcript: Transcript


def read_questions(lines: Iterable[bytes], source: str) -> Iterator[Question]:
    """Conversations of JSON lines, blank lines skipped.

    Raises `TranscriptError` for a line that is none, or whose conversation does not end in a user turn.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        transcript = parse_transcript(line, source, number)
        if not transcript.turns or transcript.turns[-1].role != "user":
            raise TranscriptError(source, number, "the conversation does not end in a user turn")
        yield Question(number, transcript)


def answer(
    questions: Iterable[Question],
    bundle: Bundle,
    options: DecodingOptions,
    *,
    source: str,
    rows: int = 64,
    logprobs: bool = False,
    rerankers: Rerankers | None = None,
) -> Iterator[str]:
    """A JSON line for each question, in order; with ``logprobs``, those of each token.

    Every conversation is sampled with its own seed, made of ``options.seed`` (0 when there is none) and its
    id, so that its reply does not depend on the rest of the input. What comes before an error in
    ``questions`` is answered before the error is raised. Raises `TranscriptError` for a conversation that the
    model cannot answer.
    """
    batcher = Batcher(bundle, rows=rows, waiting=rows, rerankers=rerankers)
    pending: dict[str, Question] = {}  # in the order of the input
    done: dict[str, str | TranscriptError] = {}
    remaining = iter(questions)
    trouble: TranscriptError | None = None
    exhausted = False
    while pending or not exhausted:
        while not exhausted and len(pending) < 2 * rows and batcher.room:
            try:
                question = next(remaining)
            except StopIteration:
                exhausted = True
            except TranscriptError as error:
                trouble, exhausted = error, True
            else:
                pending[str(question.line)] = question
                batcher.submit(_request(question, options))
        for event in batcher.step():
            if isinstance(event, Failed):
                done[event.id] = TranscriptError(source, int(event.id), event.message)
            if isinstance(event, Finished):
                details = logprobs or options.top_alternatives > 0
                line = _render(pending[event.id].transcript.id, event.reply, bundle.tokenizer, details)
                done[event.id] = json.dumps(line, ensure_ascii=False)
        while pending and (first := next(iter(pending))) in done:
            del pending[first]
            answered = done.pop(first)
            if isinstance(answered, TranscriptError):
                raise answered
            yield answered
    if trouble is not None:
        raise trouble


def _request(question: Question, options: DecodingOptions) -> ReplyRequest:
    seed = derived_seed(options.seed or 0, question.transcript.id)
    turns = tuple((turn.role, turn.text) for turn in question.transcript.turns)
    return ReplyRequest(str(question.line), turns, options.model_copy(update={"seed": seed}))


def _render(conversation: str, reply: Reply, tokenizer: Tokenizer, details: bool) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": conversation,
        "text": reply.text,
        "alternatives": [
            {"text": a.text, "logprob": a.logprob, "score": a.score} for a in reply.alternatives
        ],
        "logprob": sum(reply.logprobs),
        "finish_reason": reply.finish_reason,
        "seed": reply.seed,
    }
    if details:
        line["tokens"] = [
            {"id": token, "text": piece(tokenizer, token), "logprob": logprob}
            for token, logprob in zip(reply.token_ids, reply.logprobs, strict=True)
        ]
        for token, top in zip(line["tokens"], reply.top, strict=False):
            token["top"] = [asdict(alternative) for alternative in top]
    if reply.attention is not None:
        line["attention"] = {
            "remembered": [asdict(token) for token in reply.attention.remembered],
            "weights": [[round(weight, 4) for weight in row] for row in reply.attention.weights],
        }
    return line
