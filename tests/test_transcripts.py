"""The transcript form: what goes in comes out, and what is broken is named by file, line and reason."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.transcripts import (
    MAX_LINE_BYTES,
    Transcript,
    TranscriptError,
    parse_transcript,
    read_lines,
    read_transcripts,
    render_transcript,
    write_transcripts,
)
from tests.small import orders

GOOD = '{"id": "a", "turns": [{"role": "user", "text": "hi"}, {"role": "agent", "text": "hello"}]}'
text = st.text(st.characters(codec="utf-8"))
extra = st.dictionaries(
    text.map("x-{}".format), st.one_of(st.integers(-9, 9), text, st.booleans(), st.none()), max_size=2
)
turns = st.builds(
    lambda role, said, more: {"role": role, "text": said} | more,
    st.sampled_from(["user", "agent"]),
    text,
    extra,
)
lines = st.builds(
    lambda name, said, more: {"id": name, "turns": said} | more,
    text.filter(bool),
    st.lists(turns, max_size=4),
    extra,
)


@given(lines)
def test_unknown_keys_survive_a_round_trip(line: dict[str, Any]) -> None:
    assert json.loads(render_transcript(parse_transcript(json.dumps(line), "f", 1))) == line


def test_optional_keys_survive_a_round_trip() -> None:
    turn = {
        "role": "agent",
        "text": "x",
        "at": "2026-01-02T03:04:05Z",
        "author": "operator:1",
        "weight": 2.5,
        "rating": "up",
    }
    line = {"id": "a", "turns": [turn], "meta": {"channel": "web"}}
    assert json.loads(render_transcript(parse_transcript(json.dumps(line), "f", 1))) == line


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_files_hold_what_was_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"orders{suffix}"
    assert write_transcripts(path, orders(20)) == 20
    assert list(read_transcripts(path)) == orders(20)
    before = path.read_bytes()
    write_transcripts(path, orders(20))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_source_leaves_nothing_open(tmp_path: Path) -> None:
    """What Python says of a file that it cannot finish would stand beside the reason; older ones say it in
    their development mode only.
    """
    program = (
        "import sys; from pathlib import Path; from chatbot.transcripts import *\n"
        "try: write_transcripts(Path(sys.argv[1]), read_lines([sys.argv[2], '{'], 'lines'))\n"
        "except TranscriptError: print('refused')"
    )
    command = [sys.executable, "-X", "dev", "-c", program, str(tmp_path / "out.jsonl.gz"), GOOD]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_source_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl"
    write_transcripts(path, orders(3))

    def broken() -> Any:
        yield orders(1)[0]
        raise RuntimeError("source gone")

    with pytest.raises(RuntimeError, match="source gone"):
        write_transcripts(path, broken())
    assert len(list(read_transcripts(path))) == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"turns": []}', "id"),
        ('{"id": "", "turns": []}', "id"),
        ('{"id": 5, "turns": []}', "id"),
        ('{"id": "b"}', "turns"),
        ('{"id": "b", "turns": [{"role": "bot", "text": "x"}]}', "turns.0.role"),
        ('{"id": "b", "turns": [{"role": "user"}]}', "turns.0.text"),
        ('{"id": "b", "turns": [{"role": "user", "text": 5}]}', "turns.0.text"),
        ('{"id": "b", "turns": [{"role": "user", "text": "x", "weight": -1}]}', "turns.0.weight"),
        ('{"id": "b", "turns": [{"role": "user", "text": "x", "weight": NaN}]}', "weight"),
        ('{"id": "b", "turns": [{"role": "user", "text": "x", "at": "2026-01-02T03:04:05"}]}', "turns.0.at"),
        (GOOD, "already used on line 1"),
        ("[" * 100_000, ""),
    ],
)
def test_a_malformed_line_is_named(line: str, reason: str) -> None:
    with pytest.raises(TranscriptError) as caught:
        list(read_lines([GOOD, "", line], "some.jsonl"))
    assert (caught.value.source, caught.value.line) == ("some.jsonl", 3)
    assert reason in caught.value.reason
    assert str(caught.value).startswith("some.jsonl:3: ")


def test_a_file_of_another_form_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("conversation,role,text\n")
    (tmp_path / "b.jsonl").write_text("[\n]\n")
    for name, reason in (("a.csv", "expected value at column 1"), ("b.jsonl", "EOF while parsing a list")):
        with pytest.raises(TranscriptError) as caught:
            list(read_transcripts(tmp_path / name))
        assert caught.value.reason.startswith(f"Invalid JSON: {reason}")
        assert "python -m training import" in caught.value.reason


def test_invalid_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"id": "b", "turns": [{"role": "user", "text": "caf\xe9"}]}\n')
    with pytest.raises(TranscriptError, match=r"latin\.jsonl:2: "):
        list(read_transcripts(path))


@pytest.mark.parametrize("name", ["packed.jsonl.gz", "PACKED.JSONL.GZ"])
def test_what_is_packed_by_its_name_is_read_by_its_name(tmp_path: Path, name: str) -> None:
    path, written = tmp_path / name, orders(3)
    assert write_transcripts(path, written) == 3
    assert path.read_bytes().startswith(b"\x1f\x8b")
    assert list(read_transcripts(path)) == written


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress((GOOD + "\n").encode() * 50)[:-12])
    with pytest.raises(TranscriptError, match=r"cut\.jsonl\.gz:\d+: "):
        list(read_transcripts(path))


def test_an_endless_line_is_refused_without_reading_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(2 * MAX_LINE_BYTES // 2**20):
            stream.write(b" " * (2**20 - 1) + b"x")
    with pytest.raises(TranscriptError, match=r":1: the line is longer"):
        list(read_transcripts(path))


def test_weights_default_to_one_and_are_not_written() -> None:
    parsed = parse_transcript(GOOD, "f", 1)
    assert isinstance(parsed, Transcript)
    assert parsed.turns[0].weight == 1.0
    assert "weight" not in render_transcript(parsed)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "marked.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\n")
    assert (
        list(read_transcripts(path))
        == list(read_lines([GOOD], "plain"))
        == list(read_lines(["\ufeff" + GOOD], "text"))
    )
