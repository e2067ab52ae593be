"""What is learned in the same time: this project beside JoeyNMT, on the same transcripts.

    python -m benchmarks.learning --joeynmt PYTHON --train FILE --dev FILE --minutes 20

All learn at the same time, each in a process of its own with as many threads, so that a busy machine is busy
for all: this project as ``python -m training train`` does, JoeyNMT's recurrent model and its transformer by
its own loop. All see the same text: the tokens are this project's, its tokenizer is trained first. To JoeyNMT
a reply's source are the last `SOURCE` tokens before it, and each reply is a pair of its own.

Measured are the same replies of the dev part: perplexity of a word over all, BLEU and chrF of the answers to
a choice of them, greedy and by beam search (width 5, length penalty 1).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from benchmarks.figures import report
from chatbot.model_directory import load
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Transcript, read_transcripts
from training.config import TrainConfig, load_config
from training.evaluate import Evaluation, Reference, choose, evaluate, find_references, plain_greedy

SOURCE: Final = 200
"""Tokens before a reply that a peer reads."""
DEV: Final = 300
"""Replies that a peer's schedule is decided by."""
PEERS: Final = ("recurrent", "transformer")


@dataclass(frozen=True)
class Learned:
    """The figures of one system. searched: by the name of the search, BLEU and chrF."""

    perplexity: float
    searched: dict[str, tuple[float, float]]
    parameters: int
    cpu_seconds: float


class Failed(RuntimeError):
    """A system did not end well; its words."""


def main() -> None:
    """Report each figure of each peer beside this project's."""
    args = _arguments()
    config = load_config(args.config, [*args.set, f"minutes={args.minutes}", f"threads={args.threads}"])
    with tempfile.TemporaryDirectory() as folder:
        ours, peers = compare(args, config, args.work or Path(folder))
    name = args.train.parent.name
    for peer, theirs in peers.items():
        of = f"JoeyNMT {peer}"
        more = {
            "parameters": ours.parameters,
            "reference_parameters": theirs.parameters,
            "cpu_seconds": round(ours.cpu_seconds),
            "reference_cpu_seconds": round(theirs.cpu_seconds),
        }
        report(f"perplexity_word_{name}", ours.perplexity, "", theirs.perplexity, of, **more)
        for search, scores in ours.searched.items():
            for kind, score, other in zip(("bleu", "chrf"), scores, theirs.searched[search], strict=True):
                report(f"{kind}_{search}_{name}", score, "", other, of)


def compare(
    args: argparse.Namespace, config: TrainConfig, folder: Path
) -> tuple[Learned, dict[str, Learned]]:
    """This project's figures, and each peer's. Raises `Failed`."""
    train = list(read_transcripts(args.train))
    dev = list(read_transcripts(args.dev))
    tokenizer = _tokenizer(train, config)
    references = find_references(dev, tokenizer, config.model.max_turn_tokens)
    chosen = choose(references, args.answered)
    test = list(_pairs(dev, references, tokenizer))
    training = find_references(train, tokenizer, config.model.max_turn_tokens)
    dev_pairs = [test[number] for number in choose(references, DEV)]
    parts = {"train": list(_pairs(train, training, tokenizer)), "dev": dev_pairs, "test": test}
    running = {"ours": _ours(args, config, folder)}
    try:
        for peer in args.peers:
            running[peer] = _peer(args, config, parts, chosen, folder / peer, tokenizer.vocab_size, peer)
        cpu = {name: _wait(name, process) for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    theirs = {peer: _read(folder / peer, references, chosen, tokenizer, cpu[peer]) for peer in args.peers}
    return _measure(folder / "ours", dev, tokenizer, cpu["ours"], args.answered), theirs


def _tokenizer(transcripts: Sequence[Transcript], config: TrainConfig) -> Tokenizer:
    texts = (turn.text for transcript in transcripts for turn in transcript.turns)
    return Tokenizer.train(texts, vocab_size=config.model.vocab_size, lowercase=config.lowercase)


def _pairs(
    transcripts: Sequence[Transcript], references: Sequence[Reference], tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[int]]]:
    """What comes before each reply, at most `SOURCE` tokens of it, and the reply."""
    for reference in references:
        turns = transcripts[reference.transcript].turns[: reference.turn + 1]
        *before, reply = tokenizer.encode_turns([(turn.role, turn.text) for turn in turns[-60:]])
        yield [token for turn in before for token in turn][-SOURCE:], reply[1:-1]


