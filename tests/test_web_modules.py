"""The web client's parts without its page: connection, conversation, outbox, settings, driven by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

from tests.fake_chat_server import running

pytest_plugins = ["tests.web_fixtures"]
pytestmark = pytest.mark.browser

WORLD: Final = """
    // Sockets, clock and chance by hand. `script` drives them and returns what the test looks at.
    const { Connection, backoff } = await import("/static/connection.js");
    const world = { time: 0, sockets: [], timers: [], phases: [], frames: [], refused: [], chance: 1 };
    const environment = {
      open(handlers) {
        const socket = { ...handlers, sent: [], gone: false };
        socket.send = (text) => socket.sent.push(JSON.parse(text));
        socket.close = () => { socket.gone = true; };
        world.sockets.push(socket);
        return socket;
      },
      after(delay, action) {
        const timer = { due: world.time + delay, action };
        world.timers.push(timer);
        return () => { world.timers = world.timers.filter((other) => other !== timer); };
      },
      now: () => world.time,
      random: () => world.chance,
    };
    const connection = new Connection(environment, {
      hello: () => ({ type: "hello", last_seq: 0 }),
      onFrame: (frame) => world.frames.push(frame.type),
      onPhase: (phase) => world.phases.push(phase),
      onRefused: (reason) => world.refused.push(reason),
    });
    const last = () => world.sockets.at(-1);
    const say = (frame) => last().received(JSON.stringify(frame));
    const pass = (milliseconds) => {
      const end = world.time + milliseconds;
      for (;;) {
        const [next] = world.timers.filter(({ due }) => due <= end).sort((one, other) => one.due - other.due);
        if (next === undefined) break;
        world.timers = world.timers.filter((other) => other !== next);
        world.time = next.due;
        next.action();
      }
      world.time = end;
    };
    const reach = () => { last().opened(); say({ type: "ready" }); };
"""


@pytest.fixture(scope="module")
def empty_page(chromium: Browser) -> Iterator[Page]:
    """A page of the server's origin that runs none of our scripts."""
    with running() as server, chromium.new_context() as context:
        page = context.new_page()
        page.goto(f"{server.address}/static/icon.svg")
        yield page


@pytest.fixture
def bare(empty_page: Page) -> Page:
    empty_page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
    return empty_page


def drive(page: Page, script: str) -> Any:
    return page.evaluate(f"async () => {{ {WORLD} {script} }}")


def with_modules(page: Page, script: str, value: Any = None) -> Any:
    imports = """
        const protocol = await import("/static/protocol.js");
        const { Conversation } = await import("/static/store.js");
        const { Outbox } = await import("/static/outbox.js");
        const { FIELDS, Settings } = await import("/static/settings.js");
        const field = (name) => FIELDS.find((one) => one.name === name);
    """
    return page.evaluate(f"async (value) => {{ {imports} {script} }}", value)


# The connection


def test_a_connection_greets_and_is_ready(bare: Page) -> None:
    phases, sent = drive(bare, "connection.start(); reach(); return [world.phases, last().sent];")
    assert phases == ["connecting", "greeting", "ready"]
    assert sent == [{"type": "hello", "last_seq": 0}]


def test_waits_grow_to_a_bound_and_half_of_each_is_chance(bare: Page) -> None:
    script = "return [0, 1, 2, 5, 9, 500].map((attempt) => [backoff(attempt, 0), backoff(attempt, 1)]);"
    bounds = drive(bare, script)
    assert bounds[:3] == [[250, 500], [500, 1000], [1000, 2000]]
    assert bounds[-1] == [10_000, 20_000]
    assert all(low * 2 == high for low, high in bounds)


def test_failed_attempts_wait_longer_each_time_and_a_steady_connection_ends_that(bare: Page) -> None:
    waits = drive(
        bare,
        """
        connection.start();
        const waits = [];
        const fail = () => {
          last().closed(1006);
          waits.push(connection.retryAt - world.time);
          pass(waits.at(-1));
        };
        fail(); fail(); fail();
        reach(); fail();               // stood for no time at all: still the same trouble
        reach(); pass(6000); fail();   // stood for six seconds: a new one
        return waits;
        """,
    )
    assert waits == [500, 1000, 2000, 4000, 500]


def test_a_server_that_does_not_greet_back_is_given_up(bare: Page) -> None:
    script = "connection.start(); last().opened(); pass(9999); const before = connection.phase; pass(1);"
    assert drive(bare, script + "return [before, connection.phase, last().gone];") == [
        "greeting",
        "waiting",
        True,
    ]


