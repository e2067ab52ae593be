"""The operators' console for tests: the whole server in this process, and operators who are signed in to it.

    async def test_something(tmp_path: Path, tiny_model_dir: Path) -> None:
        async with console_over(tmp_path, tiny_model_dir) as console:          # a new SQLite database
            client = await console.sign_in("reviewer")                         # or "admin"; httpx.AsyncClient
            talk = console.conversation([("hello", "hi there"), ("and a latte?", None)])
            answer = await client.get(f"/api/operator/conversations/{talk.id}")
            assert answer.status_code == 200

`console_over(url=…)` takes a database of `tests.databases.fresh_database` (it is upgraded here),
`script=parrot` a scripted model (see tests.scripted_batcher), and settings by name:
`console_over(tmp_path, models, rows=2)`. Tests are plain `def`s around `asyncio.run(…)`;
`run(console_over(…), test)` does both. A client sends the cookie, its Origin and the CSRF token by itself;
`console.client()` is nobody. Each role has one operator, named as the role, and each `sign_in` is a session
of its own; `name=` makes, or takes, another one. `console.db`, `console.store`, `console.application` and
`console.desk` (server.console.context.Console) are there to look behind. Server-sent events do not come in
pieces through httpx's ASGITransport, which waits for the end of an answer: read them with
`console.stream(client, path)`, or over a socket with tests.live_server.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import sqlalchemy

from chatbot import model_directory
from server import database
from server.app import Application
from server.console.context import Console
from server.settings import Settings
from server.store import NewReply, Store
from tests.databases import upgrade
from tests.scripted_batcher import Gate, Script, ScriptedBatcher

ADDRESS: Final = "http://console.test"
PASSWORD: Final = "correct horse battery"
MODEL: Final = "f" * 64
"""Fingerprint of the model that made stored replies, if none is given."""
PATIENCE: Final = 20.0


@dataclass(frozen=True)
class Talk:
    """A stored conversation. said, replies: message ids, a reply's None where there is none."""

    id: str
    visitor: str
    token: str
    said: list[str]
    replies: list[str | None]


