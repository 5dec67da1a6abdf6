"""The versions of our own tables, in a real PostgreSQL: made, marked, upgraded, and refused where they do not fit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import Connection, Engine

from tuner.cli import commands
from tuner.control import create
from tuner.errors import StorageError
from tuner.storage import leases, roles
from tuner.storage.connection import open_storage
from tuner.storage.migrations import migrate
from tuner.storage.roles import Role
from tuner.study.definition import Study

Small = Callable[..., Study]
OF_0_1 = (Path(__file__).parents[2] / "written_by_0_1" / "database.sql").read_text(encoding="utf-8")
LATER = '''"""A revision that this test invents."""
import sqlalchemy as sql
from alembic import op
revision, down_revision = "0002", "0001"
def upgrade():
    op.add_column("tuner_leases", sql.Column("later", sql.Integer))
    {more}
'''


@pytest.fixture
def engine(fresh_url: str) -> Engine:
    return connected(fresh_url)


def connected(url: str) -> Engine:
    return sql.create_engine(url.replace("postgresql:", "postgresql+psycopg2:"), poolclass=sql.NullPool)


@pytest.fixture
def old(engine: Engine) -> Engine:
    """A database as 0.1 left it."""
    with engine.begin() as connection:
        connection.exec_driver_sql(OF_0_1.replace("%", "%%"))
    return engine


def later(folder: Path, more: str = "pass") -> Path:
    """The migrations of a tuner that has one revision more."""
    shutil.copytree(migrate.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "revision_0002.py").write_text(LATER.format(more=more))
    return folder


def rows(engine: Engine, question: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sql.text(question))]


def revision(engine: Engine) -> list[str]:
    return [row[0] for row in rows(engine, "select version_num from tuner_version")]


def differences(connection: Connection) -> Any:
    """What Alembic would have to change in our tables to make them what the code believes they are."""

    def is_ours(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "table" or name in leases.metadata.tables

    options = {"include_name": is_ours, "compare_type": True, "compare_server_default": True}
    return compare_metadata(MigrationContext.configure(connection, opts=options), leases.metadata)


def test_the_revisions_make_the_tables_that_the_code_works_with(engine: Engine) -> None:
    migrate.make_tables(engine)
    with engine.connect() as connection:
        assert differences(connection) == []
        connection.execute(sql.text("alter table tuner_leases alter column attempt drop not null"))
        connection.execute(sql.text("drop index ix_tuner_workers_study_id"))
        assert len(differences(connection)) == 2


SHAPES = (
    "select table_name, column_name, data_type, is_nullable, column_default, is_identity"
    " from information_schema.columns where table_name like 'tuner_%' and table_name <> 'tuner_version' order by 1, 2",
    "select indexdef from pg_indexes where tablename like 'tuner_%' and tablename <> 'tuner_version' order by 1",
    "select conname, pg_get_constraintdef(oid) from pg_constraint where conname like 'tuner_%'"
    " and conname not like 'tuner_version%' and contype <> 'n' order by 1",
)


def test_the_first_revision_makes_what_0_1_made(fresh_url: str, old: Engine, ask: Callable[[str], Any]) -> None:
    ask("create database fresh_too")
    new = connected(fresh_url.replace("/fresh?", "/fresh_too?"))
    migrate.make_tables(new)
    shapes = [[rows(engine, shape) for shape in SHAPES] for engine in (old, new)]
    ask("drop database fresh_too with (force)")
    assert [len(shape) for shape in shapes[0]] == [24, 5, 3]
    assert shapes[0] == shapes[1]


def test_each_revision_is_a_file_and_follows_the_one_before() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.FOLDER))
    chain = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert chain[::-1] == migrate.revisions()
    assert chain[-1] == migrate.FIRST


def test_up_to_date_tables_cost_two_questions_and_no_lock(engine: Engine) -> None:
    migrate.make_tables(engine)
    asked: list[str] = []
    sql.event.listen(engine, "before_cursor_execute", lambda *event: asked.append(event[2]))
    migrate.make_tables(engine)
    assert len(asked) == 2
    assert not any("lock" in question for question in asked)


def test_tables_of_0_1_get_their_revision_and_keep_their_rows(old: Engine) -> None:
    before = [rows(old, f"select * from {table} order by 1") for table in leases.metadata.tables]
    migrate.make_tables(old)
    assert revision(old) == ["0001"]
    with old.connect() as connection:
        assert differences(connection) == []
    assert [rows(old, f"select * from {table} order by 1") for table in leases.metadata.tables] == before
    assert len(before[2]) == 8


def test_only_an_upgrade_brings_tables_to_a_later_revision(old: Engine, tmp_path: Path) -> None:
    """Whether their revision is written down, or they are 0.1's."""
    folder = later(tmp_path / "later")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"of an older tuner \(revision 0001, not 0002\).*run `tuner upgrade`$"):
            migrate.make_tables(old, folder)
        migrate.make_tables(old)
    with old.begin() as connection:
        assert migrate.upgrade(connection, folder) == ("0001", "0002")
        assert migrate.upgrade(connection, folder) == ("0002", "0002")
    assert revision(old) == ["0002"]
    assert rows(old, "select distinct later from tuner_leases") == [(None,)]
    migrate.make_tables(old, folder)


