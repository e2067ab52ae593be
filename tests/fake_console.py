"""A scripted console API for tests of the operators' page.

`FakeConsole` serves the real page and answers as the API does, from memory: it keeps what it is told, tells
every change over server-sent events, and refuses, delays or forgets when a test says so.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from server.console.pages import WEB as CONSOLE_WEB
from server.http import HEADERS, WEB, with_headers

Json = dict[str, Any]
Answer = Callable[[Json], Response | Json | None]

CSRF: Final = "c" * 32
MODEL: Final = "tw-0123456789abcdef"
LABELS: Final = ["Wrong fact", "Did not understand", "Rude", "Too long"]
ME: Final = {"id": "o1", "name": "Ada", "role": "admin"}
CANNED: Final = [
    {"id": "k1", "title": "Greeting", "text": "Hello {name}, this is {operator}. How can I help?"},
    {"id": "k2", "title": "Goodbye", "text": "You are welcome. Goodbye!"},
]


def tokens_of(text: str, sure: float = 0.9) -> list[Json]:
    """Words with their spaces; each third one is half as likely."""
    words = [word if index == 0 else f" {word}" for index, word in enumerate(text.split(" "))]
    return [{"text": word, "logprob": math.log(sure / (1 + index % 3))} for index, word in enumerate(words)]


def generation(text: str, confidence: float | None = 0.83, **more: Any) -> Json:
    return {
        "model": MODEL,
        "finish_reason": "stop",
        "options": {"decoding": "beam", "beam_size": 4, "n_best": 3},
        "seed": "9223372036854775807",
        "confidence": confidence,
        "withheld": None,
        "queued_ms": 0.4,
        "first_token_ms": 12.5,
        "total_ms": 84.2,
        "tokens": tokens_of(text, confidence or 0.9),
        "alternatives": [
            {"text": text, "score": -0.4, "logprob": -3.1},
            {"text": f"{text} Indeed.", "score": -0.9, "logprob": -5.2},
        ],
        **more,
    }


class FakeConsole:
    """The console's API, and the switches of its misbehavior.

    answers: path -> what it gives instead (a response, a body, or None to go on as usual), by a test.
    """

    def __init__(self) -> None:
        self.address = ""
        self.loop: asyncio.AbstractEventLoop
        self.reset()

    def reset(self) -> None:
        self.me: Json = dict(ME)
        self.signed_in = True
        self.labels = list(LABELS)
        self.canned: list[Json] = [dict(one) for one in CANNED]
        self.conversations: dict[str, Json] = {}
        self.messages: dict[str, list[Json]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.answers: dict[str, Answer] = {}
        self.delays: dict[str, float] = {}
        self.queue: list[tuple[str, str]] = []
        self.suggest: Callable[[str], list[str]] = lambda typed: [
            f"{typed} of course" if typed else "Of course",
            f"{typed} I am afraid not" if typed else "I am afraid not",
        ]
        self.explanation: Json | None = None
        self.listeners: set[tuple[str, asyncio.Queue[tuple[str, Json]]]] = set()
        self.counter = itertools.count(1)
        self.began = datetime.now(UTC)

    # What tests do

    def add(self, turns: list[tuple[str, str]], **more: Any) -> str:
        """A conversation: [(visitor, bot or an operator's name, what was said)]. Newer ones come first."""
        number = next(self.counter)
        name: str = more.pop("id", f"c{number:04}")
        options = more.pop("generation", {})
        self.messages[name] = []
        at = self.began - timedelta(hours=2) + timedelta(seconds=number)
        self.conversations[name] = {
            "id": name,
            "visitor": f"v{number:07}",
            "title": next((text for who, text in turns if who == "visitor"), ""),
            "preview": turns[-1][1] if turns else "",
            "created_at": at.isoformat(),
            "updated_at": at.isoformat(),
            "messages": len(turns),
            "owner": "bot",
            "operator": None,
            "owner_version": 0,
            "waiting_since": None,
            "closed_at": None,
            "reviewed_at": None,
            "model": MODEL,
            "confidence": 0.83,
            "thumbs_down": False,
            "verdicts": {"good": 0, "bad": 0},
            "match": None,
            **more,
        }
        for who, text in turns:
            self.append(name, who, text, **options)
        return name

    def append(self, conversation: str, who: str, text: str, **options: Any) -> Json:
        messages = self.messages[conversation]
        asked = next((message["id"] for message in reversed(messages) if message["role"] == "user"), None)
        bot = who == "bot"
        message = {
            "id": f"{conversation}-m{len(messages) + 1}",
            "seq": len(messages) + 1,
            "role": "user" if who == "visitor" else "agent",
            "text": text,
            "at": (self.began - timedelta(hours=1)).isoformat(),
            "author": who if who in {"visitor", "bot"} else "operator",
            "operator": None if who in {"visitor", "bot"} else who,
            "answers": None if who == "visitor" else asked,
            "superseded": False,
            "rating": None,
            "comment": None,
            "verdict": None,
            "generation": generation(text, **options) if bot else None,
        }
        messages.append(message)
        summary = self.conversations[conversation]
        summary["preview"], summary["messages"] = text, len(messages)
        return message

    def says(self, conversation: str, who: str, text: str) -> None:
        """Somebody says something now, and everybody is told."""
        self.append(conversation, who, text)
        self.conversations[conversation]["updated_at"] = datetime.now(UTC).isoformat()
        self.changed(conversation, "said" if who == "visitor" else "replied")
        self.tell(conversation, "message", {"id": "x", "seq": 1})

    def changed(self, conversation: str, what: str = "said") -> None:
        self.tell("", "changed", {"conversation": conversation, "what": what})

    def tell(self, stream: str, event: str, data: Json) -> None:
        """To those who listen to a conversation's events, or to all of them ("")."""

        def put() -> None:
            for name, queue in self.listeners:
                if name == stream:
                    queue.put_nowait((event, data))

        self.loop.call_soon_threadsafe(put)

    def end_streams(self) -> None:
        def put() -> None:
            for _, queue in self.listeners:
                queue.put_nowait(("", {}))

        self.loop.call_soon_threadsafe(put)

    def listening(self, stream: str) -> bool:
        return any(name == stream for name, _ in set(self.listeners))

    def told(self, method: str, path: str) -> list[Any]:
        """Bodies of the requests to a path, in order."""
        return [body for verb, asked, body in list(self.requests) if (verb, asked) == (method, path)]

    def wait_for(self, method: str, path: str, count: int = 1) -> list[Any]:
        until = time.monotonic() + 15
        while len(found := self.told(method, path)) < count:
            assert time.monotonic() < until, f"no {method} {path}: {self.requests[-8:]}"
            time.sleep(0.02)
        return found

    def message(self, name: str) -> Json:
        return next(one for all_of in self.messages.values() for one in all_of if one["id"] == name)

    # The API

    async def handle(self, request: Request, path: str) -> Response:
        body = await request.body()
        told = json.loads(body) if body else None
        self.requests.append((request.method, path, told))
        if not self.signed_in:
            return refusal(401, "unauthenticated", "sign in first")
        if request.method != "GET" and request.headers.get("x-csrf-token") != CSRF:
            return refusal(403, "forbidden", "the X-CSRF-Token is missing")
        if (delay := self.delays.get(path)) is not None:
            await asyncio.sleep(delay)
        if path in self.answers and (given := self.answers[path](told or {})) is not None:
            return given if isinstance(given, Response) else JSONResponse(given)
        if path.endswith("/events") and request.method == "GET":
            return self.stream(path.removesuffix("/events").removeprefix("/conversations/").strip("/"))
        return self.answer(request.method, path.strip("/").split("/"), told or {}, dict(request.query_params))

    def stream(self, name: str) -> Response:
        queue: asyncio.Queue[tuple[str, Json]] = asyncio.Queue()
        key = (name, queue)

        async def events() -> AsyncIterator[str]:
            self.listeners.add(key)
            try:
                yield "event: ping\ndata: {}\n\n"
                while (item := await queue.get())[0]:
                    yield f"event: {item[0]}\ndata: {json.dumps(item[1])}\n\n"
            finally:
                self.listeners.discard(key)

        return StreamingResponse(events(), media_type="text/event-stream")

    def answer(self, method: str, parts: list[str], body: Json, query: dict[str, str]) -> Response:
        match [method, *parts]:
            case ["GET", "me"]:
                return JSONResponse({"operator": self.me, "csrf": CSRF})
            case ["POST", "logout"]:
                self.signed_in = False
                return Response(status_code=204)
            case ["GET", "counts"]:
                return JSONResponse(self.counts())
            case ["GET", "labels"]:
                rows = [{"name": name, "archived": False, "uses": 0} for name in self.labels]
                return JSONResponse({"labels": rows})
            case ["GET", "models"]:
                rows = [{"fingerprint": MODEL, "name": "shipped", "in_use": True}]
                return JSONResponse({"models": rows, "in_use": MODEL, "previous": None})
            case ["GET", "canned"]:
                return JSONResponse({"canned": self.canned})
            case ["GET", "conversations"]:
                return JSONResponse(self.page(query))
            case ["GET", "conversations", name] if name in self.conversations:
                found = {"conversation": self.summary(name), "messages": self.messages[name], "masked": False}
                return JSONResponse(found)
            case [_, "conversations", name, *rest] if name in self.conversations:
                return self.act(method, name, rest, body)
            case ["POST", "review", "next"]:
                return self.next(body)
            case ["GET", "review", "progress"]:
                return JSONResponse(self.progress())
            case [_, "messages", name, "verdict"]:
                return self.judge(method, name, body)
            case ["GET", "messages", name, "explanation"]:
                return JSONResponse(self.explanation or explain(self.message(name), self.messages))
            case ["POST", "suggestions", _, "outcome"]:
                return JSONResponse({"distance": 0})
        return refusal(404, "not_found", "there is no such thing")

    def summary(self, name: str) -> Json:
        said = [one["verdict"]["verdict"] for one in self.messages[name] if one["verdict"]]
        verdicts = {"good": said.count("good"), "bad": said.count("bad")}
        return {**self.conversations[name], "verdicts": verdicts}

    def rows(self, query: dict[str, str]) -> list[Json]:
        def fits(row: Json) -> bool:
            closed, taken = row["closed_at"] is not None, row["owner"] == "operator"
            states = {
                "all": True,
                "open": not closed,
                "closed": closed,
                "waiting": row["waiting_since"] is not None and not closed,
                "taken": taken and not closed,
            }
            unsure = float(query.get("confidence_below", 2)) > (row["confidence"] or 0)
            texts = [row["title"], *(one["text"] for one in self.messages[row["id"]])]
            found = query.get("q", "").lower() in " ".join(texts).lower()
            disliked = "rating" not in query or row["thumbs_down"]
            mine = "mine" not in query or row["operator"] == self.me["name"]
            verdict = "verdict" not in query or row["verdicts"][query["verdict"]] > 0
            return all((states[query.get("state", "open")], unsure, found, disliked, mine, verdict))

        rows = filter(fits, (self.summary(name) for name in self.conversations))
        return sorted(rows, key=lambda row: (row["updated_at"], row["id"]), reverse=True)

    def page(self, query: dict[str, str]) -> Json:
        rows, limit, start = self.rows(query), int(query.get("limit", 50)), int(query.get("cursor", 0))
        more = start + limit < len(rows)
        return {"conversations": rows[start : start + limit], "next": str(start + limit) if more else None}

    def counts(self) -> Json:
        def count(**query: str) -> int:
            return len(self.rows(query))

        return {
            "open": count(),
            "waiting": count(state="waiting"),
            "taken": count(state="taken"),
            "mine": count(mine="true"),
            "unreviewed": count(state="all"),
            "thumbs_down": count(state="all", rating="down"),
            "low_confidence": count(state="all", confidence_below="0.5"),
        }

    def act(self, method: str, name: str, rest: list[str], body: Json) -> Response:
        row = self.conversations[name]
        match [method, *rest]:
            case ["POST", "take" | "hand_back" as action]:
                if body["version"] != row["owner_version"]:
                    return refusal(409, "conflict", "somebody was faster")
                taken = action == "take"
                row["owner_version"] += 1
                row["owner"] = "operator" if taken else "bot"
                row["operator"] = self.me["name"] if taken else None
                row["waiting_since"] = None if taken else row["waiting_since"]
                self.changed(name, "owner")
                return JSONResponse({key: row[key] for key in ("owner", "operator", "owner_version")})
            case ["POST", "close" | "reopen" as action]:
                row["closed_at"] = datetime.now(UTC).isoformat() if action == "close" else None
                return Response(status_code=204)
            case ["POST", "messages"]:
                message = self.append(name, self.me["name"], body["text"])
                return JSONResponse({"message": message["id"], "seq": message["seq"]})
            case ["POST", "suggestions"]:
                texts = [{"text": text, "logprob": -1.0} for text in self.suggest(body["typed"])]
                number = next(self.counter)
                return JSONResponse({"id": f"s{number}", "suggestions": texts, "milliseconds": 20.0})
            case ["POST", "review", "done"]:
                row["reviewed_at"] = datetime.now(UTC).isoformat()
                return Response(status_code=204)
            case ["POST", "review", "keep" | "release"]:
                return Response(status_code=204)
        return refusal(404, "not_found", "there is no such thing")

    def next(self, body: Json) -> Response:
        for name, reason in self.queue:
            if name not in body.get("skip", []) and self.conversations[name]["reviewed_at"] is None:
                until = (datetime.now(UTC) + timedelta(minutes=10)).isoformat()
                return JSONResponse({"conversation": name, "reason": reason, "until": until})
        return JSONResponse({"conversation": None})

    def progress(self) -> Json:
        done = sum(1 for row in self.conversations.values() if row["reviewed_at"])
        by = [{"operator": self.me["name"], "today": done, "all": done}]
        waiting = len(self.queue) - done
        return {"waiting": waiting, "reviewed_today": done, "reviewed_all": done, "by": by, "corrections": 2}

    def judge(self, method: str, name: str, body: Json) -> Response:
        message = self.message(name)
        if method == "DELETE":
            message["verdict"] = None
            return Response(status_code=204)
        said = {**body, "operator": self.me["name"], "updated_at": datetime.now(UTC).isoformat()}
        message["verdict"] = said
        return JSONResponse(said)


def explain(message: Json, conversations: dict[str, list[Json]]) -> Json:
    """An explanation of the right shape: each word looks mostly at one source word."""
    messages = next(all_of for all_of in conversations.values() if message in all_of)
    before = [one for one in messages if one["seq"] < message["seq"]]
    source = [{"turn": one["seq"], "role": one["role"], "words": one["text"].split()} for one in before]
    words, width = message["text"].split(), sum(len(turn["words"]) for turn in source)
    weights = [
        [0.6 if place == index % max(1, width) else 0.4 / max(1, width) for place in range(width)]
        for index in range(len(words))
    ]
    nearest = [
        {
            "text": "I want to eat out tonight",
            "reply": "For how many people, and when?",
            "similarity": 0.93,
            "corrected": True,
            "conversation": next(iter(conversations)),
        },
        {
            "text": "Could I get a table?",
            "reply": "Of course. What time?",
            "similarity": 0.88,
            "corrected": False,
            "conversation": None,
        },
    ]
    verify = {"outcome": "exact", "difference": 0.0, "reason": ""}
    return {
        "attention": {"words": words, "source": source, "weights": weights},
        "nearest": nearest,
        "verify": verify,
        "compared": 100,
    }


def refusal(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def application(console: FakeConsole) -> FastAPI:
    app = FastAPI(openapi_url=None)
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]

    @app.api_route("/api/operator/{path:path}", methods=methods)
    async def api(request: Request, path: str) -> Response:
        return await console.handle(request, f"/{path}")

    @app.get("/static/{name:path}")
    async def shared(name: str) -> Response:
        return file(WEB / name)

    @app.get("/operator/static/{name:path}")
    async def own(name: str) -> Response:
        return file(CONSOLE_WEB / name)

    @app.get("/operator/{path:path}")
    async def page(path: str) -> Response:
        if console.signed_in:
            return FileResponse(CONSOLE_WEB / "index.html")
        return FileResponse(WEB / "sign_in.html", status_code=401)

    return app


def file(path: Any) -> Response:
    if not path.is_file():
        return refusal(404, "not_found", "there is no such file")
    # The files stay as they are while the tests run, and fetching them is most of what a test does.
    return FileResponse(path, headers={"cache-control": "max-age=3600"})


@contextmanager
def running_console() -> Iterator[FakeConsole]:
    """A fresh `FakeConsole` on a free port of the loopback."""
    console = FakeConsole()
    app = with_headers(application(console))
    assert "content-security-policy" in HEADERS
    config = uvicorn.Config(app, "127.0.0.1", 0, log_level="error", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    started = threading.Event()

    async def run() -> None:
        console.loop = asyncio.get_running_loop()
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]
        console.address = f"http://127.0.0.1:{port}"
        started.set()
        await server.main_loop()
        await server.shutdown()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(20)
    try:
        yield console
    finally:
        console.end_streams()
        server.should_exit = True
        thread.join(15)
