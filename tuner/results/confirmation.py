"""Confirms a study's best candidates: trains each again with fresh seeds, in a study beside it, and compares them.

The companion is worked by the same workers, with the same leases and checkpoints, but has a queue and no search: what
it trains counts in no budget, and no sampler or pruner of the study sees it.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

from models.config import DECODING
from models.wording import counted
from tuner.errors import StudyError
from tuner.optuna_internals import database_of, storage_of, study_id, trial_id
from tuner.results.companions import CONFIRMS, pairs
from tuner.results.summary import quality, require_board
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import RUNNING, Leases, transaction
from tuner.storage.migrations.migrate import make_tables
from tuner.storage.ownership import owner_of
from tuner.study.definition import Decoding, Study, StudyBudget
from tuner.study.facts import ended_by_no_worker
from tuner.study.limits import Limits
from tuner.study.space import is_searched

if TYPE_CHECKING:
    from models.training.metrics import Score

SUFFIX = " (confirmation)"
CONFIDENCE = 0.95
SEEDS = 2**63
TOP = 5
"""Candidates that are confirmed by default."""

Result = dict[str, Any]
"""What a confirmation found, as it is stored with the study and in exports."""


def companion_name(name: str) -> str:
    """Returns the name of the study that confirms the candidates of another."""
    return name + SUFFIX


def candidates(found: optuna.Study, top: int | None) -> list[FrozenTrial]:
    """Returns the `top` best trials, by default TOP or as many as there are. Raises StudyError."""
    confirmed = found.user_attrs["study"].get("confirms")
    if confirmed is not None:
        raise StudyError(f"{found.study_name} is itself a confirmation; confirm study {confirmed}")
    board = require_board(found.get_trials(deepcopy=False), found.study_name)
    if top is not None and len(board) < top:
        trials = counted(len(board), "completed trial")
        raise StudyError(f"study {found.study_name} has {trials}, not {top}; give a smaller --top")
    return board[: top or TOP]


def enter(study: StudyHandle, chosen: Sequence[FrozenTrial], seeds: int) -> StudyHandle:
    """Queues the trainings that are not there yet; returns the companion. Raises StudyError."""
    storage, found = study.storage, study.optuna_study
    wanted = {(trial.number, seed): trial for trial in chosen for seed in fresh_seeds(trial, seeds)}
    make_tables(storage.engine)
    with transaction(storage):  # a companion that is half there is no study
        companion = _companion(study)
        leases = Leases(storage, study_id(companion))
        leases.open()
    with leases.study_lock():
        there = _trainings(companion)
        for pair in [pair for pair, training in there.items() if training.state == TrialState.WAITING]:
            if pair not in wanted:
                storage.set_trial_state_values(trial_id(there.pop(pair)), TrialState.FAIL)
        for pair, trial in wanted.items():
            if pair not in there:
                _queue(companion, trial, pair)
        definition = _definition(study.definition, companion.study_name, len(there.keys() | wanted.keys()))
        companion.set_user_attr("fingerprint", found.user_attrs.get("fingerprint"))
        companion.set_user_attr("study", definition.stored())
    leases.set_state(RUNNING)
    return StudyHandle(storage, companion, definition)


def fresh_seeds(trial: FrozenTrial, count: int) -> list[int]:
    """Returns the seeds that follow the trial's own, as `tuner train --seeds` takes them."""
    own = int(trial.user_attrs["configuration"].get("seed", 0))
    return [(own + offset) % SEEDS for offset in range(1, count + 1)]


def stored(found: optuna.Study, chosen: Sequence[FrozenTrial], seeds: int) -> Result | None:
    """Returns the study's last confirmation, if it was of these trials and this number of seeds."""
    result: Result = found.user_attrs.get("confirmation", {})
    if not result or result["seeds"] != seeds or _considered(result) != {trial.number for trial in chosen}:
        return None
    return result