def test_0_1_is_upgraded_at_once(old: Engine, tmp_path: Path) -> None:
    with old.begin() as connection:
        assert migrate.upgrade(connection, later(tmp_path / "later")) == ("0001", "0002")
    assert revision(old) == ["0002"]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_revision_that_fails_changes_nothing(engine: Engine, tmp_path: Path, fresh: bool) -> None:
    if not fresh:
        migrate.make_tables(engine)
    folder = later(tmp_path / "later", 'op.execute("select 1 / 0")')
    with pytest.raises(sql.exc.DataError), engine.begin() as connection:
        migrate.upgrade(connection, folder)
    with engine.connect() as connection:
        assert migrate.find(connection).revision == (None if fresh else "0001")
    assert rows(engine, "select 1 from information_schema.columns where column_name = 'later'") == []


@pytest.mark.parametrize("prepared", ["fresh", "old"])
def test_processes_that_make_the_tables_at_once_take_turns(prepared: str, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue("engine" if prepared == "fresh" else "old")
    script = """if True:
        import sqlalchemy, sys
        from tuner.storage.migrations import migrate
        migrate.make_tables(sqlalchemy.create_engine(sys.argv[1]))
    """
    command = [sys.executable, "-W", "error", "-c", script, engine.url.render_as_string(hide_password=False)]
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and classid = 5206128 and not granted"
    with engine.begin() as connection:
        connection.execute(sql.text("select pg_advisory_xact_lock(5206128, 0)"))
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
        while rows(engine, waiting) != [(2,)]:  # both have seen that there is something to make
            assert all(process.poll() is None for process in processes)
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [(b"", 0)] * 2
    assert revision(engine) == ["0001"]


@pytest.fixture
def newer(fresh_url: str, small: Small) -> Study:
    """A study in a database that a newer tuner has upgraded."""
    study = small(3)
    with open_storage(fresh_url) as storage:
        create.enter(storage, study)
        with storage.engine.begin() as connection:
            connection.execute(sql.text("update tuner_version set version_num = '0099'"))
    return study


def test_tables_of_a_newer_tuner_are_refused_in_one_line(fresh_url: str, newer: Study, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text((migrate.FOLDER.parents[2] / "studies" / "quickstart.yaml").read_text())
    words = (
        f"newer tuner (revision 0099, not {migrate.revisions()[-1]}); install the tuner that made them or a newer one"
    )
    commands_given = (
        ["status"],
        ["status", newer.name],
        ["run", str(file)],
        ["work", newer.name],
        ["work"],
        ["upgrade"],
    )
    for arguments in commands_given:
        done = CliRunner().invoke(commands, arguments, env={"TUNER_STORAGE": fresh_url})
        assert isinstance(done.exception, StorageError), arguments
        assert done.exception.exit_code == 3
        assert str(done.exception).endswith(words)
        assert "\n" not in str(done.exception)


def test_an_upgrade_says_from_which_version_to_which(fresh_url: str, engine: Engine) -> None:
    with open_storage(fresh_url) as storage:
        optunas = storage.get_head_version()

    def said() -> list[str]:
        done = CliRunner().invoke(commands, ["upgrade"], env={"TUNER_STORAGE": fresh_url})
        assert done.exit_code == 0, done.output
        return done.output.splitlines()[1:]

    optuna = f"  Optuna's tables are up to date ({optunas})"
    assert said() == [optuna, "  the tuner's tables were made (0001)"]
    assert said() == [optuna, "  the tuner's tables are up to date (0001)"]


@pytest.fixture
def guest(fresh_url: str, ask: Callable[[str], Any]) -> Iterator[str]:
    """The URL of a role that may make no table."""
    ask("create role guest login")
    yield fresh_url.replace("tuner@", "guest@")
    with open_storage(fresh_url) as owner, owner.engine.begin() as connection:
        connection.execute(sql.text("drop owned by guest"))
    ask("drop role guest")


def test_a_role_that_may_make_no_tables_uses_those_that_are_there(fresh_url: str, guest: str) -> None:
    with open_storage(fresh_url) as owner:
        with owner.engine.begin() as connection:
            connection.execute(sql.text("grant select on all tables in schema public to guest"))
        with (
            open_storage(guest) as storage,
            pytest.raises(StorageError, match=r"cannot be made here \(permission denied.*run `tuner grant`"),
        ):
            migrate.make_tables(storage.engine)
        roles.grant(owner, [Role("worker", "guest", None)])
        with open_storage(guest) as storage:
            migrate.make_tables(storage.engine)


def test_rights_that_were_granted_with_0_1_still_suffice(fresh_url: str, old: Engine, guest: str) -> None:
    """Before the owner has written the revision down, and after, whoever that was."""
    with old.begin() as connection:
        for right in (*roles.WORKER, "USAGE ON SCHEMA {schema}"):
            connection.execute(sql.text(f"GRANT {right.format(schema='public')} TO guest"))
        connection.execute(sql.text("GRANT CREATE ON SCHEMA public TO guest"))  # as before PostgreSQL 15
    with open_storage(guest) as storage:
        migrate.make_tables(storage.engine)
        assert rows(old, "select to_regclass('tuner_version') is null") == [(True,)]
        migrate.make_tables(old)
        migrate.make_tables(storage.engine)
        assert revision(storage.engine) == ["0001"]
    with open_storage(guest) as storage:
        assert len(storage.get_all_studies()) == 1
