"""The state of a study: the same word in every view, for all that can have become of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from tests.tuner.conftest import complete
from tuner.results import confirmation, queries, states, summary
from tuner.results.states import Companion, Facts
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import NEVER_FINISHED, Leases
from tuner.study.definition import Study
from tuner.watch import html_report, notes, prometheus, status_json, tables

AT_WORK, LEFT, DONE = Companion("running", 2, False), Companion("running", 0, False), Companion("running", 0, True)

STATES = [
    (Facts(), "idle", "No worker is there; start some: tuner work s"),
    (Facts(workers=2), "running", None),
    (Facts("paused", 2), "paused", "Let it go on: tuner resume s"),
    (Facts("paused"), "paused", "Let it go on: tuner resume s"),
    (Facts("stopped"), "stopped", "Let it go on: tuner resume s, then tuner work s"),
    (Facts("stopped", 1), "stopped", "Let it go on: tuner resume s, then tuner work s"),
    (
        Facts(has_failed=True),
        "failed",
        "See why, mend it, and let it go on: tuner status s --failed, then tuner resume s, then tuner work s",
    ),
    (Facts(is_spent=True, has_best=True), "finished", "Export the best: tuner export s"),
    (Facts("stopped", is_spent=True, has_best=True), "finished", "Export the best: tuner export s"),
    (Facts(is_spent=True), "finished", "No trial was completed within the limits; see why: tuner status s --failed"),
    (Facts(is_spent=True, has_best=True, companion=AT_WORK), "confirming", None),
    (Facts(workers=1, has_best=True, companion=AT_WORK), "running", None),
    (Facts("stopped", has_best=True, companion=AT_WORK), "confirming", None),
    (
        Facts(is_spent=True, has_best=True, companion=Companion("paused", 2, False)),
        "paused",
        "Let it go on: tuner resume s",
    ),
    (
        Facts(is_spent=True, has_best=True, companion=LEFT),
        "finished",
        "Its confirmation was interrupted; the command that began it continues it",
    ),
    (Facts(is_spent=True, has_best=True, companion=DONE), "finished", "Export the best: tuner export s"),
]


@pytest.mark.parametrize(("facts", "state", "step"), STATES)
def test_a_study_is_in_one_state_and_has_one_next_step(facts: Facts, state: str, step: str | None) -> None:
    found = states.next_step("s", facts)
    assert (states.state(facts), None if found is None else str(found)) == (state, step)


def test_the_table_has_every_state() -> None:
    assert {state for _, state, _ in STATES} == set(states.STATES)


def _join(study: optuna.Study) -> None:
    Leases(study._storage._backend, study._study_id).join(f"of {study.study_name}", "a-host", 17, "cpu", 1)  # type: ignore[attr-defined]


def _leave(study: optuna.Study) -> None:
    Leases(study._storage._backend, study._study_id).leave(f"of {study.study_name}")  # type: ignore[attr-defined]


def test_every_view_has_the_same_word_all_along(
    storage: RDBStorage, small: Callable[..., Study], enter: Callable[[Study], optuna.Study]
) -> None:
    definition = small(2, parameters={"learning_rate": {"type": "float", "low": 0.01, "high": 0.1}})
    found = enter(definition)
    study = StudyHandle(storage, found, definition)
    assert _words(study) == {"idle"}
    _join(found)
    assert _words(study) == {"running"}
    study.leases.set_state("paused")
    assert _words(study) == {"paused"}
    study.leases.set_state("stopped")
    assert _words(study) == {"stopped"}
    study.leases.set_state("running")
    for _ in range(NEVER_FINISHED):
        found.tell(found.ask(), state=TrialState.FAIL)
    assert _words(study) == {"failed"}
    study.leases.set_state("running")
    for value in (2.0, 3.0):
        trial = found.ask({"learning_rate": optuna.distributions.FloatDistribution(0.01, 0.1)})
        complete(found, trial, value)
    _leave(found)
    assert _words(study) == {"finished"}
    companion = confirmation.enter(study, confirmation.candidates(found, 1), 2).optuna_study
    now = queries.in_short(study, 5)
    assert str(now.next_step).startswith("Its confirmation was interrupted")
    _join(companion)
    assert _words(study) == {"confirming"}
    for _ in range(2):
        complete(companion, companion.ask(), 2.0)
    _leave(companion)
    assert _words(study) == {"finished"}
    assert str(queries.in_short(study, 5).next_step) == f"Export the best: tuner export {study.name}"


def _words(study: StudyHandle) -> set[str]:
    """The state of a study as each view gives it."""
    now = queries.in_short(study, 5)
    (row,) = [row for row in queries.rows(study.storage) if row.study_id == study.id]
    document: dict[str, Any] = json.loads(status_json.text(status_json.study_document(study)))["study"]
    page = html_report.report(study, None)
    scraped = prometheus.exposition(study.storage, "")[0].decode()
    (gauge,) = [
        line for line in scraped.splitlines()
        if line.startswith('tuner_study_state{state=') and f'study="{study.name}"' in line and line.endswith(" 1.0")
    ]  # fmt: skip
    return {
        now.state,
        row.state,
        summary.current(study).state,
        document["state"],
        document["condition"],
        notes.study_note(row, []).split("**")[1].lower(),
        tables.states(now).split()[0],
        page.partition("The study was then <b>")[2].partition("</b>")[0],
        gauge.partition('state="')[2].partition('"')[0],
    }
