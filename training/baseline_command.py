"""``python -m training baseline KIND``: language models of words, to compare a chatbot's perplexity with.

They predict the turns that `training.evaluate` measures, and of them what `training.words` counts: words and
the end. They see nothing but the turn itself, not what it answers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Final, Protocol

import torch
from pydantic import BaseModel, ConfigDict

from chatbot.cli import in_words
from chatbot.options import OptionError
from chatbot.transcripts import Transcript, TranscriptError, read_transcripts
from training import feed_forward_lm
from training.device import choose_device
from training.evaluate import NothingToEvaluate
from training.ngram import Floats, NGramModel, Sequences, Spelling, Vocabulary
from training.recurrent_lm import measure_recurrent
from training.train import Diverged, NothingToLearn, names_of
from training.words import split_words

USAGE_ERROR: Final = 2
LONGEST_ORDER: Final = 7

Turns = Sequence[Sequence[str]]
"""Words of each turn, without its end."""


class Baseline(BaseModel):
    """The figures of a baseline on one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replies: int
    """Agent turns that directly follow a user turn and whose weight is above 0."""
    words: int
    """Of those turns, as `training.words` counts them."""
    unknown_share: float
    """Of those words: not in the vocabulary."""
    nll: float
    """Negative log-likelihood of all those words, in nats."""
    perplexity_word: float


class LanguageModel(Protocol):
    """What a kind of baseline trains: a distribution over the symbols of a vocabulary."""

    def log_probabilities(self, sequences: Sequences) -> Floats:
        """Natural logarithm of each symbol's probability after those before it in its sequence, (T,)."""
        ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    ngram = kinds.add_parser("ngram", help="interpolated modified Kneser-Ney")
    _add_common(ngram, shortest=1)
    ngram.set_defaults(measure=partial(measure_words, learn=_learn_ngram))
    neural = kinds.add_parser("feed-forward", help="the neural network of Bengio et al. (2003)")
    _add_common(neural, shortest=2)
    _add_neural(neural)
    neural.set_defaults(measure=partial(measure_words, learn=_learn_feed_forward))
    recurrent = kinds.add_parser("recurrent", help="the decoder of a chatbot alone, over its own tokens")
    _add_files(recurrent)
    _add_network(recurrent, {"embedding": 384, "hidden": 512, "epochs": 20, "seed": 1})
    recurrent.set_defaults(measure=_measure_recurrent)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--train",
        action="extend",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="transcripts to learn",
    )
    add(
        "--dev",
        action="extend",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="transcripts to measure, each apart",
    )
    add("--lowercase", action="store_true", help="lower-case all text")
    add("--json", action="store_true", help="one JSON object with the figures of each dev file")


def _add_common(parser: argparse.ArgumentParser, *, shortest: int) -> None:
    _add_files(parser)
    add = parser.add_argument
    add("--turns", choices=["agent", "all"], default="agent", help="what to learn (default: agent)")
    add(
        "--order",
        type=_whole(shortest, LONGEST_ORDER),
        default=5,
        metavar="N",
        help="a word is predicted from the N - 1 before it (default: 5)",
    )
    add(
        "--min-count",
        type=_whole(1),
        default=2,
        metavar="N",
        help="words seen less often in training are unknown (default: 2)",
    )
    add(
        "--unknown",
        choices=["class", "spell"],
        default="spell",
        help="what an unknown word costs: the probability of the class of all unknown words, or that and its "
        "spelling, which is what compares with a byte-level model (default: spell)",
    )


def _add_neural(parser: argparse.ArgumentParser) -> None:
    default = feed_forward_lm.FeedForwardConfig()
    names = ("embedding", "hidden", "epochs", "seed")
    _add_network(parser, {name: getattr(default, name) for name in names})
    parser.add_argument(
        "--direct", action="store_true", help="connect embeddings to the output directly, too"
    )


def _add_network(parser: argparse.ArgumentParser, defaults: Mapping[str, int]) -> None:
    add = parser.add_argument
    for name, parse, what in (
        ("embedding", _whole(1), "units of a word"),
        ("hidden", _whole(1), "units of a hidden layer"),
        ("epochs", _whole(1), "at most"),
        ("seed", _whole(0, 2**63 - 1), "of everything random"),
    ):
        value = defaults[name]
        add(f"--{name}", type=parse, default=value, metavar="N", help=f"{what} (default: {value})")
    add("--minutes", type=_minutes, metavar="M", help="at most; a run that it ends does not repeat exactly")
    add("--device", default="auto", help="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")


