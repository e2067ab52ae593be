"""torchrun's elastic launch: a process that is killed comes back, and the run goes on where it was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chatbot.model_directory import load
from chatbot.transcripts import write_transcripts
from tests.small import orders
from tests.test_train import arguments
from training import train_command
from training.__main__ import main


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    write_transcripts(tmp_path / "train.jsonl.gz", orders(60, seed=1))
    write_transcripts(tmp_path / "dev.jsonl.gz", orders(10, seed=2))
    return tmp_path / "train.jsonl.gz", tmp_path / "dev.jsonl.gz"


def process_of_rank(rank: int, parent: int) -> int:
    """The process that torchrun ``parent`` started as ``rank``."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = (
        int(child)
        for child in children
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    )
    return found


def test_a_killed_process_is_started_again_and_the_run_goes_on(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    elastic = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    more = ["--set=max_steps=20", "--set=final_replies=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", *elastic, "-m", "training", *arguments(files, tmp_path / "model", *more)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    said, killed = "", False
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            said += line
            if line.startswith("step 10 ") and not killed:
                os.kill(process_of_rank(0, process.pid), signal.SIGKILL)
                killed = True
    assert process.returncode == 0, said
    assert killed
    steps = [int(step) for step in re.findall(r"^step (\d+) ", said, re.MULTILINE)]
    assert steps.count(5) == 1  # it did not begin anew
    assert (steps[0], steps[-1]) == (5, 20)
    assert load(tmp_path / "model").metrics["steps"] == 20


def test_only_the_torchrun_that_began_a_run_goes_on_unasked(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = arguments(files, tmp_path / "model", "--set=max_steps=2", "--set=final_replies=0")

    def full(*_: object) -> dict[str, object]:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(train_command, "_seal", full)
        patch.setenv("TORCHELASTIC_RUN_ID", "one")
        assert main(command) == 1
    for name in ("two", "none", None):
        with monkeypatch.context() as patch:
            if name is not None:
                patch.setenv("TORCHELASTIC_RUN_ID", name)
            capsys.readouterr()
            assert main(command) == 1
            assert "--resume continues it" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0  # killed after the model was sealed
    assert "is sealed already" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert main(command) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_run_id_that_all_launches_share_is_told_apart_by_the_process(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun calls every run "none" unless it is given a name."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    command = arguments(files, tmp_path / "model", "--set=max_steps=2", "--set=final_replies=0")
    assert main(command) == 0
    assert main(command) == 0
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert main(command) == 1
