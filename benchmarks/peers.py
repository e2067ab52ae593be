"""Systems that are measured beside ours, each in an interpreter of its own that does a thing when asked.

A script is started there; it says `ready`, then answers each line with `done` when it has done what it says.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Token ids of sources, and of what is to be said to them."""

HERE: Final = Path(__file__).resolve().parent
TRAINER: Final = HERE / "joeynmt_peer.py"
SEARCHER: Final = HERE / "joeynmt_search.py"


class Peer:
    """The other interpreter. threads: for its arithmetic. told: lines that it is given before it is ready."""

    def __init__(self, python: str, script: Path, threads: int, *told: str) -> None:
        self._process = subprocess.Popen(
            [python, str(script), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for line in told:
            self._say(line)
        self._expect("ready")

    def ask(self, line: str) -> None:
        """Have one thing done. Raises RuntimeError or BrokenPipeError when the peer has ended."""
        self._say(line)
        self._expect("done")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise RuntimeError(f"the peer said {said!r} instead of {word!r}")


class Trainer(Peer):
    """JoeyNMT in training. pairs: what a step is one pass over; left out, 64 random ones."""

    def __init__(self, python: str, threads: int, pairs: Pairs = ()) -> None:
        super().__init__(python, TRAINER, threads, json.dumps(pairs))

    def step(self) -> None:
        self.ask("step")


class Searcher(Peer):
    """JoeyNMT's own search."""

    def __init__(self, python: str, threads: int) -> None:
        super().__init__(python, SEARCHER, threads)

    def search(self, replies: int, beam: int) -> None:
        self.ask(f"{replies} {beam}")
