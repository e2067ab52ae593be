"""Retraining from the console: from corrections to another model that answers, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, func, select, update

from chatbot.model_directory import ModelDirectoryError, find_model, load, seal
from chatbot.options import DecodingOptions
from chatbot.transcripts import read_transcripts
from chatbot.turn_index import TurnIndex
from server import database, models
from server.console import job_process, job_runner, job_settings, jobs
from server.console.accounts import Accounts, Identity
from server.console.job_files import LINE, Attempts, Places, Told, forget_texts, tail
from server.console.job_runner import JobRunner, Watch
from server.console.jobs import SILENT, JobRefused
from server.console.model_list import listed, outcome_of
from server.database import reading, writing
from server.settings import Settings
from server.tables import AuditEntry, Job, Pair
from tests.console_client import PASSWORD, TestConsole, console_over, new_reply, run
from tests.databases import fresh_database, upgrade
from tests.live_server import ROOT, server_process
from tests.models import seal_tiny
from tests.shop import ANSWER, ASKED, QUICK, Shop, chats, open_shop
from training.retrain_config import RetrainConfig

API = "/api/operator"
PATIENCE = 300.0
WHO = Identity("o1", "ann", "admin")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return open_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database; what takes a minute is tried on the second kind only where there is time."""
    with fresh_database(request.param, tmp_path) as found:
        upgrade(found)
        yield found


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server looks after its processes more often than once a second."""
    monkeypatch.setattr(job_runner, "POLL", 0.1)


async def until(client: httpx.AsyncClient, job: str, *states: str) -> tuple[dict[str, Any], list[str]]:
    """The job once it is in one of the states, and the phases that were seen on the way."""
    phases: list[str] = []
    async with asyncio.timeout(PATIENCE):
        while True:
            found = (await client.get(f"{API}/jobs/{job}")).json()
            phase = (found["progress"] or {}).get("phase")
            if phase is not None and phase not in phases:
                phases.append(phase)
            if found["state"] in states or phase in states:
                return found, phases
            await asyncio.sleep(0.1)


def texts_in(directory: Path) -> list[str]:
    """Files of a job in which somebody's words are."""
    found = []
    for path in directory.rglob("*"):
        if path.is_file():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if any(text.encode() in data for text in (*ASKED, ANSWER)):
                found.append(path.name)
    return found


