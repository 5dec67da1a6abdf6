"""A worker process: claims a trial, keeps its lease, reports its rungs, hands it back or finishes it, stops."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from pydantic import ValidationError

from models import logs
from models.config import DECODING, Config
from models.errors import ConfigError, UserError
from models.files import optional
from models.nn.network import generator_class
from models.training.failures import lost_device, ran_out_of_memory
from models.training.loop import Diverged, Evaluation, Training
from models.training.stopping import Stopped
from tuner.artifacts.layout import SAMPLES_FILE
from tuner.artifacts.store import Artifacts
from tuner.errors import LostDeviceError, StorageError, WorkerError
from tuner.optuna_internals import storage_of
from tuner.optuna_internals import trial_id as id_of
from tuner.results.summary import leaderboard
from tuner.storage.handle import StudyHandle, open_study
from tuner.storage.leases import (
    GONE,
    HEARTBEAT_SECONDS,
    PAUSED,
    STOPPED,
    Activity,
    Claim,
    Ended,
    Gone,
    Leases,
    LostLease,
    forget_deleted,
)
from tuner.study import samplers
from tuner.study.definition import Study
from tuner.study.limits import OUT_OF_MEMORY, DoesNotFit, mark
from tuner.study.multi_objective import Tuned, should_prune
from tuner.study.space import Space, chosen_problem, configuration_problem
from tuner.trials import attachments
from tuner.trials.objective import (
    Objective,
    Outcome,
    Pruned,
    TrialObserver,
    is_crowded,
    peak_memory,
    release_memory,
)
from tuner.workers.database_thread import TIMEOUT_SECONDS, DatabaseThread, DatabaseUnavailable, Result
from tuner.workers.options import CHECKPOINT_SECONDS
from tuner.workers.supervisor_watch import Lifeline

logger = logging.getLogger(__name__)

KEPT = 3
"""How many of the best trials keep their weights."""

MOST_FAILURES = 10
"""Trials that may fail in a row before a worker gives up: they are no part of the budget, so it would never end."""

STDERR = 2

BESIDE_STEPS = 10
"""How many times as long as a step a piece of held-out text may take to be read, or some tokens to be written."""


PRUNED_AT = "tuner:pruned"
"""The system attribute that keeps a verdict with its rung: pruners answer once, and the answer may get lost."""


@dataclass(frozen=True)
class WorkerTimings:
    """How often a worker does something, and how long it waits, in seconds."""

    heartbeat: float = HEARTBEAT_SECONDS
    """How often it shows that it lives."""

    poll: float = 0.5
    """How often it looks again when it has nothing to do."""

    answer: float = 10.0
    """How long training waits for the verdict on a rung before it goes on without."""

    shutdown: float = 5.0
    """How long it waits for the database when it leaves; then its lease runs out by itself."""


class Unbuildable(Exception):
    """A trial whose configuration is none that this study would try."""


def work(
    storage: RDBStorage,
    name: str,
    *,
    study_id: int | None = None,
    device: str,
    threads: int,
    artifacts: Artifacts,
    requested: threading.Event,
    worker_id: str,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    corpus_path: str | None = None,
    supervisor: int | None = None,
) -> str:
    """Works on a study until it ends or `requested` is set; returns why it stopped.

    One that is given by its id may have another name by now. Raises StudyError when the study or its corpus is not what
    it should be.
    """
    torch.set_num_threads(threads)
    if study_id is not None:
        name = Leases(storage, study_id).name()
    open_study(storage, name)
    study = StudyHandle.of(storage, Tuned(name, storage))
    definition = study.definition
    if corpus_path is not None:
        definition = definition.model_copy(
            update={"corpus": definition.corpus.model_copy(update={"path": corpus_path})}
        )
        study = replace(study, definition=definition)
    _require_a_generator(definition)
    with optional("files that are no longer needed are not deleted", logger.warning):
        sweep_artifacts(study.optuna_study, artifacts)
    objective = Objective(
        definition, study.optuna_study.user_attrs["fingerprint"], device, artifacts, checkpoint_seconds
    )
    worker = Worker(study, objective, threads, requested, worker_id, Lifeline(supervisor))
    return worker.run()


def sweep_artifacts(study: optuna.Study, artifacts: Artifacts) -> None:
    """Deletes what is left of trials that have ended: a worker that is killed cannot do it."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    complete = {trial.number for trial in ended if trial.state == TrialState.COMPLETE}
    artifacts.sweep({trial.number for trial in ended}, complete)


