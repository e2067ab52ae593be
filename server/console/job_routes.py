"""Retraining from the console: asking for it, following it, calling it off."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from server.console import job_settings, jobs
from server.console.job_settings import Wrong
from server.console.jobs import JobRefused, Record, State
from server.console.sign_in import Admin, Asked, SignedIn
from server.http import ErrorBody, ErrorDetail

router = APIRouter(
    tags=["operator"],
    responses={code: {"model": ErrorBody} for code in (401, 403, 404, 409)},
)

MAX_SETTINGS: Final = 50
Key = Annotated[str, Field(pattern=r"^[a-z_0-9]+(\.[a-z_0-9]+)*$", max_length=64)]
Text = Annotated[str, Field(pattern=r"^[\x20-\x7e]*$", max_length=64)]
Value = bool | int | Annotated[float, Field(allow_inf_nan=False)] | Text
Point = tuple[int, float]


class NewJob(BaseModel):
    """settings: what `python -m training retrain --set` takes, such as `{"gate.bleu": 4}`.

    use_imports: whether uploaded transcripts are learned too.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    settings: Annotated[dict[Key, Value], Field(max_length=MAX_SETTINGS)] = {}
    use_imports: bool = False


class WrongSetting(BaseModel):
    """A setting that a retraining would not take: it is unknown, or its value is out of range."""

    field: str
    message: str


class SettingsDetail(ErrorDetail):
    """fields: each setting that is wrong, where that is the reason; the code is then `bad_settings`."""

    fields: Sequence[WrongSetting] = ()


class SettingsError(BaseModel):
    """The body of a refusal."""

    error: SettingsDetail


class ProgressView(BaseModel):
    """What a process is at. loss: nats a token. seconds_left: of this phase, where that can be told."""

    phase: str | None
    step: int | None
    steps: int | None
    loss: float | None
    seconds_left: float | None


class ReasonView(BaseModel):
    """One thing that the gate looked at."""

    name: str
    passed: bool
    text: str


class Compared(BaseModel):
    """Logged turns that both models have answered, and how many of them differently."""

    questions: int
    changed: int


class ResultView(BaseModel):
    """The gate's decision. figures: of `base` and `candidate`.

    model: the candidate's name among the models; if it could not be put there, where it is, and
    `not_installed` says why. compared: None where it could not be done; then `changes_error` says why.
    index_error: why there is no index of what it was trained on, where there should be one.
    """

    passed: bool
    reasons: list[ReasonView]
    figures: dict[str, Any]
    model: str | None = None
    not_installed: str | None = None
    compared: Compared | None = None
    changes_error: str | None = None
    index_error: str | None = None


class JobView(BaseModel):
    """A retraining. base, candidate: fingerprints. cancelling: it is being ended. error: why it failed."""

    id: str
    state: State
    operator: str | None
    base: str
    candidate: str | None
    settings: dict[str, Any]
    use_imports: bool
    cancelling: bool
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: ProgressView | None
    result: ResultView | None
    error: str | None


class PointView(BaseModel):
    """Loss of one update, nats a token."""

    step: int
    loss: float


class JobDetails(JobView):
    """log: the last lines of what the processes printed."""

    log: list[str]
    curve: list[PointView]


class JobList(BaseModel):
    """The newest first. missing: what has to be done before anything can be retrained on this server."""

    jobs: list[JobView]
    missing: str | None


@router.get("/jobs", summary="Retrainings")
async def list_jobs(console: Asked, _: SignedIn) -> JobList:
    found = await console.offload(jobs.jobs, console.db)
    missing = await console.offload(jobs.missing, console.settings)
    return JobList(jobs=[JobView(**_values(each)) for each in found], missing=missing)


@router.post(
    "/jobs",
    summary="Retrain the model in use with what was reviewed",
    response_model=JobView,
    responses={400: {"model": SettingsError}},
)
async def queue(console: Asked, who: Admin, asked: NewJob) -> JobView | JSONResponse:
    base = console.engine.speaker.fingerprint
    try:
        wrong = await console.offload(job_settings.wrong, asked.settings)
        if wrong:
            return _refused(wrong)
        found = await console.offload(
            jobs.queue,
            console.db,
            console.settings,
            base,
            who,
            asked.settings,
            use_imports=asked.use_imports,
        )
    except JobRefused as refusal:
        raise HTTPException(409, str(refusal)) from None
    console.wake_jobs()
    return JobView(**_values(found))


@router.get("/jobs/{job_id}", summary="A retraining, with its loss curve and log")
async def job(console: Asked, _: SignedIn, job_id: str) -> JobDetails:
    found = await console.offload(jobs.job, console.db, job_id)
    if found is None:
        raise HTTPException(404, "there is no such retraining")
    progress = found.progress or {}
    curve = [PointView(step=step, loss=loss) for step, loss in progress.get("curve", ())]
    return JobDetails(**_values(found), log=progress.get("log", []), curve=curve)


@router.post("/jobs/{job_id}/cancel", summary="Call a retraining off")
async def cancel(console: Asked, who: Admin, job_id: str) -> JobView:
    try:
        found = await console.offload(jobs.cancel, console.db, job_id, who)
    except JobRefused as refusal:
        raise HTTPException(409, str(refusal)) from None
    if found is None:
        raise HTTPException(404, "there is no such retraining")
    console.wake_jobs()
    return JobView(**_values(found))


def _refused(wrong: Sequence[Wrong]) -> JSONResponse:
    fields = [WrongSetting(field=each.field, message=each.message) for each in wrong]
    message = "; ".join(f"{each.field}: {each.message}" for each in wrong)
    detail = SettingsDetail(code="bad_settings", message=message, fields=fields)
    return JSONResponse(SettingsError(error=detail).model_dump(), 400)


def _values(found: Record) -> dict[str, Any]:
    told, result = found.progress, found.result or {}
    running = found.state == "running"
    return {
        "id": found.id,
        "state": found.state,
        "operator": found.operator,
        "base": found.base,
        "candidate": found.candidate,
        "settings": found.settings,
        "use_imports": found.use_imports,
        "cancelling": found.cancel and running,
        "created_at": found.created_at,
        "started_at": found.started_at,
        "ended_at": found.ended_at,
        "progress": {key: told.get(key) for key in ProgressView.model_fields} if told and running else None,
        "result": result if "passed" in result else None,
        "error": result.get("error"),
    }
