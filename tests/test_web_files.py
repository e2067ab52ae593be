"""The web client's files: nothing foreign, nothing inline, no way for a message to become markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from server.http import WEB

PAGES: Final = (WEB / "index.html", WEB / "sign_in.html")
PAGE: Final = "".join(page.read_text() for page in PAGES)
SCRIPTS: Final = sorted(WEB.glob("*.js"))
STYLES: Final = sorted(WEB.glob("*.css"))


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for file in (*PAGES, *SCRIPTS, *STYLES):
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text()))
        assert addresses <= {"http://www.w3.org"}, file.name  # a namespace, never fetched


def test_every_file_the_page_names_is_there() -> None:
    sources = [PAGE, *(file.read_text() for file in (*SCRIPTS, *STYLES))]
    named = {name for text in sources for name in re.findall(r"/static/([\w.-]+\.\w+)", text)}
    imported = {name for file in SCRIPTS for name in re.findall(r'from "\./([\w.]+)"', file.read_text())}
    assert {name for name in named | imported if not (WEB / name).is_file()} == set()


def test_no_file_lies_around_unused() -> None:
    texts = "\n".join(file.read_text() for file in (*PAGES, *SCRIPTS, *STYLES))
    unused = {file.name for file in WEB.iterdir() if f"/{file.name}" not in texts}
    assert unused == {page.name for page in PAGES}


def test_nothing_in_the_page_is_inline() -> None:
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", PAGE) == []


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_have_no_way_to_write_markup(file: Path) -> None:
    markup = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    )
    code = r"\beval\b|new Function|setAttribute\(\"style\"|javascript:"
    assert re.findall(f"{markup}|{code}", file.read_text()) == []


def test_every_element_the_scripts_ask_for_is_in_the_page() -> None:
    asked = {name for file in SCRIPTS for name in re.findall(r'byId\("([\w-]+)"\)', file.read_text())}
    assert asked - set(re.findall(r'\bid="([\w-]+)"', PAGE)) == set()


def test_every_icon_that_is_asked_for_is_drawn() -> None:
    texts = PAGE + "\n".join(file.read_text() for file in SCRIPTS)
    asked = set(re.findall(r'icons\.svg#([\w-]+)"|icon\("([\w-]+)"\)|#button\("([\w-]+)"', texts))
    drawn = set(re.findall(r'<symbol id="([\w-]+)"', (WEB / "icons.svg").read_text()))
    assert {name for names in asked for name in names if name} - drawn == set()
    assert {"up-thumb", "down-thumb", "theme-auto", "theme-light", "theme-dark"} <= drawn
