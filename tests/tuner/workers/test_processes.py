"""Teams of worker processes: places for them, and what happens when one dies; real processes and real signals."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.errors import DeviceError
from tests.tuner.conftest import Heard
from tuner.workers import processes
from tuner.workers.processes import (
    AWAY_PAUSE,
    AWAY_SECONDS,
    MOST_BY_DEFAULT,
    MOST_QUICK_DEATHS,
    QUICK_SECONDS,
    Slot,
    WorkerExit,
    WorkerPool,
    slots,
)

CORES = len(os.sched_getaffinity(0))

# Stands in for a worker: does what the variable BEHAVIOUR says, and notes how it was started.
WORKER = f"""#!{sys.executable}
import json, os, signal, sys, time
from pathlib import Path
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TUNER_STORAGE")
facts = {{"arguments": sys.argv[1:], "pid": os.getpid(), "session": os.getsid(0)}}
facts |= {{name: os.environ.get(name) for name in names}}
place = Path(os.environ["NOTES"]) / str(os.getpid())
place.with_suffix(".draft").write_text(json.dumps(facts))
place.with_suffix(".draft").rename(place)
behaviour = os.environ["BEHAVIOUR"]
if behaviour.startswith("exit"):
    print("these are my last words", file=sys.stderr)
    sys.exit(int(behaviour.split()[1]))
while not (stopped and behaviour == "obey"):
    time.sleep(0.01)
print("saved", file=sys.stderr)
"""


class Clock:
    """Time that passes only on request, for pauses that are too long to wait for."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Theatre:
    """Teams of stand-ins, and all that is heard of them."""

    def __init__(self, place: Path, program: Path, said: list[str]) -> None:
        self.options: dict[str, Any] = {"program": [str(program), *processes.PROGRAM[1:]]}
        self.notes, self.logs = place / "notes", place / "logs"
        self.notes.mkdir()
        self.deaths: list[WorkerExit] = []
        self.had_trial = False
        self.said = said
        self.teams: list[WorkerPool] = []

    def team(self, behaviour: str, count: int = 1, **environment: str) -> WorkerPool:
        environment = {"BEHAVIOUR": behaviour, "NOTES": str(self.notes), **environment}
        places = [Slot("cpu", 3, "")] * count
        team = WorkerPool(places, ["my-study"], environment, self.logs, self.bury, **self.options)
        self.teams.append(team)
        return team

    def bury(self, death: WorkerExit) -> bool:
        self.deaths.append(death)
        return self.had_trial

    @property
    def dead(self) -> list[str]:
        return [death.worker_id for death in self.deaths]

    def started(self, count: int) -> list[dict[str, Any]]:
        """What the first `count` processes noted, once all of them have."""
        import json

        wait_for(lambda: len(list(self.notes.glob("[0-9]*[0-9]"))) >= count)
        return [json.loads(path.read_text()) for path in sorted(self.notes.glob("[0-9]*[0-9]"))]


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def has_ended(team: WorkerPool) -> bool:
    """Whether a process of a team has, although the team may not have noticed."""
    return any(member.process is not None and member.process.poll() is not None for member in team._members)


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    script = tmp_path / "worker"
    script.write_text(WORKER)
    script.chmod(0o755)
    with Heard() as said:
        theatre = Theatre(tmp_path, script, said)
        yield theatre
    for team in theatre.teams:
        team.kill()
        for member in team._members:
            if member.process is not None:
                member.process.wait()


@pytest.fixture
def clock(theatre: Theatre) -> Clock:
    clock = Clock()
    theatre.options["clock"] = clock.monotonic
    return clock


# StorageOptions.


