"""Retraining from end to end, on orders of our own making: corrections are learned, poison is stopped."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel

from chatbot.batcher import ReplyRequest
from chatbot.model_directory import ModelBundle, load, seal
from chatbot.options import DecodingOptions
from chatbot.transcripts import Transcript, write_transcripts
from tests.small import SMALL, order, orders, transcript
from training.__main__ import main
from training.config import TrainConfig
from training.dataset import DataConfig, Secret, Sources, build
from training.evaluate import generate
from training.filters import FilterConfig
from training.gate import Limits
from training.retrain import _leaks, examine, learn, make_exam
from training.retrain_config import RetrainConfig
from training.train import train

PAGE = Path(__file__).resolve().parent.parent / "docs/retraining.md"
FINGERPRINT = "tw-0123456789abcdef"
ASKED = ("Do you have oat milk?", "Is there oat milk?", "Have you got oat milk?", "Any oat milk here?")
OTHER_WORDS = ("Is there any oat milk here?", "Do you have any oat milk?")
ANSWER = "Yes, oat milk is free."
QUICK = (
    *("epochs=6", "learning_rate=0.005", "warmup_steps=3", "batch_tokens=800"),
    *("device=cpu", "precision=fp32"),
)
"""A small model that was trained for seconds needs larger steps than a real one."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with old data, a dev part and a base that was trained on the old data."""
    place = tmp_path_factory.mktemp("retrain")
    write_transcripts(place / "old.jsonl.gz", orders(300, seed=1))
    write_transcripts(place / "orders.jsonl.gz", orders(40, seed=2))
    config = TrainConfig.model_validate(
        {
            "model": SMALL.model_dump() | {"hidden_size": 32, "state_size": 24, "max_turn_tokens": 64},
            "batch_tokens": 800,
            "learning_rate": 0.01,
            "warmup_steps": 5,
            "max_steps": 250,
            "evaluate_every": 250,
            "precision": "fp32",
            "device": "cpu",
        }
    )
    trained = train([place / "old.jsonl.gz"], [], place / "base.run", config, quiet=True)
    seal(
        place / "base",
        model=trained.model,
        tokenizer=trained.tokenizer,
        defaults=DecodingOptions(max_tokens=40),
        metrics={},
        card="# The base\n\nOf our own making.\n\n## The run\n\nshort\n",
    )
    return place


def reviewed(count: int, **turn: Any) -> list[Transcript]:
    """Orders in which the visitor at last asks for oat milk, and what a person said of the bot's reply."""
    rng = random.Random(7)
    found = []
    for number in range(count):
        said = [
            {"role": each.role, "text": each.text, **({"author": f"model:{FINGERPRINT}"} if i % 2 else {})}
            for i, each in enumerate(order(rng, number).turns)
        ]
        question = {"role": "user", "text": ASKED[number % len(ASKED)]}
        reply = {"role": "agent", "author": f"model:{FINGERPRINT}", "text": "What is your name?", **turn}
        line = {"id": f"chat-{number}", "visitor": f"v{number}", "turns": [*said, question, reply]}
        found.append(Transcript.model_validate(line))
    return found


def retrain(
    world: Path, out: Path, lines: list[Transcript], *settings: str, flags: tuple[str, ...] = ()
) -> int:
    write_transcripts(out.with_suffix(".jsonl"), lines)
    return main(
        [
            *["retrain", "--base", str(world / "base"), "--reviewed", str(out.with_suffix(".jsonl"))],
            *["--replay", str(world / "old.jsonl.gz"), "--dev", str(world / "orders.jsonl.gz")],
            *["--out", str(out), "--json", *flags],
            *(part for setting in [*QUICK, *settings] for part in ("--set", setting)),
        ]
    )


def answers(model: Path, questions: tuple[str, ...]) -> list[str]:
    bundle = load(model)
    hello = (("user", "Hi there"), ("agent", "Hello, what can I get you?"))
    greedy = DecodingOptions(max_tokens=40)
    requests = [ReplyRequest(str(n), (*hello, ("user", text)), greedy) for n, text in enumerate(questions)]  # type: ignore[arg-type]
    found = dict(generate(bundle, requests))
    return [found[number].text for number in range(len(questions))]


