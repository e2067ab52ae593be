"""`python -m training import`: one report on success, one reason and no file on failure."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatbot.transcripts import read_transcripts, render_transcript
from training import import_command
from training.importers import FORMATS


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    import_command.add_arguments(parser)
    return import_command.run(parser.parse_args([str(argument) for argument in arguments]))


def line(id_: str, *roles: str) -> str:
    return (
        json.dumps({"id": id_, "turns": [{"role": role, "text": f"I am the {role}"} for role in roles]})
        + "\n"
    )


def test_import_joins_sources_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(line("a", "user", "agent"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line("b", "user", "agent", "user").encode()))
    output = tmp_path / "new" / "out.jsonl.gz"
    assert run("jsonl", tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", "-o", output, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "files": 2,
        "conversations": 2,
        "turns": 5,
        "user_turns": 3,
        "agent_turns": 2,
        "skipped": {},
    }
    assert captured.err == ""  # no progress bar where nobody watches
    assert [transcript.id for transcript in read_transcripts(output)] == ["a", "b"]


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line("a", "user", "agent"))
    outputs = [tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"]
    for output in outputs:
        assert run("jsonl", tmp_path / "a.jsonl", "-o", output) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "conversation,role,text\nc,user,hi\nc,agent, \nc,note,x\nc,note,y\n"
    (tmp_path / "a.csv").write_text(rows)
    assert run("csv", tmp_path / "a.csv", "--skip-role", "note", "-o", tmp_path / "out.jsonl.gz") == 0
    assert capsys.readouterr().out == (
        "1 conversations, 1 turns (1 of users, 0 of agents) from 1 file(s)\n"
        "skipped: 2 × row of a role to skip\n"
        "skipped: 1 × row without text\n"
    )


@pytest.mark.parametrize("kept", [None, b"what was there before"])
def test_a_broken_line_leaves_nothing_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: bytes | None
) -> None:
    source, folder = tmp_path / "a.jsonl", tmp_path / "out"
    folder.mkdir()
    output = folder / "out.jsonl.gz"
    if kept is not None:
        output.write_bytes(kept)
    source.write_text("".join(line(f"c{n}", "user", "agent") for n in range(2000)) + '{"id": "x"}\n')
    assert run("jsonl", source, "-o", output, "--json") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{source}:2001: turns: Field required\n"
    assert [path.name for path in folder.iterdir()] == ([] if kept is None else [output.name])
    assert kept is None or output.read_bytes() == kept


def test_an_id_is_used_once_over_all_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text(line("same", "user"))
    second.write_text(line("same", "user"))
    assert run("jsonl", first, second, "-o", tmp_path / "out.jsonl.gz") == 1
    assert capsys.readouterr().err == f"{second}: id 'same' was already used in {first}\n"
    assert not (tmp_path / "out.jsonl.gz").exists()


def test_an_id_is_used_once_within_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dialogue = {"dialogue_id": "1", "turns": [{"speaker": "USER", "utterance": "hi"}]}
    path = tmp_path / "dialogues_001.json"
    path.write_text(json.dumps([dialogue, dialogue]))
    assert run("sgd", path, "-o", tmp_path / "out.jsonl.gz") == 1
    assert capsys.readouterr().err == f"{path}: id 'sgd-1' was already used in {path}\n"


def test_a_source_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.json"
    assert run("star", missing, "-o", tmp_path / "out.jsonl.gz") == 1
    assert capsys.readouterr().err == f"{missing}: No such file or directory\n"


def test_a_source_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(line("a", "user"))
    assert run("jsonl", source, "-o", source) == 1
    assert "the output is one of the sources" in capsys.readouterr().err
    assert source.read_text() == line("a", "user")


def test_the_output_is_named_for_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(line("a", "user"))
    assert run("jsonl", tmp_path / "a.jsonl", "-o", tmp_path / "out.csv") == 1
    assert "named .jsonl or .jsonl.gz" in capsys.readouterr().err


def test_a_terminal_sees_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    (tmp_path / "a.jsonl").write_text(line("a", "user"))
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert run("jsonl", tmp_path / "a.jsonl", "-o", tmp_path / "out.jsonl.gz") == 0
    assert "1 conversations" in screen.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_help_that_names_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(name, "--help")
    assert left.value.code == 0
    assert "--output" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["word", "a.doc", "-o", "b.jsonl"], ["star", "a.json"], ["star", "-o", "b.jsonl"]]
)
def test_a_wrong_call_is_a_usage_error(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(*arguments)
    assert left.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_examples_of_the_documentation_run(tmp_path: Path) -> None:
    repository = Path(__file__).resolve().parents[1]
    text = (repository / "docs" / "transcripts.md").read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    documented = {name for name in FORMATS if any(f"import {name} " in block for block in blocks)}
    assert documented == set(FORMATS) - {"tsv"}
    script = "set -e\npython() { " + f'"{sys.executable}" "$@"; }}\n' + "\n".join(blocks)
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(repository), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    counts = {path.name: len(list(read_transcripts(path))) for path in tmp_path.glob("*.jsonl.gz")}
    assert counts == {
        "day.jsonl.gz": 2,
        "tickets.jsonl.gz": 1,
        "star.jsonl.gz": 1,
        "taskmaster.jsonl.gz": 1,
        "sgd.jsonl.gz": 1,
        "self_dialogue.jsonl.gz": 1,
        "irc.jsonl.gz": 1,
    }


def test_the_output_can_be_uncompressed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line("a", "user", "agent"))
    assert run("jsonl", tmp_path / "a.jsonl", "-o", tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_text() == render_transcript(
        *read_transcripts(tmp_path / "a.jsonl")
    ) + "\n"
