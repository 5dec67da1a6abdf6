"""What watching a large study costs: the terminal, the dashboard, the publisher, and the workers meanwhile.

    python benchmarks/watching.py                                           (some minutes)
    python benchmarks/watching.py --tree ../earlier --stored-notes          (another checkout, with its kind of notes)

A study is filled with trials, with curves, facts and texts as workers leave them; a smaller one stands beside it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from filling import fill, server, study_of
from machine import show
from optuna.storages import RDBStorage
from sqlalchemy import text
from storage import measure, ours

from tuner.control.create import enter
from tuner.storage.connection import open_storage
from tuner.study.definition import Study

NOTE = "| measure | this model | people |\n|---|---|---|\n" + "| a measure | 0.1234 | 0.1234 |\n" * 9 + "a text " * 150

PUBLISH = """
import sys, time, optuna
from optuna.trial import TrialState
from tuner.dashboard.publisher import Publisher
from tuner.storage.connection import open_storage
with open_storage(sys.argv[1]) as storage:
    publisher = Publisher(storage)
    study = optuna.load_study(study_name=sys.argv[2], storage=storage)
    for change in (False, *[False] * 5, *[True] * 5):
        if change:
            study.add_trial(optuna.trial.create_trial(value=3.0))
        begin = time.perf_counter()
        publisher.publish()
        print(time.perf_counter() - begin)
"""


class Tree:
    """A checkout whose commands are measured on a database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.environment = os.environ | {"PYTHONPATH": str(folder), "TUNER_STORAGE": url, "PYTHONUNBUFFERED": "1"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tuner", *arguments]

    def run(self, *arguments: str) -> None:
        subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, check=True, stdout=subprocess.DEVNULL
        )

    @contextmanager
    def dashboard(self, name: str) -> Iterator[str]:
        """A dashboard, by the address of its study in its interface."""
        command = self.command("dashboard", name, "--port", "8519")
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            number = re.search(r"studies/(\d+)", process.stdout.readline())
            assert number is not None
            time.sleep(15)  # the publisher's first round
            yield f"http://127.0.0.1:8519/api/studies/{number[1]}"
            process.terminate()

    def publisher_rounds(self, name: str) -> list[float]:
        """Seconds of the first round, of five in which nothing has changed, and of five after a trial has ended."""
        command = [sys.executable, "-c", PUBLISH, self.url, name]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, check=True, capture_output=True, text=True
        )
        return [float(line) for line in done.stdout.split()]


def timed(action: Callable[[], object], times: int) -> float:
    """The median of several times, in milliseconds."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return 1000 * median(taken)


def get(address: str) -> int:
    """Fetches a page and returns its bytes."""
    with urllib.request.urlopen(address, timeout=600) as answer:
        return len(answer.read())


def store_notes(storage: RDBStorage, study: int) -> None:
    """Writes notes of the completed trials into the study, as workers once did."""
    statement = (
        "INSERT INTO study_system_attributes (study_id, key, value_json)"
        " SELECT study_id, 'dashboard:' || trial_id || :key, :value FROM trials"
        " WHERE study_id = :study AND CAST(state AS text) = 'COMPLETE'"
    )
    with storage.engine.begin() as connection:
        for key, value in ((":note_ver", "1"), (":note_str:0", '"' + NOTE.replace("\n", "\\n") + '"')):
            connection.execute(text(statement), {"key": key, "value": value, "study": study})


@contextmanager
def watched(tree: Tree, name: str, page: str) -> Iterator[None]:
    """Keeps the page open and `tuner status` in a loop while the block runs."""
    ended = threading.Event()

    def again(action: Callable[[], object]) -> None:
        while not ended.wait(2.0):
            action()

    actions = [lambda: get(f"{page}?after=0"), lambda: tree.run("status", name)]
    threads = [threading.Thread(target=again, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        thread.join()


def meanwhile(url: str, study: Study, worker: str) -> Iterator[None]:
    """As `ours`, by a worker of another name."""
    return ours(url, study, f"{worker}-meanwhile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", help="postgresql://...; its database is written to")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="the checkout that is measured")
    parser.add_argument("--stored-notes", action="store_true", help="with notes of completed trials in the database")
    parser.add_argument("--repeated", type=int, default=5, help="each number is the median of this many")
    wanted = parser.parse_args()
    times = wanted.repeated
    rows: list[dict[str, object]] = []

    def tell(what: str, milliseconds: float, size: int | None = None) -> None:
        rows.append({"what": what, "ms": round(milliseconds), "kB": "" if size is None else size // 1000})
        print(rows[-1], file=sys.stderr)

    with server(wanted.storage) as url, open_storage(url) as storage:
        studies = {f"watched-{size}": size for size in (wanted.trials, wanted.trials // 10)}
        for name, size in studies.items():
            study = study_of(name)
            found = enter(storage, study).optuna_study
            fill(storage, found, study, size, facts=True, different=100)
            if wanted.stored_notes:
                store_notes(storage, found._study_id)
        name = next(iter(studies))
        with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
        tree = Tree(wanted.tree.resolve(), url)
        tell("tuner --help", timed(lambda: tree.run("--help"), times))
        tell("tuner status", timed(lambda: tree.run("status"), times))
        tell("tuner status STUDY", timed(lambda: tree.run("status", name), times))
        rounds = [1000 * seconds for seconds in tree.publisher_rounds(name)]
        tell("publisher, first round", rounds[0])
        tell("publisher, nothing new", median(rounds[1:6]))
        tell("publisher, a trial has ended", median(rounds[6:]))
        with tree.dashboard(name) as page:
            tell(
                "dashboard, list of studies",
                timed(lambda: get(page.rpartition("/")[0]), times),
                get(page.rpartition("/")[0]),
            )
            tell("dashboard, study, first time", timed(lambda: get(page), 1))
            tell("dashboard, study", timed(lambda: get(page), times), get(page))
            after = f"{page}?after={wanted.trials}"
            tell("dashboard, study, next look of an open page", timed(lambda: get(after), times), get(after))
            study = study_of(name)
            tell("a worker's trial, unwatched", 1000 * median(measure(ours, url, study, 1, 12)))
            with watched(tree, name, page):
                tell(
                    "a worker's trial, page and status in a loop", 1000 * median(measure(meanwhile, url, study, 1, 12))
                )
    show(rows)


if __name__ == "__main__":
    main()
