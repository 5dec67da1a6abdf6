"""Study file -> distributions -> Config: what is suggested is what is trained with, and nothing that does not count."""

import json
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from models.config import DECODING, Config
from models.reader import parse, plain
from tuner.study.space import Categorical, Float, Int, Space, chosen_problem, problems_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

CONDITIONAL = """\
dropout: {type: float, low: 0.0, high: 0.4, when: {layers: [2, 3]}}
positions: {type: categorical, choices: [rotary, sinusoidal], when: {architecture: transformer, layers: 3}}
layers: {type: int, low: 1, high: 3, when: {architecture: [transformer, gru]}}
architecture: {type: categorical, choices: [rnn, gru, transformer]}
temperature: {type: float, low: 0.5, high: 1.2}
top_k: {type: categorical, choices: [null, 10, 40]}
hidden_size: 32
"""


def space_of(text: str) -> Space:
    parameters = plain(parse(text, "s.yaml"))
    assert list(problems_of(parameters)) == []
    return Space.of(parameters)


def test_a_value_is_fixed_and_a_mapping_is_searched() -> None:
    space = space_of(CONDITIONAL)
    assert space.fixed == {"hidden_size": 32}
    assert set(space.training_parameters) == {"architecture", "layers", "dropout", "positions"}
    assert set(space.decoding_parameters) == {"temperature", "top_k"}


def test_a_parameter_comes_after_all_that_it_depends_on() -> None:
    order = list(space_of(CONDITIONAL).searched)
    assert order.index("architecture") < order.index("layers") < order.index("dropout")
    assert order.index("layers") < order.index("positions")


@pytest.mark.parametrize(
    ("given_values", "suggested"),
    [
        ({"architecture": "rnn"}, {"architecture"}),
        ({"architecture": "gru", "layers": 1}, {"architecture", "layers"}),
        ({"architecture": "gru", "layers": 3, "dropout": 0.3}, {"architecture", "layers", "dropout"}),
        (
            {"architecture": "transformer", "layers": 3, "dropout": 0.1, "positions": "sinusoidal"},
            {"architecture", "layers", "dropout", "positions"},
        ),
    ],
)
def test_only_what_counts_is_suggested(given_values: dict[str, Any], suggested: set[str]) -> None:
    trial = FixedTrial(given_values | {"temperature": 0.7})
    config = space_of(CONDITIONAL).suggest(trial)  # type: ignore[arg-type]
    assert set(trial.params) == suggested
    assert config == Config.model_validate(given_values | {"hidden_size": 32})


def test_a_condition_on_a_fixed_or_a_left_out_parameter_looks_at_its_value() -> None:
    for text, counts in (("heads: 4\n", True), ("", True), ("heads: 2\n", False)):
        space = Space.of(plain(parse(text + "dropout: {type: float, low: 0.1, high: 0.2, when: {heads: 4}}", "s.yaml")))
        trial = FixedTrial({"dropout": 0.15})
        space.suggest(trial)  # type: ignore[arg-type]
        assert (trial.params == {"dropout": 0.15}) is counts


def test_decoding_parameters_are_never_suggested() -> None:
    study = optuna.create_study()
    for _ in range(8):
        trial = study.ask()
        config = space_of(CONDITIONAL).suggest(trial)
        assert not set(trial.params) & set(DECODING)
        assert config.temperature == Config().temperature


floats = st.floats(1e-6, 0.9)
wholes = st.integers(1, 512)


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Any]:
    """Parameters as a study file may have them: fixed values and ranges of each kind."""
    low, high = sorted((draw(floats), draw(floats)))
    few, many = sorted((draw(wholes), draw(wholes)))
    return {
        "learning_rate": {"type": "float", "low": low, "high": high, "log": draw(st.booleans())},
        "dropout": draw(st.just({"type": "float", "low": 0.0, "high": 0.5, "step": 0.125}) | floats),
        "batch_size": draw(
            st.fixed_dictionaries({"type": st.just("int"), "low": st.just(few), "high": st.just(many)})
            | st.just({"type": "int", "low": few, "high": many, "log": True})
            | wholes
        ),
        "sequence_length": {"type": "categorical", "choices": draw(st.lists(wholes, min_size=1, unique=True))},
        "embedding_size": {"type": "categorical", "choices": [None, 8, 16]},
        "optimizer": draw(st.sampled_from(["adamw", "sgd", {"type": "categorical", "choices": ["adamw", "muon"]}])),
        "tied_embeddings": {"type": "categorical", "choices": [True, False]},
    }


