"""The memory of one worker process over hundreds of trials.

    python benchmarks/memory.py

Needs psutil.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import optuna
import psutil
from machine import show
from sqlalchemy.exc import SQLAlchemyError

from tuner.storage.connection import open_storage
from tuner.storage.leases import Leases

STUDY = """
name: memory
corpus: {{builtin: markov}}
trial: {{tokens: 20_000, rungs: 3}}
budget: {{trials: {trials}}}
sampler: random
threads: 1
parameters:
  architecture: {{type: categorical, choices: [rnn, lstm, gru, transformer]}}
  hidden_size: {{type: int, low: 32, high: 256, step: 32}}
  heads: {{type: categorical, choices: [2, 4], when: {{architecture: transformer}}}}
  batch_size: {{type: categorical, choices: [8, 32]}}
"""


def worker_of(command: subprocess.Popen[bytes]) -> psutil.Process | None:
    with suppress(psutil.Error):
        for process in psutil.Process(command.pid).children(recursive=True):
            if "_worker" in process.cmdline():
                return process
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--every", type=int, default=50)
    wanted = parser.parse_args()
    rows: list[dict[str, float]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        folder.chmod(0o755)
        (folder / "memory.yaml").write_text(STUDY.format(trials=wanted.trials))
        environment = os.environ | {"TUNER_DATA": str(folder / "data"), "TUNER_ARTIFACTS": str(folder / "artifacts")}
        storage = stack.enter_context(open_storage(None, folder / "data"))
        words = [sys.executable, "-P", "-m", "tuner", "run", "memory.yaml", "-n", "1"]
        command = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        while command.poll() is None:
            time.sleep(0.2)
            worker = worker_of(command)
            with suppress(KeyError, SQLAlchemyError, psutil.Error, optuna.exceptions.StorageInternalError):
                finished = Leases(storage, storage.get_study_id_from_name("memory")).counts().finished
                if worker is not None and finished >= wanted.every * (len(rows) + 1) - 1:
                    rows.append({"trials": finished, "resident MiB": worker.memory_info().rss / 2**20})
    show(rows)
    sys.exit(command.returncode)


if __name__ == "__main__":
    main()
