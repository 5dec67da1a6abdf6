"""Limits: how they are written, what exceeds them, that a sampler learns to stay away; estimates of memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from models.config import Config
from models.nn.memory import training_bytes
from models.nn.network import parameter_count
from tuner.artifacts.store import Artifacts
from tuner.errors import StudyError
from tuner.study import samplers
from tuner.study.definition import Study, parse_study
from tuner.study.limits import OUT_OF_MEMORY, Limits, mark
from tuner.trials.objective import Objective

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]


@pytest.mark.parametrize(
    ("written", "limits"),
    [
        ("{parameters: 5M}", {"parameters": 5_000_000}),
        ("{parameters: 1.5k}", {"parameters": 1500}),
        ("{parameters: 700}", {"parameters": 700}),
        ("{memory: 8GiB}", {"memory": 8 * 2**30}),
        ("{memory: 500 MB}", {"memory": 500_000_000}),
        ("{milliseconds_per_token: 2.5}", {"milliseconds_per_token": 2.5}),
    ],
)
def test_limits_are_written_as_people_write_them(written: str, limits: dict[str, Any]) -> None:
    study = parse_study(f"corpus: {{builtin: markov}}\ntrial: {{tokens: 100_000}}\nlimits: {written}\n", "s.yaml", "s")
    assert study.limits.model_dump(exclude_none=True) == limits


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{parameters: 5 MiB}", "limits.parameters: should be a number, or one with k, M, G: 5M"),
        ("{memory: much}", "limits.memory: should be a number, or one with KiB, MiB, GiB, kB, MB, GB: 8GiB"),
        ("{memory: 0}", "limits.memory: should be greater than 0"),
        ("{params: 5}", "limits.params: unknown key"),
    ],
)
def test_limits_that_mean_nothing_are_refused(written: str, message: str) -> None:
    with pytest.raises(Exception, match="limits") as caught:
        parse_study(f"corpus: {{builtin: markov}}\ntrial: {{tokens: 100_000}}\nlimits: {written}\n", "s.yaml", "s")
    assert message in str(caught.value)


def test_a_limit_says_by_how_much_it_is_exceeded() -> None:
    limits = Limits(parameters=1000, memory=2**20)
    assert limits.violations({"parameters": 1500, "memory": 2**20, "milliseconds_per_token": 99}) == {"parameters": 0.5}
    assert limits.described({"parameters": 1500}) == "parameters 1,500 of at most 1,000"


@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru", "transformer"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_memory_of_a_training_grows_with_all_that_makes_it_grow(architecture: str, optimizer: str) -> None:
    def estimate(**changes: Any) -> int:
        values = {"architecture": architecture, "optimizer": optimizer, "hidden_size": 64, **changes}
        needed = training_bytes(Config(**values), 100)
        assert needed is not None
        return needed

    weights = 4 * parameter_count(Config(architecture=architecture, hidden_size=64), 100)
    assert estimate() > weights * (4 if optimizer == "adamw" else 3)
    assert estimate(batch_size=64) > 2 * estimate(batch_size=16) - weights * 4
    assert estimate(layers=3) > estimate(layers=2) > estimate()
    assert estimate(sequence_length=256) > 2 * estimate(sequence_length=64)


def test_what_cannot_fit_is_not_trained_and_not_failed(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage, tmp_path: Path
) -> None:
    sizes = {"hidden_size": {"type": "categorical", "choices": [8, 64]}, "batch_size": 8, "sequence_length": 16}
    study = small(8, parameters=sizes, limits={"parameters": 4000})
    found = enter(study)
    objective = Objective(study, found.user_attrs["fingerprint"], "cpu", Artifacts(tmp_path))
    crew.work(study, objective)
    assert len(found.trials) == 8
    large = [trial for trial in found.trials if trial.params["hidden_size"] == 64]
    assert large
    assert {trial.state for trial in large} == {TrialState.PRUNED}
    assert all(not trial.intermediate_values for trial in large)
    assert large[0].user_attrs["reason"].startswith("does not fit: parameters ")
    assert large[0].user_attrs["reason"].endswith(" of at most 4,000")
    assert large[0].constraints["parameters"] > 1
    assert {trial.state for trial in found.trials if trial not in large} == {TrialState.COMPLETE}


@pytest.mark.parametrize("limits", [{"memory": "1MiB"}, {"milliseconds_per_token": 1e-4}])
def test_memory_and_time_are_looked_at_before_a_step_is_trained(
    crew: Any, small: Small, enter: Enter, tmp_path: Path, limits: dict[str, Any]
) -> None:
    study = small(2, limits=limits)
    found = enter(study)
    crew.work(study, Objective(study, found.user_attrs["fingerprint"], "cpu", Artifacts(tmp_path)))
    assert [trial.state for trial in found.trials] == [TrialState.PRUNED] * 2
    assert all(next(iter(limits)) in trial.user_attrs["reason"] for trial in found.trials)
    assert not any(trial.intermediate_values for trial in found.trials)


def test_a_training_that_takes_more_memory_than_was_foreseen_ends_as_one_that_does_not_fit(
    crew: Any, small: Small, enter: Enter
) -> None:
    study = small(1, limits={"memory": "2MiB"})  # the objective of this test foresees nothing
    found = enter(study)
    crew.work(study, lambda number, config, rung: 1.0)
    (trial,) = found.trials
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["reason"].startswith("does not fit: memory ")
    assert trial.constraints["memory"] > 0


def proposals_beyond(state: TrialState, taught: bool, seed: int) -> list[int]:
    """How many of 20 proposals want more memory than there is: among the first, the second, the third twenty."""
    space = parse_study(
        "corpus: {builtin: markov}\ntrial: {tokens: 1_000_000}\nparameters:\n"
        "  hidden_size: {type: int, low: 64, high: 1024, step: 64}\n"
        "  batch_size: {type: categorical, choices: [8, 16, 32, 64]}\n",
        "s.yaml",
        "s",
    ).space
    study = optuna.create_study(sampler=samplers.sampler({"type": "tpe", "seed": seed}, space, stream=0))
    beyond = [0, 0, 0]
    for number in range(60):
        trial = study.ask()
        config = space.suggest(trial)
        if config.hidden_size * config.batch_size > 16_000:
            beyond[number // 20] += 1
            if taught:
                mark(trial, OUT_OF_MEMORY)
            study.tell(trial, state=state)
        else:
            study.tell(trial, -config.hidden_size / 1000)  # larger is better: the search is drawn to the edge
    return beyond


def test_the_sampler_learns_where_memory_does_not_suffice() -> None:
    taught = [proposals_beyond(TrialState.PRUNED, True, seed) for seed in range(5)]
    failed = [proposals_beyond(TrialState.FAIL, False, seed) for seed in range(5)]
    assert sum(last for _, _, last in taught) < 50  # half of a hundred, although the best lies at the edge
    assert sum(last for _, _, last in failed) > 90  # what all trials that count as failed come to


def test_limits_are_part_of_what_a_study_is(small: Small, enter: Enter) -> None:
    study = small(limits={"parameters": "5M"})
    enter(study)
    enter(study.model_copy(update={"retries": 7, "timeout": 5.0}))
    with pytest.raises(StudyError, match=r"limits\.parameters: was 5000000, is 6000000"):
        enter(study.model_copy(update={"limits": Limits(parameters=6_000_000)}))
