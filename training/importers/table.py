"""Conversations as CSV or TSV: one message a row; its conversation, side and text are in named columns."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import ClassVar, Self
from zoneinfo import ZoneInfo

from chatbot.transcripts import Role, Transcript, Turn
from training.importers.rows import Table
from training.importers.source import Skip, SourceError, encoding_name, expand

_LINE_END = re.compile(r"\r\n?")
"""Of Windows and of old Macs, within a quoted field; a transcript has ``\\n``."""
OTHERS = "*"
"""Stands, among the values of the role column, for every value that is not named."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; ``time`` orders the messages where it is given."""

    conversation: str = "conversation"
    role: str = "role"
    text: str = "text"
    time: str | None = None


@dataclass(slots=True)
class _Message:
    role: Role
    text: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Csv:
    """Comma-separated messages. A conversation's rows need not stand together, but stay within one file."""

    columns: Columns = Columns()
    roles: dict[str, Role | None] = field(default_factory=lambda: {"user": "user", "agent": "agent"})
    """What the values of the role column mean, in lower case; None for rows to leave out. `OTHERS` may stand
    for those that are not named.
    """
    time_zone: tzinfo | None = None
    """Of times that do not say their offset from UTC; without it such times are an error."""
    time_format: str | None = None
    """Of times that are not ISO 8601, as `datetime.strptime` takes it."""
    encoding: str = "utf-8-sig"
    quotes: bool = True
    id_prefix: str = ""
    delimiter: str | None = None
    """None for the one that the form is named after."""

    name: ClassVar[str] = "csv"
    summary: ClassVar[str] = "CSV with a header line, one message a row"
    own_delimiter: ClassVar[str] = ","

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--conversation-column", default="conversation", metavar="NAME", help="default: %(default)s")
        add("--role-column", default="role", metavar="NAME", help="default: %(default)s")
        add("--text-column", default="text", metavar="NAME", help="default: %(default)s")
        add(
            "--time-column",
            metavar="NAME",
            help="ISO 8601; orders the messages and is kept (default: row order)",
        )
        add(
            "--time-format",
            type=_time_format,
            metavar="FORMAT",
            help="of times that are not ISO 8601, such as '%%d.%%m.%%Y %%H:%%M' (Python's strptime)",
        )
        add("--time-zone", type=_time_zone, metavar="ZONE", help="of times without an offset, such as UTC")
        add(
            "--user-role",
            action="append",
            metavar="VALUE",
            help="a role that is the user (default: user); '*' is any that is not named",
        )
        add(
            "--agent-role", action="append", metavar="VALUE", help="a role that is the agent (default: agent)"
        )
        add(
            "--skip-role",
            action="append",
            metavar="VALUE",
            help="a role whose rows are left out, such as system",
        )
        add("--encoding", type=encoding_name, default="utf-8-sig", help="of the file (default: %(default)s)")
        add(
            "--delimiter",
            type=_delimiter,
            metavar="CHARACTER",
            help=f"of fields (default: {cls.own_delimiter!r})",
        )
        add("--no-quotes", action="store_true", help="a quotation mark is an ordinary character")
        add("--id-prefix", default="", help="put before the conversation's id (default: nothing)")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(
            columns=Columns(args.conversation_column, args.role_column, args.text_column, args.time_column),
            roles=_role_table(args.user_role or ["user"], args.agent_role or ["agent"], args.skip_role or []),
            time_zone=args.time_zone,
            time_format=args.time_format,
            encoding=args.encoding,
            quotes=not args.no_quotes,
            id_prefix=args.id_prefix,
            delimiter=args.delimiter,
        )

    def files(self, sources: Sequence[Path]) -> list[Path]:
        return expand(sources, f"*.{self.name}", f"*.{self.name}.gz")

    def read(self, path: Path, skip: Skip) -> Iterator[Transcript]:
        conversations: dict[str, list[_Message]] = {}
        table = Table(
            path, delimiter=self.delimiter or self.own_delimiter, encoding=self.encoding, quotes=self.quotes
        )
        for conversation, message in self._messages(table, skip):
            conversations.setdefault(conversation, []).append(message)
        for conversation, messages in conversations.items():
            if self.columns.time is not None:
                messages.sort(key=lambda message: message.at or datetime.min.replace(tzinfo=UTC))
            yield Transcript(id=self.id_prefix + conversation, turns=_turns(messages))

    def _messages(self, table: Table, skip: Skip) -> Iterator[tuple[str, _Message]]:
        """``(conversation, message)`` of every row that says something."""
        conversation_at = table.column(self.columns.conversation, "--conversation-column")
        role_at = table.column(self.columns.role, "--role-column")
        text_at = table.column(self.columns.text, "--text-column")
        time_at = None if self.columns.time is None else table.column(self.columns.time, "--time-column")
        for line, row in table.rows():
            conversation, text = row[conversation_at].strip(), _LINE_END.sub("\n", row[text_at].strip())
            role = self._role(row[role_at], table.path, line)
            if not conversation:
                raise SourceError(str(table.path), f"line {line}", f"{self.columns.conversation} is empty")
            if role is None:
                skip("row of a role to skip")
            elif not text:
                skip("row without text")
            else:
                at = None if time_at is None else self._time(row[time_at], table.path, line)
                yield conversation, _Message(role, text, at)

    def _role(self, value: str, path: Path, line: int) -> Role | None:
        key = value.strip().lower()
        if key and key not in self.roles:
            key = OTHERS
        if key not in self.roles:
            known = ", ".join(map(repr, self.roles))
            reason = f"role {value!r} is none of {known} (see --user-role, --agent-role, --skip-role)"
            raise SourceError(str(path), f"line {line}", reason)
        return self.roles[key]

    def _time(self, value: str, path: Path, line: int) -> datetime:
        text = value.strip()
        try:
            at = (
                datetime.strptime(text, self.time_format)  # noqa: DTZ007 - the zone is looked at below
                if self.time_format
                else datetime.fromisoformat(text)
            )
        except ValueError:
            form = f"of the form {self.time_format}" if self.time_format else "an ISO 8601 time"
            reason = f"{value!r} is not {form} (see --time-format)"
            raise SourceError(str(path), f"line {line}", reason) from None
        if at.tzinfo is None and self.time_zone is None:
            raise SourceError(
                str(path), f"line {line}", f"{value!r} has no offset from UTC (see --time-zone)"
            )
        try:
            return (at if at.tzinfo is not None else at.replace(tzinfo=self.time_zone)).astimezone(UTC)
        except OverflowError:  # the year 1, which some programs write for no time
            raise SourceError(
                str(path), f"line {line}", f"{value!r} is not within the years 1 to 9999 UTC"
            ) from None


