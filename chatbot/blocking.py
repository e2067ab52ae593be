"""Phrases that are never said, whatever tokens spell them.

A text is read sign by sign: letters without case, white space as one blank, and a mark (here ``|``) wherever
a word begins or ends. A phrase is then a plain run of signs, and its own marks keep it to whole words:

    block list    ass                |ass|
    reply         assist             |assist|              does not hold it
                  kiss my ass!       |kiss| |my| |ass|!    does, which is certain at the ``!``

The signs drive an automaton that looks for all phrases at once (Aho and Corasick 1975); its state says which
beginnings of phrases the text ends with. A token is forbidden when its signs hold a phrase or begin with the
rest of one. After `` ass`` the rest is a mark: no token may come that begins with anything but a letter, nor
the end. Such a text is *open*. What is shown of a reply is never open, because it might have to stay.

What is forbidden in a state is found out once and kept.
"""

from __future__ import annotations

import codecs
import unicodedata
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import Final, NamedTuple

from chatbot.tokenizer import SPECIALS, Tokenizer

_MARK: Final = "\0"
_GAP: Final = "\1"
"""Between the tokens of a vocabulary; no sign."""
_LAST: Final = "\U0010ffff"
"""Not before any sign."""
_LOST: Final = "\N{REPLACEMENT CHARACTER}"
_MISSING: Final = 3
"""Most bytes that a character can lack, and most tokens that these can take."""
_LETTERS: Final = 0x40000
"""There are none from this code point on."""
_FOLDED: Final = {"\N{RIGHT SINGLE QUOTATION MARK}": "'", _MARK: _LOST, _GAP: _LOST}


class State(NamedTuple):
    """Where the reading of a text stands."""

    node: int = 0  # of the automaton
    in_word: bool = False
    after_blank: bool = True  # as at the beginning, where no blank is read either
    rest: bytes = b""  # of a character that is not yet complete


