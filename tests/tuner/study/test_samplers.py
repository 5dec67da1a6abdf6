"""Samplers and pruners: every name makes Optuna's own object, takes its options, and gets to the end of a study."""

from typing import Any

import optuna
import pytest

from tuner.study import samplers
from tuner.study.samplers import PRUNERS, SAMPLERS
from tuner.study.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

PARAMETERS = {
    "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
    "layers": {"type": "int", "low": 1, "high": 3},
    "architecture": {"type": "categorical", "choices": ["rnn", "lstm", "transformer"]},
    "heads": {"type": "categorical", "choices": [2, 4], "when": {"architecture": "transformer"}},
    "temperature": {"type": "float", "low": 0.5, "high": 1.5},
}
STEPPED: dict[str, Any] = PARAMETERS | {"learning_rate": {"type": "float", "low": 0.25, "high": 0.75, "step": 0.25}}
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
        assert list(samplers.sampler_problems(options, space_for(name), 3)) == []
        assert isinstance(samplers.sampler(options, space_for(name), stream=1), kind)


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_with_options_of_optunas_own(name: str) -> None:
    options = {"type": name} | OPTIONS[name]
    assert list(samplers.pruner_problems(options, None, 3)) == []
    assert isinstance(samplers.pruner(options, 3), getattr(optuna.pruners, PRUNERS[name]))


def test_an_option_reaches_optuna() -> None:
    sampler = samplers.sampler({"type": "tpe", "n_startup_trials": 7}, space_for("tpe"), stream=1)
    assert sampler._n_startup_trials == 7  # type: ignore[attr-defined]
    pruner = samplers.pruner({"type": "successive_halving", "reduction_factor": 2}, 9)
    assert (pruner._min_resource, pruner._reduction_factor) == (1, 2)  # type: ignore[attr-defined]
    wrapped = samplers.pruner({"type": "patient", "wrapped_pruner": "hyperband"}, 9)._wrapped_pruner  # type: ignore[attr-defined]
    assert wrapped._max_resource == 9


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_whole_study_without_a_warning(name: str) -> None:
    """Warnings are errors here; the samplers learn from complete, pruned and conditional trials."""
    space = space_for(name)
    study = optuna.create_study(
        sampler=samplers.sampler({"type": name} | OPTIONS[name], space, stream=1),
        pruner=samplers.pruner({"type": "successive_halving"}, 3),
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
        study = optuna.create_study(
            sampler=samplers.sampler({"type": "random", "seed": 5}, space_for("random"), stream)
        )
        return [study.ask().suggest_float("learning_rate", 1e-3, 1e-1) for _ in range(3)]

    assert proposals(1) == proposals(1)
    assert proposals(1) != proposals(2)


@pytest.mark.parametrize("options", [{"seed": 7, "scramble": True}, {"scramble": True}, {"seed": 7}])
def test_workers_share_one_quasi_random_sequence(options: dict[str, Any]) -> None:
    space = Space.of({name: PARAMETERS[name] for name in ("learning_rate", "layers")})

    def points(streams: list[int]) -> list[dict[str, Any]]:
        study = optuna.create_study()
        for stream in streams:
            study.sampler = samplers.sampler({"type": "qmc", **options}, space, stream)
            trial = study.ask()
            space.suggest(trial)
            study.tell(trial, 0.0)
        return [trial.params for trial in study.trials[1:]]  # the first one only shows what there is

    assert points([1, 2, 3, 1, 2, 3, 1, 2]) == points([1] * 8)


def test_a_grid_visits_every_point_once() -> None:
    space = Space.of({"layers": {"type": "int", "low": 1, "high": 3}, "dropout": {**STEPPED["learning_rate"]}})
    assert samplers.grid_points(space) == 9
    study = optuna.create_study(sampler=samplers.sampler({"type": "grid"}, space, stream=1))
    for _ in range(9):
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, 0.0)
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == 9


