"""What stands in the database and no worker wrote: it imports nothing, ends no worker, and is never a result."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from click.testing import CliRunner, Result
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from optuna_dashboard import wsgi
from werkzeug.test import Client

from models.config import Config
from models.errors import ConfigError, UserError
from tuner import cli
from tuner.artifacts.store import Artifacts
from tuner.dashboard.error_middleware import ErrorMiddleware
from tuner.dashboard.pages import application
from tuner.dashboard.publisher import Publisher
from tuner.results import confirmation, queries, summary
from tuner.results.confirmation import companion_name
from tuner.storage.handle import StudyHandle, open_study
from tuner.storage.leases import Counts, Leases
from tuner.study.definition import Study, StudyBudget
from tuner.study.facts import is_result
from tuner.study.space import Space, configuration_problem
from tuner.watch import notes
from tuner.workers.worker import work

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]
SPACE = Space.of(
    {
        "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
        "architecture": {"type": "categorical", "choices": ["rnn", "transformer"]},
        "heads": {"type": "categorical", "choices": [2, 4], "when": {"architecture": "transformer"}},
        "dropout": {"type": "int", "low": 0, "high": 0},
        "hidden_size": 8,
        "temperature": {"type": "float", "low": 0.3, "high": 1.5},
        "top_k": 5,
    }
)
SOUND: dict[str, Any] = {"learning_rate": 0.01, "architecture": "rnn", "hidden_size": 8, "top_k": 5}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"temperature": 9.0}, None),
        ({"architecture": "transformer", "heads": 2}, None),
        ({"architecture": "evil:Class"}, "architecture 'evil:Class' is not among what is searched: rnn, transformer"),
        ({"architecture": "gru"}, "architecture 'gru' is not among"),
        ({"learning_rate": 0.2}, "learning_rate 0.2 is not among what is searched: 0.001 to 0.1"),
        ({"architecture": "transformer", "heads": 1}, "heads 1 is not among"),
        ({"heads": 2}, "heads is 2, and the study has it at 4"),
        ({"hidden_size": 65536}, "hidden_size is 65536, and the study has it at 8"),
        ({"batch_size": 1_048_576}, "batch_size is 1048576, and the study has it at 16"),
        ({"top_k": 6}, "top_k is 6, and the study has it at 5"),
        ({"seed": 5}, "seed is 5, and the study has it at 0"),
    ],
)
def test_a_configuration_is_of_its_space_in_every_value(changes: dict[str, Any], problem: str | None) -> None:
    found = configuration_problem(SPACE, Config.model_validate(SOUND | changes))
    assert found is None if problem is None else found is not None and found.startswith(problem)


def waiting(found: optuna.Study, user: dict[str, Any], system: dict[str, Any] | None = None) -> None:
    """Queues a trial with attributes, as whoever may write to the database can."""
    trial = create_trial(state=TrialState.WAITING, user_attrs=user, system_attrs=system or {})
    found._storage.create_new_trial(found._study_id, template_trial=trial)


FORGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"configuration": {"architecture": "planted:Class"}}, {}, "not of this study: "),
    ({"configuration": {"architecture": "rnn", "hidden_size": 9}}, {}, "not of this study: "),
    ({"configuration": {"hidden_size": "8"}}, {}, "cannot be: hidden_size"),
    ({"configuration": {"nonsense": 1}}, {}, "cannot be: nonsense"),
    ({"configuration": ["rnn"]}, {}, "a configuration that cannot be"),
    ({}, {"fixed_params": {"architecture": "planted:Class"}}, "architecture 'planted:Class' is not among"),
    ({}, {"fixed_params": {"learning_rate": 5.0}}, "learning_rate 5.0 is not among"),
    ({}, {"fixed_params": {"learning_rate": "x"}}, "learning_rate 'x' is not among"),
    ({}, {"fixed_params": {"hidden_size": 64}}, "hidden_size is fixed at 8"),
    ({}, {"fixed_params": {"nonsense": 64}}, "nonsense is not searched"),
    ({}, {"fixed_params": ["nonsense"]}, "no set of values"),
]


@pytest.mark.parametrize(("user", "system", "reason"), FORGED)
def test_a_waiting_trial_that_is_not_of_the_study_fails_and_the_worker_goes_on(
    crew: Any,
    small: Small,
    enter: Enter,
    storage: RDBStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    user: dict[str, Any],
    system: dict[str, Any],
    reason: str,
) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    study = small(2)
    found = enter(study)
    waiting(found, user, system)
    assert crew.work(study, lambda number, config, rung: 1.0) == ["all 2 trials are finished"]
    assert Leases(storage, found._study_id).counts() == Counts(complete=2, fail=1)
    said = found.trials[0].user_attrs["reason"]
    assert reason in said
    assert "\n" not in said
    assert "traceback" not in found.trials[0].user_attrs
    assert "planted" not in sys.modules


def test_what_a_worker_stored_itself_is_of_the_study_at_the_next_attempt(crew: Any, small: Small, enter: Enter) -> None:
    study = small(3, parameters={"learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1}, "dropout": 0})
    found = enter(study)
    crashed: list[int] = []

    def score(number: int, config: Config, rung: int) -> float:
        if number not in crashed:
            crashed.append(number)
            raise OSError("a moment")
        return 1.0

    assert crew.work(study, score) == ["all 3 trials are finished"]
    assert [trial.user_attrs["attempts"] for trial in found.trials] == [2, 2, 2]


def run(storage: RDBStorage, study: Study, tmp_path: Path) -> str:
    return work(
        storage,
        study.name,
        device="cpu",
        threads=torch.get_num_threads(),
        artifacts=Artifacts(tmp_path / "artifacts"),
        requested=threading.Event(),
        worker_id=study.name,
    )


OWN = """\
from models.nn.network import Recurrent
from models.config import Config

