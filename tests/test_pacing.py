"""How often replies are told of: all of their text, in order, and never late at their ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatbot.replies import Event, Failed, Finished, Piece, Reply
from server.pacing import EACH, FEW, LONGEST, Pacing


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def finished(reply: str) -> Finished:
    return Finished(reply, Reply("", (), (), "stop", 0, ()))


def speaking(pacing: Pacing, count: int) -> list[str]:
    """So many replies that have begun to speak."""
    names = [str(number) for number in range(count)]
    assert pacing.due([Piece(name, "a") for name in names]) == [Piece(name, "a") for name in names]
    return names


def test_a_few_replies_tell_of_every_token() -> None:
    pacing = Pacing(Clock())
    names = speaking(pacing, FEW)
    for text in "bcd":
        assert pacing.due([Piece(name, text) for name in names]) == [Piece(name, text) for name in names]


def test_many_replies_tell_of_several_tokens_at_once() -> None:
    clock = Clock()
    pacing = Pacing(clock)
    speaking(pacing, FEW + 3)
    assert pacing.due([Piece("0", "b")]) == []
    clock.now = 2.9 * EACH
    assert pacing.due([Piece("0", "c")]) == []
    clock.now = 3.1 * EACH
    assert pacing.due([Piece("1", "x")]) == [Piece("0", "bc"), Piece("1", "x")]


def test_the_first_text_and_the_end_do_not_wait() -> None:
    pacing = Pacing(Clock())
    speaking(pacing, 100)
    assert pacing.due([Piece("0", "b"), Piece("1", "c"), Piece("new", "n")]) == [Piece("new", "n")]
    ends: list[Event] = [Piece("0", "d"), finished("0"), Failed("1", "no")]
    assert pacing.due(ends) == [Piece("0", "bd"), ends[1], Piece("1", "c"), ends[2]]


def test_no_text_is_held_for_longer_than_the_longest_pause() -> None:
    clock = Clock()
    pacing = Pacing(clock)
    speaking(pacing, 1000)
    assert pacing.due([Piece("7", "b")]) == []
    clock.now = LONGEST
    assert pacing.due([]) == [Piece("7", "b")]


STEPS = st.lists(
    st.tuples(
        st.floats(0, 2 * LONGEST),
        st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["a", "bc", "end", "fail"])), max_size=15),
    ),
    max_size=30,
)


@given(STEPS)
def test_each_reply_is_told_whole_and_in_order(steps: list[tuple[float, list[tuple[int, str]]]]) -> None:
    clock = Clock()
    pacing = Pacing(clock)
    made: dict[str, str] = {}
    told: dict[str, str] = {}
    lives: dict[int, int] = {}
    for pause, happened in steps:
        clock.now += pause
        events: list[Event] = []
        for number, what in happened:
            name = f"{number}.{lives.setdefault(number, 0)}"
            if what in ("end", "fail"):
                events.append(finished(name) if what == "end" else Failed(name, "no"))
                lives[number] += 1  # an id does not come back
            else:
                events.append(Piece(name, what))
                made[name] = made.get(name, "") + what
        for event in pacing.due(events):
            if isinstance(event, Piece):
                told[event.id] = told.get(event.id, "") + event.text
                assert made[event.id].startswith(told[event.id])
            else:
                assert told.get(event.id, "") == made.get(event.id, "")
    clock.now += LONGEST
    for event in pacing.due([]):
        assert isinstance(event, Piece)
        told[event.id] = told.get(event.id, "") + event.text
    assert told == made
