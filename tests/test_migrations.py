"""The migrations give exactly the tables of the code, whole or not at all, whoever runs them from where."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from server import database
from server.console.audit import ACTIONS
from server.database import connect, reading, require_newest, upgrade, writing
from server.store import Store
from server.store_errors import NewerDatabase, OutdatedDatabase, StoreUnavailable
from server.tables import Base
from tests.databases import KINDS, fresh_database

REPOSITORY = Path(__file__).resolve().parent.parent
NEWEST = str(ScriptDirectory(str(database.MIGRATIONS)).get_current_head())
NEXT = f"{int(NEWEST) + 1:04}"
"""A revision after all of ours, for migrations that a test adds."""


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with fresh_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def more_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the migrations to which a test may add; the folder of the versions."""
    folder = tmp_path / "100% more migrations"
    shutil.copytree(database.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(database, "MIGRATIONS", folder)
    return folder / "versions"


def add_migration(versions: Path, revision: str, after: str, *statements: str) -> None:
    lines = [
        "import sqlalchemy as sa",
        "from alembic import op",
        f"revision, down_revision = {revision!r}, {after!r}",
        "def upgrade():",
        *(f"    {statement}" for statement in statements),
    ]
    (versions / f"{revision}_added.py").write_text("\n".join(lines))


@contextmanager
def before_migration(versions: Path, revision: str) -> Iterator[None]:
    """As it was before this migration was written."""
    later = [path for path in sorted(versions.glob("*.py")) if path.name >= revision]
    code = [path.read_text() for path in later]
    for path in later:
        path.unlink()
    yield
    for path, each in zip(later, code, strict=True):
        path.write_text(each)


def test_there_is_one_newest_migration_and_each_follows_the_one_before() -> None:
    scripts = ScriptDirectory(str(database.MIGRATIONS))
    names = [script.revision for script in scripts.walk_revisions()]
    assert scripts.get_heads() == [names[0]]
    assert names == sorted(names, reverse=True)


def test_all_migrations_give_the_tables_of_the_code(database_url: str, engine: Engine) -> None:
    upgrade(database_url)
    with reading(engine) as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_object": lambda _thing, name, kind, _reflected, _other: not of_search(name, kind),
            },
        )
        assert compare_metadata(context, Base.metadata) == []


def of_search(name: str | None, kind: str) -> bool:
    """What server.search_index adds beside the tables; the next test compares it."""
    if kind == "table":
        return name == "message_search" or (name or "").startswith("message_search_")
    return name in ("words", "ix_message_words")


