"""How well a model predicts and answers: perplexities, and BLEU, chrF and variety of its own replies.

Measured are all agent turns that directly follow a user turn and whose weight is above 0, each given the
whole conversation before it. References are read as the model reads text (the tokenizer's normal form):
that text is what the losses are of, so its words are counted, and it is what BLEU and chrF compare with.

A turn longer than the model reads (``max_turn_tokens``) is cut where it is context, as in serving. As a
reference it is scored to its last token (or to `LONGEST_REFERENCE`, and then only the words before that
count): nothing that is hard to predict is left out of a perplexity. ``truncated`` counts such references.

    perplexity_token = exp(nll / tokens)        perplexity_word = exp(nll / words)
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from tqdm import tqdm

from chatbot.batcher import Batcher, BatcherFull, Failed, Finished, Reply, ReplyRequest
from chatbot.decoder import Bundle
from chatbot.decoding import derived_seed
from chatbot.options import DecodingOptions
from chatbot.reranking import Rerankers
from chatbot.tokenizer import Tokenizer, clip_turn
from chatbot.transcripts import Role, Transcript
from training.batches import collate, in_order
from training.corpus import Corpus
from training.words import count_words, split_words

BATCH_TOKENS: Final = 8000
"""Tokens of all turns in a batch of the loss; bounds memory, changes no figure."""
SPAN_TOKENS: Final = 2000
"""Replies of one conversation are scored in passes of about so many tokens, which bounds the attention."""
LONGEST_REFERENCE: Final = 4096
"""Tokens of a reference that are scored, its role and its end among them; it bounds the attention too."""
SUBSET_SEED: Final = 1
"""Of the choice of references to answer where not all are answered."""


class Evaluation(BaseModel):
    """The figures of one model on one set of transcripts; those of generated replies are None without any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replies: int
    """Agent turns that follow a user turn: what the perplexities are of."""
    tokens: int
    """Of those turns, the end of each among them."""
    words: int
    """Of those turns, as `training.words` counts them."""
    nll: float
    """Negative log-likelihood of all their tokens, in nats, without label smoothing."""
    perplexity_token: float
    perplexity_word: float
    truncated: int
    """References longer than the model reads as context."""
    generated: int
    """References that the model also answered in its own words: what the figures below are of."""
    bleu: float | None
    """Corpus BLEU of sacrebleu (13a tokens, exponential smoothing), 0 to 100."""
    chrf: float | None
    """Corpus chrF2 of sacrebleu, 0 to 100."""
    distinct_1: float | None
    """Different words among all words of the replies (Li et al. 2016)."""
    distinct_2: float | None
    """Different pairs of neighboring words among all pairs."""
    most_frequent_reply_share: float | None
    """Of the text that the model gives most often."""
    mean_reply_tokens: float | None
    """The end not counted."""


class NothingToEvaluate(ValueError):
    """No agent turn follows a user turn."""


class ReplyFailed(RuntimeError):
    """The decoder gave up on a reply; figures without it would flatter the model."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An agent turn to predict: where it stands, its text in the tokenizer's normal form, and its size."""

    transcript: int  # index into the transcripts
    turn: int
    name: str  # the same in any order of the transcripts
    text: str
    words: int
    tokens: int  # with its end
    truncated: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of one reference: its loss in nats and, where the model answered it, that reply."""

    reference: Reference
    nll: float
    reply: Reply | None = None


def evaluate(
    bundle: Bundle,
    transcripts: Sequence[Transcript],
    *,
    options: DecodingOptions | None = None,
    max_replies: int | None = None,
    rerankers: Rerankers | None = None,
    progress: bool = False,
) -> Evaluation:
    """All figures of ``bundle`` on ``transcripts``, in whatever order. Arguments as those of `measure`."""
    return summarize(
        measure(
            bundle,
            transcripts,
            options=options,
            max_replies=max_replies,
            rerankers=rerankers,
            progress=progress,
        )
    )


def measure(
    bundle: Bundle,
    transcripts: Sequence[Transcript],
    *,
    options: DecodingOptions | None = None,
    max_replies: int | None = None,
    rerankers: Rerankers | None = None,
    progress: bool = False,
) -> list[Measured]:
    """Loss, and reply where wanted, of every reference, in the order of the transcripts.

    ``options`` decode the replies (greedy unless given) to at most ``max_replies`` references, chosen by
    their names alone, 0 for none. Every sampled reply has a seed of its own, derived from that of the
    options (0 unless given). ``rerankers`` are the models that `mmi_lambda` and
    `mmi_reverse` need. Raises `NothingToEvaluate` and `ReplyFailed`.
    """
    tokenizer = bundle.tokenizer
    references = find_references(transcripts, tokenizer, bundle.config.max_turn_tokens)
    if not references:
        raise NothingToEvaluate("no agent turn with a weight above 0 follows a user turn")
    losses = reply_losses(bundle, transcripts, references, progress=progress)
    replies: dict[int, Reply] = {}
    chosen = choose(references, max_replies)
    if chosen:
        options = plain_greedy(bundle) if options is None else options
        requests = (_request(index, references[index], transcripts, options) for index in chosen)
        replies = dict(generate(bundle, requests, rerankers=rerankers, total=len(chosen), progress=progress))
    return [Measured(ref, losses[i], replies.get(i)) for i, ref in enumerate(references)]


def plain_greedy(bundle: Bundle) -> DecodingOptions:
    """Greedy, without the model's own defaults, so that models compare; as long as turns it reads."""
    longest = min(bundle.config.max_turn_tokens - 1, DecodingOptions.highest("max_tokens"))
    return DecodingOptions(decoding="greedy", max_tokens=longest)


