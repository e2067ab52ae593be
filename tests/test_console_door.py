"""The door of the console over real sockets: no page, no route and no guess gets past it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import InvalidStatus

from server.console import pages, passwords, throttle
from server.console.accounts import Accounts, csrf_of
from server.console.guard import area_of
from server.console.throttle import Busy, OneByOne, Throttle
from server.database import connect
from server.protocol import Message, Say
from tests.chat_client import chatting
from tests.live_server import LiveServer, serving
from tests.scripted_batcher import parrot

PASSWORD = "correct horse battery"
WRONG = "an entirely other one"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Door:
    """A live server. token: of a session of an admin named ana."""

    live: LiveServer
    accounts: Accounts
    token: str

    def ask(
        self, path: str, method: str = "GET", body: Any = None, *, peer: str = "127.0.0.1", **headers: str
    ) -> Answer:
        """One request, its path as it is given: nothing is cleaned up on the way. peer: comes from there."""
        place = urlsplit(self.live.address).netloc
        connection = HTTPConnection(place, timeout=60, source_address=(peer, 0))
        given = {"origin": self.live.address, "content-type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, given)
            response = connection.getresponse()
            content = response.read()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, content)
        finally:
            connection.close()

    def sign_in(self, name: str, password: str, peer: str, **headers: str) -> Answer:
        body = {"name": name, "password": password}
        return self.ask("/api/operator/login", "POST", body, peer=peer, **headers)

    @property
    def cookie(self) -> str:
        return f"turnwise_operator={self.token}"


def opened(folder: Path, models: Path, **settings: Any) -> Iterator[Door]:
    url = f"sqlite:///{folder / 'turnwise.db'}"
    with serving(url, models, parrot, **settings) as live:
        db = connect(url)
        accounts = Accounts(db)
        accounts.add("ana", "admin", PASSWORD)
        found = accounts.sign_in("ana", PASSWORD)
        assert found is not None
        yield Door(live, accounts, found[1])
        db.dispose()


@pytest.fixture(scope="module")
def door(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    yield from opened(tmp_path_factory.mktemp("door"), tiny_model_dir)


# --- without a session ------------------------------------------------------------------------------------


def routes(door: Door) -> list[str]:
    """Every address of the console's API, its parameters filled in."""
    known = door.ask("/openapi.json").json["paths"]
    found = [path.replace("{", "").replace("}", "") for path in known if path.startswith("/api/operator")]
    assert len(found) >= 6
    return [*found, "/operator", "/operator/inbox", "/operator/static/app.js", "/api/operator"]


def test_no_route_by_any_method_without_a_session(door: Door) -> None:
    visitor = door.live.store.new_visitor()
    claims: list[dict[str, str]] = [
        {},
        {"authorization": f"Bearer {visitor.token}", "cookie": f"turnwise_operator={visitor.token}"},
    ]
    for path in routes(door):
        for method in METHODS:
            for headers in claims:
                answer = door.ask(path, method, **headers)
                expected = {400, 401} if (path, method) == ("/api/operator/login", "POST") else {401}
                assert answer.status in expected, (path, method, headers, answer)
                assert "set-cookie" not in answer.headers


def test_no_route_with_a_session_that_has_expired(door: Door) -> None:
    found = door.accounts.sign_in("ana", PASSWORD)
    assert found is not None
    session = door.accounts.find(found[1])
    assert session is not None
    headers = {"cookie": f"turnwise_operator={found[1]}", "x_csrf_token": csrf_of(found[1])}
    assert door.ask("/api/operator/me", **headers).status == 200
    door.accounts.close(session)
    for path in routes(door):
        for method in ("GET", "HEAD", "POST", "DELETE"):
            if (path, method) != ("/api/operator/login", "POST"):
                assert door.ask(path, method, **headers).status == 401, (path, method)


