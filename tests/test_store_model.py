"""Random sequences of calls give what a few Python lists would give, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine

from server.database import connect, upgrade
from server.store import ClientIdConflict, NewReply, Store, StoreValueError
from tests.databases import KINDS, fresh_database

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
FEW_IDS = st.sampled_from(["a", "b", "c", "d", "e"])


@dataclass
class Said:
    """One message as the model remembers it; for a reply `to` is the user turn."""

    message_id: str
    key: str
    text: str
    to: Said | None = None
    replaces: str | None = None
    rating: tuple[str | None, str | None] = (None, None)


@dataclass
class Talk:
    """A conversation: everything said, oldest first."""

    id: str
    visitor: str
    said: list[Said] = field(default_factory=list)
    touched: int = 0

    def users(self) -> list[Said]:
        return [said for said in self.said if said.to is None]

    def current(self, user: Said) -> Said | None:
        replies = [said for said in self.said if said.to is user]
        return replies[-1] if replies else None

    def superseded(self, said: Said) -> bool:
        return said.to is not None and self.current(said.to) is not said

    def history(self) -> list[tuple[str, str]]:
        turns = []
        for user in self.users():
            turns.append(("user", user.text))
            reply = self.current(user)
            if reply is not None and reply.text.strip():
                turns.append(("agent", reply.text))
        return turns


class StoreMachine(RuleBasedStateMachine):
    """Each run has visitors and conversations of its own, in a database that all runs share."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.ticks = 0
        self.talks: list[Talk] = []
        self.tokens: dict[str, str] = {}
        self.restart()

    def clock(self) -> datetime:
        self.ticks += 1
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.ticks)

    @rule()
    def restart(self) -> None:
        self.engine.dispose()
        self.store = Store(self.engine, clock=self.clock)

    @initialize()
    def somebody_comes(self) -> None:
        self.new_visitor()
        self.open_conversation(0)

    @rule()
    def new_visitor(self) -> None:
        grant = self.store.new_visitor()
        assert grant.visitor_id not in self.tokens
        self.tokens[grant.visitor_id] = grant.token

    @rule(which=st.integers(0, 20))
    def open_conversation(self, which: int) -> None:
        visitor = list(self.tokens)[which % len(self.tokens)]
        self.talks.append(Talk(self.store.open_conversation(visitor), visitor))

    @rule(which=st.integers(0, 20), client_id=FEW_IDS, text=TEXTS)
    def say(self, which: int, client_id: str, text: str) -> None:
        talk = self.talks[which % len(self.talks)]
        before = next((user for user in talk.users() if user.key == client_id), None)
        if before is not None and before.text != text:
            with pytest.raises(ClientIdConflict):
                self.store.add_user_turn(talk.id, client_id, text, {})
            return
        turn = self.store.add_user_turn(talk.id, client_id, text, {})
        assert turn.created == (before is None)
        if before is None:
            talk.said.append(Said(turn.message_id, client_id, text))
            talk.touched = self.ticks
        else:
            assert turn.message_id == before.message_id
        self.check(talk)

    @precondition(lambda self: any(talk.said for talk in self.talks))
    @rule(data=st.data(), key=FEW_IDS, text=TEXTS, names_replaced=st.booleans())
    def reply(self, data: st.DataObject, key: str, text: str, names_replaced: bool) -> None:
        talk = data.draw(st.sampled_from([talk for talk in self.talks if talk.said]))
        user = data.draw(st.sampled_from(talk.users()))
        current = talk.current(user)
        before = next((said for said in talk.said if said.to is not None and said.key == key), None)
        replaces = current.message_id if names_replaced and current is not None else None
        turn = self.store.add_reply(talk.id, new_reply(key, user.message_id, text, replaces))
        assert turn.created == (before is None)
        if before is None:
            replaced = current.message_id if current is not None else None
            talk.said.append(Said(turn.message_id, key, text, user, replaced))
            talk.touched = self.ticks
            assert turn.replaces == replaced
        else:
            assert (turn.message_id, turn.replaces) == (before.message_id, before.replaces)
        self.check(talk)

    @precondition(lambda self: any(talk.said for talk in self.talks))
    @rule(data=st.data(), text=TEXTS)
    def reply_to_a_foreign_turn(self, data: st.DataObject, text: str) -> None:
        talk, other = data.draw(st.sampled_from(self.talks)), data.draw(st.sampled_from(self.talks))
        if talk is other or not other.said:
            return
        user = data.draw(st.sampled_from(other.users()))
        with pytest.raises(StoreValueError):
            self.store.add_reply(talk.id, new_reply("foreign", user.message_id, text, None))

    @precondition(lambda self: any(talk.said for talk in self.talks))
    @rule(data=st.data(), rating=st.sampled_from(["up", "down", None]), comment=st.none() | TEXTS)
    def rate(self, data: st.DataObject, rating: Any, comment: str | None) -> None:
        talk, other = data.draw(st.sampled_from(self.talks)), data.draw(st.sampled_from(self.talks))
        if not other.said:
            return
        said = data.draw(st.sampled_from(other.said))
        allowed = talk is other and said.to is not None
        assert self.store.rate(talk.id, said.message_id, rating, comment) == allowed
        if allowed:
            said.rating = (rating, comment)
        self.check(talk)

    def check(self, talk: Talk) -> None:
        kept = self.store.messages(talk.id)
        assert [message.seq for message in kept] == list(range(1, len(talk.said) + 1))
        for message, said in zip(kept, talk.said, strict=True):
            assert message.message_id == said.message_id
            assert message.text == said.text
            assert message.answers == (said.to.message_id if said.to is not None else None)
            assert message.replaces == said.replaces
            assert message.superseded == talk.superseded(said)
            assert (message.rating, message.comment) == said.rating
        assert self.store.last_seq(talk.id) == len(talk.said)
        assert self.store.history(talk.id) == talk.history()
        users = talk.users()
        expected = users[-1].message_id if users and talk.current(users[-1]) is None else None
        waiting = self.store.unanswered(talk.id)
        assert (waiting.message_id if waiting is not None else None) == expected

    def teardown(self) -> None:
        """At the end of each run no call has touched another conversation, and everybody sees their own."""
        for talk in self.talks:
            self.check(talk)
        for visitor, token in self.tokens.items():
            assert self.store.visitor_of(token) == visitor
            spoken = [talk for talk in self.talks if talk.visitor == visitor and talk.said]
            latest_first = sorted(spoken, key=lambda talk: -talk.touched)
            listed = [summary.id for summary in self.store.conversations(visitor)]
            assert listed == [talk.id for talk in latest_first]
            for talk in self.talks:
                assert self.store.owns(visitor, talk.id) == (talk.visitor == visitor)


def new_reply(key: str, answers: str, text: str, replaces: str | None) -> NewReply:
    return NewReply(
        reply_id=key,
        answers=answers,
        text=text,
        finish_reason="stop",
        model="tw-0123456789abcdef",
        options={},
        seed=0,
        token_ids=(),
        logprobs=(),
        alternatives=(),
        queued_ms=0.0,
        first_token_ms=None,
        total_ms=0.0,
        replaces=replaces,
    )


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with fresh_database(request.param, tmp_path) as url:
        upgrade(url)
        engine = connect(url)
        yield engine
        engine.dispose()


def test_any_sequence_of_calls(engine: Engine) -> None:
    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__(engine)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,  # the disk is not ours alone
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
