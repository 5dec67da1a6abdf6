"""Outcomes of trials: how they ended and what they reached, for figures and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from optuna.trial import FrozenTrial, TrialState

from tuner.results.summary import is_feasible, leaderboard, quality
from tuner.study.definition import Study
from tuner.study.facts import is_result

FULL, PRUNED, BEYOND, BROKEN = "trained to the end", "pruned", "did not fit", "failed or diverged"


def best_first(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the completed trials that exceed no limit, the best one first."""
    return leaderboard(trials)


def last_value(trial: FrozenTrial) -> float | None:
    """Returns the bits per byte a trial came to, at its end or at its last rung; None without a finite one."""
    rungs = trial.intermediate_values
    value = trial.values[0] if trial.values else rungs[max(rungs)] if rungs else None
    return value if value is not None and math.isfinite(value) else None


def outcome(trial: FrozenTrial) -> str | None:
    """Returns how a trial ended, one of MARKS; None while it has not."""
    if not trial.state.is_finished():
        return None
    if not is_feasible(trial):
        return BEYOND
    if last_value(trial) is None or trial.state == TrialState.FAIL:
        return BROKEN
    if trial.state == TrialState.COMPLETE:
        return FULL if is_result(trial) else BROKEN
    return BROKEN if "reason" in trial.user_attrs else PRUNED


def ranked(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Returns trials trained to the end, the best one first, and then the others by what they came to."""
    return sorted(trials, key=_rank)


def _rank(trial: FrozenTrial) -> tuple[bool, float]:
    value = last_value(trial)
    return outcome(trial) != FULL, math.inf if value is None else value


def selected(ranks: list[FrozenTrial], most: int) -> list[FrozenTrial]:
    """Returns all of the ranked trials, or of too many the best half of `most` and an even sample of the others."""
    if len(ranks) <= most:
        return ranks
    best, others = ranks[: most // 2], ranks[most // 2 :]
    step = len(others) / (most - len(best))
    return best + [others[int(index * step)] for index in range(most - len(best))]


def in_order_of_end(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials that have ended, the earliest first."""
    ended = [trial for trial in trials if trial.state.is_finished()]
    return sorted(ended, key=lambda one: (_instant(one), one.number))


def best_so_far(ended: Sequence[FrozenTrial]) -> list[tuple[int, float]]:
    """Returns how many trials had ended at each new best value, and that value."""
    steps: list[tuple[int, float]] = []
    for count, trial in enumerate(ended, start=1):
        if outcome(trial) == FULL and (not steps or quality(trial) < steps[-1][1]):
            steps.append((count, quality(trial)))
    return steps


def _instant(trial: FrozenTrial) -> float:
    return math.inf if trial.datetime_complete is None else trial.datetime_complete.timestamp()


def spent(definition: Study, rung: int) -> float:
    """Returns the tokens, or else the seconds, that a trial has spent at a rung."""
    budget = definition.trial.tokens or definition.trial.seconds or 0
    return round(budget * rung / definition.trial.rungs, 3)
