"""``python -m training settings``: whether a retraining would take these settings, without beginning one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from chatbot.cli import in_words
from training.config import ConfigError, load_config
from training.retrain_config import RetrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE.toml", help="as retrain takes it")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="one field, e.g. gate.bleu=2")
    add("--json", action="store_true", help="report as one JSON object, also of what is wrong")


def run(args: argparse.Namespace) -> int:
    """Status 0 with all settings as they would be used, 1 with what is wrong, each field by its name."""
    try:
        config = load_config(args.config, args.set, RetrainConfig)
    except OSError as error:
        print(in_words(error), file=sys.stderr)
        return 1
    except ConfigError as error:
        if args.json:
            parts = [line.partition(": ") for line in str(error).splitlines()]
            print(
                json.dumps({"wrong": [{"field": field, "message": message} for field, _, message in parts]})
            )
        else:
            print(error, file=sys.stderr)
        return 1
    settings = config.model_dump(mode="json", exclude={"model"})  # the shape is the base's
    print(json.dumps({"settings": settings} if args.json else settings, indent=None if args.json else 2))
    return 0
