"""Training from nothing: read it from top to bottom.

corpus, tokenizer <- train files        (kept in OUT.run/, found again by hash)
for each epoch, for each batch of whole dialogues:
    loss   = cross-entropy of all agent turns, all turns encoded in one pass
    update = Adam, warm-up then cosine, clipped gradient
    now and then: perplexity of the dev part; checkpoint; stop when it no longer falls
best checkpoint -> sealed model directory OUT
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from chatbot.config import ModelConfig
from chatbot.model import DialogueBatch, Seq2Seq
from chatbot.model_directory import ModelBundle
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import read_transcripts, write_aside
from training import checkpoint
from training.batches import in_order, plan_epoch, prefetch, token_weights
from training.checkpoint import Progress
from training.config import ConfigError, TrainConfig
from training.corpus import Corpus, corpus_of, open_corpus
from training.device import autocast, choose_device, choose_precision
from training.distributed import World
from training.exposure import one_position, with_own_inputs
from training.loss import linear_cross_entropy
from training.mean import RunningMean
from training.progress import Reporter
from training.words import count_words

log = logging.getLogger(__name__)


class NothingToLearn(ValueError):
    """The files hold no agent turn to train on, or to decide by."""


class Diverged(ArithmeticError):
    """Training ended without a usable model."""


class Stopped(Exception):
    """The run was asked to stop; ``step`` updates are done and kept."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"stopped after step {self.step}; --resume continues from there"


@dataclass(frozen=True)
class DevSet:
    """One file of the dev part."""

    name: str
    corpus: Corpus
    words: int  # of its replies, as perplexity_word counts them


@dataclass(frozen=True)
class Trained:
    """What a run ends with."""

    model: Seq2Seq  # the best one, in float32
    tokenizer: Tokenizer
    progress: Progress
    perplexity_word: dict[str, float]  # of each dev file

    def bundle(self, path: Path) -> ModelBundle:
        """The model as if it were sealed at ``path``, for evaluation."""
        return ModelBundle(
            path=path,
            config=self.model.config,
            model=self.model,
            tokenizer=self.tokenizer,
            defaults=DecodingOptions(),
            metrics={},
            card="",
            fingerprint="",
        )


def train(
    files: Sequence[Path],
    dev_files: Sequence[Path],
    work: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    quiet: bool = False,
    world: World | None = None,
    stop: Event | None = None,
    base: ModelBundle | None = None,
    reporter: Reporter | None = None,
) -> Trained:
    """Train in the directory ``work`` until the data, the time or the patience is at its end.

    With ``base``, from its weights and with its tokenizer and shape, but for the fields of the shape that
    ``config`` names; what those add starts anew. Raises TranscriptError for a malformed line, ConfigError for
    a device that is not there, `NothingToLearn`, OtherModel for a checkpoint that does not fit, OtherCorpus
    for one of other transcripts, and `Stopped` when ``stop`` was set: the checkpoint it left continues with
    ``resume``.
    """
    world = world or World()
    try:
        device = choose_device(config.device, world.local_rank)
    except RuntimeError as error:
        raise ConfigError(f"device: {config.device}: {str(error).partition(chr(10))[0]}") from None
    dtype = choose_precision(config.precision, device)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    resume, tokenizer, shape, corpus = _open(files, work, config, resume, world, base)
    if not corpus.replies:
        raise NothingToLearn("no agent turn with a weight above zero in the training files")
    names = names_of(dev_files)
    dev = [
        _dev_set(file, name, tokenizer, shape.max_turn_tokens)
        for file, name in zip(dev_files, names, strict=True)
    ]
    model = Seq2Seq(shape)
    if base is not None:
        _take_over(model, base)
    model = model.to(device)
    optimizer = _optimizer(model, config, device)
    mean = RunningMean(model, config.averaging) if config.averaging else None
    progress = Progress()
    if resume:
        progress = checkpoint.load(work / "last", model, optimizer, mean.model if mean else None)
    _keep_order(config, progress)
    _judge_by(dev, progress)
    run = _Run(
        model,
        mean,
        optimizer,
        corpus,
        dev,
        config,
        work,
        progress,
        dtype,
        device,
        quiet,
        world,
        stop or Event(),
        reporter or Reporter(None),
    )
    run.until_done()
    world.wait()
    if not checkpoint.exists(work / "best"):
        raise Diverged("the loss was never finite on the dev part: lower learning_rate")
    checkpoint.load(work / "best", model)
    run.learned = model
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):  # without a dev part
        raise Diverged("the weights are no longer finite numbers: lower learning_rate")
    return Trained(model.eval(), tokenizer, progress, run.perplexities())


