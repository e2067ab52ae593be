"""A desk for tests of the console: the real server over a made-up month, and those who are signed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from playwright.sync_api import BrowserContext, Page

from chatbot.tokenizer import Tokenizer
from server.console.accounts import Accounts
from server.database import connect
from tests.console_desk import API, BAD, Desk, Open, verdict
from tests.console_month import PASSWORD, add_job, add_pairs, done, fill
from tests.databases import upgrade
from tests.live_server import serving
from tests.models import seal_tiny
from tests.scripted_batcher import parrot

pytest_plugins = ["tests.web_fixtures"]


@pytest.fixture(scope="module")
def desk(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    models = folder / "models"
    models.mkdir()
    sealed = {
        "base": seal_tiny(models / "base", tiny_tokenizer, 1),
        "better": seal_tiny(models / "better", tiny_tokenizer, 2, verdict(True)),
        "worse": seal_tiny(models / "worse", tiny_tokenizer, 3, verdict(False)),
        BAD: seal_tiny(models / BAD, tiny_tokenizer, 4),
    }
    (models / "active").write_text("base\n", encoding="utf-8")
    url = f"sqlite:///{folder / 'turnwise.db'}"
    upgrade(url)
    db = connect(url)
    accounts = Accounts(db)
    roles: dict[str, Literal["admin", "reviewer"]] = {"Ada": "admin", "Ben": "reviewer", "Cleo": "reviewer"}
    ids = {name: accounts.add(name, role, PASSWORD).id for name, role in roles.items()}
    month = fill(db, ids["Ada"], (sealed["base"], sealed["better"]), talks=70, days=14)
    job = add_job(db, ids["Ada"], sealed["base"], candidate=sealed["better"], result=done(6, "better"))
    add_pairs(db, job, month.said[-6:])
    with serving(url, models, parrot, jobs_dir=folder / "jobs") as live:
        yield Desk(live, db, folder, ids, sealed, month, job)
    db.dispose()


@pytest.fixture
def opened(desk: Desk, new_context: Callable[..., BrowserContext]) -> Open:
    """``opened("dashboard", who="Ben", phone=True)``: a page of somebody who is signed in."""

    def go(view: str, who: str = "Ada", **options: Any) -> Page:
        context = new_context(**options)
        login = {"name": who, "password": PASSWORD}
        address = desk.live.address
        answer = context.request.post(f"{address}{API}/login", data=login, headers={"origin": address})
        assert answer.ok, answer.text()
        page = context.new_page()
        page.goto(f"{address}/operator/{view}")
        page.get_by_role("heading", level=1).wait_for()
        return page

    return go
