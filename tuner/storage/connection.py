"""Opens the Optuna storage in PostgreSQL, embedded or by URL; the only module that knows a URL."""

import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tuner.errors import StorageError
from tuner.storage.embedded import attached, default_folder
from tuner.storage.migrations import migrate
from tuner.storage.migrations.migrate import NEWER
from tuner.storage.outages import is_outage

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg2")
OLDEST_VERSION = 14
SHUTDOWN_SECONDS = 2.0
"""How long connections that were just closed may still be listed."""

CREATION_LOCK = 7083725462  # any number that only our processes ask this database to lock

# libpq's settings unless the URL has others: a dead server or network is noticed within half a minute.
CONNECTION = {
    "application_name": "textgen-tuner",  # and which process, see `session_name`
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "10",
    "keepalives_count": "2",
    "tcp_user_timeout": "30000",  # milliseconds that a question may stay unacknowledged
}

PATIENCE = {
    "idle_in_transaction_session_timeout": "20s",  # a client that stands still, or is gone, loses its locks
    "lock_timeout": "25s",  # longer than that: where one client stands still, no user need notice
    "tcp_keepalives_idle": "10s",
    "tcp_keepalives_interval": "10s",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "30s",
}
"""How long the server waits for a client of ours: left alone it believes in one for two hours.

Both times together stay below a lease, so that those who had to wait for a lock still have theirs.
"""

CROWDED = ("too many", "remaining connection slots are reserved")
"""What a server says that has no connection left."""

# The words of libpq and of the server for what went wrong, and what to do about it.
REMEDIES = {
    "password": "check the user and the password",
    "relation": "give a database of its own: this one holds the tables of another program",
    "does not exist": "create it, or correct the URL",
    "could not translate host name": "check the host name",
    "onnection refused": "check host and port, and that PostgreSQL runs there",
    "timeout expired": "check host and port, and that no firewall is in between",
    **dict.fromkeys(CROWDED, "start fewer workers, or raise max_connections of the server"),
    "lock timeout": "another session stands still: `tuner status STUDY` says which; try again",
    "permission denied": "let an administrator grant this user CREATE on the schema, or own the database",
}

GONE_REMEDY = "nothing is lost; give the same command when PostgreSQL is back"


def _pause() -> float:
    return random.uniform(0.2, 1.0)  # not all of them at once again


@dataclass(frozen=True)
class ConnectionRetry:
    """For how many seconds a place is waited for on a server that has none left, and how long between two tries."""

    seconds: float = 60.0
    pause: Callable[[], float] = _pause


@contextmanager
def open_storage(
    url: str | None, data_folder: Path | None = None, retry: ConnectionRetry = ConnectionRetry()
) -> Iterator[RDBStorage]:
    """The storage at a URL, or without one in the embedded server, which runs as long as a process uses it.

    `retry` is for a server that has no connection left. Raises StorageError, which never shows a password.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study and trial, and so do we
    with _address(url, data_folder) as address:
        name = describe(url, data_folder)
        storage = _connect(address, name, retry)
        try:
            yield storage
        except (SQLAlchemyError, StorageInternalError) as error:
            if not is_outage(error):
                raise
            reason = _reason(error)
            raise StorageError(f"{name} went away: {reason}\n{_remedy(reason, GONE_REMEDY)}") from error
        finally:
            storage.remove_session()
            storage.engine.dispose()


@contextmanager
def open_existing(url: str | None, data_folder: Path | None = None) -> Iterator[RDBStorage | None]:
    """The storage as `open_storage` has it, or None where none was made yet. Raises StorageError."""
    if not _exists(url, data_folder):
        yield None
        return
    with open_storage(url, data_folder) as opened:
        yield opened


def _exists(url: str | None, data_folder: Path | None) -> bool:
    if url is None:
        return os.path.isdir((data_folder or default_folder()) / "cluster")  # False where we may not look
    address = _parse(url)
    settings = {key: value for key, value in CONNECTION.items() if key not in address.query}
    engine = sqlalchemy.create_engine(address, connect_args=settings, poolclass=sqlalchemy.NullPool)
    with _explaining(describe(url)), engine.connect() as connection:
        return _is_created(connection)


def describe(url: str | None, data_folder: Path | None = None) -> str:
    """The storage's address as a person may see it."""
    return f"embedded PostgreSQL in {data_folder or default_folder()}" if url is None else hide_password(url)


