"""The model as a CPU serves it: near to float32, and in every other way a model like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot import int8
from chatbot.batcher import Batcher
from chatbot.beam import Beam, Shortlist
from chatbot.config import ModelConfig
from chatbot.decoding import FORBIDDEN, choose_likeliest, likeliest
from chatbot.model import Seq2Seq
from chatbot.model_directory import ModelBundle, seal
from chatbot.options import DecodingOptions
from chatbot.replies import Reply, ReplyRequest
from chatbot.served import Precision, ServedSeq2Seq, obstacle, precision_of, served
from chatbot.tokenizer import Tokenizer
from server.recipe import load as load_to_serve
from server.verify import score
from tests.batching import bundle_of, drain, failures, replies
from tests.small import SMALL, orders
from tests.test_batcher import ACTIONS, HELLO, LONG, POOL, interleave, request
from training.batches import collate, plan_epoch
from training.corpus import corpus_of

lowered = pytest.mark.skipif(int8.missing() is not None, reason=str(int8.missing()))
END = Tokenizer.end_id

NEAR = 0.2
"""Nats by which a log-probability of these small, sharpened models may be off; the mean is a quarter."""

SIZES = {"hidden_size": 32, "encoder_size": 32, "state_size": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "usual": {},
    "copying": {"copying": True},
    "scaled": {"attention": "scaled"},
    "bilinear": {"attention": "bilinear", "copying": True},
    "no_attention": {"attention": "none"},
    "one_layer": {"decoder_layers": 1},
    "deep": {"decoder_layers": 4, "residual": True, "encoder_layers": 2},
    "untied": {"tied": False},
    "bridge": {"bridge": "copy"},
    "last_turn": {"encoder": "last_turn", "copying": True},
    "window": {"encoder": "window"},
    "continuous": {"encoder": "continuous", "bidirectional": False},
    "one_way": {"bidirectional": False},
    "convolutional": {"turn_reader": "convolutional"},
    "language_model": {"encoder": "none", "attention": "none"},
}
"""What a served model can be; there is no shape of a GRU that is not here, but for those in `UNFIT`."""
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "lstm": ({"cell": "lstm"}, "lstm"),
    "additive": ({"attention": "additive"}, "additive"),
    "context_input": ({"context_input": True}, "context"),
    "sizes": ({"hidden_size": 40}, "multiples"),
    "memory": ({"memory_tokens": 300}, "attends"),
}


def made(vocab_size: int, **changes: Any) -> Seq2Seq:
    torch.manual_seed(5)
    model = Seq2Seq(ModelConfig(**(SMALL.model_dump() | SIZES | {"vocab_size": vocab_size} | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        model.bias[END] += 3.0
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def lively(tiny_tokenizer: Tokenizer) -> ModelBundle:
    return bundle_of(made(tiny_tokenizer.vocab_size, copying=True), tiny_tokenizer)


@pytest.fixture(scope="module")
def lively_in_8_bits(lively: ModelBundle) -> ModelBundle:
    return served(lively, "int8")


@pytest.fixture(scope="module")
def solo(lively_in_8_bits: ModelBundle) -> dict[str, Reply]:
    return alone(lively_in_8_bits, POOL)


def alone(bundle: ModelBundle, pool: Sequence[ReplyRequest]) -> dict[str, Reply]:
    return {one.id: replies(drain(Batcher(bundle), one))[one.id] for one in pool}


# ---- Near to float32 ---------------------------------------------------------------------------------------


def conversations(tokenizer: Tokenizer, count: int) -> list[list[list[int]]]:
    return [
        [tokenizer.encode_turn(turn.role, turn.text) for turn in one.turns] for one in orders(count, seed=2)
    ]


@lowered
@pytest.mark.parametrize("shape", SHAPES)
def test_what_it_says_is_near_to_float32(shape: str, tiny_tokenizer: Tokenizer) -> None:
    plain = made(tiny_tokenizer.vocab_size, **SHAPES[shape])
    low = ServedSeq2Seq(plain)
    said = conversations(tiny_tokenizer, 6)
    with torch.inference_mode():
        wholes = [model.start(model.encode_conversations(said)) for model in (plain, low)]
        (state, memory), (low_state, low_memory) = wholes
        for token in (Tokenizer.agent_id, 40, 41, 42, 43):
            tokens = torch.full((len(said),), token)
            logits, state, seen = plain.step(tokens, state, memory)
            low_logits, low_state, low_seen = low.step(tokens, low_state, low_memory)
            off = (logits.log_softmax(1) - low_logits.log_softmax(1)).abs()
            near = 2 * NEAR if shape == "convolutional" else NEAR  # its encodings have no bounds
            assert off.max() < near
            assert off.mean() < near / 4
            torch.testing.assert_close(state, low_state, atol=0.05, rtol=0)
            torch.testing.assert_close(seen, low_seen, atol=0.05, rtol=0)
            assert low.gives_logprobs == plain.gives_logprobs
            if low.gives_logprobs:
                torch.testing.assert_close(low_logits.logsumexp(1), torch.zeros(6), atol=1e-5, rtol=0)


@lowered
@pytest.mark.parametrize("shape", SHAPES)
def test_turn_by_turn_or_all_at_once_it_reads_the_same(shape: str, tiny_tokenizer: Tokenizer) -> None:
    low = ServedSeq2Seq(made(tiny_tokenizer.vocab_size, **SHAPES[shape]))
    with torch.inference_mode():
        for conversation in conversations(tiny_tokenizer, 4):
            at_once, context = low.encode_conversations([conversation]), low.empty_context(1)
            for turn in conversation:
                context = low.encode_conversations([[turn]], context)
            for one, other in zip(at_once, context, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5 if shape == "convolutional" else 0, rtol=0)


@lowered
def test_a_layer_in_8_bits_is_near_to_its_original() -> None:
    torch.manual_seed(1)
    for both_ways in (False, True):
        gru = torch.nn.GRU(24, 20, bidirectional=both_ways)
        low, directions = int8.Int8Gru(gru), 1 + both_ways
        for sizes in ([3, 3, 3], [3, 2, 1, 1], [1] * 9, [12, 12]):
            batch_sizes, state = torch.tensor(sizes), torch.rand(sizes[0], directions * 20) - 0.5
            inputs = torch.randn(sum(sizes), 24) * 5
            packed = torch.nn.utils.rnn.PackedSequence(inputs, batch_sizes)
            with torch.inference_mode():
                first = state.view(sizes[0], directions, 20).transpose(0, 1).contiguous()
                expected, last = gru(packed, first)
                outputs, low_last = low(inputs, batch_sizes, state)
            torch.testing.assert_close(outputs, expected.data, atol=0.1, rtol=0)
            torch.testing.assert_close(low_last, last.transpose(0, 1).flatten(1), atol=0.1, rtol=0)


@lowered
def test_the_products_have_the_precision_of_8_bits() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(70, 50), torch.randn(70)
    inputs = torch.randn(9, 50) * torch.logspace(-6, 6, 9)[:, None]
    exact = torch.nn.functional.linear(inputs, weight)
    found = int8.Int8Linear(weight, bias)(inputs) - bias
    # Half a step of either side's scale for each of 50 products, at the very most.
    step = inputs.abs().amax(1, True) * weight.abs().amax(1) * (1 / 127 + 1 / 63) / 2
    # Past the bias the rest of a small product is rounded away.
    assert ((found - exact).abs() <= 50 * step + 1e-6 * (1 + exact.abs())).all()
    assert (found - exact).abs().div(step)[3:].mean() < 3
    assert torch.equal(int8.Int8Linear(weight, bias)(torch.zeros(2, 50)), bias.expand(2, 70))


@lowered
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_largest_products_do_not_saturate(signs: tuple[int, int]) -> None:
    """Processors without VNNI add them up in pairs of 16 bits."""
    inputs, weight = signs[0] * torch.ones(3, 512), signs[1] * torch.ones(64, 512)
    found = int8.Product(weight)(inputs)
    torch.testing.assert_close(found, torch.full((3, 64), 512.0 * signs[0] * signs[1]), atol=0, rtol=1e-6)


@lowered
def test_losses_are_those_of_the_steps(lively_in_8_bits: ModelBundle) -> None:
    tokenizer, model = lively_in_8_bits.tokenizer, lively_in_8_bits.model
    corpus = corpus_of(orders(5), tokenizer, max_turn_tokens=24)
    batch = collate(corpus, next(iter(plan_epoch(corpus, budget=10_000, seed=0, epoch=0))))
    with torch.inference_mode():
        losses = model.token_losses(batch)
    assert len(losses) == len(batch.targets)
    for reply in range(len(batch.reply_turn)):
        own = batch.replies.row == reply
        turn = int(batch.reply_turn[reply])
        before = [
            (batch.tokens[batch.turns.row == at]).tolist()
            for at in range(turn - int(batch.position[turn]), turn)
        ]
        with torch.inference_mode():
            state, memory = model.start(model.encode_conversations([before]))
            found = []
            for last, target in zip(batch.inputs[own].tolist(), batch.targets[own].tolist(), strict=True):
                logits, state, _ = model.step(torch.tensor([last]), state, memory)
                found.append(-logits.log_softmax(1)[0, target])
        torch.testing.assert_close(losses[own], torch.stack(found), atol=1e-4, rtol=0)


@lowered
def test_a_row_without_memory_copies_nothing(lively_in_8_bits: ModelBundle) -> None:
    model = lively_in_8_bits.model
    said = [[lively_in_8_bits.tokenizer.encode_turn("user", "A latte")], []]
    with torch.inference_mode():
        together = model.step(torch.tensor([2, 2]), *model.start(model.encode_conversations(said)))
        alone = model.step(torch.tensor([2]), *model.start(model.encode_conversations([[]])))
    torch.testing.assert_close(together.logits[1], alone.logits[0])
    assert torch.isfinite(together.logits).all()
    assert together.attention[1].sum() == 0


@lowered
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_without_python_in_between_is_the_same(shape: str, tiny_tokenizer: Tokenizer) -> None:
    low = ServedSeq2Seq(made(tiny_tokenizer.vocab_size, **SHAPES[shape]))
    torch.manual_seed(0)
    with torch.inference_mode():
        for lengths in ((9,), (1,), (3, 40, 17), (2,) * 9, (30,)):
            said = [[torch.randint(4, 300, (length,)).tolist()] for length in lengths]
            state, memory = low.start(low.encode_conversations(said))
            for _ in range(2):
                tokens = torch.randint(4, 300, (len(said),))
                step = low.step(tokens, state, memory)
                for one, other in zip(step, low._one_step(tokens, state, *memory), strict=True):
                    assert torch.equal(one, other)
                state = step.state


# ---- Neighbours --------------------------------------------------------------------------------------------


@lowered
@pytest.mark.parametrize("shape", ["usual", "copying", "bilinear", "no_attention", "deep"])
@pytest.mark.parametrize("size", [32, 320])
def test_a_row_goes_on_the_same_bit_for_bit_beside_any_others(
    shape: str, size: int, tiny_tokenizer: Tokenizer
) -> None:
    sizes = {"hidden_size": size, "memory_tokens": 100}
    low = ServedSeq2Seq(made(tiny_tokenizer.vocab_size, **(SHAPES[shape] | sizes)))
    torch.manual_seed(0)
    said = [[torch.randint(4, 300, (length,)).tolist()] for length in (3, 17, 70, 8, 30, 64) * 4]
    with torch.inference_mode():
        state, memory = low.start(low.encode_conversations(said))
        tokens = torch.randint(4, 300, (len(said),))
        # What a neighbour computes is its own affair even if it is not a number.
        state[5] = torch.nan
        together = low.step(tokens, state, memory)
        for row in (0, 1, 2, 3, 16, 23):
            own_state, own_memory = low.start(low.encode_conversations([said[row]]))
            assert torch.equal(own_state[0], state[row])
            alone = low.step(tokens[row : row + 1], own_state, own_memory)
            assert torch.equal(together.state[row], alone.state[0])
            # Only the logarithms that nothing goes on from may differ, in their last digit.
            torch.testing.assert_close(together.logits[row], alone.logits[0], atol=2e-6, rtol=0)
            width = alone.attention.shape[1]
            assert torch.equal(together.attention[row, :width], alone.attention[0])
            assert not together.attention[row, width:].any()
    assert torch.isnan(together.logits[5]).all()


@lowered
@settings(max_examples=40, deadline=None)
@given(ACTIONS, st.sampled_from([4, 7, 64]), st.sampled_from([None, 20]), st.sampled_from([0, 9000]))
def test_any_interleaving_equals_a_solo_run(
    lively_in_8_bits: ModelBundle,
    solo: dict[str, Reply],
    actions: list[tuple[str, int]],
    rows: int,
    reading: int | None,
    kept: int,
) -> None:
    pool = [replace(one, conversation=str(number % 3)) for number, one in enumerate(POOL)]
    interleave(Batcher(lively_in_8_bits, rows=rows, reading=reading, kept=kept), pool, solo, actions)


@lowered
def test_the_pool_is_worth_serving(solo: dict[str, Reply]) -> None:
    assert {reply.finish_reason for reply in solo.values()} == {"stop", "length"}
    assert len({(reply.token_ids, reply.alternatives) for reply in solo.values()}) >= len(POOL) - 2


@lowered
@pytest.mark.parametrize("one", POOL, ids=lambda one: one.id)
def test_a_reply_has_the_log_probabilities_of_the_served_model(
    lively: ModelBundle, lively_in_8_bits: ModelBundle, solo: dict[str, Reply], one: Any
) -> None:
    reply = solo[one.id]
    own = score(lively_in_8_bits, one.turns, reply.token_ids)
    assert own == pytest.approx(reply.logprobs, abs=1e-4)
    assert own != pytest.approx(score(lively, one.turns, reply.token_ids), abs=1e-4)


@lowered
def test_what_is_not_a_number_fails_alone(lively: ModelBundle) -> None:
    broken = made(lively.config.vocab_size, tied=False)
    broken.embedding.weight[40] = torch.nan  # a token that only one of them reads
    bundle = served(replace(lively, model=broken, config=broken.config), "int8")
    text = bundle.tokenizer.decode([40])
    events = drain(
        Batcher(bundle), request("good", HELLO), request("bad", (("user", text),)), request("long", LONG)
    )
    assert set(failures(events)) == {"bad"}


# ---- Which models, and where -------------------------------------------------------------------------------


@lowered
def test_auto_is_int8_where_it_can_be(lively: ModelBundle) -> None:
    assert precision_of(served(lively, "auto").model) == "int8"
    assert precision_of(served(lively, "int8").model) == "int8"
    assert served(lively, "float32") is lively
    assert precision_of(lively.model) == "float32"


@pytest.mark.parametrize("shape", UNFIT)
def test_other_models_stay_as_they_are_for_a_reason(shape: str, tiny_tokenizer: Tokenizer) -> None:
    changes, word = UNFIT[shape]
    bundle = bundle_of(made(tiny_tokenizer.vocab_size, **changes), tiny_tokenizer)
    reason = obstacle(bundle.config)
    assert reason is not None
    assert word in reason or int8.missing() == reason
    assert served(bundle, "int8") is bundle


def test_a_processor_without_8_bit_products_serves_float32(
    lively: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx": True})
    assert "processor" in str(obstacle(lively.config))
    assert served(lively, "int8") is lively
    assert "cuda" in str(obstacle(lively.config, "cuda"))


@lowered
def test_it_can_be_neither_trained_nor_saved(lively_in_8_bits: ModelBundle) -> None:
    model: Any = lively_in_8_bits.model
    with pytest.raises(TypeError, match="not trained"):
        model(None)
    with pytest.raises(TypeError, match="8 bits"):
        _ = model.output_table


@lowered
def test_it_takes_less_memory_than_the_model(lively_in_8_bits: ModelBundle) -> None:
    """Of the weights in float32 it keeps the embeddings and the ages of attention."""
    kept = {name for name, _ in lively_in_8_bits.model.named_parameters()}
    assert kept == {"embedding.weight", "bias", "attention.age.weight"}


# ---- The best of many --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 5, 17]), st.sampled_from([8000, 8064, 130]), st.booleans())
def test_the_best_are_found_block_by_block(seed: int, rows: int, vocabulary: int, coarse: bool) -> None:
    scores = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 4
    scores = scores.round() if coarse else scores
    scores[0, ::2] = FORBIDDEN
    values, ids = likeliest(scores, 7)
    assert torch.equal(values, scores.topk(7, dim=1).values)
    assert torch.equal(scores.gather(1, ids), values)
    assert all(len(set(row)) == 7 for row in ids.tolist())
    assert torch.equal(choose_likeliest(scores), scores.argmax(1))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([1.0, 1.3]), st.booleans(), st.integers(5, 9)
)
def test_a_beam_that_is_given_the_best_searches_as_one_that_looks_for_them(
    seed: int, width: int, penalty: float, coarse: bool, vocabulary: int
) -> None:
    options = DecodingOptions(
        decoding="beam", beam_size=width, max_tokens=6, n_best=width, repetition_penalty=penalty
    )
    one, other = Beam(options, 0), Beam(options, 0)
    random = torch.Generator().manual_seed(seed)
    while not one.done:
        rows = len(one.live)
        scores = torch.randn(rows, vocabulary, generator=random, dtype=torch.float64)
        scores = (scores.round() if coarse else scores).log_softmax(1)
        scores[:, 1] = FORBIDDEN
        logprobs = scores if penalty == 1 else scores * 1.5
        values, ids = likeliest(scores, min(one.shortlist + 1, vocabulary))
        best = Shortlist(values.tolist(), ids.tolist())
        assert one.advance(scores, logprobs, best=best) == other.advance(scores, logprobs)
        assert one.live == other.live
    assert one.best() == other.best()


def test_groups_that_pay_for_each_other_look_for_themselves() -> None:
    assert Beam(DecodingOptions(decoding="beam", beam_size=4, beam_groups=2), 0).shortlist == 0


# ---- Served ------------------------------------------------------------------------------------------------


@lowered
def test_a_server_computes_in_what_it_is_told(lively: ModelBundle, tmp_path: Path) -> None:
    path = tmp_path / "lively"
    fingerprint = seal(
        path,
        model=lively.model,
        tokenizer=lively.tokenizer,
        defaults=lively.defaults,
        metrics={},
        card="# Lively\n",
    )
    expected: dict[Precision, str] = {"auto": "int8", "int8": "int8", "float32": "float32"}
    for asked, told in expected.items():
        bundle = load_to_serve(path, "cpu", asked)
        assert precision_of(bundle.model) == told
        assert bundle.fingerprint == fingerprint