class Worker:
    """A worker at work. The main thread trains; the database_thread alone talks to the database."""

    def __init__(
        self,
        study: StudyHandle,
        objective: Objective,
        threads: int,
        requested: threading.Event,
        worker_id: str,
        lifeline: Lifeline | None = None,
        timings: WorkerTimings = WorkerTimings(),
    ) -> None:
        self.study, self.definition, self.storage = study.optuna_study, study.definition, study.storage
        self.objective = objective
        self.threads, self.requested = threads, requested
        self.id, self.timings = worker_id, timings
        self.leases = study.leases
        self.database_thread = DatabaseThread(self._heartbeat, timings.heartbeat)
        self.activity = Activity()
        self.trial_id: int | None = None
        self.lost, self.gone = threading.Event(), threading.Event()
        self.unanswered = False
        self.paused = False
        self.forgotten: set[int] = set()
        self.failures: list[str] = []
        self.lost_device: BaseException | None = None
        self.lifeline = lifeline or Lifeline()
        objective.on_progress = self._show_progress

    def _show_progress(self, text: str) -> None:
        """Shows in the status of the study how far a long encoding of its text is."""
        self.activity = Activity(self.activity.trial, text)

    def run(self) -> str:
        """Takes trials until there is nothing more to do; returns why."""
        if self.lifeline.is_cut:
            return "its supervisor is gone"
        with self.database_thread:
            number = self.database_thread.call(self._join)
            self.study.sampler = samplers.sampler(self.definition.sampler, self.definition.space, stream=number)
            self.study.pruner = samplers.pruner(self.definition.pruner, self.definition.trial.rungs)
            self.database_thread.call(
                lambda: self.study.get_trials(deepcopy=False)
            )  # many, perhaps: not while a lock is held
            try:
                return self._take_trials()
            except DatabaseUnavailable as error:
                raise StorageError(f"{error}; the trial goes on from its checkpoint when a worker is back") from error
            finally:
                with suppress(DatabaseUnavailable):  # without the database the lease runs out by itself
                    self.database_thread.call(self._leave, self.timings.shutdown)

    def _join(self) -> int:
        place = (socket.gethostname(), os.getpid(), self.objective.device, self.threads)
        self.leases.open()
        return self.leases.join(self.id, *place)

    def _leave(self) -> None:
        self.leases.leave(self.id)
        if self.gone.is_set() or not self.leases.exists():
            forget_deleted(self.storage.engine)

    def _take_trials(self) -> str:
        while not self.requested.is_set():
            if self.lifeline.stands_still:
                self.activity = Activity(doing="waiting for its command, which was stopped (Ctrl-Z)")
                self.requested.wait(self.timings.poll)
                continue
            claim = self.database_thread.call(self._take)
            if isinstance(claim, Ended):
                return claim.reason
            if isinstance(claim, Claim):
                self.paused = False  # the answer is newer than the last beat
                self._work_on(claim)
                self._require_success()
            else:
                self.activity = Activity(doing=claim.reason)
                self.requested.wait(self.timings.poll)
        return GONE if self.gone.is_set() else "asked to stop"

    def _require_success(self) -> None:
        """Raises what ends a worker that cannot do any better: its GPU is lost, or its disk is full."""
        if self.lost_device is not None:
            line = str(self.lost_device).partition("\n")[0]
            raise LostDeviceError(f"this process can do nothing more on its GPU ({line})") from self.lost_device
        if len(self.failures) >= MOST_FAILURES:
            raise WorkerError(f"{len(self.failures)} trials in a row failed here; the last: {self.failures[-1]}")

    def _take(self) -> Any:
        """Claims a trial; when asked again after an outage, the first answer may have been a claim, too."""
        if self.unanswered:
            self.leases.let_go(self.id)
        self.unanswered = True
        budget = self.definition.trials, self.definition.budget.hours
        try:
            claim = self.leases.claim(self.study, self.id, *budget, new=self.definition.confirms is None)
        except Gone as error:
            claim = Ended(str(error))
        self.unanswered = False
        return claim

    def _work_on(self, claim: Claim) -> None:
        """Trains a claimed trial to its end, whatever that is, and writes the end down."""
        number = claim.trial.number
        self.lost.clear()
        self.trial_id = id_of(claim.trial)
        self.activity = Activity(number, "starting")
        logs.PLACE["trial"] = number
        try:
            self._train(claim)
            is_over = True
        except (Exception, SystemExit) as error:
            is_over = self._ended_by(error, claim.trial)
        finally:
            self.trial_id = None
            self.activity = Activity()
            logs.PLACE.pop("trial", None)
            self._collect_garbage()
        if is_over:
            self.objective.forget(number, claim.attempt)

    def _train(self, claim: Claim) -> None:
        """Trains a trial, and writes down that it is complete."""
        trial = claim.trial
        draft = _Draft(trial, self.definition)
        self.database_thread.call(draft.write)
        config = self.database_thread.call(lambda: self._configure(draft, claim.attempt))
        self.objective.require_fit(config)
        given = config.model_dump(exclude_defaults=True)
        logger.debug("trial %d begins, attempt %d: %s", trial.number, claim.attempt, given)
        observer = _Observer(self, trial)
        with observer.watched():
            outcome = self.objective(trial.number, claim.attempt, config, observer)
        observer.settle()
        self.database_thread.call(lambda: self._complete(trial, outcome))
        logger.debug("trial %d is complete: %s", trial.number, outcome.values)
        self._keep_best()
        self.failures.clear()

    def _ended_by(self, error: BaseException, trial: optuna.Trial) -> bool:
        """Does what the end of a training asks for; returns whether the trial is over, so that its files can go.

        Raises what ends the worker, too.
        """
        match error:
            case Unbuildable() | ConfigError():
                return self._fail(trial, str(error))
            case LostLease() | Gone():
                logger.warning("%s", error)
                return False
            case Stopped():  # saved: the trial goes back into the queue
                logger.debug("trial %d is handed back", trial.number)
                self._hand_back(trial)
                return False
            case UserError():  # nothing can be trained here
                self._hand_back(trial)
                raise error
            case DatabaseUnavailable():
                raise error
            case UpdateFinishedTrialError():
                logger.warning("trial %d was ended from outside; what was trained of it is dropped", trial.number)
                return True
            case Pruned():
                logger.debug("trial %d is pruned", trial.number)
                self.failures.clear()
                return self._end(trial, TrialState.PRUNED, {})
            case _:
                self.lost_device = lost_device(error)
                return self._end_badly(trial, error)

    def _collect_garbage(self) -> None:
        """Frees what a trial leaves: an exception's frames hold its model, and the next one needs the memory."""
        gc.collect()
        release_memory(self.objective.device)
        if not gc.get_freeze_count():
            gc.freeze()  # what outlives the first trial is code, for the most part: looked through once, not each time

    def _configure(self, draft: _Draft, attempt: int) -> Config:
        """Enters the proposed configuration, or finds the one that an earlier attempt got."""
        trial_id = id_of(draft.trial)
        with self.leases.lease_held(trial_id, self.id):
            stored = self.storage.get_trial(trial_id).user_attrs.get("configuration")
            config = draft.config if stored is None else draft.checked(stored)
            self.leases.propose(trial_id, draft.parameters if stored is None else [])
            facts = {"attempts": attempt, "worker": f"{socket.gethostname()} {self.objective.device}"}
            self.leases.note(trial_id, facts | {"configuration": config.model_dump(mode="json")})
        return config

    def _complete(self, trial: optuna.Trial, outcome: Outcome) -> None:
        with self.leases.lease_held(id_of(trial), self.id):
            if _is_finished(self.storage, trial):
                return  # this request was cut off after its work was done
            self.leases.note(id_of(trial), outcome.facts | {"configuration": outcome.config.model_dump(mode="json")})
            texts = attachments.samples_kept(outcome.samples)
            if outcome.attachment is not None:
                texts |= attachments.attached(outcome.attachment, SAMPLES_FILE)
            self.leases.note(id_of(trial), texts, "system")
            for name, searched in self.definition.space.decoding_parameters.items():
                self._set_parameter(trial, name, getattr(outcome.config, name), searched.distribution())
            self._tell(trial, TrialState.COMPLETE, outcome.values)

    def _set_parameter(self, trial: optuna.Trial, name: str, value: Any, distribution: Any) -> None:
        if value is not None or name not in DECODING:
            self.storage.set_trial_param(id_of(trial), name, distribution.to_internal_repr(value), distribution)

    def _hand_back(self, trial: optuna.Trial) -> None:
        self._if_held(lambda: self.leases.release(id_of(trial), self.id), self.timings.shutdown)

    def _fail(self, trial: optuna.Trial, reason: str) -> bool:
        """Fails a trial that can be trained nowhere, at once; returns whether it was this worker's to say."""
        reason = " ".join(reason.split())
        logger.warning("trial %d failed: %s", trial.number, reason)
        self.failures.append(reason)
        return self._end(trial, TrialState.FAIL, {"reason": reason})

    def _end_badly(self, trial: optuna.Trial, error: BaseException) -> bool:
        """Writes down what ended a trial: its configuration, or a mistake. Returns whether the trial is over."""
        blamed = _blamed(error)
        if blamed is not None and not self._crowded_out(trial, error):
            # Counted as pruned, so that the sampler learns to stay away: a failed trial teaches it nothing.
            reason, violations = blamed
            logger.warning("trial %d: %s", trial.number, reason)
            return self._end(trial, TrialState.PRUNED, {"reason": reason}, violations)
        reason, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        retries = self.definition.retries
        failed = self._if_held(lambda: self.leases.crashed(id_of(trial), self.id, reason, trace, retries))
        if failed:
            logger.warning("trial %d failed: %s", trial.number, reason)
            self.failures.append(reason)
        elif failed is not None:
            logger.warning("trial %d crashed and is tried again: %s", trial.number, reason)
        return bool(failed)

    def _crowded_out(self, trial: optuna.Trial, error: BaseException) -> bool:
        """Whether memory ran out for the first time while others held most of it: it may suffice when tried again."""
        if not (self.definition.retries and ran_out_of_memory(error) and is_crowded(self.objective.device)):
            return False
        return "crashes" not in self.database_thread.call(lambda: self.storage.get_trial(id_of(trial))).user_attrs

    def _end(
        self, trial: optuna.Trial, state: TrialState, facts: dict[str, Any], violations: dict[str, float] | None = None
    ) -> bool:
        """Writes down that a trial is over; returns whether it was this worker's to say."""
        facts = facts | {"peak_memory_bytes": peak_memory(self.objective.device)}
        if self.activity.tokens_per_second:
            facts["tokens_per_second"] = round(self.activity.tokens_per_second)

        def write() -> bool:
            with self.leases.lease_held(id_of(trial), self.id):
                if not _is_finished(self.storage, trial):
                    mark(trial, violations or {})
                    self.leases.note(id_of(trial), facts)
                    self._tell(trial, state, None)
            return True

        return bool(self._if_held(write))

    def _if_held(self, request: Callable[[], Result], patience: float = TIMEOUT_SECONDS) -> Result | None:
        """Runs a request about the worker's trial; None, and a word about it, when the trial is another's by now."""
        try:
            return self.database_thread.call(request, patience)
        except (LostLease, Gone, UpdateFinishedTrialError) as error:
            logger.warning("%s", error)
            return None

    def _tell(self, trial: optuna.Trial, state: TrialState, values: list[float] | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study.tell(trial, values, state=state)

    def _keep_best(self) -> None:
        """Deletes the weights of completed trials that are no longer among the best; a confirmation needs all."""
        if self.definition.confirms is not None:
            return
        trials = self.database_thread.call(lambda: self.study.get_trials(deepcopy=False))
        best = {trial.number for trial in leaderboard(trials)[:KEPT]}
        complete = {trial.number for trial in trials if trial.state == TrialState.COMPLETE}
        for number in complete - best - self.forgotten:
            self.objective.forget_run(number)
            self.forgotten.add(number)

    def _heartbeat(self) -> None:
        try:
            state, active_seconds = self.leases.heartbeat(self.id, self.trial_id, self.activity)
        except LostLease:
            self.lost.set()
            return
        except Gone:
            self.gone.set()
            return
        hours = self.definition.budget.hours
        spent = hours is not None and active_seconds >= 3600 * hours
        self.paused = state == PAUSED or self.lifeline.stands_still
        if spent or state == STOPPED or self.lifeline.is_cut:
            self.requested.set()


class _Draft:
    """What a trial is to be trained with: what the sampler proposes, or an earlier attempt got, if the study has it.

    The sampler may think for seconds, so nothing is locked, nor written, meanwhile. The database is believed in nothing
    that the study does not say: an architecture is a name of code.
    """

    def __init__(self, trial: optuna.Trial, definition: Study) -> None:
        self.trial, self.space = trial, definition.space
        self.free = [] if definition.confirms is None else ["seed"]  # a confirmation trains with seeds of its own
        self.parameters: list[tuple[str, float, Any]] = []
        self.config = Config()

    def write(self) -> None:
        """Asks the sampler, unless an earlier attempt did; may be repeated. Raises Unbuildable."""
        known = self.get_trial(id_of(self.trial))
        stored = known.user_attrs.get("configuration")
        if stored is not None:
            self.config = self.checked(stored)
            return
        _require_queued(self.space, known.system_attrs.get("fixed_params", {}))
        storage = self.trial.storage
        self.trial.storage = self  # type: ignore[assignment]
        self.parameters = []
        try:
            self.config = self.space.suggest(self.trial)
        except ValidationError as error:
            raise Unbuildable(f"a configuration that cannot be: {_first(error)}") from error
        finally:
            self.trial.storage = storage

    def checked(self, stored: Any) -> Config:
        """Returns a stored configuration. Raises Unbuildable when it is none that this study would try."""
        try:
            config = Config.model_validate(stored)
            problem = configuration_problem(self.space, config, self.free)
        except ValidationError as error:
            raise Unbuildable(f"a configuration that cannot be: {_first(error)}") from error
        if problem is not None:
            raise Unbuildable(f"a configuration that is not of this study: {problem}")
        return config

    def set_trial_param(self, trial_id: int, name: str, value: float, distribution: Any) -> None:
        """Keeps a parameter until it may be written."""
        self.parameters.append((name, value, distribution))

    def __getattr__(self, name: str) -> Any:
        return getattr(storage_of(self.trial.study), name)


class _Observer(TrialObserver):
    """Follows a trial for its worker: rungs go to the study, verdicts and requests to stop come back."""

    def __init__(self, worker: Worker, trial: optuna.Trial) -> None:
        self.worker, self.trial = worker, trial
        stored = worker.database_thread.call(lambda: worker.storage.get_trial(id_of(trial)))
        if PRUNED_AT in stored.system_attrs:
            raise Pruned  # says the verdict on an earlier attempt, which did not hear it
        self.reported = set(stored.intermediate_values)
        self.verdicts: list[Future[bool]] = []
        self.looked = 0.0
        self.training: Training | None = None
        self.writing = False
        self.stepped = True

    def stop_requested(self) -> bool:
        return self.worker.requested.is_set() or self.worker.paused

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Sends a rung and waits a moment for the verdict; raises Pruned."""
        if evaluation.rung in self.reported:
            return  # by an earlier attempt
        logger.debug("rung %d: %.4f bits per byte", evaluation.rung, evaluation.bits_per_byte)
        self.verdicts.append(self.worker.database_thread.submit(lambda: self._write(evaluation)))
        with suppress(NoAnswer):
            self.verdicts[-1].result(timeout=self.worker.timings.answer)
        self._heed()
        self._wind_up()

    def on_step(self, training: Training) -> None:
        self.training = training
        self._look()

    def on_scoring_batch(self, training: Training) -> None:
        self.training = training
        self._look()

    def on_writing(self) -> None:
        self.writing = True
        self._look()

    def _look(self) -> None:
        """Leaves a trial that is not the worker's any more, heeds verdicts, and says how far it is."""
        if self.worker.gone.is_set():
            raise Gone(GONE)
        if self.worker.lost.is_set():
            raise LostLease(f"trial {self.trial.number} was taken over by another worker")
        if self.stop_requested():
            return
        now = time.monotonic()
        if now - self.looked > 0.5 or self._steps_next != self.stepped:
            self.looked = now
            self._wind_up()
            self._heed()
            self._tell_how_far()

    @property
    def _steps_next(self) -> bool:
        """Whether a step comes next: so it is before the first one."""
        return self.training.steps_next if self.training is not None else not self.writing

    def _tell_how_far(self) -> None:
        training, memory = self.training, peak_memory(self.worker.objective.device)
        if training is not None:
            if memory is not None and training.progress < 1:  # what it takes to write texts afterwards is not limited
                self._require_fit(memory)
            rate = training.tokens / training.seconds if training.seconds else None
            doing = str(training.config.architecture)
            self.worker.activity = Activity(self.trial.number, doing, training.progress, rate, memory)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Ends the process, and says where it stood, when training hangs: nothing gentler stops a thread."""
        self._wind_up()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _wind_up(self) -> None:
        """Allows `timeout` for the next step; what comes between steps is called for in pieces that may take longer."""
        self.stepped = self._steps_next
        seconds = self.worker.definition.timeout * (1 if self.stepped else BESIDE_STEPS)
        faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)

    def _require_fit(self, memory: int) -> None:
        needs = {"memory": float(memory)}
        limits = self.worker.definition.limits
        if limits.violations(needs):
            raise DoesNotFit(limits, needs)

    def settle(self) -> None:
        """Waits until every rung is written."""
        try:
            for verdict in self.verdicts:
                verdict.result(timeout=TIMEOUT_SECONDS)
        except NoAnswer:
            raise DatabaseUnavailable("the database did not take the trial's last rungs") from None

    def _heed(self) -> None:
        while self.verdicts and self.verdicts[0].done():
            if self.verdicts.pop(0).result():
                raise Pruned

    def _write(self, evaluation: Evaluation) -> bool:
        """Writes a rung, with the verdict: a pruner that is asked twice about a rung does not repeat itself."""
        last = evaluation.rung == self.worker.definition.trial.rungs
        with self.worker.leases.lease_held(id_of(self.trial), self.worker.id):
            storage, trial_id = self.worker.storage, id_of(self.trial)
            stored = storage.get_trial(trial_id)
            if evaluation.rung in stored.intermediate_values:  # this request was cut off after its work was done
                return PRUNED_AT in stored.system_attrs
            storage.set_trial_intermediate_value(trial_id, evaluation.rung, evaluation.bits_per_byte)
            pruned = not last and should_prune(self.worker.study, self.trial)
            if pruned:
                self.worker.leases.note(trial_id, {PRUNED_AT: evaluation.rung}, "system")
            return pruned


def _blamed(error: BaseException) -> tuple[str, dict[str, float]] | None:
    """What a configuration has done wrong, if it is to blame for an error, and the limits it exceeds."""
    if isinstance(error, DoesNotFit):
        return str(error), error.violations
    if isinstance(error, Diverged):
        return f"diverged: {error}", {}
    if ran_out_of_memory(error):
        return f"out of memory: {error}", OUT_OF_MEMORY
    return None


def _require_queued(space: Space, queued: Any) -> None:
    """Raises Unbuildable unless a trial was queued with values that this study searches."""
    if not isinstance(queued, dict):
        raise Unbuildable("queued with something that is no set of values")
    for name, value in queued.items():
        problem = chosen_problem(space, name, value)
        if problem is not None:
            raise Unbuildable(f"queued with a value that is not of this study: {name} {problem}")


def _require_a_generator(study: Study) -> None:
    """Raises ConfigError when not one architecture of the study is there, so that every trial would fail here."""
    searched = study.space.searched.get("architecture")
    missing = None
    for name in searched.values() if searched else [study.space.fixed.get("architecture", Config().architecture)]:
        try:
            generator_class(Config(architecture=str(name)))
        except ConfigError as error:
            missing = error
        except Exception:  # what its module raises, a trial will tell
            return
        else:
            return
    if missing is not None:
        raise missing


def _first(error: ValidationError) -> str:
    """The first problem of several, in one line."""
    one = error.errors()[0]
    place = ".".join(map(str, one["loc"]))
    message = one["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return f"{place} {message}" if place else message


def _is_finished(storage: RDBStorage, trial: optuna.Trial) -> bool:
    return storage.get_trial(id_of(trial)).state.is_finished()
