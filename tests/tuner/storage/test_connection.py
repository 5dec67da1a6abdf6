"""The Optuna storage on a real PostgreSQL: opening, sharing, and every way a database can refuse."""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import psycopg2
import pytest
import sqlalchemy

from tuner.errors import StorageError
from tuner.storage import connection as storage
from tuner.storage import embedded
from tuner.storage.connection import ConnectionRetry, describe, hide_password, open_storage
from tuner.storage.embedded import attached, default_folder

SECRET = "p@s:s/w{o}rd%?#"  # every sign that means something in a URL


class Server:
    """A running embedded server, addressed by URL as an external one is."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder, self.host = folder, host

    def url(self, database: str, user: str = "tuner", options: str = "") -> str:
        return f"postgresql://{user}@/{database}?host={quote(self.host)}{options}"

    def run(self, command: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(host=self.host, user="tuner", dbname=database)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(command)
                return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """In a folder that the server's user can enter, as pytest's own cannot be."""
    place = Path(tempfile.mkdtemp(prefix="storage-", dir="/tmp"))
    place.chmod(0o755)
    with attached(place / "data") as address:
        server = Server(place / "data", address["host"])
        require_password_of(server, "careful")
        yield server
    shutil.rmtree(place)


def require_password_of(server: Server, user: str) -> None:
    rules = server.folder / "cluster" / "pg_hba.conf"
    rules.write_text(f"local all {user} scram-sha-256\nlocal all all trust\n")
    server.run(f"create user {user} superuser password '{SECRET}'")
    server.run("select pg_reload_conf()")


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    server.run("create database fresh")
    yield "fresh"
    server.run("drop database fresh with (force)")


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(StorageError) as caught, open_storage(url, **options):
        pass
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert len(message.splitlines()) <= 2
    return message


def test_a_study_in_the_embedded_server_is_there_again(server: Server) -> None:
    with open_storage(None, server.folder) as first:
        study = optuna.create_study(storage=first, study_name="kept")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with open_storage(None, server.folder) as second:
        assert len(optuna.load_study(storage=second, study_name="kept").trials) == 2


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_usual_scheme_opens(server: Server, database: str, scheme: str) -> None:
    with open_storage(server.url(database).replace("postgresql", scheme)) as opened:
        assert opened.get_all_studies() == []


def test_a_password_may_hold_any_sign(server: Server, database: str) -> None:
    with open_storage(server.url(database, user=f"careful:{quote(SECRET, safe='')}")) as opened:
        assert opened.get_all_studies() == []


def test_eight_processes_open_a_fresh_database_at_once(server: Server, database: str) -> None:
    """Without the lock about two in three of them fail."""
    script = """if True:
        import sys
        from tuner.storage.connection import ConnectionRetry, open_storage
        print("ready", flush=True)
        sys.stdin.readline()
        with open_storage(sys.argv[1]) as storage:
            storage.get_all_studies()
    """
    command = [sys.executable, "-W", "error", "-c", script, server.url(database)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    ends = [(process.communicate(timeout=30)[1], process.returncode) for process in processes]
    assert ends == [(b"", 0)] * 8
    assert server.run("select count(*) from alembic_version", database) == [(1,)]


def test_eight_threads_share_two_connections(server: Server, database: str) -> None:
    with open_storage(server.url(database)) as opened:
        open_now, most = [1], [0]  # opening leaves one in the pool
        sqlalchemy.event.listen(opened.engine, "connect", lambda *_: open_now.append(open_now.pop() + 1))
        sqlalchemy.event.listen(opened.engine, "close", lambda *_: open_now.append(open_now.pop() - 1))
        sqlalchemy.event.listen(opened.engine, "checkout", lambda *_: most.append(max(most.pop(), *open_now)))
        study = optuna.create_study(storage=opened)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=24, n_jobs=8)
        assert len(study.trials) == 24
    assert most == [2]


def test_no_connection_stays_when_the_storage_is_left(server: Server, database: str) -> None:
    with open_storage(server.url(database)) as opened:
        opened.get_all_studies()
    server.run(f"drop database {database}")  # waits a moment for connections that end, and refuses if one stays
    server.run(f"create database {database}")


def test_a_connection_that_died_meanwhile_is_replaced(server: Server, database: str) -> None:
    with open_storage(server.url(database)) as opened:
        opened.get_all_studies()
        server.run(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'")
        assert opened.get_all_studies() == []


def test_optuna_does_not_announce_what_we_announce(
    server: Server, database: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_storage(server.url(database)) as opened:
        optuna.create_study(storage=opened).ask()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://ada:SECRET@127.0.0.1:1/studies", "onnection refused.*\nCheck host and port"),
        ("postgresql://ada:SECRET@no-such-host.invalid/studies", "could not translate.*\nCheck the host name"),
        ("mysql://ada:SECRET@host/studies", "is not postgresql://user:password@host/database"),
        ("sqlite:///studies.db", "is not postgresql://user:password@host/database"),
        ("ada:SECRET@host/studies", "is not postgresql://user:password@host/database"),
        ("postgresql://ada:SECRET@host:port/studies", "is not postgresql://user:password@host/database"),
        ("postgresql://ada:x@SECRET@host/studies", "write %40 for an @"),
        ("postgresql://127.0.0.1:1/studies?user=ada&password=SECRET", "onnection refused"),
        ("postgresql://ada:SECRET@127.0.0.1:1/studies?typo=1", "invalid connection option"),
        ("", "is not postgresql://user:password@host/database"),
    ],
)
def test_a_url_that_leads_nowhere_is_an_error_of_the_user(url: str, words: str) -> None:
    message = refusal(url)
    assert re.search(words, message), message
    assert "SECRET" not in message


def test_a_wrong_password_is_refused_and_not_shown(server: Server) -> None:
    message = refusal(server.url("postgres", user="careful:SECRET"))
    assert re.search(r"password authentication failed.*\nCheck the user and the password", message)
    assert "SECRET" not in message


def test_an_unknown_database_is_refused(server: Server) -> None:
    assert re.search(r'database "nowhere" does not exist\nCreate it', refusal(server.url("nowhere")))


def test_a_user_who_may_not_create_tables_is_refused(server: Server, database: str) -> None:
    server.run("create user reader")
    assert re.search(r"permission denied.*\nLet an administrator grant", refusal(server.url(database, user="reader")))
    server.run("drop user reader")


def test_a_server_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        message = refusal(f"postgresql://ada:SECRET@127.0.0.1:{port}/studies?connect_timeout=2")
    assert "timeout expired" in message
    assert "SECRET" not in message


def test_an_old_server_is_refused(server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "OLDEST_VERSION", 99)
    assert "PostgreSQL 18 is too old: use PostgreSQL 99" in refusal(server.url(database))


def test_tables_of_another_optuna_are_refused_and_left_alone(server: Server, database: str) -> None:
    with open_storage(server.url(database)):
        pass
    server.run("update alembic_version set version_num = 'v3.0.0.a'", database)
    server.run("drop table trial_heartbeats", database)
    assert "of another version of Optuna" in refusal(server.url(database))
    assert server.run("select to_regclass('trial_heartbeats') is null", database) == [(True,)]


def test_a_database_of_another_program_is_refused_and_left_alone(server: Server, database: str) -> None:
    server.run("create table alembic_version (version_num varchar(32))", database)
    assert "Give a database of its own" in refusal(server.url(database))
    assert server.run("select to_regclass('studies') is null", database) == [(True,)]


def test_a_killed_creation_is_finished_by_the_next(server: Server, database: str) -> None:
    with open_storage(server.url(database)):
        pass
    server.run("drop table alembic_version, trial_heartbeats", database)
    with open_storage(server.url(database)) as opened:
        assert opened.get_current_version() == opened.get_head_version()
    assert server.run("select to_regclass('trial_heartbeats') is null", database) == [(False,)]


def test_whoever_comes_while_the_tables_are_made_waits(server: Server, database: str) -> None:
    opened = threading.Event()

    def come() -> None:
        with open_storage(server.url(database)):
            opened.set()

    with closing(psycopg2.connect(host=server.host, user="tuner", dbname=database)) as creator:
        creator.cursor().execute(f"select pg_advisory_lock({storage.CREATION_LOCK})")
        comer = threading.Thread(target=come)
        comer.start()
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        while server.run(waiting) == [(0,)]:
            assert comer.is_alive()
        assert not opened.is_set()
    comer.join(30)
    assert opened.is_set()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:secret@host:5432/studies", "postgresql://ada:***@host:5432/studies"),
        ("postgresql://ada:se@cr/et@host/studies", "postgresql://ada:***@host/studies"),
        (
            "postgresql://host/studies?user=ada&password=secret&a=b",
            "postgresql://host/studies?user=ada&password=***&a=b",
        ),
        ("ada:secret@host/studies", "ada:***@host/studies"),
        ("postgresql:/ada:secret@host", "postgresql:***@host"),
        ("postgresql://ada@host/studies", "postgresql://ada@host/studies"),
        ("postgresql://host:5432/studies", "postgresql://host:5432/studies"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_password_is_hidden_in_any_url(url: str, shown: str) -> None:
    assert hide_password(url) == shown


def test_the_storage_is_described_for_a_person() -> None:
    assert describe(None, Path("/data")) == "embedded PostgreSQL in /data"
    assert describe(None) == f"embedded PostgreSQL in {default_folder()}"
    assert describe("postgres://ada:secret@host/studies") == "postgres://ada:***@host/studies"


def test_opening_a_storage_does_not_import_torch() -> None:
    code = "import sys, tuner.storage.connection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "words", ["sorry, too many clients already", "remaining connection slots are reserved for roles with ..."]
)
def test_a_server_without_a_connection_left_is_waited_for(
    server: Server, database: str, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    create, full = storage._optuna_storage, [True, True]

    def crowded(*arguments: Any, **more: Any) -> Any:
        if full:
            full.pop()
            raise sqlalchemy.exc.OperationalError("connect", {}, Exception(f"FATAL:  {words}"))
        return create(*arguments, **more)

    monkeypatch.setattr(storage, "_optuna_storage", crowded)
    with open_storage(server.url(database), retry=ConnectionRetry(pause=lambda: 0.0)) as opened:
        assert optuna.get_all_study_names(opened) == []
    full.append(True)
    assert "Start fewer workers" in refusal(server.url(database), retry=ConnectionRetry(seconds=-1.0))


def test_the_slots_of_a_server_that_are_all_taken_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For an ordinary role, to which a real server says something else than to an administrator."""
    monkeypatch.setitem(embedded.SETTINGS, "max_connections", "6")
    place = Path(tempfile.mkdtemp(prefix="storage-", dir="/tmp"))
    place.chmod(0o755)
    with attached(place / "data") as address, ExitStack() as taken:
        small = Server(place / "data", address["host"])
        for command in ("create role plain login", "create database fresh owner plain"):
            small.run(command)

        def fill() -> None:
            with suppress(psycopg2.OperationalError):
                while True:
                    taken.enter_context(closing(psycopg2.connect(small.url("fresh", user="plain"))))

        fill()

        def free() -> float:
            taken.close()
            return 0.0

        with open_storage(small.url("fresh", user="plain"), retry=ConnectionRetry(pause=free)) as opened:
            assert optuna.get_all_study_names(opened) == []
        fill()
        message = refusal(small.url("fresh", user="plain"), retry=ConnectionRetry(seconds=-1.0))
    assert "remaining connection slots are reserved for roles with the SUPERUSER attribute" in message
    assert message.endswith("\nStart fewer workers, or raise max_connections of the server.")
    shutil.rmtree(place)


def test_a_server_that_goes_away_later_is_reported_in_one_line(server: Server, database: str) -> None:
    ending = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'textgen-tuner%'"

    def interrupted() -> None:
        with open_storage(server.url(database)) as opened, opened.engine.begin() as connection:
            server.run(ending)
            connection.execute(sqlalchemy.text("select 1"))

    with pytest.raises(StorageError, match=r"went away: .*\nNothing is lost"):
        interrupted()
