"""`python -m tests.hanging_server`: `python -m server`, whose steps have no end once somebody says "hang"."""

from __future__ import annotations

import sys
from typing import Final
from unittest import mock

import torch

from chatbot.batcher import Batcher
from chatbot.replies import Event, ReplyRequest
from server import recipe
from server.__main__ import main

WORD: Final = "hang"
LARGE: Final = torch.ones(2048, 2048)


class HangingBatcher(Batcher):
    """A batcher whose steps return until somebody says the word."""

    _hangs = False

    def submit(self, request: ReplyRequest) -> None:
        self._hangs = self._hangs or request.turns[-1][1] == WORD
        super().submit(request)

    def step(self) -> list[Event]:
        while self._hangs:
            torch.mm(LARGE, LARGE)
        return super().step()


if __name__ == "__main__":
    with mock.patch.object(recipe, "Batcher", HangingBatcher):
        sys.exit(main(sys.argv[1:]))
