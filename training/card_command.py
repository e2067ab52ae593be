"""``python -m training card``: the same model sealed again, with a card and defaults of your own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from chatbot.batcher import Batcher, Failed, Finished, ReplyRequest
from chatbot.cli import add_options, given_options, in_words, read_text
from chatbot.decoding import derived_seed
from chatbot.model_directory import ModelBundle, ModelDirectoryError, find_model, load, seal
from chatbot.options import DecodingOptions, OptionError
from chatbot.terms import Terms
from chatbot.transcripts import Role
from training.card import model_card, without_section

CONVERSATIONS = "\n## Conversations\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a sealed model directory")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="the same model, sealed anew"
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE.md",
        help="data, licence and limits, in your words (default: the card as it is)",
    )
    parser.add_argument(
        "--script",
        type=Path,
        metavar="FILE.txt",
        help="what a visitor says, a line a turn, blank lines between conversations; the answers go in",
    )
    add_options(parser, note="These become the model's defaults.")


def run(args: argparse.Namespace) -> int:
    try:
        bundle = load(find_model(args.model))
        defaults = DecodingOptions.merged(bundle.defaults, given_options(args))
        Terms(bundle.tokenizer, DecodingOptions.highest("beam_size")).grant(defaults)
        card = model_card(bundle.metrics, read_text(args.text)) if args.text else bundle.card
        if args.script:
            said = conversations(bundle, defaults, read_script(read_text(args.script)))
            card = without_section(card, CONVERSATIONS) + said
        fingerprint = seal(
            args.out,
            model=bundle.model,
            tokenizer=bundle.tokenizer,
            defaults=defaults,
            metrics=bundle.metrics,
            card=card,
            dtype=stored_dtype(bundle.metrics),
        )
    except (ModelDirectoryError, OptionError, OSError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    print(f"{args.out}  {fingerprint}")
    return 0


def read_script(text: str) -> list[list[str]]:
    """Conversations of a script: blocks of lines, each a visitor's turn."""
    blocks = groupby(text.split("\n"), key=lambda line: bool(line.strip()))
    return [list(lines) for said, lines in blocks if said]


def conversations(bundle: ModelBundle, options: DecodingOptions, script: Sequence[Sequence[str]]) -> str:
    """Markdown of the script with the model's own answers, nothing chosen and nothing edited."""
    used = options.model_dump(exclude_defaults=True, exclude={"seed"})
    said = "\n\n".join(
        "\n".join(
            f"> **{'Visitor' if role == 'user' else 'Turnwise'}:** {_quoted(text)}  " for role, text in turns
        )
        for turns in play(bundle, options, script)
    )
    settings = ", ".join(f"{key} {value}" for key, value in used.items()) or "greedy"
    how = f"As they came ({settings}; each seed made of the numbers of conversation and turn)."
    return f"{CONVERSATIONS}\n{how}\n\n{said}\n"


def play(
    bundle: ModelBundle, options: DecodingOptions, script: Sequence[Sequence[str]]
) -> Iterator[list[tuple[Role, str]]]:
    """Each conversation of the script with the model's answers."""
    for number, lines in enumerate(script):
        turns: list[tuple[Role, str]] = []
        for line in lines:
            turns.append(("user", line))
            seed = derived_seed(0, f"{number}.{len(turns)}")
            turns.append(("agent", _answer(bundle, options.model_copy(update={"seed": seed}), turns)))
        yield turns


def _answer(bundle: ModelBundle, options: DecodingOptions, turns: Sequence[tuple[Role, str]]) -> str:
    batcher = Batcher(bundle)
    batcher.submit(ReplyRequest("card", tuple(turns), options))
    while True:
        for event in batcher.step():
            if isinstance(event, Finished):
                return event.reply.text
            if isinstance(event, Failed):
                raise ModelDirectoryError(bundle.path, event.message)


def _quoted(text: str) -> str:
    return " ".join(text.split()) or "…"


def stored_dtype(metrics: dict[str, Any]) -> torch.dtype:
    """The precision that the training run was told to store weights in."""
    stored = metrics.get("config", {}).get("weights", "fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[stored]
