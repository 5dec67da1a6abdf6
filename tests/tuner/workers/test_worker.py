"""Workers on a real database: exact budgets, early pruning, every way a trial can end, and trials that go on."""

import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sqlalchemy
import torch
from optuna.storages import RDBStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from sqlalchemy.exc import OperationalError

from models.config import Config, Corpus
from models.errors import CorpusError
from models.nn.network import parameter_count
from models.runs.run import load, read_recipe, train_run
from models.text import corpus as corpora
from models.text.corpus import load_corpus
from models.training import scoring
from models.training.failures import OutOfMemoryInCapture
from models.training.loop import Diverged, Training, train
from models.training.stopping import Stopped
from tests.tuner.conftest import Following, Heard
from tuner.artifacts.store import Artifacts
from tuner.control import create
from tuner.errors import LostDeviceError, StorageError, StudyError, WorkerError
from tuner.results.export import chosen_trial, exported
from tuner.results.summary import current, front
from tuner.storage import embedded
from tuner.storage import leases as books
from tuner.storage.connection import open_storage
from tuner.storage.handle import StudyHandle, open_study
from tuner.storage.leases import Counts, Leases
from tuner.study import samplers
from tuner.study.definition import Study
from tuner.trials import objective
from tuner.trials import objective as objectives
from tuner.trials.objective import Objective, Outcome
from tuner.watch.notes import shown, trial_note
from tuner.watch.plots import quality_and_diversity
from tuner.workers import processes, worker
from tuner.workers.supervisor_watch import Lifeline
from tuner.workers.worker import KEPT, Worker, work

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
Enter = Callable[[Study], optuna.Study]
Small = Callable[..., Study]


def by_learning_rate(number: int, config: Config, rung: int) -> float:
    return config.learning_rate + 1 / rung


def curve(trial: FrozenTrial) -> list[float]:
    """What a trial was worth at each rung; the database gives them in no order."""
    return [trial.intermediate_values[rung] for rung in sorted(trial.intermediate_values)]


def counts(found: optuna.Study, storage: RDBStorage) -> Counts:
    return Leases(storage, found._study_id).counts()


# A study with real training.


class Finished:
    """A study of ten trials that one worker has trained."""

    def __init__(self, storage: RDBStorage, found: optuna.Study, study: Study, artifacts: Path) -> None:
        self.study, self.artifacts, self.folder = study, artifacts, artifacts / study.name
        options = {
            "device": "cpu",
            "threads": 1,
            "artifacts": Artifacts(artifacts / study.name),
            "worker_id": study.name,
        }
        with Heard() as self.said:
            self.reason = work(storage, study.name, requested=threading.Event(), **options)  # type: ignore[arg-type]
        self.trials: list[FrozenTrial] = found.trials

    def those(self, state: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state == state]

    @property
    def best_first(self) -> list[FrozenTrial]:
        return sorted(self.those(COMPLETE), key=lambda trial: trial.value or 0.0)


