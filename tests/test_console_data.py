"""Exports, imports and erasing, through the console's routes and the command line, on both databases."""

from __future__ import annotations

import asyncio
import csv
import errno
import gzip
import io
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, text, update
from websockets.exceptions import ConnectionClosed

from chatbot.transcripts import read_lines, render_transcript
from server import __main__, database
from server.__main__ import main
from server.console import cleansing, erasing
from server.console.accounts import Accounts
from server.console.exports import COLUMNS, Export
from server.console.filters import Filters
from server.console.imports import Bounds, Problem, Upload, clean_name
from server.database import reading, writing
from server.desk import new_id
from server.protocol import Close, Error, Hello
from server.store import Store
from server.store_errors import UnknownConversation
from server.tables import (
    AuditEntry,
    Base,
    Conversation,
    ImportBatch,
    ImportedTranscript,
    Job,
    Message,
    Pair,
    ShadowReply,
    Suggestion,
    TopicMap,
    TopicPoint,
    Verdict,
    Visitor,
)
from tests.chat_client import ChatClient, chatting
from tests.console_client import MODEL, PASSWORD, Talk, TestConsole, console_over, new_reply, run
from tests.databases import KINDS, fresh_database, upgrade
from tests.live_server import LiveServer, serving
from training.dataset import DataConfig, Sources, build
from training.filters import FilterConfig

API = "/api/operator"
LINE = '{"id": "%s", "turns": [{"role": "user", "text": "Hello"}, {"role": "agent", "text": "%s"}]}\n'
Test = Callable[[TestConsole], Awaitable[None]]


@pytest.fixture(params=KINDS)
def on_both(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_model_dir: Path
) -> Iterator[Callable[[Test], None]]:
    """Runs a test against a console over a new database of each kind."""
    with fresh_database(request.param, tmp_path) as url:
        yield lambda test: run(console_over(url=url, models=tiny_model_dir), test)


def count(console: TestConsole, table: type[Base]) -> int:
    with reading(console.db) as connection:
        return len(connection.execute(select(table)).all())


def audited(console: TestConsole, action: str) -> list[Any]:
    with reading(console.db) as connection:
        return list(
            connection.execute(select(AuditEntry).where(AuditEntry.action == action).order_by(AuditEntry.id))
        )


# --- names ------------------------------------------------------------------------------------------------