@pytest.mark.parametrize(
    "base", ["/operator", "/operator/inbox", "/api/operator/me", "/api/operator/operators"]
)
def test_no_other_way_to_write_an_address(door: Door, base: str) -> None:
    first, _, rest = base[1:].partition("/")
    ways = [
        base + "/",
        base + "//",
        "/" + base,
        "//" + base,
        base.replace("/", "//"),
        base.upper(),
        base.title(),
        base.replace("operator", "%6fperator"),
        base.replace("operator", "%4Fperator"),
        base.replace("operator", "%256fperator"),
        base.replace("operator", "operator%2f"),
        base.replace("/", "/./"),
        base.replace("/", "/%2e/"),
        base.replace("/", "/%2E%2e/"),
        base + "/.",
        base + "/..",
        base + "/%2e%2e",
        base + "%00",
        base + "%20",
        base + ";x=1",
        base + "?x=1",
        base + ".json",
        base + "%5c",
        base.replace("/", "%5c"),
        f"/{first}/../{first}/{rest}",
        f"/static/..{base}",
        f"/static/%2e%2e{base}",
        f"/static/..%2f..%2f{base[1:]}",
        f"/v1/..{base}",
        f"{door.live.address}{base}",
        f"http://elsewhere.test{base}",
    ]
    for way in ways:
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            status = door.ask(way, method).status
            allowed = {400, 401, 403, 404}
            assert status in (allowed | {405} if way.startswith(("/static", "/v1")) else allowed), (
                way,
                method,
            )


def test_whoever_is_signed_in_gets_nothing_by_another_way_either(door: Door) -> None:
    assert door.ask("/api/operator/me", cookie=door.cookie).status == 200
    for way in ("/API/operator/me", "//api/operator/me", "/api/operator/me/", "/api/operator/%2e/me"):
        assert door.ask(way, cookie=door.cookie).status in (307, 404), way


@pytest.mark.parametrize(
    ("path", "area"),
    [
        ("/operator", "page"),
        ("/operator/x/y", "page"),
        ("/OPERATOR//", "page"),
        ("/static/../operator", "page"),
        ("/api/operator", "api"),
        ("/api/./operator/me", "api"),
        ("/api\\operator\\me", "api"),
        ("/%61pi/operator", "api"),
        ("/", None),
        ("", None),
        ("/operators", None),
        ("/api/operators", None),
        ("/api/conversations", None),
        ("/operator/../static/app.js", "page"),
        ("/operator/..", "page"),
        ("/api/operator/../..", "api"),
    ],
)
def test_what_is_the_consoles(path: str, area: str | None) -> None:
    assert area_of(path) == area


def test_no_socket_without_a_session_nor_with_one(door: Door) -> None:
    async def status(path: str, headers: dict[str, str]) -> int:
        url = door.live.address.replace("http", "ws") + path
        with pytest.raises(InvalidStatus) as refused:
            async with connect_socket(url, additional_headers=headers, proxy=None):
                pass
        return refused.value.response.status_code

    for path in ("/operator", "/api/operator/events", "/api/operator/me", "//v1/chat"):
        for headers in ({}, {"cookie": door.cookie}):
            assert asyncio.run(status(path, headers)) == 404, path


def test_who_is_not_signed_in_sees_the_sign_in_page_everywhere(door: Door) -> None:
    for path in ("/operator", "/operator/", "/operator/inbox", "/operator/conversations/x?y=1"):
        answer = door.ask(path)
        assert answer.status == 401
        assert b'<form id="form"' in answer.body
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"].startswith("text/html")
    page = door.ask("/operator").body.decode().lower()
    for inline in ("<style", "style=", "<script>", "onsubmit", "javascript:"):
        assert inline not in page
    for file in ("sign_in.js", "sign_in.css"):
        assert door.ask(f"/static/{file}").status == 200


