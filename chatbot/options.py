"""The options of one reply: names, defaults and ranges, in one place.

A model directory records its own defaults (``generation_config.json``); what a client sends is laid over
those by `DecodingOptions.merged`. An instance can only hold values that decoding can use, so nothing behind
it checks again; what depends on the vocabulary is left to `DecodingOptions.require_vocabulary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from annotated_types import Ge, Le
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

MAX_BEAM: Final = 16
MAX_TOKENS: Final = 256
MAX_PREFIX: Final = 1000
MAX_BLOCKED: Final = 100
MAX_PHRASE: Final = 100
MAX_SEED: Final = 2**63 - 1

Decoding = Literal["greedy", "sample", "beam"]
Phrase = Annotated[str, Field(max_length=MAX_PHRASE, pattern=r"\S")]

_ALLOWED: Final = {
    "decoding": "one of greedy, sample, beam",
    "beam_groups": "a whole number from 1 that divides beam_size",
    "n_best": "a whole number from 1 to beam_size or samples",
    "min_tokens": "a whole number from 0 to max_tokens",
    "blocked": f"at most {MAX_BLOCKED} phrases of at most {MAX_PHRASE} characters",
    "attention": "true or false",
    "prefix": f"text of at most {MAX_PREFIX} characters",
    "seed": f"null or a whole number from 0 to {MAX_SEED}",
}
"""What `DecodingOptions.allowed` says where the bounds of a field do not say it."""


class OptionError(ValueError):
    """An option that cannot be used: which one, and what it may be."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class DecodingOptions(BaseModel):
    """How one reply is decoded. `docs/decoding.md` says which option acts in which kind of decoding."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    decoding: Annotated[
        Decoding, Field(description="greedy: the likeliest token each time; sample; beam search")
    ] = "greedy"
    temperature: Annotated[
        float, Field(ge=0.05, le=5, description="sample: below 1 the likely gets likelier, above 1 less so")
    ] = 1.0
    samples: Annotated[
        int,
        Field(ge=1, le=MAX_BEAM, description="sample: replies drawn side by side, to give the best of them"),
    ] = 1
    top_k: Annotated[
        int, Field(ge=0, le=1_000_000, description="sample: only among this many likeliest tokens; 0 = all")
    ] = 0
    top_p: Annotated[
        float,
        Field(
            ge=0.001, le=1, description="sample: only among the fewest tokens that have this much probability"
        ),
    ] = 1.0
    min_p: Annotated[
        float,
        Field(ge=0, le=1, description="sample: only tokens at least this likely relative to the likeliest"),
    ] = 0.0
    beam_size: Annotated[int, Field(ge=1, le=MAX_BEAM, description="beam: paths kept at every step")] = 4
    n_best: Annotated[
        int, Field(ge=1, le=MAX_BEAM, description="beam and several samples: replies returned, best first")
    ] = 1
    beam_groups: Annotated[
        int, Field(ge=1, le=MAX_BEAM, description="beam: groups that search apart (Vijayakumar et al. 2018)")
    ] = 1
    group_penalty: Annotated[
        float, Field(ge=0, le=10, description="beam: cost of a token for each path of an earlier group on it")
    ] = 0.5
    length_penalty: Annotated[
        float, Field(ge=0, le=5, description="beam: alpha of Wu et al. (2016); above 0 favors longer replies")
    ] = 0.0
    coverage_penalty: Annotated[
        float,
        Field(ge=0, le=5, description="beam: beta of Wu et al. (2016); favors a look at all of a turn"),
    ] = 0.0
    diversity_penalty: Annotated[
        float, Field(ge=0, le=10, description="beam: cost of each better sibling, after Li et al. (2016)")
    ] = 0.0
    mmi_lambda: Annotated[
        float,
        Field(ge=0, le=5, description="weight of a language model against dull replies"),
    ] = 0.0
    mmi_gamma: Annotated[
        int, Field(ge=0, le=MAX_TOKENS, description="first tokens that the language model judges; 0 = all")
    ] = 0
    mmi_reverse: Annotated[
        float,
        Field(ge=0, le=5, description="weight of a reversed model: could one tell what was asked?"),
    ] = 0.0
    mmi_length: Annotated[
        float, Field(ge=0, le=10, description="reward of each token when other models judge")
    ] = 0.0
    max_tokens: Annotated[
        int, Field(ge=1, le=MAX_TOKENS, description="most tokens of a reply, its end token among them")
    ] = 64
    min_tokens: Annotated[
        int, Field(ge=0, le=MAX_TOKENS, description="fewest tokens before a reply may end")
    ] = 1
    no_repeat_ngram: Annotated[
        int, Field(ge=0, le=16, description="no run of this many tokens twice in a reply; 0 = off")
    ] = 0
    no_repeat_context_ngram: Annotated[
        int, Field(ge=0, le=16, description="no run of this many tokens of the bot's earlier turns; 0 = off")
    ] = 0
    no_repeat_reply: Annotated[
        int, Field(ge=0, le=16, description="no earlier reply of at least this many words again; 0 = off")
    ] = 0
    repetition_penalty: Annotated[
        float, Field(ge=1, le=5, description="makes the tokens of the reply so far less likely; 1 = off")
    ] = 1.0
    blocked: Annotated[
        tuple[Phrase, ...],
        Field(max_length=MAX_BLOCKED, description="phrases that are never said; adds to the model's own"),
        BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    ] = ()
    top_alternatives: Annotated[
        int,
        Field(ge=0, le=20, description="how many of the likeliest tokens are told for each place; 0 = none"),
    ] = 0
    attention: Annotated[bool, Field(description="tell what each token of a reply looked at")] = False
    prefix: Annotated[str, Field(max_length=MAX_PREFIX, description="text that the reply begins with")] = ""
    seed: Annotated[
        int | None,
        Field(ge=0, le=MAX_SEED, description="sample: the same seed gives the same reply; null = drawn"),
    ] = None

    @field_validator("n_best")
    @classmethod
    def _at_most_as_found(cls, value: int, info: ValidationInfo) -> int:
        if value > max(info.data.get(name, MAX_BEAM) for name in ("beam_size", "samples")):
            raise ValueError("above beam_size and samples")
        return value

    @field_validator("beam_groups")
    @classmethod
    def _divides_beam_size(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("beam_size", 0) % value:
            raise ValueError("does not divide beam_size")
        return value

    @field_validator("min_tokens")
    @classmethod
    def _at_most_max_tokens(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("max_tokens", MAX_TOKENS):
            raise ValueError("above max_tokens")
        return value

    @classmethod
    def merged(cls, defaults: DecodingOptions, overrides: Mapping[str, Any]) -> Self:
        """``defaults`` with ``overrides`` laid over them.

        A default that an override makes impossible gives way: ``{"max_tokens": 5}`` over ``min_tokens=8``
        lowers ``min_tokens`` to 5. Phrases that the defaults block stay blocked, whatever the overrides add.
        Raises `OptionError` for the first override that is unknown or out of range.
        """
        values = {**defaults.model_dump(), **overrides}
        more = values["blocked"]
        if isinstance(more, list | tuple) and all(isinstance(phrase, str) for phrase in more):
            values["blocked"] = tuple(dict.fromkeys([*defaults.blocked, *more]))
        if "beam_groups" not in overrides:
            values["beam_groups"] = _nearest_groups(values["beam_size"], values["beam_groups"])
        elif "beam_size" not in overrides:
            values["beam_size"] = _nearest_size(values["beam_size"], values["beam_groups"])
        for name, ceilings in (("n_best", ("beam_size", "samples")), ("min_tokens", ("max_tokens",))):
            highest = [values[ceiling] for ceiling in ceilings]
            if name not in overrides and all(isinstance(value, int) for value in highest):
                values[name] = min(values[name], max(*highest, cls.lowest(name)))
        return cls.checked(values)

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Options of a plain mapping. Raises `OptionError` instead of pydantic's error."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            field = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
        if field not in cls.model_fields:
            raise OptionError(field, "no such option")
        raise OptionError(field, f"must be {cls.allowed(field)}")

    @classmethod
    def allowed(cls, field: str) -> str:
        """What a field may be, in words: ``"a number from 0.05 to 5"``."""
        if field in _ALLOWED:
            return _ALLOWED[field]
        kind = "a whole number" if cls.model_fields[field].annotation is int else "a number"
        return f"{kind} from {cls.lowest(field)} to {cls.highest(field)}"

    @classmethod
    def lowest(cls, field: str) -> Any:
        """The lower bound of a numeric field."""
        return next(bound.ge for bound in cls.model_fields[field].metadata if isinstance(bound, Ge))

    @classmethod
    def highest(cls, field: str) -> Any:
        """The upper bound of a numeric field."""
        return next(bound.le for bound in cls.model_fields[field].metadata if isinstance(bound, Le))

    def require_vocabulary(self, size: int) -> None:
        """Raise `OptionError` when ``top_k`` asks for more tokens than there are."""
        if self.top_k > size:
            raise OptionError("top_k", f"must be a whole number from 0 to {size}, the size of the vocabulary")


def _nearest_groups(size: Any, groups: int) -> int:
    """The most groups up to ``groups`` that divide a beam of ``size``, which may be out of range."""
    if type(size) is not int or not 1 <= size <= MAX_BEAM:
        return groups
    return max(n for n in range(1, groups + 1) if size % n == 0)


def _nearest_size(size: int, groups: Any) -> int:
    """The size nearest to ``size`` of a beam that ``groups``, which may be out of range, divide."""
    if type(groups) is not int or not 1 <= groups <= MAX_BEAM:
        return size
    return min(range(groups, MAX_BEAM + 1, groups), key=lambda n: (abs(n - size), n))
