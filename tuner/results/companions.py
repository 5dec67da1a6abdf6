"""Which study confirms which, and how far a confirmation is, whatever either study is called."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sql
from optuna.storages import RDBStorage
from sqlalchemy import Connection

from tuner.results.states import Companion
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Leases
from tuner.storage.ownership import KEY

CONFIRMS = "confirms"
"""The attribute of a confirmation that holds the identity of the study it confirms: names can change hands."""

_IDENTITIES = sql.text(
    "SELECT study_id, key, value_json FROM study_user_attributes WHERE key IN (:owner, :confirms) ORDER BY study_id"
)


def pairs(connection: Connection) -> dict[int, int]:
    """Returns the confirmation of each study that has one, both by their ids."""
    owners: dict[str, int] = {}
    confirming: list[tuple[str, int]] = []
    for study, key, text in connection.execute(_IDENTITIES, {"owner": KEY, "confirms": CONFIRMS}):
        value: Any = json.loads(text)
        if key == CONFIRMS and isinstance(value, str):
            confirming.append((value, study))
        elif key == KEY and isinstance(value, dict) and value.get("study", study) == study:
            owners[str(value.get("identity"))] = study
    return {owners[identity]: study for identity, study in reversed(confirming) if identity in owners}


def leases_of_confirmation(study: StudyHandle) -> list[Leases]:
    """Returns the leases of the study that confirms this one; empty without one."""
    with study.storage.engine.begin() as connection:
        number = pairs(connection).get(study.id)
    return [] if number is None else [Leases(study.storage, number)]


def companion_of(storage: RDBStorage, study_id: int, connection: Connection) -> Companion | None:
    """Returns how far the confirmation of a study is; None without one."""
    number = pairs(connection).get(study_id)
    if number is None:
        return None
    books = Leases(storage, number)
    state, workers, counts = books.line(connection).state, books.alive(connection), books.counts(connection)
    return Companion(state, len(workers), is_over=not counts.unfinished)