def test_a_silent_peer_is_asked_and_then_given_up(bare: Page) -> None:
    result = drive(
        bare,
        """
        connection.start(); reach();
        pass(15000); say({ type: "delta" });           // a sign of life puts the question off
        pass(19999); const early = last().sent.length;
        pass(1); const asked = last().sent.at(-1).type;
        say({ type: "pong" });                          // answered: nothing happens
        pass(10000); const alive = connection.phase;
        pass(10000 + 10000);                            // asked again, not answered
        return [early, asked, alive, connection.phase, world.frames];
        """,
    )
    assert result == [1, "ping", "ready", "waiting", ["ready", "delta"]]


def test_a_server_that_goes_away_is_left_in_peace_for_as_long_as_it_asked(bare: Page) -> None:
    wait = drive(
        bare,
        """
        connection.start(); reach(); say({ type: "going_away", reconnect_after: 3 });
        last().closed(1001);
        return [world.phases.at(-2), connection.retryAt - world.time];
        """,
    )
    assert wait == ["leaving", 3500]


@pytest.mark.parametrize("code", [1013, 4429])
def test_a_crowded_server_is_given_time(bare: Page, code: int) -> None:
    script = f"connection.start(); last().closed({code}); return connection.retryAt;"
    assert drive(bare, script) >= 5000


def test_a_chat_taken_over_by_another_tab_waits_for_its_visitor(bare: Page) -> None:
    result = drive(
        bare,
        """
        connection.start(); reach(); last().closed(4409); pass(600000);
        const quiet = [connection.phase, world.sockets.length];
        connection.reconnectNow();
        return [...quiet, world.sockets.length];
        """,
    )
    assert result == ["replaced", 1, 2]


@pytest.mark.parametrize(
    "end",
    [
        "last().closed(4401)",
        'say({type: "error", code: "unauthenticated"}); world.sockets[0].closed(4401)',
    ],
)
def test_a_refused_greeting_is_reported_once(bare: Page, end: str) -> None:
    result = drive(
        bare, f"connection.start(); last().opened(); {end}; return [world.refused.length, connection.phase];"
    )
    assert result == [1, "waiting"]


def test_a_busy_server_before_ready_is_not_a_refusal(bare: Page) -> None:
    result = drive(
        bare,
        """
        connection.start(); last().opened(); say({ type: "error", code: "busy", retry_after: 7 });
        return [world.refused, connection.retryAt];
        """,
    )
    assert result == [[], 7500]


def test_an_abandoned_socket_is_not_listened_to(bare: Page) -> None:
    result = drive(
        bare,
        """
        connection.start(); reach();
        const old = last();
        connection.restart();
        old.received('{"type": "message"}'); old.closed(1006);
        return [world.frames, connection.phase, world.sockets.length, old.gone];
        """,
    )
    assert result == [["ready"], "connecting", 2, True]


def test_nothing_is_sent_before_ready_and_the_caller_is_told(bare: Page) -> None:
    script = (
        'connection.start(); last().opened(); return [connection.send({type: "say"}), last().sent.length];'
    )
    assert drive(bare, script) == [False, 1]


@pytest.mark.parametrize("junk", ["", "[", "[]", "null", "7", '"ready"', "{}", '{"type": 1}'])
def test_junk_from_the_server_is_passed_over(bare: Page, junk: str) -> None:
    script = f"connection.start(); last().opened(); last().received({json.dumps(junk)});"
    assert drive(bare, script + "return connection.phase;") == "greeting"


# Texts and numbers


def test_texts_are_measured_in_code_points(bare: Page) -> None:
    script = "return [protocol.countCharacters(value), protocol.firstCharacters(value, 2)];"
    assert with_modules(bare, script, "a😀e\u0301") == [4, "a😀"]


def test_texts_are_made_sound_before_they_are_sent(bare: Page) -> None:
    assert with_modules(bare, r'return protocol.cleanText(" a\0b \ud800 c\n");') == "ab \ufffd c"


def test_a_seed_beyond_the_numbers_of_javascript_stays_exact(bare: Page) -> None:
    frame = '{"type": "message", "seed": 9223372036854775807, "seq": 3}'
    assert with_modules(bare, "const f = protocol.decode(value); return [String(f.seed), f.seq];", frame) == [
        "9223372036854775807",
        3,
    ]


