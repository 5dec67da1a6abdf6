"""A worker that stands still, or whose connection is lost, in the middle of a question: nobody else waits for long."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sql
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError

from tuner.results import queries
from tuner.storage import blocking
from tuner.storage import leases as books
from tuner.storage.connection import open_storage
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Activity, Claim, Leases
from tuner.storage.outages import is_outage
from tuner.study.definition import Study
from tuner.workers.database_thread import DatabaseThread

WORKER = """
import os, signal, sys, time
from pathlib import Path
import optuna, sqlalchemy
from tuner.storage import connection as storages, leases as books
from tuner.workers.database_thread import DatabaseThread

folder, name, action, word = sys.argv[1:]
storages.PATIENCE["idle_in_transaction_session_timeout"] = "500ms"

def ask():
    if action == "claim":
        return f"trial {leases.claim(study, 'halting', None, None).trial.number}"
    if action == "beat":
        return leases.heartbeat("halting", None, books.Activity())
    if action == "pause":
        return leases.set_state("paused")
    with leases.lease_held(claim.trial._trial_id, "halting"):
        study.tell(claim.trial, 0.5)

def halt(connection, cursor, statement, *more):
    if halting and word in statement:
        halting.clear()
        print("halts", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.2)  # this thread may run on for a moment

with storages.open_storage(None, Path(folder)) as storage:
    study = optuna.load_study(study_name=name, storage=storage)
    leases = books.Leases(storage, study._study_id, lease_seconds=0)
    leases.join("halting", "host", os.getpid(), "cpu", 1)
    claim = leases.claim(study, "halting", None, None) if action == "write" else None
    halting = [True]
    sqlalchemy.event.listen(storage.engine, "after_cursor_execute", halt)
    with DatabaseThread(lambda: None) as database_thread:
        try:
            print(database_thread.call(ask), flush=True)
        except books.LostLease:
            print("lost", flush=True)
"""


@contextmanager
def halted(data_folder: Path, study: str, action: str, word: str) -> Iterator[Callable[[], str]]:
    """A worker that was stopped right after a statement with `word` in it; yields what lets it go on to its answer."""
    command = [sys.executable, "-c", WORKER, str(data_folder), study, action, word]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "halts\n"

            def go_on() -> str:
                process.send_signal(signal.SIGCONT)
                assert process.stdout is not None
                return process.stdout.readline().strip()

            yield go_on
        finally:
            with suppress(ProcessLookupError):
                process.kill()


@pytest.fixture
def study(small: Callable[..., Study], enter: Callable[[Study], optuna.Study]) -> optuna.Study:
    return enter(small(100))


@pytest.fixture
def ours(storage: RDBStorage, study: optuna.Study) -> Leases:
    """The books as a worker keeps them that goes on, and is as patient as a test."""
    leases = Leases(storage, study._study_id, observed_seconds=0)
    leases.join(f"{study.study_name}-ours", "host", 1, "cpu", 1)
    return leases


def answer(request: Callable[[], Any]) -> Any:
    """What a worker's request comes to; the test fails where it would wait for ever."""
    with DatabaseThread(lambda: None) as database_thread:
        return database_thread.call(request, patience=60)


@pytest.mark.parametrize(
    ("action", "word", "later"),
    [
        ("claim", "pg_advisory_xact_lock", "trial 1"),
        ("claim", "INSERT INTO tuner_leases", "trial 1"),
        ("beat", "UPDATE tuner_studies", "('running', "),
        ("pause", "UPDATE tuner_studies", "None"),
    ],
)
def test_a_worker_that_stands_still_holds_nobody_up(
    data_folder: Path, study: optuna.Study, ours: Leases, action: str, word: str, later: str
) -> None:
    """And when it goes on, it asks again: its half of a question was never asked."""
    us = f"{study.study_name}-ours"
    with halted(data_folder, study.study_name, action, word) as go_on:
        claim = answer(lambda: ours.claim(study, us, None, None))
        assert isinstance(claim, Claim)
        assert claim.trial.number == 0
        assert answer(lambda: ours.heartbeat(us, claim.trial._trial_id, Activity()))[0] == "running"
        assert len(study.trials) == 1
        assert go_on().startswith(later)