def find_references(
    transcripts: Sequence[Transcript], tokenizer: Tokenizer, max_turn_tokens: int
) -> list[Reference]:
    """Every agent turn that directly follows a user turn and has a weight above 0."""
    found = []
    for index, transcript in enumerate(transcripts):
        for place, (before, turn) in enumerate(pairwise(transcript.turns), start=1):
            if before.role != "user" or turn.role != "agent" or turn.weight <= 0:
                continue
            ids = tokenizer.encode(turn.text)[: LONGEST_REFERENCE - 2]
            text = tokenizer.decode(ids)
            found.append(
                Reference(
                    transcript=index,
                    turn=place,
                    name=f"{transcript.id}#{place}",
                    text=text,
                    words=count_words(text),
                    tokens=len(ids) + 1,
                    truncated=len(ids) + 2 > max_turn_tokens,
                )
            )
    return found


# ---- Losses ----------------------------------------------------------------------------------------


def reply_losses(
    bundle: Bundle,
    transcripts: Sequence[Transcript],
    references: Sequence[Reference],
    *,
    progress: bool = False,
) -> list[float]:
    """Negative log-likelihood of every reference in nats, its end included, in their order."""
    views = list(_views(transcripts, references, bundle.tokenizer, bundle.config.max_turn_tokens))
    corpus = _corpus(views)
    device = bundle.model.bias.device
    losses = [math.nan] * len(references)
    with torch.inference_mode(), tqdm(total=len(views), unit=" passes", disable=not progress) as bar:
        for chosen in in_order(corpus, budget=BATCH_TOKENS):
            batch = collate(corpus, chosen).to(device)
            scored = [index for view in chosen for index in views[view].scored]
            sums = torch.zeros(len(scored), dtype=torch.float64, device=device)
            sums.index_add_(0, batch.replies.row, bundle.model.token_losses(batch).double())
            for index, loss in zip(scored, sums.tolist(), strict=True):
                losses[index] = loss
            bar.update(len(chosen))
    return losses


@dataclass(frozen=True, slots=True)
class _View:
    """A conversation up to some turn, in which a few replies are scored; by place there, and by index."""

    turns: Sequence[Sequence[int]]
    places: Sequence[int]
    scored: Sequence[int]


def _views(
    transcripts: Sequence[Transcript], references: Sequence[Reference], tokenizer: Tokenizer, limit: int
) -> Iterator[_View]:
    """Conversations in pieces: each reply is in one of them with all before it.

    A reference above ``limit`` is the last turn of a view of its own: whole there, and nobody's context.
    """
    wanted: dict[int, dict[int, int]] = {}
    for index, reference in enumerate(references):
        wanted.setdefault(reference.transcript, {})[reference.turn] = index
    for number, places in wanted.items():
        said: list[tuple[Role, str]] = [(turn.role, turn.text) for turn in transcripts[number].turns]
        whole = tokenizer.encode_turns(said)
        turns = [clip_turn(ids, limit) for ids in whole]
        waiting: dict[int, int] = {}
        size = 0
        for place in range(max(places) + 1):
            size += len(turns[place])
            if place in places and references[places[place]].truncated:
                last = clip_turn(whole[place], LONGEST_REFERENCE)
                yield _View([*turns[:place], last], [place], [places[place]])
            elif place in places:
                waiting[place] = places[place]
            if waiting and (size > SPAN_TOKENS or place == max(places)):
                yield _View(turns[: place + 1], list(waiting), list(waiting.values()))
                waiting, size = {}, 0


