"""From a press of "Retrain now" to a better model that answers visitors, on the pages of both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from server.console.accounts import Accounts
from server.database import connect
from tests.console_client import PASSWORD
from tests.live_server import LiveServer, serving
from tests.shop import ASKED, QUICK, Shop, chats, open_shop

pytest_plugins = ["tests.web_fixtures"]
pytestmark = pytest.mark.browser

PATIENCE_MS = 240_000
WORD = "oat"
"""Of the corrections: so small a model, trained for seconds, may stumble over the rest."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return open_shop(tmp_path_factory.mktemp("shop"))


@contextmanager
def opened(shop: Shop, folder: Path, corrected: int) -> Iterator[LiveServer]:
    """A server that can retrain, whose bot was corrected so many times."""
    told: dict[str, Any] = shop.settings(folder)
    with serving(f"sqlite:///{folder / 'turnwise.db'}", told.pop("models"), **told) as live:
        db = connect(f"sqlite:///{folder / 'turnwise.db'}")
        Accounts(db).add("Ada", "admin", PASSWORD)
        chats(db, shop.fingerprint, corrected)
        db.dispose()
        yield live


def signed_in(live: LiveServer, page: Page) -> None:
    page.goto(f"{live.address}/operator/retraining")
    page.get_by_label("Name").fill("Ada")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Retrain now")).to_be_enabled()


def fill_in(page: Page, settings: dict[str, Any]) -> None:
    page.get_by_text("Settings of this retraining").click()
    lines = [f"{name}={json.dumps(value).strip(chr(34))}" for name, value in settings.items()]
    page.get_by_label("Other settings").fill("\n".join(lines))


def answered(page: Page, live: LiveServer) -> tuple[str, str]:
    """What a new visitor is told of oat milk, and by which model."""
    page.goto(live.address)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("radio", name="Greedy").check()
    page.get_by_role("button", name="Done").click()
    page.get_by_label("Your message").fill(ASKED[0])
    page.keyboard.press("Enter")
    reply = page.locator("[role=log] .bot")
    expect(reply).to_have_count(1)
    expect(page.locator("#streaming")).to_be_hidden()
    page.get_by_role("button", name="Details").last.click()
    model = page.locator(".facts code", has_text=re.compile(r"^tw-")).first
    return reply.locator(".text").first.inner_text(), model.inner_text()


@pytest.mark.timeout(500)
def test_a_model_is_retrained_promoted_and_talked_to(
    shop: Shop, tmp_path: Path, new_context: Callable[..., BrowserContext]
) -> None:
    page = new_context().new_page()
    with opened(shop, tmp_path, 24) as live:
        before, model = answered(new_context().new_page(), live)
        assert model == shop.fingerprint
        assert WORD not in before

        signed_in(live, page)
        fill_in(page, QUICK)
        page.get_by_role("button", name="Retrain now").click()
        at = page.locator(".job-progress")
        expect(at).to_contain_text(re.compile(r"training · \d+ of \d+ · loss \d"), timeout=PATIENCE_MS)
        first = page.locator("progress").evaluate("(bar) => bar.value")
        further = "(least) => (document.querySelector('.job-progress progress')?.value ?? Infinity) > least"
        page.wait_for_function(further, arg=first, timeout=PATIENCE_MS)  # without a reload
        expect(page.locator(".page-head .mark")).to_have_text("done", timeout=PATIENCE_MS)
        expect(page.get_by_text("The gate lets it through.")).to_be_visible()
        expect(page.locator(".chart .stroke.one")).to_be_visible()
        candidate = page.locator(".facts code").nth(1).inner_text()
        assert candidate != shop.fingerprint

        page.get_by_role("link", name="All retrainings").click()
        row = page.get_by_role("region", name="Models").locator("tbody tr").filter(has_text=candidate)
        expect(row).to_contain_text("passed")
        row.get_by_role("button", name=re.compile("^Promote")).click()
        page.get_by_role("alertdialog").get_by_role("button", name="Promote").click()
        expect(row.locator(".mark", has_text="answers")).to_be_visible()

        after, model = answered(new_context().new_page(), live)
        assert model == candidate
        assert WORD in after


@pytest.mark.timeout(500)
def test_settings_that_the_server_refuses_are_named(
    shop: Shop, tmp_path: Path, new_context: Callable[..., BrowserContext]
) -> None:
    page = new_context().new_page()
    with opened(shop, tmp_path, 2) as live:
        signed_in(live, page)
        fill_in(page, {"gate.blue": 1, "data.good": -1})
        page.get_by_role("button", name="Retrain now").click()
        expect(page.get_by_role("alert")).to_contain_text("gate.blue")
        expect(page.get_by_role("alert")).to_contain_text("data.good")
        expect(page.get_by_label("Weight of a reply marked good")).to_be_focused()
        assert page.url.endswith("/operator/retraining")
