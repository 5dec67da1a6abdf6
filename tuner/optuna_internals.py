"""What is used of Optuna and its dashboard beyond their public interfaces, all of it here and nowhere else.

tests/tuner/test_optuna_internals.py says for which versions that holds, and tries each use. It stands below all other
packages, for samplers and limits need it as storage does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    from optuna.artifacts._protocol import ArtifactStore as ArtifactStore
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.study._frozen import FrozenStudy as FrozenStudy
    from optuna.trial import FrozenTrial

ARTIFACT_PREFIX = "artifacts:"
"""How the names of system attributes begin that show a file beside a study or trial."""


def study_id(study: optuna.Study | FrozenStudy) -> int:
    """Returns by what the storage knows a study, whatever it is called by now."""
    return study._study_id


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """Returns by what the storage knows a trial."""
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """Returns the storage that a study reads and writes, which remembers finished trials."""
    return study._storage


def database_of(study: optuna.Study) -> RDBStorage:
    """Returns the database behind a study's storage, before which Optuna puts a cache."""
    storage: Any = study._storage
    found: RDBStorage = getattr(storage, "_backend", storage)
    return found


def cached(storage: RDBStorage) -> Any:
    """Returns a storage that reads each finished trial once."""
    from optuna.storages._cached_storage import _CachedStorage

    return _CachedStorage(storage)


def add_trial(study: optuna.Study, trial: FrozenTrial) -> int:
    """Adds a trial as `Study.add_trial` does, and returns its number."""
    storage = storage_of(study)
    return storage.get_trial_number_from_id(storage.create_new_trial(study_id(study), template_trial=trial))


def set_system_attribute(study: optuna.Study, trial: FrozenTrial, name: str, value: Any) -> None:
    """Sets a system attribute of a trial, as samplers do."""
    storage_of(study).set_trial_system_attr(trial_id(trial), name, value)


def contains(distribution: BaseDistribution, number: float) -> bool:
    """Whether a distribution has a value, given by Optuna's number for it (`to_internal_repr`)."""
    return distribution._contains(number)


def tables() -> Any:
    """Returns the module that holds the models of Optuna's tables."""
    from optuna.storages._rdb import models

    return models


@contextmanager
def dashboard_replaced(
    detail: Callable[..., dict[str, Any]], trials: Callable[..., list[FrozenTrial]]
) -> Iterator[None]:
    """Lets the dashboard of this process ask `detail` and `trials` in place of functions of its own, while it lasts.

    Each gets the dashboard's function (`serialize_study_detail`, `get_trials`), and then what that would have got.
    """
    from optuna_dashboard import _app

    serialize, get_trials = _app.serialize_study_detail, _app.get_trials
    _app.serialize_study_detail = lambda *arguments: detail(serialize, *arguments)
    _app.get_trials = lambda *arguments: trials(get_trials, *arguments)
    try:
        yield
    finally:
        _app.serialize_study_detail, _app.get_trials = serialize, get_trials
