"""Whether everybody can use the page: axe, what a screen reader hears, keyboard, fingers, narrow screens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.fake_chat_server import FakeChat

pytest_plugins = ["tests.web_fixtures"]
pytestmark = pytest.mark.browser

OpenPage = Callable[..., Page]


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def violations(page: Page) -> list[str]:
    """What axe finds serious or critical, and where."""
    results: Any = Axe().run(page).response
    return [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in results["violations"]
        if violation["impact"] in {"serious", "critical"}
        for node in violation["nodes"]
    ]


def scenes(page: Page, chat: FakeChat) -> Iterator[str]:
    """Walks through what the page can look like, and names each state."""
    yield "greeting"
    chat.answer = lambda text: (["Gladly. For how many?"], {"alternatives": [{"text": "When?", "score": -1}]})
    say(page, "A table, please")
    page.get_by_role("button", name="1 alternative").click()
    page.get_by_role("button", name="Details").click()
    page.get_by_role("button", name="Bad reply").click()
    page.get_by_label("Your message").fill("😀" * 1990)
    yield "a rated reply with its details, and a draft near the limit"
    chat.held = True
    page.get_by_label("Your message").fill("")
    say(page, "For two")
    chat.stream("Two it is, ")
    expect(page.locator(".streaming .text")).to_have_text("Two it is, ")
    yield "a reply being made"
    page.keyboard.press("Escape")
    chat.errors = [{"code": "bad_message"}]
    say(page, "Refused")
    page.get_by_role("button", name="Try again").wait_for()
    chat.lose_connections(down=503)
    say(page, "Unsent")
    expect(page.locator(".waiting")).to_have_count(2)
    page.locator("#banner").wait_for()
    yield "no connection, a refused and an unsent message"
    page.get_by_role("button", name="Settings").click()
    yield "settings"
    page.keyboard.press("Escape")
    page.keyboard.press("Control+/")
    yield "shortcuts"
    page.keyboard.press("Escape")
    if page.get_by_role("button", name="Conversations", exact=True).is_visible():
        page.get_by_role("button", name="Conversations", exact=True).click()
        yield "drawer"


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page: OpenPage, chat: FakeChat, theme: str, phone: bool) -> None:
    page = open_page(phone=phone, color_scheme=theme)
    found = {scene: violations(page) for scene in scenes(page, chat)}
    assert len(found) >= 6
    assert {scene: problems for scene, problems in found.items() if problems} == {}


# What a screen reader hears

LISTEN: Final = """() => {
  // Counts what assistive technology would be told: changes inside live regions that are not switched off.
  window.heard = [];
  const live = (node) => {
    const element = node.nodeType === 1 ? node : node.parentElement;
    const region = element?.closest("[aria-live], [role=status], [role=log]");
    return region && region.getAttribute("aria-live") !== "off";
  };
  new MutationObserver((changes) => {
    for (const { target, addedNodes } of changes) {
      if (!live(target)) continue;
      for (const node of [...addedNodes].filter(live)) {
        window.heard.push(node.querySelector?.(".text")?.textContent ?? node.textContent);
      }
    }
  }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


def test_a_streamed_reply_is_announced_once_when_it_is_whole(page: Page, chat: FakeChat) -> None:
    say(page, "Hi")
    expect(page.locator(".bot .text")).to_have_count(2)  # one in the log, one for the reply being made
    page.evaluate(LISTEN)
    chat.held = True
    say(page, "Tell me a long story")
    streaming = page.locator("#streaming")
    expect(streaming).to_have_attribute("aria-busy", "true")
    words = [f"word{number} " for number in range(150)]
    for word in words:
        chat.stream(word)
    expect(streaming.locator(".text")).to_contain_text("word149")
    assert page.evaluate("() => heard") == ["Tell me a long story"]
    chat.finish()
    expect(streaming).to_have_attribute("aria-busy", "false")
    assert page.evaluate("() => heard") == ["Tell me a long story", "".join(words)]


def test_the_log_is_a_polite_live_region_and_what_belongs_to_a_message_is_not(page: Page) -> None:
    say(page, "Hi")
    log = page.get_by_role("log")
    expect(log).to_have_attribute("aria-live", "polite")
    expect(log.locator(".actions")).to_have_attribute("aria-live", "off")
    page.evaluate(LISTEN)
    page.get_by_role("button", name="Good reply").click()
    page.get_by_role("button", name="Details").click()
    page.get_by_role("button", name="No, thanks").click()
    assert page.evaluate("() => heard") == []


def test_old_messages_are_not_read_out_when_a_conversation_is_opened(page: Page) -> None:
    say(page, "About boats")
    expect(page.locator("[role=log] .bot")).to_have_count(1)
    page.get_by_role("link", name="New chat").click()
    expect(page.locator("#welcome")).to_be_visible()
    page.evaluate(LISTEN)
    page.get_by_role("link", name="About boats").click()
    expect(page.locator("[role=log] .bot")).to_have_count(1)
    assert [text for text in page.evaluate("() => heard") if "boats" in text] == []


def test_the_state_of_the_connection_is_announced_without_its_countdown(page: Page, chat: FakeChat) -> None:
    page.evaluate(LISTEN)
    chat.lose_connections(down=503)
    expect(page.locator("#banner-countdown")).to_contain_text("Next try in")
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#banner")).to_contain_text("Reconnecting…")
    assert page.evaluate("() => heard") == ["Reconnecting…"]
    expect(page.locator("#banner-countdown")).to_have_attribute("aria-hidden", "true")


def test_speakers_are_named_for_those_who_do_not_see_where_a_message_stands(page: Page) -> None:
    say(page, "Hi")
    articles = page.get_by_role("log").get_by_role("article")
    expect(articles).to_have_count(2)
    expect(articles.first).to_contain_text("You said:")
    expect(articles.last).to_contain_text("Turnwise said:")


def test_landmarks_and_headings_give_the_page_its_shape(page: Page) -> None:
    for role in ("banner", "navigation", "main"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    expect(page.get_by_role("region", name="Messages")).to_have_count(1)


# Keyboard, fingers, narrow screens


def test_the_page_is_used_by_keyboard_alone(page: Page, chat: FakeChat) -> None:
    page.get_by_role("button", name="Ask for a person").press("Tab")  # the last one on the page
    page.evaluate("() => document.activeElement.blur()")
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(page.evaluate("() => document.activeElement.id"))
    assert order[:6] == ["skip", "theme", "open-settings", "open-help", "new-chat", "scroller"]
    page.evaluate("() => document.getElementById('skip').focus()")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    expect(page.locator("[role=log] .bot")).to_have_count(1)
    assert chat.said() == ["Hi"]


def test_focus_is_visible_wherever_it_goes(page: Page) -> None:
    say(page, "Hi")
    page.get_by_role("button", name="Good reply").wait_for()
    outline = """() => {
      const node = document.activeElement;
      const style = getComputedStyle(node.id === "text" ? node.form : node);
      const outlined = parseFloat(style.outlineWidth) > 0 && style.outlineStyle !== "none";
      return outlined || style.boxShadow.includes("1px");
    }"""
    for _ in range(12):
        page.keyboard.press("Tab")
        name = page.evaluate("() => document.activeElement.outerHTML.slice(0, 90)")
        assert page.evaluate(outline) or name.startswith("<body"), name


def test_a_button_that_goes_when_it_is_used_leaves_the_focus_in_the_message_box(
    page: Page, chat: FakeChat
) -> None:
    box = page.get_by_label("Your message")

    def use(name: str) -> None:
        page.get_by_role("button", name=name).press("Enter")
        expect(box).to_be_focused()

    chat.answer = lambda text: (["line\n" * 60], {})
    chat.errors = [{"code": "bad_option", "field": "temperature"}]
    say(page, "Hi")
    use("Try again")
    expect(page.locator("[role=log] .bot")).to_have_count(1)
    page.locator("#scroller").evaluate("(scroller) => { scroller.scrollTop = 0; }")
    use("Latest message")
    say(page, "x" * 2001)
    use("Dismiss")
    chat.lose_connections(down=503)
    use("Try now")


def test_resetting_the_settings_leaves_the_focus_in_their_panel(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("radio", name="Greedy").check()
    page.get_by_role("button", name="Reset to defaults").press("Enter")
    expect(page.get_by_role("button", name="Done")).to_be_focused()


SMALL: Final = """() => [...document.querySelectorAll("button, a, input, textarea, summary")]
  .filter((node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest("[inert]"))
  .filter((node) => node.type !== "radio" && node.id !== "skip")
  .map((node) => [node.id || node.ariaLabel || node.textContent, node.getBoundingClientRect()])
  .filter(([, box]) => box.width < 43.5 || box.height < 43.5)
  .map(([name, box]) => `${name} ${box.width}x${box.height}`)"""


def test_everything_can_be_hit_with_a_finger(open_page: OpenPage, chat: FakeChat) -> None:
    page = open_page(phone=True)
    small = {scene: page.evaluate(SMALL) for scene in scenes(page, chat)}
    assert {scene: names for scene, names in small.items() if names} == {}


def test_a_narrow_screen_or_large_type_needs_no_sideways_scrolling(
    open_page: OpenPage, chat: FakeChat
) -> None:
    page = open_page(viewport={"width": 320, "height": 640})
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    clipped = "() => [scroller, settings].filter((node) => node.scrollWidth > node.clientWidth).length"
    for scene in scenes(page, chat):
        assert (page.evaluate(wide), page.evaluate(clipped)) == (0, 0), scene


def test_the_whole_conversation_is_printed_and_nothing_to_click(open_page: OpenPage, chat: FakeChat) -> None:
    page = open_page(color_scheme="dark")
    chat.answer = lambda text: (["line\n" * 60], {})
    say(page, "Hi")
    expect(page.locator("[role=log] .bot")).to_have_count(1)
    page.emulate_media(media="print")
    assert page.evaluate("() => scroller.scrollHeight === scroller.clientHeight")
    assert page.evaluate("() => document.documentElement.scrollHeight > 1500")
    assert page.evaluate("() => getComputedStyle(document.body).color") == "rgb(29, 36, 33)"
    expect(page.get_by_role("log").get_by_text("Hi", exact=True)).to_be_visible()
    for clicked in (page.get_by_role("button"), page.get_by_role("link"), page.get_by_role("textbox")):
        expect(clicked).to_have_count(0)


def test_forced_colors_leave_a_rating_the_open_chat_and_a_growing_reply_to_be_seen(
    open_page: OpenPage, chat: FakeChat
) -> None:
    page = open_page(forced_colors="active")
    say(page, "Hi")
    page.get_by_role("button", name="Good reply").click()
    chat.held = True
    say(page, "More")
    page.locator(".dots").wait_for()
    shade = "(node) => getComputedStyle(node).backgroundColor"
    ground = page.locator("html").evaluate(shade)
    for name in ("[aria-pressed=true]", ".conversations [aria-current]", ".dots span", ".presence .dot"):
        color = page.locator(name).first.evaluate(shade)
        assert color not in (ground, "rgba(0, 0, 0, 0)"), name


def test_those_who_want_no_motion_get_none(open_page: OpenPage, chat: FakeChat) -> None:
    page = open_page(reduced_motion="reduce")
    chat.held = True
    say(page, "Hi")
    page.locator(".dots").wait_for()
    moving = "() => document.getAnimations().filter((one) => one.playState === 'running').length"
    expect(page.locator(".streaming")).to_be_visible()
    page.wait_for_function(f"() => ({moving})() === 0")
