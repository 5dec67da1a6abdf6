"""The identity of a study, by which its files belong to it under any name."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import optuna
import sqlalchemy as sql
from optuna.trial import FrozenTrial
from safetensors import SafetensorError, safe_open
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from models.config import DECODING, Config
from models.errors import UserError
from tuner.artifacts.layout import CHECKPOINT, RUN_FILE
from tuner.artifacts.store import Artifacts, Owner
from tuner.errors import StudyError
from tuner.optuna_internals import database_of, study_id, tables
from tuner.storage.leases import transaction

KEY = "files"
"""The attribute of a study that holds its identity, and the name of its folder."""

_attributes = tables().StudyUserAttributeModel.__table__


def new_owner(name: str) -> Owner:
    """Returns an identity for a study that begins under this name."""
    return Owner(uuid.uuid4().hex, name)


def write_owner(connection: Connection, study: int, owner: Owner) -> None:
    """Gives a study its identity unless it has one: of several processes at once, one gives it."""
    row = {"study_id": study, "key": KEY, "value_json": json.dumps(asdict(owner) | {"study": study})}
    connection.execute(insert(_attributes).values(row).on_conflict_do_nothing())


def owner_of(study: optuna.Study) -> Owner:
    """Returns a study's identity; one that an earlier version made, or a copy, gets it now. Raises StudyError."""
    number = study_id(study)
    found: Any = study.user_attrs.get(KEY)
    if not _was_given_to(found, number):
        with transaction(database_of(study)) as connection:
            if found is None or _forget_copied(connection, number):
                write_owner(connection, number, new_owner(study.study_name))
        found = study.user_attrs.get(KEY)
    try:
        return Owner(str(found["identity"]), str(found["folder"]))
    except (KeyError, TypeError):
        raise StudyError(f"the attribute {KEY} of the study was changed; delete it to begin a new folder") from None


def _was_given_to(attribute: Any, study: int) -> bool:
    """Whether an identity is this study's for certain: copied attributes have the number of another study."""
    return isinstance(attribute, dict) and attribute.get("study") == study


def _forget_copied(connection: Connection, study: int) -> bool:
    """Takes its identity from a copy of a study that still exists; where that is gone, the study was only renamed."""
    own, older = _attributes.alias(), _attributes.alias()
    copied = (
        sql.select(own.c.study_user_attribute_id)
        .where(own.c.study_id == study, own.c.key == KEY)
        .where(older.c.key == KEY, older.c.value_json == own.c.value_json, older.c.study_id < study)
    )
    entry = connection.execute(copied).scalar()
    if entry is not None:
        connection.execute(_attributes.delete().where(_attributes.c.study_user_attribute_id == entry))
    return entry is not None


def wrote(found: optuna.Study) -> Callable[[Artifacts], bool]:
    """Returns a check of whether this study left the files of a folder without an owner, as version 0.1 made them.

    Each of its runs and checkpoints must be that of the trial of its number here, by configuration, text, scores and
    seconds: a study of the same file in another database has other ones.
    """

    def is_own(kept: Artifacts) -> bool:
        trials = {trial.number: trial for trial in found.get_trials(deepcopy=False)}
        text = found.user_attrs.get("fingerprint")
        return all(_evidence(kept, trials, text))

    return is_own


def _evidence(kept: Artifacts, trials: dict[int, FrozenTrial], text: Any) -> Iterator[bool]:
    for name in kept.names():
        run, checkpoint = RUN_FILE.fullmatch(name), CHECKPOINT.fullmatch(name)
        if run is not None and name.endswith(".safetensors"):
            trial = trials.get(int(run[1]))
            yield trial is not None and _is_run_of(trial, text, kept)
        elif checkpoint is not None:
            trial = trials.get(int(checkpoint[1]))
            yield trial is not None and _is_checkpoint_of(trial, text, kept, name)


def _is_run_of(trial: FrozenTrial, text: Any, kept: Artifacts) -> bool:
    from models.runs.run import CONFIG, METRICS, read_recipe

    try:
        folder = kept.fetch_run(trial.number)
        if folder is None:
            return False
        recipe = read_recipe(folder / CONFIG)
        lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        scores = {line["rung"]: line["bits_per_byte"] for line in lines}
        seconds = lines[-1]["seconds"] - trial.user_attrs.get("training_seconds", lines[-1]["seconds"])
    except (OSError, UserError, ValueError, LookupError, TypeError, RecursionError):
        return False
    same = recipe.parameters == _configuration(trial) and recipe.corpus.fingerprint == text
    return same and scores == trial.intermediate_values and abs(seconds) < 0.02  # both are rounded


def _is_checkpoint_of(trial: FrozenTrial, text: Any, kept: Artifacts, name: str) -> bool:
    try:
        kept.fetch(name)
        with safe_open(kept.folder / name, framework="np") as file:
            facts = json.loads((file.metadata() or {})["facts"])
        config = Config.model_validate(facts["config"])
        reported = {one["rung"]: one["bits_per_byte"] for one in facts["evaluations"]}
        its_text = facts["corpus"][0]
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError):
        return False
    stored = _configuration(trial)
    chosen_later = set(DECODING)
    if stored is None or config.model_dump(exclude=chosen_later) != stored.model_dump(exclude=chosen_later):
        return False
    known = trial.intermediate_values
    return its_text == text and all(known.get(rung, value) == value for rung, value in reported.items())


def _configuration(trial: FrozenTrial) -> Config | None:
    try:
        return Config.model_validate(trial.user_attrs["configuration"])
    except (KeyError, ValueError):
        return None
