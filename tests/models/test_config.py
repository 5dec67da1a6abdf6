"""Knobs: what a configuration takes, what it refuses by name, and that a recipe comes back from its file."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from models import reader
from models.config import ARCHITECTURES, DECODING, Budget, Config, Corpus, Recipe, heads_problem, resolve_path
from models.nn.network import build

EDGES = {
    "vocabulary_size": (300, 1_000_000),
    "layers": (1, 128),
    "hidden_size": (1, 65536),
    "embedding_size": (1, 65536),
    "heads": (1, 512),
    "sequence_length": (1, 1_048_576),
    "batch_size": (1, 1_048_576),
    "weight_decay": (0, 10),
    "warmup": (0, 1),
    "patience": (0, None),
    "seed": (0, 2**63 - 1),
    "temperature": (0, 10),
    "top_k": (1, None),
}
OPEN_EDGES = {
    "dropout": (None, 1),
    "embedding_dropout": (None, 1),
    "momentum": (None, 1),
    "beta1": (None, 1),
    "beta2": (None, 1),
    "learning_rate": (0, None),
    "final_learning_rate": (0, None),
    "top_p": (0, None),
}


def refused(model: type[BaseModel], values: dict[str, Any]) -> list[str]:
    """The names of what is wrong with `values`."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    return sorted(".".join(map(str, error["loc"])) for error in caught.value.errors())


@pytest.mark.parametrize("model", [Config, Corpus, Budget])
def test_every_field_is_described(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_every_default_is_valid() -> None:
    assert all(not field.is_required() for field in Config.model_fields.values())
    assert Config.model_validate(Config().model_dump()) == Config()


def test_every_wrong_field_is_named_at_once() -> None:
    wrong: dict[str, Any] = {name: [] for name in Config.model_fields}
    assert refused(Config, wrong | {"hiden_size": 3}) == sorted([*wrong, "hiden_size"])


@pytest.mark.parametrize("value", ["3", True, 1.5, math.nan, None, [3]])
def test_only_a_whole_number_is_one(value: Any) -> None:
    assert refused(Config, {"layers": value}) == ["layers"]


@pytest.mark.parametrize("value", ["1e-3", True, math.nan, math.inf, None])
def test_only_a_finite_number_is_one(value: Any) -> None:
    assert refused(Config, {"learning_rate": value}) == ["learning_rate"]


def test_a_whole_number_will_do_where_any_number_does() -> None:
    assert Config.model_validate({"learning_rate": 1, "dropout": 0}).learning_rate == 1


@pytest.mark.parametrize(("name", "edges"), EDGES.items())
def test_a_range_includes_its_ends(name: str, edges: tuple[int | None, int | None]) -> None:
    low, high = edges
    for inside, outside in ((low, (low or 0) - 1), (high, (high or 0) + 1)):
        if inside is not None:
            Config.model_validate({name: inside})
            assert refused(Config, {name: outside}) == [name]


@pytest.mark.parametrize(("name", "edges"), OPEN_EDGES.items())
def test_an_open_range_does_not(name: str, edges: tuple[int | None, int | None]) -> None:
    for edge, towards in zip(edges, (1, 0), strict=True):
        if edge is not None:
            Config.model_validate({name: math.nextafter(edge, towards)})
            assert refused(Config, {name: edge}) == [name]


def test_a_configuration_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().layers = 2  # type: ignore[misc]


@given(heads=st.integers(1, 8), hidden_size=st.integers(1, 24), positions=st.sampled_from(["rotary", "sinusoidal"]))
@settings(max_examples=100, deadline=None)
def test_a_transformer_that_is_accepted_can_be_built(heads: int, hidden_size: int, positions: str) -> None:
    sizes: dict[str, Any] = {"heads": heads, "hidden_size": hidden_size, "positions": positions}
    for architecture in ("rnn", "lstm", "gru"):
        Config(architecture=architecture, **sizes)
    if heads_problem(**sizes) is None:
        model = build(Config(architecture="transformer", **sizes), 5)
        assert model(torch.zeros(1, 2, dtype=torch.long), None)[0].shape == (1, 2, 5)
    else:
        with pytest.raises(ValidationError, match=r"heads|hidden_size"):
            Config(architecture="transformer", **sizes)


def test_heads_that_do_not_divide_are_refused_in_numbers() -> None:
    with pytest.raises(ValidationError, match="heads: 3 does not divide hidden_size: 256"):
        Config(architecture="transformer", heads=3)
    with pytest.raises(ValidationError, match="heads: 2 and hidden_size: 6 leave heads of odd width"):
        Config(architecture="transformer", heads=2, hidden_size=6)
    with pytest.raises(ValidationError, match="hidden_size: 3 is odd"):
        Config(architecture="transformer", heads=1, hidden_size=3, positions="sinusoidal")


@pytest.mark.parametrize("name", [*ARCHITECTURES, "module:Class", "package.module:Class", "_a.b1.c:D_2"])
def test_an_architecture_is_one_of_ours_or_a_class(name: str) -> None:
    assert Config(architecture=name).architecture == name


@pytest.mark.parametrize(
    "name", ["", "LSTM", "transformers", "a.b", "a:", ":C", "a..b:C", "a:b:C", "a:b.C", "a b:C", "a-b:C", "/a:C", "1:C"]
)
def test_any_other_architecture_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"none of rnn, lstm, gru, transformer, nor of the form package\.module:"):
        Config(architecture=name)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, ""),
        ({"path": "a", "builtin": "markov"}, ""),
        ({"builtin": "wikipedia"}, "builtin"),
        ({"path": 5}, "path"),
        ({"path": "a", "split": [0.5, 0.5]}, "split.2"),
        ({"path": "a", "split": [0.5, 0.5, 0.5]}, "split"),
        ({"path": "a", "split": [1, 0, 0]}, "split"),
        ({"path": "a", "split": [0.9, 0.2, -0.1]}, "split"),
        ({"path": "a", "split": [0.9, 0.1, math.nan]}, "split.2"),
        ({"path": "a", "split": [0.25, 0.25, 0.25, 0.25]}, "split"),
        ({"path": "a", "split": "0.9"}, "split"),
    ],
)
def test_a_corpus_has_one_source_and_three_parts(values: dict[str, Any], named: str) -> None:
    assert refused(Corpus, values) == [named]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, ""),
        ({"tokens": 1, "seconds": 1}, ""),
        ({"tokens": 0}, "tokens"),
        ({"tokens": 2e6}, "tokens"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": math.inf}, "seconds"),
        ({"tokens": 1, "rungs": 0}, "rungs"),
        ({"tokens": 1, "rungs": 1001}, "rungs"),
    ],
)
def test_a_budget_is_in_tokens_or_in_seconds(values: dict[str, Any], named: str) -> None:
    assert refused(Budget, values) == [named]


