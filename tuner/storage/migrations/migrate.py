"""Makes our tables, brings them to the newest revision, and refuses those of a revision that this tuner cannot use."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sql
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import ProgrammingError

from tuner.errors import StorageError

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "tuner_version"
FIRST = "0001"
"""The revision of what version 0.1 made, which wrote none down."""

FOLDER = Path(__file__).parent
NEWER = "install the tuner that made them or a newer one"

_LOCK = 5206128
_running = threading.Lock()  # Alembic's `op` and `context` belong to the whole process

_TABLES = sql.text(f"SELECT to_regclass('{VERSION_TABLE}') IS NOT NULL, to_regclass('tuner_studies') IS NOT NULL")
_VERSION = sql.text(f"SELECT version_num FROM {VERSION_TABLE}")
_IS_OWN = sql.text(
    "SELECT pg_get_userbyid(relowner) = current_user AND has_schema_privilege(relnamespace, 'CREATE')"
    " FROM pg_class WHERE oid = to_regclass('tuner_studies')"
)


@dataclass(frozen=True)
class Found:
    """Our tables in a database: their revision, None where there are none, and whether it is written down there."""

    revision: str | None
    written: bool
    known: Sequence[str]

    def require_current(self, name: str = "this database") -> None:
        """Raises StorageError where the tables are older or newer than this tuner; there may be none yet."""
        self.require_known(name)
        if self.revision not in (None, self.known[-1]):
            raise StorageError(
                f"{name} has tables of an older tuner (revision {self.revision}, not {self.known[-1]}): make a backup,"
                " end all workers and dashboards, and run `tuner upgrade`"
            )

    def require_known(self, name: str = "this database") -> None:
        """Raises StorageError where the tables are newer than this tuner."""
        if self.revision not in (None, *self.known):
            raise StorageError(
                f"{name} has tables of a newer tuner (revision {self.revision}, not {self.known[-1]}); {NEWER}"
            )


def revisions(folder: Path = FOLDER) -> list[str]:
    """Returns the names of all revisions, the oldest first; each is a file."""
    return sorted(path.stem.removeprefix("revision_") for path in folder.glob("versions/revision_*.py"))


def find(connection: Connection, folder: Path = FOLDER) -> Found:
    """Returns what a database has of our tables."""
    has_version, has_tables = connection.execute(_TABLES).one()
    revision = connection.scalar(_VERSION) if has_version else None
    return Found(revision or (FIRST if has_tables else None), revision is not None, revisions(folder))


def make_tables(engine: Engine, folder: Path = FOLDER) -> None:
    """Makes our tables where there are none; where they are up to date, no right to make any is needed.

    The owner's tables of version 0.1 get their revision written down. Raises StorageError where the tables are older
    or newer, or may not be made.
    """
    with _explaining(), engine.begin() as connection:
        if not _is_done(connection, folder):
            _lock(connection)
            if not _is_done(connection, folder):  # no other process was quicker
                _run(connection, folder)


def upgrade(connection: Connection, folder: Path = FOLDER) -> tuple[str | None, str]:
    """Brings our tables to the newest revision, as a part of the connection's transaction.

    Returns the revisions before, None if there were no tables, and after. Raises StorageError if they are newer.
    """
    _lock(connection)
    found = find(connection, folder)
    found.require_known()
    _run(connection, folder)
    return found.revision, found.known[-1]


def _is_done(connection: Connection, folder: Path) -> bool:
    """Whether there is nothing to make; on the tables of another user only that one writes a revision down."""
    found = find(connection, folder)
    found.require_current()
    return found.written or (found.revision is not None and not connection.scalar(_IS_OWN))


def _run(connection: Connection, folder: Path) -> None:
    """Runs the revisions that are missing; all of them, or none."""
    from alembic import command

    found, config = find(connection, folder), _config(connection, folder)
    with _running:
        if found.revision is not None and not found.written:
            command.stamp(config, found.revision)
        command.upgrade(config, "head")
    if not found.written:  # so that rights which were given before still suffice
        connection.execute(sql.text(f"GRANT SELECT ON {VERSION_TABLE} TO PUBLIC"))


def _config(connection: Connection, folder: Path) -> Config:
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config


@contextmanager
def _explaining() -> Iterator[None]:
    try:
        yield
    except ProgrammingError as error:
        said = str(error.orig).splitlines()[0]
        if not said.startswith("permission denied"):
            raise
        raise StorageError(
            f"the tuner's tables cannot be made here ({said}); let the owner of the database run `tuner grant`"
        ) from error


def _lock(connection: Connection) -> None:
    """Keeps other processes from making tables until the transaction ends."""
    connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK, 0)))
