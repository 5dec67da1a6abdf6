"""Ctrl-C, kill -9 and power cuts in the middle of real studies: no trial is lost, none counts twice, nobody stays."""

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import sqlalchemy as sql
import torch
from optuna.trial import FrozenTrial, TrialState

from models.config import Budget, Config, Corpus
from models.reader import parse, plain
from models.text.corpus import load_corpus
from models.training.checkpoint import read_checkpoint
from models.training.loop import train
from tuner.storage.leases import leases

COMPLETE, RUNNING, WAITING = TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING
STEPS, HELD = 100, 30
STUDY = """\
name: paced
corpus: {builtin: markov}
threads: 1
trial: {tokens: 25_600, rungs: 4}
budget: {trials: TRIALS}
pruner: none
parameters:
  architecture: "paced:Paced"
  learning_rate: {type: float, low: 1e-3, high: 3e-2, log: true}
  hidden_size: 8
  batch_size: 8
  sequence_length: 32
"""
PACED = f'''\
"""A generator that takes its time, notes who trains which trial, and waits in the middle while there is a `hold`."""

import os
import time

from torch import nn


class Paced(nn.Module):
    carries_state = True

    def __init__(self, config, vocabulary_size):
        super().__init__()
        self.note, self.steps = f"{{os.getpid()}} {{config.learning_rate!r}}\\n", 0
        self.embedding = nn.Embedding(vocabulary_size, config.hidden_size)
        self.recurrence = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.logits = nn.Linear(config.hidden_size, vocabulary_size)

    def forward(self, tokens, state=None):
        if self.training and tokens.size(1) > 1:
            with open("steps.log", "a") as log:
                log.write(self.note)
            self.steps += 1
            time.sleep(0.005)
            while self.steps == {HELD} and os.path.exists("hold"):
                time.sleep(0.01)
        hidden, state = self.recurrence(self.embedding(tokens), state)
        return self.logits(hidden), state
'''


class Paced:
    """A study whose trials can be held in the middle, and of which each step is known."""

    def __init__(self, place: Any, trials: int) -> None:
        self.place = place
        place.write("paced.py", PACED)
        place.write("paced.yaml", STUDY.replace("TRIALS", str(trials)))

    def start(self, workers: int) -> Any:
        return self.place.start("run", "paced.yaml", "-n", workers)

    def hold(self) -> None:
        self.place.write("hold", "")

    def go_on(self) -> None:
        (self.place.home / "hold").unlink()

    def trials(self) -> list[FrozenTrial]:
        return list(self.place.trials("paced"))

    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.trials()]

    def steps(self) -> Counter[tuple[int, float]]:
        """How many steps each process has taken on the trial of each learning rate."""
        lines = [line.split() for line in (self.place.home / "steps.log").read_text().splitlines()]
        return Counter((int(pid), float(rate)) for pid, rate in lines)

    def held(self, count: int) -> Any:
        """The processes that are held and the learning rates they are held at, once there are so many."""
        if not (self.place.home / "steps.log").exists():
            return None
        held = {pid: rate for (pid, rate), steps in self.steps().items() if steps == HELD and psutil.pid_exists(pid)}
        return held if len(held) == count else None

    def saved(self) -> dict[int, int]:
        """At which step the last checkpoint of each trial is, by number."""
        folder = self.place.artifacts / "paced" / "checkpoints"
        return {
            int(path.name.split("-")[1].split(".")[0]): read_checkpoint(path)[1]["step"]
            for path in sorted(folder.glob("trial-*.safetensors"))
        }

    def require_finished(self, count: int) -> None:
        """Exactly so many trials are finished, each with all its rungs, and there is no other."""
        trials = self.trials()
        assert [trial.number for trial in trials] == list(range(count))
        assert {trial.state for trial in trials} == {COMPLETE}
        assert all(trial.value == trial.intermediate_values[4] for trial in trials)
        assert not self.saved()


