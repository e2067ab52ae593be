"""What conversations from before migration 0003 do not know of themselves: their model, and a thumb down.

The inbox finds conversations by these columns, and the review queue hands out none without a model.
It reads what such a conversation has of messages, once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

MODEL = """
    UPDATE conversation SET model = (
        SELECT generation.model FROM message JOIN generation ON generation.message_id = message.id
        WHERE message.conversation_id = conversation.id ORDER BY message.seq DESC LIMIT 1
    ) WHERE model IS NULL
"""
THUMBS_DOWN = """
    UPDATE conversation SET thumbs_down = true WHERE NOT thumbs_down AND id IN (
        SELECT message.conversation_id FROM feedback JOIN message ON message.id = feedback.message_id
        WHERE feedback.rating = 'down' AND NOT message.superseded
    )
"""


def upgrade() -> None:
    for statement in (MODEL, THUMBS_DOWN):
        op.execute(sa.text(statement))
