"""E-mail addresses, telephone numbers and payment cards in what people wrote: one rule for all packages.

All of it takes time in proportion to the text, whatever the text is, and digits of every script count.

A telephone number is told from other numbers by its shape. What is 9 to 15 digits long, in one piece or in
groups, is one; 7 or 8 digits are one only where they are grouped as such numbers are, or a word like "tel."
stands before them. Dates, prices, decimals and network addresses are none, and neither is a number that is
part of a word. A longer row of groups is masked as a whole, because two numbers may stand side by side there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

PersonalKind = Literal["email", "card", "phone"]

CARD_DIGITS: Final = range(13, 20)
PHONE_DIGITS: Final = range(7, 16)
SURE_DIGITS: Final = 9
"""Digits from which a number is taken for a telephone's whatever its groups are."""

_LOCAL: Final = re.compile(r"[\w.%+&-]++")
_DOMAIN: Final = re.compile(r"@[\w-]++(?:\.[\w-]++)++")

_SPACE: Final = r"[ \u00a0\u2009\u202f]"
_DASH: Final = r"[-\u2010-\u2013]"
_BETWEEN: Final = (
    rf"(?:{_SPACE}?(?:{_DASH}|/){_SPACE}?|\.|{_SPACE}{{1,2}}|(?:{_SPACE}|{_DASH}|/)?\("
    rf"|\)(?:{_SPACE}?(?:{_DASH}|/)?{_SPACE}?))"
)
_RUN: Final = re.compile(rf"(?:\(\+?|\+\(?)?\d++(?:{_BETWEEN}\d++)*+")
_DIGITS: Final = re.compile(r"\d+")
_NO_SPACES: Final = str.maketrans("\u00a0\u2009\u202f\u2010\u2011\u2012\u2013", "   ----")

_MONEY: Final = r"(?:[$€£¥₹]|\b(?:EUR|USD|GBP|CHF|euros?|dollars?|pounds?)\b)"
_MONEY_BEFORE: Final = re.compile(rf"{_MONEY}\s?$", re.IGNORECASE)
_MONEY_AFTER: Final = re.compile(rf"(?:,\d\d?(?!\d)|\s?{_MONEY})", re.IGNORECASE)
_CALL_BEFORE: Final = re.compile(
    r"\b(?:tel|telephone|phone|call|mobile|cell|fax|whatsapp|telefon|handy|mobil|téléphone|teléfono|telefono)"
    r"[ .:#]{1,4}$",
    re.IGNORECASE,
)
_LOOK: Final = 24
"""Characters before and after a number that say what it is."""


@dataclass(frozen=True, slots=True)
class Personal:
    """A piece of personal data: ``value`` is the same however it was spaced."""

    kind: PersonalKind
    value: str
    start: int
    end: int


class _Group(NamedTuple):
    """Digits in one piece, and what stands between them and the group before."""

    between: str
    digits: str
    start: int
    end: int


def find_personal(text: str) -> Iterator[Personal]:
    """What there is in ``text``, from left to right, none overlapping another.

    Where all of it is replaced by words in brackets, none is left.
    """
    done = 0
    for start, end in _emails(text):
        yield from _numbers(text, done, start)
        yield Personal("email", text[start:end].casefold(), start, end)
        done = end
    yield from _numbers(text, done, len(text))


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" not in text:
        return
    place = 0
    while local := _LOCAL.search(text, place):
        place = local.end()
        if domain := _DOMAIN.match(text, place):
            place = domain.end()
            yield local.start(), place


def _numbers(text: str, begin: int, end: int) -> Iterator[Personal]:
    """Cards and telephone numbers between two places; an e-mail address or nothing stands beyond them."""
    for run in _RUN.finditer(text, begin, end):
        if run.end() - run.start() < PHONE_DIGITS.start:
            continue
        row: list[_Group] = []
        for group in _groups(run, text, begin, end):
            if group is None:
                yield from _phones(row, text, begin, end)
                row = []
            else:
                row.append(group)
        yield from _phones(row, text, begin, end)


def _groups(run: re.Match[str], text: str, begin: int, end: int) -> Iterator[_Group | None]:
    """The groups of a run; None where those before have nothing to do with those after: at a date, at what
    is part of a word, at a bracket that nothing opened, at more digits than any number has.
    """
    found: list[_Group] = []
    place = run.start()
    for digits in _DIGITS.finditer(text, run.start(), run.end()):
        between = text[place : digits.start()].translate(_NO_SPACES)
        found.append(_Group(between, digits[0], digits.start(), digits.end()))
        place = digits.end()
    dates = _dates(found)
    opened = False
    for number, group in enumerate(found):
        if ")" in group.between and not opened:
            yield None
        opened = "(" in group.between or (opened and ")" not in group.between)
        glued = (group.start > begin and _wordlike(text[group.start - 1])) or (
            group.end < end and _wordlike(text[group.end])
        )
        yield None if glued or number in dates or len(group.digits) > CARD_DIGITS[-1] else group


def _wordlike(character: str) -> bool:
    return character.isalnum() or character == "_"