@pytest.mark.parametrize("word", ["FOR UPDATE", "UPDATE trials"])
def test_a_write_that_stands_still_is_taken_back_and_the_trial_goes_on_elsewhere(
    data_folder: Path, study: optuna.Study, ours: Leases, word: str
) -> None:
    """Also what Optuna wrote on its way: the worker finds out that the trial is no longer its own."""
    with halted(data_folder, study.study_name, "write", word) as go_on:
        taken = None
        while taken is None or taken.trial.number != 0:  # while it is locked, the lease is not waited for
            taken = answer(lambda: ours.claim(study, "ours", None, None))
        assert taken.attempt == 2
        assert go_on() == "lost"
        found = study.trials[0]
        assert (found.state, found.values) == (TrialState.RUNNING, None)


def test_a_block_whose_connection_is_lost_counts_not_at_all(
    storage: RDBStorage, study: optuna.Study, ours: Leases, ask: Callable[[str], Any]
) -> None:
    claim = ours.claim(study, "ours", None, None)
    assert isinstance(claim, Claim)
    tries: list[int] = []

    def write() -> None:
        with ours.lease_held(claim.trial._trial_id, "ours"):
            claim.trial.set_user_attr(f"try-{len(tries)}", True)
            ours.note(claim.trial._trial_id, {f"note-{len(tries)}": True})
            tries.append(1)
            if len(tries) == 1:
                with books.transaction(storage) as connection:
                    ask(f"select pg_terminate_backend({connection.scalar(sql.text('select pg_backend_pid()'))})")
            study.tell(claim.trial, 0.5)

    with pytest.raises((DBAPIError, StorageInternalError)) as lost:
        write()
    assert is_outage(lost.value)
    assert study.trials[0].user_attrs == {}
    write()
    assert study.trials[0].user_attrs == {"try-1": True, "note-1": True}
    assert study.trials[0].values == [0.5]


def test_a_claim_whose_connection_is_lost_leaves_no_trial_behind(
    storage: RDBStorage, study: optuna.Study, ask: Callable[[str], Any]
) -> None:
    class Losing(Leases):
        lost = False

        def _lease(self, connection: sql.Connection, trial_id: int, worker_id: str) -> int:
            if not self.lost:
                self.lost = True
                ask(f"select pg_terminate_backend({connection.scalar(sql.text('select pg_backend_pid()'))})")
            return super()._lease(connection, trial_id, worker_id)

    losing = Losing(storage, study._study_id, observed_seconds=0)
    claim = answer(lambda: losing.claim(study, "ours", None, None))
    assert losing.lost
    assert claim.trial.number == 0
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]


@pytest.mark.parametrize("reader", ["tuner", "nosy"])
def test_who_keeps_a_study_waiting_is_shown(
    data_folder: Path,
    storage: RDBStorage,
    study: optuna.Study,
    ours: Leases,
    ask: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    reader: str,
) -> None:
    """Also to a role that sees nothing of the statistics of others."""
    monkeypatch.setattr(blocking, "LONG_SECONDS", 0.0)
    worker = ours.join(study.study_name, socket.gethostname(), os.getpid(), "cpu", 1)
    ask("do $$ begin create role nosy; exception when duplicate_object then null; end $$")
    ask("grant select on all tables in schema public to nosy")

    def blocked() -> blocking.Blockage | None:
        with storage.engine.connect() as connection:
            connection.execute(sql.text(f"set local role {reader}"))
            workers = [one for _, one in books.living(connection, books.workers.c.study_id == study._study_id)]
            return blocking.blockages(connection, {study._study_id: workers}).get(study._study_id)

    assert blocked() is None
    with open_storage(None, data_folder) as other:
        waiting = threading.Thread(target=lambda: Leases(other, study._study_id).claim(study, "other", None, None))
        with ours.study_lock():
            waiting.start()
            while not ask("select count(*) from pg_locks where not granted and waitstart is not null"):
                assert waiting.is_alive()
            found = blocked()
            told = str(queries.in_short(StudyHandle.of(storage, study), 5).blocked)
        waiting.join(30)
    assert found is not None
    assert (found.worker, found.process, found.host) == (worker, os.getpid(), socket.gethostname())
    assert f" s for worker {worker} (process {os.getpid()} on {socket.gethostname()}, " in told
    assert blocked() is None
