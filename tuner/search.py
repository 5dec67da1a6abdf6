"""Names -> Optuna samplers and pruners; their options are Optuna's own keywords."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from models.reader import Problem, nearest
from tuner.space import Float, Space

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
    elif "seed" in keywords:
        keywords["seed"] += stream
    if options["type"] in ("qmc", "cmaes", "gp"):  # their notes on single parameters are no news to a user
        keywords = {"warn_independent_sampling": False} | keywords
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made: optuna.samplers.BaseSampler = getattr(optuna.samplers, SAMPLERS[options["type"]])(**keywords)
    return made


def pruner(options: dict[str, Any], rungs: int) -> optuna.pruners.BasePruner:
    """Returns the study's pruner; steps are rungs, counted from 1."""
    import optuna

    from tuner.objectives import Hyperband

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
    return math.prod(len(searched.values()) for searched in space.trained.values())


def sampler_problems(chosen: Any, space: Space | None, rungs: int) -> Iterator[Problem]:
    """Yields what is wrong with a study file's `sampler`."""
    yield from _problems(chosen, SAMPLERS, "samplers", lambda options: sampler(options, space or Space({}, {}), 0))
    if _type(chosen) == "grid":
        endless = [
            name for name, one in (space.trained if space else {}).items() if isinstance(one, Float) and not one.step
        ]
        yield from (((), f"a grid needs a step for {name}, or choices") for name in endless)


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
    import optuna

    kind = _type(chosen)
    if kind is None:
        yield (), "should be a name, or a mapping with a type and Optuna's keywords"
    elif not isinstance(kind, str) or kind not in names:
        place = ("type",) if isinstance(chosen, dict) else ()
        yield place, f"unknown {module[:-1]} {kind!r}{nearest(str(kind), names)}"
    else:
        options = {"type": kind} if isinstance(chosen, str) else chosen
        signature = inspect.signature(getattr(getattr(optuna, module), names[kind]).__init__)
        known = set(signature.parameters) - {"self"} - (OURS if kind != "patient" else OURS - {"wrapped_pruner"})
        unknown = [name for name in options if name != "type" and name not in known]
        yield from (((name,), f"unknown option of {kind}{nearest(name, known)}") for name in unknown)
        if not unknown:
            yield from _refusal(options, make)


def _refusal(options: dict[str, Any], make: Callable[[dict[str, Any]], Any]) -> Iterator[Problem]:
    try:
        make(options)
    except (TypeError, ValueError, KeyError) as error:
        yield (), f"{options['type']}: {error}"


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
        """Optuna's grid, which may only end a study that `optimize` runs; here the budget ends it."""

        def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
            pass

    return Grid({name: searched.values() for name, searched in space.trained.items()}, **keywords)
