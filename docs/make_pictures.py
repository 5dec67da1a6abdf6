"""Makes the picture of the README: a real study, caught while it runs.

python docs/make_pictures.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tuner.report import Snapshot, described, progress, snapshot
from tuner.storage import open_storage
from tuner.study import Study, stored_study
from tuner.worker import load_study

HERE = Path(__file__).parent
STUDY = "quickstart"
CAUGHT_AT = 14
"""Finished trials at which the picture is taken."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # as root, PostgreSQL runs as another user
        data = Path(folder) / "postgres"
        environment = {**os.environ, "TUNER_DATA": str(data), "TUNER_ARTIFACTS": f"{folder}/artifacts"}
        with open_storage(None, data) as storage:
            command = [sys.executable, "-m", "tuner", "run", STUDY]
            running = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
            try:
                while True:
                    time.sleep(1)
                    now = _look(storage)
                    if now is not None and now.counts.finished >= CAUGHT_AT and any(w.progress for w in now.workers):
                        break
            finally:
                running.terminate()
                running.wait()
        _draw(now, now.study)


def _look(storage: object) -> Snapshot | None:
    try:
        found = load_study(storage, STUDY)  # type: ignore[arg-type]
    except Exception:  # not there yet
        return None
    return snapshot(storage, found, stored_study(found.user_attrs["study"]))  # type: ignore[arg-type]


def _draw(now: Snapshot, study: Study) -> None:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=150, force_terminal=True, highlight=False, file=nowhere)
        console.print(f"$ tuner run studies/{STUDY}.yaml")
        finished = [trial for trial in now.trials if trial.state.is_finished()]
        for trial in sorted(finished, key=lambda one: one.datetime_complete or one.datetime_start)[-8:]:  # type: ignore[arg-type, return-value]
            console.print(described(trial, study, now.best), markup=False)
        console.print(progress(now))
        console.save_svg(str(HERE / "run.svg"), title="textgen-tuner")


if __name__ == "__main__":
    main()
