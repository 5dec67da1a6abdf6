"""The state of studies as JSON with stable keys, without NaN or infinity."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from tuner.results import queries
from tuner.results.summary import Row, Snapshot, Standing, quality, top_trials
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Worker

SCHEMA = 1
BOARD = 10
"""Trials on the leaderboard of a document; with two objectives, all of the Pareto front."""

Document = dict[str, Any]


def studies_document(storage: RDBStorage) -> Document:
    """Returns all studies of the tuner, but for confirmations."""
    return _headed({"studies": [_row(row) for row in queries.rows(storage)]})


def study_document(study: StudyHandle) -> Document:
    """Returns one study, with its best trials and what its last confirmation found."""
    now = queries.in_short(study, BOARD)
    confirmation = study.optuna_study.user_attrs.get("confirmation")
    means = {one["trial"]: one["mean"] for one in (confirmation or {"candidates": []})["candidates"]}
    more = {"leaderboard": [_trial(one, means) for one in top_trials(now, BOARD)], "confirmation": confirmation}
    return _headed({"study": _study(now) | more})


def away_document() -> Document:
    """Returns what there is to say while the database cannot be reached."""
    return _headed({}) | {"reachable": False}


def text(document: Document) -> str:
    """Returns a document as one line; raises ValueError if there were a NaN in it."""
    return json.dumps(document, allow_nan=False)


def _headed(content: Document) -> Document:
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    return {"schema": SCHEMA, "time": moment, "reachable": True, **_finite(content)}


def _row(row: Row) -> Document:
    return _standing(row) | {"best": None if row.best is None else {"trial": row.best_trial, "value": row.best}}


def _study(now: Snapshot) -> Document:
    document = _standing(now)
    document["trials"]["infeasible"] = now.infeasible
    best = None if now.best is None else {"trial": now.best.number, "value": quality(now.best)}
    return document | {"best": best}


def _standing(now: Standing) -> Document:
    counts = asdict(now.counts)
    failed = counts.pop("fail")
    return {
        "name": now.study.name,
        "state": now.state,
        "condition": now.state,  # its name up to 0.2
        "requested": now.requested,
        "next": None if now.next_step is None else str(now.next_step),
        "objectives": now.study.objectives,
        "trials": {
            "finished": now.counts.finished,
            "budget": now.study.trials,
            **counts,
            "failed": failed,
            "ended_by_no_worker": now.external,
            "unfit": now.unfit,
        },
        "hours": {"spent": now.active_seconds / 3600, "budget": now.study.budget.hours},
        "spent": now.spent,
        "seconds_left": now.seconds_left,
        "workers": [_worker(worker) for worker in now.workers],
        "blocked": None if now.blocked is None else asdict(now.blocked),
    }


def _worker(worker: Worker) -> Document:
    document = asdict(worker)
    return document | {"seen_seconds_ago": document.pop("seen")}


def _trial(trial: FrozenTrial, means: dict[int, float]) -> Document:
    facts = trial.user_attrs
    known = {name: facts.get(name) for name in ("parameter_count", "tokens_per_second", "text_divergence")}
    return {
        "trial": trial.number,
        "values": list(trial.values),
        "confirmed_mean": means.get(trial.number),
        **known,
        "parameters": trial.params,
    }


def _finite(value: Any) -> Any:
    """A value without the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
