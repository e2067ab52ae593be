"""Choosing among finished replies with the help of other models: maximum mutual information (Li, Galley et
al. 2016).

A reply that fits everything ("I don't know") is likely after every turn, so the likeliest is often dull. Two
models look at the candidates T for an answer to the turn S:

    score(T) = log p(T|S) - lambda log p(t_1 … t_gamma) + mu log p(S|T) + eta n

- a language model, which knows no conversation: what it finds likely is dull (MMI-antiLM). With gamma > 0
  only the first tokens count: what a reply begins with is dull, how it goes on is grammar.
- a reversed model, which answers replies with the turns they answer: a reply to anything tells little of
  what was asked (MMI-bidi).
- n tokens are rewarded, since every factor makes a longer reply less likely.

All logarithms are the models' own, natural, of all tokens with the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from chatbot.candidates import Candidate
from chatbot.decoder import Bundle, require_one_tokenizer
from chatbot.options import DecodingOptions, OptionError
from chatbot.tokenizer import clip_turn


def reranks(options: DecodingOptions) -> bool:
    """Whether the options ask for other models' opinions."""
    return options.mmi_lambda > 0 or options.mmi_reverse > 0


@dataclass(frozen=True, slots=True)
class Rerankers:
    """The models that are asked.

    ``reverse`` is trained on conversations in reverse order with the roles exchanged, so that it answers a
    reply, as its user's turn, with the turn that the reply answers.
    """

    language_model: Bundle | None = None
    reverse: Bundle | None = None

    def require_tokenizer(self, bundle: Bundle) -> None:
        """Raises `chatbot.decoder.TokenizersDiffer` unless all have the tokenizer of ``bundle``."""
        require_one_tokenizer([bundle, *(b for b in (self.language_model, self.reverse) if b is not None)])

    def require(self, options: DecodingOptions) -> None:
        """Raises `OptionError` for an option that asks for a model that is not there."""
        if options.mmi_lambda and self.language_model is None:
            raise OptionError("mmi_lambda", "must be 0: there is no language model here")
        if options.mmi_reverse and self.reverse is None:
            raise OptionError("mmi_reverse", "must be 0: there is no reversed model here")

    def rerank(
        self, candidates: Sequence[Candidate], answered: Sequence[int], options: DecodingOptions
    ) -> list[Candidate]:
        """The candidates with the score above, best first; of equals, the earlier.

        ``answered`` are the ids of the turn that they answer, in the form of `Tokenizer.encode_turn`.
        """
        scores = [sum(c.logprobs) + options.mmi_length * len(c.ids) for c in candidates]
        if options.mmi_lambda and self.language_model is not None:
            counted = options.mmi_gamma or None
            replies = [c.ids for c in candidates]
            dullness = continuation_logprobs(self.language_model, [[] for _ in replies], replies)
            for i, logprobs in enumerate(dullness):
                scores[i] -= options.mmi_lambda * sum(logprobs[:counted])
        if options.mmi_reverse and self.reverse is not None:
            for i, logprob in enumerate(_backwards(self.reverse, candidates, answered)):
                scores[i] += options.mmi_reverse * logprob
        scored = [replace(c, score=score) for c, score in zip(candidates, scores, strict=True)]
        return sorted(scored, key=lambda c: -c.score)


def _backwards(reverse: Bundle, candidates: Sequence[Candidate], answered: Sequence[int]) -> list[float]:
    """log p(S|T) for each candidate T."""
    tokenizer, limit = reverse.tokenizer, reverse.config.max_turn_tokens
    texts = [tokenizer.decode(c.ids) for c in candidates]
    turns = [clip_turn(ids, limit) for ids in tokenizer.encode_turns([("user", text) for text in texts])]
    source = clip_turn(answered, limit)[1:]
    logprobs = continuation_logprobs(reverse, [[turn] for turn in turns], [source] * len(turns))
    return [sum(of_one) for of_one in logprobs]


def continuation_logprobs(
    bundle: Bundle, conversations: Sequence[Sequence[Sequence[int]]], replies: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log-probability of each token of ``replies[b]`` as what the agent says after ``conversations[b]``,
    all of them side by side.
    """
    model, device = bundle.model, bundle.model.bias.device
    longest = max(map(len, replies))
    targets = torch.zeros(len(replies), longest, dtype=torch.int64, device=device)
    for row, reply in enumerate(replies):
        targets[row, : len(reply)] = torch.tensor(reply, device=device)
    found = []
    with torch.inference_mode():
        state, memory = model.start(model.encode_conversations(conversations))
        tokens = torch.full((len(replies),), bundle.tokenizer.agent_id, device=device)
        for target in targets.unbind(1):
            logits, state, _ = model.step(tokens, state, memory)
            found.append(logits.log_softmax(1).gather(1, target[:, None]))
            tokens = target
    rows = torch.cat(found, dim=1).tolist()
    return [row[: len(reply)] for row, reply in zip(rows, replies, strict=True)]
