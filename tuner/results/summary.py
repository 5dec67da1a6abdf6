"""Summary of a study: status, leaderboard, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from optuna.trial import FrozenTrial, TrialState

from models.wording import counted
from tuner.errors import StudyError
from tuner.results import companions, states
from tuner.results.states import Companion
from tuner.storage.blocking import Blockage
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import RUNNING, Counts, Worker, has_failed
from tuner.study.definition import Study
from tuner.study.facts import ended_by_no_worker, is_result

Entry = TypeVar("Entry")

NO_WORKER = "no worker wrote this end"
"""What is said of a trial that was ended from outside, as by Optuna's `tell`: it is no result."""

FAILED_SHOWN = 5
"""Failed trials that are named without being asked for."""


@dataclass(frozen=True)
class Standing:
    """How far a study is, as its books say."""

    study: Study
    counts: Counts
    workers: list[Worker]
    active_seconds: float
    requested: str = RUNNING
    """What a person last asked of it: running, paused or stopped."""
    blocked: Blockage | None = None
    external: int = 0
    """Trials that were completed by another program than a worker; they do not compete."""
    """Trials that are complete though no worker wrote so."""
    unfit: int = 0
    """Trials that were ended because they do not fit in memory or in the study's limits; they count as pruned, too."""
    forgiven: int = 0
    """Trials that had failed when the study was last resumed."""
    trial_seconds: float | None = None
    """How long a trial takes on average, where that is known."""
    companion: Companion | None = None
    """Its confirmation, if there is one."""
    best: FrozenTrial | float | None = field(default=None, kw_only=True)

    @property
    def spent(self) -> float:
        """The part of the budget that is spent, 0 to 1."""
        parts = [0.0]
        if self.study.trials is not None:
            parts.append(self.counts.finished / self.study.trials)
        if self.study.budget.hours is not None:
            parts.append(self.active_seconds / (3600 * self.study.budget.hours))
        return min(max(parts), 1.0)

    @property
    def facts(self) -> states.Facts:
        """What its state follows from."""
        queue_is_done = self.study.confirms is not None and not self.counts.unfinished
        return states.Facts(
            self.requested,
            len(self.workers),
            is_spent=self.spent >= 1 or queue_is_done,
            has_failed=has_failed(self.counts, self.forgiven),
            has_best=self.best is not None,
            companion=self.companion,
        )

    @property
    def state(self) -> str:
        """In one word, one of `states.STATES`, what the study is doing."""
        return states.state(self.facts)

    @property
    def next_step(self) -> states.Step | None:
        """What a person can do next; None where there is only to wait."""
        if self.study.confirms is not None and self.state == states.FINISHED:
            return None
        return states.next_step(self.study.name, self.facts)

    @property
    def done(self) -> str:
        """How many trials are finished of how many: 5/20, or 24 (of 20 asked for) when the budget was lowered."""
        finished, trials = self.counts.finished, self.study.trials
        if trials is None or finished <= trials:
            return f"{finished}" if trials is None else f"{finished}/{trials}"
        return f"{finished} ({trials} asked for)"

    @property
    def pruned(self) -> int:
        """The trials that the pruner ended, or that diverged: those that did not fit are counted apart."""
        return self.counts.pruned - self.unfit

    @property
    def seconds_left(self) -> float | None:
        """A guess from what a trial takes, or what is left of the hours; None before a trial ended or without workers.

        What was already spent says little after a resumption: other workers, and trials that were half done.
        """
        if self.state != RUNNING or self.spent >= 1:
            return None
        hours, guesses = self.study.budget.hours, []
        if self.study.trials is not None and self.trial_seconds is not None:
            begun = sum(worker.progress or 0.0 for worker in self.workers)
            left = max(self.study.trials - self.counts.finished - begun, 0.0)
            guesses.append(self.trial_seconds * left / min(len(self.workers), max(left, 1.0)))
        if hours is not None and self.counts.finished:
            guesses.append(3600 * hours - self.active_seconds)
        return min(guesses, default=None)


@dataclass(frozen=True, kw_only=True)
class Snapshot(Standing):
    """A study at one moment, with its trials."""

    best: FrozenTrial | None
    trials: list[FrozenTrial]
    infeasible: int = 0


