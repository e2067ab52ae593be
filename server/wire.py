"""uvicorn's HTTP and WebSocket protocols, with bounds on what a peer can do before the application sees it.

uvicorn and the libraries below it check what is sent. What they leave open is how slowly it may come, how
much of it at once, and what happens when the WebSocket library refuses a handshake that the HTTP library has
let through: there, both would wait for the other.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Response
from websockets.server import ServerProtocol
from websockets.typing import StatusLike

from server.limits import MAX_HEAD, Clock, Pace, Shares, address_key, excess_of

CHUNK: Final = 1024
"""Bytes read at a time: at most 170 of the smallest frames."""
TURN: Final = 64
"""Frames of one connection that are handled before the others have their turn."""
CLOSING: Final = 10.0
"""Seconds that a connection being closed gets to take what was sent and to say goodbye."""
NO_HANDSHAKE: Final = "this is no handshake of a WebSocket"


class Wire(uvicorn.Config):
    """uvicorn's configuration, and the bounds that uvicorn does not know.

    request_seconds: from a connection, or from the first byte of a further request, to the end of its head.
    per_address: HTTP connections at the same time from one address; None for as many as there are.
    frames_per_second: of one WebSocket, in the long run; two seconds' worth at once. More are left unread.
    """

    def __init__(
        self,
        app: Any,
        *,
        request_seconds: float,
        per_address: int | None,
        frames_per_second: float,
        **options: Any,
    ) -> None:
        super().__init__(
            app, http=HttpProtocol, ws=ChatProtocol, h11_max_incomplete_event_size=MAX_HEAD, **options
        )
        self.request_seconds = request_seconds
        self.shares = None if per_address is None else Shares(per_address)
        self.frames_per_second = frames_per_second

    def pace(self, clock: Clock) -> Pace:
        """For the frames of one WebSocket."""
        return Pace(self.frames_per_second, 2 * self.frames_per_second, clock)


class HttpProtocol(H11Protocol):
    """One HTTP connection. The head of a request comes in time and is of ordinary size, or it is refused."""

    def __init__(self, config: Wire, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._wire = config
        self._deadline: asyncio.TimerHandle | None = None
        self._counted: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        address = address_key(self.client)
        if self._wire.shares is not None:
            if self._wire.shares.take(address):
                self._counted = address
            else:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self.conn.their_state is h11.IDLE:
            self._await_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Over to the WebSocket, which answers a handshake that it does not like, or does not see one."""
        self._leave()
        excess = excess_of(len(event.target), self.headers)
        if event.method != b"GET":
            self._refuse(405, "method_not_allowed", "a WebSocket begins with GET")
        elif excess is not None:
            self._refuse(*excess)
        else:
            super().handle_websocket_upgrade(event)
            protocol = self.transport.get_protocol()
            assert isinstance(protocol, WebSocketsSansIOProtocol)
            if not protocol.handshake_initiated:  # a body, or whatever else it cannot read
                self._refuse(400, "bad_request", NO_HANDSHAKE)

    def send_400_response(self, msg: str) -> None:
        """What cannot be read is refused like all else, unless its request has been answered by now."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, "bad_request", "this is no HTTP request")
        else:
            self.transport.close()

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(self._wire.request_seconds, self._overdue)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _overdue(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self._refuse(408, "timeout", "the request took too long to come")

    def _leave(self) -> None:
        """This connection is no HTTP connection any more."""
        self._stop_waiting()
        if self._counted is not None and self._wire.shares is not None:
            self._wire.shares.give_back(self._counted)
            self._counted = None

    def _refuse(self, status: int, code: str, words: str) -> None:
        body = _error(code, words)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        )
        self.transport.write("\r\n".join((*head, "", body)).encode("ascii"))
        self.transport.close()


class _Frames(ServerProtocol):
    """What `websockets` refuses by itself is refused in the shape of all errors; its words quote the peer."""

    def reject(self, status: StatusLike, text: str) -> Response:
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            response = super().reject(status, _error("bad_request", NO_HANDSHAKE))
        else:
            response = super().reject(status, _error("internal", "something went wrong"))
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response


class ChatProtocol(WebSocketsSansIOProtocol):
    """One WebSocket on `websockets`.

    uvicorn handles all that has come in one go, control frames without asking the application. Here a
    connection is read in small pieces, so that the others have their turns, and no faster than its pace.
    Fragments take the memory of their content, however many they are. And there is no patience with a peer
    that is not there: uvicorn closes a connection that answers no ping, but lets what is still to be written
    delay that, so that a peer that has stopped reading could keep its socket, and all that is written for
    it, forever.
    """

    def __init__(self, config: Wire, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        library = self.conn
        self.conn = _Frames(
            extensions=library.available_extensions, max_size=config.ws_max_size, logger=library.logger
        )
        self._pace = config.pace(self.loop.time)
        self._unread = bytearray()
        self._fragments = bytearray()
        self._frames_seen = 0
        self._resting: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._resting, self._ending):
            if timer is not None:
                timer.cancel()
        self._unread.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        self._read_on()

    async def receive(self) -> Any:
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._read_on()
        return message

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.close_sent:  # uvicorn takes a handshake that was refused for one that was forgotten
            self.handshake_complete = True
        self._end_in_time()
        if self._unread:  # a close lets the rest be read, so that the peer's is found
            self._read_on()

    def handle_text(self, event: Any) -> None:
        self._frames_seen += 1
        super().handle_text(event)

    def handle_bytes(self, event: Any) -> None:
        self._frames_seen += 1
        super().handle_bytes(event)

    def handle_cont(self, event: Any) -> None:
        self._frames_seen += 1
        self._fragments += event.data
        if event.fin:
            self.frames.append(bytes(self._fragments))
            self._fragments.clear()
            self.send_receive_event_to_app()

    def handle_ping(self) -> None:
        self._frames_seen += 1
        super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        self._frames_seen += 1
        super().handle_pong(event)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()

    def _read_on(self) -> None:
        """Handle what has come, as far as the application, the pace and the others' turns allow."""
        while self._readable and self._frames_seen < TURN:
            chunk = bytes(self._unread[:CHUNK])
            del self._unread[:CHUNK]
            super().data_received(chunk)
        if self._resting is None:
            wait = self._pace.take(self._frames_seen)
            self._frames_seen = 0
            if wait or self._readable:
                self._resting = self.loop.call_later(wait, self._rested)
        if self._unread or self.read_paused or self._resting is not None:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
        self._end_in_time()

    @property
    def _readable(self) -> bool:
        closing = self.disconnected or self.transport.is_closing()
        return bool(self._unread) and not (self.read_paused or closing or self._resting is not None)

    def _rested(self) -> None:
        self._resting = None
        self._read_on()

    def _end_in_time(self) -> None:
        """A connection that is being closed is gone soon, whatever is still to be written."""
        if (
            self._ending is None
            and (self.close_sent or self.transport.is_closing())
            and not self.disconnected
        ):
            self._ending = self.loop.call_later(CLOSING, self.transport.abort)


def _error(code: str, words: str) -> str:
    """The body of every error."""
    return f'{{"error":{{"code":"{code}","message":"{words}"}}}}'
