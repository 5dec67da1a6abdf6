"""A backup of which one value is of another kind: it is refused in one line, or what it restores breaks nothing."""

from __future__ import annotations

import copy
import io
import json
import math
import tarfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from optuna_dashboard import save_note

from models.config import Config
from models.errors import UserError
from tests.tuner.backup.test_backup import Members, places, plain, summed
from tuner.backup.dump import backup, restore
from tuner.control import create
from tuner.errors import StudyError
from tuner.results import confirmation, queries, summary
from tuner.results.export import chosen_trial, exported
from tuner.storage.handle import StudyHandle, open_study
from tuner.study.definition import Study, stored_study
from tuner.trials.attachments import SAMPLES_ATTRIBUTE
from tuner.watch import html_report, live, notes, prometheus, status_json, tables

WRONG: list[Any] = [
    None, True, -1, 2**31 - 1, 2**70, 1e308, math.nan, math.inf, "x", "9999-12-31T23:59:59", "a\0b\ud800", [], [1], {},
    {"x": 1},
]  # fmt: skip
EVERY = 211
"""One mutation of so many is tried; a prime, so that every kind and every place is among them in time."""

MEASURES = dict.fromkeys(notes.MEASURES.keys() - {"text_divergence"}, 0.5)
FACTS: dict[str, Any] = {
    "threads": 1, "attempts": 2, "crashes": 1, "worker": "host cpu", "device": "cpu", "machine": "Linux",
    "precision": "x",
    "versions": {"torch": "2"}, "tokenizer_fingerprint": "sha256:0", "tokens": 4096, "tokens_per_second": 100,
    "training_seconds": 1.5, "decoding_seconds": 0.5, "parameter_count": 99, "peak_memory_bytes": 2**20,
    "traceback": "x",
    "text_divergence": 0.25, "text": MEASURES, "human_text": MEASURES,
    "decoding_curve": [{"temperature": 1.0, "divergence": 0.1, "bleu": 1.0, "self_bleu": 2.0}],
}  # fmt: skip


