"""Other models' say in which reply is given: the score against its definition, what each option changes."""

from __future__ import annotations

import io
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chatbot import cli
from chatbot.batcher import Batcher, Reply, ReplyRequest
from chatbot.config import ModelConfig
from chatbot.decoder import TokenizersDiffer
from chatbot.model import Context, Memory, Seq2Seq, Step
from chatbot.model_directory import ModelBundle, seal
from chatbot.options import DecodingOptions, OptionError
from chatbot.reranking import Rerankers, continuation_logprobs
from chatbot.terms import Terms
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Role, render_transcript, write_transcripts
from tests.batching import (
    Bigram,
    Probabilities,
    Tree,
    bigram_bundle,
    bigram_table,
    bundle_of,
    drain,
    failures,
    replies,
)
from tests.small import SMALL, orders, texts, transcript
from training.__main__ import main as training

A, B, C, D = 36, 37, 38, 39
END, AGENT = Tokenizer.end_id, Tokenizer.agent_id
Turns = tuple[tuple[Role, str], ...]

ANSWERS: Probabilities = {
    AGENT: {A: 0.5, B: 0.3, C: 0.2},
    A: {END: 0.9, B: 0.1},
    B: {END: 0.8, C: 0.2},
    C: {D: 0.7, END: 0.3},
    D: {END: 1.0},
}
DULL: Probabilities = {
    AGENT: {A: 0.8, B: 0.1, C: 0.1},
    A: {END: 0.5, B: 0.5},
    B: {END: 0.5, C: 0.5},
    C: {D: 0.5, END: 0.5},
    D: {END: 1.0},
}
REPLIES = ((A, END), (A, B, END), (B, END), (B, C, D, END), (C, D, END), (C, END))


@pytest.fixture(scope="module")
def config(tiny_tokenizer: Tokenizer) -> ModelConfig:
    return SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})


class Reversed(Bigram):
    """Answers a turn that holds the token ``cue`` by one table, any other turn by another."""

    def __init__(self, config: ModelConfig, cue: int, with_cue: Tensor, without: Tensor) -> None:
        super().__init__(config, without)
        self.cue, self.with_cue = cue, with_cue

    def start(self, context: Context) -> tuple[Tensor, Memory]:
        held = ((context.tokens == self.cue) & (context.turns == 1)[:, None]).any(1)
        return held[:, None].double(), super().start(context)[1]

    def step(self, tokens: Tensor, state: Tensor, memory: Memory) -> Step:
        logits = torch.where(state > 0, self.with_cue[tokens], self.table[tokens])
        return Step(logits, state, memory.mask.double())


QUESTION = "A B"
FITS: dict[bool, float] = {True: 0.9, False: 0.2}
"""What the reversed model gives each token of the question after a reply that holds D, and after others."""


@pytest.fixture(scope="module")
def rerankers(config: ModelConfig, tiny_tokenizer: Tokenizer) -> Rerankers:
    question = [AGENT, *tiny_tokenizer.encode(QUESTION), END]
    assert len(set(question)) == len(question)
    tables = {
        fits: bigram_table(
            tiny_tokenizer.vocab_size,
            {one: {after: share, 200: 1 - share} for one, after in itertools.pairwise(question)},
        )
        for fits, share in FITS.items()
    }
    (cue,) = tiny_tokenizer.encode("CD")[-1:]
    assert cue == D
    return Rerankers(
        language_model=bigram_bundle(config, tiny_tokenizer, DULL),
        reverse=bundle_of(Reversed(config, cue, tables[True], tables[False]), tiny_tokenizer),
    )


@pytest.fixture(scope="module")
def bundle(config: ModelConfig, tiny_tokenizer: Tokenizer) -> ModelBundle:
    return bigram_bundle(config, tiny_tokenizer, ANSWERS)


def said(bundle: ModelBundle, rerankers: Rerankers | None, **options: object) -> Reply:
    checked = DecodingOptions.checked({"decoding": "beam", "beam_size": 6, "min_tokens": 0, **options})
    request = ReplyRequest("only", (("user", "Hello"), ("agent", "Hi"), ("user", QUESTION)), checked)
    return replies(drain(Batcher(bundle, rerankers=rerankers), request))["only"]


def likelihood(table: Probabilities, reply: Sequence[int]) -> list[float]:
    return [math.log(table[one][after]) for one, after in itertools.pairwise([AGENT, *reply])]


