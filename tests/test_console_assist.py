"""Suggestions while an operator types, and replies kept ready."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select

from chatbot import model_directory
from chatbot.replies import Alternative, Load, ReplyRequest
from chatbot.tokenizer import Tokenizer
from server.console import canned
from server.console.distance import levenshtein
from server.console.masking import Masker
from server.console.suggestions import (
    AT_ONCE,
    BUSY,
    FEW_TOKENS,
    FORCED,
    NEW_TOKENS,
    Offer,
    choose,
    divide,
    shown_to_reviewers,
    whole,
)
from server.database import reading, writing
from server.tables import AuditEntry, Suggestion, Visitor
from tests.console_client import TestConsole, console_over, run
from tests.databases import KINDS, fresh_database
from tests.scripted_batcher import parrot

API = "/api/operator"


# --- distance ---------------------------------------------------------------------------------------------


def by_table(one: str, other: str) -> int:
    """Edit distance as the textbook has it (Wagner and Fischer 1974)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


@given(st.text("abcé😀 ", max_size=40), st.text("abcé😀 ", max_size=40))
def test_distance_is_that_of_the_table(one: str, other: str) -> None:
    assert levenshtein(one, other) == by_table(one, other) == levenshtein(other, one)


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("a" * 70, "a" * 69 + "b", 1),
    ],
)
def test_distances_that_are_known(one: str, other: str, edits: int) -> None:
    assert levenshtein(one, other) == edits


def test_distance_of_the_longest_messages_is_quick() -> None:
    began = time.process_time()
    assert levenshtein("ab" * 8000, "ba" * 8000) == 2
    assert time.process_time() - began < 10


# --- what is offered --------------------------------------------------------------------------------------


@given(st.text("ab. !\n", max_size=400))
def test_nothing_typed_is_lost(typed: str) -> None:
    read, forced = divide(typed)
    assert read + forced == typed
    assert len(forced) <= FORCED


def test_whole_sentences_of_a_long_text_are_read() -> None:
    long = "I have found your booking, which is for two people on Friday evening. " * 2
    half = len(long) // 2
    assert divide(long + "Would you li") == (long[:half], long[half:] + "Would you li")
    assert divide(long * 2 + "x" * 60) == (long * 2, "x" * 60)
    words = "word " * 60
    assert divide(words + "li") == (words[:-115], words[-115:] + "li")


def ended(text: str) -> Alternative:
    return Alternative(text, (7, Tokenizer.end_id), -1.0, -1.0)


def cut_off(text: str) -> Alternative:
    return Alternative(text, (7, 8), -1.0, -1.0)


def test_a_reply_that_was_cut_off_ends_where_a_sentence_or_a_word_does() -> None:
    assert whole(ended("It is at 7. The numb"), 0) == "It is at 7. The numb"
    assert whole(cut_off("It is at 7. The numb"), 0) == "It is at 7."
    assert whole(cut_off("It is at seven and the numb"), 0) == "It is at seven and the"
    # What is typed stays, whatever is cut off behind it.
    assert whole(cut_off("It is. Th"), 9) == "It is. Th"
    assert whole(cut_off("It is. The number of the ca"), 9) == "It is. The number of the"


def test_suggestions_that_say_the_same_come_last_or_not_at_all() -> None:
    texts = [
        "I can help you with that.",
        "I can help you with that",
        "I can help you with this.",
        "It is at 7.",
    ]
    offers = [Offer(text, -float(n)) for n, text in enumerate(texts)]
    assert [offer.text for offer in choose(offers, "I", 2)] == [texts[0], texts[3]]
    assert [offer.text for offer in choose(offers, "I", 3)] == [texts[0], texts[2], texts[3]]
    assert choose([Offer("Hello ", 0.0)], "Hello", 3) == []


def test_what_is_hidden_from_reviewers_is_not_suggested_to_them() -> None:
    offers = [Offer("Call 0770 900 1234 now", 0.0), Offer("Ann can help", 0.0), Offer("We can help", 0.0)]
    assert shown_to_reviewers(offers, "", Masker(["Ann"])) == (offers[2],)
    # What they have typed themselves they know.
    assert shown_to_reviewers([Offer("Ann can help", 0.0)], "Ann can", Masker(["Ann"])) != ()
    assert shown_to_reviewers([Offer("Ann can help", 0.0)], "An", Masker(["Ann"])) == ()


# --- with a model -----------------------------------------------------------------------------------------