class Mine(Recurrent):
    def __init__(self, config, vocabulary_size):
        super().__init__(config.model_copy(update={"architecture": "rnn"}), vocabulary_size)
"""


def test_an_own_class_that_is_gone_fails_its_trials_alone_unless_it_is_all_there_is(
    small: Small, enter: Enter, storage: RDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "lost_and_found.py"
    module.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    sizes = {"hidden_size": 8, "batch_size": 8, "sequence_length": 16}
    choice = {"type": "categorical", "choices": ["rnn", "lost_and_found:Mine"]}
    dropout = {"type": "float", "low": 0, "high": 0.1}
    mixed = small(2, pruner="none", parameters=sizes | {"architecture": choice, "dropout": dropout})
    alone = small(3, parameters=sizes | {"architecture": "lost_and_found:Mine"})
    found, lonely = enter(mixed), enter(alone)
    module.unlink()
    sys.modules.pop("lost_and_found")
    for name in ("lost_and_found:Mine", "rnn", "rnn"):
        waiting(found, {}, {"fixed_params": {"architecture": name}})
    assert run(storage, mixed, tmp_path) == "all 2 trials are finished"
    assert [trial.state.name for trial in found.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert found.trials[0].user_attrs["reason"].startswith("architecture lost_and_found:Mine: No module named")
    with pytest.raises(ConfigError, match=r"^architecture lost_and_found:Mine: No module named"):
        run(storage, alone, tmp_path)
    assert lonely.trials == []


def test_a_study_whose_every_trial_is_not_of_it_ends(crew: Any, small: Small, enter: Enter) -> None:
    study = small(100)
    found = enter(study)
    for _ in range(7):
        waiting(found, {"configuration": {"architecture": "planted:Class"}})
    assert crew.work(study, lambda number, config, rung: 1.0) == ["all of its 5 trials failed"]


def test_a_confirmation_trains_its_candidates_with_seeds_of_its_own_and_nothing_else(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage
) -> None:
    study = small(2, parameters=json.loads(json.dumps(small().parameters)) | {"seed": 3})
    found = enter(study)
    crew.work(study, lambda number, config, rung: float(number + 1))
    chosen = confirmation.candidates(found, 1)
    entered = confirmation.enter(StudyHandle(storage, found, study), chosen, 2)
    companion, definition = entered.optuna_study, entered.definition
    waiting(companion, {"configuration": chosen[0].user_attrs["configuration"] | {"hidden_size": 64}})
    assert definition.name == companion_name(study.name)
    roomy = definition.model_copy(update={"budget": StudyBudget(trials=3)})
    assert crew.work(roomy, lambda number, config, rung: float(config.seed)) == ["all that was queued is done"]
    ends = {trial.number: (trial.state.name, trial.user_attrs["configuration"]["seed"]) for trial in companion.trials}
    assert ends == {0: ("COMPLETE", 4), 1: ("COMPLETE", 5), 2: ("FAIL", 3)}


# Ends that no worker wrote.

Tuner = Callable[..., Result]


@pytest.fixture
def tuner(data_folder: Path, tmp_path: Path) -> Tuner:
    """The command, on the database and the artifacts of this test."""
    places = ["--data-folder", str(data_folder)]

    def run(*arguments: str) -> Result:
        kept = ["--artifacts", str(tmp_path / "artifacts")]
        more = kept if arguments[0] in ("export", "report", "sample", "backup", "confirm") else []
        return CliRunner().invoke(cli.commands, [*arguments, *places, *more])

    return run


ENDS: dict[str, Callable[[RDBStorage, optuna.Trial], object]] = {
    "a value too good": lambda storage, trial: trial.study.tell(trial, 0.0001),
    "infinity": lambda storage, trial: trial.study.tell(trial, -math.inf),
    "no number": lambda storage, trial: storage.set_trial_state_values(
        trial._trial_id, TrialState.COMPLETE, [math.nan]
    ),
    "a complete one without value": lambda storage, trial: storage.set_trial_state_values(
        trial._trial_id, TrialState.COMPLETE
    ),
    "failed": lambda storage, trial: trial.study.tell(trial, state=TrialState.FAIL),
    "pruned with a value": lambda storage, trial: storage.set_trial_state_values(
        trial._trial_id, TrialState.PRUNED, [0.0001]
    ),
}


def said_by(done: Result) -> str:
    """What a command tells a person, who never sees a traceback."""
    assert done.exception is None or isinstance(done.exception, UserError), done.exception
    return done.output if done.exception is None else str(done.exception)


@pytest.mark.parametrize("results", [0, 1])
def test_an_end_that_no_worker_wrote_is_named_and_never_a_result(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage, tuner: Tuner, tmp_path: Path, results: int
) -> None:
    """Each such end is a trial of one study, with or without a result beside them."""
    study = small(results or 1)
    found = enter(study)
    if results:
        crew.work(study, lambda number, config, rung: 2.0)
    told = [found.ask({"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)}) for _ in ENDS]
    for end, trial in zip(ENDS.values(), told, strict=True):
        end(storage, trial)
    forged = [one.number for one in told if storage.get_trial(one._trial_id).state == TrialState.COMPLETE]
    assert len(forged) == 4
    output = tmp_path / "best.yaml"
    for command in (
        ["status"], ["status", study.name], ["status", study.name, "--json"], ["status", study.name, "--failed"],
        ["report", study.name, "-o", str(tmp_path / "report.html")],
        ["backup", study.name, "-o", str(tmp_path / "study.tar")],
    ):  # fmt: skip
        done = tuner(*command)
        assert done.exit_code == 0, (command, done.output, done.exception)
    listed = json.loads(tuner("status", study.name, "--json").stdout)["study"]
    assert listed["best"] == ({"trial": 0, "value": 2.0} if results else None)
    assert [one["trial"] for one in listed["leaderboard"]] == [0] * results
    assert listed["trials"]["ended_by_no_worker"] == len(forged)
    done = tuner("export", study.name, "-o", str(output))
    assert ("trial 0, 2.0000" if results else "has no completed trial") in said_by(done)
    for trial in told:
        reason = "no worker wrote this end" if trial.number in forged else "only a complete one"
        for command in ("export", "sample"):  # type: ignore[assignment]
            assert reason in said_by(tuner(command, study.name, "--trial", str(trial.number)))
    assert "give a smaller --top" in (said := said_by(tuner("confirm", study.name, "--top", "2"))) or not results, said
    publisher = Publisher(storage)
    (row,) = [one for one in queries.all_rows(storage) if one.study_id == found._study_id]
    publisher._publish_one(row)
    with publisher.shown():
        answer = Client(ErrorMiddleware(wsgi(storage), lambda: False)).get(f"/api/studies/{found._study_id}")
    assert answer.status_code == 200, answer.text
    sent = json.loads(answer.text)
    assert [one["number"] for one in sent["best_trials"]] == [0] * results
    for number in forged:
        assert "no worker wrote this end" in sent["trials"][number]["note"]["body"]
    assert "Ended by no worker, and not listed: 4 trials." in sent["note"]["body"]
    assert "no worker wrote this end" in (tmp_path / "report.html").read_text()
    assert " of which 4 ended by no worker" in tuner("status", study.name).output
    application(storage, None, "k" * 32).test_client().get(f"/tuner/{found._study_id}").get_data(as_text=True)


@pytest.mark.parametrize("end", ENDS)
def test_a_trial_that_is_ended_under_a_worker_is_dropped_and_the_worker_goes_on(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage, end: str
) -> None:
    study = small(3)
    found = enter(study)

    def score(number: int, config: Config, rung: int) -> float:
        if number == 0 and rung == 2:
            trial = optuna.Trial(found, found.get_trials(deepcopy=False)[0]._trial_id)
            ENDS[end](storage, trial)
        return 1.0

    assert crew.work(study, score) == ["all 3 trials are finished"]
    assert any("trial 0 was ended from outside" in words for words in crew.said)
    assert not is_result(found.trials[0])
    assert [trial.number for trial in summary.leaderboard(found.trials)] == [
        trial.number for trial in found.trials if trial.number > 0 and trial.state == TrialState.COMPLETE
    ]


WRONG_FACTS: list[tuple[str, Any]] = [
    ("threads", "x"), ("tokens_per_second", [1]), ("parameter_count", "many"), ("configuration", []),
    ("text_divergence", {}), ("text", 1), ("decoding_curve", "x"), ("attempts", "x"), ("attempts", -1),
    ("crashes", []), ("versions", 3), ("peak_memory_bytes", 1e400), ("reason", {}),
]  # fmt: skip


def test_facts_of_a_wrong_kind_are_no_workers(
    crew: Any, small: Small, enter: Enter, storage: RDBStorage, tuner: Tuner, tmp_path: Path
) -> None:
    """Each spoils one trial of a study, whose last one is sound."""
    sound = len(WRONG_FACTS)
    study = small(sound + 1, pruner="none")
    found = enter(study)
    crew.work(study, lambda number, config, rung: 2.0 + number)
    for trial, (name, value) in zip(found.trials, WRONG_FACTS, strict=False):
        Leases(storage, found._study_id).note(trial._trial_id, {name: value})
    found = open_study(storage, study.name).optuna_study  # what is finished is read once
    assert [trial.number for trial in summary.leaderboard(found.get_trials())] == [sound]
    for command in (["status", study.name], ["status", study.name, "--json"], ["status", study.name, "--failed"]):
        done = tuner(*command)
        assert done.exit_code == 0, (command, done.output, done.exception)
    done = tuner("report", study.name, "-o", str(tmp_path / "report.html"))
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"trial {sound}, " in tuner("export", study.name, "-o", str(tmp_path / "best.yaml")).output
    for trial in found.get_trials()[:sound]:
        assert "Its attributes are not as workers write them" in notes.trial_note(study, trial)
