"""An operator in the bot's place: taking a conversation over, speaking in it, handing it back, closing it.

Each call is carried out by `server.conversations`, under the conversation's lock and in one transaction with
its line in the audit log. What came too late, because a colleague was quicker, raises `OwnerChanged`.
"""

from __future__ import annotations

from functools import partial

from sqlalchemy import Connection, select

from server.console import audit
from server.console.accounts import Identity
from server.console.context import Console
from server.database import reading
from server.desk import Along
from server.ledger import OperatorSay, OwnerWish
from server.protocol import Message
from server.records import Ownership, storable
from server.tables import Conversation


async def take(console: Console, who: Identity, conversation: str, version: int) -> Ownership:
    """From the commit on the bot says nothing there. Raises OwnerChanged, UnknownConversation."""
    along = _noted(who, "conversation.take", conversation)
    return await console.conversations.change_owner(conversation, OwnerWish(who.id, version, True, along))


async def hand_back(console: Console, who: Identity, conversation: str, version: int) -> Ownership:
    """The bot answers again. Raises OwnerChanged (also when it is not theirs), UnknownConversation."""
    along = _noted(who, "conversation.hand_back", conversation)
    return await console.conversations.change_owner(conversation, OwnerWish(who.id, version, False, along))


async def close(console: Console, who: Identity, conversation: str) -> Ownership:
    """The bot has it again. Raises OwnerChanged when a colleague has it, UnknownConversation."""
    along = _noted(who, "conversation.close", conversation)
    return await console.conversations.close(conversation, who.id, True, along)


async def reopen(console: Console, who: Identity, conversation: str) -> Ownership:
    """Not done after all. Raises OwnerChanged when a colleague has it, UnknownConversation."""
    along = _noted(who, "conversation.reopen", conversation)
    return await console.conversations.close(conversation, who.id, False, along)


async def speak(console: Console, who: Identity, conversation: str, key: str, text: str) -> Message:
    """Say something to the visitor, once for each key.

    Raises OwnerChanged unless the conversation is theirs, ClientIdConflict, ConversationFull,
    UnknownConversation, StoreValueError.
    """
    along = _noted(who, "conversation.speak", conversation)
    return await console.conversations.intervene(conversation, OperatorSay(key, text, who.id, along))


def exists(console: Console, conversation: str) -> bool:
    """A plain call, for `console.offload`."""
    if not storable(conversation):
        return False
    with reading(console.db) as connection:
        return connection.scalar(select(Conversation.id).where(Conversation.id == conversation)) is not None


def _noted(who: Identity, action: str, conversation: str) -> Along:
    return partial(_note, operator=who.name, action=action, subject=conversation)


def _note(connection: Connection, operator: str, action: str, subject: str) -> None:
    audit.note(connection, operator, action, subject)
