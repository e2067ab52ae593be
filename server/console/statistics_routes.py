"""The route of the dashboard's figures."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field

from server.console.sign_in import Asked, SignedIn
from server.console.statistics import DAYS, MOST_DAYS, Figures, percentile
from server.http import ErrorBody

router = APIRouter(prefix="/statistics", tags=["operator"], responses={401: {"model": ErrorBody}})


class Range(BaseModel):
    """Days in UTC, both included, each as a date or as a moment in it."""

    model_config = ConfigDict(extra="forbid")

    from_: Annotated[
        date | datetime | None,
        Field(None, alias="from", description=f"the first day; {DAYS} days up to the last if left out"),
    ]
    to: Annotated[date | datetime | None, Field(None, description="the last day; today if left out")]

    def days(self, today: date) -> tuple[date, date]:
        """Raises HTTPException 400 for a range that runs backwards or is too long."""
        last = today if self.to is None else _day(self.to)
        try:
            first = last - timedelta(DAYS - 1) if self.from_ is None else _day(self.from_)
            last + timedelta(1)
        except OverflowError:
            raise HTTPException(400, "to: there is no such day") from None
        if first > last:
            raise HTTPException(400, "from: is after to")
        if (last - first).days >= MOST_DAYS:
            raise HTTPException(400, f"from: is more than {MOST_DAYS} days before to")
        return first, last


class SuggestionFigures(BaseModel):
    """Suggestions that operators were shown, and what became of them."""

    shown: int
    accepted: int
    edited: int
    ignored: int


class Milliseconds(BaseModel):
    """p50: what half of the replies took at most; p95: 95 of 100. null when there are none."""

    p50: float | None
    p95: float | None


class FiguresView(BaseModel):
    """What each counts is in docs/operators.md.

    acceptance: of the suggestions with an outcome, the share that was taken, edited or not. coverage: of the
    operators' messages, the share that a suggestion was taken for. null where there is nothing to share.
    """

    conversations: int
    handled_alone: int
    messages: int
    operator_messages: int
    replies: int
    thumbs_up: int
    thumbs_down: int
    abstained: int
    suggestions: SuggestionFigures
    acceptance: float | None
    coverage: float | None
    first_token_ms: Milliseconds
    total_ms: Milliseconds


class DayFigures(FiguresView):
    day: date


class ModelFigures(FiguresView):
    """Conversations belong to the model that made their newest reply; its messages are its replies."""

    model: str


class StatisticsView(BaseModel):
    """Every day of the range, in order; every model with something in it, that with most replies first."""

    days: list[DayFigures]
    models: list[ModelFigures]
    total: FiguresView


@router.get("", summary="Figures by day and by model")
async def statistics(console: Asked, who: SignedIn, asked: Annotated[Range, Query()]) -> StatisticsView:
    """Figures of today are up to ten seconds old, those of days that are over up to five minutes."""
    first, last = asked.days(datetime.now(UTC).date())
    found = await console.dashboard.ask(first, last)
    return StatisticsView(
        days=[DayFigures(day=day, **_shown(figures)) for day, figures in found.days.items()],
        models=[ModelFigures(model=model, **_shown(figures)) for model, figures in found.models.items()],
        total=FiguresView(**_shown(found.total)),
    )


def _day(moment: date | datetime) -> date:
    if not isinstance(moment, datetime):
        return moment
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)).date()


def _shown(figures: Figures) -> dict[str, Any]:
    values = {each.name: getattr(figures, each.name) for each in dataclasses.fields(figures)}
    names = ("shown", "accepted", "edited", "ignored")
    counts = {name: values.pop(name) for name in names}
    taken = counts["accepted"] + counts["edited"]
    covered = values.pop("covered")
    times = {
        name: Milliseconds(p50=percentile(values[name], 0.5), p95=percentile(values[name], 0.95))
        for name in ("first_token_ms", "total_ms")
    }
    return {
        **values,
        **times,
        "suggestions": SuggestionFigures(**counts),
        "acceptance": _share(taken, taken + counts["ignored"]),
        "coverage": _share(covered, figures.operator_messages),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
