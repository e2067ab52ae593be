"""What tests of the console's pages share: the desk that they work at, and where things are on a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Locator, Page, expect
from sqlalchemy import Engine, func, select

from server.database import reading
from tests.console_month import Month, gate
from tests.live_server import LiveServer

BAD: Final = "<img src=x onerror=alert(1)>"
API: Final = "/api/operator"


@dataclass
class Desk:
    """The server with a month in it. ids: of operators. models: fingerprints by name. job: a finished one."""

    live: LiveServer
    db: Engine
    folder: Path
    ids: dict[str, str]
    models: dict[str, str]
    month: Month
    job: str

    def count(self, table: type[Any]) -> int:
        with reading(self.db) as connection:
            return connection.scalar(select(func.count()).select_from(table)) or 0


def verdict(passed: bool) -> dict[str, Any]:
    found = gate(passed)
    named = [{"check": r["name"], "passed": r["passed"], "text": r["text"]} for r in found["reasons"]]
    return {"gate": {"passed": passed, "reasons": named}}


Open = Callable[..., Page]


def part(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title, exact=True).first


def row(page: Page, title: str, text: str) -> Locator:
    return part(page, title).locator("tbody tr").filter(has_text=text)


def ask(page: Page, path: str) -> Any:
    return page.request.get(page.url.split("/operator")[0] + API + path).json()


def sure(page: Page, yes: str) -> None:
    page.get_by_role("alertdialog").get_by_role("button", name=yes, exact=True).click()
    expect(page.get_by_role("alertdialog")).to_have_count(0)
