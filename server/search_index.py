"""The index of all words of all messages, as it stands beside the tables: FTS5 on SQLite, GIN on PostgreSQL.

The database itself keeps it, with triggers or with a generated column, so that nothing that writes a message
need know of it. `server.console.search` asks it.

On SQLite it is an external content table: it holds words and the rowids of messages, no texts. What a table
is copied to has other rowids and no triggers, so a migration that rewrites `message` makes the index anew.

On PostgreSQL punctuation of ASCII is turned into spaces before words are looked for. Its parser would else
keep addresses of mail and web, versions and files whole, and find no part of them. What is longer than any
message is not looked at: a tsvector has a limit, and an index may not be the reason to refuse a message.
"""

from __future__ import annotations

from typing import Final

PUNCTUATION: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

SQLITE: Final = (
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
)
POSTGRESQL: Final = (
    f"""
    ALTER TABLE message ADD COLUMN words tsvector GENERATED ALWAYS AS (
        to_tsvector(
            'simple'::regconfig,
            translate("left"(text, 100000), '{PUNCTUATION.replace("'", "''")}', '{" " * len(PUNCTUATION)}')
        )
    ) STORED
    """,
    # Small, so that nobody whose message is the last on the list waits long while it is worked off.
    "CREATE INDEX ix_message_words ON message USING gin (words) WITH (gin_pending_list_limit = 256)",
)
STATEMENTS: Final = {"sqlite": SQLITE, "postgresql": POSTGRESQL}
"""By the dialect's name."""

REBUILD: Final = "INSERT INTO message_search (message_search) VALUES ('rebuild')"
"""Makes SQLite's index anew from the messages."""
