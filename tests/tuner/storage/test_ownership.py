"""Stored files belong to one study by its identity: names that two studies share, that change, or that come back."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy import event

from tuner.artifacts.layout import OWNER
from tuner.artifacts.store import Artifacts, artifacts_of
from tuner.control import create
from tuner.errors import StudyError
from tuner.results import confirmation
from tuner.storage.connection import open_storage
from tuner.storage.handle import StudyHandle
from tuner.storage.ownership import KEY, owner_of, wrote
from tuner.study.definition import Study
from tuner.trials.objective import Objective

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]


@pytest.fixture
def other(fresh_url: str) -> Iterator[RDBStorage]:
    """Another database."""
    with open_storage(fresh_url) as opened:
        yield opened


def kept(found: optuna.Study, folder: Path, reading: bool = False) -> Artifacts:
    return artifacts_of(str(folder), owner_of(found), folder, wrote(found), reading)


def rename(found: optuna.Study, storage: RDBStorage, name: str) -> optuna.Study:
    """As Optuna's dashboard does: a new study gets what the old one had, which is deleted."""
    renamed = optuna.create_study(study_name=name, storage=storage, directions=found.directions)
    renamed.add_trials(found.trials)
    for key, value in found.user_attrs.items():
        renamed.set_user_attr(key, value)
    optuna.delete_study(study_name=found.study_name, storage=storage)
    return renamed


def train(crew: Any, study: Study, found: optuna.Study, artifacts: Artifacts) -> None:
    crew.work(study, Objective(study, found.user_attrs["fingerprint"], "cpu", artifacts))


@pytest.fixture
def trained(crew: Any, small: Small, enter: Enter, tmp_path: Path) -> tuple[Study, optuna.Study, Path]:
    """A study of one trial, and the folder of all artifacts."""
    study = small(1)
    found = enter(study)
    train(crew, study, found, kept(found, tmp_path / "all"))
    return study, found, tmp_path / "all"


def unowned(found: optuna.Study, storage: RDBStorage, folder: Path) -> None:
    """Makes of a study and its folder what version 0.1 left."""
    (folder / OWNER).unlink()
    with storage.engine.begin() as connection:
        own = f"delete from study_user_attributes where key = '{KEY}' and study_id = {found._study_id}"
        connection.exec_driver_sql(own)


def test_a_copy_beside_its_study_has_files_of_its_own(
    trained: tuple[Study, optuna.Study, Path], storage: RDBStorage
) -> None:
    study, found, folder = trained
    before, name = owner_of(found), f"{study.name} copied"
    optuna.copy_study(from_study_name=study.name, from_storage=storage, to_storage=storage, to_study_name=name)
    copied = optuna.load_study(study_name=name, storage=storage)
    assert owner_of(copied) == owner_of(copied) != before == owner_of(found)
    assert kept(copied, folder).fetch_run(0) is None
    assert kept(copied, folder).folder != kept(found, folder).folder
    assert kept(found, folder).fetch_run(0) is not None


def test_studies_of_one_name_in_two_databases_keep_their_files_apart(
    trained: tuple[Study, optuna.Study, Path], other: RDBStorage
) -> None:
    study, found, folder = trained
    theirs = create.enter(other, study).optuna_study
    reading = kept(theirs, folder, reading=True)
    assert reading.fetch_run(0) is None
    assert reading.why_not_kept().startswith(f"what is in {folder / study.name} is another study's of this name; ")
    assert not reading.folder.exists()
    writing = kept(theirs, folder)
    assert writing.folder.parent == folder
    assert writing.folder != folder / study.name == kept(found, folder).folder
    assert kept(theirs, folder).folder == writing.folder
    assert kept(found, folder).fetch_run(0) is not None


def test_a_study_that_was_renamed_finds_its_files_and_its_old_name_is_free(
    trained: tuple[Study, optuna.Study, Path], storage: RDBStorage, enter: Enter
) -> None:
    study, found, folder = trained
    renamed = rename(found, storage, study.name + " renamed")
    assert kept(renamed, folder).fetch_run(0) == folder / study.name / "trial-0"
    again = enter(study)
    assert kept(again, folder).fetch_run(0) is None


def test_a_study_that_was_deleted_and_made_again_does_not_take_the_old_files(
    trained: tuple[Study, optuna.Study, Path], storage: RDBStorage, enter: Enter
) -> None:
    study, _, folder = trained
    optuna.delete_study(study_name=study.name, storage=storage)
    again = enter(study)
    assert kept(again, folder).fetch_run(0) is None
    assert (folder / study.name / "trial-0" / "model.safetensors").exists()