@settings(max_examples=60, deadline=None)
@given(parameters=ranges(), seed=st.integers(0, 99))
def test_what_a_sampler_proposes_is_what_is_trained_with(parameters: dict[str, Any], seed: int) -> None:
    read = plain(parse(json.dumps(parameters), "s.yaml"))
    assert list(problems_of(read)) == []
    space = Space.of(read)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
    config = space.suggest(trial)
    assert {name: getattr(config, name) for name in trial.params} == trial.params
    assert {name: getattr(config, name) for name in space.fixed} == space.fixed
    assert trial.params.keys() | space.fixed.keys() == parameters.keys()
    for name, value in trial.params.items():
        searched = space.searched[name]
        assert trial.distributions[name] == searched.distribution()
        if isinstance(searched, Categorical):
            assert value in searched.choices
        else:
            assert searched.low <= value <= searched.high
    again = space.suggest(FixedTrial(trial.params))  # type: ignore[arg-type]
    assert again == config
    assert Config.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("searched", "values"),
    [
        (Int(type="int", low=64, high=256, step=64), [64, 128, 192, 256]),
        (Int(type="int", low=1, high=3), [1, 2, 3]),
        (Float(type="float", low=0.0, high=0.3, step=0.1), [0.0, 0.1, 0.2, 0.3]),
        (Float(type="float", low=0.1, high=0.5), [0.1, 0.5]),
        (Categorical(type="categorical", choices=["a", None, 2]), ["a", None, 2]),
    ],
)
def test_the_values_of_a_range(searched: Any, values: list[Any]) -> None:
    assert searched.values() == pytest.approx(values) if isinstance(searched, Float) else values


def test_every_value_of_a_stepped_range_is_one_that_optuna_takes() -> None:
    for low, high, step in ((0.0, 0.3, 0.1), (0.05, 0.95, 0.15), (1e-3, 1e-2, 1e-3)):
        searched = Float(type="float", low=low, high=high, step=step)
        assert all(searched.low <= value <= searched.high for value in searched.values())  # type: ignore[operator]
        assert searched.values() == [searched.distribution().to_external_repr(value) for value in searched.values()]  # type: ignore[arg-type]


def test_the_largest_value_of_a_parameter() -> None:
    space = space_of("batch_size: {type: categorical, choices: [8, 32, 16]}\nsequence_length: 48\n")
    assert [space.largest(name) for name in ("batch_size", "sequence_length", "layers")] == [32, 48, 1]


def test_a_trial_can_be_given_what_could_be_proposed_and_nothing_else() -> None:
    space = Space.of(
        {
            "hidden_size": {"type": "int", "low": 64, "high": 256, "step": 64},
            "dropout": {"type": "float", "low": 0.0, "high": 0.5},
            "tied_embeddings": {"type": "categorical", "choices": [True, False]},
            "top_k": {"type": "categorical", "choices": [5, 20]},
            "layers": 2,
        }
    )
    fine = [("hidden_size", 128), ("dropout", 0), ("dropout", 0.25), ("tied_embeddings", True)]
    wrong = [("hidden_size", 100), ("hidden_size", 128.0), ("hidden_size", 512), ("dropout", True), ("dropout", 0.6)]
    wrong += [("tied_embeddings", "yes"), ("layers", 2), ("top_k", 5), ("momentum", 0.9)]  # type: ignore[list-item]
    assert [chosen_problem(space, *one) for one in fine] == [None] * 4
    assert all(chosen_problem(space, *one) for one in wrong)


CHOSEN = {"type": "categorical", "choices": ["lstm", "transformer"]}


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        # Where heads do not count, a transformer has the four of the default.
        (
            {"heads": {"type": "categorical", "choices": [2], "when": {"positions": "sinusoidal"}}, "hidden_size": 10},
            "heads: 4",
        ),
        # Three heads are for a transformer that is never there with this width.
        (
            {"hidden_size": 64, "heads": {"type": "categorical", "choices": [2, 3], "when": {"architecture": "lstm"}}},
            None,
        ),
        (
            {
                "hidden_size": 64,
                "heads": {"type": "categorical", "choices": [2, 8], "when": {"architecture": "transformer"}},
            },
            None,
        ),
        ({"hidden_size": 64, "heads": {"type": "categorical", "choices": [2, 3], "when": {"layers": 2}}}, "heads: 3"),
        (
            {
                "hidden_size": 6,
                "heads": {"type": "categorical", "choices": [1, 3], "when": {"architecture": "transformer"}},
            },
            None,
        ),
    ],
)
def test_sizes_are_refused_that_a_search_could_propose(parameters: dict[str, Any], problem: str | None) -> None:
    positions = {"type": "categorical", "choices": ["rotary", "sinusoidal"]}
    layers = {"type": "int", "low": 1, "high": 2}
    found = list(problems_of({"architecture": CHOSEN, "positions": positions, "layers": layers} | parameters))
    assert [what.startswith(problem or "nothing") for _, what in found] == ([] if problem is None else [True])


@pytest.mark.parametrize(
    ("searched", "problem"),
    [
        (
            {"type": "float", "low": 0.0, "high": 1.0, "step": 1e-300},
            "more than 1,000,000 steps of 1e-300; leave step out",
        ),
        (
            {"type": "float", "low": 0.0, "high": 1.0, "step": 1e-9},
            "more than 1,000,000 steps of 1e-09; leave step out",
        ),
        ({"type": "int", "low": 1, "high": 10**30}, "should be less than or equal to 9007199254740992"),
    ],
)
def test_a_range_of_more_values_than_can_be_told_apart_is_refused(searched: dict[str, Any], problem: str) -> None:
    ((_, what),) = problems_of({"gradient_clip" if searched["type"] == "float" else "top_k": searched})
    assert what == problem
