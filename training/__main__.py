"""The training's command line: ``python -m training COMMAND``, one of `COMMANDS`."""

from __future__ import annotations

import argparse
import importlib
import sys

INTERRUPTED = 130
COMMANDS = {
    "import": "any supported source to transcripts",
    "clean": "merge transcripts without duplicates, broken conversations and held-out ones",
    "train": "a model from scratch; also under torchrun",
    "retrain": "go on from a model with reviewed transcripts; the gate judges the candidate",
    "settings": "check the settings of a retraining",
    "index": "the turns that a model was trained on, by which the console explains its replies",
    "compare": "how two models answer the same questions",
    "evaluate": "perplexity, BLEU and more of a model on transcripts",
    "baseline": "word perplexity of n-gram and feed-forward language models, to compare with",
    "calibrate": "the same model sealed again with a calibration of its confidence",
    "card": "the same model sealed again with a card, defaults and conversations of your own",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training", description="Corpora, training and evaluation."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = (sys.argv[1:] if argv is None else argv)[:1]
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if wanted == [name]:  # the others' libraries need not be loaded
            importlib.import_module(f"training.{name}_command").add_arguments(sub)
    args = parser.parse_args(argv)
    try:
        return int(importlib.import_module(f"training.{args.command}_command").run(args))
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