class BlockList:
    """Looks for phrases in a reply while it grows. Immutable, but for what it has found out."""

    def __init__(self, phrases: Iterable[str], spellings: Spellings) -> None:
        self._spellings = spellings
        self._phrases: list[str] = []  # signs of each
        self._next: list[dict[str, int]] = [{}]
        self._fail: list[int] = [0]
        self._depth: list[int] = [0]
        self._through: list[list[int]] = [[]]  # phrases that begin with what leads to a node
        self._complete: list[bool] = [False]
        for phrase in phrases:
            self._add(phrase)
        self._link()
        self._found: dict[tuple[State, int], frozenset[int]] = {}

    def read(self, state: State, token: int) -> State:
        """The state after ``token``."""
        return self._read(state, self._spellings.token_bytes(token))[0]

    def is_open(self, state: State) -> bool:
        """Whether the text holds a phrase unless its last word goes on."""
        return state.in_word and self._complete[self._step(state.node, _MARK)]

    def holds(self, text: str) -> bool:
        """Whether ``text`` holds a phrase for certain, however it goes on."""
        return self._read(State(), text.encode(errors="replace"))[1]

    def forbidden(self, state: State, left: int = _MISSING) -> frozenset[int]:
        """Ids that may not come after ``state``. ``left``: tokens that may come after that, if few."""
        left = min(left, _MISSING)
        if (state, left) not in self._found:
            find = self._find_inside_character if state.rest else self._find
            self._found[state, left] = frozenset(find(state, left))
        found = self._found[state, left]
        if state.node and not state.rest:
            found |= self.forbidden(state._replace(node=0), left)
            if self.is_open(state):
                found |= self._spellings.endings(left == 0)
        return found

    # ---- The automaton -------------------------------------------------------------------------------------

    def _add(self, phrase: str) -> None:
        signs, state = _signs(State(), unicodedata.normalize("NFC", phrase).strip())
        signs += _MARK if state.in_word else ""
        number, node = len(self._phrases), 0
        self._phrases.append(signs)
        for depth, sign in enumerate(signs, start=1):
            if sign not in self._next[node]:
                self._next[node][sign] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self._depth.append(depth)
                self._through.append([])
                self._complete.append(False)
            node = self._next[node][sign]
            self._through[node].append(number)
        self._complete[node] = True

    def _link(self) -> None:
        """From every node to that of the longest beginning of a phrase that its own ends with."""
        waiting = deque(self._next[0].values())
        while waiting:
            node = waiting.popleft()
            self._complete[node] |= self._complete[self._fail[node]]
            for sign, after in self._next[node].items():
                self._fail[after] = self._step(self._fail[node], sign)
                waiting.append(after)

    def _step(self, node: int, sign: str) -> int:
        while node and sign not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(sign, 0)

    def _read(self, state: State, spelling: bytes) -> tuple[State, bool]:
        """The state after ``spelling``, and whether a phrase has been completed in it."""
        text, rest = _decode(state.rest + spelling)
        signs, after = _signs(state, text)
        node, complete = state.node, False
        for sign in signs:
            node = self._step(node, sign)
            complete |= self._complete[node]
        return after._replace(node=node, rest=rest), complete

    # ---- Forbidden tokens ----------------------------------------------------------------------------------

    def _find(self, state: State, left: int) -> Iterator[int]:
        """Tokens that would complete a phrase after ``state``, or would have to in the end.

        Inside of a phrase, only those that begin with its rest; but an open text has `Spellings.endings`.
        """
        tokens = self._spellings.signs(state.in_word, state.after_blank, left == 0)
        if not state.node:
            for phrase in self._phrases:
                yield from tokens.that_hold(phrase)
        node = state.node
        while node:
            for number in self._through[node]:
                rest = self._phrases[number][self._depth[node] :]
                if rest not in ("", _MARK):
                    yield from tokens.that_begin_with(rest)
            node = self._fail[node]
        for token in self._spellings.unfinished:
            if self._leads_nowhere(self.read(state, token), left):
                yield token

    def _find_inside_character(self, state: State, left: int) -> Iterator[int]:
        """The same where bytes are missing: a token without them leaves a character that is no letter."""
        going_on = self._spellings.going_on
        for token in going_on:
            after, complete = self._read(state, self._spellings.token_bytes(token))
            if complete or (left == 0 and self.is_open(after)) or self._leads_nowhere(after, left):
                yield token
        if self.is_open(state):
            yield from self._spellings.whole  # and the end
        else:
            yield from self.forbidden(State(0, False, False), left) - frozenset(going_on)

    def _leads_nowhere(self, state: State, left: int) -> bool:
        """Whether an open text ends in a character that cannot become a letter, or not in ``left`` tokens."""
        if not state.rest or not self.is_open(state):
            return False
        return _missing(state.rest) > left or not _may_be_letter(state.rest)


class Watch:
    """One reply's paths, as a block list reads them."""

    def __init__(self, phrases: BlockList, max_tokens: int) -> None:
        self._phrases = phrases
        self._max_tokens = max_tokens
        self._states: dict[tuple[int, ...], State] = {(): State()}

    def forbidden(self, ids: Sequence[int]) -> frozenset[int]:
        """Ids that may not follow ``ids``."""
        return self._phrases.forbidden(self._state(ids), self._max_tokens - len(ids) - 1)

    def showable(self, ids: Sequence[int]) -> int:
        """How many of ``ids`` may be shown: up to the last place where the reply could end."""
        return next(n for n in range(len(ids), -1, -1) if not self._phrases.is_open(self._state(ids[:n])))

    def _state(self, ids: Sequence[int]) -> State:
        """The state after ``ids``; that of all but the last is known from the step before."""
        path = tuple(ids)
        known = next(n for n in range(len(path), -1, -1) if path[:n] in self._states)
        state = self._states[path[:known]]
        for n in range(known, len(path)):
            state = self._phrases.read(state, path[n])
            self._states[path[: n + 1]] = state
        return state


# ---- Signs -------------------------------------------------------------------------------------------------


