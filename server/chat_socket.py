"""The chat socket, `/v1/chat`, as a bare ASGI application.

Who may connect is decided before the upgrade (Origin, subprotocol) and right after it (how many sockets
there are); from then on two tasks serve a socket. The reader turns frames into the session's events and
carries out its effects, one frame after another. The writer sends what is in the mailbox. Neither waits for
the other's network: a client that does not read is not read from any more, and what others say to it is
bounded by the mailbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, assert_never
from urllib.parse import urlsplit

from server import logs
from server.conversations import Conversations
from server.ledger import Refusal
from server.limits import address_key, from_this_machine
from server.live_conversation import Seat
from server.mailbox import Closing, Mailbox
from server.places import RECONNECT_AFTER
from server.protocol import (
    SUBPROTOCOL,
    Close,
    Error,
    ErrorCode,
    FrameError,
    GoingAway,
    encode,
    parse_client,
)
from server.session import (
    Event,
    HelloOverdue,
    Judge,
    Open,
    Opened,
    Post,
    Redo,
    Refused,
    Rules,
    Send,
    Session,
    Shut,
    Stop,
    Summon,
    Unreadable,
)
from server.session import Task as Request
from server.store import StoreError, StoreUnavailable

log = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
AsgiMessage: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[AsgiMessage]]
SendAsgi: TypeAlias = Callable[[AsgiMessage], Awaitable[None]]

PARTING: Final = 3.0
"""Seconds that sockets get to say goodbye when the server stops."""
DATABASE_RETRY: Final = 2.0
"""Seconds after which a request that met a missing database is worth another try."""


Programs: TypeAlias = Literal["loopback", "anyone", "nobody"]


@dataclass(frozen=True, slots=True)
class Doorway:
    """Who may come in.

    origins: whose pages may connect, besides the host's own.
    total, per_address: sockets at the same time.
    programs: which programs, that is peers without an Origin, may begin without a token.
    """

    origins: frozenset[str]
    total: int
    per_address: int
    programs: Programs = "loopback"


@dataclass(frozen=True, slots=True)
class Manners:
    """How a socket is treated: seconds to its hello, and messages that may wait for it."""

    hello_seconds: float
    mailbox: int


@dataclass(frozen=True, slots=True)
class _Peer:
    """Who is at the other end. address: what it is counted for. may_begin: whether it needs no token."""

    address: str
    may_begin: bool


class ChatSocket:
    """All chat sockets of a process."""

    def __init__(
        self, conversations: Conversations, rules: Rules, doorway: Doorway, manners: Manners
    ) -> None:
        self._conversations = conversations
        self._rules = rules
        self._doorway = doorway
        self._manners = manners
        self._addresses: Counter[str] = Counter()
        self._open: dict[Mailbox, asyncio.Event] = {}
        self._stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: SendAsgi) -> None:
        """Serve one socket from its handshake to its end."""
        await receive()  # websocket.connect
        if (refusal := self._refusal(scope)) is not None:
            await reject(send, *refusal)
            return
        offered = scope["subprotocols"]
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None})
        address = address_key(scope["client"])
        if (crowded := self._crowded(address)) is not None:
            await send({"type": "websocket.close", "code": crowded.code, "reason": crowded.reason})
            return
        mailbox = Mailbox(self._manners.mailbox)
        gone = self._open[mailbox] = asyncio.Event()
        self._addresses[address] += 1
        try:
            peer = _Peer(address, self._may_begin(scope))
            await _Socket(self._conversations, Session(self._rules), mailbox, peer, receive, send).serve(
                self._manners.hello_seconds
            )
        finally:
            gone.set()
            del self._open[mailbox]
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]

    def __len__(self) -> int:
        """Sockets open now."""
        return len(self._open)

    async def drain(self, seconds: float) -> None:
        """Tell everybody, let running replies finish for `seconds`, then close the sockets."""
        self._stopping = True
        for mailbox in self._open:
            mailbox.put(GoingAway(reconnect_after=RECONNECT_AFTER))
        await self._conversations.drain(seconds)
        for mailbox in self._open:
            mailbox.close(Close.GOING_AWAY, "the server is stopping")
        if parting := [asyncio.ensure_future(gone.wait()) for gone in self._open.values()]:
            _, late = await asyncio.wait(parting, timeout=PARTING)
            for waiting in late:
                waiting.cancel()

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        """Status, code and reason of a handshake that is refused."""
        headers = scope["headers"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if not may_connect(origins, hosts, self._doorway.origins):
            return 403, "forbidden", "pages of this origin may not open a chat here"
        if scope["subprotocols"] and SUBPROTOCOL not in scope["subprotocols"]:
            return 400, "bad_request", f"this socket speaks {SUBPROTOCOL}"
        return None

    def _may_begin(self, scope: Scope) -> bool:
        """Whether who comes without a token gets one: a page does, a program as the settings say."""
        if any(name == b"origin" for name, _ in scope["headers"]) or self._doorway.programs == "anyone":
            return True
        return self._doorway.programs == "loopback" and from_this_machine(scope)

    def _crowded(self, address: str) -> Closing | None:
        if self._stopping:
            return Closing(Close.GOING_AWAY, "the server is stopping")
        if len(self._open) >= self._doorway.total:
            return Closing(Close.TRY_LATER, "too many connections")
        if self._addresses[address] >= self._doorway.per_address:
            return Closing(Close.TOO_MANY, "too many connections from this address")
        return None


class _Socket:
    """One accepted socket."""

    def __init__(
        self,
        conversations: Conversations,
        session: Session,
        mailbox: Mailbox,
        peer: _Peer,
        receive: Receive,
        send: SendAsgi,
    ) -> None:
        self._conversations = conversations
        self._session = session
        self._mailbox = mailbox
        self._peer = peer
        self._receive = receive
        self._send = send
        self._seat: Seat | None = None

    async def serve(self, hello_seconds: float) -> None:
        overdue = asyncio.get_running_loop().call_later(hello_seconds, self._hello_overdue)
        writer = asyncio.create_task(self._write())
        try:
            await self._read()
        finally:
            overdue.cancel()
            writer.cancel()
            self._mailbox.close(Close.GOING_AWAY, "gone")
            if self._seat is not None:
                self._conversations.leave(self._seat)

    async def _read(self) -> None:
        while (frame := await self._receive())["type"] == "websocket.receive":
            if self._mailbox.closed:
                continue  # closing: only the end of the connection is of interest
            await self._handle(_event(frame.get("text")))
            await self._mailbox.room()

    async def _write(self) -> None:
        try:
            while not isinstance(item := await self._mailbox.get(), Closing):
                await self._send({"type": "websocket.send", "text": encode(item)})
            await self._send({"type": "websocket.close", "code": item.code, "reason": item.reason})
        except OSError:
            pass  # the peer is gone, which the reader is told as well
        except Exception as error:  # noqa: BLE001 - a writer that dies in silence would leave a deaf socket
            logs.event(log, logging.ERROR, "write_failed", error=logs.place(error))
            with contextlib.suppress(OSError):
                await self._send(
                    {"type": "websocket.close", "code": Close.INTERNAL, "reason": "internal error"}
                )

    def _hello_overdue(self) -> None:
        for effect in self._session.handle(HelloOverdue()):
            assert isinstance(effect, Shut), "nothing else can come of it"
            self._mailbox.close(effect.code, effect.reason)

    async def _handle(self, event: Event) -> None:
        """Feed the session, carry out what it wants, and tell it how that went."""
        for effect in self._session.handle(event):
            if isinstance(effect, Send):
                self._mailbox.put(effect.message)
            elif isinstance(effect, Shut):
                self._mailbox.close(effect.code, effect.reason)
            elif (outcome := await self._carry_out(effect)) is not None:
                await self._handle(outcome)

    async def _carry_out(self, request: Request) -> Event | None:
        try:
            if isinstance(request, Open):
                if request.token is None and not self._peer.may_begin:
                    raise Refusal(Error(code="unauthenticated", message="a program needs a token here"))
                self._seat = await self._conversations.open(request, self._mailbox, self._peer.address)
                return Opened()
            assert self._seat is not None, "the session asks for nothing else before it is open"
            await self._ask(self._seat, request)
        except Refusal as refusal:
            return Refused(refusal.error)
        except StoreError as error:
            logs.event(log, logging.ERROR, "store_failed", error=logs.place(error))
            return Refused(_store_refusal(error, request))
        except Exception as error:  # noqa: BLE001 - the client gets an error, the server goes on
            logs.event(log, logging.ERROR, "request_failed", error=logs.place(error))
            return Refused(Error(code="internal", message="something went wrong", id=_subject(request)))
        return None

    async def _ask(self, seat: Seat, request: Post | Stop | Redo | Judge | Summon) -> None:
        match request:
            case Post():
                await self._conversations.say(seat, request)
            case Stop(reply):
                await self._conversations.stop(seat, reply)
            case Redo():
                await self._conversations.redo(seat, request)
            case Judge():
                await self._conversations.judge(seat, request)
            case Summon():
                await self._conversations.summon(seat)
            case _:
                assert_never(request)


def may_connect(origins: list[str], hosts: list[str], allowed: Iterable[str]) -> bool:
    """Whether a handshake's Origin is this host's own or an allowed one.

    Browsers always send it and pages cannot forge it, so it keeps foreign pages out. Programs have none,
    and could claim any: what they may see is decided by their token.
    """
    if not origins:
        return True
    if len(origins) > 1 or len(hosts) != 1:
        return False
    if origins[0] in allowed:
        return True
    try:
        origin, host = urlsplit(origins[0]), urlsplit(f"//{hosts[0]}")
        # A host without a port was reached on the default port of the page's scheme, whatever a proxy in
        # between speaks to us.
        default = {"http": 80, "https": 443}[origin.scheme]
        own = (host.hostname, host.port or default) == (origin.hostname, origin.port or default)
    except (ValueError, KeyError):
        return False
    return (
        own
        and origins[0].lower() == f"{origin.scheme}://{origin.netloc}".lower()
        and "@" not in origin.netloc
    )


def _event(text: str | None) -> Event:
    try:
        if text is None:
            raise FrameError("frames are text")
        return parse_client(text)
    except FrameError as error:
        return Unreadable(error)


def _store_refusal(error: StoreError, request: Request) -> Error:
    about = _subject(request)
    if isinstance(error, StoreUnavailable):
        code: ErrorCode = "busy" if error.busy else "internal"
        return Error(code=code, message="the database is busy", id=about, retry_after=DATABASE_RETRY)
    return Error(code="not_found", message="the conversation is not there any more", id=about)


def _subject(request: Request) -> str | None:
    match request:
        case Post(id=about) | Stop(reply=about) | Redo(reply=about) | Judge(message=about):
            return about
        case Open() | Summon():
            return None


async def reject(send: SendAsgi, status: int, code: str, reason: str) -> None:
    """Refuse a handshake, in the shape of every other HTTP error."""
    body = f'{{"error":{{"code":"{code}","message":"{reason}"}}}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
