"""A request to `POST /v1/chat/completions`, read strictly.

What this model cannot honour is refused by name rather than ignored: an answer to something that was not
asked would look like one to what was. docs/openai-api.md is the reference for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from chatbot.options import DecodingOptions, OptionError
from chatbot.transcripts import Role
from server.openai_errors import ApiError, bad_request
from server.protocol import FrameError, read_json
from server.speaker import Speaker

ALIAS: Final = "turnwise"
"""The name of whichever model is in use."""
MAX_BODY: Final = 256 * 1024
"""Bytes of a request."""
MAX_CHOICES: Final = 8
"""Replies to one request, where the server's settings allow as many."""
MAX_STOPS: Final = 4
MAX_STOP: Final = 100
"""Code points of a stop string."""
MAX_LABEL: Final = 256
"""Code points of a model's name, and of names that only the client has a use for."""
_DEPTH: Final = 12

_ROLES: Final[dict[str, Role]] = {"user": "user", "assistant": "agent"}
_TAKEN_APART: Final = {
    "model",
    "messages",
    "stream",
    "stream_options",
    "n",
    "stop",
    "logprobs",
    "top_logprobs",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
}
_OURS: Final = {*DecodingOptions.model_fields} - {"attention", "top_alternatives"} - _TAKEN_APART
"""Options that have our names; those left out are asked for by OpenAI's, or have no place in an answer."""
_LABELS: Final = {"user", "safety_identifier", "prompt_cache_key"}
"""Names that the client uses for its own ends: taken, neither used nor kept."""
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "audio": (),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters that are taken only with values that ask for nothing. Of every parameter, null is one."""
_MESSAGE_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_calls": ([],),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """messages: of a conversation. text: code points of one. choices: replies to one request."""

    messages: int
    text: int
    choices: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    overrides: of the model's own options. choices: how many replies. names: what the client calls an option
    of ours, where that is another name.
    """

    model: str
    turns: tuple[tuple[Role, str], ...]
    overrides: Mapping[str, Any]
    names: Mapping[str, str]
    choices: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: bool

    def options(self, speaker: Speaker) -> DecodingOptions:
        """As that model takes them. Raises `ApiError`, also when it is not the model that was asked for."""
        if self.model not in (ALIAS, speaker.fingerprint):
            raise unknown_model()
        try:
            options = speaker.options(self.overrides)
        except OptionError as error:
            name = self.names.get(error.field, error.field)
            raise bad_request(f"{name}: {error.reason}", name, "bad_option") from None
        if self.choices > 1 and options.decoding != "sample":
            raise bad_request("n: above 1 only when replies are drawn, with a temperature above 0", "n")
        return options


def unknown_model() -> ApiError:
    return ApiError(
        404, "model_not_found", "model: no model of this name is in use; see /v1/models", param="model"
    )


def parse(body: bytes, limits: Limits) -> Asked:
    """Raises `ApiError`."""
    found = _json(body)
    for name, value in found.items():
        _check_name(name, value)
    overrides, names = _overrides(found)
    stream = _flag(found, "stream")
    logprobs = _flag(found, "logprobs")
    top = _whole(found, "top_logprobs", 0, 20, 0)
    if top:
        if not logprobs:
            raise bad_request("top_logprobs: only with logprobs", "top_logprobs")
        overrides["top_alternatives"] = top
    return Asked(
        model=_label(found, "model"),
        turns=_turns(found.get("messages"), limits),
        overrides=overrides,
        names=names,
        choices=_whole(found, "n", 1, limits.choices, 1),
        stops=_stops(found.get("stop")),
        stream=stream,
        include_usage=_include_usage(found.get("stream_options"), stream),
        logprobs=logprobs,
    )


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = read_json(body.decode(), _DEPTH)
    except UnicodeDecodeError:
        raise bad_request("the body is not UTF-8", code="bad_message") from None
    except FrameError as error:
        raise bad_request(error.reason, code="bad_message") from None
    if not isinstance(found, dict):
        raise bad_request("the body is a JSON object", code="bad_message")
    return {name: value for name, value in found.items() if value is not None}


def _check_name(name: str, value: Any) -> None:
    if name in _NEUTRAL:
        _require_neutral(name, value, _NEUTRAL[name])
    elif name in _LABELS:
        if not isinstance(value, str) or len(value) > MAX_LABEL:
            raise bad_request(f"{name}: must be a text of at most {MAX_LABEL} characters", name)
    elif name not in _TAKEN_APART and name not in _OURS:
        shown = name[:MAX_LABEL]
        raise bad_request(f"{shown}: no such parameter", shown, "unknown_parameter")