def grid_of_nine(*given: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The points of nine trials on a grid of nine, of which the first were given values."""
    space = Space.of({"layers": {"type": "int", "low": 1, "high": 3}, "dropout": {**STEPPED["learning_rate"]}})
    study = optuna.create_study(sampler=samplers.sampler({"type": "grid"}, space, stream=1))
    for values in given:
        study.enqueue_trial(values)
    for _ in range(9):
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, 0.0)
    return [tuple(trial.params.items()) for trial in study.trials]


def test_what_a_grid_is_given_to_start_with_are_points_of_it() -> None:
    points = grid_of_nine({"layers": 3, "dropout": 0.75}, {"layers": 2}, {"layers": 2})
    assert dict(points[0]) == {"layers": 3, "dropout": 0.75}
    assert [dict(point)["layers"] for point in points[1:3]] == [2, 2]
    assert len(set(points)) == 9


def rehearsed(space: Space, **sections: Any) -> list[tuple[tuple[str | int, ...], str]]:
    return list(samplers.rehearsal_problems(sections, space, 3))


@pytest.mark.parametrize(
    ("section", "kind", "option", "value", "problem"),
    [
        ("sampler", "tpe", "n_startup_trials", "10", "should be a whole number, not '10'"),
        ("sampler", "tpe", "n_startup_trials", True, "should be a whole number, not True"),
        ("sampler", "tpe", "n_startup_trials", None, "should be a whole number, not None"),
        ("sampler", "tpe", "multivariate", "no", "should be true or false or null, not 'no'"),
        ("sampler", "tpe", "prior_weight", float("nan"), "should be a finite number, not nan"),
        ("sampler", "tpe", "gamma", 5, "can be given in a program only, not in a file; leave it out"),
        ("sampler", "tpe", "n_ei_candidates", 10**9, "should be at most 100,000, not 1,000,000,000"),
        ("sampler", "gp", "independent_sampler", "tpe", "can be given in a program only, not in a file; leave it out"),
        ("sampler", "random", "seed", 2**32, "should be a number from 0 to 4294967295, not 4294967296"),
        ("sampler", "random", "seed", -1, "should be a number from 0 to 4294967295, not -1"),
        ("sampler", "cmaes", "x0", [1], "should be a mapping or null, not [1]"),
        ("sampler", "nsga2", "population_size", 5.0, "should be a whole number, not 5.0"),
        ("pruner", "successive_halving", "reduction_factor", 3.5, "should be a whole number, not 3.5"),
        ("pruner", "successive_halving", "min_resource", 1.5, "should be text or a whole number, not 1.5"),
        ("pruner", "median", "n_warmup_steps", 0.5, "should be a whole number, not 0.5"),
        ("pruner", "threshold", "upper", "9", "should be a number or null, not '9'"),
    ],
)
def test_an_option_of_another_kind_than_optunas_is_refused(
    section: str, kind: str, option: str, value: Any, problem: str
) -> None:
    options = {"upper": 9.0} if kind == "threshold" else {}
    assert rehearsed(space_for(kind), **{section: {"type": kind} | options | {option: value}}) == [
        ((section, option), problem)
    ]


def test_what_fails_in_a_constructor_is_reported_by_its_kind_too() -> None:
    options = {"type": "median", "n_startup_trials": "5"}
    assert list(samplers.pruner_problems(options, None, 3)) == [
        (("n_startup_trials",), "should be a whole number, not '5'")
    ]
    patient = {"type": "patient", "wrapped_pruner": {"type": "successive_halving", "reduction_factor": 3.5}}
    assert rehearsed(space_for("tpe"), pruner=patient) == [
        (("pruner", "wrapped_pruner", "reduction_factor"), "should be a whole number, not 3.5")
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"type": "tpe", "n_ei_candidates": 0},
        {"type": "cmaes", "x0": {"no_such_parameter": 1.0}},
        {"type": "cmaes", "popsize": -3},
        {"type": "qmc", "qmc_type": "sobel"},
    ],
)
def test_a_sampler_is_tried_on_the_space_of_the_study(options: dict[str, Any]) -> None:
    ((place, what),) = rehearsed(space_for("tpe"), sampler=options)
    assert place == ("sampler",)
    assert what.startswith(f"{options['type']}: ")


@pytest.mark.parametrize("name", [*SAMPLERS, *PRUNERS])
def test_a_rehearsal_finds_nothing_in_what_is_sound(name: str) -> None:
    section = "sampler" if name in SAMPLERS else "pruner"
    options = {"type": name} | OPTIONS[name] | ({"seed": None} if name in SAMPLERS else {})
    assert rehearsed(space_for(name), **{section: options}) == []
    assert samplers.sampler({"type": "random", "seed": 2**32 - 1}, space_for("random"), stream=3) is not None


def test_a_grid_that_nobody_could_walk_is_refused() -> None:
    space = Space.of(
        {"layers": {"type": "int", "low": 1, "high": 100}, "seed": {"type": "int", "low": 0, "high": 10**12}}
    )
    assert list(samplers.sampler_problems("grid", space, 3)) == [
        ((), "a grid of 100,000,000,000,100 points; 100,000 are the most: take larger steps")
    ]