def score(reply: Sequence[int], lam: float, gamma: int, mu: float, eta: float) -> float:
    """The definition, of a reply of the models above."""
    backwards = 4 * math.log(FITS[D in reply])  # three tokens of the question and its end
    dull = likelihood(DULL, reply)[: gamma or None]
    return sum(likelihood(ANSWERS, reply)) - lam * sum(dull) + mu * backwards + eta * len(reply)


@pytest.mark.parametrize("lam", [0.3, 1.0, 0.0])
@pytest.mark.parametrize("gamma", [0, 1, 2])
@pytest.mark.parametrize("mu", [0.5, 0.0])
@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_all_replies_are_ranked_by_the_score_of_the_definition(
    bundle: ModelBundle, rerankers: Rerankers, lam: float, gamma: int, mu: float, eta: float
) -> None:
    assert len(bundle.tokenizer.encode(QUESTION)) == 3
    reply = said(bundle, rerankers, n_best=6, mmi_lambda=lam, mmi_gamma=gamma, mmi_reverse=mu, mmi_length=eta)
    if not lam and not mu:
        eta = 0.0  # nobody judges
    ranked = sorted(REPLIES, key=lambda ids: -score(ids, lam, gamma, mu, eta))
    assert [a.token_ids for a in reply.alternatives] == ranked
    assert [a.score for a in reply.alternatives] == pytest.approx(
        [score(ids, lam, gamma, mu, eta) for ids in ranked]
    )
    assert [a.logprob for a in reply.alternatives] == pytest.approx(
        [sum(likelihood(ANSWERS, ids)) for ids in ranked]
    )
    assert (reply.token_ids, reply.text) == (ranked[0], reply.alternatives[0].text)


def test_each_option_changes_the_reply(bundle: ModelBundle, rerankers: Rerankers) -> None:
    assert said(bundle, rerankers).text == "A"
    assert said(bundle, rerankers, mmi_lambda=0.5).text == "B"
    assert said(bundle, rerankers, mmi_lambda=3.0).text == "BCD"
    assert said(bundle, rerankers, mmi_lambda=3.0, mmi_gamma=1).text == "B"
    assert said(bundle, rerankers, mmi_reverse=1.0).text == "CD"
    assert said(bundle, rerankers, mmi_lambda=0.1, mmi_length=3.0).text == "BCD"


@pytest.mark.parametrize("decoding", ["beam", "sample"])
def test_all_that_was_found_is_judged_and_the_n_best_are_told(
    bundle: ModelBundle, rerankers: Rerankers, decoding: str
) -> None:
    """The likeliest reply alone would have been A, which would leave nothing to choose from."""
    options = {"decoding": decoding, "samples": 16, "seed": 3, "n_best": 1, "mmi_lambda": 1.0}
    reply = said(bundle, rerankers, **options)
    assert reply.text == "B"
    assert [a.text for a in reply.alternatives] == ["B"]
    assert reply.logprobs == pytest.approx(likelihood(ANSWERS, (B, END)))


def test_nothing_is_shown_that_another_reply_might_not_say(
    config: ModelConfig, tiny_tokenizer: Tokenizer
) -> None:
    """Pieces add up to the reply that is chosen (`drain` checks that they add up)."""
    changed = 0
    for seed in range(40):
        bundle, judge = (
            bundle_of(Tree(config, [A, B, END], each, sharpness=2.0), tiny_tokenizer)
            for each in (seed, seed + 100)
        )
        for groups in (1, 2):
            options = {"beam_size": 2 * groups, "beam_groups": groups, "max_tokens": 8}
            reply = said(bundle, Rerankers(judge), mmi_lambda=1.0, **options)
            assert reply.text == tiny_tokenizer.decode(reply.token_ids)
            changed += reply.text != said(bundle, None, **options).text
    assert changed > 5


def test_what_a_helper_cannot_judge_fails_alone(
    config: ModelConfig, tiny_tokenizer: Tokenizer, bundle: ModelBundle
) -> None:
    table = bigram_table(tiny_tokenizer.vocab_size, DULL)
    table[AGENT, B] = math.nan
    broken = Rerankers(bundle_of(Bigram(config, table), tiny_tokenizer))
    options = DecodingOptions(decoding="beam", beam_size=6, mmi_lambda=0.5)
    plain = DecodingOptions(decoding="beam")
    turns: Turns = (("user", "Hello"),)
    events = drain(
        Batcher(bundle, rerankers=broken),
        ReplyRequest("bad", turns, options),
        ReplyRequest("a", turns, plain),
    )
    assert "not a number" in failures(events)["bad"].message
    assert replies(events)["a"].text == "A"


# ---- Models ------------------------------------------------------------------------------------------------


