"""What a person asks of a study: pause, resume, stop, retry, enqueue; on a real database."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from models.config import Config
from tuner.control import steering
from tuner.control.create import require_unchanged
from tuner.errors import StudyError
from tuner.results import confirmation
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Leases
from tuner.study.definition import Study
from tuner.workers.worker import WorkerTimings

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]


@pytest.fixture
def crew(crew: Any) -> Any:
    crew.timings = WorkerTimings(heartbeat=0.01, poll=0.01)
    return crew


def enqueue(study: StudyHandle, assignments: list[str]) -> str:
    """As the command line and the page do it."""
    return steering.enqueue(study, steering.assigned(assignments))


def test_a_pause_frees_the_trial_in_the_middle_and_resume_goes_on_with_it(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(2, pruner="none")
    found = enter(study)
    leases = Leases(storage, found._study_id)
    calls: list[tuple[int, int]] = []

    with ExitStack() as stack:

        def score(number: int, config: Config, rung: int) -> float:
            calls.append((number, rung))
            if calls == [(0, 1), (0, 2)]:
                assert steering.pause(StudyHandle.of(storage, found)).startswith(
                    "paused; 1 worker saves its trial and waits"
                )
                until(lambda: worker.paused)
            return 1.0

        worker = crew.worker(stack, study, score)
        thread = threading.Thread(target=worker.run)
        thread.start()
        until(lambda: [each.doing for each in leases.alive()] == ["the study is paused"])
        assert [trial.state for trial in found.trials] == [TrialState.WAITING]
        assert worker.objective.saved == [0]
        spent = leases.active_seconds()
        until(lambda: leases.alive()[0].seen < 0.005)  # a beat later
        assert leases.active_seconds() == spent
        assert steering.resume(StudyHandle.of(storage, found)) == "running; 1 worker continues"
        thread.join(30)
    assert [trial.state for trial in found.trials] == [TrialState.COMPLETE] * 2
    assert found.trials[0].user_attrs["attempts"] == 2  # a worker that is told to go on goes on at once


def test_a_confirmation_obeys_what_is_asked_of_its_study(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    definition = small(1)
    study = enter(definition)
    crew.work(definition, lambda number, config, rung: 1.5)
    handle = StudyHandle.of(storage, study)
    confirming = confirmation.enter(handle, study.trials, seeds=1).leases
    asked = [(steering.pause, "paused"), (steering.resume, "running"), (steering.stop, "stopped")]
    for ask, state in asked:
        ask(handle)
        assert confirming.state() == handle.leases.state() == state


def until(condition: Callable[[], Any]) -> None:
    gone_by = threading.Event()
    for _ in range(3000):
        if condition():
            return
        gone_by.wait(0.01)
    raise AssertionError("it did not happen")


def test_a_stopped_study_ends_for_every_worker_until_it_is_resumed(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(2)
    found = enter(study)
    assert steering.stop(StudyHandle.of(storage, found)) == "stopped; no worker is there"
    (reason,) = crew.work(study, lambda number, config, rung: 1.0)
    assert reason in ("the study was stopped", "asked to stop")  # whichever comes first, the answer or a beat
    assert found.trials == []
    crew.requested.clear()
    assert steering.resume(StudyHandle.of(storage, found)).endswith(
        f"no worker is there; start some with: tuner work {study.name}"
    )
    assert crew.work(study, lambda number, config, rung: 1.0) == ["all 2 trials are finished"]


def test_enqueued_values_are_tried_next_and_the_sampler_adds_the_others(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(2)
    found = enter(study)
    assert enqueue(StudyHandle(storage, found, study), ["learning_rate=3e-3"]) == "trial 0 waits for a worker"
    assert (
        steering.enqueue(
            StudyHandle(storage, found, study), steering.assigned(["architecture=gru", "learning_rate=0.1"])
        )
        == "trial 1 waits for a worker"
    )
    crew.work(study, lambda number, config, rung: 1.0)
    first, second = found.trials
    assert first.params["learning_rate"] == 0.003
    assert first.params["architecture"] in ("rnn", "gru")
    assert second.params == {"architecture": "gru", "learning_rate": 0.1}
    assert len(found.trials) == 2
    late = enqueue(StudyHandle(storage, found, study), ["architecture=gru"])
    assert late.startswith("trial 2 waits for a worker; the 2 trials of the budget are finished: raise it with")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning_rate", "write name=value"),
        ("learning_rat=0.01", "learning_rat is not searched; did you mean learning_rate?"),
        ("hidden_size=16", "hidden_size is fixed at 8"),
        ("temperature=0.5", "temperature is chosen on the trained model"),
        ("learning_rate=2", "learning_rate 2 is not among what is searched"),
        ("learning_rate=fast", "learning_rate 'fast' is not among"),
        ("learning_rate=true", "learning_rate True is not among"),
        ("learning_rate=[1", "is not among what is searched: 0.001 to 0.1"),
        ("architecture=lstm", "architecture 'lstm' is not among what is searched"),
        ("learning_rate=", "is not among what is searched: 0.001 to 0.1"),
    ],
)
def test_values_that_no_trial_could_have_are_refused(
    small: Small, enter: Enter, storage: RDBStorage, assignment: str, message: str
) -> None:
    from tests.tuner.conftest import PARAMETERS

    study = small(parameters=PARAMETERS | {"temperature": {"type": "float", "low": 0.3, "high": 1.5}})
    found = enter(study)
    with pytest.raises(StudyError) as caught:
        enqueue(StudyHandle(storage, found, study), ["architecture=gru", assignment])
    assert message in str(caught.value)
    assert found.trials == []


def test_a_study_begins_with_its_starting_points_once(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(3, points_to_evaluate=[{"learning_rate": 0.003, "architecture": "gru"}, {"learning_rate": 0.01}])
    found = enter(study)
    enter(study)
    crew.work(study, lambda number, config, rung: 1.0)
    assert [trial.params["learning_rate"] for trial in found.trials][:2] == [0.003, 0.01]
    assert found.trials[0].params["architecture"] == "gru"
    assert len(found.trials) == 3


def test_a_study_that_was_entered_with_start_goes_on(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    """As version 0.1 stored it."""
    study = small(2, points_to_evaluate=[{"learning_rate": 0.003}])
    found = enter(study)
    stored = study.stored()
    stored["start"] = stored.pop("points_to_evaluate")
    found.set_user_attr("study", stored)
    require_unchanged(storage, study, found.user_attrs["fingerprint"])
    enter(study)
    crew.work(study, lambda number, config, rung: 1.0)
    assert [trial.params["learning_rate"] for trial in found.trials].count(0.003) == 1
    assert len(found.trials) == 2


def test_a_failed_trial_is_tried_again_and_the_study_gets_another_chance(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(1, retries=0)
    found = enter(study)

    def broken(number: int, config: Config, rung: int) -> float:
        raise RuntimeError("a bug in a generator")

    assert crew.work(study, broken) == ["all of its 5 trials failed"]
    assert crew.work(study, lambda number, config, rung: 1.0) == ["all of its 5 trials failed"]
    assert steering.retry(StudyHandle(storage, found, study), 3) == "trial 3 is tried again as trial 5"
    steering.resume(StudyHandle.of(storage, found))
    assert crew.work(study, lambda number, config, rung: 1.0) == ["its only trial is finished"]
    assert found.trials[5].params == found.trials[3].params
    assert found.trials[5].user_attrs["retry_of"] == 3
    with pytest.raises(StudyError, match="trial 5 is complete; only a failed or pruned one"):
        steering.retry(StudyHandle(storage, found, study), 5)
    with pytest.raises(StudyError, match=f"study {study.name} has no trial 6; it has 0 to 5"):
        steering.retry(StudyHandle(storage, found, study), 6)