def test_the_page_and_its_files_are_for_who_is_signed_in(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "WEB", tmp_path / "web")
    assert door.ask("/operator", cookie=door.cookie).status == 404
    assert door.ask("/operator/static/app.js", cookie=door.cookie).status == 404
    (tmp_path / "web" / "views").mkdir(parents=True)
    (tmp_path / "web" / "index.html").write_text("<!doctype html><title>Console</title>")
    (tmp_path / "web" / "views" / "inbox.js").write_text("export {};")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "web" / "link.txt").symlink_to(tmp_path / "secret.txt")
    for path in ("/operator", "/operator/inbox", "/operator/conversations/abc"):
        answer = door.ask(path, cookie=door.cookie)
        assert (answer.status, answer.body) == (200, b"<!doctype html><title>Console</title>")
        assert answer.headers["cache-control"] == "no-store"
        assert door.ask(path, "HEAD", cookie=door.cookie).status == 200
    file = door.ask("/operator/static/views/inbox.js", cookie=door.cookie)
    assert (file.status, file.body) == (200, b"export {};")
    again = door.ask(
        "/operator/static/views/inbox.js", cookie=door.cookie, if_none_match=file.headers["etag"]
    )
    assert again.status == 304
    assert door.ask("/operator/static/views/inbox.js").status == 401
    assert (
        door.ask("/operator/static/views/inbox.js", cookie="x", if_none_match=file.headers["etag"]).status
        == 401
    )
    for path in (
        "nothing.js",
        "",
        "views",
        "../secret.txt",
        "%2e%2e/secret.txt",
        "..%2fsecret.txt",
        "link.txt",
        "%2fetc/passwd",
        "%00",
        "views/inbox.js%00",
        "x" * 300,
    ):
        assert door.ask(f"/operator/static/{path}", cookie=door.cookie).status == 404, path
    posted = door.ask("/operator", "POST", cookie=door.cookie, x_csrf_token=csrf_of(door.token))
    assert posted.status == 405


# --- guessing ---------------------------------------------------------------------------------------------


def test_twenty_wrong_passwords_for_one_account(door: Door) -> None:
    """From one address after another, and whatever they claim to come from. A name nobody has: the same."""
    door.accounts.add("ben", "reviewer", PASSWORD)
    told: dict[str, list[tuple[int, bytes]]] = {}
    for series, name in enumerate(("ben", "nobody")):
        answers = [
            door.sign_in(name, WRONG, f"127.1.{series}.{n + 1}", x_forwarded_for=f"10.0.0.{n}")
            for n in range(20)
        ]
        assert [answer.status for answer in answers] == [401] * 5 + [429] * 15
        assert all(0 < int(answer.headers["retry-after"]) <= 60 for answer in answers[5:])
        told[name] = [(answer.status, answer.body) for answer in answers[:5]]
        assert answers[-1].json["error"]["message"].startswith("too many tries; try again in ")
    assert told["ben"] == told["nobody"]
    assert door.sign_in("ben", PASSWORD, "127.1.9.1").status == 429, "the right one is not looked at either"


def test_twenty_wrong_passwords_over_many_accounts(door: Door) -> None:
    answers = [
        door.sign_in(
            f"name {n}", WRONG, "127.2.0.1", x_forwarded_for=f"10.0.0.{n}", forwarded=f"for=10.1.1.{n}"
        )
        for n in range(20)
    ]
    assert [answer.status for answer in answers] == [401] * 15 + [429] * 5
    assert all(0 < int(answer.headers["retry-after"]) <= 20 for answer in answers[15:])
    assert door.sign_in("another name", WRONG, "127.2.0.2").status == 401, "others are not kept out by it"


def test_right_passwords_use_up_no_tries(door: Door) -> None:
    door.accounts.add("carla", "reviewer", PASSWORD)
    assert {door.sign_in("carla", PASSWORD, "127.3.0.1").status for _ in range(30)} == {200}


