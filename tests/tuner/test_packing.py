"""How many workers share a device is measured by real processes that train together."""

import json
from pathlib import Path

import pytest

from tests.tuner.conftest import PARAMETERS, TEXT
from tuner import packing
from tuner.errors import WorkerError
from tuner.packing import typical, workers_per_device
from tuner.study import Study, parse_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "text.txt").write_text(TEXT)
    given = {"corpus": {"path": str(tmp_path / "text.txt")}, "trial": {"tokens": 4000}, "parameters": PARAMETERS}
    return parse_study(json.dumps(given), "study.yaml", "packed")


def test_workers_are_added_while_that_is_worth_while(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    together = {1: 100.0, 2: 190.0, 4: 260.0, 8: 265.0}
    monkeypatch.setattr(packing, "cores", lambda: 16)
    monkeypatch.setattr(packing, "_together", lambda job, places: together[len(places)])
    said: list[str] = []
    assert workers_per_device(study, "cpu", None, said.append) == 4
    assert said[-1] == "8 on a device: 265 tokens/s"


def test_a_number_of_workers_that_does_not_fit_ends_the_search(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "cores", lambda: 16)
    monkeypatch.setattr(packing, "_together", lambda job, places: 100.0 * len(places) if len(places) < 4 else 0.0)
    assert workers_per_device(study, "cpu", None, lambda text: None) == 2


def test_real_processes_are_measured_together(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "cores", lambda: 1)
    said: list[str] = []
    assert workers_per_device(study, "cpu", 1, said.append) in (1, 2)
    assert [line.split(":")[0] for line in said] == ["1 on a device", "2 on a device"]


def test_a_device_on_which_nothing_trains_is_said(study: Study) -> None:
    lost = study.model_copy(update={"corpus": study.corpus.model_copy(update={"path": "/nowhere.txt"})})
    with pytest.raises(WorkerError, match="no worker could train"):
        workers_per_device(lost, "cpu", 1, lambda text: None)


def test_a_typical_configuration_is_the_same_each_time(study: Study) -> None:
    assert typical(study) == typical(study)
    assert typical(study).hidden_size == PARAMETERS["hidden_size"]