async def suggest(client: httpx.AsyncClient, talk: str, typed: str = "", **more: Any) -> httpx.Response:
    return await client.post(f"{API}/conversations/{talk}/suggestions", json={"typed": typed, **more})


@pytest.mark.parametrize(
    "typed",
    ["", "I", "I can he", "I can ", "Hello, wha", "  two  spaces", "É", "no\nline", "Zoë 🙂", "x" * 300],
)
def test_suggestions_begin_with_what_is_typed(tmp_path: Path, tiny_model_dir: Path, typed: str) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        talk = console.conversation([("Hello!", "Hello, what can I get you?"), ("A latte, please.", None)])
        answer = await suggest(client, talk.id, typed)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        texts = [each["text"] for each in found["suggestions"]]
        assert 1 <= len(texts) <= 3
        assert len(set(texts)) == len(texts)
        assert all(text.startswith(typed) and len(text) > len(typed) for text in texts)
        with reading(console.db) as connection:
            kept = connection.execute(select(Suggestion)).one()
        assert (kept.id, kept.typed, kept.offered) == (found["id"], typed, texts)
        assert kept.model == console.desk.engine.speaker.fingerprint
        assert (kept.outcome, kept.milliseconds) == (None, found["milliseconds"])

    run(console_over(tmp_path, tiny_model_dir), test)


def test_the_shipped_model_finishes_a_word(tmp_path: Path) -> None:
    """`he` is not a word that it would say here; what is offered makes words of it that it knows."""

    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        talk = console.conversation([("I would like to book a table for two people", None)])
        found = (await suggest(client, talk.id, "I can he")).json()["suggestions"]
        assert len(found) == 3
        assert all(each["text"].startswith("I can help") for each in found), found
        [inside, *_] = (await suggest(client, talk.id, "For what ti")).json()["suggestions"]
        assert inside["text"].startswith("For what time")

    run(console_over(tmp_path, model_directory.SHIPPED), test)


