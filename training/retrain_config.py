"""The numbers of a retraining, apart from what needs torch, so that they are checked in no time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from training.config import Positive, TrainConfig
from training.dataset import DataConfig
from training.filters import FilterConfig
from training.gate import Limits


class RetrainConfig(TrainConfig):
    """A retraining: the fields of a training run with other defaults, and those of its own."""

    data: DataConfig = DataConfig()
    """Weights and sizes of the parts."""
    filters: FilterConfig = FilterConfig()
    """Bounds of the clean-up."""
    gate: Limits = Limits()
    """What the gate asks for."""
    epochs: Annotated[int, Field(ge=1)] = 2
    learning_rate: Positive = 2e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    batch_tokens: Annotated[int, Field(ge=16)] = 4000
    final_replies: Annotated[int, Field(ge=0)] = 200
