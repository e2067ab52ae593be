"""Models that replies were made by, loaded for those who look at the replies afterwards.

They are beside the engine's, in float32 and on the CPU. Nothing that is done with one changes it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chatbot import model_directory
from chatbot.model_directory import CONFIG, SUMS, TOKENIZER, WEIGHTS, ModelBundle, ModelDirectoryError
from chatbot.tokenizer import Tokenizer
from server import models

KEPT: Final = 2
"""Models in memory: the one in use, and another that it is compared with."""
TOKENIZERS: Final = 8
"""A tokenizer outlives its model: it is all that is needed to show which tokens a reply had."""


class Shelf:
    """Models in `directory` by fingerprint. For any thread; others wait while one is being loaded."""

    def __init__(self, directory: Path, keep: int = KEPT) -> None:
        self._directory = directory
        self._keep = keep
        self._bundles: OrderedDict[str, ModelBundle] = OrderedDict()  # the one used last comes last
        self._tokenizers: OrderedDict[str, Tokenizer] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def directory(self) -> Path:
        return self._directory

    def bundle(self, fingerprint: str) -> ModelBundle | None:
        """The model; None if it is not in the directory, or not sound."""
        with self._lock:
            bundle = self._bundles.get(fingerprint)
            if bundle is None:
                bundle = self._load(fingerprint)
                if bundle is None:
                    return None
                self._bundles[fingerprint] = bundle
                self._tokenizers[fingerprint] = bundle.tokenizer
                while len(self._bundles) > self._keep:
                    self._bundles.popitem(last=False)
                while len(self._tokenizers) > TOKENIZERS:
                    self._tokenizers.popitem(last=False)
            self._bundles.move_to_end(fingerprint)
            return bundle

    def tokenizer(self, fingerprint: str) -> Tokenizer | None:
        """The tokenizer of a model; None as for `bundle`."""
        found = self._tokenizers.get(fingerprint)
        if found is None:
            bundle = self.bundle(fingerprint)
            found = bundle.tokenizer if bundle is not None else None
        return found

    def _load(self, fingerprint: str) -> ModelBundle | None:
        for path in self._claiming(fingerprint):
            try:
                bundle = model_directory.load(path)
            except ModelDirectoryError:
                continue
            if bundle.fingerprint == fingerprint:
                return bundle
        return None

    def _claiming(self, fingerprint: str) -> Iterator[Path]:
        """Directories whose list of hashes says that they are this model; only those are worth loading."""
        try:
            found = models.sealed(self._directory)
        except OSError:
            return
        for path in found:
            try:
                lines = (path / SUMS).read_text(encoding="utf-8").splitlines(keepends=True)
            except (OSError, ValueError):
                continue
            named = {line.rstrip("\n").partition("  ")[2]: line for line in lines}
            parts = "".join(named.get(name, "") for name in sorted((CONFIG, WEIGHTS, TOKENIZER)))
            if fingerprint == "tw-" + hashlib.sha256(parts.encode()).hexdigest()[:16]:
                yield path
