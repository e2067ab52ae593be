"""Places for replies: taken before a turn is committed, so that nothing is kept that cannot be answered."""

from __future__ import annotations

from typing import Any, Final

from chatbot.options import DecodingOptions, OptionError
from server.engine import Engine, EngineBusy, Permit
from server.ledger import Refusal
from server.limits import Shares, Who
from server.protocol import Error
from server.speaker import Speaker

RETRY_AFTER: Final = 1.0
"""Seconds after which a say that met a running reply is worth another try."""
RECONNECT_AFTER: Final = 2.0
"""Seconds after which a client of a stopping server should come back."""


class Places:
    """The engine's places, shared out: so many for a visitor, so many for an address."""

    def __init__(self, engine: Engine, per_visitor: int, per_address: int) -> None:
        self._engine = engine
        self._by_visitor = Shares(per_visitor)
        self._by_address = Shares(per_address)
        self._closed = False

    def close(self) -> None:
        """The server is stopping: there are no more."""
        self._closed = True

    def reserve(self, who: Who, about: str | None, model: str | None = None) -> Place:
        """A place in the engine; `Refusal` at once when there is none for them. model: a canary's name."""
        if self._closed:
            raise busy("the server is stopping", about, RECONNECT_AFTER)
        if not self._by_visitor.take(who.visitor):
            raise busy("you have too many replies in the making", about)
        if not self._by_address.take(who.address):
            self._by_visitor.give_back(who.visitor)
            raise busy("too many replies are being made for this address", about)
        try:
            permit = self._engine.reserve(who.visitor, model)
        except EngineBusy as error:
            self._give_back(who)
            raise busy("too many replies are waiting", about, error.retry_after) from None
        permit.on_release(lambda: self._give_back(who))
        return Place(permit)

    def _give_back(self, who: Who) -> None:
        self._by_visitor.give_back(who.visitor)
        self._by_address.give_back(who.address)


class Place:
    """A permit that is given back on leaving, unless it was passed on."""

    def __init__(self, permit: Permit) -> None:
        self._permit: Permit | None = permit

    @property
    def speaker(self) -> Speaker:
        """The model that the place is with."""
        assert self._permit is not None
        return self._permit.speaker

    def options(self, overrides: dict[str, Any], about: str) -> DecodingOptions:
        """As that model takes them. The session asked the model that was in use a moment ago.

        Raises `Refusal`.
        """
        try:
            return self.speaker.options(overrides)
        except OptionError as error:
            refused = Error(code="bad_option", message=str(error), id=about, field=error.field)
            raise Refusal(refused) from None

    def pass_on(self) -> Permit:
        permit, self._permit = self._permit, None
        assert permit is not None
        return permit

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._permit is not None:
            self._permit.release()


def busy(reason: str, about: str | None, retry_after: float = RETRY_AFTER) -> Refusal:
    return Refusal(Error(code="busy", message=reason, id=about, retry_after=retry_after))
