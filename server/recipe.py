"""How the batcher of a model is made, wherever it is to work."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import torch

from chatbot import model_directory
from chatbot.batcher import Batcher
from chatbot.model_directory import ModelBundle, ModelDirectoryError, SealedModel
from chatbot.served import Precision, obstacle, precision_of, served
from server import logs, models
from server.memory import give_back_memory
from server.settings import Settings

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]

READING: Final = 512
"""Tokens of conversations that are read between two steps of replies in flight; about as long as a step."""


@dataclass
class Recipe:
    """The batcher of the model in `path`, which is loaded by the first call and kept for those that follow.

    It can be pickled before it is called. waiting: requests that may wait for rows. kept: bytes for the
    states of conversations between their replies. tried: whether the model has to make replies of all kinds
    before it makes anybody's.
    """

    path: Path
    fingerprint: str
    device: Device
    precision: Precision
    rows: int
    waiting: int
    kept: int
    tried: bool = False
    _bundle: ModelBundle | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, sealed: SealedModel, settings: Settings, waiting: int, *, tried: bool = False) -> Recipe:
        kept = settings.kept_mib << 20
        return cls(
            sealed.path,
            sealed.fingerprint,
            settings.device,
            settings.precision,
            settings.rows,
            waiting,
            kept,
            tried,
        )

    def __call__(self) -> Batcher:
        """Raises `ModelDirectoryError`, also when another model lies there by now."""
        if self._bundle is None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1 if self.tried else threads)  # replies under way have the rest
            try:
                self._bundle = self._load()
            finally:
                torch.set_num_threads(threads)
            give_back_memory()  # weights were read, converted and dropped
        return Batcher(self._bundle, rows=self.rows, waiting=self.waiting, reading=READING, kept=self.kept)

    def _load(self) -> ModelBundle:
        bundle = load(self.path, self.device, self.precision)
        if bundle.fingerprint != self.fingerprint:
            raise ModelDirectoryError(self.path, f"it is {bundle.fingerprint}, not {self.fingerprint}")
        if self.tried:
            models.try_out(bundle, self.rows)
        return bundle


def load(path: Path, device: Device, precision: Precision) -> ModelBundle:
    """A model as it is served, on its device and in its precision. Raises `ModelDirectoryError`."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sealed = model_directory.load(path, device=device)
    bundle = served(sealed, precision)
    about = {"model": bundle.fingerprint, "device": device, "precision": precision_of(bundle.model)}
    reason = None if precision == "float32" else obstacle(sealed.config, device)
    logs.event(log, logging.INFO, "model_loaded", **about, **({"because": reason} if reason else {}))
    return bundle
