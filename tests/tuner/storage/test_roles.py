"""Roles of a real PostgreSQL: each can do what it is for, and is refused what it is not for; upgrades of the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
import pytest
import sqlalchemy as sql
from optuna.trial import TrialState
from optuna_dashboard import save_note, save_plotly_graph_object

from tuner.control import create, removal, steering
from tuner.errors import StorageError, StudyError
from tuner.storage import roles
from tuner.storage.connection import open_storage, upgrade, with_password
from tuner.storage.handle import StudyHandle, open_study
from tuner.storage.leases import Leases
from tuner.storage.locations import StorageOptions
from tuner.storage.roles import Role
from tuner.study.definition import Study
from tuner.study.multi_objective import Tuned
from tuner.workers.options import WorkerOptions, environment
from tuner.workers.worker import Worker

Small = Callable[..., Study]


@pytest.fixture
def team(fresh_url: str, ask: Callable[[str], Any]) -> Iterator[dict[str, str]]:
    """The URLs of a database's owner, of a worker and of a dashboard."""
    for name in ("worker-1", "board"):
        ask(f'create role "{name}" login')
    with open_storage(fresh_url) as owner:
        roles.grant(owner, [Role("worker", "worker-1", None), Role("dashboard", "board", None)])
    yield {
        "owner": fresh_url,
        "worker": fresh_url.replace("tuner@", "worker-1@"),
        "dashboard": fresh_url.replace("tuner@", "board@"),
    }
    with open_storage(fresh_url) as owner, owner.engine.begin() as connection:
        connection.execute(sql.text('drop owned by "worker-1", board'))
    for name in ("worker-1", "board"):
        ask(f'drop role "{name}"')


@pytest.fixture
def searched(team: dict[str, str], small: Small, crew: Any, tmp_path: Path) -> Study:
    """A study that the role of workers made and searched to its end, with a trial that failed."""
    from tests.tuner.conftest import Instant

    def score(number: int, config: Any, rung: int) -> float:
        if number == 1:
            raise ValueError("no")
        return 1.0

    study = small(3, retries=0)
    with open_storage(team["worker"]) as storage:
        create.enter(storage, study)
        objective: Any = Instant(study, tmp_path, score)
        found = Tuned(study.name, storage)
        worker = Worker(StudyHandle(storage, found, study), objective, 1, crew.requested, "one")
        assert worker.run() == "all 3 trials are finished"
    return study


def test_the_worker_role_makes_a_study_and_searches_it_to_its_end(team: dict[str, str], searched: Study) -> None:
    with open_storage(team["owner"]) as storage:
        found = optuna.load_study(study_name=searched.name, storage=storage)
        assert [trial.state for trial in found.trials].count(TrialState.COMPLETE) == 3
        assert Leases(storage, found._study_id).alive() == []


def test_the_dashboard_role_shows_writes_notes_and_steers(team: dict[str, str], searched: Study) -> None:
    with open_storage(team["dashboard"]) as storage:
        found = optuna.load_study(study_name=searched.name, storage=storage)
        assert len(found.trials) == 4
        save_note(found, "a note")
        save_plotly_graph_object(found, go.Figure(), graph_object_id="figure")
        save_plotly_graph_object(found, go.Figure(), graph_object_id="figure")
        storage.set_study_system_attr(found._study_id, "artifacts:1", "{}")
        assert steering.pause(StudyHandle.of(storage, found)).startswith("paused")
        assert steering.resume(StudyHandle.of(storage, found)).startswith("running")
        assert "trial 4 waits" in steering.enqueue(StudyHandle(storage, found, searched), {"learning_rate": 0.01})
        assert "is tried again as trial 5" in steering.retry(StudyHandle(storage, found, searched), 1)
        assert [trial.number for trial in found.trials if trial.state == TrialState.WAITING] == [4, 5]
        assert steering.stop(StudyHandle.of(storage, found)).startswith("stopped")


HARM = [
    "delete from trials",
    "delete from studies",
    "delete from trial_values",
    "delete from study_user_attributes",
    "truncate tuner_leases",
    "drop table trials",
    "alter table trials add column x integer",
    "create table mine (x integer)",
    "create schema mine",
    "create role mine",
    "copy studies to program 'cat'",
]


@pytest.mark.parametrize("role", ["worker", "dashboard"])
def test_neither_role_can_delete_or_drop(team: dict[str, str], role: str) -> None:
    assert {harm: refusal(team[role], harm) for harm in HARM} == dict.fromkeys(HARM, "InsufficientPrivilege")