@pytest.fixture(autouse=True)
def _one_thread(place: Any, own_import_path: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the workers have, and where they stand."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(place.home)
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("paced", None)


def test_after_ctrl_c_the_same_command_goes_on_where_it_was_whoever_is_killed_meanwhile(place: Any) -> None:
    study = Paced(place, 3)
    study.hold()
    running = study.start(2)
    first = running.until(lambda: study.held(2))
    running.interrupt()
    running.until(lambda: "saving the running trials" in running.said)
    study.go_on()
    assert running.end() == 130, running.said
    assert running.said.endswith("Stopped; nothing is lost. Go on with the same command: tuner run paced.yaml -n 2\n")
    assert "Traceback" not in running.said
    assert place.is_quiet()
    assert study.states() == [WAITING, WAITING]
    rates = [trial.params["learning_rate"] for trial in study.trials()]
    taken = {rate: study.steps()[pid, rate] for pid, rate in first.items()}
    assert {rates[number]: step for number, step in study.saved().items()} == taken

    study.hold()
    running = study.start(2)
    killed: dict[int, float] = {}
    for _ in range(2):
        held = running.until(lambda: (held := study.held(2)) and not killed.keys() & held and held)
        victim = random.Random(len(killed)).choice(sorted(held))
        killed[victim] = held[victim]
        os.kill(victim, signal.SIGKILL)
    running.until(lambda: running.said.count("ended by SIGKILL, starting another") == 2)
    study.go_on()
    assert running.end() == 0, running.said
    assert place.is_quiet()
    study.require_finished(3)
    for trial in study.trials():
        rate, attempts = trial.params["learning_rate"], trial.user_attrs["attempts"]
        steps = {pid: count for (pid, at), count in study.steps().items() if at == rate}
        assert attempts == len(steps)
        # Those that were killed left no checkpoint; their heirs went on from that of the first.
        lost = [pid for pid, at in killed.items() if at == rate]
        assert sum(steps.values()) == STEPS + HELD * len(lost)
        assert all(steps[pid] == HELD for pid in lost)
        assert trial.value == worth(study, trial)


def worth(study: Paced, trial: FrozenTrial) -> float:
    """What a trial is worth when nothing happens to it; its generator is found where the test stands."""
    config = Config.model_validate(trial.user_attrs["configuration"])
    corpus = load_corpus(Corpus(builtin="markov"), config.tokenizer, config.vocabulary_size)
    return train(config, corpus, Budget(tokens=STEPS * 8 * 32, rungs=4)).best.bits_per_byte


def test_after_a_power_cut_all_finished_trials_are_there_and_the_study_goes_on(place: Any) -> None:
    study = Paced(place, 8)
    running = study.start(2)
    running.until(lambda: COMPLETE in study.states())
    study.hold()
    running.until(lambda: study.held(2))
    place.kill()
    running.end()
    assert place.is_quiet()
    study.go_on()
    before = {trial.number: trial.value for trial in study.trials() if trial.state == COMPLETE}
    assert study.states().count(RUNNING) == 2
    let_leases_expire(place)
    status = place.run("status", "paced")
    assert status.code == 0, status
    assert f"{len(before)}/8 trials  ({len(before)} complete, 0 pruned)" in status.said
    done = study.start(1)
    assert done.end() == 0, done.said
    study.require_finished(8)
    assert before.items() <= {trial.number: trial.value for trial in study.trials()}.items()


def let_leases_expire(place: Any) -> None:
    """As if LEASE_SECONDS had passed since the power cut."""
    with place.opened() as storage, storage.engine.begin() as connection:
        connection.execute(sql.update(leases).values(expires_at=sql.func.now()))


def test_workers_whose_supervisor_was_killed_save_and_leave(place: Any) -> None:
    study = Paced(place, 100)
    running = study.start(1)
    running.until(lambda: COMPLETE in study.states())
    running.process.kill()
    assert place.is_quiet()
    assert study.states().count(WAITING) == 1
    assert RUNNING not in study.states()
    assert len(study.saved()) == 1


def test_a_second_ctrl_c_ends_at_once(place: Any) -> None:
    study = Paced(place, 2)
    study.hold()
    running = study.start(1)
    running.until(lambda: study.held(1))
    running.interrupt()
    running.until(lambda: "saving the running trials" in running.said)
    running.interrupt()
    assert running.end() == 130
    assert "Traceback" not in running.said
    assert place.is_quiet()


SHORT = """\
name: short
corpus: CORPUS
threads: 1
trial: {tokens: 8_192, rungs: 4}
budget: {trials: 10}
parameters:
  architecture: gru
  learning_rate: {type: float, low: 1e-3, high: 3e-2, log: true}
  hidden_size: 8
  batch_size: 8
  sequence_length: 32
"""


def test_several_commands_on_one_study_share_its_budget(place: Any) -> None:
    place.write("short.yaml", SHORT.replace("CORPUS", "{builtin: markov}"))
    first = place.start("run", "short.yaml", "-n", 1)
    second = place.start("run", "short.yaml", "-n", 1, "-o", "second.yaml", "--run-folder", "second")
    first.until(lambda: "study short: 1 worker on" in first.said)
    third = place.start("work", "short", "-n", 1)
    assert [each.end() for each in (first, second, third)] == [0, 0, 0], [first.said, second.said, third.said]
    trials = place.trials("short")
    assert [trial.number for trial in trials] == list(range(10))
    assert {trial.state for trial in trials} <= {COMPLETE, TrialState.PRUNED}
    assert third.said.startswith("study short: joined by 1 worker\n")
    assert third.said.endswith("Done: all 10 trials are finished.\n")
    exports = [plain(parse((place.home / name).read_text(), "")) for name in ("best.yaml", "second.yaml")]
    assert exports[0] == exports[1]
    assert place.is_quiet()
