"""Deletes a study for good, renames one, and says what studies take."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

import optuna
import sqlalchemy as sql
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from models.wording import counted, listed, size
from tuner.artifacts.layout import CHECKPOINT, RUN_FILE, name_problem
from tuner.artifacts.store import Artifacts, remedy
from tuner.errors import StudyError, WorkerError
from tuner.optuna_internals import tables
from tuner.results import companions, confirmation
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import STOPPED, Worker, forget, transaction
from tuner.study.definition import is_ours
from tuner.trials.attachments import attachments_of

Kept = Callable[[optuna.Study], Artifacts]
"""Returns the artifacts of a study."""

SHOWN = 5
"""Most workers that a message names."""

_STUDIES = tables().StudyModel.__table__


@dataclass(frozen=True)
class Usage:
    """What a study takes: its trials, and the bytes of its files by what they are."""

    name: str
    trials: int = 0
    checkpoints: int = 0
    runs: int = 0
    logs: int = 0
    """Logs of workers, and whatever else is in its folder."""
    attachments: int = 0
    with_confirmation: bool = field(default=False, kw_only=True)

    @property
    def bytes(self) -> int:
        """The bytes of all files."""
        return self.checkpoints + self.runs + self.logs + self.attachments

    def __str__(self) -> str:
        also = " and its confirmation" if self.with_confirmation else ""
        return f"study {self.name}{also}: {counted(self.trials, 'trial')}, {size(self.bytes)} of files"


def usage(study: StudyHandle, kept_of: Kept) -> Usage:
    """Returns what a study takes, its confirmation included. Raises WorkerError."""
    both = _with_confirmation(study)
    each = [_usage(one, kept_of(one.optuna_study)) for one in both]
    sums = {part: sum(getattr(one, part) for one in each) for part in ("trials", "checkpoints", "runs", "logs")}
    attachments = sum(one.attachments for one in each)
    return Usage(study.name, **sums, attachments=attachments, with_confirmation=len(both) > 1)


def _usage(study: StudyHandle, kept: Artifacts) -> Usage:
    trials = study.trials()
    found = Usage(study.name, trials=len(trials))
    for name, taken in kept.sizes().items():
        part = "checkpoints" if CHECKPOINT.fullmatch(name) else "runs" if RUN_FILE.fullmatch(name) else "logs"
        found = replace(found, **{part: getattr(found, part) + taken})
    attached = kept.attachment_sizes()
    return replace(found, attachments=sum(attached.get(name, 0) for name in _attachments(study)))


def delete(study: StudyHandle, kept_of: Kept) -> Usage:
    """Deletes a study and its confirmation, their files first; returns what they took.

    Raises StudyError while workers train them, and WorkerError where files cannot be reached. What was interrupted
    goes on when it is called again.
    """
    taken, both = usage(study, kept_of), _with_confirmation(study)
    with _alone(both):
        for one in both:
            one.leases.set_state(STOPPED)  # workers that come now leave
    for one in both:
        _delete_files(one, kept_of(one.optuna_study))
    with _alone(both) as connection:
        for one in both:
            # A trial that is queued now waits for this, and finds no study then; Optuna would keep the study instead.
            connection.execute(sql.select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == one.id).with_for_update())
            study.storage.delete_study(one.id)
            forget(connection, one.id)
    return taken


def rename(study: StudyHandle, name: str) -> str:
    """Gives a study, and its confirmation, another name; workers continue. Returns a sentence. Raises StudyError."""
    problem = name_problem(name)
    if problem is not None:
        raise StudyError(f"{name!r} cannot be the name of a study: {problem}")
    confirming = confirmation.companion_of(study.optuna_study)
    try:
        with transaction(study.storage) as connection:
            _rename(connection, study.id, name)
            if confirming is not None:
                _rename(connection, StudyHandle.of(study.storage, confirming).id, confirmation.companion_name(name))
    except IntegrityError:
        raise StudyError(f"there is a study {name!r} already, or one that confirms it; choose another name") from None
    before = study.name
    study.rename(name)
    return f"study {before} is called {name} now; its files stay where they are"


def _rename(connection: Connection, number: int, name: str) -> None:
    connection.execute(_STUDIES.update().where(_STUDIES.c.study_id == number).values(study_name=name))


def all_studies(storage: RDBStorage) -> Iterator[StudyHandle]:
    """Yields the studies of the tuner, by name; a confirmation belongs to the study it confirms."""
    with storage.engine.begin() as connection:
        confirming = set(companions.pairs(connection).values())
    for name in sorted(optuna.get_all_study_names(storage)):
        found = optuna.load_study(study_name=name, storage=storage)
        if is_ours(found.user_attrs) and StudyHandle.of(storage, found).id not in confirming:
            yield StudyHandle.of(storage, found)


def _with_confirmation(study: StudyHandle) -> list[StudyHandle]:
    confirming = confirmation.companion_of(study.optuna_study)
    return [study] if confirming is None else [study, StudyHandle.of(study.storage, confirming)]


@contextmanager
def _alone(both: Sequence[StudyHandle]) -> Iterator[Connection]:
    """A transaction in which no worker can claim their trials. Raises StudyError where workers are at work."""
    with ExitStack() as locks, transaction(both[0].storage) as connection:
        for one in both:
            locks.enter_context(one.leases.study_lock())
        at_work = [worker for one in both for worker in one.leases.alive(connection)]
        if at_work:
            name, where = both[0].name, listed(sorted({_place(worker) for worker in at_work}), SHOWN)
            raise StudyError(
                f"study {name}: {counted(len(at_work), 'worker')} at work ({where}); end them first: "
                f"{shlex.join(['tuner', 'stop', name])}, and wait until they have left"
            )
        yield connection


def _place(worker: Worker) -> str:
    return f"process {worker.process} on {worker.host}"


def _attachments(study: StudyHandle) -> set[str]:
    return {name for trial in study.trials() for name in attachments_of(trial.system_attrs)}


def _delete_files(study: StudyHandle, kept: Artifacts) -> None:
    try:
        store = kept.attachments()
        for name in _attachments(study):
            with suppress(ArtifactNotFound):
                store.remove(name)
        kept.remove_all()
    except OSError as error:
        raise WorkerError(f"{error.filename or kept.folder}: {remedy(error)}; then delete the study again") from error
