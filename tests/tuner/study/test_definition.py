"""Study files: what a person may write, every problem of a bad one at once, and what may change between readings."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import Config
from models.errors import ConfigError
from models.reader import dump
from models.runs.run import read_recipe
from tuner.study.definition import Study, differences, parse_study, read_study, stored_study
from tuner.study.samplers import PRUNERS, SAMPLERS

# An example with every part.
EXAMPLE = """\
name: shakespeare
corpus: {path: data/shakespeare.txt, tokenizer: character}
objective: bits_per_byte            # lower is better; comparable across tokenizers
trial: {tokens: 2_000_000}          # what one full trial may spend; or {seconds: 60}
budget: {trials: 100, hours: 2}     # what the study may spend, over all workers on all machines
sampler: tpe
pruner: {type: successive_halving, rungs: 8, reduction_factor: 3}
parameters:
  architecture: {type: categorical, choices: [rnn, lstm, gru, transformer]}
  learning_rate: {type: float, low: 1e-4, high: 1e-1, log: true}
  batch_size: {type: categorical, choices: [8, 16, 32, 64]}
  dropout: {type: float, low: 0.0, high: 0.5}
  hidden_size: {type: int, low: 64, high: 512, step: 64}
  heads: {type: categorical, choices: [2, 4, 8], when: {architecture: transformer}}
  temperature: {type: float, low: 0.3, high: 1.5}     # tuned after training, without retraining
  layers: 2                                            # a plain value is fixed
"""
SMALL: dict[str, Any] = {
    "name": "small",
    "corpus": {"builtin": "markov"},
    "trial": {"tokens": 100_000, "rungs": 3},
    "budget": {"trials": 6},
    "sampler": {"type": "tpe"},
    "pruner": {"type": "successive_halving"},
    "parameters": {
        "architecture": {"type": "categorical", "choices": ["lstm", "transformer"]},
        "heads": {"type": "categorical", "choices": [2, 4], "when": {"architecture": "transformer"}},
        "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
        "layers": {"type": "int", "low": 1, "high": 2},
        "dropout": 0.1,
    },
}


def read(text: str) -> Study:
    return parse_study(text, "s.yaml", "s")


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value).splitlines()


def small(**changes: Any) -> Study:
    return read(json.dumps(SMALL | changes))


def test_the_example_loads_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "shakespeare.yaml"
    path.write_text(EXAMPLE)
    study = read_study(path)
    assert study.corpus.path == str(tmp_path / "data" / "shakespeare.txt")
    assert study.space.fixed == {"layers": 2, "tokenizer": "character"}
    assert set(study.space.decoding_parameters) == {"temperature"}
    assert study.parameters["learning_rate"]["low"] == 1e-4
    assert (study.trial.tokens, study.trial.rungs) == (2_000_000, 8)
    assert study.pruner == {"type": "successive_halving", "reduction_factor": 3}
    assert (study.trials, study.budget.hours) == (100, 2)


def test_the_rungs_of_the_pruner_are_the_trials() -> None:
    assert read(EXAMPLE.replace("rungs: 8", "rungs: 5")).trial.rungs == 5


def test_a_key_moves_to_a_section_that_is_not_there_or_empty() -> None:
    study = read("corpus: {builtin: markov, tokenizer: byte}\ntrial: {tokens: 1_000_000}\nparameters:\n")
    assert study.parameters == {"tokenizer": "byte"}
    assert read("corpus: {builtin: markov, tokenizer: byte}\ntrial: {tokens: 1_000_000}").parameters == study.parameters


@pytest.mark.parametrize(
    ("there", "home", "problem"),
    [
        ("tokens: 2_000_000", "tokens: 2_000_000, rungs: 8", "s.yaml:7: pruner.rungs: given here and as trial.rungs"),
        ("layers: 2", "tokenizer: byte", "s.yaml:2: corpus.tokenizer: given here and as parameters.tokenizer"),
    ],
)
def test_a_key_may_not_stand_in_both_of_its_places(there: str, home: str, problem: str) -> None:
    assert problems(EXAMPLE.replace(there, home)) == [f"{problem}; keep one"]


def test_a_moved_key_is_complained_about_where_it_was_written() -> None:
    text = EXAMPLE.replace("tokenizer: character", "tokenizer: letters").replace("rungs: 8", "rungs: 0")
    first, second = problems(text)
    assert first.startswith("s.yaml:2: parameters.tokenizer: should be 'byte', 'character'")
    assert second.startswith("s.yaml:7: trial.rungs: should be greater than or equal to 1")


START = "corpus: {builtin: markov}\ntrial: {tokens: 100_000}\nparameters: {layers: {type: int, low: 1, high: 3}}\n"


def test_start_is_read_as_points_to_evaluate_with_a_warning_that_says_so() -> None:
    with pytest.warns(FutureWarning, match=r"^s\.yaml:4: start is now points_to_evaluate; rename it$"):
        former = read(START + "start: [{layers: 2}]")
    present = read(START + "points_to_evaluate: [{layers: 2}]")
    assert former == present
    assert present.points_to_evaluate == [{"layers": 2}]


def test_points_may_not_stand_under_both_names() -> None:
    text = START + "start: [{layers: 2}]\npoints_to_evaluate: [{layers: 3}]"
    assert problems(text) == ["s.yaml:4: start: given here and as points_to_evaluate; keep one"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_problem_of_start_is_reported_with_its_line() -> None:
    assert problems(START + "start:\n- {layers: 2}\n- {layers: 9}")[0].startswith(
        "s.yaml:6: points_to_evaluate.1.layers: "
    )


def test_a_study_that_was_stored_with_start_is_the_same_study() -> None:
    study = small(points_to_evaluate=[{"layers": 2}])
    stored = study.stored()
    stored["start"] = stored.pop("points_to_evaluate")
    assert stored_study(stored) == study
    assert differences(stored_study(stored), study) == []


def test_a_name_is_that_of_the_file_where_none_is_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(EXAMPLE.replace("name: shakespeare\n", ""))
    assert read_study(path).name == "mine"


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", " ", "x" * 201, "a\nb", ".hidden", "-n"])
def test_a_name_that_cannot_be_a_folders_is_refused(name: str) -> None:
    """Checkpoints and runs are kept in a folder of the study's name."""
    text = EXAMPLE.replace("name: shakespeare", f"name: {json.dumps(name)}")
    assert [line.split(": ")[:2] for line in problems(text)] == [["s.yaml:1", "name"]]


