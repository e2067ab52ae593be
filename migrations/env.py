"""Run by Alembic around the migrations, on the connection that server.database.upgrade has locked."""

from __future__ import annotations

from alembic import context

from server.tables import Base

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("migrations are run by: python -m server db upgrade")

# The metadata brings the naming convention: constraints that later migrations add or drop are found by name.
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
