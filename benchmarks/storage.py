"""The tuner's own time per trial, and plain Optuna's: workers that train nothing, on one PostgreSQL.

    python benchmarks/storage.py                        (some minutes)
    python benchmarks/storage.py --studies 1000 10000   (most of an hour: each simulated worker reads the study first)

A study is filled with finished trials first; then simulated workers, each a thread with connections of its own, take
turns as they would with trials of 30 seconds: as many trials a second come as so many workers would bring.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import quote

import optuna
from machine import show
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import text

from models.config import Config
from tuner import search
from tuner.cli import _enter
from tuner.ledger import Claim, Ledger
from tuner.server import SETTINGS, attached
from tuner.storage import open_storage
from tuner.study import Study, parse_study

TRIAL_SECONDS = 30.0
FILLED_BY_OPTUNA = 500  # trials; more are copies of these, made by the database in no time
RUNGS = 9
COPIED = {
    "trial_params": "param_name, param_value, distribution_json",
    "trial_values": "objective, value, value_type",
    "trial_intermediate_values": "step, intermediate_value, intermediate_value_type",
}
PARAMETERS = {
    "architecture": {"type": "categorical", "choices": ["rnn", "lstm", "gru", "transformer"]},
    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "batch_size": {"type": "categorical", "choices": [8, 16, 32, 64]},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5},
    "hidden_size": {"type": "int", "low": 64, "high": 512, "step": 64},
    "weight_decay": {"type": "float", "low": 1e-3, "high": 0.3, "log": True},
}


def study_of(name: str) -> Study:
    values = {
        "name": name,
        "corpus": {"builtin": "markov"},
        "trial": {"tokens": 1_000_000, "rungs": RUNGS},
        "budget": {"trials": 1_000_000},
        "sampler": {"type": "tpe", "seed": 0},
        "parameters": PARAMETERS,
    }
    return parse_study(json.dumps(values), name, name)


def fill(storage: RDBStorage, found: optuna.Study, study: Study, count: int) -> None:
    """Adds trials as a search leaves them: two thirds pruned at the first rung."""
    _add(storage, found, study, min(count, FILLED_BY_OPTUNA))
    for done in range(FILLED_BY_OPTUNA, count, FILLED_BY_OPTUNA):
        _copy(storage, found._study_id, done, min(count - done, FILLED_BY_OPTUNA))


def _copy(storage: RDBStorage, study: int, offset: int, count: int) -> None:
    """Adds the first `count` trials of the study again, as numbers `offset` and following."""
    with storage.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)"
                " SELECT number + :offset, study_id, state, datetime_start, datetime_complete"
                " FROM trials WHERE study_id = :study AND number < :count ORDER BY number"
            ),
            {"study": study, "offset": offset, "count": count},
        )
        for table, columns in COPIED.items():
            connection.execute(
                text(
                    f"INSERT INTO {table} (trial_id, {columns}) SELECT copy.trial_id, {columns}"
                    f" FROM {table} JOIN trials USING (trial_id)"
                    " JOIN trials AS copy ON copy.study_id = trials.study_id AND copy.number = trials.number + :offset"
                    " WHERE trials.study_id = :study AND trials.number < :count"
                ),
                {"study": study, "offset": offset, "count": count},
            )


def _add(storage: RDBStorage, found: optuna.Study, study: Study, count: int) -> None:
    dice = random.Random(0)
    distributions: dict[str, BaseDistribution] = {
        name: one.distribution() for name, one in study.space.searched.items()
    }
    now = datetime.now()
    for number in range(count):
        values = {name: dice.choice(one.values()) for name, one in study.space.searched.items()}
        rungs = 1 if number % 3 else RUNGS
        worth = {rung: 3 - 0.1 * rung + dice.random() for rung in range(1, rungs + 1)}
        finished = create_trial(
            state=TrialState.COMPLETE if rungs == RUNGS else TrialState.PRUNED,
            value=worth[rungs],
            params=values,
            distributions=distributions,
            intermediate_values=worth,
        )
        finished.datetime_start = finished.datetime_complete = now
        storage.create_new_trial(found._study_id, template_trial=finished)


def worth(config: Config, rung: int) -> float:
    return 3 - 0.1 * rung + config.dropout


def ours(url: str, study: Study, worker: str) -> Iterator[None]:
    """One trial after the other, as `tuner.worker` goes through them, between `next` calls."""
    with open_storage(url) as storage:
        found = optuna.load_study(study_name=study.name, storage=storage)
        found.sampler = search.sampler(study.sampler, study.space, stream=hash(worker) % 1000)
        found.pruner = search.pruner(study.pruner, RUNGS)
        ledger = Ledger(storage, found._study_id)
        ledger.join(worker, "host", 1, "cpu", 1)
        while True:
            claim = ledger.take(found, worker, study.trials, None)
            assert isinstance(claim, Claim)
            trial, state = claim.trial, TrialState.COMPLETE
            with ledger.held(trial._trial_id, worker):
                config = study.space.suggest(trial)
                trial.set_user_attr("configuration", config.model_dump(mode="json"))
                trial.set_user_attr("attempts", claim.attempt)
            for rung in range(1, RUNGS + 1):
                with ledger.held(trial._trial_id, worker):
                    trial.report(worth(config, rung), rung)
                    if rung < RUNGS and trial.should_prune():
                        state = TrialState.PRUNED
                        break
            with ledger.held(trial._trial_id, worker):
                found.tell(
                    trial, 3 - 0.1 * RUNGS + config.dropout if state == TrialState.COMPLETE else None, state=state
                )
            yield


def plain(url: str, study: Study, worker: str) -> Iterator[None]:
    """The same with Optuna alone."""
    with open_storage(url) as storage:
        found = optuna.load_study(study_name=study.name, storage=storage)
        found.sampler = search.sampler(study.sampler, study.space, stream=hash(worker) % 1000)
        found.pruner = search.pruner(study.pruner, RUNGS)
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


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """A PostgreSQL: the one given, or an embedded one that is gone afterwards."""
    if url is not None:
        yield url
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        folder.chmod(0o755)
        address = stack.enter_context(attached(folder / "data"))
        yield f"postgresql://{address['username']}@/{address['database']}?host={quote(address['host'])}"


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
            found = _enter(storage, study)
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
