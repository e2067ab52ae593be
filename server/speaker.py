"""The model, as conversations know it: its name, its defaults, and which options it can follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chatbot.model_directory import ModelBundle
from chatbot.options import DecodingOptions, OptionError
from chatbot.prefix import ByteIndex, ForcedPrefix


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
    index = ByteIndex(bundle.tokenizer)

    def options(overrides: Mapping[str, Any]) -> DecodingOptions:
        merged = DecodingOptions.merged(bundle.defaults, overrides)
        merged.require_vocabulary(bundle.config.vocab_size)
        if merged.decoding == "beam" and merged.beam_size > rows:
            raise OptionError("beam_size", f"must be a whole number from 1 to {rows} here")
        if len(ForcedPrefix(merged.prefix, bundle.tokenizer, index).chain) > merged.max_tokens:
            raise OptionError("prefix", "must be no longer than max_tokens")
        return merged

    return Speaker(bundle.fingerprint, bundle.defaults, options)
