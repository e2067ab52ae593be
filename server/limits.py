"""How much of the server one connection, visitor or address may use, and whose turn it is when all is taken.

Four small things without sockets, tasks or threads, whose clock is handed in:

- `Pace` and `Rates`: so many a second (a token bucket), for one or for each of many;
- `Shares`: so many at the same time, for each of many;
- `FairLine`: a waiting line in which everybody's first comes before anybody's second.

What is done with them: docs/limits.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

Item = TypeVar("Item")
Clock: TypeAlias = Callable[[], float]
Scope: TypeAlias = MutableMapping[str, Any]
AsgiMessage: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[AsgiMessage]]
SendAsgi: TypeAlias = Callable[[AsgiMessage], Awaitable[None]]
Asgi: TypeAlias = Callable[[Scope, Receive, SendAsgi], Awaitable[None]]

KNOWN: Final = 1024
"""Keys that `Rates` keeps before it looks for those it may forget."""
MAX_HEADERS: Final = 100
"""Header lines of one request. The WebSocket library would take 128."""
MAX_HEAD: Final = 16 * 1024
"""Bytes of a request's address and headers together."""
MAX_LINE: Final = 8 * 1024 - 64
"""Bytes of an address, or of one header: what the WebSocket library takes, less what stands around it."""
HEALTH: Final = frozenset({"/livez", "/readyz"})
"""What is asked by whoever watches the server, most likely through the same proxy as everybody else."""


@dataclass(frozen=True, slots=True)
class Who:
    """Whom a request is counted for: keys of a visitor and of an address, neither to be shown."""

    visitor: str
    address: str


