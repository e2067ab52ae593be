"""From the moment a conversation is taken over the bot is silent in it, whatever happens in whatever order.

Two servers share a database. What is random in a real server is done by hand here: when a commit happens,
when the event loop hears of it, when the model has another piece or is done. Everything between is the real
thing: conversations, ledger, store, the writer's transactions.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine as Database

from chatbot.options import DecodingOptions
from chatbot.replies import Finished, Piece, Reply, ReplyRequest
from server.conversations import Bounds, Conversations
from server.database import connect, upgrade, writing
from server.desk import ReplyTurn
from server.engine import Engine, Generation, Permit, _Station
from server.ledger import Ledger, OperatorSay, OwnerWish, Refusal
from server.live_conversation import Seat
from server.mailbox import Mailbox
from server.offload import Offload
from server.protocol import Accepted, Delta, Message, Owner, Ready, ServerMessage
from server.records import Ownership, StoredTurn
from server.session import Open, Post, Redo
from server.speaker import Speaker
from server.store import Store, StoreError
from server.writer import Writer

OPTIONS = DecodingOptions(seed=1)
SPEAKER = Speaker("tw-model", OPTIONS, lambda _: OPTIONS)
BOUNDS = Bounds(1000, sockets=3, replies_per_visitor=4, replies_per_address=8, visitors_per_address=1000)
OPERATORS = ["ann", "bob"]
WHO = st.sampled_from(["ann", "ann", "ann", "bob"])


class HandWriter:
    """A writer that commits when told to, and tells when told to."""

    def __init__(self, world: World, server: int) -> None:
        self.world = world
        self.server = server
        self.waiting: list[tuple[Callable[..., Any], Any, Future[Any]]] = []
        self.committed: list[tuple[Any, Future[Any]]] = []

    def submit(self, carry_out: Callable[..., Any], request: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((carry_out, request, future))
        return future

    def commit(self) -> None:
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        # Equal, not identical: each access makes another bound method.
        assert all(each[0] == waiting[0][0] for each in waiting), "one desk decides about all of them"
        with writing(self.world.database) as connection:
            outcomes = waiting[0][0](connection, [request for _, request, _ in waiting])
        for (_, request, future), outcome in zip(waiting, outcomes, strict=True):
            self.world.committed(self.server, request, outcome)
            self.committed.append((outcome, future))

    def tell(self) -> None:
        committed, self.committed = self.committed, []
        for outcome, future in committed:
            if isinstance(outcome, StoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


class HandEngine:
    """An engine whose model speaks when told to."""

    speaker = SPEAKER

    def __init__(self, world: World) -> None:
        self.world = world
        self.generations: dict[str, Generation] = {}
        self.spoken: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.permits = 0

    def now(self) -> float:
        return 0.0

    def reserve(self, owner: str | None = None, model: str | None = None) -> Permit:
        self.permits += 1

        def give_back() -> None:
            self.permits -= 1

        return Permit(_Station(SPEAKER, lambda: cast("Any", None)), 1, give_back, owner)

    def generate(self, request: ReplyRequest, permit: Permit) -> Generation:
        self.world.asked(request)
        generation = Generation(request, permit, cast("Engine", self))
        self.generations[request.id] = generation
        self.spoken[request.id] = ""
        return generation

    def cancel(self, reply: str) -> None:
        self.cancelled.add(reply)

    def speak(self) -> None:
        for reply, generation in self.generations.items():
            if reply not in self.cancelled:
                self.spoken[reply] += "word "
                generation.deliver(Piece(reply, "word "))

    def finish(self) -> None:
        for reply, generation in self.generations.items():
            reason: Any = "cancelled" if reply in self.cancelled else "stop"
            generation.deliver(Finished(reply, Reply(self.spoken[reply], (1,), (-0.5,), reason, 1, ())))
            generation.permit.release()
        self.generations.clear()
        self.cancelled.clear()


class Here:
    """Carries calls out at once, in the place of a thread."""

    async def __call__(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return call(*args, **kwargs)


@dataclass
class Server:
    """One of the servers. knows: whether it has heard of the present owner."""

    writer: HandWriter
    engine: HandEngine
    conversations: Conversations


class Ear(Mailbox):
    """A visitor's mailbox that looks at what is put into it, when it is put there."""

    def __init__(self, world: World, server: int) -> None:
        super().__init__(100_000)
        self.world = world
        self.server = server
        self.heard: list[ServerMessage] = []

    def put(self, message: ServerMessage) -> None:
        self.world.sent(self.server, message)
        self.heard.append(message)
        super().put(message)


