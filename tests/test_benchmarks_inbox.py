"""The inbox benchmark fills a database as it should and reports all it promises; speed is not asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from benchmarks import inbox
from benchmarks.inbox import LIVE, vocabulary
from server.database import connect, reading
from server.tables import Conversation, Message, Verdict

KEYS = {"name", "value", "unit", "reference", "reference_is", "ratio", "p95", "cpu", "shown", "messages"}


@pytest.mark.slow
def test_every_page_is_measured_and_what_was_written_is_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    again = ["--database-url", url, "--messages", "6000", "--conversations", "700", "--rounds"]
    inbox.main([*again, "1"])
    first = figures(capsys)
    names = inbox.filters_of(vocabulary())
    boards = ["dashboard", "dashboard_first"]
    assert list(first) == [f"inbox_sqlite_{name}" for name in [*names, "page_50", "counts", *boards]]
    assert all(figure.keys() >= KEYS for figure in first.values())
    assert {figure["reference"] for figure in first.values()} == {100, 300}
    empty = {"search_nothing", "search_rare_phrase", "very_unsure", "search_rare_closed", "time"}
    empty |= {"waiting", "taken", "mine", "search_common_waiting", "search_rare", "page_50"}  # or nearly
    for name in names.keys() - empty:
        assert first[f"inbox_sqlite_{name}"]["shown"] > 0, name
    assert first["inbox_sqlite_search_nothing"]["shown"] == 0
    assert first["inbox_sqlite_first_page"]["shown"] == 50
    assert all(2000 < first[f"inbox_sqlite_{name}"]["shown"] < 3000 for name in boards)

    inbox.main([*again, "2"])
    second = figures(capsys)
    assert {name: figure["shown"] for name, figure in second.items()} == {
        name: figure["shown"] for name, figure in first.items()
    }
    engine = connect(url)
    with reading(engine) as connection:
        assert connection.scalar(select(func.count()).select_from(Message)) == 6000
        rows = connection.execute(
            select(Conversation.last_seq, func.count(Message.id), func.max(Message.created_at))
            .add_columns(func.min(Message.created_at), Conversation.created_at, Conversation.updated_at)
            .join(Message, Message.conversation_id == Conversation.id)
            .group_by(Conversation.id)
        ).all()
        assert len(rows) > LIVE
        assert all(count == last_seq for last_seq, count, *_ in rows)
        assert all((oldest, newest) == (begun, updated) for _, _, newest, oldest, begun, updated in rows)
        assert len(connection.scalars(select(Verdict.message_id)).all()) > 1000
    engine.dispose()


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {line["name"]: line for line in lines}