def _open(
    files: Sequence[Path],
    work: Path,
    config: TrainConfig,
    resume: bool,
    world: World,
    base: ModelBundle | None,
) -> tuple[bool, Tokenizer, ModelConfig, Corpus]:
    """Whether a run is resumed, and its tokenizer, shape and corpus; the first process builds them."""
    if not world.first:
        world.wait()  # until the first has built what the others find
    resume = resume and checkpoint.exists(work / "last")
    if world.first and not resume:
        _forget(work)
    tokenizer = _tokenizer(files, work / "tokenizer.json", config, base)
    shape = _shape(config, tokenizer, base)
    varied = tokenizer.with_dropout(config.subword_dropout) if config.subword_dropout else tokenizer
    corpus = open_corpus(
        [*files] * config.subword_copies,
        varied,
        cache=work / "corpus",
        max_turn_tokens=shape.max_turn_tokens,
        max_dialogue_tokens=config.max_dialogue_tokens,
        same=resume,
    )
    if world.first:
        world.wait()
    return resume, tokenizer, shape, corpus


class _Run:
    """The loop. All that changes is the model, the optimizer and ``progress``: together they are the
    checkpoint.
    """

    def __init__(
        self,
        model: Seq2Seq,
        mean: RunningMean | None,
        optimizer: torch.optim.Optimizer,
        corpus: Corpus,
        dev: list[DevSet],
        config: TrainConfig,
        work: Path,
        progress: Progress,
        dtype: torch.dtype,
        device: torch.device,
        quiet: bool,
        world: World,
        stop: Event,
        reporter: Reporter,
    ) -> None:
        self.model, self.mean, self.optimizer, self.corpus, self.dev = model, mean, optimizer, corpus, dev
        self.learned = mean.model if mean else model  # what the dev part is read with, and what is sealed
        self.config, self.work, self.progress = config, work, progress
        self.dtype, self.device, self.quiet, self.world, self.stop = dtype, device, quiet, world, stop
        self.reporter = reporter
        self.total_steps = self._total_steps()
        self.saved_at = progress.seconds
        self.loss: float | None = None  # of the latest update of this process
        self.read_after: int | None = None  # updates, that it last read the dev part after

    def until_done(self) -> None:
        """Run the remaining batches. A checkpoint is only ever written between two updates."""
        writer = (
            SummaryWriter(str(self.work / "tensorboard"), purge_step=self.progress.step + 1)
            if self.world.first
            else None
        )
        hidden = True if self.quiet or not self.world.first else None  # None: shown on a terminal only
        self.reporter.phase("training", step=self.progress.step, steps=self.total_steps)
        bar = tqdm(total=self.total_steps, initial=self.progress.step, unit="step", disable=hidden)
        try:
            for batch in self._batches():
                if self._finished():
                    break
                self.loss, seconds = self._update(batch)
                self._report(bar, writer, batch, self.loss, seconds)
                self._between_updates(writer)
            if self.progress.step not in (self.progress.best_step, self.read_after):
                self._read_dev(writer)
        finally:
            bar.close()
            if writer is not None:
                writer.close()

    def _update(self, batch: DialogueBatch | None) -> tuple[float, float]:
        """One step of gradient descent; returns the loss (nats a token) and the time it took (s).

        ``batch`` is this process's part of the step, None when there was nothing left for it.
        """
        began = time.perf_counter()
        torch.manual_seed(hash((self.config.seed, self.progress.step, self.world.rank)) & (2**63 - 1))
        self.model.train()
        weights = self._weights(batch) if batch is not None else torch.zeros(0)
        total_weight = self.world.add(weights.sum().to(self.device, torch.float64)).item()
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        if batch is not None:
            loss = self._loss(batch.to(self.device), weights.to(self.device) / total_weight)
            loss.backward()  # type: ignore[no-untyped-call]
        self.world.add_gradients(self.model.parameters())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate()
        self.optimizer.step()
        if self.mean is not None:
            self.mean.update(self.model, self.progress.step)
        value = self.world.add(loss.detach()).item()
        self.progress.step += 1
        self.progress.batch += 1
        seconds = time.perf_counter() - began
        self.progress.seconds += seconds
        return value, seconds

    def _weights(self, batch: DialogueBatch) -> Tensor:
        """Of each packed reply token, (Q,)."""
        weights = token_weights(batch)
        return weights * one_position(batch.replies) if self.config.positions == "one" else weights

    def _loss(self, batch: DialogueBatch, weights: Tensor) -> Tensor:
        with autocast(self.device, self.dtype):
            if self.config.scheduled_sampling:
                batch = with_own_inputs(self.model, batch, self.config.scheduled_sampling * self._done())
            readouts, copying = self.model(batch)
        loss, _ = linear_cross_entropy(
            readouts,
            self.model.output_table,
            self.model.bias,
            batch.targets,
            weights,
            copying=copying,
            smoothing=self.config.label_smoothing,
            dtype=self.dtype,
        )
        return loss

    def _rate(self) -> float:
        """Share of the peak learning rate for the next update."""
        warmup = min(1.0, (self.progress.step + 1) / max(1, self.config.warmup_steps))
        final = self.config.final_learning_rate
        return warmup * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * self._done())))

    def _done(self) -> float:
        """Share of the run that is over, 0 to 1."""
        done = self.progress.step / self.total_steps
        if self.config.minutes is not None:
            done = max(done, self.progress.seconds / (60 * self.config.minutes))
        return min(1.0, done)

    def _finished(self) -> bool:
        return self._done() >= 1 or self.progress.waited >= self.config.patience

    def _total_steps(self) -> int:
        if self.config.max_steps is not None:
            return self.config.max_steps
        first = plan_epoch(self.corpus, budget=self.config.batch_tokens, seed=self.config.seed, epoch=0)
        return self.config.epochs * len(first)

    def _batches(self) -> Iterator[DialogueBatch | None]:
        """This process's parts of the rest of this epoch's batches, then of the next ones."""
        while not self._finished() and self.progress.epoch < self.config.epochs:
            plan = plan_epoch(
                self.corpus, budget=self.config.batch_tokens, seed=self.config.seed, epoch=self.progress.epoch
            )
            mine = [
                dialogues[self.world.rank :: self.world.size] for dialogues in plan[self.progress.batch :]
            ]
            yield from prefetch(self.corpus, mine)
            self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0

    def _report(
        self,
        bar: tqdm[NoReturn],
        writer: SummaryWriter | None,
        batch: DialogueBatch | None,
        loss: float,
        seconds: float,
    ) -> None:
        if batch is None or writer is None:
            return
        speed = len(batch.targets) * self.world.size / seconds  # the parts of a batch are of one size
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", tokens=f"{speed:.0f}/s", epoch=self.progress.epoch, refresh=False)
        writer.add_scalar("train/loss", loss, self.progress.step)
        writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], self.progress.step)
        writer.add_scalar("train/reply_tokens_per_second", speed, self.progress.step)
        self.reporter.step(
            "training", self.progress.step, self.total_steps, loss=loss, seconds_left=self._seconds_left()
        )

    def _seconds_left(self) -> float:
        """At the speed so far; the dev part is not counted."""
        left = self.progress.seconds / self.progress.step * (self.total_steps - self.progress.step)
        if self.config.minutes is not None:
            left = min(left, 60 * self.config.minutes - self.progress.seconds)
        return max(0.0, left)

    def _between_updates(self, writer: SummaryWriter | None) -> None:
        if self.progress.step % self.config.evaluate_every == 0:
            self._read_dev(writer)
        elif self.progress.seconds - self.saved_at >= 60 * self.config.checkpoint_minutes:
            self._save("last")
        # All stop together and go by the first one's clock: one that went on alone would wait forever.
        elapsed = self.progress.seconds if self.world.first else 0.0
        told = torch.tensor([self.stop.is_set(), elapsed], dtype=torch.float64, device=self.device)
        stopping, self.progress.seconds = self.world.add(told).tolist()
        if stopping:
            self._save("last")
            raise Stopped(self.progress.step)

    def _read_dev(self, writer: SummaryWriter | None) -> None:
        """Perplexity of each dev file; keeps the best model. Without a dev part, the latest is the best."""
        self.read_after = self.progress.step
        found = self.perplexities()
        words = sum(dev.words for dev in self.dev)
        loss = sum(dev.words * math.log(found[dev.name]) for dev in self.dev) / words if words else 0.0
        better = loss < self.progress.best or not words
        if better:
            self.progress.best, self.progress.best_step, self.progress.waited = loss, self.progress.step, 0
        else:
            self.progress.waited += 1
        if writer is not None:
            for name, perplexity in found.items():
                writer.add_scalar(f"dev/{name}", perplexity, self.progress.step)
            figures = [] if self.loss is None else [f"loss {self.loss:.3f}"]
            if found:
                figures += ["word perplexity", *(f"{name} {value:.2f}" for name, value in found.items())]
            log.info("step %d  %.0f s  %s", self.progress.step, self.progress.seconds, "  ".join(figures))
        if better:
            self._save("best")
        self._save("last")

    def perplexities(self) -> dict[str, float]:
        """Word perplexity of each dev file, exp(total negative log-likelihood / words), read by all
        processes.
        """
        self.learned.eval()
        totals = torch.tensor(
            [self._negative_log_likelihood(d.corpus) for d in self.dev], dtype=torch.float64
        )
        totals = self.world.add(totals.to(self.device)).cpu()
        return {d.name: _exp(total / d.words) for d, total in zip(self.dev, totals.tolist(), strict=True)}

    def _negative_log_likelihood(self, corpus: Corpus) -> float:
        """Of all replies of this process's part of a corpus, in nats."""
        total = 0.0
        mine = in_order(corpus, budget=self.config.batch_tokens)[self.world.rank :: self.world.size]
        with torch.inference_mode():
            for batch in prefetch(corpus, mine):
                assert batch is not None
                with autocast(self.device, self.dtype):
                    total += self.learned.token_losses(batch.to(self.device)).double().sum().item()
        return total

    def _save(self, name: str) -> None:
        if self.world.first:
            model, mean = (self.learned, None) if name == "best" else (self.model, self.mean)
            checkpoint.save(
                self.work / name, model, self.optimizer, self.progress, mean.model if mean else None
            )
        self.saved_at = self.progress.seconds