def test_a_server_with_fewer_rows_than_the_beam_still_suggests(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        talk = console.conversation([("Hello!", None)])
        found = (await suggest(client, talk.id, "He")).json()["suggestions"]
        assert [each["text"][:2] for each in found] == ["He"]

    run(console_over(tmp_path, tiny_model_dir, rows=2), test)


def test_where_there_is_nothing_to_suggest_nothing_is_kept(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        empty = console.conversation([])
        assert (await suggest(client, empty.id)).json()["suggestions"] == []
        assert (await suggest(client, empty.id)).json()["id"] is None
        assert console.desk.engine.places_in_use == 0
        with reading(console.db) as connection:
            assert connection.execute(select(Suggestion)).all() == []

    run(console_over(tmp_path, tiny_model_dir), test)


def test_requests_that_cannot_be(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("reviewer")
        talk = console.conversation([("Hello!", None)])
        for body in (
            {"count": 0},
            {"count": 6},
            {"typed": 3},
            {"typed": "\0"},
            {"more": 1},
            {"typed": "x" * 16001},
        ):
            assert (
                await client.post(f"{API}/conversations/{talk.id}/suggestions", json=body)
            ).status_code == 400
        assert (await suggest(client, "nobody")).status_code == 404
        assert (
            await client.post(f"{API}/conversations/{talk.id}/suggestions?a=1", json={})
        ).status_code == 400
        nobody = await console.client()
        assert (await suggest(nobody, talk.id)).status_code in (401, 403)

    run(console_over(tmp_path, tiny_model_dir), test)


# --- with a script ----------------------------------------------------------------------------------------


def test_what_the_model_is_asked(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        talk = console.conversation([("Hello!", "Hi."), ("A latte", None)])
        first = "One latte is on its way to you. "
        second = "It will be there in a moment, or in two, or in three, or in four minutes at most. "
        typed = first + second + "Anything else"
        assert FORCED < len(typed) <= FORCED + len(first)
        assert (await suggest(client, talk.id, typed, count=2)).status_code == 200
        assert console.batcher is not None
        asked = console.batcher.requests[-1]
        said = [("user", "Hello!"), ("agent", "Hi."), ("user", "A latte")]
        assert list(asked.turns) == [*said, ("agent", first)]
        assert asked.options.prefix == second + "Anything else"
        assert asked.options.max_tokens <= len(asked.options.prefix) + 1 + NEW_TOKENS
        assert asked.options.decoding == "beam"
        await suggest(client, talk.id, "Anyth")
        short = console.batcher.requests[-1]
        assert list(short.turns) == said
        # The visitor's next reply finds what was read of the conversation; a long text leaves that alone.
        assert short.conversation == talk.id != asked.conversation

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_a_busy_model_is_asked_for_less(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        assert console.batcher is not None
        client = await console.sign_in("admin")
        talks = [console.conversation([("Hello!", None)]) for _ in range(2)]
        tokens = []
        for talk, rows in zip(talks, (BUSY - 1, BUSY), strict=True):
            console.desk.engine._station.worker._stepping.load = Load(rows, 0)  # type: ignore[union-attr]
            await suggest(client, talk.id, "So")
            tokens.append(console.batcher.requests[-1].options.max_tokens)
        assert tokens[0] - tokens[1] == NEW_TOKENS - FEW_TOKENS

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def forever(request: ReplyRequest) -> list[str]:
    return ["word "] * 1_000_000


async def until(console: TestConsole, requests: int) -> None:
    assert console.batcher is not None
    async with asyncio.timeout(20):
        while len(console.batcher.requests) < requests:  # noqa: ASYNC110 - another thread counts them
            await asyncio.sleep(0.005)


def test_a_newer_request_cancels_the_older_one(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        assert console.batcher is not None
        client, other = await console.sign_in("admin"), await console.sign_in("admin", "another")
        talk, elsewhere = console.conversation([("Hello!", None)]), console.conversation([("Hi", None)])
        before = len(console.batcher.requests)
        older = asyncio.create_task(suggest(client, talk.id, "a"))
        await until(console, before + 1)
        others = [
            asyncio.create_task(suggest(other, talk.id)),
            asyncio.create_task(suggest(client, elsewhere.id)),
        ]
        await until(console, before + 3)
        newer = asyncio.create_task(suggest(client, talk.id, "ab"))
        answer = await older
        assert answer.status_code == 409
        await until(console, before + 4)
        assert console.batcher.requests[before].id in console.batcher.cancelled
        assert not any(task.done() for task in (newer, *others))
        newest = asyncio.create_task(suggest(client, talk.id, "abc"))
        assert (await newer).status_code == 409
        for task in (newest, *others):
            task.cancel()
        with reading(console.db) as connection:
            assert connection.execute(select(Suggestion)).all() == []

    run(console_over(tmp_path, tiny_model_dir, script=slow), test)


def slow(request: ReplyRequest) -> list[str]:
    """Long enough for others to come, and not for ever."""
    return parrot(request) if request.id.startswith("probe") else forever(request)


def test_a_busy_model_answers_429(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        talk = console.conversation([("Hello!", None)])
        engine = console.desk.engine
        permits = [engine.reserve() for _ in range(engine.capacity)]
        answer = await suggest(client, talk.id)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        for permit in permits:
            permit.release()
        assert (await suggest(client, talk.id)).status_code == 200

    run(console_over(tmp_path, tiny_model_dir, script=parrot, rows=8, waiting=2), test)


def test_one_operator_has_so_many_under_way(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        assert console.batcher is not None
        client = await console.sign_in("admin")
        talks = [console.conversation([("Hello!", None)]) for _ in range(AT_ONCE + 1)]
        before = len(console.batcher.requests)
        under_way = [asyncio.create_task(suggest(client, talk.id)) for talk in talks[:AT_ONCE]]
        await until(console, before + AT_ONCE)
        assert (await suggest(client, talks[-1].id)).status_code == 429
        assert len(console.desk.suggestions) == AT_ONCE
        for task in under_way:
            task.cancel()

    run(console_over(tmp_path, tiny_model_dir, script=slow), test)


def test_nobody_waits_for_ever(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.console.suggestions.PATIENCE", 0.1)

    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        talk = console.conversation([("Hello!", None)])
        assert (await suggest(client, talk.id)).status_code == 429
        assert len(console.desk.suggestions) == 0

    run(console_over(tmp_path, tiny_model_dir, script=slow), test)


# --- outcomes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_are_kept_with_the_distance(kind: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client, other = await console.sign_in("reviewer"), await console.sign_in("admin")
        talk = console.conversation([("one two three", None)])
        made = (await suggest(client, talk.id)).json()
        text, address = made["suggestions"][0]["text"], f"{API}/suggestions/{made['id']}/outcome"

        async def conclude(**body: Any) -> httpx.Response:
            return await client.post(address, json=body)

        assert (await conclude(outcome="accepted", chosen=text)).json() == {"distance": None}
        sent = await conclude(outcome="edited", chosen=text, sent=text + "!!")
        assert sent.json() == {"distance": 2}
        with reading(console.db) as connection:
            kept = connection.execute(select(Suggestion)).one()
            assert (kept.outcome, kept.chosen, kept.distance) == ("edited", text, 2)
            entries = connection.execute(
                select(AuditEntry).where(AuditEntry.action == "suggestion.conclude")
            ).all()
        assert [entry.details for entry in entries] == [{"outcome": "accepted"}, {"outcome": "edited"}]
        assert {entry.subject for entry in entries} == {made["id"]}
        assert (await conclude(outcome="ignored", chosen=text)).json() == {"distance": None}

        assert (await conclude(outcome="accepted", chosen="something else")).status_code == 400
        assert (await conclude(outcome="accepted")).status_code == 400
        assert (await conclude(outcome="loved")).status_code == 400
        assert (await conclude(outcome="ignored", message=talk.said[0])).status_code == 400
        assert (await other.post(address, json={"outcome": "ignored"})).status_code == 404
        assert (
            await client.post(f"{API}/suggestions/0/outcome", json={"outcome": "ignored"})
        ).status_code == 404

        version = {"version": 0}
        taken = await client.post(f"{API}/conversations/{talk.id}/take", json=version)
        assert taken.status_code == 200, taken.text
        said = await client.post(
            f"{API}/conversations/{talk.id}/messages", json={"id": "1", "text": text + "?"}
        )
        message = said.json()["message"]
        assert (await conclude(outcome="edited", chosen=text, message=message)).json() == {"distance": 1}

        with writing(console.db) as connection:  # as when a visitor is erased
            connection.execute(delete(Visitor).where(Visitor.id == talk.visitor))
        assert (await conclude(outcome="ignored")).status_code == 404

    with fresh_database(kind, tmp_path) as url:
        run(console_over(url=url, models=tiny_model_dir, script=parrot), test)


# --- canned replies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_canned_replies(kind: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client, other = await console.sign_in("reviewer"), await console.sign_in("admin")
        text = "Hello {name}, {shop} here. {name}, how can I help? {} {no\nplace} {{your day}}"
        made = await client.post(f"{API}/canned", json={"title": " Welcome ", "text": text})
        assert made.status_code == 201
        first = made.json()
        assert (first["title"], first["text"], first["places"]) == (
            "Welcome",
            text,
            ["name", "shop", "your day"],
        )
        await other.post(f"{API}/canned", json={"title": "goodbye", "text": "Bye!"})
        taken = await other.post(f"{API}/canned", json={"title": "Welcome", "text": "Hi!"})
        assert taken.status_code == 409
        listed = (await other.get(f"{API}/canned")).json()["canned"]
        assert [each["title"] for each in listed] == ["goodbye", "Welcome"]
        assert listed[1] == first

        address = f"{API}/canned/{first['id']}"
        assert (await other.put(address, json={"title": "goodbye", "text": "x"})).status_code == 409
        changed = (await other.put(address, json={"title": "Welcome", "text": "Hi {you}"})).json()
        assert (changed["text"], changed["places"]) == ("Hi {you}", ["you"])
        assert changed["updated_at"] > first["updated_at"]
        assert (await client.delete(address)).status_code == 204
        assert (await client.delete(address)).status_code == 404
        assert (await client.put(address, json={"title": "a", "text": "b"})).status_code == 404
        for body in (
            {"title": "", "text": "x"},
            {"title": "x", "text": " "},
            {"title": "a\0", "text": "x"},
            {},
        ):
            assert (await client.post(f"{API}/canned", json=body)).status_code == 400
        with reading(console.db) as connection:
            entries = connection.execute(select(AuditEntry).where(AuditEntry.action.like("canned.%"))).all()
        assert [(entry.operator, entry.action) for entry in entries] == [
            ("reviewer", "canned.add"),
            ("admin", "canned.add"),
            ("admin", "canned.replace"),
            ("reviewer", "canned.delete"),
        ]
        assert all(entry.details is None for entry in entries)

    with fresh_database(kind, tmp_path) as url:
        run(console_over(url=url, models=tiny_model_dir, script=parrot), test)


def test_there_are_not_endlessly_many_canned_replies(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canned, "MOST", 1)

    async def test(console: TestConsole) -> None:
        client = await console.sign_in()
        codes = [
            (await client.post(f"{API}/canned", json={"title": title, "text": "x"})).status_code
            for title in "ab"
        ]
        assert codes == [201, 409]

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)