def test_ids_are_never_the_same(bare: Page) -> None:
    ids = with_modules(bare, "return Array.from({length: 200}, () => protocol.newId());")
    assert len(set(ids)) == 200
    assert {len(name) for name in ids} == {32}


# The conversation


def message(seq: int, role: str, **extra: Any) -> dict[str, Any]:
    return {"type": "message", "seq": seq, "message": f"m{seq}", "role": role, "text": f"text {seq}", **extra}


def delta(offset: int, text: str, reply: str = "r1") -> dict[str, Any]:
    return {"type": "delta", "reply": reply, "offset": offset, "text": text}


STREAM: Final = """
    const conversation = new Conversation();
    conversation.expect();
    for (const frame of value) conversation.delta(frame);
    return conversation.streaming.text;
"""


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, "Hi "), (3, "😀 you"), (8, "!")],
        [(0, "Hi "), (0, "Hi "), (3, "😀 you"), (3, "😀 you"), (8, "!")],
        [(0, "Hi 😀"), (3, "😀 you"), (8, "!"), (2, " 😀")],
        [(0, "Hi 😀 yo"), (4, " you!")],
    ],
)
def test_pieces_join_at_their_offsets_whether_they_repeat_or_overlap(
    bare: Page, pieces: list[tuple[int, str]]
) -> None:
    assert with_modules(bare, STREAM, [delta(*piece) for piece in pieces]) == "Hi 😀 you!"


def test_a_piece_after_a_missing_one_waits_for_the_final_message(bare: Page) -> None:
    assert with_modules(bare, STREAM, [delta(0, "Hi "), delta(9, "far")]) == "Hi "


def test_a_late_piece_does_not_bring_a_whole_reply_back(bare: Page) -> None:
    script = """
        const conversation = new Conversation();
        conversation.message(value.message);
        conversation.delta(value.delta);
        return conversation.streaming;
    """
    value = {"message": message(1, "agent", reply="r1"), "delta": delta(0, "again")}
    assert with_modules(bare, script, value) is None


def test_a_missing_seq_is_noticed(bare: Page) -> None:
    script = """
        const conversation = new Conversation();
        return value.map((frame) => {
          conversation.message(frame);
          return [conversation.lastSeq, conversation.gap];
        });
    """
    frames = [message(1, "user"), message(3, "user"), message(2, "agent")]
    assert with_modules(bare, script, frames) == [[1, False], [1, True], [3, False]]


def test_a_replaced_reply_steps_back_and_stays_readable(bare: Page) -> None:
    script = """
        const conversation = new Conversation();
        for (const frame of value) conversation.message(frame);
        const names = (list) => list.map((one) => one.message);
        return [names(conversation.standing), names(conversation.earlier(conversation.lastReply))];
    """
    frames = [
        message(1, "user"),
        message(2, "agent"),
        message(3, "agent", replaces="m2"),
        message(4, "agent", replaces="m3"),
    ]
    assert with_modules(bare, script, frames) == [["m1", "m4"], ["m2", "m3"]]


REPLAY: Final = """
    // Each connection brings a snapshot from where we are, then what follows, perhaps twice, until it breaks.
    const conversation = new Conversation();
    const snapshot = (from, to) =>
      conversation.ready({ conversation: "c", messages: value.frames.slice(from, to), replying: null });
    for (const { upto, twice } of value.connections) {
      const have = conversation.lastSeq;
      const known = Math.min(value.frames.length, have + 1);
      snapshot(have, known);
      for (const frame of value.frames.slice(known, Math.max(known, upto))) {
        for (let times = twice ? 2 : 1; times > 0; times -= 1) conversation.message(frame);
      }
    }
    snapshot(conversation.lastSeq, value.frames.length);
    return conversation.messages.map((one) => [one.seq, one.text]);
"""


def test_any_breaks_and_repetitions_end_in_the_same_conversation(bare: Page) -> None:
    frames = [message(seq, "user" if seq % 2 else "agent") for seq in range(1, 9)]
    connections = st.lists(
        st.fixed_dictionaries({"upto": st.integers(0, 8), "twice": st.booleans()}), max_size=6
    )

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(connections)
    def check(breaks: list[dict[str, Any]]) -> None:
        seen = with_modules(bare, REPLAY, {"frames": frames, "connections": breaks})
        assert seen == [[frame["seq"], frame["text"]] for frame in frames]

    check()


# The outbox


