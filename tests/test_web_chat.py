"""The chat page in a real Chromium, against a server that does as it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from tests.fake_chat_server import FINGERPRINT, FakeChat, Talk

pytest_plugins = ["tests.web_fixtures"]
pytestmark = pytest.mark.browser

OpenTab = Callable[[BrowserContext], Page]


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def log(page: Page) -> Locator:
    return page.get_by_role("log").locator(".text")


def shown(page: Page, *texts: str) -> None:
    """The conversation holds exactly these messages, and nothing waits to be sent."""
    expect(log(page)).to_have_text(list(texts))
    expect(page.locator(".waiting")).to_have_count(0)


def waiting(page: Page) -> Locator:
    return page.locator(".waiting")


def replies(page: Page) -> Locator:
    return page.get_by_role("log").locator(".bot")


def said_frames(chat: FakeChat) -> list[dict[str, Any]]:
    return chat.of_type("say")


# Talking


def test_a_visitor_is_greeted_and_asks_with_one_click(page: Page, chat: FakeChat) -> None:
    expect(page).to_have_title("Turnwise")
    expect(page.get_by_role("heading", level=1)).to_have_text("Turnwise")
    page.get_by_role("button", name="I need to see a doctor this week.").click()
    shown(page, "I need to see a doctor this week.", "You said: I need to see a doctor this week.")
    expect(page.locator("#welcome")).to_be_hidden()
    assert chat.said() == ["I need to see a doctor this week."]


def test_a_reply_grows_as_it_is_made(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "Hello")
    expect(page.locator(".streaming .dots")).to_be_visible()
    streaming = page.locator(".streaming .text")
    chat.stream("Good ")
    expect(streaming).to_have_text("Good ")
    chat.stream("morning 😀")
    chat.stream("!")
    expect(streaming).to_have_text("Good morning 😀!")
    chat.finish()
    shown(page, "Hello", "Good morning 😀!")
    expect(page.locator(".streaming")).to_be_hidden()


def test_enter_sends_and_shift_enter_begins_a_line(page: Page, chat: FakeChat) -> None:
    box = page.get_by_label("Your message")
    box.press_sequentially("one")
    page.keyboard.press("Shift+Enter")
    box.press_sequentially("two")
    page.keyboard.press("Enter")
    expect(replies(page)).to_have_count(1)
    assert chat.said() == ["one\ntwo"]
    expect(box).to_have_value("")
    expect(box).to_be_focused()


def test_enter_that_chooses_a_composed_character_does_not_send(page: Page, chat: FakeChat) -> None:
    box = page.get_by_label("Your message")
    box.fill("にほ")
    box.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    expect(box).to_have_value("にほ")
    assert said_frames(chat) == []


def test_what_is_typed_before_the_scripts_have_come_is_kept(
    new_context: Callable[..., BrowserContext], chat: FakeChat
) -> None:
    page = new_context().new_page()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/static/app.js", hold)
    page.goto(chat.address, wait_until="commit")
    box = page.get_by_label("Your message")
    box.press_sequentially("Hello?")
    expect(page.get_by_role("button", name="Send message")).to_be_disabled()  # it would leave the page
    held[0].continue_()
    page.locator("#presence[data-phase=ready]").wait_for()
    expect(box).to_have_value("Hello?")
    page.get_by_role("button", name="Send message").click()
    shown(page, "Hello?", "You said: Hello?")


def test_the_message_box_shows_all_lines_when_the_window_gets_narrow(page: Page) -> None:
    box = page.get_by_label("Your message")
    box.fill("some words that fill a line " * 5)
    page.set_viewport_size({"width": 420, "height": 800})
    page.wait_for_function("() => text.clientWidth < 400 && text.scrollHeight <= text.clientHeight")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.wait_for_function("() => text.clientHeight < 110")


def test_nothing_is_not_sent(page: Page, chat: FakeChat) -> None:
    for blank in ("", "   ", "\n\n", "\0"):
        say(page, blank)
        expect(page.get_by_role("button", name="Send message")).to_be_disabled()
    assert said_frames(chat) == []


def test_a_reply_is_stopped_and_what_was_made_of_it_stays(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "Tell me everything")
    chat.stream("It began when")
    expect(page.locator(".streaming .text")).to_have_text("It began when")
    page.get_by_role("button", name="Stop").click()
    shown(page, "Tell me everything", "It began when")
    expect(page.locator(".remark")).to_have_text("Stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_label("Your message")).to_be_focused()


def test_escape_stops_a_reply_that_has_not_begun(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "Tell me everything")
    page.get_by_role("button", name="Stop").wait_for()
    page.keyboard.press("Escape")
    expect(replies(page)).to_have_count(1)
    assert [message.get("finish_reason") for message in chat.talk.messages] == [None, "cancelled"]


def test_a_message_written_during_a_reply_waits_for_its_end(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "first")
    chat.stream("hm")
    expect(page.locator(".streaming .text")).to_have_text("hm")
    say(page, "second")
    expect(waiting(page).locator(".status")).to_have_text("Waiting for the reply to end")
    assert len(said_frames(chat)) == 1
    chat.held = False
    chat.finish()
    shown(page, "first", "hm", "second", "You said: second")


def test_another_reply_takes_the_place_of_the_last_one(page: Page, chat: FakeChat) -> None:
    say(page, "Hi")
    shown(page, "Hi", "You said: Hi")
    chat.answer = lambda text: (["Well, hello."], {})
    page.get_by_role("button", name="Another reply").click()
    shown(page, "Hi", "Well, hello.", "You said: Hi")  # the last one is in the list of earlier replies
    expect(replies(page)).to_have_count(1)
    earlier = page.locator(".earlier")
    expect(earlier).to_be_hidden()
    page.get_by_role("button", name="1 earlier reply").click()
    expect(earlier).to_have_text("You said: Hi")


def test_only_the_last_reply_can_be_made_again(page: Page) -> None:
    for number in range(2):
        say(page, f"question {number}")
        expect(replies(page)).to_have_count(number + 1)
    expect(page.get_by_role("button", name="Another reply")).to_have_count(1)


def test_alternatives_of_a_beam_are_shown_on_request(page: Page, chat: FakeChat) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("radio", name="Beam search").check()
    page.get_by_role("slider", name="Alternatives").fill("3")
    page.get_by_role("button", name="Done").click()
    others = [{"text": text, "score": -1.5} for text in ("At seven?", "When?", "<b>What time?</b>")]
    chat.answer = lambda text: (["At seven?"], {"alternatives": others})
    say(page, "A table, please")
    page.get_by_role("button", name="2 alternatives").click()
    expect(page.locator(".alternatives .text")).to_have_text(["When?", "<b>What time?</b>"])
    assert said_frames(chat)[0]["options"] == {"decoding": "beam", "n_best": 3, "beam_size": 4}


def test_details_say_what_made_the_reply(page: Page) -> None:
    say(page, "Hi")
    button = page.get_by_role("button", name="Details")
    expect(button).to_have_attribute("aria-expanded", "false")
    button.click()
    facts = page.locator(".facts")
    expect(facts).to_contain_text(FINGERPRINT)
    expect(facts).to_contain_text("Seed7")
    expect(facts).to_contain_text("Finished by itself")


# Ratings


def test_a_reply_is_rated_with_a_comment(page: Page, chat: FakeChat) -> None:
    say(page, "Hi")
    thumb = page.get_by_role("button", name="Bad reply")
    thumb.click()
    expect(thumb).to_have_attribute("aria-pressed", "true")
    page.get_by_label("What was wrong?").fill("It only repeats me.")
    page.keyboard.press("Enter")
    expect(page.locator(".comment")).to_have_count(0)
    expect(thumb).to_be_focused()
    assert [(one["rating"], one.get("comment")) for one in chat.wait_for("rate", 2)] == [
        ("down", None),
        ("down", "It only repeats me."),
    ]


def test_a_rating_is_changed_and_taken_back(page: Page, chat: FakeChat) -> None:
    say(page, "Hi")
    up, down = (page.get_by_role("button", name=name) for name in ("Good reply", "Bad reply"))
    up.click()
    down.click()
    expect(up).to_have_attribute("aria-pressed", "false")
    down.click()
    expect(down).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".comment")).to_have_count(0)
    assert [one["rating"] for one in chat.wait_for("rate", 3)] == ["up", "down", None]


def test_a_rating_given_without_a_connection_arrives_later(page: Page, chat: FakeChat) -> None:
    say(page, "Hi")
    expect(replies(page)).to_have_count(1)
    chat.lose_connections(down=503)
    expect(page.locator("#banner")).to_be_visible()
    page.get_by_role("button", name="Good reply").click()
    chat.come_back()
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#banner")).to_be_hidden()
    assert [one["rating"] for one in chat.wait_for("rate", 1)] == ["up"]


def test_escape_in_the_comment_puts_only_the_comment_away(page: Page, chat: FakeChat) -> None:
    say(page, "Hi")
    page.get_by_role("button", name="Good reply").click()
    chat.held = True
    say(page, "More")
    page.locator(".streaming").wait_for()
    page.get_by_label("What was good about it?").press("Escape")
    expect(page.locator(".comment")).to_have_count(0)
    assert chat.of_type("cancel") == []


def test_escape_that_drops_a_composed_character_leaves_the_comment(page: Page) -> None:
    say(page, "Hi")
    page.get_by_role("button", name="Good reply").click()
    field = page.get_by_label("What was good about it?")
    field.fill("にほ")
    field.dispatch_event("keydown", {"key": "Escape", "isComposing": True})
    expect(field).to_have_value("にほ")


# Conversations


def test_a_reload_comes_back_to_the_conversation_and_the_draft(page: Page) -> None:
    say(page, "Remember me")
    expect(replies(page)).to_have_count(1)
    page.get_by_label("Your message").fill("half a thou")
    page.reload()
    shown(page, "Remember me", "You said: Remember me")
    expect(page.get_by_label("Your message")).to_have_value("half a thou")


def test_earlier_conversations_are_listed_and_opened(page: Page) -> None:
    say(page, "About boats")
    expect(replies(page)).to_have_count(1)
    page.get_by_role("link", name="New chat").click()
    expect(page.locator("#welcome")).to_be_visible()
    say(page, "About trains")
    expect(replies(page)).to_have_count(1)
    links = page.get_by_role("navigation").locator(".conversations a")
    expect(links).to_have_text(["About trains", "About boats"])
    expect(links.first).to_have_attribute("aria-current", "page")
    links.last.click()
    shown(page, "About boats", "You said: About boats")
    expect(links.last).to_have_attribute("aria-current", "page")
    page.go_back()
    shown(page, "About trains", "You said: About trains")


def test_conversations_beyond_the_first_fifty_are_listed_on_request(page: Page, chat: FakeChat) -> None:
    say(page, "Hi")
    expect(replies(page)).to_have_count(1)

    def talk_often() -> None:
        for number in range(259):
            talk = Talk(f"old{number}", chat.talk.token)
            talk.append("user", f"About {number}")
            chat.talks = {talk.id: talk, **chat.talks}

    chat.act(talk_often)
    page.reload()
    links = page.get_by_role("navigation").locator(".conversations a")
    expect(links).to_have_count(50)
    more = page.get_by_role("button", name="Show earlier ones")
    more.press("Enter")
    expect(links).to_have_count(250)
    expect(links.nth(50)).to_be_focused()
    more.press("Enter")
    expect(links).to_have_count(260)
    expect(links.last).to_have_text("About 258")
    expect(more).to_be_hidden()


def test_new_chat_on_an_unused_chat_opens_no_second_one(page: Page, chat: FakeChat) -> None:
    page.get_by_role("link", name="New chat").click()
    page.keyboard.press("Alt+n")
    say(page, "Hi")
    expect(replies(page)).to_have_count(1)
    assert len(chat.talks) == 1


def test_the_bare_address_goes_on_with_the_latest_conversation(page: Page, open_tab: OpenTab) -> None:
    say(page, "Hi")
    expect(replies(page)).to_have_count(1)
    shown(open_tab(page.context), "Hi", "You said: Hi")


def test_two_tabs_show_the_same_conversation(page: Page, open_tab: OpenTab, chat: FakeChat) -> None:
    say(page, "one")
    expect(replies(page)).to_have_count(1)
    other = open_tab(page.context)
    shown(other, "one", "You said: one")
    chat.held = True
    say(other, "two")
    for tab in (page, other):
        expect(tab.locator(".streaming")).to_be_visible()
    chat.stream("both of you")
    chat.finish()
    for tab in (page, other):
        shown(tab, "one", "You said: one", "two", "both of you")


def test_two_tabs_that_come_at_once_are_one_visitor(context: BrowserContext, chat: FakeChat) -> None:
    first, second = context.new_page(), context.new_page()
    chat.closed_for = 503
    for tab in (first, second):
        tab.goto(f"{chat.address}/#new")
        tab.locator("#banner").wait_for()
    chat.come_back()
    for number, tab in enumerate((first, second)):
        tab.locator("#presence[data-phase=ready]").wait_for()
        say(tab, f"from tab {number}")
        expect(replies(tab)).to_have_count(1)
    assert len({talk.token for talk in chat.talks.values() if talk.messages}) == 1


def test_two_tabs_that_kept_a_token_each_before_either_could_see_it_are_one_visitor(
    context: BrowserContext, chat: FakeChat
) -> None:
    first, second = context.new_page(), context.new_page()
    for tab in (first, second):
        tab.goto(f"{chat.address}/static/chat.js")  # until what the other tab removed is gone here too
        tab.wait_for_function("localStorage.getItem('turnwise.token') === null")
        tab.goto(f"{chat.address}/#new")
        tab.locator("#presence[data-phase=ready]").wait_for()
        if tab is first:
            tab.evaluate("localStorage.removeItem('turnwise.token')")
    lesser = min(talk.token for talk in chat.talks.values())
    for _ in range(200):  # one of them has come back as the other
        if any(hello["token"] == lesser for hello in chat.greetings):
            break
        first.wait_for_timeout(50)
    for number, tab in enumerate((first, second)):
        say(tab, f"from tab {number}")
        expect(replies(tab)).to_have_count(1)
    assert {talk.token for talk in chat.talks.values() if talk.messages} == {lesser}


def test_a_chat_taken_over_elsewhere_says_so_and_can_be_taken_back(page: Page, chat: FakeChat) -> None:
    chat.lose_connections(code=4409)
    expect(page.locator("#banner")).to_contain_text("opened in another tab")
    page.get_by_role("button", name="Use it here").click()
    expect(page.locator("#banner")).to_be_hidden()


# Nothing lost, nothing doubled


@pytest.mark.parametrize("fault", ["lose before commit", "lose after commit"])
def test_a_connection_lost_while_sending_neither_loses_nor_doubles(
    page: Page, chat: FakeChat, fault: Any
) -> None:
    chat.faults = [fault]
    say(page, "Only once")
    shown(page, "Only once", "You said: Only once")
    assert chat.said() == ["Only once"]


def test_events_that_come_twice_are_shown_once(page: Page, chat: FakeChat) -> None:
    chat.twice = True
    for number in range(3):
        say(page, f"message {number}")
        expect(replies(page)).to_have_count(number + 1)
    expect(log(page)).to_have_count(6)
    assert chat.said() == ["message 0", "message 1", "message 2"]


def test_what_is_written_without_a_connection_is_marked_and_sent_later(page: Page, chat: FakeChat) -> None:
    say(page, "before")
    expect(replies(page)).to_have_count(1)
    chat.lose_connections(down=503)
    expect(page.locator("#banner")).to_contain_text("Reconnecting…")
    say(page, "while away")
    say(page, "also away")
    expect(waiting(page).locator(".status")).to_have_text(["Waiting for the connection"] * 2)
    chat.come_back()
    shown(
        page, "before", "You said: before", "while away", "You said: while away",
        "also away", "You said: also away",
    )  # fmt: skip
    expect(page.locator("#banner")).to_be_hidden()


def test_what_waits_outlives_a_reload_and_is_sent_once(page: Page, chat: FakeChat) -> None:
    say(page, "before")
    expect(replies(page)).to_have_count(1)
    chat.lose_connections(down=503)
    page.locator("#banner").wait_for()
    say(page, "while away")
    page.reload()
    expect(waiting(page)).to_have_count(1)
    chat.come_back()
    shown(page, "before", "You said: before", "while away", "You said: while away")
    assert chat.said() == ["before", "while away"]


def test_a_first_message_waits_for_a_server_that_is_not_there_yet(
    context: BrowserContext, chat: FakeChat
) -> None:
    chat.closed_for = 503
    page = context.new_page()
    page.goto(chat.address)
    say(page, "Anybody there?")
    expect(waiting(page)).to_have_count(1)
    page.reload()
    expect(waiting(page)).to_have_count(1)
    chat.come_back()
    shown(page, "Anybody there?", "You said: Anybody there?")
    assert chat.said() == ["Anybody there?"]


def test_a_reply_goes_on_where_it_was_after_the_connection_broke(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "Tell me")
    chat.stream("Once upon ")
    expect(page.locator(".streaming .text")).to_have_text("Once upon ")
    chat.lose_connections()
    chat.stream("a ")  # nobody hears this
    page.locator("#presence[data-phase=ready]").wait_for()
    chat.stream("time.")
    expect(page.locator(".streaming .text")).to_have_text("Once upon a time.")
    chat.finish()
    shown(page, "Tell me", "Once upon a time.")


def test_a_reply_that_ended_unheard_is_there_after_the_break(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "Tell me")
    chat.stream("Once ")
    expect(page.locator(".streaming .text")).to_have_text("Once ")
    chat.lose_connections(down=503)
    chat.stream("more.")
    chat.finish()
    chat.come_back()
    shown(page, "Tell me", "Once more.")
    assert chat.greetings[-1]["last_seq"] == 1


def test_a_server_that_goes_away_is_waited_for(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "Tell me")
    chat.stream("Nearly ")
    expect(page.locator(".streaming .text")).to_have_text("Nearly ")
    chat.tell({"type": "going_away", "reconnect_after": 0.5})
    expect(page.locator("#banner")).to_contain_text("The server is restarting")
    say(page, "And then?")
    chat.held = False
    chat.stream("done.")
    chat.finish()
    shown(page, "Tell me", "Nearly done.", "And then?", "You said: And then?")
    assert len(chat.greetings) == 2


# Errors, told to people


def test_a_busy_server_is_asked_again_after_the_time_it_named(page: Page, chat: FakeChat) -> None:
    chat.errors = [{"code": "busy", "retry_after": 0.5}, {"code": "busy", "retry_after": 0.2}]
    say(page, "Any room?")
    expect(waiting(page).locator(".status")).to_contain_text("has its hands full")
    shown(page, "Any room?", "You said: Any room?")
    assert [frame["id"] for frame in said_frames(chat)] == [said_frames(chat)[0]["id"]] * 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            {"code": "too_long", "field": "text"},
            "That is longer than the 2,000 characters a message may have.",
        ),
        ({"code": "too_long"}, "This conversation is full. Please begin a new chat."),
        ({"code": "bad_option", "field": "temperature"}, "The setting “temperature” was not accepted."),
        ({"code": "conflict"}, "This message clashed with an earlier one."),
        ({"code": "bad_message"}, "The server could not read this message."),
        ({"code": "never heard of"}, "scripted"),
    ],
)
def test_a_refused_message_says_why_and_can_be_sent_again(
    page: Page, chat: FakeChat, error: dict[str, str], words: str
) -> None:
    chat.errors = [error]
    say(page, "Hm")
    expect(waiting(page).locator(".status")).to_contain_text(f"Not sent. {words}")
    expect(page.locator("#announcer")).to_contain_text(words)
    page.get_by_role("button", name="Try again").click()
    shown(page, "Hm", "You said: Hm")
    first, second = (frame["id"] for frame in said_frames(chat))
    assert (first == second) == (error["code"] != "conflict")


def test_a_refused_message_does_not_hold_up_the_next_one(page: Page, chat: FakeChat) -> None:
    chat.errors = [{"code": "bad_message"}]
    say(page, "one")
    expect(waiting(page)).to_have_count(1)
    say(page, "two")
    expect(replies(page)).to_have_count(1)
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_label("Your message")).to_have_value("one")
    expect(page.get_by_label("Your message")).to_be_focused()
    shown(page, "two", "You said: two")
    assert chat.said() == ["two"]


def test_a_refused_message_can_be_discarded_for_good(page: Page, chat: FakeChat) -> None:
    chat.errors = [{"code": "bad_message"}]
    say(page, "one")
    page.get_by_role("button", name="Discard").click()
    page.reload()
    page.locator("#presence[data-phase=ready]").wait_for()
    expect(waiting(page)).to_have_count(0)
    assert chat.talk.messages == []


def test_a_reply_that_failed_is_asked_for_again(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "Tell me")
    page.locator(".streaming").wait_for()
    name = said_frames(chat)[0]["id"]
    chat.tell({"type": "error", "code": "internal", "message": "lost", "id": name})
    expect(page.locator(".failure")).to_contain_text("The reply could not be finished.")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".failure")).to_be_hidden()
    chat.wait_for("say", 2)
    chat.stream("Here you are.")
    chat.finish()
    shown(page, "Tell me", "Here you are.")
    assert [frame["id"] for frame in said_frames(chat)] == [name, name]
    assert chat.said() == ["Tell me"]


def test_a_reply_that_found_no_room_is_asked_for_again_by_itself(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "Tell me")
    page.locator(".streaming").wait_for()
    name = said_frames(chat)[0]["id"]
    chat.tell({"type": "error", "code": "busy", "message": "full", "id": name, "retry_after": 0.2})
    expect(page.locator(".streaming")).to_be_visible()
    chat.wait_for("say", 2)
    chat.stream("Here you are.")
    chat.finish()
    shown(page, "Tell me", "Here you are.")
    assert [frame["id"] for frame in said_frames(chat)] == [name, name]


def test_what_is_written_meanwhile_does_not_keep_a_reply_from_being_asked_for(
    page: Page, chat: FakeChat
) -> None:
    chat.held = True
    say(page, "Tell me")
    page.locator(".streaming").wait_for()
    name = said_frames(chat)[0]["id"]
    chat.tell({"type": "error", "code": "busy", "message": "full", "id": name, "retry_after": 0.5})
    say(page, "Hello?")
    expect(waiting(page).locator(".status")).to_have_text("Waiting for the reply to end")
    assert [frame["id"] for frame in chat.wait_for("say", 2)] == [name, name]
    chat.held = False
    chat.stream("Here you are.")
    chat.finish()
    shown(page, "Tell me", "Here you are.", "Hello?", "You said: Hello?")


def test_a_wish_to_stop_outlives_the_connection(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "Tell me everything")
    chat.stream("It began when")
    expect(page.locator(".streaming .text")).to_have_text("It began when")
    chat.lose_connections(down=503)
    page.locator("#banner").wait_for()
    page.keyboard.press("Escape")
    chat.come_back()
    shown(page, "Tell me everything", "It began when")
    expect(page.locator(".remark")).to_have_text("Stopped")


def test_a_reply_is_copied(open_page: Callable[..., Page]) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    say(page, "<i>Hi</i>")
    page.get_by_role("button", name="Copy").click()
    expect(page.locator(".notice")).to_contain_text("Copied")
    assert page.evaluate("() => navigator.clipboard.readText()") == "You said: <i>Hi</i>"


def test_a_server_that_forgot_everything_gets_nothing_by_mistake(page: Page, chat: FakeChat) -> None:
    say(page, "before")
    expect(replies(page)).to_have_count(1)
    chat.lose_connections(down=503)
    page.locator("#banner").wait_for()
    say(page, "Yes, that one")
    chat.forget_everything()
    chat.come_back()
    expect(page.locator(".notice")).to_contain_text("this is a fresh one")
    expect(waiting(page).locator(".status")).to_contain_text("the conversation it was meant for")
    page.locator("#presence[data-phase=ready]").wait_for()
    expect(log(page)).to_have_count(0)
    assert chat.talk.messages == []


def test_somebody_elses_address_opens_a_fresh_chat(page: Page, open_page: Callable[..., Page]) -> None:
    say(page, "secret")
    expect(replies(page)).to_have_count(1)
    stranger = open_page()
    stranger.goto(page.url)
    stranger.reload()
    expect(stranger.locator(".notice")).to_contain_text("no longer available")
    stranger.locator("#presence[data-phase=ready]").wait_for()
    expect(log(stranger)).to_have_count(0)


def test_the_limit_is_counted_near_and_beyond_it(page: Page, chat: FakeChat) -> None:
    count, send = page.locator("#count"), page.get_by_role("button", name="Send message")
    box = page.get_by_label("Your message")
    box.fill("😀" * 1599)
    expect(count).to_be_empty()
    box.fill("😀" * 1600)
    expect(count).to_have_text("1,600 of 2,000 characters")
    expect(send).to_be_enabled()
    box.fill("😀" * 2001)
    expect(count).to_have_text("2,001 of 2,000 characters")
    expect(send).to_be_disabled()
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("longer than the 2,000 characters")
    assert said_frames(chat) == []


# Text is only ever text

HOSTILE: Final = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<svg onload=alert(1)></svg>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "</textarea></div><h1>Owned</h1>",
    "javascript:alert(1)",
    "[click](javascript:alert(1)) **bold** `code`",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "&lt;b&gt; &amp; &#x41;",
    "\u202egnirts desrever\u202c and \u2066isolated",
    "z\u0351\u0352\u0353" * 40,
    "\x1b[31mred\x1b[0m\x07",
    "zero\u200bwidth\u200d\ufeffend",
    "x" * 1900,
]


def test_a_notice_covers_neither_the_text_it_is_about_nor_the_way_to_the_end(
    page: Page, chat: FakeChat
) -> None:
    chat.answer = lambda text: (["line\n" * 60], {})
    say(page, "Hi")
    expect(replies(page)).to_have_count(1)
    page.locator("#scroller").evaluate("(scroller) => { scroller.scrollTop = 0; }")
    say(page, "word " * 500)
    expect(page.get_by_role("button", name="Latest message")).to_be_visible()
    edges = "(node) => { const { top, bottom } = node.getBoundingClientRect(); return [top, bottom]; }"
    notice, jump, form = (page.locator(name).evaluate(edges) for name in (".notice", "#jump", "#composer"))
    assert notice[1] <= jump[0]
    assert jump[1] <= form[0]


def test_no_message_is_anything_but_text(page: Page, chat: FakeChat) -> None:
    elements = "() => document.querySelectorAll('script, iframe, img, svg, h1').length"
    within = "() => document.querySelectorAll('.text *, .conversations a *').length"
    texts = "() => [...document.querySelectorAll('[role=log] .text')].map((node) => node.textContent)"
    chat.answer = lambda said: ([said], {"alternatives": [{"text": said + "!", "score": 0}]})
    for text in HOSTILE:
        page.get_by_role("link", name="New chat").click()
        expect(page.locator("#welcome")).to_be_visible()
        say(page, text)
        page.get_by_role("button", name="1 alternative").click()
        assert page.evaluate(texts) == [text, text, text + "!"]
        expect(page.locator(".conversations a").first).to_have_text(text[:80].strip())
        before = page.evaluate(elements)
        assert page.evaluate(within) == 0
    page.reload()  # the same from the server's history
    page.get_by_role("button", name="1 alternative").wait_for()
    assert page.evaluate(texts) == [HOSTILE[-1], HOSTILE[-1], HOSTILE[-1] + "!"]
    assert (page.evaluate(elements), page.evaluate(within)) == (before, 0)


def test_texts_keep_their_own_direction_and_lines(page: Page) -> None:
    say(page, "שלום\nעולם")
    text = log(page).first
    expect(text).to_have_css("direction", "rtl")
    expect(text).to_have_css("unicode-bidi", "isolate")
    expect(text).to_have_css("white-space-collapse", "preserve")


@pytest.mark.parametrize("text", ["x" * 1900, "z" + "\u0351" * 1800], ids=["long word", "stacked accents"])
def test_no_message_breaks_the_page(open_page: Callable[..., Page], text: str) -> None:
    page = open_page(phone=True)
    say(page, text)
    expect(replies(page)).to_have_count(1)
    wide = "() => [document.body, scroller].map((e) => e.scrollWidth - e.clientWidth)"
    assert page.evaluate(wide) == [0, 0]


# A person in the bot's place


def attendance(page: Page) -> Locator:
    return page.locator("#attendance")


def test_a_visitor_asks_for_a_person(page: Page, chat: FakeChat) -> None:
    say(page, "Hello")
    shown(page, "Hello", "You said: Hello")
    button = page.get_by_role("button", name="Ask for a person")
    button.focus()
    page.keyboard.press("Enter")
    assert chat.wait_for("human", 1) == [{"type": "human"}]
    expect(attendance(page)).to_contain_text("A person has been asked for")
    expect(attendance(page)).to_have_attribute("role", "status")
    expect(button).to_be_hidden()
    expect(page.get_by_label("Your message")).to_be_focused()
    page.reload()
    expect(attendance(page)).to_contain_text("A person has been asked for")
    say(page, "Meanwhile")
    shown(page, "Hello", "You said: Hello", "Meanwhile", "You said: Meanwhile")


def test_nobody_is_asked_for_without_a_connection(page: Page, chat: FakeChat) -> None:
    chat.lose_connections(down=503)
    expect(page.locator("#presence")).to_have_attribute("data-phase", "waiting")
    expect(page.get_by_role("button", name="Ask for a person")).to_be_disabled()


def test_a_person_takes_over_while_the_bot_speaks(page: Page, chat: FakeChat) -> None:
    chat.held = True
    say(page, "My card is lost")
    chat.stream("Cards are")
    expect(page.locator(".streaming .text")).to_have_text("Cards are")
    say(page, "Hurry")
    expect(waiting(page).locator(".status")).to_have_text("Waiting for the reply to end")
    chat.hand_over("operator")
    expect(attendance(page)).to_contain_text("A person has joined")
    expect(page.locator("#presence-words")).to_have_text("A person is here")
    expect(page.locator(".streaming")).to_be_hidden()
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_role("button", name="Ask for a person")).to_be_hidden()
    shown(page, "My card is lost", "Hurry")  # what was written meanwhile is said now, and waits for no reply
    say(page, "Are you there?")
    shown(page, "My card is lost", "Hurry", "Are you there?")
    chat.intervene("I have blocked it.")
    shown(page, "My card is lost", "Hurry", "Are you there?", "I have blocked it.")


def test_what_a_person_says_looks_and_sounds_different(page: Page, chat: FakeChat) -> None:
    say(page, "Hello")
    expect(replies(page)).to_have_count(1)
    chat.hand_over("operator")
    chat.intervene("<b>I</b> am here")
    person = page.get_by_role("log").locator(".operator")
    expect(person.locator(".text")).to_have_text("<b>I</b> am here")
    expect(person).to_contain_text("A person said:")
    expect(person.locator(".speaker")).to_be_visible()
    expect(person.get_by_role("button")).to_have_count(0)  # nothing to rate, nothing to make again
    expect(page.get_by_role("button", name="Another reply")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("log").locator(".operator .text")).to_have_text("<b>I</b> am here")
    expect(attendance(page)).to_contain_text("A person has joined")
    expect(page.locator(".streaming")).to_be_hidden()


def test_the_bot_is_back(page: Page, chat: FakeChat) -> None:
    say(page, "Hello")
    expect(replies(page)).to_have_count(1)
    chat.hand_over("operator")
    expect(attendance(page)).to_contain_text("A person has joined")
    say(page, "Anybody?")
    shown(page, "Hello", "You said: Hello", "Anybody?")
    chat.hand_over("bot")
    expect(attendance(page)).to_contain_text("The person has left")
    expect(page.locator(".streaming .dots")).to_be_visible()  # the last turn is going to be answered
    chat.answer_last()
    shown(page, "Hello", "You said: Hello", "Anybody?", "You said: Anybody?")
    expect(attendance(page)).to_have_text("")
    expect(page.get_by_role("button", name="Ask for a person")).to_be_visible()


# Settings, theme, keyboard, small screens


def test_settings_follow_the_model_until_they_are_changed(page: Page, chat: FakeChat) -> None:
    page.keyboard.press("Control+,")
    temperature = page.get_by_role("slider", name="Temperature")
    expect(temperature).to_have_value("0.7")
    expect(page.get_by_role("button", name="Reset to defaults")).to_be_disabled()
    temperature.fill("1.2")
    temperature.dispatch_event("change")
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    say(page, "Hi")
    expect(replies(page)).to_have_count(1)
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(temperature).to_have_value("1.2")
    page.get_by_role("button", name="Reset to defaults").click()
    expect(temperature).to_have_value("0.7")
    page.get_by_role("button", name="Done").click()
    say(page, "Hi again")
    expect(replies(page)).to_have_count(2)
    assert [frame["options"] for frame in said_frames(chat)] == [{"temperature": 1.2}, {}]


def test_each_way_of_decoding_shows_its_own_settings(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    beams, temperature = (page.get_by_role("slider", name=name) for name in ("Beams", "Temperature"))
    expect(temperature).to_be_visible()
    expect(beams).to_be_hidden()
    page.get_by_role("radio", name="Beam search").check()
    expect(temperature).to_be_hidden()
    expect(beams).to_be_visible()


def test_the_theme_is_chosen_and_kept(page: Page) -> None:
    light, dark = "rgb(248, 246, 241)", "rgb(20, 24, 22)"
    root = page.locator("html")
    page.emulate_media(color_scheme="dark")
    expect(root).to_have_css("background-color", dark)
    page.get_by_role("button", name="Color theme: auto. Switch to light").click()
    expect(root).to_have_css("background-color", light)
    page.reload()
    expect(root).to_have_css("background-color", light)
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Color theme: light. Switch to dark").click()
    expect(root).to_have_css("background-color", dark)


def test_shortcuts_are_explained_and_work(page: Page) -> None:
    page.keyboard.press("Control+/")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    say(page, "Hi")
    expect(replies(page)).to_have_count(1)
    page.keyboard.press("Alt+n")
    expect(page.locator("#welcome")).to_be_visible()


def test_on_a_phone_the_conversations_are_in_a_drawer(open_page: Callable[..., Page]) -> None:
    page = open_page(phone=True)
    say(page, "About boats")
    expect(replies(page)).to_have_count(1)
    sidebar, opener = page.locator("#sidebar"), page.get_by_role("button", name="Conversations", exact=True)
    expect(sidebar).not_to_be_in_viewport()
    opener.click()
    expect(sidebar).to_be_in_viewport()
    expect(page.get_by_role("link", name="New chat")).to_be_focused()
    page.keyboard.press("Escape")
    expect(sidebar).not_to_be_in_viewport()
    expect(opener).to_be_focused()
    opener.click()
    page.get_by_role("link", name="New chat").click()
    expect(page.locator("#welcome")).to_be_visible()
    expect(sidebar).not_to_be_in_viewport()


def test_a_greeting_higher_than_the_window_begins_at_its_beginning(open_page: Callable[..., Page]) -> None:
    page = open_page(viewport={"width": 640, "height": 320})
    greeting = page.get_by_role("heading", name="Hello. What can I do for you?")
    expect(greeting).to_be_in_viewport(ratio=1)
    example = page.get_by_role("button", name="How do I install a package")
    example.scroll_into_view_if_needed()
    page.locator("#scroller").evaluate("(scroller) => { scroller.scrollTop = 0; }")
    expect(greeting).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("button", name="Latest message")).to_be_hidden()
    example.click()
    expect(replies(page).get_by_role("button", name="Good reply")).to_be_in_viewport()


def test_a_reader_of_old_messages_is_left_there(page: Page, chat: FakeChat) -> None:
    chat.answer = lambda text: (["line\n" * 30], {})
    for number in range(3):
        say(page, f"question {number}")
        expect(replies(page)).to_have_count(number + 1)
    expect(replies(page).last.get_by_role("button", name="Good reply")).to_be_in_viewport()
    page.locator("#scroller").evaluate("(scroller) => { scroller.scrollTop = 0; }")
    jump = page.get_by_role("button", name="Latest message")
    expect(jump).to_be_visible()
    chat.intervene("A word from me")
    expect(page.locator(".operator")).to_contain_text("A word from me")
    assert page.evaluate("() => scroller.scrollTop") == 0
    jump.click()
    expect(page.locator(".operator")).to_be_in_viewport()
    expect(jump).to_be_hidden()


def test_the_page_works_without_storage(new_context: Callable[..., BrowserContext], chat: FakeChat) -> None:
    context = new_context()
    context.add_init_script("""
        const get = () => { throw new DOMException("blocked", "SecurityError"); };
        for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(window, name, { get });
    """)
    page = context.new_page()
    page.goto(chat.address)
    say(page, "Hi")
    shown(page, "Hi", "You said: Hi")
