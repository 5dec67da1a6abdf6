"""What `import tuner` offers: running a study, and opening one that is in the database."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tuner.control.create import enter
from tuner.service.open_study import OpenStudy
from tuner.storage.handle import open_study
from tuner.storage.locations import StorageOptions
from tuner.study.definition import Study, changed, read_study, study_of
from tuner.study.shipped import study_path
from tuner.workers.options import CHECKPOINT_SECONDS, GRACE_SECONDS, WorkerOptions


def run(
    study: str | os.PathLike[str] | Mapping[str, Any],
    *,
    corpus: str | os.PathLike[str] | None = None,
    trials: int | None = None,
    hours: float | None = None,
    confirm: int = 2,
    wait: bool = True,
    workers: int | None = None,
    devices: str = "auto",
    per_device: int | str | None = None,
    threads: int | None = None,
    grace: float = GRACE_SECONDS,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    storage: str | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    artifacts: str | None = None,
) -> OpenStudy:
    """Searches with parallel workers, as `tuner run` does, and returns the study, open; the caller closes it.

    `study` is a study file, the name of a study that comes with the tuner, or a mapping with what a file would hold.
    The same call continues a study that was stopped. With `wait=False` it returns as workers start; they end with this
    process. The other arguments are those of `tuner run` (docs/commands.md), from the environment as there.

    Raises ConfigError, CorpusError, StudyError, StorageError, WorkerError or DeviceError; KeyboardInterrupt after
    Ctrl-C, when the workers have saved their trials.
    """
    definition = changed(_definition(study), None if corpus is None else Path(corpus).absolute(), trials, hours)
    places = _places(storage, data_folder, artifacts)
    crew = WorkerOptions(workers, devices, per_device, threads, grace, checkpoint_seconds)
    crew.require_devices(definition)
    with ExitStack() as opening:
        opened = opening.enter_context(places.opened())
        found = OpenStudy(enter(opened, definition), places, crew, opening.pop_all())
    try:
        found.search(confirm=confirm, wait=wait)
    except BaseException:
        found.close()
        raise
    return found


def load_study(
    name: str,
    *,
    storage: str | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    artifacts: str | None = None,
) -> OpenStudy:
    """Opens a study of the database, whether it runs or not. Raises StudyError that lists the ones there are.

    Where studies are kept is taken from the environment where it is not given, as in `run`.
    """
    places = _places(storage, data_folder, artifacts)
    with ExitStack() as opening:
        opened = opening.enter_context(places.opened())
        return OpenStudy(open_study(opened, name), places, WorkerOptions(), opening.pop_all())


def _definition(study: str | os.PathLike[str] | Mapping[str, Any]) -> Study:
    return study_of(study) if isinstance(study, Mapping) else read_study(study_path(os.fspath(study)))


def _places(storage: str | None, data_folder: str | os.PathLike[str] | None, artifacts: str | None) -> StorageOptions:
    """Where studies are, as it is given or as the environment says."""
    folder = data_folder or os.environ.get("TUNER_DATA")
    password_file = os.environ.get("TUNER_STORAGE_PASSWORD_FILE")
    return StorageOptions(
        storage or os.environ.get("TUNER_STORAGE") or None,
        None if not folder else Path(folder).expanduser().absolute(),
        artifacts or os.environ.get("TUNER_ARTIFACTS") or None,
        Path(password_file).expanduser() if password_file else None,
    )
