"""Logs of a help channel: ``[HH:MM] <nick> text`` a line, and ``=== …`` for joins, parts and actions.

The Ubuntu logs of Kummerfeld et al. (2019) are in this form, with an annotation of which line answers which
beside each. A channel holds many conversations at once. Two ways find exchanges between one person who asks
(the user) and one who answers (the agent):

``addresses`` needs no annotation. Whoever begins a message with the nick of somebody else (``nick: …`` or
``nick, …``) answers them: an exchange opens between the two, with what the other said last as its first turn.
It goes on with what the two address to each other, until it rests for `REST` messages.

    <ann>  my sound is gone                 \\  user: my sound is gone
    <ben>  morning all                       |
    <cara> ann: which card do you have?      |  agent: which card do you have?
    <dave> ann: did you reboot?              |      (a second exchange, of ann and dave)
    <ann>  cara: how do I see that?         /   user: how do I see that?

``links`` follows the annotation: lines that are linked, directly or through others, are one thread; who began
it is the user, who answered first is the agent, and what others say in it is left out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal, Self

from chatbot.transcripts import Role, Transcript
from training.importers.source import Skip, SourceError, encoding_name, expand, joined, read_lines

QUESTION_PARTS: Final = 3
"""At most so many messages of the user become the first turn."""
QUESTION_SPREAD: Final = 5
"""They lie within so many messages of the channel before the user's last one."""
SEARCH: Final = 40
"""The user's last message is looked for among so many messages before the answer."""
REST: Final = 80
"""After so many messages of the channel without a word between the two, their exchange is over."""

