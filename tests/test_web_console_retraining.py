"""The pages of retraining: its settings, its progress, what would change, which model answers."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect
from pydantic import BaseModel
from sqlalchemy import func, select, update

from server.database import reading, writing
from server.tables import AuditEntry, Job, Pair
from tests.console_desk import BAD, Desk, Open, part, row, sure
from tests.console_month import add_job, progress
from training.retrain_config import RetrainConfig

pytest_plugins = ["tests.console_desk_fixtures"]
pytestmark = pytest.mark.browser


def test_a_retraining_shows_what_the_gate_says(opened: Open, desk: Desk) -> None:
    page = opened("retraining")
    expect(page.locator("p.callout")).to_contain_text("--replay-files")
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


@pytest.fixture
def ready(opened: Open) -> Page:
    """The page of retrainings on a server that could retrain, as far as the page is told."""
    page = opened("dashboard")
    page.route("**/api/operator/jobs", lambda route: route.fulfill(json={"jobs": [], "missing": None}))
    page.get_by_role("link", name="Retraining").click()
    expect(begin(page)).to_be_enabled()
    return page


def begin(page: Page) -> Locator:
    return page.get_by_role("button", name="Retrain now")


def refusing(page: Page, status: int, message: str, **fields: str) -> list[Any]:
    """Has every retraining refused; the bodies that were sent."""
    sent: list[Any] = []

    def answer(route: Route) -> None:
        if route.request.method != "POST":
            return route.fallback()
        sent.append(route.request.post_data_json)
        named = [{"field": name.replace("__", "."), "message": text} for name, text in fields.items()]
        error = {"code": "bad_settings", "message": message, "fields": named}
        return route.fulfill(status=status, json={"error": error})

    page.route("**/api/operator/jobs", answer)
    return sent


def test_the_settings_of_a_retraining_are_those_of_the_command(ready: Page) -> None:
    """Their defaults and bounds are those of the model that the process checks them with."""
    source = "async () => (await import('/operator/static/retraining/settings.js')).GROUPS"
    shown = [setting for group in ready.evaluate(source) for setting in group["settings"]]
    assert len(shown) > 15
    for setting in shown:
        default, schema = setting_of(setting["name"])
        assert setting["default"] == default, setting["name"]
        told = {"exclusiveMinimum": None, "exclusiveMaximum": None, "minimum": None, "maximum": None}
        told |= {key: value for key, value in schema.items() if key in told}
        least, most = setting.get("least"), setting.get("most")
        above, below = setting.get("above", False), setting.get("below", False)
        assert told == {
            "exclusiveMinimum": least if above else None,
            "exclusiveMaximum": most if below else None,
            "minimum": None if above else least,
            "maximum": None if below else most,
        }, setting["name"]
        assert setting.get("whole", False) == (schema.get("type") == "integer"), setting["name"]
        assert setting.get("choices") == schema.get("enum"), setting["name"]


def setting_of(name: str) -> tuple[Any, dict[str, Any]]:
    """Its default, and its JSON schema; where it may be none, of what else it may be."""
    shape: type[BaseModel] = RetrainConfig
    *parts, last = name.split(".")
    for each in parts:
        inner = shape.model_fields[each].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        shape = inner
    schema = shape.model_json_schema()["properties"][last]
    choices = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    return shape.model_fields[last].default, choices[0]


def test_only_what_was_changed_is_asked_for(ready: Page) -> None:
    sent = refusing(ready, 409, "not now")
    begin(ready).click()
    ready.get_by_text("Settings of this retraining").click()
    ready.get_by_label("Times through the data").fill("3")
    ready.get_by_label("Weight of a correction").fill("")
    ready.get_by_label("Only this language").select_option("fr")
    ready.get_by_label("Other settings").fill(
        "device=cpu\n\n gate.canaries = 0 \nlowercase=true\ndata.seed=1e2"
    )
    ready.get_by_label("with the uploaded transcripts").check()
    begin(ready).click()
    expect(begin(ready)).to_be_enabled()
    changed = {"epochs": 3, "filters.language": "fr"}
    others = {"device": "cpu", "gate.canaries": 0, "lowercase": True, "data.seed": 100}
    assert sent == [
        {"settings": {}, "use_imports": False},
        {"settings": changed | others, "use_imports": True},
    ]


def test_settings_that_make_no_sense_are_not_sent(ready: Page) -> None:
    sent = refusing(ready, 409, "not now")
    fold = ready.locator("details.fold")
    for label, wrong in (("Times through the data", "0"), ("Learning rate", "0"), ("Share kept apart", "1")):
        fold.locator("summary").click()
        ready.get_by_label(label).fill(wrong)
        fold.locator("summary").click()
        expect(fold).not_to_have_attribute("open", "")
        begin(ready).click()
        expect(ready.get_by_label(label)).to_be_focused()  # where it can be seen again
        ready.get_by_label(label).fill("")
        fold.locator("summary").click()
    fold.locator("summary").click()
    ready.get_by_label("Other settings").fill("gate.bleu 4")
    begin(ready).click()
    expect(ready.get_by_role("alert")).to_have_text("“gate.bleu 4” is not name=value.")
    assert sent == []


def test_what_the_server_refuses_is_told_at_the_field(ready: Page) -> None:
    refusing(ready, 400, "long words", gate__good="too much", data__good=BAD, no__such="it is not known")
    begin(ready).click()
    alert = ready.get_by_role("alert")
    expect(alert.locator("li")).to_have_text(
        ["gate.good: too much", f"data.good: {BAD}", "no.such: it is not known"]
    )
    wrong = ready.locator("[aria-invalid=true]")
    expect(wrong).to_have_count(2)
    expect(ready.get_by_label("Weight of a reply marked good")).to_be_focused()
    ready.unroute("**/api/operator/jobs")
    refusing(ready, 400, "unknown", no__such="it is not known")
    begin(ready).click()
    expect(ready.get_by_label("Other settings")).to_be_focused()
    expect(wrong).to_have_count(0)
    ready.unroute("**/api/operator/jobs")
    refusing(ready, 409, "10 retrainings are waiting already")
    begin(ready).click()
    expect(alert).to_have_text("10 retrainings are waiting already.")


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


def test_a_pair_that_could_not_be_had_is_asked_for_again(opened: Open, desk: Desk) -> None:
    page = opened("retraining")
    asked = "**/pairs/next"
    page.route(asked, lambda route: route.abort())
    page.goto(f"{desk.live.address}/operator/retraining/{desk.job}/changes")
    pair = part(page, "Which is better?").locator(".pair")
    expect(pair).to_contain_text("The server does not answer.")
    page.unroute(asked)
    pair.get_by_role("button", name="Try again").click()
    expect(pair).not_to_contain_text("does not answer")


def test_the_changes_of_the_order_chosen_last_are_shown(opened: Open, desk: Desk) -> None:
    page = opened(f"retraining/{desk.job}/changes")
    rows = page.locator(".changes > li")
    rows.first.wait_for()
    count = rows.count()
    answers: list[str] = []
    page.on("requestfinished", lambda each: answers.append(each.url) if "/changes?" in each.url else None)
    page.get_by_label("Order").evaluate(
        """(list) => { for (const value of ["best", "worst", "best"]) {
            list.value = value;
            list.dispatchEvent(new Event("change"));
        } }"""
    )
    while len(answers) < 3:
        page.wait_for_timeout(20)
    expect(rows).to_have_count(count)


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


def test_of_two_models_with_one_fingerprint_the_one_meant_is_promoted(opened: Open, desk: Desk) -> None:
    """As `training calibrate` leaves them."""
    models = desk.folder / "models"
    shutil.copytree(models / "base", models / "again")
    page = opened("retraining")
    expect(row(page, "Models", "base")).to_contain_text("answers")
    expect(page.get_by_role("button", name="Promote base")).to_have_count(0)
    expect(row(page, "Models", "again")).not_to_contain_text("answers")
    page.get_by_role("button", name="Promote again").click()
    sure(page, "Promote")
    expect(row(page, "Models", "again")).to_contain_text("answers")
    expect(page.get_by_role("button", name="Promote again")).to_have_count(0)
    assert (models / "active").read_text(encoding="utf-8") == "again\n"


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
