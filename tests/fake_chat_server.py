"""A scripted chat server for tests of the web client.

It serves the real pages and speaks `chat.v1` as the contract says, keeps conversations in memory, and
misbehaves when told to: drops connections before or after a turn is committed, sends events twice, refuses,
answers slowly, forgets. A test runs in its own thread; `FakeChat.act` carries its steps over to the loop.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from server.http import HEADERS, WEB

TEXT: Final = "text/plain"
JSON: Final = "application/json"
FINGERPRINT: Final = "tw-0123456789abcdef"

Frame = dict[str, Any]
Fault = Literal["lose before commit", "lose after commit"]


@dataclass
class Reply:
    """One reply under way: what was streamed so far, and what the final message will add."""

    id: str
    answers: str
    replaces: str | None = None
    text: str = ""
    extra: Frame = field(default_factory=dict)


@dataclass
class Talk:
    """A conversation."""

    id: str
    token: str
    messages: list[Frame] = field(default_factory=list)
    client_ids: dict[str, Frame] = field(default_factory=dict)
    reply: Reply | None = None
    owner: str = "bot"
    waiting: bool = False
    sockets: set[ServerConnection] = field(default_factory=set)

    def append(self, role: str, text: str, **extra: Any) -> Frame:
        now = datetime.now(UTC).isoformat()
        number = len(self.messages) + 1
        names = {"type": "message", "seq": number, "message": f"m{number}-{self.id[:8]}"}
        self.messages.append({**names, "role": role, "text": text, "at": now, **extra})
        return self.messages[-1]


class FakeChat:
    """The server, and the switches of its misbehavior.

    With ``held`` set, a reply waits for `stream` and `finish`; otherwise `answer` gives it at once.
    """

    def __init__(self) -> None:
        self.address = ""
        self.loop: asyncio.AbstractEventLoop
        self.reset()

    def reset(self) -> None:
        """As new: no conversations, no misbehavior."""
        self.answer: Callable[[str], tuple[list[str], Frame]] = lambda text: (["You said: ", text], {})
        self.held = False
        self.twice = False
        self.closed_for: int | None = None
        self.limits: Frame = {"max_text": 2000, "max_tokens": 256, "max_frame": 65536}
        self.defaults: Frame = {"decoding": "sample", "temperature": 0.7, "top_p": 0.95, "max_tokens": 64}
        self.received: list[Frame] = []
        self.greetings: list[Frame] = []
        self.talks: dict[str, Talk] = {}
        self.tokens: set[str] = set()
        self.faults: list[Fault] = []
        self.errors: list[Frame] = []
        self.replying = asyncio.Event()
        self.heard = asyncio.Condition()

    # What a test asks and says, from its own thread.

    def act(self, scene: Callable[[], Any]) -> Any:
        """Runs ``scene`` on the server's loop and returns what it returns."""

        async def run() -> Any:
            result = scene()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    @property
    def talk(self) -> Talk:
        """The conversation last opened that has messages, else the one last opened."""
        talks = list(self.talks.values())
        return next((talk for talk in reversed(talks) if talk.messages), talks[-1])

    def said(self, role: str = "user") -> list[str]:
        """Texts committed to `talk`, in order."""
        return [message["text"] for message in self.talk.messages if message["role"] == role]

    def of_type(self, kind: str) -> list[Frame]:
        return [frame for frame in self.received if frame["type"] == kind]

    def stream(self, text: str) -> None:
        """One more piece of the reply under way; waits for it to begin."""

        async def go_on() -> None:
            await self.replying.wait()
            await self._stream(self.talk, text)

        self.act(go_on)

    def wait_for(self, kind: str, count: int) -> list[Frame]:
        """The frames of one type, as soon as clients have sent ``count`` of them."""

        async def wait() -> None:
            async with self.heard:
                await self.heard.wait_for(lambda: len(self.of_type(kind)) >= count)

        self.act(wait)
        return self.of_type(kind)

    def finish(self, reason: str = "stop", **extra: Any) -> None:
        self.act(lambda: self._finish(self.talk, reason, extra))

    def hand_over(self, owner: str) -> None:
        """Somebody else answers `talk`; a reply under way is dropped."""

        async def change() -> None:
            self.talk.owner, self.talk.waiting, self.talk.reply = owner, False, None
            self.replying.clear()
            await self._tell(self.talk, self._owner(self.talk))

        self.act(change)

    def answer_last(self) -> None:
        """The bot answers the last turn of `talk`."""
        self.act(lambda: self._reply(self.talk, Reply(uuid.uuid4().hex, self.talk.messages[-1]["message"])))

    def intervene(self, text: str) -> None:
        """An operator speaks in `talk`."""
        self.act(lambda: self._tell(self.talk, self.talk.append("agent", text, author="operator")))

    def tell(self, frame: Frame) -> None:
        """Sends ``frame`` to every socket of `talk`."""
        self.act(lambda: self._tell(self.talk, frame))

    def lose_connections(self, *, down: int | None = None, code: int | None = None) -> None:
        """Cuts every chat socket, without a goodbye unless ``code`` is given.

        ``down``: the HTTP status new ones get until `come_back`.
        """
        self.closed_for = down

        async def cut() -> None:
            for talk in self.talks.values():
                for socket in list(talk.sockets):
                    if code is None:
                        socket.transport.abort()
                    else:
                        await socket.close(code)

        self.act(cut)

    def come_back(self) -> None:
        self.closed_for = None

    def forget_everything(self) -> None:
        """As after the database was lost."""

        def forget() -> None:
            self.talks.clear()
            self.tokens.clear()

        self.act(forget)

    # HTTP

    def respond(self, connection: ServerConnection, request: Request) -> Response | None:
        path = urlsplit(request.path).path
        if path == "/v1/chat":
            return None if self.closed_for is None else _response(HTTPStatus(self.closed_for), b"", TEXT)
        if path == "/api/conversations":
            asked = parse_qs(urlsplit(request.path).query)
            offset, limit = (int(asked[name][0]) for name in ("offset", "limit"))
            return self._conversations(
                request.headers.get("Authorization", ""), slice(offset, offset + limit)
            )
        name = "index.html" if path == "/" else path.removeprefix("/static/")
        file = WEB / name
        if "/" in name or not file.is_file():
            return _response(HTTPStatus.NOT_FOUND, b"", TEXT)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return _response(HTTPStatus.OK, file.read_bytes(), kind)

    def _conversations(self, authorization: str, part: slice) -> Response:
        token = authorization.removeprefix("Bearer ")
        if token not in self.tokens:
            return _response(HTTPStatus.UNAUTHORIZED, b'{"error": {"code": "unauthenticated"}}', JSON)
        found = [
            {
                "id": talk.id,
                "title": talk.messages[0]["text"][:80],
                "created_at": talk.messages[0]["at"],
                "updated_at": talk.messages[-1]["at"],
            }
            for talk in self.talks.values()
            if talk.token == token and talk.messages
        ]
        return _response(HTTPStatus.OK, json.dumps({"conversations": found[::-1][part]}).encode(), JSON)

    # The chat socket

    async def converse(self, socket: ServerConnection) -> None:
        talk: Talk | None = None
        try:
            talk = await self._greet(socket, json.loads(await socket.recv()))
            if talk is not None:
                async for text in socket:
                    frame = json.loads(text)
                    async with self.heard:
                        self.received.append(frame)
                        self.heard.notify_all()
                    await self._take(talk, socket, frame)
        except ConnectionClosed:
            pass
        finally:
            if talk is not None:
                talk.sockets.discard(socket)

    async def _greet(self, socket: ServerConnection, hello: Frame) -> Talk | None:
        self.greetings.append(hello)
        token = hello["token"]
        if token is not None and token not in self.tokens:
            await socket.close(4401)
            return None
        talk = self.talks.get(hello["conversation"]) if hello["conversation"] else None
        if hello["conversation"] and (talk is None or talk.token != token):
            await _send(socket, {"type": "error", "code": "not_found", "message": "no such conversation"})
            await socket.close(4403)
            return None
        if token is None:
            token = uuid.uuid4().hex
            self.tokens.add(token)
        if talk is None:
            talk = Talk(uuid.uuid4().hex, token)
            self.talks[talk.id] = talk
        talk.sockets.add(socket)
        await _send(socket, self._ready(talk, hello["last_seq"]))
        return talk

    def _ready(self, talk: Talk, last_seq: int) -> Frame:
        reply = talk.reply
        return {
            "type": "ready",
            "token": talk.token,
            "conversation": talk.id,
            "model": FINGERPRINT,
            "seq": len(talk.messages),
            "messages": talk.messages[last_seq:],
            "owner": talk.owner,
            **({"waiting": True} if talk.waiting else {}),
            "replying": None if reply is None else {"reply": reply.id, "text": reply.text},
            "defaults": self.defaults,
            "limits": self.limits,
        }

    async def _take(self, talk: Talk, socket: ServerConnection, frame: Frame) -> None:
        kind = frame["type"]
        if kind == "say":
            await self._say(talk, socket, frame)
        elif kind == "cancel" and talk.reply is not None and talk.reply.id == frame["reply"]:
            await self._finish(talk, "cancelled", {})
        elif kind == "regenerate":
            old = next(message for message in talk.messages if message.get("reply") == frame["reply"])
            await self._reply(talk, Reply(uuid.uuid4().hex, old["answers"], replaces=old["message"]))
        elif kind == "rate":
            await _send(socket, {"type": "rated", "message": frame["message"], "rating": frame["rating"]})
        elif kind == "human":
            talk.waiting = talk.owner == "bot"
            await self._tell(talk, self._owner(talk))
        elif kind == "ping":
            await _send(socket, {"type": "pong"})

    async def _say(self, talk: Talk, socket: ServerConnection, frame: Frame) -> None:
        if self.errors:
            error = {"type": "error", "id": frame["id"], "message": "scripted", **self.errors.pop(0)}
            await _send(socket, error)
            return
        fault = self.faults.pop(0) if self.faults else None
        if fault == "lose before commit":
            socket.transport.abort()
            return
        known = talk.client_ids.get(frame["id"])
        turn = known or talk.append("user", frame["text"], client_id=frame["id"])
        talk.client_ids[frame["id"]] = turn
        if fault == "lose after commit":
            socket.transport.abort()
        else:
            accepted = {"type": "accepted", "id": frame["id"], "message": turn["message"], "seq": turn["seq"]}
            await self._tell_one(socket, accepted)
            await self._tell(talk, turn, but=socket)
        if known is None and talk.owner == "bot":
            await self._reply(talk, Reply(uuid.uuid4().hex, turn["message"]))

    def _owner(self, talk: Talk) -> Frame:
        waiting = {"waiting": True} if talk.waiting else {}
        return {"type": "owner", "owner": talk.owner, **waiting}

    async def _reply(self, talk: Talk, reply: Reply) -> None:
        talk.reply = reply
        self.replying.set()
        await self._stream(talk, "")
        if self.held:
            return
        text = next(message["text"] for message in talk.messages if message["message"] == reply.answers)
        pieces, extra = self.answer(text)
        for piece in pieces:
            await self._stream(talk, piece)
        await self._finish(talk, "stop", extra)

    async def _stream(self, talk: Talk, text: str) -> None:
        assert talk.reply is not None
        frame = {"type": "delta", "reply": talk.reply.id, "offset": len(talk.reply.text), "text": text}
        talk.reply.text += text
        await self._tell(talk, frame)

    async def _finish(self, talk: Talk, reason: str, extra: Frame) -> None:
        reply = talk.reply
        assert reply is not None
        talk.reply = None
        self.replying.clear()
        names = {"reply": reply.id, "answers": reply.answers}
        facts = {"finish_reason": reason, "model": FINGERPRINT, "seed": 7}
        replaces = {} if reply.replaces is None else {"replaces": reply.replaces}
        await self._tell(talk, talk.append("agent", reply.text, **{**names, **facts, **replaces, **extra}))

    async def _tell(self, talk: Talk, frame: Frame, but: ServerConnection | None = None) -> None:
        for socket in list(talk.sockets - {but}):
            await self._tell_one(socket, frame)

    async def _tell_one(self, socket: ServerConnection, frame: Frame) -> None:
        for _ in range(2 if self.twice else 1):
            await _send(socket, frame)


