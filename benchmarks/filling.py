"""Studies full of finished trials for benchmarks, and a PostgreSQL to put them in."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import text

from models.config import Config
from tuner.storage.embedded import attached
from tuner.study.definition import Study, parse_study

FILLED_BY_OPTUNA = 500  # trials; more are copies of these, made by the database in no time
RUNGS = 9
COPIED = {
    "trial_params": "param_name, param_value, distribution_json",
    "trial_values": "objective, value, value_type",
    "trial_intermediate_values": "step, intermediate_value, intermediate_value_type",
    "trial_user_attributes": "key, value_json",
    "trial_system_attributes": "key, value_json",
}
PARAMETERS = {
    "architecture": {"type": "categorical", "choices": ["rnn", "lstm", "gru", "transformer"]},
    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "batch_size": {"type": "categorical", "choices": [8, 16, 32, 64]},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5},
    "hidden_size": {"type": "int", "low": 64, "high": 512, "step": 64},
    "weight_decay": {"type": "float", "low": 1e-3, "high": 0.3, "log": True},
}
SAMPLE = [{"prompt": "And what was more, ", "text": "the text went on for some time, as texts do. " * 5}] * 3
MEASURES = ("bleu", "self_bleu", "rouge_l", "distinct_1", "distinct_2", "distinct_3", "repetition", "zipf")


def study_of(name: str) -> Study:
    values = {
        "name": name,
        "corpus": {"builtin": "markov"},
        "trial": {"tokens": 1_000_000, "rungs": RUNGS},
        "budget": {"trials": 1_000_000},
        "sampler": {"type": "tpe", "seed": 0},
        "parameters": PARAMETERS,
    }
    return parse_study(json.dumps(values), name, name)


def fill(
    storage: RDBStorage,
    found: optuna.Study,
    study: Study,
    count: int,
    facts: bool = False,
    different: int = FILLED_BY_OPTUNA,
) -> None:
    """Adds trials as a search leaves them, two thirds pruned at the first rung; `facts`: with what workers store."""
    _add(storage, found, study, min(count, different), facts)
    for done in range(different, count, different):
        _copy(storage, found._study_id, done, min(count - done, different))


def _copy(storage: RDBStorage, study: int, offset: int, count: int) -> None:
    """Adds the first `count` trials of the study again, as numbers `offset` and following."""
    with storage.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)"
                " SELECT number + :offset, study_id, state, datetime_start, datetime_complete"
                " FROM trials WHERE study_id = :study AND number < :count ORDER BY number"
            ),
            {"study": study, "offset": offset, "count": count},
        )
        for table, columns in COPIED.items():
            connection.execute(
                text(
                    f"INSERT INTO {table} (trial_id, {columns}) SELECT copy.trial_id, {columns}"
                    f" FROM {table} JOIN trials USING (trial_id)"
                    " JOIN trials AS copy ON copy.study_id = trials.study_id AND copy.number = trials.number + :offset"
                    " WHERE trials.study_id = :study AND trials.number < :count"
                ),
                {"study": study, "offset": offset, "count": count},
            )


def _add(storage: RDBStorage, found: optuna.Study, study: Study, count: int, facts: bool) -> None:
    dice = random.Random(0)
    distributions: dict[str, BaseDistribution] = {
        name: one.distribution() for name, one in study.space.searched.items()
    }
    now = datetime.now()
    for number in range(count):
        values = {name: dice.choice(one.values()) for name, one in study.space.searched.items()}
        rungs = 1 if number % 3 else RUNGS
        worth = {rung: 3 - 0.1 * rung + dice.random() for rung in range(1, rungs + 1)}
        state = TrialState.COMPLETE if rungs == RUNGS else TrialState.PRUNED
        finished = create_trial(
            state=state,
            value=worth[rungs],
            params=values,
            distributions=distributions,
            intermediate_values=worth,
            user_attrs=_facts(state, values) if facts else {},
            system_attrs={"tuner:samples": SAMPLE} if facts and state == TrialState.COMPLETE else {},
        )
        finished.datetime_start = finished.datetime_complete = now
        storage.create_new_trial(found._study_id, template_trial=finished)


def _facts(state: TrialState, values: dict[str, Any]) -> dict[str, Any]:
    """About what a worker stores with a trial, in size."""
    config = Config().model_dump(mode="json") | values
    facts = {"configuration": config, "attempts": 1, "worker": "a-host cpu", "peak_memory_bytes": 2**28}
    facts |= {"tokens_per_second": 54_321}
    if state == TrialState.PRUNED:
        return facts
    measures = dict.fromkeys(MEASURES, 0.1234)
    return facts | {
        "tokens": 10**6,
        "training_seconds": 30.5,
        "parameter_count": 123_456,
        "threads": 1,
        "device": "cpu",
        "machine": "a processor with a long name",
        "precision": "float32",
        "versions": dict.fromkeys(("python", "textgen-tuner", "torch", "optuna", "numpy", "tokenizers"), "1.2.3"),
        "tokenizer_fingerprint": "sha256:" + 64 * "0",
        "text_divergence": 0.1234,
        "text": measures,
        "human_text": measures,
    }


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """A PostgreSQL: the one given, or an embedded one that is gone afterwards."""
    if url is not None:
        yield url
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        folder.chmod(0o755)
        address = stack.enter_context(attached(folder / "data"))
        yield f"postgresql://{address['username']}@/{address['database']}?host={quote(address['host'])}"