def test_unsent_messages_outlive_the_page_in_their_order(bare: Page) -> None:
    script = """
        const outbox = new Outbox();
        outbox.open("c1");
        const ids = ["one", "two", "three"].map((text) => outbox.add(text, {}).id);
        outbox.find(ids[0]).state = "sent";
        outbox.remove(ids[1]);
        const later = new Outbox();
        later.open("c1");
        return later.entries.map(({ text, state }) => [text, state]);
    """
    assert with_modules(bare, script) == [["one", "queued"], ["three", "queued"]]


def test_unsent_messages_of_a_new_chat_stay_in_their_tab_until_it_has_an_id(bare: Page) -> None:
    script = """
        const outbox = new Outbox();
        outbox.open(null);
        outbox.add("early", {});
        const before = [Object.keys(localStorage).length, Object.keys(sessionStorage).length];
        outbox.assign("c9");
        const count = (storage) => Object.keys(storage).filter((key) => key.includes("say")).length;
        return [before, count(localStorage), count(sessionStorage)];
    """
    assert with_modules(bare, script) == [[0, 1], 1, 0]


def test_a_tampered_outbox_is_passed_over(bare: Page) -> None:
    script = """
        const keep = ([name, kept]) => localStorage.setItem(`turnwise.say.c1.${name}`, kept);
        Object.entries(value).forEach(keep);
        const outbox = new Outbox();
        outbox.open("c1");
        return outbox.entries.length;
    """
    assert with_modules(bare, script, {"a": "{", "b": "7", "c": '{"id": 3, "text": "x"}', "d": "null"}) == 0


def test_a_message_that_clashed_gets_a_new_id_and_no_other_does(bare: Page) -> None:
    script = """
        const outbox = new Outbox();
        outbox.open("c2");
        return ["conflict", "too_long"].map((code) => {
          const entry = outbox.add("text", {});
          const before = entry.id;
          outbox.fail(entry, code, "because");
          outbox.revive(entry, {});
          return entry.id === before;
        });
    """
    assert with_modules(bare, script) == [False, True]


# Settings

DEFAULTS: Final = {"decoding": "sample", "temperature": 0.7, "beam_size": 4, "n_best": 1, "max_tokens": 64}


def options(page: Page, changes: str, defaults: dict[str, Any] = DEFAULTS) -> Any:
    script = f"const settings = new Settings(); settings.learn(value); {changes}; return settings.options();"
    page.evaluate("() => localStorage.clear()")
    return with_modules(page, script, defaults)


def test_untouched_settings_leave_everything_to_the_model(bare: Page) -> None:
    assert options(bare, "") == {}


def test_only_changes_are_sent_and_only_where_they_mean_something(bare: Page) -> None:
    change = 'settings.change(field("temperature"), 1.2); settings.change(field("max_tokens"), 64)'
    assert options(bare, change) == {"temperature": 1.2}
    assert options(bare, change + '; settings.mode = "greedy"') == {"decoding": "greedy"}


def test_beam_search_brings_alternatives_though_the_model_makes_one_reply(bare: Page) -> None:
    assert options(bare, 'settings.mode = "beam"') == {"decoding": "beam", "n_best": 3}
    assert options(bare, "", {**DEFAULTS, "decoding": "beam"}) == {"n_best": 3}


def test_there_are_never_more_alternatives_than_beams(bare: Page) -> None:
    change = (
        'settings.mode = "beam"; settings.change(field("beam_size"), 2); settings.change(field("n_best"), 9)'
    )
    assert options(bare, change) == {"decoding": "beam", "beam_size": 2, "n_best": 2}


@pytest.mark.parametrize(("given_value", "kept"), [(99, 2), (-1, 0.1), (0.35, 0.35)])
def test_settings_keep_to_their_range(bare: Page, given_value: float, kept: float) -> None:
    assert options(bare, f'settings.change(field("temperature"), {given_value})') == {"temperature": kept}


def test_settings_are_kept_reset_and_safe_from_tampering(bare: Page) -> None:
    script = """
        new Settings().change(field("temperature"), 1.5);
        const kept = new Settings().options();
        new Settings().reset();
        const reset = localStorage.getItem("turnwise.settings");
        const tampered = '{"decoding": "magic", "temperature": 1e9, "top_k": "5", "x": 1}';
        localStorage.setItem("turnwise.settings", tampered);
        return [kept, reset, new Settings().options()];
    """
    assert with_modules(bare, script) == [{"temperature": 1.5}, None, {}]
