"""A class of the user's own with parameters of its own: searched, told of, exported, trained again and written with."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FixedTrial, TrialState

from models.config import Config
from models.errors import ConfigError
from models.reader import parse, plain
from models.runs.run import load, read_recipe, train_run
from tuner.artifacts.store import Artifacts
from tuner.control import steering
from tuner.results.export import chosen_trial, copy_run, exported
from tuner.storage.handle import StudyHandle
from tuner.study.definition import Study, differences, parse_study, stored_study
from tuner.study.space import Space, problems_of
from tuner.trials.objective import Objective
from tuner.watch import html_report, notes, tables

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "own-generator.md").read_text(encoding="utf-8")
CLASS = "convolution:Convolution"

TWO = """\
architecture: {type: categorical, choices: [lstm, "a:A", "b:B"]}
own:
  depth: {type: int, low: 1, high: 4}
  kind: {type: categorical, choices: [plain, gated], when: {architecture: "a:A"}}
  gate: {type: float, low: 0.1, high: 0.9, when: {own.kind: gated}}
  bias: true
dropout: {type: float, low: 0.0, high: 0.5, when: {own.depth: [3, 4]}}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path, own_import_path: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the convolution of the document."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "convolution", raising=False)
    (program,) = [text for text in blocks("python") if "class Convolution" in text]
    (tmp_path / "convolution.py").write_text(program, encoding="utf-8")
    return tmp_path


def space_of(text: str) -> Space:
    parameters = plain(parse(text, "s.yaml"))
    assert list(problems_of(parameters)) == []
    return Space.of(parameters)


# In a study file.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"architecture": "lstm"}, Config()),
        ({"architecture": "b:B", "own.depth": 2}, Config(architecture="b:B", own={"bias": True, "depth": 2})),
        (
            {"architecture": "a:A", "own.depth": 3, "own.kind": "gated", "own.gate": 0.5, "dropout": 0.25},
            Config(architecture="a:A", own={"bias": True, "depth": 3, "kind": "gated", "gate": 0.5}, dropout=0.25),
        ),
    ],
)
def test_what_a_class_takes_counts_with_that_class_alone(given: dict[str, Any], expected: Config) -> None:
    trial = FixedTrial(given)
    assert space_of(TWO).suggest(trial) == expected  # type: ignore[arg-type]
    assert trial.params == given


def test_each_end_of_a_range_is_in_an_example() -> None:
    space = space_of(TWO)
    assert space.own_architectures == ["a:A", "b:B"]
    examples = space.examples("a:A")
    assert {example.architecture for example in examples} == {"a:A"}
    for name, values in {"depth": {1, 4}, "kind": {"plain", "gated"}, "gate": {0.1, 0.9}}.items():
        assert {example.own[name] for example in examples if name in example.own} == values
    assert [example.own for example in space.examples("b:B")] == [
        {"bias": True, "depth": 1},
        {"bias": True, "depth": 4},
    ]


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (
            'architecture: "a:A"\nown: 3',
            "own: should be a mapping: the names of your class's parameters, each with its",
        ),
        ('architecture: "a:A"\nown: {sizes: [[3], [5]]}', "own.sizes.choices.0"),
        ('architecture: "a:A"\nown: {a-b: 3}', "own.a-b: is no name of an argument; use letters, digits and _"),
        ('architecture: "a:A"\nown: {größe: 3}', "own.größe: is no name of an argument; use letters, digits and _"),
        ('architecture: "a:A"\nown: {n: 3, N: 4}', "own.N: differs from another name in upper and lower case alone"),
        ('architecture: "a:A"\nown: {n: {type: int, low: 4, high: 2}}', "own.n: low 4 is above high 2; swap them"),
        (
            'architecture: "a:A"\nown: {n: {type: int, hihg: 2, low: 1, high: 2}}',
            "own.n.hihg: unknown key; did you mean",
        ),
        (
            'architecture: "a:A"\nown: {n: {type: int, low: 1, high: 2, when: {own.m: 1}}}',
            "own.n.when.own.m: unknown param",
        ),
        (
            'architecture: "a:A"\nown: {n: {type: int, low: 1, high: 2, when: {own: 1}}}',
            "own.n.when.own: unknown param",
        ),
        ('architecture: "a:A"\nown.n: 3', "own.n: write it as own: {n: ...}"),
        (
            "architecture: gru\nown: {n: 3}",
            "own: is for a class of your own as architecture, package.module:Class; there",
        ),
        (
            'architecture: {type: categorical, choices: [gru, "a:A"], when: {own.n: 1}}\n'
            "own: {n: {type: int, low: 1, high: 2}}",
            "architecture.when.own.n: architecture and own.n depend on each other",
        ),
        (
            'architecture: "a:A"\nown: {n: 3}\ndropout: {type: float, low: 0, high: 1e-1, when: {own.n: 4}}',
            "dropout.when.own.n: own.n is never 4; it can be 3",
        ),
    ],
)
def test_what_is_wrong_with_custom_parameters_is_reported_with_its_place(parameters: str, problem: str) -> None:
    indented = "".join(f"  {line}\n" for line in parameters.splitlines())
    text = f"corpus: {{builtin: markov}}\ntrial: {{tokens: 1_000_000}}\nparameters:\n{indented}"
    with pytest.raises(ConfigError) as refusal:
        parse_study(text, "own.yaml", "own")
    assert any(line.partition(": ")[2].startswith(f"parameters.{problem}") for line in str(refusal.value).splitlines())