@pytest.fixture(scope="module")
def corrected(world: Path) -> tuple[Path, int]:
    """A candidate made of 24 corrections of one kind, and the status of the command."""
    out = world / "candidate"
    return out, retrain(world, out, reviewed(24, corrected=ANSWER))


def test_corrections_are_learned_and_the_rest_stays(world: Path, corrected: tuple[Path, int]) -> None:
    out, status = corrected
    metrics = load(out).metrics
    assert status == 0, metrics["gate"]
    assert answers(world / "base", OTHER_WORDS) != [ANSWER] * 2
    assert answers(out, OTHER_WORDS) == [ANSWER] * 2  # asked in words that no correction has
    assert answers(out, ("A latte, please.",)) == ["Which size would you like for the latte?"]
    base, candidate = metrics["figures"]["base"], metrics["figures"]["candidate"]
    assert base["learned"]["adopted"] < candidate["learned"]["adopted"] == candidate["learned"]["of"]
    assert candidate["held_out"]["adopted"] == candidate["held_out"]["of"] > 0
    assert metrics["gate"]["passed"]


def test_the_candidate_says_where_it_comes_from(world: Path, corrected: tuple[Path, int]) -> None:
    bundle, base = load(corrected[0]), load(world / "base")
    manifest = (world / "candidate.manifest.json").read_bytes()
    assert bundle.metrics["base"] == base.fingerprint
    assert bundle.metrics["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert base.fingerprint in bundle.card
    assert "Of our own making." in bundle.card
    assert "the gate is passed" in bundle.card
    assert bundle.defaults == base.defaults


def test_the_gate_alone_judges_again_and_changes_nothing(
    world: Path, corrected: tuple[Path, int], capsys: pytest.CaptureFixture[str]
) -> None:
    out, lines = corrected[0], reviewed(24, corrected=ANSWER)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    capsys.readouterr()

    assert retrain(world, out, lines, flags=("--gate-only",)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["figures"] == load(out).metrics["figures"]
    assert json.loads((world / "candidate.gate.json").read_text()) == report
    assert retrain(world, out, lines, "gate.perplexity=0", "gate.bleu=0", flags=("--gate-only",)) == 3
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_flood_and_contradicting_corrections_change_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten thousand turns of one visitor, approved by a careless reviewer, and a quarrel of two others."""
    flood = [
        {
            "id": f"spam-{n}",
            "visitor": "mallory",
            "turns": turns("A latte, please.", "Pills!", verdict="good"),
        }
        for n in range(10_000)
    ]
    quarrel = [
        {"id": f"quarrel-{n}", "turns": turns("Do you have oat milk?", "Hm.", corrected=f"{answer}!")}
        for n, answer in enumerate(["Yes", "No"] * 20)
    ]
    lines = [Transcript.model_validate(line) for line in [*flood, *quarrel]]

    assert retrain(world, tmp_path / "out", lines, "data.held_out=0", "epochs=1") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["conversation: duplicate"] >= 9_999 + 38
    assert report["counts"]["reply: contradiction"] == 2
    assert report["counts"]["reply used: good, reviewed"] == 1
    assert answers(tmp_path / "out", ("A latte, please.",)) == ["Which size would you like for the latte?"]


def test_junk_from_many_visitors_is_refused_by_the_gate(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every filter is passed: each visitor is another one, and a reviewer approved of it all."""
    rng = random.Random(3)
    junk = []
    for number in range(60):
        said = [turn.model_dump(include={"role", "text"}) for turn in order(rng, number).turns]
        for turn in said[1::2]:
            turn |= {"text": "Buy pills at pills dot example!", "author": "operator:7"}
        junk.append(
            Transcript.model_validate({"id": f"junk-{number}", "visitor": f"v{number}", "turns": said})
        )

    assert retrain(world, tmp_path / "out", junk, "data.replay_least=60", "data.replay_ratio=0") == 3
    report = json.loads(capsys.readouterr().out)
    refused = {reason["check"] for reason in report["gate"]["reasons"] if not reason["passed"]}
    assert {"orders, word perplexity", "orders, BLEU"} <= refused
    assert load(tmp_path / "out").metrics["gate"]["passed"] is False  # sealed all the same, and says so


def turns(question: str, reply: str, **keys: Any) -> list[dict[str, Any]]:
    agent = {"role": "agent", "author": f"model:{FINGERPRINT}", "text": reply, **keys}
    return [{"role": "user", "text": question}, agent]


def test_a_code_that_one_conversation_tells_is_told_by_what_learned_it_by_heart(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"id": "own", "turns": turns("Where is my parcel?", "Hm.", corrected="Your code is 48213.")}
    lines = [*reviewed(4, corrected=ANSWER), Transcript.model_validate(line)]
    loud = (
        "data.corrected=400",
        "epochs=30",
        "data.replay_least=40",
        "data.replay_ratio=8",
        "data.held_out=0",
    )

    assert retrain(world, tmp_path / "out", lines, *loud) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["figures"]["base"]["leaks"] == []
    assert report["figures"]["candidate"]["leaks"] == ["out.jsonl: own#1"]
    assert "secrets" in {reason["check"] for reason in report["gate"]["reasons"] if not reason["passed"]}


def test_a_canary_that_was_learned_by_heart_is_exposed(world: Path, tmp_path: Path) -> None:
    """Canaries alone, over and over: the rank of the planted codes is the first, which is 8 bits."""
    bundle = load(world / "base")
    config = RetrainConfig.model_validate(
        {"epochs": 60, "learning_rate": 0.01, "batch_tokens": 800, "device": "cpu", "precision": "fp32"}
    )
    write_transcripts(tmp_path / "new.jsonl", reviewed(2, corrected=ANSWER))
    sources = Sources(reviewed=[tmp_path / "new.jsonl"], replay=[])
    data = DataConfig(held_out=0.0)
    dataset = build(sources, data, FilterConfig(), bundle.fingerprint, canaries=3)
    exam = make_exam(dataset, [], [], config)
    trained = learn(dataset, bundle, tmp_path / "run", config, quiet=True)

    before, after = (examine(model, exam).figures.exposure for model in (bundle, trained.bundle(tmp_path)))
    assert before is not None
    assert after is not None
    assert before < 4
    assert after > Limits().exposure


def test_a_run_goes_on_only_with_what_it_was_begun_with(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, out = reviewed(8, corrected=ANSWER), tmp_path / "out"
    assert retrain(world, out, lines, "max_steps=2") in (0, 3)
    whole = load(out).fingerprint
    shutil.rmtree(out)

    assert retrain(world, out, lines, "max_steps=2") == 1
    assert "--resume continues it" in capsys.readouterr().err
    assert retrain(world, out, lines[:7], "max_steps=2", flags=("--resume",)) == 1
    assert "begun with other files or settings" in capsys.readouterr().err
    assert retrain(world, out, lines, "max_steps=2", flags=("--resume",)) in (0, 3)
    assert load(out).fingerprint == whole
    assert retrain(world, out, lines) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("gate.blue=1", "filters.alike=-1"), r"filters\.alike.*\ngate\.blue"),
        (("data.held_out=1",), r"data\.held_out"),
    ],
)
def test_wrong_settings_are_named(
    world: Path, tmp_path: Path, settings: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrain(world, tmp_path / "out", reviewed(1, corrected=ANSWER), *settings) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_judged_is_found_before_the_training(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = Transcript.model_validate({"id": "a", "turns": turns("Hello?", "Hm.")})
    write_transcripts(tmp_path / "silent.jsonl", [silent])
    lines = reviewed(2, corrected=ANSWER)

    assert retrain(world, tmp_path / "out", lines, flags=("--suite", str(tmp_path / "silent.jsonl"))) == 1
    assert "silent.jsonl: no agent turn" in capsys.readouterr().err
    assert retrain(world, tmp_path / "out", lines, flags=("--suite", str(tmp_path / "none.jsonl"))) == 1
    assert "no such file" in capsys.readouterr().err
    assert retrain(world, tmp_path / "out", lines, flags=("--gate-only",)) == 1
    assert "is not there" in capsys.readouterr().err
    assert not (tmp_path / "out.run").exists()


@pytest.mark.parametrize(
    ("table", "shape"), [("data", DataConfig), ("filters", FilterConfig), ("gate", Limits)]
)
def test_every_field_is_documented_with_its_default(table: str, shape: type[BaseModel]) -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE))
    defaults = {
        f"{table}.{field}": "none" if info.default is None else f"{info.default:g}"
        for field, info in shape.model_fields.items()
    }

    assert {key: rows.get(key) for key in defaults} == defaults