def _optimizer(model: Seq2Seq, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, fused=device.type in ("cpu", "cuda")
    )


def _forget(work: Path) -> None:
    """Drop what an earlier run, ended before its first checkpoint, left here and this one would take for its
    own. The corpus is found by its hash.
    """
    for name in ("last", "best"):
        checkpoint.remove(work / name)
    (work / "tokenizer.json").unlink(missing_ok=True)


def _shape(config: TrainConfig, tokenizer: Tokenizer, base: ModelBundle | None) -> ModelConfig:
    chosen = {name: getattr(config.model, name) for name in config.model.model_fields_set}
    values = (base.config.model_dump() if base else {}) | chosen | {"vocab_size": tokenizer.vocab_size}
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(f"model: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        ) from None


def _take_over(model: Seq2Seq, base: ModelBundle) -> None:
    """The weights of ``base``, where it has them; those of parts that it lacks stay as they began."""
    own, given = model.state_dict(), base.model.state_dict()
    for name in own.keys() & given.keys():
        if own[name].shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)} in {base.path}, {tuple(own[name].shape)} as set"
            raise ConfigError(f"model: {name} is {shapes}: a model keeps its sizes")
    model.load_state_dict({**own, **{name: given[name] for name in own.keys() & given.keys()}})


def _tokenizer(files: Sequence[Path], path: Path, config: TrainConfig, base: ModelBundle | None) -> Tokenizer:
    """The run's tokenizer: the base's, or trained on the texts of the training part the first time and read
    back later.
    """
    if base is not None:
        return base.tokenizer
    if not path.exists():
        texts = (
            turn.text for file in files for transcript in read_transcripts(file) for turn in transcript.turns
        )
        tokenizer = Tokenizer.train(texts, vocab_size=config.model.vocab_size, lowercase=config.lowercase)
        with write_aside(path) as stream:
            stream.write(tokenizer.to_json().encode())
    return Tokenizer.from_json(path.read_text("utf-8"))


