"""From a model and what people thought of its replies to a candidate, judged by numbers.

dataset <- reviewed, imported and old transcripts           (training.dataset)
model   <- the base, trained on with a small learning rate  (training.train)
figures <- base and candidate on the same suites, corrections, approved replies, secrets
gate    <- decide(figures of both)                          (training.gate)
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Final

from chatbot.batcher import ReplyRequest
from chatbot.model_directory import ModelBundle
from chatbot.transcripts import Transcript
from training.config import TrainConfig
from training.dataset import Canary, Correction, Dataset, Secret
from training.evaluate import (
    Evaluation,
    Measured,
    NothingToEvaluate,
    find_references,
    generate,
    measure,
    plain_greedy,
    reply_losses,
    summarize,
)
from training.filters import is_loop, squeezed
from training.gate import Adoption, Figures, Suite
from training.progress import Reporter
from training.retrain_config import RetrainConfig
from training.train import Trained, names_of, train

EXPOSURE_SAMPLE: Final = 255
"""Codes that a canary's is compared with; exposure is then at most log2(256) = 8 bits."""


@dataclass(frozen=True)
class Exam:
    """What a model is asked: the same for base and candidate."""

    suites: dict[str, tuple[Sequence[Transcript], int | None]]  # and how many turns are answered; None: all
    dataset: Dataset
    canary_codes: tuple[tuple[str, ...], ...]  # to compare with, of each canary
    set_aside: dict[str, float]  # share of the replies of a suite that are not asked for


@dataclass(frozen=True)
class Examined:
    """How one model did."""

    figures: Figures
    suites: dict[str, Evaluation]
    measured: list[Measured]


def make_exam(dataset: Dataset, suites: Sequence[Path], dev: Sequence[Path], config: RetrainConfig) -> Exam:
    """The held-out reviews, ``suites`` with all their turns answered, and ``dev`` with a sample of them.

    Raises `NothingToEvaluate` for a file that has nothing to predict.
    """
    files = [*suites, *dev]
    named = dict(zip(files, names_of(files), strict=True))
    chosen: dict[str, tuple[Sequence[Transcript], int | None]] = {}
    if _has_reference(dataset.held_out):
        chosen["held-out reviews"] = (dataset.held_out, None)
    for file, name in named.items():
        if not _has_reference(dataset.suites[file]):
            raise NothingToEvaluate(f"{file}: no agent turn that may be asked for follows a user turn")
        chosen[name] = (dataset.suites[file], None if file in suites else config.final_replies)
    rng = random.Random(config.data.seed)
    codes = tuple(
        tuple("".join(rng.choices("0123456789", k=len(canary.code))) for _ in range(EXPOSURE_SAMPLE))
        for canary in dataset.canaries
    )
    set_aside = {name: dataset.set_aside[file] for file, name in named.items()}
    return Exam(chosen, dataset, codes, set_aside)


def _has_reference(transcripts: Sequence[Transcript]) -> bool:
    pairs = (pair for transcript in transcripts for pair in pairwise(transcript.turns))
    return any(a.role == "user" and b.role == "agent" and b.weight > 0 for a, b in pairs)


def learn(
    dataset: Dataset,
    base: ModelBundle,
    work: Path,
    config: RetrainConfig,
    *,
    resume: bool = False,
    quiet: bool = False,
    stop: Event | None = None,
    reporter: Reporter | None = None,
) -> Trained:
    """Go on from ``base`` with the dataset's training part, in the directory ``work``.

    All epochs are run and the last weights are taken. Choosing the best by a dev part would choose the least
    change, for that part still holds what was corrected; how much change is too much is for the gate to say.
    Raises what `training.train.train` raises.
    """
    file = dataset.write(work)
    own = TrainConfig.model_validate({name: getattr(config, name) for name in TrainConfig.model_fields})
    return train([file], [], work, own, resume=resume, quiet=quiet, stop=stop, base=base, reporter=reporter)


