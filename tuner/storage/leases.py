"""Workers, leases and the state of a study, in tables beside Optuna's and by the database's clock.

A trial belongs to the worker that holds its lease. Optuna's tables are the queue (WAITING -> RUNNING); the lease
says who may write, so that a worker that slept too long finds out before it writes, not after.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import optuna
import sqlalchemy as sql
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import Connection, Engine, func
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from tuner.errors import StudyError
from tuner.optuna_internals import trial_id
from tuner.storage.migrations import migrate

HEARTBEAT_SECONDS = 5.0
"""How often a worker shows that it lives."""

LEASE_SECONDS = 45.0
"""How long a lease lasts without a heartbeat."""

OBSERVED_SECONDS = 2 * HEARTBEAT_SECONDS
"""How long an expired lease is watched before it is taken over.

After an outage of the database every lease has expired; the living renew theirs within a beat, and only then
is anyone taken for dead. A dead worker's trial is thus free after at most LEASE_SECONDS + 2 * OBSERVED_SECONDS.
"""

NEVER_FINISHED = 5
"""Failed trials, without one finished, after which a study stops."""

RUNNING, PAUSED, STOPPED = "running", "paused", "stopped"
"""What a person can ask of a study."""

GONE = "the study was deleted"

CLAIM_LOCK = 5206127

metadata = sql.MetaData()  # what the revisions in tuner/storage/migrations/ make
studies = sql.Table(
    "tuner_studies",
    metadata,
    sql.Column("study_id", sql.Integer, primary_key=True),
    sql.Column("state", sql.Text, nullable=False, server_default=RUNNING),
    sql.Column("forgiven", sql.Integer, nullable=False, server_default="0"),  # failures before the last `tuner resume`
    sql.Column("active_seconds", sql.Float, nullable=False, server_default="0"),
    sql.Column("ticked_at", sql.DateTime(timezone=True), nullable=False, server_default=func.now()),
)
workers = sql.Table(
    "tuner_workers",
    metadata,
    sql.Column("worker_id", sql.Text, primary_key=True),
    sql.Column("number", sql.Integer, sql.Identity()),
    sql.Column("study_id", sql.Integer, nullable=False, index=True),
    sql.Column("host", sql.Text, nullable=False),
    sql.Column("process", sql.Integer, nullable=False),
    sql.Column("device", sql.Text, nullable=False),
    sql.Column("threads", sql.Integer, nullable=False),
    sql.Column("started_at", sql.DateTime(timezone=True), nullable=False, server_default=func.now()),
    sql.Column("seen_at", sql.DateTime(timezone=True), nullable=False, server_default=func.now()),
    sql.Column("trial", sql.Integer),
    sql.Column("doing", sql.Text, nullable=False, server_default=""),
    sql.Column("progress", sql.Float),
    sql.Column("tokens_per_second", sql.Float),
    sql.Column("memory_bytes", sql.BigInteger),
)
leases = sql.Table(
    "tuner_leases",
    metadata,
    sql.Column("trial_id", sql.Integer, primary_key=True),
    sql.Column("study_id", sql.Integer, nullable=False, index=True),
    sql.Column("worker_id", sql.Text, nullable=False),
    sql.Column("attempt", sql.Integer, nullable=False),
    sql.Column("expires_at", sql.DateTime(timezone=True), nullable=False),
)
_studies = sql.table("studies", sql.column("study_id"), sql.column("study_name"))  # Optuna's
_trials = sql.table(  # Optuna's
    "trials",
    *map(sql.column, ("trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete")),
)
_attributes = {  # Optuna's
    kind: sql.table(f"trial_{kind}_attributes", *map(sql.column, ("trial_id", "key", "value_json")))
    for kind in ("user", "system")
}


_parameters = sql.table(  # Optuna's
    "trial_params", *map(sql.column, ("trial_id", "param_name", "param_value", "distribution_json"))
)


class LostLease(Exception):
    """The trial is another worker's now: this one must not write to it any more."""


class Gone(StudyError):
    """The study was deleted; Optuna's dashboard lets any of its users do that."""


