"""Publishes to Optuna's dashboard what it lacks while studies run: figures, notes, and the best trial within limits.

Figures are written into the database. Notes are not: they are made when a page asks for them, and inserted into what
optuna-dashboard is about to send. So workers pay nothing for them, none is ever out of date, no user's text is lost,
and a study of 10,000 trials is not read anew with all of its notes at every glance.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import save_plotly_graph_object
from psycopg2.errors import InsufficientPrivilege, ReadOnlySqlTransaction

from models.safe_text.markdown import code
from tuner.optuna_internals import cached, dashboard_replaced, study_id
from tuner.results import queries
from tuner.results.analysis import importance_hints
from tuner.results.companions import CONFIRMS
from tuner.results.summary import Row, front, leaderboard
from tuner.storage.leases import Counts
from tuner.storage.outages import is_outage
from tuner.storage.ownership import KEY
from tuner.study.definition import Study, is_ours, renamed
from tuner.watch import notes, plots

if TYPE_CHECKING:
    from tuner.optuna_internals import FrozenStudy

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 5.0
"""How often studies are looked after."""

REDRAWN_SECONDS = 20.0
"""How often figures are drawn again for trials that were not completed: there may be many, and each adds little."""

LONGEST_FACT = 120
"""Characters of a fact about a trial up to which the dashboard shows it as an attribute."""

OURS = ("study", KEY, "confirmation", CONFIRMS)
"""Attributes of a study that are JSON for programs; the note and the report show the same in words."""

Document = dict[str, Any]


@dataclass
class _Known:
    """What was made of a study the last time, and what its trials were then."""

    study: optuna.Study
    counts: Counts | None = None
    drawn: Counts = field(default_factory=Counts)
    drawn_at: float = -math.inf
    board: list[FrozenTrial] | None = None
    importance: list[str] = field(default_factory=list)
    note: str = ""

    def is_to_be_drawn(self, counts: Counts) -> bool:
        """Whether the figures lack a completed trial, or for some time another one that ended."""
        if counts.complete != self.drawn.complete:
            return True
        ended = (counts.pruned, counts.fail) != (self.drawn.pruned, self.drawn.fail)
        return ended and time.monotonic() - self.drawn_at > REDRAWN_SECONDS


class Publisher(threading.Thread):
    """Looks after all studies of the tuner, in the dashboard's process, so that no worker has to."""

    def __init__(
        self,
        storage: RDBStorage,
        figures: Callable[[Study, list[FrozenTrial]], dict[str, Any]] = plots.dashboard_figures,
        save_figure: Callable[..., object] = save_plotly_graph_object,
    ) -> None:
        super().__init__(name="publisher", daemon=True)
        self.storage, self.figures, self.save_figure = storage, figures, save_figure
        self.trials = cached(storage)
        self.ended = threading.Event()
        self.known: dict[int, _Known] = {}
        self.may_write = True

    def run(self) -> None:
        with self.shown():
            while not self.ended.is_set():
                try:
                    self.publish()
                except Exception as error:
                    if not is_outage(error):
                        raise
                self.ended.wait(PUBLISH_SECONDS)

    def publish(self) -> None:
        """Looks at all studies, and at the trials of those in which one has ended since the last time."""
        rows = {row.study_id: row for row in queries.all_rows(self.storage)}
        self.known = {number: known for number, known in self.known.items() if number in rows}
        for number, row in rows.items():
            try:
                self._publish_one(row)
            except KeyError:  # a study that was deleted in this moment
                self.known.pop(number, None)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Lets the dashboard of this process send what it would, with what we know."""
        with dashboard_replaced(self.detail, self._trials):
            yield

    def _trials(self, get_trials: Callable[..., list[FrozenTrial]], cache: Any, storage: Any, study: int) -> Any:
        """What the dashboard sends of trials; it would read all of them every ten seconds, those of old, too."""
        return [_presentable(trial) for trial in get_trials(cache, self.trials, study)]

    def detail(
        self,
        serialize: Callable[..., Document],
        study: FrozenStudy,
        best: Sequence[FrozenTrial],
        trials: Sequence[FrozenTrial],
        *more: Any,
    ) -> Document:
        """Returns what the dashboard sends of a study, with notes, and with the best trials that keep the limits."""
        if not is_ours(study.user_attrs):
            return serialize(study, best, trials, *more)
        known = self.known.get(study_id(study))
        best = best if known is None or known.board is None else _best(known.board, len(study.directions))
        document = serialize(study, best, trials, *more)
        if known is not None:
            document["note"]["body"] = notes.joined(document["note"]["body"], known.note)
        document["user_attrs"] = [fact for fact in document["user_attrs"] if fact["key"] not in OURS]
        definition = renamed(queries.definition(json.dumps(study.user_attrs["study"])), study.study_name)
        for trial, sent in [
            *zip(trials, document["trials"], strict=True),
            *zip(best, document["best_trials"], strict=True),
        ]:
            _complete(definition, trial, sent)
        return document

    def _publish_one(self, row: Row) -> None:
        known = self.known.get(row.study_id) or _Known(self._study(row))
        to_be_drawn = known.is_to_be_drawn(row.counts)
        if known.board is None or known.counts != row.counts or to_be_drawn:  # counting is cheap, reading trials is not
            trials = known.study.get_trials(deepcopy=False)
            known.board, known.counts = leaderboard(trials), row.counts
            known.importance = importance_hints(row.study, trials, code)
            if to_be_drawn:
                self._draw(known.study, row.study, trials)
                known.drawn, known.drawn_at = row.counts, time.monotonic()
        known.note = notes.study_note(row, known.board, known.importance)
        self.known[row.study_id] = known

    def _study(self, row: Row) -> optuna.Study:
        name = self.storage.get_study_name_from_id(row.study_id)  # a study can be renamed in the dashboard
        return optuna.load_study(study_name=name, storage=self.trials)

    def _draw(self, study: optuna.Study, definition: Study, trials: list[FrozenTrial]) -> None:
        if not self.may_write:
            return
        try:
            for name, figure in self.figures(definition, trials).items():
                self.save_figure(study, figure, graph_object_id=name)
        except Exception as error:
            if not _is_refused(error):
                raise
            self.may_write = False
            logger.warning("The dashboard may not write to this database: figures are not drawn.")


def _presentable(trial: FrozenTrial) -> FrozenTrial:
    """A trial as the dashboard can show it: of one that was told to be complete without a number it shows nothing."""
    values, is_complete = trial.values or [], trial.state == TrialState.COMPLETE
    if not any(map(math.isnan, values)) and (values or not is_complete):
        return trial
    shown = copy.copy(trial)
    shown.state, shown.values = TrialState.FAIL, None
    return shown


def _best(board: list[FrozenTrial], objectives: int) -> list[FrozenTrial]:
    return front(board) if objectives > 1 else board[:1]


def _complete(definition: Study, trial: FrozenTrial, sent: Document) -> None:
    """Completes what is sent of a trial; the dashboard knows constraints by an older attribute of Optuna's alone.

    Long facts, such as the whole configuration, are in the note; as attributes they make a page of many screens' width.
    """
    sent["note"]["body"] = notes.joined(sent["note"]["body"], notes.trial_note(definition, trial))
    sent["constraints"] = list(trial.constraints.values())
    sent["user_attrs"] = [fact for fact in sent["user_attrs"] if len(fact["value"]) <= LONGEST_FACT]


def _is_refused(error: BaseException | None) -> bool:
    """Whether an error says that this user may only read."""
    while error is not None:
        if isinstance(getattr(error, "orig", None), InsufficientPrivilege | ReadOnlySqlTransaction):
            return True
        error = error.__cause__
    return False