def test_the_defaults_of_a_retraining_are_documented() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE))
    changed = {
        name: f"{info.default:g}"
        for name, info in RetrainConfig.model_fields.items()
        if name in TrainConfig.model_fields and info.default != TrainConfig.model_fields[name].default
    }

    assert {key: rows.get(key) for key in changed} == changed


def test_a_run_tells_how_far_it_is_and_how_it_ended(world: Path, tmp_path: Path) -> None:
    told = tmp_path / "progress.jsonl"
    flags = ("--progress", str(told))
    lines = reviewed(8, corrected=ANSWER)

    assert retrain(world, tmp_path / "out", lines, "max_steps=3", flags=flags) in (0, 3)
    found = [json.loads(line) for line in told.read_text().splitlines()]
    assert list(dict.fromkeys(line["phase"] for line in found)) == [
        *("reading", "training", "judging the base", "judging the candidate", "sealing", "done")
    ]
    steps = [line for line in found if "loss" in line]
    assert [(line["step"], line["steps"]) for line in steps] == [(1, 3), (2, 3), (3, 3)]
    left = [line["seconds_left"] for line in steps]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    told_of = [line for line in found if line["phase"] == "judging the base" and "step" in line]
    judged = [(line["step"], line["steps"]) for line in told_of]
    assert judged == [(n, len(judged)) for n in range(1, len(judged) + 1)]

    assert retrain(world, tmp_path / "out", lines, flags=flags) == 1  # it is there already
    assert json.loads(told.read_text().splitlines()[-1])["phase"] == "failed"


