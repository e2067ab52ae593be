"""What the OpenAI-compatible API answers with: objects of OpenAI's shapes, made of replies of ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chatbot.replies import Reply
from server.openai_request import ALIAS
from server.openai_stop import cut

DONE: Final = b"data: [DONE]\n\n"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of an answer have in common. created: seconds since 1970."""

    id: str
    created: int
    model: str

    def whole(self, choices: Iterable[Json], usage: Json) -> Json:
        """The answer to a request without `stream`."""
        return self._object("chat.completion", list(choices)) | {"usage": usage}

    def chunk(self, choices: Iterable[Json]) -> Json:
        """A part of a streamed answer."""
        return self._object("chat.completion.chunk", list(choices))

    def _object(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.model,
            "choices": choices,
        }


@dataclass(frozen=True, slots=True)
class Ending:
    """How a reply ended: its text up to a stop string, its tokens beyond that too. stops: those asked for."""

    index: int
    text: str
    reply: Reply
    stopped: bool
    stops: tuple[str, ...]

    @property
    def finish_reason(self) -> str:
        return "length" if self.reply.finish_reason == "length" and not self.stopped else "stop"

    def extras(self) -> Json:
        """What our replies have and OpenAI's do not."""
        alternatives = [
            {"text": cut(each.text, self.stops), "score": each.score} for each in self.reply.alternatives
        ]
        return {"seed": self.reply.seed} | ({"alternatives": alternatives} if alternatives else {})


def choice(ending: Ending, logprobs: Json | None) -> Json:
    """One of the choices of a whole answer."""
    return {
        "index": ending.index,
        "message": {"role": "assistant", "content": ending.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": ending.finish_reason,
    } | ending.extras()


def delta(index: int, content: Mapping[str, Any]) -> Json:
    """A part of a choice while it is being made."""
    return {"index": index, "delta": content, "logprobs": None, "finish_reason": None}


def last_delta(ending: Ending, logprobs: Json | None) -> Json:
    """The last part of a choice, without text."""
    return {
        "index": ending.index,
        "delta": {},
        "logprobs": logprobs,
        "finish_reason": ending.finish_reason,
    } | ending.extras()


def usage(prompt_tokens: int, replies: Iterable[Reply]) -> Json:
    """Tokens read and made; a reply's end token is one of them."""
    made = sum(len(reply.token_ids) for reply in replies)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": made,
        "total_tokens": prompt_tokens + made,
    }


def logprobs(ending: Ending, token_bytes: Callable[[int], bytes]) -> Json:
    """The log-probabilities of the tokens that make up the text; a stop string and the end are left out."""
    content: list[Json] = []
    room = len(ending.text.encode())
    places = ending.reply.top or ((),) * len(ending.reply.token_ids)
    for token, logprob, top in zip(ending.reply.token_ids, ending.reply.logprobs, places, strict=False):
        spelled = token_bytes(token)
        if not spelled or room <= 0:
            continue
        # The space that a reply is decoded with is no part of its text.
        room -= len(spelled) - (not content and spelled.startswith(b" "))
        alternatives = [_token(each.text, token_bytes(each.id), each.logprob) for each in top]
        shown = _token(spelled.decode("utf-8", "replace"), spelled, logprob)
        content.append(shown | {"top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def _token(text: str, spelled: bytes, logprob: float) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(spelled)}


def models(fingerprint: str, created: int) -> list[Json]:
    """The model in use, under its name and under the name of whichever is in use."""
    return [
        {"id": name, "object": "model", "created": created, "owned_by": "turnwise"}
        for name in (ALIAS, fingerprint)
    ]


def encoded(found: Json) -> bytes:
    return json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def event(found: Json) -> bytes:
    """As a server-sent event."""
    return b"data: " + encoded(found) + b"\n\n"
