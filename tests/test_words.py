"""Words as `perplexity_word` counts them."""

from __future__ import annotations

import pytest

from training.words import count_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 1),
        ("   \n", 1),
        ("Hello", 2),
        ("Hello, how can I help?", 8),
        ("I don't know.", 7),
        ("$12.50", 5),
        ("snake_case 30€", 4),
        ("Größe: 五つ ½", 5),
        ("👍👍", 3),
    ],
)
def test_words_are_runs_single_signs_and_the_end(text: str, words: int) -> None:
    assert count_words(text) == words


def test_white_space_does_not_count() -> None:
    assert count_words(" a\tb\n\nc ") == count_words("a b c") == 4