def _require_neutral(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    # By type as well: to Python, 0 is False.
    if value is not None and not any(type(value) is type(each) and value == each for each in neutral):
        raise bad_request(f"{name}: this server cannot do that; leave it out", name, "unsupported_parameter")


def _overrides(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Our options and, where they differ, the names that the client gave them."""
    overrides = {name: found[name] for name in _OURS if name in found}
    names = {"top_alternatives": "top_logprobs"}
    limits = [name for name in ("max_tokens", "max_completion_tokens") if name in found]
    if limits:
        first, last = found[limits[0]], found[limits[-1]]
        if type(first) is not type(last) or first != last:  # to Python, true is 1
            raise bad_request(
                "max_completion_tokens: another value than max_tokens, its older name", limits[-1]
            )
        overrides["max_tokens"], names["max_tokens"] = last, limits[-1]
    if "temperature" in found:
        temperature = found["temperature"]
        if temperature == 0 and type(temperature) in (int, float) and overrides.get("decoding") != "sample":
            overrides.setdefault("decoding", "greedy")
        else:
            overrides["temperature"] = temperature
    if overrides.keys() & {"temperature", "top_p"}:
        overrides.setdefault("decoding", "sample")
    return overrides, names


def _turns(messages: Any, limits: Limits) -> tuple[tuple[Role, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages: must be a list of at least one message", "messages")
    if len(messages) > limits.messages:
        raise bad_request(f"messages: at most {limits.messages} of them", "messages", "too_long")
    turns = tuple(_turn(message, f"messages.{at}", limits.text) for at, message in enumerate(messages))
    if turns[-1][0] != "user":
        at = f"messages.{len(turns) - 1}.role"
        raise bad_request(
            f"{at}: the last message must be the user's, for there is nothing else to answer", at
        )
    return turns


def _turn(message: Any, at: str, most: int) -> tuple[Role, str]:
    if not isinstance(message, dict):
        raise bad_request(f"{at}: must be an object", at)
    for name, value in message.items():
        where = f"{at}.{name[:MAX_LABEL]}"
        if name in _MESSAGE_NEUTRAL:
            _require_neutral(where, value, _MESSAGE_NEUTRAL[name])
        elif name not in ("role", "content"):
            raise bad_request(f"{where}: no such field", where, "unknown_parameter")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        # An instruction that is ignored without a word would be a promise that nobody keeps.
        reason = (
            "must be user or assistant: this model was trained on conversations and follows no instructions"
        )
        raise bad_request(f"{at}.role: {reason}", f"{at}.role", "unsupported_role")
    text = _text(message.get("content"), f"{at}.content")
    if len(text) > most:
        reason = f"{at}.content: a message has at most {most} characters"
        raise bad_request(reason, f"{at}.content", "too_long")
    return _ROLES[role], text


def _text(content: Any, at: str) -> str:
    """A text, or a list of parts that are texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{at}: must be a text, or a list of parts of type text", at)
    for number, part in enumerate(content):
        if (
            not isinstance(part, dict)
            or part.keys() != {"type", "text"}
            or part["type"] != "text"
            or not isinstance(part["text"], str)
        ):
            raise bad_request(f"{at}.{number}: must be a part of type text", f"{at}.{number}")
    return "".join(part["text"] for part in content)


def _stops(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(each, str) and 1 <= len(each) <= MAX_STOP for each in stops)
    ):
        reason = f"stop: must be a text or up to {MAX_STOPS} texts of 1 to {MAX_STOP} characters"
        raise bad_request(reason, "stop")
    return tuple(stops)


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise bad_request("stream_options: only with stream", "stream_options")
    if not isinstance(options, dict) or not options.keys() <= {"include_usage", "include_obfuscation"}:
        raise bad_request("stream_options: must be an object with include_usage", "stream_options")
    if options.get("include_obfuscation"):
        raise bad_request(
            "stream_options.include_obfuscation: this server cannot do that",
            "stream_options.include_obfuscation",
            "unsupported_parameter",
        )
    return _flag(options, "include_usage", "stream_options.")


def _flag(found: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = found.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"{where}{name}: must be true or false", f"{where}{name}")
    return bool(value)


def _whole(found: Mapping[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = found.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise bad_request(f"{name}: must be a whole number from {least} to {most}", name, "bad_option")
    return value


def _label(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if value is None:
        raise bad_request(f"{name}: missing", name)
    if not isinstance(value, str) or len(value) > MAX_LABEL:
        raise bad_request(f"{name}: must be a text of at most {MAX_LABEL} characters", name)
    return value
