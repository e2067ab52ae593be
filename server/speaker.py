"""The model, as conversations know it: its name, its defaults, and which options it can follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chatbot.model_directory import ModelBundle
from chatbot.options import DecodingOptions
from chatbot.terms import Terms


@dataclass(frozen=True, slots=True)
class Speaker:
    """options: lays a client's options over the defaults; raises `OptionError` for what cannot be
    followed.
    """

    fingerprint: str
    defaults: DecodingOptions
    options: Callable[[Mapping[str, Any]], DecodingOptions]


def speaker_of(bundle: ModelBundle, rows: int) -> Speaker:
    """A speaker whose batcher has `rows` rows.

    Whatever the batcher would refuse is refused here, before a turn is committed that could not be
    answered.
    """
    terms = Terms(bundle.tokenizer, rows)

    def options(overrides: Mapping[str, Any]) -> DecodingOptions:
        merged = DecodingOptions.merged(bundle.defaults, overrides)
        terms.grant(merged)
        return merged

    return Speaker(bundle.fingerprint, bundle.defaults, options)
