"""What the store writes, many requests of a kind at a time: a few statements for all of them.

Each method of `Writes` is a `CarryOut` (server/writer.py): it looks up all that its requests depend on,
decides about one after the other in their order, and then writes everything at once. A request that is
refused has written nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select
from sqlalchemy import text as sql

from server.desk import Desk, Outcome, Request
from server.store_errors import StoreError, UnknownVisitor
from server.tables import Conversation, Visitor


@dataclass(frozen=True, slots=True)
class NewVisitor:
    visitor_id: str
    token_hash: str


@dataclass(frozen=True, slots=True)
class NewConversation:
    conversation_id: str
    visitor_id: str


class Writes:
    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock

    def visitors(self, connection: Connection, requests: Sequence[NewVisitor]) -> list[StoreError | None]:
        rows = [
            {"id": each.visitor_id, "token_hash": each.token_hash, "created_at": self._clock()}
            for each in requests
        ]
        connection.execute(insert(Visitor), rows)
        return [None] * len(requests)

    def conversations(
        self, connection: Connection, requests: Sequence[NewConversation]
    ) -> list[StoreError | None]:
        # Locked as a foreign key locks it: nobody erases the visitor before the commit.
        query = select(Visitor.id).where(Visitor.id.in_({each.visitor_id for each in requests}))
        known = set(connection.scalars(query.with_for_update(read=True, key_share=True)))
        outcomes: list[StoreError | None] = []
        rows = []
        for each in requests:
            if each.visitor_id not in known:
                outcomes.append(UnknownVisitor(each.visitor_id))
                continue
            now = self._clock()
            rows.append(
                {
                    "id": each.conversation_id,
                    "visitor_id": each.visitor_id,
                    "last_seq": 0,
                    "created_at": now,
                    "updated_at": now,
                }
            )
            outcomes.append(None)
        if rows:
            connection.execute(insert(Conversation), rows)
        return outcomes

    def moves(self, connection: Connection, requests: Sequence[Request]) -> list[Outcome | StoreError]:
        """What users said, what they were answered, what they think of it, and who answers them."""
        desk = Desk(connection, requests, self._clock)
        outcomes = [desk.decide(each) for each in requests]
        desk.flush(connection)
        return outcomes

    def pings(self, connection: Connection, requests: Sequence[None]) -> list[StoreError | None]:
        connection.execute(sql("UPDATE alembic_version SET version_num = version_num"))
        return [None] * len(requests)
