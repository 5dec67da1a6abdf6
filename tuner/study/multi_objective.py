"""Pruning with several objectives, by the first of them: Optuna itself refuses it."""

from __future__ import annotations

import optuna
from optuna.study import StudyDirection

from tuner.optuna_internals import trial_id


class Tuned(optuna.Study):
    """A study whose pruners, and whose sampler where it looks at pruned trials, see the first objective alone."""

    @property
    def direction(self) -> StudyDirection:
        return self.directions[0]


class Hyperband(optuna.pruners.HyperbandPruner):
    """Optuna's Hyperband, whose brackets are studies of their own; they see the first objective alone, too."""

    def _create_bracket_study(self, study: optuna.Study, bracket_id: int) -> optuna.Study:
        bracket = super()._create_bracket_study(study, bracket_id)
        type(bracket).direction = Tuned.direction  # type: ignore[method-assign, assignment]  # of this bracket alone
        return bracket


def should_prune(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Whether the study's pruner wants to end a trial, whatever the number of objectives."""
    return study.pruner.prune(study, trial.storage.get_trial(trial_id(trial)))