@dataclass
class TestConsole:
    """The server and what stands behind it. address: the origin of its pages."""

    __test__ = False

    application: Application
    desk: Console
    db: sqlalchemy.Engine
    store: Store
    gate: Gate
    batcher: ScriptedBatcher | None
    address: str
    stack: AsyncExitStack = field(repr=False)

    async def client(self, peer: str = "127.0.0.1", **headers: str) -> httpx.AsyncClient:
        """A browser that nobody is signed in with; it sends its Origin, as browsers do. Closed at the end."""
        transport = httpx.ASGITransport(self.application, client=(peer, 50000), raise_app_exceptions=False)
        given = {"origin": self.address, **headers}
        client = httpx.AsyncClient(
            transport=transport, base_url=self.address, headers=given, timeout=PATIENCE
        )
        return await self.stack.enter_async_context(client)

    async def sign_in(
        self, role: Literal["reviewer", "admin"] = "reviewer", name: str | None = None
    ) -> httpx.AsyncClient:
        """A browser with a session of the operator of that name, who is added with `PASSWORD` if need be."""
        name = name or role
        accounts = self.desk.accounts
        if await asyncio.to_thread(accounts.named, name) is None:
            await asyncio.to_thread(accounts.add, name, role, PASSWORD)
        client = await self.client()
        answer = await client.post("/api/operator/login", json={"name": name, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        client.headers["x-csrf-token"] = answer.json()["csrf"]
        return client

    def conversation(
        self,
        turns: Sequence[tuple[str, str | None]],
        *,
        visitor: str | None = None,
        model: str = MODEL,
        **reply: Any,
    ) -> Talk:
        """A conversation of user turns and their replies; None: the turn has none yet.

        visitor: the id of one who is there already. reply: other values of every `NewReply`.
        """
        token = ""
        if visitor is None:
            grant = self.store.new_visitor()
            visitor, token = grant.visitor_id, grant.token
        talk = Talk(self.store.open_conversation(visitor), visitor, token, [], [])
        for text, answer in turns:
            self.say(talk, text, answer, model=model, **reply)
        return talk

    def say(
        self, talk: Talk, text: str, answer: str | None = None, *, model: str = MODEL, **reply: Any
    ) -> str:
        """One more user turn and its reply, if there is one; the id of the user turn."""
        said = self.store.add_user_turn(talk.id, uuid.uuid4().hex, text, {}).message_id
        talk.said.append(said)
        talk.replies.append(None)
        if answer is not None:
            new = new_reply(said, answer, model=model, **reply)
            talk.replies[-1] = self.store.add_reply(talk.id, new).message_id
        return said

    @asynccontextmanager
    async def stream(self, client: httpx.AsyncClient, path: str) -> AsyncIterator[Streamed]:
        """A GET whose answer is read as it comes; the client leaves at the end of the block."""
        streamed = Streamed(self.application, client, path)
        try:
            await streamed.begin()
            yield streamed
        finally:
            await streamed.leave()


class Streamed:
    """An answer that comes in pieces. ended: whether the server has ended it."""

    def __init__(self, application: Application, client: httpx.AsyncClient, path: str) -> None:
        request = client.build_request("GET", path)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = asyncio.Event()
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self._left = asyncio.Event()
        self._started = asyncio.Event()
        self._buffer = b""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port),
            "client": ("127.0.0.1", 50000),
            "root_path": "",
        }
        self._task = asyncio.create_task(self._run(application, scope))

    async def _run(self, application: Application, scope: dict[str, Any]) -> None:
        try:
            await application(scope, self._receive, self._send)  # type: ignore[arg-type]
        finally:
            self.ended.set()
            self._started.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._started.is_set():
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            self._started.set()
        else:
            self._pieces.put_nowait(message.get("body", b""))
            if not message.get("more_body"):
                self.ended.set()

    async def begin(self) -> None:
        """Until there is a status."""
        async with asyncio.timeout(PATIENCE):
            await self._started.wait()

    async def event(self) -> tuple[str, str]:
        """The next server-sent event: its name and its data. Comments are passed over."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while b"\n\n" not in self._buffer:
                    self._buffer += await self._pieces.get()
                block, _, self._buffer = self._buffer.partition(b"\n\n")
                fields = [line.partition(":") for line in block.decode().split("\n") if line[:1] != ":"]
                data = [value.removeprefix(" ") for name, _, value in fields if name == "data"]
                if data:
                    name = next((v.strip() for n, _, v in fields if n == "event"), "message")
                    return name, "\n".join(data)

    async def until_end(self) -> None:
        """Until the server has ended the answer."""
        async with asyncio.timeout(PATIENCE):
            await self.ended.wait()

    async def leave(self) -> None:
        """As a browser whose tab is closed."""
        self._left.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(self._task, return_exceptions=True)


def new_reply(answers: str, text: str, **values: Any) -> NewReply:
    """A reply as a model makes it, with `values` in the place of its own."""
    made: dict[str, Any] = {
        "reply_id": uuid.uuid4().hex,
        "finish_reason": "stop",
        "model": MODEL,
        "options": {"beam_size": 1},
        "seed": 0,
        "token_ids": [1, 2],
        "logprobs": [-0.25, -0.5],
        "alternatives": [],
        "queued_ms": 1.0,
        "first_token_ms": 5.0,
        "total_ms": 20.0,
    }
    return NewReply(answers=answers, text=text, **{**made, **values})


@asynccontextmanager
async def console_over(
    folder: Path | None = None,
    models: Path | None = None,
    *,
    url: str | None = None,
    script: Script | None = None,
    address: str = ADDRESS,
    **settings: Any,
) -> AsyncIterator[TestConsole]:
    """The server, started, over a new SQLite database in `folder` or the one at `url`.

    models: the model directory; `tiny_model_dir` is a fixture that gives one. address: what browsers call the
    server.
    """
    if url is None:
        assert folder is not None, "a folder or a database is needed"
        url = f"sqlite:///{folder / 'turnwise.db'}"
    await asyncio.to_thread(upgrade, url)
    told = Settings(database_url=url, models=models, threads=1, device="cpu", **settings)
    db = database.connect(url)
    gate = Gate()
    batcher = None if script is None else ScriptedBatcher(script, gate)
    model = model_directory.describe(model_directory.find_model(models or model_directory.SHIPPED))
    application = Application(told, model, db, None if batcher is None else lambda: batcher)
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(_lifespan(application))
            stack.callback(gate.open)
            desk = application._console
            yield TestConsole(application, desk, db, Store(db), gate, batcher, address, stack)
    finally:
        db.dispose()


def run(
    console: AbstractAsyncContextManager[TestConsole], test: Callable[[TestConsole], Awaitable[None]]
) -> None:
    """`test(console)` on an event loop of its own."""

    async def whole() -> None:
        async with console as started:
            await test(started)

    asyncio.run(whole())


@asynccontextmanager
async def _lifespan(application: Application) -> AsyncIterator[None]:
    """Start-up before and shutdown after, by ASGI's own messages, as uvicorn does it."""
    asked: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.create_task(application(scope, asked.get, told.put))  # type: ignore[arg-type]
    await asked.put({"type": "lifespan.startup"})
    answer = await told.get()
    assert answer["type"] == "lifespan.startup.complete", answer
    try:
        yield
    finally:
        await asked.put({"type": "lifespan.shutdown"})
        await told.get()
        await task
