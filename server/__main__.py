"""The server's command line: `python -m server serve | db | key | operator | models | verify | …`.

A command is a function that adds its parser and sets `run`, which takes the parsed arguments and returns the
exit status. What a command needs is imported when it runs, so that `--help` and `db upgrade` load no model.
"""

from __future__ import annotations

import math
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

from server import settings
from server.store_errors import StoreError

Commands: TypeAlias = "_SubParsersAction[ArgumentParser]"

_VARIABLES = (
    f"Each option may also be given as an environment variable: {settings.flag('database_url')} is "
    f"{settings.variable('database_url')}."
)

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = build_parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has left. Without this, the interpreter would complain again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (settings.SettingsError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m server", description="Serve chats, and look after what the server keeps."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    add_serve(commands)
    add_db(commands)
    add_key(commands)
    add_operator(commands)
    add_models(commands)
    add_verify(commands)
    add_export(commands)
    add_erase(commands)
    return parser


def add_serve(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="answer chats until SIGTERM or Ctrl-C",
        description=f"Answer chats until SIGTERM or Ctrl-C. {_VARIABLES}",
    )
    settings.add_arguments(parser)
    parser.set_defaults(run=serve)


def serve(arguments: Namespace) -> int:
    from server.app import serve

    return serve(settings.load(arguments))


def add_db(commands: Commands) -> None:
    parser = commands.add_parser("db", help="set up and upgrade the database")
    actions = parser.add_subparsers(required=True, metavar="action")
    upgrade = actions.add_parser(
        "upgrade",
        help="bring the database to the newest migration",
        description="Bring the database to the newest migration, which sets up an empty one; on SQLite a "
        f"missing file is created. Running it again changes nothing. {_VARIABLES}",
    )
    settings.add_arguments(upgrade, ["database_url"])
    upgrade.set_defaults(run=upgrade_database)


def upgrade_database(arguments: Namespace) -> int:
    from server import database

    url = settings.load(arguments).database_url
    revision = database.upgrade(url)
    print(f"{database.masked(database.parse(url))} is at migration {revision}, the newest")
    return 0


def add_key(commands: Commands) -> None:
    parser = commands.add_parser("key", help="let programs use the HTTP API, and stop them")
    actions = parser.add_subparsers(required=True, metavar="action")
    for name, text in (
        ("add", "make a key; it is printed last, and cannot be shown again"),
        ("list", "the keys' names, when each was added and last used, and which are revoked"),
        ("revoke", "make a key invalid; a running server refuses it from then on"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {_VARIABLES}")
        settings.add_arguments(action, ["database_url"])
        action.add_argument("--json", action="store_true", help="print JSON")
        action.set_defaults(run=run_key, action=name)
        if name != "list":
            action.add_argument("name", metavar="NAME", help="what you call the program that uses the key")


def run_key(arguments: Namespace) -> int:
    from server import keys_command

    action = {"add": keys_command.add, "list": keys_command.list_keys, "revoke": keys_command.revoke}
    return action[arguments.action](arguments)


def add_operator(commands: Commands) -> None:
    parser = commands.add_parser("operator", help="let people into the operators' console, and keep them out")
    actions = parser.add_subparsers(required=True, metavar="action")
    asked = "the password is asked for, or read from the first line of standard input"
    for name, text in (
        ("add", f"make an account; {asked}"),
        ("list", "the operators' names, their roles, when they were last seen, and who is disabled"),
        ("disable", "keep an operator out; all their sessions end at once"),
        ("enable", "let an operator in again who was disabled"),
        ("password", f"give an operator a new password; all their sessions end; {asked}"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {_VARIABLES}")
        settings.add_arguments(action, ["database_url"])
        action.add_argument("--json", action="store_true", help="print JSON")
        action.set_defaults(run=run_operator, action=name)
        if name != "list":
            action.add_argument("name", metavar="NAME", help="what the operator signs in with")
        if name == "add":
            action.add_argument(
                "--role",
                choices=["reviewer", "admin"],
                default="reviewer",
                help="an admin may also decide what goes live, and who is an operator (default: reviewer)",
            )


def run_operator(arguments: Namespace) -> int:
    from server import operators_command

    action = {
        "add": operators_command.add,
        "list": operators_command.list_operators,
        "disable": operators_command.disable,
        "enable": operators_command.enable,
        "password": operators_command.password,
    }
    return action[arguments.action](arguments)


def add_models(commands: Commands) -> None:
    parser = commands.add_parser("models", help="see which model is in use, and change it")
    actions = parser.add_subparsers(required=True, metavar="action")
    for name, text in (
        ("list", "the models in a directory, which one is in use and since when"),
        ("promote", "try a model, then put it in use; a running server follows within seconds"),
        ("rollback", "put the model in use that was before the last promotion"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {_VARIABLES}")
        settings.add_arguments(action, ["models", "rows", "database_url"])
        action.add_argument("--json", action="store_true", help="print JSON")
        action.set_defaults(run=run_models, action=name)
        if name == "promote":
            action.add_argument(
                "model", metavar="MODEL", help="fingerprint or name in the directory, or another directory"
            )


def run_models(arguments: Namespace) -> int:
    from server import models_command

    action = {
        "list": models_command.list_models,
        "promote": models_command.promote,
        "rollback": models_command.rollback,
    }[arguments.action]
    return action(arguments)


def add_verify(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="make the logged replies of a conversation again, and compare",
        description="Make each logged reply of a conversation again with its model, options and seed, and "
        f"score it again. The exit status is 0 only if none is a mismatch. {_VARIABLES}",
    )
    parser.add_argument("conversation", metavar="CONVERSATION", help="the conversation's id")
    settings.add_arguments(parser, ["models", "database_url"])
    parser.add_argument(
        "--tolerance",
        type=_nats,
        default=0.01,
        metavar="NATS",
        help="how far a log-probability may be off (default: 0.01)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_verify)


def _nats(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError("must be a number from 0")
    return value


def run_verify(arguments: Namespace) -> int:
    from server import models_command

    return models_command.verify(arguments)


_FILTERS = {
    "state": "open (not closed), waiting for a person, taken over by one, closed, or all (default: all)",
    "reviewed": "true or false: whether a reviewer was done with it",
    "rating": "up or down: what the visitor thinks of a reply in it",
    "confidence_below": "0 to 1: the lowest confidence of its replies is below it",
    "model": "fingerprint of the model that made its newest reply",
    "label": "a reason that a reviewer gave for a reply in it",
    "verdict": "good or bad: what a reviewer says of a reply in it",
    "cluster": "number of its topic on the newest map of topics",
    "from": "newest message at this time or after it, such as 2025-01-31T09:00:00Z",
    "to": "newest message before this time",
    "q": "words that are all in one of its messages",
}


def add_export(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write conversations to a file",
        description="Write the conversations for which all filters hold to a file; without a filter, all. "
        f"E-mail addresses, numbers and names of the team's list are masked. {_VARIABLES}",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="packed if its name ends in .gz"
    )
    parser.add_argument(
        "--format",
        choices=["jsonl", "reviewed", "csv"],
        default="jsonl",
        help="jsonl: transcripts; reviewed: transcripts for `python -m training retrain --reviewed`, of "
        "conversations in which a reviewer or an operator said something; csv: a row a message "
        "(default: jsonl)",
    )
    parser.add_argument("--unmasked", action="store_true", help="with all personal data")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    settings.add_arguments(parser, ["database_url"])
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name, text in _FILTERS.items():
        parser.add_argument(settings.flag(name), dest=f"filter_{name}", metavar="VALUE", help=text)
    parser.set_defaults(run=run_export)


def run_export(arguments: Namespace) -> int:
    from server import data_command

    return data_command.export(arguments)


def add_erase(commands: Commands) -> None:
    parser = commands.add_parser(
        "erase",
        help="erase a visitor, everywhere",
        description="Erase a visitor with everything they said and everything that was said of it; nothing "
        f"brings it back. The server may be running. {_VARIABLES}",
    )
    parser.add_argument("visitor", metavar="VISITOR", help="the visitor's id")
    parser.add_argument(
        "--conversation", action="store_true", help="the id is that of one of their conversations"
    )
    settings.add_arguments(parser, ["database_url"])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_erase)


def run_erase(arguments: Namespace) -> int:
    from server import data_command

    return data_command.erase(arguments)


if __name__ == "__main__":
    sys.exit(main())
