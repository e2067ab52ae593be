"""What the dashboard shows."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, insert, update

from server.console import statistics
from server.console.statistics import KEPT_FOR, TODAY_KEPT_FOR, Dashboard, percentile
from server.database import connect, writing
from server.store import Store
from server.store_errors import StoreUnavailable
from server.tables import Conversation, Message, Suggestion
from tests.console_client import TestConsole, console_over, new_reply, run
from tests.databases import KINDS, fresh_database, upgrade
from tests.scripted_batcher import parrot

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
DAY = NOON.date()
BEFORE = DAY - timedelta(days=1)
STATISTICS = "/api/operator/statistics"


class Talks:
    """Conversations at moments of our choosing."""

    def __init__(self, db: Engine) -> None:
        self.db = db
        self.moment = NOON
        self.store = Store(db, clock=lambda: self.moment)
        self.visitor = self.store.new_visitor().visitor_id

    def talk(self, *replies: dict[str, Any], at: datetime = NOON) -> str:
        """One with a turn for each reply; its id."""
        self.moment = at
        conversation = self.store.open_conversation(self.visitor)
        for values in replies:
            said = self.store.add_user_turn(conversation, uuid.uuid4().hex, "hello", {})
            given = {"model": "tw-a", **values}
            rating = given.pop("rating", None)
            made = self.store.add_reply(conversation, new_reply(said.message_id, "hi", **given))
            if rating is not None:
                self.store.rate(conversation, made.message_id, rating, None)
        return conversation

    def change(self, conversation: str, **values: Any) -> None:
        with writing(self.db) as connection:
            connection.execute(update(Conversation).where(Conversation.id == conversation).values(values))

    def operator_says(self, conversation: str, at: datetime = NOON) -> str:
        message = uuid.uuid4().hex
        with writing(self.db) as connection:
            connection.execute(
                insert(Message).values(
                    id=message,
                    conversation_id=conversation,
                    seq=1000 + random.randrange(10**6),
                    role="agent",
                    text="let me see",
                    created_at=at,
                    superseded=False,
                    operator_id="o",
                )
            )
        self.change(conversation, owner_version=1)
        return message

    def suggested(self, conversation: str, outcome: str | None, message: str | None = None) -> None:
        with writing(self.db) as connection:
            connection.execute(
                insert(Suggestion).values(
                    id=uuid.uuid4().hex,
                    conversation_id=conversation,
                    operator_id="o",
                    created_at=NOON,
                    model="tw-a",
                    typed="",
                    offered=["x"],
                    milliseconds=1.0,
                    outcome=outcome,
                    message_id=message,
                )
            )


@pytest.fixture(params=KINDS)
def talks(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with fresh_database(request.param, tmp_path) as url:
        upgrade(url)
        db = connect(url)
        yield Talks(db)
        db.dispose()


def test_every_figure(talks: Talks) -> None:
    up, down = {"rating": "up"}, {"rating": "down"}
    talks.talk(up, up, down)
    talks.talk(
        {"model": "tw-b", "finish_reason": "abstained"}, {"model": "tw-b"}, at=NOON - timedelta(days=1)
    )
    waiting = talks.talk({})
    talks.change(waiting, waiting_since=NOON)
    with_a_person = talks.talk({})
    first = talks.operator_says(with_a_person)
    talks.operator_says(with_a_person)
    looked_at = talks.talk({})
    talks.change(looked_at, owner_version=2)  # taken and handed back without a word
    talks.talk()  # nothing was said
    for outcome, message in (("accepted", first), ("edited", first), ("ignored", None), (None, None)):
        talks.suggested(with_a_person, outcome, message)

    found = Dashboard(talks.db).figures(DAY - timedelta(2), DAY)
    assert list(found.days) == [DAY - timedelta(2), DAY - timedelta(1), DAY]
    today, before = found.days[DAY], found.days[DAY - timedelta(1)]
    assert (today.conversations, today.handled_alone) == (4, 2)
    assert (before.conversations, before.handled_alone) == (1, 0)  # who gets no answer waits for a person
    assert (today.messages, today.replies, today.operator_messages) == (6 + 2 + 2 + 2 + 2, 6, 2)
    assert (today.thumbs_up, today.thumbs_down, today.abstained) == (2, 1, 0)
    assert (before.thumbs_up, before.thumbs_down, before.abstained, before.replies) == (0, 0, 1, 2)
    assert (today.shown, today.accepted, today.edited, today.ignored, today.covered) == (4, 1, 1, 1, 1)
    assert found.days[DAY - timedelta(2)].messages == 0

    assert list(found.models) == ["tw-a", "tw-b"]
    assert (found.models["tw-a"].conversations, found.models["tw-a"].replies) == (4, 6)
    assert (found.models["tw-b"].conversations, found.models["tw-b"].abstained) == (1, 1)
    assert found.models["tw-a"].shown == 4
    for name in ("conversations", "messages", "replies", "shown", "covered", "thumbs_up", "abstained"):
        assert getattr(found.total, name) == sum(getattr(each, name) for each in found.days.values()), name
    assert found.total.total_ms == Counter({20.0: 8})


def test_a_day_begins_at_midnight_utc(talks: Talks) -> None:
    midnight = datetime(2026, 3, 10, tzinfo=UTC)
    talks.talk({}, at=midnight - timedelta(microseconds=1))
    talks.talk({}, at=midnight)
    talks.talk({}, at=midnight + timedelta(days=1) - timedelta(microseconds=1))
    talks.talk({}, at=midnight + timedelta(days=1))
    [day] = Dashboard(talks.db).figures(DAY, DAY).days.values()
    assert (day.conversations, day.messages, day.replies) == (2, 4, 2)


def test_percentiles_are_near_the_true_ones(talks: Talks) -> None:
    rng = random.Random(5)
    times = [rng.lognormvariate(4, 1.5) for _ in range(200)]
    talks.talk(
        *({"first_token_ms": None if n % 2 else each, "total_ms": each} for n, each in enumerate(times))
    )
    day = Dashboard(talks.db).figures(DAY, DAY).total
    for share in (0.5, 0.95):
        for found, all_times in ((day.total_ms, times), (day.first_token_ms, times[::2])):
            true = sorted(all_times)[max(0, round(share * len(all_times)) - 1)]
            told = percentile(found, share)
            assert told is not None
            assert abs(told - true) <= max(0.5, 0.026 * true)
    assert day.first_token_ms.total() == 100


def test_percentile_is_the_nearest_rank() -> None:
    assert percentile({}, 0.5) is None
    assert percentile({3.0: 1}, 0.95) == 3.0
    assert percentile({1.0: 50, 2.0: 45, 9.0: 5}, 0.5) == 1.0
    assert percentile({1.0: 50, 2.0: 45, 9.0: 5}, 0.95) == 2.0
    assert percentile({1.0: 50, 2.0: 44, 9.0: 6}, 0.95) == 9.0


def test_what_is_over_is_told_again_for_a_while(talks: Talks) -> None:
    now = 0.0
    dashboard = Dashboard(talks.db, clock=lambda: now, now=lambda: NOON)

    def replies() -> list[int]:
        return [each.replies for each in dashboard.figures(DAY - timedelta(1), DAY).days.values()]

    talks.talk({}, at=NOON - timedelta(days=1))
    assert replies() == [1, 0]
    talks.talk({}, at=NOON - timedelta(days=1))
    talks.talk({})
    assert replies() == [1, 0]
    now = TODAY_KEPT_FOR
    assert replies() == [1, 1]  # today as it is, yesterday as it was
    now = KEPT_FOR
    assert replies() == [2, 1]


def test_a_year_is_asked_for_in_parts_and_whole(talks: Talks) -> None:
    for days in (0, 30, 31, 62, 300, 365):
        talks.talk({}, at=NOON - timedelta(days=days))
    found = Dashboard(talks.db).figures(DAY - timedelta(365), DAY)
    assert len(found.days) == 366
    assert [(DAY - day).days for day, each in found.days.items() if each.replies] == [365, 300, 62, 31, 30, 0]
    assert found.total.replies == 6


def test_what_takes_the_database_too_long_is_asked_for_in_halves(
    talks: Talks, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def patient(db: Engine, first: date, last: date) -> Any:
        asked.append((last - first).days + 1)
        if asked[-1] > 3:
            raise StoreUnavailable("statement timeout", busy=True)
        return real(db, first, last)

    real = statistics.count
    monkeypatch.setattr(statistics, "count", patient)
    for days in range(10):
        talks.talk({}, at=NOON - timedelta(days=days))
    found = Dashboard(talks.db).figures(DAY - timedelta(9), DAY)
    assert [each.replies for each in found.days.values()] == [1] * 10
    assert asked == [10, 5, 3, 2, 5, 3, 2]

    def gone(db: Engine, first: date, last: date) -> Any:
        raise StoreUnavailable("no route to host")

    monkeypatch.setattr(statistics, "count", gone)
    with pytest.raises(StoreUnavailable):
        Dashboard(talks.db).figures(DAY - timedelta(9), DAY)


def test_replies_are_added_up_once_unless_messages_come_or_go(
    talks: Talks, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counting_days(monkeypatch)
    now = 0.0
    dashboard = Dashboard(talks.db, clock=lambda: now, now=lambda: NOON)

    def yesterday() -> tuple[int, int, int]:
        nonlocal now
        now += KEPT_FOR
        found = dashboard.figures(BEFORE, DAY).days[BEFORE]
        return found.replies, found.thumbs_up, found.handled_alone

    talk = talks.talk({}, {}, at=NOON - timedelta(days=1))
    assert yesterday() == (2, 0, 1)
    assert asked == [BEFORE]  # today nobody has said anything
    talks.store.rate(talk, talks.store.messages(talk)[1].message_id, "up", None)
    talks.change(talk, waiting_since=NOON)
    assert yesterday() == (2, 1, 0)
    assert asked == [BEFORE]
    talks.talk({}, at=NOON - timedelta(days=1))
    assert yesterday() == (3, 1, 1)
    with writing(talks.db) as connection:
        connection.execute(delete(Conversation).where(Conversation.id == talk))
    assert yesterday() == (1, 0, 1)
    assert asked == [BEFORE] * 3


def test_what_is_added_up_at_the_start_is_there_when_somebody_asks(
    talks: Talks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in (0, 1, 29, 30):
        talks.talk({}, at=NOON - timedelta(days=days))
    asked = counting_days(monkeypatch)
    dashboard = Dashboard(talks.db, now=lambda: NOON)
    asyncio.run(dashboard.warm_up())
    assert asked == [DAY, BEFORE, DAY - timedelta(29)]
    assert dashboard.figures(DAY - timedelta(29), DAY).total.replies == 3
    assert len(asked) == 3


def test_only_so_many_days_are_remembered(talks: Talks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_KEPT", 2)
    for days in range(4):
        talks.talk({}, at=NOON - timedelta(days=days))
    dashboard = Dashboard(talks.db)
    assert dashboard.figures(DAY - timedelta(3), DAY).total.replies == 4
    assert list(dashboard._replies) == [BEFORE, DAY]


def test_a_start_without_a_database_is_a_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    db = connect(f"sqlite:///{tmp_path / 'none.db'}")
    asyncio.run(Dashboard(db).warm_up())
    assert "warm_up_failed" in caplog.text
    db.dispose()


def test_no_question_goes_through_all_messages(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    db = connect(url)
    Talks(db).talk({})
    plans: list[str] = []

    @event.listens_for(db, "before_cursor_execute", retval=True)
    def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> Any:
        if statement.startswith(("SELECT", "WITH")):
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[-1] for row in cursor.fetchall())
        return statement, parameters

    Dashboard(db).figures(BEFORE, DAY)
    db.dispose()
    assert any("ix_message_created_at" in plan for plan in plans)
    assert [plan for plan in plans if plan.startswith("SCAN") and plan != "SCAN made"] == []


def counting_days(monkeypatch: pytest.MonkeyPatch) -> list[date]:
    """The days whose replies are added up from now on."""
    asked: list[date] = []

    def added_up(db: Engine, day: date) -> Any:
        asked.append(day)
        return real(db, day)

    real = statistics._replies
    monkeypatch.setattr(statistics, "_replies", added_up)
    return asked


def test_the_route(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("reviewer")
        console.conversation([("hello", "hi"), ("and?", "so")], first_token_ms=7.0, total_ms=31.0)
        console.conversation([("hello", None)])
        found = (await client.get(STATISTICS)).json()
        today = datetime.now(UTC).date()
        assert [each["day"] for each in found["days"]] == [
            (today - timedelta(n)).isoformat() for n in reversed(range(30))
        ]
        last = found["days"][-1]
        assert (last["conversations"], last["messages"], last["replies"]) == (2, 5, 2)
        assert last["total_ms"] == {"p50": 31.0, "p95": 31.0}
        assert last["first_token_ms"] == {"p50": 7.0, "p95": 7.0}
        assert last["suggestions"] == {"shown": 0, "accepted": 0, "edited": 0, "ignored": 0}
        assert (last["acceptance"], last["coverage"]) == (None, None)
        [model] = found["models"]
        assert model["replies"] == found["total"]["replies"] == 2
        assert "total_ms" not in found["days"][0] or found["days"][0]["total_ms"] == {
            "p50": None,
            "p95": None,
        }

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_ranges(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("reviewer")

        async def days(query: str) -> Any:
            answer = await client.get(f"{STATISTICS}?{query}")
            return (
                [each["day"] for each in answer.json()["days"]]
                if answer.status_code == 200
                else answer.status_code
            )

        assert await days("from=2026-03-09&to=2026-03-10") == ["2026-03-09", "2026-03-10"]
        assert await days("from=2026-03-09T23:30:00-02:00&to=2026-03-10T12:00:00Z") == ["2026-03-10"]
        assert len(await days("to=2026-03-10")) == 30
        assert len(await days("from=2025-03-10&to=2026-03-10")) == 366
        for query in (
            "from=2025-03-09&to=2026-03-10",
            "from=2026-03-11&to=2026-03-10",
            "from=soon",
            "from=1e99",
            "to=9999-12-31",
            "to=0001-01-01",
            "till=2026-03-10",
        ):
            assert await days(query) == 400, query

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)
