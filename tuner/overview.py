"""All studies at a glance: counted by the database, without reading a trial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sql
from optuna.storages import RDBStorage

from tuner.ledger import RUNNING, Ledger
from tuner.report import Snapshot
from tuner.study import Study, stored_study

# Optuna's tables
_studies = sql.table("studies", sql.column("study_id"), sql.column("study_name"))
_facts = sql.table("study_user_attributes", sql.column("study_id"), sql.column("key"), sql.column("value_json"))
_trials = sql.table("trials", sql.column("trial_id"), sql.column("study_id"), sql.column("state"))
_values = sql.table("trial_values", sql.column("trial_id"), sql.column("objective"), sql.column("value"))
_marks = sql.table("trial_system_attributes", sql.column("trial_id"), sql.column("key"), sql.column("value_json"))


@dataclass(frozen=True)
class Glance:
    """A study at one moment; `now` holds no trials, and `best` is the bits per byte of the best feasible one."""

    study_id: int
    name: str
    now: Snapshot
    best: float | None

    @property
    def state(self) -> str:
        """What was asked of the study, or that its budget is spent."""
        return "finished" if self.now.state == RUNNING and self.now.spent >= 1 else self.now.state


def glances(storage: RDBStorage) -> list[Glance]:
    """Returns all studies of the tuner, confirmations too, by name."""
    with storage.engine.begin() as connection:
        ours = sql.select(_studies.c.study_id, _studies.c.study_name, _facts.c.value_json).join_from(
            _studies, _facts, (_facts.c.study_id == _studies.c.study_id) & (_facts.c.key == "study")
        )
        found = connection.execute(ours.order_by(_studies.c.study_name)).all()
        best = {row.study_id: float(row.best) for row in connection.execute(_best())}
    return [Glance(row[0], row[1], _now(storage, row[0], _study(row[2])), best.get(row[0])) for row in found]


def _now(storage: RDBStorage, study_id: int, study: Study) -> Snapshot:
    ledger = Ledger(storage, study_id)
    return Snapshot(
        study=study,
        counts=ledger.counts(),
        best=None,
        workers=ledger.alive(),
        active_seconds=ledger.active_seconds(),
        trials=[],
        state=ledger.state(),
    )


@lru_cache(maxsize=1000)
def _study(stored: str) -> Study:
    return stored_study(json.loads(stored))


def _best() -> sql.Select[tuple[int, float]]:
    """The lowest first value of the completed trials of each study that keep within all limits."""
    exceeds = sql.exists().where(
        _marks.c.trial_id == _trials.c.trial_id,
        _marks.c.key.like("constraints:%"),
        sql.cast(_marks.c.value_json, sql.Float) > 0,
    )
    lowest = sql.select(_trials.c.study_id, sql.func.min(_values.c.value).label("best"))
    joined = lowest.join_from(_trials, _values, _values.c.trial_id == _trials.c.trial_id)
    complete = sql.cast(_trials.c.state, sql.Text) == "COMPLETE"
    return joined.where(complete, _values.c.objective == 0, ~exceeds).group_by(_trials.c.study_id)


def searches(storage: RDBStorage) -> Iterator[Glance]:
    """Yields the studies that search, which confirmations of others do not."""
    yield from (glance for glance in glances(storage) if glance.now.study.confirms is None)
