"""Decoding options: what is refused, in which words, and how a client's options are laid over a model's."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chatbot.options import MAX_BEAM, MAX_SEED, MAX_TOKENS, DecodingOptions, OptionError

PLAIN = DecodingOptions()
RANGES = [
    field
    for field, info in DecodingOptions.model_fields.items()
    if info.annotation in (int, float) and field not in ("n_best", "min_tokens")
]
"""Fields with bounds of their own."""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decoding", "best"),
        ("decoding", None),
        ("temperature", -1),
        ("temperature", 0),
        ("temperature", 1e-40),
        ("temperature", 1e9),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", True),
        ("temperature", "1"),
        ("temperature", 10**400),
        ("samples", 0),
        ("samples", 17),
        ("coverage_penalty", -0.1),
        ("top_alternatives", 21),
        ("attention", 1),
        ("attention", "true"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_k", 10**4000),
        ("top_p", 0),
        ("top_p", -1),
        ("top_p", 2),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("beam_size", 0),
        ("beam_size", 10**6),
        ("n_best", 0),
        ("n_best", 10**9),
        ("beam_groups", 0),
        ("beam_groups", 17),
        ("beam_groups", True),
        ("group_penalty", -1),
        ("length_penalty", math.nan),
        ("length_penalty", -1),
        ("length_penalty", 100),
        ("diversity_penalty", -1),
        ("diversity_penalty", math.inf),
        ("max_tokens", 0),
        ("max_tokens", 10**9),
        ("max_tokens", MAX_TOKENS + 1),
        ("min_tokens", -1),
        ("min_tokens", MAX_TOKENS + 1),
        ("no_repeat_ngram", -1),
        ("no_repeat_ngram", 2.0),
        ("repetition_penalty", 0),
        ("repetition_penalty", 100),
        ("no_repeat_context_ngram", 17),
        ("no_repeat_reply", True),
        ("no_repeat_reply", -1),
        ("blocked", "word"),
        ("blocked", None),
        ("blocked", [5]),
        ("blocked", [["word"]]),
        ("blocked", [" "]),
        ("blocked", [""]),
        ("blocked", ["a" * 101]),
        ("blocked", ["\ud800"]),
        ("blocked", [f"word {n}" for n in range(101)]),
        ("prefix", 5),
        ("prefix", "a" * 1001),
        ("prefix", "\ud800"),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("seed", True),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_field_and_what_it_may_be(field: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        DecodingOptions.merged(PLAIN, {field: value})
    assert caught.value.field == field
    assert str(caught.value) == f"{field}: must be {DecodingOptions.allowed(field)}"


def test_the_words_carry_the_range() -> None:
    assert DecodingOptions.allowed("temperature") == "a number from 0.05 to 5"
    assert DecodingOptions.allowed("beam_size") == f"a whole number from 1 to {MAX_BEAM}"
    assert DecodingOptions.allowed("decoding") == "one of greedy, sample, beam"


@pytest.mark.parametrize("field", DecodingOptions.model_fields)
def test_every_option_is_documented_and_says_what_it_may_be(field: str) -> None:
    assert DecodingOptions.model_fields[field].description
    assert DecodingOptions.allowed(field)


@pytest.mark.parametrize("field", RANGES)
def test_the_ends_of_a_range_belong_to_it(field: str) -> None:
    for end in (DecodingOptions.lowest(field), DecodingOptions.highest(field)):
        assert getattr(DecodingOptions.merged(PLAIN, {field: end}), field) == end


@pytest.mark.parametrize("seed", [0, MAX_SEED, None])
def test_seeds_from_none_to_the_largest_are_kept(seed: int | None) -> None:
    assert DecodingOptions.merged(PLAIN, {"seed": seed}).seed == seed


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"^temprature: no such option$"):
        DecodingOptions.merged(PLAIN, {"temprature": 1})


def test_overrides_replace_defaults_and_nothing_else() -> None:
    defaults = DecodingOptions(decoding="beam", beam_size=8, n_best=3, length_penalty=0.6)
    merged = DecodingOptions.merged(defaults, {"beam_size": 5})
    assert merged == DecodingOptions(decoding="beam", beam_size=5, n_best=3, length_penalty=0.6)
    assert DecodingOptions.merged(defaults, {}) == defaults


def test_more_n_best_than_beams_is_refused_when_asked_for() -> None:
    with pytest.raises(OptionError) as caught:
        DecodingOptions.merged(PLAIN, {"beam_size": 2, "n_best": 3})
    assert str(caught.value) == "n_best: must be a whole number from 1 to beam_size or samples"


def test_more_min_tokens_than_max_tokens_is_refused_when_asked_for() -> None:
    with pytest.raises(OptionError) as caught:
        DecodingOptions.merged(PLAIN, {"min_tokens": 9, "max_tokens": 8})
    assert caught.value.field == "min_tokens"


def test_a_default_gives_way_to_an_override_that_makes_it_impossible() -> None:
    defaults = DecodingOptions(beam_size=8, n_best=5, min_tokens=10, max_tokens=40)
    assert DecodingOptions.merged(defaults, {"beam_size": 2}).n_best == 2
    assert DecodingOptions.merged(defaults, {"max_tokens": 4}).min_tokens == 4
    sampled = DecodingOptions(beam_size=2, samples=6, n_best=6)
    assert DecodingOptions.merged(sampled, {"samples": 3}).n_best == 3


def test_groups_and_beam_fit_each_other() -> None:
    with pytest.raises(OptionError) as caught:
        DecodingOptions.merged(PLAIN, {"beam_size": 6, "beam_groups": 4})
    assert str(caught.value) == "beam_groups: must be a whole number from 1 that divides beam_size"
    six = DecodingOptions(beam_size=6, beam_groups=3)
    assert DecodingOptions.merged(six, {"beam_size": 4}).beam_groups == 2
    assert DecodingOptions.merged(six, {"beam_size": 5}).beam_groups == 1
    assert DecodingOptions.merged(six, {"beam_groups": 4}).beam_size == 4
    assert DecodingOptions.merged(six, {"beam_groups": 16}).beam_size == 16
    assert DecodingOptions.merged(DecodingOptions(beam_size=16), {"beam_groups": 3}).beam_size == 15
    assert DecodingOptions.merged(six, {"n_best": 4}) == six.model_copy(update={"n_best": 4})
    for bad in (0, 17, "3", None):
        for field in ("beam_size", "beam_groups"):
            with pytest.raises(OptionError, match=f"^{field}: "):
                DecodingOptions.merged(six, {field: bad})


@pytest.mark.parametrize("bad", [-5, None, "many", [], True])
def test_a_default_that_gives_way_does_not_hide_the_fault_of_the_override(bad: Any) -> None:
    with pytest.raises(OptionError) as caught:
        DecodingOptions.merged(PLAIN, {"max_tokens": bad})
    assert caught.value.field == "max_tokens"


def test_what_the_defaults_block_stays_blocked() -> None:
    defaults = DecodingOptions(blocked=("one", "two"))
    assert DecodingOptions.merged(defaults, {"blocked": []}).blocked == ("one", "two")
    assert DecodingOptions.merged(defaults, {"blocked": ["three", "one"]}).blocked == ("one", "two", "three")
    assert DecodingOptions.merged(defaults, {}).blocked == ("one", "two")
    full = DecodingOptions(blocked=tuple(f"word {n}" for n in range(100)))
    with pytest.raises(OptionError, match="blocked: must be at most 100 phrases"):
        DecodingOptions.merged(full, {"blocked": ["one more"]})


def test_a_top_k_above_the_vocabulary_is_refused() -> None:
    DecodingOptions(top_k=300).require_vocabulary(300)
    with pytest.raises(OptionError, match="top_k: must be a whole number from 0 to 300"):
        DecodingOptions(top_k=301).require_vocabulary(300)


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        PLAIN.temperature = 2.0  # type: ignore[misc]


def test_options_survive_json() -> None:
    options = DecodingOptions(decoding="sample", temperature=0.7, prefix="Hé", seed=MAX_SEED, blocked=("é",))
    assert DecodingOptions.model_validate_json(options.model_dump_json()) == options
    assert DecodingOptions.checked(json.loads(options.model_dump_json())) == options


def test_the_documentation_has_a_row_for_every_option_with_its_range() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "decoding.md").read_text(encoding="utf-8")
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE)}
    assert rows.keys() == DecodingOptions.model_fields.keys()
    for field in set(RANGES) - {"top_k"}:
        assert rows[field] == f"{DecodingOptions.lowest(field)} to {DecodingOptions.highest(field)}"