class Spellings:
    """A vocabulary as block lists read it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.token_bytes = tokenizer.token_bytes
        self._end_id = tokenizer.end_id
        self._tokens = range(len(SPECIALS), tokenizer.vocab_size)
        self._signs: dict[tuple[bool, bool, bool], Signs] = {}
        self._endings: dict[bool, frozenset[int]] = {}

    def signs(self, in_word: bool, after_blank: bool, last: bool) -> Signs:
        """What every token is after such a text; if it is the ``last``, with the end of its word."""
        key = in_word, after_blank, last
        if key not in self._signs:
            self._signs[key] = Signs(self._read(State(0, in_word, after_blank), last))
        return self._signs[key]

    def _read(self, state: State, last: bool) -> Iterator[tuple[str, int]]:
        for token in self._tokens:
            signs, after = _signs(state, _decode(self.token_bytes(token))[0])
            yield signs + (_MARK if last and after.in_word else ""), token

    def endings(self, last: bool) -> frozenset[int]:
        """What, after a letter, shows that its word is complete: the end among them."""
        if last not in self._endings:
            tokens = self.signs(True, False, last).that_begin_with(_MARK)
            self._endings[last] = frozenset([self._end_id, *tokens])
        return self._endings[last]

    @cached_property
    def unfinished(self) -> tuple[int, ...]:
        """Tokens that end inside of a character."""
        return tuple(token for token in self._tokens if _decode(self.token_bytes(token))[1])

    @cached_property
    def going_on(self) -> tuple[int, ...]:
        """Tokens that may begin inside of a character."""
        return tuple(token for token in self._tokens if 0x80 <= self.token_bytes(token)[0] < 0xC0)

    @cached_property
    def whole(self) -> tuple[int, ...]:
        """The other tokens, and the end."""
        going_on = set(self.going_on)
        return (self._end_id, *(token for token in self._tokens if token not in going_on))


class Signs:
    """Signs of many tokens, to be searched."""

    def __init__(self, tokens: Iterable[tuple[str, int]]) -> None:
        self._sorted = sorted(tokens)
        self._all = _GAP.join(signs for signs, _ in self._sorted)
        lengths = (len(signs) + 1 for signs, _ in self._sorted)
        self._starts = list(accumulate(lengths, initial=0))

    def that_begin_with(self, signs: str) -> Iterator[int]:
        """Tokens that begin with ``signs``."""
        first = bisect_left(self._sorted, (signs, -1))
        after = bisect_left(self._sorted, (signs + _LAST, -1))
        return (token for _, token in self._sorted[first:after])

    def that_hold(self, signs: str) -> Iterator[int]:
        """Tokens that have ``signs`` in them."""
        at = self._all.find(signs)
        while at >= 0:
            place = bisect_right(self._starts, at) - 1
            yield self._sorted[place][1]
            at = self._all.find(signs, self._starts[place + 1])


def _signs(state: State, text: str) -> tuple[str, State]:
    """What an automaton reads of ``text`` after ``state``, and the state with all but its node renewed."""
    signs: list[str] = []
    in_word, after_blank = state.in_word, state.after_blank
    for folded in text.casefold():
        sign = " " if folded.isspace() else _FOLDED.get(folded, folded)
        if sign == " " and after_blank:
            continue
        if sign.isalnum() != in_word:
            in_word = not in_word
            signs.append(_MARK)
        after_blank = sign == " "
        signs.append(sign)
    return "".join(signs), state._replace(in_word=in_word, after_blank=after_blank)


def _decode(spelling: bytes) -> tuple[str, bytes]:
    """The characters of ``spelling``, and the bytes of one that is not complete at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return decoder.decode(spelling), decoder.getstate()[0]


def _missing(rest: bytes) -> int:
    """Bytes that the character lacks which begins with ``rest``."""
    return 2 + (rest[0] >= 0xE0) + (rest[0] >= 0xF0) - len(rest)


@cache
def _may_be_letter(rest: bytes) -> bool:
    """Whether a character whose bytes begin with ``rest`` can be a letter."""
    missing = _missing(rest)
    code = rest[0] & (0x3F >> (len(rest) + missing - 1))
    for byte in rest[1:]:
        code = code << 6 | byte & 0x3F
    first, after = code << 6 * missing, (code + 1) << 6 * missing
    return any(chr(code).isalnum() for code in range(first, min(after, _LETTERS)))
