"""Generators that break their process, a database that dies, and what a person asks from another terminal."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

STUDY = """\
name: fragile
corpus: {builtin: markov}
threads: 1
trial: {tokens: 8_192, rungs: 4}
budget: {trials: 3}
pruner: none
retries: 1
timeout: TIMEOUT
parameters:
  architecture: "fragile:Fragile"
  learning_rate: {type: float, low: 1e-3, high: 3e-2, log: true}
  hidden_size: 8
  batch_size: 8
  sequence_length: 32
"""
FRAGILE = '''\
"""A generator that breaks, in the way that the file `how` says, in the second step of the study's first trial."""

import ctypes
import time
from pathlib import Path

from torch import nn


class Fragile(nn.Module):
    carries_state = True

    def __init__(self, config, vocabulary_size):
        super().__init__()
        self.steps = 0
        self.mine = repr(config.learning_rate)
        self.embedding = nn.Embedding(vocabulary_size, config.hidden_size)
        self.recurrence = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.logits = nn.Linear(config.hidden_size, vocabulary_size)

    def forward(self, tokens, state=None):
        self.steps += 1
        victim = Path("victim")
        if self.training and self.steps == 2:
            if not victim.exists():
                victim.write_text(self.mine)
            if victim.read_text() == self.mine:
                self.break_down(Path("how").read_text())
        while self.training and self.steps > 1 and Path("hold").exists():
            time.sleep(0.01)
        hidden, state = self.recurrence(self.embedding(tokens), state)
        return self.logits(hidden), state

    def break_down(self, how):
        if how == "segmentation fault":
            ctypes.string_at(0)
        elif how == "hang":
            time.sleep(1000)
'''


class Fragile:
    def __init__(self, place: Any, how: str, timeout: float = 60) -> None:
        self.place = place
        place.write("fragile.py", FRAGILE)
        place.write("fragile.yaml", STUDY.replace("TIMEOUT", str(timeout)))
        place.write("how", how)

    def run(self, workers: int = 1) -> Any:
        return self.place.run("-v", "run", "fragile.yaml", "-n", workers)


@pytest.mark.parametrize(
    ("how", "reason", "trace"),
    [
        ("segmentation fault", "the worker ended by SIGSEGV", "in break_down"),
        ("hang", "the worker ended with exit code 1", "in break_down"),
    ],
)
def test_a_generator_that_breaks_its_process_costs_one_trial_and_shows_where(
    place: Any, how: str, reason: str, trace: str
) -> None:
    study = Fragile(place, how, timeout=5 if how == "hang" else 60)
    done = study.run()
    assert done.code == 0, done
    trials = place.trials("fragile")
    assert [trial.state for trial in trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    facts = trials[0].user_attrs
    assert (facts["reason"], facts["crashes"], facts["attempts"]) == (reason, 2, 2)
    assert trace in facts["traceback"]
    assert re.search(r"^[\d:]{8} worker on cpu ended .*, starting another: ", done.said, re.MULTILINE), done
    logs = "".join(path.read_text() for path in (place.artifacts / "fragile" / "logs").iterdir())
    complete = r"^\d{4}-\d\d-\d\d [\d:]{8} DEBUG study=fragile worker=\w+ trial=(\d): trial \1 is complete: "
    assert sorted(re.findall(complete, logs, re.MULTILINE)) == ["1", "2", "3"], logs
    shown = place.run("status", "fragile", "--failed")
    assert shown.code == 0
    assert f"trial   0  failed    {reason}" in shown.said
    assert trace in shown.said
    assert place.is_quiet()


def test_a_running_study_is_steered_from_another_terminal(place: Any) -> None:
    study = Fragile(place, "not at all")
    place.write("hold", "")
    running = place.start("run", "fragile.yaml", "-n", 2)
    running.until(lambda: sum(worker.trial is not None for worker in place.workers("fragile")) == 2)
    assert "2 workers save their trials and wait" in place.run("pause", "fragile").said
    (place.home / "hold").unlink()
    running.until(lambda: [worker.doing for worker in place.workers("fragile")] == ["the study is paused"] * 2)
    states = [trial.state for trial in place.trials("fragile")]
    assert TrialState.RUNNING not in states
    assert "waits for a worker" in place.run("enqueue", "fragile", "learning_rate=0.0123").said
    assert "2 workers go on" in place.run("resume", "fragile").said
    assert running.end() == 0, running.said
    finished = [trial for trial in place.trials("fragile") if trial.state == TrialState.COMPLETE]
    assert len(finished) == 3
    refused = place.run("enqueue", "fragile", "learning_rat=1")
    assert refused.code == 2
    assert "did you mean learning_rate?" in refused.said
    assert study.place.is_quiet()


def test_a_stopped_study_exports_what_it_has_and_goes_on_later(place: Any) -> None:
    Fragile(place, "not at all")
    running = place.start("run", "fragile.yaml", "-n", 1)
    running.until(lambda: TrialState.COMPLETE in [trial.state for trial in place.trials("fragile")])
    place.write("hold", "")
    assert "save their trials and leave" in place.run("stop", "fragile").said
    (place.home / "hold").unlink()
    assert running.end() == 0, running.said
    assert "Best configuration: best.yaml" in running.said
    done = place.run("run", "fragile.yaml", "-n", 1)
    assert done.code == 0, done
    assert [trial.state for trial in place.trials("fragile")] == [TrialState.COMPLETE] * 3


def test_an_embedded_server_that_dies_under_a_study_is_started_again(place: Any) -> None:
    Fragile(place, "not at all")
    place.write("hold", "")
    running = place.start("run", "fragile.yaml", "-n", 2)
    running.until(lambda: sum(worker.trial is not None for worker in place.workers("fragile")) == 2)
    postmaster = int((place.data / "cluster" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    (place.home / "hold").unlink()
    assert running.end() == 0, running.said
    assert [trial.state for trial in place.trials("fragile")] == [TrialState.COMPLETE] * 3
    assert place.is_quiet()


def test_chaos_loses_nothing(place: Any) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
    small = ("--trials", 6, "--workers", 2, "--tokens", 60_000, "--restarts", 1, "--outage", 3, "--kill-every", 5)
    done = place.run(*small, command=(sys.executable, script))
    assert done.code == 0, done
    assert "| finished | 6 |" in done.said