def run(args: argparse.Namespace) -> int:
    """Status 0 when every figure was found; 2 for a device that is not there, 1 for any other trouble."""
    measure: Callable[[argparse.Namespace], dict[str, Baseline]] = args.measure
    try:
        report = measure(args)
    except OptionError as error:
        print(f"--{error.field} {error.reason}", file=sys.stderr)
        return USAGE_ERROR
    except (TranscriptError, NothingToLearn, NothingToEvaluate, Diverged, OSError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    print(_in_json(report) if args.json else _in_words(report))
    return 0


# ---- Text ------------------------------------------------------------------------------------------


def _read(files: Sequence[Path]) -> Iterator[Transcript]:
    for file in files:
        yield from read_transcripts(file)


def training_turns(transcripts: Iterator[Transcript], *, agent_only: bool, lowercase: bool) -> Turns:
    """Words of all turns, or of all the agent's, but those of weight 0."""
    return [
        _words(turn.text, lowercase)
        for transcript in transcripts
        for turn in transcript.turns
        if turn.weight > 0 and (turn.role == "agent" or not agent_only)
    ]


def replies_of(transcripts: Iterator[Transcript], *, lowercase: bool) -> Turns:
    """Words of the agent turns that directly follow a user turn and have a weight above 0."""
    return [
        _words(turn.text, lowercase)
        for transcript in transcripts
        for before, turn in pairwise(transcript.turns)
        if before.role == "user" and turn.role == "agent" and turn.weight > 0
    ]


def _words(text: str, lowercase: bool) -> list[str]:
    return split_words(text.lower() if lowercase else text)


# ---- Models of words -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WordModel:
    """A language model, what its symbols stand for, and how unknown words are spelled (None: for free)."""

    vocabulary: Vocabulary
    model: LanguageModel
    spelling: Spelling | None

    def measure(self, turns: Turns) -> Baseline:
        """The figures on these turns, of which there is at least one."""
        sequences = self.vocabulary.encode(turns)
        nll = -math.fsum(self.model.log_probabilities(sequences))
        unknown = [word for turn in turns for word in turn if word not in self.vocabulary]
        if self.spelling is not None:
            nll -= math.fsum(self.spelling.log_probabilities(unknown))
        words = len(sequences.symbols)
        return Baseline(
            replies=len(turns),
            words=words,
            unknown_share=len(unknown) / words,
            nll=nll,
            perplexity_word=math.exp(min(nll / words, 700.0)),
        )


Learn = Callable[[Sequences, int, argparse.Namespace], LanguageModel]
"""A language model from encoded turns and the size of their vocabulary."""


def measure_words(args: argparse.Namespace, *, learn: Learn) -> dict[str, Baseline]:
    """Train one model of words on all training files and measure it on each dev file.

    Raises `NothingToLearn` and `NothingToEvaluate`, `TranscriptError` and OSError for files that are not as
    they should be, and OptionError for a device that is not there.
    """
    dev = [replies_of(read_transcripts(file), lowercase=args.lowercase) for file in args.dev]
    for file, replies in zip(args.dev, dev, strict=True):
        if not replies:
            raise NothingToEvaluate(f"{file}: no agent turn with a weight above 0 follows a user turn")
    turns = training_turns(_read(args.train), agent_only=args.turns == "agent", lowercase=args.lowercase)
    if not any(turns):
        raise NothingToLearn(f"no word to learn in {', '.join(map(str, args.train))}")
    vocabulary = Vocabulary.of(turns, args.min_count)
    spelling = spelling_of(turns, vocabulary) if args.unknown == "spell" else None
    trained = learn(vocabulary.encode(turns), vocabulary.symbols, args)
    model = WordModel(vocabulary, trained, spelling)
    return {name: model.measure(replies) for name, replies in zip(names_of(args.dev), dev, strict=True)}


def spelling_of(turns: Turns, vocabulary: Vocabulary) -> Spelling:
    """Learned from every unknown word of the training text, and from each known one once: on all of the sets
    of docs/baselines.md that predicts new words better than the unknown ones alone, which are few.
    """
    unknown = (word for turn in turns for word in turn if word not in vocabulary)
    return Spelling.train(chain(unknown, vocabulary))


def _learn_ngram(sequences: Sequences, symbols: int, args: argparse.Namespace) -> LanguageModel:
    return NGramModel.train(sequences, symbols=symbols, order=args.order)


def _learn_feed_forward(sequences: Sequences, symbols: int, args: argparse.Namespace) -> LanguageModel:
    config = feed_forward_lm.FeedForwardConfig(
        order=args.order,
        embedding=args.embedding,
        hidden=args.hidden,
        direct=args.direct,
        epochs=args.epochs,
        minutes=args.minutes,
        seed=args.seed,
    )
    return feed_forward_lm.train(
        sequences, symbols, config, device=_device(args.device), progress=sys.stderr.isatty()
    )


def _measure_recurrent(args: argparse.Namespace) -> dict[str, Baseline]:
    _device(args.device)
    found = measure_recurrent(
        args.train,
        args.dev,
        lowercase=args.lowercase,
        embedding=args.embedding,
        hidden=args.hidden,
        epochs=args.epochs,
        minutes=args.minutes,
        seed=args.seed,
        device=args.device,
        quiet=args.json,
    )
    return {
        name: Baseline(
            replies=row.replies,
            words=row.words,
            unknown_share=0.0,
            nll=row.nll,
            perplexity_word=row.perplexity_word,
        )
        for name, row in found.items()
    }


def _device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise OptionError("device", f"{name}: {reason}") from None


# ---- Output ----------------------------------------------------------------------------------------


def _in_json(report: dict[str, Baseline]) -> str:
    return json.dumps({name: row.model_dump() for name, row in report.items()}, ensure_ascii=False)


def _in_words(report: dict[str, Baseline]) -> str:
    width = max(4, *map(len, report))
    lines = [f"{'':{width}}  replies     words  unknown           nll  perplexity_word"]
    for name, row in report.items():
        lines.append(
            f"{name:{width}}  {row.replies:7}  {row.words:8}  {row.unknown_share:6.2%}  {row.nll:13.1f}"
            f"  {row.perplexity_word:15.3f}"
        )
    return "\n".join(lines)


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A parser of whole numbers in a range."""
    reason = f"must be a whole number from {least}" + ("" if most is None else f" to {most}")

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(reason)
        return int(text)

    return parse


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return minutes
