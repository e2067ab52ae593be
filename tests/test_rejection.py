"""Whether a reply is rejected depends on what it answers, by naive Bayes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.rejection import Rejected, judgement

SAID = st.lists(st.sampled_from(["bye", "thanks", "book it", "a table please", "thanks bye"]), max_size=8)


@given(SAID, SAID, st.sampled_from(["bye", "Thanks, bye!", "book a table", "", "never said before"]))
def test_the_log_odds_are_their_equation(rejected: list[str], stood: list[str], question: str) -> None:
    """P(class) times the product of P(w | class) over the words of the vocabulary that are said."""
    vocabulary = {word for said in [*rejected, *stood] for word in said.split()}
    asked = set(question.lower().replace(",", "").replace("!", "").split())

    def likelihood(turns: list[str]) -> float:
        found = len(turns) + 1.0
        for word in vocabulary & asked:
            found *= (sum(word in said.split() for said in turns) + 1) / (len(turns) + 2)
        return found

    wanted = math.log(likelihood(rejected) / likelihood(stood))
    assert judgement(rejected, stood).log_odds(question) == pytest.approx(wanted, abs=1e-9)


def test_what_a_reply_answers_decides_whether_it_is_rejected() -> None:
    """It stood more often than it was corrected, but never after a goodbye."""
    bye = "Thank you and goodbye."
    corrected = [(f"Okay, goodbye {name}!", bye) for name in ("Ann", "Ben", "Cem")]
    stood = [(f"No, that is all, {name}.", bye) for name in ("Dan", "Eve", "Fay", "Gil")]
    rejected = Rejected(corrected, stood, after=3)

    assert rejected("Great, goodbye then", "thank you and GOODBYE")
    assert not rejected("That is all.", bye)
    assert not rejected("Okay, goodbye Ann!", "You are welcome.")


def test_what_never_stood_is_rejected_everywhere_once_corrected_often_enough() -> None:
    corrected = [("Hi", "Go away."), ("Hello", "Go away.")]
    assert not Rejected(corrected, [], after=3)("Hi", "Go away.")
    assert Rejected(corrected, [], after=2)("Where is my order?", "Go away.")
    stood = [("Where is it?", "Go away.")] * 9
    assert not Rejected(corrected, stood, after=2)("Where is my order?", "Go away.")