class Pace:
    """A token bucket: `rate` a second in the long run, `burst` at once."""

    __slots__ = ("_at", "_burst", "_clock", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, clock: Clock = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens = burst
        self._at = clock()

    def take(self, count: int = 1) -> float:
        """Use up `count`, on credit if need be; the seconds until the debt is paid, 0 if there is none."""
        self._refill()
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)

    def ask(self) -> float:
        """Use up one if it is there, then 0; else leave all as it is: the seconds until it will be."""
        self._refill()
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0

    def give_back(self) -> None:
        """What `ask` used up was not used after all."""
        self._refill()
        self._tokens = min(self._burst, self._tokens + 1)

    @property
    def full(self) -> bool:
        """Whether nothing was used of late: a new one would be the same."""
        self._refill()
        return self._tokens >= self._burst

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class Rates:
    """A `Pace` for each key. Those that have not been used of late are forgotten."""

    def __init__(self, rate: float, burst: float, clock: Clock = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._paces: dict[str, Pace] = {}
        self._sweep_at = KNOWN

    def __len__(self) -> int:
        return len(self._paces)

    def ask(self, key: str) -> float:
        """As `Pace.ask`, for this key."""
        pace = self._paces.get(key)
        if pace is None:
            self._sweep()
            pace = self._paces[key] = Pace(self._rate, self._burst, self._clock)
        return pace.ask()

    def give_back(self, key: str) -> None:
        """As `Pace.give_back`, for this key."""
        if (pace := self._paces.get(key)) is not None:
            pace.give_back()

    def _sweep(self) -> None:
        """At twice as many as were left the last time, so that each key costs little, once."""
        if len(self._paces) >= self._sweep_at:
            self._paces = {key: pace for key, pace in self._paces.items() if not pace.full}
            self._sweep_at = max(KNOWN, 2 * len(self._paces))


class Shares:
    """At most `most` at the same time for each key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        """Keys that hold something."""
        return len(self._taken)

    def take(self, key: str) -> bool:
        """Whether there was one left; then `give_back` it once."""
        if self._taken[key] >= self._most:
            return False
        self._taken[key] += 1
        return True

    def give_back(self, key: str) -> None:
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]


class FairLine(Generic[Item]):
    """A waiting line that goes round its owners: one of each, in the order they came, then the next of each.

    Whoever puts a hundred things in it waits for ninety-nine of their own; everybody else for one of them.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        """All that wait, owner by owner."""
        for line in self._lines.values():
            yield from line

    def put(self, owner: str, item: Item) -> None:
        self._lines.setdefault(owner, deque()).append(item)
        self._count += 1

    def first(self) -> Item:
        """Whose turn it is. Raises LookupError when nobody waits."""
        for line in self._lines.values():
            return line[0]
        raise LookupError("nobody waits")

    def take(self) -> Item:
        """The same, and out of the line; its owner goes to the end. Raises LookupError."""
        if not self._lines:
            raise LookupError("nobody waits")
        owner, line = self._lines.popitem(last=False)
        item = line.popleft()
        self._count -= 1
        if line:
            self._lines[owner] = line
        return item

    def remove(self, owner: str, item: Item) -> bool:
        """Take one out of the line out of turn; whether it was there."""
        line = self._lines.get(owner)
        if line is None or item not in line:
            return False
        line.remove(item)
        self._count -= 1
        if not line:
            del self._lines[owner]
        return True

    def clear(self) -> None:
        self._lines.clear()
        self._count = 0


# --- keys -------------------------------------------------------------------------------------------------


def visitor_key(token: str) -> str:
    """A visitor's key, from which nobody could tell the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def address_key(client: tuple[str, int] | None) -> str:
    """What connections are counted by: an IPv4 address, or the IPv6 network of one customer."""
    host = client[0] if client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def as_peers(networks: Iterable[str]) -> list[str]:
    """Addresses and networks in every form in which a peer of them may be seen: one that speaks IPv4 to a
    socket for both is `::ffff:10.0.0.1`.
    """
    found = [ipaddress.ip_network(network) for network in networks]
    mapped = [
        f"::ffff:{network.network_address}/{96 + network.prefixlen}"
        for network in found
        if isinstance(network, ipaddress.IPv4Network)
    ]
    return [*map(str, found), *mapped]


def from_this_machine(scope: Scope) -> bool:
    """Whether the peer is a program on this machine, and not a proxy on it that speaks for somebody else."""
    client = scope.get("client")
    if any(name in (b"x-forwarded-for", b"forwarded") for name, _ in scope["headers"]):
        return False
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0]) if client else None
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and address.is_loopback


# --- HTTP -------------------------------------------------------------------------------------------------


class RequestLimit:
    """An HTTP application behind a limit of requests for each address: more are answered 429 at once.

    per_minute: for one address, as many at once as in a minute. `HEALTH` is not counted.
    """

    def __init__(self, app: Asgi, per_minute: int, clock: Clock = time.monotonic) -> None:
        self._app = app
        self._rates = Rates(per_minute / 60, per_minute, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: SendAsgi) -> None:
        if scope["type"] == "http":
            target = len(scope["raw_path"]) + len(scope["query_string"])
            if (excess := excess_of(target, scope["headers"])) is not None:
                await _refuse(send, *excess, close=True)
                return
            if scope["path"] not in HEALTH and (wait := self._rates.ask(address_key(scope["client"]))):
                words = "too many requests from this address"
                await _refuse(send, 429, "busy", words, retry_after=math.ceil(wait))
                return
        await self._app(scope, receive, send)


def excess_of(target: int, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str, str] | None:
    """Status, code and words for a request whose head is too large; `target` is the length of its address.

    The HTTP library looks at the size of a head only as long as it is not complete.
    """
    if target > MAX_LINE:
        return 414, "too_long", "the address is too long"
    sizes = [len(name) + len(value) for name, value in headers]
    if len(sizes) > MAX_HEADERS or max(sizes, default=0) > MAX_LINE or target + sum(sizes) > MAX_HEAD:
        return 431, "too_long", "the headers are too many or too long"
    return None


async def _refuse(
    send: SendAsgi, status: int, code: str, message: str, *, retry_after: int = 0, close: bool = False
) -> None:
    body = f'{{"error":{{"code":"{code}","message":"{message}"}}}}'.encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    if retry_after:
        headers.append((b"retry-after", str(retry_after).encode()))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