def test_nobody_is_kept_out_by_guesses_from_elsewhere(door: Door) -> None:
    door.accounts.add("dora", "reviewer", PASSWORD)
    assert door.sign_in("dora", PASSWORD, "127.4.0.1").status == 200
    for n in range(10):
        door.sign_in("dora", WRONG, f"127.4.1.{n + 1}")
    assert door.sign_in("dora", PASSWORD, "127.4.1.99").status == 429
    assert door.sign_in("dora", PASSWORD, "127.4.0.1").status == 200
    statuses = [door.sign_in("dora", WRONG, "127.4.0.1").status for _ in range(8)]
    assert statuses == [401] * 5 + [429] * 3, "a known address has no more tries than others"


def test_guesses_of_the_present_password_are_counted_as_well(door: Door) -> None:
    door.accounts.add("emil", "reviewer", PASSWORD)
    found = door.accounts.sign_in("emil", PASSWORD)
    assert found is not None
    headers = {"cookie": f"turnwise_operator={found[1]}", "x_csrf_token": csrf_of(found[1])}
    body = {"old": WRONG, "new": "one more password"}
    statuses = [
        door.ask("/api/operator/password", "POST", body, peer="127.5.0.1", **headers).status for _ in range(8)
    ]
    assert statuses == [403] * 5 + [429] * 3


def test_behind_a_trusted_proxy_addresses_are_its_visitors(tiny_model_dir: Path, tmp_path: Path) -> None:
    for door in opened(tmp_path, tiny_model_dir, trusted_proxies=("127.0.0.1",)):
        for n in range(20):
            last = door.sign_in(f"name {n}", WRONG, "127.0.0.1", x_forwarded_for="10.0.0.1").status
        assert last == 429
        assert door.sign_in("x", WRONG, "127.0.0.1", x_forwarded_for="10.0.0.2").status == 401
        spoofed = door.sign_in("y", WRONG, "127.0.0.1", x_forwarded_for="10.9.9.9, 10.0.0.1").status
        assert spoofed == 429, "only what the proxy added is believed"
        assert door.sign_in("z", WRONG, "127.0.0.2", x_forwarded_for="10.0.0.1").status == 401
        given = {"name": "ana", "password": PASSWORD}
        secure = door.ask(
            "/api/operator/login",
            "POST",
            given,
            x_forwarded_for="10.0.0.3",
            x_forwarded_proto="https",
            origin=door.live.address.replace("http:", "https:"),
        )
        assert secure.status == 200
        assert "; Secure" in secure.headers["set-cookie"]


