"""The session: a pure state machine, driven here through everything that can happen to it in any order."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatbot.options import DecodingOptions
from server.protocol import (
    MAX_ID,
    Cancel,
    ClientMessage,
    Error,
    FrameError,
    Hello,
    Human,
    Ping,
    Pong,
    Rate,
    Regenerate,
    Say,
)
from server.session import (
    Effect,
    Event,
    HelloOverdue,
    Judge,
    Open,
    Opened,
    Phase,
    Post,
    Redo,
    Refused,
    Rules,
    Send,
    Session,
    Shut,
    Stop,
    Summon,
    Unreadable,
)

DEFAULTS = DecodingOptions(temperature=0.7)
PATIENCE = 5


def new_session() -> Session:
    rules = Rules(
        lambda overrides: DecodingOptions.merged(DEFAULTS, overrides), max_text=10, patience=PATIENCE
    )
    return Session(rules)


def open_session() -> Session:
    session = new_session()
    session.handle(Hello())
    session.handle(Opened())
    return session


def only(effects: list[Effect]) -> Effect:
    assert len(effects) == 1
    return effects[0]


def error_of(effects: list[Effect]) -> Error:
    effect = only(effects)
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Error)
    return effect.message


BROKEN = Unreadable(FrameError("not JSON", about="c", field="text"))
GONE = Refused(Error(code="not_found", message="no such conversation"))
LATER = Refused(Error(code="busy", message="the database is busy", retry_after=1))
STRANGER = Refused(Error(code="unauthenticated", message="this token is not known"))


def test_a_hello_opens() -> None:
    session = new_session()
    assert only(session.handle(Hello(token="t", conversation="c", last_seq=4))) == Open("t", "c", 4)
    assert session.handle(Opened()) == []
    assert session.phase is Phase.OPEN


def test_nothing_but_a_ping_goes_before_the_hello() -> None:
    session = new_session()
    assert only(session.handle(Ping())) == Send(Pong())
    error = error_of(session.handle(Say(id="c", text="hi")))
    assert (error.code, error.id) == ("bad_state", "c")
    assert session.phase is Phase.GREETING


def test_a_second_hello_is_out_of_place() -> None:
    assert error_of(open_session().handle(Hello())).code == "bad_state"


def test_a_say_is_posted_with_the_models_defaults_below_its_own_options() -> None:
    say = Say(id="c", text="hello", options={"top_k": 5})
    expected = DecodingOptions(temperature=0.7, top_k=5)
    assert only(open_session().handle(say)) == Post("c", "hello", {"top_k": 5}, expected)


def test_a_text_is_measured_in_code_points() -> None:
    assert isinstance(only(open_session().handle(Say(id="c", text="🙂" * 10))), Post)
    error = error_of(open_session().handle(Say(id="c", text="a" * 11)))
    assert (error.code, error.id, error.field) == ("too_long", "c", "text")
    assert "10 characters" in error.message


def test_a_text_without_words_is_as_good_as_any() -> None:
    for text in ("", "   ", "🙂", "\u200b"):
        assert isinstance(only(open_session().handle(Say(id="c", text=text))), Post)


def test_a_bad_option_is_named_with_its_range() -> None:
    for message in (
        Say(id="c", text="x", options={"temperature": -1}),
        Regenerate(reply="c", options={"temperature": -1}),
    ):
        error = error_of(open_session().handle(message))
        assert (error.code, error.id, error.field) == ("bad_option", "c", "temperature")
        assert "0.05 to 5" in error.message


def test_no_more_of_an_unknown_options_name_comes_back_than_of_an_id() -> None:
    for message in (
        Say(id="c", text="x", options={"x" * 60_000: 1}),
        Regenerate(reply="c", options={"x" * 60_000: 1}),
    ):
        error = error_of(open_session().handle(message))
        assert (error.code, error.id, error.field) == ("bad_option", "c", "x" * MAX_ID)
        assert error.message == f"{'x' * MAX_ID}: no such option"


def test_requests_become_tasks() -> None:
    session = open_session()
    assert only(session.handle(Cancel(reply="r"))) == Stop("r")
    assert only(session.handle(Regenerate(reply="r", options={"top_k": 5}))) == Redo(
        "r", {"top_k": 5}, DecodingOptions(temperature=0.7, top_k=5)
    )
    assert only(session.handle(Rate(message="m", rating="up", comment="good"))) == Judge("m", "up", "good")


def test_a_visitor_asks_for_a_person() -> None:
    assert only(open_session().handle(Human())) == Summon()


def test_who_is_late_with_the_hello_is_shown_out() -> None:
    session = new_session()
    session.handle(Ping())
    assert only(session.handle(HelloOverdue())) == Shut(4408, "no hello in time")
    assert session.handle(Hello()) == []
    assert open_session().handle(HelloOverdue()) == []


def test_a_refused_hello_can_be_said_again() -> None:
    session = new_session()
    session.handle(Hello(token="t", conversation="another's"))
    assert error_of(session.handle(GONE)).code == "not_found"
    assert only(session.handle(Hello(token="t"))) == Open("t", None, 0)


def test_an_unknown_token_ends_the_connection() -> None:
    session = new_session()
    session.handle(Hello(token="t"))
    send, shut = session.handle(STRANGER)
    assert isinstance(send, Send)
    assert shut == Shut(4401, "this token is not known")


def test_guessing_conversations_wears_patience_out_and_a_busy_server_does_not() -> None:
    session = new_session()
    for _ in range(PATIENCE * 3):
        session.handle(Hello())
        assert error_of(session.handle(LATER)).code == "busy"
    for _ in range(PATIENCE):
        session.handle(Hello(conversation="guess"))
        assert error_of(session.handle(GONE)).code == "not_found"
    session.handle(Hello(conversation="guess"))
    assert Shut(1008, "too many bad frames") in session.handle(GONE)


def test_bad_frames_are_forgiven_by_good_ones() -> None:
    session = open_session()
    for _ in range(PATIENCE * 3):
        error = error_of(session.handle(BROKEN))
        assert (error.code, error.id, error.field) == ("bad_message", "c", "text")
        session.handle(Cancel(reply="r"))
    for _ in range(PATIENCE):
        error_of(session.handle(BROKEN))
    assert Shut(1008, "too many bad frames") in session.handle(BROKEN)


messages: st.SearchStrategy[ClientMessage] = st.one_of(
    st.just(Hello()),
    st.builds(Say, id=st.just("c"), text=st.text(max_size=12), options=st.just({})),
    st.just(Say(id="c", text="x", options={"top_k": -1})),
    st.just(Cancel(reply="r")),
    st.just(Regenerate(reply="r")),
    st.just(Rate(message="m", rating=None)),
    st.just(Human()),
    st.just(Ping()),
)


class AnySession(RuleBasedStateMachine):
    """Tasks only when open, one consequence of each frame, nothing after the end: in whatever order."""

    @initialize()
    def begin(self) -> None:
        self.session = new_session()
        self.waiting: list[Any] = []
        self.was_open = False
        self.ended = False

    def happen(self, event: Event) -> list[Effect]:
        effects = self.session.handle(event)
        if self.ended:
            assert effects == []
        shuts = [effect for effect in effects if isinstance(effect, Shut)]
        assert effects[-1:] == shuts[-1:] if shuts else True, "closing is the last thing that happens"
        self.ended = self.ended or bool(shuts)
        tasks = [effect for effect in effects if not isinstance(effect, Send | Shut)]
        assert len(tasks) <= 1
        for task in tasks:
            assert isinstance(task, Open) != self.was_open, "open first, and only then the rest"
        self.waiting = tasks or self.waiting
        return effects

    @rule(message=messages)
    def the_client_sends(self, message: ClientMessage) -> None:
        opening = [task for task in self.waiting if isinstance(task, Open)]
        effects = self.happen(message)
        if not self.ended:
            assert len(effects) == 1, "every frame has one consequence"
        if opening and not isinstance(message, Ping) and not self.ended:
            assert error_of(effects).code == "bad_state", "while it opens, nothing else may begin"

    @rule()
    def the_client_sends_rubbish(self) -> None:
        self.happen(BROKEN)

    @rule()
    def time_is_up(self) -> None:
        ended = self.ended
        self.happen(HelloOverdue())
        assert self.ended == (ended or not self.was_open)

    @precondition(lambda self: self.waiting)
    @rule()
    def the_task_is_done(self) -> None:
        task = self.waiting.pop()
        if isinstance(task, Open):
            assert self.happen(Opened()) == []
            self.was_open = self.was_open or not self.ended

    @precondition(lambda self: self.waiting)
    @rule(refusal=st.sampled_from([GONE, LATER, STRANGER]))
    def the_task_is_refused(self, refusal: Refused) -> None:
        self.waiting.pop()
        ended = self.ended
        effects = self.happen(refusal)
        assert ended or effects[0] == Send(refusal.error)

    @invariant()
    def the_phase_is_what_it_seems(self) -> None:
        if self.ended:
            assert self.session.phase is Phase.CLOSED
        elif self.was_open:
            assert self.session.phase is Phase.OPEN
        else:
            assert self.session.phase is (Phase.OPENING if self.waiting else Phase.GREETING)


TestAnySession = AnySession.TestCase
TestAnySession.settings = settings(deadline=None)