def _dates(groups: Sequence[_Group]) -> set[int]:
    """The groups that are parts of dates (2024-05-01, 1/5/2024), or of a span of years (2019-2024)."""
    found: set[int] = set()
    for i in range(len(groups) - 1):
        separator = groups[i + 1].between
        first = i == 0 or groups[i].between != separator
        for size in (3, 2):
            part = groups[i : i + size]
            follows = groups[i + size].between if i + size < len(groups) else ""
            if (
                first
                and len(part) == size
                and follows != separator
                and all(group.between == separator for group in part[1:])
                and _is_date(separator, [group.digits for group in part])
            ):
                found.update(range(i, i + size))
    return found


def _is_date(separator: str, digits: list[str]) -> bool:
    numbers = [int(each) for each in digits] if max(map(len, digits)) <= 4 else []
    years = [1900 <= number < 2100 and len(each) == 4 for number, each in zip(numbers, digits, strict=False)]
    match numbers:
        case [_, _]:
            return separator.strip() in ("-", "/") and all(years)
        case [first, second, third]:
            rest = (second, third) if years[0] else (first, second)
            if separator not in ("-", ".", "/") or not (years[0] or years[2]):
                return False
            return 1 <= min(rest) <= 12 and max(rest) <= 31
    return False


def _phones(row: Sequence[_Group], text: str, begin: int, end: int) -> Iterator[Personal]:
    """The cards of a row of groups, and the telephone numbers between them."""
    kept: list[_Group] = []
    place = 0
    while place < len(row):
        size = _card(row, place)
        if size:
            yield from _phone(kept, text, begin, end)
            kept = []
            card = row[place : place + size]
            yield Personal("card", "".join(group.digits for group in card), card[0].start, card[-1].end)
            place += size
        elif len(row[place].digits) > PHONE_DIGITS[-1]:
            yield from _phone(kept, text, begin, end)
            kept = []
            place += 1
        else:
            kept.append(row[place])
            place += 1
    yield from _phone(kept, text, begin, end)


def _card(row: Sequence[_Group], place: int) -> int:
    """How many groups from here on are a card's number, which is written 4-4-4-4, 4-6-5 or in one piece."""
    if len(row[place].digits) < 4:
        return 0
    digits, sizes = "", []
    for size, group in enumerate(row[place:], start=1):
        if size > 1 and group.between not in (" ", "-"):
            break
        digits += group.digits
        if len(digits) > CARD_DIGITS[-1]:
            break
        if len(digits) in CARD_DIGITS and _luhn(digits):
            sizes.append((len(digits) != 16, -size, size))
    return min(sizes)[2] if sizes else 0


def _luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1)."""
    doubled = (int(d) * (2 if place % 2 else 1) for place, d in enumerate(reversed(digits)))
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _phone(row: Sequence[_Group], text: str, begin: int, end: int) -> Iterator[Personal]:
    """The groups as one telephone number, if they are."""
    if not row or sum(len(group.digits) for group in row) < PHONE_DIGITS.start:
        return
    prefix = row[0].between
    start, stop = row[0].start, row[-1].end
    lead = len(prefix) - len(prefix.lstrip(" -/.)"))
    opening = prefix[lead:]
    before = text[max(begin, start - _LOOK) : start - len(opening)]
    after = text[stop : min(end, stop + _LOOK)]
    if _is_phone(opening, row, before, after):
        between = "".join(group.between for group in row[1:])
        closed = between.count(")") > between.count("(")
        kept = opening if closed or "(" not in opening else opening.replace("(", "")
        yield Personal("phone", "".join(group.digits for group in row), start - len(kept), stop)


def _is_phone(prefix: str, row: Sequence[_Group], before: str, after: str) -> bool:
    groups = [group.digits for group in row]
    between = [group.between for group in row[1:]]
    count = sum(map(len, groups))
    if "+" in prefix:
        return True
    if _MONEY_BEFORE.search(before) or _MONEY_AFTER.match(after):
        return False
    if between == ["."] and _is_decimal(*groups):
        return False
    if len(groups) == 4 and set(between) == {"."} and all(map(_is_byte, groups)):
        return False  # a network address
    if count > PHONE_DIGITS[-1]:
        return max(map(len, groups)) > 2  # or else it counts
    if count >= SURE_DIGITS or _CALL_BEFORE.search(before):
        return True
    return _is_short_phone(groups, between, opened="(" in prefix)


def _is_decimal(whole: str, fraction: str) -> bool:
    """What begins with 0 may be an area code."""
    if whole.startswith("0"):
        return whole == "0"
    return len(whole) <= 3 or len(fraction) <= 2


def _is_byte(group: str) -> bool:
    return len(group) <= 3 and int(group) < 256 and (group == "0" or not group.startswith("0"))


def _is_short_phone(groups: Sequence[str], between: Sequence[str], *, opened: bool) -> bool:
    """Seven or eight digits, in the groups in which such numbers are written."""
    if len(groups) == 1:
        return False
    sizes = [len(group) for group in groups]
    thousands = set(between) in ({"."}, {" "}) and sizes[0] <= 3 and set(sizes[1:]) == {3}
    if opened or (groups[0].startswith("0") and sizes[0] > 1):
        return True
    if thousands:
        return False
    return sizes in ([3, 4], [4, 4], [2, 2, 2, 2], [3, 2, 2], [3, 3, 2], [2, 3, 2]) and len(set(between)) == 1
