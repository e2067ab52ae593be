"""The answer to a hello: where the conversation stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chatbot.options import MAX_TOKENS
from server.ledger import Snapshot
from server.live_conversation import Live
from server.protocol import MAX_FRAME, Limits, Message, Ready
from server.speaker import Speaker

READY_BYTES: Final = 512 * 1024
"""Of messages in a `ready`; the rest follows in frames of its own. Many clients refuse 1 MiB."""


def greeting(
    token: str, live: Live, snapshot: Snapshot, speaker: Speaker, max_text: int
) -> tuple[Ready, Sequence[Message]]:
    """The `ready`, and the messages that do not fit into it."""
    fitting = _fitting(snapshot.messages)
    ready = Ready(
        token=token,
        conversation=live.id,
        model=speaker.fingerprint,
        seq=snapshot.last_seq,
        messages=snapshot.messages[:fitting],
        replying=None if live.running is None else live.running.replying,
        owner=live.owner,
        waiting=live.waiting or None,
        # What is blocked is nobody's reading matter.
        defaults=speaker.defaults.model_dump(exclude={"blocked"}),
        limits=Limits(max_text=max_text, max_tokens=MAX_TOKENS, max_frame=MAX_FRAME),
    )
    return ready, snapshot.messages[fitting:]


def _fitting(messages: Sequence[Message]) -> int:
    """How many of the messages a `ready` holds, by an upper bound of their bytes that needs no encoding."""
    room = READY_BYTES
    for count, message in enumerate(messages):
        room -= 1000 + 6 * len(message.text) + 6 * len(message.comment or "")
        room -= sum(100 + 6 * len(alternative.text) for alternative in message.alternatives or ())
        if room < 0:
            return count
    return len(messages)
