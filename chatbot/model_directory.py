"""The model directory: a model sealed for use, and everything that is needed to trust it.

    config.json             shape (chatbot.config.ModelConfig)
    model.safetensors       weights
    tokenizer.json          Hugging Face tokenizers
    generation_config.json  the decoding options it is used with (chatbot.options.DecodingOptions)
    metrics.json            what it scored
    README.md               model card: data, license, metrics, limits
    SHA256SUMS              hashes of all the others, in the form of sha256sum

`seal` writes aside and renames, so a directory is there whole or not at all, and never overwrites one. `load`
reads each file once and hashes, parses and uses those same bytes: nothing can change between the check and
the use. The hashes find damage and mix-ups, not a forger, who would write new ones; but even a forged
directory can only hold numbers and text, because nothing in it is ever executed or unpickled.

The fingerprint names what changes a reply: shape, weights and tokenizer. Decoding options are recorded with
each reply.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chatbot.confidence import calibration_of
from chatbot.config import ModelConfig
from chatbot.model import Seq2Seq
from chatbot.options import DecodingOptions, OptionError
from chatbot.tokenizer import Tokenizer

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
TOKENIZER: Final = "tokenizer.json"
GENERATION: Final = "generation_config.json"
METRICS: Final = "metrics.json"
CARD: Final = "README.md"
SUMS: Final = "SHA256SUMS"
ACTIVE: Final = "active"
"""In a directory of models, the file that names the one in use."""

SHIPPED: Final = Path(__file__).resolve().parent.parent / "models"
"""The models that come with the project."""

_REQUIRED: Final = (CONFIG, WEIGHTS, TOKENIZER, GENERATION, METRICS, CARD)
_FINGERPRINTED: Final = (CONFIG, WEIGHTS, TOKENIZER)
_HARMLESS: Final = frozenset({".json", ".md", ".txt", ".safetensors"})
"""Suffixes of further files that a directory may list; everything else could be something that runs."""
_MAX_BYTES: Final = {WEIGHTS: 8 * 2**30}
_MAX_OTHER_BYTES: Final = 64 * 2**20
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)

T = TypeVar("T")


class ModelDirectoryError(ValueError):
    """A directory that cannot be used as a model: which one and why, for whoever runs the command."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class SealedModel:
    """All of a model but its weights."""

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    defaults: DecodingOptions
    metrics: dict[str, Any]
    card: str
    fingerprint: str


@dataclass(frozen=True)
class ModelBundle(SealedModel):
    """A loaded model. The model is in eval mode, float32, on its device."""

    model: Seq2Seq


# ---- Reading -----------------------------------------------------------------------------------------------


def load(path: Path, *, device: str = "cpu") -> ModelBundle:
    """The model in directory ``path``. Raises `ModelDirectoryError` when it is not as it was sealed."""
    files = _read_verified(path)
    sealed = _sealed(path, files)
    model = _model(path, sealed.config, files[WEIGHTS]).to(device)
    return ModelBundle(**vars(sealed), model=model)


def describe(path: Path) -> SealedModel:
    """The model in directory ``path`` without its weights, of which only the hash is looked at. Raises
    `ModelDirectoryError` as `load` does, but for what is wrong inside the weights.
    """
    return _sealed(path, _read_verified(path))


def _sealed(path: Path, files: Mapping[str, bytes]) -> SealedModel:
    config = _parsed(path, CONFIG, lambda: ModelConfig.model_validate_json(files[CONFIG]))
    tokenizer = _parsed(path, TOKENIZER, lambda: Tokenizer.from_json(files[TOKENIZER].decode()))
    if tokenizer.vocab_size != config.vocab_size:
        raise ModelDirectoryError(
            path, f"{TOKENIZER} has {tokenizer.vocab_size} tokens, {CONFIG} says {config.vocab_size}"
        )
    return SealedModel(
        path=path,
        config=config,
        tokenizer=tokenizer,
        defaults=_parsed(path, GENERATION, lambda: DecodingOptions.checked(_json_object(files[GENERATION]))),
        metrics=_parsed(path, METRICS, lambda: _metrics(files[METRICS])),
        card=_parsed(path, CARD, files[CARD].decode),
        fingerprint=_fingerprint(files),
    )