@dataclass
class Visitor:
    """A socket of the visitor."""

    server: int
    ear: Ear
    last_seq: int
    seat: Seat | None = None
    said: list[tuple[str, str]] = field(default_factory=list)
    repeated: set[str] = field(default_factory=set)

    @property
    def gone(self) -> bool:
        return self.ear.closed


class World:
    """Both servers, one conversation, and what has been true in the database since the beginning."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = Store(database)
        self.loop = asyncio.new_event_loop()
        grant = self.store.new_visitor()
        self.token = grant.token
        self.conversation = self.store.open_conversation(grant.visitor_id)
        self.truth = Ownership()
        self.last_seq = 0
        self.kept_on: dict[int, int] = {}
        self.taken_at = 0
        self.taken_on = -1
        self.operator_words: dict[str, tuple[str, Message]] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self.faults: list[str] = []  # a server would swallow what is raised within it
        self.servers = [self._server(number) for number in range(2)]

    def _server(self, number: int) -> Server:
        writer, engine = HandWriter(self, number), HandEngine(self)
        store = Store(self.database, writer=cast("Writer", writer))
        ledger = Ledger(store, cast("Offload", Here()), 10_000)
        return Server(writer, engine, Conversations(ledger, cast("Engine", engine), BOUNDS))

    # --- what must be true when it happens ----------------------------------------------------------------

    def committed(self, server: int, request: Any, outcome: Any) -> None:
        """In the order in which the database lived through it."""
        if isinstance(outcome, StoredTurn) and outcome.created:
            self.last_seq += 1
            assert outcome.seq == self.last_seq
            self.kept_on[outcome.seq] = server
            if isinstance(request, ReplyTurn):
                assert self.truth.owner == "bot", "a reply was stored in a conversation that a person has"
        if isinstance(outcome, Ownership):
            if outcome.owner == "operator" and outcome.version != self.truth.version:
                self.taken_at, self.taken_on = self.last_seq, server
            self.truth = outcome

    def sent(self, server: int, message: ServerMessage) -> None:
        """At the moment it goes into a visitor's mailbox."""
        taken = self.truth.owner == "operator"
        if isinstance(message, Ready) and message.owner == "operator" and message.replying is not None:
            self.faults.append("a reply was running in a conversation that a person has")
        bot = isinstance(message, Message) and message.role == "agent" and message.author is None
        if bot and taken and cast("Message", message).seq > self.taken_at:
            self.faults.append("the bot has spoken in a conversation that a person has")
        if isinstance(message, Delta) and taken and server == self.taken_on:
            self.faults.append("a reply was streamed after its conversation was taken over")

    def asked(self, request: ReplyRequest) -> None:
        """What the model reads is what the database says, unless that has gone on meanwhile."""
        rows = self.store.messages(self.conversation)
        turn = next(row for row in rows if row.role == "user" and row.text == request.turns[-1][1])
        said = self.store.history(self.conversation, turn.message_id)
        if rows[-1].message_id == turn.message_id and list(request.turns) != said:
            self.faults.append("the model was given something else to read than what the database holds")

    # --- moving on ----------------------------------------------------------------------------------------

    def do(self, work: Awaitable[Any]) -> None:
        self.tasks.append(self.loop.create_task(_tolerant(work)))
        self.turn()

    def reach(self, server: int, far: str) -> None:
        """Take what a server has been asked so far. What is only committed meets a model that speaks."""
        if far != "asked":
            self.servers[server].writer.commit()
        if far == "committed":
            self.servers[server].engine.speak()
            self.turn()
        if far == "heard":
            self.servers[server].writer.tell()
            self.turn()

    def turn(self) -> None:
        """Let the event loop do all that it can do now."""

        async def a_while() -> None:
            for _ in range(40):
                await asyncio.sleep(0)

        self.loop.run_until_complete(a_while())
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            task.result()
        assert self.faults == []

    def settle(self) -> None:
        """Until nothing is under way."""
        for _ in range(30):
            for server in self.servers:
                server.engine.finish()
                self.turn()
                server.writer.commit()
                server.writer.tell()
                self.turn()
            if self.quiet:
                break
        assert self.quiet, f"something waits for ever: {self.tasks}"

    @property
    def quiet(self) -> bool:
        return not self.tasks and not any(
            server.writer.waiting or server.writer.committed or server.engine.generations
            for server in self.servers
        )

    def close(self) -> None:
        for server in self.servers:
            assert server.engine.permits == 0, "a place was not given back"
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