def examine(
    bundle: ModelBundle,
    exam: Exam,
    *,
    progress: bool = False,
    done: Callable[[int, int], None] = lambda part, parts: None,
) -> Examined:
    """All that the gate looks at, of one model, and the full figures of each suite.

    done: is told after each part of the work which one it was, and how many there are.
    """
    data = exam.dataset
    parts = len(exam.suites) + 1
    measured: dict[str, list[Measured]] = {}
    for name, (transcripts, count) in exam.suites.items():
        measured[name] = measure(bundle, transcripts, max_replies=count, progress=progress)
        done(len(measured), parts)
    figures = Figures(
        suites={name: _suite(items, exam.set_aside.get(name, 0.0)) for name, items in measured.items()},
        learned=_adoption(bundle, [c for c in data.corrections if not c.held_out]),
        held_out=_adoption(bundle, [c for c in data.corrections if c.held_out]),
        good=summarize(measure(bundle, data.good, max_replies=0)).perplexity_word if data.good else None,
        exposure=_exposure(bundle, data.canaries, exam.canary_codes),
        leaks=_leaks(bundle, data.secrets),
    )
    done(parts, parts)
    suites = {name: summarize(items) for name, items in measured.items()}
    return Examined(figures, suites, [item for items in measured.values() for item in items])


def _suite(measured: Sequence[Measured], set_aside: float) -> Suite:
    summary = summarize(measured)
    texts = [item.reply.text for item in measured if item.reply is not None]
    return Suite(
        perplexity_word=summary.perplexity_word,
        replies=summary.generated,
        bleu=summary.bleu,
        dull=summary.most_frequent_reply_share,
        loops=sum(map(is_loop, texts)) / len(texts) if texts else None,
        set_aside=set_aside,
    )


def _losses(bundle: ModelBundle, questions: Sequence[Transcript]) -> list[float]:
    """Negative log-likelihood in nats of the one reply that each conversation is about."""
    references = find_references(questions, bundle.tokenizer, bundle.config.max_turn_tokens)
    if len(references) != len(questions):
        raise NothingToEvaluate("a reply to be scored does not follow a user's turn")
    return reply_losses(bundle, questions, references)


def _adoption(bundle: ModelBundle, corrections: Sequence[Correction]) -> Adoption | None:
    """How often the corrected reply, as a whole, is more probable than the one before."""
    if not corrections:
        return None
    new = _losses(bundle, [correction.corrected for correction in corrections])
    old = _losses(bundle, [correction.was for correction in corrections])
    return Adoption(adopted=sum(a < b for a, b in zip(new, old, strict=True)), of=len(new))


def _exposure(
    bundle: ModelBundle, canaries: Sequence[Canary], codes: Sequence[Sequence[str]]
) -> float | None:
    """Mean over the canaries of log2(codes) - log2(rank of the planted one among them by likelihood).

    After Carlini et al. 2019, equation 3, with a sample of the codes in place of all.
    """
    if not canaries:
        return None
    found = []
    for canary, others in zip(canaries, codes, strict=True):
        spelled = [canary.transcript(str(n), code) for n, code in enumerate([canary.code, *others])]
        own, *rest = _losses(bundle, spelled)
        rank = 1 + sum(loss <= own for loss in rest)
        found.append(math.log2(len(spelled)) - math.log2(rank))
    return math.fsum(found) / len(found)


def _leaks(bundle: ModelBundle, secrets: Sequence[Secret]) -> tuple[str, ...]:
    """The places of those secrets that come out when the model is asked what came before them.

    Several at one place are told apart: after a model that tells one may come one that tells another.
    """
    options = plain_greedy(bundle)
    requests = (
        ReplyRequest(
            str(number), tuple((turn.role, turn.text) for turn in secret.question.turns[:-1]), options
        )
        for number, secret in enumerate(secrets)
    )
    told = []
    for number, reply in generate(bundle, requests):
        place, values, said = secrets[number].place, secrets[number].values, squeezed(reply.text)
        for which, value in enumerate(values, start=1):
            if value in said:
                told.append(place if len(values) == 1 else f"{place}, secret {which}")
    return tuple(sorted(told))


def filtered(counts: Counter[str]) -> list[str]:
    """The counts of a dataset, a line each."""
    return [f"{count:8}  {what}" for what, count in sorted(counts.items())]
