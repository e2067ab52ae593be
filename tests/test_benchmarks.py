"""The benchmarks run and report what they promise; how fast is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import decoding, peers, training
from benchmarks.figures import interleaved
from chatbot.transcripts import write_transcripts
from tests.small import orders
from training.corpus import Corpus

KEYS = {"name", "value", "unit", "reference", "reference_is", "ratio"}


def figures(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_training_is_measured_beside_its_references(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"vocab_size": 50, "embedding_size": 8, "encoder_size": 4, "state_size": 8, "hidden_size": 8}
    monkeypatch.setattr(training, "MODEL_S", training.MODEL_S.model_copy(update=small))
    monkeypatch.setattr(training, "GEMM", 64)
    monkeypatch.setattr(training, "CONTEXTS", (20, 40))
    monkeypatch.setattr(training, "BATCH_TOKENS", 700)
    monkeypatch.setattr(sys, "argv", ["benchmarks.training", "--runs", "1", "--device", "cpu"])
    training.main()
    found = figures(capsys)
    assert [figure["name"] for figure in found] == [
        *["training_fp32"] * 2,
        *["training_bf16"] * 2,
        "training_dialogues_20",
        "training_dialogues_40",
    ]
    assert all(figure.keys() >= KEYS for figure in found)


PEER = """
import sys
assert sys.stdin.readline() == "[]\\n"
print("ready", flush=True)
for _ in sys.stdin:
    print("done", flush=True)
    if sys.argv[1] == "1":
        break
"""


def test_a_peer_takes_a_step_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peer.py").write_text(PEER)
    monkeypatch.setattr(peers, "TRAINER", tmp_path / "peer.py")
    lasting = peers.Trainer(sys.executable, 2)
    lasting.step()
    lasting.step()
    lasting.close()
    ending = peers.Trainer(sys.executable, 1)
    ending.step()
    with pytest.raises((RuntimeError, BrokenPipeError)):
        ending.step()
    ending.close()


@pytest.mark.parametrize(("script", "told"), [(peers.TRAINER, "[]\n"), (peers.SEARCHER, "")])
def test_a_peer_needs_nothing_of_this_project_but_what_is_beside_it(
    script: Path, told: str, tmp_path: Path
) -> None:
    """Here it gets as far as JoeyNMT, which is not installed."""
    done = subprocess.run(
        [sys.executable, script, "1"], input=told, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'joeynmt'"


def test_the_pairs_of_a_dialogue_hold_what_came_before() -> None:
    corpus = Corpus(
        tokens=np.array([1, 5, 3, 2, 6, 7, 3, 1, 8, 3, 2, 9, 3, 1, 5, 3, 2, 4, 3], np.uint32),
        turn_start=np.array([0, 3, 7, 10, 13, 16, 19]),
        turn_is_reply=np.array([False, True] * 3),
        turn_weight=np.ones(6, np.float32),
        dialogue_start=np.array([0, 4, 6]),
    )
    assert list(training.reply_pairs(corpus, [1, 0], 5)) == [
        ([1, 5, 3], [4]),
        ([1, 5, 3], [6, 7]),
        ([7, 3, 1, 8, 3], [9]),
    ]


@pytest.mark.slow
def test_decoding_is_measured_beside_the_bare_step(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.decoding", str(tiny_model_dir), "--runs", "1"])
    decoding.main()
    found = figures(capsys)
    assert len(found) == len(decoding.ROWS)
    assert all(figure.keys() >= KEYS for figure in found)


SEARCHER = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    print("done" if len(line.split()) == 2 else "what?", flush=True)
"""


def test_decoding_is_measured_beside_a_peer_that_searches(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peer.py").write_text(SEARCHER)
    monkeypatch.setattr(peers, "SEARCHER", tmp_path / "peer.py")
    argv = [str(tiny_model_dir), "--runs", "1", "--joeynmt", sys.executable, "--only", "beam"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.decoding", *argv, "--precision", "float32"])
    decoding.main()
    found = figures(capsys)
    assert [figure["name"] for figure in found] == ["beam_1_beam_5"] * 2 + ["beam_16_beam_5"] * 2
    assert [str(figure["reference_is"])[:7] for figure in found] == ["a loop ", "JoeyNMT"] * 2
    assert {figure["precision"] for figure in found} == {"float32"}


def test_what_a_precision_costs_is_measured(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_transcripts(tmp_path / "said.jsonl", orders(6))
    argv = [str(tiny_model_dir), "--transcripts", str(tmp_path / "said.jsonl"), "--conversations", "4"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.decoding", *argv, "--precision", "float32"])
    decoding.main()
    perplexity, changed = figures(capsys)
    assert perplexity["ratio"] == 1
    assert perplexity["largest_change_nats"] == 0
    assert changed["value"] == 0
    assert changed["reference"] == sum(len(one.turns) // 2 for one in orders(6)[:4])


def test_timings_are_taken_in_turn() -> None:
    order: list[str] = []
    first, second = interleaved(3, lambda: order.append("a"), lambda: order.append("b"), warm_up=1)
    assert order == ["a", "b"] * 4
    assert len(first.seconds) == len(second.seconds) == 3