CHANGES = [
    "update study_user_attributes set value_json = '{}' where key = 'study'",
    "insert into study_user_attributes (study_id, key, value_json) values (1, 'study', '{}')",
    "insert into study_system_attributes (study_id, key, value_json) values (1, 'cma:optimizer:0', '\"80\"')",
    "update study_system_attributes set value_json = '[]'",  # the names of objectives among them
    "update trial_user_attributes set value_json = '{}' where key = 'configuration'",
    "update trial_user_attributes set value_json = '[]'",
    "update trial_user_attributes set key = 'retry_of' where key = 'enqueued'; "
    "insert into trial_user_attributes (trial_id, key, value_json) values (1, 'configuration', '{}')",
    "insert into trial_system_attributes (trial_id, key, value_json) values (1, 'cma:optimizer:0', '\"80\"')",
    "insert into trial_system_attributes (trial_id, key, value_json) values (1, 'constraints:memory', '1')"
    " on conflict (trial_id, key) do update set value_json = '1'",
    "insert into trials (study_id, state, number) values (1, 'COMPLETE', 99)",
    "update tuner_studies set active_seconds = 1e9",
    "update trial_params set param_value = 0",
    "update trials set study_id = 1",
    "update trial_values set value = 0",
    "insert into trial_values (trial_id, objective, value, value_type) values (1, 0, 0, 'FINITE')",
    "insert into studies (study_name) values ('x')",
    "update studies set study_name = 'x'",
    "update tuner_leases set worker_id = 'x'",
    "delete from tuner_workers",
    "update alembic_version set version_num = 'x'",
    "update tuner_version set version_num = 'x'",
]


def test_a_dashboard_cannot_change_results(team: dict[str, str], searched: Study) -> None:
    board = team["dashboard"]
    assert {change: refusal(board, change) for change in CHANGES} == dict.fromkeys(CHANGES, "InsufficientPrivilege")
    assert refusal(board, "update studies set study_id = study_id + 1000") == "ForeignKeyViolation"
    for state in ("COMPLETE", "FAIL", "WAITING"):  # the trials of others are not even found to be changed
        assert changed_rows(board, f"update trials set state = '{state}'") == 0
    assert changed_rows(team["worker"], "update trials set state = state") == len(searched_trials(team, searched))


def changed_rows(url: str, statement: str) -> int:
    """How many rows a statement changes; they stay as they were."""
    with open_storage(url) as storage, storage.engine.connect() as connection:
        return int(connection.execute(sql.text(statement)).rowcount)


def searched_trials(team: dict[str, str], study: Study) -> list[Any]:
    with open_storage(team["owner"]) as storage:
        return optuna.load_study(study_name=study.name, storage=storage).trials


def test_a_dashboard_that_becomes_a_worker_may_do_what_workers_do(team: dict[str, str], searched: Study) -> None:
    forge = "update trial_user_attributes set value_json = value_json where key = 'configuration'"
    assert refusal(team["dashboard"], forge) == "InsufficientPrivilege"
    with open_storage(team["owner"]) as owner:
        roles.grant(owner, [Role("worker", "board", None)])
    assert refusal(team["dashboard"], forge) == "done"
    assert changed_rows(team["dashboard"], forge) > 0
    with open_storage(team["owner"]) as owner:
        roles.grant(owner, [Role("dashboard", "board", None)])
    assert refusal(team["dashboard"], forge) == "InsufficientPrivilege"


def test_a_role_that_nobody_granted_for_us_sees_what_its_own_rights_say(
    team: dict[str, str], searched: Study, ask: Callable[[str], Any]
) -> None:
    ask("create role onlooker login")
    with open_storage(team["owner"]) as owner, owner.engine.begin() as connection:
        connection.execute(sql.text("grant select on all tables in schema public to onlooker"))
    with open_storage(team["owner"].replace("tuner@", "onlooker@")) as storage:
        assert len(optuna.load_study(study_name=searched.name, storage=storage).trials) == 4
    with open_storage(team["owner"]) as owner, owner.engine.begin() as connection:
        connection.execute(sql.text("drop owned by onlooker"))
    ask("drop role onlooker")


def refusal(url: str, statement: str) -> str:
    """How the server refuses a statement."""
    with open_storage(url) as storage, storage.engine.connect() as connection:
        try:
            connection.execute(sql.text(statement))
        except sql.exc.DBAPIError as error:
            return type(error.orig).__name__
    return "done"


def test_rights_reach_tables_that_come_later_and_may_be_given_twice(team: dict[str, str]) -> None:
    with open_storage(team["owner"]) as owner:
        with owner.engine.begin() as connection:
            connection.execute(sql.text("create table later (id serial primary key, x integer)"))
        roles.grant(owner, [Role("worker", "worker-1", None), Role("dashboard", "board", None)])
    assert refusal(team["worker"], "insert into later (x) values (1)") == "done"
    assert refusal(team["dashboard"], "select * from later") == "done"
    assert refusal(team["dashboard"], "insert into later (x) values (1)") == "InsufficientPrivilege"


def test_only_the_owner_can_grant(team: dict[str, str]) -> None:
    with open_storage(team["worker"]) as storage, pytest.raises(StorageError, match="Give --storage as the owner"):
        roles.grant(storage, [Role("dashboard", "board", None)])
    with open_storage(team["owner"]) as storage, pytest.raises(StorageError, match='"nobody-here" does not exist'):
        roles.grant(storage, [Role("dashboard", "nobody-here", None)])


