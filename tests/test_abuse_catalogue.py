"""docs/abuse.md is true: every case has its row, and every test it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
DOCS = TESTS.parent / "docs"
ROWS = [
    line for line in (DOCS / "abuse.md").read_text(encoding="utf-8").splitlines() if re.match(r"\| \d", line)
]


def test_every_case_has_a_row() -> None:
    assert sorted({int(row.split("|")[1]) for row in ROWS}) == [*range(1, 44)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1] + row.split("|")[2][:30])
def test_every_case_names_tests_that_there_are(row: str) -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
    assert named
    for file, test in named:
        defined = {
            node.name
            for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        }
        assert test in defined, f"{file}::{test}"


def test_every_limit_is_a_setting_that_there_is() -> None:
    text = (DOCS / "limits.md").read_text(encoding="utf-8")
    settings = (DOCS / "settings.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ") and line.count("|") == 5]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row[3])}
    assert {"frames_per_second", "replies_per_visitor", "connections_per_address"} <= named
    for name in named:
        assert f"`TURNWISE_{name.upper()}`" in settings, name