def with_password(url: str, file: Path) -> str:
    """Returns a URL with the password that a file holds; one that has a password keeps it. Raises StorageError.

    libpq reads its own passfile only where no other user may read it; a mounted secret is seldom that private.
    """
    address = _parse(url)
    if address.password is not None or "password" in address.query:
        return url
    address = address.set(drivername="postgresql", password=read_password(file))
    return address.render_as_string(hide_password=False)


def read_password(file: Path) -> str:
    """Returns what the first line of a file holds. Raises StorageError."""
    try:
        password = file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{file}: the password cannot be read: {getattr(error, 'strerror', error)}") from error
    if not password:
        raise StorageError(f"{file}: there is no password in its first line")
    return password


@dataclass(frozen=True)
class Upgraded:
    """The versions of Optuna's tables before and after an upgrade, and those of ours; None if there were none."""

    optuna: tuple[str, str]
    tuner: tuple[str | None, str]


def upgrade(url: str | None, data_folder: Path | None = None) -> Upgraded:
    """Brings Optuna's tables to the version of this Optuna, and ours to this tuner's. Raises StorageError.

    No worker may be at work meanwhile.
    """
    name = describe(url, data_folder)
    with _address(url, data_folder) as address, _explaining(name):
        settings = _settings(address)
        with _engine(address, settings).connect() as connection:
            _require_version(connection)
            if not _is_created(connection):
                raise StorageError(f"{name} has no tables yet; the first `tuner run` makes them")
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(CREATION_LOCK)))
            _require_quiet(connection)
            migrate.find(connection).require_known(name)
            connection.commit()  # the server ends a transaction that says nothing; the lock stays
            storage = _optuna_storage(address, settings, create=False, check=False)
            before, after = storage.get_current_version(), storage.get_head_version()
            if before not in storage.get_all_versions():
                raise StorageError(f"{name} is of a newer Optuna (schema {before}); {NEWER}")
            if before != after:
                storage.upgrade()
            storage.engine.dispose()
            own = migrate.upgrade(connection)
            connection.commit()
    return Upgraded((before, after), own)


def session_name(process: int, host: str) -> str:
    """Returns the name of a process's sessions on the server, which is all that other roles may see of them."""
    return f"{CONNECTION['application_name']} {process} {host}"[:63]


def _settings(address: URL) -> dict[str, str]:
    ours = CONNECTION | {"application_name": session_name(os.getpid(), socket.gethostname())}
    return {key: value for key, value in ours.items() if key not in address.query}


def hide_password(url: str) -> str:
    """A URL, even a malformed one, with `***` for the password."""
    url = re.sub(r"^((?:[^:/@]*://)?+[^:/@]*:).*@", r"\1***@", url, flags=re.DOTALL)
    return re.sub(r"(password=)[^&]*", r"\1***", url)


@contextmanager
def _address(url: str | None, data_folder: Path | None) -> Iterator[URL]:
    if url is not None:
        yield _parse(url)
        return
    with attached(data_folder or default_folder()) as server:
        place = {"host": server["host"], "port": server["port"]}
        yield URL.create("postgresql+psycopg2", username=server["username"], database=server["database"], query=place)


def _parse(url: str) -> URL:
    try:
        address = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        address = None
    if address is None or address.drivername not in SCHEMES:
        raise StorageError(f"the storage '{hide_password(url)}' is not postgresql://user:password@host/database")
    if "@" in (address.host or ""):
        raise StorageError(f"{hide_password(url)}: write %40 for an @ in the password")
    return address.set(drivername="postgresql+psycopg2")