# --- all of it --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_corrections_become_a_model_that_is_promoted_and_rolled_back(
    shop: Shop, url: str, tmp_path: Path
) -> None:
    async def test(console: TestConsole) -> None:
        admin, reviewer = await console.sign_in("admin"), await console.sign_in("reviewer")
        talks = await asyncio.to_thread(chats, console.db, shop.fingerprint, 24)
        asked = await admin.post(f"{API}/jobs", json={"settings": QUICK})
        assert asked.status_code == 200, asked.text
        job = asked.json()["id"]
        directory = tmp_path / "jobs" / job

        learning, _ = await until(reviewer, job, "training", "done", "failed")
        assert learning["state"] == "running", learning
        assert texts_in(directory)
        [row] = (await reviewer.get(f"{API}/jobs")).json()["jobs"]
        assert (row["id"], row["operator"], row["base"]) == (job, "admin", shop.fingerprint)
        pid = await asyncio.to_thread(pid_of, console, job)
        assert os.getpriority(os.PRIO_PROCESS, pid) >= job_process.NICE
        assert os.getpgid(pid) == pid != os.getpgid(0)

        done, phases = await until(reviewer, job, "done", "failed")
        assert done["error"] is None, done
        assert done["result"]["passed"], done["result"]["reasons"]
        assert set(phases) <= documented_phases()
        assert [point["step"] for point in done["curve"]][-1] == len(done["curve"]) > 5
        losses = [point["loss"] for point in done["curve"]]
        half = len(losses) // 2
        assert mean(losses[half:]) < mean(losses[:half])
        assert any("the gate is passed" in line for line in done["log"])
        assert texts_in(directory) == []

        [candidate] = [m for m in (await reviewer.get(f"{API}/models")).json()["models"] if m["base"]]
        assert candidate["fingerprint"] == done["candidate"] != shop.fingerprint
        assert (candidate["gate"]["passed"], candidate["in_use"]) == (True, False)
        assert candidate["gate"]["reasons"] == done["result"]["reasons"]
        assert (tmp_path / "models" / f"{candidate['name']}.manifest.json").is_file()

        index = TurnIndex(tmp_path / "indexes" / f"{candidate['name']}.safetensors")
        assert index.model == done["candidate"]
        assert len(index) == sum(len(talk.turns) // 2 for talk in read_transcripts(shop.old))
        assert index.turn(0).file == shop.old.name
        assert texts_in(tmp_path / "indexes") == [], "what visitors said is found in the database"

        changed = (await reviewer.get(f"{API}/jobs/{job}/changes?limit=200")).json()
        assert len(changed["changes"]) == done["result"]["compared"]["changed"] > 0
        asked_for_milk = [c for c in changed["changes"] if c["before"][-1]["text"] in ASKED]
        # So small a model, trained for seconds, may stumble over the rest of it.
        said = [change["candidate_text"].startswith(ANSWER[:8]) for change in asked_for_milk]
        assert said.count(True) > len(said) / 2
        assert not any(change["base_text"].startswith(ANSWER[:8]) for change in asked_for_milk)

        assert await answers_of(console) == shop.fingerprint
        refused = await reviewer.post(f"{API}/models/promote", json={"model": done["candidate"]})
        assert refused.status_code == 403
        promoted = await admin.post(f"{API}/models/promote", json={"model": done["candidate"]})
        assert promoted.json() == {
            "model": candidate["name"],
            "fingerprint": done["candidate"],
            "before": "base",
        }
        assert await answers_of(console, done["candidate"]) == done["candidate"]
        assert (await admin.get(f"{API}/models")).json()["previous"] == "base"
        assert (await admin.post(f"{API}/models/rollback")).json()["fingerprint"] == shop.fingerprint
        assert await answers_of(console, shop.fingerprint) == shop.fingerprint
        assert (await admin.post(f"{API}/models/rollback")).status_code == 409

        explained = await explanation_of(console, admin, talks[0], done["candidate"])
        assert {near["source"] for near in explained["nearest"]} <= {"review", "training"}
        assert len(explained["nearest"]) == 5
        assert explained["compared"] == 24 + len(index)

        actions = [(e["action"], e["subject"]) for e in (await admin.get(f"{API}/audit")).json()["entries"]]
        assert actions[:4] == [
            ("model.rollback.failed", None),
            ("model.rollback", None),
            ("model.rollback", None),
            ("model.promote", done["candidate"]),
        ]
        assert ("job.queue", job) in actions

    run(console_over(url=url, **shop.settings(tmp_path)), test)


async def explanation_of(
    console: TestConsole, client: httpx.AsyncClient, conversation: str, model: str
) -> dict[str, Any]:
    """What is told of a new reply in a conversation, logged as that model's."""
    turn = console.store.add_user_turn(conversation, "new", "A mocha, please.", {})
    kept = console.store.add_reply(conversation, new_reply(turn.message_id, "Which size?", model=model))
    found = await client.get(f"{API}/messages/{kept.message_id}/explanation")
    assert found.status_code == 200, found.text
    told: dict[str, Any] = found.json()
    return told


def documented_phases() -> set[str]:
    page = (ROOT / "docs/operators.md").read_text(encoding="utf-8")
    table = page.partition("### What happens")[2].partition("\n- ")[0]
    return {
        phase for row in re.findall(r"^\| ([a-z ,]+) \|", table, re.MULTILINE) for phase in row.split(", ")
    }


def pid_of(console: TestConsole, job: str) -> int:
    found = jobs.job(console.db, job)
    assert found is not None
    assert found.pid is not None
    return found.pid


async def answers_of(console: TestConsole, wanted: str | None = None) -> str:
    """The fingerprint of the model that answers, once it is the wanted one."""
    for _ in range(600):
        found = console.desk.engine.speaker.fingerprint
        if wanted in (None, found):
            break
        await asyncio.sleep(0.1)
    return found


@contextmanager
def in_place_of_a_retraining(code: str) -> Iterator[None]:
    """Jobs whose process does no more than what `code` says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "_retraining", lambda self, record: ["timeit", "-n1", "-r1", code])
        yield


@contextmanager
def process_of(code: str) -> Iterator[None]:
    """The same, with the file that the process tells its progress in for `{progress!r}`."""

    def arguments(self: Watch, record: jobs.Record) -> list[str]:
        return ["timeit", "-n1", "-r1", code.format(progress=str(record.directory / "retrain.jsonl"))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "_retraining", arguments)
        yield


AT_WORK = """
import json, sys, time
with open({progress!r}, "a") as stream:
    print(json.dumps({{"phase": "training", "step": 1, "steps": 9, "loss": 2.5}}), file=stream, flush=True)
time.sleep(300)
"""
"""A process that is busy until it is ended."""


@pytest.mark.timeout(200)
def test_a_job_is_called_off_and_the_next_one_begins(shop: Shop, tmp_path: Path) -> None:
    def at_work(self: Watch, record: jobs.Record) -> list[str]:
        code = AT_WORK.format(progress=str(record.directory / "retrain.jsonl"))
        return ["timeit", "-n1", "-r1", code]

    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        await asyncio.to_thread(chats, console.db, shop.fingerprint, 2)
        await called_off(console, admin, tmp_path, {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "_retraining", at_work)
        run(console_over(tmp_path, **shop.settings(tmp_path)), test)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_retraining_ends_when_it_is_told_to(shop: Shop, tmp_path: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        await asyncio.to_thread(chats, console.db, shop.fingerprint, 6)
        ended = await called_off(console, admin, tmp_path, QUICK | {"epochs": 5000})
        assert any("stopped" in line for line in ended["log"]), "it was told, and not killed"

    run(console_over(tmp_path, **shop.settings(tmp_path)), test)


async def called_off(
    console: TestConsole, admin: httpx.AsyncClient, folder: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Of three jobs the first two are cancelled, while one works and the other waits, and the third begins.
    The first, when it has ended.
    """
    asked = {"settings": settings}
    first, second, third = [(await admin.post(f"{API}/jobs", json=asked)).json()["id"] for _ in range(3)]
    begun, _ = await until(admin, first, "training", "failed")
    assert begun["state"] == "running", begun
    assert texts_in(folder / "jobs" / first)

    waiting = (await admin.post(f"{API}/jobs/{second}/cancel")).json()
    assert waiting["state"] == "cancelled"
    pid = await asyncio.to_thread(pid_of, console, first)
    ending = (await admin.post(f"{API}/jobs/{first}/cancel")).json()
    assert (ending["state"], ending["cancelling"]) == ("running", True)
    ended, _ = await until(admin, first, "cancelled")
    assert ended["candidate"] is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert texts_in(folder / "jobs" / first) == []
    assert (await admin.post(f"{API}/jobs/{first}/cancel")).status_code == 409

    following, _ = await until(admin, third, "reading", "training", "failed")
    assert following["state"] == "running"
    await admin.post(f"{API}/jobs/{third}/cancel")
    await until(admin, third, "cancelled")
    return ended


@pytest.mark.timeout(200)
def test_wrong_settings_are_refused_at_once_by_name(shop: Shop, tmp_path: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        given = {"gate.blue": 1, "filters.language": "en", "filters.alike": -1, "epochs": "many", "seed": 2}
        refused = await admin.post(f"{API}/jobs", json={"settings": given})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "bad_settings"
        assert {each["field"] for each in error["fields"]} == {"gate.blue", "filters.alike", "epochs"}
        for each in error["fields"]:
            assert f"{each['field']}: {each['message']}" in error["message"]
        assert "greater than or equal to 0" in error["message"]
        assert (await admin.get(f"{API}/jobs")).json()["jobs"] == [], "nothing was queued"
        assert (await admin.get(f"{API}/audit?action=job.queue")).json()["entries"] == []

    run(console_over(tmp_path, **shop.settings(tmp_path)), test)


def test_the_check_of_settings_is_that_of_the_retraining_itself() -> None:
    """The defaults of every setting that the console may send are good, and each is checked."""
    settings = {
        name: value
        for name, value in flat(RetrainConfig().model_dump(exclude={"model"})).items()
        if value is not None and not isinstance(value, tuple)
    }
    assert job_settings.wrong(settings) == []
    assert job_settings.wrong({}) == []
    nonsense = dict.fromkeys(settings, "nonsense") | {"nothing": 1}
    found = {each.field for each in job_settings.wrong(nonsense)}
    assert found == nonsense.keys() - {"device"}  # what devices there are is for torch to say


def flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def test_settings_that_cannot_be_checked_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_settings, "ROOT", Path("/"))  # where there is no package `training`
    with pytest.raises(JobRefused, match="could not be checked"):
        job_settings.wrong({"seed": 1})


def test_settings_are_checked_without_torch() -> None:
    """Starting it takes seconds, for which somebody would wait."""
    code = "import sys, training.settings_command as _; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.timeout(200)
def test_why_a_process_fails_is_told_in_its_words(engine: Engine, told: Settings) -> None:
    job = queued(engine, told)
    with in_place_of_a_retraining("import sys; sys.exit('line 7: not a transcript')"):
        found = worked_through(JobRunner(engine, told), engine, job)
    assert found.state == "failed"
    assert "line 7: not a transcript" in (found.result or {})["error"]
    assert not (found.directory / "reviewed.jsonl.gz").exists()


@pytest.mark.parametrize(
    "where", ["a folder that cannot be made", pytest.param("a broken file", marks=pytest.mark.slow)]
)
def test_a_candidate_without_an_index_is_a_candidate_all_the_same(
    engine: Engine, told: Settings, tiny_model_dir: Path, tmp_path: Path, where: str
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("no transcript\n")
    other = {"indexes_dir": broken / "x"} if where.endswith("made") else {"replay_files": (broken,)}
    job = queued(engine, told)
    found = jobs.claim(engine, told.jobs_dir)
    assert found is not None
    places = Places.of(found)
    places.make()
    seal_again(tiny_model_dir, places.candidate, gate=gate(True), figures={"base": {}})

    ended = worked_through(JobRunner(engine, told.model_copy(update=other)), engine, job)

    assert ended.state == "done"
    result = ended.result or {}
    assert ("Not a directory" if where.endswith("made") else "broken.jsonl:1") in result["index_error"]
    assert (result["passed"], result["model"]) == (True, places.name)
    assert "not in the models' directory" in result["changes_error"], "it went on to the comparison"


def test_what_the_gate_refuses_gets_no_index(engine: Engine, told: Settings, tiny_model_dir: Path) -> None:
    job = queued(engine, told)
    found = jobs.claim(engine, told.jobs_dir)
    assert found is not None
    places = Places.of(found)
    places.make()
    seal_again(tiny_model_dir, places.candidate, gate=gate(False), figures={"base": {}})

    ended = worked_through(JobRunner(engine, told), engine, job)

    assert ended.state == "done"
    assert "index_error" not in (ended.result or {})
    assert not told.indexes.exists()


def worked_through(runner: JobRunner, db: Engine, job: str) -> jobs.Record:
    """The job when it has ended; nothing else looks after it."""
    limit = time.monotonic() + PATIENCE
    while True:
        runner.look()
        found = jobs.job(db, job)
        assert found is not None
        if found.state not in ("queued", "running"):
            return found
        assert time.monotonic() < limit
        time.sleep(0.02)


# --- servers that die -------------------------------------------------------------------------------------


@contextmanager
def serving(url: str, told: dict[str, Any]) -> Iterator[httpx.Client]:
    """A server in a process of its own, and an admin who is signed in; it is killed in the end."""
    flags = ["--jobs-dir", str(told["jobs_dir"]), "--job-threads", "1", "--device", "cpu"]
    flags += ["--replay-files", ",".join(map(str, told["replay_files"]))]
    flags += ["--dev-files", ",".join(map(str, told["dev_files"]))]
    with server_process(url, told["models"], *flags) as server:
        with httpx.Client(base_url=server.address, headers={"origin": server.address}, timeout=60) as client:
            found = client.post(f"{API}/login", json={"name": "ann", "password": PASSWORD})
            client.headers["x-csrf-token"] = found.json()["csrf"]
            yield client
        server.kill()


def progress(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "retrain.jsonl").read_text().splitlines()]


def wait_for(client: httpx.Client, job: str, wanted: Any) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found: dict[str, Any] = client.get(f"{API}/jobs/{job}").json()
        if wanted(found):
            return found
        assert found["state"] in ("queued", "running"), found
        time.sleep(0.2)
    raise AssertionError(f"it has not come about: {found}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_servers_and_processes_lose_no_retraining(shop: Shop, url: str, tmp_path: Path) -> None:
    """The server is killed and the process goes on; then both are, and another process goes on from the last
    checkpoint.
    """
    told = shop.settings(tmp_path)
    db = database.connect(url)
    Accounts(db).add("ann", "admin", PASSWORD)
    chats(db, shop.fingerprint, 12)
    asked = {"settings": QUICK | {"checkpoint_minutes": 0, "epochs": 20}}
    with serving(url, told) as client:
        job = client.post(f"{API}/jobs", json=asked).json()["id"]
        wait_for(client, job, lambda found: (found["progress"] or {}).get("step"))
    record = jobs.job(db, job)
    assert record is not None
    assert record.state == "running"
    first = job_process.found(record.directory)
    assert first is not None
    assert job_process.lives(record.directory)

    with serving(url, told) as client:
        before = len(progress(record.directory))
        wait_for(client, job, lambda found: len(found["curve"]) > before)
        assert job_process.found(record.directory) == first  # the same process is watched over

    assert job_process.send(first, signal.SIGKILL)
    while job_process.lives(record.directory):
        time.sleep(0.05)
    steps = [line.get("step", 0) for line in progress(record.directory)]
    assert max(steps) > 1

    with serving(url, told) as client:
        done = wait_for(client, job, lambda found: found["state"] == "done")
        assert done["candidate"]
        second = job_process.found(record.directory)
        assert second is not None
        assert second.pid != first.pid
    lines = progress(record.directory)
    again = lines[[n for n, line in enumerate(lines) if line["phase"] == "reading"][1] :]
    resumed = [line["step"] for line in again if line["phase"] == "training"]
    assert resumed[0] > 1  # from a checkpoint, not from the beginning
    assert resumed[0] <= max(steps) + 1
    with reading(db) as connection:
        assert connection.scalar(select(func.count()).select_from(Pair).where(Pair.job_id == job))
    db.dispose()


# --- the queue --------------------------------------------------------------------------------------------


@pytest.fixture
def told(shop: Shop, tmp_path: Path) -> Settings:
    return Settings(**shop.settings(tmp_path))


def queued(db: Engine, told: Settings) -> str:
    return jobs.queue(db, told, "tw-0", WHO, {}, use_imports=False).id


def test_one_runs_at_a_time_however_many_servers_ask(engine: Engine, told: Settings) -> None:
    waiting = [queued(engine, told) for _ in range(3)]
    claimed: list[str] = []
    barrier = threading.Barrier(6)

    def server() -> None:
        barrier.wait()
        for _ in range(4):
            found = jobs.claim(engine, told.jobs_dir)
            if found is not None:
                claimed.append(found.id)

    for expected in waiting:
        threads = [threading.Thread(target=server) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert claimed == [expected]  # who waits longest
        with writing(engine) as connection:
            assert jobs.end(connection, expected, "failed", {"error": "no"})
            assert not jobs.end(connection, expected, "done", None)  # it has ended already
        claimed.clear()
        barrier.reset()


def test_a_job_of_a_machine_that_is_gone_does_not_stand_in_the_way(engine: Engine, told: Settings) -> None:
    lost, cancelled = queued(engine, told), queued(engine, told)
    jobs.claim(engine, told.jobs_dir)
    jobs.report(engine, lost, {"phase": "training"}, 1)
    assert jobs.fail_silent(engine) is None  # it was heard of just now

    silence(engine, lost)
    runner = JobRunner(engine, told)
    assert not runner.look()  # its directory is not here: it is given up
    found = jobs.job(engine, lost)
    assert found is not None
    assert found.state == "failed"
    assert "not been heard of" in (found.result or {})["error"]

    jobs.claim(engine, told.jobs_dir)
    assert jobs.cancel(engine, cancelled, WHO).state == "running"  # type: ignore[union-attr]
    silence(engine, cancelled)
    assert jobs.cancel(engine, cancelled, WHO).state == "cancelled"  # type: ignore[union-attr]


def silence(db: Engine, job: str) -> None:
    at = (datetime.now(UTC) - SILENT - timedelta(seconds=1)).isoformat()
    with writing(db) as connection:
        connection.execute(update(Job).where(Job.id == job).values(progress={"at": at}))


def test_the_queue_is_bounded_and_says_what_is_missing(engine: Engine, told: Settings, shop: Shop) -> None:
    with pytest.raises(JobRefused, match="--replay-files and --dev-files"):
        queued(engine, told.model_copy(update={"replay_files": (), "dev_files": ()}))
    with pytest.raises(JobRefused, match=r"no such file on the server: .*gone\.jsonl"):
        queued(engine, told.model_copy(update={"dev_files": (shop.place / "gone.jsonl",)}))
    for _ in range(jobs.MOST_QUEUED):
        queued(engine, told)
    with pytest.raises(JobRefused, match="waiting already"):
        queued(engine, told)
    with reading(engine) as connection:
        assert connection.scalar(select(func.count()).select_from(AuditEntry)) == jobs.MOST_QUEUED


def test_only_admins_change_anything_and_only_what_there_is(shop: Shop, tmp_path: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin, reviewer = await console.sign_in("admin"), await console.sign_in("reviewer")
        for path in ("/jobs", "/jobs/x/cancel", "/models/promote", "/models/rollback"):
            answer = await reviewer.post(f"{API}{path}", json={"model": "x"})
            assert answer.status_code == 403, path
        refused = await admin.post(f"{API}/jobs", json={})
        assert refused.status_code == 409
        assert "--dev-files" in refused.json()["error"]["message"]
        assert "--dev-files" in (await reviewer.get(f"{API}/jobs")).json()["missing"]
        wrong: tuple[dict[str, Any], ...] = (
            {"settings": {"a;b": 1}},
            {"settings": {"a": [1]}},
            {"settings": {"a": "x\ny"}},
            {"setings": {}},
            {"use_imports": 1},
            {"settings": {f"k{n}": n for n in range(51)}},
        )
        for body in wrong:
            assert (await admin.post(f"{API}/jobs", json=body)).status_code == 400, body
        assert (await admin.get(f"{API}/jobs?page=1")).status_code == 400
        for method, path in (
            ("GET", "/jobs/none"),
            ("GET", "/jobs/%00"),
            ("POST", "/jobs/none/cancel"),
            ("GET", "/jobs/none/changes"),
            ("POST", "/jobs/none/pairs/next"),
        ):
            assert (await admin.request(method, f"{API}{path}")).status_code == 404, path

    settings = shop.settings(tmp_path) | {"dev_files": ()}
    run(console_over(tmp_path, **settings), test)


# --- models -----------------------------------------------------------------------------------------------


def gate(passed: bool) -> dict[str, Any]:
    reasons = [{"passed": True, "check": "secrets", "text": "0 told"}]
    reasons.append({"passed": passed, "check": "orders, BLEU", "text": "40 -> 30"})
    return {"passed": passed, "reasons": reasons}


def seal_again(source: Path, target: Path, **metrics: Any) -> str:
    found = load(source)
    return seal(
        target,
        model=found.model,
        tokenizer=found.tokenizer,
        defaults=DecodingOptions(max_tokens=12),
        metrics=metrics,
        card="# Again\n",
    )


def test_what_the_gate_refuses_takes_force(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    base = seal_tiny(folder / "base", tiny_tokenizer, seed=1)
    seal_tiny(tmp_path / "raw", tiny_tokenizer, seed=2)
    refused = seal_again(tmp_path / "raw", folder / "refused", base=base, gate=gate(False), secret="x")
    seal_tiny(folder / "other", tiny_tokenizer, seed=3)
    seal_tiny(tmp_path / "elsewhere", tiny_tokenizer, seed=4)
    (folder / "active").write_text("base\n")

    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        found = (await admin.get(f"{API}/models")).json()
        assert [(m["name"], m["in_use"]) for m in found["models"]] == [
            ("base", True),
            ("other", False),
            ("refused", False),
        ]
        assert (found["in_use"], found["previous"]) == (base, None)
        shown = found["models"][2]
        assert (shown["base"], shown["gate"]["passed"], shown["metrics"]) == (base, False, {})
        assert shown["gate"]["reasons"][1] == {"name": "orders, BLEU", "passed": False, "text": "40 -> 30"}

        for name in ("../elsewhere", str(tmp_path / "elsewhere"), "..", "none", "active", "other/"):
            assert (await admin.post(f"{API}/models/promote", json={"model": name})).status_code == 404
        answer = await admin.post(f"{API}/models/promote", json={"model": refused})
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "conflict"
        assert "orders, BLEU" in answer.json()["error"]["message"]
        assert "secrets" not in answer.json()["error"]["message"]
        assert (folder / "active").read_text() == "base\n"
        assert [
            e["action"] for e in (await admin.get(f"{API}/audit?action=model.promote")).json()["entries"]
        ] == []

        forced = await admin.post(f"{API}/models/promote", json={"model": refused, "force": True})
        assert forced.status_code == 200, forced.text
        assert await answers_of(console, refused) == refused
        [noted] = (await admin.get(f"{API}/audit?action=model.promote")).json()["entries"]
        assert (noted["operator"], noted["subject"]) == ("admin", refused)
        assert noted["details"] == {"name": "refused", "forced": True}

        (folder / "other" / "model.safetensors").write_bytes(b"damaged")
        damaged = await admin.post(f"{API}/models/promote", json={"model": "other"})
        assert damaged.status_code == 409
        assert (folder / "active").read_text() == "refused\n"
        [failed] = (await admin.get(f"{API}/audit?action=model.promote.failed")).json()["entries"]
        assert failed["details"]["name"] == "other"

    run(console_over(tmp_path, folder), test)


def test_the_newest_decision_on_a_model_counts_if_it_is_on_that_model(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    fingerprint = seal_again(tiny_model_dir, tmp_path / "m", base="tw-1", gate=gate(False))
    assert [each.fingerprint for each in listed(tmp_path)] == [fingerprint]
    again = tmp_path / "m.gate.json"
    for named, passed in ((fingerprint, True), ("tw-other", False)):
        again.write_text(json.dumps({"fingerprint": named, "gate": gate(True)}))
        [found] = listed(tmp_path)
        assert (found.gate or {})["passed"] is passed
    (tmp_path / "m" / "metrics.json").write_text(json.dumps({"gate": gate(True)}))
    again.unlink()
    assert listed(tmp_path)[0].gate is None  # not what was sealed


def test_a_model_is_taken_in_once_and_never_in_the_place_of_another(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for place, seed in ((tmp_path / "a/next", 1), (tmp_path / "b/next", 2)):
        place.parent.mkdir()
        seal_tiny(place, tiny_tokenizer, seed=seed)
    assert models.take_in(folder, tmp_path / "a/next") == "next"
    assert models.take_in(folder, tmp_path / "a/next") == "next"
    with pytest.raises(ModelDirectoryError, match="another 'next' already"):
        models.take_in(folder, tmp_path / "b/next")
    assert load(folder / "next").fingerprint == load(tmp_path / "a/next").fingerprint
    with pytest.raises(ModelDirectoryError, match="it is one model"):
        models.take_in(folder / "next", tmp_path / "b/next")


def test_the_only_model_stays_in_use_when_another_is_put_beside_it(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """As a retraining does in the directory of the model that ships, which has no `active`."""
    folder = tmp_path / "models"
    first = seal_tiny(folder / "first", tiny_tokenizer, seed=1)
    seal_tiny(tmp_path / "next", tiny_tokenizer, seed=2)
    assert models.take_in(folder, tmp_path / "next") == "next"
    assert load(find_model(folder)).fingerprint == first
    models.promote(folder, "next")
    assert models.rollback(folder).fingerprint == first


# --- processes and files ----------------------------------------------------------------------------------


def test_a_process_that_vanishes_again_and_again_is_given_up(engine: Engine, told: Settings) -> None:
    job = queued(engine, told)
    with in_place_of_a_retraining("import os; print('one more'); os.kill(os.getpid(), 9)"):
        found = worked_through(JobRunner(engine, told), engine, job)
    assert "killed 3 times" in (found.result or {})["error"]
    assert "one more" in (found.result or {})["error"]
    assert (found.directory / "log.txt").read_text().count("one more") == 3


@pytest.mark.timeout(200)
def test_a_process_that_somebody_else_stops_goes_on(engine: Engine, told: Settings) -> None:
    """A machine that goes down tells all processes to end, and the server may see the end of this one."""
    job = queued(engine, told)
    again = """
import json, pathlib, sys
path = pathlib.Path({progress!r})
begun = path.exists()
with open(path, "a") as stream:
    print(json.dumps({{"phase": "failed" if begun else "stopped"}}), file=stream)
words = "it has begun again" if begun else "stopped by a signal"
sys.exit(words)
"""
    with process_of(again):
        found = worked_through(JobRunner(engine, told), engine, job)
    assert "it has begun again" in (found.result or {})["error"]


def test_getting_further_is_worth_another_attempt(tmp_path: Path) -> None:
    places = Places(tmp_path, "x")
    for reached, count in ((0, 1), (0, 2), (40, 1), (40, 2), (40, 3)):
        Attempts(places).note("retrain", reached, again=False)
        assert Attempts(places).count("retrain", reached) == count
    Attempts(places).note("retrain", 40, again=True)  # the last one was stopped in order
    assert Attempts(places).count("retrain", 40) == 3
    assert Attempts(places).count("retrain", 41) == 0
    assert Attempts(places).count("compare", 0) == 0


def test_a_process_is_known_again_and_no_other_is_taken_for_it(tmp_path: Path) -> None:
    arguments = ["timeit", "-n1", "-r1", "import time; time.sleep(60)"]
    process, child = job_process.begin(arguments, tmp_path, tmp_path / "log.txt", threads=1)
    try:
        assert job_process.found(tmp_path) == process
        assert job_process.lives(tmp_path)
        assert not job_process.send(replace(process, began="1"), signal.SIGKILL)
        assert not job_process.send(replace(process, machine="another"), signal.SIGKILL)
        assert job_process.lives(tmp_path)
        with pytest.raises(BlockingIOError):
            job_process.begin(arguments, tmp_path, tmp_path / "log.txt", threads=1)
    finally:
        assert job_process.send(process, signal.SIGKILL)
    until = time.monotonic() + 20
    while job_process.lives(tmp_path):
        assert time.monotonic() < until
    child.gone()
    assert not child.complained  # it was killed, which is not its own doing
    assert not job_process.send(process, signal.SIGKILL)


def test_a_process_of_a_server_that_dies_at_once_never_begins(tmp_path: Path) -> None:
    """The pipe on which it waits for leave is closed with its server."""
    command = ["/bin/sh", "-c", job_process._WAIT_FOR_GO, "sh", "touch", str(tmp_path / "begun")]
    assert subprocess.run(command, input=b"", check=False).returncode != 0
    assert not (tmp_path / "begun").exists()
    assert subprocess.run(command, input=b"go\n", check=False).returncode == 0
    assert (tmp_path / "begun").exists()


def test_the_settings_of_the_server_are_not_told_to_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNWISE_DATABASE_URL", "postgresql://me:hunter2@host/name")
    shown = "import os; print([n for n in os.environ if 'TURNW' in n], os.environ['OMP_NUM_THREADS'])"
    arguments = ["timeit", "-n1", "-r1", shown]
    _, child = job_process.begin(arguments, tmp_path, tmp_path / "log.txt", threads=3)
    until = time.monotonic() + 20
    while job_process.lives(tmp_path):
        assert time.monotonic() < until
    assert tail(tmp_path / "log.txt")[0] == "[] 3"
    child.gone()
    assert not child.complained


def test_progress_is_read_as_it_grows(tmp_path: Path) -> None:
    file = tmp_path / "retrain.jsonl"
    told = Told(file)
    told.read_on()
    assert told.summary()["phase"] is None
    with file.open("a") as stream:
        stream.write('{"phase": "reading"}\nnonsense\n[1]\n{"phase": "training", "step": 1, "st')
        stream.flush()
        told.read_on()
        assert told.summary()["phase"] == "reading"
        stream.write('eps": 2, "loss": 2.5}\n{"phase": "stopped"}\n')
        stream.flush()
        told.read_on()
    assert (told.ended, told.reached, told.curve()) == ("stopped", 1, [(1, 2.5)])
    with file.open("a") as stream:
        for step in range(1, 2001):
            stream.write(json.dumps({"phase": "training", "step": step, "steps": 2000, "loss": 1 / step}))
            stream.write("\n")
    told.read_on()
    assert told.ended is None
    assert len(told.curve()) <= 201
    assert told.curve()[-1] == (2000, 1 / 2000)
    assert told.summary() == {
        "phase": "training",
        "step": 2000,
        "steps": 2000,
        "loss": 1 / 2000,
        "seconds_left": None,
    }


@pytest.mark.timeout(200)
def test_a_loss_that_is_no_number_does_not_hold_a_job_up(engine: Engine, told: Settings) -> None:
    """PostgreSQL keeps no NaN, so nothing of the job could be written any more, not even its end."""
    job = queued(engine, told)
    lost = """
import sys
with open({progress!r}, "a") as stream:
    stream.write(\'{{"phase": "training", "step": 1, "steps": 2, "loss": NaN, "seconds_left": Infinity}}\\n\')
sys.exit("the weights are no longer finite numbers")
"""
    with process_of(lost):
        found = worked_through(JobRunner(engine, told), engine, job)
    assert "no longer finite" in (found.result or {})["error"]
    kept = found.progress or {}
    assert (kept["step"], kept["loss"], kept["seconds_left"], kept["curve"]) == (1, None, None, [])


def test_the_end_of_a_log_is_bounded_and_plain(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    assert tail(file) == []
    file.write_bytes(b"\x1b[31mred\x1b[0m\n\n\xff" + b"y" * 1000 + b"\n" + b"x\n" * 100_000)
    assert len(tail(file)) == 40
    file.write_bytes(b"\x1b[31mred\x1b[0m\n\n\xff" + b"y" * 1000 + b"\n")
    assert tail(file) == ["[31mred[0m", ("\ufffd" + "y" * 1000)[:LINE]]


def test_texts_are_forgotten_and_the_rest_stays(tmp_path: Path) -> None:
    for name in ("reviewed.jsonl.gz", "imported.jsonl.gz", "questions.jsonl.gz", "answers.jsonl", "log.txt"):
        (tmp_path / name).write_text("x")
    for name in ("next", "next.run/last"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".reviewed.jsonl.gz.abc").write_text("half")
    (tmp_path / "next.manifest.json").write_text("x")
    forget_texts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "next", "next.manifest.json"]


def test_texts_of_ended_jobs_go_when_a_server_begins(engine: Engine, told: Settings) -> None:
    """A server that is killed between the end of a job and its tidying."""
    ended, other = queued(engine, told), told.jobs_dir / "not-ours"
    jobs.claim(engine, told.jobs_dir)
    with writing(engine) as connection:
        jobs.end(connection, ended, "done", None)
    for directory in (told.jobs_dir / ended, other):
        directory.mkdir(parents=True)
        (directory / "reviewed.jsonl.gz").write_text("x")
    JobRunner(engine, told)._sweep()
    assert not (told.jobs_dir / ended / "reviewed.jsonl.gz").exists()
    assert (other / "reviewed.jsonl.gz").exists()


def test_a_candidate_without_a_decision_is_none(tmp_path: Path, tiny_model_dir: Path) -> None:
    assert outcome_of(tiny_model_dir) is None
    fingerprint = seal_again(tiny_model_dir, tmp_path / "m", gate=gate(False), figures={"base": {}})
    found = outcome_of(tmp_path / "m")
    assert found is not None
    assert (found.fingerprint, found.result["passed"]) == (fingerprint, False)
