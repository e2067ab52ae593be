"""The indexes of the dashboard, of the audit log and of streams, and one form for the names in the audit log.

It reads every message once: on a big database this takes a minute.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

RENAMED = {
    "signed_in": "session.start",
    "signed_out": "session.end",
    "password_changed": "password.change",
    "operator_password_set": "password.set",
    "operator_added": "operator.add",
    "operator_disabled": "operator.disable",
    "operator_enabled": "operator.enable",
    "operator_role_changed": "role.change",
    "conversation_taken": "conversation.take",
    "conversation_handed_back": "conversation.hand_back",
    "conversation_closed": "conversation.close",
    "conversation_reopened": "conversation.reopen",
    "operator_said": "conversation.speak",
}


def upgrade() -> None:
    audit = sa.table("audit", sa.column("action", sa.String()))
    for before, after in RENAMED.items():
        op.execute(sa.update(audit).where(audit.c.action == before).values(action=after))
    op.create_index("ix_message_created_at", "message", ["created_at"], unique=False)
    op.create_index(
        "ix_message_by_operator",
        "message",
        ["created_at"],
        unique=False,
        sqlite_where=sa.text("operator_id IS NOT NULL"),
        postgresql_where=sa.text("operator_id IS NOT NULL"),
    )
    op.create_index("ix_feedback_updated_at", "feedback", ["updated_at"], unique=False)
    op.create_index("ix_audit_at_id", "audit", ["at", "id"], unique=False)
    op.create_index("ix_audit_action_at_id", "audit", ["action", "at", "id"], unique=False)
    op.create_index("ix_audit_operator_at_id", "audit", ["operator", "at", "id"], unique=False)