@pytest.mark.parametrize("name", ["späte Studie", "2024-05-01 #3", "a.b", "x" * 200, "日本"])
def test_any_other_name_will_do(name: str) -> None:
    assert read(EXAMPLE.replace("name: shakespeare", f"name: {json.dumps(name)}")).name == name


def test_every_problem_of_a_bad_file_is_reported_in_one_go_with_its_line_and_its_remedy() -> None:
    text = """\
nam: small
corpus:
  pth: text.txt
  split: [0.9, 0.2, 0.1]
trial: {tokens: 1000, seconds: 3, rung: 3}
budget: {trial: 3}
sampler: {type: tpe, n_startup: 3}
pruner: {type: succesive_halving}
paramters: {}
parameters:
  architektur: lstm
  learning_rate: {type: float, low: 1e-1, high: 1e-4}
  weight_decay: {type: float, low: 0, high: 1e-1, log: true}
  optimizer: {type: categorical, choices: [adamw, adma]}
  batch_size: {type: categorical, choises: [8, 16]}
  hidden_size: {type: itn, low: 64, high: 128}
  sequence_length: {low: 32, step: 8}
  dropout: {type: float, low: 0.0, high: 1.5}
  beta1: {type: categorical, choices: [0.9, 0.9]}
  layers: many
  heads: {type: categorical, choices: [2, 4], when: {architecure: transformer}}
"""
    found = problems(text)
    expected = [
        r"s.yaml:1: nam: unknown key; did you mean name\?",
        r"s.yaml:3: corpus.pth: unknown key; did you mean path\?",
        r"s.yaml:4: corpus.split: needs three parts that add up to 1",
        r"s.yaml:5: trial.rung: unknown key; did you mean rungs\?",
        r"s.yaml:6: budget.trial: unknown key; did you mean trials\?",
        r"s.yaml:7: sampler.n_startup: unknown option of tpe; did you mean n_startup_trials\?",
        r"s.yaml:8: pruner.type: unknown pruner 'succesive_halving'; did you mean successive_halving\?",
        r"s.yaml:9: paramters: unknown key; did you mean parameters\?",
        r"s.yaml:11: parameters.architektur: unknown parameter; did you mean architecture\?",
        r"s.yaml:12: parameters.learning_rate: low 0.1 is above high 0.0001; swap them",
        r"s.yaml:13: parameters.weight_decay: log needs low above 0, not 0",
        r"s.yaml:14: parameters.optimizer.choices: adma: should be 'adamw', 'adam'",
        r"s.yaml:15: parameters.batch_size.choises: unknown key; did you mean choices\?",
        r"s.yaml:15: parameters.batch_size.choices: missing",
        r"s.yaml:16: parameters.hidden_size.type: unknown type 'itn'; did you mean int\?",
        r"s.yaml:17: parameters.sequence_length: a range needs a type: float, int or categorical",
        r"s.yaml:18: parameters.dropout: 1.5: should be less than 1",
        r"s.yaml:19: parameters.beta1: a choice is given twice",
        r"s.yaml:20: parameters.layers: should be a whole number",
        r"s.yaml:21: parameters.heads.when.architecure: unknown parameter; did you mean architecture\?",
    ]
    for pattern in expected:
        assert any(re.match(pattern, line) for line in found), (pattern, found)
    assert len(found) == len(expected), found
    assert [int(line.split(":")[1]) for line in found] == sorted(int(line.split(":")[1]) for line in found)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ("trial: {tokens: 1000, seconds: 3}", "trial: give either tokens or seconds"),
        ("trial: {rungs: 3}", "trial: give either tokens or seconds"),
        ("trial: 10m", r"trial: should be a mapping, not \"10m\"; for example {tokens: 2_000_000} or {seconds: 600}"),
        ("trial: {tokens: 1000}", "trial.tokens: 1000 are 0 steps.*too few for 8 rungs"),
        ("trial: {tokens: 2000000, rungs: eight}", "trial.rungs: should be a whole number"),
        ("budget: {}", "budget: give trials, hours or both"),
        ("budget: {hours: 0}", "budget.hours: should be greater than 0"),
        ("budget: {trials: 2.5}", "budget.trials: should be a whole number"),
        ("objective: accuracy", r"objective: should be bits_per_byte or \[bits_per_byte, text_divergence\]"),
        ("objective: [text_divergence, bits_per_byte]", r"objective: should be bits_per_byte or \[bits_per_byte, text"),
        ("objective: [bits_per_byte, text_divergence]\nsampler: cmaes", "sampler: cmaes knows one objective only"),
        ("objective: [bits_per_byte, text_divergence]\npruner: wilcoxon", "pruner: wilcoxon knows one objective only"),
        ("decoding: {share: -0.1}", "decoding.share: should be greater than or equal to 0"),
        ("decoding: {objective: bleu}", "decoding.objective: should be 'text_divergence' or"),
        ("corpus: {}", "corpus: give either path .* or builtin"),
        ("corpus: {builtin: markov, path: a.txt}", "corpus: give either path .* or builtin"),
        ("sampler: tpee", r"sampler: unknown sampler 'tpee'; did you mean tpe\?"),
        ("sampler: 3", "sampler: should be a name, or a mapping"),
        ("sampler: {n_startup_trials: 3}", "sampler: should be a name, or a mapping with a type"),
        ("sampler: {type: [tpe]}", "sampler.type: unknown sampler"),
        ("sampler: grid", "sampler: for learning_rate, a grid needs choices such as .*: a range with log has no step"),
        ("sampler: {type: grid, search_space: {}}", "sampler.search_space: unknown option of grid"),
        ("sampler: {type: qmc, qmc_type: sobl}", "sampler: qmc: .*qmc_type"),
        ("pruner: {type: threshold}", "pruner: threshold: "),
        ("pruner: {type: successive_halving, reduction_factor: 1}", "pruner: successive_halving: .*reduction_factor"),
        (
            "pruner: {type: median, n_startup: 3}",
            r"pruner.n_startup: unknown option of median; did you mean n_startup_t",
        ),
        ("pruner: {type: patient, wrapped_pruner: medain}", "pruner.wrapped_pruner: unknown pruner.*mean median"),
        ("pruner: {type: patient, wrapped_pruner: {type: median, lower: 1}}", "pruner.wrapped_pruner.lower: unknown"),
    ],
)
def test_a_section_that_cannot_work_is_refused(change: str, pattern: str) -> None:
    replaced = tuple(line.partition(":")[0] + ":" for line in change.splitlines())
    head, *lines = [line for line in EXAMPLE.splitlines(True) if not line.startswith(replaced)]
    found = problems("".join([head, change + "\n", *lines]))
    assert any(re.match(rf"s\.yaml:\d+: {pattern}", line) for line in found), found


