"""Shows a study while it runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import optuna
from optuna.storages import RDBStorage
from rich.console import Console
from rich.live import Live

from tuner.courier import is_outage
from tuner.ledger import RUNNING
from tuner.report import Snapshot, configured, described, duration, progress, quality, snapshot
from tuner.study import Study

PLAIN_SECONDS = 30.0
"""How often plain output says how far the study is, when no trial ends."""


class Watcher:
    """Looks at a study now and then and says what is new."""

    def __init__(self, storage: RDBStorage, found: optuna.Study, study: Study) -> None:
        self.storage, self.found, self.study = storage, found, study
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.told = {trial.number for trial in found.get_trials(deepcopy=False) if trial.state.is_finished()}
        self.spoke = time.monotonic()
        self.state = RUNNING

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the live view."""
        self.console.print(text, soft_wrap=True)

    def look(self) -> bool:
        """Reads the study and shows it; returns False when the database is away."""
        try:
            now = snapshot(self.storage, self.found, self.study)
        except Exception as error:
            if not is_outage(error):
                raise
            return False
        self._tell_finished(now)
        if now.state != self.state:
            self.state = now.state
            self.say(f"the study is {now.state}")
        if self.live:
            self.live.update(progress(now), refresh=True)
        elif time.monotonic() - self.spoke > PLAIN_SECONDS:
            self.say(_line(now))
            self.spoke = time.monotonic()
        return True

    def _tell_finished(self, now: Snapshot) -> None:
        fresh = [trial for trial in now.trials if trial.state.is_finished() and trial.number not in self.told]
        for trial in sorted(fresh, key=lambda one: (one.datetime_complete is None, one.datetime_complete)):
            self.told.add(trial.number)
            self.say(described(trial, self.study, now.best))
            self.spoke = time.monotonic()


def _line(now: Snapshot) -> str:
    total = "" if now.study.trials is None else f"/{now.study.trials}"
    left = "" if now.seconds_left is None else f", about {duration(now.seconds_left)} left"
    best = ""
    if now.best is not None:
        best = f", best {quality(now.best):.4f} ({configured(now.best)})"
    return f"{now.counts.finished}{total} trials finished, {len(now.workers)} workers{left}{best}"
