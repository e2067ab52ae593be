"""The benchmark of reviewing goes through its queue and reports it; how fast is not asserted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import reviewing

pytestmark = pytest.mark.browser


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(reviewing.CHROMIUM) is None, reason=f"no Chromium at {reviewing.CHROMIUM}")
def test_a_queue_is_reviewed_by_keyboard(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reviewing.main(["--conversations", "4", "--read", "0", "--models", str(tiny_model_dir)])
    found = {figure["name"]: figure for figure in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(found) == {
        f"reviewing_{what}_p{of_100}" for what in ("next", "verdict") for of_100 in (50, 95)
    }
    for figure in found.values():
        assert figure["value"] > 0
        assert (figure["unit"], figure["reference"], figure["reviews"]) == ("ms", 1000.0, 4)
        assert figure["an_hour"] > 0
    assert found["reviewing_next_p50"]["value"] <= found["reviewing_next_p95"]["value"]
