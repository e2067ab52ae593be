"""The mailbox: whatever the pace, a socket gets everything in order, or it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from server.mailbox import Closing, Mailbox
from server.protocol import Accepted, Delta, Pong, ServerMessage


def accepted(number: int) -> Accepted:
    return Accepted(id=f"c{number}", message=f"m{number}", seq=number)


def read(mailbox: Mailbox) -> list[ServerMessage | Closing]:
    async def everything() -> list[ServerMessage | Closing]:
        return [await mailbox.get() for _ in range(len(mailbox))]

    return asyncio.run(everything())


def test_messages_come_out_in_order() -> None:
    mailbox = Mailbox(8)
    messages: list[ServerMessage] = [accepted(1), Pong(), accepted(2)]
    for message in messages:
        mailbox.put(message)
    assert read(mailbox) == messages


def test_a_delta_joins_the_one_that_waits() -> None:
    mailbox = Mailbox(8)
    mailbox.put(Delta(reply="r", offset=0, text=""))
    mailbox.put(Delta(reply="r", offset=0, text="héllo"))
    mailbox.put(Delta(reply="r", offset=5, text=" 🙂"))
    assert read(mailbox) == [Delta(reply="r", offset=0, text="héllo 🙂")]


def test_deltas_stay_apart_over_a_message_another_reply_or_a_gap() -> None:
    mailbox = Mailbox(8)
    messages: list[ServerMessage] = [
        Delta(reply="r", offset=0, text="a"),
        Pong(),
        Delta(reply="r", offset=1, text="b"),
        Delta(reply="q", offset=2, text="c"),
        Delta(reply="q", offset=9, text="d"),
    ]
    for message in messages:
        mailbox.put(message)
    assert read(mailbox) == messages


def test_a_thousand_deltas_take_one_place() -> None:
    mailbox = Mailbox(2)
    for offset in range(1000):
        mailbox.put(Delta(reply="r", offset=offset, text="x"))
    assert read(mailbox) == [Delta(reply="r", offset=0, text="x" * 1000)]
    assert not mailbox.closed


def test_who_falls_behind_is_closed_and_gets_nothing_more() -> None:
    mailbox = Mailbox(3)
    for number in range(4):
        mailbox.put(accepted(number))
    assert mailbox.closed
    mailbox.put(accepted(5))
    assert read(mailbox) == [Closing(1013, "reading too slowly")]


def test_what_waits_goes_out_before_the_close_and_the_first_close_counts() -> None:
    mailbox = Mailbox(3)
    mailbox.put(accepted(1))
    mailbox.close(1001, "the server is stopping")
    mailbox.close(1008, "too many bad frames")
    mailbox.put(accepted(2))
    assert read(mailbox) == [accepted(1), Closing(1001, "the server is stopping")]


def test_a_backlog_is_not_falling_behind() -> None:
    mailbox = Mailbox(2)
    mailbox.admit([accepted(number) for number in range(100)])
    assert not mailbox.closed
    assert len(read(mailbox)) == 100


def test_room_is_when_half_has_been_read() -> None:
    async def test() -> None:
        mailbox = Mailbox(4)
        await mailbox.room()
        for number in range(3):
            mailbox.put(accepted(number))
        waiting = asyncio.ensure_future(mailbox.room())
        await asyncio.wait([waiting], timeout=0)
        assert not waiting.done()
        await mailbox.get()
        await waiting

    asyncio.run(test())


def test_a_reader_that_came_first_is_woken() -> None:
    async def test() -> None:
        mailbox = Mailbox(4)
        reading = asyncio.ensure_future(mailbox.get())
        await asyncio.wait([reading], timeout=0)
        mailbox.put(accepted(1))
        assert await reading == accepted(1)

    asyncio.run(test())


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(), st.integers(1, 9).map(accepted), st.tuples(st.sampled_from("qr"), st.text(max_size=3))
        )
    )
)
def test_whatever_the_pace_all_of_it_arrives_in_order(steps: list[Accepted | tuple[str, str] | None]) -> None:
    async def play() -> tuple[list[ServerMessage], list[ServerMessage | Closing]]:
        mailbox = Mailbox(10_000)
        put: list[ServerMessage] = []
        got: list[ServerMessage | Closing] = []
        length = {"q": 0, "r": 0}
        for step in steps:
            if step is None:
                if len(mailbox):
                    got.append(await mailbox.get())
                continue
            message: ServerMessage
            if isinstance(step, tuple):
                reply, text = step
                message = Delta(reply=reply, offset=length[reply], text=text)
                length[reply] += len(text)
            else:
                message = step
            put.append(message)
            mailbox.put(message)
        got += [await mailbox.get() for _ in range(len(mailbox))]
        return put, got

    put, got = asyncio.run(play())
    assert spelled(got) == spelled(put)


def spelled(messages: Sequence[ServerMessage | Closing]) -> list[object]:
    """Deltas as single characters with their places: the same however they were cut."""
    found: list[object] = []
    for message in messages:
        if isinstance(message, Delta):
            found += [(message.reply, message.offset + i, c) for i, c in enumerate(message.text)]
        else:
            found.append(message)
    return found