@pytest.fixture(scope="module")
def finished(
    storage: RDBStorage, small: Small, enter: Enter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    parameters = {
        "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "architecture": {"type": "categorical", "choices": ["rnn", "gru", "transformer"]},
        "heads": {"type": "categorical", "choices": [2, 4], "when": {"architecture": "transformer"}},
        "hidden_size": {"type": "int", "low": 8, "high": 24, "step": 8},
        "temperature": {"type": "float", "low": 0.3, "high": 1.5},
        "top_k": {"type": "categorical", "choices": [5, 20]},
        "batch_size": 8,
        "sequence_length": 16,
    }
    study = small(
        10,
        parameters=parameters,
        sampler={"type": "tpe", "n_startup_trials": 4, "seed": 1},
        pruner={"type": "successive_halving", "reduction_factor": 2},
    )
    threads = torch.get_num_threads()
    yield Finished(storage, enter(study), study, tmp_path_factory.mktemp("artifacts"))
    torch.set_num_threads(threads)


def test_a_study_is_worked_off_to_its_exact_budget(finished: Finished) -> None:
    assert finished.reason == "all 10 trials are finished"
    assert [trial.number for trial in finished.trials] == list(range(10))
    assert len(finished.those(COMPLETE)) >= 1
    assert len(finished.those(PRUNED)) >= 1
    assert len(finished.those(COMPLETE)) + len(finished.those(PRUNED)) == 10
    assert finished.said == []


def test_a_rung_is_reported_until_a_trial_is_pruned(finished: Finished) -> None:
    assert all(sorted(trial.intermediate_values) == [1, 2, 3] for trial in finished.those(COMPLETE))
    assert all(trial.value == trial.intermediate_values[3] for trial in finished.those(COMPLETE))
    assert all(sorted(trial.intermediate_values) in ([1], [1, 2]) for trial in finished.those(PRUNED))


def test_the_configuration_that_trained_is_stored(finished: Finished) -> None:
    for trial in finished.trials:
        stored = Config.model_validate(trial.user_attrs["configuration"])
        suggested = finished.study.space.suggest(FixedTrial(trial.params))  # type: ignore[arg-type]
        chosen_later = {"temperature": stored.temperature, "top_k": stored.top_k}
        assert stored == suggested.model_copy(update=chosen_later)
        assert trial.user_attrs["attempts"] == 1


def test_decoding_parameters_are_stored_as_any_other_once_a_trial_is_complete(finished: Finished) -> None:
    for trial in finished.those(COMPLETE):
        assert 0.3 <= trial.params["temperature"] <= 1.5
        assert trial.params["temperature"] == trial.user_attrs["configuration"]["temperature"]
        assert trial.params["top_k"] == trial.user_attrs["configuration"]["top_k"] == 20
    assert not any("temperature" in trial.params for trial in finished.those(PRUNED))


def test_texts_of_a_completed_trial_are_kept_and_shown(finished: Finished, storage: RDBStorage) -> None:
    kept = Artifacts(finished.folder).attachments()
    for trial in finished.those(COMPLETE):
        stored = storage.get_trial(trial._trial_id)
        attrs, note = stored.system_attrs, trial_note(finished.study, stored)
        (attached,) = (json.loads(text) for name, text in attrs.items() if name.startswith("artifacts:"))
        assert attached["filename"] == "samples.jsonl"
        with kept.open_reader(attached["artifact_id"]) as file:
            samples = [json.loads(line) for line in file]
        assert len(samples) == 3
        assert all(set(sample) == {"prompt", "text"} for sample in samples)
        assert shown(samples[0]["prompt"]) in note
        assert shown(samples[2]["text"]) in note
    assert not any(name.startswith("artifacts:") for trial in finished.those(PRUNED) for name in trial.system_attrs)


def test_facts_are_stored_with_a_trial(finished: Finished) -> None:
    for trial in finished.those(COMPLETE):
        facts, config = trial.user_attrs, Config.model_validate(trial.user_attrs["configuration"])
        vocabulary = load(finished.folder / f"trial-{finished.best_first[0].number}", "cpu").tokenizer.vocabulary_size
        assert facts["parameter_count"] == parameter_count(config, vocabulary)
        assert facts["tokens"] == 4096
        assert facts["tokens_per_second"] > 0
        assert facts["peak_memory_bytes"] > 2**20
        assert (facts["threads"], facts["device"]) == (1, "cpu")
    assert all(trial.user_attrs["peak_memory_bytes"] > 2**20 for trial in finished.those(PRUNED))


def test_the_best_runs_are_kept_and_nothing_else(finished: Finished) -> None:
    kept = {path.name for path in finished.folder.iterdir() if path.name.startswith("trial-")}
    assert kept == {f"trial-{trial.number}" for trial in finished.best_first[:KEPT]}
    assert not list(finished.folder.rglob("*.safetensors.*"))
    assert not list((finished.folder / "checkpoints").glob("*"))


def test_a_kept_run_writes_text_and_trains_again_to_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    best = finished.best_first[0]
    folder = finished.folder / f"trial-{best.number}"
    assert load(folder, "cpu").generate("1", 20, seed=1) == load(folder, "cpu").generate("1", 20, seed=1)
    recipe = read_recipe(folder / "config.yaml")
    assert recipe.parameters == Config.model_validate(best.user_attrs["configuration"])
    trained = train_run(recipe, tmp_path / "again", device="cpu")
    assert [rung.bits_per_byte for rung in trained.evaluations] == curve(best)
    assert trained.best.bits_per_byte == best.value


# Many workers, many samplers, many pruners; no training.


def test_eight_workers_finish_exactly_as_many_trials_as_they_should(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(30)
    found = enter(study)
    reasons = crew.work(study, by_learning_rate, workers=8)
    assert reasons == ["all 30 trials are finished"] * 8
    assert counts(found, storage).finished == 30
    assert [trial.number for trial in found.trials] == list(range(30))
    assert counts(found, storage).running == counts(found, storage).waiting == 0
    assert Leases(storage, found._study_id).alive() == []


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_works_off_a_study(crew: Any, small: Small, enter: Enter, storage: RDBStorage, name: str) -> None:
    parameters = {
        "learning_rate": {"type": "float", "low": 0.25, "high": 1.0, "step": 0.25},
        "architecture": {"type": "categorical", "choices": ["lstm", "transformer"]},
        "dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.5, "when": {"architecture": "transformer"}},
        "temperature": {"type": "float", "low": 0.5, "high": 1.5},
    }
    options = {"n_startup_trials": 3} if name in ("tpe", "gp", "cmaes") else {}
    study = small(7, parameters=parameters, sampler={"type": name} | options, pruner="none")
    found = enter(study)
    crew.work(study, by_learning_rate, workers=1 if name == "gp" else 2)
    assert counts(found, storage) == Counts(complete=7)
    assert all("dropout" in trial.params or trial.params["architecture"] == "lstm" for trial in found.trials)
    assert crew.said == []


@pytest.mark.parametrize("name", samplers.PRUNERS)
def test_every_pruner_works_off_a_study(crew: Any, small: Small, enter: Enter, storage: RDBStorage, name: str) -> None:
    options = {"threshold": {"upper": 1.5}, "median": {"n_startup_trials": 1}}.get(name, {})
    study = small(8, pruner={"type": name} | options)  # type: ignore[operator]
    found = enter(study)
    crew.work(study, lambda number, config, rung: float(number), workers=2)
    assert counts(found, storage).finished == 8
    assert crew.said == []
    if name in ("successive_halving", "median", "threshold"):
        assert counts(found, storage).pruned >= 1
    if name == "none":
        assert counts(found, storage).pruned == 0


def test_a_grid_ends_after_its_points(crew: Any, small: Small, enter: Enter) -> None:
    parameters = {
        "layers": {"type": "int", "low": 1, "high": 3},
        "architecture": {"type": "categorical", "choices": ["rnn", "lstm"]},
    }
    study = small(100, parameters=parameters, sampler="grid", pruner="none")
    found = enter(study)
    assert crew.work(study, by_learning_rate, workers=3) == ["all 6 trials are finished"] * 3
    assert len({tuple(sorted(trial.params.items())) for trial in found.trials}) == len(found.trials) == 6


def test_a_fixed_configuration_is_trained_once(crew: Any, small: Small, enter: Enter) -> None:
    study = small(100, parameters={"architecture": "gru"})
    found = enter(study)
    crew.work(study, by_learning_rate, workers=2)
    assert [trial.value for trial in found.trials] == [by_learning_rate(0, Config(), 3)]


def test_successive_halving_prunes_from_the_first_rung_with_several_workers(
    crew: Any, small: Small, enter: Enter
) -> None:
    """A median would wait for five complete trials, of which the other workers are in the middle."""
    study = small(16, pruner="successive_halving", trial={"tokens": 40_960, "rungs": 9})
    found = enter(study)
    crew.work(study, lambda number, config, rung: float(number), workers=4)
    pruned = [trial for trial in found.trials if trial.state == PRUNED]
    first = min(trial.datetime_complete for trial in pruned if trial.datetime_complete)
    before = [trial for trial in found.trials if trial.state == COMPLETE and trial.datetime_complete < first]  # type: ignore[operator]
    assert len(before) < 5
    assert len(pruned) >= 12
    assert sum(max(trial.intermediate_values) == 1 for trial in pruned) >= 12


def test_two_seeded_workers_do_not_propose_the_same(crew: Any, small: Small, enter: Enter) -> None:
    study = small(8, sampler={"type": "random", "seed": 3})
    found = enter(study)
    meet = threading.Barrier(2)

    def together(number: int, config: Config, rung: int) -> float:
        if number < 2 and rung == 1:
            meet.wait(30)
        return 1.0

    crew.work(study, together, workers=2)
    assert len({trial.params["learning_rate"] for trial in found.trials}) == 8


# Trials that end badly.


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Diverged("the training loss is no longer finite after 49 steps"), "diverged: the training loss"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory: CUDA out of memory"),
        (MemoryError("no room"), "out of memory: no room"),
        (torch.AcceleratorError("CUDA error: out of memory"), "out of memory: CUDA error"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of memory: "),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out of memory: cuDNN"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "out of memory: cuDNN"),
    ],
)
def test_what_no_smaller_size_would_meet_prunes_a_trial_so_that_the_sampler_learns(
    crew: Any, small: Small, enter: Enter, error: BaseException, reason: str
) -> None:
    study = small(4, pruner="none")
    found = enter(study)

    def score(number: int, config: Config, rung: int) -> float:
        if number % 2 and rung == 2:
            raise error
        return 1.0

    assert crew.work(study, score) == ["all 4 trials are finished"]
    assert [trial.state for trial in found.trials] == [COMPLETE, PRUNED, COMPLETE, PRUNED]
    assert found.trials[1].user_attrs["reason"].startswith(reason)
    assert found.trials[1].intermediate_values == {1: 1.0}
    assert found.trials[1].user_attrs["peak_memory_bytes"] > 0
    assert [line.split(": ")[0] for line in crew.said] == ["trial 1", "trial 3"]


