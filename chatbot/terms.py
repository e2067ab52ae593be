"""What a model can be asked for: options in themselves fine that it cannot follow are refused here, by name.

Whoever commits to a reply before it is made (a server, before it keeps a visitor's turn) asks the same as the
batcher does when it begins.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from typing import Final, NamedTuple

from chatbot.blocking import BlockList, Spellings
from chatbot.options import DecodingOptions, OptionError
from chatbot.prefix import ByteIndex, ForcedPrefix
from chatbot.reranking import Rerankers
from chatbot.tokenizer import Tokenizer

_BLOCK_LISTS: Final = 16
"""Kept, because what they find out is of use to the next reply."""


class Granted(NamedTuple):
    """What options become for one model."""

    prefix: ForcedPrefix
    blocked: BlockList | None


class Terms:
    """The terms of a model with ``tokenizer`` that decodes at most ``rows`` paths at a time."""

    def __init__(self, tokenizer: Tokenizer, rows: int, rerankers: Rerankers | None = None) -> None:
        self._tokenizer = tokenizer
        self._rows = rows
        self._rerankers = rerankers or Rerankers()
        self._index = ByteIndex(tokenizer)
        self._block_lists: OrderedDict[tuple[str, ...], BlockList] = OrderedDict()

    def grant(self, options: DecodingOptions) -> Granted:
        """Raises `OptionError` for the first option that cannot be followed."""
        options.require_vocabulary(self._tokenizer.vocab_size)
        self._rerankers.require(options)
        if rows_needed(options) > self._rows:
            field = "beam_size" if options.decoding == "beam" else "samples"
            raise OptionError(field, f"must be a whole number from 1 to {self._rows} here")
        prefix = ForcedPrefix(options.prefix, self._tokenizer, self._index)
        if len(prefix.chain) > options.max_tokens:
            raise OptionError("prefix", f"has {len(prefix.chain)} tokens, more than max_tokens")
        blocked = self._block_list(options.blocked) if options.blocked else None
        if blocked is not None and blocked.holds(options.prefix):
            raise OptionError("prefix", "holds a phrase that is blocked")
        return Granted(prefix, blocked)

    @cached_property
    def _spellings(self) -> Spellings:
        return Spellings(self._tokenizer)

    def _block_list(self, phrases: tuple[str, ...]) -> BlockList:
        found = self._block_lists.pop(phrases, None) or BlockList(phrases, self._spellings)
        self._block_lists[phrases] = found
        if len(self._block_lists) > _BLOCK_LISTS:
            self._block_lists.popitem(last=False)
        return found


def rows_needed(options: DecodingOptions) -> int:
    """Paths that a reply under ``options`` is searched on."""
    return {"greedy": 1, "sample": options.samples, "beam": options.beam_size}[options.decoding]
