"""Two models on the same questions, and what a run says of itself while it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatbot.batcher import ReplyRequest
from chatbot.model_directory import load
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import Transcript, write_transcripts
from server.verify import score
from tests.models import seal_tiny
from tests.small import transcript
from training.__main__ import main
from training.evaluate import generate, plain_greedy
from training.progress import POINTS, Reporter

QUESTIONS = [
    transcript("Hello!", name="a"),
    transcript("Hi there", "Hello, what can I get you?", "A latte, please.", name="b"),
    transcript("good morning", name="c"),
]


@pytest.fixture
def models(tmp_path: Path, tiny_tokenizer: Tokenizer) -> tuple[Path, Path]:
    for seed in (1, 2):
        seal_tiny(tmp_path / f"tiny-{seed}", tiny_tokenizer, seed=seed)
    return tmp_path / "tiny-1", tmp_path / "tiny-2"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def compare(place: Path, base: Path, candidate: Path, questions: list[Transcript]) -> int:
    write_transcripts(place / "asked.jsonl", questions)
    files = [str(base), str(candidate), str(place / "asked.jsonl"), "-o", str(place / "out.jsonl")]
    return main(["compare", *files, "--progress", str(place / "progress.jsonl"), "--json"])


def test_both_replies_are_told_and_the_candidate_weighs_the_change(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, *models, QUESTIONS) == 0

    assert json.loads(capsys.readouterr().out) == {"questions": 3, "changed": 3}
    found = lines(tmp_path / "out.jsonl")
    assert [each["id"] for each in found] == ["a", "b", "c"]
    candidate = load(models[1])
    for question, each in zip(QUESTIONS, found, strict=True):
        said = tuple((turn.role, turn.text) for turn in question.turns)
        for model, key in ((load(models[0]), "base"), (candidate, "candidate")):
            [(_, reply)] = generate(model, [ReplyRequest("0", said, plain_greedy(model))])
            assert each[key] == reply.text
        mean = []
        for text in (each["candidate"], each["base"]):
            tokens = [*candidate.tokenizer.encode(str(text)), candidate.tokenizer.end_id]
            mean.append(sum(score(candidate, said, tokens)) / len(tokens))
        assert each["gain"] == pytest.approx(mean[0] - mean[1], abs=1e-4)


def test_a_model_that_is_the_same_changes_nothing(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, models[0], models[0], QUESTIONS) == 0

    assert json.loads(capsys.readouterr().out)["changed"] == 0
    assert all(each["gain"] is None for each in lines(tmp_path / "out.jsonl"))


def test_it_says_how_far_it_is(models: tuple[Path, Path], tmp_path: Path) -> None:
    compare(tmp_path, *models, QUESTIONS)

    told = lines(tmp_path / "progress.jsonl")
    phases = list(dict.fromkeys(each["phase"] for each in told))
    assert phases == [
        *("reading", "answering with the base", "answering with the candidate"),
        *("weighing the changes", "done"),
    ]
    answered = [each["step"] for each in told if each["phase"] == "answering with the base"]
    assert answered == [1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            [QUESTIONS[0], transcript("Hello!", "Hm.", name="d")],
            "conversation 'd' does not end in a user turn",
        ),
        ([], None),
    ],
    ids=["answered already", "nothing"],
)
def test_only_questions_are_answered(
    models: tuple[Path, Path],
    tmp_path: Path,
    asked: list[Transcript],
    reason: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert compare(tmp_path, *models, asked) == (1 if reason else 0)

    assert reason is None or reason in capsys.readouterr().err
    assert lines(tmp_path / "progress.jsonl")[-1]["phase"] == ("failed" if reason else "done")
    assert (tmp_path / "out.jsonl").exists() is (reason is None)


def test_a_long_run_is_told_in_bounded_space(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "progress.jsonl")
    for step in range(1, 25_001):
        reporter.step("training", step, 25_000, loss=1 / step)

    told = lines(tmp_path / "progress.jsonl")
    assert len(told) <= POINTS + 1
    assert told[-1]["step"] == 25_000