def test_a_flood_of_sign_ins_does_not_hold_up_the_chat(
    door: Door, real_hashes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords are looked at one at a time, few wait, and whoever was here before is not left outside."""
    door.accounts.add("fritz", "reviewer", PASSWORD)
    assert door.sign_in("fritz", PASSWORD, "127.6.0.1").status == 200
    at_once, most = 0, 0
    lock = threading.Lock()
    matches = passwords.matches

    def watched(kept: str, password: str) -> bool:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        try:
            return matches(kept, password)
        finally:
            with lock:
                at_once -= 1

    monkeypatch.setattr(passwords, "matches", watched)
    over = threading.Event()

    def guess(number: int) -> list[int]:
        statuses: list[int] = []
        while not over.is_set():
            peer = f"127.7.{number}.{len(statuses) % 200 + 1}"
            statuses.append(door.sign_in(f"{number} {len(statuses)}", WRONG, peer).status)
            over.wait(0.05)
        return statuses

    async def chat() -> list[float]:
        seconds = []
        async with chatting(door.live.address) as client:
            await client.hello()
            for number in range(20):
                began = time.monotonic()
                await client.send(Say(type="say", id=f"m{number}", text="one two three"))
                await client.until(Message)
                seconds.append(time.monotonic() - began)
        return seconds

    with ThreadPoolExecutor(24) as threads:
        floods = [threads.submit(guess, number) for number in range(24)]
        try:
            seconds = asyncio.run(chat())
            entered = [door.sign_in("fritz", PASSWORD, "127.6.0.1").status for _ in range(3)]
        finally:
            over.set()
    statuses = [status for flood in floods for status in flood.result()]
    assert most == 1
    assert set(statuses) == {401, 429}
    assert statuses.count(429) > statuses.count(401)
    assert entered == [200] * 3
    assert sorted(seconds)[len(seconds) // 2] < 2


# --- the parts --------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tries(throttled: Throttle, name: str, address: str, count: int = 100) -> int:
    """How many guesses are let through."""
    for number in range(count):
        try:
            throttled.begin(name, address)
        except Busy:
            return number
    return count


def test_tries_come_back_one_by_one() -> None:
    clock = Clock()
    throttled = Throttle(clock)
    assert tries(throttled, "ana", "a") == throttle.TRIES_PER_ACCOUNT
    with pytest.raises(Busy) as refused:
        throttled.begin("ana", "b")
    assert refused.value.seconds == pytest.approx(throttle.ACCOUNT_SECONDS)
    assert tries(throttled, "ana", "a") == 0
    clock.now += throttle.ACCOUNT_SECONDS
    assert tries(throttled, "ana", "a") == 1
    clock.now += 24 * 3600
    assert tries(throttled, "ana", "a") == throttle.TRIES_PER_ACCOUNT


def test_who_is_refused_for_the_account_keeps_the_tries_of_the_address() -> None:
    throttled = Throttle(Clock())
    assert tries(throttled, "ana", "a") == throttle.TRIES_PER_ACCOUNT
    for _ in range(100):
        assert tries(throttled, "ana", "a") == 0
    left = throttle.TRIES_PER_ADDRESS - throttle.TRIES_PER_ACCOUNT
    assert sum(tries(throttled, f"name {n}", "a", 1) for n in range(100)) == left


def test_guesses_that_are_made_at_the_same_time_are_all_counted() -> None:
    throttled = Throttle(Clock())
    for _ in range(throttle.TRIES_PER_ACCOUNT):
        throttled.begin("ana", "a")
    with pytest.raises(Busy):
        throttled.begin("ana", "a")
    throttled.right("ana", "a")
    throttled.begin("ana", "a")


def test_names_in_another_case_are_the_same_account() -> None:
    throttled = Throttle(Clock())
    assert sum(tries(throttled, name, "a", 1) for name in ("ana", "Ana", "ANA") * 5) == 5


def test_not_every_familiar_address_is_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "FAMILIAR", 2)
    throttled = Throttle(Clock())
    for address in ("a", "b", "c"):
        throttled.begin("ana", address)
        throttled.right("ana", address)
    assert [throttled.familiar("ana", address) for address in ("a", "b", "c")] == [False, True, True]


def test_one_by_one_and_few_wait() -> None:
    async def scenario() -> None:
        turns = OneByOne(waiting=2, reserved=1)
        go = asyncio.Event()
        running = 0

        async def call() -> str:
            nonlocal running
            running += 1
            assert running == 1
            await go.wait()
            running -= 1
            return "done"

        def ask(stranger: bool) -> asyncio.Task[str]:
            return asyncio.create_task(turns(call, stranger=stranger))

        strangers = [ask(True) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await turns(call, stranger=True)
        known = ask(False)
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await turns(call, stranger=False)
        strangers[0].cancel()
        await asyncio.sleep(0)
        with pytest.raises(Busy):  # nobody waits for it any more, but it is still being looked at
            await turns(call, stranger=False)
        go.set()
        assert await asyncio.gather(*strangers[1:], known) == ["done"] * 3
        assert await turns(call, stranger=True) == "done"

    asyncio.run(scenario())


def test_a_call_that_fails_gives_its_turn_away() -> None:
    async def scenario() -> None:
        turns = OneByOne(waiting=0, reserved=0)

        async def fails() -> None:
            raise RuntimeError

        for _ in range(3):
            with pytest.raises(RuntimeError):
                await turns(fails, stranger=True)
            await asyncio.sleep(0)

    asyncio.run(scenario())