@dataclass(frozen=True)
class Claim:
    """A trial to work on; `attempt` counts the workers that have had it, this one included."""

    trial: optuna.Trial
    attempt: int


@dataclass(frozen=True)
class Ended:
    """There is nothing more to do, and why."""

    reason: str


@dataclass(frozen=True)
class Wait:
    """Nothing to do now, though there may be later: other workers' trials may still come back."""

    reason: str


@dataclass
class Activity:
    """What a worker is doing at the moment."""

    trial: int | None = None
    doing: str = ""
    progress: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Worker:
    """A worker as others see it; `seen` is the age of its last heartbeat, in seconds."""

    number: int
    host: str
    process: int
    device: str
    threads: int
    seen: float
    trial: int | None
    doing: str
    progress: float | None
    tokens_per_second: float | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Counts:
    """Trials of a study by state."""

    complete: int = 0
    pruned: int = 0
    running: int = 0
    waiting: int = 0
    fail: int = 0

    @property
    def finished(self) -> int:
        """The trials that count against the budget."""
        return self.complete + self.pruned

    @property
    def unfinished(self) -> int:
        """The trials that are trained, or wait for that."""
        return self.running + self.waiting


@contextmanager
def transaction(storage: RDBStorage) -> Iterator[Connection]:
    """One transaction for Optuna's tables and ours, in this thread; inside another one it is a part of that.

    Optuna would commit each of its writes by itself, on a connection that knows nothing of our locks: a worker that
    stood still, and whose locks the server took from it meanwhile, would go on to write. So all of the block counts, or
    nothing does, and then the block can be run again.
    """
    bound = storage.scoped_session().bind
    if isinstance(bound, Connection):
        yield bound
        return
    storage.scoped_session.remove()
    try:
        with storage.engine.begin() as connection:
            storage.scoped_session(bind=connection, join_transaction_mode="create_savepoint")
            try:
                yield connection
            except Exception as error:
                if connection.invalidated and not isinstance(error, DBAPIError):  # Optuna tried again on a lost one
                    raise OperationalError("the block", {}, error, connection_invalidated=True) from error
                raise
    finally:
        storage.scoped_session.remove()


@dataclass(frozen=True)
class Line:
    """What a study's line says, and what a new one would."""

    state: str = RUNNING
    forgiven: int = 0
    active_seconds: float = 0.0


def _why_ended(line: Line, counts: Counts, trials: int | None, hours: float | None, new: bool) -> str | None:
    """Why a study has ended: the one place that knows; None while it has not."""
    if trials is not None and counts.finished >= trials:
        return f"all {trials} trials are finished" if trials > 1 else "its only trial is finished"
    if hours is not None and line.active_seconds >= hours * 3600:
        return f"the {hours:g} hours are spent"
    if line.state == STOPPED:
        return "the study was stopped"
    if has_failed(counts, line.forgiven):
        return f"all of its {counts.fail} trials failed"
    if not new and line.state != PAUSED and not counts.unfinished:
        return "all that was queued is done"
    return None


def has_failed(counts: Counts, forgiven: int) -> bool:
    """Whether the study's workers end: enough trials failed since the last `tuner resume`, and none finished."""
    return counts.fail - forgiven >= NEVER_FINISHED and counts.finished == 0