def test_the_list_of_names(on_both: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        admin, reviewer = await console.sign_in("admin"), await console.sign_in()
        path = f"{API}/masked_names"

        assert (await admin.post(path, json={"name": "  Ann   Lee "})).json() == {"name": "Ann Lee"}
        assert (await admin.post(path, json={"name": "Ann Lee"})).status_code == 409
        for wrong in ("", "  ", "-", "a\0b", "a\u202eb", "x" * 101, "\ud800"):
            content = json.dumps({"name": wrong})
            answer = await admin.post(path, content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 400, wrong
        assert (await reviewer.post(path, json={"name": "Bob"})).status_code == 403
        assert (await reviewer.request("DELETE", path, json={"name": "Ann Lee"})).status_code == 403
        assert (await reviewer.get(path)).json() == {"names": ["Ann Lee"]}
        assert (await admin.request("DELETE", path, json={"name": "Ann Lee"})).status_code == 204
        assert (await admin.request("DELETE", path, json={"name": "Ann Lee"})).status_code == 404
        assert (await reviewer.get(path)).json() == {"names": []}
        [entry] = audited(console, "masked_name.add")
        assert (entry.operator, entry.subject, entry.details) == ("admin", None, None)

    on_both(test)


# --- imports ----------------------------------------------------------------------------------------------


def test_a_file_is_taken_in_once_listed_and_forgotten(on_both: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        reviewer, admin = await console.sign_in(), await console.sign_in("admin")
        odd = '{"id": "b", "turns": [{"role": "user", "text": "\\ud83d\\ude00 \\u0007", "mood": {"x": 2.5}, '
        odd += '"at": "2024-05-01T10:00:00+02:00"}], "site": "bonn"}'
        file = (LINE % ("a", "Hi")).encode() + b"\r\n" + odd.encode()

        answer = await reviewer.post(
            f"{API}/imports?name=C:\\day\\../mo%0Arning%E2%80%AE.jsonl", content=file
        )

        assert answer.status_code == 201, answer.text
        report = answer.json()
        assert report == {"id": report["id"], "name": "mo rning .jsonl", "conversations": 2, "problems": []}
        with reading(console.db) as connection:
            kept = connection.scalars(
                select(ImportedTranscript.transcript).order_by(ImportedTranscript.number)
            )
            assert list(kept) == [json.loads(LINE % ("a", "Hi")), json.loads(odd)]
        again = await admin.post(f"{API}/imports?name=other", content=file)
        assert again.status_code == 409
        packed = await admin.post(f"{API}/imports?name=packed", content=gzip.compress(file, mtime=0))
        assert packed.json()["conversations"] == 2
        listed = (await reviewer.get(f"{API}/imports")).json()["imports"]
        assert [(each["name"], each["operator"], each["conversations"]) for each in listed] == [
            ("packed", "admin", 2),
            ("mo rning .jsonl", "reviewer", 2),
        ]
        assert (await reviewer.delete(f"{API}/imports/{report['id']}")).status_code == 403
        assert (await admin.delete(f"{API}/imports/{report['id']}")).status_code == 204
        assert (await admin.delete(f"{API}/imports/{report['id']}")).status_code == 404
        assert count(console, ImportedTranscript) == 2
        assert (await admin.post(f"{API}/imports?name=other", content=file)).status_code == 201
        assert [entry.details for entry in audited(console, "import.add")] == [{"conversations": 2}] * 3
        assert len(audited(console, "import.delete")) == 1

    on_both(test)


GOOD = (LINE % ("good", "Hi")).encode()
NUL = json.dumps({"id": "n", "turns": [], "meta": {"x": "\0"}}).encode()


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        (b"", 0, "no conversation"),
        (b"\n \n", 0, "no conversation"),
        (GOOD * 2, 2, "already used on line 1"),
        (b"".join((LINE % (n, "x")).encode() for n in range(6)) + b'{"id": "7"}\n' + GOOD, 7, "turns"),
        (GOOD + b"{", 2, "JSON"),
        (GOOD + b"\xff\n", 2, "JSON"),
        (GOOD.decode().encode("utf-16"), 1, "UTF-16"),
        (GOOD.decode().encode("utf-16-be"), 1, "UTF-16"),
        (gzip.compress(GOOD, mtime=0)[:-9], 2, "too early"),
        (gzip.compress(GOOD, mtime=0) + b"rubbish", 2, "damaged"),
        (gzip.compress(b"x", mtime=0)[:20] + b"\0" * 30, 1, "damaged"),
        (gzip.compress((b" " * 60_000 + b"\n") * 60, mtime=0), 18, "unpacks to more than"),
        (gzip.compress(b"\n" * 300_000, mtime=0), 200_001, "more than 200000 lines"),
        (gzip.compress(b"a" * 3_000_000, mtime=0), 1, "unpacks to more than"),
        (b"a" * 3_000_000, 1, "line has more"),
        (gzip.compress(b"", mtime=0) * 2000, 1, "parts"),
        (b"[" * 60_000, 1, "JSON"),
        (NUL, 1, "NUL"),
        (b'{"id": "x", "turns": [], "meta": {"x": NaN}}', 1, "nan"),
        (b'{"id": "x", "turns": [], "meta": {"x": 1e999}}', 1, "inf"),
        (b'{"id": "x", "turns": [{"role": "user", "text": "\\ud800"}]}', 1, "JSON"),
        (json.dumps({"id": "i" * 201, "turns": []}).encode(), 1, "200 characters"),
        (b"PK\x03\x04", 1, "JSON"),
    ],
)
def test_a_bad_file_is_reported_by_line(file: bytes, line: int, reason: str) -> None:
    with Upload() as upload:
        assert upload.add(file)
        list(upload.check())

        assert (upload.problems[0].line, reason in upload.problems[0].reason) == (line, True), upload.problems


def test_of_a_bad_file_nothing_is_kept(on_both: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        reviewer = await console.sign_in()
        good = "".join(LINE % (n, "x") for n in range(600)).encode()
        for file in (
            good + b"<script>alert(1)</script>\n",
            gzip.compress(good, mtime=0)[:-9],
            good.decode().encode("utf-16"),
        ):
            answer = await reviewer.post(f"{API}/imports?name=x", content=file)

            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["code"] == "bad_import"
            assert answer.json()["problems"]
            assert count(console, ImportBatch) == count(console, ImportedTranscript) == 0
            assert not audited(console, "import.add")

    on_both(test)


def test_a_file_may_be_bigger_than_other_bodies(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        reviewer = await console.sign_in()
        file = "".join(LINE % (n, "x" * 5000) for n in range(600)).encode()

        answer = await reviewer.post(f"{API}/imports?name=x", content=file)

        assert (answer.status_code, answer.json()["conversations"]) == (201, 600)
        for query in ("", "?name=x&sort=y", f"?name={'x' * 1001}"):
            assert (await reviewer.post(f"{API}/imports{query}", content=b"x")).status_code == 400

    run(console_over(tmp_path, tiny_model_dir), test)


def test_nothing_that_was_said_gets_into_the_log(
    tmp_path: Path, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        talk = console.conversation([(MARK, f"re {MARK}")])
        for content in (LINE % (MARK, MARK), f'{{"id": "{MARK}"}}', f"{MARK}\r\nfake: line"):
            await admin.post(f"{API}/imports?name={MARK}%0d%0a", content=content)
        await admin.post(f"{API}/masked_names", json={"name": MARK})
        await export(admin, mask=False, q=MARK)
        assert (await admin.post(f"{API}/erase", json={"visitor": talk.visitor})).status_code == 200
        assert MARK not in repr([entry.details for entry in audited(console, "conversations.export")])

    with caplog.at_level("INFO"):
        run(console_over(tmp_path, tiny_model_dir), test)

    assert caplog.records, "what the client logs is captured as well"
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert MARK not in repr([(record.getMessage(), record.__dict__) for record in ours])


def test_at_most_a_hundred_problems_are_told_in_order() -> None:
    with Upload() as upload:
        upload.add(b"".join(f"broken {n}\n".encode() + GOOD.replace(b"good", b"%d" % n) for n in range(300)))
        list(upload.check())

        assert [problem.line for problem in upload.problems] == list(range(1, 200, 2))


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [
        (Bounds(upload=100), Problem(0, "the file has more than 100 bytes")),
        (Bounds(unpacked=150), Problem(1, "the file unpacks to more than 150 bytes")),
        (Bounds(conversations=2), Problem(3, "the file has more than 2 conversations")),
        (Bounds(lines=2), Problem(3, "the file has more than 2 lines")),
        (Bounds(line=70), Problem(1, "the line has more than 70 bytes")),
    ],
)
def test_every_bound_holds(bounds: Bounds, problem: Problem) -> None:
    with Upload(bounds) as upload:
        fits = upload.add("".join(LINE % (n, "x") for n in range(3)).encode())
        if fits:
            list(upload.check())

        assert upload.problems == [problem]


@pytest.mark.parametrize("size", [1, 5, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1])
def test_lines_are_found_wherever_a_block_ends(size: int) -> None:
    first = LINE % ("first", "x" * max(1, size - len(LINE % ("first", ""))))
    with Upload() as upload:
        for place in range(0, len(first), 1000):
            upload.add(first[place : place + 1000].encode())
        upload.add((LINE % ("second", "y")).encode().rstrip())
        list(upload.check())

        assert (upload.problems, upload.conversations) == ([], 2)


def test_packed_files_put_together_are_one() -> None:
    with Upload() as upload:
        upload.add(
            gzip.compress(GOOD, mtime=0)
            + gzip.compress(b"", mtime=0)
            + gzip.compress((LINE % ("b", "x")).encode(), mtime=0)
        )
        list(upload.check())

        assert (upload.problems, upload.conversations) == ([], 2)


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("a.jsonl", "a.jsonl"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\x", "x"),
        ("<img src=x onerror=alert(1)>.gz", "<img src=x onerror=alert(1)>.gz"),  # it is shown as text
        ("a\r\nb\x1b[31m\u202etxt\u200b", "a b [31m txt"),
        ("x" * 1000, "x" * 200),
        ("\0", "without a name"),
    ],
)
def test_names_of_files_are_made_harmless(name: str, clean: str) -> None:
    assert clean_name(name) == clean


# --- erasing ----------------------------------------------------------------------------------------------

MARK = "Zqxwvu"
"""Nobody else says it."""


def live_in(console: TestConsole, word: str, folder: Path) -> Talk:
    """A visitor with something in every table that can hold what they said."""
    talk = console.conversation(
        [(f"I am {word}{n} and want {word}latte", f"Hello {word}{n}!") for n in range(3)],
        withheld=f"{word} withheld",
        alternatives=[{"text": f"{word} alternative", "score": -1.0, "logprob": -2.0}],
    )
    console.say(talk, f"more of {word}", None)
    [said, reply] = talk.said[0], talk.replies[0]
    assert reply is not None
    console.store.rate(talk.id, reply, "down", f"{word} comment")
    job, map_id, now = new_id(), new_id(), datetime.now(UTC)
    folder.mkdir()
    with writing(console.db) as connection:
        add = connection.execute
        operator = {"operator_id": "somebody"}
        add(
            insert(Verdict).values(
                message_id=reply,
                verdict="bad",
                labels=["tone"],
                corrected=f"{word} corrected",
                note=f"{word} note",
                created_at=now,
                updated_at=now,
                **operator,
            )
        )
        add(
            insert(Suggestion).values(
                id=new_id(),
                conversation_id=talk.id,
                created_at=now,
                model=MODEL,
                typed=f"{word} typed",
                offered=[f"{word} offered"],
                milliseconds=1.0,
                chosen=f"{word} chosen",
                **operator,
            )
        )
        add(
            insert(Job).values(
                id=job,
                state="done",
                base=MODEL,
                candidate=f"tw-{word}",
                directory=str(folder),
                settings={},
                created_at=now,
            )
        )
        add(
            insert(Pair).values(
                id=new_id(),
                job_id=job,
                message_id=reply,
                base_text=f"{word} base",
                candidate_text=f"{word} candidate",
                group=f"{word} group",
                gain=1.0,
                swapped=False,
            )
        )
        add(
            insert(ShadowReply).values(
                message_id=reply, model="other", text=f"{word} shadow", logprob=-1.0, created_at=now
            )
        )
        words = [word.lower(), "latte", "opening hours"]
        clusters = [{"number": number, "words": words, "size": 2, "x": 0.0, "y": 0.0} for number in (0, 1)]
        add(insert(TopicMap).values(id=map_id, model=MODEL, created_at=now, clusters=clusters[:1]))
        add(insert(TopicPoint).values(map_id=map_id, conversation_id=talk.id, cluster=0, x=0.0, y=0.0))
    line = json.dumps({"id": said, "turns": [{"role": "user", "text": f"{word} asked"}]})
    (folder / "questions.jsonl.gz").write_bytes(gzip.compress(line.encode(), mtime=0))
    (folder / "reviewed.jsonl.gz").write_bytes(gzip.compress(line.encode(), mtime=0))
    (folder / "next.run").mkdir()
    (folder / "next.run" / "retrain.jsonl.gz").write_bytes(gzip.compress(line.encode(), mtime=0))
    lineage = {"conversations": [{"id": talk.id, "name": "learned-0", "part": "reviewed"}]}
    (folder / "next.manifest.json").write_text(json.dumps(lineage), encoding="utf-8")
    return talk


def texts_of(console: TestConsole) -> str:
    """Everything that can be read in any table, whoever made it."""
    with reading(console.db) as connection:
        if connection.dialect.name == "sqlite":
            names = connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
        else:
            names = connection.scalars(
                text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
            )
        rows = [connection.execute(text(f'SELECT * FROM "{name}"')).all() for name in list(names)]
    return repr(rows).casefold()


def bytes_of(folder: Path) -> bytes:
    """All files, those that are packed as they are and unpacked."""
    found = b""
    for file in folder.rglob("*"):
        if file.is_file():
            found += file.read_bytes()
            if file.suffix == ".gz":
                found += gzip.decompress(file.read_bytes())
    return found.lower()


def test_an_erased_visitor_leaves_no_trace(on_both: Callable[[Test], None], tmp_path: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin, reviewer = await console.sign_in("admin"), await console.sign_in()
        for number in range(6):
            console.conversation([(f"other {number} {n}", "something else") for n in range(6)])
        talk = live_in(console, MARK, tmp_path / "job")
        other = live_in(console, "Kfgjhp", tmp_path / "other")
        # what was exported and uploaded again
        export = LINE % (talk.id, MARK) + LINE % ("unrelated", "Kfgjhp")
        export += json.dumps({"id": "y", "turns": [], "meta": {"visitor": talk.visitor, "x": MARK}}) + "\n"
        assert (await admin.post(f"{API}/imports?name=x", content=export)).status_code == 201
        for number in range(6):
            console.conversation([(f"later {number} {n}", "something else") for n in range(6)])
        assert MARK.lower() in texts_of(console)
        assert MARK.lower().encode() in bytes_of(tmp_path)

        assert (await reviewer.post(f"{API}/erase", json={"visitor": talk.visitor})).status_code == 403
        answer = await admin.post(f"{API}/erase", json={"conversation": talk.id})

        assert answer.status_code == 200, answer.text
        on_sqlite = console.db.dialect.name == "sqlite"
        assert answer.json() == {
            "visitor": talk.visitor,
            "conversations": 1,
            "messages": 7,
            "generations": 3,
            "ratings": 1,
            "verdicts": 1,
            "pairs": 1,
            "shadow_replies": 1,
            "suggestions": 1,
            "topic_points": 1,
            "topic_words": 1,
            "imported": 2,
            "datasets": 1,
            "jobs_cancelled": 0,
            "models": [f"tw-{MARK}"],
            "files_left": [],
            "exports": 0,
            "log_emptied": True if on_sqlite else None,
            "vacuumed": None if on_sqlite else True,
        } | {"topic_words": answer.json()["topic_words"]}
        left = texts_of(console).replace(f"tw-{MARK}".lower(), "")
        assert MARK.lower() not in left
        assert "kfgjhp" in left
        assert MARK.lower().encode() not in bytes_of(tmp_path).replace(f"tw-{MARK}".lower().encode(), b"")
        assert console.store.visitor_of(talk.token) is None
        with pytest.raises(UnknownConversation):  # whoever still has it open
            console.store.add_user_turn(talk.id, "again", MARK, {})
        assert (await admin.get(f"{API}/conversations/{talk.id}")).status_code == 404
        assert (await admin.get(f"{API}/conversations/{other.id}")).status_code == 200
        assert (await admin.post(f"{API}/erase", json={"conversation": talk.id})).status_code == 404
        again = await admin.post(f"{API}/erase", json={"visitor": talk.visitor})
        assert again.status_code == 200
        assert {name for name, value in again.json().items() if value} <= {
            "visitor",
            "log_emptied",
            "vacuumed",
        }
        [entry] = audited(console, "visitor.erase")
        assert (entry.operator, entry.subject) == ("admin", talk.visitor)
        assert set(map(type, entry.details.values())) == {int}
        assert (entry.details["messages"], entry.details["imported"]) == (7, 2)
        [batch] = (await admin.get(f"{API}/imports")).json()["imports"]
        assert batch["conversations"] == 1

    on_both(test)


@pytest.mark.parametrize("seed", [0, 2])
def test_no_trace_is_left_between_the_rows(seed: int, tmp_path: Path) -> None:
    """Half of many short rows go, so that SQLite moves the others together."""
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    db = database.connect(url)
    store, rng, now = Store(db), random.Random(seed), datetime.now(UTC)
    erased_one, other = [store.new_visitor().visitor_id for _ in range(2)]
    talks = [store.open_conversation(visitor) for visitor in (erased_one, other)]
    messages = []
    for seq in range(1, 1501):
        talk, word = rng.choice([(talks[0], MARK), (talks[1], "Abcdef")])
        said = f"{word} " * rng.randrange(1, 30)
        message = {"id": new_id(), "conversation_id": talk, "seq": seq, "role": "user", "text": said}
        messages.append({**message, "created_at": now, "superseded": False})
    with writing(db) as connection:
        connection.execute(insert(Message), messages)
    assert MARK.lower().encode() in bytes_of(tmp_path)

    erased = erasing.erase(db, erased_one, None)

    assert erased is not None
    assert erased.messages == sum(each["conversation_id"] == talks[0] for each in messages)
    assert erased.log_emptied
    assert MARK.lower()[1:].encode() not in bytes_of(tmp_path)  # the index leaves out what words begin with
    with writing(db) as connection:
        connection.execute(text("INSERT INTO message_search (message_search) VALUES ('integrity-check')"))
        assert connection.execute(text("PRAGMA integrity_check")).all() == [("ok",)]
    db.dispose()


def test_a_log_that_somebody_reads_is_said_to_be_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleansing, "SECONDS", 0.2)
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    db = database.connect(url)
    visitor = Store(db).new_visitor().visitor_id
    with reading(db) as connection:
        connection.execute(select(Visitor)).all()
        erased = erasing.erase(db, visitor, None)

    assert erased is not None
    assert not erased.log_emptied
    assert (tmp_path / "turnwise.db-wal").stat().st_size > 0

    assert erasing.visitor_of(db, visitor=visitor) == visitor
    assert erasing.erase(db, visitor, None) == erasing.Erased(visitor, log_emptied=True)
    assert (tmp_path / "turnwise.db-wal").stat().st_size == 0
    with reading(db) as connection:
        noted = select(AuditEntry.action).where(AuditEntry.subject == visitor)
        assert connection.scalars(noted).all() == ["visitor.erase"]
    db.dispose()


def test_a_retraining_that_reads_an_erased_conversation_is_ended(
    on_both: Callable[[Test], None], tmp_path: Path
) -> None:
    async def test(console: TestConsole) -> None:
        talk = console.conversation([("hello", "hi")])
        kept = console.conversation([("other", "hi")])
        base: dict[str, Any] = {"base": MODEL, "settings": {}, "created_at": datetime.now(UTC)}
        jobs = {state: new_id() for state in ("running", "done", "failed")}
        for state, about in (("running", talk), ("done", kept), ("failed", talk)):
            folder = tmp_path / state
            folder.mkdir()
            line = json.dumps({"id": about.id, "turns": [{"role": "user", "text": "x"}]}) + "\n"
            (folder / "reviewed.jsonl.gz").write_bytes(gzip.compress(line.encode(), mtime=0))
            with writing(console.db) as connection:
                values = {"id": jobs[state], "state": state, "directory": str(folder), **base}
                connection.execute(insert(Job).values(values))

        erased = erasing.erase(console.db, talk.visitor, "admin")

        assert erased is not None
        assert (erased.datasets, erased.jobs_cancelled, erased.models) == (2, 1, ())
        with reading(console.db) as connection:
            asked = dict(connection.execute(select(Job.id, Job.cancel)).all())
        assert asked == {jobs["running"]: True, jobs["done"]: False, jobs["failed"]: False}
        assert [state for state in jobs if (tmp_path / state / "reviewed.jsonl.gz").exists()] == ["done"]
        [entry] = audited(console, "job.cancel")
        assert (entry.operator, entry.subject) == ("admin", jobs["running"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.console.job_runner.IDLE", 1000.0)
        on_both(test)


def test_files_that_cannot_be_removed_are_named_and_all_else_is_erased(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that may only be read, or another user's files."""
    visitor, conversation = talked(url)
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "reviewed.jsonl.gz").write_bytes(gzip.compress(json.dumps({"id": conversation}).encode()))
    db = database.connect(url)
    job: dict[str, Any] = {"id": new_id(), "state": "running", "directory": str(folder), "base": MODEL}
    with writing(db) as connection:
        connection.execute(insert(Job).values(**job, settings={}, created_at=datetime.now(UTC)))

    def refused(directory: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(directory))

    monkeypatch.setattr("server.console.erased_files.forget_texts", refused)
    assert main(["erase", visitor, "--json", "--database-url", url]) == 1

    said = capsys.readouterr()
    report = json.loads(said.out)
    assert (report["files_left"], report["datasets"], report["jobs_cancelled"]) == ([str(folder)], 0, 1)
    assert True in (report["log_emptied"], report["vacuumed"])
    assert f"texts may be left in {folder}" in said.err
    with reading(db) as connection:
        assert connection.execute(select(Message)).all() == []
    db.dispose()


@pytest.mark.parametrize("body", [{}, {"visitor": None}, {"visitor": ""}, {"visitor": 5}, {"who": "x"}])
def test_whom_to_erase_must_be_said(body: dict[str, Any], tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        assert (await admin.post(f"{API}/erase", json=body)).status_code == 400
        for nobody in ({"visitor": "x"}, {"conversation": "x"}, {"visitor": "a\0"}):
            assert (await admin.post(f"{API}/erase", json=nobody)).status_code == 404

    run(console_over(tmp_path, tiny_model_dir), test)


# --- exports ----------------------------------------------------------------------------------------------

ODD = "=1+1, \"quoted\"\r\nmore\tof it \u2028 \U0001f600 \u202e <script>{{7*7}}</script> 'x' \x1b[31m \x07"


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.content.decode().split("\n") if line]


async def export(client: httpx.AsyncClient, **query: Any) -> httpx.Response:
    return await client.get(f"{API}/export", params={"state": "all", **query})


def test_transcripts_hold_what_was_said_exactly(on_both: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        talk = console.conversation([(ODD, ODD[::-1]), ("one", "first answer")])
        console.say(talk, "two", "second answer")
        [_, one, _], [_, first, _] = talk.said, talk.replies
        assert first is not None
        console.store.add_reply(talk.id, new_reply(one, "another answer", model="m2", replaces=first))
        console.store.rate(talk.id, first, "up", "fine")
        assert talk.replies[0] is not None
        console.store.rate(talk.id, talk.replies[0], "down", "call 030 1234567")
        empty = console.conversation([])

        answer = await export(admin, mask=False)

        [line] = lines_of(answer)
        assert answer.headers["content-disposition"] == 'attachment; filename="conversations.jsonl"'
        assert answer.headers["cache-control"] == "no-store"
        assert (line["id"], line["meta"]) == (talk.id, {"visitor": talk.visitor})
        assert [(turn["role"], turn["text"], turn.get("author")) for turn in line["turns"]] == [
            ("user", ODD, None),
            ("agent", ODD[::-1], f"model:{MODEL}"),
            ("user", "one", None),
            ("agent", "another answer", "model:m2"),  # in the place of the first
            ("user", "two", None),
            ("agent", "second answer", f"model:{MODEL}"),
        ]
        assert (line["turns"][1]["rating"], line["turns"][1]["comment"]) == ("down", "call 030 1234567")
        assert [render_transcript(each) for each in read_lines(answer.content.splitlines(), "x")] == [
            line for line in answer.content.decode().split("\n") if line
        ]
        kept = {row.text: row.created_at for row in rows_of(console, talk)}
        assert [datetime.fromisoformat(turn["at"]) for turn in line["turns"]] == [
            kept[turn["text"]] for turn in line["turns"]
        ]
        again = await admin.post(f"{API}/imports?name=x", content=answer.content)
        assert again.status_code == 201, again.text
        with reading(console.db) as connection:
            assert connection.scalar(select(ImportedTranscript.transcript)) == line
        assert empty.id not in answer.text

    on_both(test)


def rows_of(console: TestConsole, talk: Talk) -> list[Any]:
    with reading(console.db) as connection:
        return list(connection.execute(select(Message).where(Message.conversation_id == talk.id)))


def test_exports_are_masked_but_for_admins_who_say_so(on_both: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        admin, reviewer = await console.sign_in("admin"), await console.sign_in()
        await admin.post(f"{API}/masked_names", json={"name": "Zoe"})
        talk = console.conversation([("I am zoe, zoe@x.example", "Call 030 1234567, Zoe")])
        more = console.conversation([("again", "yes")], visitor=talk.visitor)
        other = console.conversation([("4111 1111 1111 1111", "no")])
        assert talk.replies[0] is not None
        console.store.rate(talk.id, talk.replies[0], "down", "says Zoe")
        with writing(console.db) as connection:
            verdict = {"labels": ["x"], "corrected": "Hello Zoe!", "created_at": datetime.now(UTC)}
            verdict |= {"updated_at": datetime.now(UTC), "operator_id": "o", "verdict": "bad"}
            connection.execute(insert(Verdict).values(message_id=talk.replies[0], **verdict))

        for wanted in ("jsonl", "csv", "reviewed"):
            for client in (admin, reviewer):
                answer = await export(client, format=wanted)
                assert answer.status_code == 200
                assert "zoe" not in answer.text.casefold()
                assert talk.visitor not in answer.text
                assert "[name]" in answer.text
                assert "[phone]" in answer.text
                assert "[email]" in answer.text
            assert (await export(reviewer, format=wanted, mask=False)).status_code == 403
            assert "Zoe" in (await export(admin, format=wanted, mask=False)).text
        masked = {line["id"]: line["meta"]["visitor"] for line in lines_of(await export(reviewer))}
        assert masked[talk.id] == masked[more.id] != masked[other.id]
        reviewed = lines_of(await export(admin, format="reviewed", mask=False))
        assert [line["meta"]["visitor"] for line in reviewed] == [masked[talk.id]]
        entries = audited(console, "conversations.export")
        assert [entry.details["masked"] for entry in entries[:3]] == [True, True, False]
        assert entries[0].details == {"format": "jsonl", "masked": True, "filters": ["state"]}
        assert {entry.operator for entry in entries} == {"admin", "reviewer"}

    on_both(test)


def test_an_export_holds_what_the_filters_say_in_one_order(on_both: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        reviewer = await console.sign_in()
        talks = [console.conversation([(f"question {n}", f"answer {n}")]) for n in range(7)]
        for talk in talks[:3]:
            assert talk.replies[0] is not None
            console.store.rate(talk.id, talk.replies[0], "down", None)
        with writing(console.db) as connection:
            closed = update(Conversation).where(Conversation.id == talks[0].id)
            connection.execute(closed.values(closed_at=datetime.now(UTC)))

        def ids(answer: httpx.Response) -> list[str]:
            return [line["id"] for line in lines_of(answer)]

        everything = sorted(talk.id for talk in talks)
        assert ids(await export(reviewer)) == everything
        assert ids(await export(reviewer, rating="down")) == sorted(talk.id for talk in talks[:3])
        assert ids(await export(reviewer, rating="down", state="open")) == sorted(t.id for t in talks[1:3])
        assert ids(await export(reviewer, q="question 5")) == [talks[5].id]
        assert ids(await export(reviewer, q="nothing like it")) == []
        assert ids(await export(reviewer, mine=True)) == []
        assert (await export(reviewer)).content == (await export(reviewer)).content
        for wrong in (
            {"sort": "x"},
            {"format": "xml"},
            {"mask": "maybe"},
            {"limit": 5},
            {"rating": "sideways"},
        ):
            assert (await export(reviewer, **wrong)).status_code == 400, wrong

    on_both(test)


def test_a_table_is_harmless_in_a_spreadsheet(on_both: Callable[[Test], None]) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        dangerous = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1", "=cmd|' /C calc'!A0"]
        texts = [*dangerous, 'say "hi", Ann', "two\r\nlines", "plain", ODD]
        talk = console.conversation([(each, f"re: {each}") for each in texts])
        assert talk.replies[0] is not None
        console.store.add_reply(talk.id, new_reply(talk.said[0], "again", replaces=talk.replies[0]))
        console.store.rate(talk.id, talk.replies[1] or "", "up", "=HYPERLINK(1)")

        answer = await export(admin, format="csv", mask=False)

        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        head, *rows = csv.reader(io.StringIO(answer.content.decode(), newline=""), strict=True)
        assert head == list(COLUMNS)
        found = [dict(zip(head, row, strict=True)) for row in rows]
        assert [row["text"] for row in found if row["role"] == "user"] == [
            f"'{each}" if each in dangerous or each == ODD else each for each in texts
        ]
        assert [row["seq"] for row in found] == [str(n) for n in range(1, 2 * len(texts) + 2)]
        assert [row["seq"] for row in found if row["superseded"]] == ["2"]
        assert [row["comment"] for row in found if row["rating"]] == ["'=HYPERLINK(1)"]
        assert not [cell for row in rows for cell in row if cell[:1] in "=+-@\t\r\n" and cell]
        assert answer.content.endswith(b"\r\n")

    on_both(test)


def test_what_is_exported_is_what_retraining_reads(on_both: Callable[[Test], None], tmp_path: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        questions = [f"question number {word}?" for word in ("one", "two", "three", "four", "five", "six")]
        talks = {each: console.conversation([(each, f"Answer to {each}")]) for each in questions}
        unsure = console.conversation(
            [("hard one?", "A person will answer.")], finish_reason="abstained", withheld="The wrong thing."
        )
        good, bad, corrected, seen, by_person, _ = talks.values()
        with writing(console.db) as connection:

            def judge(talk: Talk, verdict: str, **values: Any) -> None:
                now = datetime.now(UTC)
                made = {"labels": [], "created_at": now, "updated_at": now, "operator_id": "o", **values}
                connection.execute(
                    insert(Verdict).values(message_id=talk.replies[0], verdict=verdict, **made)
                )

            judge(good, "good")
            judge(bad, "bad", labels=["tone"])
            judge(corrected, "bad", corrected="The museum opens at nine.", labels=["wrong", "tone"])
            judge(unsure, "bad", corrected="The right thing.")
            done = update(Conversation).where(Conversation.id == seen.id)
            connection.execute(done.values(reviewed_at=datetime.now(UTC)))
            said = {"id": new_id(), "conversation_id": by_person.id, "seq": 3, "role": "agent"}
            said |= {"text": "I am a person.", "created_at": datetime.now(UTC), "superseded": False}
            connection.execute(insert(Message).values(operator_id="op7", **said))

        answer = await export(admin, format="reviewed")

        found = {line["turns"][0]["text"]: line["turns"] for line in lines_of(answer)}
        assert set(found) == {*questions[:5], "hard one?"}
        keys = ("text", "author", "verdict", "corrected", "labels", "reviewed", "weight")

        def replies(question: str) -> list[dict[str, Any]]:
            return [{key: turn[key] for key in keys if key in turn} for turn in found[question][1:]]

        model = {"author": f"model:{MODEL}"}
        assert replies(questions[0]) == [
            {"text": f"Answer to {questions[0]}", "verdict": "good", "labels": [], "reviewed": True, **model}
        ]
        assert replies(questions[1])[0]["labels"] == ["tone"]
        assert replies(questions[2])[0]["corrected"] == "The museum opens at nine."
        assert replies(questions[3]) == [{"text": f"Answer to {questions[3]}", "reviewed": True, **model}]
        assert replies(questions[4])[1] == {
            "text": "I am a person.",
            "author": "operator:op7",
            "reviewed": False,
        }
        assert replies("hard one?")[0]["text"] == "The wrong thing."
        file = tmp_path / "reviewed.jsonl"
        file.write_bytes(answer.content)
        dataset = build(Sources([file], []), DataConfig(held_out=0, replay_least=0), FilterConfig(), MODEL)
        kinds = {key: value for key, value in dataset.counts.items() if key.startswith("reply")}
        assert kinds == {
            "reply used: good, reviewed": 1,
            "reply used: corrected, reviewed": 2,
            "reply used: operator, reviewed": 1,
            "reply: marked bad": 1,
            "reply: said by a model, approved by nobody": 2,
        }

    on_both(test)


def test_an_abstention_that_was_right_is_not_learned_as_a_reply(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        talk = console.conversation([("hard?", "A person will answer.")], finish_reason="abstained")
        with writing(console.db) as connection:
            verdict = {"labels": [], "created_at": datetime.now(UTC), "updated_at": datetime.now(UTC)}
            verdict |= {"operator_id": "o", "verdict": "good", "message_id": talk.replies[0]}
            connection.execute(insert(Verdict).values(verdict))

        [line] = lines_of(await export(admin, format="reviewed"))

        assert (line["turns"][1]["text"], line["turns"][1]["weight"]) == ("A person will answer.", 0.0)

    run(console_over(tmp_path, tiny_model_dir), test)


def test_no_page_and_no_batch_loses_or_doubles_a_conversation(
    on_both: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.console.exports.PAGE", 4)
    monkeypatch.setattr("server.console.exports.MESSAGES", 5)

    async def test(console: TestConsole) -> None:
        sizes = {console.conversation([("a", "b")] * n).id: 2 * n for n in (1, 4, 2, 1, 1, 3, 1, 2, 5)}

        made = Export(console.db, "jsonl")
        pieces = list(made.pieces())

        lines = [json.loads(line) for line in b"".join(pieces).splitlines()]
        assert [(line["id"], len(line["turns"])) for line in lines] == sorted(sizes.items())
        assert len(pieces) > 4
        assert (made.conversations, made.messages) == (9, sum(sizes.values()))

    on_both(test)


# --- the command line -------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with fresh_database(request.param, tmp_path) as found:
        upgrade(found)
        yield found


def talked(url: str) -> tuple[str, str]:
    """A visitor and their conversation."""
    db = database.connect(url)
    store = Store(db)
    visitor = store.new_visitor().visitor_id
    conversation = store.open_conversation(visitor)
    turn = store.add_user_turn(conversation, "1", "I am a@b.example", {})
    store.add_reply(conversation, new_reply(turn.message_id, "Hello"))
    db.dispose()
    return visitor, conversation


def test_export_command(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visitor, _ = talked(url)
    file, where = tmp_path / "out.jsonl", ["--database-url", url]

    assert main(["export", "-o", str(file), *where]) == 0
    assert capsys.readouterr().out == f"{file}: 1 conversations, 2 messages, personal data masked\n"
    assert json.loads(file.read_text())["turns"][0]["text"] == "I am [email]"
    assert file.stat().st_mode & 0o777 == 0o600
    assert main(["export", "-o", str(file), "--unmasked", *where]) == 1
    assert "--force" in capsys.readouterr().err
    assert "[email]" in file.read_text()
    assert main(["export", "-o", str(file), "--unmasked", "--force", "--json", *where]) == 0
    report = {"file": str(file), "format": "jsonl", "masked": False, "conversations": 1, "messages": 2}
    assert json.loads(capsys.readouterr().out) == report
    line = json.loads(file.read_text())
    assert (line["turns"][0]["text"], line["meta"]["visitor"]) == ("I am a@b.example", visitor)
    packed = tmp_path / "out.csv.gz"
    assert main(["export", "-o", str(packed), "--format", "csv", "--q", "nothing", *where]) == 0
    assert gzip.decompress(packed.read_bytes()).decode() == ",".join(COLUMNS) + "\r\n"
    assert main(["export", "-o", str(tmp_path / "x"), "--rating", "sideways", "--from", "now", *where]) == 1
    told = capsys.readouterr().err
    assert "--rating" in told
    assert "--from: write a time as " in told
    assert main(["export", "-o", str(tmp_path / "none" / "x"), *where]) == 1
    assert sorted(each.name for each in tmp_path.glob("*out*")) == ["out.csv.gz", "out.jsonl"]
    assert not list(tmp_path.glob(".*"))


def test_every_filter_has_its_option() -> None:
    names = {field.alias or name for name, field in Filters.model_fields.items()} - {"mine"}

    assert set(__main__._FILTERS) == names


def test_erase_command(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visitor, conversation = talked(url)
    second, _ = talked(url)
    where = ["--database-url", url]

    assert main(["erase", "nobody", *where]) == 1
    assert capsys.readouterr().err == "there is no such visitor\n"
    assert main(["export", "-o", str(tmp_path / "taken.jsonl"), *where]) == 0
    capsys.readouterr()
    assert main(["erase", "--conversation", conversation, *where]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"visitor {visitor} is erased",
        "       1  conversations",
        "       2  messages",
        "       1  generations",
        "exports since the visitor came, which may hold it: 1",
    ]
    assert main(["erase", second, "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["messages"] == 2
    assert main(["erase", second, *where]) == 0
    assert capsys.readouterr().out == f"visitor {second} is erased\n"
    assert main(["erase", "--conversation", conversation, *where]) == 1
    db = database.connect(url)
    with reading(db) as connection:
        assert connection.execute(select(Message)).all() == []
        entries = connection.execute(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [(each.operator, each.action, each.subject) for each in entries] == [
        (None, "conversations.export", None),
        (None, "visitor.erase", visitor),
        (None, "visitor.erase", second),
    ]
    db.dispose()


async def until_it_ends(chat: ChatClient) -> None:
    while True:
        await chat.receive()


def test_erasing_ends_the_chats_of_the_visitor_at_once(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Over real sockets: the chat is closed, and its token opens nothing any more."""
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"

    async def test(server: LiveServer) -> None:
        async with (
            asyncio.timeout(60),
            chatting(server.address) as chat,
            httpx.AsyncClient(base_url=server.address, headers={"origin": server.address}) as client,
        ):
            ready = await chat.hello()
            await chat.say("Hello", decoding="greedy")
            await chat.reply()
            login = {"name": "ana", "password": PASSWORD}
            told = (await client.post("/api/operator/login", json=login)).json()
            headers = {"x-csrf-token": told["csrf"]}
            whom = {"conversation": ready.conversation}
            erased = await client.post("/api/operator/erase", json=whom, headers=headers)
            assert erased.json()["messages"] == 2
            with pytest.raises(ConnectionClosed) as closed:
                await until_it_ends(chat)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == Close.UNAUTHENTICATED
        async with chatting(server.address) as again:
            await again.send(Hello(token=ready.token))
            refused = await again.receive()
            assert isinstance(refused, Error)
            assert refused.code == "unauthenticated"

    with serving(url, tiny_model_dir) as server:
        Accounts(database.connect(url)).add("ana", "admin", PASSWORD)
        asyncio.run(test(server))
