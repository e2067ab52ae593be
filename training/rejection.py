"""Which replies of the old data reviewers reject, and after what: pure functions of texts.

The old data is full of what was corrected, and would teach it again. But "Thank you and goodbye." may be
wrong after a goodbye and right after an order: which of the two it is, is judged by the turn that it answers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.filters import plain


@dataclass(frozen=True, slots=True)
class Judgement:
    """How much rather a reply is rejected than let stand, by the words of the turn that it answers.

    A naive Bayes classifier (McCallum and Nigam 1998, the Bernoulli model, but for the words not said: turns
    are short, and what they do not say tells little). Log-odds in nats: ``prior``, and what each word adds.
    """

    prior: float
    words: Mapping[str, float]

    def log_odds(self, question: str) -> float:
        return self.prior + math.fsum(self.words.get(word, 0.0) for word in set(plain(question).split()))


def judgement(rejected: Sequence[str], stood: Sequence[str]) -> Judgement:
    """Of the turns after which a reply was corrected, and after which it stood; each probability of a word,
    and of the class, with one more of either added (Laplace).
    """
    wrong, right = _said(rejected), _said(stood)
    return Judgement(
        prior=math.log((len(rejected) + 1) / (len(stood) + 1)),
        words={
            word: math.log((wrong[word] + 1) / (len(rejected) + 2) * (len(stood) + 2) / (right[word] + 1))
            for word in wrong.keys() | right.keys()
        },
    )


def _said(questions: Iterable[str]) -> Counter[str]:
    """In how many of the turns each word is."""
    return Counter(word for question in questions for word in set(plain(question).split()))


class Rejected:
    """Replies that were corrected at least ``after`` times; where none of them stood, they are rejected
    wherever they are said, else by `judgement`.

    corrected, stood: ``(question, reply)``.
    """

    def __init__(
        self, corrected: Iterable[tuple[str, str]], stood: Iterable[tuple[str, str]], after: int
    ) -> None:
        wrong, right = _by_reply(corrected), _by_reply(stood)
        self._judgements = {
            reply: judgement(questions, right[reply]) if reply in right else None
            for reply, questions in wrong.items()
            if len(questions) >= after
        }

    def __call__(self, question: str, reply: str) -> bool:
        words = plain(reply)
        if words not in self._judgements:
            return False
        judged = self._judgements[words]
        return judged is None or judged.log_odds(question) > 0


def _by_reply(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for question, reply in pairs:
        found[plain(reply)].append(question)
    return dict(found)