def _corpus(views: Sequence[_View]) -> Corpus:
    """The views as a corpus in which only what they score counts as a reply."""
    turns = [turn for view in views for turn in view.turns]
    counts = [len(view.turns) for view in views]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    is_reply = np.zeros(len(turns), np.bool_)
    for start, view in zip(starts[:-1], views, strict=True):
        is_reply[start + np.asarray(view.places)] = True
    return Corpus(
        tokens=np.fromiter((token for turn in turns for token in turn), np.uint32),
        turn_start=np.concatenate([[0], np.cumsum([len(turn) for turn in turns], dtype=np.int64)]),
        turn_is_reply=is_reply,
        turn_weight=np.ones(len(turns), np.float32),
        dialogue_start=starts,
    )


# ---- Replies ---------------------------------------------------------------------------------------


def choose(references: Sequence[Reference], at_most: int | None) -> list[int]:
    """Indices of the references to answer: all, or ``at_most`` by the hash of their names."""
    everything = range(len(references))
    if at_most is None or at_most >= len(references):
        return list(everything)

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{SUBSET_SEED}:{references[index].name}".encode()).digest()

    return sorted(sorted(everything, key=key)[:at_most])


def generate(
    bundle: Bundle,
    requests: Iterable[ReplyRequest],
    *,
    rerankers: Rerankers | None = None,
    total: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[int, Reply]]:
    """``(number, reply)`` as they finish; a request's id is its number. Raises `ReplyFailed`."""
    batcher = Batcher(bundle, rerankers=rerankers)
    queue = iter(requests)
    held: ReplyRequest | None = None
    with tqdm(total=total, unit=" replies", disable=not progress) as bar:
        while True:
            while (request := held or next(queue, None)) is not None:
                try:
                    batcher.submit(request)
                except BatcherFull:
                    held = request
                    break
                held = None
            if batcher.idle:
                return
            for event in batcher.step():
                if isinstance(event, Failed):
                    raise ReplyFailed(f"reply {event.id}: {event.message}")
                if isinstance(event, Finished):
                    bar.update()
                    yield int(event.id), event.reply


def _request(
    index: int, reference: Reference, transcripts: Sequence[Transcript], options: DecodingOptions
) -> ReplyRequest:
    turns = transcripts[reference.transcript].turns[: reference.turn]
    if options.decoding == "sample":
        options = options.model_copy(update={"seed": derived_seed(options.seed or 0, reference.name)})
    return ReplyRequest(str(index), tuple((turn.role, turn.text) for turn in turns), options)


# ---- Figures ---------------------------------------------------------------------------------------


def summarize(measured: Sequence[Measured]) -> Evaluation:
    """The figures of these references and replies together."""
    nll = math.fsum(item.nll for item in measured)
    tokens = sum(item.reference.tokens for item in measured)
    words = sum(item.reference.words for item in measured)
    figures = Evaluation(
        replies=len(measured),
        tokens=tokens,
        words=words,
        nll=nll,
        perplexity_token=_perplexity(nll, tokens),
        perplexity_word=_perplexity(nll, words),
        truncated=sum(item.reference.truncated for item in measured),
        generated=0,
        bleu=None,
        chrf=None,
        distinct_1=None,
        distinct_2=None,
        most_frequent_reply_share=None,
        mean_reply_tokens=None,
    )
    answered = [(item.reference.text, item.reply) for item in measured if item.reply is not None]
    if not answered:
        return figures
    texts = [reply.text for _, reply in answered]
    references = [text for text, _ in answered]
    return figures.model_copy(
        update={
            "generated": len(texts),
            "bleu": BLEU(force=True).corpus_score(texts, [references]).score,
            "chrf": CHRF().corpus_score(texts, [references]).score,
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
            "most_frequent_reply_share": max(Counter(texts).values()) / len(texts),
            "mean_reply_tokens": sum(_length(reply) for _, reply in answered) / len(texts),
        }
    )


def _perplexity(nll: float, count: int) -> float:
    return math.exp(min(nll / count, 700.0))  # a number that JSON can hold, however bad the model


def distinct(texts: Iterable[str], size: int) -> float:
    """Different runs of ``size`` words among all such runs within texts (Li et al. 2016); 0 without any."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = split_words(text)
        counts.update(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    return len(counts) / counts.total() if counts else 0.0


def _length(reply: Reply) -> int:
    """Tokens of a reply without its end."""
    return len(reply.token_ids) - (reply.finish_reason == "stop")
