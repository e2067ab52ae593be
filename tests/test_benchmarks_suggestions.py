"""The benchmark of suggestions runs and reports what it promises; how fast is not asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import suggestions
from benchmarks.suggestions import CONVERSATIONS, typed


@pytest.mark.slow
def test_suggestions_are_measured_alone_and_beside_chats(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suggestions.main(
        [
            "--models",
            str(tiny_model_dir),
            "--repeats",
            "1",
            "--chats",
            "2",
            "--think",
            "0.1",
            "--warm-up",
            "0.2",
        ]
    )
    found = {figure["name"]: figure for figure in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(found) == {
        f"suggestions_{length}{beside}_p{of_100}"
        for length in ("nothing", "word", "half")
        for beside in ("", "_beside_chats", "_beside_chats_that_never_pause")
        for of_100 in (50, 95)
    }
    for name, figure in found.items():
        assert figure["value"] > 0
        assert (figure["unit"], figure["reference"]) == ("ms", 100.0)
        assert figure["requests"] == len(CONVERSATIONS)
        assert 1 <= figure["offered"] <= 3
        assert ("cpu_ms" in figure) == (figure["chats"] == 0), name
    assert found["suggestions_word_p50"]["value"] <= found["suggestions_word_p95"]["value"]


def test_what_is_typed_begins_the_reply() -> None:
    assert typed("I can help you", "nothing") == ""
    assert typed("I can help you", "word") == "I"
    assert typed("I can help you", "half") == "I can h"
