"""A study of several objectives that is pruned by its first: Optuna itself refuses to prune those."""

from __future__ import annotations

import optuna
from optuna.study import StudyDirection


class Tuned(optuna.Study):
    """A study whose pruners, and whose sampler where it looks at pruned trials, see the first objective alone."""

    @property
    def direction(self) -> StudyDirection:
        return self.directions[0]


def should_prune(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Whether the study's pruner wants to end a trial, whatever the number of objectives."""
    return study.pruner.prune(study, trial.storage.get_trial(trial._trial_id))
