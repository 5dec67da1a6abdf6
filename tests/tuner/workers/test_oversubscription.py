"""How many workers share a device is measured by real processes that train together."""

import json
import subprocess
from functools import partial
from pathlib import Path

import pytest

from models.config import Config
from tests.tuner.conftest import PARAMETERS, TEXT, Heard
from tuner.errors import WorkerError
from tuner.study.definition import Study, parse_study
from tuner.workers.oversubscription import Job, tokens_per_second, typical, workers_per_device
from tuner.workers.processes import Slot


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "text.txt").write_text(TEXT)
    given = {"corpus": {"path": str(tmp_path / "text.txt")}, "trial": {"tokens": 4000}, "parameters": PARAMETERS}
    return parse_study(json.dumps(given), "study.yaml", "packed")


def test_workers_are_added_while_that_is_worth_while(study: Study) -> None:
    together = {1: 100.0, 2: 190.0, 4: 260.0, 8: 265.0}

    def rate_of(job: Job, places: list[Slot]) -> float:
        return together[len(places)]

    with Heard() as said:
        assert workers_per_device(study, "cpu", None, most_workers=32, rate_of=rate_of) == 4
    assert said[-1] == "8 on a device: 265 tokens/s"


def test_a_number_of_workers_that_does_not_fit_ends_the_search(study: Study) -> None:
    def rate_of(job: Job, places: list[Slot]) -> float:
        return 100.0 * len(places) if len(places) < 4 else 0.0

    assert workers_per_device(study, "cpu", None, most_workers=32, rate_of=rate_of) == 2


def test_real_processes_are_measured_together(study: Study) -> None:
    with Heard() as said:
        assert workers_per_device(study, "cpu", 1, most_workers=2) in (1, 2)
    assert [line.split(":")[0] for line in said] == ["1 on a device", "2 on a device"]


def test_a_device_on_which_nothing_trains_is_said(study: Study) -> None:
    lost = study.model_copy(update={"corpus": study.corpus.model_copy(update={"path": "/nowhere.txt"})})
    with pytest.raises(WorkerError, match="no worker could train"):
        workers_per_device(lost, "cpu", 1)


def test_a_typical_configuration_is_the_same_each_time(study: Study) -> None:
    assert typical(study) == typical(study)
    assert typical(study).hidden_size == PARAMETERS["hidden_size"]


PACE = """#!/bin/sh
read -r job
echo ready
read -r go
%s
"""


@pytest.mark.parametrize(
    ("ends", "chosen"), [(["echo 100"], 2), (["echo 100", "exit 1"], 1), (["echo 100", "echo nan"], 1)]
)
def test_a_worker_that_dies_while_it_is_timed_is_no_success(
    study: Study, tmp_path: Path, ends: list[str], chosen: int
) -> None:
    script = tmp_path / "pace"
    started: list[int] = []

    def start(place: object) -> subprocess.Popen[str]:
        started.append(1)
        end = ends[-1] if len(started) % 2 else ends[0]  # one of each two, but for the very first
        script.write_text(PACE % (ends[0] if len(started) == 1 else end))
        script.chmod(0o755)
        pipe = subprocess.PIPE
        return subprocess.Popen(["/bin/sh", "-c", script.read_text()], stdin=pipe, stdout=pipe, text=True)

    rate_of = partial(tokens_per_second, start=start)
    assert workers_per_device(study, "cpu", 1, most_workers=2, rate_of=rate_of) == chosen


@pytest.mark.parametrize("end", ["sleep 60", "exit 1", "echo 0"])
def test_a_device_on_which_not_even_one_worker_gets_done_is_said_at_once(study: Study, end: str) -> None:
    pipe = subprocess.PIPE

    def start(place: object) -> subprocess.Popen[str]:
        return subprocess.Popen(["/bin/sh", "-c", PACE % end], stdin=pipe, stdout=pipe, text=True)

    rate_of = partial(tokens_per_second, start=start)
    with Heard() as said, pytest.raises(WorkerError, match="no worker could train"):
        workers_per_device(study.model_copy(update={"timeout": 0.2}), "cpu", 1, rate_of=rate_of)
    assert said == ["1 on a device: too many"]


def test_a_typical_configuration_is_sized_by_the_tokens_that_the_text_has(study: Study) -> None:
    sizes = {"hidden_size": {"type": "int", "low": 8, "high": 256}, "layers": {"type": "int", "low": 1, "high": 8}}

    def chosen(tokenizer: str) -> Config:
        given = {**sizes, "architecture": "lstm", "vocabulary_size": 100_000, "tokenizer": tokenizer}
        return typical(study.model_copy(update={"parameters": given}))

    for tokenizer in ("byte", "character"):  # the output layer of 100,000 words outweighs what else there is
        assert chosen(tokenizer).layers != chosen("word").layers
