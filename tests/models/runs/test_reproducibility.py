"""A run compared with what its file promises: the same bits, or how far off and why."""

from typing import Any

import pytest
import torch

from models.config import Budget, Config, Corpus, Recipe
from models.runs.reproducibility import compared, machine
from models.text.corpus import EncodedCorpus
from models.training.distributed import ALONE, Team
from models.training.loop import Trained, train

CONFIG = Config(hidden_size=8, batch_size=2, sequence_length=8)
HERE = {"study": "s", "trial": 3, "machine": machine("cpu"), "versions": {"torch": torch.__version__}}


@pytest.fixture(scope="module")
def trained(rhyme: EncodedCorpus) -> Trained:
    return train(CONFIG, rhyme, Budget(tokens=320, rungs=1))


def recipe(**facts: Any) -> Recipe:
    return Recipe(
        corpus=Corpus(builtin="markov"),
        trial=Budget(tokens=320, rungs=1),
        parameters=CONFIG,
        threads=1,
        provenance=HERE | facts,
    )


def said(promised: Recipe, trained: Trained, run: Recipe | None = None, team: Team = ALONE) -> str | None:
    return compared(promised, run or promised, trained, team)


def test_the_same_bits_are_said_to_be_the_same(trained: Trained) -> None:
    assert said(recipe(value=trained.best.bits_per_byte), trained) == "To the last bit the value of trial 3 of study s"


def test_a_difference_has_its_size_its_interval_and_its_causes(trained: Trained) -> None:
    value = trained.best.bits_per_byte + 0.25
    assert said(recipe(value=value), trained) == (
        f"-0.2500 from the {value:.4f} of trial 3 of study s; what differs: nothing that the file tells of"
    )
    elsewhere = {"machine": "Linux x86_64, another", "versions": {"torch": "1.0"}}
    confirmed = {"low": value - 0.1, "high": value + 0.1}
    promised = recipe(value=value, confirmation=confirmed, **elsewhere)
    text = said(promised, trained, promised.model_copy(update={"threads": 2, "micro_batch": 1}))
    assert text is not None
    assert f", outside {value - 0.1:.4f} to {value + 0.1:.4f} of fresh seeds; " in text
    for cause in (
        "machine (Linux x86_64, another there",
        "torch (1.0 there",
        "CPU threads (1 there, 2 here)",
        "pieces",
    ):
        assert cause in text
    inside = recipe(value=value, confirmation={"low": value - 1, "high": value})
    assert ", within " in str(said(inside, trained))


def test_seconds_buy_other_numbers_of_tokens(trained: Trained) -> None:
    promised = recipe(value=1.0, tokens=999).model_copy(update={"trial": Budget(seconds=1.0, rungs=1)})
    assert "seconds buy other numbers of tokens (999 there, 320 here)" in str(said(promised, trained))


@pytest.mark.parametrize("build", ["", "+cpu", "+cu128"])
def test_the_build_of_a_version_is_no_difference(trained: Trained, build: str) -> None:
    version = torch.__version__.partition("+")[0] + build
    text = said(recipe(value=1.0, versions={"torch": version}), trained)
    assert "torch" not in str(text)


def test_another_run_is_compared_with_nothing(trained: Trained) -> None:
    promised = recipe(value=trained.best.bits_per_byte)
    longer = promised.model_copy(update={"trial": Budget(tokens=640, rungs=1)})
    other_seed = promised.model_copy(update={"parameters": CONFIG.model_copy(update={"seed": 1})})
    assert said(promised, trained, longer) is said(promised, trained, other_seed) is None
    assert said(promised.model_copy(update={"provenance": None}), trained) is None
    assert said(recipe(), trained) is None
    assert said(recipe(value="a word"), trained) is None