async def _tolerant(work: Awaitable[Any]) -> Any:
    """What is refused is refused; anything else that goes wrong is a fault."""
    try:
        return await work
    except (Refusal, StoreError):
        return None


WHERE = st.sampled_from([0, 0, 0, 1])
"""Most of it happens on one server, where it meets."""
WHICH = st.integers(0, 5)
FAR = st.sampled_from(["heard", "heard", "committed", "asked"])
"""How far a request gets before the next thing happens."""


class TakeoverMachine(RuleBasedStateMachine):
    def __init__(self, database: Database) -> None:
        super().__init__()
        self.world = World(database)
        self.visitors: list[Visitor] = []
        self.numbers = itertools.count()
        self.spoken: list[tuple[str, str, str]] = []

    @initialize(server=WHERE)
    def somebody_comes(self, server: int) -> None:
        self.connect(server, 0)
        self.world.settle()

    # --- the visitor --------------------------------------------------------------------------------------

    @rule(server=WHERE, back=st.integers(0, 3))
    def connect(self, server: int, back: int) -> None:
        """Comes, or comes back having missed something."""
        last_seq = max(0, self.world.last_seq - back)
        visitor = Visitor(server, Ear(self.world, server), last_seq)
        self.visitors.append(visitor)
        request = Open(self.world.token, self.world.conversation, last_seq)

        async def greet() -> None:
            visitor.seat = await self.world.servers[server].conversations.open(
                request, visitor.ear, "address"
            )

        self.world.do(greet())

    def seated(self) -> list[Visitor]:
        return [each for each in self.visitors if each.seat is not None and not each.gone]

    def somebody(self, which: int) -> tuple[Visitor, Seat, Conversations] | None:
        there = self.seated()
        if not there:
            return None
        visitor = there[which % len(there)]
        assert visitor.seat is not None
        return visitor, visitor.seat, self.world.servers[visitor.server].conversations

    @rule(which=WHICH)
    def disconnect(self, which: int) -> None:
        if found := self.somebody(which):
            visitor, seat, conversations = found
            conversations.leave(seat)
            visitor.ear.close(1001, "gone")

    @rule(which=WHICH, far=FAR)
    def say(self, which: int, far: str) -> None:
        self.speak(which, False, far)

    @rule(which=WHICH, far=FAR)
    def say_again(self, which: int, far: str) -> None:
        self.speak(which, True, far)

    def speak(self, which: int, again: bool, far: str) -> None:
        if found := self.somebody(which):
            visitor, seat, conversations = found
            known = [said for each in self.visitors for said in each.said]
            if again and known:
                key, text = known[which % len(known)]
            else:
                number = next(self.numbers)
                key, text = f"say {number}", f"question {number}"
            if (key, text) in known:
                visitor.repeated.add(key)
            visitor.said.append((key, text))
            self.world.do(conversations.say(seat, Post(key, text, {}, OPTIONS)))
            self.world.reach(visitor.server, far)

    @rule(which=WHICH)
    def regenerate(self, which: int) -> None:
        replies = [
            row for row in self.world.store.messages(self.world.conversation) if row.reply_id is not None
        ]
        if replies and (found := self.somebody(which)):
            _, seat, conversations = found
            reply = replies[-1 - which % len(replies)].message_id
            self.world.do(conversations.redo(seat, Redo(reply, {}, OPTIONS)))

    @rule(which=WHICH)
    def stop(self, which: int) -> None:
        if found := self.somebody(which):
            _, seat, conversations = found
            deltas = [heard.reply for heard in found[0].ear.heard if isinstance(heard, Delta)]
            if deltas:
                self.world.do(conversations.stop(seat, deltas[-1]))

    @rule(which=WHICH)
    def ask_for_a_person(self, which: int) -> None:
        if found := self.somebody(which):
            self.world.do(found[2].summon(found[1]))

    # --- operators ----------------------------------------------------------------------------------------

    @rule(server=WHERE, who=WHO, late=st.integers(0, 4), far=FAR)
    def take(self, server: int, who: str, late: int, far: str) -> None:
        """With the present version as a rule, or an older one."""
        self.wish(server, OwnerWish(who, self.world.truth.version - (late == 4), True), far)

    @rule(server=WHERE, who=WHO, late=st.integers(0, 4), far=FAR)
    def hand_back(self, server: int, who: str, late: int, far: str) -> None:
        self.wish(server, OwnerWish(who, self.world.truth.version - (late == 4), False), far)

    def wish(self, server: int, wish: OwnerWish, far: str) -> None:
        conversations = self.world.servers[server].conversations
        self.world.do(conversations.change_owner(self.world.conversation, wish))
        self.world.reach(server, far)

    @rule(server=WHERE, who=WHO, again=st.sampled_from([False, False, True]), far=FAR)
    def intervene(self, server: int, who: str, again: bool, far: str) -> None:
        self.advise(server, who, again, far)

    def advise(self, server: int, who: str, again: bool, far: str) -> None:
        if again and self.spoken:
            who, key, text = self.spoken[-1]
        else:
            number = next(self.numbers)
            key, text = f"operator {number}", f"advice {number}"
            self.spoken.append((who, key, text))

        async def speak() -> None:
            message = await self.world.servers[server].conversations.intervene(
                self.world.conversation, OperatorSay(key, text, who)
            )
            self.world.operator_words[key] = text, message

        self.world.do(speak())
        self.world.reach(server, far)

    @rule(which=WHICH, who=WHO, spoken=st.booleans(), elsewhere=st.booleans(), far=FAR)
    def interrupt(self, which: int, who: str, spoken: bool, elsewhere: bool, far: str) -> None:
        """A takeover while the bot is about to speak, or speaks, here or on the other server."""
        if found := self.somebody(which):
            server = found[0].server
            self.speak(which, False, "heard")
            if spoken:
                self.model_speaks(server)
            wish = OwnerWish(who, self.world.truth.version, True)
            self.wish(1 - server if elsewhere else server, wish, far)

    @rule(server=WHERE, which=WHICH)
    def help_out(self, server: int, which: int) -> None:
        """A whole takeover, one thing after the other."""
        version = self.world.truth.version
        self.wish(server, OwnerWish("ann", version, True), "heard")
        self.advise(server, "ann", False, "heard")
        self.wish(server, OwnerWish("ann", self.world.truth.version, False), "heard")
        self.speak(which, False, "heard")

    @rule(server=WHERE, who=WHO, closed=st.sampled_from([False, False, True]))
    def close(self, server: int, who: str, closed: bool) -> None:
        conversations = self.world.servers[server].conversations
        self.world.do(conversations.close(self.world.conversation, who, closed))

    # --- machinery ----------------------------------------------------------------------------------------

    @rule(server=WHERE)
    def model_says_more(self, server: int) -> None:
        self.model_speaks(server)

    def model_speaks(self, server: int) -> None:
        self.world.servers[server].engine.speak()
        self.world.turn()

    @rule(server=WHERE)
    def model_is_done(self, server: int) -> None:
        self.world.servers[server].engine.finish()
        self.world.turn()

    @precondition(lambda self: any(server.writer.waiting for server in self.world.servers))
    @rule(server=WHERE)
    def database_commits(self, server: int) -> None:
        self.world.servers[server].writer.commit()
        self.world.turn()

    @precondition(lambda self: any(server.writer.committed for server in self.world.servers))
    @rule(server=WHERE)
    def commit_is_heard_of(self, server: int) -> None:
        self.world.servers[server].writer.tell()
        self.world.turn()

    @rule(server=WHERE)
    def look_elsewhere(self, server: int) -> None:
        self.world.do(self.world.servers[server].conversations.look_elsewhere())

    @rule()
    def all_goes_on(self) -> None:
        for server in self.world.servers:
            server.writer.commit()
            server.writer.tell()
            self.world.turn()

    # --- what is true ---------------------------------------------------------------------------------------

    @invariant()
    def the_database_knows_the_owner(self) -> None:
        found, truth = self.world.store.ownership(self.world.conversation), self.world.truth
        assert found is not None
        assert (found.owner, found.operator_id, found.version) == (
            truth.owner,
            truth.operator_id,
            truth.version,
        )

    def teardown(self) -> None:
        try:
            self.world.settle()
            for _ in range(3):  # what one server hears of from another, it may answer
                for server in self.world.servers:
                    self.world.do(server.conversations.look_elsewhere())
                self.world.settle()
            self.check_orders()
            self.check_nothing_is_lost()
            self.check_that_all_know_the_owner()
            self.world.close()
        finally:
            self.world.loop.close()

    def check_orders(self) -> None:
        """Visitors saw all that the database holds, and in its order what was kept on their own server."""
        rows = {row.seq: row for row in self.world.store.messages(self.world.conversation)}
        assert sorted(rows) == list(range(1, self.world.last_seq + 1))
        for visitor in self.visitors:
            again = {row.message_id for row in rows.values() if row.client_id in visitor.repeated}
            heard = [seq for seq in known(visitor) if not {rows[seq].message_id, rows[seq].answers} & again]
            own = [seq for seq in heard if self.world.kept_on[seq] == visitor.server]
            assert own == sorted(own)
            for message in messages(visitor.ear.heard):
                row = rows[message.seq]
                assert (message.message, message.text) == (row.message_id, row.text)
                assert (message.author == "operator") == (row.operator_id is not None)
        for visitor in self.seated():
            missed = set(range(visitor.last_seq + 1, self.world.last_seq + 1)) - set(known(visitor))
            assert not missed, f"{visitor} never saw {missed}, kept on {self.world.kept_on}"

    def check_nothing_is_lost(self) -> None:
        """What was acknowledged is kept: the visitor's words and the operators'."""
        rows = {row.seq: row for row in self.world.store.messages(self.world.conversation)}
        texts = {key: text for visitor in self.visitors for key, text in visitor.said}
        for visitor in self.visitors:
            for heard in visitor.ear.heard:
                if isinstance(heard, Accepted):
                    row = rows[heard.seq]
                    assert (row.client_id, row.text, row.role) == (heard.id, texts[heard.id], "user")
        for key, (text, message) in self.world.operator_words.items():
            row = rows[message.seq]
            assert (row.client_id, row.text, row.role) == (key, text, "agent")
            assert row.operator_id in OPERATORS

    def check_that_all_know_the_owner(self) -> None:
        for visitor in self.seated():
            told = [heard.owner for heard in visitor.ear.heard if isinstance(heard, Owner | Ready)]
            assert told[-1] == self.world.truth.owner


