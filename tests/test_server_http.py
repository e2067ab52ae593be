"""The HTTP side: pages, health, conversations, and errors of one shape."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from server import http, logs, reference
from server.chat_socket import may_connect
from server.engine import Engine
from server.http import CONTENT_SECURITY_POLICY, Backend, Readiness
from server.limits import address_key
from server.offload import Offload
from server.store import Store, StoreUnavailable
from tests.chat_client import chatting
from tests.live_server import LiveServer, serving
from tests.scripted_batcher import Gate, ScriptedBatcher, parrot


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    url = f"sqlite:///{tmp_path_factory.mktemp('live') / 'turnwise.db'}"
    with serving(url, tiny_model_dir, parrot) as running:
        yield running


def ask(server: LiveServer, path: str, method: str = "GET", **headers: str) -> Answer:
    """One request, its path as it is given: nothing is cleaned up on the way."""
    connection = HTTPConnection(urlsplit(server.address).netloc, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        body = response.read()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body)
    finally:
        connection.close()


def test_the_chat_page_and_its_files_are_served(server: LiveServer) -> None:
    page = ask(server, "/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.body == (http.WEB / "index.html").read_bytes()
    assert ask(server, "/", "HEAD").status == 200
    for file in http.WEB.iterdir():
        assert ask(server, f"/static/{file.name}").body == file.read_bytes()


def test_a_page_that_did_not_change_is_not_sent_again(server: LiveServer) -> None:
    first = ask(server, "/")
    assert first.headers["cache-control"] == "no-cache"
    again = ask(server, "/", **{"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/livez", "/nothing", "/docs", "/v1/chat"])
def test_every_answer_keeps_foreign_code_out(server: LiveServer, path: str) -> None:
    headers = ask(server, path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_pages_have_neither_inline_code_nor_inline_style(server: LiveServer) -> None:
    for page in (ask(server, "/").body, ask(server, "/docs").body):
        text = page.decode().lower()
        assert "<script>" not in text
        assert "<style" not in text
        assert "style=" not in text
        assert " onclick=" not in text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/static/", 404, "not_found"),
        ("GET", "/static/nothing.js", 404, "not_found"),
        ("GET", "/static/../app.py", 404, "not_found"),
        ("GET", "/static/%2e%2e/app.py", 404, "not_found"),
        ("GET", "/static/..%2fapp.py", 404, "not_found"),
        ("GET", "/static//etc/passwd", 404, "not_found"),
        ("GET", "/static/%00", 404, "not_found"),
        ("POST", "/", 405, "method_not_allowed"),
        ("POST", "/static/app.js", 405, "method_not_allowed"),
        ("POST", "/v1/chat", 405, "method_not_allowed"),
        ("GET", "/v1/chat", 426, "upgrade_required"),
        ("GET", "/api/conversations", 401, "unauthenticated"),
        ("GET", "/api/conversations?limit=0", 400, "bad_request"),
        ("GET", "/api/conversations?limit=many", 400, "bad_request"),
        ("GET", "/api/conversations?offset=-1", 400, "bad_request"),
    ],
)
def test_every_error_has_one_shape(
    server: LiveServer, method: str, path: str, status: int, code: str
) -> None:
    answer = ask(server, path, method)
    assert answer.status == status
    assert answer.json.keys() == {"error"}
    assert answer.json["error"]["code"] == code
    assert answer.json["error"]["message"]


def test_an_upgrade_is_only_to_be_had_at_the_chat(server: LiveServer) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    assert ask(server, "/v1/chat", **upgrade).status == 101
    answer = ask(server, "/v1/chats", **upgrade)
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
    assert ask(server, "/v1/chat", **{**upgrade, "Sec-WebSocket-Version": "12"}).status == 400


def test_health_and_version(server: LiveServer) -> None:
    assert ask(server, "/livez").json == {"status": "alive"}
    assert ask(server, "/readyz").json == {"status": "ready"}
    for path in ("/livez", "/readyz"):  # some load balancers ask for nothing but the head
        assert (ask(server, path, "HEAD").status, ask(server, path, "HEAD").body) == (200, b"")
    version = ask(server, "/version").json
    assert version.keys() == {"version", "model", "protocol"}
    assert version["model"].startswith("tw-")
    assert version["protocol"] == "chat.v1"


def test_a_visitor_sees_their_conversations_and_nobody_elses(server: LiveServer) -> None:
    async def talk(text: str) -> tuple[str, str]:
        async with chatting(server.address) as client:
            ready = await client.hello()
            await client.say(text)
            await client.reply()
            return ready.token, ready.conversation

    token, conversation = asyncio.run(talk("Where is my parcel?"))
    asyncio.run(talk("Somebody else"))
    found = ask(server, "/api/conversations", Authorization=f"Bearer {token}").json["conversations"]
    assert [(one["id"], one["title"]) for one in found] == [(conversation, "Where is my parcel?")]
    assert found[0]["created_at"].endswith("Z")
    rest = ask(server, "/api/conversations?offset=1", Authorization=f"Bearer {token}").json["conversations"]
    assert rest == []
    for authorization in ("Bearer nobody", f"Basic {token}", token, "Bearer ", "Bearer \u00e9"):
        assert ask(server, "/api/conversations", Authorization=authorization).status == 401


def test_a_missing_database_is_said_so_and_nothing_more(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise StoreUnavailable("could not connect to db.internal as turnwise")

    monkeypatch.setattr(Store, "visitor_of", gone)
    answer = ask(server, "/api/conversations", Authorization="Bearer x")
    assert (answer.status, answer.json["error"]["code"]) == (503, "unavailable")
    assert b"internal" not in answer.body


def test_a_fault_of_ours_shows_no_traceback(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("my secret")

    monkeypatch.setattr(Store, "visitor_of", broken)
    answer = ask(server, "/api/conversations", Authorization="Bearer x")
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal")
    assert b"secret" not in answer.body
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_reference_names_every_route_and_escapes_it(server: LiveServer) -> None:
    described = ask(server, "/openapi.json").json
    page = ask(server, "/docs").body.decode()
    operators = {path for path in described["paths"] if path.startswith("/api/operator/")}
    assert {"/api/operator/login", "/api/operator/conversations", "/api/operator/jobs"} <= operators
    assert set(described["paths"]) - operators == {
        "/livez",
        "/readyz",
        "/version",
        "/metrics",
        "/api/conversations",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{model}",
    }
    assert all(path in page for path in described["paths"])
    described["info"]["title"] = "<script>alert(1)</script>"
    assert "<script>" not in reference.page(described)


# --- readiness --------------------------------------------------------------------------------------------


class Pinged:
    """A store of which only the ping is asked."""

    def __init__(self) -> None:
        self.pings = 0
        self.gone = False

    def ping(self) -> None:
        self.pings += 1
        if self.gone:
            raise StoreUnavailable("gone")


def test_ready_means_a_token_and_a_write_and_asking_often_is_cheap() -> None:
    now = [100.0]
    stopping = [False]
    store = Pinged()
    gate = Gate()

    async def test() -> None:
        offload = Offload(1, "store")
        engine = Engine(lambda: ScriptedBatcher(parrot, gate), capacity=1, clock=lambda: now[0])
        engine.start()
        backend = Backend(store, offload, engine, lambda: stopping[0])  # type: ignore[arg-type]
        readiness = Readiness(backend, clock=lambda: now[0])
        for _ in range(5):
            assert await readiness.problem() is None
        assert store.pings == 1
        store.gone = True
        assert await readiness.problem() is None
        now[0] += 2
        assert await readiness.problem() == "the database does not answer"
        store.gone = False
        now[0] += 2
        assert await readiness.problem() is None
        stopping[0] = True
        assert await readiness.problem() == "the server is stopping"
        stopping[0] = False
        await engine.stop()
        now[0] += 2
        assert await readiness.problem() == "the engine: it is not running"
        offload.close()

    asyncio.run(test())


# --- the door ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://LOCALHOST:8000", "localhost:8000"),
        ("https://shop.example", "shop.example"),
        ("https://shop.example", "shop.example:443"),
        ("http://shop.example", "shop.example:80"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_a_host_trusts_its_own_pages(origin: str, host: str) -> None:
    assert may_connect([origin], [host], ())


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("null", "shop.example"),
        ("", "shop.example"),
        ("shop.example", "shop.example"),
        ("//shop.example", "shop.example"),
        ("file://shop.example", "shop.example"),
        ("https://shop.example/", "shop.example"),
        ("https://shop.example?", "shop.example"),
        ("https://shop.example#", "shop.example"),
        ("https://shop.example.evil.example", "shop.example"),
        ("https://evil.example", "shop.example"),
        ("https://shop.example@evil.example", "shop.example"),
        ("https://me@shop.example", "shop.example"),
        ("https://shop.example:8443", "shop.example"),
        ("https://shop.example", "shop.example:8443"),
        ("https://shop.example:port", "shop.example"),
        ("https://[", "shop.example"),
    ],
)
def test_a_host_trusts_no_others(origin: str, host: str) -> None:
    assert not may_connect([origin], [host], ())


def test_only_whole_origins_are_allowed_and_only_one_at_a_time() -> None:
    allowed = {"https://shop.example"}
    assert may_connect(["https://shop.example"], ["chat.example"], allowed)
    assert not may_connect(["https://shop.example:444"], ["chat.example"], allowed)
    assert not may_connect(["http://shop.example"], ["chat.example"], allowed)
    assert not may_connect(["https://chat.example", "https://chat.example"], ["chat.example"], allowed)
    assert not may_connect(["https://chat.example"], ["chat.example", "chat.example"], allowed)
    assert may_connect([], ["chat.example"], allowed)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_connections_are_counted_by_who_can_have_the_address(one: str, other: str, same: bool) -> None:
    assert (address_key((one, 1)) == address_key((other, 2))) is same


def test_a_client_without_an_address_is_counted_too() -> None:
    assert address_key(None) == ""


# --- logs -------------------------------------------------------------------------------------------------


def test_a_log_line_is_one_line_and_never_an_exceptions_message() -> None:
    with pytest.raises(ValueError, match="secret") as raised:
        raise ValueError("my secret\nof two lines")
    record = logging.LogRecord(
        "server", logging.ERROR, "", 0, "failed\n%s", ("x",), (raised.type, raised.value, raised.tb)
    )
    record.fields = {"count": 2}
    line = logs.LineFormatter().format(record)
    assert logs.place(raised.value).startswith("ValueError at test_server_http.py:")
    assert "\n" not in line
    assert "secret" not in line
    written = json.loads(line)
    assert (written["event"], written["level"], written["count"]) == ("failed\nx", "error", 2)


def test_of_what_libraries_say_only_the_first_line_is_kept() -> None:
    said = "Task exception was never retrieved\nfuture: <Task exception=ValueError('my secret')>"
    line = logs.LineFormatter().format(logging.LogRecord("asyncio", logging.ERROR, "", 0, said, (), None))
    assert json.loads(line)["event"] == "Task exception was never retrieved"
    assert "secret" not in line
