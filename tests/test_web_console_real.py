"""The console against the real server: signed in, a conversation judged, taken over and handed back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from server.console.accounts import Accounts
from server.database import connect
from tests.live_server import LiveServer, serving
from tests.scripted_batcher import parrot

pytest_plugins = ["tests.web_fixtures"]
pytestmark = pytest.mark.browser

PASSWORD = "correct horse battery"


@pytest.fixture
def live(tiny_model_dir: Path, tmp_path: Path) -> Iterator[LiveServer]:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    with serving(url, tiny_model_dir, parrot) as live:
        db = connect(url)
        Accounts(db).add("Ada", "admin", PASSWORD)
        yield live
        db.dispose()


@pytest.fixture
def visitor(live: LiveServer, new_context: Callable[..., BrowserContext]) -> Page:
    page = new_context().new_page()
    page.goto(live.address)
    say(page, "Is there a train to Ghent?")
    expect(page.locator("[role=log] .bot")).to_have_count(1)
    return page


@pytest.fixture
def operator(live: LiveServer, visitor: Page, new_context: Callable[..., BrowserContext]) -> Page:
    page = new_context().new_page()
    page.goto(f"{live.address}/operator/inbox?state=all")
    page.get_by_label("Name").fill("Ada")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_have_attribute("data-phase", "live")
    return page


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def test_a_conversation_is_found_judged_and_corrected(operator: Page) -> None:
    assert operator.url.endswith("/operator/inbox?state=all")
    expect(operator.locator(".row-title")).to_have_text(["Is there a train to Ghent?"])
    operator.keyboard.press("/")
    operator.keyboard.type("ghent")
    expect(operator.locator("#announcer")).to_have_text("1 conversation")
    operator.locator("a.inbox-row").click()
    expect(operator.locator(".turn.selected")).to_be_visible()
    expect(operator.locator(".explanation")).to_contain_text("How it was made")
    operator.keyboard.press("c")
    operator.get_by_label("What should have been said").fill("Yes, one an hour.")
    operator.keyboard.press("Control+Enter")
    expect(operator.locator(".correction ins")).not_to_have_count(0)
    expect(operator.locator(".saving")).to_be_hidden()
    operator.reload()
    expect(operator.locator(".correction")).to_contain_text("Yes, one an hour.")
    expect(operator.locator("a.inbox-row")).to_contain_text("1 bad")
    operator.get_by_role("button", name="Filters").click()
    operator.get_by_label("Verdict").select_option("good")
    expect(operator.locator(".list-state")).to_have_text("No conversation fits these filters.")


def test_operator_and_visitor_talk(operator: Page, visitor: Page) -> None:
    operator.locator("a.inbox-row").click()
    operator.get_by_role("button", name="Take over").click()
    box = operator.get_by_label("Your message to the visitor")
    expect(box).to_be_focused()
    box.fill("A person here. Where to?")
    operator.keyboard.press("Enter")
    expect(operator.locator(".turns > .turn.operator .text")).to_have_text("A person here. Where to?")
    expect(operator.locator(".pending .turn")).to_have_count(0)
    expect(visitor.get_by_role("log")).to_contain_text("A person here. Where to?")
    say(visitor, "To Ghent")
    expect(operator.locator(".turns > .turn.visitor .text").last).to_have_text("To Ghent")
    expect(operator.locator(".turns > .turn.bot")).to_have_count(1)  # it says nothing
    operator.get_by_role("button", name="Hand back").click()
    expect(operator.get_by_role("button", name="Take over")).to_be_visible()
    say(visitor, "And back?")
    expect(operator.locator(".turns > .turn.bot").last).to_contain_text("back")
    expect(operator.locator(".turns > .turn.bot").last.locator(".verdict")).to_be_visible()


def test_signing_out_closes_the_console(operator: Page, live: LiveServer) -> None:
    operator.locator("#account").click()
    operator.get_by_role("button", name="Sign out").click()
    operator.get_by_label("Password", exact=True).wait_for()
    assert operator.request.get(f"{live.address}/operator/static/app.js").status == 401
