"""The models that can be put in use, with what the gate said of each and by what figures.

Listing reads the hashes and the figures of a model, not its weights: whether it can be used at all is found
out when it is promoted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chatbot import model_directory
from chatbot.model_directory import CONFIG, METRICS, SUMS, TOKENIZER, WEIGHTS, ModelDirectoryError
from server import models
from server.settings import Settings

FIGURES: Final = ("perplexity_word", "dev", "parameters", "steps", "seconds", "confidence")
"""Of a model's metrics, those that are shown."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of the directory. base: fingerprint of what it was retrained from. gate: its last decision."""

    fingerprint: str
    name: str
    in_use: bool
    promoted_at: str | None
    base: str | None
    metrics: dict[str, Any]
    gate: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate as a job keeps it."""

    fingerprint: str
    result: dict[str, Any]


def models_directory(told: Settings) -> Path:
    return told.models or model_directory.SHIPPED


def listed(directory: Path) -> list[Listed]:
    """By name. Raises `ModelDirectoryError` and OSError."""
    if not directory.is_dir():
        raise ModelDirectoryError(directory, "there is no such directory")
    try:
        in_use = model_directory.find_model(directory).resolve()
    except ModelDirectoryError:
        in_use = None
    promoted = models.promoted(directory)
    found = []
    for path in models.sealed(directory):
        sums = _sums(path)
        if sums is None:
            continue
        metrics = _metrics(path, sums)
        found.append(
            Listed(
                fingerprint=_fingerprint(sums),
                name=path.name,
                in_use=path.resolve() == in_use,
                promoted_at=promoted.get(path.name),
                base=metrics.get("base"),
                metrics={key: metrics[key] for key in FIGURES if key in metrics},
                gate=_gate(_judged_again(path) or metrics.get("gate")),
            )
        )
    return found


def outcome_of(candidate: Path) -> Outcome | None:
    """What a retraining has made; None when it is not sound."""
    try:
        bundle = model_directory.load(candidate)
    except ModelDirectoryError:
        return None
    gate, figures = _gate(bundle.metrics.get("gate")), bundle.metrics.get("figures")
    if gate is None or not isinstance(figures, dict):
        return None
    return Outcome(bundle.fingerprint, {**gate, "figures": figures})


def _gate(found: Any) -> dict[str, Any] | None:
    """A decision as `training.gate` writes it, in the console's words; None for anything else."""
    try:
        reasons = [
            {"name": str(each["check"]), "passed": bool(each["passed"]), "text": str(each["text"])}
            for each in found["reasons"]
        ]
        return {"passed": bool(found["passed"]), "reasons": reasons}
    except (KeyError, TypeError):
        return None


def _sums(path: Path) -> dict[str, str] | None:
    """The lines of SHA256SUMS by the file that each is of."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return {line.partition("  ")[2]: line for line in lines}


def _fingerprint(sums: dict[str, str]) -> str:
    """As its list of hashes has it."""
    parts = "".join(f"{sums.get(name, '')}\n" for name in sorted((CONFIG, WEIGHTS, TOKENIZER)))
    return f"tw-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def _metrics(path: Path, sums: dict[str, str]) -> dict[str, Any]:
    """Nothing unless the file is as it was sealed."""
    data = _small_file(path / METRICS)
    if data is None or hashlib.sha256(data).hexdigest() != sums.get(METRICS, "").partition("  ")[0]:
        return {}
    return _object(data)


def _judged_again(path: Path) -> dict[str, Any] | None:
    """The decision of `retrain --gate-only`, if it is on this model."""
    found = _object(_small_file(path.with_name(f"{path.name}.gate.json")) or b"{}")
    gate = found.get("gate")
    sums = _sums(path)
    same = sums is not None and found.get("fingerprint") == _fingerprint(sums)
    return gate if same and isinstance(gate, dict) else None


def _small_file(path: Path, most: int = 64 * 2**20) -> bytes | None:
    try:
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError:
        return None
    return data if len(data) <= most else None


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
