"""Fetches the run folders of trials whose models are kept."""

from __future__ import annotations

import logging
from pathlib import Path

import optuna
from optuna.trial import TrialState

from tuner.artifacts.store import Artifacts
from tuner.errors import StudyError, WorkerError
from tuner.results.records import STATES
from tuner.results.summary import leaderboard

logger = logging.getLogger(__name__)


def fetched(kept: Artifacts, number: int) -> Path | None:
    """Returns the run folder of a trial; None, and a warning, where it cannot be reached."""
    try:
        return kept.fetch_run(number)
    except OSError as error:
        logger.warning("The model of trial %d cannot be fetched: %s", number, error.strerror)
        return None


def require_run(kept: Artifacts, found: optuna.Study, number: int) -> Path:
    """Returns the run folder of a trial.

    Raises StudyError that says which are kept, and WorkerError where none can be read.
    """
    try:
        run_folder = kept.fetch_run(number)
        if run_folder is None:
            raise StudyError(f"{_why_not(found, number, kept.folder)}{_kept_ones(kept, found)}")
    except OSError as error:
        raise WorkerError(f"{kept.folder}: the model of trial {number} cannot be read ({error.strerror})") from error
    return run_folder


def _why_not(found: optuna.Study, number: int, folder: object) -> str:
    state = found.get_trials(deepcopy=False)[number].state
    if state != TrialState.COMPLETE:
        return f"trial {number} is {STATES[state]}; models are kept of the best complete trials"
    return f"the model of trial {number} is not kept in {folder}"


def _kept_ones(kept: Artifacts, found: optuna.Study) -> str:
    """Which trials' models are kept, the best one first."""
    numbers = [trial.number for trial in leaderboard(found.get_trials(deepcopy=False)) if kept.fetch_run(trial.number)]
    return f"; those of {', '.join(map(str, numbers))} are" if numbers else f"; {kept.why_not_kept()}"
