"""Decoding parameters: chosen on a trained model, among the values that the study allows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.config import Budget, Config, Corpus
from models.generation.continuations import Continuations
from models.text.corpus import EncodedCorpus, load_corpus
from models.training.loop import train
from tuner.study.definition import Decoding
from tuner.study.space import Space
from tuner.trials import decoding
from tuner.trials.decoding import MOST_TRIED, Decoded, calibrate, decode
from tuner.trials.surrogate import Surrogate


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As a worker has it; several wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    distribution = Space.of({"temperature": temperature}).decoding_parameters["temperature"].distribution()
    assert distribution._contains(distribution.to_internal_repr(config.temperature))


@pytest.mark.parametrize(
    ("name", "searched", "value"),
    [
        ("top_k", {"type": "categorical", "choices": [10, 40, 20]}, 40),
        ("top_k", {"type": "categorical", "choices": [10, None]}, None),
        ("top_k", {"type": "int", "low": 5, "high": 50, "step": 5}, 50),
        ("top_p", {"type": "float", "low": 0.8, "high": 0.95}, 0.95),
        ("min_p", {"type": "float", "low": 0.05, "high": 0.2}, 0.05),
        ("min_p", {"type": "categorical", "choices": [0.1, None]}, None),
        ("repetition_penalty", {"type": "float", "low": 0.8, "high": 1.5, "step": 0.1}, 1.0),
    ],
)
def test_what_only_cuts_off_cuts_off_least(
    corpus: EncodedCorpus, name: str, searched: dict[str, Any], value: Any
) -> None:
    assert getattr(chosen(corpus, **{name: searched}), name) == value  # type: ignore[arg-type]


def test_what_is_not_searched_stays_as_it_is(corpus: EncodedCorpus) -> None:
    assert chosen(corpus) == Config(sequence_length=16)


# The search: by writing with the model.

TEMPERATURE = {"type": "float", "low": 0.3, "high": 1.5}


@pytest.fixture(scope="module")
def words() -> EncodedCorpus:
    return load_corpus(Corpus(builtin="python-docs"), "character", 2048)


@pytest.fixture(scope="module")
def chain() -> EncodedCorpus:
    """Text of which two characters say all about the next."""
    return load_corpus(Corpus(builtin="markov"), "character", 2048)


class Twisted(torch.nn.Module):
    """Knows which character follows which two, but is `sharpness` times too sure: that is the right temperature."""

    carries_state = True

    def __init__(self, corpus: EncodedCorpus, sharpness: float) -> None:
        super().__init__()
        size = corpus.tokenizer.vocabulary_size
        ids = torch.tensor(np.asarray(corpus.train).astype("int64"))
        counts = torch.zeros(size * size, size)
        counts.index_put_((ids[:-2] * size + ids[1:-1], ids[2:]), torch.ones(len(ids) - 2), accumulate=True)
        self.logits = torch.nn.Parameter((counts + 1e-4).log() * sharpness)
        self.size = size

    def forward(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, torch.Tensor]:
        read = torch.cat([torch.zeros_like(tokens[:, :1]) if state is None else state, tokens], 1)
        return self.logits[read[:, :-1] * self.size + read[:, 1:]], tokens[:, -1:]


def decoded(corpus: EncodedCorpus, sharpness: float, spent: int = 10_000_000, **more: Any) -> Decoded:
    parameters = more.pop("parameters", {"temperature": TEMPERATURE})
    wanted = Decoding(**more.pop("decoding", {}))
    model = Twisted(corpus, sharpness)
    return decode(model, corpus, Config(), Space.of(parameters), wanted, (spent, 1000.0), **more)


@pytest.mark.parametrize("sharpness", [0.6, 1.0, 1.3])
def test_the_temperature_makes_text_like_that_of_people(chain: EncodedCorpus, sharpness: float) -> None:
    found = decoded(chain, sharpness, 3_000_000)
    assert found.config.temperature == pytest.approx(sharpness, rel=0.15)
    places = Continuations.of(chain.tokenizer, chain.test, chain.characters["test"])
    model = Twisted(chain, sharpness)
    others = [found.config, *(Config(temperature=value) for value in (0.0, 0.6 * sharpness, 1.5 * sharpness))]
    best, *worse = (places.divergence(texts) for texts in places.written(model, others, seed=9))
    assert best < min(worse)  # on text that the search has not seen
    assert found.divergence == found.facts["text_divergence"] == pytest.approx(0, abs=0.05)
    assert found.facts["text"].keys() == found.facts["human_text"].keys()


def test_the_curve_shows_quality_and_diversity(words: EncodedCorpus) -> None:
    curve = decoded(words, 1.0, 3_000_000).facts["decoding_curve"]
    assert [set(point) for point in curve] == [{"temperature", "divergence", "bleu", "self_bleu"}] * 5
    assert [point["temperature"] for point in curve] == sorted(point["temperature"] for point in curve)
    assert curve[0]["self_bleu"] > curve[-1]["self_bleu"]  # cold text repeats itself


def test_what_cuts_off_helps_a_model_that_errs_in_its_tail(words: EncodedCorpus) -> None:
    class Careless(Twisted):
        def __init__(self, corpus: EncodedCorpus, sharpness: float) -> None:
            super().__init__(corpus, sharpness)
            self.logits.data = (self.logits.softmax(-1) + 0.004).log()  # a bit of everything, everywhere

    parameters = {"temperature": 1.0, "min_p": {"type": "categorical", "choices": [None, 0.02, 0.05, 0.1]}}
    model, space = Careless(words, 1.0), Space.of(parameters)
    found = decode(model, words, Config(), space, Decoding(), (5_000_000, 1000.0))
    assert found.config.min_p is not None


def test_each_parameter_is_chosen_among_what_the_study_allows(words: EncodedCorpus) -> None:
    parameters = {
        "temperature": {"type": "float", "low": 0.5, "high": 1.0, "step": 0.1},
        "top_k": {"type": "categorical", "choices": [None, 5, 20]},
        "top_p": {"type": "float", "low": 0.8, "high": 1.0},
        "min_p": {"type": "float", "low": 0.0, "high": 0.2},
        "repetition_penalty": {"type": "float", "low": 1.0, "high": 1.3},
    }
    found = decoded(words, 1.0, 3_000_000, parameters=parameters).config
    for name, searched in Space.of(parameters).decoding_parameters.items():
        value = getattr(found, name)
        if value is not None:
            assert searched.distribution()._contains(searched.distribution().to_internal_repr(value))
    mild = Config(top_k=None, top_p=1.0, min_p=0.0)
    assert sum(getattr(found, name) != getattr(mild, name) for name in ("top_k", "top_p", "min_p")) <= 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": TEMPERATURE, "top_k": {"type": "categorical", "choices": [5]}},
        {"temperature": TEMPERATURE, "min_p": {"type": "float", "low": 0.1, "high": 0.1}},
        {
            "temperature": {"type": "float", "low": 0.7, "high": 0.7},
            "top_p": {"type": "float", "low": 0.8, "high": 1.0},
        },
        {"temperature": {"type": "float", "low": 0.7, "high": 0.7}, "top_k": {"type": "int", "low": 5, "high": 5}},
    ],
)
def test_a_parameter_of_one_value_has_that_value(words: EncodedCorpus, parameters: dict[str, Any]) -> None:
    found = decoded(words, 1.0, 1_500_000, parameters=parameters).config
    for name, searched in Space.of(parameters).decoding_parameters.items():
        if len(decoding._values(searched)) == 1:
            assert getattr(found, name) == decoding._values(searched)[0]


def test_what_could_not_help_is_seldom_used(chain: EncodedCorpus) -> None:
    """The model is as good as it can be; before tries were counted, 9 of 32 seeds used something."""
    parameters = {
        "temperature": TEMPERATURE,
        "top_k": {"type": "categorical", "choices": [None, 3, 5]},
        "min_p": {"type": "float", "low": 0.0, "high": 0.2},
        "repetition_penalty": {"type": "float", "low": 1.0, "high": 1.3},
    }
    model, space = Twisted(chain, 1.0), Space.of(parameters)
    found = [decode(model, chain, Config(seed=seed), space, Decoding(), (400_000, 1e3)).config for seed in range(8)]
    changed = [one for one in found if (one.top_k, one.min_p, one.repetition_penalty) != (None, 0.0, 1.0)]
    assert len(changed) <= 1


def test_a_search_writes_no_more_than_its_share(words: EncodedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    own = Continuations.written

    def counted(self: Continuations, model: Any, configs: Any, seed: int, *rest: Any, **more: Any) -> Any:
        written.append(len(configs) * len(self) * self.tokens)
        return own(self, model, configs, seed, *rest, **more)

    monkeypatch.setattr(Continuations, "written", counted)
    for spent, share in ((1_000_000, 0.1), (400_000, 0.1), (400_000, 0.5), (50_000, 0.1)):
        written.clear()
        decoded(words, 1.0, spent, decoding={"share": share})
        assert sum(written) - written[-1 if len(written) == 1 else -2] <= share * spent


def test_a_short_trial_is_calibrated_and_measured_only_if_it_must(words: EncodedCorpus, chain: EncodedCorpus) -> None:
    short = decoded(chain, 1.2, 20_000)
    assert short.divergence is None
    assert set(short.facts) == {"decoding_seconds"}
    assert short.config.temperature == pytest.approx(1.2, abs=0.05)  # where held-out text is most probable
    assert len(short.samples) == 3
    assert decoded(words, 1.0, 20_000, required=True).divergence is not None
    assert decoded(words, 1.0, 10**9, decoding={"share": 0.0}).divergence is None


def test_the_loss_may_be_what_decides(chain: EncodedCorpus) -> None:
    found = decoded(chain, 0.7, 3_000_000, decoding={"objective": "bits_per_byte"})
    assert found.config.temperature == pytest.approx(0.7, abs=0.05)
    assert "decoding_curve" not in found.facts


def test_it_stops_when_its_time_is_spent(words: EncodedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    own = decoding._Search._try
    monkeypatch.setattr(
        decoding._Search, "_try", lambda self, configs: (tried.append(len(configs)), own(self, configs))
    )
    decode(Twisted(words, 1.0), words, Config(), Space.of({"temperature": TEMPERATURE}), Decoding(), (10**6, 1e-9))
    assert tried == [decoding.ALONE[0]]


def test_the_same_trial_gets_the_same_decoding_and_samples(words: EncodedCorpus) -> None:
    torch.manual_seed(1)
    first, second = (decoded(words, 0.9, 1_500_000) for _ in range(2))
    assert (first.config, first.divergence, first.samples) == (second.config, second.divergence, second.samples)
    assert all(sample["prompt"] and sample["text"] for sample in first.samples)


def test_what_is_asked_in_between_ends_it(words: EncodedCorpus) -> None:
    class Leave(Exception):
        pass

    def leave() -> None:
        raise Leave

    with pytest.raises(Leave):
        decoded(words, 1.0, 3_000_000, on_tokens=leave)


def test_a_search_takes_a_quarter_of_a_grid_of_sixty() -> None:
    assert MOST_TRIED <= 15
    assert sum(decoding.ALONE) <= MOST_TRIED


def test_a_trained_model_writes_better_than_greedily_and_as_well_as_at_one(
    words: EncodedCorpus,
) -> None:
    config = Config(hidden_size=96, learning_rate=5e-3)
    trained = train(config, words, Budget(tokens=150_000, rungs=1))
    found = decode(
        trained.model, words, config, Space.of({"temperature": TEMPERATURE}), Decoding(share=1.0), (150_000, 60.0)
    )
    places = Continuations.of(words.tokenizer, words.test, words.characters["test"])
    chosen, plain, greedy = (
        places.divergence(texts)
        for texts in places.written(trained.model, [found.config, config, Config(temperature=0.0)], seed=5)
    )
    assert chosen < 1.1 * plain  # a good model is about right at 1, and two divergences of one differ by chance
    assert chosen < 0.8 * greedy


# The surrogate.


def test_a_surrogate_finds_the_lowest_point_of_a_noisy_bowl() -> None:
    points = np.linspace(0, 1, 14)
    everywhere = np.linspace(0, 1, 201)
    for seed in range(10):
        noise = 0.01 * np.random.default_rng(seed).standard_normal(14)
        found = Surrogate.fit(points, (points - 0.4) ** 2 + noise)
        mean, deviation = found.predict(everywhere)
        assert everywhere[np.argmin(mean)] == pytest.approx(0.4, abs=0.1)
        assert 0.002 < found.noise < 0.05
        assert (deviation >= 0).all()


def test_a_surrogate_of_nothing_but_equals_is_flat() -> None:
    mean, _ = Surrogate.fit(np.array([0.0, 1.0]), np.array([2.0, 2.0])).predict(np.array([0.5]))
    assert mean.tolist() == [2.0]


def test_a_search_stops_when_the_answer_is_clear(chain: EncodedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    own = decoding._Search._try
    monkeypatch.setattr(
        decoding._Search, "_try", lambda self, configs: (tried.append(len(configs)), own(self, configs))
    )
    monkeypatch.setattr(Continuations, "divergence", lambda self, texts: 0.2)  # all alike: nothing can be better
    decoded(chain, 1.0, 3_000_000)
    assert tried == [decoding.ALONE[0]]
