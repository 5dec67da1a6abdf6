"""Prometheus metrics of studies and workers, named by its conventions and cheap to scrape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from optuna.storages import RDBStorage
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tuner.results.queries import all_rows
from tuner.results.states import STATES
from tuner.results.summary import Row
from tuner.storage.leases import Worker

STUDY_GAUGES = {
    "tuner_study_budget_trials": "Finished trials that the study may have.",
    "tuner_study_budget_seconds": "Seconds that the study may be at work.",
    "tuner_study_budget_spent_ratio": "Fraction of the budget that is spent, 0 to 1.",
    "tuner_study_best_bits_per_byte": "Bits per byte of the best completed trial within all limits.",
    "tuner_study_workers": "Workers whose last heartbeat is no older than a lease.",
    "tuner_study_tokens_per_second": "Tokens per second that all workers of the study train on.",
    "tuner_study_last_heartbeat_age_seconds": "Seconds since the last heartbeat of any worker of the study.",
    "tuner_study_trials_unfit": "Pruned trials that did not fit in memory or in the study's limits.",
}
WORKER_GAUGES = {
    "tuner_worker_tokens_per_second": "Tokens per second that the worker trains on.",
    "tuner_worker_memory_bytes": "Memory that the worker's training uses on its device.",
    "tuner_worker_trial_progress_ratio": "Fraction of the worker's trial that is done, 0 to 1.",
    "tuner_worker_last_heartbeat_age_seconds": "Seconds since the worker's last heartbeat.",
}
DEPRECATED = {
    "tuner_study_last_heartbeat_age_seconds": "tuner_study_sign_of_life_age_seconds",
    "tuner_worker_last_heartbeat_age_seconds": "tuner_worker_sign_of_life_age_seconds",
}
"""Former names, exported beside the present ones until 0.3."""


def exposition(storage: RDBStorage, accept: str) -> tuple[bytes, str]:
    """Returns the measurements of this moment and their content type, in the form that a scraper accepts."""
    registry = CollectorRegistry()
    registry.register(Studies(storage))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class Studies(Collector):
    """Asks the database when it is asked."""

    def __init__(self, storage: RDBStorage) -> None:
        self.storage = storage

    def collect(self) -> Iterator[Metric]:
        """Yields each measurement with all studies or workers."""
        found = all_rows(self.storage)
        yield _trials(found)
        yield _states(found)
        yield _active(found)
        for name, said in STUDY_GAUGES.items():
            rows = [([one.study.name], _of_study(one)[name]) for one in found]
            yield from _gauges(name, said, ["study"], rows)
        workers = [(one.study.name, worker) for one in found for worker in one.workers]
        labels = ["study", "worker", "host", "device"]
        for name, said in WORKER_GAUGES.items():
            rows = [(_place(*each), _of_worker(each[1])[name]) for each in workers]
            yield from _gauges(name, said, labels, rows)


def _trials(found: list[Row]) -> Metric:
    family = GaugeMetricFamily("tuner_trials", "Trials by state.", labels=["study", "state"])
    for one in found:
        for state, count in asdict(one.counts).items():
            family.add_metric([one.study.name, state], count)
    return family


def _states(found: list[Row]) -> Metric:
    family = GaugeMetricFamily("tuner_study_state", "1 for the state that the study is in.", labels=["study", "state"])
    for one in found:
        for state in STATES:
            family.add_metric([one.study.name, state], one.state == state)
    return family


def _active(found: list[Row]) -> Metric:
    said = "Seconds in which at least one worker was at work."
    family = CounterMetricFamily("tuner_study_active_seconds", said, labels=["study"])
    for one in found:
        family.add_metric([one.study.name], one.active_seconds)
    return family


def _gauges(name: str, said: str, labels: list[str], rows: list[tuple[list[str], float | None]]) -> Iterator[Metric]:
    """Yields a measurement under its name, and under the one that it had in the version before."""
    yield _gauge(name, said, labels, rows)
    if name in DEPRECATED:
        yield _gauge(DEPRECATED[name], f"Deprecated: use {name}.", labels, rows)


def _gauge(name: str, said: str, labels: list[str], rows: list[tuple[list[str], float | None]]) -> Metric:
    family = GaugeMetricFamily(name, said, labels=labels)
    for place, value in rows:
        if value is not None:
            family.add_metric(place, value)
    return family


def _of_study(one: Row) -> dict[str, float | None]:
    hours = one.study.budget.hours
    values = (
        one.study.trials,
        None if hours is None else hours * 3600,
        one.spent,
        one.best,
        len(one.workers),
        sum(worker.tokens_per_second or 0 for worker in one.workers),
        min((worker.seen for worker in one.workers), default=None),
        one.unfit,
    )
    return dict(zip(STUDY_GAUGES, values, strict=True))


def _of_worker(worker: Worker) -> dict[str, float | None]:
    values = (worker.tokens_per_second, worker.memory_bytes, worker.progress, worker.seen)
    return dict(zip(WORKER_GAUGES, values, strict=True))


def _place(study: str, worker: Worker) -> list[str]:
    return [study, *map(str, (worker.number, worker.host, worker.device))]
