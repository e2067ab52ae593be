"""Reviewing in the console: conversations, verdicts, labels, and the queue."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, func, insert, select, update

from chatbot.tokenizer import Tokenizer
from server.console import review, review_queue
from server.console.accounts import Identity
from server.console.live import Feed
from server.console.review import GivenVerdict
from server.console.review_queue import CLAIMED, HELD, LOT, Queue, order
from server.database import connect, reading, writing
from server.store import Store
from server.tables import AuditEntry, Claim, Conversation, Label, MaskedName, Message, Verdict
from tests.console_client import Talk, TestConsole, console_over, new_reply, run
from tests.scripted_batcher import parrot

API = "/api/operator"
HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> {{7*7}} ${7*7} javascript:x '\" \\ \u2028 =1+1"
)
ANN = Identity("ann", "ann", "reviewer")
BEN = Identity("ben", "ben", "reviewer")

Test = Callable[[TestConsole], Awaitable[None]]


@pytest.fixture
def served(database_url: str, tiny_model_dir: Path) -> Callable[[Test], None]:
    """Runs a test against a server over each kind of database."""
    return lambda test: run(console_over(url=database_url, models=tiny_model_dir, script=parrot), test)


async def ok(answer: Awaitable[httpx.Response], status: int = 200) -> Any:
    got = await answer
    assert got.status_code == status, got.text
    return got.json() if got.content else None


async def refused(answer: Awaitable[httpx.Response], status: int) -> str:
    found = await ok(answer, status)
    return str(found["error"]["message"])


async def read(client: httpx.AsyncClient, talk: Talk, **query: str) -> dict[str, Any]:
    found: dict[str, Any] = await ok(client.get(f"{API}/conversations/{talk.id}", params=query))
    return found


def audited(db: Engine, action: str) -> list[tuple[str | None, str | None, Any]]:
    query = select(AuditEntry.operator, AuditEntry.subject, AuditEntry.details)
    with reading(db) as connection:
        return [tuple(row) for row in connection.execute(query.where(AuditEntry.action == action))]


# --- a conversation ---------------------------------------------------------------------------------------


def test_a_conversation_has_all_that_is_known_of_it(
    served: Callable[[Test], None], tiny_tokenizer: Tokenizer, tiny_model_dir: Path
) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        text = "Hello, what can I get you? Zoë ☕"
        tokens = [*tiny_tokenizer.encode(text), tiny_tokenizer.end_id]
        logprobs = [-0.125 * (1 + place % 3) for place in range(len(tokens))]
        options = {"decoding": "beam", "prefix": "Hello"}
        made: dict[str, Any] = {
            "model": console.desk.engine.speaker.fingerprint,
            "token_ids": tokens,
            "logprobs": logprobs,
            "seed": 2**62 + 1,
            "options": options,
            "alternatives": [{"text": "Hi", "score": -1.5, "logprob": -2.0, "token_ids": [1]}],
            "confidence": 0.75,
        }
        talk = console.conversation([("Hello!", text)], **made)
        console.say(talk, "a latte", "which size?")
        console.store.add_reply(talk.id, new_reply(talk.said[1], "large?"))
        console.store.rate(talk.id, talk.replies[0] or "", "down", "not nice")

        found = await read(client, talk)
        assert not found["masked"]
        assert found["conversation"]["id"] == talk.id
        assert found["conversation"]["visitor"] == talk.visitor[:8]
        assert found["conversation"]["thumbs_down"] is True
        first, reply, _, replaced, newest = found["messages"]
        assert (first["author"], first["text"], first["generation"]) == ("visitor", "Hello!", None)
        assert (reply["author"], reply["text"], reply["answers"]) == ("bot", text, talk.said[0])
        assert (reply["rating"], reply["comment"]) == ("down", "not nice")
        assert (replaced["superseded"], newest["superseded"], newest["text"]) == (True, False, "large?")
        told = reply["generation"]
        assert told["seed"] == str(2**62 + 1), "numbers of JavaScript end at 2^53"
        assert (told["options"], told["confidence"], told["model"]) == (options, 0.75, made["model"])
        assert told["alternatives"] == [{"text": "Hi", "score": -1.5, "logprob": -2.0}]
        assert "".join(token["text"] for token in told["tokens"]) == text
        assert [token["logprob"] for token in told["tokens"]] == logprobs
        assert newest["generation"]["tokens"] is None, "of a model that is not there nobody knows the tokens"

    served(test)


def test_tokens_are_not_told_where_the_text_is_another_now(
    tmp_path: Path, tiny_tokenizer: Tokenizer, tiny_model_dir: Path
) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        model = console.desk.engine.speaker.fingerprint
        tokens = tiny_tokenizer.encode("Hello")
        made: dict[str, Any] = {"model": model, "token_ids": tokens, "logprobs": [-1.0] * len(tokens)}
        talk = console.conversation([("hi", "[masked]")], **made)
        withheld = {**made, "finish_reason": "abstained", "withheld": "Hello"}
        console.say(talk, "hi again", "Let me ask somebody.", **withheld)
        _, changed, _, abstained = (await read(client, talk))["messages"]
        assert changed["generation"]["tokens"] is None
        assert "".join(token["text"] for token in abstained["generation"]["tokens"]) == "Hello"
        assert (abstained["text"], abstained["generation"]["withheld"]) == ("Let me ask somebody.", "Hello")

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_what_operators_said_is_told_apart_from_the_bot(served: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("reviewer")
        talk = console.conversation([("Hello", "hi there")])
        said = by_an_operator(console, talk, "I am Dana.")
        message = (await read(client, talk))["messages"][-1]
        assert (message["author"], message["operator"], message["generation"]) == (
            "operator",
            "reviewer",
            None,
        )
        path = f"{API}/messages/{said}/verdict"
        assert "operator" in await refused(client.put(path, json={"verdict": "good"}), 409)

    served(test)


def by_an_operator(console: TestConsole, talk: Talk, text: str, role: str = "reviewer") -> str:
    """A message of an operator, as it is kept."""
    account = console.desk.accounts.named(role)
    assert account is not None
    with writing(console.db) as connection:
        seq = connection.scalar(select(Conversation.last_seq).where(Conversation.id == talk.id)) or 0
        row = {
            "id": f"operator-{seq}", "conversation_id": talk.id, "seq": seq + 1, "role": "agent",
            "text": text, "created_at": datetime.now(UTC), "superseded": False, "operator_id": account.id,
        }  # fmt: skip
        connection.execute(insert(Message).values(row))
        moved = {"last_seq": seq + 1, "owner_version": 1}
        connection.execute(update(Conversation).where(Conversation.id == talk.id).values(moved))
    return f"operator-{seq}"


def test_reviewers_see_no_personal_data_and_admins_do_unless_they_ask(
    tmp_path: Path, tiny_tokenizer: Tokenizer, tiny_model_dir: Path
) -> None:
    async def test(console: TestConsole) -> None:
        reviewer, admin = await console.sign_in("reviewer"), await console.sign_in("admin")
        with writing(console.db) as connection:
            connection.execute(insert(MaskedName).values(name="Chidi", created_at=datetime.now(UTC)))
        text = "Thank you, Chidi. I write to chidi@example.org soon."
        tokens = tiny_tokenizer.encode(text)
        made: dict[str, Any] = {
            "model": console.desk.engine.speaker.fingerprint,
            "token_ids": tokens,
            "logprobs": [-1.0 - place for place in range(len(tokens))],
            "alternatives": [{"text": text, "score": 0.0, "logprob": 0.0}],
            "options": {"prefix": "Chidi"},
        }
        talk = console.conversation([("I am Chidi, chidi@example.org", text)], **made)
        console.store.rate(talk.id, talk.replies[0] or "", "down", "said Chidi")
        note = {"verdict": "bad", "corrected": "Thank you, Chidi!", "note": "Chidi is unhappy"}
        kept = await ok(admin.put(f"{API}/messages/{talk.replies[0]}/verdict", json=note))
        assert kept["corrected"] == "Thank you, Chidi!", "it is kept as it was written"

        plain = await admin.get(f"{API}/conversations/{talk.id}")
        assert "chidi@example.org" in plain.text
        for answer in (
            await reviewer.get(f"{API}/conversations/{talk.id}"),
            await reviewer.get(f"{API}/conversations/{talk.id}?mask=false"),
            await admin.get(f"{API}/conversations/{talk.id}?mask=true"),
        ):
            assert answer.json()["masked"] is True
            assert "chidi" not in answer.text.lower()
            reply = answer.json()["messages"][1]
            assert reply["text"] == "Thank you, [name]. I write to [email] soon."
            shown = reply["generation"]["tokens"]
            assert "".join(token["text"] for token in shown) == reply["text"]
            assert shown[0] == {
                "text": plain.json()["messages"][1]["generation"]["tokens"][0]["text"],
                "logprob": -1.0,
            }

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_a_correction_that_is_sent_back_masked_stays_what_it_was(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    async def test(console: TestConsole) -> None:
        reviewer, admin = await console.sign_in("reviewer"), await console.sign_in("admin")
        await ok(admin.post(f"{API}/labels", json={"name": "address"}), 201)
        talk = console.conversation([("Hello", "no")])
        path = f"{API}/messages/{talk.replies[0]}/verdict"
        told = {"verdict": "bad", "corrected": "Write to help@example.org", "note": "ann@example.org asked"}
        await ok(admin.put(path, json=told))
        shown = (await read(reviewer, talk))["messages"][1]["verdict"]
        assert (shown["corrected"], shown["note"]) == ("Write to [email]", "[email] asked")
        again = {
            "verdict": "bad",
            "labels": ["address"],
            "corrected": shown["corrected"],
            "note": shown["note"],
        }
        answer = await ok(reviewer.put(path, json=again))
        assert answer | again == answer, "nothing is given away"
        kept = (await read(admin, talk))["messages"][1]["verdict"]
        assert kept | told == kept
        assert (kept["labels"], kept["operator"]) == (["address"], "reviewer")
        other = {"verdict": "bad", "corrected": "Write to [email], please"}
        await ok(reviewer.put(path, json=other))
        assert (await read(admin, talk))["messages"][1]["verdict"]["corrected"] == other["corrected"]

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_what_is_hostile_comes_back_as_it_was_as_json(served: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        talk = console.conversation(
            [(HOSTILE, HOSTILE)], alternatives=[{"text": HOSTILE, "score": 0, "logprob": 0}]
        )
        label = HOSTILE.replace("\u2028", "")[:64].strip()
        label = " ".join(label.split())
        assert (await ok(client.post(f"{API}/labels", json={"name": label}), 201))["name"] == label
        given = {"verdict": "bad", "labels": [label], "corrected": HOSTILE, "note": HOSTILE}
        await ok(client.put(f"{API}/messages/{talk.replies[0]}/verdict", json=given))
        answer = await client.get(f"{API}/conversations/{talk.id}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "'unsafe-inline'" not in answer.headers["content-security-policy"]
        said, reply = answer.json()["messages"]
        texts = [said["text"], reply["text"], reply["generation"]["alternatives"][0]["text"]]
        assert texts == [HOSTILE] * 3
        assert reply["verdict"] | given == reply["verdict"]
        assert (await ok(client.get(f"{API}/labels")))["labels"] == [
            {"name": label, "archived": False, "uses": 1}
        ]

    served(test)


@pytest.mark.parametrize("path", ["conversations/%00", "conversations/nobody", "messages/%00/explanation",
                                  "conversations/%ED%A0%80", "messages/nobody/explanation"])  # fmt: skip
def test_what_is_not_there_is_not_found(tmp_path: Path, tiny_model_dir: Path, path: str) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("reviewer")
        await refused(client.get(f"{API}/{path}"), 404)

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


ROUTES = [
    ("GET", "conversations/{talk}", None),
    ("GET", "messages/{reply}/explanation", None),
    ("PUT", "messages/{reply}/verdict", {"verdict": "good"}),
    ("DELETE", "messages/{reply}/verdict", None),
    ("GET", "labels", None),
    ("POST", "labels", {"name": "rude"}),
    ("PATCH", "labels/rude", {"archived": True}),
    ("POST", "review/next", {}),
    ("POST", "conversations/{talk}/review/done", None),
    ("POST", "conversations/{talk}/review/keep", None),
    ("POST", "conversations/{talk}/review/release", None),
    ("GET", "review/progress", None),
]


def test_nobody_gets_in_without_a_session_nor_changes_anything_without_the_token(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    async def test(console: TestConsole) -> None:
        talk = console.conversation([("Hello", "hi")])
        nobody, reviewer = await console.client(), await console.sign_in("reviewer")
        token = reviewer.headers["x-csrf-token"]
        for method, path, body in ROUTES:
            url = f"{API}/{path.format(talk=talk.id, reply=talk.replies[0])}"
            await refused(nobody.request(method, url, json=body), 401)
            await refused(nobody.request(method, url, json=body, headers={"authorization": talk.token}), 401)
            await refused(reviewer.request(method, f"{url}?sort=1", json=body), 400)
            if method == "GET":
                continue
            for headers in (
                {"x-csrf-token": ""},
                {"x-csrf-token": "0" * len(token)},
                {"origin": "https://evil.example"},
                {"origin": "null"},
            ):
                await refused(reviewer.request(method, url, json=body, headers=headers), 403)
        with reading(console.db) as connection:
            for table in (Verdict, Label, Claim):
                assert connection.scalar(select(func.count()).select_from(table)) == 0
            assert connection.scalar(select(Conversation.reviewed_at)) is None

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


# --- verdicts ---------------------------------------------------------------------------------------------


def test_the_last_word_on_a_reply_wins(served: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann, ben = await console.sign_in("reviewer", "ann"), await console.sign_in("reviewer", "ben")
        talk = console.conversation([("Hello", "no")])
        path = f"{API}/messages/{talk.replies[0]}/verdict"
        first = await ok(ann.put(path, json={"verdict": "good"}))
        assert first | {"operator": "ann", "corrected": None, "labels": [], "note": None} == first
        given = {"verdict": "bad", "corrected": "  Hello, what can I get you?\n", "note": " "}
        second = await ok(ben.put(path, json=given))
        assert (second["corrected"], second["note"]) == (given["corrected"], None)
        assert await ok(ben.put(path, json=given)) == second, "saying it again changes nothing"
        reply = (await read(ann, talk))["messages"][1]
        assert reply["verdict"] == second
        assert reply["text"] == "no"
        assert (await read(ann, talk))["conversation"]["verdicts"] == {"good": 0, "bad": 1}
        assert (await read(ann, talk))["conversation"]["reviewed_at"] is None
        entries = audited(console.db, "verdict.set")
        assert [(who, subject) for who, subject, _ in entries] == [
            ("ann", talk.replies[0]),
            ("ben", talk.replies[0]),
        ]
        assert "what can I" not in str(entries), "the log never holds what anybody said"

        await ok(ben.delete(path), 204)
        await ok(ben.delete(path), 204)
        assert (await read(ann, talk))["messages"][1]["verdict"] is None
        assert len(audited(console.db, "verdict.delete")) == 1

    served(test)


def test_a_superseded_reply_may_be_judged_and_what_a_visitor_said_not(served: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in()
        talk = console.conversation([("Hello", "no")])
        console.store.add_reply(talk.id, new_reply(talk.said[0], "yes"))
        await ok(client.put(f"{API}/messages/{talk.replies[0]}/verdict", json={"verdict": "bad"}))
        for wrong in (talk.said[0], "nobody", "%00"):
            await refused(client.put(f"{API}/messages/{wrong}/verdict", json={"verdict": "bad"}), 404)
            await refused(client.delete(f"{API}/messages/{wrong}/verdict"), 404)

    served(test)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"verdict": "fine"}, "verdict"),
        ({}, "verdict"),
        ({"verdict": "bad", "corrected": " \n "}, "corrected"),
        ({"verdict": "bad", "corrected": "x" * 4001}, "corrected"),
        ({"verdict": "bad", "corrected": "\0"}, "corrected"),
        ({"verdict": "bad", "note": "x" * 4001}, "note"),
        ({"verdict": "bad", "labels": ["rude", "unknown"]}, "unknown"),
        ({"verdict": "bad", "labels": ["old"]}, "old"),
        ({"verdict": "bad", "labels": ["\0"]}, "labels"),
        ({"verdict": "bad", "labels": ["rude"] * 21}, "labels"),
        ({"verdict": "bad", "labels": "rude"}, "labels"),
        ({"verdict": "bad", "by": "me"}, "by"),
    ],
)
def test_a_verdict_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, tiny_model_dir: Path, given: dict[str, Any], named: str
) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        for label in ("rude", "old"):
            await ok(admin.post(f"{API}/labels", json={"name": label}), 201)
        await ok(admin.patch(f"{API}/labels/old", json={"archived": True}))
        talk = console.conversation([("Hello", "no")])
        path = f"{API}/messages/{talk.replies[0]}/verdict"
        assert named in await refused(admin.put(path, json=given), 400)
        assert (await read(admin, talk))["messages"][1]["verdict"] is None

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


# --- labels -----------------------------------------------------------------------------------------------


def test_labels_are_made_by_admins_archived_and_kept_by_verdicts(served: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        admin, reviewer = await console.sign_in("admin"), await console.sign_in("reviewer")
        await refused(reviewer.post(f"{API}/labels", json={"name": "rude"}), 403)
        for name in ("wrong / price", "Rude"):
            await ok(admin.post(f"{API}/labels", json={"name": name}), 201)
        await refused(admin.post(f"{API}/labels", json={"name": " rude "}), 409)
        for name in ("", " ", "x" * 65, "\0", "\x1b[31m"):
            await refused(admin.post(f"{API}/labels", json={"name": name}), 400)
        talk = console.conversation([("Hello", "no")])
        path = f"{API}/messages/{talk.replies[0]}/verdict"
        given = {"verdict": "bad", "labels": ["wrong / price", "Rude", "Rude"]}
        assert (await ok(reviewer.put(path, json=given)))["labels"] == ["wrong / price", "Rude"]
        await refused(reviewer.patch(f"{API}/labels/Rude", json={"archived": True}), 403)
        changed = await ok(admin.patch(f"{API}/labels/wrong%20%2F%20price", json={"archived": True}))
        assert changed == {"name": "wrong / price", "archived": True, "uses": 1}
        await refused(admin.patch(f"{API}/labels/none", json={"archived": True}), 404)
        assert [label["archived"] for label in (await ok(reviewer.get(f"{API}/labels")))["labels"]] == [
            False,
            True,
        ]
        # Whoever corrects the reply later need not take the old label off.
        await ok(reviewer.put(path, json={**given, "corrected": "yes"}))
        assert len(audited(console.db, "label.archive")) == 1

    served(test)


# --- the queue --------------------------------------------------------------------------------------------


@pytest.fixture
def store(engine: Engine) -> Store:
    """It writes half an hour ago, so that nobody is talking any more."""
    return Store(engine, clock=lambda: datetime.now(UTC) - timedelta(minutes=30))


def talk_of(store: Store, **values: Any) -> str:
    """A conversation with one reply; `values` of its row."""
    conversation = store.open_conversation(store.new_visitor().visitor_id)
    said = store.add_user_turn(conversation, "1", "Hello", {}).message_id
    store.add_reply(conversation, new_reply(said, "hi"))
    if values:
        with writing(store._engine) as connection:
            connection.execute(update(Conversation).where(Conversation.id == conversation).values(**values))
    return conversation


def drain(queue: Queue, who: Identity) -> list[tuple[str, str]]:
    """Everything that the queue has for somebody who skips all of it."""
    found: list[tuple[str, str]] = []
    while (given := queue.next(who, [conversation for conversation, _ in found])) is not None:
        found.append((given.conversation, given.reason))
    return found


def test_the_most_useful_come_first_and_every_fifth_by_lot(engine: Engine, store: Store) -> None:
    asked = datetime.now(UTC)
    plain = {talk_of(store) for _ in range(20)}
    kinds: dict[str, set[str]] = {
        "thumbs_down": {talk_of(store, thumbs_down=True) for _ in range(3)},
        "escalated": {talk_of(store, waiting_since=asked), talk_of(store, owner_version=2)},
        "low_confidence": {talk_of(store, confidence=sure) for sure in (0.1, 0.3, 0.2)},
    }
    given = drain(Queue(engine), ANN)
    assert {conversation for conversation, _ in given} == plain.union(*kinds.values())
    assert len({conversation for conversation, _ in given}) == len(given)
    reasons = [reason for _, reason in given]
    lots = [place for place, reason in enumerate(reasons) if reason == "random"]
    useful = [place for place, reason in enumerate(reasons) if reason != "random"]
    assert max(useful) < 11, "nothing useful is left behind"
    assert lots[0] < LOT
    assert lots[1] == lots[0] + LOT
    for reason, wanted in kinds.items():
        got = {conversation for conversation, why in given if why == reason}
        assert got, "drawn by lot some may come before, not all"
        assert got <= wanted
    sure = [c for c, why in given if why == "low_confidence"]
    with reading(engine) as connection:
        rows = connection.execute(select(Conversation.id, Conversation.confidence)).all()
    known = {row.id: row.confidence or 0.0 for row in rows}
    assert [known[c] for c in sure] == sorted(known[c] for c in sure)


def test_the_lot_is_one_in_five_and_the_same_for_the_same_operator_and_count() -> None:
    for operator in ("ann", "ben", "chidi"):
        orders = [order(operator, given) for given in range(10 * LOT)]
        assert orders == [order(operator, given) for given in range(10 * LOT)]
        assert sum(each[0] == "random" for each in orders) == 10
        assert all(len(set(each)) == 4 for each in orders)
        firsts = Counter(each[0] for each in orders)
        assert set(firsts) == {"random", "thumbs_down", "escalated", "low_confidence"}


def test_what_is_not_to_be_reviewed_now_is_not_given(engine: Engine, store: Store) -> None:
    now = datetime.now(UTC)
    talk_of(store, updated_at=now - timedelta(seconds=50), thumbs_down=True)
    talk_of(store, reviewed_at=now)
    talk_of(store, model=None)
    store.open_conversation(store.new_visitor().visitor_id)
    wanted = talk_of(store)
    queue = Queue(engine)
    given = queue.next(ANN)
    assert given is not None
    assert given.conversation == wanted
    assert queue.next(ANN) is None
    assert queue.next(BEN) is None
    assert queue.next(ANN, skip=[wanted]) is None
    assert queue.next(BEN) is None, "a conversation that is skipped is not given back yet"
    assert review_queue.release(engine, ANN, wanted)
    assert queue.next(ANN, skip=[wanted]) is None
    assert queue.next(BEN, skip=["\0", "\ud800"]) is not None


def test_a_claim_holds_for_a_while_a_verdict_renews_it_and_done_ends_it(engine: Engine, store: Store) -> None:
    talk = talk_of(store)
    clock = [datetime.now(UTC)]
    queue = Queue(engine, lambda: clock[0])
    given = queue.next(ANN)
    assert given is not None
    assert given.until == clock[0] + CLAIMED
    clock[0] += CLAIMED - timedelta(seconds=1)
    assert queue.next(BEN) is None
    with reading(engine) as connection:
        reply = connection.scalar(select(Message.id).where(Message.role == "agent"))
    before = claims(engine)
    review.judge(engine, BEN, reply or "", GivenVerdict(verdict="good"), 100)
    assert claims(engine) == before, "another's verdict does not"
    review.judge(engine, ANN, reply or "", GivenVerdict(verdict="bad"), 100)
    assert claims(engine)[talk][1] > before[talk][1]
    clock[0] = claims(engine)[talk][1]
    taken = queue.next(BEN)
    assert taken is not None
    assert taken.conversation == talk
    assert claims(engine)[talk][0] == "ben"
    assert review_queue.release(engine, ANN, talk), "but not another's claim"
    assert claims(engine)[talk][0] == "ben"
    assert review_queue.done(engine, ANN, talk)
    assert not claims(engine)
    assert queue.next(BEN) is None
    assert review_queue.done(engine, ANN, talk)
    assert [who for who, _, _ in audited(engine, "review.done")] == ["ann"]
    assert not review_queue.done(engine, ANN, "nobody")
    assert not review_queue.release(engine, ANN, "\0")


def test_a_claim_is_kept_on_request_unless_somebody_else_has_it(engine: Engine, store: Store) -> None:
    talk = talk_of(store)
    clock = [datetime.now(UTC)]
    queue = Queue(engine, lambda: clock[0])
    assert queue.next(ANN) is not None
    assert not review_queue.keep(engine, BEN, talk, clock[0])
    clock[0] += CLAIMED - timedelta(seconds=1)
    assert review_queue.keep(engine, ANN, talk, clock[0])
    assert claims(engine) == {talk: ("ann", clock[0] + CLAIMED)}
    clock[0] += CLAIMED - timedelta(seconds=1)
    assert queue.next(BEN) is None
    clock[0] += timedelta(seconds=2)
    assert review_queue.keep(engine, ANN, talk, clock[0]), "it has ended, but nobody else was given it"
    clock[0] += CLAIMED
    assert queue.next(BEN) is not None
    assert not review_queue.keep(engine, ANN, talk, clock[0])
    assert claims(engine) == {talk: ("ben", clock[0] + CLAIMED)}
    assert not review_queue.keep(engine, ANN, "nobody", clock[0])
    assert not review_queue.keep(engine, ANN, "\0", clock[0])


def claims(engine: Engine) -> dict[str, tuple[str, datetime]]:
    query = select(Claim.conversation_id, Claim.operator_id, Claim.until)
    with reading(engine) as connection:
        return {row[0]: (row[1], row[2]) for row in connection.execute(query)}


def test_nobody_hoards(engine: Engine, store: Store) -> None:
    talks = {talk_of(store) for _ in range(HELD + 3)}
    queue = Queue(engine)
    for _ in range(HELD + 3):
        assert queue.next(ANN) is not None
    assert len(claims(engine)) == HELD
    assert {given for given, _ in drain(queue, BEN)} == talks - {
        c for c, (who, _) in claims(engine).items() if who == "ann"
    }


def test_two_reviewers_never_get_the_same_from_whichever_server(
    database_url: str, engine: Engine, store: Store
) -> None:
    talks = {talk_of(store, thumbs_down=True) for _ in range(40)}
    servers = [connect(database_url) for _ in range(4)]
    reviewers = [Identity(f"r{number}", f"r{number}", "reviewer") for number in range(8)]
    barrier = threading.Barrier(len(reviewers))

    def work(number: int) -> list[str]:
        queue = Queue(servers[number % len(servers)])
        found: list[str] = []
        barrier.wait(20)
        while (given := queue.next(reviewers[number], found)) is not None:
            found.append(given.conversation)
            review_queue.done(servers[number % len(servers)], reviewers[number], given.conversation)
        return found

    try:
        with ThreadPoolExecutor(len(reviewers)) as pool:
            given = list(pool.map(work, range(len(reviewers))))
    finally:
        for server in servers:
            server.dispose()
    everything = [conversation for found in given for conversation in found]
    assert sorted(everything) == sorted(talks)
    assert len(audited(engine, "review.claim")) == len(talks)


def test_claims_at_the_same_moment_are_for_one_only(database_url: str, store: Store) -> None:
    """All look before anybody claims: what they saw is out of date by then."""
    talk = talk_of(store)
    servers = [connect(database_url) for _ in range(4)]
    barrier = threading.Barrier(len(servers))
    wish = [
        review_queue._Wish(Identity(f"r{n}", f"r{n}", "reviewer"), 0, (), datetime.now(UTC)) for n in range(4)
    ]

    def claim(number: int) -> object:
        with reading(servers[number]) as connection:
            reason, candidates = review_queue._candidates(connection, wish[number])
        assert candidates == [talk]
        barrier.wait(20)
        with writing(servers[number]) as connection:
            return review_queue._claim(connection, wish[number], candidates, reason)

    try:
        with ThreadPoolExecutor(len(servers)) as pool:
            found = list(pool.map(claim, range(len(servers))))
    finally:
        for server in servers:
            server.dispose()
    assert sum(given is not None for given in found) == 1


def test_the_queue_over_http_and_progress(served: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        ann, ben = await console.sign_in("reviewer", "ann"), await console.sign_in("reviewer", "ben")
        talks = [console.conversation([("Hello", "no")]) for _ in range(3)]
        nothing = {"conversation": None, "reason": None, "until": None}
        assert await ok(ann.post(f"{API}/review/next", json={})) == nothing, "they are still talking"
        with writing(console.db) as connection:
            connection.execute(update(Conversation).values(updated_at=datetime.now(UTC) - timedelta(hours=1)))
        first, second = [await ok(each.post(f"{API}/review/next")) for each in (ann, ben)]
        assert first["reason"] == second["reason"] == "random"
        assert first["conversation"] != second["conversation"]
        reply = next(talk.replies[0] for talk in talks if talk.id == first["conversation"])
        feed: Feed = console.desk.live.feed()
        given = {"verdict": "bad", "corrected": "yes"}
        await ok(ann.put(f"{API}/messages/{reply}/verdict", json=given))
        await ok(ann.post(f"{API}/conversations/{first['conversation']}/review/done"), 204)
        assert await feed.get() == (first["conversation"], "reviewed")
        await ok(ben.post(f"{API}/conversations/{second['conversation']}/review/release"), 204)
        third = await ok(ben.post(f"{API}/review/next", json={"skip": [second["conversation"]]}))
        assert third["conversation"] not in (first["conversation"], second["conversation"], None)
        await refused(ben.post(f"{API}/review/next", json={"skip": [""] * 501}), 400)
        await refused(ben.post(f"{API}/review/next", json={"skip": [1]}), 400)
        await refused(ben.post(f"{API}/conversations/nobody/review/done"), 404)
        assert await ok(ben.get(f"{API}/review/progress")) == {
            "waiting": 2,
            "reviewed_today": 1,
            "reviewed_all": 1,
            "by": [{"operator": "ann", "today": 1, "all": 1}],
            "corrections": 1,
        }

    served(test)
