"""The figures of `python -m training evaluate`, against numbers found by hand or in another way."""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch

from chatbot.batcher import Batcher, Finished, Reply, ReplyRequest
from chatbot.config import ModelConfig
from chatbot.decoding import derived_seed
from chatbot.model import Seq2Seq
from chatbot.model_directory import ModelBundle, seal
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer, clip_turn
from chatbot.transcripts import Transcript, Turn, write_transcripts
from training import evaluate as evaluation
from training import evaluate_command
from training.evaluate import (
    Evaluation,
    Measured,
    NothingToEvaluate,
    Reference,
    choose,
    distinct,
    evaluate,
    measure,
    summarize,
)
from training.words import count_words

LIMIT = 12
"""Tokens of a turn that the models here read."""


def transcript(id_: str, *texts: str, first: str = "user", **weights: float) -> Transcript:
    """A conversation whose sides take turns; ``w3=0.0`` is the weight of turn 3."""
    sides = ("user", "agent") if first == "user" else ("agent", "user")
    turns = [
        Turn.model_validate({"role": sides[n % 2], "text": text, "weight": weights.get(f"w{n}", 1.0)})
        for n, text in enumerate(texts)
    ]
    return Transcript(id=id_, turns=tuple(turns))


TRANSCRIPTS = [
    transcript("greeting", "hello", "hi, how are you?", "fine thanks", "good.", "bye", "bye!"),
    transcript("short", "what is it", "no idea"),
    transcript("empty", "say nothing", ""),
    transcript("waiting", "hello", "hi", "is anybody there"),
    transcript(
        "long", "what is it", "it is " + "very " * 20 + "good", "is it", "yes, it is " * 5, "oh", "no"
    ),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [turn.text for conversation in TRANSCRIPTS for turn in conversation.turns] * 3
    return Tokenizer.train(texts, vocab_size=290)


def bundle_of(tokenizer: Tokenizer, *, seed: int | None = None) -> ModelBundle:
    """A tiny model with random weights, or with none at all: then every token is equally likely."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        embedding_size=8,
        encoder_size=6,
        state_size=8,
        hidden_size=8,
        memory_tokens=16,
        max_turn_tokens=LIMIT,
    )
    model = Seq2Seq(config).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed or 0)
        for parameter in model.parameters():
            if seed is None:
                parameter.zero_()
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return ModelBundle(
        path=Path("nowhere"),
        config=config,
        model=model,
        tokenizer=tokenizer,
        defaults=DecodingOptions(),
        metrics={},
        card="",
        fingerprint="tw-0",
    )


def stepped_nll(bundle: ModelBundle, before: Sequence[Turn], reply: Turn) -> float:
    """The loss of one reply, one step at a time, as serving computes its log-probabilities."""
    ids = [
        clip_turn(bundle.tokenizer.encode_turn(turn.role, turn.text), bundle.config.max_turn_tokens)
        for turn in before
    ]
    target = bundle.tokenizer.encode_turn("agent", reply.text)
    total = 0.0
    with torch.inference_mode():
        state, memory = bundle.model.start(bundle.model.encode_conversations([ids]))
        for token, following in pairwise(target):
            logits, state, _ = bundle.model.step(torch.tensor([token]), state, memory)
            total -= logits[0].log_softmax(0)[following].item()
    return total


# ---- Perplexity ------------------------------------------------------------------------------------


def test_a_model_without_weights_is_as_perplexed_as_its_vocabulary_is_large(tokenizer: Tokenizer) -> None:
    found = evaluate(bundle_of(tokenizer), TRANSCRIPTS, max_replies=0)
    assert found.replies == 9
    assert found.perplexity_token == pytest.approx(tokenizer.vocab_size, rel=1e-5)
    assert found.nll == pytest.approx(found.tokens * math.log(tokenizer.vocab_size), rel=1e-6)


def test_tokens_and_words_are_those_of_the_replies(tokenizer: Tokenizer) -> None:
    found = evaluate(bundle_of(tokenizer), TRANSCRIPTS[:4], max_replies=0)
    replies = ["hi, how are you?", "good.", "bye!", "no idea", "", "hi"]
    assert found.tokens == sum(len(tokenizer.encode(reply)) + 1 for reply in replies)
    assert found.words == 7 + 3 + 3 + 3 + 1 + 2
    assert found.perplexity_word == pytest.approx(math.exp(found.nll / 19))


def test_words_are_counted_in_the_text_that_the_model_predicts(tokenizer: Tokenizer) -> None:
    spaced = [transcript("a", "hello", "i do n't  know ."), transcript("b", "hello", "i don't know.")]
    found = measure(bundle_of(tokenizer), spaced, max_replies=0)
    assert {item.reference.text for item in found} == {"i don't know."}
    assert [item.reference.words for item in found] == [count_words("i don't know.")] * 2


def test_a_model_of_single_tokens_loses_what_their_shares_say(tokenizer: Tokenizer) -> None:
    bundle = bundle_of(tokenizer)
    counts = Counter(
        token
        for conversation in TRANSCRIPTS
        for turn in conversation.turns
        if turn.role == "agent"
        for token in [*tokenizer.encode(turn.text), tokenizer.end_id]
    )
    shares = {token: count / counts.total() for token, count in counts.items()}
    with torch.no_grad():
        bundle.model.bias.fill_(-1e4)
        for token, share in shares.items():
            bundle.model.bias[token] = math.log(share)
    found = evaluate(bundle, TRANSCRIPTS, max_replies=0)
    entropy = -sum(share * math.log(share) for share in shares.values())
    assert found.tokens == counts.total()
    assert found.nll == pytest.approx(entropy * counts.total(), rel=1e-5)


def test_losses_are_those_of_serving_step_by_step(tokenizer: Tokenizer) -> None:
    bundle = bundle_of(tokenizer, seed=3)
    for item in measure(bundle, TRANSCRIPTS, max_replies=0):
        turns = TRANSCRIPTS[item.reference.transcript].turns
        place = item.reference.turn
        assert item.nll == pytest.approx(stepped_nll(bundle, turns[:place], turns[place]), rel=1e-4)


@pytest.mark.parametrize("span", [1, 15])
def test_a_conversation_scored_in_pieces_gives_the_same_losses(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, span: int
) -> None:
    bundle = bundle_of(tokenizer, seed=4)
    whole = measure(bundle, TRANSCRIPTS, max_replies=0)
    monkeypatch.setattr(evaluation, "SPAN_TOKENS", span)
    pieces = measure(bundle, TRANSCRIPTS, max_replies=0)
    assert [item.nll for item in pieces] == pytest.approx([item.nll for item in whole], rel=1e-4)


def test_long_references_are_scored_whole_and_counted(tokenizer: Tokenizer) -> None:
    found = evaluate(bundle_of(tokenizer), TRANSCRIPTS[4:], max_replies=0)
    long = [len(tokenizer.encode_turn("agent", TRANSCRIPTS[4].turns[place].text)) for place in (1, 3)]
    assert min(long) > LIMIT
    assert found.truncated == 2
    (alone,) = measure(
        bundle_of(tokenizer), [transcript("one", "what", TRANSCRIPTS[4].turns[1].text)], max_replies=0
    )
    assert alone.reference.tokens == long[0] - 1
    assert alone.reference.words == 1 + 23
    assert alone.nll == pytest.approx((long[0] - 1) * math.log(tokenizer.vocab_size), rel=1e-6)


def test_a_reference_without_measure_is_cut_with_its_words(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "LONGEST_REFERENCE", 20)
    (cut,) = measure(bundle_of(tokenizer), [transcript("one", "what", "very " * 500)], max_replies=0)
    assert cut.reference.tokens == 19
    assert cut.reference.words == count_words(cut.reference.text) < 20
    assert cut.nll == pytest.approx(19 * math.log(tokenizer.vocab_size), rel=1e-6)


def test_only_replies_to_a_user_count(tokenizer: Tokenizer) -> None:
    welcome = transcript("welcome", "can i help you", "yes", "how", first="agent")
    twice = Transcript(
        id="twice",
        turns=(
            Turn(role="user", text="hello"),
            Turn(role="agent", text="hi"),
            Turn(role="agent", text="are you there"),
        ),
    )
    found = measure(bundle_of(tokenizer), [welcome, twice], max_replies=0)
    assert [item.reference.name for item in found] == ["welcome#2", "twice#1"]


def test_replies_of_weight_zero_do_not_count(tokenizer: Tokenizer) -> None:
    weighed = transcript("a", "hello", "hi", "bye", "bye bye", w1=0.0, w3=0.3)
    found = measure(bundle_of(tokenizer), [weighed], max_replies=0)
    assert [item.reference.text for item in found] == ["bye bye"]


def test_nothing_to_predict_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(NothingToEvaluate):
        evaluate(bundle_of(tokenizer), [transcript("a", "hello"), Transcript(id="b", turns=())])


def test_the_order_of_the_transcripts_does_not_matter(tokenizer: Tokenizer) -> None:
    bundle = bundle_of(tokenizer, seed=5)
    shuffled = random.Random(0).sample(TRANSCRIPTS, len(TRANSCRIPTS))
    options = DecodingOptions(decoding="sample", seed=7, max_tokens=6)
    first = evaluate(bundle, TRANSCRIPTS, options=options, max_replies=5)
    second = evaluate(bundle, shuffled, options=options, max_replies=5)
    assert second.model_dump() == pytest.approx(first.model_dump(), rel=1e-5)


# ---- Replies ---------------------------------------------------------------------------------------


def test_the_model_answers_each_turn_given_the_whole_conversation(tokenizer: Tokenizer) -> None:
    bundle = bundle_of(tokenizer, seed=6)
    options = DecodingOptions(decoding="sample", seed=11, max_tokens=8)
    for item in measure(bundle, TRANSCRIPTS, options=options):
        reference = item.reference
        turns = TRANSCRIPTS[reference.transcript].turns[: reference.turn]
        seeded = options.model_copy(update={"seed": derived_seed(11, reference.name)})
        batcher = Batcher(bundle)
        batcher.submit(ReplyRequest("solo", tuple((turn.role, turn.text) for turn in turns), seeded))
        events = []
        while not batcher.idle:
            events += batcher.step()
        assert isinstance(events[-1], Finished)
        assert item.reply is not None
        assert item.reply.token_ids == events[-1].reply.token_ids


def test_more_replies_than_the_decoder_holds_are_all_answered(tokenizer: Tokenizer) -> None:
    many = [transcript(f"t{n}", "hello", "hi") for n in range(400)]
    found = evaluate(bundle_of(tokenizer, seed=1), many, options=DecodingOptions(max_tokens=2))
    assert (found.replies, found.generated) == (400, 400)


def test_without_replies_their_figures_are_empty(tokenizer: Tokenizer) -> None:
    found = evaluate(bundle_of(tokenizer), TRANSCRIPTS, max_replies=0)
    assert found.generated == 0
    assert found.bleu is found.chrf is found.distinct_1 is found.most_frequent_reply_share is None


def references(*texts: str) -> list[Reference]:
    return [
        Reference(
            transcript=n, turn=1, name=f"{n}#1", text=text, words=count_words(text), tokens=5, truncated=False
        )
        for n, text in enumerate(texts)
    ]


def answered(pairs: Sequence[tuple[str, str]]) -> list[Measured]:
    """References with replies of 3 tokens and their end."""
    made = [Reply(text, (7, 8, 9, 3), (0.0,) * 4, "stop", 0, ()) for _, text in pairs]
    return [
        Measured(ref, 5.0, reply) for ref, reply in zip(references(*(r for r, _ in pairs)), made, strict=True)
    ]


PAIRS = [
    ("Is there anything else that I can do for you?", "Is there anything else I can do?"),
    ("Your flight leaves at 10:30, gate B.", "Your flight leaves at 10:30 from gate B."),
    ("Goodbye!", "Thank you and goodbye."),
]


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    found = summarize(answered(PAIRS))
    texts, refs = [text for _, text in PAIRS], [[ref for ref, _ in PAIRS]]
    assert found.bleu == pytest.approx(sacrebleu.corpus_bleu(texts, refs).score)
    assert found.chrf == pytest.approx(sacrebleu.corpus_chrf(texts, refs).score)
    assert 0 < (found.bleu or 0) < 100


def test_replies_that_equal_their_references_are_perfect() -> None:
    found = summarize(answered([(reference, reference) for reference, _ in PAIRS]))
    assert found.bleu == pytest.approx(100)
    assert found.chrf == pytest.approx(100)


def test_variety_is_counted_in_words_of_replies() -> None:
    found = summarize(answered([("a", "i see, i see"), ("b", "ok"), ("c", "ok"), ("d", "")]))
    assert found.distinct_1 == pytest.approx(4 / 7)  # i see , ok, of 7
    assert found.distinct_2 == pytest.approx(3 / 4)  # "i see" "see ," ", i", of 4
    assert found.most_frequent_reply_share == pytest.approx(2 / 4)
    assert found.mean_reply_tokens == pytest.approx(3)


def test_pairs_of_words_do_not_cross_replies() -> None:
    assert distinct(["one", "two"], 2) == 0.0
    assert distinct(["one two", "one two"], 2) == pytest.approx(1 / 2)


def test_the_references_to_answer_are_chosen_by_name_alone() -> None:
    all_of_them = references(*"abcdefghijklmnop")
    some = {all_of_them[index].name for index in choose(all_of_them, 5)}
    backwards = all_of_them[::-1]
    assert {backwards[index].name for index in choose(backwards, 5)} == some
    assert len(some) == 5
    assert some < {all_of_them[index].name for index in choose(all_of_them, 9)}
    assert choose(all_of_them, None) == choose(all_of_them, 99) == list(range(16))


# ---- The command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    made = bundle_of(tokenizer, seed=8)
    defaults = DecodingOptions(max_tokens=1)
    seal(path, model=made.model, tokenizer=tokenizer, defaults=defaults, metrics={}, card="A test.")
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"]
    write_transcripts(paths[0], TRANSCRIPTS[:3])
    write_transcripts(paths[1], TRANSCRIPTS[3:])
    return paths


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    evaluate_command.add_arguments(parser)
    return evaluate_command.run(parser.parse_args([*map(str, arguments), "--device", "cpu"]))


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    return found


def test_the_report_holds_the_promised_figures(
    model: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, model, *files)
    promised = {
        "replies",
        "nll",
        "perplexity_token",
        "perplexity_word",
        "bleu",
        "chrf",
        "distinct_1",
        "distinct_2",
    }
    assert promised <= found.keys()
    assert found["replies"] == found["generated"] == 9
    assert found["options"]["decoding"] == "greedy"
    assert found["options"]["max_tokens"] == LIMIT - 1  # not the model's own default
    assert found["model"].startswith("tw-")


def test_several_files_are_measured_together_and_apart(
    model: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    both = report(capsys, model, *files)
    alone = [report(capsys, model, file) for file in files]
    for file, found in zip(files, alone, strict=True):
        assert "files" not in found
        shared = both["files"][str(file)]
        assert {name: found[name] for name in shared} == pytest.approx(shared, rel=1e-5)
    assert both["nll"] == pytest.approx(sum(found["nll"] for found in alone), rel=1e-5)


def test_replies_can_be_few_or_none(
    model: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    everything, few, none = (
        report(capsys, model, *files, *flags) for flags in ([], ["--max-replies", 2], ["--no-generate"])
    )
    assert [found["generated"] for found in (everything, few, none)] == [9, 2, 0]
    assert everything["nll"] == few["nll"] == none["nll"]
    assert none["bleu"] is none["options"] is None


def test_decoding_flags_reach_the_decoder(
    model: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, model, files[0], "--decoding", "beam", "--beam-size", 2, "--max-tokens", 3)
    assert (found["options"]["decoding"], found["options"]["beam_size"]) == ("beam", 2)
    assert found["mean_reply_tokens"] <= 3


def test_people_get_a_table(model: Path, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, *files, "--no-generate") == 0
    shown = capsys.readouterr().out
    assert "perplexity_word" in shown
    assert "bleu" not in shown
    assert str(files[1]) in shown


@pytest.mark.parametrize(
    ("flags", "status", "reason"),
    [
        (["--temperature", "0"], 2, "--temperature must be a number from 0.05 to 5"),
        (["--top-k", "1000"], 2, "--top-k must be a whole number from 0 to "),
        (["--device", "abacus"], 2, "--device abacus: "),
    ],
)
def test_options_out_of_range_are_refused(
    model: Path,
    files: list[Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    status: int,
    reason: str,
) -> None:
    parser = argparse.ArgumentParser()
    evaluate_command.add_arguments(parser)
    arguments = parser.parse_args([str(model), str(files[0]), "--device", "cpu", *flags])
    assert evaluate_command.run(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(reason)


def test_a_broken_file_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "a", "turns": []}\n{"id": "b"}\n')
    assert run(model, broken) == 1
    assert capsys.readouterr().err == f"{broken}:2: turns: Field required\n"


def test_a_missing_model_or_file_is_named(
    model: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    assert run(missing, files[0]) == 1
    assert str(missing) in capsys.readouterr().err
    assert run(model, missing) == 1
    assert str(missing) in capsys.readouterr().err


def test_every_figure_is_documented() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "evaluation.md").read_text("utf-8")
    documented = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert documented == list(Evaluation.model_fields)
