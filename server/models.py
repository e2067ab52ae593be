"""A directory of models with one in use: what is in it, and which one answers.

The file `active` names the model in use (`chatbot.model_directory.find_model`); it is replaced by a rename,
so that whoever reads it finds one name or the other. `promotions.jsonl` beside it has a line for each
change, newest last, so that a promotion can be taken back. A running server follows `active`
(server.hot_swap).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from chatbot import model_directory
from chatbot.batcher import Batcher
from chatbot.model_directory import ACTIVE, SUMS, WEIGHTS, ModelBundle, ModelDirectoryError
from chatbot.options import DecodingOptions, OptionError
from chatbot.replies import Failed, Finished, ReplyRequest
from chatbot.terms import Terms
from chatbot.transcripts import Role

HISTORY: Final = "promotions.jsonl"
LOCK: Final = ".promotions.lock"
_GREETING: Final[tuple[tuple[Role, str], ...]] = (("user", "hello"),)
_TRIALS: Final[tuple[dict[str, Any], ...]] = (
    {"decoding": "greedy"},
    {"decoding": "sample", "samples": 1},
    {},
)
"""Options over the model's own defaults under which a model must give a reply before it is used."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the directory. problem: why it cannot be loaded; then there is no fingerprint or card."""

    name: str
    fingerprint: str | None
    in_use: bool
    promoted_at: str | None
    bytes: int
    card: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """Which model is in use now, and which was before."""

    model: str
    fingerprint: str
    before: str | None


def entries(models: Path) -> list[Entry]:
    """The models in `models`, or the one that it is. Raises `ModelDirectoryError` when there is no such
    directory.
    """
    if not models.is_dir():
        raise ModelDirectoryError(models, "there is no such directory")
    in_use = _in_use(models)
    if _is_model(models):
        return [_entry(models, in_use=True, promoted_at=None)]
    when = promoted(models)
    return [
        _entry(path, in_use=path.name == in_use, promoted_at=when.get(path.name)) for path in sealed(models)
    ]


def promoted(models: Path) -> dict[str, str]:
    """When each model was last put in use, by name. Raises `ModelDirectoryError`."""
    return {event["model"]: str(event["at"]) for event in _events(models)}


def sealed(models: Path) -> list[Path]:
    """The directories in `models` that look like models, by name; `models` itself if it is one."""
    if _is_model(models):
        return [models]
    return [
        entry
        for entry in sorted(models.iterdir())
        if not entry.name.startswith(".") and entry.is_dir() and (entry / SUMS).exists()
    ]


def by_fingerprint(models: Path, wanted: str) -> Path | None:
    """The model with that fingerprint, one that is sound."""
    for path in sealed(models):
        try:
            if model_directory.describe(path).fingerprint == wanted:
                return path
        except ModelDirectoryError:
            continue
    return None


