"""Operators' accounts, over the database and over HTTP: who gets in, for how long, and what they may do."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import Engine, insert, select, text, update

from server.console import passwords
from server.console.accounts import IDLE, LIFETIME, AccountError, Accounts, Identity, Session, csrf_of
from server.console.audit import ACTIONS, Place, entries, note
from server.database import reading, writing
from server.tables import AuditEntry, Base, Operator, OperatorSession
from tests.console_client import PASSWORD, TestConsole, console_over, run
from tests.scripted_batcher import parrot

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
OTHER = "an entirely other one"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def signed_in(accounts: Accounts, name: str = "ana", password: str = PASSWORD) -> Session:
    return session_of(accounts, token_of(accounts, name, password))


def token_of(accounts: Accounts, name: str = "ana", password: str = PASSWORD) -> str:
    found = accounts.sign_in(name, password)
    assert found is not None
    return found[1]


def session_of(accounts: Accounts, token: str) -> Session:
    session = accounts.find(token)
    assert session is not None
    return session


# --- passwords --------------------------------------------------------------------------------------------


def test_a_password_is_kept_as_argon2id_only(engine: Engine, real_hashes: None) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    accounts.add("ben", "reviewer", PASSWORD)
    with reading(engine) as connection:
        kept = connection.scalars(select(Operator.password_hash)).all()
        assert not any(PASSWORD in str(row) for row in connection.execute(text("SELECT * FROM audit")))
    assert all(hashed.startswith("$argon2id$v=19$m=65536,t=2,p=1$") for hashed in kept)
    assert len(set(kept)) == 2, "each has a salt of its own"
    found = accounts.sign_in("ana", PASSWORD)
    assert found is not None
    assert (found[0].name, found[0].role) == ("ana", "admin")
    for name, password in [
        ("ana", PASSWORD + " "),
        ("ana", ""),
        ("ana", "x" * 100_000),
        ("ana", "\0"),
        ("ana", "\ud800"),
        ("ana", kept[0]),
        ("Ana", PASSWORD),
        ("nobody", PASSWORD),
        ("\0", PASSWORD),
        ("\ud800", PASSWORD),
        ("a" * 100_000, PASSWORD),
    ]:
        assert accounts.sign_in(name, password) is None


def test_a_password_is_the_same_however_it_is_composed(engine: Engine) -> None:
    accounts = Accounts(engine)
    accounts.add("Zoe\u0308", "admin", "fu\u0308nfzig Ka\u0308fer")
    assert accounts.sign_in("Zo\u00eb", "f\u00fcnfzig K\u00e4fer") is not None


@pytest.mark.parametrize(
    ("name", "password", "kind"),
    [
        ("", PASSWORD, "invalid"),
        (" ana", PASSWORD, "invalid"),
        ("a\nb", PASSWORD, "invalid"),
        ("a\0b", PASSWORD, "invalid"),
        ("\u202eana", PASSWORD, "invalid"),
        ("\ud800", PASSWORD, "invalid"),
        ("a" * 65, PASSWORD, "invalid"),
        ("carla", "short one", "invalid"),
        ("carla", "x" * 257, "invalid"),
        ("carla", "with \0 in it", "invalid"),
        ("carla", "abababababab", "invalid"),
        ("carla carlson", "Carla Carlson", "invalid"),
        ("ana", PASSWORD, "taken"),
        ("ANA", PASSWORD, "taken"),
        ("Command Line", PASSWORD, "invalid"),
    ],
)
def test_accounts_that_cannot_be_had(engine: Engine, name: str, password: str, kind: str) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    with pytest.raises(AccountError) as refused:
        accounts.add(name, "reviewer", password)
    assert refused.value.kind == kind
    assert password not in str(refused.value)
    assert [account.name for account in accounts.accounts()] == ["ana"]


def test_a_name_that_nobody_has_takes_as_much_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    disabled = accounts.add("ben", "admin", PASSWORD)
    accounts.change(disabled.id, disabled=True)
    checked: list[str] = []

    class Counting:
        def verify(self, kept: str, password: str) -> bool:
            checked.append(kept)
            return CHEAP.verify(kept, password)

    monkeypatch.setattr(passwords, "_HASHER", Counting())
    for name, password in [
        ("ana", OTHER),
        ("nobody", OTHER),
        ("ben", PASSWORD),
        ("\0", OTHER),
        ("ana", "\0"),
    ]:
        before = len(checked)
        assert accounts.sign_in(name, password) is None
        assert len(checked) == before + 1


def test_nobodys_hash_costs_what_a_new_one_costs(real_hashes: None) -> None:
    assert not passwords.outdated(passwords.NOBODYS)
    assert not passwords.matches(passwords.NOBODYS, "")


def test_a_hash_of_former_parameters_is_renewed_at_the_next_sign_in(
    engine: Engine, real_hashes: None
) -> None:
    accounts = Accounts(engine)
    operator = accounts.add("ana", "admin", PASSWORD)
    with writing(engine) as connection:
        connection.execute(update(Operator).values(password_hash=CHEAP.hash(PASSWORD)))
    assert accounts.sign_in("ana", OTHER) is None
    assert accounts.sign_in("ana", PASSWORD) is not None
    with reading(engine) as connection:
        kept = connection.scalar(select(Operator.password_hash).where(Operator.id == operator.id))
    assert kept is not None
    assert not passwords.outdated(kept)
    assert accounts.sign_in("ana", PASSWORD) is not None


@pytest.mark.parametrize("what", ["password", "disabled"])
def test_an_account_that_is_changed_while_its_password_is_checked_lets_nobody_in(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    ben = accounts.add("ben", "reviewer", PASSWORD)
    matches = passwords.matches

    def slowly(kept: str, password: str) -> bool:
        right = matches(kept, password)
        accounts.change(ben.id, **({"password": OTHER} if what == "password" else {"disabled": True}))
        return right

    monkeypatch.setattr(passwords, "matches", slowly)
    assert accounts.sign_in("ben", PASSWORD) is None


# --- sessions ---------------------------------------------------------------------------------------------


def test_a_session_is_kept_as_a_hash_only(engine: Engine) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    token, another = token_of(accounts), token_of(accounts)
    assert token != another
    assert len(token) >= 43  # 256 bits in base64
    assert session_of(accounts, token).csrf == csrf_of(token) != csrf_of(another)
    with reading(engine) as connection:
        rows = [str(tuple(row)) for row in connection.execute(text("SELECT * FROM operator_session"))]
    assert len(rows) == 2
    assert any(hashlib.sha256(token.encode()).hexdigest() in row for row in rows)
    assert not any(token in row or csrf_of(token) in row for row in rows)
    assert csrf_of(token) not in repr(session_of(accounts, token))


@pytest.mark.parametrize("wrong", ["", "x", "\0", "\ud800", "é", "x" * 100_000])
def test_nothing_else_is_a_session(engine: Engine, wrong: str) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    token = token_of(accounts)
    stored = hashlib.sha256(token.encode()).hexdigest()
    for attempt in (
        token + wrong if wrong else token[:-1],
        wrong + token[len(wrong) :],
        token.swapcase(),
        stored,
    ):
        if attempt != token:
            assert accounts.find(attempt) is None


def test_a_session_that_is_not_used_is_over_and_so_is_one_that_is_old(engine: Engine) -> None:
    clock = Clock()
    accounts = Accounts(engine, clock)
    accounts.add("ana", "admin", PASSWORD)
    idle, used = token_of(accounts), token_of(accounts)
    session = session_of(accounts, used)
    while clock.now < START + LIFETIME - timedelta(hours=1):
        clock.now += timedelta(hours=1)
        assert accounts.find(used) is not None
        assert (accounts.find(idle) if clock.now >= START + IDLE else None) is None
    assert accounts.still_signed_in(session)
    clock.now = START + LIFETIME
    assert accounts.find(used) is None
    assert not accounts.still_signed_in(session)


def test_to_ask_whether_a_session_holds_is_no_use_of_it(engine: Engine) -> None:
    clock = Clock()
    accounts = Accounts(engine, clock)
    accounts.add("ana", "admin", PASSWORD)
    session = signed_in(accounts)
    clock.now += IDLE - timedelta(seconds=1)
    assert accounts.still_signed_in(session)
    clock.now += timedelta(seconds=1)
    assert not accounts.still_signed_in(session)


def test_the_last_use_is_kept_to_the_minute_also_after_the_end(engine: Engine) -> None:
    clock = Clock()
    accounts = Accounts(engine, clock)
    accounts.add("ana", "admin", PASSWORD)
    assert accounts.accounts()[0].last_seen_at is None
    token = token_of(accounts)
    clock.now += timedelta(seconds=59)
    session = session_of(accounts, token)
    assert accounts.accounts()[0].last_seen_at == START
    clock.now += timedelta(seconds=1)
    accounts.find(token)
    seen = clock.now
    accounts.close(session)
    assert accounts.find(token) is None
    assert accounts.accounts()[0].last_seen_at == seen
    clock.now += timedelta(days=100)
    token_of(accounts)
    with reading(engine) as connection:
        assert len(connection.execute(select(OperatorSession)).all()) == 1, "old ones are cleared away"


def test_what_ends_sessions(engine: Engine) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    ben = accounts.add("ben", "reviewer", PASSWORD)

    def ends(changes: dict[str, Any], password: str) -> bool:
        token, mine = token_of(accounts, "ben", password), token_of(accounts)
        accounts.change(ben.id, **changes)
        assert accounts.find(mine) is not None
        return accounts.find(token) is None

    assert ends({"password": OTHER}, PASSWORD)
    assert ends({"role": "admin"}, OTHER)
    assert not ends({"role": "admin", "disabled": False}, OTHER), "nothing was changed"
    token = token_of(accounts, "ben", OTHER)
    assert ends({"disabled": True}, OTHER)
    assert accounts.sign_in("ben", OTHER) is None
    accounts.change(ben.id, disabled=False)
    assert accounts.find(token) is None, "what has ended does not begin again"
    assert accounts.sign_in("ben", OTHER) is not None


def test_changing_ones_own_password_ends_the_other_sessions(engine: Engine) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    here, there = signed_in(accounts), signed_in(accounts)
    assert not accounts.change_password(here, OTHER, OTHER)
    with pytest.raises(AccountError):
        accounts.change_password(here, PASSWORD, "short")
    assert accounts.still_signed_in(there)
    assert accounts.change_password(here, PASSWORD, OTHER)
    assert accounts.still_signed_in(here)
    assert not accounts.still_signed_in(there)
    assert accounts.sign_in("ana", PASSWORD) is None
    assert accounts.sign_in("ana", OTHER) is not None


def test_streams_hear_of_the_end_of_their_session(engine: Engine) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    ben = accounts.add("ben", "reviewer", PASSWORD)
    heard: list[str] = []

    async def streams() -> None:
        mine, first, second = signed_in(accounts), signed_in(accounts, "ben"), signed_in(accounts, "ben")
        accounts.on_end(mine, lambda: heard.append("mine"))
        accounts.on_end(first, lambda: heard.append(f"first {threading.current_thread().name}"))
        take_back = accounts.on_end(first, lambda: heard.append("taken back"))
        done = asyncio.Event()
        accounts.on_end(second, done.set)
        take_back()
        take_back()
        await asyncio.to_thread(accounts.close, first)
        await asyncio.to_thread(accounts.close, first)
        await asyncio.to_thread(accounts.change, ben.id, disabled=True)
        await asyncio.wait_for(done.wait(), 5)

    asyncio.run(streams())
    assert heard == [f"first {threading.current_thread().name}"]
    assert len(accounts._endings) == 1


# --- admins -----------------------------------------------------------------------------------------------


def test_an_admin_is_always_left(engine: Engine) -> None:
    accounts = Accounts(engine)
    ana, ben = accounts.add("ana", "admin", PASSWORD), accounts.add("ben", "reviewer", PASSWORD)
    disabled = accounts.add("carla", "admin", PASSWORD)
    accounts.change(disabled.id, disabled=True)
    for changes in ({"role": "reviewer"}, {"disabled": True}, {"disabled": True, "password": OTHER}):
        with pytest.raises(AccountError) as refused:
            accounts.change(ana.id, **changes)
        assert refused.value.kind == "last_admin"
    assert accounts.sign_in("ana", PASSWORD) is not None
    accounts.change(ben.id, role="admin")
    assert accounts.change(ana.id, role="reviewer").role == "reviewer"
    with pytest.raises(AccountError, match="no such operator"):
        accounts.change("nobody", disabled=True)
    with pytest.raises(AccountError, match="no such operator"):
        accounts.change("\0", disabled=True)


def test_two_admins_who_demote_each_other_at_the_same_time(engine: Engine) -> None:
    accounts = Accounts(engine)
    pair = [accounts.add(name, "admin", PASSWORD) for name in ("ana", "ben")]
    for _ in range(10):
        together = threading.Barrier(2)

        def demote(other: Identity, together: threading.Barrier = together) -> bool:
            together.wait(10)
            try:
                accounts.change(other.id, role="reviewer")
            except AccountError:
                return False
            return True

        with ThreadPoolExecutor(2) as threads:
            outcomes = list(threads.map(demote, pair))
        admins = [account for account in accounts.accounts() if account.role == "admin"]
        assert sorted(outcomes) == [False, True]
        assert len(admins) == 1
        for operator in pair:
            accounts.change(operator.id, role="admin")


# --- the audit log ----------------------------------------------------------------------------------------


def test_what_is_done_to_accounts_is_in_the_log(engine: Engine) -> None:
    accounts = Accounts(engine)
    accounts.add("ana", "admin", PASSWORD)
    ben = accounts.add("ben", "reviewer", PASSWORD, by="ana")
    session = signed_in(accounts, "ben")
    accounts.change_password(session, PASSWORD, OTHER)
    accounts.close(session)
    accounts.change(ben.id, role="admin", by="ana")
    accounts.change(ben.id, password=PASSWORD, disabled=True, by="ana")
    accounts.change(ben.id, disabled=False)
    written = [(e.operator, e.action, e.subject, e.details) for e in reversed(entries(engine))]
    assert written == [
        (None, "operator.add", "ana", {"role": "admin"}),
        ("ana", "operator.add", "ben", {"role": "reviewer"}),
        ("ben", "session.start", None, None),
        ("ben", "password.change", "ben", None),
        ("ben", "session.end", None, None),
        ("ana", "role.change", "ben", {"role": "admin", "was": "reviewer"}),
        ("ana", "operator.disable", "ben", None),
        ("ana", "password.set", "ben", None),
        (None, "operator.enable", "ben", None),
    ]
    assert [e.action for e in entries(engine, operator="ben", limit=2)] == ["session.end", "password.change"]
    assert entries(engine, operator="\0") == []


def test_an_entry_is_kept_only_with_what_it_tells_of(engine: Engine) -> None:
    def in_vain() -> None:
        with writing(engine) as connection:
            note(connection, "ana", "label.add")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        in_vain()
    assert entries(engine) == []


def test_every_action_is_documented_and_no_other_is_noted(engine: Engine) -> None:
    page = (Path(__file__).parent.parent / "docs" / "operators.md").read_text(encoding="utf-8")
    _, _, table = page.partition("| action | what was done | subject |\n|---|---|---|\n")
    rows = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines()]
    assert sorted(name for row in rows for name in re.findall(r"`(.+?)`", row)) == sorted(ACTIONS)
    assert all(re.fullmatch(r"[a-z_]+\.[a-z_]+(\.failed)?", action) for action in ACTIONS)
    with pytest.raises(ValueError, match="label_added"), writing(engine) as connection:
        note(connection, "ana", "label_added")


# --- over HTTP --------------------------------------------------------------------------------------------


def cookies(answer: httpx.Response) -> list[str]:
    return answer.headers.get_list("set-cookie")


def cookie(client: httpx.AsyncClient) -> str:
    return str(client.cookies["turnwise_operator"])


def with_cookie(value: str) -> dict[str, str]:
    return {"cookie": f"turnwise_operator={value}"}


def test_signing_in_and_out(database_url: str, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        await console.sign_in("admin")
        client = await console.client()
        wrong = await client.post("/api/operator/login", json={"name": "admin", "password": OTHER})
        nobody = await client.post("/api/operator/login", json={"name": "nobody", "password": OTHER})
        assert (wrong.status_code, cookies(wrong)) == (401, [])
        assert (nobody.status_code, nobody.content) == (wrong.status_code, wrong.content)
        answer = await client.post("/api/operator/login", json={"name": "admin", "password": PASSWORD})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        assert body["operator"]["name"] == "admin"
        [given] = cookies(answer)
        token, *attributes = given.split("; ")
        assert re.fullmatch(r"turnwise_operator=[\w-]{43}", token)
        assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=strict"]
        assert (await client.get("/api/operator/me")).json() == body

        stolen = with_cookie(cookie(client))
        left = await client.post("/api/operator/logout", headers={"x-csrf-token": body["csrf"]})
        assert left.status_code == 204
        assert "Max-Age=0" in cookies(left)[0]
        assert (await client.get("/api/operator/me", headers=stolen)).status_code == 401

    run(console_over(url=database_url, models=tiny_model_dir, script=parrot), test)


def test_over_tls_the_cookie_stays_there(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        given = {"name": "admin", "password": PASSWORD}
        await asyncio.to_thread(console.desk.accounts.add, "admin", "admin", PASSWORD)
        client = await console.client()
        assert "; Secure" in cookies(await client.post("/api/operator/login", json=given))[0]
        # The same page asked in the clear: somebody on the way may have written it.
        headers = {"origin": "http://console.test"}
        assert (await client.post("/api/operator/login", json=given, headers=headers)).status_code == 403
        # A proxy ends TLS, and the server does not know.
        plain = await console.client()
        plain.base_url = httpx.URL("http://console.test")
        answer = await plain.post("/api/operator/login", json=given)
        assert answer.status_code == 200
        assert "; Secure" in cookies(answer)[0]

    run(console_over(tmp_path, tiny_model_dir, script=parrot, address="https://console.test"), test)


def test_a_session_from_before_the_sign_in_is_no_session(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        attacker = await console.sign_in("reviewer")
        await console.sign_in("admin")
        planted = cookie(attacker)
        for fixed in (planted, "x" * 43):
            victim = await console.client()
            victim.cookies.set("turnwise_operator", fixed, domain="console.test", path="/")
            given = {"name": "admin", "password": PASSWORD}
            answer = await victim.post("/api/operator/login", json=given)
            [new] = re.findall(r"turnwise_operator=([\w-]{43})", cookies(answer)[0])
            assert new != fixed
            nobody = await console.client()
            assert (await nobody.get("/api/operator/me", headers=with_cookie(fixed))).status_code == 401
            answer = await nobody.get("/api/operator/me", headers=with_cookie(new))
            assert answer.json()["operator"]["name"] == "admin"

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_cookies_that_let_nobody_in(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        client = await console.sign_in("admin")
        token = cookie(client)
        nobody = await console.client()
        assert (await nobody.get("/api/operator/me", headers=with_cookie(token))).status_code == 200
        tampered = token[:-1] + ("A" if token[-1] != "A" else "B")
        for value in (
            "",
            tampered,
            token + "x",
            token[:-1],
            f'"{token}"',
            f"{token}; turnwise_operator={token}",
            f"x; turnwise_operator={token}",
            "x" * 4000,
            hashlib.sha256(token.encode()).hexdigest(),
        ):
            answer = await nobody.get("/api/operator/me", headers=with_cookie(value))
            assert answer.status_code == 401, value
        for name in ("Turnwise_Operator", "turnwise_operator_", " turnwise"):
            answer = await nobody.get("/api/operator/me", headers={"cookie": f"{name}={token}"})
            assert answer.status_code == 401, name
        answer = await nobody.get("/api/operator/me", headers=with_cookie(token + "x" * 10_000))
        assert answer.status_code == 431
        for where in ("authorization", "x-csrf-token", "turnwise_operator"):
            answer = await nobody.get("/api/operator/me", headers={where: f"Bearer {token}"})
            assert answer.status_code == 401
        answer = await nobody.get(f"/api/operator/me?turnwise_operator={token}")
        assert answer.status_code == 401

        with writing(console.db) as connection:
            connection.execute(update(OperatorSession).values(expires_at=START))
        assert (await client.get("/api/operator/me")).status_code == 401

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_what_a_foreign_page_could_send_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    """A GET as well when it says that it is from elsewhere; a change also when it does not say where from."""

    async def test(console: TestConsole) -> None:
        await console.sign_in("admin")
        client = await console.sign_in("reviewer")
        csrf = client.headers.pop("x-csrf-token")
        del client.headers["origin"]
        other = (await console.sign_in("admin")).headers["x-csrf-token"]
        own, foreign = "http://console.test", "https://evil.test"
        new = {"old": PASSWORD, "new": OTHER}

        async def status(method: str, path: str, **headers: str | bytes) -> int:
            given: Any = [(name.replace("_", "-"), value) for name, value in headers.items()]
            body = new if method == "POST" else None
            return (await client.request(method, path, json=body, headers=given)).status_code

        change = "/api/operator/password"
        for origin in (
            foreign,
            "null",
            "",
            "http://console.test:8080",
            "http://console.test.evil.test",
            "http://evil.console.test",
            "http://console.test@evil.test",
            "http://console.test/",
            "ws://console.test",
            "console.test",
        ):
            assert await status("POST", change, origin=origin, x_csrf_token=csrf) == 403, origin
            assert await status("GET", "/api/operator/me", origin=origin) == 403, origin
        assert await status("POST", change, x_csrf_token=csrf) == 403
        for token in ("", "x", "\u00e9".encode("latin-1"), other, csrf[:-1], csrf.upper(), cookie(client)):
            assert await status("POST", change, origin=own, x_csrf_token=token) == 403, token
        assert await status("POST", change, origin=own) == 403
        answer = await client.post(
            change, json=new, headers=[("origin", own), ("x-csrf-token", csrf), ("x-csrf-token", csrf)]
        )
        assert answer.status_code == 403
        for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
            assert await status(method, change, origin=foreign, x_csrf_token=csrf) == 403
            assert await status(method, change, origin=own) == 403
        given = {"name": "reviewer", "password": PASSWORD}
        for headers in ({}, {"origin": foreign}):
            answer = await client.post("/api/operator/login", json=given, headers=headers)
            assert answer.status_code == 403
        assert not console.desk.accounts.sign_in("reviewer", OTHER), "nothing of it was carried out"
        assert await status("GET", "/api/operator/me") == 200
        assert await status("GET", "/api/operator/me", origin=own) == 200
        assert await status("POST", change, origin=own, x_csrf_token=csrf) == 204
        trusted = "https://console.example"
        assert await status("GET", "/api/operator/me", origin=trusted) == 200

    run(
        console_over(tmp_path, tiny_model_dir, script=parrot, allowed_origins=("https://console.example",)),
        test,
    )


def test_only_so_much_of_a_body_is_read(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        read = 0

        async def endless() -> Any:
            nonlocal read
            while True:
                read += 1024
                yield b"[" * 1024

        nobody = await console.client()
        headers = {"content-type": "application/json"}
        for path in ("/api/operator/login", "/api/operator/password"):
            read = 0
            async with asyncio.timeout(10):
                answer = await nobody.post(path, content=endless(), headers=headers)
            assert answer.status_code in (401, 413)
            assert read <= 16 * 1024
        client = await console.sign_in("admin")
        read = 0
        answer = await client.post("/api/operator/password", content=endless(), headers=headers)
        assert answer.status_code == 413
        assert read < 2 * 1024 * 1024
        for body in (
            b"",
            b"null",
            b"[]",
            b"{",
            b'{"name":1,"password":"x"}',
            b'{"name":"a","password":"b","c":1}',
        ):
            answer = await nobody.post("/api/operator/login", content=body, headers=headers)
            assert answer.status_code == 400, body
            assert answer.json()["error"]["code"] == "bad_request"
        answer = await nobody.post("/api/operator/login", content=b"[" * 8000, headers=headers)
        assert answer.status_code == 400

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_admins_look_after_operators(database_url: str, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin, reviewer = await console.sign_in("admin"), await console.sign_in("reviewer")
        new = {"name": "carla", "role": "reviewer", "password": PASSWORD}
        listed = "/api/operator/operators"

        for answer in (
            await reviewer.get(listed),
            await reviewer.post(listed, json=new),
            await reviewer.patch(f"{listed}/x", json={"disabled": True}),
            await reviewer.get("/api/operator/audit"),
        ):
            assert answer.status_code == 403

        answer = await admin.post(listed, json=new)
        assert answer.status_code == 201
        carla = f"{listed}/{answer.json()['id']}"
        for body, status in (
            (new, 409),
            ({**new, "name": ""}, 400),
            ({**new, "name": "d", "role": "owner"}, 400),
            ({**new, "name": "d", "password": "short"}, 400),
            ({**new, "name": "d", "admin": True}, 400),
        ):
            assert (await admin.post(listed, json=body)).status_code == status, body

        session = await console.sign_in(name="carla")
        answer = await admin.patch(carla, json={"disabled": True})
        assert answer.json()["disabled_at"] is not None
        assert (await session.get("/api/operator/me")).status_code == 401
        given = {"name": "carla", "password": PASSWORD}
        assert (await session.post("/api/operator/login", json=given)).status_code == 401
        assert (await admin.patch(carla, json={"disabled": False, "password": OTHER})).status_code == 200
        given["password"] = OTHER
        assert (await session.post("/api/operator/login", json=given)).status_code == 200
        assert (await admin.patch(f"{listed}/x", json={"disabled": True})).status_code == 404
        assert (await admin.patch(carla, json={"name": "x"})).status_code == 400
        assert (await admin.patch(carla, json={})).status_code == 200

        assert (await admin.get(f"{listed}?page=1")).status_code == 400
        found = (await admin.get(listed)).json()["operators"]
        assert [operator["name"] for operator in found] == ["admin", "carla", "reviewer"]
        assert not any("password" in key or "hash" in key for operator in found for key in operator)
        own = f"{listed}/{found[0]['id']}"
        for changes in ({"disabled": True}, {"role": "reviewer"}):
            answer = await admin.patch(own, json=changes)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
        assert (await admin.get("/api/operator/me")).status_code == 200

    run(console_over(url=database_url, models=tiny_model_dir, script=parrot), test)


def test_the_audit_log_is_read_page_by_page(database_url: str, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        with writing(console.db) as connection:
            for number in range(25):
                note(connection, "ana" if number % 2 else "ben", "label.add", str(number), number=number)

        async def page(**query: Any) -> Any:
            answer = await admin.get("/api/operator/audit", params=query)
            assert answer.status_code == 200, answer.text
            return answer.json()

        seen, before = [], None
        while True:
            got = await page(action="label.add", limit=10, **({"before": before} if before else {}))
            seen += [entry["details"]["number"] for entry in got["entries"]]
            with writing(console.db) as connection:  # what comes meanwhile is on none of the later pages
                note(connection, "ana", "label.add", "late", number=99)
            if (before := got["next"]) is None:
                break
        assert seen == list(reversed(range(25)))
        found = (await page(account="ana", action="label.add", limit=200))["entries"]
        assert {entry["operator"] for entry in found} == {"ana"}
        assert (await page(account="%"))["entries"] == []
        with writing(console.db) as connection:
            note(connection, None, "label.add", "by command")
        found = (await page(account="command line"))["entries"]
        assert "by command" in {entry["subject"] for entry in found}
        assert {entry["operator"] for entry in found} == {None}
        assert (await page(account="\0"))["entries"] == []
        assert len((await page(limit=1))["entries"]) == 1
        for wrong in (
            "page=1",
            "limit=0",
            "limit=-1",
            "limit=201",
            "limit=1000000000",
            "limit=x",
            "before=-1",
            "before=x",
            "before=1",
            "before=1.x",
            "before=999999999999999999.1",
            "before=9999999999999999999.1",
            "before=\u0661.1",
            "from=yesterday",
            "from=10000-01-01T00:00:00Z",
            "from=2026-03-02T00:00:00Z&to=2026-03-01T00:00:00Z",
            "order=up",
        ):
            assert (await admin.get(f"/api/operator/audit?{wrong}")).status_code == 400, wrong

    run(console_over(url=database_url, models=tiny_model_dir, script=parrot), test)


def test_the_audit_log_is_asked_for_times(database_url: str, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        rows = [
            {"at": START + timedelta(hours=n), "operator": "ana", "action": "label.add", "subject": str(n)}
            for n in (3, 1, 0, 2)  # clocks of several servers differ
        ]
        with writing(console.db) as connection:
            connection.execute(insert(AuditEntry), rows)

        async def subjects(**query: str) -> list[str]:
            given = {"account": "ana", **query}
            answer = await admin.get("/api/operator/audit", params=given)
            assert answer.status_code == 200, answer.text
            return [entry["subject"] for entry in answer.json()["entries"]]

        assert await subjects() == ["3", "2", "1", "0"]
        assert await subjects(**{"from": "2026-03-01T13:00:00Z"}) == ["3", "2", "1"]
        assert await subjects(to="2026-03-01T14:00:00Z") == ["1", "0"]
        between = {"from": "2026-03-01T14:00:00+01:00", "to": "2026-03-01T15:00:00Z", "action": "label.add"}
        assert await subjects(**between) == ["2", "1"]
        assert await subjects(action="session.start") == []
        first = (await admin.get("/api/operator/audit?account=ana&limit=2")).json()
        assert await subjects(before=first["next"]) == ["1", "0"]

    run(console_over(url=database_url, models=tiny_model_dir, script=parrot), test)


def test_no_route_takes_a_query_key_that_it_does_not_know(tmp_path: Path, tiny_model_dir: Path) -> None:
    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        schema = (await admin.get("/openapi.json")).json()["paths"]
        routes = [
            (method.upper(), re.sub(r"\{.*?\}", "0", path))
            for path, methods in schema.items()
            if path.startswith("/api/operator/")
            for method in methods
        ]
        assert len(routes) > 50
        for method, path in routes:
            answer = await admin.request(method, path, params={"nonsense": "1"}, json={})
            assert answer.status_code == 400, (method, path)
            told = answer.json()["error"]["message"]
            assert told == "nonsense: there is no such query key", (method, path)
        assert (await admin.get("/api/operator/me")).status_code == 200  # the session is still there

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_reading_changes_nothing(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Not on any address that can be asked without knowing an id, but that who took what along is noted."""

    async def test(console: TestConsole) -> None:
        admin = await console.sign_in("admin")
        console.conversation([("hello", "hi there"), ("a latte, please", "Which size?")])
        schema = (await admin.get("/openapi.json")).json()["paths"]
        paths = [
            path
            for path, methods in schema.items()
            if path.startswith("/api/operator")
            and "get" in methods
            and "{" not in path
            and "events" not in path
        ]
        assert "/api/operator/me" in paths
        before = contents(console.db)
        for path in paths:
            assert (await admin.get(path)).status_code < 500, path
        assert contents(console.db) == before

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def contents(db: Engine) -> dict[str, list[Any]]:
    with reading(db) as connection:
        return {
            name: [tuple(row) for row in connection.execute(select(table))]
            for name, table in Base.metadata.tables.items()
            if name != "audit"
        }


