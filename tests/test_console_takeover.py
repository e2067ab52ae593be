"""Taking over, through the console's API: who has a conversation, what they say there, and what looks on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from sqlalchemy import Engine, select, update

from server.console import audit
from server.console.live import STREAMS, WAITING, Feed
from server.console.live_routes import settled
from server.conversations import Conversations
from server.database import reading, writing
from server.desk import NewOwner, NewRating, NewUserTurn, ReplyTurn
from server.live_conversation import Seat
from server.mailbox import Closing, Mailbox
from server.protocol import Accepted, Delta, Error, Message, Owner, Ready, ServerMessage
from server.records import Ownership
from server.session import Judge, Open, Post, Redo
from server.store import OwnerChanged, Store, TakenOver
from server.tables import Conversation, OperatorSession
from tests.console_client import Streamed, Talk, TestConsole, console_over, new_reply, run
from tests.scripted_batcher import parrot

Kind = TypeVar("Kind", bound=ServerMessage)
NOTHING: dict[str, Any] = {}


class Visitor:
    """A visitor's socket, from the mailbox on."""

    def __init__(self, conversations: Conversations, mailbox: Mailbox, seat: Seat) -> None:
        self.conversations = conversations
        self.mailbox = mailbox
        self.seat = seat

    async def say(self, text: str, key: str | None = None) -> None:
        options = self.conversations._engine.speaker.defaults
        await self.conversations.say(self.seat, Post(key or text, text, {}, options))

    async def until(self, kind: type[Kind]) -> Kind:
        """The next message of a kind; the others go by, but no error does."""
        async with asyncio.timeout(20):
            while not isinstance(message := await self.mailbox.get(), kind):
                assert not isinstance(message, Error | Closing), message
            return message

    async def reply(self) -> Message:
        while (message := await self.until(Message)).role != "agent":
            pass
        return message

    async def nothing_more(self) -> list[ServerMessage | Closing]:
        """All that is there, once the event loop and the model have had time for more."""
        await asyncio.sleep(0.2)
        found = []
        while len(self.mailbox):
            found.append(await self.mailbox.get())
        return found


async def come(console: TestConsole, talk: Talk | None = None, last_seq: int = 0) -> tuple[Visitor, Ready]:
    mailbox = Mailbox(1000)
    request = Open(talk.token if talk else None, talk.id if talk else None, last_seq)
    seat = await console.desk.conversations.open(request, mailbox, "1.2.3.4")
    ready = await mailbox.get()
    assert isinstance(ready, Ready)
    return Visitor(console.desk.conversations, mailbox, seat), ready


def row(db: Engine, conversation: str) -> Any:
    with reading(db) as connection:
        return connection.execute(select(Conversation.__table__).where(Conversation.id == conversation)).one()


@asynccontextmanager
async def talking(folder: Path, models: Path, **settings: Any) -> AsyncIterator[TestConsole]:
    async with console_over(folder, models, script=parrot, **settings) as console:
        yield console


Test = Callable[[TestConsole], Awaitable[None]]


@pytest.fixture
def over(tmp_path: Path, tiny_model_dir: Path) -> Callable[[Test], None]:
    """Runs a test on a console whose model repeats what it hears."""
    return lambda test: run(talking(tmp_path, tiny_model_dir), test)


async def take(client: httpx.AsyncClient, conversation: str, version: int = 0) -> httpx.Response:
    return await client.post(f"/api/operator/conversations/{conversation}/take", json={"version": version})


async def hand_back(client: httpx.AsyncClient, conversation: str, version: int = 1) -> httpx.Response:
    return await client.post(
        f"/api/operator/conversations/{conversation}/hand_back", json={"version": version}
    )


async def speak(
    client: httpx.AsyncClient, conversation: str, text: str, key: str | None = None
) -> httpx.Response:
    return await client.post(
        f"/api/operator/conversations/{conversation}/messages", json={"id": key or text, "text": text}
    )


# --- taking over ------------------------------------------------------------------------------------------