def _connect(address: URL, name: str, retry: ConnectionRetry) -> RDBStorage:
    settings = _settings(address)
    engine = _engine(address, settings)

    def connect() -> RDBStorage:
        with engine.connect() as connection:
            _require_version(connection)
            migrate.find(connection).require_current(name)
            if _must_create(connection):
                return _optuna_storage(address, settings, create=True)
        return _optuna_storage(address, settings, create=False)

    with _explaining(name):
        return _patiently(connect, retry)


def _engine(address: URL, settings: dict[str, str]) -> Engine:
    return sqlalchemy.create_engine(
        address, connect_args=settings, poolclass=sqlalchemy.NullPool, pool_events=[(_limit_waits, "connect")]
    )


def _limit_waits(connection: Any, record: Any) -> None:
    """Tells the server, on a new connection, how long it waits for us; no option of libpq, which may be another's."""
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("; ".join(f"SET {name} = '{value}'" for name, value in PATIENCE.items()))
    connection.autocommit = False


def _patiently(connect: Callable[[], RDBStorage], retry: ConnectionRetry) -> RDBStorage:
    """Tries again for a while where too many start at once: a worker needs two connections then, and one later."""
    end = time.monotonic() + retry.seconds
    while True:
        try:
            return connect()
        except (SQLAlchemyError, StorageInternalError) as error:
            if not any(words in _reason(error) for words in CROWDED) or time.monotonic() > end:
                raise
            time.sleep(retry.pause())


def _require_version(connection: Connection) -> None:
    version = connection.dialect.server_version_info or (0,)
    if version < (OLDEST_VERSION,):
        raise StorageError(
            f"PostgreSQL {version[0]} is too old: use PostgreSQL {OLDEST_VERSION} or newer, or leave --storage out"
        )


def _must_create(connection: Connection) -> bool:
    """Whether we have to create Optuna's tables; if so, other processes wait here until our connection is closed.

    Optuna looks for its tables and then creates them, so two processes at once would collide.
    """
    if _is_created(connection):
        return False
    connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(CREATION_LOCK)))
    return not _is_created(connection)


def _is_created(connection: Connection) -> bool:
    """Whether Optuna's last step was done; then nothing is added, for the tables may be of another version."""
    return sqlalchemy.inspect(connection).has_table("alembic_version")


def _require_quiet(connection: Connection) -> None:
    """Raises StorageError while another process uses the database: an upgrade changes its tables."""
    others = sqlalchemy.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND starts_with(application_name, :name) AND backend_type = 'client backend'"
    )
    name = {"name": CONNECTION["application_name"]}
    end = time.monotonic() + SHUTDOWN_SECONDS
    while (count := connection.scalar(others, name)) and time.monotonic() < end:
        time.sleep(0.1)
    if count:
        raise StorageError(f"workers or dashboards are there ({count} connections): end them, then upgrade")


def _optuna_storage(address: URL, settings: dict[str, str], create: bool, check: bool = True) -> RDBStorage:
    pool: dict[str, Any] = {
        "pool_size": 1,  # Optuna takes one connection for each thread that is inside a call,
        "max_overflow": 1,  # and one more while it checks its tables,
        "pool_timeout": 60,  # so threads take turns
        "pool_pre_ping": True,  # a connection that died while a trial was trained is replaced
        "pool_events": [(_limit_waits, "connect")],
    }
    text = address.render_as_string(hide_password=False)
    kwargs = {**pool, "connect_args": settings}
    storage = RDBStorage(text, kwargs, skip_compatibility_check=True, skip_table_creation=not create)
    if check and storage.get_current_version() != storage.get_head_version():
        storage.engine.dispose()
        raise StorageError(
            f"its tables are of another version of Optuna: make a backup and run `tuner upgrade`, or {NEWER}"
        )
    return storage


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = _reason(error)
        raise StorageError(f"cannot open {name}: {reason}\n{_remedy(reason, 'check the URL')}") from error


def _remedy(reason: str, otherwise: str) -> str:
    remedy = next((text for words, text in REMEDIES.items() if words in reason), otherwise)
    return f"{remedy[0].upper()}{remedy[1:]}."


def _reason(error: BaseException) -> str:
    """The first line that the database or its driver said."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    said = str(getattr(error, "orig", None) or error).strip()
    return said.splitlines()[0]
