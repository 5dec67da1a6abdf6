"""Database roles of workers and dashboards, with only the rights that they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql
from optuna.storages import RDBStorage
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tuner.errors import StorageError
from tuner.storage.connection import read_password
from tuner.storage.migrations.migrate import make_tables

WORKER = (
    "SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema}",
    "DELETE ON tuner_workers, tuner_leases, tuner_studies",  # of workers that leave, and of studies that were deleted
    "USAGE ON ALL SEQUENCES IN SCHEMA {schema}",
)
"""Of processes that train: `tuner run`, `work`, `confirm`, `restore` and all that only looks."""

DASHBOARD = (
    "SELECT ON ALL TABLES IN SCHEMA {schema}",
    "INSERT, UPDATE ON study_system_attributes, trial_user_attributes, trial_system_attributes",  # but see ROWS
    "INSERT ON trials",  # what an operator enqueues or tries again
    "UPDATE (number, state) ON trials",  # which Optuna fills in after a trial was entered
    "UPDATE (study_id) ON studies",  # to lock a study meanwhile; changing it is refused, for other tables refer to it
    "UPDATE (state, forgiven) ON tuner_studies",  # pause, resume, stop
    "USAGE ON ALL SEQUENCES IN SCHEMA {schema}",
)
"""Of a dashboard and its operators: look, write notes and figures, queue trials and steer studies."""

_OWN_TRIAL = "xmin = pg_current_xact_id()::xid"
ROWS = {
    "study_system_attributes": ("true", "starts_with(key, 'dashboard:') OR starts_with(key, 'artifacts:')"),
    "trial_system_attributes": ("true", "key = 'fixed_params' OR starts_with(key, 'artifacts:')"),
    "trial_user_attributes": ("true", "key IN ('enqueued', 'retry_of')"),
    "trials": (_OWN_TRIAL, "state IN ('RUNNING', 'WAITING')"),
}
"""The rows of these tables that a dashboard may change, and what it may write there.

Workers believe what a trial's `configuration` says, and a sampler may keep its state, in a form that could be code,
among the system attributes. Only trials that were entered in the same transaction may change their number and state.
"""

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
                for statement in (*_statements(connection, role), *_policies(connection, role)):
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


def _policies(connection: Connection, role: Role) -> Iterator[str]:
    """Restricts a dashboard to some rows; for other roles only their rights on a table count."""
    number = connection.scalar(sql.text("SELECT oid FROM pg_roles WHERE rolname = :name"), {"name": role.name})
    name = _quoted(connection, role.name)
    for table, (changed, written) in ROWS.items():
        yield f"DROP POLICY IF EXISTS tuner_everybody ON {table}"
        yield f"CREATE POLICY tuner_everybody ON {table} USING (true) WITH CHECK (true)"
        for what in ("insert", "update"):
            yield f"DROP POLICY IF EXISTS tuner_{what}_{number} ON {table}"
        if role.purpose == "dashboard":
            restricted = f"ON {table} AS RESTRICTIVE FOR {{what}} TO {name}"
            yield f"CREATE POLICY tuner_insert_{number} {restricted.format(what='INSERT')} WITH CHECK ({written})"
            check = f"USING ({changed}) WITH CHECK ({written})"
            yield f"CREATE POLICY tuner_update_{number} {restricted.format(what='UPDATE')} {check}"
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"


def _quoted(connection: Connection, name: str) -> str:
    from psycopg2.extensions import quote_ident

    return str(quote_ident(name, connection.connection.dbapi_connection)).replace("%", "%%")
