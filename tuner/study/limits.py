"""Limits on configurations, and estimates of what one needs before its first step."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from models.shorthand import UNITS
from tuner.optuna_internals import trial_id

if TYPE_CHECKING:
    import optuna

BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def _amount(units: dict[str, int], example: str) -> BeforeValidator:
    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", value)
        if found is None or found[2] not in units:
            raise ValueError(f"should be a number, or one with {', '.join(unit for unit in units if unit)}: {example}")
        return round(float(found[1]) * units[found[2]])

    return BeforeValidator(read)


class Limits(BaseModel):
    """What a configuration may need; one that needs more is not trained, and the sampler learns to stay away."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    example: ClassVar[str] = "{parameters: 5M, memory: 8GiB}"

    parameters: Annotated[int, _amount(UNITS, "5M")] | None = Field(None, gt=0, description="Weights of the model.")
    memory: Annotated[int, _amount(BYTES, "8GiB")] | None = Field(
        None, gt=0, description="Bytes a worker may take while it trains: of the GPU, or of the process on a CPU."
    )
    milliseconds_per_token: float | None = Field(
        None, gt=0, description="Time the model may take to write one token of one text, on the worker's device."
    )

    def given(self) -> dict[str, float]:
        """Returns the limits that are set, by name."""
        return self.model_dump(exclude_none=True)

    def violations(self, needs: dict[str, float]) -> dict[str, float]:
        """Returns by how much of itself each limit is exceeded, those that are."""
        excess = {name: needs[name] / limit - 1 for name, limit in self.given().items() if name in needs}
        return {name: by for name, by in excess.items() if by > 0}

    def described(self, needs: dict[str, float]) -> str:
        """Says in words which limits are exceeded."""
        return ", ".join(
            f"{name} {_short(name, needs[name])} of at most {_short(name, getattr(self, name))}"
            for name in self.violations(needs)
        )


class DoesNotFit(Exception):
    """A configuration that needs more than the study allows; `violations` says of what, and by how much."""

    def __init__(self, limits: Limits, needs: dict[str, float]) -> None:
        super().__init__(f"does not fit: {limits.described(needs)}")
        self.violations = limits.violations(needs)


OUT_OF_MEMORY = {"memory": 1.0}
"""The violation of a trial for which memory did not suffice: how much it lacked is unknown."""


def mark(trial: optuna.Trial, violations: dict[str, float]) -> None:
    """Writes down which limits a trial exceeds, so that a sampler learns to stay away; may be repeated.

    tpe and nsga2 do; gp learns from completed trials alone.
    """
    known = trial.storage.get_trial(trial_id(trial)).constraints
    for name, by in violations.items():
        if name not in known:
            trial.set_constraint(name, by)


def _short(name: str, value: float) -> str:
    if name == "memory":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,.0f}" if name == "parameters" else f"{value:.3g}"
