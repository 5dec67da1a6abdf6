"""Shows running studies: as a live view in a terminal, as plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import optuna
from optuna.storages import RDBStorage
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from models.safe_text import terminal
from models.wording import counted, duration
from tuner.results import queries
from tuner.results.confirmation import lines
from tuner.results.summary import Row, Snapshot, quality
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import RUNNING
from tuner.storage.outages import is_outage
from tuner.watch import tables
from tuner.watch.tables import configured, described, progress

logger = logging.getLogger(__name__)

PLAIN_SECONDS = 30.0
"""How often plain output says how far a study is, when no trial ends."""

BOARD_ROWS = 5
"""Trials on a board, unless there are two objectives."""

REDRAW_SECONDS = 2.0
"""Seconds between two looks of a command that only watches."""

AWAY = "the database is away; waiting for it"


class View:
    """What is looked at again and again, and goes on when the database was away."""

    def __init__(self, transient: bool) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.live = Live(
            console=self.console,
            auto_refresh=False,
            transient=transient,
            redirect_stderr=sys.stderr.isatty(),  # what is logged stands above the view, unless it goes to a file
        )
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.away = False

    def __enter__(self) -> Self:
        if self.is_live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_live:
            self.live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the live view; in a terminal a long one is broken between words."""
        self.console.print(terminal.lines(text), soft_wrap=not self.is_live)

    def look(self) -> bool:
        """Looks once and shows what is there; returns False when the database is away."""
        there = survives_outages(self.show)
        if there is self.away:
            self.away = not there
            self.say("the database is back" if there else AWAY)
        return there

    def show(self) -> None:
        """Reads what is watched and shows it."""
        raise NotImplementedError


class Watcher(View):
    """Looks at a study now and then and says what is new; with a `board`, shows the best trials, too."""

    def __init__(self, study: StudyHandle, board: bool = False, plain_seconds: float = PLAIN_SECONDS) -> None:
        super().__init__(transient=not board)
        self.study, self.board, self.plain_seconds = study, board, plain_seconds
        self.shown = queries.ended(study)
        self.spoke = -plain_seconds if board else time.monotonic()
        self.requested = RUNNING
        self.last: Snapshot | None = None

    def show(self) -> None:
        self.last = now = queries.in_short(self.study, BOARD_ROWS)
        if now.study.name != self.study.name:
            self.say(f"study {self.study.name} is now called {now.study.name}")
            self.study.rename(now.study.name)
        self._tell_finished(now)
        if now.requested != self.requested:
            self.requested = now.requested
            self.say(f"the study is {now.state}{f'. {now.next_step}' if now.next_step else ''}")
        if self.is_live:
            self.live.update(self._view(now), refresh=True)
        elif time.monotonic() - self.spoke > self.plain_seconds:
            self.say(_line(now))
            self.spoke = time.monotonic()

    def _view(self, now: Snapshot) -> RenderableType:
        return Group(progress(now), Text(""), *details(self.study.optuna_study, now)) if self.board else progress(now)

    def _tell_finished(self, now: Snapshot) -> None:
        fresh = queries.ended(self.study) - self.shown
        trials = [self.study.storage.get_trial(trial_id) for trial_id in fresh]
        self.shown |= fresh
        for trial in sorted(trials, key=lambda one: (one.datetime_complete is None, one.datetime_complete)):
            self.say(described(trial, now.study, now.best))
            self.spoke = time.monotonic()


class Unseen(View):
    """Looks at a study that runs in the background; what would be printed is logged."""

    def __init__(self, study: StudyHandle) -> None:
        super().__init__(transient=True)
        self.is_live = False
        self.study = study

    def say(self, text: str) -> None:
        logger.info("%s", text)

    def show(self) -> None:
        self.study.rename(self.study.leases.name())


class StudiesWatcher(View):
    """Looks at all studies now and then; where there is no terminal, prints those that have changed."""

    def __init__(self, storage: RDBStorage) -> None:
        super().__init__(transient=False)
        self.storage = storage
        self.shown: dict[str, str] = {}

    def show(self) -> None:
        rows = queries.rows(self.storage)
        if self.is_live:
            self.live.update(tables.studies_table(rows), refresh=True)
            return
        for row in rows:
            line = _row_line(row)
            if self.shown.get(row.study.name) != line:
                self.shown[row.study.name] = line
                self.say(line)


def details(found: optuna.Study, now: Snapshot) -> list[RenderableType]:
    """What is shown of a study below its progress: its best trials and what a confirmation found."""
    confirmed = found.user_attrs.get("confirmation")
    found_out = [] if confirmed is None else [Text("\n" + terminal.lines("\n".join(lines(confirmed))))]
    return [tables.leaderboard_table(now), *found_out]


def survives_outages(look: Callable[[], object]) -> bool:
    """Looks once; returns False when the database is away."""
    try:
        look()
    except Exception as error:
        if not is_outage(error):
            raise
        return False
    return True


def follow(look: Callable[[], object], requested: threading.Event) -> None:
    """Looks again and again until that is no longer wanted."""
    while not requested.is_set():
        look()
        requested.wait(REDRAW_SECONDS)


def _line(now: Snapshot) -> str:
    left = "" if now.seconds_left is None else f", about {duration(now.seconds_left)} left"
    best = ""
    if now.best is not None:
        best = f", best {quality(now.best):.4f} ({configured(now.best)})"
    return f"{now.done} trials finished, {counted(len(now.workers), 'worker')}{left}{best}"


def _row_line(row: Row) -> str:
    best = "" if row.best is None else f", best {row.best:.4f} in trial {row.best_trial}"
    finished = f"{row.done} trials finished, {row.counts.fail} failed"
    return f"{row.study.name}: {row.state}, {finished}, {counted(len(row.workers), 'worker')}{best}"
