"""What the options of one reply ask of every path to it: which tokens may not come next.

However the reply is searched for (greedy, sampled, beam), a path is constrained in the same order:

    forced prefix       goes before all others (chatbot.prefix)
    never               padding and roles; the end before ``min_tokens``; blocked phrases (chatbot.blocking)
    preferably not      repetition (chatbot.repeats); given up where nothing else could be said
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chatbot.blocking import Watch
from chatbot.options import DecodingOptions
from chatbot.prefix import ForcedPrefix
from chatbot.repeats import EarlierReplies, Runs, repeated_ngrams
from chatbot.terms import Granted
from chatbot.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Rules:
    """The constraints of one reply."""

    end_id: int
    never: tuple[int, ...]
    """Ids that are no part of any reply: padding and the roles."""
    vocab_size: int
    prefix: ForcedPrefix
    min_tokens: int
    no_repeat_ngram: int
    repetition_penalty: float
    context_runs: Runs | None = None
    """Runs of tokens in the bot's earlier turns that may not come again."""
    watch: Watch | None = None
    """Looks for blocked phrases."""
    earlier: EarlierReplies | None = None
    """Replies that a path may not end as. None where a single path goes back instead (chatbot.lines)."""

    @classmethod
    def of(
        cls,
        options: DecodingOptions,
        granted: Granted,
        tokenizer: Tokenizer,
        own_turns: Sequence[Sequence[int]] = (),
    ) -> Rules:
        """``own_turns`` are the ids of what the bot has said in this conversation."""
        size = options.no_repeat_context_ngram
        least = options.no_repeat_reply if options.decoding == "beam" else 0
        earlier = EarlierReplies(own_turns, least, tokenizer)
        return cls(
            end_id=tokenizer.end_id,
            never=(tokenizer.pad_id, tokenizer.user_id, tokenizer.agent_id),
            vocab_size=tokenizer.vocab_size,
            prefix=granted.prefix,
            min_tokens=options.min_tokens,
            no_repeat_ngram=options.no_repeat_ngram,
            repetition_penalty=options.repetition_penalty,
            context_runs=Runs(own_turns, size, tokenizer) if size else None,
            watch=None if granted.blocked is None else Watch(granted.blocked, options.max_tokens),
            earlier=earlier or None,
        )

    def forced(self, ids: Sequence[int]) -> tuple[int, ...] | None:
        """The only ids that may follow ``ids`` while a prefix is not complete; else None."""
        allowed = self.prefix.allowed(ids)
        if allowed is None or self.watch is None:
            return allowed
        blocked = self.watch.forbidden(ids)
        return tuple(token for token in allowed if token not in blocked) or allowed

    def forbidden(self, ids: Sequence[int]) -> set[int]:
        """Ids that may not follow ``ids``, the path so far. At least one id is left."""
        banned = set(self.never)
        if len(ids) < self.min_tokens:
            banned.add(self.end_id)
        if self.watch is not None:
            banned |= self.watch.forbidden(ids)
        repeats = banned
        if self.no_repeat_ngram:
            repeats = repeats | repeated_ngrams(ids, self.no_repeat_ngram)
        if self.context_runs is not None:
            repeats = repeats.union(self.context_runs.after(ids))
        if self.earlier is not None and self.earlier.say(ids):
            repeats = repeats | {self.end_id}
        # A path that has used up the vocabulary may repeat itself rather than have nowhere to go.
        if len(repeats) < self.vocab_size:
            return repeats
        return banned if len(banned) < self.vocab_size else banned - {self.end_id}

    def showable(self, ids: Sequence[int]) -> Sequence[int]:
        """Those of ``ids``, which are certain, that may be shown already."""
        return ids if self.watch is None else ids[: self.watch.showable(ids)]


class Path(NamedTuple):
    """A row of a batch: the reply so far and the rules it is made by."""

    rules: Rules
    ids: Sequence[int]
    avoid: frozenset[int] = frozenset()
    """Ids that this path has tried here before, to no good end."""
