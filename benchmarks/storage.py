"""The tuner's own time per trial, and plain Optuna's: workers that train nothing, on one PostgreSQL.

    python benchmarks/storage.py                        (some minutes)
    python benchmarks/storage.py --studies 1000 10000   (most of an hour: each simulated worker reads the study first)

A study is filled with finished trials first; then simulated workers, each a thread with connections of its own, take
turns as they would with trials of 30 seconds: as many trials a second come as that number of workers would bring.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median, quantiles

import optuna
from filling import RUNGS, fill, server, study_of
from machine import show
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import text

from models.config import Config
from tuner.control.create import enter
from tuner.storage.connection import open_storage
from tuner.storage.embedded import SETTINGS
from tuner.storage.leases import Claim, Leases
from tuner.study import samplers
from tuner.study.definition import Study

TRIAL_SECONDS = 30.0


def worth(config: Config, rung: int) -> float:
    return 3 - 0.1 * rung + config.dropout


def ours(url: str, study: Study, worker: str) -> Iterator[None]:
    """One trial after the other, as `tuner.workers.worker` goes through them, between `next` calls."""
    with open_storage(url) as storage:
        found = optuna.load_study(study_name=study.name, storage=storage)
        found.sampler = samplers.sampler(study.sampler, study.space, stream=hash(worker) % 1000)
        found.pruner = samplers.pruner(study.pruner, RUNGS)
        leases = Leases(storage, found._study_id)
        leases.join(worker, "host", 1, "cpu", 1)
        while True:
            claim = leases.claim(found, worker, study.trials, None)
            assert isinstance(claim, Claim)
            trial, state = claim.trial, TrialState.COMPLETE
            with leases.lease_held(trial._trial_id, worker):
                config = study.space.suggest(trial)
                trial.set_user_attr("configuration", config.model_dump(mode="json"))
                trial.set_user_attr("attempts", claim.attempt)
            for rung in range(1, RUNGS + 1):
                with leases.lease_held(trial._trial_id, worker):
                    trial.report(worth(config, rung), rung)
                    if rung < RUNGS and trial.should_prune():
                        state = TrialState.PRUNED
                        break
            with leases.lease_held(trial._trial_id, worker):
                found.tell(
                    trial, 3 - 0.1 * RUNGS + config.dropout if state == TrialState.COMPLETE else None, state=state
                )
            yield


def plain(url: str, study: Study, worker: str) -> Iterator[None]:
    """The same with Optuna alone."""
    with open_storage(url) as storage:
        found = optuna.load_study(study_name=study.name, storage=storage)
        found.sampler = samplers.sampler(study.sampler, study.space, stream=hash(worker) % 1000)
        found.pruner = samplers.pruner(study.pruner, RUNGS)
        while True:
            trial, state = found.ask(), TrialState.COMPLETE
            config = study.space.suggest(trial)
            for rung in range(1, RUNGS + 1):
                trial.report(worth(config, rung), rung)
                if rung < RUNGS and trial.should_prune():
                    state = TrialState.PRUNED
                    break
            found.tell(trial, worth(config, RUNGS) if state == TrialState.COMPLETE else None, state=state)
            yield


def measure(
    way: Callable[[str, Study, str], Iterator[None]], url: str, study: Study, workers: int, trials: int
) -> list[float]:
    """Returns the seconds each of `trials` took, which come at the pace of `workers` workers, or one each second."""
    taken: list[float] = []
    pace = min(TRIAL_SECONDS / workers, 1.0) if workers > 1 else 0.0
    begin = threading.Event()

    def work(index: int) -> None:
        steps = way(url, study, f"{way.__name__}-{study.name}-{workers}-{index}")
        next(steps)  # the first one reads the whole study
        ready.release()
        begin.wait()
        for turn in range(max(1, trials // workers)):
            due = start + (index + turn * workers) * pace
            time.sleep(max(0.0, due - time.monotonic()))
            before = time.monotonic()
            next(steps)
            taken.append(time.monotonic() - before)
        steps.close()

    ready = threading.Semaphore(0)
    threads = [threading.Thread(target=work, args=(index,)) for index in range(workers)]
    for thread in threads:
        thread.start()
    for _ in threads:
        ready.acquire()
    start = time.monotonic() + 0.1
    begin.set()
    for thread in threads:
        thread.join()
    return taken


@contextmanager
def counted(storage: RDBStorage) -> Iterator[list[int]]:
    """Looks now and then how many connections the server has, ours and the workers'."""
    seen: list[int] = [0]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            with storage.engine.connect() as connection:
                seen.append(
                    connection.execute(text("SELECT count(*) FROM pg_stat_activity WHERE datid > 0")).scalar_one()
                )

    thread = threading.Thread(target=look)
    thread.start()
    yield seen
    ended.set()
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", help="postgresql://...; its database is written to")
    parser.add_argument("--studies", type=int, nargs="*", default=[1_000], help="finished trials in the study")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--trials", type=int, default=64, help="measured in each case")
    parser.add_argument("--max-connections", type=int, help="of the embedded server")
    wanted = parser.parse_args()
    if wanted.max_connections:
        SETTINGS["max_connections"] = str(wanted.max_connections)
    rows = []
    with server(wanted.storage) as url, open_storage(url) as storage:
        for size in wanted.studies:
            study = study_of(f"storage-{size}")
            found = enter(storage, study).optuna_study
            fill(storage, found, study, size)
            for workers in wanted.workers:
                for way in (plain, ours):
                    with counted(storage) as connections:
                        taken = measure(way, url, study, workers, wanted.trials)
                    high = quantiles(taken, n=20)[-1]
                    rows.append(
                        {
                            "trials before": size,
                            "workers": workers,
                            "way": way.__name__,
                            "median ms": 1000 * median(taken),
                            "95 % ms": 1000 * high,
                            "share of 30 s, %": 100 * median(taken) / TRIAL_SECONDS,
                            "connections": max(connections),
                        }
                    )
    show(rows)


if __name__ == "__main__":
    main()