def promote(
    models: Path, wanted: str, *, rows: int = 64, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Change:
    """Put a model in use: `wanted` is a fingerprint, a name in `models`, or a directory elsewhere, which is
    copied. It is loaded and tried first.

    Raises `ModelDirectoryError`; then nothing has changed.
    """
    with _locked(models):
        path = models / wanted if Path(wanted).name == wanted and (models / wanted).is_dir() else None
        path = path or by_fingerprint(models, wanted)
        if path is None and Path(wanted).is_dir():
            path = _taken_in(models, Path(wanted).resolve(), rows)
        if path is None:
            raise ModelDirectoryError(models, f"there is no model {wanted!r} in it")
        return _switch(models, path, "promote", rows, clock)


def take_in(models: Path, source: Path, *, rows: int = 64) -> str:
    """Copy a model into the directory, tried before it gets its name there, which is returned. The same model
    under the same name may be there already.

    Raises `ModelDirectoryError`.
    """
    with _locked(models):
        target = models / source.name
        if _hashes(target) is None or _hashes(target) != _hashes(source):
            _taken_in(models, source.resolve(), rows)
        return source.name


def _hashes(path: Path) -> bytes | None:
    try:
        return (path / SUMS).read_bytes()
    except OSError:
        return None


def previous(models: Path) -> str | None:
    """The name of the model that `rollback` would put in use, or None. Raises `ModelDirectoryError`."""
    if _is_model(models):
        return None
    line = _line(models)
    return line[-2] if len(line) > 1 else None


def rollback(
    models: Path, *, rows: int = 64, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Change:
    """Put the model in use that was before the last promotion; again goes further back.

    Raises `ModelDirectoryError` when there was none, or it cannot be used; then nothing has changed.
    """
    with _locked(models):
        line = _line(models)
        if len(line) < 2:
            raise ModelDirectoryError(models, "no model was in use before")
        if not (models / line[-2]).is_dir():
            reason = f"{line[-2]!r}, the model before, is not there any more; promote another one by its name"
            raise ModelDirectoryError(models, reason)
        return _switch(models, models / line[-2], "rollback", rows, clock)


def try_out(bundle: ModelBundle, rows: int) -> None:
    """Have a model make short replies. Raises `ModelDirectoryError` when it cannot."""
    try:
        Terms(bundle.tokenizer, rows).grant(bundle.defaults)
        batcher = Batcher(bundle, rows=rows, waiting=len(_TRIALS))
        for number, overrides in enumerate(_TRIALS):
            short = {"max_tokens": min(8, bundle.defaults.max_tokens), "seed": number, **overrides}
            options = DecodingOptions.merged(bundle.defaults, short)
            batcher.submit(ReplyRequest(str(number), _GREETING, options))
        finished = 0
        while not batcher.idle:
            for event in batcher.step():
                if isinstance(event, Failed):
                    raise ModelDirectoryError(bundle.path, f"it failed when tried: {event.message}")
                finished += isinstance(event, Finished)
    except OptionError as error:
        raise ModelDirectoryError(bundle.path, f"its own options cannot be followed: {error}") from None
    except (RuntimeError, ArithmeticError, LookupError) as error:
        raise ModelDirectoryError(bundle.path, f"it failed when tried: {type(error).__name__}") from error
    if finished != len(_TRIALS):
        raise ModelDirectoryError(bundle.path, "it did not finish its replies when tried")


# --- inside -----------------------------------------------------------------------------------------------


def _is_model(path: Path) -> bool:
    return (path / SUMS).exists() or (path / WEIGHTS).exists()


def _in_use(models: Path) -> str | None:
    try:
        return model_directory.find_model(models).name
    except ModelDirectoryError:
        return None


def _entry(path: Path, *, in_use: bool, promoted_at: str | None) -> Entry:
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    try:
        bundle = model_directory.load(path)
    except ModelDirectoryError as error:
        return Entry(path.name, None, in_use, promoted_at, size, "", error.reason)
    card = next((line.lstrip("# ") for line in bundle.card.splitlines() if line.strip()), "")
    return Entry(path.name, bundle.fingerprint, in_use, promoted_at, size, card, None)


def _switch(
    models: Path,
    path: Path,
    action: Literal["promote", "rollback"],
    rows: int,
    clock: Callable[[], datetime],
) -> Change:
    bundle = model_directory.load(path)
    try_out(bundle, rows)
    before = _in_use(models)
    if before == path.name and (models / ACTIVE).exists():
        return Change(path.name, bundle.fingerprint, before)
    event = {
        "at": clock().isoformat(timespec="seconds"),
        "action": action,
        "model": path.name,
        "fingerprint": bundle.fingerprint,
        "before": before,
    }
    lines = [json.dumps(each) + "\n" for each in (*_events(models), event)]
    history = _aside(models / HISTORY, "".join(lines))  # before anything changes: the disk may be full
    try:
        # The pointer first: it is what counts, and a history without its last line still leads back.
        _replace(models / ACTIVE, f"{path.name}\n")
        _put(history, models / HISTORY)
    finally:
        history.unlink(missing_ok=True)
    return Change(path.name, bundle.fingerprint, before)


def _taken_in(models: Path, source: Path, rows: int) -> Path:
    """A copy of model `source` in `models`, tried before it gets its name."""
    target = models / source.name
    if source.parent == models.resolve():
        return target
    if target.exists():
        raise ModelDirectoryError(models, f"it holds another {source.name!r} already; rename one")
    aside = models / f".{source.name}.{secrets.token_hex(8)}"
    try:
        shutil.copytree(source, aside, symlinks=True)
        try_out(model_directory.load(aside), rows)
        in_use = _in_use(models)
        if in_use is not None and not (models / ACTIVE).exists():  # the only one needs no pointer until now
            _replace(models / ACTIVE, f"{in_use}\n")
        aside.rename(target)
    except OSError as error:
        # Of many files, the tree's copy has a list of (from, to, why) and no words of the system.
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise ModelDirectoryError(models, f"cannot copy the model: {why}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _events(models: Path) -> list[dict[str, Any]]:
    """All changes, oldest first."""
    try:
        text = (models / HISTORY).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    try:
        events = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        events = [None]
    if not all(
        isinstance(event, dict) and event.keys() >= {"at", "action", "model", "before"} for event in events
    ):
        raise ModelDirectoryError(models, f"its file {HISTORY!r} cannot be read: mend it, or move it away")
    return events


def _line(models: Path) -> list[str]:
    """The models that led to the one in use, which is the last; a rollback goes to the one before it."""
    line: list[str] = []
    for event in _events(models):
        if event["action"] == "rollback":
            line = line[:-1]
        elif event["before"] is not None and line[-1:] != [event["before"]]:
            line.append(event["before"])
        if line[-1:] != [event["model"]]:
            line.append(event["model"])
    now = _in_use(models)
    if now is not None and line[-1:] != [now]:  # somebody wrote `active` by hand
        line.append(now)
    return line


@contextmanager
def _locked(models: Path) -> Iterator[None]:
    """One change at a time. Raises `ModelDirectoryError` unless `models` is a directory of models."""
    if not models.is_dir():
        raise ModelDirectoryError(models, "there is no such directory")
    if _is_model(models):
        raise ModelDirectoryError(models, "it is one model, not a directory of them")
    with (models / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    _put(_aside(path, text), path)


def _aside(path: Path, text: str) -> Path:
    """A file that is to become `path`, safe on the disk; none is left when it cannot be written."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with aside.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return aside


def _put(aside: Path, path: Path) -> None:
    aside.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