def test_memory_that_a_cpu_does_not_have_counts_as_out_of_memory(crew: Any, small: Small, enter: Enter) -> None:
    study = small(1, pruner="none")
    found = enter(study)
    crew.work(study, lambda number, config, rung: float(torch.empty(2**50).sum()))
    assert found.trials[0].state == PRUNED
    assert found.trials[0].user_attrs["reason"].startswith("out of memory: ")


def test_a_configuration_that_others_left_no_memory_is_tried_again_once(
    crew: Any, small: Small, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "is_crowded", lambda device: True)
    study = small(2, pruner="none")
    found = enter(study)
    tries: list[int] = []

    def score(number: int, config: Config, rung: int) -> float:
        tries.append(number)
        if number == 0 or tries == [0, 0, 1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    crew.work(study, score)
    assert [trial.state for trial in found.trials] == [PRUNED, COMPLETE]
    assert [trial.user_attrs["attempts"] for trial in found.trials] == [2, 2]
    assert found.trials[0].constraints
    assert not found.trials[1].constraints


STICKY = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`"),
    RuntimeError("CUDA driver error: unspecified launch failure"),
]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("error", STICKY)
def test_an_error_that_takes_the_gpu_away_ends_the_process_and_not_ten_trials(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage, error: Exception, wrapped: bool
) -> None:
    study = small(5, pruner="none")
    found = enter(study)

    def fail_from_the_fourth(number: int, config: Config, rung: int) -> float:
        if number < 3:
            return 1.0
        if wrapped:
            raise ValueError("this generator is lost") from error
        raise error

    with pytest.raises(LostDeviceError, match=r"nothing more on its GPU \(.*\)$") as caught:
        crew.work(study, fail_from_the_fourth)
    assert caught.value.exit_code not in processes.FINAL_CODES
    assert counts(found, storage) == Counts(complete=3, waiting=1)
    assert found.trials[3].user_attrs["crashes"] == 1
    assert Leases(storage, found._study_id).alive() == []
    crew.work(study, lambda number, config, rung: 1.0)  # the process that takes its place
    assert counts(found, storage) == Counts(complete=5)
    assert found.trials[3].user_attrs["crashes"] == 1


def test_memory_that_ran_out_in_a_capture_ends_the_trial_as_infeasible_and_the_process(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(5, pruner="none")
    found = enter(study)

    def score(number: int, config: Config, rung: int) -> float:
        raise OutOfMemoryInCapture("while a training step was captured: CUDA out of memory")

    with pytest.raises(LostDeviceError):
        crew.work(study, score)
    assert counts(found, storage) == Counts(pruned=1)
    assert found.trials[0].constraints


def test_a_trial_gives_back_the_memory_that_its_neighbours_need(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    for device in ("cpu", "cuda:0"):
        Worker._collect_garbage(SimpleNamespace(objective=SimpleNamespace(device=device)))  # type: ignore[arg-type]
    assert emptied == [True]

    def refuse() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    objective.release_memory("cuda:0")  # the error that took the device away was reported


def test_others_crowd_a_gpu_when_they_hold_more_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 24))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 8)
    for own, crowded in ((8, True), (22, False)):
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device, own=own: own)
        assert objective.is_crowded("cuda:0") is crowded
    assert not objective.is_crowded("cpu")
    assert objective.peak_memory("cuda:0") == 8


def test_a_real_divergence_is_noticed(crew: Any, small: Small, enter: Enter, tmp_path: Path) -> None:
    wild = {
        "optimizer": "sgd",
        "learning_rate": 100.0,
        "gradient_clip": 0.0,
        "layers": 2,
        "architecture": "transformer",
    }
    study = small(1, parameters=wild | {"hidden_size": 8, "heads": 2, "batch_size": 8, "sequence_length": 16})
    found = enter(study)
    crew.work(study, Objective(study, found.user_attrs["fingerprint"], "cpu", Artifacts(tmp_path / "artifacts")))
    assert found.trials[0].state == PRUNED
    assert found.trials[0].user_attrs["reason"].startswith("diverged: the ")


def test_an_error_fails_a_trial_with_its_traceback_and_the_worker_goes_on(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(3, retries=0)
    found = enter(study)

    def score(number: int, config: Config, rung: int) -> float:
        if number == 1:
            raise ZeroDivisionError("what a pity")
        if number == 2:
            raise SystemExit(3)
        return 1.0

    assert crew.work(study, score) == ["all 3 trials are finished"]
    assert counts(found, storage) == Counts(complete=3, fail=2)
    facts = found.trials[1].user_attrs
    assert facts["reason"] == "ZeroDivisionError: what a pity"
    assert facts["traceback"].startswith("Traceback (most recent call last):")
    assert "in score" in facts["traceback"]
    assert found.trials[2].user_attrs["reason"] == "SystemExit: 3"
    assert crew.said == ["trial 1 failed: ZeroDivisionError: what a pity", "trial 2 failed: SystemExit: 3"]


@pytest.mark.parametrize("crashes", [1, 2, 3])
def test_a_trial_that_crashes_is_tried_again_under_its_number_a_set_number_of_times(
    crew: Any, small: Small, enter: Enter, crashes: int
) -> None:
    study = small(2, pruner="none")
    found = enter(study)
    calls: list[int] = []

    def score(number: int, config: Config, rung: int) -> float:
        if number == 0 and rung == 2 and len(calls) < crashes:
            calls.append(rung)
            raise ZeroDivisionError("now and then")
        return 1.0

    assert crew.work(study, score) == ["all 2 trials are finished"]
    trial = found.trials[0]
    assert trial.state == (COMPLETE if crashes <= study.retries else TrialState.FAIL)
    assert (trial.user_attrs["crashes"], trial.user_attrs["attempts"]) == (crashes, min(crashes + 1, 3))
    assert "ZeroDivisionError: now and then" in trial.user_attrs["traceback"]
    assert ("reason" in trial.user_attrs) == (trial.state == TrialState.FAIL)
    assert len(found.trials) == (2 if trial.state == COMPLETE else 3)


def test_a_trial_that_crashed_goes_on_from_its_checkpoint(
    crew: Any, one: Study, enter: Enter, uninterrupted: list[float], tmp_path: Path
) -> None:
    found = enter(one)

    def crash() -> None:
        raise RuntimeError("now and then")

    training = Interrupted(one, found.user_attrs["fingerprint"], tmp_path, 25, crash)
    training.objective.checkpoint_seconds = 0.0
    assert crew.work(one, training) == ["its only trial is finished"]
    assert training.steps == [*range(1, 26), *range(26, 33)]
    assert curve(found.trials[0]) == uninterrupted
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_study_whose_trials_all_fail_ends_and_says_so(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(100)
    found = enter(study)
    assert crew.work(study, lambda number, config, rung: 1 / 0) == ["all of its 5 trials failed"]
    assert counts(found, storage) == Counts(fail=books.NEVER_FINISHED)


def test_a_worker_on_which_nothing_succeeds_any_more_gives_up(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    """Otherwise a full disk, or one broken GPU, would burn trials for ever: failed ones are no part of the budget."""
    study = small(100, pruner="none")
    found = enter(study)

    def score(number: int, config: Config, rung: int) -> float:
        if number >= 3:
            raise OSError(28, "No space left on device")
        return 1.0

    with pytest.raises(WorkerError, match=r"10 trials in a row failed.*No space left on device"):
        crew.work(study, score)
    assert counts(found, storage) == Counts(complete=3, fail=10)


def test_a_trial_that_would_not_have_been_the_users_to_train_is_handed_back(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(3)
    found = enter(study)

    def score(number: int, config: Config, rung: int) -> float:
        raise CorpusError("corpus squares.txt: gone")

    with pytest.raises(CorpusError, match="gone"):
        crew.work(study, score)
    assert counts(found, storage) == Counts(waiting=1)
    assert Leases(storage, found._study_id).alive() == []


def test_another_text_than_the_studys_is_refused(
    small: Small, enter: Enter, storage: RDBStorage, tmp_path: Path
) -> None:
    study = small(3)
    found = enter(study)
    (tmp_path / "other.txt").write_text("All other texts. " * 900)
    with pytest.raises(StudyError, match=r"other.txt differs from the one study .* searches on"):
        work(
            storage,
            study.name,
            device="cpu",
            threads=torch.get_num_threads(),
            artifacts=Artifacts(tmp_path),
            requested=threading.Event(),
            worker_id=study.name,
            corpus_path=str(tmp_path / "other.txt"),
        )
    assert counts(found, storage) == Counts(waiting=1)


def test_an_unknown_study_lists_those_there_are(storage: RDBStorage, small: Small, enter: Enter) -> None:
    name = enter(small()).study_name
    with pytest.raises(StudyError, match=rf"no study 'nonsense' in this database; there are: .*{name}"):
        open_study(storage, "nonsense")


def test_a_study_of_another_program_is_left_alone(storage: RDBStorage, small: Small, enter: Enter) -> None:
    foreign = optuna.create_study(storage=storage, study_name="foreign", direction="maximize")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="was not made by the tuner"):
        open_study(storage, "foreign")
    with pytest.raises(StudyError, match="was not made by the tuner"):
        enter(small(name="foreign"))
    assert optuna.load_study(storage=storage, study_name="foreign").user_attrs == {}
    optuna.delete_study(storage=storage, study_name="foreign")


# Trials that go on.


class Interrupted:
    """Real training that does something after so many steps, and counts its steps."""

    def __init__(self, study: Study, fingerprint: str, folder: Path, after: int, what: Callable[[], None]) -> None:
        self.objective = Objective(study, fingerprint, "cpu", Artifacts(folder))
        self.device, self.after, self.what = "cpu", after, what
        self.steps: list[int] = []
        self.forget, self.forget_run = self.objective.forget, self.objective.forget_run
        self.require_fit = self.objective.require_fit

    def __call__(self, number: int, attempt: int, config: Config, observer: Any) -> Any:
        def count(training: Training) -> None:
            self.steps.append(training.step)
            if len(self.steps) == self.after:
                self.what()

        return self.objective(number, attempt, config, Following(observer, count))


@pytest.fixture
def one(small: Small) -> Study:
    """A study of one trial of 32 steps."""
    fixed = {"architecture": "gru", "dropout": 0.1, "hidden_size": 8, "batch_size": 8, "sequence_length": 16}
    return small(1, parameters=fixed)


@pytest.fixture
def uninterrupted(one: Study) -> list[float]:
    """What its rungs are worth when nothing happens."""
    config = one.space.suggest(FixedTrial({}))  # type: ignore[arg-type]
    corpus = load_corpus(Corpus.model_validate(one.corpus.model_dump()), config.tokenizer, config.vocabulary_size)
    return [rung.bits_per_byte for rung in train(config, corpus, one.trial).evaluations]


@pytest.mark.parametrize("after", [1, 7, 11, 25, 32])
def test_a_trial_that_was_handed_back_goes_on_from_its_checkpoint_to_the_same_bits(
    crew: Any, one: Study, enter: Enter, uninterrupted: list[float], tmp_path: Path, after: int
) -> None:
    found = enter(one)
    fingerprint = found.user_attrs["fingerprint"]
    first = Interrupted(one, fingerprint, tmp_path, after, crew.requested.set)
    assert crew.work(one, first) == ["asked to stop"]
    assert found.trials[0].state == TrialState.WAITING
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["trial-0.1.safetensors"]
    crew.requested.clear()
    second = Interrupted(one, fingerprint, tmp_path, 99, lambda: None)
    crew.work(one, second)
    assert first.steps + second.steps == list(range(1, 33))
    (trial,) = found.trials
    assert (trial.state, trial.user_attrs["attempts"]) == (COMPLETE, 2)
    assert curve(trial) == uninterrupted
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_rung_that_never_arrived_although_the_checkpoint_is_behind_it_is_reported_by_the_next_attempt(
    crew: Any, one: Study, enter: Enter, uninterrupted: list[float], tmp_path: Path, storage: RDBStorage
) -> None:
    found = enter(one)
    fingerprint = found.user_attrs["fingerprint"]
    crew.work(one, Interrupted(one, fingerprint, tmp_path, 25, crew.requested.set))
    assert sorted(found.trials[0].intermediate_values) == [1, 2]
    with storage.engine.begin() as connection:  # as if the worker had died while the database was away
        lost = "delete from trial_intermediate_values where step = 1 and trial_id = :trial"
        connection.execute(sqlalchemy.text(lost), {"trial": found.trials[0]._trial_id})
    crew.requested.clear()
    crew.work(one, Interrupted(one, fingerprint, tmp_path, 99, lambda: None))
    values = found.trials[0].intermediate_values
    assert [values[rung] for rung in (1, 2, 3)] == uninterrupted


def test_a_damaged_checkpoint_costs_time_and_nothing_else(
    crew: Any, one: Study, enter: Enter, uninterrupted: list[float], tmp_path: Path
) -> None:
    found = enter(one)
    fingerprint = found.user_attrs["fingerprint"]
    crew.work(one, Interrupted(one, fingerprint, tmp_path, 20, crew.requested.set))
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    content = bytearray(checkpoint.read_bytes())
    content[-8] ^= 1
    checkpoint.write_bytes(content)
    crew.requested.clear()
    second = Interrupted(one, fingerprint, tmp_path, 99, lambda: None)
    with pytest.warns(UserWarning, match="checkpoint ignored.*damaged"):
        crew.work(one, second)
    assert second.steps == list(range(1, 33))
    assert curve(found.trials[0]) == uninterrupted


def test_a_full_disk_costs_checkpoints_and_weights_and_not_the_trial(
    crew: Any, one: Study, enter: Enter, uninterrupted: list[float], tmp_path: Path
) -> None:
    found = enter(one)
    objective = Objective(one, found.user_attrs["fingerprint"], "cpu", Artifacts(tmp_path), checkpoint_seconds=0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))  # the kernel takes no more of any file
    try:
        crew.work(one, objective)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (trial,) = found.trials
    assert (trial.state, trial.user_attrs["attempts"]) == (COMPLETE, 1)
    assert curve(trial) == uninterrupted
    assert crew.said[0].startswith("no checkpoint of trial 0: ")
    assert crew.said[0].endswith("; training goes on")
    assert crew.said[-1].startswith("the weights of trial 0 are not kept: ")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("tuner.trials.objective.decode", "no texts were written (RuntimeError: broken); calibrated without"),
        ("tuner.trials.objective.write_start", "the weights of trial 0 are not kept: broken ("),
        ("tuner.artifacts.store.Artifacts.attach", "the samples of trial 0 are not kept for the dashboard: broken"),
        ("tuner.trials.objective.parameter_count", None),
    ],
)
def test_nothing_that_breaks_after_training_costs_a_trial_its_value(
    crew: Any, one: Study, enter: Enter, uninterrupted: list[float], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, place: str, said: str | None,
) -> None:  # fmt: skip
    def broken(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("broken")

    found = enter(one)
    monkeypatch.setattr(place, broken)
    crew.work(one, Objective(one, found.user_attrs["fingerprint"], "cpu", Artifacts(tmp_path)))
    (trial,) = found.trials
    assert (trial.state, trial.user_attrs["attempts"]) == (COMPLETE, 1)
    assert curve(trial) == uninterrupted
    assert [line.startswith(said or "") for line in crew.said] == [True] * (said is not None)
    assert (Artifacts(tmp_path).fetch_run(0) is None) == (place == "tuner.trials.objective.write_start")


def steal(storage: RDBStorage, found: optuna.Study, worker_id: str) -> None:
    """Another worker takes over the only trial, as if its worker had been dead for a while."""
    leases = Leases(storage, found._study_id)
    leases.join(f"thief of {worker_id}", "elsewhere", 1, "cpu", 1)
    claim: Any = None
    while not isinstance(claim, books.Claim):  # a beat of the living worker may come in between
        leases.leave(worker_id)
        claim = leases.claim(found, f"thief of {worker_id}", 1, None)


def stop_when_it_speaks(crew: Any) -> None:
    while not crew.said:
        time.sleep(0.01)
    crew.requested.set()


def test_a_worker_whose_trial_was_taken_over_stops_it_and_writes_nothing(
    crew: Any, one: Study, enter: Enter, storage: RDBStorage, tmp_path: Path
) -> None:
    found = enter(one)
    take_over = lambda: steal(storage, found, f"{one.name}-0")  # noqa: E731
    objective = Interrupted(one, found.user_attrs["fingerprint"], tmp_path, 15, take_over)
    stopper = threading.Thread(target=stop_when_it_speaks, args=[crew])
    stopper.start()
    assert crew.work(one, objective) == ["asked to stop"]
    stopper.join(30)
    assert crew.said == [f"trial {found.trials[0]._trial_id} was taken over"]
    (trial,) = found.trials
    assert trial.state == TrialState.RUNNING
    assert sorted(trial.intermediate_values) == [1]
    assert len(objective.steps) < 32


def test_a_takeover_is_noticed_by_the_next_beat(crew: Any, small: Small, enter: Enter, storage: RDBStorage) -> None:
    crew.timings = replace(crew.timings, heartbeat=0.01)
    study = small(1)
    found = enter(study)
    looks: list[int] = []

    class Long:
        device = "cpu"

        def __call__(self, number: int, attempt: int, config: Config, observer: Any) -> Any:
            while True:
                looks.append(attempt)
                if len(looks) == 3:
                    steal(storage, found, f"{study.name}-0")
                observer.on_step(SimpleTraining(config))

        def require_fit(self, config: Config) -> None:
            pass

        def forget(self, number: int, attempts: int) -> None:
            raise AssertionError("the trial is not over")

    stopper = threading.Thread(target=stop_when_it_speaks, args=[crew])
    stopper.start()
    assert crew.work(study, Long()) == ["asked to stop"]
    stopper.join(30)
    assert crew.said == ["trial 0 was taken over by another worker"]
    assert found.trials[0].state == TrialState.RUNNING


class SimpleTraining:
    """As much of a training as a worker looks at."""

    tokens, seconds, progress, steps_next = 1, 1.0, 0.5, True

    def __init__(self, config: Config) -> None:
        self.config = config


@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_worker_asked_to_stop_whose_trial_is_gone_leaves_quietly(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage, lost: str
) -> None:
    study = small(1)
    found = enter(study)

    class Gone:
        device = "cpu"

        def require_fit(self, config: Config) -> None:
            pass

        def __call__(self, number: int, attempt: int, config: Config, observer: Any) -> Any:
            if lost == "before":
                steal(storage, found, f"{study.name}-0")
            crew.requested.set()
            observer.on_step(SimpleTraining(config))
            assert observer.stop_requested()
            raise Stopped

    assert crew.work(study, Gone()) == ["asked to stop"]
    assert found.trials[0].state == (TrialState.RUNNING if lost == "before" else TrialState.WAITING)
    assert len(crew.said) == (1 if lost == "before" else 0)


def test_workers_leave_when_their_supervisor_is_gone(crew: Any, small: Small, enter: Enter) -> None:
    crew.timings = replace(crew.timings, heartbeat=0.01)
    study = small(1)
    found = enter(study)

    def score(number: int, config: Config, rung: int) -> float:
        if rung == 1:
            crew.lifeline.parent = 1  # another than the one that it has
        if rung == 2:
            assert crew.requested.wait(30)
        return 1.0

    assert crew.work(study, score) == ["asked to stop"]
    assert found.trials[0].state == TrialState.WAITING
    assert sorted(found.trials[0].intermediate_values) in ([1], [1, 2])


@pytest.mark.parametrize("end", ["stopped", "hours"])
def test_a_study_that_is_stopped_or_has_spent_its_hours_ends_in_the_middle_of_a_trial(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage, end: str
) -> None:
    crew.timings = replace(crew.timings, heartbeat=0.01)
    study = small(None, budget={"hours": 1})
    found = enter(study)
    leases = Leases(storage, found._study_id)

    def score(number: int, config: Config, rung: int) -> float:
        if rung == 1 and end == "stopped":
            leases.set_state("stopped")
        if rung == 1 and end == "hours":
            with storage.engine.begin() as connection:
                mine = books.studies.c.study_id == found._study_id
                connection.execute(books.studies.update().where(mine).values(active_seconds=3600))
        if rung == 2:
            assert crew.requested.wait(30)
        return 1.0

    crew.work(study, score)
    assert [trial.state for trial in found.trials] == [TrialState.WAITING]
    crew.requested.clear()
    (reason,) = crew.work(study, score)
    assert reason in ("the study was stopped", "the 1 hours are spent", "asked to stop")
    assert len(found.trials) == 1


def test_a_paused_study_continues_when_resumed(crew: Any, small: Small, enter: Enter, storage: RDBStorage) -> None:
    crew.timings = replace(crew.timings, heartbeat=0.01)
    study = small(3)
    found = enter(study)
    leases = Leases(storage, found._study_id)
    leases.set_state("paused")

    def resume() -> None:
        while [each.doing for each in leases.alive()] != ["the study is paused"]:
            time.sleep(0.01)
        leases.set_state("running")

    resumer = threading.Thread(target=resume)
    resumer.start()
    assert crew.work(study, by_learning_rate) == ["all 3 trials are finished"]
    resumer.join(30)
    assert len(found.trials) == 3


# A database that goes away.


@pytest.mark.parametrize(
    ("books", "call"),
    [
        (RDBStorage, "get_trial"),
        (RDBStorage, "set_trial_intermediate_value"),
        (RDBStorage, "set_trial_state_values"),
        (Leases, "note"),
    ],
)
def test_an_outage_at_any_moment_loses_no_trial_and_no_value(
    crew: Any,
    small: Small,
    enter: Enter,
    storage: RDBStorage,
    books: type[RDBStorage | Leases],
    call: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every call to the database fails once before and once after its work is done."""
    crew.timings = replace(crew.timings, heartbeat=0.05)
    study = small(4, pruner="none")
    found = enter(study)
    failures = iter([0, 1, 0, 1])
    real = getattr(books, call)

    def flaky(self: RDBStorage | Leases, *arguments: Any, **options: Any) -> Any:
        where = next(failures, None) if threading.current_thread().name == "database_thread" else None
        if where == 0:
            raise OperationalError(call, {}, ConnectionResetError("the connection was reset"))
        answer = real(self, *arguments, **options)
        if where == 1:
            raise OperationalError(call, {}, ConnectionResetError("the connection was reset"))
        return answer

    monkeypatch.setattr(books, call, flaky)
    with pytest.MonkeyPatch.context() as quiet:
        quiet.setattr("warnings.warn", lambda *arguments, **options: None)
        crew.work(study, by_learning_rate)
    monkeypatch.undo()
    assert counts(found, storage) == Counts(complete=4)
    for trial in found.trials:
        config = Config.model_validate(trial.user_attrs["configuration"])
        assert trial.intermediate_values == {rung: by_learning_rate(0, config, rung) for rung in (1, 2, 3)}
        assert trial.value == by_learning_rate(0, config, 3)
    assert {line.split(",")[0].split(" after")[0] for line in crew.said} == {
        "the database is away",
        "the database is back",
    }


def test_training_goes_on_while_the_database_is_away(
    crew: Any, small: Small, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew.timings = replace(crew.timings, answer=0.01, heartbeat=0.05)
    study = small(1, pruner="none")
    found = enter(study)
    trained = threading.Event()
    real = RDBStorage.set_trial_intermediate_value

    def away(self: RDBStorage, *arguments: Any) -> None:
        if not trained.is_set():
            raise OperationalError("insert", {}, ConnectionRefusedError("connection refused"))
        real(self, *arguments)

    def score(number: int, config: Config, rung: int) -> float:
        if rung == 3:
            trained.set()
        return float(rung)

    monkeypatch.setattr(RDBStorage, "set_trial_intermediate_value", away)
    crew.work(study, score)
    assert found.trials[0].intermediate_values == {1: 1.0, 2: 2.0, 3: 3.0}
    assert found.trials[0].value == 3.0


def test_a_database_that_stays_away_ends_a_worker_in_words(
    crew: Any, small: Small, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew.timings = replace(crew.timings, shutdown=0.01)
    study = small(1)
    found = enter(study)

    def away(self: RDBStorage, *arguments: Any) -> None:
        raise OperationalError("insert", {}, ConnectionRefusedError("connection refused"))

    def score(number: int, config: Config, rung: int) -> float:
        crew.requested.set()
        monkeypatch.setattr(RDBStorage, "set_trial_state_values", away)
        return 1.0

    with pytest.raises(StorageError, match=r"database .* the trial goes on from its checkpoint"):
        crew.work(study, score)
    monkeypatch.undo()
    assert found.trials[0].state == TrialState.RUNNING


def test_a_worker_says_where_it_is_and_how_far(crew: Any, small: Small, enter: Enter, storage: RDBStorage) -> None:
    crew.timings = replace(crew.timings, heartbeat=0.01)
    study = small(1)
    found = enter(study)
    leases = Leases(storage, found._study_id)
    seen: list[Any] = []

    def score(number: int, config: Config, rung: int) -> float:
        while rung == 2 and not seen:
            seen.extend(each for each in leases.alive() if each.progress)
        return 1.0

    with ExitStack() as stack:
        one: Worker = crew.worker(stack, study, score)
        one.run()
    assert (seen[0].trial, seen[0].device, seen[0].process) == (0, "cpu", os.getpid())
    assert seen[0].doing in ("rnn", "gru")
    assert 0 < seen[0].progress <= 1
    assert seen[0].tokens_per_second > 0
    assert seen[0].memory_bytes > 2**20
    assert found.trials[0].state == COMPLETE


# Two objectives.


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        *(("tpe", pruner) for pruner in ("successive_halving", "hyperband", "median", "threshold")),
        *((sampler, "successive_halving") for sampler in ("nsga2", "gp")),
    ],
)
def test_two_objectives_are_searched_and_pruned_by_the_first(
    small: Small, enter: Enter, crew: Any, storage: RDBStorage, pruner: str, sampler: str
) -> None:
    options = {"threshold": {"upper": 0.5}, "median": {"n_startup_trials": 1}, "hyperband": {"reduction_factor": 2}}
    study = small(
        14,
        objective=["bits_per_byte", "text_divergence"],
        sampler={"type": sampler, "seed": 2},
        pruner={"type": pruner} | options.get(pruner, {}),  # type: ignore[operator]
    )
    found = enter(study)

    from tests.tuner.conftest import Instant

    class Two(Instant):
        def __call__(self, number: int, attempt: int, config: Config, *rest: Any) -> Outcome:
            outcome = super().__call__(number, attempt, config, *rest)
            return replace(outcome, values=[outcome.values[0], 1 - config.learning_rate])

    worth = Two(study, crew.folder, lambda number, config, rung: (number * 7 % 5) * 0.2 + config.learning_rate)
    crew.work(study, worth)
    trials = found.get_trials()
    complete = [trial for trial in trials if trial.state == COMPLETE]
    assert not any("crashes" in trial.user_attrs for trial in trials)
    assert len(trials) == 14
    assert {len(trial.values) for trial in complete} == {2}
    assert any(trial.state == PRUNED for trial in trials) or pruner == "hyperband"  # it needs more trials
    best = front(trials)
    assert sorted(trial.number for trial in best) == sorted(trial.number for trial in found.best_trials)


def test_a_study_of_two_objectives_trains_measures_and_exports(
    small: Small, enter: Enter, storage: RDBStorage, tmp_path: Path
) -> None:
    study = small(
        4,
        objective=["bits_per_byte", "text_divergence"],
        decoding={"share": 10.0},
        parameters={
            "learning_rate": {"type": "float", "low": 1e-3, "high": 3e-2, "log": True},
            "temperature": {"type": "float", "low": 0.3, "high": 1.5},
            "hidden_size": 16,
            "batch_size": 4,
            "sequence_length": 16,
        },
        pruner="none",
    )
    found = enter(study)
    done = Finished(storage, found, study, tmp_path)
    for trial in done.trials:
        assert trial.values == [trial.intermediate_values[3], trial.user_attrs["text_divergence"]]
        assert len(trial.user_attrs["decoding_curve"]) == 5
    by_loss, by_text = (chosen_trial(found, prefer=name) for name in ("bits_per_byte", "text_divergence"))
    assert by_loss.values[0] == min(trial.values[0] for trial in done.trials)
    assert by_text.values[1] == min(trial.values[1] for trial in done.trials)
    text = exported(StudyHandle(storage, found, study), by_text, tmp_path / "best.yaml")
    assert f"text_divergence: {by_text.values[1]}" in text
    assert f"temperature: {by_text.params['temperature']}" in text
    figure = quality_and_diversity(found.trials)
    assert figure is not None
    assert [line.name for line in figure.data][-1] == "people"
    kept = [path.name for path in (tmp_path / study.name).glob("trial-*")]
    best = sorted(done.trials, key=lambda trial: trial.values[0])[:KEPT]
    assert sorted(kept) == sorted(f"trial-{trial.number}" for trial in best)


# A server with few connections.


def test_workers_take_turns_on_a_server_that_has_no_connection_left(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten, three are for administrators: fewer than eight workers would like, who take two each at times."""
    from tests.tuner.conftest import WorkerOptions

    monkeypatch.setitem(embedded.SETTINGS, "max_connections", "10")
    place = Path(tempfile.mkdtemp(prefix="crowded-", dir="/tmp"))
    place.chmod(0o755)
    study = small(12)
    with open_storage(None, place / "data") as opened:
        found = create.enter(opened, study).optuna_study
        WorkerOptions(place / "data", tmp_path).work(study, by_learning_rate, workers=8)
        states = [trial.state for trial in found.get_trials()]
    shutil.rmtree(place)
    assert len(states) == 12
    assert set(states) <= {COMPLETE, PRUNED}


@pytest.mark.parametrize("lost", ["the answer", "the worker"])
def test_a_verdict_that_nobody_heard_is_heeded_all_the_same(
    crew: Any, small: Small, enter: Enter, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A pruner says it once; the request is repeated after an outage, or the trial goes on elsewhere."""
    write = worker._Observer._write
    crashed: list[int] = []

    def once_more(observer: Any, evaluation: Any) -> bool:
        pruned = write(observer, evaluation)
        if lost == "the answer":
            return write(observer, evaluation)
        if pruned:
            crashed.append(observer.trial.number)
            raise RuntimeError("the worker dies")
        return pruned

    monkeypatch.setattr(worker._Observer, "_write", once_more)
    found = enter(study := small(6))
    crew.work(study, lambda number, config, rung: float(number))
    assert [trial.state for trial in found.trials] == [COMPLETE, *5 * [PRUNED]]
    assert all(sorted(trial.intermediate_values) == [1] for trial in found.trials[1:])
    assert crashed == ([] if lost == "the answer" else [1, 2, 3, 4, 5])


def test_a_study_that_is_deleted_ends_its_workers_and_leaves_no_line(
    crew: Any,
    small: Small,
    enter: Enter,
    storage: RDBStorage,
    ask: Callable[[str], Any],
) -> None:
    """Whatever its workers do meanwhile; as anybody may in Optuna's dashboard."""
    crew.timings = replace(crew.timings, heartbeat=0.05)
    found = enter(study := small(6))

    def delete(number: int, config: Config, rung: int) -> float:
        if (number, rung) == (2, 1):
            while study.name in optuna.get_all_study_names(storage):  # Optuna gives up where a trial is just written
                with suppress(KeyError):
                    optuna.delete_study(study_name=study.name, storage=storage)
        return 1.0 / rung

    assert crew.work(study, delete, workers=2) == ["the study was deleted"] * 2
    assert set(crew.said) == {"the study was deleted"}
    for table in ("tuner_studies", "tuner_workers", "tuner_leases"):
        assert ask(f"select count(*) from {table} where study_id = {found._study_id}") == 0


def test_a_study_that_is_renamed_goes_on(
    crew: Any, small: Small, enter: Enter, ask: Callable[[str], Any], storage: RDBStorage
) -> None:
    found = enter(study := small(4))

    def rename(number: int, config: Config, rung: int) -> float:
        ask(f"update studies set study_name = '{study.name} anew' where study_id = {found._study_id}")
        return 1.0 / rung

    assert crew.work(study, rename) == ["all 4 trials are finished"]
    now = current(StudyHandle.of(storage, found))
    assert (now.study.name, now.counts.finished) == (f"{study.name} anew", 4)
    assert open_study(storage, f"{study.name} anew").optuna_study._study_id == found._study_id


def test_the_watchdog_counts_a_step_and_allows_more_for_what_comes_between(
    crew: Any, small: Small, enter: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning and encoding the text is not watched at all; a piece of it that is read may take ten times as long."""
    study = small(1).model_copy(update={"timeout": 60.0})
    found = enter(study)
    allowed: list[float] = [0]
    during: dict[str, set[float]] = {}

    def noted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def note(*given: Any, **more: Any) -> Any:
            during.setdefault(name, set()).add(allowed[-1])
            return work(*given, **more)

        return note

    monkeypatch.setattr(worker.faulthandler, "dump_traceback_later", lambda seconds, **_: allowed.append(seconds))
    monkeypatch.setattr(worker.faulthandler, "cancel_dump_traceback_later", lambda: allowed.append(0))
    monkeypatch.setattr(corpora, "load_corpus", noted("read", corpora.load_corpus))
    monkeypatch.setattr(scoring, "evaluate", noted("evaluate", scoring.evaluate))
    monkeypatch.setattr(objectives, "decode", noted("write", objectives.decode))
    monkeypatch.setattr(Training, "take_step", noted("step", Training.take_step))
    crew.work(study, Objective(study, found.user_attrs["fingerprint"], "cpu", Artifacts(tmp_path)))
    assert during == {"read": {0}, "step": {60.0}, "evaluate": {600.0}, "write": {600.0}}
    assert allowed[-1] == 0


def test_a_worker_waits_while_its_command_stands_still(crew: Any, small: Any, enter: Any) -> None:
    study = small(trials=2)
    found = enter(study)
    looks = iter([False, True, True, False])

    class Halting(Lifeline):
        @property
        def stands_still(self) -> bool:
            return next(looks, False)

    crew.lifeline = Halting()
    crew.work(study, lambda number, config, rung: 1.0 / rung)
    assert [trial.state for trial in found.trials] == [TrialState.COMPLETE] * 2
    assert next(looks, None) is None


def test_a_process_that_was_stopped_is_known() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert not Lifeline(process.pid).stands_still
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert Lifeline(process.pid).stands_still
        process.send_signal(signal.SIGCONT)
        os.waitpid(process.pid, os.WCONTINUED)
        assert not Lifeline(process.pid).stands_still
    finally:
        process.kill()
        process.wait()
    assert not Lifeline(process.pid).stands_still


def test_how_far_an_encoding_is_stands_in_the_status(
    small: Small, enter: Enter, storage: RDBStorage, tmp_path: Path
) -> None:
    study = small(1)
    found = enter(study)
    objective = Objective(study, found.user_attrs["fingerprint"], "cpu", Artifacts(tmp_path))
    one = Worker(StudyHandle(storage, found, study), objective, 1, threading.Event(), "one")
    objective.on_progress("corpus squares.txt: encoding in word tokens: 12%, 1.5 MB/s")
    assert one.activity.doing == "corpus squares.txt: encoding in word tokens: 12%, 1.5 MB/s"
