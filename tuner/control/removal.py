"""Deletes a study for good, renames one, and says what studies take."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import optuna
import sqlalchemy as sql
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError, ProgrammingError

from models.wording import counted, listed, size
from tuner.artifacts.layout import CHECKPOINT, RUN_FILE, name_problem
from tuner.artifacts.store import Artifacts, remedy
from tuner.errors import StorageError, StudyError, WorkerError
from tuner.optuna_internals import ARTIFACT_PREFIX, study_id, tables
from tuner.results import companions, confirmation
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import STOPPED, Worker, forget, transaction
from tuner.study.definition import is_ours
from tuner.trials.attachments import attachments_of

Kept = Callable[[optuna.Study], Artifacts]
"""Returns the artifacts of a study."""

SHOWN = 5
"""Most workers that a message names."""

AS_OWNER = "give --storage as the owner of the tables"
"""What to do where a role lacks the right."""

_STUDIES, _TRIALS = tables().StudyModel.__table__, tables().TrialModel.__table__


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
    (taken,) = usages([study], kept_of)
    return taken


def usages(studies: Iterable[StudyHandle], kept_of: Kept) -> Iterator[Usage]:
    """Yields what each study takes, its confirmation included. Raises WorkerError."""
    attached: dict[str, int] | None = None  # those of all studies lie together, and are listed once
    for study in studies:
        both, sums = _with_confirmation(study), Counter[str]()
        for one in both:
            kept = kept_of(one.optuna_study)
            attached = kept.attachment_sizes() if attached is None else attached
            sums["trials"] += len(one.trials())
            sums["attachments"] += sum(attached.get(name, 0) for name in _attachments(one))
            for name, taken in kept.sizes().items():
                sums[_part_of(name)] += taken
        yield Usage(study.name, **sums, with_confirmation=len(both) > 1)


def _part_of(name: str) -> str:
    return "checkpoints" if CHECKPOINT.fullmatch(name) else "runs" if RUN_FILE.fullmatch(name) else "logs"


def delete(study: StudyHandle, kept_of: Kept) -> Usage:
    """Deletes a study and its confirmation, their files first; returns what they took.

    Raises StudyError while workers train them, StorageError where the user of the database may not delete them, and
    WorkerError where files cannot be reached. Calling it again continues what was interrupted.
    """
    taken, both = usage(study, kept_of), _with_confirmation(study)
    with _alone(both) as connection:
        _require_rights(connection, study.name)
        for one in both:
            one.leases.set_state(STOPPED)  # workers that come now leave
    for one in both:
        _delete_files(one, kept_of(one.optuna_study), {each.id for each in both})
    with _alone(both) as connection:
        for one in both:
            _delete_rows(connection, one)
    return taken


def _delete_rows(connection: Connection, study: StudyHandle) -> None:
    """Deletes a study from the database. Raises StudyError, so that nothing of it counts, where Optuna keeps it.

    A trial that is queued now, or a note about one, waits for this and finds no study then. Optuna would keep the study
    instead, and say nothing.
    """
    for column, of in ((_STUDIES.c.study_id, _STUDIES), (_TRIALS.c.trial_id, _TRIALS)):
        connection.execute(sql.select(column).where(of.c.study_id == study.id).with_for_update())
    study.storage.delete_study(study.id)
    if study.leases.exists(connection):
        raise StudyError(f"study {study.name}: something was added to it meanwhile; delete it again")
    forget(connection, study.id)


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
                _rename(connection, study_id(confirming), confirmation.companion_name(name))
    except ProgrammingError as error:
        raise StorageError(f"study {study.name}: {str(error.orig).strip()}; {AS_OWNER}") from error
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
        if is_ours(found.user_attrs) and study_id(found) not in confirming:
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


def _require_rights(connection: Connection, name: str) -> None:
    """Raises StorageError before anything is deleted by a user of the database who may not delete all of it."""
    refused = sql.text(
        "SELECT current_user FROM pg_class WHERE relname = ANY(:tables) AND NOT has_table_privilege(oid, 'DELETE')"
        " AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
    )
    user = connection.execute(refused, {"tables": [*tables().BaseModel.metadata.tables]}).scalars().first()
    if user is not None:
        raise StorageError(f"study {name}: user {user} of the database may not delete it; {AS_OWNER}")


def _attachments(study: StudyHandle) -> set[str]:
    own = attachments_of(study.storage.get_study_system_attrs(study.id))
    return {*own, *(name for trial in study.trials() for name in attachments_of(trial.system_attrs))}


def _of_others(storage: RDBStorage, names: set[str], deleted: set[int]) -> set[str]:
    """Those of these attachments that another study shows, too: a copy of a study points at the same files."""
    of_study, of_trial = (tables().StudySystemAttributeModel.__table__, tables().TrialSystemAttributeModel.__table__)
    of_trials = sql.select(of_trial.c.key).join(_TRIALS, _TRIALS.c.trial_id == of_trial.c.trial_id)
    keys = [ARTIFACT_PREFIX + name for name in names]
    shown = sql.union(
        sql.select(of_study.c.key).where(of_study.c.key.in_(keys), of_study.c.study_id.not_in(deleted)),
        of_trials.where(of_trial.c.key.in_(keys), _TRIALS.c.study_id.not_in(deleted)),
    )
    with storage.engine.begin() as connection:
        return {str(key).removeprefix(ARTIFACT_PREFIX) for key in connection.execute(shown).scalars()}


def _delete_files(study: StudyHandle, kept: Artifacts, deleted: set[int]) -> None:
    try:
        store, names = kept.attachments(), _attachments(study)
        for name in names - _of_others(study.storage, names, deleted):
            with suppress(ArtifactNotFound):
                store.remove(name)
        kept.remove_all()
    except OSError as error:
        raise WorkerError(f"{error.filename or kept.folder}: {remedy(error)}; then delete the study again") from error