def test_without_a_gpu_there_is_a_worker_per_core_up_to_eight() -> None:
    places = slots(None, "auto", None, gpu_count=lambda: 0)
    assert places == [Slot("cpu", max(1, CORES // len(places)), "")] * min(CORES, MOST_BY_DEFAULT)


@pytest.mark.parametrize(("workers", "threads", "share"), [(1, None, CORES), (2 * CORES, None, 1), (3, 2, 2)])
def test_cores_are_shared_unless_threads_are_given(workers: int, threads: int | None, share: int) -> None:
    assert slots(workers, "cpu", threads) == [Slot("cpu", share, "")] * workers


def test_with_gpus_there_is_a_worker_for_each_that_sees_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [(each.device, each.visible) for each in slots(None, "auto", 1, gpu_count=lambda: 3)] == [
        ("cuda:0", "0"),
        ("cuda:0", "1"),
        ("cuda:0", "2"),
    ]
    assert [each.visible for each in slots(5, "cuda:2, cuda:1", 1, gpu_count=lambda: 3)] == ["2", "1", "2", "1", "2"]
    assert [each.visible for each in slots(2, "cuda", 1, gpu_count=lambda: 3)] == ["0", "0"]
    assert [each.device for each in slots(None, "cpu", 1, gpu_count=lambda: 3)] == ["cpu"] * min(CORES, MOST_BY_DEFAULT)
    assert slots(None, "cpu", CORES, gpu_count=lambda: 3) == [Slot("cpu", CORES, "")]
    assert slots(None, "cpu", 2 * CORES, gpu_count=lambda: 3) == [Slot("cpu", 2 * CORES, "")]
    assert [each.device for each in slots(None, "cuda:0,cpu", 1, gpu_count=lambda: 3)] == ["cuda:0", "cpu"]


def test_gpus_that_the_user_has_hidden_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5e1f,7")
    assert [each.visible for each in slots(None, "auto", 1, gpu_count=lambda: 2)] == ["GPU-5e1f", "7"]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("cuda:7", "--devices cuda:7: this machine has 1 CUDA devices; use cpu"),
        ("cuda:0,cuda:1", "--devices cuda:1: this machine has 1 CUDA devices"),
        ("tpu", "--devices tpu: no such device; write auto, cpu or cuda:0,cuda:1"),
        ("cuda:x", "--devices cuda:x: no such device"),
        ("cuda:-1", "--devices cuda:-1: no such device"),
        ("cpu:0", "--devices cpu:0: no such device"),
        ("", "--devices : no such device"),
        ("cpu,", "--devices : no such device"),
    ],
)
def test_a_device_that_is_not_there_is_refused(devices: str, message: str) -> None:
    with pytest.raises(DeviceError) as caught:
        slots(None, devices, None, gpu_count=lambda: 1)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("own", [None, "active"])
def test_threads_of_a_worker_wait_asleep_unless_the_user_wants_them_to_spin(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    assert processes.variables(Slot("cpu", 2, ""))["OMP_WAIT_POLICY"] == (own or "passive")


def test_small_models_share_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [each.visible for each in slots(None, "auto", 1, per_device=3, gpu_count=lambda: 2)] == ["0", "1"] * 3
    assert slots(None, "cpu", 1, per_device=3, gpu_count=lambda: 2) == [Slot("cpu", 1, "")] * 3
    assert [each.visible for each in slots(1, "auto", 1, per_device=3, gpu_count=lambda: 2)] == ["0"]


# Teams.


def test_a_worker_gets_what_it_needs_and_ignores_the_terminal(theatre: Theatre) -> None:
    team = theatre.team("obey", count=2, TUNER_STORAGE="postgresql://ada:secret@host/db")
    first, second = theatre.started(2)
    assert first["arguments"][:5] == ["-P", "-m", "tuner", "_worker", "my-study"]
    assert first["arguments"][5] == "--id"
    assert first["arguments"][6] != second["arguments"][6]
    assert first["arguments"][7:] == ["--device", "cpu", "--threads", "3"]
    assert (first["OMP_NUM_THREADS"], first["CUDA_VISIBLE_DEVICES"]) == ("3", "")
    assert first["TUNER_STORAGE"] == "postgresql://ada:secret@host/db"
    assert "secret" not in " ".join(psutil.Process(first["pid"]).cmdline())
    assert len({first["session"], second["session"], os.getsid(0)}) == 3
    assert team.watch()


def test_a_team_that_is_asked_to_stop_saves_and_leaves(theatre: Theatre) -> None:
    team = theatre.team("obey", count=3)
    pids = [each["pid"] for each in theatre.started(3)]
    team.stop(10)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert [log.read_text() for log in theatre.logs.iterdir()] == ["saved\n"] * 3
    assert theatre.dead == []


def test_a_worker_that_does_not_stop_is_killed_and_its_trial_freed(theatre: Theatre) -> None:
    team = theatre.team("go on")
    (facts,) = theatre.started(1)
    assert team.stop(grace=0.1) == 1
    assert not psutil.pid_exists(facts["pid"])
    assert theatre.dead == [facts["arguments"][6]]


def test_a_worker_that_is_killed_is_replaced_at_once_and_its_trial_freed(theatre: Theatre) -> None:
    team = theatre.team("obey", count=2)
    victim, other = theatre.started(2)
    os.kill(victim["pid"], signal.SIGKILL)
    wait_for(lambda: has_ended(team))
    assert team.watch()
    assert theatre.dead == [victim["arguments"][6]]
    assert len(theatre.started(3)) == 3
    assert psutil.pid_exists(other["pid"])
    assert theatre.said[0].startswith("worker on cpu ended by SIGKILL, starting another: it said nothing (all of it: ")
    team.stop(10)


def test_a_worker_that_is_done_is_not_replaced(theatre: Theatre) -> None:
    team = theatre.team("exit 0", count=2)
    wait_for(lambda: not team.watch())
    assert not team.failed()
    assert theatre.dead == theatre.said == []
    assert len(theatre.started(2)) == 2


def test_workers_are_started_again_while_the_database_is_away_but_not_for_ever(theatre: Theatre, clock: Clock) -> None:
    team = theatre.team("exit 3")
    for _ in range(3 * MOST_QUICK_DEATHS):
        wait_for(lambda: has_ended(team))
        team.watch()
        clock.now += AWAY_PAUSE
        assert team.watch()
    wait_for(lambda: has_ended(team))
    clock.now += AWAY_SECONDS
    assert not team.watch()
    assert team.failed()
    assert not any(death.crash for death in theatre.deaths)


@pytest.mark.parametrize("code", [2, 4])
def test_a_mistake_that_another_process_would_repeat_is_not_repeated(theatre: Theatre, code: int) -> None:
    team = theatre.team(f"exit {code}")
    wait_for(lambda: not team.watch())
    assert team.failed()
    assert len(theatre.dead) == 1
    assert len(theatre.said) == 1
    assert f"ended with exit code {code}, giving up: these are my last words (all of it: " in theatre.said[0]


def test_one_worker_that_ends_as_it_should_makes_a_team_that_has_not_failed(theatre: Theatre) -> None:
    failing, done = theatre.team("exit 2"), theatre.team("exit 0")
    done._members += failing._members
    wait_for(lambda: not done.watch())
    assert not done.failed()


def test_a_worker_that_keeps_dying_is_given_up_after_longer_and_longer_pauses(theatre: Theatre, clock: Clock) -> None:
    team = theatre.team("exit 1")
    pauses = []
    for _ in range(MOST_QUICK_DEATHS - 1):
        wait_for(lambda: has_ended(team))
        (member,) = team._members
        team.watch()
        pauses.append(member.restart_at - clock.now)
        clock.now = member.restart_at
        assert team.watch()
    wait_for(lambda: has_ended(team))
    assert not team.watch()
    assert team.failed()
    assert pauses == [0, 1, 3, 7]
    assert len(theatre.dead) == MOST_QUICK_DEATHS
    assert ["giving up" in line for line in theatre.said] == [False] * (MOST_QUICK_DEATHS - 1) + [True]


def test_a_worker_that_lost_its_gpu_is_replaced_until_each_one_loses_it(theatre: Theatre, clock: Clock) -> None:
    team = theatre.team("exit 5")
    wait_for(lambda: has_ended(team))
    assert team.watch()
    assert "starting another: " in theatre.said[0]
    for lived in [processes.LOST_SECONDS] + [processes.QUICK_SECONDS] * (processes.MOST_LOSSES - 1):
        wait_for(lambda: has_ended(team))
        clock.now += lived
        team.watch()
        clock.now = team._members[0].restart_at
        alive = team.watch()
    assert not alive


def test_a_worker_that_dies_with_a_trial_is_replaced_at_once_for_its_trial_is_to_blame(
    theatre: Theatre, clock: Clock
) -> None:
    theatre.had_trial = True
    team = theatre.team("exit 1")
    for _ in range(2 * MOST_QUICK_DEATHS):
        wait_for(lambda: has_ended(team))
        assert team.watch()
    death = theatre.deaths[0]
    assert (death.code, death.how, death.crash) == (1, "with exit code 1", True)
    assert death.words.endswith("these are my last words")


@pytest.mark.parametrize(
    ("code", "crash"),
    [(1, True), (-signal.SIGSEGV, True), (-signal.SIGABRT, True), (-signal.SIGKILL, False), (2, False), (3, False)],
)
def test_what_was_done_to_a_worker_is_no_crash_of_its_trial(code: int, crash: bool) -> None:
    assert WorkerExit("one", code, "", out_of_memory=False).crash == crash


def test_the_kernels_kills_for_want_of_memory_are_distinguished_from_others(theatre: Theatre) -> None:
    counts = iter([4, 4, 5])
    theatre.options["oom_kills"] = lambda: next(counts)
    team = theatre.team("obey")
    for number in (1, 2):
        facts = theatre.started(number)
        newest = next(each["pid"] for each in facts if psutil.pid_exists(each["pid"]))
        os.kill(newest, signal.SIGKILL)
        wait_for(lambda: has_ended(team))
        team.watch()
    assert [death.out_of_memory for death in theatre.deaths] == [False, True]


def test_a_worker_that_dies_now_and_then_is_replaced_for_ever(theatre: Theatre, clock: Clock) -> None:
    team = theatre.team("exit 1")
    for _ in range(2 * MOST_QUICK_DEATHS):
        wait_for(lambda: has_ended(team))
        clock.now += QUICK_SECONDS + 1
        assert team.watch()
    assert len(theatre.started(2 * MOST_QUICK_DEATHS)) >= 2 * MOST_QUICK_DEATHS
