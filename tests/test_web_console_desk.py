"""The console's pages of figures, lists and forms, in a browser over the real server and a made-up month."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import pytest
from playwright.sync_api import FilePayload, Page, expect
from sqlalchemy import select, update

from server.database import reading, writing
from server.tables import (
    AuditEntry,
    CannedReply,
    Conversation,
    ImportedTranscript,
    Label,
    MaskedName,
    Pair,
)
from tests.console_desk import BAD, Desk, Open, ask, part, row, sure
from tests.console_month import add_job, add_pairs, done, progress
from tests.test_web_console_accessibility import SMALL, violations

pytest_plugins = ["tests.console_desk_fixtures"]
pytestmark = pytest.mark.browser

CORPUS: Final = [BAD, '"><script>alert(1)</script>', "javascript:alert(1)", "\u202egnp.exe", "e\u0301" * 30]


# --- figures ----------------------------------------------------------------------------------------------


def test_the_dashboard_shows_what_the_api_says(opened: Open) -> None:
    page = opened("dashboard")
    expect(page.locator(".tile")).to_have_count(8)
    days = page.evaluate(
        "() => [29, 0].map((n) => new Date(Date.now() - n * 864e5).toISOString().slice(0, 10))"
    )
    told = ask(page, f"/statistics?from={days[0]}&to={days[1]}")
    total = told["total"]
    assert total["conversations"] > 30
    assert 0 < total["handled_alone"] < total["conversations"]
    assert total["thumbs_down"] > 0
    percent = round(100 * total["handled_alone"] / total["conversations"])
    tiles = [" ".join(tile.split()) for tile in page.locator(".tile dd").all_inner_texts()]
    assert tiles[0].startswith(f"{total['conversations']} ")
    assert tiles[1] == f"{percent} % {total['handled_alone']} of {total['conversations']}"
    assert tiles[2].endswith(f"{total['thumbs_up']} up, {total['thumbs_down']} down")
    assert tiles[3].endswith(f"{total['abstained']} of {total['replies']} replies")
    assert tiles[6].startswith(f"{round(total['first_token_ms']['p50'])} ms")

    figure = page.locator(".figure").first
    figure.locator("summary").click()
    rows = [line.split("\t")[1:] for line in figure.locator("tbody tr").all_inner_texts()]
    expected = [(d["handled_alone"], d["conversations"] - d["handled_alone"]) for d in told["days"]]
    assert [tuple(map(int, cells)) for cells in rows] == expected
    drawn = figure.locator(".bar.one").evaluate_all("all => all.map((bar) => bar.height.baseVal.value)")
    alone = [value for value, _ in expected if value]
    assert len(drawn) == len(alone)
    assert drawn[0] / drawn[-1] == pytest.approx(alone[0] / alone[-1], rel=0.01)

    assert len(told["models"]) == 2
    for line, model in zip(
        part(page, "By model").locator("tbody tr").all_inner_texts(), told["models"], strict=True
    ):
        cells = line.split("\t")
        assert (cells[0], cells[1], cells[3]) == (
            model["model"],
            str(model["conversations"]),
            str(model["replies"]),
        )
    page.get_by_label("Days").select_option("7")
    expect(page).to_have_url(re.compile("days=7"))
    expect(page.locator(".tile dd").first).not_to_contain_text(str(total["conversations"]))
    page.go_back()
    expect(page.get_by_label("Days")).to_have_value("30")
    expect(page.locator(".tile dd").first).to_contain_text(str(total["conversations"]))


def test_a_map_is_made_and_leads_to_the_inbox(opened: Open, desk: Desk) -> None:
    page = opened("topics")
    page.get_by_role("button", name="Make a new map").click()
    expect(page.locator(".topic-map")).to_be_visible(timeout=60_000)
    told = ask(page, "/topics")["map"]
    assert len(told["points"]) >= 60
    assert len(told["clusters"]) > 1
    expect(page.locator(".point")).to_have_count(len(told["points"]))
    rows = part(page, "Topics").locator("tbody tr")
    expect(rows).to_have_count(len(told["clusters"]))
    smallest = told["clusters"][-1]
    expect(rows.last).to_contain_text(", ".join(smallest["words"]))
    expect(rows.last.locator("td").nth(1)).to_have_text(str(smallest["size"]))
    rows.last.get_by_role("link").click()
    expect(page).to_have_url(re.compile(rf"/operator/inbox\?cluster={smallest['number']}&state=all"))
    expect(page.locator("a.inbox-row")).to_have_count(min(50, smallest["size"]))
    page.go_back()
    page.locator(".topic-name").first.dispatch_event("click")
    expect(page).to_have_url(re.compile(r"/operator/inbox\?cluster="))
    page.go_back()
    page.locator(".point").first.dispatch_event("click")
    expect(page).to_have_url(re.compile(rf"/inbox/{told['points'][0]['conversation']}"))
    assert page.evaluate("() => performance.getEntriesByType('navigation').length") == 1


# --- data -------------------------------------------------------------------------------------------------


def query_of(page: Page) -> dict[str, str]:
    """What the next download is asked for with."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    return dict(parse_qsl(download.value.url.partition("?")[2]))