def known(visitor: Visitor) -> list[int]:
    """The numbers of what was new to a visitor, their own words included, as it came first."""
    found: list[int] = []
    for heard in visitor.ear.heard:
        if isinstance(heard, Ready):
            found += [message.seq for message in heard.messages]
        elif isinstance(heard, Message | Accepted):
            found.append(heard.seq)
    return list(dict.fromkeys(seq for seq in found if seq > visitor.last_seq))


def messages(heard: Sequence[ServerMessage]) -> Iterator[Message]:
    for each in heard:
        if isinstance(each, Ready):
            yield from each.messages
        elif isinstance(each, Message):
            yield each


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path_factory.mktemp('takeover') / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    yield engine
    engine.dispose()


def test_the_bot_is_silent_from_the_moment_of_a_takeover(database: Database) -> None:
    class Machine(TakeoverMachine):
        def __init__(self) -> None:
            super().__init__(database)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def asking(database: Database) -> TakeoverMachine:
    """A visitor on the first server has said something, and the bot is about to speak."""
    machine = TakeoverMachine(database)
    machine.somebody_comes(0)
    machine.speak(0, False, "heard")
    return machine


def streamed(machine: TakeoverMachine) -> str:
    heard = machine.visitors[0].ear.heard
    return "".join(each.text for each in heard if isinstance(each, Delta))


