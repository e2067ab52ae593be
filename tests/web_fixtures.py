"""Fixtures of the web client's tests: one Chromium for a module, a fresh profile and a fresh server for each.

A page that logs an error, throws, or runs into its Content-Security-Policy fails its test at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, expect, sync_playwright

from tests.fake_chat_server import FakeChat, running

CHROMIUM: Final = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS: Final = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESKTOP: Final = {"width": 1280, "height": 800}
PHONE: Final = {"width": 390, "height": 844}
EXPECTED: Final = ("WebSocket connection to", "Failed to load resource")
"""What Chromium itself logs when a server is away, which many tests arrange."""
PATIENCE_MS: Final = 15_000

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Closed after each module: while it is open, playwright's event loop occupies the thread."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"no Chromium at {CHROMIUM}; set CHROMIUM to its path")
    expect.set_options(timeout=PATIENCE_MS)  # as on a machine that has other things to do
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def chat_server() -> Iterator[FakeChat]:
    with running() as server:
        yield server


@pytest.fixture
def chat(chat_server: FakeChat) -> FakeChat:
    """The scripted server, as new."""
    chat_server.reset()
    return chat_server


@pytest.fixture(scope="session")
def complaints() -> list[str]:
    """What pages complain about, all tests together; `faults` gives each test its own."""
    return []


@pytest.fixture
def faults(complaints: list[str]) -> Iterator[list[str]]:
    """A test fails at its end when one of its pages complained."""
    complaints.clear()
    yield complaints
    assert complaints == []


@pytest.fixture
def new_context(chromium: Browser, faults: list[str]) -> Iterator[Callable[..., BrowserContext]]:
    """Browser profiles: ``new_context(phone=True, color_scheme="dark", …)``."""
    with ExitStack() as stack:

        def create(**options: Any) -> BrowserContext:
            return stack.enter_context(profile(chromium, faults, **options))

        yield create


@pytest.fixture
def context(new_context: Callable[..., BrowserContext]) -> BrowserContext:
    return new_context()


@pytest.fixture(scope="module")
def desktop(chromium: Browser, complaints: list[str]) -> Iterator[BrowserContext]:
    """A profile that many tests share, because it has the page's files at hand."""
    with profile(chromium, complaints) as context:
        yield context


@pytest.fixture
def page(desktop: BrowserContext, chat: FakeChat, faults: list[str]) -> Iterator[Page]:
    """A desktop page that is connected to `chat`; nothing is left in its storage from other tests."""
    page = desktop.new_page()
    page.goto(f"{chat.address}/static/icon.svg")
    page.evaluate("() => localStorage.clear()")
    yield connect(page, chat.address)
    for open_page in desktop.pages:
        open_page.close()


@pytest.fixture
def open_page(new_context: Callable[..., BrowserContext], chat: FakeChat) -> OpenPage:
    """Connected pages in profiles of their own: ``open_page(phone=True, color_scheme="dark")``."""
    return lambda **options: connect(new_context(**options).new_page(), chat.address)


@pytest.fixture
def open_tab(chat: FakeChat) -> Callable[[BrowserContext], Page]:
    """One more tab in a profile that is open already."""
    return lambda context: connect(context.new_page(), chat.address)


def connect(page: Page, address: str) -> Page:
    page.goto(address)
    page.locator("#presence[data-phase=ready]").wait_for()
    return page


@contextmanager
def profile(
    chromium: Browser, faults: list[str], *, phone: bool = False, **options: Any
) -> Iterator[BrowserContext]:
    device = {"viewport": PHONE if phone else DESKTOP, "has_touch": phone, "is_mobile": phone}
    with chromium.new_context(**{**device, "reduced_motion": "reduce", **options}) as context:
        context.set_default_timeout(PATIENCE_MS)
        context.on("page", lambda page: _watch(page, faults))
        yield context


def _watch(page: Page, faults: list[str]) -> None:
    def hear(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(EXPECTED):
            faults.append(message.text)

    def hear_dialog(dialog: Dialog) -> None:
        faults.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", hear)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", hear_dialog)