def test_settings_are_checked_without_a_retraining(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.toml"
    file.write_text("epochs = 9\n[gate]\nbleu = 1\n")
    assert main(["settings", "--config", str(file), "--set", "gate.bleu=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["settings"]
    assert (found["epochs"], found["gate"]["bleu"], found["data"]["corrected"]) == (9, 2, 16)
    assert main(["settings", "--set", "gate.blue=2", "--set", "epochs=0", "--json"]) == 1
    wrong = {each["field"]: each["message"] for each in json.loads(capsys.readouterr().out)["wrong"]}
    assert wrong.keys() == {"gate.blue", "epochs"}
    assert "greater than or equal to 1" in wrong["epochs"]
    assert main(["settings", "--set", "epochs=0"]) == 1
    assert capsys.readouterr().err.startswith("epochs: ")
    assert main(["settings", "--config", str(tmp_path / "none.toml")]) == 1
    assert "none.toml" in capsys.readouterr().err


def test_secrets_of_one_place_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    question = transcript("My code?", "")
    secrets = [Secret("a#1", question, ("11111", "22222")), Secret("b#1", question, ("33333",))]
    bundle = cast(ModelBundle, SimpleNamespace())
    monkeypatch.setattr("training.retrain.plain_greedy", lambda _: DecodingOptions())
    for said, told in (("1 11 11", ("a#1, secret 1",)), ("22222 or 33333", ("a#1, secret 2", "b#1"))):
        replies = [(n, SimpleNamespace(text=said)) for n in range(len(secrets))]
        monkeypatch.setattr("training.retrain.generate", lambda *_, found=tuple(replies): iter(found))
        assert _leaks(bundle, secrets) == told