def _exp(nats: float) -> float:
    """A perplexity; infinite, not an error, for a model that has diverged."""
    return math.exp(nats) if nats < 700 else math.inf


def _dev_set(file: Path, name: str, tokenizer: Tokenizer, max_turn_tokens: int) -> DevSet:
    """A dev file and its words: those of the tokens that are scored, where a very long turn was cut.

    Raises `NothingToLearn` for one that could not be evaluated in the end.
    """
    transcripts = list(read_transcripts(file))
    pairs = (pair for transcript in transcripts for pair in pairwise(transcript.turns))
    if not any(a.role == "user" and b.role == "agent" and b.weight > 0 for a, b in pairs):
        raise NothingToLearn(f"{file}: no agent turn with a weight above zero follows a user turn")
    corpus = corpus_of(transcripts, tokenizer, max_turn_tokens=max_turn_tokens)
    replies = (
        corpus.tokens[corpus.turn_start[turn] : corpus.turn_start[turn + 1]].tolist()
        for turn in corpus.turn_is_reply.nonzero()[0]
    )
    return DevSet(name, corpus, max(1, sum(count_words(tokenizer.decode(ids)) for ids in replies)))


def _keep_order(config: TrainConfig, progress: Progress) -> None:
    """Raises ConfigError for a setting under which the place in an epoch would be another place."""
    order = {
        "seed": config.seed,
        "batch_tokens": config.batch_tokens,
        "max_dialogue_tokens": config.max_dialogue_tokens,
        "lowercase": int(config.lowercase),
        "model.vocab_size": config.model.vocab_size,
    }
    for name, value in order.items():
        before = value if progress.order is None else progress.order[name]
        if value != before:
            raise ConfigError(f"{name}: the run was begun with {before}, and goes on with nothing else")
    progress.order = order