def random_model(config: ModelConfig, seed: int) -> Seq2Seq:
    torch.manual_seed(seed)
    return Seq2Seq(config).double().eval()


@pytest.mark.parametrize("encoder", ["two_level", "none"])
def test_continuations_are_scored_as_if_each_were_alone(
    config: ModelConfig, tiny_tokenizer: Tokenizer, encoder: str
) -> None:
    changed = {"encoder": encoder} | ({"attention": "none", "memory_tokens": 1} if encoder == "none" else {})
    model = random_model(ModelConfig.model_validate({**config.model_dump(), **changed}), 1)
    scorer = bundle_of(model, tiny_tokenizer)
    conversations = [[tiny_tokenizer.encode_turn("user", "Hello")], [], [[1, A, END], [2, B, END]]]
    continuations = [[A, B, C, END], [END], [B, B]]
    together = continuation_logprobs(scorer, conversations, continuations)
    for conversation, reply, logprobs in zip(conversations, continuations, together, strict=True):
        with torch.inference_mode():
            state, memory = model.start(model.encode_conversations([conversation]))
            expected = []
            for token, target in itertools.pairwise([AGENT, *reply]):
                logits, state, _ = model.step(torch.tensor([token]), state, memory)
                expected.append(logits[0].log_softmax(0)[target].item())
        assert logprobs == pytest.approx(expected)


def test_options_that_need_a_model_are_refused_without_it(
    bundle: ModelBundle, rerankers: Rerankers, tiny_tokenizer: Tokenizer
) -> None:
    turns: Turns = (("user", "Hello"),)
    without = {
        "mmi_lambda": (None, Rerankers(), Rerankers(reverse=rerankers.reverse)),
        "mmi_reverse": (None, Rerankers(), Rerankers(rerankers.language_model)),
    }
    for field, partial in without.items():
        options = DecodingOptions.checked({"decoding": "beam", field: 0.1})
        for some in partial:
            failed = failures(drain(Batcher(bundle, rerankers=some), ReplyRequest("a", turns, options)))
            assert failed["a"].field == field
        with pytest.raises(OptionError, match=f"^{field}: must be 0: there is no"):
            Terms(tiny_tokenizer, 64).grant(options)
    Terms(tiny_tokenizer, 64, rerankers).grant(options)


def test_helpers_have_the_tokenizer_of_the_model(bundle: ModelBundle) -> None:
    other = Tokenizer.train(texts(orders(50, seed=9)), vocab_size=SMALL.vocab_size)
    stranger = bigram_bundle(SMALL.model_copy(update={"vocab_size": other.vocab_size}), other, DULL)
    for rerankers in (Rerankers(stranger), Rerankers(reverse=stranger)):
        with pytest.raises(TokenizersDiffer):
            Batcher(bundle, rerankers=rerankers)


# ---- Commands ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directories(
    config: ModelConfig, tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    folder = tmp_path_factory.mktemp("helpers")
    paths = [folder / name for name in ("model", "helper")]
    for seed, path in enumerate(paths):
        made = random_model(config, seed)
        defaults = DecodingOptions(decoding="beam", n_best=1, max_tokens=5)
        seal(path, model=made, tokenizer=tiny_tokenizer, defaults=defaults, metrics={}, card="x")
    return [str(path) for path in paths]


def test_commands_take_helpers(
    directories: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, helper = directories
    helpers = {"--mmi-lambda": "--language-model", "--mmi-reverse": "--reverse-model"}
    file = tmp_path / "dev.jsonl.gz"
    write_transcripts(file, orders(2))

    def answer(*flags: str) -> tuple[int, str, str]:
        asked = render_transcript(transcript("Hello!")).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(asked)))
        status = cli.main(["reply", model, "--n-best", "4", *flags])
        return (status, *capsys.readouterr())

    for option, flag in helpers.items():
        status, out, _ = answer(option, "3", flag, helper)
        assert status == 0
        scored = json.loads(out)["alternatives"]
        assert [a["score"] for a in scored] != [a["logprob"] for a in scored]
        status, _, err = answer(option, "3")
        assert status == 2
        assert err.startswith(f"error: {option} must be 0: there is no ")
        evaluation = ["evaluate", model, str(file), "--json", "--device", "cpu"]
        evaluation += ["--decoding", "beam", option, "3"]
        assert training([*evaluation, flag, helper]) == 0
        assert json.loads(capsys.readouterr().out)["options"][option[2:].replace("-", "_")] == 3
        assert training(evaluation) == 2
        assert capsys.readouterr().err.startswith(f"{option} must be 0")
