"""Choosing tokens: chance, constraints, sampling, beginnings; every option against a model made for it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatbot.batcher import Batcher, Reply, ReplyRequest
from chatbot.config import ModelConfig
from chatbot.decoding import (
    FORBIDDEN,
    Sampling,
    choose_likeliest,
    choose_sampled,
    constrain,
    derived_seed,
    uniforms,
)
from chatbot.model import Memory, Seq2Seq, Step
from chatbot.model_directory import ModelBundle
from chatbot.options import MAX_SEED, DecodingOptions
from chatbot.prefix import ByteIndex, ForcedPrefix
from chatbot.repeats import repeated_ngrams
from chatbot.rules import Path, Rules
from chatbot.terms import Terms
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Role
from tests.batching import (
    Bigram,
    Probabilities,
    ask,
    bigram_bundle,
    bigram_table,
    bundle_of,
    drain,
    replies,
)

A, B, C, D = 36, 37, 38, 39  # the tokens of these letters: a byte-level alphabet begins with ASCII
END, AGENT = Tokenizer.end_id, Tokenizer.agent_id
MODES = ("greedy", "sample", "beam")
Turns = tuple[tuple[Role, str], ...]

# ---- Chance ------------------------------------------------------------------------------------------------


def splitmix64(state: int) -> int:
    """Output for a state that has been advanced, in Python's integers."""
    mask = 2**64 - 1
    state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ state >> 27) * 0x94D049BB133111EB) & mask
    return state ^ state >> 31


GAMMA = 0x9E3779B97F4A7C15


