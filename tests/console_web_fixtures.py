"""Fixtures of the console page's tests: a scripted console API, and pages of a signed-in operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.fake_console import FakeConsole, running_console

pytest_plugins = ["tests.web_fixtures"]


@pytest.fixture(scope="session")
def console_server() -> Iterator[FakeConsole]:
    with running_console() as console:
        yield console


@pytest.fixture
def console(console_server: FakeConsole) -> FakeConsole:
    """The scripted console, as new."""
    console_server.reset()
    return console_server


OpenConsole = Callable[..., Page]


@pytest.fixture
def open_console(
    new_context: Callable[..., BrowserContext], console: FakeConsole, faults: list[str]
) -> OpenConsole:
    """The console's page: ``open_console("/operator/review", phone=True, color_scheme="dark")``."""

    def open_page(path: str = "/operator/inbox", **options: Any) -> Page:
        page = new_context(**options).new_page()
        page.goto(console.address + path)
        page.locator("#rail a").first.wait_for()
        return page

    return open_page
