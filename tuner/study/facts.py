"""Names and types of the attributes that workers write to studies and trials; others come from elsewhere."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Whole = Annotated[int, Field(ge=0, lt=2**63)]
Few = Annotated[int, Field(ge=0, lt=2**31 - 1)]


class _Kinds(BaseModel):
    """Attributes of these names are of these kinds; others may be anything."""

    model_config = ConfigDict(extra="allow", strict=True)


class Measures(_Kinds):
    """Measures of a text (`models.generation.text_measures`)."""

    bleu: float
    self_bleu: float
    rouge_l: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    distinct_3: float | None = None
    repetition: float | None = None
    zipf: float | None = None


class CurvePoint(_Kinds):
    """What was written at a temperature."""

    temperature: float
    divergence: float
    bleu: float
    self_bleu: float


class Facts(_Kinds):
    """The user attributes of a trial."""

    configuration: dict[str, Any] | None = None
    attempts: Few = 1
    crashes: Few = 0
    worker: str | None = None
    reason: str | None = None
    traceback: str | None = None
    threads: Few | None = None
    device: str | None = None
    machine: str | None = None
    precision: str | None = None
    versions: dict[str, str] | None = None
    tokenizer_fingerprint: str | None = None
    tokens: Whole | None = None
    tokens_per_second: float | None = Field(None, ge=0, allow_inf_nan=False)
    training_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    decoding_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    parameter_count: Whole | None = None
    peak_memory_bytes: Whole | None = None
    text_divergence: float | None = None
    text: Measures | None = None
    human_text: Measures | None = None
    decoding_curve: list[CurvePoint] | None = None
    retry_of: Few | None = None


class Sample(_Kinds):
    """A text that a trial's model wrote."""

    prompt: str
    text: str


class SystemFacts(_Kinds):
    """The system attributes of a trial, ours and Optuna's."""

    samples: list[Sample] = Field([], alias="tuner:samples")
    fixed_params: dict[str, Any] = {}
    constraints: list[float] | None = None
    grid_id: int | None = None
    search_space: dict[str, list[Any]] | None = None


class Candidate(_Kinds):
    """A line of a confirmation."""

    trial: Few
    reported: float
    mean: float
    low: float
    high: float
    seeds: list[Whole]
    values: list[float]
    parameter_count: Whole
    tokens_per_second: float


class Tested(_Kinds):
    """What the winner of a confirmation came to on the test split."""

    mean: float
    values: list[float]


class Confirmation(_Kinds):
    """What a confirmation found (`tuner.results.confirmation.judged`)."""

    seeds: Few
    candidates: list[Candidate] = Field(min_length=1)
    dropped: list[Few]
    interval: str
    winner: Few
    within_seed_noise: list[Few]
    chosen: str
    test: Tested | None


class StudyFacts(_Kinds):
    """The user attributes of a study, but for its definition."""

    fingerprint: str | None = None
    confirmation: Confirmation | None = None


_PREFIXED: tuple[tuple[str, type | tuple[type, ...]], ...] = (
    ("constraints:", (int, float)),
    ("completed_rung_", (int, float)),
    ("artifacts:", (str, type(None))),
    ("tpe:", str),
    ("gp:", str),
    ("dashboard:note_ver", int),
    ("dashboard:note_str", str),
    ("note_ver", int),
    ("note_str", str),
    ("dashboard:plot_data:", str),
    ("dashboard:plotly_graph_objects:", str),
)
"""Kinds of system attributes whose names go on."""


def trial_problem(user: dict[str, Any], system: dict[str, Any]) -> str | None:
    """Says what of a trial's attributes is not of its kind, or None."""
    problem = _problem(Facts, user) or _problem(SystemFacts, system)
    if problem is None and (user.get("text") is None) != (user.get("human_text") is None):
        problem = "text: stands without human_text, or the other way round"
    return problem or next(
        (f"{key}: {what}" for key, one in system.items() if (what := system_problem(key, one))), None
    )


def study_problem(user: dict[str, Any]) -> str | None:
    """Says what of a study's user attributes is not of its kind, or None; its definition is checked elsewhere."""
    problem = _problem(StudyFacts, user)
    found = user.get("confirmation")
    if problem is None and found is not None and found["winner"] not in [one["trial"] for one in found["candidates"]]:
        problem = "confirmation.winner: is none of the candidates"
    return problem


def system_problem(key: str, value: Any) -> str | None:
    """Says why a system attribute, of a study or a trial, is not of its kind, or None."""
    for prefix, kinds in _PREFIXED:
        if key.startswith(prefix):
            sound = isinstance(value, kinds) and not isinstance(value, bool)
            number = isinstance(value, int | float)
            sound = sound and (not number or (math.isfinite(value) and abs(value) < 2**63))
            return _meta_problem(value) if sound and prefix == "artifacts:" else None if sound else "is of a wrong kind"
    if key.endswith((":generation", "'s last sample id")):
        return None if type(value) is int and abs(value) < 2**31 else "is no whole number"
    if key == "study:metric_names":
        return None if isinstance(value, list) and all(isinstance(one, str) for one in value) else "is no list of names"
    return None


def _meta_problem(value: str | None) -> str | None:
    """What is wrong with an attachment's description, which is JSON in JSON."""
    try:
        meta = None if value is None else json.loads(value)
    except (ValueError, RecursionError):
        return "is no JSON"
    if meta is None:
        return None
    names = ("artifact_id", "filename", "mimetype")
    return (
        None if isinstance(meta, dict) and all(isinstance(meta.get(one), str) for one in names) else "is no attachment"
    )


def _problem(kinds: type[_Kinds], attributes: dict[str, Any]) -> str | None:
    try:
        kinds.model_validate(attributes)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
        return f"{'.'.join(map(str, first['loc']))}: {message}"
    return None


def is_result(trial: FrozenTrial) -> bool:
    """Whether a trial is complete and a worker has written that: its facts before, and values that are numbers.

    Anyone who may write to the database can end a trial with any value, by Optuna's `tell`.
    """
    facts, values = trial.user_attrs, trial.values
    written = facts.get("configuration") is not None and facts.get("threads") is not None
    if trial.state != TrialState.COMPLETE or not written or not values or not all(map(math.isfinite, values)):
        return False
    return trial_problem(facts, trial.system_attrs) is None


def ended_by_no_worker(trial: FrozenTrial) -> bool:
    """Whether a trial is complete and no worker has written that."""
    return trial.state == TrialState.COMPLETE and not is_result(trial)


def number(trial: FrozenTrial, name: str) -> float | None:
    """Returns a fact that is a number, if it is there and one."""
    value = trial.user_attrs.get(name)
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if sound else None
