"""The options of one reply: names, defaults and ranges, in one place.

A model directory records its own defaults (``generation_config.json``); what a client sends is laid over
those by `DecodingOptions.merged`. An instance can only hold values that decoding can use, so nothing behind
it checks again; what depends on the vocabulary is left to `DecodingOptions.require_vocabulary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

Decoding = Literal["greedy", "sample", "beam"]

MAX_BEAM: Final = 16
MAX_TOKENS: Final = 256
MAX_PREFIX: Final = 1000
MAX_SEED: Final = 2**63 - 1

_ALLOWED: Final = {
    "decoding": "one of greedy, sample, beam",
    "n_best": "a whole number from 1 to beam_size",
    "min_tokens": "a whole number from 0 to max_tokens",
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
    n_best: Annotated[int, Field(ge=1, le=MAX_BEAM, description="beam: replies returned, best first")] = 1
    length_penalty: Annotated[
        float, Field(ge=0, le=5, description="beam: alpha of Wu et al. (2016); above 0 favors longer replies")
    ] = 0.0
    diversity_penalty: Annotated[
        float, Field(ge=0, le=10, description="beam: cost of each better sibling, after Li et al. (2016)")
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
    repetition_penalty: Annotated[
        float, Field(ge=1, le=5, description="makes the tokens of the reply so far less likely; 1 = off")
    ] = 1.0
    prefix: Annotated[str, Field(max_length=MAX_PREFIX, description="text that the reply begins with")] = ""
    seed: Annotated[
        int | None,
        Field(ge=0, le=MAX_SEED, description="sample: the same seed gives the same reply; null = drawn"),
    ] = None

    @field_validator("n_best")
    @classmethod
    def _at_most_beam_size(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("beam_size", MAX_BEAM):
            raise ValueError("above beam_size")
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
        lowers ``min_tokens`` to 5. Raises `OptionError` for the first override that is unknown or out of
        range.
        """
        values = {**defaults.model_dump(), **overrides}
        for name, ceiling in (("n_best", "beam_size"), ("min_tokens", "max_tokens")):
            if name not in overrides and isinstance(values[ceiling], int):
                values[name] = min(values[name], max(values[ceiling], cls.lowest(name)))
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
