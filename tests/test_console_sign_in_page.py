"""The page that operators sign in on, in a real Chromium against the real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect

from server.console import pages
from server.console.accounts import Accounts
from server.console.throttle import TRIES_PER_ACCOUNT
from server.database import connect
from tests.live_server import LiveServer, serving
from tests.scripted_batcher import parrot

pytest_plugins = ["tests.web_fixtures"]
pytestmark = pytest.mark.browser

PASSWORD = "correct horse battery"
NewContext = Callable[..., BrowserContext]


@pytest.fixture
def live(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """A server with an operator named ana, and a console that is one line."""
    monkeypatch.setattr(pages, "WEB", tmp_path)
    words = '<!doctype html><html lang="en"><title>Console</title><h1>The console</h1></html>'
    (tmp_path / "index.html").write_text(words)
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    with serving(url, tiny_model_dir, parrot) as live:
        db = connect(url)
        Accounts(db).add("ana", "admin", PASSWORD)
        yield live
        db.dispose()


def fill(page: Page, name: str, password: str) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password", exact=True).fill(password)
    page.keyboard.press("Enter")


def test_signing_in_leads_to_the_page_that_was_asked_for(live: LiveServer, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{live.address}/operator/inbox?state=open")
    expect(page).to_have_title("Sign in – Turnwise console")
    expect(page.get_by_label("Name")).to_be_focused()
    fill(page, "ana", PASSWORD)
    expect(page.get_by_role("heading", name="The console")).to_be_visible()
    assert page.url == f"{live.address}/operator/inbox?state=open"
    assert page.evaluate("() => document.cookie") == "", "no script can read it"
    [kept] = [c for c in context.cookies() if c["name"] == "turnwise_operator"]
    assert (kept["httpOnly"], kept["sameSite"], kept["expires"]) == (True, "Strict", -1)

    context.clear_cookies()
    page.goto(f"{live.address}/OPERATOR")
    fill(page, "ana", PASSWORD)
    page.wait_for_url(f"{live.address}/operator")
    expect(page.get_by_role("heading", name="The console")).to_be_visible()


def test_what_is_wrong_is_said_at_the_field(live: LiveServer, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{live.address}/operator")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("Your name is missing.")
    expect(page.get_by_label("Name")).to_be_focused()
    fill(page, "ana", "something wrong")
    expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    password = page.get_by_label("Password", exact=True)
    expect(password).to_be_focused()
    expect(password).to_have_attribute("aria-invalid", "true")
    expect(password).to_have_accessible_description("The name or the password is wrong.")
    page.get_by_label("Show the password").check()
    expect(password).to_have_attribute("type", "text")
    fill(page, "ana", PASSWORD)
    expect(page.get_by_role("heading", name="The console")).to_be_visible()


def test_too_many_tries_are_waited_for(live: LiveServer, context: BrowserContext) -> None:
    page = context.new_page()
    page.clock.install()
    page.goto(f"{live.address}/operator")
    for _ in range(TRIES_PER_ACCOUNT):
        fill(page, "ana", "something wrong")
        expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
        page.get_by_label("Password", exact=True).fill("")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_have_text("Your password is missing.")
    fill(page, "ana", PASSWORD)
    expect(page.get_by_role("alert")).to_contain_text("Too many tries. You can try again in")
    button = page.locator("#submit")
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(button).to_contain_text("Wait")
    page.keyboard.press("Enter")
    page.clock.fast_forward(61_000)
    expect(button).to_have_text("Sign in")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_server_that_cannot_be_reached_is_said(live: LiveServer, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{live.address}/operator")
    context.set_offline(True)
    fill(page, "ana", PASSWORD)
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    context.set_offline(False)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="The console")).to_be_visible()


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(live: LiveServer, new_context: NewContext, theme: str, phone: bool) -> None:
    page = new_context(phone=phone, color_scheme=theme).new_page()
    page.goto(f"{live.address}/operator")
    for _ in range(2):
        results: Any = Axe().run(page).response
        assert [violation["id"] for violation in results["violations"]] == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
        fill(page, "ana", "something wrong")
        page.get_by_role("alert").wait_for()
    ground = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(248, 246, 241)", "dark": "rgb(20, 24, 22)"}[theme]
