"""The server's command line: `python -m server serve | db | key | models | verify`.

A command is a function that adds its parser and sets `run`, which takes the parsed arguments and returns the
exit status. What a command needs is imported when it runs, so that `--help` and `db upgrade` load no model.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Sequence
from typing import TypeAlias

from server import settings
from server.store_errors import StoreError

Commands: TypeAlias = "_SubParsersAction[ArgumentParser]"

_VARIABLES = (
    f"Each option may also be given as an environment variable: {settings.flag('database_url')} is "
    f"{settings.variable('database_url')}."
)


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = build_parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except (settings.SettingsError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    return status


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m server", description="Serve chats, and look after what the server keeps."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    add_serve(commands)
    add_db(commands)
    add_key(commands)
    add_models(commands)
    add_verify(commands)
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
        type=float,
        default=0.01,
        metavar="NATS",
        help="how far a log-probability may be off (default: 0.01)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_verify)


def run_verify(arguments: Namespace) -> int:
    from server import models_command

    return models_command.verify(arguments)


if __name__ == "__main__":
    sys.exit(main())