@pytest.mark.parametrize(
    ("point", "problem"),
    [
        ("own: {kernel_size: 9}", "points_to_evaluate.0.own.kernel_size: 9 is not among what is searched: 2 to 5"),
        ("own: {activation: relu}", "points_to_evaluate.0.own.activation: is fixed at 'gelu'"),
        ("kernel_size: 3", "points_to_evaluate.0.kernel_size: is not searched; did you mean own.kernel_size?"),
    ],
)
def test_a_point_with_other_values_is_refused(point: str, problem: str) -> None:
    text = blocks("yaml")[2]
    assert "points_to_evaluate:" in text
    text = re.sub(r"own: \{kernel_size: 3\}", point, text)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        parse_study(text, "own.yaml", "own")


def test_a_changed_range_is_a_changed_study() -> None:
    study = parse_study(blocks("yaml")[2], "own.yaml", "own")
    assert differences(stored_study(study.stored()), study) == []
    changed = parse_study(blocks("yaml")[2].replace("high: 5", "high: 6"), "own.yaml", "own")
    assert differences(study, changed) == ["parameters.own.kernel_size.high: was 5, is 6"]


# A configuration.


def test_a_configuration_without_them_is_written_as_before_there_were_any() -> None:
    assert "own" not in Config().model_dump()
    assert Config.model_validate(Config().model_dump(mode="json")) == Config()


def test_values_come_back_as_they_were() -> None:
    own: dict[str, Any] = {"a": True, "b": 1, "c": 1.0, "d": "1", "e": None}
    config = Config(architecture="a:A", own=own)
    read = Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert [(name, type(value), value) for name, value in read.own.items()] == [
        (name, type(value), value) for name, value in own.items()
    ]


@pytest.mark.parametrize("own", [{"n": [1]}, {"n": float("inf")}, {"a-b": 1}, {"n": 1, "N": 1}])
def test_what_no_class_can_take_is_refused(own: Any) -> None:
    with pytest.raises(ValueError, match="own"):
        Config(architecture="a:A", own=own)
    with pytest.raises(ValueError, match=r"is for a class of your own as architecture; gru takes nothing of it"):
        Config(architecture="gru", own={"n": 1})


# All the way.


def test_a_convolution_is_searched_exported_trained_again_and_written_with(
    here: Path, crew: Any, enter: Callable[[Study], optuna.Study], storage: RDBStorage
) -> None:
    text = re.sub(r"budget: .*", "budget: {trials: 3}\nsampler: random", blocks("yaml")[2])
    text = (
        text.replace("lstm, ", "")
        .replace("tokens: 100_000", "tokens: 60_000")
        .replace("- {arch", "- {learning_rate: 1e-2, arch")
    )
    study = parse_study(f"{text}threads: 1\n", "kernels.yaml", "kernels")
    found = enter(study)
    assert steering.enqueue(StudyHandle(storage, found, study), {"own.kernel_size": 5}).startswith("trial 1 waits")
    artifacts = Artifacts(here / "artifacts")
    crew.work(study, Objective(study, found.user_attrs["fingerprint"], "cpu", artifacts))

    first, second, _ = found.get_trials()
    assert first.state == TrialState.COMPLETE
    assert (first.params["own.kernel_size"], second.params["own.kernel_size"]) == (3, 5)
    own = {"activation": "gelu", "kernel_size": 3}
    assert first.user_attrs["configuration"]["own"] == own
    assert (first.value or 9) < 2.45  # who looks back once gets 3.4, and the entropy of the source is 2.1

    assert "own.kernel_size=3" in tables.configured(first)
    assert "`own.kernel_size` | `3` | searched" in notes.trial_note(study, first)
    assert "`own.activation` | `gelu` | given" in notes.trial_note(study, first)
    handle = StudyHandle(storage, found, study)
    assert "own.kernel_size" in html_report.report(handle, None)

    trial = chosen_trial(found, 0)
    for notation in ("yaml", "json"):
        path = here / f"best.{notation}"
        path.write_text(exported(handle, trial, path, notation))
        assert read_recipe(path).parameters.own == own
    assert "--own-activation gelu --own-kernel-size 3 " in exported(handle, trial, path, "flags")
    assert "\nOWN_ACTIVATION=gelu\nOWN_KERNEL_SIZE=3\n" in exported(handle, trial, path, "env")
    assert parse_study((here / "best.yaml").read_text(), "best.yaml", "best").space.fixed["own.kernel_size"] == 3

    again = train_run(read_recipe(here / "best.yaml"), here / "again", device="cpu")
    assert again.best.bits_per_byte == first.value
    copy_run(first, artifacts.run_folder(0), here / "copy", force=False)
    texts = [load(here / name, "cpu").generate("abc", 200, seed=1, temperature=0.5) for name in ("again", "copy")]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 200