@pytest.mark.parametrize(
    ("parameters", "pattern"),
    [
        (
            "heads: {type: categorical, choices: [2, 3]}, architecture: transformer",
            "heads: 3 does not divide hidden_size: 2",
        ),
        ("hidden_size: {type: int, low: 6, high: 8}, heads: 2, architecture: transformer", "leave heads of odd width"),
        ("hidden_size: 255, architecture: transformer", "does not divide hidden_size: 255"),
        ("learning_rate: {type: float, low: 1, high: 4, log: true, step: 1}", "log and step exclude each other"),
        ("layers: {type: int, low: 1, high: 4, log: true, step: 2}", "log and step exclude each other"),
        ("layers: {type: float, low: 1.0, high: 2.0}", "should be a whole number"),
        ("layers: {type: int, low: 1.5, high: 2}", "layers.low: should be a whole number"),
        ("layers: {type: int, low: 1, high: 2, step: 0}", "layers.step: should be greater than 0"),
        ("layers: {type: int, low: 1, high: 8, step: 3}", "layers: no step of 3 ends at high 8; write 7"),
        (
            "dropout: {type: float, low: 0.0, high: 0.5, step: 0.2}",
            "dropout: no step of 0.2 ends at high 0.5; write 0.4",
        ),
        ("layers: {type: int, low: 1}", "layers.high: missing"),
        ("dropout: {type: categorical, choices: []}", "dropout.choices: "),
        ("dropout: {type: categorical, choices: [[0.1]]}", "dropout.choices.0"),
        ("dropout: {type: float, low: 0.0, high: .inf}", "dropout.high: should be a finite number"),
        ("dropout: [0.1, 0.2]", "dropout: could be two values or the ends of a range"),
        (
            "dropout: {type: float, low: 0.0, high: 0.5, when: {architecture: cnn}}",
            "architecture is never 'cnn'; it can be lstm",
        ),
        ("dropout: {type: float, low: 0.0, high: 0.5, when: {layers: 2}}", "layers is never 2; it can be 1"),
        ("dropout: {type: float, low: 0.0, high: 0.5, when: {temperature: 1.0}}", "is chosen after training"),
        ("dropout: {type: float, low: 0.0, high: 0.5, when: {dropout: 0.1}}", "depend on each other"),
        (
            "layers: {type: int, low: 1, high: 2, when: {heads: 4}}, heads: {type: int, low: 4, high: 8, step: 4, "
            "when: {batch_size: 8}}, batch_size: {type: categorical, choices: [8, 16], when: {layers: 1}}",
            "depend on each other",
        ),
        ("temperature: {type: float, low: 0.5, high: 1.0, when: {architecture: lstm}}", "temperature.when"),
    ],
)
def test_a_parameter_that_cannot_work_is_refused(parameters: str, pattern: str) -> None:
    found = problems(f"corpus: {{builtin: markov}}\ntrial: {{tokens: 1_000_000}}\nparameters: {{{parameters}}}\n")
    assert all(line.startswith("s.yaml:3: parameters") for line in found), found
    assert any(re.search(pattern, line) for line in found), found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "name: x\n\tbad: indent",
        "name: one\nname: two",
        "trial: 400_000\npruner: {type: median, rungs: 3}",
        "corpus: {builtin: markov, tokenizer: byte}\nparameters: [1]\ntrial: {tokens: 1_000_000}",
    ],
)
def test_a_file_of_another_shape_is_refused_in_words(text: str) -> None:
    assert all(line.startswith("s.yaml") for line in problems(text))


values = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.sampled_from(["tpe", "float", "lstm", "", "byte"])
)
anything = st.recursive(
    values, lambda part: st.lists(part, max_size=2) | st.dictionaries(st.text("abc", max_size=3), part)
)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), value=anything)
def test_any_value_in_any_place_is_read_or_refused_in_words(data: st.DataObject, value: Any) -> None:
    document = deepcopy(SMALL | {"corpus": {"builtin": "markov", "tokenizer": "byte"}})
    document["pruner"]["rungs"] = document["trial"].pop("rungs")
    part = document
    while True:
        key = data.draw(st.sampled_from(sorted(part)))
        if not isinstance(part[key], dict) or data.draw(st.booleans()):
            break
        part = part[key]
    part[key] = value
    try:
        study = read(json.dumps(document))
    except ConfigError as error:
        said = str(error)
    else:
        assert stored_study(study.stored()) == study
        return
    assert all(line.startswith("s.yaml:1: ") for line in said.splitlines())


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_may_be_named_alone(name: str) -> None:
    parameters = {"layers": {"type": "int", "low": 1, "high": 2}}
    assert small(sampler=name, parameters=parameters).sampler == {"type": name}


@pytest.mark.parametrize("name", sorted(set(PRUNERS) - {"threshold"}))
def test_every_pruner_may_be_named_alone(name: str) -> None:
    assert small(pruner=name).pruner == {"type": name}


