"""Photographs the operators' console for the documentation.

    make run                                                     # in one terminal
    python -m server operator add Ada --role admin               # once; asks for a password
    CONSOLE_PASSWORD=… python docs/take_console_screenshots.py  # in another: docs/images/operator-*.png

Visitors chat with whatever model the server runs, then the operator reviews and takes over, all through the
pages: what the pictures show has happened. Use a database that may be written into.

    python -m tests.console_month sqlite:///month.db month      # a made-up month, for figures
    python -m server serve --database-url sqlite:///month.db --models month --replay-files F --dev-files F
    CONSOLE_PASSWORD="correct horse battery" python docs/take_console_screenshots.py --figures
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, sync_playwright

IMAGES: Final = Path(__file__).parent / "images"
DEVICES: Final[dict[str, ViewportSize]] = {
    "desktop": {"width": 1440, "height": 900},
    "phone": {"width": 390, "height": 844},
}
VISITORS: Final = [
    ["What will the weather be like tomorrow?"],
    ["Have you seen any good movies lately?", "I like comedies."],
    ["Can you check my bank balance?", "My name is Alexis."],
    ["How do I install a package on Ubuntu?"],
    ["I would like to book a table for two tonight.", "At eight, near the window if you can."],
    ["Hi, I need a doctor's appointment.", "My name is Alexis.", "Dr. Morgan, please."],
]
LABELS: Final = ["Wrong fact", "Did not understand", "Too long", "Not polite"]
CANNED: Final = [
    ("Greeting", "Hello {name}, my name is {operator}. How can I help you?"),
    ("Closing", "You are welcome. Have a good day!"),
]
POST: Final = """async ([path, body]) => {
  const { csrf } = await (await fetch("/api/operator/me")).json();
  const headers = { "content-type": "application/json", "x-csrf-token": csrf };
  await fetch(`/api/operator${path}`, { method: "POST", headers, body: JSON.stringify(body) });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--operator", default="Ada", help="who signs in, an admin (default: Ada)")
    parser.add_argument(
        "--out", type=Path, default=IMAGES, help="folder for the pictures (default: docs/images)"
    )
    parser.add_argument(
        "--figures", action="store_true", help="only topics, dashboard, retraining and the like"
    )
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    password = os.environ["CONSOLE_PASSWORD"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=told.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for talk in () if told.figures else VISITORS:
            visit(browser, told.address, talk)
        for device in DEVICES:
            context = device_context(browser, device)
            page = sign_in(context, told.address, told.operator, password)
            if told.figures:
                photograph_figures(page, told.address, told.out, device)
            else:
                if device == "desktop":
                    furnish(page)
                photograph(page, told.address, told.out, device)
            context.close()
        browser.close()


def device_context(browser: Browser, device: str) -> BrowserContext:
    phone = device == "phone"
    return browser.new_context(
        viewport=DEVICES[device],
        is_mobile=phone,
        has_touch=phone,
        device_scale_factor=2 if phone else 1,
        reduced_motion="reduce",
    )


def visit(browser: Browser, address: str, talk: list[str]) -> None:
    """One visitor, who says these things and waits for each reply; the last one dislikes what came."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    replies = page.locator("[role=log] .bot")
    for number, text in enumerate(talk):
        page.get_by_label("Your message").fill(text)
        page.keyboard.press("Enter")
        replies.nth(number).wait_for(timeout=60_000)
    if len(talk) > 2:
        replies.last.get_by_role("button", name="Bad reply").click()
        page.get_by_role("button", name="No, thanks").click()
    context.close()


def sign_in(context: BrowserContext, address: str, operator: str, password: str) -> Page:
    page = context.new_page()
    page.goto(f"{address}/operator/inbox")
    page.get_by_label("Name").fill(operator)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.locator(".rows a").first.wait_for()
    return page


def furnish(page: Page) -> None:
    """What a team has defined, and a first look at the newest conversation."""
    for label in LABELS:
        page.evaluate(POST, ["/labels", {"name": label}])
    for title, text in CANNED:
        page.evaluate(POST, ["/canned", {"title": title, "text": text}])
    page.reload()
    page.locator(".rows a").first.click()
    page.locator(".turn.bot.selected").wait_for()
    page.keyboard.press("p")
    page.keyboard.press("g")
    page.keyboard.press("b")
    page.keyboard.press("2")
    page.keyboard.press("c")
    page.get_by_label("What should have been said").fill(
        "Dr. Morgan is free on Tuesday at ten. Does that suit you?"
    )
    page.keyboard.press("Control+Enter")
    page.locator(".correction").wait_for()


def photograph(page: Page, address: str, out: Path, device: str) -> None:
    page.goto(f"{address}/operator/inbox")
    page.locator(".rows a").first.wait_for()
    both_themes(page, out / f"operator-inbox-{device}")
    page.locator(".rows a").first.click()
    page.locator(".turn.bot.selected").wait_for()
    if device == "desktop":
        page.locator(".attention-word").nth(2).hover(timeout=60_000)
    both_themes(page, out / f"operator-conversation-{device}")
    take_over(page)
    both_themes(page, out / f"operator-takeover-{device}")
    page.get_by_label("Your message to the visitor").fill("")
    page.get_by_role("button", name="Hand back").click()
    page.get_by_role("button", name="Take over").wait_for()
    page.goto(f"{address}/operator/review")
    page.locator(".turn.bot.selected").wait_for(timeout=120_000)  # conversations are quiet for a minute first
    if device == "desktop":
        page.locator(".attention-word").first.wait_for(timeout=60_000)
    both_themes(page, out / f"operator-review-{device}")


def photograph_figures(page: Page, address: str, out: Path, device: str) -> None:
    """The views of a month. If there is no map of topics yet, one is made, which takes a minute."""
    page.goto(f"{address}/operator/dashboard")
    page.locator(".tile").first.wait_for()
    both_themes(page, out / f"operator-dashboard-{device}")
    page.goto(f"{address}/operator/topics")
    page.locator(".topic-map, .empty-page").first.wait_for()
    if page.locator(".empty-page").is_visible():
        page.get_by_role("button", name="Make a new map").click()
    page.locator(".topic-map .point").first.wait_for(timeout=300_000)
    both_themes(page, out / f"operator-topics-{device}")
    for view, there in (("retraining", ".jobs li"), ("data", ".chips li"), ("settings", "td")):
        page.goto(f"{address}/operator/{view}")
        page.locator(there).first.wait_for()
        page.locator("table").first.wait_for()
        both_themes(page, out / f"operator-{view}-{device}")
    page.goto(f"{address}/operator/retraining")
    page.locator(".jobs a").first.click()
    page.locator(".chart").wait_for()
    both_themes(page, out / f"operator-job-{device}")
    page.get_by_role("link", name="What would change").click()
    page.locator(".pair-reply").first.wait_for()
    both_themes(page, out / f"operator-changes-{device}")


def take_over(page: Page) -> None:
    page.get_by_role("button", name="Take over").click()
    page.locator(".composer textarea:focus").wait_for()
    page.get_by_label("Your message to the visitor").press_sequentially("Your", delay=30)
    page.get_by_role("option").first.wait_for(timeout=30_000)


def both_themes(page: Page, name: Path) -> None:
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        # The page is drawn in its new colors a frame or two later than it says so.
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.screenshot(path=f"{name}-{theme}.png")


if __name__ == "__main__":
    main()
