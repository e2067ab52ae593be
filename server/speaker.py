"""The model, as conversations know it: its name, its defaults, and which options it can follow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from chatbot.confidence import Calibration, calibration_of
from chatbot.model_directory import SealedModel
from chatbot.options import DecodingOptions
from chatbot.terms import Terms
from chatbot.transcripts import Role

REMEMBERED: Final = 256
"""Sets of overrides whose options are remembered: a client sends the same with every message."""
SHORT: Final = 500
"""Characters of those, as JSON, at most."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """options: lays a client's options over the defaults; raises `OptionError` for what cannot be
    followed. count_tokens: of turns, as the model reads them. token_bytes: what a token of a reply stands
    for; none for a special token. calibration: how sure it is of a reply; None for a model without one.
    """

    fingerprint: str
    defaults: DecodingOptions
    options: Callable[[Mapping[str, Any]], DecodingOptions]
    count_tokens: Callable[[Sequence[tuple[Role, str]]], int] = lambda _: 0
    token_bytes: Callable[[int], bytes] = lambda _: b""
    calibration: Calibration | None = None


def speaker_of(sealed: SealedModel, rows: int) -> Speaker:
    """A speaker whose batcher has `rows` rows.

    Whatever the batcher would refuse is refused here, before a turn is committed that could not be
    answered.
    """
    terms = Terms(sealed.tokenizer, rows)

    def merged(overrides: Mapping[str, Any]) -> DecodingOptions:
        found = DecodingOptions.merged(sealed.defaults, overrides)
        terms.grant(found)
        return found

    @lru_cache(REMEMBERED)
    def remembered(overrides: str) -> DecodingOptions:
        return merged(json.loads(overrides))

    def options(overrides: Mapping[str, Any]) -> DecodingOptions:
        try:
            written = json.dumps(overrides)
        except (TypeError, ValueError):  # no JSON, so no client's
            return merged(overrides)
        return remembered(written) if len(written) <= SHORT else merged(overrides)

    def count_tokens(turns: Sequence[tuple[Role, str]]) -> int:
        most = sealed.config.max_turn_tokens
        return sum(min(len(ids), most) for ids in sealed.tokenizer.encode_turns(turns))

    return Speaker(
        sealed.fingerprint,
        sealed.defaults,
        options,
        count_tokens,
        sealed.tokenizer.token_bytes,
        calibration_of(sealed.metrics),
    )
