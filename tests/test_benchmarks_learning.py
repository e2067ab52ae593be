"""The learning benchmark: both sides see the same text, and are measured by the same replies."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import learning
from chatbot.transcripts import write_transcripts
from tests.small import orders
from training.words import count_words

# Answers with the reference itself, and gives every token of it a probability of 1/e.
PEER = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
lines = (folder / "test.trg").read_text().splitlines()
sources = [line.split() for line in (folder / "test.src").read_text().splitlines()]
assert len(sources) == len(lines) and all(0 < len(source) <= 200 for source in sources)
train = [(folder / f"train.{side}").read_text().splitlines() for side in ("src", "trg")]
assert len(train[0]) == len(train[1]) > 20
replies = [lines[number] + " </s>" for number in job["chosen"]]
tokens = sum(len(line.split()) + 1 for line in lines)
searched = {"greedy": replies, "beam": ["" for _ in replies]}
result = {"nll": float(tokens), "parameters": 7, "replies": searched}
(folder / "result.json").write_text(json.dumps(result))
"""

SMALL = [
    "vocab_size=300",
    "embedding_size=8",
    "encoder_size=4",
    "state_size=8",
    "hidden_size=8",
    "decoder_layers=2",
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    train, dev = tmp_path / "drinks" / "train.jsonl", tmp_path / "drinks" / "dev.jsonl"
    train.parent.mkdir()
    write_transcripts(train, orders(30))
    write_transcripts(dev, orders(9, seed=1))
    return train, dev


@pytest.mark.slow
def test_a_peer_is_measured_by_the_same_replies(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "joeynmt_learner.py").write_text(PEER)
    monkeypatch.setattr(learning, "__file__", str(tmp_path / "learning.py"))
    train, dev = files
    arguments = ["--joeynmt", sys.executable, "--train", str(train), "--dev", str(dev), "--minutes", "0.01"]
    settings = [part for setting in SMALL for part in ("--set", f"model.{setting}")]
    monkeypatch.setattr(
        sys,
        "argv",
        ["benchmarks.learning", *arguments, "--peers", "recurrent", "--work", str(tmp_path), *settings],
    )
    learning.main()
    found = {figure["name"]: figure for figure in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found.keys() == {
        "perplexity_word_drinks",
        *(f"{kind}_{search}_drinks" for kind in ("bleu", "chrf") for search in ("greedy", "beam")),
    }
    assert found["bleu_greedy_drinks"]["reference"] == pytest.approx(100)
    assert found["bleu_beam_drinks"]["reference"] == 0
    perplexity = found["perplexity_word_drinks"]
    assert perplexity["reference_parameters"] == 7
    assert perplexity["parameters"] > 1000
    assert perplexity["value"] > 1
    result = json.loads((tmp_path / "recurrent" / "result.json").read_text())
    lines = [json.loads(line) for line in dev.read_text().splitlines()]
    words = sum(
        count_words(after["text"])
        for line in lines
        for before, after in pairwise(line["turns"])
        if before["role"] == "user"
    )
    assert perplexity["reference"] == pytest.approx(2.718281828 ** (result["nll"] / words), abs=1e-3)


def test_a_peer_that_fails_is_told(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "joeynmt_learner.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(learning, "__file__", str(tmp_path / "learning.py"))
    train, dev = files
    arguments = ["--joeynmt", sys.executable, "--train", str(train), "--dev", str(dev), "--minutes", "0.01"]
    settings = [part for setting in SMALL for part in ("--set", f"model.{setting}")]
    monkeypatch.setattr(sys, "argv", ["benchmarks.learning", *arguments, "--work", str(tmp_path), *settings])
    with pytest.raises(learning.Failed, match="recurrent ended with 3"):
        learning.main()
