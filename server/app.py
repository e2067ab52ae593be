"""The composition root: builds a server from its settings and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import sqlalchemy
import torch
import uvicorn
from fastapi import APIRouter, FastAPI

from chatbot import model_directory
from chatbot.model_directory import ModelDirectoryError, SealedModel
from chatbot.options import DecodingOptions
from server import database, elsewhere, http, logs, metrics, openai_api
from server.chat_socket import ChatSocket, Doorway, Manners, Receive, Scope, SendAsgi, reject
from server.console import api
from server.console.accounts import Accounts
from server.console.context import Console
from server.console.job_runner import JobRunner
from server.conversations import Bounds, Conversations
from server.engine import FIRST_STEP_LIMIT, PROBES, Engine, EngineUnhealthy
from server.engine_process import Nursery, ProcessWorker
from server.hot_swap import HotSwap
from server.keys import Keys
from server.ledger import Ledger
from server.limits import RequestLimit, as_peers
from server.memory import set_aside
from server.metrics import Metrics
from server.offload import Offload
from server.openai_api import OpenAiApi
from server.openai_request import MAX_CHOICES, Limits
from server.protocol import MAX_FRAME
from server.recipe import Recipe
from server.replying import Abstention
from server.rollouts import Rollouts
from server.session import Rules
from server.settings import Settings, SettingsError, flag
from server.speaker import speaker_of
from server.store import Store, StoreError
from server.wire import Wire
from server.worker import MakeBatcher, Report, ThreadWorker, Worker
from server.writer import Writer

log = logging.getLogger(__name__)

CHAT_PATH: Final = "/v1/chat"
WARM_UP: Final = FIRST_STEP_LIMIT
"""Seconds for the first token, before which nobody is let in."""
SPARE_FILES: Final = 512
"""Open files that are no chat sockets: HTTP connections, the database, libraries."""
STORE_THREADS: Final = {"sqlite": 1, "postgresql": 8}
"""Threads that read. SQLite reads from memory; PostgreSQL keeps several waiting for the network."""


class Application:
    """The server as one ASGI application: HTTP, the chat socket, and what is behind them."""

    def __init__(
        self,
        settings: Settings,
        model: SealedModel,
        db: sqlalchemy.Engine,
        make_batcher: MakeBatcher | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        """make_batcher: the model's own batcher if left out. nursery: has processes make the replies, which
        threads do without one.
        """
        capacity = settings.rows + settings.waiting
        self._nursery = nursery
        self._threads = settings.threads or max(1, (os.cpu_count() or 1) - 1)
        recipe = partial(Recipe.of, settings=settings, waiting=capacity + PROBES, tried=True)
        self._metrics = Metrics(http.version())
        self._writer = Writer(db, observe=self._metrics.committed)
        store = Store(db, writer=self._writer)
        self._offload = Offload(STORE_THREADS[db.dialect.name], "store")
        self._engine = Engine(
            make_batcher or Recipe.of(model, settings, capacity + PROBES),
            capacity=capacity,
            begin_worker=self._begin_worker,
            rows=settings.rows,
            speaker=speaker_of(model, settings.rows),
            step_limit=settings.step_seconds,
            on_end=self._metrics.reply_ended,
            on_refusal=self._metrics.reply_refused,
        )
        self._rollouts = Rollouts(
            db,
            self._writer,
            self._engine,
            settings.models or model_directory.SHIPPED,
            settings.rows,
            recipe,
        )
        conversations = Conversations(
            Ledger(store, self._offload, settings.max_messages),
            self._engine,
            Bounds(
                settings.max_text,
                settings.sockets_per_conversation,
                settings.replies_per_visitor,
                settings.connections_per_address,
                settings.visitors_per_address,
            ),
            Abstention(settings.abstain_below, settings.abstain_words),
            self._rollouts,
        )
        self._chat = ChatSocket(
            conversations,
            Rules(self._options, settings.max_text),
            Doorway(
                frozenset(settings.allowed_origins),
                settings.max_connections,
                settings.connections_per_address,
                settings.programs,
            ),
            Manners(settings.hello_seconds, settings.mailbox),
        )
        self._hot_swap = HotSwap(
            self._engine,
            settings.models or model_directory.SHIPPED,
            settings.rows,
            recipe,
        )
        self._began_with = model.path
        self._drain_seconds = settings.drain_seconds
        self.stopping = False
        backend = http.Backend(store, self._offload, self._engine, lambda: self.stopping)
        self._metrics.show(self._engine, self._writer, settings.rows, lambda: len(self._chat))
        routers = self._routers(settings, Keys(db, writer=self._writer))
        self._jobs = JobRunner(db, settings)
        self._console = Console(
            db,
            settings,
            self._engine,
            conversations,
            Accounts(db),
            look_for_model=self.look_for_model,
            wake_jobs=self._jobs.wake,
        )
        app = http.build(
            backend, self._lifespan, routers=routers, extend=lambda app: api.add(app, self._console)
        )
        self._http = RequestLimit(app, settings.requests_per_address)

    async def __call__(self, scope: Scope, receive: Receive, send: SendAsgi) -> None:
        if scope["type"] != "websocket":
            await self._http(scope, receive, send)
        elif scope["path"] == CHAT_PATH:
            await self._chat(scope, receive, send)
        else:
            await receive()
            await reject(send, 404, "not_found", "there is no WebSocket at this address")

    def _begin_worker(self, make_batcher: MakeBatcher, report: Report) -> Worker:
        if self._nursery is None or not self._nursery.alive:
            return ThreadWorker(make_batcher, report, threads=self._threads, clock=time.monotonic)
        return ProcessWorker(
            make_batcher,
            report,
            nursery=self._nursery,
            threads=self._threads,
            ended=self._engine.look_after,
        )

    def _routers(self, settings: Settings, keys: Keys) -> list[APIRouter]:
        """What programs ask: the OpenAI-compatible API, and the metrics for whom they are open."""
        choices = min(MAX_CHOICES, settings.replies_per_key, self._engine.capacity)
        limits = Limits(settings.max_messages, settings.max_text, choices)
        terms = openai_api.Terms(limits, settings.replies_per_key)
        programs = OpenAiApi(self._engine, keys, self._offload, self._metrics, terms, lambda: self.stopping)
        if settings.metrics == "off":
            return [openai_api.router(programs)]
        admit = programs.admits if settings.metrics == "key" else None
        return [openai_api.router(programs), metrics.router(self._metrics, admit)]

    def _options(self, overrides: dict[str, Any]) -> DecodingOptions:
        """As the model that is in use now takes them."""
        return self._engine.speaker.options(overrides)

    async def _look_elsewhere(self) -> None:
        """An SQLite database has one server."""
        if self._console.db.dialect.name == "postgresql":
            console = self._console
            await elsewhere.follow(console.conversations.look_elsewhere, console.elsewhere.look)

    def look_for_model(self) -> None:
        """Look at once whether another model is to be used."""
        self._hot_swap.look_now()

    @property
    def engine_hangs(self) -> bool:
        """Whether a step of a model goes on that was not waited for."""
        return self._engine.threads_left

    async def drain(self) -> None:
        """Take nothing new, finish what is under way, say goodbye."""
        self.stopping = True
        self._jobs.retire()  # what ends its processes with the server would end new ones too
        self._console.live.close()
        await self._chat.drain(self._drain_seconds)

    async def _warm_up(self) -> None:
        """Have the first token made. Raises EngineUnhealthy, whose words nobody else would tell."""
        try:
            await self._engine.check(WARM_UP)
        except EngineUnhealthy as error:
            reason = self._engine.trouble or error.reason
            logs.event(log, logging.ERROR, "not_ready", reason=f"the engine: {reason}")
            raise

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._writer.start()
        self._engine.start()
        self._jobs.start()
        try:
            await self._warm_up()
            following = asyncio.create_task(self._hot_swap.follow(self._began_with), name="hot swap")
            sampling = asyncio.create_task(self._metrics.watch_loop(time.monotonic), name="loop lag")
            rolling = asyncio.create_task(self._rollouts.follow(), name="rollouts")
            looking = asyncio.create_task(self._look_elsewhere(), name="elsewhere")
            warming = asyncio.create_task(self._console.dashboard.warm_up(), name="dashboard")
            try:
                yield
            finally:
                warming.cancel()
                looking.cancel()
                following.cancel()
                sampling.cancel()
                rolling.cancel()
        finally:
            await self._rollouts.close()
            await self._engine.stop()
            await asyncio.to_thread(self._jobs.stop)
            self._console.close()
            self._offload.close()
            self._writer.close()


class Server(uvicorn.Server):
    """uvicorn's server, draining before it closes sockets; a signal is a wish to it, not a failure."""

    def __init__(self, config: uvicorn.Config, application: Application, address: str) -> None:
        super().__init__(config)
        self._application = application
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # who else has bound the address since may listen there by now
            _cannot_listen(self._address, error)
            await self.lifespan.shutdown()
            sys.exit(1)
        if self.started:
            if threading.current_thread() is threading.main_thread():  # where signals can be heard
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._application.look_for_model)
                set_aside()
            print(f"Turnwise is ready: {self._address}", flush=True)
            logs.event(log, logging.INFO, "ready", address=self._address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logs.event(log, logging.INFO, "stopping")
        for server in self.servers:
            server.close()
        await self._application.drain()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        # uvicorn raises the signal again after a clean end, and the process would seem to have been killed.
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def serve(settings: Settings) -> int:
    """Run the server until SIGTERM or SIGINT; the exit status."""
    logs.configure(settings.log_level)
    # Elsewhere there is no fork, or the system's own libraries do not survive it.
    nursery = Nursery() if settings.engine == "process" and sys.platform == "linux" else None
    try:
        return _serve(settings, nursery)
    finally:
        if nursery is not None:
            nursery.close()


def _serve(settings: Settings, nursery: Nursery | None) -> int:
    allow_sockets(settings.max_connections)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        _cannot_listen(f"{settings.host}:{settings.port}", error)
        return 1
    with listener:
        try:
            application = build(settings, nursery)
        except (ModelDirectoryError, StoreError) as error:
            print(error, file=sys.stderr)
            return 1
        server = Server(configuration(application, settings), application, address_of(listener))
        server.run(sockets=[listener])
        logs.event(log, logging.INFO, "stopped")
        if application.engine_hangs:
            _leave()
        return 0


def _cannot_listen(where: str, error: OSError) -> None:
    print(f"cannot listen on {where}: {error.strerror or error}", file=sys.stderr)


def _leave() -> None:
    """End the process here. A thread inside torch does not survive the end of the interpreter, and takes the
    exit status along: stopped in good order would look like a crash.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def build(settings: Settings, nursery: Nursery | None = None) -> Application:
    """Find the model and open the database. Raises `ModelDirectoryError`, `SettingsError`, `StoreError`."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError([f"{flag('device')} cuda: torch finds no GPU here"])
    db = database.connect(settings.database_url)
    database.require_newest(db)
    path = model_directory.find_model(settings.models or model_directory.SHIPPED)
    return Application(settings, model_directory.describe(path), db, nursery=nursery)


def configuration(application: Application, settings: Settings) -> uvicorn.Config:
    """uvicorn's settings: everything bounded, nothing logged that names a visitor."""
    return Wire(
        application,
        request_seconds=settings.request_seconds,
        # Behind a proxy all connections are the proxy's, which has limits of its own.
        per_address=None if settings.trusted_proxies else settings.connections_per_address,
        frames_per_second=settings.frames_per_second,
        ws_max_size=MAX_FRAME,
        ws_per_message_deflate=False,
        ws_ping_interval=settings.ping_seconds,
        ws_ping_timeout=settings.ping_seconds,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=as_peers(settings.trusted_proxies),
        timeout_graceful_shutdown=5,
    )


def allow_sockets(count: int) -> None:
    """Let the process have that many sockets besides its files, or as many as it may.

    Systems commonly start with 1024, and a server that runs into it cannot even tell the next peer that it
    is full.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before the time it takes to load a model is spent. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError:  # what no name can be, such as one with an empty part
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL under which a browser reaches the socket."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
