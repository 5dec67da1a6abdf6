"""What workers and dashboards may do in a database that somebody else owns: no more than they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql
from optuna.storages import RDBStorage
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tuner.errors import StorageError
from tuner.ledger import make_tables
from tuner.storage import read_password

WORKER = (
    "SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema}",
    "DELETE ON tuner_workers, tuner_leases, tuner_studies",  # of workers that leave, and of studies that were deleted
    "USAGE ON ALL SEQUENCES IN SCHEMA {schema}",
)
"""Of whoever trains: `tuner run`, `work`, `confirm`, `restore` and all that only looks."""

DASHBOARD = (
    "SELECT ON ALL TABLES IN SCHEMA {schema}",
    "INSERT, UPDATE ON study_user_attributes, study_system_attributes, trial_user_attributes, trial_system_attributes",
    "INSERT ON trials",  # what an operator enqueues or tries again
    "UPDATE (number, state) ON trials",  # which Optuna fills in after a trial was entered
    "UPDATE (study_id) ON studies",  # to lock a study meanwhile; changing it is refused, for other tables refer to it
    "UPDATE ON tuner_studies",  # pause, resume, stop
    "USAGE ON ALL SEQUENCES IN SCHEMA {schema}",
)
"""Of a dashboard and its operators: look, write notes and figures, queue trials and steer studies."""

LATER = {
    "worker": ("SELECT, INSERT, UPDATE ON TABLES", "USAGE ON SEQUENCES"),
    "dashboard": ("SELECT ON TABLES", "USAGE ON SEQUENCES"),
}
"""Rights on what a later version may add."""


@dataclass(frozen=True)
class Role:
    """A user of the database, what for, and where its password is if the role is to be made or to get a new one."""

    purpose: str
    name: str
    password_file: Path | None


def grant(storage: RDBStorage, roles: list[Role]) -> None:
    """Gives roles their rights, and nothing beside them; may be repeated. Raises StorageError.

    All tables are made before, so that the roles need no right to make any.
    """
    make_tables(storage.engine)
    try:
        with storage.engine.begin() as connection:
            for role in roles:
                if role.password_file is not None:
                    _set_password(connection, role.name, read_password(role.password_file))
                for statement in _statements(connection, role):
                    connection.exec_driver_sql(statement)
    except DBAPIError as error:
        said = str(error.orig).splitlines()[0]
        raise StorageError(f"{said}\nGive --storage as the owner of the tables, who may also create roles.") from error


def _set_password(connection: Connection, name: str, password: str) -> None:
    """Makes a role, or changes its password, which never travels nor reaches the server's log: only its verifier."""
    from psycopg2.extensions import encrypt_password

    there = connection.scalar(sql.text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": name})
    driver = connection.connection.dbapi_connection
    verifier = encrypt_password(password, name, scope=driver, algorithm="scram-sha-256")
    verb = "ALTER" if there else "CREATE"
    connection.exec_driver_sql(f"{verb} ROLE {_quoted(connection, name)} LOGIN PASSWORD '{verifier}'")


def _statements(connection: Connection, role: Role) -> Iterator[str]:
    schema, database = connection.execute(sql.text("SELECT current_schema(), current_database()")).one()
    schema, database, name = (_quoted(connection, one) for one in (schema, database, role.name))
    for what in ("TABLES", "SEQUENCES"):
        yield f"REVOKE ALL ON ALL {what} IN SCHEMA {schema} FROM {name}"  # rights of an earlier version, too
    yield f"GRANT CONNECT ON DATABASE {database} TO {name}"
    yield f"GRANT USAGE ON SCHEMA {schema} TO {name}"
    for right in WORKER if role.purpose == "worker" else DASHBOARD:
        yield f"GRANT {right.format(schema=schema)} TO {name}"
    for right in LATER[role.purpose]:
        yield f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {right} TO {name}"


def _quoted(connection: Connection, name: str) -> str:
    from psycopg2.extensions import quote_ident

    return str(quote_ident(name, connection.connection.dbapi_connection)).replace("%", "%%")
