"""Supervises the workers of a command until their study ends, and replaces those that die."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import optuna
from optuna.storages import RDBStorage

from models.training.stopping import stop_requests
from tuner.artifacts.store import Artifacts
from tuner.errors import WorkerError
from tuner.results.summary import current
from tuner.storage.embedded import default_folder, revive
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Gone, LostLease, forget_deleted
from tuner.storage.locations import StorageOptions
from tuner.storage.outages import is_outage
from tuner.study.limits import OUT_OF_MEMORY, mark
from tuner.workers.options import WorkerOptions, environment
from tuner.workers.processes import Slot, WorkerExit, WorkerPool
from tuner.workers.supervisor_watch import Lifeline

CHECK_SECONDS = 1.0


class Watcher(Protocol):
    """What shows a study to the person who waits for its end."""

    def say(self, text: str) -> None:
        """Prints a line."""

    def look(self) -> bool:
        """Looks at the study and shows it; returns False when the database is away. Raises Gone."""


class Interrupted(Exception):
    """A person asked to stop; the message says what is lost."""


class Supervisor:
    """What the workers of one command have in common, whichever study they are on."""

    def __init__(
        self,
        storage: RDBStorage,
        places: StorageOptions,
        crew: WorkerOptions,
        supervisor: int | None = None,
        stop: Callable[[], AbstractContextManager[threading.Event]] = stop_requests,
    ) -> None:
        """`supervisor` is the process that watches over this command, as standing workers do; it ends with it.

        The event of `stop` is set when the workers are to save their trials and leave.
        """
        self.storage, self.places, self.crew, self.stop = storage, places, crew, stop
        self.lifeline = None if supervisor is None else Lifeline(supervisor)

    def supervise(
        self,
        study: StudyHandle,
        kept: Artifacts,
        slots: Sequence[Slot],
        begins: str,
        arguments: Sequence[str],
        view: AbstractContextManager[Watcher],
    ) -> str:
        """Runs workers until the study ends, shown by `view`; returns why it ended.

        Raises Interrupted after Ctrl-C, when trials are saved, WorkerError when all workers failed, Gone when deleted.
        """
        logs = kept.folder / "logs"
        with self.stop() as requested, view as watcher:
            watcher.say(f"study {study.name}: {begins}")
            team = self._pool(study, slots, arguments, logs)
            try:
                while team.watch() and not requested.is_set():
                    if watcher.look():
                        self.crew.beat()
                    else:
                        self._revive()
                    requested.wait(CHECK_SECONDS)
                    if self.lifeline is not None and self.lifeline.is_cut:
                        requested.set()
                if requested.is_set():
                    watcher.say("saving the running trials ...")
                killed = team.stop(self.crew.grace)
                watcher.look()
            except Gone as error:
                team.stop(self.crew.grace)
                forget_deleted(self.storage.engine)
                raise Gone(f"study {study.name} was deleted; its workers have ended") from error
            except (OSError, SystemExit):  # the terminal or pipe is gone: rich ends a process for that
                team.stop(self.crew.grace)
                raise
            finally:
                team.kill()
        return self._ending(study, team, logs, killed, requested.is_set())

    def _pool(self, study: StudyHandle, slots: Sequence[Slot], arguments: Sequence[str], logs: Path) -> WorkerPool:
        arguments = [*arguments, "--study-id", str(study.id)]
        return WorkerPool(slots, arguments, environment(self.places, self.crew), logs, partial(_free_trial, study))

    def _ending(self, study: StudyHandle, team: WorkerPool, logs: object, killed: int, interrupted: bool) -> str:
        """Why the study ended, when its workers have."""
        now = current(study)
        if interrupted and now.spent < 1:
            late = f"the last seconds of {killed} trials that were not saved within {self.crew.grace:g} s are lost"
            raise Interrupted(late if killed else "nothing is lost")
        if team.failed():
            failed = f"every worker of study {study.name} ended with an error"
            raise WorkerError(f"{failed}; see above, and the logs in {logs}")
        reason = replace(study, definition=now.study).why_ended()
        return reason or "the study was stopped"  # and resumed before we looked

    def _revive(self) -> None:
        """Helps when the database is away: starts the embedded one again. A server of the user's own is left alone."""
        if self.places.storage is None:
            revive(self.places.data_folder or default_folder())


def _free_trial(study: StudyHandle, death: WorkerExit) -> bool:
    """Frees the trial of a worker that died, or ends it if it was to blame; returns whether the worker had one."""
    try:
        trial_id = study.leases.holding(death.worker_id)
        if trial_id is not None:
            with suppress(LostLease):  # another worker has it by now
                _blame(study, trial_id, death)
        study.leases.leave(death.worker_id)
    except Gone:
        return True
    except Exception as error:
        if not is_outage(error):
            raise
        return True  # without the database its lease runs out by itself
    return trial_id is not None


def _blame(study: StudyHandle, trial_id: int, death: WorkerExit) -> None:
    """Writes down what a worker's trial did to it; one that was ended from outside goes on elsewhere."""
    if death.out_of_memory:
        with study.leases.lease_held(trial_id, death.worker_id):
            trial = optuna.Trial(study.optuna_study, trial_id)
            trial.set_user_attr("reason", "out of memory: the system ended the worker")
            mark(trial, OUT_OF_MEMORY)
            study.optuna_study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    elif death.crash:
        reason = f"the worker ended {death.how}"
        study.leases.crashed(trial_id, death.worker_id, reason, death.words, study.definition.retries)
