"""`chat.v1`: the messages of the chat socket, read strictly and written compactly.

A frame is one JSON object whose `type` says which of the models below it is. What comes from a client is
read in two steps: as JSON without the corners in which parsers differ (duplicate keys, NaN, numbers no
column holds, half surrogates, NUL, deep nesting), then against a schema that knows every field.
`docs/protocol.md` is the reference for people; its examples are parsed by a test.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

SUBPROTOCOL: Final = "chat.v1"
MAX_FRAME: Final = 64 * 1024
"""Bytes of the largest frame a client may send."""
MAX_ID: Final = 64
"""Code points of the longest id, the client's own or ours."""
MAX_COMMENT: Final = 2000
"""Code points of the longest comment on a reply."""
MAX_DEPTH: Final = 4
MAX_DIGITS: Final = 19
"""Digits of the longest whole number: 2^63 - 1, the largest seed, has as many."""

ErrorCode: TypeAlias = Literal[
    "bad_message",
    "bad_option",
    "too_long",
    "busy",
    "conflict",
    "not_found",
    "not_available",
    "unauthenticated",
    "bad_state",
    "internal",
]


class Close:
    """Close codes, of RFC 6455 and of our own."""

    GOING_AWAY: Final = 1001
    POLICY: Final = 1008
    TOO_BIG: Final = 1009
    INTERNAL: Final = 1011
    TRY_LATER: Final = 1013
    UNAUTHENTICATED: Final = 4401
    FORBIDDEN: Final = 4403
    NO_HELLO: Final = 4408
    REPLACED: Final = 4409
    TOO_MANY: Final = 4429


