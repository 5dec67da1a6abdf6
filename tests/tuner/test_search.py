"""Samplers and pruners: every name makes Optuna's own object, takes its options, and gets to the end of a study."""

from typing import Any

import optuna
import pytest

from tuner import search
from tuner.search import PRUNERS, SAMPLERS
from tuner.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

PARAMETERS = {
    "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
    "layers": {"type": "int", "low": 1, "high": 3},
    "architecture": {"type": "categorical", "choices": ["rnn", "lstm", "transformer"]},
    "heads": {"type": "categorical", "choices": [2, 4], "when": {"architecture": "transformer"}},
    "temperature": {"type": "float", "low": 0.5, "high": 1.5},
}
STEPPED = PARAMETERS | {"learning_rate": {"type": "float", "low": 0.25, "high": 0.75, "step": 0.25}}
OPTIONS: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 2, "multivariate": False},
    "gp": {"n_startup_trials": 2, "deterministic_objective": True},
    "random": {"seed": 3},
    "grid": {"seed": 3},
    "qmc": {"qmc_type": "halton", "scramble": True},
    "cmaes": {"n_startup_trials": 2, "with_margin": True},
    "nsga2": {"population_size": 3, "mutation_prob": 0.5},
    "successive_halving": {"min_resource": 2, "reduction_factor": 2, "min_early_stopping_rate": 1},
    "hyperband": {"reduction_factor": 2},
    "median": {"n_startup_trials": 2, "n_warmup_steps": 1},
    "percentile": {"percentile": 25.0},
    "wilcoxon": {"p_threshold": 0.2},
    "patient": {"patience": 2, "min_delta": 0.1, "wrapped_pruner": {"type": "percentile", "percentile": 30.0}},
    "threshold": {"upper": 9.0},
    "none": {},
}


def space_for(sampler: str) -> Space:
    return Space.of(STEPPED if sampler == "grid" else PARAMETERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_with_and_without_options_of_optunas_own(name: str) -> None:
    kind = getattr(optuna.samplers, SAMPLERS[name])
    for options in ({"type": name}, {"type": name} | OPTIONS[name]):
        assert list(search.sampler_problems(options, space_for(name), 3)) == []
        assert isinstance(search.sampler(options, space_for(name), stream=1), kind)


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_with_options_of_optunas_own(name: str) -> None:
    options = {"type": name} | OPTIONS[name]
    assert list(search.pruner_problems(options, None, 3)) == []
    assert isinstance(search.pruner(options, 3), getattr(optuna.pruners, PRUNERS[name]))


def test_an_option_reaches_optuna() -> None:
    sampler = search.sampler({"type": "tpe", "n_startup_trials": 7}, space_for("tpe"), stream=1)
    assert sampler._n_startup_trials == 7  # type: ignore[attr-defined]
    pruner = search.pruner({"type": "successive_halving", "reduction_factor": 2}, 9)
    assert (pruner._min_resource, pruner._reduction_factor) == (1, 2)  # type: ignore[attr-defined]
    wrapped = search.pruner({"type": "patient", "wrapped_pruner": "hyperband"}, 9)._wrapped_pruner  # type: ignore[attr-defined]
    assert wrapped._max_resource == 9


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_whole_study_without_a_warning(name: str) -> None:
    """Warnings are errors here; the samplers learn from complete, pruned and conditional trials."""
    space = space_for(name)
    study = optuna.create_study(
        sampler=search.sampler({"type": name} | OPTIONS[name], space, stream=1),
        pruner=search.pruner({"type": "successive_halving"}, 3),
    )
    for _ in range(7):
        trial = study.ask()
        config = space.suggest(trial)
        for rung in (1, 2, 3):
            trial.report(config.learning_rate * rung, rung)
        study.tell(trial, config.learning_rate)
    assert len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))) == 7


def test_workers_that_share_a_seed_go_different_ways_and_each_its_own_again() -> None:
    def proposals(stream: int) -> list[float]:
        study = optuna.create_study(sampler=search.sampler({"type": "random", "seed": 5}, space_for("random"), stream))
        return [study.ask().suggest_float("learning_rate", 1e-3, 1e-1) for _ in range(3)]

    assert proposals(1) == proposals(1)
    assert proposals(1) != proposals(2)


@pytest.mark.parametrize("options", [{"seed": 7, "scramble": True}, {"scramble": True}, {"seed": 7}])
def test_workers_share_one_quasi_random_sequence(options: dict[str, Any]) -> None:
    space = Space.of({name: PARAMETERS[name] for name in ("learning_rate", "layers")})

    def points(streams: list[int]) -> list[dict[str, Any]]:
        study = optuna.create_study()
        for stream in streams:
            study.sampler = search.sampler({"type": "qmc", **options}, space, stream)
            trial = study.ask()
            space.suggest(trial)
            study.tell(trial, 0.0)
        return [trial.params for trial in study.trials[1:]]  # the first one only shows what there is

    assert points([1, 2, 3, 1, 2, 3, 1, 2]) == points([1] * 8)


def test_a_grid_visits_every_point_once() -> None:
    space = Space.of({"layers": {"type": "int", "low": 1, "high": 3}, "dropout": {**STEPPED["learning_rate"]}})
    assert search.grid_points(space) == 9
    study = optuna.create_study(sampler=search.sampler({"type": "grid"}, space, stream=1))
    for _ in range(9):
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, 0.0)
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == 9
