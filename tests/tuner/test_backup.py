"""Backups: what is restored equals what was there, from any state of a study; what is damaged or hostile does nothing."""

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sql
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import save_note, save_plotly_graph_object
from optuna_dashboard._note import get_note_from_system_attrs, save_note_with_version

from models.config import Config
from models.errors import RunError, UserError
from tuner import archive, notes
from tuner.artifacts import RUN, Artifacts, artifacts_of
from tuner.backup import backup, restore
from tuner.confirmation import companion_name, enter as enter_companion
from tuner.errors import StudyError, WorkerError
from tuner.export import chosen_trial, exported
from tuner.ledger import PAUSED, Ledger
from tuner.storage import open_storage
from tuner.study import Study, stored_study

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]


def places(folder: Path) -> Callable[[str], Artifacts]:
    return lambda name: artifacts_of(str(folder), name, folder)


def known(storage: RDBStorage, name: str) -> dict[str, Any]:
    """All that a person can see of a study, but for its name and ids."""
    found = optuna.load_study(study_name=name, storage=storage)
    ledger, ids = Ledger(storage, found._study_id), {trial._trial_id: trial.number for trial in found.trials}
    attributes = storage.get_study_system_attrs(found._study_id)
    return {
        "directions": found.directions,
        "user": {key: value for key, value in found.user_attrs.items() if key != "study"},
        "definition": {key: found.user_attrs["study"][key] for key in found.user_attrs["study"].keys() - {"name"}},
        "system": {
            key: value
            for key, value in attributes.items()
            if not key.startswith(tuple(f"dashboard:{one}:" for one in ids))
        },
        "notes": {number: get_note_from_system_attrs(attributes, one) for one, number in ids.items()},
        "trials": [vars_of(trial) for trial in found.trials],
        "ledger": (ledger.state(), ledger.active_seconds()),
        "attempts": {ids[one]: attempt for one, attempt in ledger.attempts().items()},
    }


def vars_of(trial: FrozenTrial) -> str:
    """What a trial is, in words: nan is equal to nan there."""
    shown = (trial.state, trial.values, trial.datetime_start, trial.datetime_complete, list(trial.params.items()))
    more = (trial.distributions, trial.intermediate_values, trial.user_attrs, trial.system_attrs)
    return repr((trial.number, *shown, *more))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("**/*") if path.is_file()}


numbers = some.floats(allow_nan=False)
texts = some.text(some.characters(codec="utf-8"), max_size=20)
values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | texts,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = some.text(some.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
moments = some.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1))


CHOICES = [None, True, 7, 0.1, "groß ✓\n"]
DISTRIBUTIONS = {
    "rate": FloatDistribution(1e-9, 1e3, log=True),
    "size": IntDistribution(0, 64, step=8),
    "kind": CategoricalDistribution(CHOICES),
}


@some.composite
def trials(draw: Any) -> FrozenTrial:
    state = draw(some.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING]))
    drawn = {
        "rate": draw(some.floats(1e-9, 1e3)),
        "size": 8 * draw(some.integers(0, 8)),
        "kind": draw(some.sampled_from(CHOICES)),
    }
    taken = draw(some.permutations(sorted(drawn)).map(lambda order: order[: len(order) - 1]))
    made = optuna.trial.create_trial(
        state=state,
        values=[draw(numbers)] if state == TrialState.COMPLETE else None,
        params={name: drawn[name] for name in taken},
        distributions={name: DISTRIBUTIONS[name] for name in taken},
        intermediate_values=draw(some.dictionaries(some.integers(0, 100), some.floats(), max_size=4)),
        user_attrs=draw(some.dictionaries(names, values, max_size=3)),
        system_attrs=draw(some.dictionaries(names, values, max_size=3)),
    )
    if state != TrialState.WAITING:
        made.datetime_start = draw(moments)
        if state.is_finished():
            made.datetime_complete = made.datetime_start + timedelta(seconds=draw(some.floats(0, 1e6)))
    return made


@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # each example is a study in the database: shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(some.lists(trials(), max_size=6), some.dictionaries(names, values, max_size=3), some.floats(0, 1e7), texts)
def test_what_is_restored_equals_what_was_there(
    storage: RDBStorage, small: Small, enter: Enter, tmp_path_factory: pytest.TempPathFactory,
    made: list[FrozenTrial], facts: dict[str, Any], seconds: float, note: str,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("backup")
    study = small(9)
    found = enter(study)
    for trial in made:
        found.add_trial(trial)
    for name, value in facts.items():
        found.set_user_attr(name, value)
    save_note(found, note)
    for trial in found.trials[:2]:
        save_note_with_version(storage, found._study_id, trial._trial_id, 1, note)
    with storage.engine.begin() as connection:
        own = sql.text("update tuner_studies set active_seconds = :seconds, state = 'paused' where study_id = :id")
        connection.execute(own, {"seconds": seconds, "id": found._study_id})
    backup(storage, study, folder / "study.tar", places(folder / "old"))
    told = restore(storage, folder / "study.tar", places(folder / "new"), study.name + " again")
    assert known(storage, study.name + " again") == known(storage, study.name)
    assert told.trials == len(made)
