"""What Prometheus scrapes: the numbers of the database, under names that it accepts."""

from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.tuner.conftest import complete
from tuner.results import queries
from tuner.storage.leases import Activity, Leases
from tuner.study.definition import Study
from tuner.watch import prometheus

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]
RATES: dict[str, BaseDistribution] = {"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)}


def ended(found: optuna.Study, value: float, **constraints: float) -> None:
    trial = found.ask(fixed_distributions=RATES)
    for name, by in constraints.items():
        trial.set_constraint(name, by)
    complete(found, trial, value)


def samples(storage: RDBStorage, study: str) -> dict[tuple[str, ...], float]:
    """The values of a study by the name of the measurement and its other labels."""
    text = prometheus.exposition(storage, "")[0].decode()
    return {
        (
            sample.name,
            *(value for name, value in sample.labels.items() if name not in ("study", "worker")),
        ): sample.value
        for family in parse(text)
        for sample in family.samples
        if sample.labels["study"] == study
    }


def test_a_study_is_measured_as_it_is(small: Small, enter: Enter, storage: RDBStorage) -> None:
    study = small(4, budget={"trials": 4, "hours": 2.0})
    found = enter(study)
    ended(found, 1.5)
    ended(found, 1.25, memory=-0.1)
    ended(found, 0.5, memory=0.1, parameters=-1.0)  # too large, however good
    found.tell(found.ask(), state=TrialState.FAIL)
    found.ask()
    leases = Leases(storage, found._study_id)
    leases.join("measured", "host", 7, "cuda:0", 1)
    leases.heartbeat("measured", None, Activity(4, "trains", 0.25, 1000.0, 2**20))
    known = samples(storage, study.name)
    leases.leave("measured")
    assert {key[1]: value for key, value in known.items() if key[0] == "tuner_trials"} == {
        "complete": 3,
        "pruned": 0,
        "running": 1,
        "waiting": 0,
        "fail": 1,
    }
    assert known["tuner_study_best_bits_per_byte",] == 1.25
    assert known["tuner_study_budget_trials",] == 4
    assert known["tuner_study_budget_seconds",] == 7200
    assert known["tuner_study_budget_spent_ratio",] == 0.75
    assert known["tuner_study_state", "running"] == 1
    assert known["tuner_study_state", "paused"] == 0
    assert known["tuner_study_workers",] == 1
    assert known["tuner_study_tokens_per_second",] == 1000
    assert known["tuner_study_active_seconds_total",] == leases.active_seconds()
    assert known["tuner_worker_tokens_per_second", "cuda:0", "host"] == 1000
    assert known["tuner_worker_memory_bytes", "cuda:0", "host"] == 2**20
    assert known["tuner_worker_trial_progress_ratio", "cuda:0", "host"] == 0.25
    assert 0 <= known["tuner_study_last_heartbeat_age_seconds",] < 60
    assert 0 <= known["tuner_worker_last_heartbeat_age_seconds", "cuda:0", "host"] < 60


def test_what_is_not_known_is_left_out(small: Small, enter: Enter, storage: RDBStorage) -> None:
    study = small()
    enter(study)
    names = {key[0] for key in samples(storage, study.name)}
    assert "tuner_study_workers" in names
    assert not names & {"tuner_study_best_bits_per_byte", "tuner_study_budget_seconds", "tuner_worker_memory_bytes"}
    assert "tuner_study_last_heartbeat_age_seconds" not in names


@pytest.mark.parametrize("of", ["study", "worker"])
def test_a_former_name_is_exported_too_and_says_what_replaces_it(
    small: Small, enter: Enter, storage: RDBStorage, of: str
) -> None:
    leases = Leases(storage, enter(small())._study_id)
    leases.join("measured", "host", 7, "cpu", 1)
    families = {family.name: family for family in parse(prometheus.exposition(storage, "")[0].decode())}
    leases.leave("measured")
    old, new = families[f"tuner_{of}_sign_of_life_age_seconds"], families[f"tuner_{of}_last_heartbeat_age_seconds"]
    assert old.documentation == f"Deprecated: use {new.name}."
    assert [(one.labels, one.value) for one in old.samples] == [(one.labels, one.value) for one in new.samples] != []


@pytest.mark.parametrize("name", ['quoted " \\ name', "ünï{code}", "a\\nb"])
def test_names_are_escaped(small: Small, enter: Enter, storage: RDBStorage, name: str) -> None:
    enter(small(name=name))
    assert samples(storage, name)["tuner_study_workers",] == 0


def test_every_form_that_a_scraper_asks_for_can_be_read(small: Small, enter: Enter, storage: RDBStorage) -> None:
    enter(small())
    body, kind = prometheus.exposition(storage, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_open(body.decode())}
    assert families["tuner_study_active_seconds"].type == "counter"
    assert all(family.documentation.endswith(".") for family in families.values())
    assert prometheus.exposition(storage, "*/*")[1].startswith("text/plain")


def test_a_scrape_reads_no_trials(
    small: Small, enter: Enter, storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(small())
    monkeypatch.setattr(RDBStorage, "_get_trials", lambda *arguments: pytest.fail("reads trials"))
    monkeypatch.setattr(RDBStorage, "get_all_trials", lambda *arguments, **more: pytest.fail("reads trials"))
    assert queries.all_rows(storage)
    prometheus.exposition(storage, "")


def test_without_studies_there_is_nothing_to_measure(fresh_url: str) -> None:
    from tuner.storage.connection import open_storage

    with open_storage(fresh_url) as fresh:
        assert all(not family.samples for family in parse(prometheus.exposition(fresh, "")[0].decode()))
