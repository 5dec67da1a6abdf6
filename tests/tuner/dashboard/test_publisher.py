"""What the dashboard shows of our studies while they run; of the others it shows what it always did."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna_dashboard import save_note, wsgi
from werkzeug.test import Client

from tests.tuner.conftest import Heard, complete
from tuner.dashboard.app import completed
from tuner.dashboard.importance import ImportanceMiddleware
from tuner.dashboard.pages import application
from tuner.dashboard.publisher import Publisher
from tuner.storage.connection import open_storage
from tuner.storage.leases import Leases
from tuner.study.definition import Study
from tuner.study.limits import mark
from tuner.watch import plots
from tuner.watch.notes import BEGIN

LEARNING_RATE: dict[str, BaseDistribution] = {"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)}


@pytest.fixture
def publisher(storage: RDBStorage) -> Iterator[Publisher]:
    made = Publisher(storage)
    with made.shown():
        yield made


@pytest.fixture
def page(storage: RDBStorage) -> Callable[[optuna.Study], dict[str, Any]]:
    """What the dashboard sends of a study, asked for the first time."""

    def get(study: optuna.Study) -> dict[str, Any]:
        answer = Client(wsgi(storage)).get(f"/api/studies/{study._study_id}")
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text)

    return get


@pytest.fixture
def begun(small: Callable[..., Study], enter: Callable[[Study], optuna.Study]) -> optuna.Study:
    """A study of which the trial with the lowest value exceeds a limit, and one is running."""
    study = enter(small(10))
    for value in (1.0, 2.0, 3.0):
        trial = study.ask(LEARNING_RATE)
        trial.report(value + 0.5, 1)
        if value == 1.0:
            mark(trial, {"memory": 0.5})
        complete(study, trial, value)
    study.ask(LEARNING_RATE).report(4.25, 1)
    return study


def test_a_study_has_a_note_with_its_board_and_every_trial_has_one(
    publisher: Publisher, begun: optuna.Study, page: Callable[..., dict[str, Any]]
) -> None:
    publisher.publish()
    sent = page(begun)
    board = sent["note"]["body"]
    assert "trials?numbers=1)" in board
    assert "trials?numbers=0)" not in board
    assert "not listed: 1 completed trial." in board
    bodies = [trial["note"]["body"] for trial in sent["trials"]]
    assert "Complete: 2.0000" in bodies[1]
    assert "Running, rung 1 of 3" in bodies[3]
    assert "4.2500" in bodies[3]
    assert sent["note"]["version"] == sent["trials"][1]["note"]["version"] == 0  # a person may write the first


def test_what_exceeds_a_limit_is_infeasible_and_not_the_best(
    publisher: Publisher, begun: optuna.Study, page: Callable[..., dict[str, Any]]
) -> None:
    publisher.publish()
    sent = page(begun)
    assert [trial["constraints"] for trial in sent["trials"]] == [[0.5], [], [], []]
    assert [trial["number"] for trial in sent["best_trials"]] == [1]
    assert sent["best_trials"][0]["note"]["body"] == sent["trials"][1]["note"]["body"]


def test_notes_follow_the_study_and_nothing_is_written_for_them(
    publisher: Publisher, begun: optuna.Study, page: Callable[..., dict[str, Any]], storage: RDBStorage
) -> None:
    before = storage.get_study_system_attrs(begun._study_id)
    publisher.publish()
    Leases(storage, begun._study_id).join("somebody", "a-host", 1, "cuda:3", 1)
    trial = begun.ask(LEARNING_RATE)
    complete(begun, trial, 1.5)
    publisher.publish()
    board = page(begun)["note"]["body"]
    assert board.index(f"trials?numbers={trial.number})") < board.index("trials?numbers=1)")
    assert "a-host cuda:3" in board
    after = storage.get_study_system_attrs(begun._study_id)
    assert {name for name in after.keys() - before.keys() if "plot_data" not in name} == set()


def test_what_a_person_writes_stays(
    publisher: Publisher, begun: optuna.Study, page: Callable[..., dict[str, Any]], storage: RDBStorage
) -> None:
    publisher.publish()
    client = Client(wsgi(storage))
    shown = page(begun)
    trial = shown["trials"][1]
    for place, before in (("note", shown["note"]), (f"{trial['trial_id']}/note", trial["note"])):
        body = {"version": before["version"] + 1, "body": "Mine.\n\n" + before["body"]}
        assert client.put(f"/api/studies/{begun._study_id}/{place}", json=body).status_code == 204
    complete(begun, begun.ask(LEARNING_RATE), 1.25)
    publisher.publish()
    after = page(begun)
    for note in (after["note"], after["trials"][1]["note"]):
        assert note["body"].startswith("Mine.\n\n" + BEGIN)
        assert note["body"].count(BEGIN) == 1
        assert note["version"] == 1
    assert "1.2500" in after["note"]["body"]


def test_other_studies_are_left_alone(
    publisher: Publisher, storage: RDBStorage, page: Callable[..., dict[str, Any]]
) -> None:
    foreign = optuna.create_study(storage=storage, study_name="foreign to the publisher")
    foreign.tell(foreign.ask(), 1.0)
    save_note(foreign, "theirs")
    before = storage.get_study_system_attrs(foreign._study_id)
    publisher.publish()
    sent = page(foreign)
    assert sent["note"]["body"] == "theirs"
    assert sent["trials"][0]["note"]["body"] == ""
    assert storage.get_study_system_attrs(foreign._study_id) == before
    optuna.delete_study(storage=storage, study_name=foreign.study_name)


def test_a_study_may_be_deleted_at_any_moment(
    publisher: Publisher,
    begun: optuna.Study,
    storage: RDBStorage,
    small: Callable[..., Study],
    enter: Callable[[Study], optuna.Study],
) -> None:
    later = enter(small(10, name="zzz"))

    def delete(*anything: Any) -> dict[str, Any]:
        if begun.study_name in optuna.get_all_study_names(storage):
            optuna.delete_study(storage=storage, study_name=begun.study_name)
        return {"figure": plots.quality_and_diversity}

    publisher.figures, publisher.save_figure = delete, _save
    publisher.publish()
    assert begun._study_id not in publisher.known
    assert later._study_id in publisher.known
    publisher.publish()


def _save(study: optuna.Study, figure: Any, graph_object_id: str) -> None:
    study._storage.set_study_system_attr(study._study_id, f"figure:{graph_object_id}", "drawn")


def test_a_role_that_may_only_read_sees_notes_and_one_warning(
    ask: Callable[[str], Any],
    begun: optuna.Study,
    storage: RDBStorage,
    data_folder: Any,
) -> None:
    ask("create role reader login")
    ask("grant pg_read_all_data to reader")
    url = storage.engine.url.set(username="reader").render_as_string(hide_password=False)
    try:
        with open_storage(url) as readable, Heard() as said:
            publisher = Publisher(readable, lambda *anything: {"figure": None}, _save)
            publisher.publish()
            complete(begun, begun.ask(LEARNING_RATE), 1.5)
            publisher.publish()
            assert "1.5000" in publisher.known[begun._study_id].note
        assert said == ["The dashboard may not write to this database: figures are not drawn."]
    finally:
        ask("drop role reader")


def test_the_thread_shows_notes_from_its_start_to_its_end(
    storage: RDBStorage, begun: optuna.Study, page: Callable[..., dict[str, Any]]
) -> None:
    done = threading.Event()

    class Published(Publisher):
        def publish(self) -> None:
            super().publish()
            done.set()

    publisher = Published(storage)
    publisher.start()
    assert done.wait(30)
    assert "### Best trials" in page(begun)["note"]["body"]
    publisher.ended.set()
    publisher.join(30)
    assert not publisher.is_alive()
    assert page(begun)["note"]["body"] == ""


def test_long_facts_make_no_wide_page(
    publisher: Publisher, begun: optuna.Study, page: Callable[..., dict[str, Any]], storage: RDBStorage
) -> None:
    trial = begun.get_trials(deepcopy=False)[3]
    storage.set_trial_user_attr(trial._trial_id, "tokens_per_second", 1234)
    storage.set_trial_user_attr(trial._trial_id, "decoding_curve", [{"temperature": 0.1 * step} for step in range(50)])
    publisher.publish()
    shown = {fact["key"]: fact["value"] for fact in page(begun)["trials"][3]["user_attrs"]}
    assert shown["tokens_per_second"] == "1234"
    assert "decoding_curve" not in shown


def test_importance_is_empty_until_enough_trials_say_something_and_never_of_decoding(
    publisher: Publisher,
    storage: RDBStorage,
    small: Callable[..., Study],
    enter: Callable[[Study], optuna.Study],
    page: Callable[..., dict[str, Any]],
) -> None:
    space: dict[str, Any] = {
        "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
        "architecture": {"type": "categorical", "choices": ["rnn", "gru"]},
        "temperature": {"type": "float", "low": 0.5, "high": 1.5},
    }
    definition = small(20, parameters=space | {"hidden_size": 8, "batch_size": 8, "sequence_length": 16})
    study = enter(definition)
    client = Client(ImportanceMiddleware(wsgi(storage), partial(completed, storage)))

    def asked() -> Any:
        return json.loads(client.get(f"/api/studies/{study._study_id}/param_importances").text)["param_importances"]

    def add() -> None:
        trial = study.ask()
        rate = trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)
        trial.suggest_categorical("architecture", ["rnn", "gru"])
        complete(study, trial, rate + trial.suggest_float("temperature", 0.5, 1.5))

    for _ in range(9):
        add()
    publisher.publish()
    assert asked() == [[]]
    assert "9 trials trained to the end, and fewer than 10 say nothing" in page(study)["note"]["body"]
    add()
    (weights,) = asked()
    assert {one["name"] for one in weights} == {"learning_rate", "architecture"}
    assert sum(one["importance"] for one in weights) == pytest.approx(1)
    publisher.publish()
    assert "say nothing" not in page(study)["note"]["body"]


def test_importance_of_other_studies_and_other_answers_are_as_they_were(storage: RDBStorage) -> None:
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("temperature", 0, 1), n_trials=3)
    ours, theirs = Client(ImportanceMiddleware(wsgi(storage), partial(completed, storage))), Client(wsgi(storage))
    for number in (study._study_id, 2**20):
        path = f"/api/studies/{number}/param_importances"
        assert (ours.get(path).status_code, ours.get(path).json) == (
            theirs.get(path).status_code,
            theirs.get(path).json,
        )


def test_a_note_links_to_the_pages_that_steer_and_report_and_attributes_are_for_people(
    publisher: Publisher, storage: RDBStorage, begun: optuna.Study, page: Callable[..., dict[str, Any]]
) -> None:
    begun.set_user_attr("mine", 5)
    publisher.publish()
    sent = page(begun)
    assert {fact["key"] for fact in sent["user_attrs"]} == {"fingerprint", "mine"}
    pages = application(storage, None, "k" * 32).test_client()
    steer, report = re.findall(r"\]\((/tuner/[^)]*)\)", sent["note"]["body"])
    assert begun.study_name in pages.get(steer).text
    assert f"<title>{begun.study_name}: tuning report</title>" in pages.get(report).text
