"""What a server counts and times, for Prometheus; docs/metrics.md lists all of it.

What happens (a reply ends, a transaction commits) is counted where it happens, at the cost of a few
increments. What there is at a moment (rows in use, connections) is asked for when somebody reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, HTTPException, Request, Response
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chatbot.replies import Failed, Finished
from server.desk import NewUserTurn
from server.engine import Engine, Timing
from server.records import StoredTurn
from server.writer import Writer

LAG_EVERY: Final = 0.1
"""Seconds between two looks at the event loop's lag."""

# Upper bounds of buckets, in seconds or requests. A token takes milliseconds, a reply that waits a minute.
_REPLY: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FIRST: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKEN: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 1.0)
_COMMIT: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LAG: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)

OUTCOMES: Final = ("stop", "length", "cancelled", "failed")


class Metrics:
    """One server's metrics, in a registry of their own: a process may run several servers, as tests do."""

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._version = version
        self._replies = Counter(
            "turnwise_replies", "Replies that ended, by how.", ["outcome"], registry=registry
        )
        for outcome in OUTCOMES:
            self._replies.labels(outcome)  # 0 from the start: a series that begins at 1 has no rate
        self._refused = Counter(
            "turnwise_replies_refused", "Replies refused because all places were taken.", registry=registry
        )
        self._tokens = Counter("turnwise_reply_tokens", "Tokens of replies that ended.", registry=registry)
        self._queue = Histogram(
            "turnwise_reply_queue_seconds",
            "Time from handing a reply over to its admission by the batcher.",
            registry=registry,
            buckets=_FIRST,
        )
        self._first = Histogram(
            "turnwise_reply_first_token_seconds",
            "Time from handing a reply over to its first text.",
            registry=registry,
            buckets=_FIRST,
        )
        self._whole = Histogram(
            "turnwise_reply_seconds",
            "Time from handing a reply over to its end.",
            registry=registry,
            buckets=_REPLY,
        )
        self._token = Histogram(
            "turnwise_token_seconds",
            "Mean time of a reply's tokens after its first text.",
            registry=registry,
            buckets=_TOKEN,
        )
        self._messages = Counter(
            "turnwise_messages_committed", "Messages that are in the database.", ["role"], registry=registry
        )
        for role in ("user", "agent"):
            self._messages.labels(role)
        self._batch = Histogram(
            "turnwise_commit_requests", "Requests in a transaction.", registry=registry, buckets=_BATCH
        )
        self._commit = Histogram(
            "turnwise_commit_seconds",
            "Time of a transaction, its commit included.",
            registry=registry,
            buckets=_COMMIT,
        )
        self._lag = Histogram(
            "turnwise_event_loop_lag_seconds",
            f"How much later than asked for the event loop came back, sampled every {LAG_EVERY:g} s.",
            registry=registry,
            buckets=_LAG,
        )
        self._api = Counter(
            "turnwise_api_requests",
            "Requests to the OpenAI-compatible API, by the status of their answers; 499: the client left.",
            ["status"],
            registry=registry,
        )

    # --- what happens -------------------------------------------------------------------------------------

    def reply_ended(self, event: Finished | Failed, timing: Timing) -> None:
        """By the engine, for each reply."""
        self._queue.observe(timing.queued_ms / 1000)
        self._whole.observe(timing.total_ms / 1000)
        if timing.first_token_ms is not None:
            self._first.observe(timing.first_token_ms / 1000)
        if isinstance(event, Failed):
            self._replies.labels("failed").inc()
            return
        tokens = len(event.reply.token_ids)
        self._replies.labels(event.reply.finish_reason).inc()
        self._tokens.inc(tokens)
        if timing.first_token_ms is not None and tokens > 1:
            self._token.observe((timing.total_ms - timing.first_token_ms) / 1000 / (tokens - 1))

    def reply_refused(self) -> None:
        """By the engine, for each reply that there is no place for."""
        self._refused.inc()

    def committed(self, seconds: float, kept: Sequence[tuple[Any, Any]]) -> None:
        """By the writer, for each transaction: how long it took, its requests and what became of each."""
        self._batch.observe(len(kept))
        self._commit.observe(seconds)
        for request, outcome in kept:
            if isinstance(outcome, StoredTurn) and outcome.created:
                self._messages.labels("user" if isinstance(request, NewUserTurn) else "agent").inc()

    def api_answered(self, status: int) -> None:
        """By the API, for each request."""
        self._api.labels(str(status)).inc()

    async def watch_loop(
        self,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Measure the event loop's lag until cancelled. clock: seconds, monotonic."""
        while True:
            asked = clock()
            await sleep(LAG_EVERY)
            self._lag.observe(max(0.0, clock() - asked - LAG_EVERY))

    # --- what there is ------------------------------------------------------------------------------------

    def show(self, engine: Engine, writer: Writer, rows: int, connections: Callable[[], int]) -> None:
        """Add what is asked for when somebody reads."""
        self.registry.register(_Now(self._version, engine, writer, rows, connections))
        # Of a process that is not there nothing is told.
        ProcessCollector("turnwise_engine", pid=lambda: engine.pid or "none", registry=self.registry)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format (0.0.4)."""
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True)
class _Now(Collector):
    version: str
    engine: Engine
    writer: Writer
    rows: int
    connections: Callable[[], int]

    def collect(self) -> Iterable[Metric]:
        load = self.engine.load
        yield _gauge("turnwise_info", "What is running.", 1, version=self.version)
        yield _gauge(
            "turnwise_model_info",
            "The model that new replies are made by.",
            1,
            fingerprint=self.engine.speaker.fingerprint,
        )
        yield _gauge("turnwise_connections", "Chat sockets that are open.", self.connections())
        yield _gauge("turnwise_places", "Replies that may be under way at a time.", self.engine.capacity)
        yield _gauge("turnwise_places_in_use", "Replies under way.", self.engine.places_in_use)
        yield _gauge("turnwise_rows", "Sequences that may be decoded at a time.", self.rows)
        yield _gauge("turnwise_rows_in_use", "Sequences that are being decoded.", load.rows)
        yield _gauge(
            "turnwise_replies_waiting", "Replies that wait for rows or are being read for.", load.waiting
        )
        yield _gauge("turnwise_writes_waiting", "Requests that wait for a transaction.", self.writer.waiting)


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=list(labels))
    gauge.add_metric(list(labels.values()), value)
    return gauge


Admit = Callable[[Request], Awaitable[bool]]
"""Whether somebody may read."""


def router(metrics: Metrics, admit: Admit | None = None) -> APIRouter:
    """`GET /metrics`, for those whom `admit` lets in; None for everyone."""
    routes = APIRouter()

    @routes.get("/metrics", summary="What the server counts and times, for Prometheus", tags=["health"])
    async def show(request: Request) -> Response:
        if admit is not None and not await admit(request):
            raise HTTPException(401, "an API key is needed", {"www-authenticate": "Bearer"})
        return Response(metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes
