"""Optuna's samplers and pruners by name; their options are Optuna's own keywords."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from models.reader import Problem, nearest
from tuner.optuna_internals import set_system_attribute
from tuner.study.space import Float, Space

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, TrialState

SAMPLERS = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "random": "RandomSampler",
    "grid": "GridSampler",
    "qmc": "QMCSampler",
    "cmaes": "CmaEsSampler",
    "nsga2": "NSGAIISampler",
}
PRUNERS = {
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "wilcoxon": "WilcoxonPruner",
    "patient": "PatientPruner",
    "threshold": "ThresholdPruner",
    "none": "NopPruner",
}
MOST_POINTS = 100_000
"""Points of a grid: every worker lists it, and no study has that many trials."""

LARGEST_NUMBER = 100_000
"""Of an option: trials, candidates and the like that are listed for each proposal."""

LARGEST_SEED = 2**32 - 1

KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "text"),
    "dict[str, Any]": (dict, "a mapping"),
    "None": (type(None), "null"),
}
"""What an annotation in a signature of Optuna's asks for, in Python and in words; of others a file holds nothing."""

REHEARSED = {"n_startup_trials": 2, "population_size": 4, "popsize": 4}
"""Options that say after how many trials a sampler or pruner begins to choose: in a rehearsal, at most this many."""

REHEARSED_TRIALS, REHEARSED_RUNGS = 8, 16

OURS = {"search_space", "seed_offset", "constraints_func", "wrapped_pruner"}
"""Options that are derived from the study, or that no file can hold."""


def pruner_defaults(rungs: int) -> dict[str, dict[str, Any]]:
    """Returns the options of pruners that are not Optuna's own defaults."""
    return {
        "successive_halving": {"min_resource": 1, "reduction_factor": 3},
        "hyperband": {"min_resource": 1, "max_resource": rungs},
        "percentile": {"percentile": 50.0},
        "patient": {"wrapped_pruner": "median", "patience": 1},
    }


def sampler(options: dict[str, Any], space: Space, stream: int) -> optuna.samplers.BaseSampler:
    """Returns the study's sampler. `stream` tells workers apart that share a seed."""
    import optuna

    keywords = {name: value for name, value in options.items() if name != "type"}
    if options["type"] == "grid":
        return _grid(space, keywords)
    if options["type"] == "qmc":  # one sequence, of which each worker takes the next point
        keywords = _of_one_sequence(keywords, stream)
    elif keywords.get("seed") is not None:
        keywords["seed"] = (keywords["seed"] + stream) % (LARGEST_SEED + 1)
    if options["type"] in ("qmc", "cmaes", "gp"):  # their notes on single parameters are no news to a user
        keywords = {"warn_independent_sampling": False} | keywords
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made: optuna.samplers.BaseSampler = getattr(optuna.samplers, SAMPLERS[options["type"]])(**keywords)
    return made


