"""The numbers of a study's report: best, confirmed, saved by pruning, importance, failures."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.artifacts import get_all_artifact_meta
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from models.wording import counted, listed
from tuner.artifacts.layout import SAMPLES_FILE, run_file
from tuner.artifacts.store import Artifacts
from tuner.results.confirmation import Result, confirmed_trial
from tuner.results.outcomes import BEYOND, BROKEN, FULL, PRUNED, best_first, outcome, spent
from tuner.results.summary import NO_WORKER, quality
from tuner.study.definition import Study
from tuner.study.facts import ended_by_no_worker, is_result
from tuner.study.facts import number as fact
from tuner.study.space import Categorical

FEWEST = 10
"""Trials from which on the importance of parameters is more than chance."""

RARELY = 3
"""Trials from which on a choice counts as tried."""

MOST_WEIGHED = 1_000
"""Most trials from which importance is computed: of more, an even sample."""

SAMPLED = 3
"""Trials whose texts are shown."""

LISTED = 8
"""Most trials of one kind of failure that are listed."""

LONGEST = 10_000
"""Most characters that are shown of a reason or a traceback; its end says most."""

PLACE = ("device", "machine", "precision", "threads", "versions")
"""What was written down about where a trial was trained."""


@dataclass(frozen=True)
class Best:
    """The trial a reader should take, and how sure one can be of it."""

    trial: FrozenTrial
    confirmed: Result | None
    """Its line in the confirmation, if that chose it and nothing better was found since."""
    test: float | None
    outdated: bool
    """Whether there was a confirmation, but of other trials than those that are best now."""


@dataclass(frozen=True)
class Savings:
    """What the pruner's decisions left out; see docs/report.md."""

    pruned: int
    spent: float
    saved: float
    unit: str
    seconds: float | None
    """About how many seconds of training the saved tokens would have taken, at each trial's own speed."""

    @property
    def share(self) -> float:
        """The saved part of what all these trials would have spent at their ends."""
        return self.saved / (self.spent + self.saved) if self.saved else 0.0


@dataclass(frozen=True)
class Weights:
    """The importance of each parameter, by the trials it is of: {trials: {parameter: share}}; or why there is none."""

    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trouble:
    """Trials that ended for the same reason."""

    kind: str
    count: int
    reasons: list[tuple[int, str]]
    """Numbers of some of them, with what was written down."""
    traceback: str


@dataclass(frozen=True)
class Sample:
    """What one trial writes, or why its texts cannot be shown."""

    trial: FrozenTrial
    texts: list[dict[str, str]]
    missing: str = ""


def best(found: optuna.Study, trials: list[FrozenTrial]) -> Best | None:
    """Returns the trial that `tuner export` would take; None before one is complete within the limits."""
    board = best_first(trials)
    if not board:
        return None
    result: Result | None = found.user_attrs.get("confirmation")
    chosen = confirmed_trial(found, board)
    if result is None or chosen is None:
        return Best(board[0], None, None, outdated=result is not None)
    own = next((one for one in result["candidates"] if one["trial"] == chosen.number), None)
    test = result.get("test") or {}
    return Best(chosen, own, test.get("mean"), outdated=False)


def savings(definition: Study, trials: Iterable[FrozenTrial]) -> Savings:
    """Returns what was not spent because the pruner ended trials, against all of these trials trained to their ends.

    Trials that ended for a reason of their own (failed, diverged, too large) count on neither side.
    """
    whole = float(definition.trial.tokens or definition.trial.seconds or 0)
    ended = [trial for trial in trials if outcome(trial) in (FULL, PRUNED)]
    pruned = [trial for trial in ended if outcome(trial) == PRUNED]
    left = {trial.number: whole - spent(definition, max(trial.intermediate_values, default=0)) for trial in pruned}
    unit = "tokens" if definition.trial.tokens else "seconds"
    paid = sum(spent(definition, max(trial.intermediate_values, default=definition.trial.rungs)) for trial in ended)
    return Savings(len(pruned), paid, sum(left.values()), unit, _seconds(unit, pruned, left))


