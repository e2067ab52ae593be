"""The chat page against the real server: a process with a model and a database, killed and started again."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from server import database
from tests.live_server import ServerProcess, server_process

pytest_plugins = ["tests.web_fixtures"]
pytestmark = pytest.mark.browser

LONGEST = '{"max_tokens": 256}'
"""Settings under which the untrained model talks as long as it may: time enough to be interrupted."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    where = f"sqlite:///{tmp_path}/chat.db"
    database.upgrade(where)
    return where


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[str]:
    """One server for the tests that leave it running."""
    where = f"sqlite:///{tmp_path_factory.mktemp('web')}/chat.db"
    database.upgrade(where)
    with server_process(where, tiny_model_dir) as server:
        yield server.address


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def texts(page: Page) -> list[str]:
    return page.locator("[role=log] article > .text, [role=log] .empty").all_text_contents()


def replied(page: Page, times: int) -> None:
    expect(page.locator("[role=log] .bot")).to_have_count(times, timeout=20_000)
    expect(page.locator(".waiting")).to_have_count(0)
    expect(page.locator("#streaming")).to_be_hidden()


def test_a_conversation_and_its_reload(page: Page, address: str) -> None:
    page.goto(address)
    say(page, "Hello!")
    replied(page, 1)
    say(page, "A latte, please. <b>Now</b>")
    replied(page, 2)
    before = texts(page)
    assert [before[0], before[2]] == ["Hello!", "A latte, please. <b>Now</b>"]
    page.get_by_role("button", name="Details").last.click()
    expect(page.locator(".facts").last).to_contain_text(re.compile(r"tw-[0-9a-f]{16}"))
    page.reload()
    replied(page, 2)
    assert texts(page) == before
    expect(page.locator(".conversations a")).to_have_text(["Hello!"])


def test_another_reply_a_rating_and_alternatives(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("radio", name="Beam search").check()
    page.get_by_role("button", name="Done").click()
    say(page, "Hello!")
    replied(page, 1)
    expect(page.get_by_role("button", name=re.compile("alternative"))).to_be_visible()
    page.get_by_role("button", name="Another reply").click()
    expect(page.get_by_role("button", name="1 earlier reply")).to_be_visible()
    replied(page, 1)
    page.get_by_role("button", name="Bad reply").click()
    page.get_by_label("What was wrong?").fill("It is nonsense.")
    page.keyboard.press("Enter")
    page.reload()
    expect(page.get_by_role("button", name="Bad reply")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="1 earlier reply")).to_be_visible()


def stop_in_mid_reply(page: Page, server: ServerProcess) -> list[str]:
    """Freezes the server while a reply grows; what was said until that succeeded."""
    for number in range(1, 10):
        say(page, f"Tell me more, {number}")
        page.wait_for_function("() => document.querySelector('.streaming .text').textContent !== ''")
        server.process.send_signal(signal.SIGSTOP)
        if page.locator("[role=log] .bot").count() == number:
            return [f"Tell me more, {said}" for said in range(1, number + 1)]
        server.process.send_signal(signal.SIGCONT)
        replied(page, number + 1)
    pytest.fail("the model is too fast to be interrupted")


def test_a_server_killed_in_mid_reply_loses_nothing_and_doubles_nothing(
    page: Page, url: str, tiny_model_dir: Path
) -> None:
    with server_process(url, tiny_model_dir) as first:
        page.goto(first.address)
        page.evaluate("(kept) => localStorage.setItem('turnwise.settings', kept)", LONGEST)
        page.reload()
        say(page, "Hello!")
        replied(page, 1)
        asked = stop_in_mid_reply(page, first)
        first.kill()
        page.locator("#banner").wait_for()
        expect(page.locator("[role=log] .bot")).to_have_count(len(asked))
        say(page, "And more")
        expect(page.locator(".waiting .status")).to_have_text("Waiting for the connection")
        port = urlsplit(first.address).port
    with server_process(url, tiny_model_dir, "--port", str(port)):
        replied(page, len(asked) + 2)
        kept = texts(page)
        assert kept[::2] == ["Hello!", *asked, "And more"]
        page.reload()
        replied(page, len(asked) + 2)
        assert texts(page) == kept


def test_a_server_that_is_stopped_and_started_again_is_found_again(
    page: Page, url: str, tiny_model_dir: Path
) -> None:
    with server_process(url, tiny_model_dir) as first:
        page.goto(first.address)
        say(page, "Hello!")
        replied(page, 1)
        assert first.terminate() == 0
        page.locator("#banner").wait_for()
        port = urlsplit(first.address).port
    say(page, "Still there?")
    with server_process(url, tiny_model_dir, "--port", str(port)):
        replied(page, 2)
        assert texts(page)[::2] == ["Hello!", "Still there?"]
        expect(page.locator("#banner")).to_be_hidden()


def test_a_stranger_does_not_get_in_by_the_address(
    page: Page, address: str, new_context: Callable[..., BrowserContext]
) -> None:
    page.goto(address)
    say(page, "My secret")
    replied(page, 1)
    stranger = new_context().new_page()
    stranger.goto(page.url)
    stranger.locator("#presence[data-phase=ready]").wait_for()
    expect(stranger.locator(".notice")).to_contain_text("no longer available")
    assert texts(stranger) == []
