"""A WebSocket client that can do everything wrong: bytes as they are, frames as they should not be."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
CONTINUATION = 0x0
FIN = 0x80

UPGRADE = (
    "GET /v1/chat HTTP/1.1",
    "Host: {host}",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


class RawClient:
    """A connection; what it is sent is read frame by frame. Every wait is bounded by the socket's timeout."""

    def __init__(self, address: str, timeout: float = 20.0, receive_buffer: int | None = None) -> None:
        self.host = address.removeprefix("http://")
        name, _, port = self.host.partition(":")
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect((name, int(port)))
        self._received = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(self, *lines: str) -> None:
        """A request's head, `{host}` filled in."""
        self.send("".join(f"{line}\r\n" for line in (*lines, "")).format(host=self.host).encode("latin-1"))

    def upgrade(self) -> None:
        """A proper handshake."""
        self.request(*UPGRADE)
        assert self.head().startswith(b"HTTP/1.1 101 ")

    def frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True) -> None:
        self.send(frame(opcode, payload, fin=fin, masked=masked))

    def head(self) -> bytes:
        """A response's first line and headers; what there was of them when the connection ended early."""
        while b"\r\n\r\n" not in self._received:
            data = self._receive()
            self._received += data
            if not data:
                found, self._received = self._received, b""
                return found
        found, _, self._received = self._received.partition(b"\r\n\r\n")
        return found

    def next_frame(self) -> tuple[int, bytes] | None:
        """Opcode and payload; None when the connection has ended."""
        header = self._exactly(2)
        if header is None:
            return None
        length = header[1]
        if length == 126:
            length = struct.unpack("!H", self._exactly(2) or b"\0\0")[0]
        elif length == 127:
            length = struct.unpack("!Q", self._exactly(8) or b"\0" * 8)[0]
        payload = self._exactly(length)
        return None if payload is None else (header[0] & 0x0F, payload)

    def close_code(self) -> int | None:
        """The code that the server closes with; None when the connection ends without one."""
        while (found := self.next_frame()) is not None:
            if found[0] == CLOSE:
                return int.from_bytes(found[1][:2], "big")
        return None

    def ended(self) -> bool:
        """Read until the connection has ended, within the timeout."""
        while self._receive():
            pass
        return True

    def rest(self) -> bytes:
        """All that comes until the connection has ended."""
        while data := self._receive():
            self._received += data
        return self._received

    def _exactly(self, count: int) -> bytes | None:
        while len(self._received) < count:
            data = self._receive()
            if not data:
                return None
            self._received += data
        found, self._received = self._received[:count], self._received[count:]
        return found

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            return b""


@contextmanager
def raw(address: str, timeout: float = 20.0, receive_buffer: int | None = None) -> Iterator[RawClient]:
    """A connection on which nothing has been said. receive_buffer: bytes that the system may hold for it."""
    client = RawClient(address, timeout, receive_buffer)
    try:
        yield client
    finally:
        client.socket.close()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True) -> bytes:
    """A frame; its mask is zeros, so that the payload stays readable."""
    first = opcode | (FIN if fin else 0)
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        header = bytes([first, bit | len(payload)])
    elif len(payload) < 65536:
        header = bytes([first, bit | 126]) + struct.pack("!H", len(payload))
    else:
        header = bytes([first, bit | 127]) + struct.pack("!Q", len(payload))
    return header + (b"\0\0\0\0" if masked else b"") + payload
