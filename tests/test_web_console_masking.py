"""An admin looks at conversations as reviewers see them, in a browser over the real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Request, expect
from sqlalchemy import Engine, select

from server.console.accounts import Accounts
from server.database import connect, reading
from server.tables import Verdict
from tests.console_client import PASSWORD, new_reply
from tests.live_server import LiveServer, serving
from tests.scripted_batcher import parrot

pytest_plugins = ["tests.web_fixtures"]
pytestmark = pytest.mark.browser

ADDRESS = "ann@example.com"


@pytest.fixture
def live(tiny_model_dir: Path, tmp_path: Path) -> Iterator[LiveServer]:
    with serving(f"sqlite:///{tmp_path / 'turnwise.db'}", tiny_model_dir, parrot) as live:
        yield live


@pytest.fixture
def db(live: LiveServer, tmp_path: Path) -> Iterator[Engine]:
    db = connect(f"sqlite:///{tmp_path / 'turnwise.db'}")
    Accounts(db).add("Ada", "admin", PASSWORD)
    Accounts(db).add("Ben", "reviewer", PASSWORD)
    yield db
    db.dispose()


@pytest.fixture
def talk(live: LiveServer, db: Engine) -> str:
    talk = live.store.open_conversation(live.store.new_visitor().visitor_id)
    said = live.store.add_user_turn(talk, "s1", f"Write to {ADDRESS}", {}).message_id
    live.store.add_reply(talk, new_reply(said, f"I write to {ADDRESS}"))
    return talk


Open = Callable[[str], Page]


@pytest.fixture
def opened(live: LiveServer, talk: str, new_context: Callable[..., BrowserContext]) -> Open:
    """The conversation, before somebody who is signed in."""

    def go(who: str) -> Page:
        context = new_context()
        login = {"name": who, "password": PASSWORD}
        origin = {"origin": live.address}
        answer = context.request.post(f"{live.address}/api/operator/login", data=login, headers=origin)
        assert answer.ok, answer.text()
        page = context.new_page()
        page.goto(f"{live.address}/operator/inbox/{talk}?state=all")
        reply(page).wait_for()
        return page

    return go


def reply(page: Page) -> Locator:
    return page.locator(".turns .turn.bot .bubble .text").first


def everywhere(page: Page) -> list[Locator]:
    """Where what was said is read."""
    turn = page.locator(".turns .turn.visitor .text").first
    return [reply(page), turn, page.locator(".row-title"), page.locator(".conversation-title h2")]


def look(page: Page) -> Locator:
    return page.get_by_label("As reviewers see it")


def test_an_admin_sees_what_reviewers_see_and_back(opened: Open, live: LiveServer, talk: str) -> None:
    page = opened("Ada")
    for place in everywhere(page):
        expect(place).to_contain_text(ADDRESS)
    look(page).focus()
    page.keyboard.press("Space")
    for place in everywhere(page):
        expect(place).to_contain_text("[email]")
        expect(place).not_to_contain_text(ADDRESS)
    expect(page.locator(".marks")).to_contain_text("Personal data masked")
    said = live.store.add_user_turn(talk, "s2", f"Again: {ADDRESS}", {}).message_id
    live.store.add_reply(talk, new_reply(said, "Again"))
    page.reload()
    expect(look(page)).to_be_checked()
    expect(page.locator(".turns .turn.visitor .text").last).to_have_text("Again: [email]")
    assert ADDRESS not in page.content()
    look(page).uncheck()
    for place in everywhere(page):
        expect(place).to_contain_text(ADDRESS)
    expect(page.locator(".marks")).not_to_contain_text("Personal data masked")


def test_a_reviewer_has_no_such_choice(opened: Open) -> None:
    page = opened("Ben")
    expect(reply(page)).to_contain_text("[email]")
    expect(look(page)).to_have_count(0)


def test_what_is_asked_for_is_masked_too(opened: Open) -> None:
    """The explanation and the events of the conversation as well."""
    page = opened("Ada")
    look(page).check()
    expect(page.locator(".row-title")).to_contain_text("[email]")
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))  # noqa: PLW0108 - the library marks what it calls
    # Not one that was asked for before.
    with page.expect_response(lambda reply: "/explanation?" in reply.url and reply.request in requests):
        page.reload()
    asked = [request.url.partition("/api/operator")[2] for request in requests]
    of_talk = [path for path in asked if path.startswith(("/conversations", "/messages"))]
    assert {path.partition("?")[0].split("/")[-1] for path in of_talk} >= {"events", "explanation"}
    assert [path for path in of_talk if "mask=true" not in path] == []


def test_masked_words_do_not_take_the_place_of_a_correction(opened: Open, db: Engine) -> None:

    def kept() -> list[str | None]:
        with reading(db) as connection:
            return list(connection.scalars(select(Verdict.corrected)))

    page = opened("Ada")
    page.keyboard.press("c")
    page.get_by_label("What should have been said").fill(f"Mail to {ADDRESS}")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".correction")).to_contain_text(f"Mail to {ADDRESS}")
    expect(page.locator(".saving")).to_be_hidden()
    look(page).check()
    expect(page.locator(".correction")).to_contain_text("Mail to [email]")
    page.locator(".conversation-title h2").focus()
    for key in ("b", "g"):
        page.keyboard.press(key)
        expect(page.locator("#notices")).to_contain_text("is masked")
        page.get_by_role("button", name="Dismiss").first.click()
        page.locator(".conversation-title h2").focus()
    assert kept() == [f"Mail to {ADDRESS}"]
    look(page).uncheck()
    expect(page.locator(".correction")).to_contain_text(ADDRESS)
    page.locator(".conversation-title h2").focus()
    page.keyboard.press("b")
    expect(page.locator(".correction")).to_have_count(0)
    expect(page.locator(".saving")).to_be_hidden()
    assert kept() == []
