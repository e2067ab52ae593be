"""The console's pages of figures, lists and forms, in a browser over the real server and a made-up month."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, expect
from sqlalchemy import Engine, func, select, update

from chatbot.tokenizer import Tokenizer
from server.console.accounts import Accounts
from server.database import connect, reading, upgrade, writing
from server.tables import (
    AuditEntry,
    CannedReply,
    Conversation,
    ImportedTranscript,
    Job,
    Label,
    MaskedName,
    Operator,
    Pair,
)
from tests.console_month import PASSWORD, Month, add_job, add_pairs, done, fill, gate, progress
from tests.live_server import LiveServer, serving
from tests.models import seal_tiny
from tests.scripted_batcher import parrot
from tests.test_web_console_accessibility import SMALL, violations

pytest_plugins = ["tests.web_fixtures"]
pytestmark = pytest.mark.browser

BAD: Final = "<img src=x onerror=alert(1)>"
CORPUS: Final = [BAD, '"><script>alert(1)</script>', "javascript:alert(1)", "\u202egnp.exe", "e\u0301" * 30]
API: Final = "/api/operator"
VIEWS: Final = ("dashboard", "topics", "retraining", "data", "settings")


@dataclass
class Desk:
    """The server with a month in it. ids: of operators. models: fingerprints by name. job: a finished one."""

    live: LiveServer
    db: Engine
    folder: Path
    ids: dict[str, str]
    models: dict[str, str]
    month: Month
    job: str

    def count(self, table: type[Any]) -> int:
        with reading(self.db) as connection:
            return connection.scalar(select(func.count()).select_from(table)) or 0


def verdict(passed: bool) -> dict[str, Any]:
    found = gate(passed)
    named = [{"check": r["name"], "passed": r["passed"], "text": r["text"]} for r in found["reasons"]]
    return {"gate": {"passed": passed, "reasons": named}}


@pytest.fixture(scope="module")
def desk(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    models = folder / "models"
    models.mkdir()
    sealed = {
        "base": seal_tiny(models / "base", tiny_tokenizer, 1),
        "better": seal_tiny(models / "better", tiny_tokenizer, 2, verdict(True)),
        "worse": seal_tiny(models / "worse", tiny_tokenizer, 3, verdict(False)),
        BAD: seal_tiny(models / BAD, tiny_tokenizer, 4),
    }
    (models / "active").write_text("base\n", encoding="utf-8")
    url = f"sqlite:///{folder / 'turnwise.db'}"
    upgrade(url)
    db = connect(url)
    accounts = Accounts(db)
    roles: dict[str, Literal["admin", "reviewer"]] = {"Ada": "admin", "Ben": "reviewer", "Cleo": "reviewer"}
    ids = {name: accounts.add(name, role, PASSWORD).id for name, role in roles.items()}
    month = fill(db, ids["Ada"], (sealed["base"], sealed["better"]), talks=70, days=14)
    job = add_job(db, ids["Ada"], sealed["base"], candidate=sealed["better"], result=done(6, "better"))
    add_pairs(db, job, month.said[-6:])
    with serving(url, models, parrot, jobs_dir=folder / "jobs") as live:
        yield Desk(live, db, folder, ids, sealed, month, job)
    db.dispose()


Open = Callable[..., Page]


@pytest.fixture
def opened(desk: Desk, new_context: Callable[..., BrowserContext]) -> Open:
    """``opened("dashboard", who="Ben", phone=True)``: a page of somebody who is signed in."""

    def go(view: str, who: str = "Ada", **options: Any) -> Page:
        context = new_context(**options)
        login = {"name": who, "password": PASSWORD}
        address = desk.live.address
        answer = context.request.post(f"{address}{API}/login", data=login, headers={"origin": address})
        assert answer.ok, answer.text()
        page = context.new_page()
        page.goto(f"{address}/operator/{view}")
        page.get_by_role("heading", level=1).wait_for()
        return page

    return go


def part(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title, exact=True).first


def row(page: Page, title: str, text: str) -> Locator:
    return part(page, title).locator("tbody tr").filter(has_text=text)


def ask(page: Page, path: str) -> Any:
    return page.request.get(page.url.split("/operator")[0] + API + path).json()


def sure(page: Page, yes: str) -> None:
    page.get_by_role("alertdialog").get_by_role("button", name=yes, exact=True).click()
    expect(page.get_by_role("alertdialog")).to_have_count(0)


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


# --- settings ---------------------------------------------------------------------------------------------


def test_labels_are_added_and_archived(opened: Open) -> None:
    page = opened("settings")
    page.get_by_label("Label", exact=True).fill("Off topic")
    page.keyboard.press("Enter")
    expect(row(page, "Labels", "Off topic")).to_be_visible()
    expect(page.get_by_label("Label", exact=True)).to_have_value("")
    page.get_by_role("button", name="Archive: Off topic").click()
    expect(row(page, "Labels", "Off topic")).to_contain_text("archived")
    page.get_by_role("button", name="Offer again: Off topic").click()
    expect(row(page, "Labels", "Off topic")).not_to_contain_text("archived")
    page.get_by_label("Label", exact=True).fill("Off topic")
    page.keyboard.press("Enter")
    expect(page.locator("#notices")).to_contain_text("already")
    expect(page.get_by_label("Label", exact=True)).to_have_value("Off topic")


def test_canned_replies_are_kept_and_removed(opened: Open, desk: Desk) -> None:
    page = opened("settings", "Ben")
    page.get_by_label("Title").fill("Opening hours")
    page.get_by_label("Text").fill("We are open\nfrom nine to {hour}.")
    page.get_by_role("button", name="Keep this reply").click()
    expect(row(page, "Canned replies", "Opening hours")).to_contain_text("from nine to {hour}.")
    before = desk.count(CannedReply)
    page.get_by_role("button", name="Remove Opening hours").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alertdialog")).to_have_count(0)
    assert desk.count(CannedReply) == before
    page.get_by_role("button", name="Remove Opening hours").click()
    sure(page, "Remove")
    expect(row(page, "Canned replies", "Opening hours")).to_have_count(0)


def test_operators_are_added_and_disabled(opened: Open, desk: Desk) -> None:
    page = opened("settings")
    form = part(page, "Operators")
    form.get_by_label("Name").fill("Dora")
    form.get_by_label("Password").fill("short")
    form.get_by_role("button", name="Add an operator").click()
    expect(page.locator("#notices")).not_to_be_empty()
    expect(form.get_by_label("Name")).to_have_value("Dora")
    form.get_by_label("Password").fill(PASSWORD)
    form.get_by_role("button", name="Add an operator").click()
    dora = row(page, "Operators", "Dora")
    expect(dora).to_contain_text("reviewer")
    dora.get_by_role("button", name="Make Dora admin").click()
    expect(dora).to_contain_text("admin")
    dora.get_by_role("button", name="Disable Dora").click()
    expect(dora).to_contain_text("disabled")
    with reading(desk.db) as connection:
        found = connection.execute(select(Operator.role, Operator.disabled_at).where(Operator.name == "Dora"))
        [(role, disabled)] = found
    assert (role, disabled is None) == ("admin", False)
    page.get_by_role("button", name="Disable Ada").click()  # oneself: asks first
    page.keyboard.press("Escape")
    expect(row(page, "Operators", "Ada")).not_to_contain_text("disabled")
    page.reload()
    expect(row(page, "Audit log", "operator_added").first).to_contain_text("Dora")


def test_the_audit_log_goes_on(opened: Open, desk: Desk) -> None:
    with writing(desk.db) as connection:
        entries = [
            {"at": datetime.now(UTC) - timedelta(days=1), "operator": "Zoe", "action": f"old.{n}"}
            for n in range(60)
        ]
        connection.execute(AuditEntry.__table__.insert(), entries)  # type: ignore[attr-defined]
    page = opened("settings")
    rows = part(page, "Audit log").locator("tbody tr")
    expect(rows).to_have_count(25)
    page.get_by_role("button", name="Earlier").click()
    expect(rows).to_have_count(50)
    page.get_by_role("button", name="Earlier").click()
    expect(rows.filter(has_text="old.0")).to_have_count(1)
    told = rows.locator("td:nth-child(3)").all_inner_texts()
    assert len([action for action in told if action.startswith("old.")]) == 60


def test_a_password_is_changed(opened: Open, desk: Desk) -> None:
    page = opened("settings", "Cleo")
    form = part(page, "Your password")

    def change(old: str, fresh: str, again: str) -> None:
        for label, text in (("The present one", old), ("A new one", fresh), ("Once more", again)):
            form.get_by_label(label).fill(text)
        form.get_by_role("button", name="Change the password").click()

    change(PASSWORD, "another long password", "another long passwort")
    expect(page.locator("#notices")).to_contain_text("differ")
    change("not the present one", "another long password", "another long password")
    expect(page.locator("#notices")).to_contain_text("not that")
    change(PASSWORD, "another long password", "another long password")
    expect(page.locator("#notices")).to_contain_text("is changed")
    expect(form.get_by_label("A new one")).to_have_value("")
    assert Accounts(desk.db).sign_in("Cleo", PASSWORD) is None
    assert Accounts(desk.db).sign_in("Cleo", "another long password") is not None


# --- data -------------------------------------------------------------------------------------------------


def test_an_export_is_what_was_asked_for(opened: Open) -> None:
    page = opened("data")
    page.get_by_label("What").select_option("csv")
    page.get_by_label("Which conversations").select_option("all")
    page.get_by_label("From").fill("2020-01-02")
    page.get_by_label("That say").fill("refund")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    query = download.value.url.partition("?")[2].split("&")
    assert sorted(query) == ["format=csv", "from=2020-01-02T00%3A00%3A00Z", "q=refund", "state=all"]
    assert download.value.suggested_filename == "messages.csv"
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert len(lines) > 1
    assert "refund" in "".join(lines)
    page.get_by_label("With personal data").check()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert "mask=false" in download.value.url.split("&")


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
        page.get_by_label("Id").fill(f" {talk} ")
        page.get_by_role("button", name="Erase…").click()
        assert desk.count(Conversation) == before
        sure(page, answer)
    told = page.get_by_role("region", name="What was erased")
    expect(told.locator("tr").filter(has_text="conversations").first).to_contain_text("1")
    assert desk.count(Conversation) == before - 1
    page.get_by_label("Known by").select_option("visitor")
    page.get_by_label("Id").fill("nobody")
    page.get_by_role("button", name="Erase…").click()
    sure(page, "Erase")
    expect(page.locator("#notices")).to_contain_text("no such visitor")


# --- retraining -------------------------------------------------------------------------------------------


def test_a_retraining_shows_what_the_gate_says(opened: Open, desk: Desk) -> None:
    page = opened("retraining")
    expect(page.locator(".callout")).to_contain_text("--replay-files")
    expect(page.get_by_role("button", name="Retrain now")).to_be_disabled()
    mine = page.locator(".jobs li").filter(has_text="6 of 500 replies change")
    expect(mine).to_contain_text("gate passed")
    mine.get_by_role("link").click()
    expect(page).to_have_url(re.compile(f"/operator/retraining/{desk.job}$"))
    expect(part(page, "The gate").locator("tbody tr")).to_have_count(6)
    expect(part(page, "The gate")).to_contain_text("Of 500 logged turns it answers 6 differently.")
    expect(part(page, "About")).to_contain_text("gate.adoption=0.5")
    expect(page.locator(".chart .stroke.one")).to_have_attribute("points", re.compile(r"\d"))
    expect(page.locator(".log")).to_contain_text("update 1 of 400")
    expect(page.get_by_role("button", name="Call off")).to_have_count(0)


def test_a_retraining_is_followed_and_called_off(opened: Open, desk: Desk) -> None:
    job = add_job(desk.db, desk.ids["Ada"], desk.models["base"], "queued", progress=None, age=20_000)
    page = opened(f"retraining/{job}")
    expect(page.locator(".page-head .mark")).to_have_text("queued")
    report(desk, job, 40, state="running")
    expect(page.locator(".job-progress")).to_contain_text("training · 40 of 400")
    expect(page.locator("progress")).to_have_js_property("value", 40)
    page.get_by_text("As a table").click()
    points = page.locator(".chart .stroke").get_attribute("points")
    report(desk, job, 90)
    expect(page.locator(".job-progress")).to_contain_text("90 of 400")
    expect(page.locator(".log")).to_contain_text("update 89 of 400")
    assert page.locator(".chart .stroke").get_attribute("points") != points
    expect(page.get_by_role("region", name="Nats a token, by update")).to_be_visible()  # is still open
    page.get_by_role("button", name="Call off").click()
    sure(page, "Call off")
    expect(page.locator(".page-head .mark")).to_have_text(re.compile("being called off|cancelled"))
    with writing(desk.db) as connection:
        assert connection.scalar(select(Job.cancel).where(Job.id == job))
        connection.execute(update(Job).where(Job.id == job).values(state="cancelled"))
    expect(page.locator(".page-head .mark")).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Call off")).to_have_count(0)


def report(desk: Desk, job: str, steps: int, **values: Any) -> None:
    with writing(desk.db) as connection:
        connection.execute(update(Job).where(Job.id == job).values(progress=progress(steps), **values))


def test_pairs_are_judged_blind_by_keys(opened: Open, desk: Desk) -> None:
    page = opened(f"retraining/{desk.job}", "Ben")
    page.get_by_role("link", name="What would change").click()
    changes = page.locator(".changes > li")
    expect(changes).to_have_count(6)
    gains = [float(text.split()[0]) for text in changes.locator("p").all_inner_texts()]
    assert gains == sorted(gains)
    page.get_by_label("Order").select_option("best")
    expect(changes.first).to_contain_text("+1.40")
    page.get_by_label("Replies like").select_option(index=1)
    expect(changes).not_to_have_count(6)
    pair = page.locator(".pair")
    for number, key in enumerate("120", 1):
        expect(pair.locator(".pair-reply")).to_have_count(2)
        page.keyboard.press(key)
        expect(judged(page)).to_have_text(str(number))
    expect(page.locator(".tile").filter(has_text="No difference")).to_contain_text("1")
    for _ in range(3):
        before = int(judged(page).inner_text())
        pair.get_by_role("button", name="The first is better").click()
        expect(judged(page)).to_have_text(str(before + 1))
    expect(pair).to_have_text("All pairs are judged.")
    with reading(desk.db) as connection:
        chosen = list(
            connection.execute(select(Pair.swapped, Pair.preferred).where(Pair.preferred != "neither"))
        )
        ties = connection.scalar(select(func.count()).where(Pair.preferred == "neither"))
    assert ties == 1
    firsts = [preferred == ("candidate" if swapped else "base") for swapped, preferred in chosen]
    assert sorted(firsts) == [False, True, True, True, True]  # the second was chosen once, by its key


def judged(page: Page) -> Locator:
    return page.locator("#judged")


def test_models_are_promoted_by_force_only_and_rolled_back(opened: Open, desk: Desk) -> None:
    page = opened("retraining")
    models = part(page, "Models")
    expect(row(page, "Models", "base")).to_contain_text("answers")
    expect(page.get_by_role("button", name="Roll back")).to_be_disabled()
    expect(row(page, "Models", "worse")).to_contain_text("refused")
    page.get_by_role("button", name="Promote worse").click()
    dialog = page.get_by_role("alertdialog")
    expect(dialog).to_contain_text("The gate refuses worse (dev, BLEU)")
    dialog.get_by_role("button", name="Cancel").click()
    assert (desk.folder / "models" / "active").read_text(encoding="utf-8") == "base\n"
    page.get_by_role("button", name="Promote worse").click()
    sure(page, "Promote against the gate")
    expect(row(page, "Models", "worse")).to_contain_text(re.compile("answers|being loaded"))
    assert (desk.folder / "models" / "active").read_text(encoding="utf-8") == "worse\n"
    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_role("alertdialog")).to_contain_text("Let base, the model before, answer again?")
    sure(page, "Roll back")
    expect(models.locator("tr").filter(has_text="base")).to_contain_text("answers")
    page.get_by_role("button", name="Promote better").click()
    expect(page.get_by_role("alertdialog")).to_have_text(
        re.compile("Let better answer everybody from now on?")
    )
    sure(page, "Cancel")
    with reading(desk.db) as connection:
        promoted = connection.scalars(select(AuditEntry.details).where(AuditEntry.action == "model.promote"))
        assert list(promoted) == [{"name": "worse", "forced": True}]


def test_a_canary_and_a_shadow_begin_and_end(opened: Open, desk: Desk) -> None:
    page = opened("retraining")
    beside = part(page, "Beside the model in use")
    expect(beside).to_contain_text("There is none at present.")
    for kind, share in (("canary", "25"), ("shadow", "100")):
        beside.get_by_label("Kind").select_option(kind)
        beside.get_by_label("Model").select_option(desk.models["better"])
        beside.get_by_label("Share, in percent").fill(share)
        beside.get_by_role("button", name="Begin").click()
        going = beside.locator(".rollout").filter(has=page.locator(".mark", has_text=kind))
        expect(going).to_contain_text(f"{share} %")
        expect(going).to_contain_text(desk.models["better"])
    expect(beside.locator(".rollout .tile")).to_have_count(8)
    beside.get_by_role("button", name="Begin").click()
    expect(page.locator("#notices")).to_contain_text("end it first")
    for left in (1, 0):
        beside.get_by_role("button", name="End").first.click()
        expect(beside.locator(".rollout")).to_have_count(left)
    expect(beside).to_contain_text("There is none at present.")


# --- who may do what --------------------------------------------------------------------------------------


def test_reviewers_are_not_shown_what_only_admins_may_do(opened: Open, desk: Desk) -> None:
    page = opened("settings", "Ben")
    expect(row(page, "Labels", "Too long")).to_be_visible()
    shown = set(page.locator(".page button").all_inner_texts())
    assert shown <= {"Keep this reply", "Remove", "Change the password"}
    for title in ("Operators", "Audit log"):
        expect(page.get_by_role("heading", name=title)).to_have_count(0)
    address = desk.live.address
    page.goto(f"{address}/operator/data")
    expect(page.locator(".chips li").first).to_be_visible()
    assert set(page.locator(".page button").all_inner_texts()) == {"Download", "Upload"}
    expect(page.get_by_label("With personal data")).to_have_count(0)
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
        yield view
    page.get_by_role("button", name="Remove Closing").click()
    yield "a question"
    page.keyboard.press("Escape")


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Open, desk: Desk, theme: str, phone: bool) -> None:
    page = opened("topics", phone=phone, color_scheme=theme)
    page.get_by_role("button", name="Make a new map").click()
    page.locator(".topic-map").wait_for(timeout=60_000)
    found = {scene: violations(page) for scene in scenes(page, desk)}
    assert len(found) == 8
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