def test_an_export_is_what_was_asked_for(opened: Open) -> None:
    page = opened("data")
    masking = part(page, "Export").get_by_role("status")
    expect(masking).to_have_text("Personal data masked")
    page.get_by_label("What").select_option("csv")
    page.get_by_label("From").fill("2020-01-02")
    page.get_by_label("That say").fill("refund")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    query = dict(parse_qsl(download.value.url.partition("?")[2]))
    began = page.evaluate("() => new Date('2020-01-02T00:00:00').toISOString()")
    assert query == {"format": "csv", "state": "all", "from": began, "q": "refund"}
    assert download.value.suggested_filename == "messages.csv"
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert len(lines) > 1
    assert "refund" in "".join(lines)
    page.get_by_label("With personal data").check()
    expect(masking).to_have_text("With personal data")
    assert query_of(page)["mask"] == "false"


def test_a_refused_export_says_why(opened: Open) -> None:
    page = opened("data")
    page.get_by_label("From").fill("2026-12-30")
    page.get_by_label("Until").fill("2026-01-01")
    page.get_by_role("button", name="Download").click()
    told = part(page, "Export").get_by_role("alert")
    expect(told).to_contain_text("from is later than to")
    expect(page.get_by_role("button", name="Download")).to_be_focused()
    page.get_by_label("From").fill("")
    assert query_of(page)["format"] == "jsonl"
    expect(told).to_have_text("No conversation fits these filters: the file is empty.")


def test_what_the_inbox_shows_can_be_exported(opened: Open, desk: Desk) -> None:
    """Every filter goes along, as exactly as the address says it, and can be changed on the way."""
    asked = {
        "state": "all",
        "mine": "true",
        "reviewed": "false",
        "rating": "down",
        "confidence_below": "0.755",
        "model": desk.models["base"],
        "label": "Too long",
        "verdict": "bad",
        "cluster": "2",
        "from": "2025-01-03T10:30:00Z",
        "to": "2035-01-03T10:30:00Z",
        "q": "refund",
    }
    page = opened(f"inbox?{urlencode(asked)}")
    page.get_by_role("link", name="Export").click()
    expect(part(page, "Export").locator(".callout")).to_contain_text("as you left it")
    expect(page.get_by_label("Less sure than")).to_have_value("76")
    expect(page.get_by_label("Label", exact=True).locator("option")).not_to_have_count(2)
    assert query_of(page) == {"format": "jsonl", **asked}
    page.get_by_label("Less sure than").fill("50")
    page.get_by_label("Until").fill("")
    page.get_by_label("Whose").select_option("")
    changed = {**asked, "confidence_below": "0.5"}
    del changed["to"], changed["mine"]
    assert query_of(page) == {"format": "jsonl", **changed}


def test_a_plain_inbox_exports_what_is_open(opened: Open, desk: Desk) -> None:
    page = opened("inbox")
    page.get_by_role("link", name="Export").click()
    page.get_by_label("What").select_option("csv")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    lines = download.value.path().read_text(encoding="utf-8").splitlines()[1:]
    there = {line.partition(",")[0] for line in lines if line[:32].isalnum()}
    with reading(desk.db) as connection:
        talks = select(Conversation.id).where(Conversation.closed_at.is_(None), Conversation.last_seq > 0)
        assert there == set(connection.scalars(talks))


def transcript(number: int) -> dict[str, Any]:
    turns = [{"role": "user", "text": "Hello"}, {"role": "agent", "text": "Hello, good day."}]
    return {"id": f"t{number}", "turns": turns}