def test_a_relative_path_counts_from_the_file_that_names_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "studies"
    (tmp_path / "circle").symlink_to("circle")
    for path, resolved in [
        ("text.txt", folder / "text.txt"),
        ("../text.txt", tmp_path / "text.txt"),
        ("~/text.txt", tmp_path / "home/text.txt"),
        (str(tmp_path / "text.txt"), tmp_path / "text.txt"),
        ("~notes.txt", folder / "~notes.txt"),
        ("~no-such-user/text.txt", folder / "~no-such-user/text.txt"),
        ("../circle", tmp_path / "circle"),
    ]:
        assert resolve_path(Corpus(path=path), folder).path == str(resolved)
    assert resolve_path(Corpus(builtin="markov"), folder) == Corpus(builtin="markov")


def test_decoding_is_made_of_knobs() -> None:
    assert set(DECODING) < set(Config.model_fields)


numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\t\n"), max_size=40)
plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | numbers | texts
recipes = st.builds(
    Recipe,
    corpus=st.builds(
        Corpus, path=texts, field=st.none() | texts, split=st.sampled_from([(0.9, 0.05, 0.05), (0.5, 0.5, 0.0)])
    ),
    trial=st.builds(Budget, tokens=st.integers(1, 10**12), rungs=st.integers(1, 1000))
    | st.builds(Budget, tokens=st.none(), seconds=st.floats(0, 1e9, exclude_min=True)),
    parameters=st.builds(
        Config,
        tokenizer=st.sampled_from(["byte", "character", "word", "byte-pair"]),
        architecture=st.sampled_from([*ARCHITECTURES[:3], "package.module:Class"]),
        embedding_size=st.none() | st.integers(1, 65536),
        tied_embeddings=st.booleans(),
        learning_rate=st.floats(0, 100, exclude_min=True),
        dropout=st.floats(0, 1, exclude_max=True),
        seed=st.integers(0, 2**63 - 1),
        top_k=st.none() | st.integers(1),
        top_p=st.none() | st.floats(0, 1, exclude_min=True),
    ),
    threads=st.none() | st.integers(1, 64),
    provenance=st.none()
    | st.dictionaries(
        texts, plain | st.lists(plain, max_size=3) | st.dictionaries(texts, plain, max_size=3), max_size=4
    ),
)


@given(recipe=recipes, header=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_recipe_comes_back_from_its_file(recipe: Recipe, header: str) -> None:
    text = reader.dump(recipe.model_dump(mode="json"), header)
    assert reader.validate(reader.parse(text, "recipe.yaml"), "recipe.yaml", Recipe) == recipe
