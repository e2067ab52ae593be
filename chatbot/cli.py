"""The command line: ``python -m chatbot chat | reply | inspect``.

What a command needs is imported when it runs, so that ``--help`` and a wrong option answer before torch is
loaded.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    Namespace,
    _SubParsersAction,
)
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args, get_origin

from chatbot.options import Decoding, DecodingOptions, OptionError
from chatbot.transcripts import TranscriptError

if TYPE_CHECKING:
    from chatbot.decoder import Bundle
    from chatbot.model_directory import ModelBundle
    from chatbot.reranking import Rerankers

T = TypeVar("T")

Commands: TypeAlias = "_SubParsersAction[ArgumentParser]"

USAGE_ERROR = 2
INTERRUPTED = 130


class CommandError(Exception):
    """Why a command cannot do its work, in words for whoever called it."""


def in_words(error: Exception) -> str:
    """An error for whoever called: one of the system names the file and the reason, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


def read_text(file: Path) -> str:
    """A text that the caller wrote, without the byte order mark of some editors. Raises OSError, also for
    bytes that are not UTF-8.
    """
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"not UTF-8 at byte {error.start}", str(file)) from None


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
        return _complain(in_words(error), 1)
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
    add_company(parser)
    add_options(parser)
    parser.set_defaults(run=run_chat)


def run_chat(arguments: Namespace) -> int:
    overrides = given_options(arguments)
    bundle, rerankers = _load_together(arguments)
    options = DecodingOptions.merged(bundle.defaults, overrides)
    rerankers.require(options)
    from chatbot.chat import Chat

    _tolerate_encodings()
    chat = Chat(bundle, options, sys.stdout, rerankers)
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
        'in the same order; with --logprobs or --top-alternatives also "tokens", with --attention also '
        '"attention". The seed of every conversation is derived from --seed and its id; without --seed that '
        "is 0, so that a run can be repeated.",
    )
    _add_model(parser)
    add_company(parser)
    parser.add_argument(
        "--rows", type=_positive, default=64, metavar="N", help="paths decoded side by side (default: 64)"
    )
    parser.add_argument("--logprobs", action="store_true", help="also write the tokens of each reply")
    add_options(parser)
    parser.set_defaults(run=run_reply)


def run_reply(arguments: Namespace) -> int:
    overrides = given_options(arguments)
    bundle, rerankers = _load_together(arguments)
    options = DecodingOptions.merged(bundle.defaults, overrides)
    options.require_vocabulary(bundle.config.vocab_size)
    rerankers.require(options)
    from tqdm import tqdm

    from chatbot.answering import answer, read_questions

    _tolerate_encodings()
    questions = read_questions(sys.stdin.buffer, "<stdin>")
    replies = answer(
        questions,
        bundle,
        options,
        source="<stdin>",
        rows=arguments.rows,
        logprobs=arguments.logprobs,
        rerankers=rerankers,
    )
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


def add_company(parser: ArgumentParser) -> None:
    """Flags for models that work together with the first."""
    parser.add_argument(
        "--ensemble",
        type=Path,
        metavar="MODEL",
        action="append",
        default=[],
        help="another model with the same tokenizer, which answers together with the first (may be repeated)",
    )
    parser.add_argument(
        "--language-model", type=Path, metavar="MODEL", help="what --mmi-lambda needs; the same tokenizer"
    )
    parser.add_argument(
        "--reverse-model",
        type=Path,
        metavar="MODEL",
        help="what --mmi-reverse needs: trained on conversations in reverse order; the same tokenizer",
    )


def add_options(
    parser: ArgumentParser, note: str = "What is left out is as the model's own defaults say."
) -> None:
    """A flag for every decoding option, checked by `DecodingOptions` and not here."""
    group = parser.add_argument_group("decoding", note)
    for name, field in DecodingOptions.model_fields.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"option_{name}",
            help=f"{field.description} ({DecodingOptions.allowed(name)})",
            **_taking(field.annotation),
        )


def _taking(annotation: Any) -> dict[str, Any]:
    """How a flag takes a value of this type; what it may be is not checked here."""
    if annotation is Decoding:
        return {"choices": get_args(Decoding)}
    if annotation is bool:
        return {"action": BooleanOptionalAction}
    if get_origin(annotation) is tuple:
        return {"action": "append", "metavar": "text"}
    kind = next((kind for kind in (int, float) if kind in (annotation, *get_args(annotation))), str)
    return {"type": kind, "metavar": "text" if kind is str else kind.__name__}


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
    """The one model that is named."""
    return _loaded(arguments, lambda: _load_model(arguments.model, arguments.device))


def _load_together(arguments: Namespace) -> tuple[Bundle, Rerankers]:
    """The model that is named and those that answer with it, and the models that help to choose."""

    def load() -> tuple[Bundle, Rerankers]:
        bundle = load_together([arguments.model, *arguments.ensemble], device=arguments.device)
        return bundle, load_rerankers(arguments, bundle, device=arguments.device)

    return _loaded(arguments, load)


def _loaded(arguments: Namespace, load: Callable[[], T]) -> T:
    """What ``load`` returns, or why it cannot."""
    import torch

    from chatbot.decoder import TokenizersDiffer
    from chatbot.model_directory import ModelDirectoryError

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: torch finds no GPU here")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        return load()
    except (ModelDirectoryError, TokenizersDiffer) as error:
        raise CommandError(str(error)) from None


def load_together(paths: Sequence[Path | None], *, device: str) -> Bundle:
    """The models in ``paths`` (None: the shipped one) as one.

    Raises `chatbot.model_directory.ModelDirectoryError` and `chatbot.decoder.TokenizersDiffer`.
    """
    from chatbot.ensemble import EnsembleBundle

    first, *others = [_load_model(path, device) for path in paths]
    return EnsembleBundle((first, *others)) if others else first


def load_rerankers(arguments: Namespace, bundle: Bundle, *, device: str) -> Rerankers:
    """The models that were named to help choosing what ``bundle`` says. Raises the same errors."""
    from chatbot.reranking import Rerankers

    found = [
        None if path is None else _load_model(path, device)
        for path in (arguments.language_model, arguments.reverse_model)
    ]
    rerankers = Rerankers(*found)
    rerankers.require_tokenizer(bundle)
    return rerankers


def _load_model(path: Path | None, device: str) -> ModelBundle:
    from chatbot import model_directory

    return model_directory.load(model_directory.find_model(path or model_directory.SHIPPED), device=device)


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
