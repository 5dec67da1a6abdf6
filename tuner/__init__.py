"""Tunes text generators: `tuner.run("study.yaml")` and `tuner.load_study(NAME)` do what the commands do."""

import logging
from typing import TYPE_CHECKING, Any

from models.errors import ConfigError, CorpusError, DeviceError, RunError, UserError
from tuner.errors import StorageError, StudyError, WorkerError

if TYPE_CHECKING:
    from tuner.results.records import TrialRecord
    from tuner.service.api import load_study, run
    from tuner.service.open_study import OpenStudy

__all__ = [
    "ConfigError",
    "CorpusError",
    "DeviceError",
    "OpenStudy",
    "RunError",
    "StorageError",
    "StudyError",
    "TrialRecord",
    "UserError",
    "WorkerError",
    "load_study",
    "run",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # who imports it decides what is heard

_LATER = {
    "run": "tuner.service.api",
    "load_study": "tuner.service.api",
    "OpenStudy": "tuner.service.open_study",
    "TrialRecord": "tuner.results.records",
}
"""What is imported when it is first used: Optuna takes a second, and `tuner --help` does without."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