def _ours(args: argparse.Namespace, config: TrainConfig, folder: Path) -> subprocess.Popen[str]:
    settings = [f"minutes={config.minutes}", f"threads={config.threads}", "final_replies=0"]
    command = [sys.executable, "-m", "training", "train", "--json", "--out", str(folder / "ours")]
    command += ["--train", str(args.train), "--dev", str(args.dev)]
    command += ["--config", str(args.config)] if args.config else []
    for setting in (*args.set, *settings):
        command += ["--set", setting]
    return _start(command, args.threads, folder / "ours.log")


def _peer(
    args: argparse.Namespace,
    config: TrainConfig,
    parts: dict[str, list[tuple[list[int], list[int]]]],
    chosen: Sequence[int],
    folder: Path,
    vocabulary: int,
    model: str,
) -> subprocess.Popen[str]:
    folder.mkdir()
    for part, pairs in parts.items():
        kept = [pair for pair in pairs if pair[1] or part == "test"]
        for side, place in (("src", 0), ("trg", 1)):
            lines = (" ".join(map(str, pair[place])) or "0" for pair in kept)
            (folder / f"{part}.{side}").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    (folder / "vocabulary.txt").write_text("".join(f"{token}\n" for token in range(vocabulary)), "utf-8")
    job = {
        "model": model,
        "minutes": config.minutes,
        "threads": config.threads,
        "seed": config.seed,
        "batch_tokens": args.batch_tokens,
        "dropout": args.dropout,
        "label_smoothing": config.label_smoothing,
        "evaluate_every": args.evaluate_every,
        "chosen": list(chosen),
        "longest": max(len(parts["test"][number][1]) for number in chosen) + 10,  # its transformer is slow
    }
    (folder / "job.json").write_text(json.dumps(job), "utf-8")
    program = Path(__file__).with_name("joeynmt_learner.py")
    return _start([args.joeynmt, str(program), str(folder)], args.threads, folder / "log")


def _start(command: list[str], threads: int, log: Path) -> subprocess.Popen[str]:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("w") as stream:
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, text=True)


def _wait(name: str, process: subprocess.Popen[str]) -> float:
    """Seconds of processor time of a process that ended well. Raises `Failed`."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{name} ended with {process.returncode}; its log is in the work folder")
    return usage.ru_utime + usage.ru_stime


def _read(
    folder: Path, references: Sequence[Reference], chosen: Sequence[int], tokenizer: Tokenizer, cpu: float
) -> Learned:
    """A peer's figures, from what it left."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    words = sum(reference.words for reference in references)
    texts = [references[number].text for number in chosen]
    searched = {}
    for name, replies in result["replies"].items():
        said = [
            tokenizer.decode([int(token) for token in reply.split() if token.isdecimal()])
            for reply in replies
        ]
        bleu = BLEU(force=True).corpus_score(said, [texts]).score
        searched[name] = bleu, CHRF().corpus_score(said, [texts]).score
    perplexity = float(torch.tensor(result["nll"] / words, dtype=torch.float64).exp())
    return Learned(perplexity, searched, result["parameters"], cpu)


def _measure(
    path: Path, dev: Sequence[Transcript], tokenizer: Tokenizer, cpu: float, answered: int
) -> Learned:
    bundle = load(path)
    if bundle.tokenizer.to_json() != tokenizer.to_json():
        raise Failed("the systems did not see the same tokens")
    greedy = plain_greedy(bundle)
    beam = DecodingOptions(decoding="beam", beam_size=5, length_penalty=1.0, max_tokens=greedy.max_tokens)
    searched: dict[str, tuple[float, float]] = {}
    found: Evaluation | None = None
    for name, options in (("greedy", greedy), ("beam", beam)):
        found = evaluate(bundle, dev, options=options, max_replies=answered)
        assert found.bleu is not None
        assert found.chrf is not None
        searched[name] = found.bleu, found.chrf
    assert found is not None
    parameters = sum(each.numel() for each in bundle.model.parameters())
    return Learned(found.perplexity_word, searched, parameters, cpu)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description="What is learned in the same time, beside JoeyNMT."
    )
    parser.add_argument(
        "--joeynmt", required=True, metavar="PYTHON", help="an interpreter that has JoeyNMT 2.3"
    )
    parser.add_argument("--train", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dev", type=Path, required=True, metavar="FILE")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for each (default 20)")
    parser.add_argument("--answered", type=int, default=500, help="replies that are searched (default 500)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default 1)")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="of this project's training")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the peers (default 0.1)")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of the peers (default 2048)")
    parser.add_argument(
        "--evaluate-every",
        type=int,
        default=200,
        help="updates of the peers between two looks at the dev part",
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep data, models and logs here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