@pytest.fixture(scope="module")
def members(
    storage: RDBStorage, small: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Members]:
    """A backup in which every kind of attribute is."""
    folder = tmp_path_factory.mktemp("sound")
    parameters = small().parameters | {"temperature": {"type": "float", "low": 0.3, "high": 1.5}}
    study = small(10, name="sound", parameters=parameters, sampler={"type": "tpe", "seed": 1, "n_startup_trials": 2})
    found = create.enter(storage, study).optuna_study
    for number, state in enumerate(
        (TrialState.COMPLETE,) * 3 + (TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING)
    ):
        values = {"learning_rate": 0.01 * (1 + number), "architecture": "gru", "temperature": 1.0}
        config = Config.model_validate(study.space.fixed | values).model_dump(mode="json")
        made = create_trial(
            state=state,
            value=2.0 + number if state == TrialState.COMPLETE else None,
            params=values,
            distributions={
                "learning_rate": FloatDistribution(1e-3, 1e-1, log=True),
                "architecture": CategoricalDistribution(["rnn", "gru"]),
                "temperature": FloatDistribution(0.3, 1.5),
            },
            intermediate_values={1: 3.0, 2: 2.5} if state.is_finished() else {},
            user_attrs=FACTS | {"configuration": config} | ({"reason": "x"} if state == TrialState.FAIL else {}),
            system_attrs={SAMPLES_ATTRIBUTE: [{"prompt": "a", "text": "b"}], "fixed_params": {"learning_rate": 0.02}}
            | {"completed_rung_0": 3.0, "constraints:memory": -0.5},
        )
        found.add_trial(made)
    save_note(found, "a note")
    save_note(optuna.Trial(found, found.trials[1]._trial_id), "a note")
    trials = found.get_trials(deepcopy=False)
    found.set_user_attr("confirmation", confirmed(trials[:2]))
    backup(storage, study, folder / "sound.tar", places(folder))
    optuna.delete_study(study_name="sound", storage=storage)
    with tarfile.open(folder / "sound.tar") as tar:
        yield [(one, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]


def confirmed(chosen: list[Any]) -> dict[str, Any]:
    trainings = {
        (trial.number, seed): create_trial(value=2.0 + seed / 10, user_attrs={"configuration": {}, "threads": 1})
        for trial in chosen
        for seed in (1, 2)
    }
    return confirmation.judged(chosen, trainings, 2) | {"test": {"mean": 2.0, "values": [2.0, 2.1]}}


def mutated(value: Any) -> Iterator[Any]:
    """A document with one value of it replaced, at any depth, or one key taken away."""
    yield from WRONG
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, inner in places:
        for other in mutated(inner):
            changed = copy.copy(value)
            changed[place] = other
            yield changed
    if isinstance(value, dict):
        yield from ({name: one for name, one in value.items() if name != place} for place in value)


def mutations(members: Members) -> Iterator[tuple[str, int, Any]]:
    """The file, the line, and what stands there instead."""
    for member, content in members[:-1]:
        for index, line in enumerate(content.splitlines()):
            yield from ((member.name, index, other) for other in mutated(json.loads(line)))


def written(members: Members, name: str, index: int, other: Any, path: Path) -> Path:
    content = next(content for member, content in members if member.name == name).splitlines(keepends=True)
    content[index] = json.dumps(other).encode() + b"\n"
    changed = [plain(name, b"".join(content)) if one[0].name == name else one for one in members]
    with tarfile.open(path, "w") as tar:
        for member, text in summed(list(changed)):
            tar.addfile(member, io.BytesIO(text))
    return path


def test_a_backup_with_a_value_of_another_kind_is_refused_or_breaks_nothing(
    members: Members, storage: RDBStorage, crew: Any, tmp_path: Path
) -> None:
    every = list(mutations(members))
    assert len(every) > 5000  # all of them take an hour
    tried = every[::EVERY]
    broken = []
    for turn, (name, index, other) in enumerate(tried):
        path = written(members, name, index, other, tmp_path / "mutated.tar")
        place, new = places(tmp_path / f"place-{turn}"), f"mutated-{turn}"
        try:
            restore(storage, path, place, new)
            use(storage, new, place(new), crew if turn % 5 == 0 else None)
        except UserError as error:
            said = str(error)
            if not said.isprintable() or ("mutated.tar: damaged" not in said and "cannot be right" not in said):
                broken.append((name, index, json.dumps(other)[:1000], said))
        except Exception as error:
            broken.append((name, index, json.dumps(other)[:1000], f"{type(error).__name__}: {error} {where(error)}"))
        if new in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=new, storage=storage)
    assert not broken


def where(error: BaseException) -> list[str]:
    return [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]


def said_of(request: Callable[[], object], expected: type[Exception]) -> str | None:
    """What is said when something is refused."""
    try:
        request()
    except expected as error:
        return str(error)
    return None


def use(storage: RDBStorage, name: str, kept: Any, crew: Any) -> None:
    """All that looks at a study, and a worker that goes on with it."""
    found = open_study(storage, name).optuna_study
    study = stored_study(found.user_attrs["study"])
    assert name in [row.study.name for row in queries.rows(storage)]
    now = queries.in_short(StudyHandle(storage, found, study), 5)
    shown = [tables.progress(now), *live.details(found, now), *tables.failed_lines(now)]
    assert shown
    assert tables.failures(summary.snapshot(StudyHandle(storage, found, study))) is not None
    assert status_json.text(status_json.study_document(StudyHandle(storage, found, study)))
    assert status_json.text(status_json.studies_document(storage))
    prometheus.exposition(storage, "")
    (row,) = [row for row in queries.rows(storage) if row.study.name == name]
    assert notes.study_note(row, summary.leaderboard(found.get_trials()))
    for trial in found.get_trials():
        assert notes.trial_note(study, trial)
    assert html_report.report(StudyHandle(storage, found, study), kept)
    for request in (
        lambda: exported(StudyHandle(storage, found, study), chosen_trial(found), Path("best.yaml")),
        lambda: confirmation.candidates(found, 1),
    ):
        said = said_of(request, StudyError)
        assert said is None or said.isprintable()
    if crew is not None:
        roomy = study.model_copy(update={"budget": study.budget.model_copy(update={"trials": 6})})
        crew.requested.clear()
        crew.work(roomy, lambda number, config, rung: 2.0)
