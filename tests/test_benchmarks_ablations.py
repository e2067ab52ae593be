"""Ablations: every variant is a model that can be made; runs are kept, and never repeated."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import ablations
from chatbot.config import ModelConfig
from chatbot.transcripts import write_transcripts
from tests.small import orders
from training.config import load_config

WIDTHS = ("vocab_size=330", "embedding_size=8", "encoder_size=4", "state_size=8", "hidden_size=8")


def test_every_variant_is_another_model() -> None:
    found = [
        load_config(None, list(ablations.changes(name, ModelConfig()))).model for name in ablations.VARIANTS
    ]
    assert found[0] == ModelConfig()
    assert all(one not in found[:place] for place, one in enumerate(found))


def test_sizes_are_relative_to_the_base() -> None:
    base = ModelConfig(embedding_size=128, encoder_size=64, state_size=96, hidden_size=192, dropout=0.3)
    assert list(ablations.changes("half as wide", base)) == [
        "model.embedding_size=64",
        "model.encoder_size=32",
        "model.state_size=48",
        "model.hidden_size=96",
    ]
    assert list(ablations.changes("twice the dropout", base)) == ["model.dropout=0.6"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.ablations", *arguments])
    ablations.main()


@pytest.mark.slow
def test_what_was_run_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, dev, out = tmp_path / "train.jsonl", tmp_path / "drinks.jsonl", tmp_path / "runs.jsonl"
    write_transcripts(train, orders(20))
    write_transcripts(dev, orders(6, seed=1))
    sizes = [part for width in WIDTHS for part in ("--set", f"model.{width}")]
    always = [
        "--train",
        str(train),
        "--dev",
        str(dev),
        "--out",
        str(out),
        "--steps",
        "2",
        "--seeds",
        "4",
        *sizes,
    ]
    run(monkeypatch, *always, "--variants", "base", "copying")
    first = out.read_text()
    runs = [json.loads(line) for line in first.splitlines()]
    assert {(one["variant"], one["seed"]) for one in runs} == {("base", 4), ("copying", 4)}
    assert runs[0]["parameters"] != runs[1]["parameters"]

    monkeypatch.setattr(ablations, "train", None)
    run(monkeypatch, *always, "--variants", "base", "copying")
    assert out.read_text() == first

    run(monkeypatch, "--out", str(out), "--table")
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["base", "copying"]
    assert rows[2].split("|")[3].strip() == "1.000"


def test_a_table_has_mean_and_spread() -> None:
    runs = [
        {"variant": name, "seed": seed, "perplexity_word": {"x": value}, "parameters": 2e6, "seconds": 9}
        for name, values in (("base", (4.0, 6.0)), ("copying", (2.0, 3.0)))
        for seed, value in enumerate(values)
    ]
    rows = list(ablations.table(runs))
    assert rows[3] == "| copying | 2.5 ± 0.71 | 0.500 | 2 | 2.0 M | 1.00 |"
