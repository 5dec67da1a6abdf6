"""Queries about all studies, a fixed number of them for any number of trials."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import sqlalchemy as sql
from optuna.storages import RDBStorage
from sqlalchemy import Connection

from models.errors import ConfigError
from tuner.results import companions, summary
from tuner.results.states import Companion
from tuner.results.summary import FAILED_SHOWN, Row, Snapshot
from tuner.storage import leases
from tuner.storage.blocking import blockages
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Counts, Worker
from tuner.study.definition import Study, renamed, stored_study
from tuner.study.facts import study_problem

_STUDIES = sql.text(
    "SELECT studies.study_id, study_name, definition.value_json, confirmation.value_json FROM studies"
    " JOIN study_user_attributes AS definition"
    " ON definition.study_id = studies.study_id AND definition.key = 'study'"
    " LEFT JOIN study_user_attributes AS confirmation"
    " ON confirmation.study_id = studies.study_id AND confirmation.key = 'confirmation' ORDER BY study_name"
)
# The CASE keeps what is no number from being read as one.
_FEASIBLE = (
    " NOT EXISTS (SELECT 1 FROM trial_system_attributes AS attributes WHERE attributes.trial_id = trials.trial_id"
    " AND CASE WHEN NOT starts_with(key, 'constraints:') THEN false"
    r" WHEN value_json ~ '^-?[0-9]{1,99}(\.[0-9]{1,99})?([eE][-+]?[0-9]{1,2})?$' THEN CAST(value_json AS float) > 0"
    " ELSE true END)"
)
# What `facts.is_result` asks for, but for the kinds of a worker's facts. Infinity is kept as NULL.
_FACT = " EXISTS (SELECT 1 FROM trial_user_attributes AS facts WHERE facts.trial_id = trials.trial_id AND facts.key = "
_RESULT = (
    f" CAST(state AS text) = 'COMPLETE' AND {_FACT} 'configuration') AND {_FACT} 'threads' AND value_json <> 'null')"
    " AND NOT EXISTS (SELECT 1 FROM trial_values AS others WHERE others.trial_id = trials.trial_id"
    " AND (others.value IS NULL OR others.value = 'NaN'))"
)
_UNFIT = f" CAST(state AS text) = 'PRUNED' AND NOT {_FEASIBLE}"
_BOOKS = sql.text(
    "SELECT books.study_id, books.state, active_seconds, lower(CAST(trials.state AS text)) AS of,"
    " count(trials.trial_id) AS many, count(results.trial_id) AS results,"
    " books.forgiven, count(beyond.trial_id) AS beyond FROM tuner_studies AS books"
    " LEFT JOIN trials ON trials.study_id = books.study_id"
    f" LEFT JOIN (SELECT trial_id FROM trials WHERE {_RESULT}) AS results ON results.trial_id = trials.trial_id"
    f" LEFT JOIN (SELECT trial_id FROM trials WHERE {_UNFIT}) AS beyond ON beyond.trial_id = trials.trial_id"
    " GROUP BY books.study_id, trials.state"
)
# Optuna's own minimum knows nothing of limits.
_BEST = sql.text(
    "SELECT DISTINCT ON (study_id) study_id, number, value FROM trials JOIN trial_values USING (trial_id)"
    f" WHERE objective = 0 AND {_RESULT} AND {_FEASIBLE}"
    " ORDER BY study_id, value, number"
)
_BOARD = sql.text(
    "SELECT trials.trial_id, first.value AS first, coalesce(second.value, 'infinity') AS second FROM trials"
    " JOIN trial_values AS first ON first.trial_id = trials.trial_id AND first.objective = 0"
    " LEFT JOIN trial_values AS second ON second.trial_id = trials.trial_id AND second.objective = 1"
    f" WHERE study_id = :study AND {_RESULT} AND {_FEASIBLE}"
    " ORDER BY first.value, second.value, number"
)
_UNFITTING = sql.text(f"SELECT count(*) FROM trials WHERE study_id = :study AND {_UNFIT}")
_RESULTS = sql.text(f"SELECT count(*) FROM trials WHERE study_id = :study AND {_RESULT}")
_ENDED = sql.text(
    "SELECT trial_id FROM trials WHERE study_id = :study AND CAST(state AS text) NOT IN ('RUNNING', 'WAITING')"
)
_FAILED = sql.text(
    "SELECT trial_id FROM trials WHERE study_id = :study AND CAST(state AS text) = 'FAIL'"
    " ORDER BY number DESC LIMIT :most"
)


def rows(storage: RDBStorage) -> list[Row]:
    """Returns a row for each study that was made by the tuner, by name, but for confirmations of others."""
    return [row for row in all_rows(storage) if row.study.confirms is None]


def all_rows(storage: RDBStorage) -> list[Row]:
    """Returns a row for each study that was made by the tuner, by name, confirmations too; but see `unreadable`."""
    with storage.engine.begin() as connection:
        studies = connection.execute(_STUDIES).all()
        if not studies:
            return []  # and perhaps no table of ours
        books, counts, external, unfit = _books(connection)
        seconds, confirming = leases.trial_seconds(connection), companions.pairs(connection)
        best = {row.study_id: row for row in connection.execute(_BEST)}
        workers = _workers(connection)
        blocked = blockages(connection, workers)
    readable = [
        (number, renamed(definition(text), name), result)
        for number, name, text, result in studies
        if _is_ours(text) and _problem(text) is None
    ]
    found = [
        Row(
            study,
            Counts(**counts[number]),
            workers[number],
            books[number].active_seconds,
            books[number].state,
            blocked.get(number),
            study_id=number,
            confirmation=None if confirmation is None else _confirmation(confirmation),
            best=best[number].value if number in best else None,
            best_trial=best[number].number if number in best else None,
            external=external[number],
            unfit=unfit[number],
            forgiven=books[number].forgiven,
            trial_seconds=seconds.get(number),
        )
        for number, study, confirmation in readable
        if number in books
    ]
    by_id = {row.study_id: row for row in found}
    return [replace(row, companion=_companion(by_id.get(confirming.get(row.study_id, -1)))) for row in found]


def _companion(row: Row | None) -> Companion | None:
    if row is None:
        return None
    return Companion(row.requested, len(row.workers), is_over=not row.counts.unfinished)


def unreadable(storage: RDBStorage) -> list[str]:
    """Returns what is wrong with each study that another version of the tuner wrote and this one cannot read."""
    with storage.engine.begin() as connection:
        studies = connection.execute(_STUDIES).all()
    problems = [(name, _problem(text)) for _, name, text, _ in studies if _is_ours(text)]
    return [f"study {name}: {problem}" for name, problem in problems if problem is not None]


def in_short(study: StudyHandle, most: int) -> Snapshot:
    """Returns a study at this moment with the trials that matter: the best, all of the front, and the last failed ones.

    Reading 10,000 trials takes seconds; `report.snapshot` is for those who need them all, or keep them. The study is
    described under the name that it has now. Raises Gone when it was deleted.
    """
    book, study_id, definition = study.leases, study.id, renamed(study.definition, study.leases.name())
    with study.storage.engine.begin() as connection:
        ranked = connection.execute(_BOARD, {"study": study_id}).all()
        failed = connection.execute(_FAILED, {"study": study_id, "most": FAILED_SHOWN}).scalars().all()
        results = connection.execute(_RESULTS, {"study": study_id}).scalar_one()
        counts = book.counts(connection)
        workers = book.alive(connection)
        unfit = connection.execute(_UNFITTING, {"study": study_id}).scalar_one()
        blocked = blockages(connection, {study_id: workers}).get(study_id)
        line, trial_seconds = book.line(connection), book.trial_seconds(connection)
        companion = companions.companion_of(study.storage, study_id, connection)
    several = len(definition.objectives) > 1
    chosen = _front(ranked) if several else [row.trial_id for row in ranked[:most]]
    trials = [study.storage.get_trial(trial_id) for trial_id in (*chosen, *reversed(failed))]
    board = summary.leaderboard(trials)
    return Snapshot(
        definition,
        counts,
        workers,
        line.active_seconds,
        line.state,
        blocked,
        best=board[0] if board else None,
        trials=trials,
        infeasible=results - len(ranked),
        external=counts.complete - results,
        unfit=unfit,
        forgiven=line.forgiven,
        trial_seconds=trial_seconds,
        companion=companion,
    )


def ended(study: StudyHandle) -> set[int]:
    """Returns the ids of the trials of a study that have ended."""
    with study.storage.engine.begin() as connection:
        return set(connection.execute(_ENDED, {"study": study.id}).scalars())


def _front(ranked: Sequence[Any]) -> list[int]:
    return [row.trial_id for row in summary.pareto_front(ranked, lambda row: (row.first, row.second))]


@lru_cache(maxsize=1000)
def definition(text: str) -> Study:
    """Returns a study as it is stored, in JSON; reading one takes milliseconds."""
    return stored_study(json.loads(text))


@lru_cache(maxsize=1000)
def _problem(text: str) -> str | None:
    """Why a stored study cannot be read, if it cannot."""
    try:
        definition(text)
    except ConfigError as error:
        return str(error)
    return None


def _is_ours(text: str) -> bool:
    """Whether an attribute can be a definition of ours; others may give theirs the same name."""
    return text.lstrip().startswith("{")


def _confirmation(text: str) -> dict[str, Any] | None:
    """What a confirmation found, in JSON; None for what is none."""
    found = json.loads(text)
    return found if study_problem({"confirmation": found}) is None else None


def _books(
    connection: Connection,
) -> tuple[dict[int, Any], dict[int, dict[str, int]], dict[int, int], dict[int, int]]:
    """The line of each study, its trials by state, and how many no worker completed and how many do not fit."""
    lines: dict[int, Any] = {}
    counts: dict[int, dict[str, int]] = defaultdict(dict)
    external: dict[int, int] = defaultdict(int)
    unfit: dict[int, int] = defaultdict(int)
    for row in connection.execute(_BOOKS):
        lines[row.study_id] = row
        if row.of is not None:
            counts[row.study_id][row.of] = row.many
            unfit[row.study_id] += row.beyond
            external[row.study_id] += row.many - row.results if row.of == "complete" else 0
    return lines, counts, external, unfit


def _workers(connection: Connection) -> dict[int, list[Worker]]:
    found: dict[int, list[Worker]] = defaultdict(list)
    for study, worker in leases.living(connection):
        found[study].append(worker)
    return found