def test_nothing_that_was_typed_is_logged(
    tmp_path: Path, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(console: TestConsole) -> None:
        caplog.set_level(logging.DEBUG, "server")
        client = await console.sign_in("admin")
        for name, password in (("admin", OTHER), (OTHER, "x"), ("\r\n{}", "\x1b[31m")):
            await client.post("/api/operator/login", json={"name": name, "password": password})
        told = [f"{record.getMessage()} {record.__dict__.get('fields')}" for record in caplog.records]
        assert any("sign_in_failed" in line for line in told)
        for secret in (OTHER, PASSWORD, cookie(client), client.headers["x-csrf-token"], "\x1b", "127.0.0.1"):
            assert not any(secret in line for line in told)

    run(console_over(tmp_path, tiny_model_dir, script=parrot), test)


def test_the_log_is_read_from_its_end(engine: Engine) -> None:
    rows = [{"at": START, "operator": "ana", "action": "label.add", "subject": str(n)} for n in range(2000)]
    with writing(engine) as connection:
        connection.execute(insert(AuditEntry), rows)
    newest = entries(engine, limit=3)
    assert [entry.subject for entry in newest] == ["1999", "1998", "1997"]
    place = Place(newest[-1].at, newest[-1].id)
    assert Place.of(place.cursor()) == place
    assert [e.subject for e in entries(engine, before=place, limit=2)] == ["1996", "1995"]