def test_uploads_are_taken_in_or_reported_by_line(opened: Open, desk: Desk) -> None:
    page = opened("data")
    good = "".join(json.dumps(transcript(number)) + "\n" for number in range(3))
    upload(page, f"{BAD}.jsonl", good + '{"id": 5}\nnonsense\n')
    expect(page.locator(".report .bad-words").first).to_contain_text("2 problems")
    lines = page.get_by_role("region", name="Problems").locator("tbody tr td:first-child")
    expect(lines).to_have_text(["4", "5"])
    assert desk.count(ImportedTranscript) == 0
    upload(page, f"{BAD}.jsonl", good)
    expect(page.locator(".report .good-words").first).to_have_text("3 conversations taken in.")
    expect(row(page, "Uploaded files", BAD)).to_contain_text("Ada")
    upload(page, "again.jsonl", good)
    expect(page.locator(".report .bad-words").first).to_contain_text("was imported before")
    page.get_by_role("button", name=f"Forget {BAD}").click()
    sure(page, "Forget")
    expect(page.get_by_text("No file was uploaded yet.")).to_be_visible()
    assert desk.count(ImportedTranscript) == 0


def upload(page: Page, name: str, text: str) -> None:
    file: FilePayload = {"name": name, "mimeType": "application/jsonl", "buffer": text.encode()}
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("button", name="Upload").click()


def test_names_are_masked_and_no_more(opened: Open, desk: Desk) -> None:
    page = opened("data")
    page.get_by_role("textbox", name="Name").fill(BAD)
    page.get_by_role("button", name="Mask this name").click()
    expect(page.locator(".chips li").filter(has_text=BAD)).to_have_count(1)
    expect(page.get_by_role("textbox", name="Name")).to_have_value("")
    page.get_by_role("textbox", name="Name").fill("!")
    page.get_by_role("button", name="Mask this name").click()
    expect(page.locator("#notices")).to_contain_text("needs a letter")
    before = desk.count(MaskedName)
    page.get_by_role("button", name=f"Remove {BAD}").click()
    expect(page.locator(".chips li").filter(has_text=BAD)).to_have_count(0)
    assert desk.count(MaskedName) == before - 1


def test_erasing_asks_before_and_reports(opened: Open, desk: Desk) -> None:
    page = opened("data")
    talk = desk.month.talks[3]
    before = desk.count(Conversation)
    for answer in ("Cancel", "Erase"):
        page.get_by_role("textbox", name="Id").fill(f" {talk} ")
        page.get_by_role("button", name="Erase…").click()
        assert desk.count(Conversation) == before
        sure(page, answer)
    told = page.get_by_role("region", name="What was erased")
    expect(told.locator("tr").filter(has_text="conversations").first).to_contain_text("1")
    assert desk.count(Conversation) == before - 1
    page.get_by_label("Known by").select_option("visitor")
    page.get_by_role("textbox", name="Id").fill("nobody")
    page.get_by_role("button", name="Erase…").click()
    sure(page, "Erase")
    expect(page.locator("#notices")).to_contain_text("no such visitor")


# --- who may do what --------------------------------------------------------------------------------------


def test_reviewers_are_not_shown_what_only_admins_may_do(opened: Open, desk: Desk) -> None:
    page = opened("settings", "Ben")
    expect(row(page, "Labels", "Too long")).to_be_visible()
    shown = set(page.locator(".page button").all_inner_texts())
    assert shown <= {"Keep this reply", "Edit", "Remove", "Change the password"}
    for title in ("Operators", "Audit log"):
        expect(page.get_by_role("heading", name=title)).to_have_count(0)
    address = desk.live.address
    page.goto(f"{address}/operator/data")
    expect(page.locator(".chips li").first).to_be_visible()
    assert set(page.locator(".page button").all_inner_texts()) == {"Download", "Upload"}
    expect(page.get_by_label("With personal data")).to_have_count(0)
    expect(part(page, "Export").get_by_role("status")).to_have_text("Personal data masked")
    page.goto(f"{address}/operator/retraining")
    expect(row(page, "Models", "base")).to_be_visible()
    expect(page.locator(".page button")).to_have_count(0)


# --- hostile text -----------------------------------------------------------------------------------------


