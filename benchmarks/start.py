"""How long things take to begin: a command, a study's first training step, and the next trial after the last.

python benchmarks/start.py [--rounds 5]

The next trial: a study of one worker whose trials train a single step, so that a trial takes what everything but
training takes: claiming, proposing, building the model, evaluating, writing it down, keeping its weights.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import optuna
from machine import show

from tuner.storage.connection import open_storage

STUDY = """
name: start
corpus: {builtin: markov}
trial: {tokens: 512, rungs: 1}
budget: {trials: 24}
parameters:
  hidden_size: 16
  batch_size: 8
  learning_rate: {type: float, low: 1e-3, high: 1e-2, log: true}
"""
TUNER = [sys.executable, "-m", "tuner"]


def seconds_of(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def of_a_study(folder: Path) -> tuple[float, float]:
    """From the command to the first trial's rung, and from one trial's end to the next one's; medians."""
    (folder / "start.yaml").write_text(STUDY)
    places = ["--data-folder", str(folder / "postgres"), "--artifacts", str(folder / "artifacts")]
    begun = time.time()
    command = [*TUNER, "run", "start.yaml", "--workers", "1", "--no-confirm", *places]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open_storage(None, folder / "postgres") as storage:
        trials = optuna.load_study(study_name="start", storage=storage).trials
    ends = sorted(trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete)
    return ends[0] - begun, statistics.median(after - before for before, after in pairwise(ends))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    studies = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            Path(name).chmod(0o755)  # as root, PostgreSQL runs as another user
            studies.append(of_a_study(Path(name)))
    first, spacing = (statistics.median(column) for column in zip(*studies, strict=True))
    helped = statistics.median(seconds_of(*TUNER, "--help") for _ in range(options.rounds))
    rows = [
        {"what": "tuner --help", "seconds": helped},
        {"what": "tuner run, embedded server made anew, until the first trial of one step has ended", "seconds": first},
        {"what": "from one trial of one step to the next", "seconds": spacing},
    ]
    show(rows, rounds=options.rounds)


if __name__ == "__main__":
    main()
