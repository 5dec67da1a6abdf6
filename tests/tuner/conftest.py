"""What the tests of the tuner share: one real PostgreSQL, small studies, and an objective that trains nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import optuna
import psycopg2
import pytest
from optuna.storages import RDBStorage

from models.config import Config
from models.training.loop import Evaluation, Training
from models.training.stopping import Stopped
from tuner.control import create
from tuner.storage.connection import open_storage
from tuner.storage.embedded import attached
from tuner.storage.handle import StudyHandle
from tuner.study.definition import Study, parse_study
from tuner.study.multi_objective import Tuned
from tuner.trials.objective import Outcome, TrialObserver
from tuner.workers.supervisor_watch import Lifeline
from tuner.workers.worker import Worker, WorkerTimings

WRITTEN: dict[str, Any] = {"configuration": {}, "threads": 1}
"""Facts that a worker has always written down before it completes a trial; without them its end is nobody's."""

TEXT = "".join(f"{number} times {number} is {number * number}, as everybody knows.\n" for number in range(400))
PARAMETERS: dict[str, Any] = {
    "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
    "architecture": {"type": "categorical", "choices": ["rnn", "gru"]},
    "hidden_size": 8,
    "batch_size": 8,
    "sequence_length": 16,
}


@pytest.fixture(scope="session")
def data_folder() -> Iterator[Path]:
    """Of a server that runs as long as the tests do, in a place that the server's user can enter."""
    fast = os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30
    place = Path(tempfile.mkdtemp(prefix="tuner-", dir="/dev/shm" if fast else "/tmp"))
    place.chmod(0o755)
    with attached(place / "data"):
        yield place / "data"
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def storage(data_folder: Path) -> Iterator[RDBStorage]:
    with open_storage(None, data_folder) as opened:
        yield opened


@pytest.fixture(scope="session")
def ask(data_folder: Path) -> Iterator[Callable[[str], Any]]:
    """Asks the server something on a connection that nobody else uses."""
    with attached(data_folder) as address:
        connection = psycopg2.connect(host=address["host"], user=address["username"], dbname=address["database"])
        connection.autocommit = True
        with closing(connection), connection.cursor() as cursor:

            def ask(question: str) -> Any:
                cursor.execute(question)
                return cursor.fetchone()[0] if cursor.description else None

            yield ask


@pytest.fixture
def fresh_url(ask: Callable[[str], Any], data_folder: Path) -> Iterator[str]:
    """Of a database without a table."""
    ask("create database fresh")
    with attached(data_folder) as address:
        yield f"postgresql://tuner@/fresh?host={quote(address['host'])}"
    ask("drop database fresh with (force)")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 15 kB, read in no time."""
    path = tmp_path_factory.mktemp("text") / "squares.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def small(text_file: Path) -> Callable[..., Study]:
    """Makes small studies, by default of six trials of three rungs: small(trials=6, parameters={...}, **sections)."""
    made: list[Study] = []

    def make(trials: int | None = 6, **sections: Any) -> Study:
        values = {
            "name": f"small-{len(made)}",
            "corpus": {"path": str(text_file)},
            "trial": {"tokens": 4_096, "rungs": 3},
            "budget": {"trials": trials},
            "sampler": {"type": "random", "seed": 1},
            "parameters": PARAMETERS,
        }
        made.append(parse_study(json.dumps(values | sections), "small.yaml", "small"))
        return made[-1]

    return make


def complete(study: optuna.Study, trial: optuna.Trial, value: float | Sequence[float]) -> None:
    """Ends a trial as a worker does: its facts first."""
    for name, fact in WRITTEN.items():
        trial.set_user_attr(name, fact)
    study.tell(trial, value)


@pytest.fixture(scope="session")
def enter(storage: RDBStorage) -> Callable[[Study], optuna.Study]:
    """Puts a study into the database, as `tuner run` does."""
    return lambda study: create.enter(storage, study).optuna_study


class Following(TrialObserver):
    """Does something at each step, before its own observer hears of it; the other calls are the observer's."""

    def __init__(self, observer: TrialObserver, do: Callable[[Training], None]) -> None:
        self.observer, self.do = observer, do
        for name in ("on_scoring_batch", "on_evaluation", "on_writing", "stop_requested"):
            setattr(self, name, getattr(observer, name))

    def on_step(self, training: Training) -> None:
        self.do(training)
        self.observer.on_step(training)