_MESSAGE: Final = re.compile(r"\[\d\d:\d\d(?::\d\d)?\] <([^>]+)> ?(.*)", re.DOTALL)
_ADDRESS: Final = re.compile(r"(\S+?)[:,]\s+(.*)", re.DOTALL)
_KINDS: Final = (".annotation.txt", ".ascii.txt", ".raw.txt")


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody wrote: on which line of the file (from 0), who, to whom if it says so, and the text."""

    line: int
    nick: str
    to: str | None
    text: str


@dataclass(slots=True)
class Exchange:
    """What two people say to each other; positions count the messages of the channel."""

    user: str
    opened: int
    last: int
    said: list[tuple[Role, str]] = field(default_factory=list)

    def add(self, position: int, message: Message) -> None:
        self.said.append(("user" if message.nick == self.user else "agent", message.text))
        self.last = position


@dataclass(frozen=True, slots=True)
class UbuntuIrc:
    """Question and answer exchanges of a help channel."""

    threads: Literal["addresses", "links"] = "addresses"
    encoding: str = "utf-8"
    id_prefix: str = "irc_support-"

    name: ClassVar[str] = "ubuntu_irc"
    summary: ClassVar[str] = "logs of an IRC help channel (.ascii.txt or .raw.txt, .annotation.txt beside it)"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--threads",
            choices=("addresses", "links"),
            default="addresses",
            help="find exchanges by who addresses whom, or by the annotated links (default: %(default)s)",
        )
        parser.add_argument("--encoding", type=encoding_name, default="utf-8", help="default: %(default)s")
        parser.add_argument(
            "--id-prefix", default="irc_support-", help="put before the log's name (default: %(default)s)"
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(threads=args.threads, encoding=args.encoding, id_prefix=args.id_prefix)

    def files(self, sources: Sequence[Path]) -> list[Path]:
        """One file a log: where its annotation, plain and raw text are all named, the plain text is read."""
        logs: dict[Path, Path] = {}
        for path in expand(sources, *("*" + kind for kind in _KINDS)):
            text = _text_of(path)
            logs[_stem(path)] = min(text, logs.get(_stem(path), text), key=_preference)
        return list(logs.values())

    def read(self, path: Path, skip: Skip) -> Iterator[Transcript]:
        messages, lines = read_log(path, self.encoding, skip)
        if self.threads == "links":
            links = read_links(_stem(path).with_name(_stem(path).name + ".annotation.txt"), lines)
            exchanges = exchanges_by_links(messages, links, skip)
        else:
            exchanges = exchanges_by_address(messages, skip)
        for exchange in exchanges:
            yield Transcript(
                id=f"{self.id_prefix}{_stem(path).name}:{exchange.opened}", turns=joined(exchange.said)
            )


def read_log(path: Path, encoding: str, skip: Skip) -> tuple[list[Message], int]:
    """What people wrote in a log, and how many lines it has. Raises `SourceError` when nobody wrote."""
    found: list[tuple[int, str, str]] = []
    lines = 0
    for line in read_lines(path, encoding):
        match = _MESSAGE.fullmatch(line.rstrip("\r\n"))
        if match:
            found.append((lines, match[1], match[2]))
        else:
            skip("line that is not a message")
        lines += 1
    if not found:
        raise SourceError(str(path), "", "no line of the form [HH:MM] <nick> text")
    nicks = {nick for _, nick, _ in found}
    return [_addressed(line, nick, text, nicks) for line, nick, text in found], lines


def exchanges_by_address(messages: Sequence[Message], skip: Skip) -> list[Exchange]:
    """Exchanges in the order in which they open; see the head of this module."""
    exchanges: list[Exchange] = []
    latest: dict[frozenset[str], Exchange] = {}
    for position, message in enumerate(messages):
        if message.to is None:
            continue
        pair = frozenset((message.nick, message.to))
        exchange = latest.get(pair)
        if exchange is None or position - exchange.last > REST:
            question = _question(messages, position, user=message.to, agent=message.nick)
            if not question:
                skip("message to somebody who had said nothing just before")
                continue
            exchange = Exchange(user=message.to, opened=position, last=position)
            exchange.said += [("user", asked.text) for asked in question]
            exchanges.append(exchange)
            latest[pair] = exchange
        exchange.add(position, message)
    return exchanges


def _question(messages: Sequence[Message], answer: int, *, user: str, agent: str) -> list[Message]:
    """What ``user`` said just before message ``answer`` to everybody or to ``agent``, oldest first."""
    found: list[Message] = []
    first = answer - SEARCH
    for position in range(answer - 1, -1, -1):
        message = messages[position]
        if position < first or len(found) == QUESTION_PARTS:
            break
        if message.nick != user:
            continue
        if message.to not in (None, agent):
            break  # before this, the user was busy with somebody else
        if not found:
            first = position - QUESTION_SPREAD
        found.append(message)
    return found[::-1]


def read_links(path: Path, lines: int) -> list[tuple[int, int]]:
    """The links of an annotation file, ``LINE LINE -`` each, both below ``lines``."""
    links: list[tuple[int, int]] = []
    for number, line in enumerate(read_lines(path), start=1):
        match = re.fullmatch(r"(\d{1,9})\s+(\d{1,9})(?:\s+-)?\s*", line)
        if match is None:
            if line.strip():
                raise SourceError(str(path), f"line {number}", "not of the form: LINE LINE -")
            continue
        earlier, later = sorted((int(match[1]), int(match[2])))
        if later >= lines:
            reason = f"links line {later}, but the log has only {lines} (the first is 0)"
            raise SourceError(str(path), f"line {number}", reason)
        links.append((earlier, later))
    return links


def exchanges_by_links(
    messages: Sequence[Message], links: Sequence[tuple[int, int]], skip: Skip
) -> list[Exchange]:
    """An exchange of the first two people of every thread, in the order in which the second of them spoke."""
    thread_of = _threads(links)
    threads: dict[int, list[int]] = {}
    for position, message in enumerate(messages):
        if message.line in thread_of:
            threads.setdefault(thread_of[message.line], []).append(position)
    exchanges: list[Exchange] = []
    for positions in threads.values():
        people = list(dict.fromkeys(messages[position].nick for position in positions))
        if len(people) < 2:
            skip("thread that nobody answered")
            continue
        user, agent = people[:2]
        opened = next(position for position in positions if messages[position].nick == agent)
        exchange = Exchange(user=user, opened=opened, last=opened)
        for position in positions:
            if messages[position].nick in (user, agent):
                exchange.add(position, messages[position])
        exchanges.append(exchange)
    return sorted(exchanges, key=lambda exchange: exchange.opened)


def _threads(links: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The first line of its thread for every linked line (connected components, by union and find)."""
    parent: dict[int, int] = {}

    def find(line: int) -> int:
        while parent.setdefault(line, line) != line:
            parent[line] = line = parent[parent[line]]
        return line

    for link in links:
        roots = sorted(map(find, link))
        parent[roots[1]] = roots[0]
    return {line: find(line) for line in parent}


def _addressed(line: int, nick: str, text: str, nicks: set[str]) -> Message:
    """A message; an address that names somebody else of this log is taken off its text."""
    match = _ADDRESS.fullmatch(text)
    if match and match[1] in nicks and match[1] != nick:
        return Message(line, nick, match[1], match[2])
    return Message(line, nick, None, text)


def _stem(path: Path) -> Path:
    """The path of a log without the ending that tells its kinds apart."""
    for kind in _KINDS:
        if path.name.endswith(kind):
            return path.with_name(path.name.removesuffix(kind))
    return path.with_suffix("")


def _preference(path: Path) -> int:
    return next((rank for rank, kind in enumerate(_KINDS) if path.name.endswith(kind)), len(_KINDS))


def _text_of(path: Path) -> Path:
    """The file that holds the messages of a log, for any of its files."""
    if not path.name.endswith(_KINDS[0]):
        return path
    stem = _stem(path)
    beside = [stem.with_name(stem.name + kind) for kind in _KINDS[1:]]
    for text in beside:
        if text.exists():
            return text
    raise SourceError(str(path), "", f"neither {beside[0].name} nor {beside[1].name} is beside it")
