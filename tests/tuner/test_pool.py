"""Standing workers: they find the studies that have work, rest where they cannot work, and stop when asked."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

from tuner import entry, pool
from tuner.ledger import PAUSED, RUNNING, Ledger
from tuner.storage import open_storage
from tuner.study import Study

Small = Callable[..., Study]


@pytest.fixture
def fresh(fresh_url: str) -> Any:
    with open_storage(fresh_url) as storage:
        yield storage


def test_a_study_is_joined_while_it_has_work_and_may_go_on(fresh: RDBStorage, small: Small) -> None:

    assert pool._next_study(fresh, {}) is None
    study = small(1)
    found = entry.enter(fresh, study)
    ledger = Ledger(fresh, found._study_id)
    optuna.create_study(study_name="of another program", storage=fresh)
    assert pool._next_study(fresh, {}) == study.name
    ledger.set_state(PAUSED)
    assert pool._next_study(fresh, {}) is None
    ledger.set_state(RUNNING)
    found.add_trial(optuna.trial.create_trial(value=1.0))
    assert pool._next_study(fresh, {}) is None


def test_the_study_with_the_fewest_workers_is_joined_first(fresh: RDBStorage, small: Small) -> None:

    first, second = small(1), small(1)
    found = entry.enter(fresh, first)
    entry.enter(fresh, second)
    Ledger(fresh, found._study_id).join("one", "host", 1, "cpu", 1)
    assert pool._next_study(fresh, {}) == second.name


def test_workers_rest_where_they_cannot_work_and_end_when_asked(
    fresh: RDBStorage, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small(1)
    entry.enter(fresh, study)
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.01)
    said: list[str] = []
    requested = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if "left alone" in text:
            requested.set()

    pool.serve(fresh, [sys.executable, "-c", "import sys; sys.exit(sys.argv[1:] != ['--', 'x'])"], requested, say)
    assert said[1:] == [
        f"joining study {study.name}",
        f"study {study.name}: ended with exit code 1; it is left alone for 60 s",
    ]


def test_a_worker_that_is_told_to_stop_is_waited_for(tmp_path: Any) -> None:
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
    assert pool._run([sys.executable, "-c", script], requested) == 7
    asking.join()