def find_model(models: Path) -> Path:
    """The model directory that ``models`` means: itself, the one named by its ``active`` file, or the only
    one in it.

    Raises `ModelDirectoryError` when there is none, or no telling which.
    """
    if not models.is_dir():
        raise ModelDirectoryError(models, "there is no such directory")
    if (models / SUMS).exists() or (models / WEIGHTS).exists():
        return models
    found = {entry.name: entry for entry in sorted(models.iterdir()) if _looks_sealed(entry)}
    if (models / ACTIVE).is_file():
        name = (models / ACTIVE).read_text(encoding="utf-8", errors="replace").strip()
        if name not in found:
            raise ModelDirectoryError(
                models, f"its file {ACTIVE!r} names {name!r}, which is not a model in it"
            )
        return found[name]
    if len(found) != 1:
        reason = f"it holds several models ({', '.join(found)}); name one" if found else "it holds no model"
        raise ModelDirectoryError(models, reason)
    return next(iter(found.values()))


def _looks_sealed(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.is_dir() and (entry / SUMS).exists()


def _read_verified(path: Path) -> dict[str, bytes]:
    """The bytes of every file, hashes checked. Only what ``SHA256SUMS`` lists may be in the directory."""
    if not path.is_dir():
        raise ModelDirectoryError(path, "there is no such directory")
    names = {entry.name for entry in path.iterdir()}
    for name in sorted(names - {SUMS}):
        if Path(name).suffix not in _HARMLESS:
            raise ModelDirectoryError(path, f"{name!r} does not belong into a model directory")
    for name in (SUMS, *_REQUIRED):
        if name not in names:
            raise ModelDirectoryError(path, f"{name} is missing")
    sums = _parse_sums(path, _read(path, SUMS))
    for name in sorted(names - {SUMS} - sums.keys()):
        raise ModelDirectoryError(path, f"{name!r} is not listed in {SUMS}")
    files: dict[str, bytes] = {}
    for name, expected in sums.items():
        if name not in names:
            raise ModelDirectoryError(path, f"{name} is missing")
        files[name] = _read(path, name)
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise ModelDirectoryError(path, f"{name} is not what was sealed: its hash differs from {SUMS}")
    for name in _REQUIRED:
        if name not in files:
            raise ModelDirectoryError(path, f"{name} is not listed in {SUMS}")
    return files


def _read(path: Path, name: str) -> bytes:
    """A plain file of the directory, never through a link, never more than its limit."""
    try:
        descriptor = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelDirectoryError(
            path, f"{name} cannot be opened as a plain file: {error.strerror}"
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelDirectoryError(path, f"{name} is not a plain file")
        limit = _MAX_BYTES.get(name, _MAX_OTHER_BYTES)
        if status.st_size > limit:
            raise ModelDirectoryError(path, f"{name} is larger than {limit} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(limit)
    finally:
        os.close(descriptor)


def _parse_sums(path: Path, text: bytes) -> dict[str, str]:
    """``SHA256SUMS`` as name to hash."""
    sums: dict[str, str] = {}
    for number, line in enumerate(text.decode(errors="replace").splitlines(), start=1):
        digest, _, name = line.partition("  ")
        plain = name == Path(name).name and not name.startswith(".")
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef") or not plain or name in sums:
            raise ModelDirectoryError(
                path, f"{SUMS}, line {number}: not a hash, two spaces and a new file name"
            )
        sums[name] = digest
    return sums


def _model(path: Path, config: ModelConfig, data: bytes) -> Seq2Seq:
    """The model of ``config`` with the weights in ``data``, as float32."""
    loaded = _parsed(path, WEIGHTS, lambda: safetensors.torch.load(data))
    weights = {_today(name): value for name, value in loaded.items()}
    # Shapes only, at first: a false config cannot make us allocate what the file does not hold.
    with torch.device("meta"), _NoInitialization():
        model = Seq2Seq(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise ModelDirectoryError(path, f"{WEIGHTS} is without {name}, which {CONFIG} calls for")
        if name not in expected:
            raise ModelDirectoryError(path, f"{WEIGHTS} has {name}, which {CONFIG} does not call for")
    for name, shape in expected.items():
        _check_weight(path, name, weights[name], shape)
    model.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()}, assign=True)
    return model.eval()


def _today(name: str) -> str:
    """The name of a weight; models sealed before there were other cells and encoders have shorter ones."""
    old = re.fullmatch(r"(turn_gru|state_gru|bottom|top)\.((?:weight|bias)_[ih]h)_l(\d)(_reverse)?", name)
    if old:
        place = {"turn_gru": "encoder.reader.recurrence", "state_gru": "encoder.carry"}.get(old[1], old[1])
        return f"{place}.layers.{old[3]}.{old[2]}_l0{old[4] or ''}"
    return "attention.age.weight" if name == "age.weight" else name


class _NoInitialization(TorchFunctionMode):
    """Leave new parameters as they are: initializing them on the meta device takes seconds for nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _check_weight(path: Path, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.dtype not in _DTYPES:
        raise ModelDirectoryError(
            path, f"{WEIGHTS}: {name} is {value.dtype}, not float32, float16 or bfloat16"
        )
    if tuple(value.shape) != shape:
        raise ModelDirectoryError(
            path, f"{WEIGHTS}: {name} has shape {tuple(value.shape)}, {CONFIG} calls for {shape}"
        )
    if not torch.isfinite(value).all():
        raise ModelDirectoryError(path, f"{WEIGHTS}: {name} holds values that are not finite numbers")


def _parsed(path: Path, name: str, parse: Callable[[], T]) -> T:
    """What ``parse`` returns, or the reason why file ``name`` cannot be used."""
    try:
        return parse()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else str(first["msg"])
    except OptionError as error:
        reason = str(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except (ValueError, SafetensorError) as error:
        reason = str(error)
    raise ModelDirectoryError(path, f"{name} cannot be used: {reason}")


def _json_object(data: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    value = json.loads(data.decode(), parse_constant=refuse)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _metrics(data: bytes) -> dict[str, Any]:
    """Raises ValueError also for a calibration that makes no sense: it would be used with every reply."""
    metrics = _json_object(data)
    calibration_of(metrics)
    return metrics


def _fingerprint(files: Mapping[str, bytes]) -> str:
    """``sha256sum config.json model.safetensors tokenizer.json | sha256sum``, shortened."""
    return "tw-" + hashlib.sha256(_sums({name: files[name] for name in _FINGERPRINTED})).hexdigest()[:16]


def _sums(files: Mapping[str, bytes]) -> bytes:
    return "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())
    ).encode()


# ---- Writing -----------------------------------------------------------------------------------------------


def seal(
    path: Path,
    *,
    model: Seq2Seq,
    tokenizer: Tokenizer,
    defaults: DecodingOptions,
    metrics: Mapping[str, Any],
    card: str,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write a model directory and return its fingerprint.

    What is written is loaded once before it gets its name, so a sealed directory is one that works. Raises
    FileExistsError when ``path`` exists, `ModelDirectoryError` when the parts do not make a model, OSError
    when they cannot be written; nothing is left behind then.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already; a sealed model is never overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {
        CONFIG: _json_bytes(model.config.model_dump(mode="json")),
        WEIGHTS: _weights(model, dtype),
        TOKENIZER: tokenizer.to_json().encode(),
        GENERATION: _json_bytes(defaults.model_dump(mode="json")),
        METRICS: _json_bytes(metrics),
        CARD: card.encode(),
    }
    aside = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    aside.mkdir()
    try:
        for name, data in {**files, SUMS: _sums(files)}.items():
            _write(aside / name, data)
        fingerprint = load(aside).fingerprint
        _sync_directory(aside)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _sync_directory(path.parent)
    return fingerprint


def _weights(model: Seq2Seq, dtype: torch.dtype) -> bytes:
    tensors = {
        name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()
    }
    # One key and no more: the library writes several in an order that differs from run to run, and then the
    # same model would not have the same fingerprint.
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
