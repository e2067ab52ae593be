"""`python -m server`, with a model whose thread can be ended or held up from outside.

    python -m benchmarks.faulty_server serve …

SIGUSR1 ends the thread in its next step. SIGUSR2 has the next one compute without end; once more, and it goes
on.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Final
from unittest import mock

import torch

from chatbot.batcher import Batcher
from chatbot.replies import Event
from server import app
from server.__main__ import main

ENDING: Final = threading.Event()
GOING: Final = threading.Event()
LARGE: Final = torch.ones(2048, 2048)


class FaultyBatcher(Batcher):
    """A batcher whose steps do as they are told from outside."""

    def step(self) -> list[Event]:
        if ENDING.is_set():
            ENDING.clear()
            raise SystemExit  # no Exception: nothing on the thread catches it
        while not GOING.is_set():
            torch.mm(LARGE, LARGE)
        return super().step()


def hold_or_go(*_: object) -> None:
    if GOING.is_set():
        GOING.clear()
    else:
        GOING.set()


def serve() -> int:
    GOING.set()
    signal.signal(signal.SIGUSR1, lambda *_: ENDING.set())
    signal.signal(signal.SIGUSR2, hold_or_go)
    with mock.patch.object(app, "Batcher", FaultyBatcher):
        return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(serve())