def test_nothing_is_streamed_between_a_commit_and_its_being_heard_of(database: Database) -> None:
    machine = asking(database)
    machine.model_speaks(0)
    machine.wish(0, OwnerWish("ann", 0, True), "committed")  # and the model speaks once more
    assert streamed(machine) == "word "
    machine.teardown()
    assert streamed(machine) == "word "


def test_a_takeover_that_is_refused_holds_nothing_back(database: Database) -> None:
    machine = asking(database)
    machine.wish(0, OwnerWish("ann", 7, True), "committed")
    assert streamed(machine) == ""
    machine.commit_is_heard_of(server=0)
    assert streamed(machine) == "word "
    machine.teardown()
    assert [row.role for row in machine.world.store.messages(machine.world.conversation)] == ["user", "agent"]


def test_a_reply_is_dropped_that_was_made_while_another_server_took_over(database: Database) -> None:
    machine = asking(database)
    machine.wish(1, OwnerWish("ann", 0, True), "heard")
    machine.model_is_done(server=0)
    machine.teardown()
    assert [row.role for row in machine.world.store.messages(machine.world.conversation)] == ["user"]


def test_the_machine_finds_a_bot_that_goes_on_talking(database: Database) -> None:
    """What a world without the writer's refusal would look like to the machine."""
    world = World(database)
    world.truth = Ownership("operator", "ann", 1)
    reply = Message(seq=1, message="m", role="agent", text="and another thing", reply="r")
    world.taken_on = 0
    for spoken in (reply, Delta(reply="r", offset=0, text="and")):
        world.sent(0, spoken)
        with pytest.raises(AssertionError):
            world.turn()
        world.faults.clear()
    world.loop.close()
