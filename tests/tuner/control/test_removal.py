"""Deleting and renaming studies, and what they take; on a real database and real files."""

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sql
from optuna.storages import RDBStorage

from tuner.artifacts.store import Artifacts
from tuner.control import removal, steering
from tuner.errors import StudyError, WorkerError
from tuner.results import confirmation
from tuner.storage.handle import StudyHandle, open_study
from tuner.storage.leases import Leases
from tuner.storage.locations import StorageOptions
from tuner.study.definition import Study
from tuner.trials.attachments import attached

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]


class Desk:
    """Studies with a confirmation and files, by default 10 bytes of weights, 1 of a checkpoint and 5 of samples."""

    def __init__(self, storage: RDBStorage, small: Small, enter: Enter, crew: Any, folder: Path) -> None:
        self.storage, self.small, self.enter, self.crew = storage, small, enter, crew
        self.places = StorageOptions(None, None, str(folder))

    def kept(self, study: optuna.Study) -> Artifacts:
        return self.places.writable_artifacts_of(study)

    def study(self) -> StudyHandle:
        definition = self.small(2)
        found = self.enter(definition)
        assert len(self.crew.work(definition, lambda number, config, rung: 1.5 + number)) == 1
        study = StudyHandle.of(self.storage, found)
        confirming = confirmation.enter(study, found.trials[:1], seeds=1)
        for one in (found, confirming.optuna_study):
            kept = self.kept(one)
            kept.put("trial-0/model.safetensors", io.BytesIO(b"x" * 10))
            kept.put("checkpoints/trial-1.1.safetensors", io.BytesIO(b"x"))
        samples = attached(self.kept(found).attach(b"texts"), "samples.jsonl")
        study.leases.note(found.trials[0]._trial_id, samples, "system")
        return StudyHandle.of(self.storage, optuna.load_study(study_name=study.name, storage=self.storage))

    def names(self) -> set[str]:
        return set(optuna.get_all_study_names(self.storage))

    def files(self) -> list[str]:
        folder = Path(str(self.places.artifacts))
        return [path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()]


@pytest.fixture
def desk(storage: RDBStorage, small: Small, enter: Enter, crew: Any, tmp_path: Path) -> Desk:
    return Desk(storage, small, enter, crew, tmp_path / "artifacts")


def test_a_study_goes_with_its_confirmation_its_rows_and_its_files(desk: Desk) -> None:
    other, study = desk.study(), desk.study()
    taken = removal.delete(study, desk.places.artifacts_of)
    assert str(taken) == f"study {study.name} and its confirmation: 3 trials, {taken.bytes} bytes of files"
    assert {other.name, f"{other.name} (confirmation)"} <= desk.names()
    assert not {study.name, f"{study.name} (confirmation)"} & desk.names()
    folders = {name.split("/")[0] for name in desk.files()}
    assert folders == {other.name, f"{other.name} (confirmation)", ".attachments"}
    assert len([name for name in desk.files() if name.startswith(".attachments/")]) == 1
    with desk.storage.engine.begin() as connection:
        for table in ("tuner_studies", "tuner_workers", "tuner_leases"):
            rows = connection.execute(sql.text(f"SELECT count(*) FROM {table} WHERE study_id = :id"), {"id": study.id})
            assert rows.scalar_one() == 0
    assert removal.usage(other, desk.places.artifacts_of).bytes > 0


def test_a_study_whose_workers_are_at_work_is_not_deleted(desk: Desk) -> None:
    study = desk.study()
    Leases(desk.storage, study.id).join("w-1", "node-7", 4711, "cpu", 1)
    files = desk.files()
    with pytest.raises(StudyError, match=rf"1 worker at work \(process 4711 on node-7\).*tuner stop {study.name}"):
        removal.delete(study, desk.places.artifacts_of)
    assert study.name in desk.names()
    assert (desk.files(), study.leases.state()) == (files, "running")
    study.leases.leave("w-1")
    removal.delete(study, desk.places.artifacts_of)
    assert study.name not in desk.names()


def test_workers_of_the_confirmation_count_too(desk: Desk) -> None:
    study = desk.study()
    confirming = open_study(desk.storage, f"{study.name} (confirmation)")
    confirming.leases.join("w-2", "node-8", 1, "cpu", 1)
    with pytest.raises(StudyError, match="node-8"):
        removal.delete(study, desk.places.artifacts_of)


def test_a_deletion_that_was_interrupted_is_finished_by_the_next(desk: Desk) -> None:
    study = desk.study()

    class Stuck(Artifacts):
        def remove(self, name: str) -> None:
            if name.startswith("trial-0"):
                raise OSError(5, "Input/output error", name)
            super().remove(name)

    def stuck(found: optuna.Study) -> Artifacts:
        return Stuck(desk.places.artifacts_of(found).folder)

    with pytest.raises(WorkerError, match=r"trial-0.*then delete the study again"):
        removal.delete(study, stuck)
    assert study.name in desk.names()
    assert study.leases.state() == "stopped"
    removal.delete(open_study(desk.storage, study.name), desk.places.artifacts_of)
    assert study.name not in desk.names()
    assert not [name for name in desk.files() if name.startswith(f"{study.name}/")]