class FrameError(ValueError):
    """A frame that cannot be read.

    Attributes: reason (in words, without the frame's text), about (the id of the say, reply or message that
    it meant, where that much could be read), field (the part at fault, None for the frame as a whole).
    """

    def __init__(self, reason: str, *, about: str | None = None, field: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.about, self.field = reason, about, field


class _Frame(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _absent(value: object) -> bool:
    return value is None


Id: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Seq: TypeAlias = Annotated[int, Field(ge=0, le=2**53 - 1)]
Rating: TypeAlias = Literal["up", "down"]
OwnerName: TypeAlias = Literal["bot", "operator"]

# --- client to server -------------------------------------------------------------------------------------


class Hello(_Frame):
    """Who is there, and what they have seen. The first frame of a connection."""

    type: Literal["hello"] = "hello"
    token: Annotated[str, Field(max_length=256)] | None = None
    conversation: Annotated[str, Field(max_length=MAX_ID)] | None = None
    last_seq: Seq = 0


class Say(_Frame):
    """A turn of the visitor. `id` is the client's; sending it again is harmless."""

    type: Literal["say"] = "say"
    id: Id
    text: str
    options: dict[str, Any] = Field(default_factory=dict)


class Cancel(_Frame):
    """Stop a running reply; what was made of it is kept."""

    type: Literal["cancel"] = "cancel"
    reply: Id


class Regenerate(_Frame):
    """Another reply to the same turn, in place of this one."""

    type: Literal["regenerate"] = "regenerate"
    reply: Id
    options: dict[str, Any] = Field(default_factory=dict)


class Rate(_Frame):
    """What the visitor thinks of a reply; null takes a rating back."""

    type: Literal["rate"] = "rate"
    message: Id
    rating: Rating | None
    comment: Annotated[str, Field(max_length=MAX_COMMENT)] | None = None


class Human(_Frame):
    """The visitor asks for a person; answered with `owner`."""

    type: Literal["human"] = "human"


class Ping(_Frame):
    """A sign of life, answered with `pong`; browsers cannot send the WebSocket's own."""

    type: Literal["ping"] = "ping"


ClientMessage: TypeAlias = Hello | Say | Cancel | Regenerate | Rate | Human | Ping
CLIENT_MESSAGES: Final = (Hello, Say, Cancel, Regenerate, Rate, Human, Ping)

# --- server to client -------------------------------------------------------------------------------------


class Replying(_Frame):
    """The reply that is being made while a client connects, and what there is of it."""

    reply: str
    text: str


class Alternative(_Frame):
    """Another reply of a beam, with its score (higher is better)."""

    text: str
    score: float


class Message(_Frame):
    """A committed turn. Fields without a value are left out.

    A visitor's turn carries the `client_id` it was said with. A reply carries the reply id its deltas had,
    the user message it answers, how it ended, and what made it (model fingerprint and seed); `replaces`
    names the message that a regenerated reply takes the place of, which is `superseded` from then on. What a
    person wrote on the agent's side has the author `operator`, and nothing that only a reply has.
    """

    type: Literal["message"] = "message"
    seq: Seq
    message: str
    role: Literal["user", "agent"]
    text: str
    author: Literal["operator"] | None = Field(None, exclude_if=_absent)
    at: str | None = Field(None, exclude_if=_absent)
    client_id: str | None = Field(None, exclude_if=_absent)
    reply: str | None = Field(None, exclude_if=_absent)
    answers: str | None = Field(None, exclude_if=_absent)
    replaces: str | None = Field(None, exclude_if=_absent)
    finish_reason: Literal["stop", "length", "cancelled", "abstained"] | None = Field(
        None, exclude_if=_absent
    )
    model: str | None = Field(None, exclude_if=_absent)
    seed: int | None = Field(None, exclude_if=_absent)
    alternatives: tuple[Alternative, ...] | None = Field(None, exclude_if=_absent)
    rating: Rating | None = Field(None, exclude_if=_absent)
    comment: str | None = Field(None, exclude_if=_absent)
    superseded: Literal[True] | None = Field(None, exclude_if=_absent)


class Limits(_Frame):
    """What a client should keep to: code points of a text, tokens of a reply, bytes of a frame."""

    max_text: int
    max_tokens: int
    max_frame: int


class Ready(_Frame):
    """Where the conversation stands: the answer to `hello`. `defaults` are the model's options.

    `owner` and `waiting`: as in `Owner`.
    """

    type: Literal["ready"] = "ready"
    token: str
    conversation: str
    model: str
    seq: Seq
    messages: tuple[Message, ...]
    replying: Replying | None
    owner: OwnerName = "bot"
    waiting: Literal[True] | None = Field(None, exclude_if=_absent)
    defaults: dict[str, Any]
    limits: Limits


class Accepted(_Frame):
    """A `say` is committed. The same for a repeated id."""

    type: Literal["accepted"] = "accepted"
    id: str
    message: str
    seq: Seq


class Delta(_Frame):
    """More of a running reply, from code point `offset` on. Provisional: `message` has the last word."""

    type: Literal["delta"] = "delta"
    reply: str
    offset: Seq
    text: str


class Rated(_Frame):
    """A rating is committed."""

    type: Literal["rated"] = "rated"
    message: str
    rating: Rating | None


class Owner(_Frame):
    """Who answers from now on. `waiting`: a person has been asked for, and none has come yet."""

    type: Literal["owner"] = "owner"
    owner: OwnerName
    waiting: Literal[True] | None = Field(None, exclude_if=_absent)


class Error(_Frame):
    """Something was refused and nothing changed. `id` is that of the say, reply or message it is about."""

    type: Literal["error"] = "error"
    code: ErrorCode
    message: str
    id: str | None = Field(None, exclude_if=_absent)
    field: str | None = Field(None, exclude_if=_absent)
    retry_after: float | None = Field(None, exclude_if=_absent)


class GoingAway(_Frame):
    """The server is about to stop; seconds after which another one should be there."""

    type: Literal["going_away"] = "going_away"
    reconnect_after: float


class Pong(_Frame):
    type: Literal["pong"] = "pong"


ServerMessage: TypeAlias = Ready | Accepted | Delta | Message | Rated | Owner | Error | GoingAway | Pong
SERVER_MESSAGES: Final = (Ready, Accepted, Delta, Message, Rated, Owner, Error, GoingAway, Pong)

# --- reading and writing ----------------------------------------------------------------------------------

_CLIENT: Final[TypeAdapter[ClientMessage]] = TypeAdapter(
    Annotated[ClientMessage, Field(discriminator="type")]
)
_SERVER: Final[TypeAdapter[ServerMessage]] = TypeAdapter(
    Annotated[ServerMessage, Field(discriminator="type")]
)


def parse_client(text: str) -> ClientMessage:
    """One frame of a client. Raises `FrameError`."""
    frame = read_json(text, MAX_DEPTH)
    if not isinstance(frame, dict):
        raise FrameError("a frame is a JSON object")
    try:
        return _CLIENT.validate_python(frame)
    except ValidationError as error:
        raise _schema_error(frame, error) from None


def parse_server(text: str) -> ServerMessage:
    """One frame of the server, for clients written in Python. Raises pydantic's `ValidationError`."""
    return _SERVER.validate_json(text)


def encode(message: ServerMessage | ClientMessage) -> str:
    """The frame's text: compact JSON."""
    return message.model_dump_json()


def read_json(text: str, depth: int) -> Any:
    """JSON without the corners in which parsers differ, nested at most `depth` deep. Raises `FrameError`."""
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise FrameError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise FrameError(f"not JSON: {error.msg} at character {error.pos}") from None
    _check(value, depth)
    return value


def _check(value: Any, depth: int) -> None:
    """Refuse what JSON allows and a database, a tokenizer or a terminal does not."""
    if isinstance(value, str):
        if "\0" in value:
            raise FrameError("a text holds a NUL")
        # Asked of the encoder because it is C: a loop over code points would cost more than all the rest.
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FrameError("a text holds half of a surrogate pair") from None
    elif isinstance(value, (dict, list)):
        if depth == 0:
            raise FrameError("nested too deeply")
        for item in value if isinstance(value, list) else [*value.keys(), *value.values()]:
            _check(item, depth - 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FrameError("a key appears twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise FrameError(f"a whole number has more than {MAX_DIGITS} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise FrameError("a number is too large")
    return value


def _constant(name: str) -> Any:
    raise FrameError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
_TYPES: Final = ", ".join(message.model_fields["type"].default for message in CLIENT_MESSAGES)


def _schema_error(frame: dict[str, Any], error: ValidationError) -> FrameError:
    """The first thing that is wrong, by the name the client gave it; never with the value it sent."""
    problem = error.errors(include_input=False, include_url=False)[0]
    kind = problem["type"]
    if kind == "union_tag_not_found":
        return FrameError("type: missing", field="type")
    if kind == "union_tag_invalid":
        return FrameError(f"type: must be one of {_TYPES}", field="type")
    path = [str(part) for part in problem["loc"][1:]]  # the first part is the type, from the discriminator
    field = ".".join(path)[:MAX_ID]
    reason = "no such field" if kind == "extra_forbidden" else problem["msg"]
    return FrameError(f"{field}: {reason}", about=_id_of(frame), field=field)


def _id_of(frame: dict[str, Any]) -> str | None:
    """The id of the say, reply or message that a broken frame is about."""
    for key in ("id", "reply", "message"):
        value = frame.get(key)
        if isinstance(value, str) and 0 < len(value) <= MAX_ID:
            return value
    return None
