"""Generators that break their process, a database that dies, and what a person asks from another terminal."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

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
"""A generator whose first trials break in their second step, each in the way that its line of the file `how` says.

While there is a file `hold`, all others wait in the middle whose learning rates are not in it.
"""

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
        if self.training and self.steps == 2:
            self.break_down()
        while self.training and self.steps > 1 and self.is_held():
            time.sleep(0.01)
        hidden, state = self.recurrence(self.embedding(tokens), state)
        return self.logits(hidden), state

    def break_down(self):
        ways, victims = Path("how").read_text().splitlines(), Path("victims")
        known = victims.read_text().splitlines() if victims.exists() else []
        if self.mine not in known and len(known) < len(ways):
            known.append(self.mine)
            victims.write_text("\\n".join(known))
        how = ways[known.index(self.mine)] if self.mine in known else None
        if how == "segmentation fault":
            ctypes.string_at(0)
        elif how == "hang":
            time.sleep(1000)

    def is_held(self):
        try:
            return self.mine not in Path("hold").read_text()
        except FileNotFoundError:
            return False
'''


class Fragile:
    """A study whose first trials break in the given ways, and whose others can be held in the middle."""

    def __init__(self, place: Any, *ways: str, timeout: float = 60) -> None:
        self.place = place
        place.write("fragile.py", FRAGILE)
        place.write("fragile.yaml", STUDY.replace("TIMEOUT", str(timeout)))
        place.write("how", "\n".join(ways))

    def run(self, workers: int = 1) -> Any:
        return self.place.run("-v", "run", "fragile.yaml", "-n", workers)

    def hold(self, *but: float) -> None:
        """Holds all trials but those of some learning rates."""
        self.place.write("hold", " ".join(map(repr, but)))

    def go_on(self) -> None:
        (self.place.home / "hold").unlink()

    def held(self) -> list[float]:
        """The learning rates of the trials that workers have; a trial that is held stays among them."""
        trials = self.place.trials("fragile")
        numbers = [worker.trial for worker in self.place.workers("fragile") if worker.trial is not None]
        return [trials[number].params["learning_rate"] for number in numbers]


def test_generators_that_break_their_process_cost_a_trial_each_and_show_where(place: Any) -> None:
    done = Fragile(place, "segmentation fault", "hang", timeout=5).run()
    assert done.code == 0, done
    trials = place.trials("fragile")
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 3
    assert re.search(r"^[\d:]{8} worker on cpu ended .*, starting another: ", done.said, re.MULTILINE), done
    logs = "".join(path.read_text() for path in (place.artifacts / "fragile" / "logs").iterdir())
    complete = r"^\d{4}-\d\d-\d\d [\d:]{8} DEBUG study=fragile worker=\w+ trial=(\d): trial \1 is complete: "
    assert sorted(re.findall(complete, logs, re.MULTILINE)) == ["2", "3", "4"], logs
    shown = place.run("status", "fragile", "--failed")
    assert shown.code == 0
    for number, reason in enumerate(["the worker ended by SIGSEGV", "the worker ended with exit code 1"]):
        facts = trials[number].user_attrs
        assert (facts["reason"], facts["crashes"], facts["attempts"]) == (reason, 2, 2)
        assert "in break_down" in facts["traceback"]
        about = shown.said[shown.said.index(f"trial   {number}  failed    {reason}") :].partition("\ntrial ")[0]
        assert "in break_down" in about
    assert place.is_quiet()


def test_a_running_study_is_steered_from_another_terminal(place: Any) -> None:
    """It is paused, goes on, is stopped, exports what it has, and goes on later."""
    study = Fragile(place)
    study.hold()
    running = place.start("run", "fragile.yaml", "-n", 2)
    begun = running.until(lambda: len(held := study.held()) == 2 and held)
    assert "2 workers save their trials and wait" in place.run("pause", "fragile").said
    study.go_on()
    running.until(lambda: [worker.doing for worker in place.workers("fragile")] == ["the study is paused"] * 2)
    states = [trial.state for trial in place.trials("fragile")]
    assert TrialState.RUNNING not in states
    assert "waits for a worker" in place.run("enqueue", "fragile", "learning_rate=0.0123").said
    refused = place.run("enqueue", "fragile", "learning_rat=1")
    assert refused.code == 2
    assert "did you mean learning_rate?" in refused.said

    study.hold(*begun)
    assert "2 workers continue" in place.run("resume", "fragile").said
    running.until(lambda: study.held() == [0.0123])
    assert [trial.state for trial in place.trials("fragile")].count(TrialState.COMPLETE) == 2
    assert "save their trials and leave" in place.run("stop", "fragile").said
    study.go_on()
    assert running.end() == 0, running.said
    assert "Best configuration: best.yaml" in running.said
    done = study.run()
    assert done.code == 0, done
    assert [trial.state for trial in place.trials("fragile")] == [TrialState.COMPLETE] * 3
    assert place.is_quiet()


def test_an_embedded_server_that_dies_under_a_study_is_started_again(place: Any) -> None:
    study = Fragile(place)
    study.hold()
    running = place.start("run", "fragile.yaml", "-n", 1)
    running.until(study.held)
    postmaster = int((place.data / "cluster" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    study.go_on()
    assert running.end() == 0, running.said
    assert [trial.state for trial in place.trials("fragile")] == [TrialState.COMPLETE] * 3
    assert place.is_quiet()


def test_chaos_loses_nothing(place: Any) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
    small = ("--trials", 4, "--workers", 2, "--tokens", 30_000, "--restarts", 1, "--outage", 1, "--kill-every", 8)
    done = place.run(*small, command=(sys.executable, script))
    assert done.code == 0, done
    assert "| finished | 4 |" in done.said
