"""Finds the database session that a study's workers wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sql
from sqlalchemy import Connection

from tuner.storage.connection import PATIENCE, session_name
from tuner.storage.leases import CLAIM_LOCK, Worker

LONG_SECONDS = 1.0
"""What is waited for less than this is in use."""

# Every role sees the names of sessions and their locks; only one that may read statistics sees where a session comes
# from. A session that waits itself is not to blame.
_WAITING = sql.text(
    "SELECT holder.pid AS session, holder.application_name AS name, holder.usename AS role,"
    " CAST(holder.client_addr AS text) AS address, waiter.application_name AS waiter,"
    " CASE WHEN lock.locktype = 'advisory' AND lock.classid::bigint = :claim THEN lock.objid::bigint END AS study,"
    " extract(epoch FROM clock_timestamp() - lock.waitstart) AS seconds"
    " FROM pg_locks AS lock JOIN pg_stat_activity AS waiter ON waiter.pid = lock.pid"
    " CROSS JOIN LATERAL unnest(pg_blocking_pids(lock.pid)) AS blocking(pid)"
    " JOIN pg_stat_activity AS holder ON holder.pid = blocking.pid"
    " WHERE NOT lock.granted AND waiter.datname = current_database()"
    " AND NOT EXISTS (SELECT 1 FROM pg_locks AS own WHERE own.pid = holder.pid AND NOT own.granted)"
    " ORDER BY lock.waitstart"
)


@dataclass(frozen=True)
class Blockage:
    """A session that keeps others of a study waiting; `worker` is None where it is none of the study's."""

    session: int
    role: str | None
    address: str | None
    worker: int | None
    host: str | None
    process: int | None
    waiting: int
    seconds: float

    def __str__(self) -> str:
        who = f"database session {self.session}" + (f" of {self.role}" if self.role else "")
        if self.process is not None:
            number = "a command" if self.worker is None else f"worker {self.worker}"
            who = f"{number} (process {self.process} on {self.host}, {who})"
        elif self.address is not None:
            who = f"{who} at {self.address}"
        limit = PATIENCE["idle_in_transaction_session_timeout"]
        return f"has waited {self.seconds:.0f} s for {who}; if that stands still, the server ends it after {limit}"


def blockages(connection: Connection, workers: Mapping[int, Sequence[Worker]]) -> dict[int, Blockage]:
    """Returns who keeps each study waiting, by its id, for those that wait; `workers` are the living of each."""
    known = {session_name(one.process, one.host): (study, one) for study, of in workers.items() for one in of}
    found: dict[int, list[sql.Row[tuple[object, ...]]]] = {}
    for row in connection.execute(_WAITING, {"claim": CLAIM_LOCK}):
        study = row.study if row.study is not None else known.get(row.waiter, (None,))[0]
        if study is not None and (row.seconds or 0) > LONG_SECONDS:
            found.setdefault(study, []).append(row)
    return {study: _blockage(rows, known) for study, rows in found.items()}


def _blockage(rows: Sequence[sql.Row[tuple[object, ...]]], known: Mapping[str, tuple[int, Worker]]) -> Blockage:
    first = rows[0]
    process, host = _place(first.name)
    worker = known[first.name][1].number if first.name in known else None
    waiting = sum(row.session == first.session for row in rows)
    return Blockage(first.session, first.role, first.address, worker, host, process, waiting, float(first.seconds or 0))


def _place(name: str | None) -> tuple[int | None, str | None]:
    """The process and the host in a session's name, where it is one of ours."""
    words = (name or "").split(" ", 2)
    if len(words) < 3 or session_name(0, "").split()[0] != words[0] or not words[1].isdigit():
        return None, None
    return int(words[1]), words[2]