def test_the_reference_gives_the_published_numbers() -> None:
    outputs = [splitmix64((1234567 + GAMMA * n) % 2**64) for n in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(deadline=None)
@given(st.integers(0, MAX_SEED), st.integers(0, 300))
def test_chance_is_splitmix64_of_the_hashed_seed(seed: int, position: int) -> None:
    start = splitmix64((seed + GAMMA) % 2**64)
    expected = (splitmix64((start + GAMMA * (position + 1)) % 2**64) >> 11) / 2**53
    assert uniforms([seed], [position]).tolist() == [expected]


def test_chance_is_spread_evenly_over_positions_and_neighboring_seeds() -> None:
    along = torch.from_numpy(uniforms([7], range(10_000)))
    across = torch.from_numpy(uniforms(range(10_000), [0]))
    for numbers in (along, across):
        assert 0 <= numbers.min() < 0.001
        assert 0.999 < numbers.max() < 1
        shares = torch.histc(numbers, bins=10, min=0, max=1) / len(numbers)
        assert (shares - 0.1).abs().max() < 0.012
    assert abs(statistics.correlation(along[1:].tolist(), along[:-1].tolist())) < 0.04


def test_seeds_of_a_run_differ_by_conversation_and_by_base() -> None:
    seeds = {derived_seed(base, name) for base in range(10) for name in ("a", "b", "ab", "\ud800")}
    assert len(seeds) == 40
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert derived_seed(3, "a") == derived_seed(3, "a")


# ---- Sampling ----------------------------------------------------------------------------------------------


def draw_slowly(scores: Sequence[float], chance: float, options: DecodingOptions) -> int:
    """Sampling as the definition has it, one row, one token at a time."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    weights = {i: math.exp((scores[i] - scores[ranked[0]]) / options.temperature) for i in ranked}
    kept = ranked[: options.top_k or len(ranked)]
    mass = math.fsum(weights[i] for i in kept)
    if options.top_p < 1:
        before = [math.fsum(weights[i] for i in kept[:n]) / mass for n in range(len(kept))]
        kept = [i for i, share in zip(kept, before, strict=True) if share < options.top_p]
    kept = [i for i in kept if weights[i] >= options.min_p * weights[ranked[0]]]
    mass = math.fsum(weights[i] for i in kept)
    upto = 0.0
    for i in kept:
        upto += weights[i] / mass
        if chance < upto:
            return i
    return kept[-1]


def drawn(
    scores: Tensor, chance: Tensor, options: Sequence[DecodingOptions], likeliest: int = 256
) -> list[int]:
    sampling = Sampling.of(options, scores.shape[1])
    chosen: list[int] = choose_sampled(scores, chance.numpy(), sampling, likeliest=likeliest).tolist()
    return chosen


OPTIONS = st.builds(
    DecodingOptions,
    decoding=st.just("sample"),
    temperature=st.sampled_from([0.1, 0.71, 1.0, 3.3]),
    top_k=st.sampled_from([0, 1, 3, 7, 12, 40]),
    top_p=st.sampled_from([1.0, 0.987, 0.613, 0.101]),
    min_p=st.sampled_from([0.0, 0.0317, 0.573, 1.0]),
)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.lists(OPTIONS, min_size=1, max_size=5), st.booleans())
def test_sampling_is_as_defined_however_few_are_looked_at(
    seed: int, options: list[DecodingOptions], ties: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(options), 40, generator=generator, dtype=torch.float64) * 3
    if ties:
        scores = scores.round()
    scores[:, 5:8] = FORBIDDEN
    before = scores.clone()
    chance = torch.rand(len(options), generator=generator, dtype=torch.float64)
    expected = [draw_slowly(*row) for row in zip(scores.tolist(), chance.tolist(), options, strict=True)]
    assert drawn(scores, chance, options) == expected
    assert drawn(scores, chance, options, likeliest=8) == expected
    assert drawn(scores, chance, options, likeliest=1) == expected
    assert torch.equal(scores, before)


def test_sampling_follows_the_distribution() -> None:
    scores = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().expand(10_000, 3)
    chance = uniforms(range(10_000), range(10_000))
    sampling = Sampling.of([DecodingOptions()] * 10_000, 3)
    shares = torch.bincount(torch.from_numpy(choose_sampled(scores, chance, sampling)), minlength=3) / 10_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.015)


def test_no_chance_draws_what_is_forbidden() -> None:
    scores = torch.full((2, 600), FORBIDDEN, dtype=torch.float32)
    scores[:, 300] = -0.1
    nearly_one = torch.tensor([1 - 2**-53, 0.0], dtype=torch.float64)
    assert drawn(scores, nearly_one, [DecodingOptions()] * 2) == [300, 300]


def test_of_equally_likely_tokens_the_smallest_is_taken() -> None:
    assert choose_likeliest(torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])).tolist() == [1, 0]


# ---- Constraints -------------------------------------------------------------------------------------------


def rules(tokenizer: Tokenizer, **options: object) -> Rules:
    checked = DecodingOptions.checked({"min_tokens": 0, **options})
    return Rules.of(checked, Terms(tokenizer, 64).grant(checked), tokenizer)


def test_constraints_change_neither_their_input_nor_the_scores_they_leave(tiny_tokenizer: Tokenizer) -> None:
    logits = torch.randn(3, tiny_tokenizer.vocab_size)
    logprobs = logits.log_softmax(1)
    before = logits.clone(), logprobs.clone()
    paths = [
        Path(rules(tiny_tokenizer, min_tokens=3), (A,)),
        Path(rules(tiny_tokenizer, no_repeat_ngram=1), (A, B)),
        Path(rules(tiny_tokenizer, prefix="Hello"), ()),
    ]
    scores = constrain(logits, logprobs, paths)
    assert torch.equal(logits, before[0])
    assert torch.equal(logprobs, before[1])
    specials = {tiny_tokenizer.pad_id, tiny_tokenizer.user_id, tiny_tokenizer.agent_id}
    forbidden = [set(torch.nonzero(row == FORBIDDEN).squeeze(1).tolist()) for row in scores]
    assert forbidden[0] == {*specials, END}
    assert forbidden[1] == {*specials, A, B}
    left = scores > FORBIDDEN
    assert torch.equal(scores[left], logprobs[left])


def test_without_rules_only_the_special_tokens_are_forbidden(tiny_tokenizer: Tokenizer) -> None:
    logprobs = torch.randn(1, tiny_tokenizer.vocab_size).log_softmax(1)
    scores = constrain(logprobs, logprobs, [Path(rules(tiny_tokenizer), ())])
    assert int((scores == FORBIDDEN).sum()) == 3
    assert scores[0, END] == logprobs[0, END]


def test_the_repetition_penalty_is_that_of_ctrl(tiny_tokenizer: Tokenizer) -> None:
    logits = torch.randn(2, tiny_tokenizer.vocab_size, dtype=torch.float64)
    logits[0, A], logits[0, B] = 1.5, -1.5
    path = Path(rules(tiny_tokenizer, repetition_penalty=1.25), (A, B, A))
    free = Path(rules(tiny_tokenizer), (A, B, A))
    scores = constrain(logits, logits.log_softmax(1), [path, free])
    expected = logits.clone()
    expected[0, A], expected[0, B] = 1.5 / 1.25, -1.5 * 1.25
    left = scores > FORBIDDEN
    assert torch.allclose(scores[left], expected.log_softmax(1)[left])


@settings(deadline=None)
@given(st.lists(st.integers(4, 7), max_size=30), st.integers(1, 5))
def test_a_repeated_ngram_is_found_exactly(ids: list[int], size: int) -> None:
    def ngrams(sequence: list[int]) -> list[tuple[int, ...]]:
        return [tuple(sequence[i : i + size]) for i in range(len(sequence) - size + 1)]

    for token in range(4, 9):
        added = ngrams([*ids, token])[len(ngrams(ids)) :]
        assert (token in repeated_ngrams(ids, size)) == any(ngram in ngrams(ids) for ngram in added)


def test_a_path_that_has_used_up_the_vocabulary_may_repeat_itself(tiny_tokenizer: Tokenizer) -> None:
    rule = replace(rules(tiny_tokenizer, no_repeat_ngram=1, min_tokens=9), vocab_size=6)
    assert rule.forbidden((4,)) == {0, 1, 2, END, 4}
    assert rule.forbidden((4, 5)) == {0, 1, 2, END}


# ---- Forced beginnings -------------------------------------------------------------------------------------


PREFIXES = [
    "I can he",
    "I can ",
    "Hello",
    "Hello,",
    "a  b",
    " x",
    "\n",
    "don't kn",
    "Grüß",
    "日本",
    "🙂 o",
    "A\x00",
]


def test_whole_words_are_forced_and_the_last_may_grow(tiny_tokenizer: Tokenizer) -> None:
    index = ByteIndex(tiny_tokenizer)
    forced = ForcedPrefix("Thank yo", tiny_tokenizer, index)
    own = tiny_tokenizer.encode("Thank yo")
    word = next(i for i in range(len(own)) if tiny_tokenizer.decode(own[i:]) == "yo")
    for at in range(word):
        assert forced.allowed(own[:at]) == (own[at],)
    allowed = forced.allowed(own[:word]) or ()
    spelled = [tiny_tokenizer.token_bytes(token) for token in allowed]
    covering = [token for token in range(tiny_tokenizer.vocab_size) if _covers(tiny_tokenizer, token, b" yo")]
    assert set(allowed) == {own[word], *covering}
    assert any(spelling.startswith(b" you") for spelling in spelled)
    assert forced.allowed([*own[:word], covering[-1]]) is None


def _covers(tokenizer: Tokenizer, token: int, rest: bytes) -> bool:
    return tokenizer.token_bytes(token).startswith(rest)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_allowed_path_spells_the_prefix_exactly(tiny_tokenizer: Tokenizer, prefix: str) -> None:
    forced = ForcedPrefix(prefix, tiny_tokenizer, ByteIndex(tiny_tokenizer))
    unfinished: list[tuple[int, ...]] = [()]
    complete = []
    while unfinished:
        path = unfinished.pop()
        allowed = forced.allowed(path)
        if allowed is None:
            complete.append(path)
        else:
            unfinished += [(*path, token) for token in allowed]
    target = b" " + prefix.encode()
    spellings = [b"".join(map(tiny_tokenizer.token_bytes, path)) for path in complete]
    assert complete
    assert all(spelling.startswith(target) for spelling in spellings)
    assert target in spellings


def test_no_prefix_forces_nothing(tiny_tokenizer: Tokenizer) -> None:
    assert ForcedPrefix("", tiny_tokenizer, ByteIndex(tiny_tokenizer)).allowed(()) is None


# ---- Every option, in every kind of decoding that it acts in -----------------------------------------------


class Asked(Protocol):
    """A reply of the model ``{token: {next: probability}}`` under the options given."""

    def __call__(self, probabilities: Probabilities, /, **options: object) -> Reply: ...


@pytest.fixture
def reply_of(tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer) -> Asked:
    def reply_of(probabilities: Probabilities, /, **options: object) -> Reply:
        values = {"seed": 1, "min_tokens": 0, **options}
        bundle = bigram_bundle(tiny_model.config, tiny_tokenizer, probabilities)
        return ask(bundle, DecodingOptions.checked(values))

    return reply_of


ROUND: Probabilities = {AGENT: {A: 0.9, B: 0.1}, A: {A: 0.9, B: 0.1}, B: {A: 0.9, B: 0.1}}
"""A model that never ends by itself."""


def of_mode(mode: str) -> dict[str, object]:
    """Options for the likeliest reply in each kind of decoding."""
    return {"decoding": mode, "temperature": 0.05}


@pytest.mark.parametrize("mode", MODES)
def test_max_tokens_cuts_a_reply_off(reply_of: Asked, mode: str) -> None:
    reply = reply_of(ROUND, **of_mode(mode), max_tokens=7)
    assert reply.token_ids == (A,) * 7
    assert reply.finish_reason == "length"
    assert reply.logprobs == pytest.approx([math.log(0.9)] * 7)


@pytest.mark.parametrize("mode", MODES)
def test_a_reply_that_ends_exactly_at_the_limit_is_not_cut_off(reply_of: Asked, mode: str) -> None:
    reply = reply_of({AGENT: {A: 1}, A: {B: 1}, B: {END: 1}}, **of_mode(mode), max_tokens=3)
    assert reply.token_ids == (A, B, END)
    assert reply.finish_reason == "stop"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("least", [0, 1, 4])
def test_min_tokens_come_before_the_end(reply_of: Asked, mode: str, least: int) -> None:
    eager = {AGENT: {END: 0.99, A: 0.01}, A: {END: 0.99, A: 0.01}}
    reply = reply_of(eager, **of_mode(mode), min_tokens=least)
    assert reply.token_ids == (*(A,) * least, END)
    assert reply.finish_reason == "stop"


@pytest.mark.parametrize("mode", MODES)
def test_no_repeat_ngram_holds_and_its_absence_shows(reply_of: Asked, mode: str) -> None:
    free = reply_of(ROUND, **of_mode(mode), max_tokens=6)
    assert free.token_ids == (A,) * 6
    assert reply_of(ROUND, **of_mode(mode), max_tokens=4, no_repeat_ngram=2).token_ids == (A, A, B, A)


@pytest.mark.parametrize("mode", MODES)
def test_the_repetition_penalty_moves_on_from_what_was_said(reply_of: Asked, mode: str) -> None:
    close = {AGENT: {A: 0.5, B: 0.3}, A: {A: 0.5, B: 0.3, END: 0.2}, B: {B: 0.5, A: 0.3, END: 0.2}}
    options = {**of_mode(mode), "max_tokens": 6}
    assert reply_of(close, **options).token_ids.count(A) >= (0 if mode == "beam" else 6)
    penalized = reply_of(close, **options, repetition_penalty=4)
    assert penalized.token_ids == (A, B, END)
    # What is reported is the model's own probability, not the penalized one.
    assert penalized.logprobs == pytest.approx([math.log(p) for p in (0.5, 0.3, 0.2)], abs=0.3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefix", ["Thank yo", "Thank you ", "Zoë", "a  b", "No, espre"])
def test_a_reply_begins_with_its_prefix(reply_of: Asked, mode: str, prefix: str) -> None:
    reply = reply_of({AGENT: {END: 1}}, **of_mode(mode), prefix=prefix, max_tokens=20)
    assert reply.text.startswith(prefix)
    assert len(reply.logprobs) == len(reply.token_ids)
    assert reply_of({AGENT: {END: 1}}, **of_mode(mode)).text == ""


@pytest.mark.parametrize("mode", MODES)
def test_special_tokens_are_never_said(reply_of: Asked, mode: str) -> None:
    mad = {AGENT: {0: 0.4, 1: 0.3, 2: 0.2, A: 0.1}, A: {0: 0.4, 1: 0.3, 2: 0.2, END: 0.1}}
    assert reply_of(mad, **of_mode(mode)).token_ids == (A, END)


class Said(Protocol):
    """The first tokens of replies sampled with many seeds."""

    def __call__(self, probabilities: Probabilities, /, **options: object) -> set[int]: ...


@pytest.fixture
def said(tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer) -> Said:
    def said(probabilities: Probabilities, /, **options: object) -> set[int]:
        batcher = Batcher(bigram_bundle(tiny_model.config, tiny_tokenizer, probabilities), rows=60)
        sampled = DecodingOptions.checked({"decoding": "sample", "max_tokens": 1, **options})
        requests = [
            ReplyRequest(str(seed), (("user", "Hello"),), sampled.model_copy(update={"seed": seed}))
            for seed in range(60)
        ]
        return {reply.token_ids[0] for reply in replies(drain(batcher, *requests)).values()}

    return said


SPREAD: Probabilities = {AGENT: {A: 0.4, B: 0.3, C: 0.2, D: 0.1}}


def test_sampling_says_everything_that_is_likely(said: Said) -> None:
    assert said(SPREAD) == {A, B, C, D}


def test_temperature_makes_the_likely_likelier_and_the_unlikely_possible(said: Said) -> None:
    assert said(SPREAD, temperature=0.05) == {A}
    assert said({AGENT: {A: 0.999, B: 0.001}}) == {A}
    assert said({AGENT: {A: 0.999, B: 0.001}}, temperature=5, top_k=2) == {A, B}


def test_top_k_keeps_the_likeliest(said: Said) -> None:
    assert said(SPREAD, top_k=1) == {A}
    assert said(SPREAD, top_k=2) == {A, B}


def test_top_p_keeps_the_fewest_with_that_probability(said: Said) -> None:
    assert said(SPREAD, top_p=0.35) == {A}
    assert said(SPREAD, top_p=0.65) == {A, B}


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(said: Said) -> None:
    assert said(SPREAD, min_p=0.6) == {A, B}
    assert said(SPREAD, min_p=0.3) == {A, B, C}


def test_the_seed_decides(reply_of: Asked) -> None:
    coin: Probabilities = {token: {A: 0.5, B: 0.5} for token in (AGENT, A, B)}
    options = {"decoding": "sample", "max_tokens": 40}
    first, again, other = (reply_of(coin, **options, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first.seed == 5
    assert first.token_ids != other.token_ids
    assert 10 < first.token_ids.count(A) < 30


GARDEN_PATH: Probabilities = {
    AGENT: {A: 0.6, B: 0.4},
    A: {C: 0.4, D: 0.35, END: 0.25},
    B: {D: 1},
    C: {END: 1},
    D: {END: 1},
}
"""The likelier beginning leads to less likely replies."""


def test_a_wider_beam_finds_what_greedy_choices_miss(reply_of: Asked) -> None:
    assert reply_of(GARDEN_PATH, decoding="greedy").token_ids == (A, C, END)
    assert reply_of(GARDEN_PATH, decoding="beam", beam_size=1).token_ids == (A, C, END)
    assert reply_of(GARDEN_PATH, decoding="beam", beam_size=2).token_ids == (B, D, END)


def test_n_best_are_ranked_and_the_first_is_the_reply(reply_of: Asked) -> None:
    reply = reply_of(GARDEN_PATH, decoding="beam", beam_size=4, n_best=4)
    found = reply.alternatives
    assert [a.token_ids for a in found] == [(B, D, END), (A, C, END), (A, D, END), (A, END)]
    assert [math.exp(a.logprob) for a in found] == pytest.approx([0.4, 0.24, 0.21, 0.15])
    assert [a.score for a in found] == pytest.approx([a.logprob for a in found])
    assert (found[0].token_ids, found[0].text) == (reply.token_ids, reply.text)
    assert len(reply_of(GARDEN_PATH, decoding="beam", n_best=2).alternatives) == 2


def test_the_length_penalty_favors_longer_replies(reply_of: Asked) -> None:
    short_or_long: Probabilities = {AGENT: {END: 0.5, A: 0.5}, A: {B: 0.9}, B: {C: 0.9}, C: {END: 0.9}}
    short = reply_of(short_or_long, decoding="beam")
    long = reply_of(short_or_long, decoding="beam", length_penalty=2)
    assert short.token_ids == (END,)
    assert long.token_ids == (A, B, C, END)
    assert long.alternatives[0].score == pytest.approx(long.alternatives[0].logprob / (9 / 6) ** 2)


def test_the_diversity_penalty_keeps_different_beginnings(reply_of: Asked) -> None:
    crowded: Probabilities = {
        AGENT: {A: 0.8, B: 0.2},
        A: {A: 0.35, B: 0.33, C: 0.32},
        B: {D: 0.9, C: 0.1},
        C: {END: 1},
        D: {END: 1},
    }
    options = {"decoding": "beam", "beam_size": 2, "n_best": 2, "max_tokens": 3}

    def beginnings(**more: object) -> set[int]:
        return {a.token_ids[0] for a in reply_of(crowded, **options, **more).alternatives}

    assert beginnings() == {A}
    assert beginnings(diversity_penalty=1.0) == {A, B}


def test_replies_with_the_same_text_count_once(tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer) -> None:
    (whole,) = tiny_tokenizer.encode("you")
    spelled = [ByteIndex(tiny_tokenizer).longest(letter.encode()) for letter in " you"]
    assert tiny_tokenizer.decode([whole]) == tiny_tokenizer.decode(spelled) == "you"
    twice = {
        AGENT: {whole: 0.5, spelled[0]: 0.3, B: 0.2},
        **{one: {other: 1.0} for one, other in itertools.pairwise([*spelled, END])},
        whole: {END: 1.0},
        B: {END: 1.0},
    }
    bundle = bigram_bundle(tiny_model.config, tiny_tokenizer, twice)
    reply = ask(bundle, DecodingOptions(decoding="beam", n_best=2))
    assert [a.token_ids for a in reply.alternatives] == [(whole, END), (B, END)]


def test_groups_keep_different_beginnings(reply_of: Asked) -> None:
    crowded: Probabilities = {
        AGENT: {A: 0.8, B: 0.2},
        A: {A: 0.35, B: 0.33, C: 0.32},
        B: {END: 1},
        C: {END: 1},
    }
    options = {"decoding": "beam", "beam_size": 2, "n_best": 2, "max_tokens": 3}

    def beginnings(**more: object) -> set[int]:
        return {a.token_ids[0] for a in reply_of(crowded, **options, **more).alternatives}

    assert beginnings() == {A}
    assert beginnings(beam_groups=2, group_penalty=0.1) == {A}
    assert beginnings(beam_groups=2, group_penalty=2.0) == {A, B}


# ---- Several samples ---------------------------------------------------------------------------------------


DICE: Probabilities = {token: {A: 0.4, B: 0.3, C: 0.2, END: 0.1} for token in (AGENT, A, B, C)}


def test_the_best_of_several_samples_is_given(reply_of: Asked) -> None:
    options = {"decoding": "sample", "max_tokens": 12, "min_tokens": 4}
    seeds = [7, *(derived_seed(7, str(number)) for number in (1, 2, 3, 4))]
    alone = [reply_of(DICE, **options, seed=seed) for seed in seeds]
    assert len({reply.text for reply in alone}) == 5
    means = [statistics.mean(reply.logprobs) for reply in alone]
    best = reply_of(DICE, **options, seed=7, samples=5, n_best=4)
    order = sorted(range(5), key=lambda number: -means[number])
    assert order[0] != 0
    assert [a.text for a in best.alternatives] == [alone[number].text for number in order[:4]]
    assert [a.score for a in best.alternatives] == pytest.approx([means[number] for number in order[:4]])
    assert (best.text, best.token_ids) == (alone[order[0]].text, alone[order[0]].token_ids)
    assert best.logprobs == alone[order[0]].logprobs
    assert best.seed == 7


def test_samples_with_the_same_text_count_once(reply_of: Asked) -> None:
    reply = reply_of({AGENT: {A: 1.0}, A: {END: 1.0}}, decoding="sample", samples=4, n_best=4)
    assert [a.text for a in reply.alternatives] == ["A"]


# ---- What is told beside the reply -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_likeliest_tokens_are_told_before_any_option_acts(reply_of: Asked, mode: str) -> None:
    options = {**of_mode(mode), "max_tokens": 3, "repetition_penalty": 2.0, "prefix": "B"}
    assert reply_of(GARDEN_PATH, **options).top == ()
    reply = reply_of(GARDEN_PATH, **options, top_alternatives=2)
    forced = reply.token_ids[0]
    assert forced not in (A, B)
    first, last = reply.top[0], reply.top[-1]
    assert len(reply.top) == len(reply.token_ids)
    assert [(a.id, a.text) for a in first] == [(A, "A"), (B, "B")]
    assert [math.exp(a.logprob) for a in first] == pytest.approx([0.6, 0.4])
    assert {a.id for a in last} == {D, C} or last[0].id == D or reply.token_ids[-1] != END


@pytest.mark.parametrize("mode", MODES)
def test_what_is_told_is_told_of_the_path_that_was_taken(reply_of: Asked, mode: str) -> None:
    reply = reply_of(GARDEN_PATH, **of_mode(mode), top_alternatives=20, n_best=2)
    for place, token, logprob in zip(reply.top, reply.token_ids, reply.logprobs, strict=True):
        assert {a.id: a.logprob for a in place}[token] == pytest.approx(logprob)
        assert len(place) == 20
        assert [a.logprob for a in place] == sorted((a.logprob for a in place), reverse=True)


class Gazing(Bigram):
    """Looks at one column of its memory, by the last token."""

    def __init__(self, config: ModelConfig, table: Tensor, columns: dict[int, int]) -> None:
        super().__init__(config, table)
        self.columns = columns

    def step(self, tokens: Tensor, state: Tensor, memory: Memory) -> Step:
        columns = [self.columns.get(int(token), 0) for token in tokens]
        attention = torch.nn.functional.one_hot(torch.tensor(columns), memory.mask.shape[1])
        return super().step(tokens, state, memory)._replace(attention=attention.double())


LOOKING: Probabilities = {
    AGENT: {A: 0.6, B: 0.4},
    A: {END: 1.0},
    B: {C: 1.0},
    C: {END: 1.0},
}


def gazing(model: Seq2Seq, tokenizer: Tokenizer, columns: dict[int, int]) -> ModelBundle:
    return bundle_of(Gazing(model.config, bigram_table(tokenizer.vocab_size, LOOKING), columns), tokenizer)


def test_the_coverage_penalty_prefers_a_reply_that_looks_at_the_whole_question(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer
) -> None:
    """A looks at the first word of the question again, B and C at its second and third."""
    before: Turns = (("user", "A B C D"), ("agent", "Hi"))
    length = sum(len(tiny_tokenizer.encode_turn(role, text)) for role, text in before)
    assert length > 3
    bundle = gazing(tiny_model, tiny_tokenizer, {A: 1, B: 2, C: 3})

    def found(**options: object) -> list[str]:
        checked = DecodingOptions.checked({"decoding": "beam", "n_best": 2, "min_tokens": 0, **options})
        request = ReplyRequest("only", (*before, ("user", "A B C")), checked)
        return [a.text for a in replies(drain(Batcher(bundle), request))["only"].alternatives]

    # Columns 1 to 3 are words of an earlier turn: neither reply looks at the question.
    assert found() == found(coverage_penalty=1.0) == ["A", "BC"]
    bundle = gazing(tiny_model, tiny_tokenizer, {A: length + 1, B: length + 2, C: length + 3})
    assert found() == ["A", "BC"]
    assert found(coverage_penalty=1.0) == ["BC", "A"]


@pytest.mark.parametrize("mode", MODES)
def test_attention_is_told_with_what_was_looked_at(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer, mode: str
) -> None:
    bundle = gazing(tiny_model, tiny_tokenizer, {A: 3, B: 4})
    options = DecodingOptions.checked({**of_mode(mode), "min_tokens": 0, "attention": True, "seed": 1})
    conversation: Turns = (("user", "Hello"), ("agent", "A"), ("user", "B"))
    reply = replies(drain(Batcher(bundle), ReplyRequest("only", conversation, options)))["only"]
    assert reply.token_ids == (A, END)
    assert reply.attention is not None
    turns = [tiny_tokenizer.encode_turn(role, text) for role, text in conversation]
    ids = [token for turn in turns for token in turn]
    assert [token.id for token in reply.attention.remembered] == ids
    assert [token.age for token in reply.attention.remembered] == [
        age for age, turn in zip((2, 1, 0), turns, strict=True) for _ in turn
    ]
    assert reply.attention.remembered[0].text == "<user>"
    assert [weights.index(1.0) for weights in reply.attention.weights] == [0, 3]


def test_of_a_long_memory_only_the_most_looked_at_is_told(
    tiny_tokenizer: Tokenizer, tiny_model: Seq2Seq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.notes.ATTENDED", 2)
    bundle = gazing(tiny_model, tiny_tokenizer, {A: 3})
    reply = ask(bundle, DecodingOptions(attention=True, min_tokens=0), "A B C")
    assert reply.attention is not None
    ids = tiny_tokenizer.encode_turn("user", "A B C")
    assert [token.id for token in reply.attention.remembered] == [ids[0], ids[3]]
    assert reply.attention.weights == ((1.0, 0.0), (0.0, 1.0))
