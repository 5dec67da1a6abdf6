"""Export: the stored configuration and where it is from, in a file that training and a study read; nothing is lost."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from models.config import Config
from models.errors import RunError
from models.reader import parse, plain
from models.run import read_recipe
from tuner.errors import StudyError
from tuner.export import chosen_trial, copy_run, exported, require_free, write_new
from tuner.study import Study, read_study

STORED = Config(architecture="gru", learning_rate=0.0123456789012345, hidden_size=8, batch_size=8, sequence_length=16)
FACTS = {
    "configuration": STORED.model_dump(mode="json"),
    "threads": 3,
    "tokens": 4096,
    "training_seconds": 0.25,
    "tokens_per_second": 16384,
    "parameter_count": 777,
    "peak_memory_bytes": 2**28,
    "device": "cpu",
    "attempts": 2,
}


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

    def text(self, number: int | None = None, path: Path = Path("best.yaml")) -> str:
        return exported(self.found, self.study, chosen_trial(self.found, number), path)


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


def test_an_export_is_a_recipe_with_the_stored_configuration_to_the_last_bit(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(shelf.text())
    recipe = read_recipe(path)
    assert recipe.parameters == STORED
    assert recipe.trial == shelf.study.trial
    assert recipe.corpus.path == shelf.study.corpus.path
    assert recipe.corpus.fingerprint == shelf.found.user_attrs["fingerprint"]
    assert recipe.threads == 3
    assert set(plain(parse(path.read_text(), ""))["parameters"]) == set(Config.model_fields)


def test_an_export_says_where_it_is_from(shelf: Shelf) -> None:
    text = shelf.text(0, Path("some where/best.yaml"))
    assert text.startswith(f"# 2.5000 bits per byte on the validation split: trial 0 of study {shelf.study.name}\n# ")
    provenance = plain(parse(text, ""))["provenance"]
    assert provenance["value"] == 2.5
    assert (provenance["study"], provenance["trial"]) == (shelf.study.name, 0)
    for name in ("tokens", "training_seconds", "tokens_per_second", "parameter_count", "peak_memory_bytes", "device"):
        assert provenance[name] == FACTS[name]
    assert set(provenance["versions"]) == {"python", "textgen-tuner", "torch", "optuna", "numpy", "tokenizers"}
    assert provenance["finished"].startswith("20")
    assert "machine" in provenance


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
    copy_run(run_folder, target, force=False)
    assert {path.name for path in target.iterdir()} == {"config.yaml", "model.safetensors"}
    with pytest.raises(RunError, match="exists already"):
        copy_run(run_folder, target, force=False)
    (target / "model.safetensors").write_bytes(b"older")
    copy_run(run_folder, target, force=True)
    assert (target / "model.safetensors").read_bytes() == b"weights"
    assert [path.name for path in target.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize("content", ["thesis.tex", "config.yaml", "sub/config.yaml"])
def test_a_folder_with_anything_but_a_run_is_never_replaced(run_folder: Path, tmp_path: Path, content: str) -> None:
    target = tmp_path / "home"
    (target / content).parent.mkdir(parents=True)
    (target / content).write_text("the only copy")
    with pytest.raises(RunError, match="home"):
        copy_run(run_folder, target, force=True)
    assert (target / content).read_text() == "the only copy"


def test_a_place_where_no_run_can_be_copied_to_is_refused(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        copy_run(run_folder, tmp_path / "file" / "mine", force=True)


def test_a_run_that_is_not_kept_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not kept here; train it with `tuner train`"):
        copy_run(tmp_path / "nothing", tmp_path / "mine", force=False)
    assert not (tmp_path / "mine").exists()