def test_a_role_is_made_with_the_password_of_a_file_and_gets_a_new_one(
    fresh_url: str, ask: Callable[[str], Any], tmp_path: Path
) -> None:
    file, name = tmp_path / "password", 'we"ird %s'
    with open_storage(fresh_url) as owner:
        for password in ("first'secret", "second %secret"):
            file.write_text(password + "\n")
            roles.grant(owner, [Role("worker", name, file)])
        stored = ask("select rolpassword from pg_authid where rolname like 'we%'")
        assert stored.startswith("SCRAM-SHA-256$")
        with owner.engine.begin() as connection:
            connection.exec_driver_sql('drop owned by "we""ird %%s"')
            connection.exec_driver_sql('drop role "we""ird %%s"')


def test_a_password_comes_from_a_file_unless_the_url_has_one(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss:w/rd\n")
    assert with_password("postgresql://ada@host/studies", file) == "postgresql://ada:p%40ss%3Aw%2Frd@host/studies"
    for url in ("postgresql://ada:own@host/studies", "postgresql://host/studies?user=ada&password=own"):
        assert with_password(url, file) == url
    file.write_text("\n")
    with pytest.raises(StorageError, match="no password in its first line"):
        with_password("postgresql://ada@host/studies", file)
    with pytest.raises(StorageError, match="nowhere: the password cannot be read: No such file"):
        with_password("postgresql://ada@host/studies", tmp_path / "nowhere")


def test_workers_get_the_passwords_file_and_not_the_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss\n")
    crew = WorkerOptions(1, "cpu", None, 1, 10.0, 30.0)
    places = StorageOptions("postgresql://ada@host/studies", None, None, Path("password"))
    told = environment(places, crew)
    assert told["TUNER_STORAGE"] == "postgresql://ada@host/studies"
    assert told["TUNER_STORAGE_PASSWORD_FILE"] == str(Path.cwd() / "password")
    assert dataclasses.replace(places, storage_password_file=file).address == "postgresql://ada:p%40ss@host/studies"
    own = "postgresql://ada:own@host/studies"
    assert environment(StorageOptions(own, None), crew)["TUNER_STORAGE"] == own
    assert StorageOptions(None, None, None, file).address is None


def test_tables_of_an_older_optuna_are_upgraded_when_nobody_is_there(fresh_url: str, small: Small) -> None:
    study = small(3)
    with open_storage(fresh_url) as storage:
        create.enter(storage, study)
        head = storage.get_head_version()
        with storage.engine.begin() as connection:  # what it did not have yet
            connection.execute(sql.text("drop index ix_trials_study_id"))
            connection.execute(sql.text("update alembic_version set version_num = 'v3.0.0.d'"))
    words = "another version of Optuna: make a backup and run `tuner upgrade`"
    with pytest.raises(StorageError, match=words), open_storage(fresh_url):
        pass
    assert upgrade(fresh_url).optuna == ("v3.0.0.d", head)
    assert upgrade(fresh_url).optuna == (head, head)
    with open_storage(fresh_url) as storage:
        assert optuna.get_all_study_names(storage) == [study.name]


def test_tables_of_a_newer_optuna_are_left_alone(fresh_url: str) -> None:
    with pytest.raises(StorageError, match="has no tables yet"):
        upgrade(fresh_url)
    with open_storage(fresh_url) as storage, storage.engine.begin() as connection:
        connection.execute(sql.text("update alembic_version set version_num = 'v99.0.0.a'"))
    with pytest.raises(StorageError, match=r"is of a newer Optuna \(schema v99.0.0.a\); install"):
        upgrade(fresh_url)


def test_nothing_is_upgraded_under_the_feet_of_a_worker(fresh_url: str) -> None:
    with open_storage(fresh_url) as storage:
        storage.get_all_studies()
        with pytest.raises(
            StorageError, match=r"workers or dashboards are there \(1 connections\): end them, then upgrade"
        ):
            upgrade(fresh_url)


@pytest.mark.parametrize("role", ["worker", "dashboard"])
def test_who_may_not_delete_loses_nothing_by_trying(
    role: str, team: dict[str, str], searched: Study, tmp_path: Path
) -> None:
    places = StorageOptions(None, None, str(tmp_path / "kept"))
    with open_storage(team["owner"]) as storage:
        kept = places.writable_artifacts_of(open_study(storage, searched.name).optuna_study)
    weights = kept.folder / "trial-0" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    with open_storage(team[role]) as storage, pytest.raises((StudyError, StorageError), match="owner"):
        removal.delete(open_study(storage, searched.name), places.artifacts_of)
    assert weights.exists()


def test_a_dashboard_that_may_not_rename_says_so(team: dict[str, str], searched: Study) -> None:
    with open_storage(team["dashboard"]) as storage, pytest.raises((StudyError, StorageError), match=r"owner|may not"):
        removal.rename(open_study(storage, searched.name), "another")
