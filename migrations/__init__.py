"""The history of the tables, one file in versions/ for each change, run by `python -m server db upgrade`.

A new one is written by hand: the next number, `down_revision` the one before. tests/test_migrations.py
prints what is missing until all migrations together give exactly the tables of server/tables.py, on SQLite
and on PostgreSQL.
"""
