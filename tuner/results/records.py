"""Trials as plain records, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from tuner.results.summary import quality
from tuner.study.facts import is_result, number

if TYPE_CHECKING:
    import pandas

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


KEPT = (
    "configuration",
    "tokens",
    "parameter_count",
    "tokens_per_second",
    "training_seconds",
    "peak_memory_bytes",
    "device",
    "machine",
    "reason",
)
"""The facts of a trial that are taken as its worker wrote them."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial. What is not known, or not yet, is None."""

    number: int
    state: str
    """complete, pruned, failed, running or waiting."""
    bits_per_byte: float | None
    """On the validation split, at the end; lower is better."""
    text_divergence: float | None
    parameters: dict[str, Any]
    """What was searched: name and value."""
    configuration: dict[str, Any] | None = field(repr=False)
    """All parameters, the fixed ones too."""
    rungs: dict[int, float]
    """Bits per byte at each rung that was reached, from 1."""
    tokens: int | None
    parameter_count: int | None
    tokens_per_second: float | None
    training_seconds: float | None
    peak_memory_bytes: int | None
    device: str | None
    machine: str | None
    started: datetime | None
    finished: datetime | None
    reason: str | None
    """Why it was pruned or failed, where that is known."""

    @classmethod
    def of(cls, trial: FrozenTrial) -> TrialRecord:
        """Returns the record of a trial of Optuna."""
        known = {name: trial.user_attrs.get(name) for name in KEPT}
        return cls(
            number=trial.number,
            state=STATES[trial.state],
            bits_per_byte=quality(trial) if is_result(trial) else None,
            text_divergence=number(trial, "text_divergence"),
            parameters=dict(trial.params),
            rungs=dict(sorted(trial.intermediate_values.items())),
            started=trial.datetime_start,
            finished=trial.datetime_complete,
            **known,
        )


def rows(records: Iterable[TrialRecord]) -> list[dict[str, Any]]:
    """Returns a flat row for each record, with a column `parameters.NAME` for each parameter that any of them has."""
    listed = list(records)
    names = list(dict.fromkeys(name for record in listed for name in record.parameters))
    return [
        {name: value for name, value in vars(record).items() if name not in ("parameters", "configuration", "rungs")}
        | {f"parameters.{name}": record.parameters.get(name) for name in names}
        for record in listed
    ]


def frame(records: Iterable[TrialRecord]) -> pandas.DataFrame:
    """Returns records as a pandas frame: a row for each trial, a column `parameters.NAME` for each parameter.

    Raises ImportError where pandas is not installed.
    """
    import pandas

    return pandas.DataFrame(rows(records))
