"""The comparison of WebSocket layers, with a small suite of our own in the place of Autobahn's."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks.autobahn import main

SUITE = """
import json, sys
from websockets.sync.client import connect
[spec] = [json.load(open(sys.argv[sys.argv.index("-s") + 1]))]
words = json.load(open("words.json"))
found = {}
for server in spec["servers"]:
    with connect(server["url"], proxy=None) as socket:
        for message in ("hello", b"bytes", "x" * 70_000):
            socket.send(message)
            assert socket.recv() == message, server
    found[server["agent"]] = {case: {"behavior": word} for case, word in words[server["agent"]].items()}
import os
os.makedirs(spec["outdir"])
json.dump(found, open(spec["outdir"] + "/index.json", "w"))
"""


@pytest.mark.parametrize(
    ("ours", "theirs", "status", "behind"),
    [
        ({"1": "OK", "2": "NON-STRICT", "3": "FAILED"}, {"1": "OK", "2": "OK", "3": "FAILED"}, 0, []),
        ({"1": "OK", "2": "FAILED", "3": "OK"}, {"1": "OK", "2": "OK", "3": "FAILED"}, 1, ["2"]),
        ({"1": "UNIMPLEMENTED"}, {"1": "UNIMPLEMENTED"}, 1, []),
    ],
    ids=["as good", "behind", "nothing was run"],
)
def test_both_layers_go_through_the_suite_and_are_compared(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ours: dict[str, str],
    theirs: dict[str, str],
    status: int,
    behind: list[str],
) -> None:
    (tmp_path / "suite.py").write_text(SUITE, encoding="utf-8")
    (tmp_path / "words.json").write_text(json.dumps({"turnwise": ours, "websockets": theirs}), "utf-8")
    command = shlex.join([sys.executable, str(tmp_path / "suite.py")])
    assert main(["--wstest", command, "--folder", str(tmp_path)]) == status
    figure = json.loads(capsys.readouterr().out)
    assert figure["behind"] == behind
    assert figure["value"] == sum(word in ("OK", "NON-STRICT") for word in ours.values())
    assert figure["run"] == sum(word != "UNIMPLEMENTED" for word in ours.values())


def test_a_suite_that_fails_is_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="status 3"):
        main(["--wstest", shlex.join([sys.executable, "-c", "raise SystemExit(3)"])])
    assert capsys.readouterr().out == ""
