"""What counts as personal data, and that masking is quick and final whatever the text is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import insert

from server import database
from server.console.masking import Masker, has_words, masker, names_changed
from server.store import utc_now
from server.tables import MaskedName
from tests.databases import KINDS, fresh_database, upgrade

NAMES = ["Ann Lee", "José", "O'Brien", "Jean-Luc Moreau", "Straße", "王小明", "हिन्दी", "Pound", "email"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to ann.lee+shop@mail.example.org, please", "write to [email], please"),
        ("<ANN@EXAMPLE.ORG>", "<[email]>"),
        ("jürgen@müller.example", "[email]"),
        ("a@b.example,c@d.example", "[email],[email]"),
        (f"{'x' * 100}@example.org", "[email]"),
        ("a@b and @someone and 5 @ 3", "a@b and @someone and 5 @ 3"),
    ],
)
def test_email_addresses(text: str, masked: str) -> None:
    assert Masker().mask(text) == masked


@pytest.mark.parametrize(
    "number",
    [
        "+49 228 555 1234",
        "+1 (212) 555-0123",
        "(0228) 555 12 34",
        "0228/5551234",
        "0171-5551234",
        "030 12345",
        "555-0134",
        "6123 4567",
        "12 34 56 78",
        "06 12 34 56 78",
        "612 345 678",
        "+49 (0) 228 555123",
        "1-800-555-0199",
        "212.555.0123",
        "015155512345",
        "٠٣٠ ١٢٣٤٥٦٧٨",
        "030\u00a0555\u20111234",
    ],
)
@pytest.mark.parametrize("around", ["{}", "call {} now", "({})", "is it {}?", "Tel.: {}.", "a@b.example, {}"])
def test_telephone_numbers(number: str, around: str) -> None:
    mask = Masker().mask

    assert mask(around.format(number)) == mask(around).format("[phone]")


@pytest.mark.parametrize(
    "text",
    [
        "order 4821377",
        "order no. 48213775",
        "at 9:30 on 12.11.2024 for 2 people",
        "2024-05-01 10:00 to 2024-05-03 11:00",
        "from 1/5/2024 to 03/05/2024",
        "open 2019-2024",
        "1,200 euros, 1.234.567,00 or 1 234 567",
        "$ 120000000, 250000000 EUR, €1000000000",
        "1234567.89",
        "3.14159265358",
        "192.168.100.200",
        "version 10.15.7",
        "A123456789 and 123456789b",
        "1) 12345 2) 67890",
        "rows 1 2 3 4 5 6",
        "tracking 12345678901234567890",
    ],
)
def test_other_numbers_are_left_alone(text: str) -> None:
    assert Masker().mask(text) == text


def test_short_numbers_are_telephones_where_the_text_says_so() -> None:
    assert Masker().mask("tel. 5550134, order 5550134") == "tel. [phone], order 5550134"


def test_numbers_that_stand_side_by_side_are_all_masked() -> None:
    assert Masker().mask("030 1234567 030 7654321") == "[phone]"
    assert Masker().mask("030 1234567, 030 7654321") == "[phone], [phone]"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("4111 1111 1111 1111", "[card]"),
        ("5500-0000-0000-0004.", "[card]."),
        ("3782 822463 10005", "[card]"),
        ("my card 4111111111111111 12/27 123", "my card [card] 12/27 123"),
        ("4222222222222", "[card]"),
        ("6304000000000000000", "[card]"),
        ("4111111111111112", "4111111111111112"),  # the check digit is wrong
    ],
)
def test_cards(text: str, masked: str) -> None:
    assert Masker().mask(text) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("ANN  LEE? Ann Leeds, Joann Lee", "[name]? Ann Leeds, Joann Lee"),
        ("Ann met Lee; ann-lee", "Ann met Lee; [name]"),
        ("jose\u0301 and JOSÉ, not jose", "[name] and [name], not jose"),
        ("O’Brien's", "[name]'s"),
        ("jean luc moreau and Jean-Luc", "[name] and Jean-Luc"),
        ("STRASSE", "[name]"),
        ("我是王小明。", "我是[name]。"),
        ("हिन्दी, हिन्द", "[name], हिन्द"),
        ("ann.lee@example.org", "[email]"),
        ("my email is x@y.example", "my [name] is [email]"),
        ("_ann_lee_", "_[name]_"),
    ],
)
def test_names_are_whole_words_in_any_case(text: str, masked: str) -> None:
    assert Masker(NAMES).mask(text) == masked


def test_only_the_kinds_that_were_asked_for() -> None:
    text = "Ann Lee, a@b.example, 030 1234567"

    assert Masker(NAMES, kinds={"name"}).mask(text) == "[name], a@b.example, 030 1234567"
    assert Masker(NAMES, kinds=()).mask(text) == text
    assert Masker(kinds={"phone"}).mask(text) == "Ann Lee, a@b.example, [phone]"


PARTS = [
    *NAMES,
    "ann",
    "lee",
    "@",
    "a@b.c",
    "+x@d.e",
    "030",
    "1234567",
    "4111 1111 1111 1111",
    "12.11.2024",
    "call",
]
PARTS += [
    " ",
    " ",
    "-",
    ".",
    "/",
    "(",
    ")",
    "+",
    "[",
    "]",
    "[email]",
    "[name]",
    "€",
    "1",
    "22",
    "\u0301",
    "\n",
    "_",
]


@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join) | st.text(max_size=60))
@example("123456789 pound")
@example("a@b.c+x@d.e")
@example("call Jean-Luc Moreau 5550134")
def test_masking_again_changes_nothing(text: str) -> None:
    mask = Masker(NAMES).mask

    assert mask(mask(text)) == mask(text)


PROBES = "a|1|1 |1-|a@|@|a.|a@b.|(|+(|1(|) 1|1111 |4111111111111111 |01.01.2020 |ann |ann lee|王|\u0301"
PROBES += "|tel |0 |€1|[name]"


@pytest.mark.parametrize("unit", PROBES.split("|"))
def test_time_grows_with_the_text_and_not_faster(unit: str) -> None:
    mask = Masker([*NAMES, *(f"Ann {number}" for number in range(2000))]).mask

    def seconds(length: int) -> float:
        text = (unit * length)[:length]
        best = float("inf")
        for _ in range(3):
            begun = time.thread_time()
            mask(text)
            best = min(best, time.thread_time() - begun)
        return best

    mask(unit * 10)
    assert seconds(50_000) < 40 * (seconds(5_000) + 0.001)  # ten times is linear, a hundred times quadratic


def test_a_name_needs_something_to_be_found_by() -> None:
    assert has_words("Ann")
    assert has_words("王")
    assert not has_words("-'-")
    assert not has_words("[name]")


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_a_database_is_used_from_the_moment_it_changes(kind: str, tmp_path: Path) -> None:
    with fresh_database(kind, tmp_path) as url:
        upgrade(url)
        db = database.connect(url)
        with database.reading(db) as connection:
            first = masker(connection)
            assert masker(connection) is first  # not read anew for every text
            assert first.mask("Zoe, a@b.example") == "Zoe, [email]"
        with database.writing(db) as connection:
            connection.execute(insert(MaskedName).values(name="zoe", created_at=utc_now()))
        names_changed(db)
        with database.reading(db) as connection:
            assert masker(connection).mask("Zoe") == "[name]"
        db.dispose()
