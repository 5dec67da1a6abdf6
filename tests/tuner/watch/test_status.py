"""Watching from a terminal and for machines: what is printed, how often, and what happens without a database."""

from __future__ import annotations

import json
import math
import os
import pty
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from tests.tuner.conftest import complete
from tuner.errors import StudyError
from tuner.results import queries
from tuner.results.summary import current, front, leaderboard, snapshot
from tuner.storage.handle import StudyHandle, open_study
from tuner.storage.leases import Leases
from tuner.study.definition import Study
from tuner.study.limits import mark
from tuner.watch import status_json
from tuner.watch.live import AWAY, StudiesWatcher, Watcher
from tuner.watch.tables import failed_lines

TUNER = Path(sysconfig.get_path("scripts")) / "tuner"
LEARNING_RATE: dict[str, BaseDistribution] = {"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)}


@pytest.fixture
def begun(storage: RDBStorage, small: Callable[..., Study], enter: Callable[[Study], optuna.Study]) -> optuna.Study:
    """A study of which the trial with the lowest value exceeds a limit, with a trial in every state and a worker."""
    study = enter(small(10))
    for value in (1.0, 2.0, math.inf):
        trial = study.ask(LEARNING_RATE)
        if value == 1.0:
            mark(trial, {"memory": 0.5})
        complete(study, trial, value)
    study.tell(study.ask(), state=TrialState.PRUNED)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask()
    study.enqueue_trial({})
    Leases(storage, study._study_id).join(study.study_name, "a-host", 17, "cuda:3", 1)
    return study


def definition(study: optuna.Study) -> Study:
    return queries.definition(json.dumps(study.user_attrs["study"]))


def test_a_row_of_all_studies_is_what_the_study_itself_says(storage: RDBStorage, begun: optuna.Study) -> None:
    (row,) = [row for row in queries.rows(storage) if row.study_id == begun._study_id]
    now = snapshot(StudyHandle(storage, begun, definition(begun)))
    assert now.best is not None
    assert (row.best, row.best_trial) == (now.best.values[0], now.best.number) == (2.0, 1)
    assert row.counts == now.counts
    assert (row.state, row.spent, row.study) == (now.state, now.spent, now.study)
    assert [worker.host for worker in row.workers] == ["a-host"]


def test_a_study_in_short_is_the_study(storage: RDBStorage, begun: optuna.Study) -> None:
    short = queries.in_short(StudyHandle(storage, begun, definition(begun)), 10)
    whole = snapshot(StudyHandle(storage, begun, definition(begun)))
    assert (short.counts, short.infeasible, short.best) == (whole.counts, whole.infeasible, whole.best)
    assert leaderboard(short.trials) == leaderboard(whole.trials)
    assert failed_lines(short) == failed_lines(whole)
    assert len(queries.in_short(StudyHandle(storage, begun, definition(begun)), 1).trials) == 2


def test_the_front_in_short_is_the_front(
    storage: RDBStorage, small: Callable[..., Study], enter: Callable[[Study], optuna.Study]
) -> None:
    study = small(10, objective=["bits_per_byte", "text_divergence"])
    found = enter(study)
    for values in ((1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0), (1.0, 5.0), (1.0, 6.0), (0.5, 0.5)):
        trial = found.ask()
        if values == (0.5, 0.5):
            mark(trial, {"memory": 0.5})
        complete(found, trial, values)
    short = queries.in_short(StudyHandle(storage, found, study), 1)
    assert [trial.number for trial in short.trials] == [trial.number for trial in front(found.trials)] == [0, 5, 1, 4]


def test_all_studies_are_read_without_reading_trials(storage: RDBStorage, begun: optuna.Study) -> None:
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(statement)

    event.listen(storage.engine, "before_cursor_execute", note)
    queries.rows(storage)
    event.remove(storage.engine, "before_cursor_execute", note)
    assert len(asked) == 7
    assert not any("intermediate" in statement or "trial_params" in statement for statement in asked)


def test_confirmations_of_others_are_no_rows(
    storage: RDBStorage, small: Callable[..., Study], enter: Callable[[Study], optuna.Study]
) -> None:
    companion = enter(small(2, confirms="another"))
    assert companion._study_id not in {row.study_id for row in queries.rows(storage)}
    assert companion._study_id in {row.study_id for row in queries.all_rows(storage)}


def test_a_study_for_machines(storage: RDBStorage, begun: optuna.Study) -> None:
    document = json.loads(status_json.text(status_json.study_document(StudyHandle(storage, begun, definition(begun)))))
    study = document["study"]
    assert document.keys() == {"schema", "time", "reachable", "study"}
    assert study["trials"] == {
        "finished": 4, "budget": 10, "complete": 3, "pruned": 1, "running": 1, "waiting": 1, "failed": 1,
        "infeasible": 1, "ended_by_no_worker": 1, "unfit": 0,
    }  # fmt: skip
    assert study["best"] == {"trial": 1, "value": 2.0}
    assert [one["trial"] for one in study["leaderboard"]] == [1]  # infinity is no result
    assert study["leaderboard"][0]["parameters"].keys() == {"learning_rate"}
    assert study["workers"][0]["host"] == "a-host"
    assert study["workers"][0]["seen_seconds_ago"] >= 0
    assert study["state"] == study["condition"] == "running"
    assert study["confirmation"] is None


def test_all_studies_for_machines_have_the_same_keys(storage: RDBStorage, begun: optuna.Study) -> None:
    own = status_json.study_document(StudyHandle(storage, begun, definition(begun)))["study"]
    listed = json.loads(status_json.text(status_json.studies_document(storage)))["studies"]
    (same,) = [one for one in listed if one["name"] == begun.study_name]
    assert own.keys() - same.keys() == {"leaderboard", "confirmation"}
    assert same["best"] == own["best"]
    assert {**own["trials"], "infeasible": 0} == {**same["trials"], "infeasible": 0}


def test_where_there_is_no_terminal_only_what_changed_is_printed(
    storage: RDBStorage, begun: optuna.Study, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher = StudiesWatcher(storage)
    watcher.look()
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith(begun.study_name + ":")]
    assert line.endswith("running, 4/10 trials finished, 1 failed, 1 worker, best 2.0000 in trial 1")
    watcher.look()
    assert capsys.readouterr().out == ""
    complete(begun, begun.ask(LEARNING_RATE), 1.5)
    watcher.look()
    assert "5/10 trials finished, 1 failed, 1 worker, best 1.5000" in capsys.readouterr().out
    one = Watcher(StudyHandle(storage, begun, definition(begun)), board=True)
    one.look()
    assert capsys.readouterr().out.startswith("5/10 trials finished, 1 worker")


def test_a_database_that_goes_away_is_waited_for(
    storage: RDBStorage, begun: optuna.Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(StudyHandle(storage, begun, definition(begun)))

    def away(*anything: Any) -> Any:
        raise OperationalError("SELECT", {}, Exception("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(queries, "in_short", away)
        assert [watcher.look(), watcher.look()] == [False, False]
    assert capsys.readouterr().out == f"{AWAY}\n"
    assert watcher.look()
    assert capsys.readouterr().out == "the database is back\n"
    assert status_json.away_document().items() >= {"reachable": False, "schema": 1}.items()


@pytest.fixture
def environment(data_folder: Path) -> dict[str, str]:
    return os.environ | {"TUNER_DATA": str(data_folder), "PYTHONUNBUFFERED": "1", "TERM": "xterm", "COLUMNS": "150"}


def test_json_lines_come_until_ctrl_c(begun: optuna.Study, environment: dict[str, str]) -> None:
    command = [str(TUNER), "status", begun.study_name, "--json", "--watch"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert [line["study"]["name"] for line in lines] == [begun.study_name] * 2


def test_a_terminal_shows_a_live_table_that_ctrl_c_ends(begun: optuna.Study, environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    command = [str(TUNER), "status", begun.study_name, "-w"]
    shown = ""
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        ended = threading.Timer(60, process.kill)
        ended.start()
        while "a-host" not in shown or "divergence" not in shown:
            shown += os.read(ours, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the terminal is gone with its last user
            while more := os.read(ours, 65536):
                shown += more.decode(errors="replace")
        assert process.wait(30) == 0
        ended.cancel()
    os.close(ours)
    assert "4/10 trials" in shown
    assert "best: 2.0000" in shown
    assert "Traceback" not in shown


def test_watching_needs_none_of_what_training_needs() -> None:
    program = "import tuner.watch.status_json, tuner.watch.live, tuner.dashboard.publisher, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "scipy", "plotly", "matplotlib", "pandas"} & set(loaded)


def test_failed_stands_alone(environment: dict[str, str]) -> None:
    done = subprocess.run([TUNER, "status", "x", "--failed", "-w"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--failed stands alone" in done.stderr


def test_a_study_of_another_version_is_named_and_keeps_no_other_from_being_shown(
    begun: optuna.Study, storage: RDBStorage
) -> None:
    later = optuna.create_study(study_name="of a later version", storage=storage)
    later.set_user_attr("study", {**begun.user_attrs["study"], "name": "of a later version", "schema": 99})
    Leases(storage, later._study_id).open()
    try:
        assert begun._study_id in {row.study_id for row in queries.rows(storage)}
        (problem,) = [one for one in queries.unreadable(storage) if one.startswith("study of a later version: ")]
        assert "schema" in problem
    finally:
        optuna.delete_study(study_name="of a later version", storage=storage)


def test_a_study_that_is_renamed_or_deleted_while_it_is_watched(
    storage: RDBStorage, small: Any, enter: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = enter(study := small())
    watcher = Watcher(StudyHandle(storage, found, study))
    with storage.engine.begin() as connection:
        named = sqlalchemy.text("update studies set study_name = :name where study_id = :study")
        connection.execute(named, {"name": "a/b", "study": found._study_id})  # no file could be called so
    watcher.look()
    assert f"study {study.name} is now called a/b" in capsys.readouterr().out
    assert "a/b" in [row.study.name for row in queries.rows(storage)]
    assert status_json.study_document(StudyHandle(storage, found, study))["study"]["name"] == "a/b"
    optuna.delete_study(study_name="a/b", storage=storage)
    for look in (
        watcher.look,
        lambda: status_json.study_document(StudyHandle(storage, found, study)),
        lambda: current(StudyHandle(storage, found, study)),
    ):
        with pytest.raises(StudyError, match="the study was deleted"):
            look()


@pytest.mark.parametrize("attributes", [{}, {"study": "a word"}, {"study": ["a", "list"]}, {"study": {"lr": 0.1}}])
def test_a_study_that_others_made_is_nobodys_trouble(
    storage: RDBStorage, begun: optuna.Study, environment: dict[str, str], attributes: dict[str, Any]
) -> None:
    other = optuna.create_study(storage=storage)
    for name, value in attributes.items():
        other.set_user_attr(name, value)
    try:
        assert begun.study_name in [row.study.name for row in queries.rows(storage)]
        queries.unreadable(storage)
        with pytest.raises(StudyError, match="was not made by the tuner"):
            open_study(storage, other.study_name)
    finally:
        optuna.delete_study(study_name=other.study_name, storage=storage)
