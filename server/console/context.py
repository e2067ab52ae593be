"""What the console's routes work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import sqlalchemy
from starlette.requests import HTTPConnection

from chatbot import model_directory
from server.console.accounts import Accounts
from server.console.bundles import Shelf
from server.console.explanation import Explainer
from server.console.live import Live
from server.console.live_elsewhere import Elsewhere
from server.console.review_queue import Queue
from server.console.statistics import Dashboard
from server.console.suggestions import Suggestions
from server.console.throttle import Door
from server.console.topics import Topics
from server.conversations import Conversations
from server.engine import Engine
from server.offload import Offload
from server.settings import Settings

THREADS = 2
"""Of the console: a search that takes long holds up another search, but never a chat."""


@dataclass(frozen=True)
class Console:
    """db: for the plain calls of the desk modules, on `offload`'s threads and never on the event loop.

    look_for_model, wake_jobs: have the server look at once which model is meant, and whether something is to
    be retrained.
    """

    db: sqlalchemy.Engine
    settings: Settings
    engine: Engine
    conversations: Conversations
    accounts: Accounts
    offload: Offload = field(default_factory=lambda: Offload(THREADS, "console"))
    door: Door = field(default_factory=Door)
    look_for_model: Callable[[], None] = lambda: None
    wake_jobs: Callable[[], None] = lambda: None
    live: Live = field(default_factory=Live)

    def __post_init__(self) -> None:
        self.conversations.observe(self.live.changed)

    @cached_property
    def shelf(self) -> Shelf:
        """The models that logged replies were made by."""
        return Shelf(self.settings.models or model_directory.SHIPPED)

    @cached_property
    def explainer(self) -> Explainer:
        return Explainer(self.db, self.shelf, self.settings.indexes)

    @cached_property
    def queue(self) -> Queue:
        """What reviewers look at next."""
        return Queue(self.db)

    @cached_property
    def suggestions(self) -> Suggestions:
        """Those in the making."""
        return Suggestions()

    @cached_property
    def dashboard(self) -> Dashboard:
        return Dashboard(self.db)

    @cached_property
    def elsewhere(self) -> Elsewhere:
        """What other servers do, for the streams of this one."""
        return Elsewhere(self.db, self.live, self.offload)

    @cached_property
    def topics(self) -> Topics:
        return Topics(self.db, self.shelf)

    def close(self) -> None:
        """Wait for the calls under way; none is taken afterwards."""
        if "topics" in self.__dict__:
            self.topics.close()
        if "dashboard" in self.__dict__:
            self.dashboard.close()
        self.offload.close()
        if "explainer" in self.__dict__:
            self.explainer.offload.close()


def console_of(connection: HTTPConnection) -> Console:
    """The console of the server that a request has come to."""
    console: Console = connection.app.state.console
    return console
