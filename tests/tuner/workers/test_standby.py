"""Standing workers: they find the studies that have work, rest where they cannot work, and stop when asked."""

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError

from tests.tuner.conftest import Heard
from tuner.control import create
from tuner.errors import WorkerError
from tuner.storage.connection import open_storage
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import PAUSED, RUNNING, Leases
from tuner.storage.locations import StorageOptions
from tuner.study.definition import Study
from tuner.watch.live import Watcher
from tuner.workers import standby
from tuner.workers.options import WorkerOptions
from tuner.workers.processes import slots
from tuner.workers.supervisor import Supervisor

Small = Callable[..., Study]


@pytest.fixture
def fresh(fresh_url: str) -> Any:
    with open_storage(fresh_url) as storage:
        yield storage


def test_a_study_is_joined_while_it_has_work_and_may_go_on(fresh: RDBStorage, small: Small) -> None:

    assert standby._next_study(fresh, {}) is None
    study = small(1)
    found = create.enter(fresh, study).optuna_study
    leases = Leases(fresh, found._study_id)
    optuna.create_study(study_name="of another program", storage=fresh)
    assert standby._next_study(fresh, {}) == study.name
    leases.set_state(PAUSED)
    assert standby._next_study(fresh, {}) is None
    leases.set_state(RUNNING)
    found.add_trial(optuna.trial.create_trial(value=1.0))
    assert standby._next_study(fresh, {}) is None


def test_the_study_with_the_fewest_workers_is_joined_first(fresh: RDBStorage, small: Small) -> None:

    first, second = small(1), small(1)
    found = create.enter(fresh, first).optuna_study
    create.enter(fresh, second)
    Leases(fresh, found._study_id).join("one", "host", 1, "cpu", 1)
    assert standby._next_study(fresh, {}) == second.name


def test_workers_rest_where_they_cannot_work_and_end_when_asked(fresh: RDBStorage, small: Small) -> None:
    study = small(1)
    create.enter(fresh, study)
    requested = threading.Event()

    class Ending(Heard):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            if "left alone" in record.getMessage():
                requested.set()

    with Ending() as said:
        command = [sys.executable, "-c", "import sys; sys.exit(sys.argv[1:] != ['--', 'x'])"]
        standby.serve(fresh, command, requested, look_seconds=0.01)
    assert said[1:] == [
        f"joining study {study.name}",
        f"study {study.name}: ended with exit code 1; it is left alone for 60 s",
    ]


def test_a_heartbeat_tells_that_the_database_answers(
    fresh: RDBStorage, fresh_url: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = WorkerOptions(1, "cpu", None, 1, grace=1, checkpoint_seconds=30, heartbeat=tmp_path / "alive")
    assert standby._next_study(fresh, {}, crew.beat) is None
    assert (tmp_path / "alive").exists()
    (tmp_path / "alive").unlink()

    def away(storage: RDBStorage) -> list[Any]:
        raise OperationalError("select 1", {}, Exception("connection refused"))

    with monkeypatch.context() as patched:
        patched.setattr(standby.queries, "all_rows", away)
        assert standby._next_study(fresh, {}, crew.beat) is None
    assert not (tmp_path / "alive").exists()

    study = small(1)
    found = create.enter(fresh, study).optuna_study
    found.add_trial(optuna.trial.create_trial(value=1.0))
    kept = StorageOptions(None, None, str(tmp_path / "artifacts")).writable_artifacts_of(found)
    supervisor = Supervisor(fresh, StorageOptions(fresh_url, None), crew)
    handle = StudyHandle(fresh, found, study)
    supervisor.supervise(
        handle,
        kept,
        slots(1, "cpu", 1, None),
        "",
        [study.name],
        Watcher(handle),
    )
    assert (tmp_path / "alive").exists()


def test_a_heartbeat_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    crew = WorkerOptions(1, "cpu", None, 1, grace=1, checkpoint_seconds=30, heartbeat=tmp_path / "nowhere" / "alive")
    with pytest.raises(WorkerError, match=r"--heartbeat .*alive: cannot be written \(No such file or directory\)"):
        crew.beat()


def test_a_worker_that_was_asked_to_stop_is_waited_for(tmp_path: Any) -> None:
    script = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    requested = threading.Event()

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            pass
        requested.set()

    asking = threading.Thread(target=stop)
    asking.start()
    assert standby._run([sys.executable, "-c", script], requested) == 7
    asking.join()