def test_a_study_is_kept_in_the_database_as_it_was_read() -> None:
    for study in (read(EXAMPLE), small(), small(threads=2, budget={"hours": 0.5})):
        kept = json.loads(json.dumps(study.stored()))
        assert stored_study(kept) == study
        assert stored_study(kept).stored() == kept
        assert differences(stored_study(kept), study) == []


@pytest.mark.parametrize(
    ("trial", "changes"), [({"tokens": 100_000}, []), ({"seconds": 5.0}, ["threads: was not given, is 2"])]
)
def test_threads_may_change_unless_what_a_trial_gets_done_depends_on_them(
    trial: dict[str, Any], changes: list[str]
) -> None:
    assert differences(small(trial=trial), small(trial=trial, threads=2, retries=7)) == changes


def test_a_changed_study_says_what_changed() -> None:
    changed = small(
        corpus={"builtin": "markov", "split": [0.8, 0.1, 0.1]},
        pruner="median",
        parameters={
            **SMALL["parameters"],
            "layers": 2,
            "dropout": 0.2,
            "learning_rate": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
            "batch_size": 8,
        },
    )
    assert differences(small(), changed) == [
        "corpus.split: was [0.9, 0.05, 0.05], is [0.8, 0.1, 0.1]",
        "parameters.batch_size: was not given, is 8",
        "parameters.dropout: was 0.1, is 0.2",
        "parameters.layers: was not given, is 2",
        "parameters.layers.high: was 2, is not given",
        "parameters.layers.low: was 1, is not given",
        "parameters.layers.type: was int, is not given",
        "parameters.learning_rate.high: was 0.1, is 1.0",
        "pruner.type: was successive_halving, is median",
    ]


def test_budget_and_threads_and_the_place_of_the_text_may_change() -> None:
    before = small(corpus={"path": "/here/text.txt"})
    after = small(corpus={"path": "/there/text.txt"}, budget={"trials": 60, "hours": 3}, threads=2)
    assert differences(before, after) == []


