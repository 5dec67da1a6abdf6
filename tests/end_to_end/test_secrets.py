"""The password of a database is nowhere to be found: a study with failures and an outage, and all that it left."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2
import pytest

from tests.end_to_end.test_crashes import Fragile
from tuner import cli
from tuner.storage import embedded

PASSWORD = "correct-h0rse/battery@staple"
FORMS = [form.encode() for form in (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD))]


@pytest.fixture
def owner(place: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A connection to a PostgreSQL that asks everybody else for a password, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    monkeypatch.setattr(embedded, "PORT", port)
    monkeypatch.setitem(embedded.SETTINGS, "port", port)
    folder = place.folder / "server"
    with embedded.attached(folder):
        rules = folder / "cluster" / "pg_hba.conf"
        rules.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    monkeypatch.setitem(embedded.SETTINGS, "listen_addresses", "127.0.0.1")
    with embedded.attached(folder) as address:
        connection = psycopg2.connect(host=address["host"], port=port, user="tuner", dbname="postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("create role careful login password %s", (PASSWORD,))
            cursor.execute("create database studies owner careful")
        connection.close()
        connection = psycopg2.connect(host=address["host"], port=port, user="tuner", dbname="studies")
        connection.autocommit = True
        yield connection
        connection.close()


def ask(connection: Any, question: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(question)
        return [row[0] for row in cursor.fetchall()] if cursor.description else []


def shows(text: bytes) -> bool:
    return any(form in text for form in FORMS)


def command_lines() -> bytes:
    """The command lines of all processes of this machine."""
    found = b""
    for process in psutil.pids():
        try:
            found += Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
    return found


def environments(running: Any) -> bytes:
    """The environments of a command and of all processes that it started."""
    tree = [psutil.Process(running.process.pid)]
    tree += tree[0].children(recursive=True)
    found = b"".join(Path(f"/proc/{process.pid}/environ").read_bytes() for process in tree)
    assert found.count(b"TUNER_STORAGE_PASSWORD_FILE=") == len(tree) >= 3
    return found


def test_a_password_is_in_no_log_error_note_export_process_list_or_artifact(place: Any, owner: Any) -> None:
    study = Fragile(place, "segmentation fault")
    port, coded = embedded.PORT, quote(PASSWORD, safe="")
    bare, full = (f"postgresql://{user}@127.0.0.1:{port}/studies" for user in ("careful", f"careful:{coded}"))
    secret = place.folder / "secret"
    secret.write_text(PASSWORD)
    by_file = {"TUNER_STORAGE": bare, "TUNER_STORAGE_PASSWORD_FILE": str(secret)}
    study.hold()
    running = place.start("run", "fragile.yaml", "-n", 2, **by_file)
    running.until(lambda: are_held(owner))
    lines = command_lines()
    assert b"fragile" in lines
    assert not shows(lines)
    assert not shows(environments(running))
    ask(owner, "alter role careful nologin")
    ask(owner, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'careful'")
    logs = place.artifacts / "fragile" / "logs"
    running.until(lambda: any("the database is away" in log.read_text() for log in logs.glob("*.log")))
    ask(owner, "alter role careful login")
    study.go_on()
    assert running.end() == 0, running.said
    commands = [
        ("status", "fragile", "--failed"), ("backup", "fragile"),
        *(("export", "fragile", "--format", one, "-o", f"best.{one}") for one in ("yaml", "env")),
        *((("report", "fragile", "-o", "report.html"),) if "report" in cli.commands.commands else ()),
    ]  # fmt: skip
    for command in commands:
        done = place.run(*command, TUNER_STORAGE=full)
        assert done.code == 0, done
    wrong = f"postgresql://careful:{PASSWORD.replace('@', '%40')}x@127.0.0.1:{port}/studies"
    assert place.run("status", TUNER_STORAGE=wrong).code == 3
    left = [path for path in place.folder.rglob("*") if path.is_file() and path != secret]
    kept = [path for path in left if place.folder / "server" / "cluster" not in path.parents]
    assert {"best.yaml", "fragile.tar", "model.safetensors", "output-0.txt", "server.log"} <= {
        path.name for path in kept
    }
    assert [path for path in kept if shows(path.read_bytes())] == []
    tables = ask(owner, "select tablename from pg_tables where schemaname = 'public'")
    rows = [row for table in tables for row in ask(owner, f'select one::text from "{table}" one')]
    assert len(rows) > 50
    assert not shows("\n".join(rows).encode())


def are_held(owner: Any) -> bool:
    """Whether both workers are in the middle of a trial."""
    with suppress(psycopg2.errors.UndefinedTable):
        return bool(ask(owner, "select count(*) from tuner_workers where trial is not null")[0] == 2)
    return False
