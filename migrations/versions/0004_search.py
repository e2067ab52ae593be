"""Full-text search over messages, and the indexes of the inbox.

It reads every message once: on a big database this takes minutes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

SQLITE = (
    """
    CREATE VIRTUAL TABLE message_search USING fts5(
        text, content = 'message', columnsize = 0, tokenize = 'unicode61 remove_diacritics 0'
    )
    """,
    """
    CREATE TRIGGER message_search_insert AFTER INSERT ON message BEGIN
        INSERT INTO message_search (rowid, text) VALUES (new.rowid, new.text);
    END
    """,
    """
    CREATE TRIGGER message_search_delete AFTER DELETE ON message BEGIN
        INSERT INTO message_search (message_search, rowid, text) VALUES ('delete', old.rowid, old.text);
    END
    """,
    """
    CREATE TRIGGER message_search_update AFTER UPDATE OF text ON message BEGIN
        INSERT INTO message_search (message_search, rowid, text) VALUES ('delete', old.rowid, old.text);
        INSERT INTO message_search (rowid, text) VALUES (new.rowid, new.text);
    END
    """,
    "INSERT INTO message_search (message_search) VALUES ('rebuild')",
)
POSTGRESQL = (
    f"""
    ALTER TABLE message ADD COLUMN words tsvector GENERATED ALWAYS AS (
        to_tsvector(
            'simple'::regconfig,
            translate("left"(text, 100000), '{PUNCTUATION.replace("'", "''")}', '{" " * len(PUNCTUATION)}')
        )
    ) STORED
    """,
    "CREATE INDEX ix_message_words ON message USING gin (words) WITH (gin_pending_list_limit = 256)",
)


def upgrade() -> None:
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL:
        op.execute(sa.DDL(statement.replace("%", "%%")))  # type: ignore[no-untyped-call]
    add_index(
        "ix_conversation_inbox",
        ["updated_at", "id", "closed_at", "reviewed_at", "confidence"],
        "last_seq > 0",
    )
    add_index("ix_conversation_closed", ["updated_at", "id"], "closed_at IS NOT NULL")
    add_index(
        "ix_conversation_waiting", ["updated_at", "id"], "waiting_since IS NOT NULL AND closed_at IS NULL"
    )
    add_index("ix_conversation_taken", ["updated_at", "id"], "owner = 'operator'")
    add_index("ix_conversation_reviewed", ["updated_at", "id"], "reviewed_at IS NOT NULL")
    add_index("ix_conversation_disliked", ["updated_at", "id"], "thumbs_down")
    add_index("ix_conversation_confidence", ["confidence", "reviewed_at"], "confidence IS NOT NULL")
    op.create_index(
        "ix_conversation_model_updated_at_id", "conversation", ["model", "updated_at", "id"], unique=False
    )
    add_index("ix_conversation_unreviewed", ["id"], "reviewed_at IS NULL AND model IS NOT NULL")
    add_index(
        "ix_conversation_escalated", ["updated_at", "id"], "waiting_since IS NOT NULL OR owner_version > 0"
    )
    op.create_index("ix_audit_action_operator_at", "audit", ["action", "operator", "at"], unique=False)


def add_index(name: str, columns: list[str], where: str) -> None:
    op.create_index(
        name,
        "conversation",
        columns,
        unique=False,
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )
