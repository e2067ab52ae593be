"""Whether everybody can use the console: axe, keyboard, fingers, narrow screens, no motion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.fake_console import FakeConsole, generation, refusal
from tests.test_web_console import TALK, box, options, replies, rows, titles

pytest_plugins = ["tests.console_web_fixtures"]
pytestmark = pytest.mark.browser

OpenConsole = Callable[..., Page]


def violations(page: Page) -> list[str]:
    results: Any = Axe().run(page).response
    return [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in results["violations"]
        if violation["impact"] in {"serious", "critical"}
        for node in violation["nodes"]
    ]


def furnish(console: FakeConsole) -> None:
    for number in range(8):
        console.add([("visitor", f"Question {number}"), ("bot", f"Answer {number}")])
    console.add(TALK, id="talk", waiting_since=console.began.isoformat(), confidence=0.3, thumbs_down=True)
    messages = console.messages["talk"]
    messages[3].update(rating="down", comment="No taxi!")
    messages[3]["generation"] = generation(messages[3]["text"], 0.05)
    messages[3]["verdict"] = {"verdict": "bad", "labels": ["Rude"], "corrected": "A table.", "note": "Hm"}
    messages[1]["verdict"] = {"verdict": "good", "labels": [], "corrected": None, "note": None}
    messages.insert(1, {**messages[1], "id": "old", "superseded": True, "verdict": None})
    console.queue = [("talk", "thumbs_down")]


def scenes(page: Page, console: FakeConsole) -> Iterator[str]:
    """Walks through what the console can look like, and names each state."""
    expect(rows(page)).to_have_count(9)
    yield "inbox"
    page.get_by_role("button", name="Filters").click()
    yield "filters"
    page.goto(f"{console.address}/operator/inbox/talk")
    expect(replies(page)).to_have_count(2)
    page.locator(".earlier summary").click()
    yield "conversation"
    if page.locator(".turn.selected .why").is_visible():
        page.locator(".turn.selected .why").click()
    page.locator(".attention-word").nth(1).click()
    page.get_by_text("Word by word").click()
    page.get_by_text("Decoding options").click()
    yield "explanation"
    if page.locator(".close-panel").is_visible():
        page.locator(".close-panel").click()
    page.locator(".turn.selected").get_by_role("button", name="Correct").click()
    page.get_by_label("What should have been said").fill("I have booked a table.")
    expect(page.locator(".difference ins")).to_be_visible()
    yield "correction"
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Take over").click()
    expect(options(page)).to_have_count(2)
    yield "suggestions"
    box(page).fill("/")
    expect(options(page)).to_have_count(2)
    yield "canned replies"
    console.answers["/conversations/talk/messages"] = lambda _: refusal(503, "unavailable", "not now")
    box(page).fill("Unsent")
    page.keyboard.press("Enter")
    expect(page.locator(".pending-words")).to_contain_text("Not sent")
    page.get_by_role("button", name="Hand back").click()
    expect(page.get_by_role("button", name="Take over")).to_be_visible()
    page.goto(f"{console.address}/operator/review")
    expect(replies(page)).to_have_count(2)
    yield "review"
    page.locator("#account").click()
    yield "account"
    page.keyboard.press("Escape")
    if page.locator("#open-help").is_visible():
        page.locator("#open-help").click()
        yield "shortcuts"


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    open_console: OpenConsole, console: FakeConsole, theme: str, phone: bool
) -> None:
    furnish(console)
    page = open_console(phone=phone, color_scheme=theme)
    found = {scene: violations(page) for scene in scenes(page, console)}
    assert len(found) >= 9
    assert {scene: problems for scene, problems in found.items() if problems} == {}


SMALL: Final = """(least) => [...document.querySelectorAll("button, a, input, textarea, select, summary, li")]
  .filter((node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest("[inert]"))
  .filter((node) => !["checkbox", "radio"].includes(node.type) && node.id !== "skip")
  .filter((node) => node.tagName !== "LI" || node.role === "option")
  .map((node) => [node.id || node.ariaLabel || node.textContent, node.getBoundingClientRect()])
  .filter(([, box]) => box.width < least || box.height < least)
  .map(([name, box]) => `${name} ${box.width}x${box.height}`)"""


@pytest.mark.parametrize(("phone", "least"), [(True, 43.5), (False, 24)], ids=["finger", "pointer"])
def test_everything_can_be_hit(
    open_console: OpenConsole, console: FakeConsole, phone: bool, least: float
) -> None:
    furnish(console)
    page = open_console(phone=phone)
    small = {scene: page.evaluate(SMALL, least) for scene in scenes(page, console)}
    assert {scene: names for scene, names in small.items() if names} == {}


def test_a_narrow_screen_needs_no_sideways_scrolling(open_console: OpenConsole, console: FakeConsole) -> None:
    furnish(console)
    console.messages["talk"][0]["text"] = "x" * 900
    page = open_console(viewport={"width": 320, "height": 640})
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    clipped = """() => [...document.querySelectorAll(".turns-scroller, .list-scroller, .explanation-body")]
      .filter((node) => node.checkVisibility() && node.scrollWidth > node.clientWidth).length"""
    for scene in scenes(page, console):
        assert (page.evaluate(wide), page.evaluate(clipped)) == (0, 0), scene


def test_a_phone_shows_one_thing_at_a_time_and_finds_back(
    open_console: OpenConsole, console: FakeConsole
) -> None:
    furnish(console)
    page = open_console(phone=True)
    titles(page).first.click()
    expect(page.locator(".inbox-side")).to_be_hidden()
    expect(page.locator(".conversation-title h2")).to_be_focused()
    page.get_by_role("button", name="Back to the list").click()
    expect(page.locator(".inbox-side")).to_be_visible()
    expect(rows(page).first).to_be_focused()


@pytest.mark.parametrize("draft", ["", "One line\nand another\nand a third"], ids=["empty", "draft"])
def test_the_message_box_of_a_phone_shows_all_its_words(
    open_console: OpenConsole, console: FakeConsole, draft: str
) -> None:
    furnish(console)
    page = open_console("/operator/inbox/talk", phone=True)
    page.get_by_role("button", name="Take over").click()
    page.get_by_label("Your message to the visitor").fill(draft)
    page.reload()
    box = page.get_by_label("Your message to the visitor")
    expect(box).to_have_value(draft)
    expect(box).to_be_visible()
    assert box.evaluate("(box) => box.scrollHeight - box.clientHeight") <= 2


def test_landmarks_headings_and_skip_link_give_the_page_its_shape(
    open_console: OpenConsole, console: FakeConsole
) -> None:
    console.add(TALK, id="talk")
    talk = open_console("/operator/inbox/talk")
    expect(talk.locator(".turns > .turn")).to_have_count(4)
    for role in ("banner", "main"):
        expect(talk.get_by_role(role)).to_have_count(1)
    expect(talk.get_by_role("navigation", name="Views")).to_have_count(1)
    expect(talk.get_by_role("heading", level=1)).to_have_count(1)
    talk.evaluate("() => document.getElementById('skip').focus()")
    talk.keyboard.press("Enter")
    expect(talk.locator("#view")).to_be_focused()
    talk.get_by_role("link", name="Review").click()
    expect(talk.locator("#view")).to_be_focused()
    expect(talk.get_by_role("link", name="Review")).to_have_attribute("aria-current", "page")


def test_those_who_want_no_motion_get_none(open_console: OpenConsole, console: FakeConsole) -> None:
    console.add(TALK, id="talk")
    page = open_console("/operator/inbox/talk", reduced_motion="reduce")
    while not console.listening("talk"):
        page.wait_for_timeout(50)
    while not page.locator(".live-reply").is_visible():  # what is fetched at the stream's opening may hide it
        console.tell("talk", "delta", {"reply": "r", "offset": 0, "text": "Hm"})
        page.wait_for_timeout(100)
    # What is turned off ends after a hundredth of a millisecond, and may be caught before that.
    moving = "({playState, effect}) => playState === 'running' && effect.getComputedTiming().endTime > 1"
    assert page.evaluate(f"document.getAnimations().filter({moving}).length") == 0