def test_an_operator_takes_a_conversation_speaks_and_hands_it_back(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        visitor, ready = await come(console)
        talk = ready.conversation
        await visitor.say("hello")
        assert (await visitor.reply()).text == "hello "

        taken = await take(ann, talk)
        assert taken.json() == {"owner": "operator", "operator": "ann", "owner_version": 1}
        assert await visitor.until(Owner) == Owner(owner="operator")

        said = await speak(ann, talk, "Good morning, I am here for you.", "k1")
        assert said.status_code == 200
        message = await visitor.until(Message)
        assert (message.role, message.author, message.text) == ("agent", "operator", said_text(console, talk))
        assert (message.message, message.seq) == (said.json()["message"], said.json()["seq"])
        assert "ann" not in message.model_dump_json()
        assert (message.reply, message.model, message.answers, message.client_id) == (None, None, None, None)

        await visitor.say("and a latte?")
        await visitor.until(Accepted)
        assert await visitor.nothing_more() == []

        back = await hand_back(ann, talk)
        assert back.json() == {"owner": "bot", "operator": None, "owner_version": 2}
        assert await visitor.until(Owner) == Owner(owner="bot")
        assert (await visitor.reply()).text == "and a latte? "  # the last turn, which nobody had answered

        await visitor.say("thanks")
        assert (await visitor.reply()).text == "thanks "
        assert console.batcher is not None
        read = console.batcher.requests[-1].turns
        assert list(read) == console.store.history(talk, answering=last_user_turn(console, talk))
        assert ("agent", "Good morning, I am here for you.") in read

    over(test)


def asked_of(console: TestConsole, talk: str) -> list[Any]:
    """What the model was given to read, in this conversation."""
    assert console.batcher is not None
    return [request.turns for request in console.batcher.requests if request.conversation == talk]


def said_text(console: TestConsole, talk: str) -> str:
    return next(m.text for m in console.store.messages(talk) if m.operator_id is not None)


def last_user_turn(console: TestConsole, talk: str) -> str:
    return [m.message_id for m in console.store.messages(talk) if m.role == "user"][-1]


def test_the_bot_answers_only_what_is_last_when_it_is_back(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        visitor, ready = await come(console)
        await take(ann, ready.conversation)
        await visitor.until(Owner)
        for text in ("one", "two"):
            await visitor.say(text)
        await speak(ann, ready.conversation, "Both, please.")
        await hand_back(ann, ready.conversation)
        assert not any(isinstance(message, Delta) for message in await visitor.nothing_more())
        assert asked_of(console, ready.conversation) == []
        await visitor.say("three")
        assert (await visitor.reply()).text == "three "
        assert [turn[1] for turn in asked_of(console, ready.conversation)[0]] == [
            "one",
            "two",
            "Both, please.",
            "three",
        ]

    over(test)


def test_a_running_reply_ends_with_the_takeover(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        visitor, ready = await come(console)
        console.gate.close()
        await visitor.say("a long story")
        await visitor.until(Delta)
        console.gate.let(1)
        while (await visitor.until(Delta)).text == "":
            pass
        await take(ann, ready.conversation)
        assert await visitor.until(Owner) == Owner(owner="operator")
        console.gate.open()
        assert await visitor.nothing_more() == []
        assert [m.role for m in console.store.messages(ready.conversation)] == ["user"]
        _, again = await come(console, Talk(ready.conversation, "", ready.token, [], []))
        assert (again.owner, again.replying) == ("operator", None)

    over(test)


def test_a_reply_of_another_server_is_not_kept_either(over: Callable[[Test], None], tmp_path: Path) -> None:
    """The other one has heard nothing of the takeover until it wants to keep the reply."""

    async def test(console: TestConsole) -> None:
        visitor, ready = await come(console)
        console.gate.close()
        await visitor.say("hello")
        await visitor.until(Delta)
        elsewhere = Store(console.db)
        taken = await asyncio.to_thread(
            lambda: elsewhere.submit_owner(ready.conversation, 0, "ann", "ann").result()
        )
        assert taken == Ownership("operator", "ann", 1)
        console.gate.open()
        assert await visitor.until(Owner) == Owner(owner="operator")
        assert [m.role for m in console.store.messages(ready.conversation)] == ["user"]
        await visitor.say("anybody?")
        await visitor.until(Accepted)
        assert await visitor.nothing_more() == []

    over(test)


def test_no_other_reply_while_a_person_answers(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        visitor, ready = await come(console)
        await visitor.say("hello")
        reply = await visitor.reply()
        await take(ann, ready.conversation)
        with pytest.raises(Exception, match="bad_state"):
            await visitor.conversations.redo(
                visitor.seat,
                Redo(reply.message, {}, visitor.conversations._engine.speaker.defaults),
            )

    over(test)


def test_who_comes_back_during_a_takeover_is_not_answered_by_the_bot(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        talk = console.conversation([("hello", None)])
        await take(ann, talk.id)
        visitor, ready = await come(console, talk)
        assert (ready.owner, ready.replying) == ("operator", None)
        assert await visitor.nothing_more() == []
        await hand_back(ann, talk.id)
        assert (await visitor.reply()).text == "hello "

    over(test)


# --- compare and set --------------------------------------------------------------------------------------


def test_of_two_operators_one_has_it(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann, bob = await console.sign_in("reviewer", "ann"), await console.sign_in("reviewer", "bob")
        talk = console.conversation([("hello", "hi")]).id
        answers = await asyncio.gather(*(take(client, talk) for client in (ann, bob, ann, bob)))
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
        winner = next(answer.json()["operator"] for answer in answers if answer.status_code == 200)
        have, have_not = (ann, bob) if winner == "ann" else (bob, ann)
        refused = await take(have_not, talk)
        assert refused.json()["error"]["code"] == "conflict"
        assert (await hand_back(have_not, talk)).status_code == 409
        assert (await speak(have_not, talk, "hello")).status_code == 409
        assert (await speak(have, talk, "hello")).status_code == 200
        # Who knows how it stands may take it from a colleague.
        assert (await take(have_not, talk, version=1)).json()["owner_version"] == 2
        assert (await speak(have, talk, "still me")).status_code == 409
        assert (await hand_back(have_not, talk, version=2)).status_code == 200
        assert (await hand_back(have_not, talk, version=3)).status_code == 409  # nobody's to give back

    over(test)


def test_an_operators_words_are_kept_once(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        visitor, ready = await come(console)
        talk = ready.conversation
        await visitor.say("hello", "theirs")
        await visitor.reply()
        await take(ann, talk)
        await visitor.until(Owner)
        first = await speak(ann, talk, "I am here.", "k")
        again = await speak(ann, talk, "I am here.", "k")
        assert first.json() == again.json()
        assert (await speak(ann, talk, "Not any more.", "k")).status_code == 409
        assert (await speak(ann, talk, "hello", "theirs")).status_code == 409  # the visitor's own id
        assert len([m for m in await visitor.nothing_more() if isinstance(m, Message)]) == 1
        await hand_back(ann, talk)
        assert (await speak(ann, talk, "I am here.", "k")).json() == first.json()
        assert (await speak(ann, talk, "One more thing", "k2")).status_code == 409

    over(test)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"id": "k", "text": ""}, 400),
        ({"id": "k", "text": "  \n"}, 400),
        ({"id": "k", "text": "nul \0"}, 400),
        ({"id": "", "text": "hi"}, 400),
        ({"id": "k" * 65, "text": "hi"}, 400),
        ({"id": "k", "text": "x" * 5000}, 400),
        ({"id": "k", "text": "hi", "loud": True}, 400),
        ({"id": "k"}, 400),
        ([], 400),
    ],
    ids=range(9),
)
def test_what_cannot_be_said(over: Callable[[Test], None], body: Any, status: int) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        talk = console.conversation([("hello", "hi")]).id
        await take(ann, talk)
        answer = await ann.post(f"/api/operator/conversations/{talk}/messages", json=body)
        assert answer.status_code == status, answer.text
        assert len(console.store.messages(talk)) == 2

    over(test)


def test_missing_conversations_and_wrong_versions(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        for missing in ("nothing", "%00", "x" * 65):
            path = f"/api/operator/conversations/{missing}"
            for verb, body in (
                ("take", {"version": 0}),
                ("hand_back", {"version": 0}),
                ("close", None),
                ("reopen", None),
                ("messages", {"id": "k", "text": "hi"}),
            ):
                answer = await ann.post(f"{path}/{verb}", json=body)
                assert answer.status_code in (400, 404), (missing, verb, answer.text)
            assert (await ann.get(f"{path}/events")).status_code in (400, 404)
        talk = console.conversation([("hello", "hi")]).id
        for version in (-1, 2**63, 1.5, "0", None, True):
            assert (
                await ann.post(f"/api/operator/conversations/{talk}/take", json={"version": version})
            ).status_code == 400
        assert row(console.db, talk).owner == "bot"

    over(test)


def test_nobody_else_may(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        talk = console.conversation([("hello", "hi")])
        nobody = await console.client()
        visitor = await console.client(authorization=f"Bearer {talk.token}")
        for client in (nobody, visitor):
            assert (await take(client, talk.id)).status_code in (401, 403)
            assert (await speak(client, talk.id, "hi")).status_code in (401, 403)
            assert (await client.get("/api/operator/events")).status_code == 401
            assert (await client.get(f"/api/operator/conversations/{talk.id}/events")).status_code == 401
        assert row(console.db, talk.id).owner == "bot"

    over(test)


# --- asking for a person, being done ----------------------------------------------------------------------


def test_a_visitor_asks_for_a_person(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        visitor, ready = await come(console)
        assert (ready.owner, ready.waiting) == ("bot", None)
        await visitor.conversations.summon(visitor.seat)
        assert await visitor.until(Owner) == Owner(owner="bot", waiting=True)
        since = row(console.db, ready.conversation).waiting_since
        assert since is not None
        await visitor.conversations.summon(visitor.seat)
        assert await visitor.until(Owner) == Owner(owner="bot", waiting=True)
        assert row(console.db, ready.conversation).waiting_since == since
        _, again = await come(console, Talk(ready.conversation, "", ready.token, [], []))
        assert again.waiting is True
        await visitor.say("meanwhile?")
        assert (await visitor.reply()).text == "meanwhile? "  # the bot goes on until somebody comes
        await take(ann, ready.conversation)
        assert await visitor.until(Owner) == Owner(owner="operator")
        assert row(console.db, ready.conversation).waiting_since is None
        await visitor.conversations.summon(visitor.seat)
        assert await visitor.until(Owner) == Owner(owner="operator")
        assert row(console.db, ready.conversation).waiting_since is None

    over(test)


def test_a_conversation_is_closed_until_its_visitor_speaks(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann, bob = await console.sign_in("reviewer", "ann"), await console.sign_in("reviewer", "bob")
        visitor, ready = await come(console)
        talk = ready.conversation
        path = f"/api/operator/conversations/{talk}"
        await visitor.conversations.summon(visitor.seat)
        await take(ann, talk)
        assert (await bob.post(f"{path}/close")).status_code == 409
        assert (await ann.post(f"{path}/close")).status_code == 204
        now = row(console.db, talk)
        assert (now.owner, now.operator_id, now.owner_version, now.waiting_since) == ("bot", None, 2, None)
        closed = now.closed_at
        assert closed is not None
        assert (await bob.post(f"{path}/close")).status_code == 204
        assert row(console.db, talk).closed_at == closed
        assert (await bob.post(f"{path}/reopen")).status_code == 204
        assert row(console.db, talk).closed_at is None
        await ann.post(f"{path}/close")
        await visitor.say("one more thing")
        await visitor.reply()
        assert row(console.db, talk).closed_at is None
        actions = [entry.action for entry in audit.entries(console.db, limit=100)]
        assert actions.count("conversation.close") == 2  # what changes nothing is no deed
        assert actions.count("conversation.reopen") == 1

    over(test)


def test_the_log_says_who_did_what_and_nothing_that_was_said(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann, bob = await console.sign_in("reviewer", "ann"), await console.sign_in("reviewer", "bob")
        talk = console.conversation([("hello", "hi")]).id
        await take(ann, talk)
        await take(bob, talk)
        await speak(ann, talk, "a secret word")
        await speak(ann, talk, "a secret word")
        await hand_back(ann, talk)
        found = [entry for entry in audit.entries(console.db, limit=100) if entry.subject == talk]
        assert [(entry.operator, entry.action) for entry in reversed(found)] == [
            ("ann", "conversation.take"),
            ("ann", "conversation.speak"),
            ("ann", "conversation.hand_back"),
        ]
        assert not any("secret" in repr(entry) for entry in found)

    over(test)


def test_the_visitor_and_the_operator_may_be_on_two_servers(database_url: str, tiny_model_dir: Path) -> None:
    async def test() -> None:
        async with (
            console_over(models=tiny_model_dir, url=database_url, script=parrot) as here,
            console_over(models=tiny_model_dir, url=database_url, script=parrot) as there,
        ):
            ann = await here.sign_in("reviewer", "ann")
            visitor, ready = await come(there)
            await visitor.say("hello")
            await visitor.reply()

            async def looked() -> None:
                """On PostgreSQL the server looks by itself."""
                if here.db.dialect.name == "sqlite":
                    await there.desk.conversations.look_elsewhere()

            await take(ann, ready.conversation)
            await looked()
            assert await visitor.until(Owner) == Owner(owner="operator")
            await speak(ann, ready.conversation, "I am over here.")
            await looked()
            said = await visitor.until(Message)
            assert (said.text, said.author, said.seq) == ("I am over here.", "operator", 3)
            await visitor.say("good")
            await visitor.until(Accepted)
            await hand_back(ann, ready.conversation)
            await looked()
            assert await visitor.until(Owner) == Owner(owner="bot")
            assert (await visitor.reply()).text == "good "
            assert [m.seq for m in there.store.messages(ready.conversation)] == [1, 2, 3, 4, 5]

    asyncio.run(test())


# --- what is kept beside a conversation (both databases) --------------------------------------------------


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine)


@pytest.fixture
def talk(store: Store) -> str:
    return store.open_conversation(store.new_visitor().visitor_id)


def test_the_writer_refuses_the_bot_while_an_operator_answers(store: Store, talk: str) -> None:
    turn = store.add_user_turn(talk, "1", "hello", NOTHING)
    assert turn.owner == "bot"
    assert store.submit_owner(talk, 0, "ann", "ann").result() == Ownership("operator", "ann", 1)
    with pytest.raises(TakenOver):
        store.add_reply(talk, new_reply(turn.message_id, "hi"))
    assert store.add_user_turn(talk, "2", "anybody?", NOTHING).owner == "operator"
    with pytest.raises(OwnerChanged):
        store.submit_owner(talk, 0, "bob", "bob").result()
    with pytest.raises(OwnerChanged):
        store.submit_owner(talk, 1, "bob", None).result()
    assert store.submit_owner(talk, 1, "ann", None).result() == Ownership("bot", None, 2)
    assert store.add_reply(talk, new_reply(turn.message_id, "hi")).created
    assert [m.seq for m in store.messages(talk)] == [1, 2, 3]


def test_a_reply_that_was_kept_before_is_found_after_the_takeover(store: Store, talk: str) -> None:
    turn = store.add_user_turn(talk, "1", "hello", NOTHING)
    reply = new_reply(turn.message_id, "hi")
    kept = store.add_reply(talk, reply)
    store.submit_owner(talk, 0, "ann", "ann").result()
    assert store.add_reply(talk, reply).message_id == kept.message_id


def test_what_an_operator_said_is_history(store: Store, talk: str) -> None:
    first = store.add_user_turn(talk, "1", "hello", NOTHING)
    store.add_reply(talk, new_reply(first.message_id, "hi"))
    store.submit_owner(talk, 0, "ann", "ann").result()
    store.submit_operator_turn(talk, "o1", "Ann here.", "ann").result()
    second = store.add_user_turn(talk, "2", "good", NOTHING)
    assert store.unanswered(talk) is not None
    store.submit_operator_turn(talk, "o2", "What can I do?", "ann").result()
    assert store.unanswered(talk) is None
    assert store.history(talk) == [
        ("user", "hello"),
        ("agent", "hi"),
        ("agent", "Ann here."),
        ("user", "good"),
        ("agent", "What can I do?"),
    ]
    assert store.history(talk, answering=second.message_id)[-1] == ("user", "good")
    record = store.messages(talk)[2]
    assert (record.role, record.operator_id, record.answers, record.model) == ("agent", "ann", None, None)
    assert not store.rate(talk, record.message_id, "down", None)


def test_the_head_of_a_conversation_follows_its_replies(store: Store, talk: str, engine: Engine) -> None:
    def head() -> tuple[str | None, float | None, bool]:
        found = row(engine, talk)
        return found.model, found.confidence, bool(found.thumbs_down)

    turn = store.add_user_turn(talk, "1", "hello", NOTHING).message_id
    assert head() == (None, None, False)
    store.add_reply(talk, new_reply(turn, "hm", model="m1"))
    assert head() == ("m1", None, False)
    low = store.add_reply(talk, new_reply(turn, "hm?", model="m2", confidence=0.25)).message_id
    assert head() == ("m2", 0.25, False)
    assert store.rate(talk, low, "down", None)
    assert head() == ("m2", 0.25, True)
    high = store.add_reply(talk, new_reply(turn, "hello!", model="m1", confidence=0.75)).message_id
    assert head() == ("m1", 0.75, False)  # the disliked reply does not count any more
    other = store.add_user_turn(talk, "2", "and?", NOTHING).message_id
    store.add_reply(talk, new_reply(other, "then", model="m1", confidence=0.9))
    assert head() == ("m1", 0.75, False)
    store.rate(talk, high, "down", "no")
    assert head()[2]
    store.rate(talk, high, None, None)
    assert not head()[2]


def test_a_bot_that_abstains_asks_for_a_person(store: Store, talk: str, engine: Engine) -> None:
    turn = store.add_user_turn(talk, "1", "hello", NOTHING).message_id
    abstained = replace(
        new_reply(turn, "I do not know.", finish_reason="abstained", confidence=0.1), withheld="Cats."
    )
    store.add_reply(talk, abstained)
    assert row(engine, talk).waiting_since is not None
    found = store.ownership(talk)
    assert found is not None
    assert (found.owner, found.waiting) == ("bot", True)


def test_ratings_and_takeovers_of_many_share_a_transaction(store: Store, engine: Engine) -> None:
    """All of them through one desk, in the order in which they were asked for."""
    talks = [store.open_conversation(store.new_visitor().visitor_id) for _ in range(3)]
    turns = [store.add_user_turn(talk, "1", "hello", NOTHING).message_id for talk in talks]
    with writing(engine) as connection:
        outcomes = store._writes.moves(
            connection,
            [
                ReplyTurn(talks[0], new_reply(turns[0], "kept")),
                NewOwner(talks[0], 0, "ann", "ann"),
                NewUserTurn(talks[0], "2", "who?", {}, None),
                NewOwner(talks[1], 0, "ann", "ann"),
                ReplyTurn(talks[1], new_reply(turns[1], "dropped")),
                NewOwner(talks[1], 0, "bob", "bob"),
                NewRating(talks[2], turns[2], "up", None),
            ],
        )
    assert [type(each).__name__ for each in outcomes] == [
        "StoredTurn",
        "Ownership",
        "StoredTurn",
        "Ownership",
        "TakenOver",
        "OwnerChanged",
        "bool",
    ]
    assert [[m.text for m in store.messages(talk)] for talk in talks] == [
        ["hello", "kept", "who?"],
        ["hello"],
        ["hello"],
    ]


# --- looking on -------------------------------------------------------------------------------------------


def test_the_console_hears_of_every_change(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        visitor, ready = await come(console)
        async with console.stream(ann, "/api/operator/events") as stream:
            assert (stream.status, stream.headers["content-type"]) == (
                200,
                "text/event-stream; charset=utf-8",
            )

            async def whats(count: int) -> list[str]:
                found = []
                for _ in range(count):
                    name, data = await stream.event()
                    assert name == "changed"
                    assert json.loads(data)["conversation"] == ready.conversation
                    found.append(json.loads(data)["what"])
                return found

            await visitor.say("hello")
            reply = await visitor.reply()
            assert await whats(2) == ["said", "replied"]
            await visitor.conversations.judge(visitor.seat, Judge(reply.message, "up", None))
            await visitor.conversations.summon(visitor.seat)
            assert await whats(2) == ["rated", "waiting"]
            await take(ann, ready.conversation)
            await speak(ann, ready.conversation, "Here I am.")
            assert await whats(2) == ["owner", "said"]
            await ann.post(f"/api/operator/conversations/{ready.conversation}/close")
            assert sorted(await whats(2)) == ["closed", "owner"]
            admin = await console.sign_in("admin")
            await admin.post("/api/operator/erase", json={"conversation": ready.conversation})
            assert await whats(1) == ["erased"]
        assert len(console.desk.live) == 0

    over(test)


def test_an_operator_sees_a_reply_grow(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        visitor, ready = await come(console)
        console.gate.close()
        await visitor.say("one two")
        path = f"/api/operator/conversations/{ready.conversation}/events"
        async with console.stream(admin, path) as stream:
            name, data = await stream.event()
            assert (name, json.loads(data)["text"]) == ("delta", "")
            console.gate.open()
            text, events = "", []
            while (event := await stream.event())[0] == "delta":
                piece = json.loads(event[1])
                text = text[: piece["offset"]] + piece["text"]
                events.append(piece["reply"])
            assert text == "one two "
            kept = console.store.messages(ready.conversation)[-1]
            assert event[0] == "message"
            assert json.loads(event[1]) == {"id": kept.message_id, "seq": 2}
            assert set(events) == {kept.reply_id}
            await take(admin, ready.conversation)
            name, data = await stream.event()
            assert (name, json.loads(data)) == ("owner", {"owner": "operator", "waiting": False})
            await visitor.say("hello?")
            name, data = await stream.event()
            assert (name, json.loads(data)["seq"]) == ("message", 3)
        visitor.conversations.leave(visitor.seat)
        assert len(visitor.conversations._presence) == 0  # nothing is kept of who has looked on

    over(test)


def test_a_reviewer_sees_it_masked(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        clients = [await console.sign_in("reviewer"), await console.sign_in("admin")]
        visitor, ready = await come(console)
        console.gate.close()
        words = "my address is jo.doe@example.org so please write to me there and not to my wife thank you"
        await visitor.say(words)
        path = f"/api/operator/conversations/{ready.conversation}/events"
        asked = [(clients[0], path), (clients[1], path), (clients[1], f"{path}?mask=true")]
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(console.stream(*each)) for each in asked]
            console.gate.open()
            reviewers, admins, masked = [await texts(stream) for stream in streams]
        assert "jo.doe@example.org" in admins
        assert "jo.doe" not in reviewers + masked
        assert "my address is [email] so please" in reviewers
        assert "my address is [email] so please" in masked

    async def texts(stream: Streamed) -> str:
        """What a stream has shown of the reply, all of its states one after the other."""
        found = ""
        while (event := await stream.event())[0] == "delta":
            found += "|" + json.loads(event[1])["text"]
        return found

    over(test)


def test_the_end_of_a_masked_text_is_held_back() -> None:
    assert settled("one two three four five six seven eight") == ""
    assert settled("one two three four five six seven eight nine ") == "one "
    assert settled("") == ""


def test_streams_end_with_the_session(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        talk = console.conversation([("hello", "hi")]).id
        async with (
            console.stream(ann, "/api/operator/events") as all_of_them,
            console.stream(ann, f"/api/operator/conversations/{talk}/events") as one,
        ):
            assert len(console.desk.live) == 2
            assert (await ann.post("/api/operator/logout")).status_code == 204
            await all_of_them.until_end()
            await one.until_end()
        assert len(console.desk.live) == 0
        assert (await ann.get("/api/operator/events")).status_code == 401

    over(test)


def test_streams_end_at_once_when_the_server_stops(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        async with console.stream(ann, "/api/operator/events") as stream:
            draining = asyncio.create_task(console.application.drain())
            await stream.until_end()
            await draining
        async with console.stream(ann, "/api/operator/events") as stream:
            await stream.until_end()

    over(test)


def test_an_operator_has_so_many_streams(over: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann, bob = await console.sign_in("reviewer", "ann"), await console.sign_in("reviewer", "bob")
        open_streams = [console.stream(ann, "/api/operator/events") for _ in range(STREAMS)]
        for each in open_streams:
            await each.__aenter__()
        refused = await ann.get("/api/operator/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        async with console.stream(bob, "/api/operator/events") as other:
            assert other.status == 200
        for each in open_streams:
            await each.__aexit__(None, None, None)
        assert len(console.desk.live) == 0
        async with console.stream(ann, "/api/operator/events") as stream:
            assert stream.status == 200

    over(test)


def test_a_feed_tells_each_change_once_and_gives_up_on_who_does_not_read() -> None:
    async def test() -> None:
        feed = Feed()
        for _ in range(3):
            feed.put("a", "said")
            feed.put("a", "replied")
        assert len(feed) == 2
        assert [await feed.get(), await feed.get()] == [("a", "said"), ("a", "replied")]
        for number in range(WAITING + 1):
            feed.put(str(number), "said")
        assert feed.closed
        assert await feed.get() is None

    asyncio.run(test())


def test_a_session_that_ended_elsewhere_ends_its_streams_at_the_next_ping(
    over: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.console.streams.EventStream.__init__.__defaults__", (0.05,))

    async def test(console: TestConsole) -> None:
        ann = await console.sign_in("reviewer", "ann")
        async with console.stream(ann, "/api/operator/events") as stream:
            assert await stream.event() == ("ping", "{}")

            def end() -> None:
                with writing(console.db) as connection:
                    connection.execute(update(OperatorSession).values(expires_at=OperatorSession.created_at))

            await asyncio.to_thread(end)
            await stream.until_end()

    over(test)
