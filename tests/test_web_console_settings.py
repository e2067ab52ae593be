"""The page of settings: labels, canned replies, operators, the audit log, one's own password."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from server.console.accounts import Accounts
from server.database import reading, writing
from server.tables import AuditEntry, CannedReply, Operator
from tests.console_desk import BAD, Desk, Open, part, row, sure
from tests.console_month import PASSWORD

pytest_plugins = ["tests.console_desk_fixtures"]
pytestmark = pytest.mark.browser

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


def test_the_focus_stays_where_a_list_is_changed(opened: Open) -> None:
    page = opened("settings")
    page.get_by_label("Label", exact=True).fill("Off hours")
    add = page.get_by_role("button", name="Add a label")
    add.press("Enter")
    expect(row(page, "Labels", "Off hours")).to_be_visible()
    expect(add).to_be_focused()
    page.get_by_role("button", name="Archive: Off hours").press("Enter")
    again = page.get_by_role("button", name="Offer again: Off hours")
    expect(again).to_be_focused()
    expect(page.locator("#announcer")).to_have_text("Saved")
    again.press("Enter")
    expect(page.get_by_role("button", name="Archive: Off hours")).to_be_focused()


def test_the_audit_log_follows_what_is_changed_beside_it(opened: Open) -> None:
    page = opened("settings")
    log = part(page, "Audit log").locator("tbody tr").first
    expect(log).to_contain_text("session.start")
    page.get_by_label("Label", exact=True).fill("Audited")
    page.keyboard.press("Enter")
    expect(log).to_contain_text("label.add")


def test_a_label_is_offered_as_soon_as_it_is_there(opened: Open, desk: Desk) -> None:
    page = opened(f"inbox/{desk.month.talks[0]}?state=all")
    page.locator(".turn.bot.selected").wait_for()
    page.locator("#rail").get_by_role("link", name="Settings").click()
    page.get_by_label("Label", exact=True).fill("Brand new")
    page.keyboard.press("Enter")
    expect(row(page, "Labels", "Brand new")).to_be_visible()
    page.go_back()
    page.locator(".turn.bot.selected").get_by_role("button", name="Bad", exact=True).click()
    expect(page.get_by_role("button", name="Brand new")).to_be_visible()


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


def test_a_canned_reply_is_edited(opened: Open, desk: Desk) -> None:
    """By keyboard alone."""
    page = opened("settings", "Ben")
    for title in ("Zebra", "Taken"):
        page.get_by_label("Title").fill(title)
        page.get_by_label("Text").fill("Before")
        page.get_by_role("button", name="Keep this reply").click()
        expect(row(page, "Canned replies", title)).to_be_visible()
    edit = page.get_by_role("button", name="Edit Zebra")
    edit.press("Enter")
    dialog = page.get_by_role("dialog", name="Edit a canned reply")
    expect(dialog.get_by_label("Title")).to_be_focused()
    expect(dialog.get_by_label("Text")).to_have_value("Before")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(edit).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.type("Taken")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("already")  # it stays open
    dialog.get_by_label("Title").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type(f"Aardvark {BAD}")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("After, {name}")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(row(page, "Canned replies", "Aardvark")).to_contain_text("After, {name}")
    expect(row(page, "Canned replies", "Zebra")).to_have_count(0)
    expect(page.get_by_role("button", name="Edit Aardvark")).to_be_focused()
    with reading(desk.db) as connection:
        texts = select(CannedReply.text).where(CannedReply.title == f"Aardvark {BAD}")
        assert list(connection.scalars(texts)) == ["After, {name}"]


def test_operators_are_added_and_disabled(opened: Open, desk: Desk) -> None:
    page = opened("settings")
    form = part(page, "Operators")
    form.get_by_label("Name").fill("Dora")
    form.get_by_label("Password", exact=True).fill("short")
    form.get_by_role("button", name="Add an operator").click()
    expect(page.locator("#notices")).not_to_be_empty()
    expect(form.get_by_label("Name")).to_have_value("Dora")
    form.get_by_label("Password", exact=True).fill(PASSWORD)
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
    expect(row(page, "Audit log", "Dora")).not_to_have_count(0)


def test_another_ones_password_is_set(opened: Open, desk: Desk) -> None:
    accounts = Accounts(desk.db)
    accounts.add("Eve", "reviewer", PASSWORD)
    eve = opened("inbox", "Eve")
    page = opened("settings")

    def fill(fresh: str, again: str) -> None:
        dialog.get_by_label("New password").fill(fresh)
        dialog.get_by_label("Once more").fill(again)
        page.keyboard.press("Enter")

    page.get_by_role("button", name="Set a password for Eve").click()
    dialog = page.get_by_role("dialog", name="Set a password")
    fill("another long password", "another long passwort")
    expect(dialog.get_by_role("alert")).to_contain_text("differ")
    fill("short", "short")
    expect(dialog.get_by_role("alert")).to_contain_text("10")
    assert accounts.sign_in("Eve", PASSWORD) is not None
    fill("another long password", "another long password")
    expect(dialog).to_have_count(0)
    expect(page.locator("#notices")).to_contain_text("Eve has a new password")
    assert accounts.sign_in("Eve", PASSWORD) is None
    assert accounts.sign_in("Eve", "another long password") is not None
    eve.reload()
    expect(eve.get_by_label("Password", exact=True)).to_be_visible()
    with reading(desk.db) as connection:
        entries = select(AuditEntry.operator, AuditEntry.details).where(AuditEntry.subject == "Eve")
        found = connection.execute(entries.order_by(AuditEntry.id)).all()
    assert [operator for operator, _ in found] == [None, "Ada"]
    assert "password" not in str(found)


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
    earlier = page.get_by_role("button", name="Earlier")
    shown = 25
    while earlier.is_visible():
        earlier.click()
        expect(rows).not_to_have_count(shown)
        shown = rows.count()
    assert shown == desk.count(AuditEntry)
    told = rows.locator("td:nth-child(3)").all_inner_texts()
    assert len([action for action in told if action.startswith("old.")]) == 60


def log_entries(desk: Desk) -> None:
    """One an hour of each of two people, a hundred days ago."""
    began = datetime(2021, 5, 4, 12, tzinfo=UTC)
    entries = [
        {
            "at": began + timedelta(hours=hour),
            "operator": who,
            "action": f"test.{who.lower()}",
            "subject": f"s{hour}",
        }
        for hour in range(60)
        for who in ("Mia", "Noa")
    ]
    with writing(desk.db) as connection:
        connection.execute(AuditEntry.__table__.insert(), entries)  # type: ignore[attr-defined]


def test_the_audit_log_is_filtered(opened: Open, desk: Desk) -> None:
    log_entries(desk)
    page = opened("settings")
    log = part(page, "Audit log")
    rows = log.locator("tbody tr")
    expect(rows).to_have_count(25)

    def filter_by(**values: str) -> None:
        for label, value in values.items():
            log.get_by_label(label).fill(value)
        log.get_by_role("button", name="Filter").click()

    def column(number: int) -> set[str]:
        return set(rows.locator(f"td:nth-child({number})").all_inner_texts())

    filter_by(Account="Mia")
    expect(rows.filter(has_text="Noa")).to_have_count(0)
    expect(rows.filter(has_text="Mia")).to_have_count(25)
    expect(page.locator("#announcer")).to_have_text("25 entries or more")
    log.get_by_role("button", name="Earlier").click()
    expect(rows).to_have_count(50)
    assert column(2) == {"Mia"}
    filter_by(Account="command line")
    expect(rows.filter(has_text="Mia")).to_have_count(0)
    assert column(2) == {"command line"}
    filter_by(Account="", Action="test.noa", From="2021-05-05", Until="2021-05-05")
    expect(rows.filter(has_text="Mia")).to_have_count(0)
    expect(rows).to_have_count(24)
    assert column(3) == {"test.noa"}
    assert column(5) == {""}
    assert {text.partition(",")[0] for text in column(1)} == {"May 5"}
    expect(log.get_by_role("button", name="Earlier")).to_be_hidden()
    filter_by(Action="test.nobody")
    expect(log).to_contain_text("Nothing fits these filters.")
    log.get_by_role("button", name="Show all").click()
    expect(rows).to_have_count(25)
    expect(log.get_by_label("From")).to_have_value("")
    filter_by(From="2021-05-07", Until="2021-05-05")
    expect(page.locator("#notices")).to_contain_text(re.compile("from", re.IGNORECASE))


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
