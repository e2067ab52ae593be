"""The README's own commands, run in its order on a small export."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from chatbot.model_directory import find_model
from tests.small import orders
from training.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ".venv/bin/python -m "
RUN = "make run "
SMALLER = ["--set=model.hidden_size=16", "--set=model.state_size=8", "--set=model.encoder_size=8"]
SMALLER += ["--set=model.embedding_size=16", "--set=max_steps=3", "--set=final_replies=5", "--set=device=cpu"]


def commands(page: str) -> list[list[str]]:
    """The commands of a page's shell blocks, without the interpreter; ``make run`` as what it runs."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.removeprefix(PYTHON)) for line in lines if line.startswith((PYTHON, RUN))]
    return [_by_make(words) if words[:2] == RUN.split() else words for words in found]


def _by_make(words: Sequence[str]) -> list[str]:
    """What the Makefile passes on."""
    (given,) = words[2:]
    name, _, arguments = given.partition("=")
    assert name == "ARGS"
    return ["server", "serve", *shlex.split(arguments)]


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_from_an_export_to_a_model(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "support.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ticket", "sender", "message"])
        rows.writerows([one.id, turn.role, turn.text] for one in orders(200) for turn in one.turns)
    served = False
    for package, command, *arguments in commands(page):
        if package == "server":
            assert command == "serve"
            assert find_model(Path(arguments[arguments.index("--models") + 1])).name == "mine"
            served = True
            continue
        more = SMALLER if command == "train" else ["--json"] if command == "evaluate" else []
        assert main([command, *arguments, *more]) == 0, command
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert served
    assert figures["replies"] > 0
