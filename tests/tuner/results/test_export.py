"""Export: the stored configuration and where it is from, in a file that training and a study read; nothing is lost."""

import argparse
import copy
import json
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from models.config import Budget, Config, Recipe
from models.errors import ConfigError, RunError
from models.files import is_stream
from models.reader import parse, plain
from models.runs.run import read_recipe
from tuner.backup import archive
from tuner.errors import StudyError
from tuner.optuna_internals import database_of
from tuner.results import formats
from tuner.results.export import (
    best_trials,
    chosen_trial,
    copy_run,
    exported,
    require_free,
    require_makeable_outputs,
    write_new,
)
from tuner.results.formats import json_schema, render
from tuner.storage.handle import StudyHandle
from tuner.study.definition import Study, read_study
from tuner.watch import html_report

STORED = Config(architecture="gru", learning_rate=0.0123456789012345, hidden_size=8, batch_size=8, sequence_length=16)
DOCUMENT = Path(__file__).parents[3] / "docs" / "export.md"
FACTS: dict[str, Any] = {
    "configuration": STORED.model_dump(mode="json"),
    "threads": 3,
    "tokens": 4096,
    "training_seconds": 0.25,
    "tokens_per_second": 16384,
    "parameter_count": 777,
    "peak_memory_bytes": 2**28,
    "device": "cpu",
    "machine": "Linux x86_64, a processor",
    "precision": "float32",
    "tokenizer_fingerprint": "sha256:12",
    "versions": {"python": "3.9.0", "torch": "1.0"},
    "attempts": 2,
}


TRIAL = create_trial(value=2.0)
"""One whose worker wrote nothing down about its texts."""


class Shelf:
    """A study with complete, pruned and running trials, and an export of one of them."""

    def __init__(self, study: Study, found: optuna.Study) -> None:
        self.study, self.found = study, found
        for value in (2.5, 2.125, 2.125):
            trial = found.ask()
            for name, fact in FACTS.items():
                trial.set_user_attr(name, fact)
            found.tell(trial, value)
        found.tell(found.ask(), state=TrialState.PRUNED)
        found.ask()

    def text(self, number: int | None = None, path: Path = Path("best.yaml"), notation: str = "yaml") -> str:
        study = StudyHandle(database_of(self.found), self.found, self.study)
        return exported(study, chosen_trial(self.found, number), path, notation)


@pytest.fixture(scope="module")
def shelf(small: Callable[..., Study], enter: Callable[[Study], optuna.Study]) -> Shelf:
    study = small()
    return Shelf(study, enter(study))


def test_the_best_trial_is_chosen_and_of_equals_the_first(shelf: Shelf) -> None:
    assert chosen_trial(shelf.found, None).number == 1
    assert chosen_trial(shelf.found, 0).value == 2.5


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (7, "has no trial 7; it has 0 to 4"),
        (-1, "has no trial -1; it has 0 to 4"),
        (3, "trial 3 is pruned; only a complete one can be exported"),
        (4, "trial 4 is running; only a complete one can be exported"),
    ],
)
def test_a_trial_that_cannot_be_exported_is_refused(shelf: Shelf, number: int, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        chosen_trial(shelf.found, number)


def test_a_study_without_a_complete_trial_has_nothing_to_export(
    small: Callable[..., Study], enter: Callable[[Study], optuna.Study]
) -> None:
    found = enter(small())
    with pytest.raises(StudyError, match=r"has no completed trial yet; look again with `tuner status`"):
        chosen_trial(found, None)
    with pytest.raises(StudyError, match=r"has no trial 0; it has none yet"):
        chosen_trial(found, 0)


def test_more_of_the_best_than_there_are_is_refused(shelf: Shelf) -> None:
    assert [trial.number for trial in best_trials(shelf.found, count=3)] == [1, 2, 0]
    with pytest.raises(StudyError, match=r"has 3 completed trials, not 4; give a smaller --top"):
        best_trials(shelf.found, count=4)


def test_an_export_is_a_recipe_with_the_stored_configuration_to_the_last_bit(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(shelf.text())
    recipe = read_recipe(path)
    assert recipe.parameters == STORED
    assert recipe.trial == shelf.study.trial
    assert recipe.corpus.path == shelf.study.corpus.path
    assert recipe.corpus.fingerprint == shelf.found.user_attrs["fingerprint"]
    assert recipe.threads == 3
    assert set(plain(parse(path.read_text(), ""))["parameters"]) == set(Config.model_fields) - {"own"}


def test_an_export_says_where_it_is_from(shelf: Shelf) -> None:
    text = shelf.text(0, Path("some where/best.yaml"))
    assert text.startswith(f"# 2.5000 bits per byte on the validation split: trial 0 of study {shelf.study.name}\n# ")
    provenance = plain(parse(text, ""))["provenance"]
    assert provenance["value"] == 2.5
    assert (provenance["study"], provenance["trial"]) == (shelf.study.name, 0)
    for name in set(FACTS) - {"configuration", "threads", "attempts"}:
        assert provenance[name] == FACTS[name]
    assert provenance["finished"].startswith("20")


def test_an_export_begins_with_the_command_that_trains_it(shelf: Shelf) -> None:
    second = shelf.text(0, Path("some where/best.yaml")).splitlines()[1]
    assert second == "# Train it:  tuner train 'some where/best.yaml' -o my-run --device cpu"
    assert shelf.text(path=Path("b.json"), notation="json").splitlines()[2].strip() == (
        '"command": "tuner train b.json -o my-run --device cpu",'
    )


def test_an_export_tells_what_its_worker_wrote_down_and_nothing_of_today(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = without_origin(shelf)
    monkeypatch.setattr(shelf.found._storage, "get_all_trials", lambda *given, **more: [trial])
    assert not {"versions", "machine", "precision"} & plain(parse(shelf.text(0), ""))["provenance"].keys()


def without_origin(shelf: Shelf) -> FrozenTrial:
    """A trial of a worker of an earlier version."""
    trial = copy.deepcopy(shelf.found.trials[0])
    for name in ("versions", "machine", "precision", "tokenizer_fingerprint"):
        del trial.user_attrs[name]
    return trial


def test_a_budget_in_seconds_is_exported_with_the_tokens_it_came_to(shelf: Shelf) -> None:
    study = shelf.study.model_copy(update={"trial": Budget(seconds=0.25)})
    text = exported(
        StudyHandle(database_of(shelf.found), shelf.found, study), chosen_trial(shelf.found, 0), Path("best.yaml")
    )
    assert text.splitlines()[2] == "# Its 0.25 seconds came to 4096 tokens; --tokens 4096 trains as much anywhere."


# Notations.


def test_json_holds_all_that_yaml_does_and_is_read_as_well(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    path.write_text(shelf.text(notation="json"))
    values = json.loads(path.read_text())
    assert values.pop("command").startswith("tuner train ")
    assert values == plain(parse(shelf.text(), ""))
    assert read_recipe(path).parameters == STORED
    assert Config.model_validate(read_study(path).space.fixed) == STORED


def test_flags_are_words_that_a_parser_of_options_takes_to_the_last_bit(shelf: Shelf) -> None:
    words = shlex.split(shelf.text(notation="flags"))
    parser = argparse.ArgumentParser()
    for name in ("architecture", "learning-rate", "tied-embeddings", "tokens", "threads"):
        parser.add_argument(f"--{name}")
    known, others = parser.parse_known_args(words)
    assert (known.architecture, float(known.learning_rate)) == ("gru", STORED.learning_rate)
    assert (known.tied_embeddings, known.tokens, known.threads) == ("false", "4096", "3")
    assert "--top-k" not in others  # it has no value


def test_variables_are_read_by_a_shell_and_by_the_documented_lines(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "best.env"
    path.write_text(shelf.text(notation="env"))
    shell = f". {path}; echo $LEARNING_RATE $ARCHITECTURE $TOKENS"
    said = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["0.0123456789012345", "gru", "4096"]
    (reader,) = re.findall(r"^```python\n(.*?best\.env.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert len(reader.replace("\n\n", "\n").splitlines()) == 3
    found: dict[str, dict[str, str]] = {}
    exec(reader.replace("best.env", str(path)), found)
    assert found["best"]["LEARNING_RATE"] == "0.0123456789012345"
    assert float(found["best"]["DROPOUT"]) == STORED.dropout


def test_what_a_shell_would_take_apart_is_quoted(shelf: Shelf) -> None:
    own = STORED.model_copy(update={"architecture": "my net:Net; rm -rf $HOME"})
    recipe = Recipe(corpus=shelf.study.corpus, trial=shelf.study.trial, parameters=own)
    for notation in ("flags", "env"):
        assert own.architecture in " ".join(shlex.split(render(recipe, notation, "", "")))


# Schema.


def test_the_shipped_schema_is_that_of_the_model() -> None:
    """Made by: tuner schema > tuner/results/export.schema.json"""
    path = Path(formats.__file__).with_name("export.schema.json")
    assert path.read_text(encoding="utf-8") == json_schema()
    assert {"schema", "corpus", "trial", "parameters"} <= json.loads(json_schema())["properties"].keys()


@pytest.mark.parametrize("read", [read_recipe, read_study])
def test_an_export_of_a_newer_version_is_refused_with_what_to_do(
    shelf: Shelf, tmp_path: Path, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(shelf.text().replace("schema: 1", "schema: 2"))
    with pytest.raises(
        ConfigError, match=r"best\.yaml:3: schema: 2 is newer than 1.*pip install --upgrade textgen-tuner"
    ):
        read(path)
    path.write_text(shelf.text().replace("schema: 1", "schema: one"))
    with pytest.raises(ConfigError, match=r'schema: should be a whole number from 1 to 1, not "one"'):
        read(path)


def test_an_export_without_a_version_is_still_read(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(shelf.text().replace("schema: 1\n", ""))
    assert read_recipe(path).parameters == Config.model_validate(read_study(path).space.fixed) == STORED


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        (
            "  dropout: 0.0",
            "  dropuot: 0.0",
            r"best\.yaml:\d+: parameters\.dropuot: unknown key; did you mean dropout\?",
        ),
        ("  dropout: 0.0", "  dropout: 1.5", r"best\.yaml:\d+: parameters\.dropout: should be less than 1, not 1\.5"),
        ("schema: 1", "shcema: 1", r"best\.yaml:3: shcema: unknown key"),
    ],
)
def test_an_export_that_was_edited_badly_is_refused_by_name_and_line(
    shelf: Shelf, tmp_path: Path, written: str, instead: str, message: str
) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(shelf.text().replace(written, instead))
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_an_export_is_a_study_of_one_trial(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    path.write_text(shelf.text())
    study = read_study(path)
    assert (study.name, study.trials, study.space.searched) == ("again", 1, {})
    assert Config.model_validate(study.space.fixed) == STORED


# Files and folders that are in the way.


def test_a_file_is_written_whole_with_the_folders_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "best.yaml"
    write_new(path, "text: ü\n", force=False)
    assert path.read_text(encoding="utf-8") == "text: ü\n"
    assert [each.name for each in path.parent.iterdir()] == ["best.yaml"]


def test_another_file_is_replaced_by_force_alone(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("precious: true\n")
    for study_name in (None, shelf.study.name):
        with pytest.raises(RunError, match=r"exists already; name another file with -o, or replace it with --force"):
            write_new(path, "new", force=False, study_name=study_name)
    assert path.read_text() == "precious: true\n"
    write_new(path, "new", force=True)
    assert path.read_text() == "new"


@pytest.mark.parametrize("text", ["", "- a list\n", "not: [yaml\n", "provenance: 3\n", "provenance: [study]\n", "\0"])
def test_a_file_that_is_no_export_is_in_the_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "best.yaml").write_text(text)
    with pytest.raises(RunError, match="exists already"):
        require_free(tmp_path / "best.yaml", force=False, study_name="small")


def test_an_earlier_export_of_the_same_study_is_not_in_the_way(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(shelf.text())
    require_free(path, force=False, study_name=shelf.study.name)
    with pytest.raises(RunError, match="exists already"):
        require_free(path, force=False, study_name="another")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"is a folder; name a file, such as .*/best\.yaml"):
        require_free(tmp_path, force=True)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is not a folder that you may write in"):
        require_free(tmp_path / "file" / "best.yaml", force=True)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(RunError, match="is not a folder that you may write in; name another file"):
        require_free(tmp_path / "new" / "best.yaml", force=False)


@pytest.fixture
def run_folder(shelf: Shelf, tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts" / "trial-1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(shelf.text())
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_run_is_copied_whole_and_replaced_by_force_alone(run_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "runs" / "mine"
    copy_run(TRIAL, run_folder, target, force=False)
    assert {path.name for path in target.iterdir()} == {"config.yaml", "model.safetensors"}
    with pytest.raises(RunError, match="exists already"):
        copy_run(TRIAL, run_folder, target, force=False)
    (target / "model.safetensors").write_bytes(b"older")
    copy_run(TRIAL, run_folder, target, force=True)
    assert (target / "model.safetensors").read_bytes() == b"weights"
    assert [path.name for path in target.parent.iterdir()] == ["mine"]


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_picture_that_cannot_be_drawn_costs_no_copy(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.results.export.draw_decoding", lambda trial, folder: 1 / 0)
    copy_run(TRIAL, run_folder, tmp_path / "mine", force=False)
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == b"weights"


def test_a_copy_that_fails_leaves_nothing_and_the_next_one_sweeps_what_a_killed_one_left(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    left = tmp_path / "runs" / ".mine.elsewhere-7"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copytree", full)
        with pytest.raises(RunError, match="No space left"):
            copy_run(TRIAL, run_folder, tmp_path / "runs" / "mine", force=False)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("content", ["thesis.tex", "config.yaml", "sub/config.yaml"])
def test_a_folder_with_anything_but_a_run_is_never_replaced(run_folder: Path, tmp_path: Path, content: str) -> None:
    target = tmp_path / "home"
    (target / content).parent.mkdir(parents=True)
    (target / content).write_text("the only copy")
    with pytest.raises(RunError, match="home"):
        copy_run(TRIAL, run_folder, target, force=True)
    assert (target / content).read_text() == "the only copy"


def test_a_place_where_no_run_can_be_copied_to_is_refused(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        copy_run(TRIAL, run_folder, tmp_path / "file" / "mine", force=True)


def test_a_run_that_is_not_kept_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not kept here; train it with `tuner train`"):
        copy_run(TRIAL, tmp_path / "nothing", tmp_path / "mine", force=False)
    assert not (tmp_path / "mine").exists()


# Outputs that are no files.


def read_from(pipe: Path) -> tuple[list[bytes], threading.Thread]:
    """What somebody at the other end of a pipe reads."""
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()), daemon=True)
    reader.start()
    return heard, reader


@pytest.mark.parametrize("force", [False, True])
def test_a_pipe_is_written_to_and_neither_read_nor_replaced(tmp_path: Path, force: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    require_free(pipe, force, "a study")
    html_report.require_free(pipe, force, "a study")
    require_makeable_outputs(pipe)
    for write in (lambda: write_new(pipe, "text", force), lambda: html_report.write(pipe, "text", force, "a study")):
        heard, reader = read_from(pipe)
        write()
        reader.join(30)
        assert heard == [b"text"]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert pipe.is_fifo()


def test_a_backup_can_be_written_to_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard, reader = read_from(pipe)
    with archive.writing(pipe) as file:
        file.add_lines("study/study.json", [{}])
        file.finish({})
    reader.join(30)
    (tmp_path / "study.tar").write_bytes(heard[0])
    with archive.reading(tmp_path / "study.tar") as found:
        assert found.names("study") == ["study.json"]


def test_devices_and_descriptors_are_streams_and_files_are_not(tmp_path: Path) -> None:
    for name in ("/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/2"):
        assert is_stream(Path(name))
        require_free(Path(name), force=False)
    write_new(Path("/dev/null"), "text", force=False)
    assert Path("/dev/null").is_char_device()
    (tmp_path / "file").touch()
    assert not any(map(is_stream, (tmp_path, tmp_path / "file", tmp_path / "none", Path("/dev/shm/x.yaml"))))


def test_a_folder_of_an_output_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    require_makeable_outputs(tmp_path / "new" / "er" / "best.yaml")
    assert not (tmp_path / "new").exists()
    for place in (Path("/proc/none/best.yaml"), Path("/proc/best.yaml")):
        with pytest.raises(RunError, match=r"cannot be written to .*; name another place$"):
            require_makeable_outputs(place)
