"""Routes of the map of what people talk about."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from server.console.sign_in import Asked, SignedIn
from server.http import ErrorBody

router = APIRouter(
    prefix="/topics",
    tags=["operator"],
    responses={401: {"model": ErrorBody}},
)


class ClusterView(BaseModel):
    """Conversations that the model takes for alike, with the words that tell them from the others.

    x, y: the middle of their places. thumbs_down, waiting, low_confidence: shares of them as they stand now.
    """

    model_config = ConfigDict(from_attributes=True)

    number: int
    words: list[str]
    size: int
    x: float
    y: float
    thumbs_down: float
    waiting: float
    low_confidence: float


class PointView(BaseModel):
    """A conversation's place, within -1 and 1, and the cluster it belongs to."""

    model_config = ConfigDict(from_attributes=True)

    conversation: str
    x: float
    y: float
    cluster: int


class MapView(BaseModel):
    """model: whose encoder it is a map of."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    model: str
    created_at: datetime
    clusters: list[ClusterView]
    points: list[PointView]


class TopicsView(BaseModel):
    """The newest map, and whether another one is being made."""

    map: MapView | None
    building: bool


class Begun(BaseModel):
    """building: always true. begun: false when a map was being made already."""

    building: bool
    begun: bool


@router.get("", summary="The newest map of topics")
async def newest(console: Asked, who: SignedIn) -> TopicsView:
    building = console.topics.building  # asked first: what has ended meanwhile is in the map
    found = await console.offload(console.topics.newest)
    return TopicsView(map=None if found is None else MapView.model_validate(found), building=building)


@router.post("", summary="Make a map of the newest conversations", status_code=202)
async def make(console: Asked, who: SignedIn) -> Begun:
    """With the model that is in use; GET tells when it is there."""
    begun = console.topics.begin(console.engine.speaker.fingerprint, who.name)
    return Begun(building=True, begun=begun)
