"""Requests to a running study, from any machine: pause, resume, stop, retry, enqueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from models.errors import ConfigError
from models.reader import parse, plain
from models.wording import counted
from tuner.errors import StudyError
from tuner.optuna_internals import add_trial
from tuner.results import companions
from tuner.results.records import STATES
from tuner.results.summary import numbered
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import PAUSED, RUNNING, STOPPED, Leases
from tuner.study.space import chosen_problem

RETRIED = (TrialState.FAIL, TrialState.PRUNED)


def pause(study: StudyHandle) -> str:
    """Makes all workers save their trials and wait; returns a sentence that says so."""
    _request(study, PAUSED)
    workers = _workers(study, "saves its trial and waits", "save their trials and wait")
    return f"paused; {workers}; tuner resume {study.name} continues it"


def resume(study: StudyHandle) -> str:
    """Continues a paused or stopped study; returns a sentence that says so."""
    _request(study, RUNNING)
    start = "" if _count_workers(study) else f"; start some with: tuner work {study.name}"
    return f"running; {_workers(study, 'continues', 'continue')}{start}"


def stop(study: StudyHandle) -> str:
    """Makes all workers save their trials and leave; returns a sentence that says so."""
    _request(study, STOPPED)
    return f"stopped; {_workers(study, 'saves its trial and leaves', 'save their trials and leave')}"


def retry(study: StudyHandle, number: int) -> str:
    """Puts the configuration of a failed or pruned trial into the queue again. Raises StudyError."""
    trial = numbered(study.trials(), number, study.name)
    if trial.state not in RETRIED:
        raise StudyError(f"trial {number} is {STATES[trial.state]}; only a failed or pruned one can be tried again")
    parameters = {
        name: value for name, value in trial.params.items() if name in study.definition.space.training_parameters
    }
    again = queue(study.optuna_study, parameters, {"retry_of": number})
    return f"trial {number} is tried again as trial {again}{_room(study)}"


def enqueue(study: StudyHandle, values: Mapping[str, Any]) -> str:
    """Puts a trial with these values into the queue; the sampler adds what is missing.

    Raises StudyError when a name is not searched or a value is outside its range.
    """
    for name, value in values.items():
        problem = chosen_problem(study.definition.space, name, value)
        if problem is not None:
            raise StudyError(f"study {study.name}: {name} {problem}")
    return f"trial {queue(study.optuna_study, values, {'enqueued': True})} waits for a worker{_room(study)}"


def assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """Returns what was written as `name=value` each. Raises StudyError."""
    return dict(map(_assignment, assignments))


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, written = text.partition("=")
    if not equals:
        raise StudyError(f"{text!r}: write name=value, such as learning_rate=0.003")
    try:
        return name, plain(parse(f"value: {written}", name))["value"]
    except ConfigError:
        return name, written


def queue(found: optuna.Study, parameters: Mapping[str, Any], facts: dict[str, Any]) -> int:
    """Puts a trial with these values into the queue and returns its number, which Optuna's enqueue_trial does not."""
    waiting = optuna.trial.create_trial(
        state=TrialState.WAITING, system_attrs={"fixed_params": dict(parameters)}, user_attrs=facts
    )
    return add_trial(found, waiting)


def _request(study: StudyHandle, state: str) -> None:
    for leases in _books(study):
        leases.set_state(state)


def _count_workers(study: StudyHandle) -> int:
    return sum(len(leases.alive()) for leases in _books(study))


def _books(study: StudyHandle) -> list[Leases]:
    """The leases of a study and of its confirmation, which obeys the same requests."""
    return [study.leases, *companions.leases_of_confirmation(study)]


def _room(study: StudyHandle) -> str:
    """What a queued trial must still wait for, besides a worker."""
    trials = study.definition.trials
    if trials is None or study.leases.counts().finished < trials:
        return ""
    return f"; the {trials} trials of the budget are finished: raise it with `tuner run --trials` or in the file"


def _workers(study: StudyHandle, does: str, do: str) -> str:
    count = _count_workers(study)
    return f"{counted(count, 'worker')} {does if count == 1 else do}" if count else "no worker is there"