class Leases:
    """The books of one study."""

    def __init__(
        self,
        storage: RDBStorage,
        study_id: int,
        *,
        lease_seconds: float = LEASE_SECONDS,
        observed_seconds: float = OBSERVED_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is the one by which expired leases are watched."""
        self.storage, self.engine, self.study_id = storage, storage.engine, study_id
        self.lease_seconds, self.observed_seconds, self.clock = lease_seconds, observed_seconds, clock
        self._suspects: dict[tuple[int, str], float] = {}  # leases as they were first seen, and when to take each over

    def open(self) -> bool:
        """Makes the tables and the study's line where they are missing; returns whether the line was."""
        migrate.make_tables(self.engine)
        with transaction(self.storage) as connection:
            return connection.execute(_unless_there(studies, study_id=self.study_id)).rowcount == 1

    def exists(self, connection: Connection | None = None) -> bool:
        """Whether the study has not been deleted."""
        if connection is None:
            with self.engine.begin() as own:
                return self.exists(own)
        own_study = sql.select(_studies.c.study_id).where(_studies.c.study_id == self.study_id)
        return connection.execute(own_study).scalar() is not None

    def name(self) -> str:
        """Returns the study's name, which may have been changed in Optuna's dashboard. Raises Gone."""
        with self.engine.begin() as connection:
            own_name = sql.select(_studies.c.study_name).where(_studies.c.study_id == self.study_id)
            found = connection.execute(own_name).scalar()
        if found is None:
            raise Gone(GONE)
        return str(found)

    def join(self, worker_id: str, host: str, process: int, device: str, threads: int) -> int:
        """Enters a worker, once however often it asks; returns its number, which no other of this database has."""
        place = {"host": host, "process": process, "device": device, "threads": threads}
        entry = _insert(workers).values(worker_id=worker_id, study_id=self.study_id, **place)
        entry = entry.on_conflict_do_update(index_elements=[workers.c.worker_id], set_=place)
        with self.engine.begin() as connection:
            return int(connection.execute(entry.returning(workers.c.number)).scalar_one())

    def holding(self, worker_id: str) -> int | None:
        """Returns the id of the trial that a worker holds."""
        trial = sql.select(_trials.c.trial_id).join_from(_trials, leases, leases.c.trial_id == _trials.c.trial_id)
        mine = trial.where(leases.c.worker_id == worker_id, _is_running())
        with self.engine.begin() as connection:
            return connection.execute(mine).scalar()

    def leave(self, worker_id: str) -> None:
        """Strikes a worker off and frees the trial it holds."""
        with self.engine.begin() as connection:
            # In the order of a beat, which may come at the same time: each would wait for the other otherwise.
            connection.execute(workers.delete().where(workers.c.worker_id == worker_id))
            connection.execute(_free(worker_id))

    def let_go(self, worker_id: str) -> None:
        """Frees the trial that a worker holds, such as one that it claimed without ever getting the answer."""
        with self.engine.begin() as connection:
            connection.execute(_free(worker_id))

    def heartbeat(self, worker_id: str, trial_id: int | None, activity: Activity) -> tuple[str, float]:
        """Renews the lease and shows what the worker does; returns the study's state and active seconds.

        Raises LostLease or Gone.
        """
        with self.engine.begin() as connection:
            if not self.exists(connection):
                raise Gone(GONE)
            own = workers.c.worker_id == worker_id
            connection.execute(workers.update().where(own).values(seen_at=_clock(), **asdict(activity)))
            since = func.extract("epoch", _clock() - studies.c.ticked_at)
            passed = func.greatest(0, func.least(since, 3 * HEARTBEAT_SECONDS))
            tick = (
                studies.update()
                .where(self._own())
                .values(
                    # However many workers tick, time passes once; a pause, or time without a worker, does not count.
                    active_seconds=studies.c.active_seconds + sql.case((studies.c.state == PAUSED, 0), else_=passed),
                    ticked_at=_clock(),
                )
            )
            line = connection.execute(tick.returning(studies.c.state, studies.c.active_seconds)).one()
            if trial_id is not None:
                renewal = leases.update().where(leases.c.trial_id == trial_id, leases.c.worker_id == worker_id)
                if connection.execute(renewal.values(expires_at=self._expiry())).rowcount == 0:
                    raise LostLease(f"trial {activity.trial} was taken over")
        return str(line.state), float(line.active_seconds)

    @contextmanager
    def study_lock(self) -> Iterator[None]:
        """Keeps others from claiming or queueing trials of the study while the block does."""
        with transaction(self.storage) as connection:
            _lock(connection, CLAIM_LOCK, self.study_id)
            yield

    def claim(
        self, study: optuna.Study, worker_id: str, trials: int | None, hours: float | None, new: bool = True
    ) -> Claim | Wait | Ended:
        """Claims the next trial: a dead worker's, one that waits, or a `new` one if the budget has room.

        The sampler does not think yet, for all other workers wait meanwhile; the grid's choice is its claim.
        Raises Gone.
        """
        with self._transaction() as connection:
            _lock(connection, CLAIM_LOCK, self.study_id)
            counts = self.counts(connection)
            abandoned = self._abandoned(connection)
            line = self.line(connection)
            reason = _why_ended(line, counts, trials, hours, new)
            if reason is not None:
                return Ended(reason)
            if line.state == PAUSED:
                return Wait("the study is paused")
            if abandoned is not None:
                trial = optuna.Trial(study, abandoned)
            elif (trials is not None and counts.finished + counts.running >= trials) or not (new or counts.waiting):
                return Wait("the last trials are running elsewhere")
            else:
                trial = study.ask()
            return Claim(trial, self._lease(connection, trial_id(trial), worker_id))

    @contextmanager
    def lease_held(self, trial_id: int, worker_id: str) -> Iterator[None]:
        """Keeps a trial from being taken over while the block writes to it: all of it is written, or nothing.

        Raises LostLease if the trial was taken over before, and Gone.
        """
        lease = sql.select(leases.c.worker_id).where(leases.c.trial_id == trial_id).with_for_update()
        with self._transaction() as connection:
            holder = connection.execute(lease).scalar()
            if holder != worker_id:
                raise LostLease(f"trial {trial_id} was taken over")
            yield

    def note(self, trial_id: int, facts: dict[str, Any], kind: str = "user") -> None:
        """Sets attributes of a trial, user or system ones, in one go: Optuna waits for the disk at each."""
        if not facts:
            return
        rows = [{"trial_id": trial_id, "key": name, "value_json": json.dumps(value)} for name, value in facts.items()]
        entry = _insert(_attributes[kind]).values(rows)
        newer = {"value_json": entry.excluded.value_json}
        with transaction(self.storage) as connection:
            connection.execute(entry.on_conflict_do_update(index_elements=["trial_id", "key"], set_=newer))

    def propose(self, trial_id: int, parameters: Sequence[tuple[str, float, BaseDistribution]]) -> None:
        """Enters what a sampler has chosen, each by Optuna's number for it, in one go."""
        if not parameters:
            return
        names = ("trial_id", "param_name", "param_value", "distribution_json")
        rows = [(trial_id, name, value, distribution_to_json(distribution)) for name, value, distribution in parameters]
        entry = _insert(_parameters).values([dict(zip(names, row, strict=True)) for row in rows])
        newer = {name: entry.excluded[name] for name in names[2:]}
        with transaction(self.storage) as connection:
            connection.execute(entry.on_conflict_do_update(index_elements=list(names[:2]), set_=newer))

    def release(self, trial_id: int, worker_id: str) -> None:
        """Puts a running trial back into the queue, for the first worker that asks. Raises LostLease."""
        with self.lease_held(trial_id, worker_id):
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def crashed(self, trial_id: int, worker_id: str, reason: str, traceback: str, retries: int) -> bool:
        """Puts a trial that crashed back into the queue, or fails it when that happened too often. Raises LostLease.

        Returns whether it failed.
        """
        with self.lease_held(trial_id, worker_id):
            before = self.storage.get_trial(trial_id).user_attrs.get("crashes")
            crashes = 1 + (before if isinstance(before, int) else 0)
            failed: bool = crashes > retries
            facts = {"crashes": crashes, "traceback": traceback} | ({"reason": reason} if failed else {})
            self.note(trial_id, facts)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL if failed else TrialState.WAITING)
        return failed

    def set_state(self, state: str) -> None:
        """Tells all workers of the study, on all machines: running, paused or stopped. Running forgives failures."""
        values: dict[str, Any] = {"state": state}
        with transaction(self.storage) as connection:
            if state == RUNNING:
                values["forgiven"] = self.counts(connection).fail
            if connection.execute(studies.update().where(self._own()).values(**values)).rowcount == 0:
                connection.execute(_unless_there(studies, study_id=self.study_id, **values))  # a copy of a study

    def state(self) -> str:
        """Returns what was last asked of the study: running, paused or stopped."""
        return self.line().state

    def line(self, connection: Connection | None = None) -> Line:
        """Returns what the study's line says; a study that was copied by other means has none yet."""
        if connection is None:
            with self.engine.begin() as own:
                return self.line(own)
        query = sql.select(studies.c.state, studies.c.forgiven, studies.c.active_seconds).where(self._own())
        return Line(*(connection.execute(query).one_or_none() or ()))

    def why_ended(self, trials: int | None, hours: float | None, new: bool = True) -> str | None:
        """Returns why there is nothing more to do with this budget, as `claim` would say; None while there is."""
        with self.engine.begin() as connection:
            return _why_ended(self.line(connection), self.counts(connection), trials, hours, new)

    def counts(self, connection: Connection | None = None) -> Counts:
        """Returns how many trials are in which state."""
        state = sql.func.lower(sql.cast(_trials.c.state, sql.Text))
        query = sql.select(state, func.count()).where(_trials.c.study_id == self.study_id).group_by(state)
        if connection is not None:
            return Counts(**dict(connection.execute(query).all()))
        with self.engine.begin() as own:
            return self.counts(own)

    def active_seconds(self) -> float:
        """Returns for how long at least one worker has been at work."""
        return self.line().active_seconds

    def trial_seconds(self, connection: Connection) -> float | None:
        """Returns how long a trial takes on average; None before one is finished."""
        return trial_seconds(connection, _trials.c.study_id == self.study_id).get(self.study_id)

    def alive(self, connection: Connection | None = None) -> list[Worker]:
        """Returns the workers whose last heartbeat is no older than a lease, in the order they joined."""
        if connection is None:
            with self.engine.begin() as own:
                return self.alive(own)
        of_study = workers.c.study_id == self.study_id
        return [worker for _, worker in living(connection, of_study, seconds=self.lease_seconds)]

    def attempts(self) -> dict[int, int]:
        """Returns how many workers have had each trial, by trial id."""
        query = sql.select(leases.c.trial_id, leases.c.attempt).where(leases.c.study_id == self.study_id)
        with self.engine.begin() as connection:
            return {row.trial_id: row.attempt for row in connection.execute(query)}

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A transaction about a study that is there; raises Gone if it is not, or is deleted meanwhile."""
        with transaction(self.storage) as connection:
            if not self.exists(connection):
                raise Gone(GONE)
            try:
                yield connection
            except KeyError as error:  # as Optuna says it
                if not self.exists(connection):
                    raise Gone(GONE) from error
                raise

    def _own(self) -> Any:
        return studies.c.study_id == self.study_id

    def _abandoned(self, connection: Connection) -> int | None:
        """A running trial whose worker is gone: its lease expired some time ago, or was never entered."""
        expiry = leases.c.expires_at
        query = (
            sql.select(
                _trials.c.trial_id,
                expiry,
                expiry.is_(None) | (expiry == sql.text("'-infinity'")),
                expiry < _clock(),
                expiry > self._expiry() + sql.text("interval '1 second'"),
            )
            .select_from(_trials.outerjoin(leases, leases.c.trial_id == _trials.c.trial_id))
            .where(_trials.c.study_id == self.study_id, _is_running())
            .order_by(_trials.c.number)
        )
        now, before, self._suspects = self.clock(), self._suspects, {}
        for trial, at, free, expired, absurd in connection.execute(query).all():
            lease = trial, str(at)
            if lease in before:
                self._suspects[lease] = before[lease]
            elif free or expired:
                self._suspects[lease] = now if free else now + self.observed_seconds
            elif absurd:  # longer than any lease: the database's clock was set back since
                self._suspects[lease] = now + self.lease_seconds + self.observed_seconds
        for (trial, at), end in self._suspects.items():
            if end <= now and self._is_still(connection, trial, at):
                return int(trial)
        return None

    def _is_still(self, connection: Connection, trial_id: int, expiry: str) -> bool:
        """Locks a lease, and looks whether its trial is still running and the lease as it was.

        Its owner may only have been slow. One that is writing at this moment has the lock, and is not waited for.
        """
        lease = sql.select(leases.c.expires_at).where(leases.c.trial_id == trial_id)
        locked = connection.execute(lease.with_for_update(skip_locked=True)).scalars().all()
        running = sql.select(_trials.c.trial_id).where(_trials.c.trial_id == trial_id, _is_running())
        found = [str(at) for at in locked] or [str(None)]
        return found == [expiry] and connection.execute(running).scalar() is not None

    def _expiry(self) -> Any:
        """When a lease that begins at this moment runs out."""
        return _clock() + sql.text(f"interval '{self.lease_seconds} seconds'")

    def _lease(self, connection: Connection, trial_id: int, worker_id: str) -> int:
        entry = _insert(leases).values(
            trial_id=trial_id, study_id=self.study_id, worker_id=worker_id, attempt=1, expires_at=self._expiry()
        )
        taken = {"worker_id": worker_id, "attempt": leases.c.attempt + 1, "expires_at": self._expiry()}
        upsert = entry.on_conflict_do_update(index_elements=[leases.c.trial_id], set_=taken)
        return int(connection.execute(upsert.returning(leases.c.attempt)).scalar_one())


def living(connection: Connection, *which: Any, seconds: float = LEASE_SECONDS) -> list[tuple[int, Worker]]:
    """Returns the workers whose last heartbeat is no older than `seconds`, as they joined, each with its study."""
    seen = func.extract("epoch", _clock() - workers.c.seen_at).label("seen")
    names = [name for name in Worker.__dataclass_fields__ if name != "seen"]
    query = sql.select(workers.c.study_id, seen, *(workers.c[name] for name in names)).where(*which)
    recently = seen.between(-seconds, seconds)  # before zero where the clock was set back since
    rows = connection.execute(query.where(recently).order_by(workers.c.number)).mappings()
    return [(row["study_id"], Worker(seen=float(row["seen"]), **{name: row[name] for name in names})) for row in rows]


def trial_seconds(connection: Connection, *which: Any) -> dict[int, float]:
    """Returns how long a finished trial of each study took on average, of those that one worker had from start to end.

    Interrupted trials do not count: for some of their time, no worker trained them.
    """
    took = func.avg(func.extract("epoch", _trials.c.datetime_complete - _trials.c.datetime_start))
    query = (
        sql.select(_trials.c.study_id, took)
        .select_from(_trials.outerjoin(leases, leases.c.trial_id == _trials.c.trial_id))
        .where(sql.cast(_trials.c.state, sql.Text).in_(("COMPLETE", "PRUNED")), func.coalesce(leases.c.attempt, 1) == 1)
        .where(_trials.c.datetime_start.is_not(None), _trials.c.datetime_complete.is_not(None), *which)
        .group_by(_trials.c.study_id)
    )
    return {study: float(seconds) for study, seconds in connection.execute(query).all() if seconds is not None}


def forget_deleted(engine: Engine) -> None:
    """Deletes the lines of studies that were deleted, where the user of the database may."""
    with suppress(ProgrammingError), engine.begin() as connection:
        for table in (workers, leases, studies):
            there = sql.exists().where(_studies.c.study_id == table.c.study_id)
            connection.execute(table.delete().where(~there))


def forget(connection: Connection, study_id: int) -> None:
    """Deletes our lines of a study that is being deleted."""
    for table in (workers, leases, studies):
        connection.execute(table.delete().where(table.c.study_id == study_id))


def _insert(table: sql.TableClause) -> Any:
    from sqlalchemy.dialects.postgresql import insert

    return insert(table)


def _unless_there(table: sql.Table, **values: Any) -> Any:
    return _insert(table).values(**values).on_conflict_do_nothing()


def _free(worker_id: str) -> Any:
    return leases.update().where(leases.c.worker_id == worker_id).values(expires_at=sql.text("'-infinity'"))


def _is_running() -> Any:
    return sql.cast(_trials.c.state, sql.Text) == "RUNNING"


def _clock() -> Any:
    """The database's time at this moment; now() is when the transaction began, and it may have waited for a lock."""
    return func.clock_timestamp()


def _lock(connection: Connection, kind: int, number: int) -> None:
    """Waits for a lock that ends with the transaction."""
    connection.execute(sql.select(func.pg_advisory_xact_lock(kind, number)))
