"""The operators' console in a real Chromium, against a scripted API."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Locator, Page, expect
from starlette.responses import Response

from server.console.pages import WEB
from server.http import WEB as SHARED
from tests.fake_console import FakeConsole, generation, refusal
from tests.test_web_chat import HOSTILE

pytest_plugins = ["tests.console_web_fixtures"]

browser = pytest.mark.browser
OpenConsole = Callable[..., Page]

PAGE: Final = (WEB / "index.html").read_text()
SCRIPTS: Final = sorted(WEB.rglob("*.js"))
STYLES: Final = sorted(WEB.rglob("*.css"))

# The files


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in (WEB / "index.html", *SCRIPTS, *STYLES):
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", path.read_text()))
        assert addresses <= {"http://www.w3.org"}, path.name  # a namespace, never fetched


def test_every_file_that_is_named_is_there_and_none_lies_around_unused() -> None:
    texts = [PAGE, *(path.read_text() for path in (*SCRIPTS, *STYLES))]
    named = {name for text in texts for name in re.findall(r"/operator/static/([\w./-]+\.\w+)", text)}
    shared = {name for text in texts for name in re.findall(r'"/static/([\w.-]+\.\w+)', text)}
    imported = {
        (path.parent / name).resolve().relative_to(WEB).as_posix()
        for path in SCRIPTS
        for name in re.findall(r'(?:from |import\()"(\.[\w./-]+)"', path.read_text())
    }
    assert {name for name in named | imported if not (WEB / name).is_file()} == set()
    assert {name for name in shared if not (SHARED / name).is_file()} == set()
    there = {path.relative_to(WEB).as_posix() for path in WEB.rglob("*") if path.is_file()}
    assert there - named - imported == {"index.html"}


def test_nothing_in_the_page_is_inline() -> None:
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", PAGE) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(WEB).as_posix())
def test_scripts_have_no_way_to_write_markup(path: Path) -> None:
    markup = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    )
    code = r"\beval\b|new Function|setAttribute\(\"style\"|javascript:|\bstyle:"
    assert re.findall(f"{markup}|{code}", path.read_text()) == []


def test_every_element_the_scripts_ask_for_is_in_the_page() -> None:
    asked = {name for path in SCRIPTS for name in re.findall(r'byId\("([\w-]+)"\)', path.read_text())}
    assert asked - set(re.findall(r'\bid="([\w-]+)"', PAGE)) == set()


def test_every_icon_that_is_asked_for_is_drawn() -> None:
    texts = "\n".join(path.read_text() for path in SCRIPTS)
    asks = r'\bicon\("([\w-]+)"|iconButton\("([\w-]+)"|picture: "([\w-]+)"|icon: "([\w-]+)"'
    asked = {name for names in re.findall(asks, texts) for name in names if name}
    drawn = set(re.findall(r'<symbol id="([\w-]+)"', (WEB / "icons.svg").read_text()))
    assert len(asked) > 10
    assert asked - drawn == set()


# Pieces by themselves


def with_module(page: Page, name: str, script: str, value: Any = None) -> Any:
    source = f"async (value) => {{ const module = await import('/operator/static/{name}'); {script} }}"
    return page.evaluate(source, value)


@pytest.fixture
def inbox(open_console: OpenConsole, console: FakeConsole) -> Page:
    console.add([("visitor", "Hello"), ("bot", "Good day")])
    page = open_console()
    rows(page).first.wait_for()
    return page


def diff(page: Page, pairs: list[tuple[str, str]]) -> list[list[dict[str, str]]]:
    found: list[list[dict[str, str]]] = with_module(
        page, "conversation/diff.js", "return value.map(([one, other]) => module.diff(one, other));", pairs
    )
    return found


@browser
def test_a_diff_holds_both_texts_and_is_short(inbox: Page) -> None:
    chance = random.Random(7)
    words = ["a", "table", "taxi", "for", "two", ",", "été", "😀", "日本語", "\n", "  "]

    def text() -> str:
        return " ".join(chance.choices(words, k=chance.randrange(12)))

    pairs = [(text(), text()) for _ in range(300)]
    pairs.append(("x " * 3000, "y " * 3000))  # too long for the table
    for (before, after), pieces in zip(pairs, diff(inbox, pairs), strict=True):
        assert "".join(piece["text"] for piece in pieces if piece["kind"] != "added") == before
        assert "".join(piece["text"] for piece in pieces if piece["kind"] != "removed") == after
    [pieces] = diff(inbox, [("I have booked a taxi for two.", "I have booked a nice table for two.")])
    assert [(piece["kind"], piece["text"]) for piece in pieces] == [
        ("same", "I have booked a "),
        ("removed", "taxi"),
        ("added", "nice table"),
        ("same", " for two."),
    ]


@browser
def test_a_reply_is_shaded_only_where_its_tokens_make_it_up(inbox: Page) -> None:
    script = (
        "return value.map(([text, tokens]) => module.piecesOf(text, tokens)?.map(({text}) => text) ?? null);"
    )
    tokens = [{"text": " Hel", "logprob": -1}, {"text": "lo ", "logprob": -2}, {"text": " ", "logprob": 0}]
    cases = [
        ["Hello", tokens],
        ["Hello ", tokens],
        ["[name]", tokens],
        ["Hello", None],
        ["Hello you", tokens],
    ]
    found = with_module(inbox, "conversation/sureness.js", script, cases)
    assert found == [["Hel", "lo"], ["Hel", "lo "], None, None, None]


@browser
def test_places_of_a_canned_reply_are_found_one_after_another(inbox: Page) -> None:
    script = "return [module.placesIn(value).map(({name}) => name), module.nextPlace(value, 9).name];"
    text = "Hi {name}, {your name} here. {} {a\nb}"
    assert with_module(inbox, "takeover/placeholders.js", script, text) == [
        ["name", "your name"],
        "your name",
    ]


@browser
def test_a_reply_in_the_making_follows_its_pieces(inbox: Page) -> None:
    script = "const one = new module.LiveReply(); value.forEach((each) => one.add(each)); return one.text;"
    pieces = [("r1", 0, "Old"), ("r2", 0, "Hi 😀"), ("r2", 4, " you"), ("r2", 99, "gap"), ("r2", 8, "!")]
    told = [{"reply": reply, "offset": offset, "text": text} for reply, offset, text in pieces]
    assert with_module(inbox, "conversation/live_reply.js", script, told) == "Hi 😀 you!"
    masked = [*told, {"reply": "r2", "offset": 0, "text": "Hi [name]"}]
    assert with_module(inbox, "conversation/live_reply.js", script, masked) == "Hi [name]"


# The inbox


def rows(page: Page) -> Locator:
    return page.locator(".rows a.inbox-row")


def titles(page: Page) -> Locator:
    return page.locator(".rows .row-title")


def chip(page: Page, words: str) -> Locator:
    return page.get_by_role("group", name="Show").get_by_role("button", name=words)


@browser
def test_the_inbox_lists_conversations_newest_first_with_what_matters(
    open_console: OpenConsole, console: FakeConsole
) -> None:
    console.add([("visitor", "Older"), ("bot", "Yes")])
    console.add(
        [("visitor", "Newer"), ("bot", "Hm")],
        waiting_since=console.began.isoformat(),
        thumbs_down=True,
        confidence=0.2,
    )
    page = open_console()
    expect(titles(page)).to_have_text(["Newer", "Older"])
    expect(rows(page).first).to_contain_text("Waiting")
    expect(rows(page).first).to_contain_text("Thumbs down")
    expect(rows(page).first).to_contain_text("20 % sure")
    expect(page).to_have_title("(1) Inbox · Turnwise")
    expect(chip(page, "Waiting")).to_have_text("Waiting1")
    expect(page.locator("#rail .badge").first).to_have_text("1")
    expect(page.locator(".no-conversation")).to_be_visible()


@browser
def test_the_list_follows_what_happens(inbox: Page, console: FakeConsole) -> None:
    expect(inbox.locator("#live")).to_have_attribute("data-phase", "live")
    older = next(iter(console.conversations))
    new = console.add([("visitor", "A new one")])
    console.changed(new)
    expect(titles(inbox)).to_have_text(["A new one", "Hello"])
    console.says(older, "visitor", "Are you there?")
    expect(titles(inbox)).to_have_text(["Hello", "A new one"])
    expect(inbox.locator(".row-preview").first).to_have_text("Are you there?")
    console.conversations[new]["closed_at"] = console.began.isoformat()
    console.changed(new, "closed")
    expect(titles(inbox)).to_have_text(["Hello"])


@browser
def test_a_lost_stream_comes_back_and_fetches_what_was_missed(inbox: Page, console: FakeConsole) -> None:
    expect(inbox.locator("#live")).to_have_attribute("data-phase", "live")
    console.add([("visitor", "Missed")])
    console.end_streams()
    expect(titles(inbox)).to_have_text(["Missed", "Hello"])
    expect(inbox.locator("#live")).to_have_attribute("data-phase", "live")


@browser
def test_filters_are_in_the_address_and_in_the_history(
    open_console: OpenConsole, console: FakeConsole
) -> None:
    console.add([("visitor", "Happy"), ("bot", "Yes")])
    console.add([("visitor", "Cross"), ("bot", "No")], thumbs_down=True)
    page = open_console()
    chip(page, "Thumbs down").click()
    expect(titles(page)).to_have_text(["Cross"])
    expect(page).to_have_url(re.compile(r"/operator/inbox\?state=all&rating=down$"))
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Verdict").select_option("good")
    expect(page.locator(".list-state")).to_have_text("No conversation fits these filters.")
    expect(page.get_by_role("button", name="Filters (1)")).to_be_visible()
    page.go_back()
    expect(titles(page)).to_have_text(["Cross"])
    expect(page.get_by_label("Verdict")).to_have_value("")
    page.go_back()
    expect(titles(page)).to_have_text(["Cross", "Happy"])
    expect(chip(page, "All open")).to_have_attribute("aria-pressed", "true")
    page.goto(f"{console.address}/operator/inbox?state=all&rating=down&q=cr&nonsense=1")
    expect(titles(page)).to_have_text(["Cross"])
    expect(page.get_by_role("searchbox")).to_have_value("cr")
    days = page.evaluate("() => new Date('2026-01-06T00:00:00').toISOString()")
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Until").fill("2026-01-05")
    page.get_by_label("Until").dispatch_event("change")
    assert f"to={days.replace(':', '%3A')}" in page.url
    expect(page.get_by_label("Until")).to_have_value("2026-01-05")


@browser
def test_every_filter_is_chosen_seen_and_cleared(open_console: OpenConsole, console: FakeConsole) -> None:
    console.add([("visitor", "Done with"), ("bot", "Yes")], closed_at=console.began.isoformat())
    console.add([("visitor", "Going on"), ("bot", "No")])
    page = open_console()
    page.get_by_role("button", name="Filters").click()
    page.locator("#filter-state").select_option("closed")
    expect(titles(page)).to_have_text(["Done with"])
    for label, value in (("Reviewed", "false"), ("The visitor's thumb", "up"), ("Topic", "3")):
        field = page.get_by_label(label)
        if label == "Topic":
            field.fill(value)
            field.dispatch_event("change")
        else:
            field.select_option(value)
    expect(page).to_have_url(re.compile(r"state=closed&reviewed=false&rating=up&cluster=3$"))
    expect(page.get_by_role("button", name="Filters (4)")).to_be_visible()
    page.reload()
    page.get_by_role("button", name="Filters (4)").click()
    expect(page.get_by_label("The visitor's thumb")).to_have_value("up")
    page.get_by_role("button", name="Clear").click()
    expect(titles(page)).to_have_text(["Going on"])
    expect(chip(page, "All open")).to_have_attribute("aria-pressed", "true")
    chip(page, "Thumbs down").click()
    expect(page.get_by_role("button", name="Filters", exact=True)).to_be_visible()


@browser
def test_a_search_waits_for_the_end_of_typing(open_console: OpenConsole, console: FakeConsole) -> None:
    console.add([("visitor", "A red car")])
    console.add([("visitor", "A blue car")])
    page = open_console()
    expect(titles(page)).to_have_count(2)
    before = len(console.told("GET", "/conversations"))
    page.keyboard.press("/")
    page.keyboard.type("red", delay=20)
    expect(titles(page)).to_have_text(["A red car"])
    assert len(console.told("GET", "/conversations")) == before + 1
    expect(page.locator("#announcer")).to_have_text("1 conversation")
    page.keyboard.press("Escape")
    expect(titles(page)).to_have_count(2)


@browser
def test_a_late_answer_to_an_earlier_search_is_not_shown(
    open_console: OpenConsole, console: FakeConsole
) -> None:
    console.add([("visitor", "A red car")])
    console.add([("visitor", "A blue car")])
    page = open_console()
    expect(titles(page)).to_have_count(2)
    console.delays["/conversations"] = 0.8
    search = page.get_by_role("searchbox")
    search.fill("red")
    search.press("Enter")
    console.delays.clear()
    search.fill("blue")
    search.press("Enter")
    expect(titles(page)).to_have_text(["A blue car"])
    page.wait_for_timeout(900)  # by now the first answer would have come
    expect(titles(page)).to_have_text(["A blue car"])


@browser
def test_the_list_goes_on_as_one_scrolls(open_console: OpenConsole, console: FakeConsole) -> None:
    for number in range(120):
        console.add([("visitor", f"Number {number}")])
    page = open_console()
    expect(titles(page).first).to_have_text("Number 119")
    for _ in range(3):
        page.locator(".list-scroller").evaluate("(node) => { node.scrollTop = node.scrollHeight; }")
        page.wait_for_timeout(300)
    expect(titles(page)).to_have_count(120)
    names = titles(page).all_text_contents()
    assert names == [f"Number {number}" for number in reversed(range(120))]


@browser
def test_the_inbox_is_walked_by_keyboard(open_console: OpenConsole, console: FakeConsole) -> None:
    for number in range(3):
        console.add([("visitor", f"Number {number}"), ("bot", f"Reply {number}")])
    page = open_console()
    expect(titles(page)).to_have_count(3)
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(rows(page).nth(1)).to_be_focused()
    page.keyboard.press("k")
    expect(rows(page).nth(0)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".conversation-title h2")).to_have_text("Number 2")
    expect(page.locator(".conversation-title h2")).to_be_focused()
    page.keyboard.press("j")
    expect(page.locator(".conversation-title h2")).to_have_text("Number 1")
    expect(page).to_have_url(re.compile(r"/operator/inbox/c0002$"))
    page.keyboard.press("Escape")
    expect(page.locator(".no-conversation")).to_be_visible()
    expect(rows(page).nth(1)).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Next conversation")
    page.get_by_label("Shortcuts of a single letter").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(rows(page).nth(1)).to_be_focused()


@browser
def test_errors_are_told_and_can_be_tried_again(open_console: OpenConsole, console: FakeConsole) -> None:
    console.add([("visitor", "Hello")])
    console.answers["/conversations"] = lambda _: refusal(503, "unavailable", "the database does not answer")
    page = open_console()
    expect(page.locator(".list-state")).to_have_text("The database does not answer.")
    console.answers.clear()
    page.get_by_role("button", name="Try again").click()
    expect(titles(page)).to_have_text(["Hello"])
    page.goto(f"{console.address}/operator/inbox/nowhere")
    expect(page.locator(".conversation-state")).to_have_text("This conversation is not there (any more).")


# A conversation


TALK: Final = [
    ("visitor", "A table for two, please"),
    ("bot", "When would you like to come?"),
    ("visitor", "At eight"),
    ("bot", "I have booked a taxi for two."),
]


@pytest.fixture
def talk(open_console: OpenConsole, console: FakeConsole) -> Page:
    console.add(TALK, id="talk")
    page = open_console("/operator/inbox/talk")
    expect(page.locator(".turns > .turn")).to_have_count(4)
    return page


def replies(page: Page) -> Locator:
    return page.locator(".turn.bot:not(.live-reply)")


def selected(page: Page) -> Locator:
    return page.locator(".turn.selected")


def verdict_path(number: int) -> str:
    return f"/messages/talk-m{number}/verdict"


@browser
def test_turns_show_who_spoke_and_what_was_replaced(open_console: OpenConsole, console: FakeConsole) -> None:
    console.add([*TALK, ("Ben", "I am a person")], id="talk")
    messages = console.messages["talk"]
    messages.insert(1, {**messages[1], "id": "old", "text": "What?", "superseded": True})
    messages[4].update(rating="down", comment="No taxi!")
    messages[4]["generation"] = generation(
        "Sorry, I am not sure.", 0.3, finish_reason="abstained", withheld="A taxi"
    )
    page = open_console("/operator/inbox/talk")
    whos = page.locator(".turns > .turn > .author .who")
    expect(whos).to_have_text(["Visitor", "Bot", "Visitor", "Bot", "Ben"])
    earlier = page.locator(".earlier")
    expect(earlier.locator("ol")).to_be_hidden()
    earlier.locator("summary").click()
    expect(earlier.locator("ol .text")).to_have_text("What?")
    expect(replies(page).nth(1)).to_contain_text("No taxi!")
    expect(replies(page).nth(1).locator(".withheld")).to_contain_text("A taxi")
    expect(replies(page).nth(1)).to_contain_text("30 % sure")


@browser
def test_words_are_shaded_by_how_sure_the_bot_was_and_numbered(talk: Page, console: FakeConsole) -> None:
    shades = replies(talk).last.locator(".bubble [class^=shade]")
    assert shades.count() > 2
    assert re.fullmatch(r"\d+ % likely", shades.first.get_attribute("title") or "")
    talk.locator(".explanation").get_by_text("Word by word").click()
    numbers = talk.locator(".likelihoods li")
    expect(numbers).to_have_count(7)
    expect(numbers.first).to_have_text(re.compile(r"^I\d+ %$"))
    talk.get_by_label("Shade words").uncheck()
    expect(shades).to_have_count(0)
    talk.reload()
    expect(replies(talk).last.locator(".bubble")).to_have_text("I have booked a taxi for two.")
    expect(shades).to_have_count(0)


@browser
def test_a_reply_is_explained(talk: Page, console: FakeConsole) -> None:
    panel = talk.locator(".explanation")
    expect(panel).to_contain_text("83 % sure that this will do")
    expect(panel).to_contain_text("I have booked a taxi for two. Indeed.")
    expect(panel).to_contain_text("9223372036854775807")
    expect(panel).to_contain_text("84 ms")
    expect(panel).to_contain_text("For how many people, and when?")
    expect(panel).to_contain_text("Verified")
    words = panel.locator(".attention-word")
    expect(words).to_have_count(7)
    words.nth(1).hover()
    looked = panel.locator(".attention-turn .look-5")
    expect(looked).to_have_text("table")
    expect(panel.locator(".attention-told")).to_contain_text("Most of all: table 60 %")
    words.nth(1).focus()
    talk.keyboard.press("ArrowRight")
    expect(looked).to_have_text("for")
    assert len(console.told("GET", "/messages/talk-m4/explanation")) == 1
    talk.locator(".turn.bot").first.click()
    expect(panel.locator(".attention-word")).to_have_count(6)


@browser
def test_an_explanation_that_fails_leaves_the_rest(open_console: OpenConsole, console: FakeConsole) -> None:
    console.add(TALK, id="talk")
    path = "/messages/talk-m4/explanation"
    console.answers[path] = lambda _: refusal(503, "unavailable", "the model is busy")
    page = open_console("/operator/inbox/talk")
    panel = page.locator(".explanation")
    expect(panel).to_contain_text("The model is busy.")
    expect(panel).to_contain_text("83 % sure")
    console.answers.clear()
    panel.get_by_role("button", name="Try again").click()
    expect(panel).to_contain_text("Verified")


# Verdicts


@browser
def test_replies_are_judged_by_keyboard(talk: Page, console: FakeConsole) -> None:
    talk.keyboard.press("p")
    expect(selected(talk)).to_have_attribute("data-message", "talk-m2")
    talk.keyboard.press("g")
    expect(selected(talk)).to_have_attribute("data-message", "talk-m4")  # the next without a verdict
    [good] = console.wait_for("PUT", verdict_path(2))
    assert good == {"verdict": "good", "labels": [], "corrected": None, "note": None}
    talk.keyboard.press("b")
    talk.keyboard.press("1")
    talk.keyboard.press("3")
    labels = selected(talk).get_by_role("group", name="What is bad about it")
    expect(labels.locator("[aria-pressed=true]")).to_have_text(["1Wrong fact", "3Rude"])
    talk.keyboard.press("1")
    expect(labels.locator("[aria-pressed=true]")).to_have_text(["3Rude"])
    expect(selected(talk).locator(".saving")).to_be_hidden()
    assert console.message("talk-m4")["verdict"]["labels"] == ["Rude"]
    talk.keyboard.press("u")
    expect(labels.locator("[aria-pressed=true]")).to_have_count(2)
    for _ in range(3):
        talk.keyboard.press("u")
    expect(selected(talk).get_by_role("button", name="Bad")).to_have_attribute("aria-pressed", "false")
    console.wait_for("DELETE", verdict_path(4))
    talk.keyboard.press("u")
    expect(selected(talk)).to_have_attribute("data-message", "talk-m2")
    console.wait_for("DELETE", verdict_path(2))


@browser
def test_a_reply_is_corrected_in_its_place(talk: Page, console: FakeConsole) -> None:
    talk.keyboard.press("c")
    field = talk.get_by_label("What should have been said")
    expect(field).to_be_focused()
    expect(field).to_have_value("I have booked a taxi for two.")
    expect(replies(talk).last.locator("> .bubble")).to_be_hidden()
    field.fill("I have booked a table for two.")
    expect(talk.locator(".difference del")).to_have_text("taxi")
    expect(talk.locator(".difference ins")).to_have_text("table")
    talk.keyboard.press("Control+Enter")
    expect(field).to_have_count(0)
    expect(talk.locator(".correction ins")).to_have_text("table")
    [said] = console.wait_for("PUT", verdict_path(4))
    assert said["verdict"] == "bad"
    assert said["corrected"] == "I have booked a table for two."
    talk.keyboard.press("m")
    talk.get_by_label("Note for the team").fill("Taxi?")
    talk.keyboard.press("Control+Enter")
    expect(talk.locator(".verdict .note")).to_contain_text("Taxi?")
    expect(talk.locator(".correction")).to_be_visible()
    talk.keyboard.press("c")
    talk.keyboard.type("!!")
    talk.keyboard.press("Escape")
    expect(talk.locator(".correction ins")).to_have_text("table")
    assert len(console.wait_for("PUT", verdict_path(4), 2)) == 2


@browser
def test_a_verdict_that_is_not_saved_is_taken_back_and_told(talk: Page, console: FakeConsole) -> None:
    console.delays[verdict_path(4)] = 0.4
    console.answers[verdict_path(4)] = lambda _: refusal(503, "unavailable", "the database does not answer")
    bad = replies(talk).last.get_by_role("button", name="Bad")
    bad.click()
    expect(bad).to_have_attribute("aria-pressed", "true")
    expect(replies(talk).last.locator(".saving")).to_be_visible()
    expect(bad).to_have_attribute("aria-pressed", "false")
    expect(talk.locator(".notice")).to_contain_text("The database does not answer.")
    assert console.message("talk-m4")["verdict"] is None


@browser
def test_words_that_were_not_saved_are_still_there(talk: Page, console: FakeConsole) -> None:
    console.answers[verdict_path(4)] = lambda _: refusal(503, "unavailable", "the database does not answer")
    for key, label, words in (
        ("c", "What should have been said", "No, none at all."),
        ("m", "Note for the team", "Ask Ben"),
    ):
        talk.keyboard.press(key)
        field = talk.get_by_label(label)
        field.fill(words)
        talk.keyboard.press("Control+Enter")
        expect(talk.locator(".notice").last).to_contain_text("The database does not answer.")
        expect(field).to_have_value(words)
    expect(talk.locator(".notice")).to_have_count(1)  # the same words are not piled up
    console.answers.clear()
    for label in ("What should have been said", "Note for the team"):
        talk.get_by_label(label).press("Control+Enter")
    expect(talk.locator(".saving:visible")).to_have_count(0)
    console.wait_for("PUT", verdict_path(4), 4)
    kept = console.told("PUT", verdict_path(4))[-1]
    assert (kept["corrected"], kept["note"]) == ("No, none at all.", "Ask Ben")


@browser
def test_what_is_decided_while_saving_is_sent_once_at_the_end(talk: Page, console: FakeConsole) -> None:
    console.delays[verdict_path(4)] = 0.5
    for key in "b1234":
        talk.keyboard.press(key)
    console.delays.clear()
    expect(selected(talk).locator(".saving")).to_be_hidden()
    bodies = console.told("PUT", verdict_path(4))
    assert [body["labels"] for body in bodies] == [
        [],
        ["Wrong fact", "Did not understand", "Rude", "Too long"],
    ]


@browser
def test_an_unsaved_correction_outlives_a_reload(talk: Page) -> None:
    talk.keyboard.press("c")
    talk.get_by_label("What should have been said").fill("Half a thought")
    talk.reload()
    expect(talk.locator(".turns > .turn")).to_have_count(4)
    expect(talk.get_by_label("What should have been said")).to_have_value("Half a thought")
    talk.keyboard.press("c")
    expect(talk.get_by_label("What should have been said")).to_be_focused()
    expect(talk.get_by_label("What should have been said")).to_have_value("Half a thought")


# Review


@pytest.fixture
def review(open_console: OpenConsole, console: FakeConsole) -> Page:
    for number in range(3):
        console.add([("visitor", f"Question {number}"), ("bot", f"Answer {number}")], id=f"r{number}")
    console.queue = [("r0", "low_confidence"), ("r1", "thumbs_down"), ("r2", "random")]
    page = open_console("/operator/review")
    expect(page.locator(".conversation-title h2")).to_have_text("Question 0")
    return page


@browser
def test_the_queue_is_worked_by_keyboard(review: Page, console: FakeConsole) -> None:
    title = review.locator(".conversation-title h2")
    expect(review.locator(".review-reason")).to_have_text("The bot was not sure")
    expect(review.locator(".progress")).to_contain_text("Waiting3")
    review.locator(".turn.selected").wait_for()
    review.keyboard.press("g")
    expect(review.locator("#announcer")).to_have_text(re.compile("All replies are judged"))
    review.keyboard.press("d")
    expect(title).to_have_text("Question 1")
    expect(review.locator(".progress")).to_contain_text("Yours today1")
    assert console.message("r0-m2")["verdict"]["verdict"] == "good"
    assert console.told("POST", "/review/next")[-1] == {"skip": ["r0"]}
    review.keyboard.press("s")
    expect(title).to_have_text("Question 2")
    console.wait_for("POST", "/conversations/r1/review/release")
    review.locator(".turn.selected").wait_for()
    review.keyboard.press("n")  # after the last reply, next is the next conversation
    expect(review.locator(".no-conversation")).to_contain_text("Nothing is left to review")
    expect(review.locator(".no-conversation")).to_contain_text("what you have skipped: 1 conversation.")
    review.get_by_role("button", name="Look again").click()
    expect(title).to_have_text("Question 1")


@browser
def test_a_key_that_is_held_down_acts_once(review: Page, console: FakeConsole) -> None:
    review.locator(".turn.selected").wait_for()
    review.keyboard.down("d")
    expect(review.locator(".conversation-title h2")).to_have_text("Question 1")
    review.locator(".turn.selected").wait_for()
    review.keyboard.down("d")  # a repeat: it was not let go
    review.keyboard.up("d")
    review.keyboard.press("s")
    console.wait_for("POST", "/conversations/r1/review/release")
    assert console.told("POST", "/conversations/r1/review/done") == []


@browser
def test_what_is_being_written_is_not_left_behind(review: Page, console: FakeConsole) -> None:
    review.locator(".turn.selected").wait_for()
    review.keyboard.press("c")
    words = review.get_by_label("What should have been said")
    words.fill("Answer 0, of course")
    review.get_by_role("button", name="Done, next").click()
    expect(review.locator(".notice")).to_contain_text("not saved yet")
    expect(words).to_be_focused()
    review.keyboard.press("Control+Enter")
    review.keyboard.press("d")
    expect(review.locator(".conversation-title h2")).to_have_text("Question 1")
    assert console.message("r0-m2")["verdict"]["corrected"] == "Answer 0, of course"


@browser
def test_progress_follows_colleagues(review: Page, console: FakeConsole) -> None:
    expect(review.locator(".progress")).to_contain_text("Team today0")
    expect(review.locator("#live")).to_have_attribute("data-phase", "live")
    console.conversations["r2"]["reviewed_at"] = console.began.isoformat()
    console.changed("r2", "reviewed")
    expect(review.locator(".progress")).to_contain_text("Team today1")


@browser
def test_an_erased_conversation_leaves_the_screen(review: Page, console: FakeConsole) -> None:
    expect(review.locator("#live")).to_have_attribute("data-phase", "live")
    expect(review.locator(".explanation")).to_contain_text("How it was made")
    del console.conversations["r0"], console.messages["r0"]
    console.queue.pop(0)
    console.changed("r0", "erased")
    expect(review.locator(".conversation-state")).to_have_text("This conversation is not there (any more).")
    expect(review.locator(".conversation")).not_to_contain_text(re.compile("Question|Answer"))
    expect(review.get_by_role("button", name="Take over")).to_have_count(0)
    review.keyboard.press("d")
    expect(review.locator(".conversation-title h2")).to_have_text("Question 1")


@browser
def test_who_reads_for_long_keeps_the_conversation(review: Page, console: FakeConsole) -> None:
    review.clock.install()
    review.reload()
    expect(review.locator(".conversation-title h2")).to_have_text("Question 0")
    assert console.told("POST", "/conversations/r0/review/keep") == []
    review.clock.fast_forward("03:00")
    console.wait_for("POST", "/conversations/r0/review/keep")
    expect(review.locator(".notice")).to_have_count(0)
    taken = refusal(409, "conflict", "somebody else has been given it")
    console.answers["/conversations/r0/review/keep"] = lambda _: taken
    review.clock.fast_forward("03:00")
    expect(review.locator(".notice")).to_contain_text("Somebody else reviews this conversation by now.")


@browser
def test_a_claim_is_given_back_when_the_queue_is_left(review: Page, console: FakeConsole) -> None:
    review.get_by_role("link", name="Inbox").click()
    expect(titles(review)).to_have_count(3)
    console.wait_for("POST", "/conversations/r0/review/release")


@browser
def test_a_conversation_stays_when_its_verdict_is_lost(review: Page, console: FakeConsole) -> None:
    path = "/messages/r0-m2/verdict"
    console.delays[path] = 0.3
    console.answers[path] = lambda _: refusal(503, "unavailable", "the database does not answer")
    review.locator(".turn.selected").wait_for()
    review.keyboard.press("g")
    review.keyboard.press("d")
    expect(review.locator(".notice").last).to_contain_text("A verdict was not saved")
    expect(review.locator(".conversation-title h2")).to_have_text("Question 0")
    assert console.told("POST", "/conversations/r0/review/done") == []


# Taking over


@pytest.fixture
def taken(talk: Page, console: FakeConsole) -> Page:
    talk.get_by_role("button", name="Take over").click()
    expect(box(talk)).to_be_focused()
    return talk


def box(page: Page) -> Locator:
    return page.get_by_label("Your message to the visitor")


def options(page: Page) -> Locator:
    return page.get_by_role("option")


@browser
def test_a_conversation_is_taken_over_handed_back_and_closed(taken: Page, console: FakeConsole) -> None:
    assert console.told("POST", "/conversations/talk/take") == [{"version": 0}]
    expect(taken.locator(".marks")).to_contain_text("Yours")
    taken.get_by_role("button", name="Hand back").click()
    expect(box(taken)).to_be_hidden()
    expect(taken.get_by_role("button", name="Take over")).to_be_focused()
    assert console.told("POST", "/conversations/talk/hand_back") == [{"version": 1}]
    taken.get_by_role("button", name="Take over").click()
    taken.get_by_role("button", name="Close", exact=True).click()
    expect(taken.locator(".marks")).to_contain_text("Closed")
    expect(box(taken)).to_be_hidden()
    taken.get_by_role("button", name="Reopen").click()
    expect(box(taken)).to_be_visible()


@browser
def test_an_answer_from_before_the_takeover_does_not_undo_it(talk: Page, console: FakeConsole) -> None:
    before = console.summary("talk")
    old = {"conversation": before, "messages": console.messages["talk"], "masked": False}
    stale: list[dict[str, Any] | None] = [old]
    console.answers["/conversations/talk"] = lambda _: (
        stale.pop() if stale and console.conversations["talk"]["owner"] == "operator" else None
    )
    talk.get_by_role("button", name="Take over").click()
    expect(box(talk)).to_be_focused()
    talk.keyboard.type("Hello", delay=100)
    expect(box(talk)).to_have_value("Hello")
    assert stale == []


@browser
def test_who_comes_second_is_told_kindly(talk: Page, console: FakeConsole) -> None:
    while not console.listening("talk"):
        talk.wait_for_timeout(50)
    talk.wait_for_timeout(500)  # what is fetched at the stream's opening is not to tell of Ben
    console.conversations["talk"].update(owner="operator", operator="Ben", owner_version=1)
    talk.get_by_role("button", name="Take over").click()
    expect(talk.locator(".notice")).to_contain_text("Ben was a moment faster")
    expect(talk.locator(".marks")).to_contain_text("With Ben")
    expect(box(talk)).to_be_hidden()
    talk.get_by_role("button", name="Take it from them").click()
    expect(box(talk)).to_be_visible()


@browser
def test_losing_the_conversation_closes_the_message_box_and_keeps_the_draft(
    taken: Page, console: FakeConsole
) -> None:
    box(taken).fill("Half a")
    console.conversations["talk"].update(operator="Ben", owner_version=2)
    console.changed("talk", "owner")
    expect(box(taken)).to_be_hidden()
    console.conversations["talk"].update(operator="Ada", owner_version=3)
    console.changed("talk", "owner")
    expect(box(taken)).to_have_value("Half a")


@browser
def test_messages_go_out_once_and_come_back_when_they_fail(taken: Page, console: FakeConsole) -> None:
    path = "/conversations/talk/messages"
    box(taken).fill("A person here")
    taken.keyboard.press("Enter")
    expect(taken.locator(".turns > .turn.operator .text")).to_have_text("A person here")
    expect(taken.locator(".pending .turn")).to_have_count(0)
    console.answers[path] = lambda _: refusal(503, "unavailable", "the database does not answer")
    box(taken).fill("Second")
    taken.keyboard.press("Enter")
    expect(taken.locator(".pending-words")).to_have_text("Not sent. The database does not answer.")
    console.answers.clear()
    taken.get_by_role("button", name="Try again").click()
    expect(taken.locator(".turns > .turn.operator .text")).to_have_text(["A person here", "Second"])
    first, *tries = console.told("POST", path)
    assert [body["text"] for body in tries] == ["Second", "Second"]
    assert len({body["id"] for body in tries}) == 1
    assert first["id"] != tries[0]["id"]


@browser
def test_a_message_that_was_not_confirmed_outlives_the_page(taken: Page, console: FakeConsole) -> None:
    path = "/conversations/talk/messages"
    console.answers[path] = lambda _: refusal(503, "unavailable", "the database does not answer")
    box(taken).fill("Not lost")
    taken.keyboard.press("Enter")
    expect(taken.locator(".pending-words")).to_contain_text("Not sent")
    taken.keyboard.press("Escape")
    taken.keyboard.press("Escape")
    expect(taken.locator(".no-conversation")).to_be_visible()
    taken.go_back()
    taken.reload()
    expect(taken.locator(".pending .text")).to_have_text("Not lost")
    console.answers.clear()
    taken.get_by_role("button", name="Try again").click()
    expect(taken.locator(".turns > .turn.operator .text")).to_have_text("Not lost")
    assert len({body["id"] for body in console.told("POST", path)}) == 1
    taken.reload()
    expect(taken.locator(".turns > .turn.operator .text")).to_have_text("Not lost")
    expect(taken.locator(".pending .turn")).to_have_count(0)


@browser
def test_a_failed_message_is_edited_beside_what_is_being_written(taken: Page, console: FakeConsole) -> None:
    console.answers["/conversations/talk/messages"] = lambda _: refusal(503, "unavailable", "not now")
    box(taken).fill("First")
    taken.keyboard.press("Enter")
    expect(taken.locator(".pending-words")).to_contain_text("Not sent")
    box(taken).fill("Second")
    taken.locator(".pending").get_by_role("button", name="Edit").click()
    expect(box(taken)).to_have_value("First\nSecond")
    expect(taken.locator(".pending .turn")).to_have_count(0)


@browser
def test_suggestions_belong_to_the_words_they_were_made_for(taken: Page, console: FakeConsole) -> None:
    console.answers["/conversations/talk/suggestions"] = lambda told: {
        "id": f"for-{told['typed']}",
        "suggestions": [{"text": f"{told['typed']} so", "logprob": -1.0}],
        "milliseconds": 1,
    }
    console.delays["/conversations/talk/messages"] = 0.8
    box(taken).fill("Sure")
    expect(options(taken)).to_have_text(["Sure so"])
    taken.keyboard.press("Enter")
    taken.keyboard.type("And")
    expect(options(taken)).to_have_text(["And so"])
    console.wait_for("POST", "/suggestions/for-Sure/outcome")
    expect(taken.locator(".turns > .turn.operator .text")).to_have_text("Sure")
    expect(options(taken)).to_have_text(["And so"])
    taken.keyboard.press("Tab")
    expect(box(taken)).to_have_value("And so")


@browser
def test_suggestions_complete_what_is_typed_and_tab_takes_one(taken: Page, console: FakeConsole) -> None:
    expect(options(taken)).to_have_text(["Of course", "I am afraid not"])  # before a word is typed
    box(taken).press_sequentially("Yes")
    expect(options(taken)).to_have_text(["Yes of course", "Yes I am afraid not"])
    expect(options(taken).first).to_have_attribute("aria-selected", "true")
    taken.keyboard.press("ArrowDown")
    expect(options(taken).nth(1)).to_have_attribute("aria-selected", "true")
    active = box(taken).get_attribute("aria-activedescendant")
    assert active == options(taken).nth(1).get_attribute("id")
    taken.keyboard.press("Tab")
    expect(box(taken)).to_have_value("Yes I am afraid not")
    expect(options(taken)).to_have_count(0)
    expect(box(taken)).to_be_focused()
    taken.keyboard.press("Enter")
    names = [path for _, path, _ in console.requests if path.endswith("/outcome")]
    until = taken.locator(".turns > .turn.operator")
    expect(until).to_have_count(1)
    names = [path for _, path, _ in list(console.requests) if path.endswith("/outcome")]
    [outcome] = console.wait_for("POST", names[0])
    text = "Yes I am afraid not"
    assert outcome == {"outcome": "accepted", "chosen": text, "sent": text, "message": "talk-m5"}


@browser
@pytest.mark.parametrize(
    ("keys", "outcome", "sent"),
    [
        (["Tab", "!"], "edited", "Of course!"),
        (["Escape", "N", "o"], "ignored", "No"),
    ],
)
def test_what_becomes_of_a_suggestion_is_told(
    taken: Page, console: FakeConsole, keys: list[str], outcome: str, sent: str
) -> None:
    expect(options(taken)).to_have_count(2)
    console.answers["/conversations/talk/suggestions"] = lambda _: {
        "id": "s",
        "suggestions": [],
        "milliseconds": 1,
    }
    for key in keys:
        taken.keyboard.press(key)
    taken.keyboard.press("Enter")
    expect(taken.locator(".turns > .turn.operator .text")).to_have_text(sent)
    taken.wait_for_timeout(200)
    told = [body for _, path, body in console.requests if path.endswith("/outcome")]
    assert [(body["outcome"], body["sent"]) for body in told] == [(outcome, sent)]


@browser
def test_suggestions_come_after_a_pause_and_the_latest_wins(taken: Page, console: FakeConsole) -> None:
    path = "/conversations/talk/suggestions"
    expect(options(taken)).to_have_count(2)
    before = len(console.told("POST", path))
    box(taken).press_sequentially("Well then", delay=15)
    expect(options(taken).first).to_have_text("Well then of course")
    asked = [body["typed"] for body in console.told("POST", path)[before:]]
    assert asked[-1] == "Well then"
    assert len(asked) <= 3  # not one for each letter

    console.delays[path] = 0.6
    box(taken).press_sequentially(",")
    taken.wait_for_timeout(250)  # the slow question is out
    console.delays.clear()
    box(taken).press_sequentially(" yes")
    expect(options(taken).first).to_have_text("Well then, yes of course")
    taken.wait_for_timeout(600)
    expect(options(taken).first).to_have_text("Well then, yes of course")


@browser
def test_what_is_pressed_does_not_move_away_when_the_suggestions_go(
    taken: Page, console: FakeConsole
) -> None:
    path = "/conversations/talk/messages"
    console.answers[path] = lambda _: refusal(503, "unavailable", "the database does not answer")
    box(taken).fill("Lost")
    taken.keyboard.press("Enter")
    again = taken.get_by_role("button", name="Try again")
    expect(again).to_be_visible()
    box(taken).press_sequentially("Yes")
    expect(options(taken).first).to_have_text("Yes of course")
    console.answers.clear()
    again.click(delay=300)
    expect(options(taken)).to_have_count(0)
    expect(taken.locator(".turns > .turn.operator .text")).to_have_text("Lost")


@browser
def test_without_suggestions_one_writes_as_well(taken: Page, console: FakeConsole) -> None:
    path = "/conversations/talk/suggestions"
    console.answers[path] = lambda _: refusal(503, "unavailable", "the model is busy")
    box(taken).press_sequentially("Hello")
    expect(options(taken)).to_have_count(0)
    expect(taken.locator(".notice")).to_have_count(0)
    taken.keyboard.press("Enter")
    expect(taken.locator(".turns > .turn.operator .text")).to_have_text("Hello")


@browser
def test_canned_replies_are_found_filled_in_and_not_sent_half_empty(
    taken: Page, console: FakeConsole
) -> None:
    box(taken).press_sequentially("/")
    expect(options(taken)).to_have_count(2)
    box(taken).press_sequentially("gree")
    expect(options(taken)).to_have_count(1)
    taken.keyboard.press("Enter")
    expect(box(taken)).to_have_value("Hello {name}, this is {operator}. How can I help?")
    chosen = "(node) => node.value.slice(node.selectionStart, node.selectionEnd)"
    assert box(taken).evaluate(chosen) == "{name}"
    taken.keyboard.type("Kim")
    expect(options(taken)).to_have_count(2)
    taken.keyboard.press("Escape")
    taken.keyboard.press("Tab")
    assert box(taken).evaluate(chosen) == "{operator}"
    taken.keyboard.press("Enter")
    expect(taken.locator("#announcer")).to_contain_text("operator is to be filled in")
    assert console.told("POST", "/conversations/talk/messages") == []
    taken.keyboard.type("Ada")
    taken.keyboard.press("Enter")
    expect(taken.locator(".turns > .turn.operator .text")).to_have_text(
        "Hello Kim, this is Ada. How can I help?"
    )


@browser
def test_a_running_reply_is_seen_as_it_is_made(talk: Page, console: FakeConsole) -> None:
    while not console.listening("talk"):
        talk.wait_for_timeout(50)
    live = talk.locator(".live-reply")
    expect(live).to_be_hidden()
    console.tell("talk", "delta", {"reply": "r", "offset": 0, "text": "It is "})
    expect(live.locator(".text")).to_have_text("It is ")
    console.tell("talk", "delta", {"reply": "r", "offset": 6, "text": "noon"})
    expect(live.locator(".text")).to_have_text("It is noon")
    console.says("talk", "bot", "It is noon.")
    expect(replies(talk).last.locator(".bubble")).to_have_text("It is noon.")
    expect(live).to_be_hidden()
    expect(talk.locator("#announcer")).to_have_text("Bot said: It is noon.")


# Text is only ever text


@browser
def test_nothing_that_anybody_wrote_is_anything_but_text(
    open_console: OpenConsole, console: FakeConsole
) -> None:
    elements = (
        "() => document.querySelectorAll('script, iframe, object, embed, img[src=x], svg[onload]').length"
    )
    within = "() => document.querySelectorAll('.turns .text :not(span, del, ins), .rows .row-title *').length"
    console.labels = [text for text in HOSTILE if len(text) < 200]
    console.canned = [{"id": f"k{n}", "title": text, "text": text} for n, text in enumerate(HOSTILE)]
    console.suggest = lambda typed: [typed + text for text in HOSTILE[:3]]
    console.me["name"] = HOSTILE[1]
    for index, text in enumerate(HOSTILE):
        name = console.add(
            [("visitor", text), ("bot", text), (text[:60], text)],
            id=f"x{index}",
            operator=text[:60],
            owner="operator",
            waiting_since=console.began.isoformat(),
            match=text,
        )
        reply = console.messages[name][1]
        reply.update(rating="down", comment=text)
        labels, corrected = [text], f"{text} corrected"
        reply["verdict"] = {"verdict": "bad", "labels": labels, "corrected": corrected, "note": text}
        reply["generation"] = generation(text, 0.2, withheld=text, model=text, options={"stop": text})
        console.messages[name].insert(1, {**reply, "id": f"{name}-old", "superseded": True})
    page = open_console()
    expect(titles(page)).to_have_count(len(HOSTILE))
    before = page.evaluate(elements)
    for index, text in enumerate(HOSTILE):
        page.goto(f"{console.address}/operator/inbox/x{index}?label={'%3Cimg%20src%3Dx%3E'}&q=")
        expect(replies(page)).to_have_count(1)
        shown = page.locator(".turns > .turn > .bubble .text").all_text_contents()
        assert shown == [text] * 3
        expect(page.locator(".explanation .nearest li").first).to_be_attached()
        assert page.locator(".withheld .text").first.text_content() == text
        page.evaluate("() => document.querySelectorAll('details').forEach((node) => { node.open = true; })")
        assert (page.evaluate(elements), page.evaluate(within)) == (before, 0)
    console.conversations["x0"].update(operator=console.me["name"])
    page.goto(f"{console.address}/operator/inbox/x0")
    box(page).click()
    expect(options(page)).to_have_count(3)
    box(page).press_sequentially("/")
    expect(options(page)).to_have_count(8)
    search = page.get_by_role("searchbox")
    for text in HOSTILE[:8]:
        search.fill(text[:200])
        search.press("Enter")
        expect(page.locator(".list-scroller")).to_have_attribute("aria-busy", "false")
    page.locator("#account").click()
    expect(page.locator("#account-name")).to_have_text(console.me["name"])
    assert (page.evaluate(elements), page.evaluate(within)) == (before, 0)


@browser
def test_texts_keep_their_own_direction(open_console: OpenConsole, console: FakeConsole) -> None:
    console.add([("visitor", "שלום"), ("bot", "שלום לך")], id="talk")
    page = open_console("/operator/inbox/talk")
    for text in (page.locator(".turn.visitor .text"), replies(page).locator(".bubble .text")):
        expect(text).to_have_css("direction", "rtl")
        expect(text).to_have_css("unicode-bidi", "isolate")
    expect(titles(page).first).to_have_css("direction", "rtl")


@browser
def test_error_messages_of_the_server_are_text(open_console: OpenConsole, console: FakeConsole) -> None:
    console.add(TALK, id="talk")
    console.answers["/conversations/talk/take"] = lambda _: refusal(400, "bad_request", HOSTILE[1])
    page = open_console("/operator/inbox/talk")
    page.get_by_role("button", name="Take over").click()
    expect(page.locator(".notice")).to_contain_text(HOSTILE[1])
    expect(page.locator("#announcer")).to_have_text(f"{HOSTILE[1]}.")


# The session


@browser
def test_an_ended_session_leads_to_the_sign_in_page_and_back(taken: Page, console: FakeConsole) -> None:
    box(taken).fill("An unsent thought")
    console.signed_in = False
    taken.keyboard.press("Enter")
    expect(taken.get_by_role("heading", level=1)).to_have_text("Turnwise console")
    expect(taken.get_by_label("Password", exact=True)).to_be_visible()
    console.signed_in = True
    taken.reload()
    expect(taken).to_have_url(f"{console.address}/operator/inbox/talk")
    expect(taken.locator(".turns > .turn")).to_have_count(4)
    expect(taken.locator(".pending .text")).to_have_text("An unsent thought")


@browser
def test_a_draft_outlives_the_session(taken: Page, console: FakeConsole) -> None:
    box(taken).fill("An unsent thought")
    console.signed_in = False
    console.end_streams()
    taken.get_by_label("Password", exact=True).wait_for()
    console.signed_in = True
    taken.reload()
    expect(box(taken)).to_have_value("An unsent thought")


@browser
def test_signing_out_ends_the_session(inbox: Page, console: FakeConsole) -> None:
    inbox.locator("#account").click()
    expect(inbox.get_by_role("dialog")).to_contain_text("Administrator")
    inbox.get_by_role("button", name="Sign out").click()
    inbox.get_by_label("Password", exact=True).wait_for()
    assert len(console.told("POST", "/logout")) == 1


@browser
def test_a_new_token_of_another_tab_is_learned(talk: Page, console: FakeConsole) -> None:
    stale: list[Response | None] = [refusal(403, "forbidden", "the X-CSRF-Token is missing")]
    talk.evaluate("() => { window.fetchedMe = 0; }")
    console.answers[verdict_path(4)] = lambda _: stale.pop() if stale else None
    console.answers["/me"] = lambda _: {"operator": console.me, "csrf": "d" * 32}
    talk.keyboard.press("g")
    expect(talk.locator(".notice")).to_contain_text(
        "The X-CSRF-Token is missing."
    )  # the fake knows the first only
    assert len(console.told("PUT", verdict_path(4))) == 2
    assert len(console.told("GET", "/me")) == 2
