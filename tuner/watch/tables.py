"""Tables of a study for the terminal: progress, workers, leaderboard."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from models.safe_text import terminal
from models.wording import counted, duration
from tuner.results.records import STATES
from tuner.results.summary import (
    FAILED_SHOWN,
    NO_WORKER,
    Row,
    Snapshot,
    Standing,
    excess,
    is_feasible,
    quality,
    top_trials,
)
from tuner.storage.leases import Worker
from tuner.study.definition import Study
from tuner.study.facts import ended_by_no_worker, number

LEADERBOARD = ("trial", "bits per byte", "divergence", "parameters", "tokens/s", "configuration")
"""The columns of a leaderboard."""


def described(trial: FrozenTrial, study: Study, best: FrozenTrial | None) -> str:
    """One line about a trial."""
    rungs = max(trial.intermediate_values, default=0)
    value = trial.values[0] if trial.values else trial.intermediate_values.get(rungs)
    shown = "-" if value is None else f"{value:.4f}"
    reason = terminal.line(str(trial.user_attrs.get("reason", "")).partition("\n")[0])
    beyond = f"  exceeds {exceeded(trial)}" if not is_feasible(trial) else ""
    what = {
        TrialState.COMPLETE: f"complete  {shown}{beyond}{f'  {NO_WORKER}' if ended_by_no_worker(trial) else ''}",
        TrialState.PRUNED: f"pruned    {reason or f'{shown} at rung {rungs}/{study.trial.rungs}'}",
        TrialState.FAIL: f"failed    {reason or NO_WORKER}",
    }.get(trial.state, STATES[trial.state])
    star = "  * best so far" if best is not None and best.number == trial.number else ""
    attempts = number(trial, "attempts") or 1
    again = f"  ({attempts:.0f} attempts)" if attempts > 1 else ""
    return f"trial {trial.number:>3}  {what}  {configured(trial)}{again}{star}"


def exceeded(trial: FrozenTrial) -> str:
    """Says which limits a trial exceeds."""
    return ", ".join(terminal.line(name) for name in excess(trial))


def failures(now: Snapshot) -> list[str]:
    """Returns a paragraph about each trial that failed, crashed or was too much: why, and what its code said."""
    facts = [(trial, trial.user_attrs) for trial in now.trials]
    return [
        "\n".join([described(trial, now.study, None), *_traceback(fact)])
        for trial, fact in facts
        if trial.state == TrialState.FAIL or fact.keys() & {"reason", "crashes"}
    ]


def failed_lines(now: Snapshot) -> list[str]:
    """Returns a line for each of the last trials that failed, and the command that says more."""
    failed = [trial for trial in now.trials if trial.state == TrialState.FAIL]
    lines = [described(trial, now.study, None) for trial in failed[-FAILED_SHOWN:]]
    command = f"tuner status {shlex.quote(now.study.name)} --failed"
    return [*lines, f"{counted(now.counts.fail, 'trial')} failed: {command} says why"] if failed else []


def _traceback(facts: dict[str, Any]) -> list[str]:
    return terminal.lines(str(facts.get("traceback", ""))).strip().splitlines()


def configured(trial: FrozenTrial) -> str:
    """The searched parameters of a trial, those that count for it."""
    return " ".join(f"{terminal.line(name)}={_short(value)}" for name, value in trial.params.items())


def progress(now: Snapshot) -> RenderableType:
    """The live view of a running study."""
    head = Table.grid(padding=(0, 2))
    name = Text(terminal.line(now.study.name), style="bold")
    head.add_row(name, ProgressBar(1.0, now.spent, width=30), states(now))
    lines: list[RenderableType] = [head, *map(Text, hints(now))]
    if now.best is not None:
        best = f"best: {quality(now.best):.4f} bits per byte, trial {now.best.number}  {configured(now.best)}"
        lines.append(Text(best, style="green"))
    if now.blocked is not None:
        lines.append(Text(terminal.line(str(now.blocked)), style="yellow"))
    lines.append(worker_table(now.workers))
    return Group(*lines)


def hints(now: Standing) -> list[str]:
    """What a person can do about a study: its next step, and what helps against trials that do not fit."""
    return [terminal.line(str(hint)) for hint in (now.next_step, unfit_hint(now)) if hint]


def unfit_hint(now: Standing) -> str:
    """What helps against trials that do not fit; empty without any."""
    if not now.unfit:
        return ""
    narrow = "search smaller hidden_size, layers, batch_size or sequence_length"
    return f"{counted(now.unfit, 'trial')} did not fit in memory or the limits: {narrow}, or raise the limits"


def states(now: Snapshot) -> str:
    """How many trials are in which state, what was asked of the study, and how long it may still take."""
    counts = now.counts
    rest = {"did not fit": now.unfit, "failed": counts.fail, "waiting": counts.waiting}
    others = "".join(f", {count} {state}" for state, count in rest.items() if count)
    apart = {"beyond the limits": now.infeasible, "ended by no worker": now.external}
    infeasible = "".join(f" of which {count} {what}" for what, count in apart.items() if count)
    left = "" if now.seconds_left is None else f"  about {duration(now.seconds_left)} left"
    numbers = f"{counts.complete} complete{infeasible}, {now.pruned} pruned{others}"
    return f"{now.state}  {now.done} trials  ({numbers}){left}"


def worker_table(workers: list[Worker]) -> Table:
    """What each worker is doing."""
    table = Table.grid(padding=(0, 2))
    for worker in workers:
        words = activity(worker) | {"seen": f"seen {worker.seen:.0f} s ago"}
        table.add_row(f"worker {worker.number}", *map(terminal.line, words.values()))
    return table


def activity(worker: Worker) -> dict[str, str]:
    """Where a worker is and what it does, in words, and the age of its last heartbeat."""
    return {
        "place": f"{worker.host} {worker.device}",
        "trial": "" if worker.trial is None else f"trial {worker.trial}",
        "doing": worker.doing,
        "progress": "" if worker.progress is None else f"{worker.progress:.0%}",
        "speed": "" if worker.tokens_per_second is None else f"{worker.tokens_per_second:,.0f} tokens/s",
        "memory": "" if worker.memory_bytes is None else f"{worker.memory_bytes / 2**20:,.0f} MiB",
        "seen": f"{worker.seen:.0f} s ago",
    }


def leaderboard_table(now: Snapshot, rows: int = 5) -> Table:
    """The best trials, with their searched parameters; with several objectives, all of the Pareto front."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in LEADERBOARD:
        table.add_column(column, justify="left" if column == "configuration" else "right")
    for trial in top_trials(now, rows):
        words = board_row(trial)
        table.add_row(*(words[column] for column in LEADERBOARD))
    return table


