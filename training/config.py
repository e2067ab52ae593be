"""How a model is trained: every number of a run, in one place."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chatbot.config import ModelConfig

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(ValueError):
    """All that is wrong with a configuration, one line each."""


class TrainConfig(BaseModel):
    """A training run; ``--config FILE.toml`` and ``--set key=value`` give its fields
    (``model.hidden_size=256``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = ModelConfig()
    """Shape of the model; ``vocab_size`` is what the tokenizer aims at."""
    lowercase: bool = False
    """Whether the tokenizer lower-cases all text."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Of initial weights, order and dropout."""
    epochs: Annotated[int, Field(ge=1)] = 20
    """At most this many times through the training part."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """At most this many updates."""
    minutes: Positive | None = None
    """At most this much training time; the learning rate then falls with time (and runs do not repeat
    exactly).
    """
    batch_tokens: Annotated[int, Field(ge=16)] = 10_000
    """Tokens of all turns in a batch, padding between dialogues included."""
    max_dialogue_tokens: Annotated[int, Field(ge=16)] = 2000
    """A longer conversation is cut between turns into several."""
    learning_rate: Positive = 1e-3
    """Peak, after the warm-up."""
    final_learning_rate: Share = 0.02
    """Share of the peak at the end of the run; a cosine leads there (Loshchilov and Hutter 2017)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 300
    """Updates in which the rate rises linearly."""
    betas: tuple[Share, Share] = (0.9, 0.98)
    """Of Adam (Kingma and Ba 2015)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled (Loshchilov and Hutter 2019); matrices only."""
    clip_norm: Positive = 1.0
    """Largest norm of the whole gradient (Pascanu et al. 2013)."""
    label_smoothing: Share = 0.0
    """Of the training loss; perplexities are always without."""
    subword_dropout: Share = 0.0
    """Probability that a merge of the tokenizer is left out in a training text."""
    subword_copies: Annotated[int, Field(ge=1, le=100)] = 1
    """Times that every training text is tokenized, which then make up an epoch; for ``subword_dropout``."""
    averaging: Share = 0.0
    """Decay of the running mean of the weights, which then is the model; 0 takes the weights themselves."""
    scheduled_sampling: Share = 0.0
    """Share of a reply's inputs that are the model's own choices at the end of the run; it rises from 0."""
    positions: Literal["all", "one"] = "all"
    """Whether a loss is taken at all tokens of a reply, or at one drawn anew for each update."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; auto takes bf16 where the device multiplies it faster."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU when there is one."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch; 0 leaves its default."""
    evaluate_every: Annotated[int, Field(ge=1)] = 500
    """Updates between two readings of the dev part."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Readings without a new best after which the run ends."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    """Time between two checkpoints besides those at each reading; 0 writes one after every update."""
    final_replies: Annotated[int, Field(ge=0)] = 500
    """Turns of each dev file that the finished model answers, for BLEU and the like in ``metrics.json``."""
    weights: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the weights in the sealed model directory."""


Config = TypeVar("Config", bound=TrainConfig)


@overload
def load_config(file: Path | None, settings: Sequence[str]) -> TrainConfig: ...
@overload
def load_config(file: Path | None, settings: Sequence[str], shape: type[Config]) -> Config: ...
def load_config(
    file: Path | None, settings: Sequence[str], shape: type[TrainConfig] = TrainConfig
) -> TrainConfig:
    """Defaults of ``shape``, then the TOML file, then ``key=value`` settings. Raises `ConfigError` naming
    every wrong field.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text("utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: {error}") from None
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write key=value")
        _put(values, key.strip().split("."), _parse(text))
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc']))}: "
            + (_unknown(e["loc"], shape) if e["type"] == "extra_forbidden" else _reason(e["msg"]))
            for e in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(lines)) from None


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")  # pydantic's, before what our own checks say


def _unknown(place: Sequence[int | str], shape: type[BaseModel]) -> str:
    """What to say of a setting that there is not: which one may have been meant."""
    *tables, name = map(str, place)
    for table in tables:
        inner = shape.model_fields[table].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        shape = inner
    near = get_close_matches(name, shape.model_fields, n=1)
    return "there is no such setting" + (f"; is it {'.'.join([*tables, *near])}?" if near else "")


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(path)}: {part} is not a table")
        values = inner
    values[path[-1]] = value


def _parse(text: str) -> Any:
    """A TOML value; anything else is a string, so that ``--set device=cpu`` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
