"""Processes that are watched over end soon after their supervisor, however early it is killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from tuner.storage.leases import PAUSED, Leases
from tuner.study.definition import Study
from tuner.workers.processes import Slot, WorkerPool
from tuner.workers.supervisor_watch import SUPERVISOR, Lifeline

# A supervisor that is killed as soon as it has started a child, which looks for it only later.
SUPERVISING = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {{{name!r}: str(os.getpid())}})
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
CHILD = """
import os, time
from tuner.workers.supervisor_watch import Lifeline
while not os.path.exists({go!r}):
    time.sleep(0.01)
open({told!r}, "w").write(str(Lifeline(int(os.environ[{name!r}])).is_cut))
"""


def read(path: Path) -> str:
    end = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    return path.read_text()


@pytest.mark.parametrize("buried", [True, False])
def test_a_supervisor_that_was_killed_while_its_worker_imported_is_noticed(tmp_path: Path, buried: bool) -> None:
    go, told = tmp_path / "go", tmp_path / "told"
    child = CHILD.format(go=str(go), told=str(told), name=SUPERVISOR)
    command = [sys.executable, "-c", SUPERVISING.format(name=SUPERVISOR), child]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    supervisor.stdout.readline()
    if buried:
        supervisor.wait()
    else:  # it has ended, and nobody has looked
        os.waitid(os.P_PID, supervisor.pid, os.WEXITED | os.WNOWAIT)
    go.touch()
    assert read(told) == "True"
    supervisor.communicate()


def test_a_parent_that_lives_is_no_loss() -> None:
    assert not Lifeline().is_cut
    assert not Lifeline(os.getppid()).is_cut
    assert not Lifeline(os.getpid()).is_cut  # a launcher stands between the supervisor and this process


def test_workers_know_their_supervisor(tmp_path: Path) -> None:
    script = tmp_path / "worker"
    script.write_text(f"#!/bin/sh\necho ${SUPERVISOR} > {tmp_path / 'told'}\n")
    script.chmod(0o755)
    team = WorkerPool([Slot("cpu", 1)], ["study"], {}, tmp_path / "logs", lambda death: False, program=[str(script)])
    assert read(tmp_path / "told") == f"{os.getpid()}\n"
    team.kill()


def test_a_measurement_whose_supervisor_is_gone_ends() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    environment, command = os.environ | {SUPERVISOR: str(gone.pid)}, [sys.executable, "-m", "tuner", "_pace"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as process:  # it waits for its job
        assert process.wait(60) == 1


def test_an_idle_standing_crew_ends_with_its_supervisor(
    storage: RDBStorage, small: Callable[..., Study], enter: Callable[[Study], optuna.Study], data_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    study = small(2)
    Leases(storage, enter(study)._study_id).set_state(PAUSED)
    gone = subprocess.Popen(["true"])
    gone.wait()
    given = {SUPERVISOR: str(gone.pid), "TUNER_ARTIFACTS": str(tmp_path), "TUNER_DATA": str(data_folder)}
    command = [sys.executable, "-m", "tuner", "work", study.name, "-n", "1", "--devices", "cpu"]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130
    assert Leases(storage, storage.get_study_id_from_name(study.name)).alive() == []
