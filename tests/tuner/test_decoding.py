"""Decoding parameters: chosen on a trained model, among the values that the study allows."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from models.config import Config, Corpus
from models.corpus import EncodedCorpus, load_corpus
from tuner.decoding import calibrate
from tuner.space import Space


class Overconfident(torch.nn.Module):
    """Knows how often each character occurs, and believes it `sharpness` times as firmly as it should."""

    def __init__(self, corpus: EncodedCorpus, sharpness: float) -> None:
        super().__init__()
        tokens = torch.tensor(corpus.validation.astype("int64"))
        counts = torch.bincount(tokens, minlength=corpus.tokenizer.vocabulary_size)
        self.logits = torch.nn.Parameter(torch.log(counts.float() + 1e-6) * sharpness)

    def forward(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, None]:
        return self.logits.expand(*tokens.shape, -1), None


@pytest.fixture(scope="module")
def corpus(text_file: Any) -> EncodedCorpus:
    return load_corpus(Corpus(path=str(text_file)), "character", 2048)


def chosen(corpus: EncodedCorpus, sharpness: float = 1.0, **parameters: Any) -> Config:
    space = Space.of(parameters)
    return calibrate(Overconfident(corpus, sharpness), corpus, Config(sequence_length=16), space)


@pytest.mark.parametrize("sharpness", [0.6, 1.0, 1.4])
def test_the_temperature_makes_a_model_as_sure_as_it_may_be(corpus: EncodedCorpus, sharpness: float) -> None:
    config = chosen(corpus, sharpness, temperature={"type": "float", "low": 0.3, "high": 2.0})
    assert config.temperature == pytest.approx(sharpness, abs=0.1)
    model, targets = Overconfident(corpus, sharpness), torch.tensor(corpus.validation.astype("int64"))

    def loss(temperature: float) -> float:
        return functional.cross_entropy((model.logits / temperature).expand(len(targets), -1), targets).item()

    assert loss(config.temperature) <= min(loss(0.3), loss(2.0), loss(sharpness * 1.3), loss(sharpness / 1.3))


@pytest.mark.parametrize(
    ("temperature", "value"),
    [
        ({"type": "float", "low": 0.5, "high": 1.25, "step": 0.25}, 1.0),
        ({"type": "float", "low": 1.5, "high": 2.0}, 1.5),
        ({"type": "float", "low": 0.12345678, "high": 0.12345679}, 0.12345679),
        ({"type": "float", "low": 0.0, "high": 0.0}, 0.0),
        ({"type": "float", "low": 0.0, "high": 0.004}, 0.004),
        ({"type": "int", "low": 0, "high": 3}, 1),
        ({"type": "categorical", "choices": [0.0, 0.33333, 3.0]}, 0.33333),
        ({"type": "categorical", "choices": [0.0]}, 0.0),
        ({"type": "categorical", "choices": [2, 1]}, 1),
    ],
)
def test_the_temperature_is_one_that_the_study_allows(
    corpus: EncodedCorpus, temperature: dict[str, Any], value: float
) -> None:
    sharpness = 1 / 3 if value == 0.33333 else 1.0
    config = chosen(corpus, sharpness, temperature=temperature)
    assert config.temperature == value
    distribution = Space.of({"temperature": temperature}).decoded["temperature"].distribution()
    assert distribution._contains(distribution.to_internal_repr(config.temperature))


@pytest.mark.parametrize(
    ("name", "searched", "value"),
    [
        ("top_k", {"type": "categorical", "choices": [10, 40, 20]}, 40),
        ("top_k", {"type": "categorical", "choices": [10, None]}, None),
        ("top_k", {"type": "int", "low": 5, "high": 50, "step": 5}, 50),
        ("top_p", {"type": "float", "low": 0.8, "high": 0.95}, 0.95),
    ],
)
def test_what_only_cuts_off_cuts_off_least(
    corpus: EncodedCorpus, name: str, searched: dict[str, Any], value: Any
) -> None:
    assert getattr(chosen(corpus, **{name: searched}), name) == value


def test_what_is_not_searched_stays_as_it_is(corpus: EncodedCorpus) -> None:
    assert chosen(corpus) == Config(sequence_length=16)
