"""Cleaning keeps what is worth learning from, and counts the rest by reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from chatbot.transcripts import read_transcripts, write_transcripts
from tests.small import transcript
from training.__main__ import main
from training.clean import clean

GOOD = transcript("hello", "hi", name="good")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (transcript("  Hello ", "HI", name="again"), "duplicate"),
        (transcript("hello", name="alone"), "no reply"),
        (transcript("hi", "hello", name="agent only", first="agent"), "no reply"),
        (transcript("hello", " ", name="silent"), "empty turn"),
        (transcript("hello", "x" * 5000, name="paste"), "overlong turn"),
        (transcript("hello", "caf\ufffd", name="broken"), "not text"),
        (transcript("hello\x00", "hi there", name="binary"), "not text"),
    ],
)
def test_what_is_dropped_and_why(bad: object, reason: str) -> None:
    counts: Counter[str] = Counter()
    assert list(clean([GOOD, bad], [], counts)) == [GOOD]  # type: ignore[list-item]
    assert counts == {"kept": 1, reason: 1}


def test_lines_as_windows_ends_them_are_text() -> None:
    counts: Counter[str] = Counter()
    several = transcript("hello\r\nanybody there?\t", "hi\r\n\r\nyes", name="windows")
    assert list(clean([several], [], counts)) == [several]
    assert counts == {"kept": 1}


def test_held_out_conversations_never_come_in() -> None:
    counts: Counter[str] = Counter()
    assert list(clean([GOOD], [transcript("Hello", "hi", name="dev")], counts)) == []
    assert counts == {"duplicate or held out": 1}


def test_the_command_merges_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_transcripts(tmp_path / f"{name}.jsonl", [GOOD.model_copy(update={"id": name})])
    out = tmp_path / "all.jsonl.gz"
    assert (
        main(["clean", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "-o", str(out), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out) == {"kept": 1, "duplicate": 1}
    assert [one.id for one in read_transcripts(out)] == ["a"]


def test_a_share_is_kept_apart_the_same_every_time(tmp_path: Path) -> None:
    many = [transcript(f"question {n}", "answer", name=str(n)) for n in range(400)]
    write_transcripts(tmp_path / "all.jsonl", many)
    parts = [tmp_path / "train.jsonl", tmp_path / "dev.jsonl"]
    flags = ["-o", str(parts[0]), "--dev", str(parts[1]), "--dev-share", "0.2"]
    assert main(["clean", str(tmp_path / "all.jsonl"), *flags]) == 0
    train, dev = ({one.id for one in read_transcripts(part)} for part in parts)
    assert train | dev == {one.id for one in many}
    assert not train & dev
    assert 50 <= len(dev) <= 110
    write_transcripts(tmp_path / "all.jsonl", many[::-1])
    assert main(["clean", str(tmp_path / "all.jsonl"), *flags]) == 0
    assert {one.id for one in read_transcripts(parts[1])} == dev


def test_a_broken_file_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text("{\n")
    assert main(["clean", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "out.jsonl")]) == 1
    assert "a.jsonl:1" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_dev_part_that_cannot_be_written_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training part of another share would hold conversations of the dev part that is still there."""
    source, out = tmp_path / "all.jsonl", tmp_path / "train.jsonl"
    write_transcripts(source, [transcript(f"question {n}", "answer", name=str(n)) for n in range(20)])
    write_transcripts(out, [GOOD])
    (tmp_path / "file").touch()
    assert main(["clean", str(source), "-o", str(out), "--dev", str(tmp_path / "file" / "dev.jsonl")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert list(read_transcripts(out)) == [GOOD]


def test_an_id_that_two_files_use_is_numbered() -> None:
    others = [transcript(f"hello {n}", "hi", name="good") for n in range(2)]
    kept = [transcript.id for transcript in clean([GOOD, *others], [], Counter())]
    assert kept == ["good", "good-2", "good-3"]


def test_parts_that_would_overwrite_each_other_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "all.jsonl", tmp_path / "train.jsonl"
    write_transcripts(source, [GOOD])
    assert main(["clean", str(source), "-o", str(out), "--dev", str(out)]) == 2
    assert "both" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("part", ["-o", "--dev"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("all.jsonl", "is one of the files that are read"),
        ("old.jsonl", "is one of the files that are read"),
        ("train.csv", "transcripts are named .jsonl or .jsonl.gz"),
    ],
)
def test_a_part_needs_a_name_of_its_own(
    tmp_path: Path, part: str, name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, held_out = tmp_path / "all.jsonl", tmp_path / "old.jsonl"
    write_transcripts(source, [GOOD])
    write_transcripts(held_out, [])
    other = {"-o": "--dev", "--dev": "-o"}[part]
    flags = ["--held-out", str(held_out), part, str(tmp_path / name), other, str(tmp_path / "other.jsonl")]
    assert main(["clean", str(source), *flags]) == 2
    assert reason in capsys.readouterr().err
    assert list(read_transcripts(source)) == [GOOD]


def test_nothing_kept_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_transcripts(tmp_path / "none.jsonl", [])
    assert main(["clean", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "out.jsonl")]) == 0
    assert capsys.readouterr().out.split() == ["0", "kept"]


@pytest.mark.parametrize("share", ["0", "1", "nan", "half"])
def test_a_share_is_between_0_and_1(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["clean", "a.jsonl", "-o", "b.jsonl", "--dev", "c.jsonl", "--dev-share", share])
    assert "between 0 and 1" in capsys.readouterr().err