def test_also_what_autogenerate_does_not_compare(
    database_url: str, engine: Engine, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    upgrade(database_url)
    other = tmp_path / "other"
    other.mkdir()
    with fresh_database(request.node.callspec.params["database_url"], other) as created_url:
        if created_url.startswith("sqlite"):
            (other / "turnwise.db").touch()
        created = connect(created_url)
        with writing(created) as connection:
            Base.metadata.create_all(connection)
            expected = shape(connection)
        created.dispose()
        with reading(engine) as connection:
            assert shape(connection) == expected


def shape(connection: Connection) -> dict[str, Any]:
    """All tables with their columns, keys, indexes and checks, as the database itself describes them."""
    inspector = inspect(connection)
    tables = {}
    for table in sorted(set(inspector.get_table_names()) - {"alembic_version"}):
        foreign_keys = [{**key, "referred_schema": None} for key in inspector.get_foreign_keys(table)]
        tables[table] = {
            "columns": [{**column, "type": repr(column["type"])} for column in inspector.get_columns(table)],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": by_name(foreign_keys),
            "unique": by_name(inspector.get_unique_constraints(table)),
            "indexes": by_name(readable(index) for index in inspector.get_indexes(table)),
            "checks": by_name(inspector.get_check_constraints(table)),
        }
    return tables | {"in SQL": in_sql(connection)}


def in_sql(connection: Connection) -> list[tuple[str, str]]:
    """What SQLAlchemy does not describe: virtual tables, triggers, generated columns, kinds of indexes."""
    if connection.dialect.name == "sqlite":
        query = (
            "SELECT name, sql FROM sqlite_master "
            "WHERE type = 'trigger' OR sql LIKE 'CREATE VIRTUAL TABLE%' ORDER BY name"
        )
    else:
        query = (
            "SELECT indexname, regexp_replace(indexdef, ' ON \\S+', '') FROM pg_indexes "
            "WHERE schemaname = current_schema() AND tablename <> 'alembic_version' UNION ALL "
            "SELECT table_name || '.' || column_name, generation_expression FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND is_generated = 'ALWAYS' ORDER BY 1"
        )
    return [(name, " ".join(sql.split())) for name, sql in connection.exec_driver_sql(query)]


def readable(index: Any) -> dict[str, Any]:
    options = {key: str(value) for key, value in index.get("dialect_options", {}).items()}
    return {**index, "dialect_options": options}


def by_name(things: Iterable[Any]) -> list[dict[str, Any]]:
    return sorted(things, key=lambda thing: str(thing["name"]))


def test_that_comparison_sees_checks_and_the_conditions_of_indexes(database_url: str, engine: Engine) -> None:
    upgrade(database_url)
    with reading(engine) as connection:
        message = shape(connection)["message"]
        search = str(shape(connection)["in SQL"])
    assert [check["name"] for check in message["checks"]] == ["ck_message_role", "ck_message_seq"]
    assert "superseded" in str(message["indexes"])
    assert ("to_tsvector" if connection.dialect.name == "postgresql" else "fts5(") in search
    assert ("USING gin" if connection.dialect.name == "postgresql" else "message_search_delete") in search


def test_upgrading_again_changes_nothing(database_url: str, engine: Engine) -> None:
    upgrade(database_url)
    visitor = Store(engine).new_visitor()
    assert upgrade(database_url) == NEWEST
    assert Store(engine).visitor_of(visitor.token) == visitor.visitor_id


def test_several_processes_upgrade_at_once(database_url: str, engine: Engine) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as processes:
        assert list(processes.map(upgrade, [database_url] * 6)) == [NEWEST] * 6
    require_newest(engine)


def test_a_failing_upgrade_leaves_nothing_behind(
    database_url: str, engine: Engine, more_migrations: Path
) -> None:
    upgrade(database_url)
    add_migration(
        more_migrations,
        NEXT,
        NEWEST,
        "op.create_table('half', sa.Column('id', sa.Integer(), primary_key=True))",
        "op.execute('INSERT INTO half (id) VALUES (1)')",
        "op.execute('SELECT * FROM nowhere')",
    )
    with pytest.raises(StoreUnavailable):
        upgrade(database_url)
    with reading(engine) as connection:
        assert "half" not in inspect(connection).get_table_names()
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == NEWEST


def test_changing_a_table_keeps_the_rows_that_refer_to_it(
    database_url: str, engine: Engine, more_migrations: Path
) -> None:
    upgrade(database_url)
    store = Store(engine)
    visitor = store.new_visitor()
    conversation = store.open_conversation(visitor.visitor_id)
    store.add_user_turn(conversation, "1", "still here?", {})
    add_migration(
        more_migrations,
        NEXT,
        NEWEST,
        "with op.batch_alter_table('visitor') as visitor:",
        "    visitor.alter_column('token_hash', new_column_name='secret', existing_type=sa.String())",
        "with op.batch_alter_table('conversation') as conversation:",
        "    conversation.drop_column('created_at')",
    )
    assert upgrade(database_url) == NEXT
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT count(secret) FROM visitor")) == 1
        assert connection.scalar(text("SELECT text FROM message")) == "still here?"


def test_names_in_the_audit_log_get_their_present_form(
    database_url: str, engine: Engine, more_migrations: Path
) -> None:
    with before_migration(more_migrations, "0005"):
        upgrade(database_url)
    before = {"signed_in": "session.start", "operator_said": "conversation.speak", "job.queue": "job.queue"}
    with writing(engine) as connection:
        for action in before:
            connection.execute(
                text(
                    "INSERT INTO audit (at, operator, action) VALUES ('2026-03-01 12:00:00', 'ana', :action)"
                ),
                {"action": action},
            )
    upgrade(database_url)
    with reading(engine) as connection:
        kept = connection.scalars(text("SELECT action FROM audit ORDER BY id")).all()
    assert kept == list(before.values())
    renamed = runpy.run_path(str(more_migrations / "0005_figures.py"))["RENAMED"]
    assert {*kept, *renamed.values()} <= ACTIONS


def older_conversation(connection: Connection, name: str, *replies: tuple[str, bool, str | None]) -> None:
    """As migration 0002 kept them: a turn, and replies to it with model, whether superseded, and rating."""
    values = {"id": name, "hash": f"hash of {name}", "seq": 1 + len(replies), "at": "2026-03-01 12:00:00"}
    for statement in (
        "INSERT INTO visitor VALUES (:id, :hash, :at)",
        "INSERT INTO conversation VALUES (:id, :id, :seq, :at, :at)",
        "INSERT INTO message VALUES (:id, :id, 1, 'user', 'hello', :at, 'c', NULL, NULL, NULL, NULL, false)",
    ):
        connection.execute(text(statement), values)
    for seq, (model, superseded, rating) in enumerate(replies, start=2):
        values |= {"me": f"{name} {seq}", "seq": seq, "model": model, "old": superseded}
        for statement in (
            "INSERT INTO message VALUES (:me, :id, :seq, 'agent', '', :at, NULL, NULL, :me, :id, NULL, :old)",
            "INSERT INTO generation VALUES (:me, 'stop', :model, '{}', 1, '[]', '[]', '[]', 1, 1, 1)",
            "INSERT INTO feedback VALUES (:me, :rating, NULL, :at)",
        ):
            connection.execute(text(statement), values | {"rating": rating})


def test_conversations_of_older_databases_are_found_and_reviewed_as_well(
    database_url: str, engine: Engine, more_migrations: Path
) -> None:
    with before_migration(more_migrations, "0003"):
        upgrade(database_url)
    with writing(engine) as connection:
        older_conversation(connection, "a", ("first", True, "down"), ("second", False, "up"))
        older_conversation(connection, "b", ("first", False, "down"))
        older_conversation(connection, "c")
    upgrade(database_url)
    with reading(engine) as connection:
        kept = connection.execute(text("SELECT id, model, thumbs_down FROM conversation ORDER BY id")).all()
    assert [tuple(row) for row in kept] == [("a", "second", False), ("b", "first", True), ("c", None, False)]


def test_an_upgrade_may_not_leave_rows_that_refer_to_nothing(tmp_path: Path, more_migrations: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnwise.db'}"
    upgrade(url)
    engine = connect(url)
    Store(engine).open_conversation(Store(engine).new_visitor().visitor_id)
    add_migration(more_migrations, NEXT, NEWEST, "op.execute('DELETE FROM visitor')")
    with pytest.raises(StoreUnavailable, match="rows in conversation that refer to nothing"):
        upgrade(url)
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT count(*) FROM visitor")) == 1
    engine.dispose()


def test_a_database_that_is_behind_is_refused(
    database_url: str, engine: Engine, more_migrations: Path
) -> None:
    upgrade(database_url)
    require_newest(engine)
    add_migration(more_migrations, NEXT, NEWEST, "pass")
    with pytest.raises(
        OutdatedDatabase, match=f"is at migration {NEWEST}, this Turnwise needs migration {NEXT}"
    ):
        require_newest(engine)
    upgrade(database_url)
    require_newest(engine)


def test_a_database_that_is_ahead_is_refused_and_not_touched(
    database_url: str, engine: Engine, more_migrations: Path
) -> None:
    add_migration(more_migrations, NEXT, NEWEST, "pass")
    upgrade(database_url)
    (more_migrations / f"{NEXT}_added.py").unlink()
    for attempt in (lambda: require_newest(engine), lambda: upgrade(database_url)):
        with pytest.raises(
            NewerDatabase, match=f"at migration {NEXT}, this Turnwise knows none after {NEWEST}"
        ):
            attempt()


def test_the_migrations_do_not_run_without_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from alembic.config import main; main()", "upgrade", "head"]
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {database.MIGRATIONS}\n")
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "python -m server db upgrade" in done.stderr


def test_every_table_and_column_is_documented() -> None:
    documented = (REPOSITORY / "docs" / "database.md").read_text()
    for table in Base.metadata.sorted_tables:
        _, _, section = documented.partition(f"### `{table.name}`")
        section = section.partition("\n#")[0]
        assert [column.name for column in table.columns if f"| `{column.name}` |" not in section] == []


# --- the command ------------------------------------------------------------------------------------


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of its own, so that the code is found from any folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TURNWISE_")}
    return {**kept, "PYTHONPATH": str(REPOSITORY), **settings}


def run_upgrade(cwd: Path, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "server", "db", "upgrade", *flags]
    return subprocess.run(
        command, cwd=cwd, env=environment(**settings), capture_output=True, text=True, check=False
    )


def test_the_command_upgrades_from_any_folder(database_url: str, engine: Engine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_upgrade(elsewhere, "--database-url", database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"at migration {NEWEST}, the newest" in done.stdout
    require_newest(engine)
    assert list(elsewhere.iterdir()) == []


def test_the_command_takes_the_url_from_the_environment(tmp_path: Path) -> None:
    assert run_upgrade(tmp_path, TURNWISE_DATABASE_URL="sqlite:///here.db").returncode == 0
    assert (tmp_path / "here.db").exists()


def test_the_refusal_names_a_command_that_helps(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'a folder' / 'my chats, 100%25.db'}")
    (tmp_path / "a folder").mkdir()
    with pytest.raises(OutdatedDatabase) as refusal:
        require_newest(engine)
    assert not (tmp_path / "a folder" / "my chats, 100%.db").exists()
    command = refusal.value.command
    assert command.startswith("python -m server db upgrade --database-url ")
    subprocess.run(
        command.replace("python", sys.executable, 1),
        shell=True,
        check=True,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
    )
    require_newest(engine)
    engine.dispose()


def test_the_command_loads_no_model_code(tmp_path: Path) -> None:
    program = (
        "import sys; from server.__main__ import main; "
        "status = main(['db', 'upgrade', '--database-url', 'sqlite:///here.db']); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://host/name", "mysql is neither sqlite nor postgresql"),
        ("sqlite:////nowhere/at/all.db", "cannot open /nowhere/at/all.db: No such file or directory"),
        ("postgresql://anna:geheim@127.0.0.1:1/test", "unavailable"),
    ],
)
def test_the_command_fails_in_one_line_without_the_password(tmp_path: Path, url: str, complaint: str) -> None:
    done = run_upgrade(tmp_path, "--database-url", url)
    assert done.returncode == 1
    assert done.stdout == ""
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert "geheim" not in done.stderr