@pytest.mark.parametrize("section", ["sampler", "trial"])
def test_every_other_section_may_not(section: str) -> None:
    other = {"sampler": {"type": "tpe", "seed": 1}, "trial": {"tokens": 200_000, "rungs": 3}}[section]
    assert [line.split(".")[0] for line in differences(small(), small(**{section: other}))] == [section]


def test_an_exported_recipe_is_a_study_of_one_trial(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    recipe = {
        "corpus": {"builtin": "markov", "fingerprint": "sha256:0"},
        "trial": {"tokens": 100_000, "rungs": 3},
        "parameters": Config(architecture="gru", learning_rate=0.01).model_dump(),
        "threads": 2,
        "provenance": {"study": "small", "trial": 4, "value": 2.5},
    }
    path.write_text(dump(recipe))
    study, same = read_study(path), read_recipe(path)
    assert study.space.searched == {}
    assert Config.model_validate(study.space.fixed) == same.parameters
    assert (study.corpus, study.trial, study.threads) == (same.corpus, same.trial, same.threads)
    assert study.trials == 1
    assert stored_study(study.stored()).space == study.space


def test_a_grid_has_no_more_trials_than_points() -> None:
    parameters = {
        "layers": {"type": "int", "low": 1, "high": 3},
        "dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.25},
        "temperature": {"type": "float", "low": 0.5, "high": 1.0},
    }
    assert small(sampler="grid", parameters=parameters, budget={"trials": 100}).trials == 9
    assert small(sampler="grid", parameters=parameters, budget={"hours": 1}).trials == 9
    assert small(sampler="grid", parameters=parameters, budget={"trials": 4}).trials == 4
    assert small(sampler="tpe", parameters=parameters, budget={"hours": 1}).trials is None


def test_a_shipped_study_names_the_command_that_starts_it() -> None:
    folder = Path(__file__).parents[3] / "studies"
    assert len(list(folder.glob("*.yaml"))) >= 1
    for path in folder.glob("*.yaml"):
        assert f"tuner run {path.stem}" in path.read_text() or f"tuner run studies/{path.name}" in path.read_text()
        assert read_study(path).name == path.stem


def from_file(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "s.yaml").write_text("corpus: {builtin: markov}\ntrial: {tokens: 100_000, rungs: 3}\n" + text)
    try:
        read_study(tmp_path / "s.yaml")
    except ConfigError as error:
        return [line.removeprefix(f"{tmp_path}/") for line in str(error).splitlines()]
    return []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "sampler: {type: tpe, n_startup_trials: '10'}",
            "s.yaml:3: sampler.n_startup_trials: should be a whole number",
        ),
        ("pruner:\n  type: median\n  n_min_trials: 1.5", "s.yaml:5: pruner.n_min_trials: should be a whole number"),
        (
            "sampler: {type: tpe, n_ei_candidates: 0}\nparameters: {layers: {type: int, low: 1, high: 3}}",
            "s.yaml:3: sampler: tpe: ",
        ),
        ("confirms: other", "s.yaml:3: confirms: is written by `tuner confirm`"),
        (
            "sampler: grid\nparameters: {layers: {type: int, low: 1, high: 3}}\npoints_to_evaluate: [{layers: 2}, {layers: 3}, {layers: 2}]",  # noqa: E501
            "s.yaml:5: points_to_evaluate.2: is given before",
        ),
    ],
)
def test_what_only_shows_in_use_is_found_in_a_file(tmp_path: Path, text: str, problem: str) -> None:
    (found,) = from_file(tmp_path, text)
    assert found.startswith(problem)


def test_a_seed_of_null_is_none(tmp_path: Path) -> None:
    assert (
        from_file(tmp_path, "sampler: {type: tpe, seed: null}\nparameters: {layers: {type: int, low: 1, high: 3}}")
        == []
    )


def test_what_the_database_holds_is_read_without_a_rehearsal() -> None:
    assert small(sampler={"type": "tpe", "n_startup_trials": 10.0}).sampler["n_startup_trials"] == 10.0