def test_hostile_text_is_text(opened: Open, desk: Desk) -> None:
    now = datetime.now(UTC)
    hostile = {**done(1, BAD, passed=False), "not_installed": BAD}
    hostile["reasons"][0] = {"name": BAD, "passed": False, "text": CORPUS[1]}
    log = {**progress(5), "log": CORPUS}
    job = add_job(desk.db, desk.ids["Ada"], "tw-x", result=hostile, progress=log, candidate=BAD)
    failed = add_job(desk.db, None, "tw-x", "failed", result={"error": CORPUS[1]})
    add_pairs(desk.db, job, desk.month.said[10:11])
    with writing(desk.db) as connection:
        connection.execute(
            update(Pair).where(Pair.job_id == job).values(base_text=BAD, candidate_text=CORPUS[1])
        )
        for number, text in enumerate(CORPUS):
            label = {"name": f"{text} {number}", "created_at": now}
            connection.execute(Label.__table__.insert(), [label])  # type: ignore[attr-defined]
            canned = {"id": f"x{number}", "title": text, "text": text, "updated_at": now}
            connection.execute(CannedReply.__table__.insert(), [canned])  # type: ignore[attr-defined]
            entry = {"at": now, "operator": text, "action": text, "subject": text, "details": {text: text}}
            connection.execute(AuditEntry.__table__.insert(), [entry])  # type: ignore[attr-defined]
    page = opened("settings")
    for text in CORPUS:
        expect(row(page, "Labels", text).first).to_be_visible()
        expect(row(page, "Canned replies", text).first).to_be_visible()
        expect(row(page, "Audit log", text).first).to_be_visible()
    nothing_ran(page)
    address = desk.live.address
    page.goto(f"{address}/operator/retraining")
    expect(row(page, "Models", BAD)).to_be_visible()
    expect(page.locator(".jobs")).to_contain_text(CORPUS[1])
    page.get_by_role("button", name=f"Promote {BAD}").click()
    expect(page.get_by_role("alertdialog")).to_contain_text(f"Let {BAD} answer everybody")
    nothing_ran(page)
    page.keyboard.press("Escape")
    page.goto(f"{address}/operator/retraining/{job}")
    expect(part(page, "The gate")).to_contain_text(CORPUS[1])
    for text in CORPUS:
        expect(page.locator(".log")).to_contain_text(text)
    nothing_ran(page)
    page.goto(f"{address}/operator/retraining/{job}/changes")
    expect(page.locator(".changes")).to_contain_text(BAD)
    expect(page.locator(".pair")).to_contain_text(CORPUS[1])
    nothing_ran(page)
    page.goto(f"{address}/operator/retraining/{failed}")
    expect(page.locator(".callout")).to_have_text(CORPUS[1])
    nothing_ran(page)


def nothing_ran(page: Page) -> None:
    """Dialogs fail the test by themselves (see tests.web_fixtures)."""
    made = "document.querySelectorAll('.view img, .view script, dialog img, [href^=\"javascript:\"]').length"
    assert page.evaluate(made) == 0


# --- for everybody ----------------------------------------------------------------------------------------


def scenes(page: Page, desk: Desk) -> Iterator[str]:
    ready = {
        "dashboard": ".tile",
        "topics": ".page-body > *",
        "retraining": ".model",
        f"retraining/{desk.job}": ".log",
        f"retraining/{desk.job}/changes": ".changes > li",
        "data": ".chips li",
        "settings": ".page-body > :nth-last-child(2) tbody td",
    }
    for view, there in ready.items():
        page.goto(f"{desk.live.address}/operator/{view}")
        page.locator(there).first.wait_for()
        if view == "dashboard":
            page.get_by_text("As a table").first.click()
        if view == "retraining":
            page.get_by_text("Settings of this retraining").click()
        yield view
    page.get_by_role("button", name="Remove Closing").click()
    yield "a question"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Edit Closing").click()
    yield "a canned reply"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Set a password for Ben").click()
    dialog = page.get_by_role("dialog")
    for label, text in (("New password", "one"), ("Once more", "other")):
        dialog.get_by_label(label).fill(text)
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).not_to_be_empty()
    yield "a password"
    page.keyboard.press("Escape")


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Open, desk: Desk, theme: str, phone: bool) -> None:
    page = opened("topics", phone=phone, color_scheme=theme)
    page.get_by_role("button", name="Make a new map").click()
    page.locator(".topic-map").wait_for(timeout=60_000)
    found = {scene: violations(page) for scene in scenes(page, desk)}
    assert len(found) == 10
    assert {scene: problems for scene, problems in found.items() if problems} == {}


def test_a_phone_shows_everything_without_scrolling_sideways(opened: Open, desk: Desk) -> None:
    page = opened("dashboard", phone=True)
    cut = """() => [...document.querySelectorAll(".rail-words")]
      .filter((node) => node.scrollWidth > node.clientWidth).length"""
    wide = """() => [document.documentElement, document.querySelector(".page")]
      .map((node) => node.scrollWidth - node.clientWidth)"""
    for scene in scenes(page, desk):
        assert page.evaluate(wide) == [0, 0], scene
        assert page.evaluate(cut) == 0, scene
        assert page.evaluate(SMALL, 43.5) == [], scene
    page.set_viewport_size({"width": 320, "height": 640})
    for scene in scenes(page, desk):
        assert page.evaluate(wide) == [0, 0], scene