class Instant:
    """An objective that trains nothing: rung r of a trial is worth `score(number, config, r)`."""

    device = "cpu"

    def __init__(self, study: Study, folder: Path, score: Callable[[int, Config, int], float]) -> None:
        self.rungs, self.folder, self.score = study.trial.rungs, folder, score
        self.calls: list[tuple[int, int]] = []
        self.saved: list[int] = []

    def __call__(
        self,
        number: int,
        attempt: int,
        config: Config,
        observer: TrialObserver,
    ) -> Outcome:
        self.calls.append((number, attempt))
        value = 0.0
        for rung in range(1, self.rungs + 1):
            part = rung / self.rungs
            training = SimpleNamespace(config=config, tokens=rung, seconds=1.0, progress=part, steps_next=False)
            observer.on_step(training)  # type: ignore[arg-type]
            if observer.stop_requested():
                self.saved.append(number)
                raise Stopped
            value = self.score(number, config, rung)
            observer.on_evaluation(Evaluation(rung, rung, 1.0, value, value, value, value))
        return Outcome([value], config, {"threads": 1}, [], None)

    def require_fit(self, config: Config) -> None:
        pass

    def forget(self, number: int, attempts: int) -> None:
        pass

    def forget_run(self, number: int) -> None:
        pass


class Heard(logging.Handler):
    """Keeps what the tuner and its models log, while the block runs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []
        self.loggers = [logging.getLogger(name) for name in ("tuner", "models")]
        self.levels = [logger.level for logger in self.loggers]

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def __enter__(self) -> list[str]:
        for logger in self.loggers:
            logger.addHandler(self)
            logger.setLevel(logging.INFO)
        return self.said

    def __exit__(self, *exception: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.removeHandler(self)
            logger.setLevel(level)


class WorkerOptions:
    """Workers in threads of this process, each with connections of its own."""

    def __init__(self, data_folder: Path, folder: Path, said: Sequence[str] = ()) -> None:
        self.data_folder, self.folder, self.said = data_folder, folder, said
        self.timings = WorkerTimings(poll=0.01)
        self.lifeline = Lifeline()
        self.requested = threading.Event()

    def worker(self, stack: ExitStack, study: Study, score: Any, worker_id: str = "one") -> Worker:
        """A worker with an objective: a function for an instant one, or the objective itself."""
        storage = stack.enter_context(open_storage(None, self.data_folder))
        found = Tuned(study.name, storage)
        objective = Instant(study, self.folder, score) if isinstance(score, type(lambda: 0)) else score  # type: ignore[arg-type]
        handle = StudyHandle(storage, found, study)
        return Worker(handle, objective, 1, self.requested, worker_id, self.lifeline, self.timings)  # type: ignore[arg-type]

    def work(self, study: Study, score: Any, workers: int = 1) -> list[str]:
        """Lets workers work until each has stopped; returns why each did, or raises what one raised."""
        ends: list[Any] = [None] * workers

        def run(index: int, worker: Worker) -> None:
            try:
                ends[index] = worker.run()
            except BaseException as error:
                ends[index] = error

        with ExitStack() as stack:
            crew = [self.worker(stack, study, score, f"{study.name}-{index}") for index in range(workers)]
            threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(crew)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(90)
                assert not thread.is_alive()
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        return ends


@pytest.fixture
def crew(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerOptions]:
    monkeypatch.setattr(Worker, "_collect_garbage", lambda worker: None)  # slow here, and nothing is big
    with Heard() as said:
        yield WorkerOptions(data_folder, tmp_path / "artifacts", said)
