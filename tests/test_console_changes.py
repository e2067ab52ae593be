"""What would change with a candidate: the turns asked anew, changes side by side, blind judgements."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert, select, update

from chatbot.transcripts import read_transcripts
from server.console import changes
from server.console.accounts import Identity
from server.console.changes import Answered, JudgedAlready, answered_of, grouped, judge, store_pairs
from server.console.job_data import write_imported, write_reviewed
from server.database import reading, writing
from server.store import Store
from server.tables import (
    Conversation,
    Generation,
    ImportBatch,
    ImportedTranscript,
    Job,
    MaskedName,
    Message,
    Pair,
    Visitor,
)
from tests.console_client import TestConsole, console_over, new_reply, run
from tests.scripted_batcher import parrot

API = "/api/operator"
NOW = datetime(2030, 5, 20, 12, tzinfo=UTC)


def a_job(db: Engine, job: str = "j1") -> str:
    with writing(db) as connection:
        connection.execute(
            insert(Job).values(id=job, state="done", base="tw-1", directory="/", settings={}, created_at=NOW)
        )
    return job


def talk(db: Engine, *pairs: tuple[str, str | None], visitor: str | None = None) -> tuple[str, list[str]]:
    """A conversation and the ids of its user turns."""
    store = Store(db, clock=lambda: NOW)
    conversation = store.open_conversation(visitor or store.new_visitor().visitor_id)
    turns = []
    for number, (said, reply) in enumerate(pairs):
        turns.append(store.add_user_turn(conversation, f"c{number}", said, {}).message_id)
        if reply is not None:
            store.add_reply(conversation, new_reply(turns[-1], reply))
    return conversation, turns


def pairs_of(
    db: Engine, job: str, turns: list[str], gains: list[float], base: str = "Old."
) -> list[Answered]:
    answered = [
        Answered(turn, base, f"New {n}.", gain)
        for n, (turn, gain) in enumerate(zip(turns, gains, strict=True))
    ]
    with writing(db) as connection:
        store_pairs(connection, job, answered)
    return answered


# --- what is asked ----------------------------------------------------------------------------------------


def test_turns_that_a_model_answered_are_asked_with_what_came_before(engine: Engine) -> None:
    conversation, turns = talk(engine, ("Hello!", "Hi."), ("A latte.", "Which size?"), ("Large", None))
    store = Store(engine, clock=lambda: NOW)
    again = store.add_reply(conversation, new_reply(turns[0], "Good day."))  # takes the place of "Hi."
    assert again.created
    _, [asked] = talk(engine, ("Are you a person?", "Yes."))
    with writing(engine) as connection:
        connection.execute(update(Message).where(Message.answers == asked).values(operator_id="o1"))
        connection.execute(delete_generation(asked))

    found = list(changes.questions(engine, now=NOW))
    assert {each.id for each in found} == {turns[0], turns[1]}
    said = {each.id: [(turn.role, turn.text) for turn in each.turns] for each in found}
    assert said[turns[0]] == [("user", "Hello!")]
    assert said[turns[1]] == [("user", "Hello!"), ("agent", "Good day."), ("user", "A latte.")]


def delete_generation(answers: str) -> Any:
    return delete(Generation).where(
        Generation.message_id.in_(select(Message.id).where(Message.answers == answers))
    )


def test_the_newest_are_asked_and_nobody_fills_the_list_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "OF_A_CONVERSATION", 2)
    monkeypatch.setattr(changes, "OF_A_VISITOR", 3)
    flooder = Store(engine).new_visitor().visitor_id
    floods = [talk(engine, *[("Spam", "Hm.")] * 4, visitor=flooder)[0] for _ in range(3)]
    other, [asked] = talk(engine, ("Hello!", "Hi."))
    ancient, _ = talk(engine, ("Long ago", "Hm."))
    with writing(engine) as connection:
        for conversation, age in ((other, 1), (ancient, 29)):
            when = NOW - timedelta(days=age)
            connection.execute(
                update(Conversation).where(Conversation.id == conversation).values(updated_at=when)
            )

    found = [each.id for each in changes.questions(engine, now=NOW)]
    assert len(found) == 4
    assert found[-1] == asked  # the older one comes last, and is there all the same
    with reading(engine) as connection:
        rows = connection.execute(select(Message.conversation_id, Message.seq).where(Message.id.in_(found)))
        seqs = sorted(seq for conversation, seq in rows if conversation in floods)
    assert seqs == [5, 7, 7]  # the last turns of each
    assert len(list(changes.questions(engine, now=NOW, limit=1))) == 1


def test_the_answers_of_both_are_read() -> None:
    same = {"id": "a", "base": "x", "candidate": "x", "gain": None}
    other = {"id": "b", "base": "x\0", "candidate": "\ud800y", "gain": 0.5}
    assert answered_of([same, other]) == (2, [Answered("b", "x", "?y", 0.5)])
    for broken in ({"id": "a"}, {**other, "gain": "much"}, {**other, "gain": float("nan")}):
        with pytest.raises((KeyError, ValueError)):
            answered_of([broken])


# --- groups -----------------------------------------------------------------------------------------------


def test_replies_that_are_much_alike_are_one_group() -> None:
    texts = [
        "Your order 123 is on its way.",
        "your order 98765 is on its way!",
        "Your order 5 is surely on its way.",
        "What is your name?",
        "...",
        "!",
    ]
    names = grouped(texts)
    assert names[0] == names[1] == names[2]
    assert names[4] == names[5]
    assert len(set(names)) == 3
    assert grouped([texts[3]]) == [names[3]]  # the same in every job
    assert not any(word in name for name in names for word in ("order", "name"))


# --- pages ------------------------------------------------------------------------------------------------


def test_pages_go_from_best_or_worst_without_gaps(database_url: str, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        job = a_job(console.db)
        gains = [0.1 * (n % 4) - 0.1 for n in range(10)]  # many are equal
        _, turns = talk(console.db, *[(f"Turn {n}", "Old.") for n in range(10)])
        pairs_of(console.db, job, turns, gains)
        a_job(console.db, "j2")
        pairs_of(console.db, "j2", turns[:1], [9.0], base="Another.")
        client = await console.sign_in("reviewer")

        for order, expected in (("best", sorted(gains, reverse=True)), ("worst", sorted(gains))):
            seen: list[dict[str, Any]] = []
            cursor = ""
            for _ in range(4):
                query = f"order={order}&limit=3{cursor}"
                page = (await client.get(f"{API}/jobs/{job}/changes?{query}")).json()
                seen += page["changes"]
                if page["next"] is None:
                    break
                cursor = f"&cursor={page['next']}"
            assert [each["gain"] for each in seen] == expected
            assert {each["message"] for each in seen} == set(turns)
        assert [(g["count"], g["example"]) for g in page["groups"]] == [(10, "Old.")]

        last = next(each for each in seen if each["message"] == turns[9])
        assert [turn["text"] for turn in last["before"]] == [
            "Old.",
            "Turn 7",
            "Old.",
            "Turn 8",
            "Old.",
            "Turn 9",
        ]
        assert (last["base_text"], last["candidate_text"], last["preferred"]) == ("Old.", "New 9.", None)

        of_group = await client.get(f"{API}/jobs/{job}/changes?group={page['groups'][0]['group']}")
        assert len(of_group.json()["changes"]) == 10
        assert (await client.get(f"{API}/jobs/{job}/changes?group=none")).json()["changes"] == []
        for query in (
            "cursor=x",
            "cursor=WzEsMl0",
            "limit=0",
            "limit=201",
            "order=up",
            "page=1",
            "cursor=W05hTiwgIngiXQ",
        ):
            assert (await client.get(f"{API}/jobs/{job}/changes?{query}")).status_code == 400, query

    run(console_over(url=database_url, models=tiny_model_dir, script=parrot), test)


def test_reviewers_see_no_personal_data(database_url: str, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        job = a_job(console.db)
        _, turns = talk(console.db, ("I am ann@example.org", "Hello ann@example.org"))
        pairs_of(console.db, job, turns, [1.0], base="Hello ann@example.org")
        admin, reviewer = await console.sign_in("admin"), await console.sign_in("reviewer")

        for client, path, hidden in (
            (reviewer, "changes", True),
            (reviewer, "changes?mask=false", True),
            (admin, "changes", False),
            (admin, "changes?mask=true", True),
        ):
            answer = (await client.get(f"{API}/jobs/{job}/{path}")).text
            assert ("ann@example.org" in answer) is not hidden
            assert answer.count("[email]") == (3 if hidden else 0)
        blind = (await reviewer.post(f"{API}/jobs/{job}/pairs/next")).text
        assert "ann@example.org" not in blind
        assert blind.count("[email]") == 2

    run(console_over(url=database_url, models=tiny_model_dir, script=parrot), test)


# --- blind judgements -------------------------------------------------------------------------------------


def test_pairs_are_judged_blind_and_counted(database_url: str, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        job = a_job(console.db)
        _, turns = talk(console.db, *[(f"Turn {n}", "Old.") for n in range(30)])
        pairs_of(console.db, job, turns, [0.5] * 30)
        client, other = await console.sign_in("reviewer"), await console.sign_in("reviewer", "bob")

        places = set()
        wanted = {"candidate": 12, "base": 10, "neither": 8}
        for preferred, count in wanted.items():
            for _ in range(count):
                pair = (await client.post(f"{API}/jobs/{job}/pairs/next")).json()
                assert "Old." in (pair["first"], pair["second"])
                assert pair["turns"][-1]["role"] == "user"
                theirs = "first" if pair["first"].startswith("New") else "second"
                mine = "second" if theirs == "first" else "first"
                places.add(theirs)
                choice = {"candidate": theirs, "base": mine, "neither": "neither"}[preferred]
                given = await client.post(f"{API}/pairs/{pair['pair']}", json={"preferred": choice})
                assert (given.status_code, given.json()) == (200, {})
        assert places == {"first", "second"}  # the order tells nothing
        assert (await client.post(f"{API}/jobs/{job}/pairs/next")).json()["pair"] is None

        shown = (await client.get(f"{API}/jobs/{job}/changes")).json()
        assert (shown["wins"], shown["losses"], shown["ties"]) == (12, 10, 8)
        judged = [each["preferred"] for each in shown["changes"]]
        assert {each: judged.count(each) for each in wanted} == wanted

        again = await client.post(f"{API}/pairs/{pair['pair']}", json={"preferred": "neither"})
        assert again.status_code == 200  # the same person, the same word
        changed = await client.post(f"{API}/pairs/{pair['pair']}", json={"preferred": "first"})
        assert changed.status_code == 409
        second = await other.post(f"{API}/pairs/{pair['pair']}", json={"preferred": "neither"})
        assert second.status_code == 409
        assert (await client.post(f"{API}/pairs/none", json={"preferred": "first"})).status_code == 404
        for body in ({}, {"preferred": "base"}, {"preferred": "first", "why": "x"}):
            assert (await client.post(f"{API}/pairs/{pair['pair']}", json=body)).status_code == 400

    run(console_over(url=database_url, models=tiny_model_dir, script=parrot), test)


def test_one_judgement_counts_however_many_come_at_once(engine: Engine) -> None:
    job = a_job(engine)
    _, turns = talk(engine, ("Hello!", "Hi."))
    pairs_of(engine, job, turns, [1.0])
    with reading(engine) as connection:
        pair = connection.scalar(select(Pair.id))
    assert pair is not None
    outcomes: list[str] = []
    barrier = threading.Barrier(6)

    def reviewer(number: int) -> None:
        barrier.wait()
        try:
            assert judge(engine, pair, "first", Identity(f"o{number}", f"op{number}", "reviewer"))
            outcomes.append("kept")
        except JudgedAlready:
            outcomes.append("too late")

    threads = [threading.Thread(target=reviewer, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["kept"] + ["too late"] * 5
    with reading(engine) as connection:
        row = connection.execute(select(Pair)).one()
    assert row.preferred == ("candidate" if row.swapped else "base")


def test_pairs_go_with_their_visitor_and_are_not_kept_for_who_has_gone(engine: Engine) -> None:
    job = a_job(engine)
    _, [one] = talk(engine, ("Hello!", "Hi."))
    goes, [two] = talk(engine, ("Hello!", "Hi."))
    answered = pairs_of(engine, job, [one, two], [1.0, 2.0])
    with writing(engine) as connection:
        visitor = select(Conversation.visitor_id).where(Conversation.id == goes).scalar_subquery()
        connection.execute(delete(Visitor).where(Visitor.id == visitor))
    with reading(engine) as connection:
        assert connection.scalars(select(Pair.message_id)).all() == [one]
    with writing(engine) as connection:
        assert store_pairs(connection, job, answered) == 1  # again, as after a server that was killed
    with reading(engine) as connection:
        assert connection.scalars(select(Pair.message_id)).all() == [one]


# --- what is learned --------------------------------------------------------------------------------------


def test_imported_transcripts_are_all_there_under_names_of_their_own(engine: Engine, tmp_path: Path) -> None:
    turns = [{"role": "user", "text": "Hello!"}, {"role": "agent", "text": "Hi."}]
    with writing(engine) as connection:
        for batch in ("b1", "b2"):
            values = {
                "name": batch,
                "sha256": batch,
                "operator_id": "o",
                "created_at": NOW,
                "conversations": 250,
            }
            connection.execute(insert(ImportBatch).values(id=batch, **values))
            rows = [
                {"batch_id": batch, "number": n, "transcript": {"id": f"t{n}", "turns": turns}}
                for n in range(250)
            ]
            connection.execute(insert(ImportedTranscript), rows)
    assert write_imported(engine, tmp_path / "imported.jsonl.gz") == 500
    found = [each.id for each in read_transcripts(tmp_path / "imported.jsonl.gz")]
    assert found == [f"b{b}/t{n}" for b in (1, 2) for n in range(250)]


def test_names_of_the_list_are_not_learned_and_unreviewed_talk_neither(
    engine: Engine, tmp_path: Path
) -> None:
    reviewed, _ = talk(engine, ("I am Zoe Quill, 030 1234567", "Hello Zoe Quill."))
    talk(engine, ("Nobody has looked at this", "Hm."))
    with writing(engine) as connection:
        connection.execute(insert(MaskedName).values(name="Zoe Quill", created_at=NOW))
        connection.execute(update(Conversation).where(Conversation.id == reviewed).values(reviewed_at=NOW))
    assert write_reviewed(engine, tmp_path / "reviewed.jsonl.gz") == 1
    [found] = read_transcripts(tmp_path / "reviewed.jsonl.gz")
    assert [turn.text for turn in found.turns] == ["I am [name], 030 1234567", "Hello [name]."]
