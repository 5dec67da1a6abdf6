"""Seconds of processor time and megabytes of a report and of the dashboard's figures, for studies of some sizes.

python benchmarks/report.py                        (two minutes)
python benchmarks/report.py --studies 1000 10000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from machine import show
from optuna.storages import RDBStorage
from sqlalchemy import text
from storage import fill, server, study_of

from tuner.artifacts.store import Artifacts
from tuner.control.create import enter
from tuner.storage.connection import open_storage
from tuner.storage.handle import StudyHandle
from tuner.watch import plots
from tuner.watch.html_report import report

FACTS = {
    "parameter_count": 123_456,
    "tokens_per_second": 34_567,
    "training_seconds": 28.9,
    "threads": 1,
    "device": "cpu",
    "machine": "Linux x86_64, a processor",
    "configuration": {f"parameter_{number}": number for number in range(35)},
}
"""What a worker writes down about each trial, or as much."""


def write_facts(storage: RDBStorage, study_id: int) -> None:
    with storage.engine.begin() as connection:
        for name, value in FACTS.items():
            connection.execute(
                text(
                    "INSERT INTO trial_user_attributes (trial_id, key, value_json)"
                    " SELECT trial_id, :name, :value FROM trials WHERE study_id = :study"
                ),
                {"name": name, "value": json.dumps(value), "study": study_id},
            )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    before = time.process_time()
    result = work()
    return time.process_time() - before, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", help="postgresql://...; its database is written to")
    parser.add_argument("--studies", type=int, nargs="*", default=[1_000, 10_000], help="finished trials in the study")
    wanted = parser.parse_args()
    rows = []
    with server(wanted.storage) as url, open_storage(url) as storage, tempfile.TemporaryDirectory() as folder:
        for size in wanted.studies:
            study = study_of(f"report-{size}")
            found = enter(storage, study).optuna_study
            fill(storage, found, study, size)
            write_facts(storage, found._study_id)
            found = optuna.load_study(study_name=study.name, storage=storage)
            reading, trials = timed(lambda found=found: found.get_trials(deepcopy=False))
            drawing, figures = timed(lambda study=study, trials=trials: plots.dashboard_figures(study, trials))
            kept = Artifacts(Path(folder) / study.name)
            handle = StudyHandle(storage, found, study)
            writing, html = timed(lambda handle=handle, kept=kept: report(handle, kept))
            rows.append(
                {
                    "trials": size,
                    "read, s": reading,
                    "dashboard's figures, s": drawing,
                    "their size, MB": sum(len(figure.to_json()) for figure in figures.values()) / 1e6,
                    "report without reading, s": writing,
                    "its size, MB": len(html.encode()) / 1e6,
                }
            )
    show(rows)


if __name__ == "__main__":
    main()