def _seconds(unit: str, pruned: Sequence[FrozenTrial], left: dict[int, float]) -> float | None:
    if unit == "seconds":
        return sum(left.values())
    rates = {trial.number: fact(trial, "tokens_per_second") for trial in pruned}
    if not pruned or not all(rates.values()):
        return None
    return sum(left[number] / float(rate or math.inf) for number, rate in rates.items())


def importance(definition: Study, trials: list[FrozenTrial]) -> Weights:
    """Returns how much each parameter of the training matters, for trials at their end and for all at the first rung.

    Pruning leaves only good values of a parameter that matters, so that it seems to matter less at the end.
    """
    first = min((rung for trial in trials for rung in trial.intermediate_values), default=1)
    asked: dict[str, Callable[[FrozenTrial], float | None]] = {
        "of trials trained to the end": lambda trial: quality(trial) if trial.state == TrialState.COMPLETE else None,
        f"of all trials, at rung {first}": lambda trial: trial.intermediate_values.get(first),
    }
    shares, missing = {}, []
    for whose, worth in asked.items():
        known = [trial for trial in trials if outcome(trial) in (FULL, PRUNED) and _is_finite(worth(trial))]
        found = _shares(known, definition.space.training_parameters, worth) if len(known) >= FEWEST else {}
        if found:
            shares[whose] = found
        elif len(known) < FEWEST:
            missing.append(f"{whose}: there are {len(known)}, and fewer than {FEWEST} say nothing")
        else:
            missing.append(f"{whose}: all are equally good, or only one parameter varies")
    return Weights(shares, missing)