def _judge_by(dev: Sequence[DevSet], progress: Progress) -> None:
    """Note by which dev part the best is chosen; with another one than before, nothing was the best yet."""
    files = sorted(dev_set.corpus.digest() for dev_set in dev)
    name = hashlib.sha256("".join(files).encode()).hexdigest()
    if progress.dev not in (None, name):
        log.info("this is another dev part than before: the best model is chosen anew")
        progress.best, progress.best_step, progress.waited = math.inf, 0, 0
    progress.dev = name


def name_of(file: Path) -> str:
    """A short name for a data file: its own, or its folder's where the file is merely called dev, test or
    train and a folder was named.
    """
    stem = file.name.removesuffix(".gz").removesuffix(".jsonl")
    merely = stem in ("dev", "test", "train") and file.parent != Path()
    return file.resolve().parent.name if merely else stem


def names_of(files: Sequence[Path]) -> list[str]:
    """A name for each file: the short one, with as many of its folders as tell it from the others."""
    names = [name_of(file) for file in files]
    places = [file.resolve().parts for file in files]
    depth = 1
    while len(set(names)) < len(set(places)):
        depth += 1
        names = [
            name if names.count(name) == 1 else "/".join(place[-depth:])
            for name, place in zip(names, places, strict=True)
        ]
    return names