@dataclass(frozen=True, slots=True)
class Tsv(Csv):
    """Tab-separated messages."""

    name: ClassVar[str] = "tsv"
    summary: ClassVar[str] = "TSV with a header line, one message a row"
    own_delimiter: ClassVar[str] = "\t"


def _turns(messages: Sequence[_Message]) -> tuple[Turn, ...]:
    """Consecutive messages of one side as one turn; it begins at the time of the first."""
    merged: list[_Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            merged[-1].text += " " + message.text
        else:
            merged.append(message)
    return tuple(
        Turn(role=turn.role, text=turn.text)
        if turn.at is None
        else Turn(role=turn.role, text=turn.text, at=turn.at)  # a key that was not given is not written
        for turn in merged
    )


def _role_table(user: Sequence[str], agent: Sequence[str], skipped: Sequence[str]) -> dict[str, Role | None]:
    table: dict[str, Role | None] = {}
    sides: tuple[tuple[Role | None, Sequence[str]], ...] = (("user", user), ("agent", agent), (None, skipped))
    for role, values in sides:
        for value in values:
            key = value.strip().lower()
            if table.setdefault(key, role) != role:
                raise SourceError(
                    "--user-role, --agent-role, --skip-role", "", f"{value!r} is given two meanings"
                )
    return table


def _time_zone(text: str) -> tzinfo:
    if text.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(text)
    except (KeyError, ValueError, OSError):  # not there, not a name, a folder
        raise argparse.ArgumentTypeError(f"unknown time zone {text!r}") from None


def _time_format(text: str) -> str:
    some = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    try:
        datetime.strptime(some.strftime(text), text)  # noqa: DTZ007 - only tried
    except (ValueError, re.error):  # a directive that is none, or one that is given twice
        raise argparse.ArgumentTypeError(f"not a form of times: {text!r}") from None
    return text


def _delimiter(text: str) -> str:
    mark = "\t" if text == r"\t" else text
    if len(mark) != 1 or mark in '"\r\n':
        raise argparse.ArgumentTypeError(f"must be one character other than a quotation mark, not {text!r}")
    return mark
