"""A running mean of weights (Polyak and Juditsky 1992), which generalizes better than the last ones."""

from __future__ import annotations

import copy

import torch

from chatbot.model import Seq2Seq


class RunningMean:
    """``mean = decay * mean + (1 - decay) * weights`` after every update; early on the decay is less."""

    def __init__(self, model: Seq2Seq, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay

    def update(self, model: Seq2Seq, updates: int) -> None:
        """Take in the weights of ``model`` after so many ``updates``, counted from 0."""
        decay = min(self._decay, (1 + updates) / (10 + updates))
        with torch.no_grad():
            torch._foreach_lerp_([*self.model.parameters()], [*model.parameters()], 1 - decay)
