"""Requests to a running study, from any machine: pause, resume, stop, retry, enqueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from models.errors import ConfigError
from models.reader import parse, plain
from models.wording import counted
from tuner.errors import StudyError
from tuner.optuna_internals import add_trial, study_id
from tuner.results.summary import numbered
from tuner.storage.leases import PAUSED, RUNNING, STOPPED, Leases
from tuner.study.definition import Study
from tuner.study.space import chosen_problem

RETRIED = (TrialState.FAIL, TrialState.PRUNED)


def pause(storage: RDBStorage, found: optuna.Study) -> str:
    """Lets all workers save their trials and wait; returns what to tell the person."""
    _ledger(storage, found).set_state(PAUSED)
    return f"paused; {_workers(storage, found, 'save their trials and wait')}; tuner resume {found.study_name} goes on"


def resume(storage: RDBStorage, found: optuna.Study) -> str:
    """Lets a paused or stopped study go on; returns what to tell the person."""
    _ledger(storage, found).set_state(RUNNING)
    start = "" if _ledger(storage, found).alive() else f"; start some with: tuner work {found.study_name}"
    return f"running; {_workers(storage, found, 'go on')}{start}"


def stop(storage: RDBStorage, found: optuna.Study) -> str:
    """Lets all workers save their trials and leave; returns what to tell the person."""
    _ledger(storage, found).set_state(STOPPED)
    return f"stopped; {_workers(storage, found, 'save their trials and leave')}"


def retry(storage: RDBStorage, found: optuna.Study, study: Study, number: int) -> str:
    """Puts the configuration of a failed or pruned trial into the queue again. Raises StudyError."""
    trial = numbered(found.get_trials(deepcopy=False), number, study.name)
    if trial.state not in RETRIED:
        raise StudyError(
            f"trial {number} is {trial.state.name.lower()}; only a failed or pruned one can be tried again"
        )
    parameters = {name: value for name, value in trial.params.items() if name in study.space.training_parameters}
    again = queue(found, parameters, {"retry_of": number})
    return f"trial {number} is tried again as trial {again}{_room(storage, found, study)}"


def enqueue(storage: RDBStorage, found: optuna.Study, study: Study, assignments: Sequence[str]) -> str:
    """Puts a trial with these values, `name=value` each, into the queue; the sampler adds what is missing.

    Raises StudyError when a name is not searched or a value is outside its range.
    """
    chosen = [_assignment(study, text) for text in assignments]
    return f"trial {queue(found, dict(chosen), {'enqueued': True})} waits for a worker{_room(storage, found, study)}"


def _assignment(study: Study, text: str) -> tuple[str, Any]:
    name, equals, written = text.partition("=")
    if not equals:
        raise StudyError(f"{text!r}: write name=value, such as learning_rate=0.003")
    try:
        value = plain(parse(f"value: {written}", name))["value"]
    except ConfigError:
        value = written
    problem = chosen_problem(study.space, name, value)
    if problem is not None:
        raise StudyError(f"study {study.name}: {name} {problem}")
    return name, value


def queue(found: optuna.Study, parameters: Mapping[str, Any], facts: dict[str, Any]) -> int:
    """Puts a trial with these values into the queue and returns its number, which Optuna's enqueue_trial does not."""
    waiting = optuna.trial.create_trial(
        state=TrialState.WAITING, system_attrs={"fixed_params": dict(parameters)}, user_attrs=facts
    )
    return add_trial(found, waiting)


def _room(storage: RDBStorage, found: optuna.Study, study: Study) -> str:
    """What a queued trial must still wait for, besides a worker."""
    if study.trials is None or _ledger(storage, found).counts().finished < study.trials:
        return ""
    return f"; the {study.trials} trials of the budget are finished: raise it with `tuner run --trials` or in the file"


def _workers(storage: RDBStorage, found: optuna.Study, do: str) -> str:
    count = len(_ledger(storage, found).alive())
    return f"{counted(count, 'worker')} {do}" if count else "no worker is there"


def _ledger(storage: RDBStorage, found: optuna.Study) -> Leases:
    return Leases(storage, study_id(found))
