"""How far two texts are from each other."""

from __future__ import annotations

from collections import defaultdict


def levenshtein(one: str, other: str) -> int:
    """Fewest insertions, deletions and replacements of code points that turn one text into the other.

    The bit-vector algorithm of Myers (1999) as Hyyrö (2003) has it for two whole texts: a column of the table
    is two integers, whose bits say where a value is one more or one less than the one above it. Two texts of
    4,000 characters take some hundredths of a second.
    """
    if len(one) < len(other):
        one, other = other, one
    if not other:
        return len(one)
    places: defaultdict[str, int] = defaultdict(int)
    for index, character in enumerate(one):
        places[character] |= 1 << index
    all_bits = (1 << len(one)) - 1
    bottom = 1 << (len(one) - 1)
    more, less, distance = all_bits, 0, len(one)
    for character in other:
        equal = places.get(character, 0)
        down = equal | less
        across = (((equal & more) + more) ^ more) | equal
        more_across = less | (all_bits & ~(across | more))
        less_across = more & across
        distance += bool(more_across & bottom) - bool(less_across & bottom)
        more_across = ((more_across << 1) | 1) & all_bits
        less_across = (less_across << 1) & all_bits
        more = less_across | (all_bits & ~(down | more_across))
        less = more_across & down
    return distance
