"""The protocol as one chat socket lives it, a pure state machine: what happened → what is to be done.

               hello                 opened
    greeting ─────────▶ opening ─────────────▶ open
        ▲                  │
        └──────────────────┘ refused            any of them ── close ──▶ closed

It decides what may be asked when, checks texts and options, and counts unreadable frames. It awaits
nothing, reads no clock, and knows neither sockets nor the database: `server.chat_socket` carries the
effects out and reports back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, assert_never

from chatbot.options import DecodingOptions, OptionError
from server.protocol import (
    MAX_ID,
    Cancel,
    ClientMessage,
    Close,
    Error,
    FrameError,
    Hello,
    Human,
    Ping,
    Pong,
    Rate,
    Rating,
    Regenerate,
    Say,
    ServerMessage,
)


class Phase(Enum):
    GREETING = "greeting"
    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a session holds its client to.

    options: the model's defaults with a client's options laid over them; raises `OptionError`.
    max_text: code points of the longest text.
    patience: this many more unreadable or misplaced frames than good ones, and the connection is closed.
    """

    options: Callable[[dict[str, Any]], DecodingOptions]
    max_text: int
    patience: int = 20


# --- what can happen --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A frame that is no message."""

    error: FrameError


@dataclass(frozen=True, slots=True)
class HelloOverdue:
    """The time for a hello is up."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The conversation that `Open` asked for is there; its `ready` is on the way."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The last effect was not carried out."""

    error: Error


Event: TypeAlias = ClientMessage | Unreadable | HelloOverdue | Opened | Refused

# --- what is to be done -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    message: ServerMessage


@dataclass(frozen=True, slots=True)
class Shut:
    """Close the connection once everything sent so far is out."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Open:
    """Answered by `Opened` or `Refused`."""

    token: str | None
    conversation: str | None
    last_seq: int


@dataclass(frozen=True, slots=True)
class Post:
    """Commit a turn and have it answered. `overrides` is what the client sent."""

    id: str
    text: str
    overrides: dict[str, Any]
    options: DecodingOptions


@dataclass(frozen=True, slots=True)
class Stop:
    reply: str


@dataclass(frozen=True, slots=True)
class Redo:
    """Another reply in place of `reply`."""

    reply: str
    overrides: dict[str, Any]
    options: DecodingOptions


@dataclass(frozen=True, slots=True)
class Judge:
    message: str
    rating: Rating | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class Summon:
    """The visitor wants a person."""


Task: TypeAlias = Open | Post | Stop | Redo | Judge | Summon
"""Effects that somebody else has to carry out, and may refuse."""
Effect: TypeAlias = Send | Shut | Task


class Session:
    """The state machine. `handle` is its only input, what it returns its only output."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._strikes = 0
        self.phase = Phase.GREETING

    def handle(self, event: Event) -> list[Effect]:
        if self.phase is Phase.CLOSED:
            return []
        match event:
            case Unreadable(error):
                refusal = Error(code="bad_message", message=error.reason, id=error.about, field=error.field)
                return self._strike(refusal)
            case HelloOverdue():
                return [] if self.phase is Phase.OPEN else self._close(Close.NO_HELLO, "no hello in time")
            case Opened():
                self.phase = Phase.OPEN
                return []
            case Refused(error):
                return self._refused(error)
            case _:
                return self._message(event)

    def _message(self, message: ClientMessage) -> list[Effect]:
        if isinstance(message, Ping):
            return [Send(Pong())]
        if isinstance(message, Hello):
            return self._hello(message)
        if self.phase is not Phase.OPEN:
            return self._strike(_error("bad_state", "say hello first", message))
        effects = self._request(message)
        self._strikes = max(0, self._strikes - 1)
        return effects

    def _hello(self, hello: Hello) -> list[Effect]:
        if self.phase is not Phase.GREETING:
            return self._strike(Error(code="bad_state", message="this connection has said hello already"))
        self.phase = Phase.OPENING
        return [Open(hello.token, hello.conversation, hello.last_seq)]

    def _request(self, message: Say | Cancel | Regenerate | Rate | Human) -> list[Effect]:
        match message:
            case Say():
                return [self._say(message)]
            case Cancel():
                return [Stop(message.reply)]
            case Regenerate():
                return [self._regenerate(message)]
            case Rate():
                return [Judge(message.message, message.rating, message.comment)]
            case Human():
                return [Summon()]
            case _:
                assert_never(message)

    def _say(self, say: Say) -> Effect:
        limit = self._rules.max_text
        if len(say.text) > limit:
            return Send(_error("too_long", f"a message has at most {limit} characters", say, field="text"))
        try:
            options = self._rules.options(say.options)
        except OptionError as error:
            return Send(_bad_option(error, say))
        return Post(say.id, say.text, say.options, options)

    def _regenerate(self, message: Regenerate) -> Effect:
        try:
            options = self._rules.options(message.options)
        except OptionError as error:
            return Send(_bad_option(error, message))
        return Redo(message.reply, message.options, options)

    def _refused(self, error: Error) -> list[Effect]:
        if self.phase is not Phase.OPENING:
            return [Send(error)]
        self.phase = Phase.GREETING
        if error.code == "unauthenticated":
            return [Send(error), *self._close(Close.UNAUTHENTICATED, error.message)]
        # A wait is no fault of the client; anything else may be somebody who tries ids one after another.
        return [Send(error)] if error.retry_after is not None else self._strike(error)

    def _strike(self, refusal: Error) -> list[Effect]:
        self._strikes += 1
        if self._strikes > self._rules.patience:
            return [Send(refusal), *self._close(Close.POLICY, "too many bad frames")]
        return [Send(refusal)]

    def _close(self, code: int, reason: str) -> list[Effect]:
        self.phase = Phase.CLOSED
        return [Shut(code, reason)]


def subject(message: ClientMessage) -> str | None:
    """The id by which a client can tell what an error is about."""
    match message:
        case Say():
            return message.id
        case Cancel() | Regenerate():
            return message.reply
        case Rate():
            return message.message
        case _:
            return None


def _bad_option(error: OptionError, about: ClientMessage) -> Error:
    """The name of what is no option may fill a frame; no more of it is said than of an id."""
    name = error.field[:MAX_ID]
    return _error("bad_option", f"{name}: {error.reason}", about, field=name)


def _error(code: Any, text: str, about: ClientMessage, field: str | None = None) -> Error:
    return Error(code=code, message=text, id=subject(about), field=field)
