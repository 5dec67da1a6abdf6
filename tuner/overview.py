"""All studies at a glance, by a few questions to the database however many trials they have."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import lru_cache

import sqlalchemy as sql
from optuna.storages import RDBStorage
from sqlalchemy import Connection

from tuner import ledger
from tuner.ledger import Counts, Worker
from tuner.report import Row
from tuner.study import Study, stored_study

_STUDIES = sql.text(
    "SELECT studies.study_id, definition.value_json, confirmation.value_json FROM studies"
    " JOIN study_user_attributes AS definition"
    " ON definition.study_id = studies.study_id AND definition.key = 'study'"
    " LEFT JOIN study_user_attributes AS confirmation"
    " ON confirmation.study_id = studies.study_id AND confirmation.key = 'confirmation' ORDER BY study_name"
)
_COUNTS = sql.text("SELECT study_id, lower(CAST(state AS text)), count(*) FROM trials GROUP BY study_id, state")
# Optuna's own minimum knows nothing of limits. The CASE keeps what is no number from being read as one.
_BEST = sql.text(
    "SELECT DISTINCT ON (study_id) study_id, number, value FROM trials JOIN trial_values USING (trial_id)"
    " WHERE CAST(state AS text) = 'COMPLETE' AND objective = 0 AND value IS NOT NULL AND NOT EXISTS ("
    "  SELECT 1 FROM trial_system_attributes AS attributes WHERE attributes.trial_id = trials.trial_id"
    "  AND CASE WHEN starts_with(key, 'constraints:') THEN CAST(value_json AS float) > 0 ELSE false END"
    " ) ORDER BY study_id, value, number"
)


def rows(storage: RDBStorage) -> list[Row]:
    """Returns a row for each study that was made by the tuner, by name, but for confirmations of others."""
    return [row for row in all_rows(storage) if row.study.confirms is None]


def all_rows(storage: RDBStorage) -> list[Row]:
    """Returns a row for each study that was made by the tuner, by name, confirmations too."""
    with storage.engine.begin() as connection:
        studies = connection.execute(_STUDIES).all()
        if not studies:
            return []  # and perhaps no table of ours
        counts, best = _counts(connection), {row.study_id: row for row in connection.execute(_BEST)}
        books = {row.study_id: row for row in connection.execute(ledger.studies.select())}
        workers = _workers(connection)
    return [
        Row(
            definition(text),
            Counts(**counts[number]),
            workers[number],
            books[number].active_seconds,
            books[number].state,
            study_id=number,
            confirmation=None if confirmation is None else json.loads(confirmation),
            best=best[number].value if number in best else None,
            best_trial=best[number].number if number in best else None,
        )
        for number, text, confirmation in studies
        if number in books
    ]


@lru_cache(maxsize=1000)
def definition(text: str) -> Study:
    """Returns a study as it is stored, in JSON; reading one takes milliseconds."""
    return stored_study(json.loads(text))


def _counts(connection: Connection) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for study, state, count in connection.execute(_COUNTS):
        found[study][state] = count
    return found


def _workers(connection: Connection) -> dict[int, list[Worker]]:
    found: dict[int, list[Worker]] = defaultdict(list)
    for study, worker in ledger.living(connection):
        found[study].append(worker)
    return found
