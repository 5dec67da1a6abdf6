"""The Python interface: searching, waiting, steering, reading and exporting; real workers and a real database."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas
import pytest
from optuna.storages import RDBStorage

import tuner
from models.runs.run import read_recipe
from tests.tuner.conftest import PARAMETERS
from tuner.storage.leases import Gone
from tuner.watch.notebook import NotebookView

Mapping = dict[str, Any]
DOCUMENT = Path(__file__).parents[3] / "docs" / "python.md"


@pytest.fixture
def places(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping:
    for name in ("TUNER_STORAGE", "TUNER_DATA", "TUNER_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return {"data_folder": data_folder, "artifacts": str(tmp_path / "artifacts")}


@pytest.fixture(scope="session")
def tiny(text_file: Path) -> Callable[..., Mapping]:
    def make(name: str, **sections: Any) -> Mapping:
        values: Mapping = {
            "name": name,
            "corpus": {"path": str(text_file)},
            "trial": {"tokens": 4_096, "rungs": 3},
            "budget": {"trials": 3},
            "sampler": {"type": "random", "seed": 1},
            "pruner": "none",
            "parameters": PARAMETERS,
        }
        return values | sections

    return make


def trains(study: tuner.OpenStudy) -> bool:
    """Whether a worker is in the middle of a trial."""
    return any(worker["progress"] for worker in study.status()["workers"])


@pytest.fixture(scope="module")
def searched(
    data_folder: Path, tiny: Callable[..., Mapping], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuner.OpenStudy]:
    """A study that a worker in the background has searched and confirmed."""
    artifacts = str(tmp_path_factory.mktemp("api"))
    study = tiny("api-searched")
    with tuner.run(study, workers=1, confirm=1, wait=False, data_folder=data_folder, artifacts=artifacts) as opened:
        assert opened.is_searching
        with pytest.raises(tuner.StudyError, match="a search is running in this process"):
            opened.search()
        assert opened.wait() == "all 3 trials are finished"
        yield opened


def test_a_search_in_the_background_ends_with_a_confirmed_best_trial(searched: tuner.OpenStudy) -> None:
    assert not searched.is_searching
    assert searched.state == "finished"
    assert searched.status()["trials"]["finished"] == 3
    assert searched.confirmation is not None
    assert searched.best is not None
    assert searched.best.number == searched.confirmation["winner"]
    assert repr(searched).startswith("<OpenStudy 'api-searched': finished, 3/3 trials, best ")


def test_trials_are_records_and_a_frame(searched: tuner.OpenStudy) -> None:
    records = searched.trials
    assert [record.number for record in records] == [0, 1, 2]
    assert {record.state for record in records} == {"complete"}
    best = searched.leaderboard(1)[0]
    assert best.bits_per_byte == min(record.bits_per_byte for record in records if record.bits_per_byte)
    assert best.bits_per_byte == searched.optuna.best_value == best.rungs[3]
    assert best.configuration is not None
    assert best.configuration["hidden_size"] == 8
    assert searched.curves() == {record.number: record.rungs for record in records}
    frame = searched.trials_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["bits_per_byte"]) == [record.bits_per_byte for record in records]
    assert set(frame["parameters.architecture"]) <= {"rnn", "gru"}


def test_the_best_is_exported_reported_and_loaded(searched: tuner.OpenStudy, tmp_path: Path) -> None:
    assert searched.best is not None
    path = searched.export(tmp_path / "best.yaml")
    assert read_recipe(path).parameters.learning_rate == searched.best.parameters["learning_rate"]
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(tuner.RunError, match="exists already"):
        searched.export(tmp_path / "mine.yaml")
    assert "api-searched" in searched.report(tmp_path / "report.html").read_text()
    assert (searched.copy_run(tmp_path / "run") / "model.safetensors").is_file()
    assert len(searched.load_run().generate("one", 20, seed=1)) > 0


def test_a_study_is_loaded_by_name_and_steered(searched: tuner.OpenStudy, places: Mapping, data_folder: Path) -> None:
    with tuner.load_study("api-searched", data_folder=data_folder) as study:
        assert study.pause().startswith("paused; no worker is there")
        assert study.resume().startswith("running")
        assert "trial 3 waits for a worker; the 3 trials" in study.enqueue(learning_rate=0.01)
        with pytest.raises(tuner.StudyError, match="learning_rat is not searched; did you mean learning_rate"):
            study.enqueue(learning_rat=0.01)
        assert [record.state for record in study.trials] == [*["complete"] * 3, "waiting"]
    assert repr(study) == "<OpenStudy 'api-searched': closed>"
    with pytest.raises(tuner.StudyError, match=r"no study 'api-search' in this database; there are: .*api-searched"):
        tuner.load_study("api-search", data_folder=data_folder)


def test_a_study_that_was_closed_in_the_middle_continues_with_the_same_call(
    tiny: Callable[..., Mapping], places: Mapping
) -> None:
    study = tiny("api-closed", trial={"tokens": 200_000, "rungs": 3}, budget={"trials": 2})
    opened = tuner.run(study, workers=1, confirm=0, wait=False, **places)
    while not trains(opened):
        pass
    opened.close()
    assert opened.wait() is not None
    assert opened.wait().startswith("stopped; nothing is lost")  # type: ignore[union-attr]
    with tuner.run(study, workers=1, confirm=0, **places) as again:
        assert [(record.number, record.state) for record in again.trials] == [(0, "complete"), (1, "complete")]
        assert len(again.optuna.trials) == 2


def test_ctrl_c_saves_the_trials_and_reaches_the_script(
    tiny: Callable[..., Mapping], places: Mapping, tmp_path: Path
) -> None:
    study = tiny("api-interrupted", trial={"tokens": 10**8, "rungs": 3})
    script = tmp_path / "script.py"
    script.write_text(
        "import tuner\n"
        f"try: tuner.run({study!r}, workers=1, data_folder={str(places['data_folder'])!r},"
        f" artifacts={places['artifacts']!r})\n"
        "except KeyboardInterrupt as stopped: print('script:', stopped)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    with process:
        opened = None
        while opened is None or not trains(opened):
            try:
                opened = opened or tuner.load_study("api-interrupted", **places)
            except tuner.StudyError:
                continue
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert "script: stopped; nothing is lost" in out
        assert process.returncode == 0
    with opened:
        assert [record.state for record in opened.trials] == ["waiting"]
        assert opened.status()["workers"] == []


def test_what_is_wrong_with_a_study_is_said_before_anything_is_made(
    tiny: Callable[..., Mapping], places: Mapping
) -> None:
    study = tiny("api-wrong", sampler="bayes")
    with pytest.raises(tuner.ConfigError, match="sampler"):
        tuner.run(study, **places)
    with pytest.raises(tuner.ConfigError, match="give the study a name"):
        tuner.run({"corpus": "a.txt"}, **places)
    with pytest.raises(tuner.StudyError, match="quickstrat: no such file, and no study that comes with the tuner"):
        tuner.run("quickstrat", **places)
    with pytest.raises(tuner.StudyError, match="no study 'api-wrong'"):
        tuner.load_study("api-wrong", **places)


def test_a_study_that_is_deleted_meanwhile_ends_the_search(
    tiny: Callable[..., Mapping], places: Mapping, storage: RDBStorage
) -> None:
    study = tiny("api-deleted", trial={"tokens": 10**8, "rungs": 3})
    with tuner.run(study, workers=1, wait=False, **places) as opened:
        while not opened.status()["workers"]:
            pass
        while "api-deleted" in optuna.get_all_study_names(storage):  # Optuna ignores a deletion that meets a new trial
            optuna.delete_study(study_name="api-deleted", storage=storage)
        with pytest.raises(Gone, match="study api-deleted was deleted; its workers have ended"):
            opened.wait()


def test_importing_the_tuner_is_cheap_and_silent() -> None:
    program = "import sys, tuner; print('optuna' in sys.modules, 'torch' in sys.modules, tuner.run.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False False run\n", "")


def test_the_first_example_of_the_document_runs(
    places: Mapping, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNER_DATA", str(places["data_folder"]))
    monkeypatch.setenv("TUNER_ARTIFACTS", places["artifacts"])
    example = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    exec(compile(example[1], str(DOCUMENT), "exec"), {})
    assert "<OpenStudy 'first': finished, 4/4 trials, best " in capsys.readouterr().out
    assert read_recipe(Path("best.yaml")).parameters.hidden_size == 32


def test_a_notebook_shows_a_study_and_its_figures(searched: tuner.OpenStudy) -> None:
    shown = searched._repr_html_()
    assert shown is not None
    assert "<strong>api-searched</strong>" in shown
    figures = searched.figures()
    assert {"history", "learning-curves", "slice-learning_rate"} <= figures.keys()
    assert searched.plot("history").to_dict() == figures["history"].to_dict()
    with pytest.raises(tuner.StudyError, match=r"no figure histor; there are: .*history"):
        searched.plot("histor")


def test_names_do_not_become_markup(data_folder: Path, places: Mapping, tiny: Callable[..., Mapping]) -> None:
    with tuner.run(tiny("<b>&x"), workers=1, confirm=0, trials=1, **places) as study:
        shown = study._repr_html_()
    assert shown is not None
    assert "&lt;b&gt;&amp;x" in shown
    assert "<b>" not in shown
    assert study._repr_html_() is None


def test_a_notebook_shows_an_outage_before_the_first_table(
    searched: tuner.OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    view = NotebookView(searched._handle)
    monkeypatch.setattr(view, "_draw", drawn.append)
    view.say("the database is <away>")
    view.show()
    view.say("it is away again")
    assert drawn[0] == "<div><em>the database is &lt;away&gt;</em></div>"
    assert "it is away again" in drawn[2]
    assert "<strong>api-searched</strong>" in drawn[2]


def test_watching_ends_with_the_study(searched: tuner.OpenStudy, capsys: pytest.CaptureFixture[str]) -> None:
    with tuner.load_study("api-searched", data_folder=searched._places.data_folder) as study:
        study.stop()
        study.watch()
        assert study.state in ("stopped", "finished")
    assert "trials finished" in capsys.readouterr().out
