"""A study of the database in one piece: Optuna's study, what it is defined as, and its leases."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from tuner.errors import StudyError
from tuner.optuna_internals import study_id
from tuner.storage.leases import Leases
from tuner.study.definition import Study, is_ours, renamed, stored_study
from tuner.study.facts import study_problem


@dataclass
class StudyHandle:
    """A study that is open; `definition` may differ from the stored one in what a study file may change."""

    storage: RDBStorage
    optuna_study: optuna.Study
    definition: Study
    leases: Leases = field(init=False)

    def __post_init__(self) -> None:
        self.leases = Leases(self.storage, self.id)

    @classmethod
    def of(cls, storage: RDBStorage, optuna_study: optuna.Study) -> Self:
        """Returns a study as the tuner stored it. Raises ConfigError."""
        return cls(storage, optuna_study, defined(optuna_study))

    @property
    def id(self) -> int:
        """By what the database knows the study, whatever it is called by now."""
        return study_id(self.optuna_study)

    @property
    def name(self) -> str:
        """The name under which the study was last seen."""
        return self.definition.name

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials; finished ones are read from the database once."""
        return self.optuna_study.get_trials(deepcopy=False)

    def rename(self, name: str) -> None:
        """Takes on the name that the study has in the database by now."""
        self.optuna_study.study_name = name
        self.definition = renamed(self.definition, name)

    def why_ended(self) -> str | None:
        """Returns why workers have nothing left to do; None while they have. A confirmation has only its queue."""
        budget = self.definition.trials, self.definition.budget.hours
        return self.leases.why_ended(*budget, new=self.definition.confirms is None)

    def stored(self) -> Self:
        """Returns the study as it is stored by now: its budget may have been changed since. Raises ConfigError."""
        return replace(self, definition=defined(self.optuna_study))


def open_study(storage: RDBStorage, name: str) -> StudyHandle:
    """Returns a study of the tuner; raises StudyError that lists the ones there are."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        known = sorted(optuna.get_all_study_names(storage))
        there = (
            f"there are: {', '.join(known)}" if known else "there are none yet; start one with `tuner run STUDY.yaml`"
        )
        raise StudyError(f"no study {name!r} in this database; {there}") from None
    if not is_ours(study.user_attrs):
        raise StudyError(f"study {name!r} was not made by the tuner")
    problem = study_problem(study.user_attrs)
    if problem is not None:
        raise StudyError(f"study {name!r}: its attributes are not as the tuner writes them: {problem}")
    return StudyHandle.of(storage, study)


def defined(found: optuna.Study) -> Study:
    """Returns a study of the database as the tuner wrote it, under the name that it has there now. Raises ConfigError.

    Optuna's dashboard can rename it.
    """
    return renamed(stored_study(found.user_attrs["study"]), found.study_name)