def pruner(options: dict[str, Any], rungs: int) -> optuna.pruners.BasePruner:
    """Returns the study's pruner; steps are rungs, counted from 1."""
    import optuna

    from tuner.study.multi_objective import Hyperband

    keywords = {name: value for name, value in options.items() if name != "type"}
    keywords = pruner_defaults(rungs).get(options["type"], {}) | keywords
    if options["type"] == "patient":
        wrapped = keywords["wrapped_pruner"] or "median"
        keywords["wrapped_pruner"] = pruner({"type": wrapped} if isinstance(wrapped, str) else wrapped, rungs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        kind = Hyperband if options["type"] == "hyperband" else getattr(optuna.pruners, PRUNERS[options["type"]])
        made: optuna.pruners.BasePruner = kind(**keywords)
    return made


def grid_points(space: Space) -> int:
    """Returns how many points a grid over the space has."""
    return math.prod(len(searched.values()) for searched in space.training_parameters.values())


def sampler_problems(chosen: Any, space: Space | None, rungs: int) -> Iterator[Problem]:
    """Yields what is wrong with a study file's `sampler`."""
    if _type(chosen) == "grid" and space is not None:
        ranges = {name: one for name, one in space.training_parameters.items() if isinstance(one, Float)}
        endless = {name: one for name, one in ranges.items() if not one.step}
        yield from (((), f"for {name}, a grid needs {_listable(one)}") for name, one in endless.items())
        if not endless and grid_points(space) > MOST_POINTS:
            yield (), f"a grid of {grid_points(space):,} points; {MOST_POINTS:,} are the most: take larger steps"
            return
    yield from _problems(chosen, SAMPLERS, "samplers", lambda options: sampler(options, space or Space({}, {}), 0))


def _listable(searched: Float) -> str:
    """What a range of endless values has to be, for a grid."""
    if not searched.log:
        return "a step or choices"
    ratio = searched.high / searched.low
    values = ", ".join(f"{searched.low * ratio ** (index / 4):.3g}" for index in range(5))
    return f"choices such as [{values}]: a range with log has no step"


def pruner_problems(chosen: Any, space: Space | None, rungs: int) -> Iterator[Problem]:
    """Yields what is wrong with a study file's `pruner`."""
    wrapped = chosen.get("wrapped_pruner") if isinstance(chosen, dict) else None
    inside = [] if wrapped is None else list(pruner_problems(wrapped, space, rungs))
    yield from ((("wrapped_pruner", *place), what) for place, what in inside)
    if not inside:
        yield from _problems(chosen, PRUNERS, "pruners", lambda options: pruner(options, rungs))


def _problems(
    chosen: Any, names: dict[str, str], module: str, make: Callable[[dict[str, Any]], Any]
) -> Iterator[Problem]:
    kind = _type(chosen)
    if kind is None:
        yield (), "should be a name, or a mapping with a type and Optuna's keywords"
    elif not isinstance(kind, str) or kind not in names:
        place = ("type",) if isinstance(chosen, dict) else ()
        yield place, f"unknown {module[:-1]} {kind!r}{nearest(str(kind), names)}"
    else:
        options = {"type": kind} if isinstance(chosen, str) else chosen
        known = (
            set(_parameters(kind, names, module))
            - {"self"}
            - (OURS if kind != "patient" else OURS - {"wrapped_pruner"})
        )
        unknown = [name for name in options if name != "type" and name not in known]
        yield from (((name,), f"unknown option of {kind}{nearest(name, known)}") for name in unknown)
        if not unknown:
            try:
                make(options)
            except Exception as error:  # Optuna checks little, and trips over the rest
                kinds = list(_kind_problems(options, names, module))
                yield from kinds or [((), f"{kind}: {error}")]


def rehearsal_problems(values: Mapping[str, Any], space: Space, rungs: int) -> Iterator[Problem]:
    """Yields what goes wrong when the sampler and the pruner of a study file, sound so far, are really used.

    Some options are first looked at when a trial is asked for, proposed, or to be pruned.
    """
    objectives = values.get("objective")
    goals = len(objectives) if isinstance(objectives, list) else 1
    found = False
    for section, names, module in (("sampler", SAMPLERS, "samplers"), ("pruner", PRUNERS, "pruners")):
        for place, what in _kind_problems(_options(values.get(section)), names, module):
            found = True
            yield (section, *place), what
    if not found:
        yield from _rehearse(values, space, rungs, goals)


def _kind_problems(options: dict[str, Any], names: dict[str, str], module: str) -> Iterator[Problem]:
    """Yields the options whose values are not of the kind that Optuna's signature asks for."""
    parameters = _parameters(options["type"], names, module) if options else {}
    for name, value in options.items():
        if name == "wrapped_pruner":
            inside = _kind_problems(_options(value), names, module)
            yield from (((name, *place), what) for place, what in inside)
        elif name != "type":
            what = _kind_problem(name, value, parameters[name].annotation)
            if what is not None:
                yield (name,), what


def _kind_problem(name: str, value: Any, annotation: Any) -> str | None:
    written = [part.strip() for part in str(getattr(annotation, "__name__", annotation)).split("|")]
    wanted = [KINDS[part] for part in written if part in KINDS]
    if all(words == "null" for _, words in wanted) and value is not None:
        return "can be given in a program only, not in a file; leave it out"
    if not any(isinstance(value, kind) and (kind is bool or type(value) is not bool) for kind, _ in wanted):
        return f"should be {' or '.join(words for _, words in wanted)}, not {value!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"should be a finite number, not {value!r}"
    if name == "seed":
        fine = value is None or 0 <= value <= LARGEST_SEED
        return None if fine else f"should be a number from 0 to {LARGEST_SEED}, not {value!r}"
    if type(value) is int and abs(value) > LARGEST_NUMBER:
        return f"should be at most {LARGEST_NUMBER:,}, not {value:,}"
    return None


def _rehearse(values: Mapping[str, Any], space: Space, rungs: int, goals: int) -> Iterator[Problem]:
    chosen, ending = _options(values.get("sampler", "tpe")), _options(values.get("pruner", "successive_halving"))
    proposing = _failures(_shortened(chosen, SAMPLERS, "samplers"), {"type": "none"}, space, rungs, goals)
    yield from ((("sampler",), f"{chosen['type']}: {error}") for error in proposing)
    pruning = _failures({"type": "random", "seed": 0}, _shortened(ending, PRUNERS, "pruners"), space, rungs, 1)
    yield from ((("pruner",), f"{ending['type']}: {error}") for error in pruning)


def _failures(
    chosen: dict[str, Any], ending: dict[str, Any], space: Space, rungs: int, goals: int
) -> Iterator[Exception]:
    """Yields what Optuna raises in a study in memory, of a few trials that train nothing."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            study = optuna.create_study(
                directions=["minimize"] * goals,
                sampler=sampler(chosen, space, 0),
                pruner=pruner(ending, rungs),
            )
            for number in range(REHEARSED_TRIALS):
                _rehearse_trial(study, space, rungs, goals, number)
        except Exception as error:  # whatever an option that Optuna did not check leads to
            yield error


def _rehearse_trial(study: optuna.Study, space: Space, rungs: int, goals: int, number: int) -> None:
    trial = study.ask()
    space.suggest(trial)
    value = 3.0 - 0.1 * (number % 3)
    for rung in sorted({*range(1, min(rungs, REHEARSED_RUNGS) + 1), rungs}) if goals == 1 else ():
        trial.report(value + 1 / rung, rung)
        trial.should_prune()
    study.tell(trial, [value] * goals)


def _shortened(options: dict[str, Any], names: dict[str, str], module: str) -> dict[str, Any]:
    """The options with which a sampler or pruner soon begins to choose."""
    usual = {name: one.default for name, one in _parameters(options["type"], names, module).items()}
    given = usual | options
    few = {name: min(most, given[name]) for name, most in REHEARSED.items() if isinstance(given.get(name), int)}
    wrapped = options.get("wrapped_pruner")
    inside = {} if wrapped is None else {"wrapped_pruner": _shortened(_options(wrapped), names, module)}
    return options | few | inside


def _parameters(kind: str, names: dict[str, str], module: str) -> Mapping[str, inspect.Parameter]:
    """What Optuna's class takes."""
    import optuna

    return inspect.signature(getattr(getattr(optuna, module), names[kind]).__init__).parameters


def _options(chosen: Any) -> dict[str, Any]:
    return {"type": chosen} if isinstance(chosen, str) else chosen or {}


def _type(chosen: Any) -> Any:
    return chosen if isinstance(chosen, str) else chosen.get("type") if isinstance(chosen, dict) else None


def _of_one_sequence(keywords: dict[str, Any], stream: int) -> dict[str, Any]:
    """The options of a quasi-random sampler: scrambled alike for all workers, apart in what is no part of it."""
    from optuna.samplers import RandomSampler

    seed = keywords.get("seed")
    apart = RandomSampler(seed=None if seed is None else seed + stream)
    return keywords | {"seed": seed or 0, "independent_sampler": apart}


def _grid(space: Space, keywords: dict[str, Any]) -> optuna.samplers.BaseSampler:
    from optuna.samplers import GridSampler

    class Grid(GridSampler):
        """Optuna's grid, in which a trial that was given values is a point like others, and which ends no study.

        Optuna's may only end one that `optimize` runs; here the budget does.
        """

        def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
            if "grid_id" not in trial.system_attrs:
                point = self._point(study, trial)
                set_system_attribute(study, trial, "search_space", self._search_space)
                set_system_attribute(study, trial, "grid_id", point)

        def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
            pass

        def _point(self, study: optuna.Study, trial: FrozenTrial) -> int:
            """An untried point, with the values that the trial was given; else any that has them."""
            given = trial.system_attrs.get("fixed_params", {})
            fitting = [index for index in range(self._n_min_trials) if not given or self._has(index, given)]
            fresh = set(self._get_unvisited_grid_ids(study)).intersection(fitting) or fitting
            return trial.number if trial.number in fresh else min(fresh)

        def _has(self, index: int, given: Mapping[str, Any]) -> bool:
            point = dict(zip(self._param_names, self._all_grids[index], strict=True))
            return all(point.get(name, value) == value for name, value in given.items())

    return Grid({name: list(searched.values()) for name, searched in space.training_parameters.items()}, **keywords)