def board_row(trial: FrozenTrial) -> dict[str, str]:
    """Returns a trial's row of a leaderboard, by the names in LEADERBOARD."""
    divergence = number(trial, "text_divergence")
    return {
        "trial": str(trial.number),
        "bits per byte": f"{quality(trial):.4f}",
        "divergence": "-" if divergence is None else f"{divergence:.4f}",
        "parameters": f"{number(trial, 'parameter_count') or 0:,}",
        "tokens/s": f"{number(trial, 'tokens_per_second') or 0:,}",
        "configuration": configured(trial),
    }


def studies_table(rows: Sequence[Row]) -> Table:
    """All studies, a row each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "study",
        "state",
        "trials",
        "complete",
        "pruned",
        "unfit",
        "failed",
        "running",
        "workers",
        "left",
        "best",
    ):
        table.add_column(column, justify="left" if column in ("study", "state") else "right")
    for now in rows:
        counts = now.counts
        best = "-" if now.best is None else f"{now.best:.4f}"
        left = "-" if now.seconds_left is None else duration(now.seconds_left)
        numbers = map(str, (counts.complete, now.pruned, now.unfit, counts.fail, counts.running, len(now.workers)))
        state = now.state if now.blocked is None else f"{now.state}, blocked {now.blocked.seconds:.0f} s"
        table.add_row(terminal.line(now.study.name), state, now.done, *numbers, left, best)
    return table


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else terminal.line(str(value))