def confirmed_trial(found: optuna.Study, board: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Returns the trial that the last confirmation chose; None without one, or when better ones were found since."""
    result = found.user_attrs.get("confirmation")
    if result is None or {trial.number for trial in board[: len(_considered(result))]} != _considered(result):
        return None
    return next(trial for trial in board if trial.number == result["winner"])


def confirmation_of(found: optuna.Study, number: int) -> Result | None:
    """Returns what the last confirmation found out about one trial, for its export."""
    result: Result = found.user_attrs.get("confirmation", {"candidates": []})
    entries: list[Result] = result["candidates"]
    own = next((one for one in entries if one["trial"] == number), None)
    if own is None:
        return None
    shared = {name: result[name] for name in ("interval", "winner", "within_seed_noise", "chosen")}
    return own | shared | ({"test": result["test"]} if number == result["winner"] else {})


def conclude(
    found: optuna.Study,
    companion: optuna.Study,
    chosen: Sequence[FrozenTrial],
    seeds: int,
    run_folder: Callable[[int], Path | None],
    score: Callable[[Path], Score | None],
) -> Result:
    """Ranks the candidates, scores the winner on the test split, and stores what came out. Raises StudyError.

    `run_folder` returns where the run of a training is kept, if it is; `score` reads the test split.
    """
    trainings = _trainings(companion)
    result = judged(chosen, trainings, seeds)
    winner = next(trial for trial in chosen if trial.number == result["winner"])
    runs = [run_folder(trainings[winner.number, seed].number) for seed in fresh_seeds(winner, seeds)]
    result["test"] = _tested([score(run) for run in runs if run is not None])
    found.set_user_attr("confirmation", result)
    return result


def runs_of_others(companion: optuna.Study, result: Result) -> list[int]:
    """Returns the trainings of the candidates that were not chosen: their weights are of no use any more."""
    pairs = _trainings(companion).items()
    return [training.number for (candidate, _), training in pairs if candidate != result["winner"]]


def judged(chosen: Sequence[FrozenTrial], trainings: dict[tuple[int, int], FrozenTrial], seeds: int) -> dict[str, Any]:
    """Returns the candidates by their mean, with intervals, and which is preferred; raises StudyError if none is.

    A candidate that does not train with every seed is not ranked. Seeds are few, so their spread is taken to be the
    same for all candidates: intervals are those of Student's t with the pooled variance.
    """
    values = {trial.number: _values(trial, trainings, seeds) for trial in chosen}
    sound = [trial for trial in chosen if len(values[trial.number]) == seeds]
    if not sound:
        raise StudyError("no candidate trained with every seed; see `tuner status --failed` of the confirmation")
    variance = statistics.fmean(statistics.variance(values[trial.number].values()) for trial in sound)
    error = _quantile(len(sound) * (seeds - 1)) * math.sqrt(variance / seeds)
    ranked = sorted((_entry(trial, values[trial.number], error) for trial in sound), key=lambda one: one["mean"])
    near = [one for one in ranked if one["mean"] - ranked[0]["mean"] <= math.sqrt(2) * error]
    # Few seeds leave much within noise. The smaller is preferred only where it costs no more than one standard error of
    # a difference (the rule of Breiman et al. 1984).
    as_good = [one for one in near if one["mean"] - ranked[0]["mean"] <= math.sqrt(2 * variance / seeds)]
    winner = min(as_good, key=lambda one: one["parameter_count"])
    return {
        "seeds": seeds,
        "candidates": ranked,
        "dropped": [trial.number for trial in chosen if trial not in sound],
        "interval": f"{CONFIDENCE:.0%}, Student's t, the variance pooled over {len(sound)} candidates",
        "winner": winner["trial"],
        "within_seed_noise": [one["trial"] for one in near] if len(near) > 1 else [],
        "chosen": _why(winner, near),
    }


def lines(result: Result) -> Iterator[str]:
    """Yields what a confirmation found, as lines for a terminal."""
    yield f"Confirmed with {result['seeds']} fresh seeds each (bits per byte; {result['interval']}):"
    for one in result["candidates"]:
        mark = "  * chosen" if one["trial"] == result["winner"] else ""
        near = "  within seed noise" if one["trial"] in result["within_seed_noise"] else ""
        spread = f"{one['mean']:.4f} ± {one['high'] - one['mean']:.4f}"
        yield f"  trial {one['trial']:>3}  {spread}  (search: {one['reported']:.4f})  {_size(one)}{near}{mark}"
    for number in result["dropped"]:
        yield f"  trial {number:>3}  did not train with every seed; not ranked"
    yield f"Trial {result['winner']} is chosen: {result['chosen']}."
    test = result["test"]
    if test is None:
        yield "The test split was not scored: no text in it, or the weights are with a worker elsewhere."
    else:
        yield f"Test split, read once: {test['mean']:.4f} bits per byte, the mean of {len(test['values'])} seeds."


def companion_of(found: optuna.Study) -> optuna.Study | None:
    """Returns the study that confirms the candidates of this one, if there is one, whatever either is called."""
    for name in (_name_by_identity(found), companion_name(found.study_name)):
        with suppress(KeyError):
            companion = optuna.load_study(study_name=name, storage=storage_of(found)) if name is not None else None
            if companion is not None and _confirms(companion, found):
                return companion
    return None


def _name_by_identity(found: optuna.Study) -> str | None:
    """The name of the study that says it confirms this one; one from before there were identities does not."""
    storage = database_of(found)
    with transaction(storage) as connection:
        number = pairs(connection).get(study_id(found))
    return None if number is None else storage.get_study_name_from_id(number)


def _confirms(companion: optuna.Study, found: optuna.Study) -> bool:
    """Whether a study is a confirmation of this very one, not of a deleted one whose name this one has now."""
    if (companion.user_attrs.get("study") or {}).get("confirms") is None:
        return False
    stated = companion.user_attrs.get(CONFIRMS)
    if stated is not None:
        return bool(stated == owner_of(found).identity)
    trained: dict[Any, Any] = {trial.number: _without_decoding(trial) for trial in found.get_trials(deepcopy=False)}
    return all(
        _without_decoding(training) == trained.get(training.params.get("candidate"))
        for training in companion.get_trials(deepcopy=False)
    )


def _without_decoding(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial trained, but for its seed."""
    stored: dict[str, Any] = trial.user_attrs.get("configuration") or {}
    return {name: value for name, value in stored.items() if name not in (*DECODING, "seed")}


def _companion(study: StudyHandle) -> optuna.Study:
    found = study.optuna_study
    begun = companion_of(found)
    name = companion_name(study.name) if begun is None else begun.study_name
    companion = optuna.create_study(study_name=name, storage=study.storage, load_if_exists=True)
    is_new = "study" not in companion.user_attrs and not companion.get_trials(deepcopy=False)
    if not is_new and not _confirms(companion, found):
        raise StudyError(
            f"study {name!r} in this database is no confirmation of study {study.name}; rename it, or delete it if it"
            " belonged to a study that was deleted"
        )
    companion.set_user_attr(CONFIRMS, owner_of(found).identity)
    owner_of(companion)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        companion.set_metric_names(["bits_per_byte"])
    return companion


def _definition(study: Study, name: str, trainings: int) -> Study:
    """The companion: what the study trains, without anything that searches, prunes or limits."""
    changes = {
        "name": name,
        "confirms": study.name,
        "objective": "bits_per_byte",
        "budget": StudyBudget(trials=trainings),
        "sampler": {"type": "random"},
        "pruner": {"type": "none"},
        "parameters": {
            name: value for name, value in study.parameters.items() if name not in DECODING or not is_searched(value)
        },
        "points_to_evaluate": [],
        "decoding": Decoding(share=0.0),
        "limits": Limits(),
    }
    return study.model_copy(update=changes)


def _trainings(companion: optuna.Study) -> dict[tuple[int, int], FrozenTrial]:
    """The companion's trials by candidate and seed, but for those that failed or that no worker ended: once more."""
    return {
        (trial.params["candidate"], trial.params["seed"]): trial
        for trial in companion.get_trials(deepcopy=False)
        if trial.params.keys() >= {"candidate", "seed"}
        and trial.state != TrialState.FAIL
        and not ended_by_no_worker(trial)
    }


def _queue(companion: optuna.Study, trial: FrozenTrial, pair: tuple[int, int]) -> None:
    candidate, seed = pair
    training = optuna.trial.create_trial(
        state=TrialState.WAITING,
        params={"candidate": candidate, "seed": seed},
        distributions={"candidate": IntDistribution(0, 2**31 - 1), "seed": IntDistribution(0, SEEDS - 1)},
        user_attrs={"configuration": trial.user_attrs["configuration"] | {"seed": seed}},
    )
    companion.add_trial(training)


def _values(trial: FrozenTrial, trainings: dict[tuple[int, int], FrozenTrial], seeds: int) -> dict[int, float]:
    """The bits per byte of a candidate by seed; StudyError when one has not been trained to its end."""
    found = {seed: trainings.get((trial.number, seed)) for seed in fresh_seeds(trial, seeds)}
    if any(training is None or not training.state.is_finished() for training in found.values()):
        raise StudyError("the confirmation is not finished; go on with the same command")
    return {
        seed: quality(training)
        for seed, training in found.items()
        if training is not None and training.state == TrialState.COMPLETE
    }


def _entry(trial: FrozenTrial, values: dict[int, float], error: float) -> dict[str, Any]:
    mean = statistics.fmean(values.values())
    facts = trial.user_attrs
    return {
        "trial": trial.number,
        "reported": quality(trial),
        "mean": mean,
        "low": mean - error,
        "high": mean + error,
        "seeds": list(values),
        "values": list(values.values()),
        "parameter_count": facts.get("parameter_count", 0),
        "tokens_per_second": facts.get("tokens_per_second", 0),
    }


def _quantile(freedom: int) -> float:
    """How many standard errors wide a two-sided t-interval is on each side."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _why(winner: dict[str, Any], near: list[dict[str, Any]]) -> str:
    if len(near) == 1:
        return "the lowest mean, by more than seed noise"
    others = ", ".join(str(one["trial"]) for one in near if one is not winner)
    if winner["parameter_count"] == min(one["parameter_count"] for one in near) and winner is not near[0]:
        return f"within seed noise of {others}, and the smallest of them"
    reason = "of the lowest mean" if winner is near[0] else "smaller, within a standard error of the lowest mean"
    return f"within seed noise of {others}, and {reason}"


def _size(one: dict[str, Any]) -> str:
    return f"{one['parameter_count']:,} parameters, {one['tokens_per_second']:,} tokens/s"


def _tested(scores: Sequence[Score | None]) -> dict[str, Any] | None:
    values = [score.bits_per_byte for score in scores if score is not None]
    return {"mean": statistics.fmean(values), "values": values} if values else None


def _considered(result: Result) -> set[int]:
    return {one["trial"] for one in result["candidates"]} | set(result["dropped"])
