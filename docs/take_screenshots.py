"""Photographs the chat page for the documentation.

    make run                                  # in one terminal
    python docs/take_screenshots.py           # in another; writes docs/images/*.png

Talks with whatever model the server at the given address runs, so the pictures show real replies.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES: Final = Path(__file__).parent / "images"
DEVICES: Final = {"desktop": (1280, 800), "phone": (390, 844)}
EARLIER: Final = ["What will the weather be like tomorrow?", "Have you seen any good movies lately?"]
TALK: Final = [
    "Hi, I need a doctor's appointment.",
    "My name is Alexis.",
    "Dr. Morgan, please.",
    "On Tuesday.",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument(
        "--out", type=Path, default=IMAGES, help="folder for the pictures (default: docs/images)"
    )
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
    parser.add_argument(
        "--say", action="append", metavar="TEXT", help="what to say instead of the usual; repeatable"
    )
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=told.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for device in DEVICES:
            photograph(browser, device, told.address, told.say or TALK, told.out)
        browser.close()


def photograph(browser: Browser, device: str, address: str, talk: list[str], out: Path) -> None:
    """The greeting and a conversation, in light and dark, as one visitor sees them on a device."""
    width, height = DEVICES[device]
    phone = device == "phone"
    context = browser.new_context(
        viewport={"width": width, "height": height},
        is_mobile=phone,
        has_touch=phone,
        device_scale_factor=2 if phone else 1,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(address)
    for text in EARLIER:
        say(page, text)
        begin_anew(page)
    both_themes(page, out / f"greeting-{device}")
    for text in talk:
        say(page, text)
    both_themes(page, out / f"chat-{device}")
    context.close()


def say(page: Page, text: str) -> None:
    """Say something and wait for the whole reply."""
    replies = page.locator("[role=log] .bot")
    before = replies.count()
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    replies.nth(before).wait_for(timeout=60_000)


def begin_anew(page: Page) -> None:
    page.keyboard.press("Alt+n")
    page.locator("#welcome").wait_for()
    page.locator("#presence[data-phase=ready]").wait_for()


def both_themes(page: Page, name: Path) -> None:
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        # The page is drawn in its new colors a frame or two later than it says so.
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.screenshot(path=f"{name}-{theme}.png")


if __name__ == "__main__":
    main()