async def _send(socket: ServerConnection, frame: Frame) -> None:
    with suppress(ConnectionClosed):  # A client that went reads it from `ready` when it comes back.
        await socket.send(json.dumps(frame))


def _response(status: HTTPStatus, body: bytes, kind: str) -> Response:
    headers = Headers()
    headers["Content-Type"] = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
    headers["Content-Length"] = str(len(body))
    # The files stay as they are while the tests run, and fetching them is most of what a test does.
    caching = {} if kind in {TEXT, JSON} else {"cache-control": "max-age=3600"}
    for name, value in {**HEADERS, **caching}.items():
        headers[name] = value
    headers["Connection"] = "close"
    return Response(status.value, status.phrase, headers, body)


@contextmanager
def running() -> Iterator[FakeChat]:
    """A fresh `FakeChat` on a free port of the loopback."""
    chat = FakeChat()
    started, stopped = threading.Event(), asyncio.Event()

    async def run() -> None:
        chat.loop = asyncio.get_running_loop()
        async with serve(
            chat.converse,
            "127.0.0.1",
            0,
            process_request=chat.respond,
            subprotocols=[Subprotocol("chat.v1")],
            close_timeout=0.2,
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            chat.address = f"http://127.0.0.1:{port}"
            started.set()
            await stopped.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(10)
    try:
        yield chat
    finally:
        chat.loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