@dataclass(frozen=True, kw_only=True)
class Row(Standing):
    """A study at one moment, as one row among all studies."""

    study_id: int
    confirmation: dict[str, Any] | None = None
    best: float | None
    best_trial: int | None


def snapshot(study: StudyHandle) -> Snapshot:
    """Reads the study's state; finished trials are read from the database once."""
    leases, trials = study.leases, study.trials()
    with study.storage.engine.begin() as connection:
        line, counts, workers = leases.line(connection), leases.counts(connection), leases.alive(connection)
        trial_seconds = leases.trial_seconds(connection)
        companion = companions.companion_of(study.storage, study.id, connection)
    board, external = leaderboard(trials), sum(map(ended_by_no_worker, trials))
    return Snapshot(
        study.definition,
        counts,
        workers,
        line.active_seconds,
        line.state,
        forgiven=line.forgiven,
        unfit=sum(trial.state == TrialState.PRUNED and not is_feasible(trial) for trial in trials),
        trial_seconds=trial_seconds,
        companion=companion,
        best=board[0] if board else None,
        trials=trials,
        infeasible=sum(trial.state == TrialState.COMPLETE for trial in trials) - external - len(board),
        external=external,
    )


def current(study: StudyHandle) -> Snapshot:
    """Reads the study's state, and its definition too: its budget and its name may have been changed since.

    Raises Gone when it was deleted.
    """
    study.rename(study.leases.name())
    return snapshot(study.stored())


def leaderboard(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials that workers completed and that keep the study's limits, the best one first."""
    good = [trial for trial in trials if is_result(trial) and is_feasible(trial)]
    return sorted(good, key=lambda trial: (quality(trial), trial.number))


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps the study's limits, as far as is known."""
    return not excess(trial)


def excess(trial: FrozenTrial) -> dict[str, float]:
    """Returns by how much of itself each limit is exceeded (`limits.mark`), those that are."""
    return {name: by for name, by in trial.constraints.items() if isinstance(by, int | float) and by > 0}


def require_board(trials: Sequence[FrozenTrial], study_name: str) -> list[FrozenTrial]:
    """Returns the leaderboard. Raises StudyError when nothing is on it."""
    board = leaderboard(trials)
    if board:
        return board
    complete = sum(map(is_result, trials))
    if complete:
        raise StudyError(
            f"study {study_name} has {counted(complete, 'completed trial')}, but none that keeps its limits; "
            f"raise them in a study of another name, or export one all the same with --trial"
        )
    external = sum(map(ended_by_no_worker, trials))
    if external:
        raise StudyError(
            f"study {study_name} has no completed trial: no worker wrote the end of {counted(external, 'trial')}"
        )
    raise StudyError(f"study {study_name} has no completed trial yet; look again with `tuner status`")


def quality(trial: FrozenTrial) -> float:
    """Returns the bits per byte of a completed trial, whatever else it is compared by."""
    assert trial.values is not None
    return float(trial.values[0])


def numbered(trials: list[FrozenTrial], wanted: int, study_name: str) -> FrozenTrial:
    """Returns the trial of that number. Raises StudyError."""
    if 0 <= wanted < len(trials):
        return trials[wanted]
    there = f"it has 0 to {len(trials) - 1}" if trials else "it has none yet"
    raise StudyError(f"study {study_name} has no trial {wanted}; {there}")


def top_trials(now: Snapshot, rows: int) -> list[FrozenTrial]:
    """Returns the trials that a view lists: the best ones, or with several objectives all of the Pareto front."""
    return front(now.trials) if len(now.study.objectives) > 1 else leaderboard(now.trials)[:rows]


def front(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials of the leaderboard to which none is better in one objective and no worse in the others."""
    return pareto_front(leaderboard(trials), lambda trial: (trial.values[0], trial.values[-1]))


def pareto_front(entries: Iterable[Entry], place: Callable[[Entry], tuple[float, float]]) -> list[Entry]:
    """Returns the entries to which none is better in one number and no worse in the other, by the first number.

    Lower is better. Entries with the same numbers are all in it, in the order in which they were given.
    """
    best: list[Entry] = []  # the lower the first number, the earlier; so the second must fall
    for entry in sorted(entries, key=place):
        if not best or place(entry)[1] < place(best[-1])[1] or place(entry) == place(best[-1]):
            best.append(entry)
    return best