def _shares(
    known: list[FrozenTrial], trained: Iterable[str], worth: Callable[[FrozenTrial], float | None]
) -> dict[str, float]:
    """PED-ANOVA over copies of the trials in memory, each complete with the value in question."""
    step = max(1.0, len(known) / MOST_WEIGHED)
    weighed = [known[int(index * step)] for index in range(min(len(known), MOST_WEIGHED))]
    owners = Counter(name for trial in weighed for name in trial.params)
    names = [
        name for name in trained if owners[name] >= FEWEST and _varies(trial.params.get(name) for trial in weighed)
    ]
    if len(names) < 2 or not _varies(map(worth, weighed)):
        return {}
    study = optuna.create_study()
    for trial in weighed:
        copy = optuna.trial.create_trial(value=worth(trial), params=trial.params, distributions=trial.distributions)
        study.add_trial(copy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of conditional parameters that few trials have; we say how many there are
        found = optuna.importance.get_param_importances(study, params=names)
    return {name: share for name, share in found.items() if math.isfinite(share)} if any(found.values()) else {}


def importance_hints(definition: Study, trials: Iterable[FrozenTrial], quoted: Callable[[str], str] = str) -> list[str]:
    """Returns what a reader of importances must know: that too few trials say nothing, or what was hardly tried.

    `quoted` makes the name and value of a choice safe for where they are shown.
    """
    ended = [trial for trial in trials if outcome(trial) in (FULL, PRUNED)]
    trained = sum(outcome(trial) == FULL for trial in ended)
    if trained < FEWEST:
        few = f"{counted(trained, 'trial')} trained to the end, and fewer than {FEWEST} say nothing"
        return [f"Which parameters matter is not known yet: {few}."]
    rare = [
        f"{quoted(f'{name} {value}')} ({counted(count, 'trial')})"
        for name, value, count in _hardly_tried(definition, ended)
    ]
    return [f"Hardly tried, so little is known of it: {listed(rare, LISTED)}."] if rare else []


def _hardly_tried(definition: Study, ended: Sequence[FrozenTrial]) -> Iterator[tuple[str, Any, int]]:
    """Yields the choices of the training that fewer than RARELY trials had, each with how many."""
    for name in definition.space.training_parameters:
        searched = definition.space.searched.get(name)
        if isinstance(searched, Categorical):
            had = [trial.params[name] for trial in ended if name in trial.params]
            for choice in searched.choices:
                count = sum(type(one) is type(choice) and one == choice for one in had)
                if count < RARELY:
                    yield name, "none" if choice is None else choice, count


def _varies(values: Iterable[Any]) -> bool:
    return len({value for value in values if value is not None}) > 1


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def troubles(trials: Iterable[FrozenTrial]) -> list[Trouble]:
    """Returns the trials that did not end well, by reason, the most frequent first."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        kind = _kind(trial)
        if kind is not None:
            groups.setdefault(kind, []).append(trial)
    return [_trouble(kind, own) for kind, own in sorted(groups.items(), key=lambda group: -len(group[1]))]


def _kind(trial: FrozenTrial) -> str | None:
    """The part of a reason that trials share."""
    facts = trial.user_attrs
    if ended_by_no_worker(trial):
        return NO_WORKER
    if outcome(trial) in (BEYOND, BROKEN):
        return str(facts.get("reason", "no reason was written down")).partition("\n")[0].partition(":")[0][:100]
    return "crashed, and went on from a checkpoint" if "crashes" in facts and trial.state.is_finished() else None


def _trouble(kind: str, own: list[FrozenTrial]) -> Trouble:
    listed = own[:LISTED]
    reasons = [(trial.number, str(trial.user_attrs.get("reason", "")).partition("\n")[0][:LONGEST]) for trial in listed]
    traces = [str(trial.user_attrs["traceback"]) for trial in own if trial.user_attrs.get("traceback")]
    return Trouble(kind, len(own), reasons, traces[-1][-LONGEST:] if traces else "")


def samples(storage: RDBStorage, kept: Artifacts | None, board: Sequence[FrozenTrial]) -> list[Sample]:
    """Returns what the first trials of a board write, from what their workers attached or from kept runs."""
    return [_sample(storage, kept, trial) for trial in board[:SAMPLED]]


def _sample(storage: RDBStorage, kept: Artifacts | None, trial: FrozenTrial) -> Sample:
    if kept is None:
        return Sample(trial, [], "the place of the artifacts cannot be reached")
    try:
        text = _attached(storage, kept, trial)
        records = [json.loads(line) for line in text.splitlines() if line]
        texts = [{"prompt": str(one["prompt"]), "text": str(one["text"])} for one in records]
    except OSError as error:
        return Sample(trial, [], f"they are not where the artifacts are looked for ({error.strerror or error})")
    except (ValueError, KeyError, TypeError, RecursionError):
        return Sample(trial, [], "their file is damaged")
    return Sample(trial, texts, "" if texts else "it was too short, or its text too small, to write any")


def _attached(storage: RDBStorage, kept: Artifacts, trial: FrozenTrial) -> str:
    from optuna.artifacts.exceptions import ArtifactNotFound

    for meta in get_all_artifact_meta(trial, storage=storage):
        if meta.filename == SAMPLES_FILE:
            try:
                with kept.attachments().open_reader(meta.artifact_id) as reader:
                    return reader.read().decode("utf-8", errors="replace")
            except ArtifactNotFound:
                break
    kept.fetch(run_file(trial.number, SAMPLES_FILE))
    return (kept.run_folder(trial.number) / SAMPLES_FILE).read_text(encoding="utf-8", errors="replace")


def origins(trials: Iterable[FrozenTrial]) -> list[tuple[dict[str, Any], int]]:
    """Returns where completed trials were trained, as far as it was written down, and how many at each place."""
    complete = [trial for trial in trials if is_result(trial)]
    places = Counter(
        json.dumps({name: trial.user_attrs.get(name) for name in PLACE}, sort_keys=True) for trial in complete
    )
    return [(json.loads(place), count) for place, count in places.most_common(LISTED)]


def worker_seconds(trials: Iterable[FrozenTrial]) -> float:
    """Returns the time all trials that have ended took, one after the other."""
    spans = [trial.duration for trial in trials if trial.state.is_finished()]
    return sum(span.total_seconds() for span in spans if span is not None)
