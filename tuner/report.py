"""What a study has come to: status, leaderboard, progress."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.errors import StudyError
from tuner.ledger import RUNNING, Counts, Ledger, Worker
from tuner.study import Study


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment."""

    study: Study
    counts: Counts
    best: FrozenTrial | None
    workers: list[Worker]
    active_seconds: float
    trials: list[FrozenTrial]
    state: str = RUNNING

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
    def seconds_left(self) -> float | None:
        """A guess from how the budget was spent so far; None before anything was, when all is, or nobody works."""
        if self.state != RUNNING or not self.workers:
            return None
        return self.active_seconds * (1 - self.spent) / self.spent if 0 < self.spent < 1 else None


def snapshot(storage: RDBStorage, optuna_study: optuna.Study, study: Study) -> Snapshot:
    """Reads the study's state; finished trials are read from the database once."""
    ledger = Ledger(storage, optuna_study._study_id)
    trials = optuna_study.get_trials(deepcopy=False)
    board = leaderboard(trials)
    return Snapshot(
        study,
        ledger.counts(),
        board[0] if board else None,
        ledger.alive(),
        ledger.active_seconds(),
        trials,
        ledger.state(),
    )


def leaderboard(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the completed trials, the best one first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (quality(trial), trial.number))


def quality(trial: FrozenTrial) -> float:
    """Returns the bits per byte of a completed trial, whatever else it is compared by."""
    assert trial.values is not None
    return float(trial.values[0])


def numbered(trials: list[FrozenTrial], number: int, study_name: str) -> FrozenTrial:
    """Returns the trial of that number. Raises StudyError."""
    if 0 <= number < len(trials):
        return trials[number]
    there = f"it has 0 to {len(trials) - 1}" if trials else "it has none yet"
    raise StudyError(f"study {study_name} has no trial {number}; {there}")


def front(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the completed trials to which none is better in one objective and no worse in the others."""
    complete = leaderboard(trials)
    return [trial for trial in complete if not any(_dominates(other, trial) for other in complete)]


def _dominates(one: FrozenTrial, other: FrozenTrial) -> bool:
    return one.values != other.values and all(a <= b for a, b in zip(one.values, other.values, strict=True))


def described(trial: FrozenTrial, study: Study, best: FrozenTrial | None) -> str:
    """One line about a trial."""
    rungs = max(trial.intermediate_values, default=0)
    value = trial.values[0] if trial.values else trial.intermediate_values.get(rungs)
    shown = "-" if value is None else f"{value:.4f}"
    reason = str(trial.user_attrs.get("reason", "")).partition("\n")[0]
    what = {
        TrialState.COMPLETE: f"complete  {shown}",
        TrialState.PRUNED: f"pruned    {reason or f'{shown} at rung {rungs}/{study.trial.rungs}'}",
        TrialState.FAIL: f"failed    {reason}",
    }.get(trial.state, trial.state.name.lower())
    star = "  * best so far" if best is not None and best.number == trial.number else ""
    attempts = trial.user_attrs.get("attempts", 1)
    again = f"  ({attempts} attempts)" if attempts > 1 else ""
    return f"trial {trial.number:>3}  {what}  {configured(trial)}{again}{star}"


def failures(now: Snapshot) -> list[str]:
    """Returns a paragraph about each trial that failed, crashed or was too much: why, and what its code said."""
    facts = [(trial, trial.user_attrs) for trial in now.trials]
    return [
        "\n".join([described(trial, now.study, None), *str(fact.get("traceback", "")).strip().splitlines()])
        for trial, fact in facts
        if trial.state == TrialState.FAIL or fact.keys() & {"reason", "crashes"}
    ]


def configured(trial: FrozenTrial) -> str:
    """The searched parameters of a trial, those that count for it."""
    return " ".join(f"{name}={_short(value)}" for name, value in trial.params.items())


def progress(now: Snapshot) -> RenderableType:
    """The live view of a running study."""
    counts = now.counts
    done = f"{counts.finished}/{now.study.trials}" if now.study.trials is not None else str(counts.finished)
    states = f"{done} trials  ({counts.complete} complete, {counts.pruned} pruned"
    states += f", {counts.fail} failed" if counts.fail else ""
    states += f", {counts.waiting} waiting)" if counts.waiting else ")"
    states += f"  {now.state}" if now.state != RUNNING and now.spent < 1 else ""
    left = "" if now.seconds_left is None else f"  about {duration(now.seconds_left)} left"
    head = Table.grid(padding=(0, 2))
    head.add_row(Text(now.study.name, style="bold"), ProgressBar(1.0, now.spent, width=30), states + left)
    lines: list[RenderableType] = [head]
    if now.best is not None:
        best = f"best: {quality(now.best):.4f} bits per byte, trial {now.best.number}  {configured(now.best)}"
        lines.append(Text(best, style="green"))
    lines.append(worker_table(now.workers))
    return Group(*lines)


def worker_table(workers: list[Worker]) -> Table:
    """What each worker is doing."""
    table = Table.grid(padding=(0, 2))
    for worker in workers:
        trial = "" if worker.trial is None else f"trial {worker.trial}"
        part = "" if worker.progress is None else f"{worker.progress:.0%}"
        rate = "" if worker.tokens_per_second is None else f"{worker.tokens_per_second:,.0f} tokens/s"
        memory = "" if worker.memory_bytes is None else f"{worker.memory_bytes / 2**20:,.0f} MiB"
        place = f"{worker.host} {worker.device}"
        table.add_row(f"worker {worker.number}", place, trial, worker.doing, part, rate, memory)
    return table


def leaderboard_table(now: Snapshot, rows: int = 5) -> Table:
    """The best trials, with their searched parameters; with several objectives, all of the Pareto front."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", "bits per byte", "divergence", "parameters", "tokens/s", "configuration"):
        table.add_column(column, justify="left" if column == "configuration" else "right")
    several = len(now.study.objectives) > 1
    for trial in front(now.trials) if several else leaderboard(now.trials)[:rows]:
        facts = trial.user_attrs
        divergence = facts.get("text_divergence")
        table.add_row(
            str(trial.number),
            f"{quality(trial):.4f}",
            "-" if divergence is None else f"{divergence:.4f}",
            f"{facts.get('parameter_count', 0):,}",
            f"{facts.get('tokens_per_second', 0):,}",
            configured(trial),
        )
    return table


def studies_table(rows: list[tuple[str, Snapshot]]) -> Table:
    """All studies, a row each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("study", "trials", "complete", "pruned", "failed", "running", "workers", "best"):
        table.add_column(column, justify="left" if column == "study" else "right")
    for name, now in rows:
        counts = now.counts
        total = "" if now.study.trials is None else f"/{now.study.trials}"
        best = "-" if now.best is None else f"{quality(now.best):.4f}"
        numbers = (counts.complete, counts.pruned, counts.fail, counts.running, len(now.workers))
        table.add_row(name, f"{counts.finished}{total}", *map(str, numbers), best)
    return table


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
