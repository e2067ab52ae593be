"""The command line: ``python -m chatbot chat | reply | inspect``.

What a command needs is imported when it runs, so that ``--help`` and a wrong option answer before torch is
loaded.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from chatbot.options import Decoding, DecodingOptions, OptionError
from chatbot.transcripts import TranscriptError

if TYPE_CHECKING:
    from chatbot.model_directory import ModelBundle

Commands: TypeAlias = "_SubParsersAction[ArgumentParser]"

USAGE_ERROR = 2
INTERRUPTED = 130


class CommandError(Exception):
    """Why a command cannot do its work, in words for whoever called it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status is 0 only when it did all it was asked."""
    parsed = build_parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except OptionError as error:
        flag = f"--{error.field.replace('_', '-')}"
        return _complain(f"{flag} {error.reason}", USAGE_ERROR)
    except BrokenPipeError:
        # The reader of the output has left. Without this, the interpreter would complain again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except (CommandError, TranscriptError, OSError) as error:
        return _complain(str(error), 1)
    return status


def _complain(reason: str, status: int) -> int:
    from chatbot.terminal import printable

    print(f"error: {printable(reason)}", file=sys.stderr)
    return status


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m chatbot", description="Talk with a model, or look at one.")
    commands = parser.add_subparsers(required=True, metavar="command")
    add_chat(commands)
    add_reply(commands)
    add_inspect(commands)
    return parser


# ---- chat --------------------------------------------------------------------------------------------------


def add_chat(commands: Commands) -> None:
    parser = commands.add_parser(
        "chat",
        help="talk in the terminal",
        description="Talk with a model in the terminal. /help there lists the commands; Ctrl-C stops a "
        "reply, Ctrl-C again or Ctrl-D leaves.",
    )
    _add_model(parser)
    add_options(parser)
    parser.set_defaults(run=run_chat)


def run_chat(arguments: Namespace) -> int:
    overrides = given_options(arguments)
    bundle = _load(arguments)
    options = DecodingOptions.merged(bundle.defaults, overrides)
    from chatbot.chat import Chat

    _tolerate_encodings()
    chat = Chat(bundle, options, sys.stdout)
    if not sys.stdin.isatty():
        chat.run(_line_of_input)
        return 0
    _load_line_editing()
    print(f"{bundle.fingerprint}, seed {chat.seed}. /help lists the commands.")
    chat.run(lambda: input("> "))
    print()
    return 0


def _line_of_input() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _load_line_editing() -> None:
    """Cursor keys and history in `input`, where Python was built with them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


# ---- reply -------------------------------------------------------------------------------------------------


def add_reply(commands: Commands) -> None:
    parser = commands.add_parser(
        "reply",
        help="answer transcripts",
        description="Read transcripts (JSON lines, each a conversation that ends in a user turn) on "
        'standard input and write {"id", "text", "alternatives", "logprob", "finish_reason", "seed"} lines '
        "in the same order. The seed of every conversation is derived from --seed and its id; without "
        "--seed that is 0, so that a run can be repeated.",
    )
    _add_model(parser)
    parser.add_argument(
        "--rows", type=_positive, default=64, metavar="N", help="paths decoded side by side (default: 64)"
    )
    add_options(parser)
    parser.set_defaults(run=run_reply)


def run_reply(arguments: Namespace) -> int:
    overrides = given_options(arguments)
    bundle = _load(arguments)
    options = DecodingOptions.merged(bundle.defaults, overrides)
    options.require_vocabulary(bundle.config.vocab_size)
    from tqdm import tqdm

    from chatbot.answering import answer, read_questions

    _tolerate_encodings()
    questions = read_questions(sys.stdin.buffer, "<stdin>")
    replies = answer(questions, bundle, options, source="<stdin>", rows=arguments.rows)
    for line in tqdm(replies, unit=" replies", file=sys.stderr, disable=None):
        print(line)
    return 0


# ---- inspect -----------------------------------------------------------------------------------------------


def add_inspect(commands: Commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show sizes, fingerprint and card of a model",
        description="Check a model directory and show its fingerprint, sizes, defaults, metrics and card.",
    )
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run_inspect)


def run_inspect(arguments: Namespace) -> int:
    bundle = _load(arguments)
    facts = describe(bundle)
    _tolerate_encodings()
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    from chatbot.terminal import printable

    for name in ("path", "fingerprint", "parameters", "bytes"):
        print(f"{name:12} {printable(str(facts[name]))}")
    for name in ("config", "defaults", "metrics"):
        print(f"\n{name}\n{printable(json.dumps(facts[name], ensure_ascii=False, indent=2))}")
    print(f"\n{printable(bundle.card)}")
    return 0


def describe(bundle: ModelBundle) -> dict[str, Any]:
    """What `inspect` shows of a model. ``bytes`` is the size of its directory on disk."""
    return {
        "path": str(bundle.path),
        "fingerprint": bundle.fingerprint,
        "parameters": sum(parameter.numel() for parameter in bundle.model.parameters()),
        "bytes": sum(entry.stat().st_size for entry in bundle.path.iterdir()),
        "config": bundle.config.model_dump(mode="json"),
        "defaults": bundle.defaults.model_dump(mode="json"),
        "metrics": bundle.metrics,
        "card": bundle.card,
    }


# ---- shared by the commands --------------------------------------------------------------------------------


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        nargs="?",
        help="a model directory, or a directory of them with one in use (default: the shipped model)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--threads", type=_count, default=0, metavar="N", help="CPU threads (default: 0, torch's own choice)"
    )


def add_options(
    parser: ArgumentParser, note: str = "What is left out is as the model's own defaults say."
) -> None:
    """A flag for every decoding option, checked by `DecodingOptions` and not here."""
    group = parser.add_argument_group("decoding", note)
    for name, field in DecodingOptions.model_fields.items():
        kinds = [kind for kind in (int, float) if kind in (field.annotation, *get_args(field.annotation))]
        choices = get_args(Decoding) if name == "decoding" else None
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"option_{name}",
            type=kinds[0] if kinds else str,
            choices=choices,
            metavar=None if choices else kinds[0].__name__ if kinds else "text",
            help=f"{field.description} ({DecodingOptions.allowed(name)})",
        )


def given_options(arguments: Namespace) -> dict[str, Any]:
    """The options that were given; out of range, they are refused before a model is loaded.

    Raises `OptionError`. Limits that depend on the model's own defaults are left to the merge with those.
    """
    given = {
        name: value
        for name in DecodingOptions.model_fields
        if (value := getattr(arguments, f"option_{name}")) is not None
    }
    for name, value in given.items():
        DecodingOptions.merged(_widest(), {name: value})
    return given


def _widest() -> DecodingOptions:
    """Options under which no option is refused for the sake of another."""
    return DecodingOptions(
        beam_size=DecodingOptions.highest("beam_size"), max_tokens=DecodingOptions.highest("max_tokens")
    )


def _load(arguments: Namespace) -> ModelBundle:
    import torch

    from chatbot import model_directory

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: torch finds no GPU here")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        found = model_directory.find_model(arguments.model or model_directory.SHIPPED)
        return model_directory.load(found, device=arguments.device)
    except model_directory.ModelDirectoryError as error:
        raise CommandError(str(error)) from None


def _tolerate_encodings() -> None:
    """Neither a byte that is not UTF-8 nor a terminal that cannot show a character ends a command."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError("must be a whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError("must be a whole number from 1")
    return int(text)