def test_what_an_earlier_version_left_is_adopted_by_the_study_that_made_it_and_by_no_other(
    trained: tuple[Study, optuna.Study, Path], storage: RDBStorage, other: RDBStorage, crew: Any
) -> None:
    study, found, folder = trained
    theirs = create.enter(other, study).optuna_study
    unowned(found, storage, folder / study.name)
    assert kept(theirs, folder).fetch_run(0) is None
    assert kept(found, folder, reading=True).fetch_run(0) is not None
    assert not (folder / study.name / OWNER).exists()
    assert kept(found, folder).fetch_run(0) is not None
    assert kept(theirs, folder).fetch_run(0) is None


@pytest.mark.parametrize("what", ["scores", "seconds", "configuration", "trial"])
def test_files_of_an_earlier_version_that_are_not_quite_a_studys_are_not_adopted(
    trained: tuple[Study, optuna.Study, Path], storage: RDBStorage, what: str
) -> None:
    study, found, folder = trained
    unowned(found, storage, folder / study.name)
    run = folder / study.name / "trial-0"
    metrics, config = run / "metrics.jsonl", run / "config.yaml"
    if what == "scores":
        metrics.write_text(metrics.read_text().replace('"bits_per_byte": ', '"bits_per_byte": 1'))
    elif what == "seconds":
        metrics.write_text(metrics.read_text().replace('"seconds": ', '"seconds": 7'))
    elif what == "configuration":
        config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    else:
        shutil.copytree(run, run.with_name("trial-1"))
    before = owner_of(found)
    assert kept(found, folder).fetch_run(0) is None
    assert owner_of(found) == before


def test_a_checkpoint_of_an_earlier_version_is_adopted_by_its_own_trial_alone(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage, tmp_path: Path
) -> None:
    study = small(1)
    found = enter(study)
    objective = Objective(study, found.user_attrs["fingerprint"], "cpu", kept(found, tmp_path), checkpoint_seconds=0.0)
    objective.forget = lambda number, attempts: None  # type: ignore[method-assign]
    crew.work(study, objective)
    own = kept(found, tmp_path).folder
    shutil.rmtree(own / "trial-0")
    assert [path.name for path in (own / "checkpoints").iterdir()] == ["trial-0.1.safetensors"]
    unowned(found, storage, own)
    assert kept(found, tmp_path, reading=True).folder == own
    (own / "checkpoints" / "trial-0.1.safetensors").rename(own / "checkpoints" / "trial-5.1.safetensors")
    assert kept(found, tmp_path, reading=True).folder != own


def test_of_many_who_make_a_folder_at_once_one_gets_it(tmp_path: Path) -> None:
    place = Artifacts(tmp_path / "study")
    told: list[str | None] = []
    threads = [threading.Thread(target=lambda name=str(n): told.append(place.claim(name))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 16
    assert set(told) == {place.owner()}
    assert [path.name for path in place.folder.iterdir()] == [OWNER]


def test_a_study_gets_one_identity_however_many_ask_at_once(
    small: Small, enter: Enter, storage: RDBStorage, data_folder: Path
) -> None:
    found = enter(small())
    unowned_key = f"delete from study_user_attributes where key = '{KEY}' and study_id = {found._study_id}"
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(unowned_key)
    told: list[Any] = []

    def ask() -> None:
        with open_storage(None, data_folder) as own:
            told.append(owner_of(optuna.load_study(study_name=found.study_name, storage=own)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 4
    assert set(told) == {owner_of(found)}


def test_only_an_identity_that_may_be_copied_is_looked_for_elsewhere(
    small: Small, enter: Enter, storage: RDBStorage
) -> None:
    found = enter(small())
    name = f"{found.study_name} copied"
    optuna.copy_study(from_study_name=found.study_name, from_storage=storage, to_storage=storage, to_study_name=name)
    copied = optuna.load_study(study_name=name, storage=storage)
    written: list[str] = []

    def note(*arguments: Any) -> None:
        if not arguments[2].startswith("SELECT"):
            written.append(arguments[2])

    event.listen(storage.engine, "before_cursor_execute", note)
    try:
        before = owner_of(found)
        assert written == []
        assert owner_of(copied) != before
        assert len(written) > 0
        written.clear()
        assert owner_of(copied) == owner_of(copied)
        assert written == []
    finally:
        event.remove(storage.engine, "before_cursor_execute", note)


def test_a_confirmation_of_a_deleted_study_is_not_taken_for_one_of_its_successor(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(2, pruner="none")

    def search() -> tuple[optuna.Study, Any]:
        found = enter(study)
        crew.work(study, lambda number, config, rung: config.learning_rate)
        return found, confirmation.candidates(found, 2)

    found, chosen = search()
    confirmation.enter(StudyHandle(storage, found, study), chosen, 2)
    assert confirmation.companion_of(found) is not None
    optuna.delete_study(study_name=study.name, storage=storage)
    again, chosen = search()
    assert confirmation.companion_of(again) is None
    with pytest.raises(StudyError, match=r"is no confirmation of study .* delete it if it belonged to a study that"):
        confirmation.enter(StudyHandle(storage, again, study), chosen, 2)
