"""What can go wrong between the server and its database.

    StoreError
    ├── StoreUnavailable      the database cannot be reached, is locked, full or read-only
    ├── StoreValueError       a value that no database should be given (NUL, half a surrogate pair, NaN)
    ├── ClientIdConflict      a client id that was used before, with another text
    ├── ConversationFull      it holds as many messages as it may
    ├── TakenOver             a person answers the conversation, so the bot says nothing
    ├── OwnerChanged          who answers the conversation is not who was thought to
    ├── UnknownConversation   no such conversation
    ├── UnknownVisitor        no such visitor
    ├── DatabaseUrlError      a database URL that Turnwise does not take
    ├── OutdatedDatabase      the database has not been brought to the newest migration
    └── NewerDatabase         the database was made by a newer Turnwise than this one

No message carries what a visitor wrote or a password: any of them may be logged.
"""

from __future__ import annotations


class StoreError(Exception):
    """Root of the tree."""


class StoreUnavailable(StoreError):
    """Nothing could be read, or it is not known whether what was written is kept.

    Trying again is always right: user turns are idempotent on their client id and replies on their reply id.

    Attributes:
        reason: the first line of what the database said.
        busy: True when only a wait took too long (a lock, a full connection pool) and trying again in a
            moment is likely to work; False when somebody has to look (disk full, read-only, unreachable).
    """

    def __init__(self, reason: str, *, busy: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.busy = busy

    def __str__(self) -> str:
        return f"the database is {'busy' if self.busy else 'unavailable'}: {self.reason}"


class StoreValueError(StoreError, ValueError):
    """A value was refused before it came near a database: SQLite and PostgreSQL keep the same things."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class ClientIdConflict(StoreError):
    """The client id names another message of this conversation."""

    def __init__(self, client_id: str) -> None:
        super().__init__(client_id)
        self.client_id = client_id

    def __str__(self) -> str:
        return f"the id {self.client_id!r} was used before in this conversation, with another text"


class ConversationFull(StoreError):
    """Attributes: conversation_id, most (messages that it may hold)."""

    def __init__(self, conversation_id: str, most: int) -> None:
        super().__init__(conversation_id, most)
        self.conversation_id = conversation_id
        self.most = most

    def __str__(self) -> str:
        return f"the conversation {self.conversation_id!r} holds {self.most} messages already"


class TakenOver(StoreError):
    """A reply of the bot was refused: an operator answers the conversation."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id)
        self.conversation_id = conversation_id

    def __str__(self) -> str:
        return f"the conversation {self.conversation_id!r} has been taken over by an operator"


class OwnerChanged(StoreError):
    """An operator's wish came too late, or was not theirs. Attributes: conversation_id, version (now)."""

    def __init__(self, conversation_id: str, version: int) -> None:
        super().__init__(conversation_id, version)
        self.conversation_id = conversation_id
        self.version = version

    def __str__(self) -> str:
        return f"the owner of the conversation {self.conversation_id!r} is at version {self.version}"


class UnknownConversation(StoreError):
    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id)
        self.conversation_id = conversation_id

    def __str__(self) -> str:
        return f"there is no conversation {self.conversation_id!r}"


class UnknownVisitor(StoreError):
    def __init__(self, visitor_id: str) -> None:
        super().__init__(visitor_id)
        self.visitor_id = visitor_id

    def __str__(self) -> str:
        return f"there is no visitor {self.visitor_id!r}"


class DatabaseUrlError(StoreError, ValueError):
    """`reason` never repeats the URL, which may hold a password."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"database URL: {self.reason}"


class OutdatedDatabase(StoreError):
    """Attributes: found (None: an empty or missing database), newest, command (what brings it up to date)."""

    def __init__(self, found: str | None, newest: str, command: str) -> None:
        super().__init__(found, newest, command)
        self.found = found
        self.newest = newest
        self.command = command

    def __str__(self) -> str:
        state = "has not been set up" if self.found is None else f"is at migration {self.found}"
        return f"the database {state}, this Turnwise needs migration {self.newest}; run\n  {self.command}"


class NewerDatabase(StoreError):
    """A migration that this code has never heard of: going on could destroy what newer code keeps there."""

    def __init__(self, found: str, newest: str) -> None:
        super().__init__(found, newest)
        self.found = found
        self.newest = newest

    def __str__(self) -> str:
        return (
            f"the database is at migration {self.found}, this Turnwise knows none after {self.newest}: "
            "it was set up by a newer Turnwise; start that one, or name another database"
        )