def test_a_trial_that_is_queued_meanwhile_does_not_save_the_study(desk: Desk) -> None:
    study = desk.study()
    steering.enqueue(study, {"learning_rate": 0.01})
    removal.delete(study, desk.places.artifacts_of)
    with pytest.raises(KeyError):
        optuna.load_study(study_name=study.name, storage=desk.storage)


def test_what_a_study_takes_is_counted_by_kind(desk: Desk) -> None:
    study = desk.study()
    taken = removal.usage(study, desk.places.artifacts_of)
    assert (taken.trials, taken.runs, taken.checkpoints, taken.attachments) == (3, 20, 2, 5)
    listed = {one.name for one in removal.all_studies(desk.storage)}
    assert study.name in listed
    assert not [name for name in listed if name.endswith("(confirmation)")]


def test_a_renamed_study_keeps_its_workers_its_files_and_its_confirmation(desk: Desk) -> None:
    study = desk.study()
    before, taken = study.name, removal.usage(study, desk.places.artifacts_of).bytes
    assert removal.rename(study, "a better name") == (
        f"study {before} is called a better name now; its files stay where they are"
    )
    assert study.leases.name() == study.name == "a better name"
    again = open_study(desk.storage, "a better name")
    assert removal.usage(again, desk.places.artifacts_of).bytes == taken
    assert {"a better name", "a better name (confirmation)"} <= desk.names()
    removal.delete(again, desk.places.artifacts_of)
    assert not [name for name in desk.names() if name.startswith("a better name")]


def test_a_study_gets_no_name_that_is_taken_or_that_no_folder_can_have(desk: Desk) -> None:
    study, other = desk.study(), desk.study()
    with pytest.raises(StudyError, match=f"there is a study '{other.name}' already"):
        removal.rename(study, other.name)
    with pytest.raises(StudyError, match="cannot be the name of a study"):
        removal.rename(study, "../elsewhere")
    assert {study.name, f"{study.name} (confirmation)", other.name} <= desk.names()


def test_a_folder_that_no_study_owns_keeps_what_a_person_put_there(desk: Desk, tmp_path: Path) -> None:
    study = desk.study()
    thesis = tmp_path / "documents" / study.name / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    elsewhere = StorageOptions(None, None, str(tmp_path / "documents"))
    removal.delete(study, elsewhere.artifacts_of)
    assert thesis.exists()


def test_files_of_the_study_itself_go_too(desk: Desk) -> None:
    study = desk.study()
    (key, value), *_ = attached(desk.kept(study.optuna_study).attach(b"plan"), "plan.txt").items()
    desk.storage.set_study_system_attr(study.id, key, value)
    removal.delete(study, desk.places.artifacts_of)
    assert not [name for name in desk.files() if name.startswith(".attachments/")]


def test_what_a_copy_of_the_study_shows_stays(desk: Desk) -> None:
    study = desk.study()
    copy = f"{study.name} copy"
    optuna.copy_study(
        from_study_name=study.name, from_storage=desk.storage, to_storage=desk.storage, to_study_name=copy
    )
    removal.delete(study, desk.places.artifacts_of)
    assert [name for name in desk.files() if name.startswith(".attachments/")]


def test_no_deletion_is_claimed_that_did_not_happen(desk: Desk, ask: Callable[[str], Any]) -> None:
    """A dashboard notes something about a trial at the moment of the deletion."""
    study = desk.study()
    trial = study.trials()[0]._trial_id
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(removal.delete(study, desk.places.artifacts_of))
        except Exception as error:
            outcome.append(error)

    blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    deleting = threading.Thread(target=work, daemon=True)
    with desk.storage.engine.begin() as connection:
        connection.execute(
            sql.text("INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (:id, 'late', '1')"),
            {"id": trial},
        )
        deleting.start()
        while not ask(blocked) and deleting.is_alive():
            pass
    deleting.join(60)
    gone = study.name not in desk.names()
    assert gone == isinstance(outcome[0], removal.Usage), outcome


def test_a_folder_that_is_a_link_is_emptied(desk: Desk, tmp_path: Path) -> None:
    study = desk.study()
    folder = desk.kept(study.optuna_study).folder
    folder.rename(tmp_path / "large-disk")
    folder.symlink_to(tmp_path / "large-disk")
    removal.delete(study, desk.places.artifacts_of)
    assert study.name not in desk.names()
    assert not folder.is_symlink()
    assert not (tmp_path / "large-disk").exists()


def test_a_deletion_that_was_killed_between_files_and_database_is_finished_by_the_next(desk: Desk) -> None:
    study = desk.study()
    desk.places.artifacts_of(study.optuna_study).remove_all()
    removal.delete(study, desk.places.artifacts_of)
    assert study.name not in desk.names()
    assert desk.files() == []
