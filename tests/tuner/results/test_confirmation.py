"""Confirmations: the best trained again beside their study, compared fairly; exports that keep their word."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from models.config import Config
from models.runs.run import read_recipe, score_test, train_run
from tests.tuner.conftest import WRITTEN, complete
from tuner.artifacts.store import Artifacts
from tuner.errors import StudyError
from tuner.results import confirmation
from tuner.results.confirmation import candidates, conclude, confirmed_trial, enter, fresh_seeds, judged, lines
from tuner.results.export import best_trials, exported
from tuner.results.summary import quality
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Counts, Leases
from tuner.study.definition import Study
from tuner.workers.worker import work

COMPLETE, PRUNED, FAIL, WAITING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING
Enter = Callable[[Study], optuna.Study]
Small = Callable[..., Study]


def candidate(number: int, parameters: int = 100, reported: float = 2.0, seed: int = 0) -> FrozenTrial:
    config = Config(seed=seed).model_dump(mode="json")
    facts = WRITTEN | {"configuration": config, "parameter_count": parameters}
    trial = create_trial(value=reported, user_attrs=facts)
    trial.number = number
    return trial


def training(value: float | None) -> FrozenTrial:
    return create_trial(state=PRUNED) if value is None else create_trial(value=value, user_attrs=WRITTEN)


def judge(values: dict[int, list[float | None]], parameters: dict[int, int] | None = None) -> dict[str, Any]:
    """What comes of candidates whose trainings, one of each seed, ended with these values."""
    chosen = [candidate(number, (parameters or {}).get(number, 100)) for number in values]
    trainings = {
        (number, seed): training(value) for number in values for seed, value in enumerate(values[number], start=1)
    }
    return judged(chosen, trainings, len(next(iter(values.values()))))


# Who is chosen.


def test_the_lowest_mean_is_chosen_when_seeds_do_not_explain_the_difference() -> None:
    result = judge({4: [2.00, 2.01, 2.02], 7: [2.50, 2.51, 2.52]}, {4: 900, 7: 100})
    assert (result["winner"], result["within_seed_noise"]) == (4, [])
    assert [one["trial"] for one in result["candidates"]] == [4, 7]
    assert result["chosen"] == "the lowest mean, by more than seed noise"


def test_the_smallest_of_those_within_seed_noise_is_chosen() -> None:
    result = judge({4: [2.0, 2.1, 2.2], 7: [2.05, 2.15, 2.25], 9: [3.0, 3.1, 3.2]}, {4: 900, 7: 100, 9: 1})
    assert (result["winner"], result["within_seed_noise"]) == (7, [4, 7])
    assert result["chosen"] == "within seed noise of 4, and the smallest of them"
    said = "\n".join(lines(result | {"test": None}))
    assert "trial   7  2.1500 ± 0.1413  (search: 2.0000)" in said
    assert said.count("within seed noise  * chosen") == 1


def test_of_equal_sizes_the_lower_mean_is_chosen() -> None:
    assert judge({4: [2.0, 2.2], 7: [1.9, 2.1]})["winner"] == 7


def test_an_interval_is_students_with_the_pooled_variance() -> None:
    """Both variances are 0.01, so each mean of three has a standard error of 0.0577; t of 4 degrees is 2.776."""
    first, second = judge({4: [2.0, 2.1, 2.2], 7: [2.9, 3.0, 3.1]})["candidates"]
    assert first["high"] - first["mean"] == pytest.approx(2.7764 * 0.057735, rel=1e-4)
    assert second["mean"] - second["low"] == pytest.approx(first["high"] - first["mean"])


def test_a_candidate_that_did_not_train_with_every_seed_is_not_ranked() -> None:
    result = judge({4: [1.0, None], 7: [2.0, 2.1]})
    assert (result["winner"], result["dropped"]) == (7, [4])
    assert "trial   4  did not train with every seed; not ranked" in "\n".join(lines(result | {"test": None}))
    with pytest.raises(StudyError, match="no candidate trained with every seed"):
        judge({4: [1.0, None], 7: [None, 2.1]})


def test_fresh_seeds_follow_the_trials_own() -> None:
    assert fresh_seeds(candidate(1, seed=7), 3) == [8, 9, 10]
    assert fresh_seeds(candidate(1, seed=2**63 - 1), 2) == [0, 1]


# The study beside the study.


class Confirming:
    """A study of some complete trials, and its confirmation by workers that train nothing."""

    def __init__(self, storage: RDBStorage, study: Study, found: optuna.Study, crew: Any, complete: int = 4) -> None:
        self.storage, self.study, self.found, self.crew = storage, study, found, crew
        for number in range(complete):
            trial = found.ask({"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)})
            values = study.space.fixed | {"learning_rate": 0.01 * (1 + number), "architecture": "gru"}
            trial.set_user_attr("configuration", Config.model_validate(values).model_dump(mode="json"))
            trial.set_user_attr("threads", 1)
            found.tell(trial, 1.0 + number / 10)

    def enter(self, top: int | None = None, seeds: int = 2) -> tuple[optuna.Study, Study]:
        study = StudyHandle(self.storage, self.found, self.study)
        entered = enter(study, candidates(self.found, top), seeds)
        return entered.optuna_study, entered.definition

    def name(self) -> str:
        return self.storage.get_study_name_from_id(self.found._study_id)

    def conclude(self, top: int | None = None, seeds: int = 2) -> dict[str, Any]:
        companion = optuna.load_study(study_name=f"{self.study.name} (confirmation)", storage=self.storage)
        chosen = candidates(self.found, top)
        return conclude(self.found, companion, chosen, seeds, lambda number: None, lambda folder: None)


@pytest.fixture
def confirming(storage: RDBStorage, small: Small, enter: Enter, crew: Any) -> Confirming:
    study = small(4)
    return Confirming(storage, study, enter(study), crew)


def by_seed(number: int, config: Config, rung: int) -> float:
    """The later trials of the search are the better ones: it was misled by a lucky seed."""
    return 3.0 - 10 * config.learning_rate + config.seed / 1000


def test_the_best_are_trained_with_fresh_seeds_and_the_study_does_not_see_it(confirming: Confirming) -> None:
    before = confirming.found.get_trials()
    companion, definition = confirming.enter(top=3)
    assert confirming.crew.work(definition, by_seed, workers=3) == ["all 6 trials are finished"] * 3
    result = confirming.conclude(top=3)
    pairs = {(trial.params["candidate"], trial.params["seed"]) for trial in companion.trials}
    assert pairs == {(number, seed) for number in (0, 1, 2) for seed in (1, 2)}
    for trial in companion.trials:
        own = before[trial.params["candidate"]].user_attrs["configuration"]
        assert trial.user_attrs["configuration"] == own | {"seed": trial.params["seed"]}
    assert result["winner"] == 2
    assert confirming.found.get_trials() == before
    assert Leases(confirming.storage, confirming.found._study_id).counts() == Counts(complete=4)


def test_a_confirmation_neither_searches_nor_prunes(confirming: Confirming) -> None:
    companion, definition = confirming.enter()
    confirming.crew.work(definition, lambda number, config, rung: float(number), workers=2)
    assert {trial.state for trial in companion.trials} == {COMPLETE}
    assert len(companion.trials) == definition.trials == 8
    assert definition.space.decoding_parameters == {}
    assert definition.pruner == {"type": "none"}


def test_a_training_that_fails_is_not_replaced_by_a_search_and_can_be_tried_again(confirming: Confirming) -> None:
    companion, definition = confirming.enter(top=2)
    broken = [True]

    def score(number: int, config: Config, rung: int) -> float:
        return 1 / 0 if broken and config.seed == 2 else by_seed(number, config, rung)

    assert confirming.crew.work(definition, score) == ["all that was queued is done"]
    assert sorted(trial.state.name for trial in companion.trials) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    with pytest.raises(StudyError, match="the confirmation is not finished; go on with the same command"):
        confirming.conclude(top=2)
    broken.clear()
    _, definition = confirming.enter(top=2)
    confirming.crew.work(definition, score)
    assert confirming.conclude(top=2)["winner"] == 1


def test_what_was_trained_is_not_trained_again_and_what_is_no_longer_wanted_is_not_trained(
    confirming: Confirming,
) -> None:
    confirming.enter(top=4, seeds=3)
    companion, definition = confirming.enter(top=1)
    confirming.crew.work(definition, by_seed)
    assert confirming.conclude(top=1)["winner"] == 0
    assert [trial.state for trial in companion.trials].count(COMPLETE) == 2
    _, definition = confirming.enter(top=2)
    confirming.crew.work(definition, by_seed)
    trained = [trial for trial in companion.trials if trial.state == COMPLETE]
    assert len(trained) == definition.trials == 4
    assert not any(trial.state == WAITING for trial in companion.trials)


def test_the_chosen_trial_is_the_best_one_until_the_study_finds_better_ones(confirming: Confirming) -> None:
    assert best_trials(confirming.found)[0].number == 0
    _, definition = confirming.enter(top=2)
    confirming.crew.work(definition, by_seed)
    confirming.conclude(top=2)
    assert [trial.number for trial in best_trials(confirming.found)] == [1, 0, 2, 3]
    assert confirmation.stored(confirming.found, candidates(confirming.found, 2), 2) is not None
    assert confirmation.stored(confirming.found, candidates(confirming.found, 2), 3) is None
    complete(confirming.found, confirming.found.ask(), 0.5)
    assert confirmed_trial(confirming.found, best_trials(confirming.found)) is None
    assert best_trials(confirming.found)[0].number == 4


def test_a_study_that_cannot_be_confirmed_says_why(confirming: Confirming, small: Small, enter: Enter) -> None:
    with pytest.raises(StudyError, match=r"has 4 completed trials, not 5; give a smaller --top"):
        candidates(confirming.found, 5)
    with pytest.raises(StudyError, match=r"has no completed trial yet; look again with `tuner status`"):
        candidates(enter(small()), None)
    companion, _ = confirming.enter()
    with pytest.raises(StudyError, match=f"is itself a confirmation; confirm study {confirming.study.name}"):
        candidates(companion, None)


def test_a_study_of_that_name_that_is_something_else_is_left_alone(confirming: Confirming) -> None:
    name = f"{confirming.study.name} (confirmation)"
    theirs = optuna.create_study(study_name=name, storage=confirming.storage)
    theirs.tell(theirs.ask(), 1.0)
    with pytest.raises(StudyError, match="is no confirmation of study"):
        confirming.enter()
    assert theirs.user_attrs == {}


@pytest.mark.parametrize("of", ["study", "companion"])
def test_a_confirmation_is_found_whatever_the_study_or_it_is_called_now(
    confirming: Confirming, ask: Callable[[str], Any], of: str
) -> None:
    companion, definition = confirming.enter()
    confirming.crew.work(definition, by_seed)
    renamed = confirming.found if of == "study" else companion
    ask(f"update studies set study_name = study_name || ' anew' where study_id = {renamed._study_id}")
    found = optuna.load_study(study_name=confirming.name(), storage=confirming.storage)
    study = confirming.study.model_copy(update={"name": found.study_name})
    entered = enter(StudyHandle(confirming.storage, found, study), candidates(found, None), 2)
    again, definition = entered.optuna_study, entered.definition
    assert again._study_id == companion._study_id
    assert definition.name == again.study_name
    assert len(again.trials) == definition.trials == 8
    assert not any(trial.state == WAITING for trial in again.trials)
    seen = confirmation.companion_of(found)
    assert seen is not None
    assert seen._study_id == companion._study_id


# Real training: what the search reported is what the export trains to, and the test split is read once.


class Kept:
    """A study of recurrent networks and transformers, trained and confirmed."""

    def __init__(self, storage: RDBStorage, study: Study, found: optuna.Study, folder: Path) -> None:
        self.storage, self.study, self.found, self.folder = storage, study, found, folder
        self.work(study.name)
        self.chosen = candidates(found, 2)
        entered = enter(StudyHandle(storage, found, study), self.chosen, 2)
        self.companion, definition = entered.optuna_study, entered.definition
        self.work(definition.name)
        self.scored: list[Path] = []
        self.result = conclude(
            found, self.companion, self.chosen, 2, Artifacts(folder / definition.name).fetch_run, self.score
        )

    def work(self, name: str) -> None:
        artifacts = Artifacts(self.folder / name)
        options: dict[str, Any] = {"device": "cpu", "threads": 1, "artifacts": artifacts, "worker_id": name}
        work(self.storage, name, requested=threading.Event(), **options)

    def score(self, folder: Path) -> Any:
        self.scored.append(folder)
        return score_test(folder, "cpu")


@pytest.fixture(scope="module")
def kept(storage: RDBStorage, small: Small, enter: Enter, tmp_path_factory: pytest.TempPathFactory) -> Any:
    parameters = {
        "architecture": {"type": "categorical", "choices": ["gru", "transformer"]},
        "temperature": {"type": "float", "low": 0.5, "high": 1.0},
        "dropout": 0.1,
        "hidden_size": 8,
        "heads": 2,
        "batch_size": 8,
        "sequence_length": 16,
    }
    study = small(2, parameters=parameters, sampler="grid", pruner="none")
    threads = torch.get_num_threads()
    yield Kept(storage, study, enter(study), tmp_path_factory.mktemp("artifacts"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("architecture", ["gru", "transformer"])
def test_an_export_trains_to_the_very_value_the_search_reported(kept: Kept, tmp_path: Path, architecture: str) -> None:
    (trial,) = [trial for trial in kept.chosen if trial.params["architecture"] == architecture]
    path = tmp_path / "best.yaml"
    path.write_text(exported(StudyHandle(kept.storage, kept.found, kept.study), trial, path))
    trained = train_run(read_recipe(path), tmp_path / "run", device="cpu")
    assert trained.best.bits_per_byte == quality(trial)
    provenance = read_recipe(path).provenance
    assert provenance is not None
    assert provenance["value"] == quality(trial)
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["precision"] == trained.precision
    vocabulary = (kept.folder / kept.study.name / f"trial-{trial.number}" / "tokenizer.json").read_bytes()
    assert provenance["tokenizer_fingerprint"] == f"sha256:{hashlib.sha256(vocabulary).hexdigest()}"


def test_the_winner_alone_is_scored_on_the_test_split_and_as_train_scores_it(kept: Kept, tmp_path: Path) -> None:
    winner = next(trial for trial in kept.chosen if trial.number == kept.result["winner"])
    runs = [trial.number for trial in kept.companion.trials if trial.params["candidate"] == winner.number]
    assert sorted(kept.scored) == sorted(kept.folder / kept.companion.study_name / f"trial-{number}" for number in runs)
    path = tmp_path / "best.yaml"
    path.write_text(exported(StudyHandle(kept.storage, kept.found, kept.study), winner, path))
    recipe = read_recipe(path)
    again = train_run(
        recipe.model_copy(update={"parameters": recipe.parameters.model_copy(update={"seed": 1})}),
        tmp_path / "run",
        device="cpu",
    )
    assert again.test is not None
    assert again.test.bits_per_byte == kept.result["test"]["values"][0]
    own = next(one for one in kept.result["candidates"] if one["trial"] == winner.number)
    assert again.best.bits_per_byte == own["values"][0]
    assert recipe.provenance is not None
    confirmed = recipe.provenance["confirmation"]
    assert (confirmed["winner"], confirmed["test"], confirmed["seeds"]) == (winner.number, kept.result["test"], [1, 2])
    assert confirmed["low"] < confirmed["mean"] < confirmed["high"]


def test_weights_of_trainings_that_were_not_chosen_are_named_for_removal(kept: Kept) -> None:
    numbers = confirmation.runs_of_others(kept.companion, kept.result)
    others = [t.number for t in kept.companion.trials if t.params["candidate"] != kept.result["winner"]]
    assert sorted(numbers) == sorted(others)
    assert all((kept.folder / kept.companion.study_name / f"trial-{number}").is_dir() for number in numbers)
