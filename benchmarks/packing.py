"""Trials per hour with some numbers of workers on one device, and the number that --per-device auto chooses.

python benchmarks/packing.py [--workers 1 2 4] [--devices cpu] [--trials 16] [--tokens 150000]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
from machine import show
from optuna.trial import FrozenTrial

from tuner.storage.connection import open_storage
from tuner.study.definition import read_study
from tuner.workers.oversubscription import workers_per_device

STUDY = """
name: packing
corpus: {{builtin: python-docs}}
trial: {{tokens: {tokens}, rungs: 1}}
budget: {{trials: {trials}}}
sampler: random
pruner: none
parameters:
  architecture: {architecture}
  layers: {layers}
  hidden_size: {hidden_size}
  batch_size: 16
  learning_rate: {{type: float, low: 1e-3, high: 1e-2, log: true}}
"""
SHAPES = {
    "lstm 1 x 256": {"architecture": "lstm", "layers": 1, "hidden_size": 256},
    "transformer 4 x 128": {"architecture": "transformer", "layers": 4, "hidden_size": 128},
}


def trials_per_hour(study: Path, workers: int, devices: str) -> float:
    """From the first trial's start to the last one's end; starting the workers is not counted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root, PostgreSQL runs as another user
        command = [sys.executable, "-m", "tuner", "run", str(study), "--per-device", str(workers), "--devices", devices]
        command += ["--data-folder", str(folder / "postgres"), "--artifacts", str(folder / "artifacts")]
        with open_storage(None, folder / "postgres") as storage:
            subprocess.run([*command, "--no-confirm"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            trials = optuna.load_study(study_name="packing", storage=storage).trials
    rate = 3600 * len(trials) / (max(map(_end, trials)) - min(map(_start, trials)))
    print(f"{workers} workers: {rate:.0f} trials per hour", file=sys.stderr, flush=True)
    return rate


def _start(trial: FrozenTrial) -> float:
    return trial.datetime_start.timestamp() if trial.datetime_start else time.time()


def _end(trial: FrozenTrial) -> float:
    return trial.datetime_complete.timestamp() if trial.datetime_complete else time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for shape, parameters in SHAPES.items():
            study = Path(name) / "packing.yaml"
            study.write_text(STUDY.format(tokens=options.tokens, trials=options.trials, **parameters))
            rates = [
                [trials_per_hour(study, workers, options.devices) for workers in options.workers]
                for _ in range(options.rounds)
            ]
            chosen = workers_per_device(read_study(study), options.devices, None)
            medians = [round(statistics.median(column)) for column in zip(*rates, strict=True)]
            named = {f"{workers} workers": rate for workers, rate in zip(options.workers, medians, strict=True)}
            rows.append({"trials per hour": shape, **named, "auto chooses": chosen})
    show(rows, trials=options.trials, tokens=options.tokens, rounds=options.rounds)


if __name__ == "__main__":
    main()
