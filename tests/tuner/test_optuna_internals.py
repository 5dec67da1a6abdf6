"""The insides of Optuna and its dashboard that we use are as we use them: for optuna 5.0 and optuna-dashboard 0.21.

Whoever allows another version of either in pyproject.toml makes these tests pass first, then changes the line above.
"""

import importlib.metadata
import re
from typing import Any

import optuna
import pytest
from optuna.artifacts import upload_artifact
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState, create_trial
from optuna_dashboard import wsgi
from werkzeug.test import Client

from tuner import optuna_internals
from tuner.storage.leases import transaction


@pytest.fixture
def study(storage: RDBStorage) -> optuna.Study:
    return optuna.create_study(storage=storage)


def test_the_installed_versions_are_those_that_this_file_is_about() -> None:
    for package in ("optuna", "optuna-dashboard"):
        about = re.search(rf"for.*\b{package} ([0-9]+\.[0-9]+)", __doc__ or "")
        assert about is not None
        assert importlib.metadata.version(package).startswith(f"{about[1]}.")


def test_studies_and_trials_are_known_by_numbers(storage: RDBStorage, study: optuna.Study) -> None:
    trial = study.ask()
    number = optuna_internals.study_id(study)
    assert number == storage.get_study_id_from_name(study.study_name)
    of_trial = storage.get_trial_id_from_study_id_trial_number(number, trial.number)
    assert optuna_internals.trial_id(trial) == of_trial
    assert optuna_internals.trial_id(study.trials[0]) == of_trial


def test_a_study_tells_its_storage_and_the_database_behind_it(storage: RDBStorage, study: optuna.Study) -> None:
    assert isinstance(optuna_internals.storage_of(study), BaseStorage)
    assert optuna_internals.database_of(study) is storage
    in_memory = optuna.create_study()
    assert optuna_internals.database_of(in_memory) is optuna_internals.storage_of(in_memory)


def test_a_finished_trial_is_read_once(
    storage: RDBStorage, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.tell(study.ask(), 1.0)
    cached = optuna_internals.cached(storage)
    again = optuna.load_study(study_name=study.study_name, storage=cached)
    assert optuna_internals.storage_of(again) is cached
    assert [trial.value for trial in again.get_trials(deepcopy=False)] == [1.0]
    first = again.get_trials(deepcopy=False)[0]
    assert again.get_trials(deepcopy=False)[0] is first


def test_an_added_trial_is_reported_by_its_number(study: optuna.Study) -> None:
    study.ask()
    waiting = create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"x": 1}})
    assert optuna_internals.add_trial(study, waiting) == 1
    assert study.trials[1].state == TrialState.WAITING
    assert study.ask().number == 1


def test_a_system_attribute_is_set(study: optuna.Study) -> None:
    study.ask()
    optuna_internals.set_system_attribute(study, study.trials[0], "name", [1])
    assert study.trials[0].system_attrs["name"] == [1]


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (FloatDistribution(1e-3, 1.0, log=True), 0.1, 2.0),
        (FloatDistribution(0.0, 1.0, step=0.25), 0.5, 0.6),
        (IntDistribution(1, 9, step=2), 3, 4),
        (CategoricalDistribution(["a", "b"]), 1, 2),
    ],
)
def test_a_distribution_says_what_is_in_it(distribution: Any, inside: float, outside: float) -> None:
    assert optuna_internals.contains(distribution, inside)
    assert not optuna_internals.contains(distribution, outside)


def test_an_uploaded_artifact_is_found_by_the_prefix(study: optuna.Study, tmp_path: Any) -> None:
    file = tmp_path / "file.txt"
    file.write_text("text")
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    artifact = upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=study.ask())
    assert list(study.trials[0].system_attrs) == [optuna_internals.ARTIFACT_PREFIX + artifact]


def test_tables_and_columns_have_the_names_that_our_queries_use(storage: RDBStorage) -> None:
    models = optuna_internals.tables()
    columns = {
        models.StudyModel: {"study_id", "study_name"},
        models.StudyDirectionModel: {"study_id", "objective", "direction"},
        models.StudyUserAttributeModel: {"study_id", "key", "value_json"},
        models.StudySystemAttributeModel: {"study_id", "key", "value_json"},
        models.TrialModel: {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"},
        models.TrialValueModel: {"trial_id", "objective", "value", "value_type"},
        models.TrialIntermediateValueModel: {
            "trial_id", "step", "intermediate_value", "intermediate_value_type"
        },
        models.TrialParamModel: {"trial_id", "param_name", "param_value", "distribution_json"},
        models.TrialUserAttributeModel: {"trial_id", "key", "value_json"},
        models.TrialSystemAttributeModel: {"trial_id", "key", "value_json"},
    }  # fmt: skip
    for model, wanted in columns.items():
        assert wanted <= set(model.__table__.columns.keys())
    assert models.MAX_INDEXED_STRING_LENGTH == 512


def test_a_session_of_ours_is_the_one_that_the_storage_writes_in(storage: RDBStorage, study: optuna.Study) -> None:
    class Undone(Exception):
        pass

    trial = study.ask()

    def write() -> None:
        with transaction(storage):
            trial.set_user_attr("written", True)
            raise Undone

    with pytest.raises(Undone):
        write()
    assert study.trials[0].user_attrs == {}


def test_the_dashboard_sends_what_is_added_to_its_answer(storage: RDBStorage, study: optuna.Study) -> None:
    study.tell(study.ask(), 1.0)

    def detail(serialize: Any, *arguments: Any) -> Any:
        assert arguments[0].user_attrs == study.user_attrs
        assert optuna_internals.study_id(arguments[0]) == optuna_internals.study_id(study)
        return serialize(*arguments) | {"name": "another"}

    def trials(get_trials: Any, cache: Any, storage: Any, number: int) -> Any:
        return get_trials(cache, storage, number) * 2

    def sent() -> tuple[str, int]:
        page = f"/api/studies/{optuna_internals.study_id(study)}"
        document: Any = Client(wsgi(storage)).get(page).json
        return document["name"], len(document["trials"])

    with optuna_internals.dashboard_replaced(detail, trials):
        assert sent() == ("another", 2)
    assert sent() == (study.study_name, 1)
