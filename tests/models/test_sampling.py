"""Drawing text: each way by its definition, whole characters only, and the same again for the same seed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.config import Config
from models.corpus import EncodedCorpus
from models.errors import ConfigError
from models.network import build
from models.sampling import draw, generate, keep_probable, stream, tokens
from models.tokenizers import Tokenizer, learn

PROBABILITIES = [0.02, 0.4, 0.08, 0.3, 0.2]
DRAWS = 20_000


def frequencies(probabilities: list[float], **decoding: Any) -> list[float]:
    """How often each of the tokens is drawn, of DRAWS times."""
    logits = torch.tensor(probabilities).log().expand(DRAWS, -1)
    drawn = draw(logits, Config(**decoding), torch.Generator().manual_seed(0))
    return (torch.bincount(drawn, minlength=len(probabilities)) / DRAWS).tolist()


def assert_drawn(found: list[float], expected: list[float]) -> None:
    """Within five standard deviations, and never what has no probability."""
    total = sum(expected)
    for frequency, weight in zip(found, expected, strict=True):
        probability = weight / total
        assert abs(frequency - probability) <= 5 * math.sqrt(probability * (1 - probability) / DRAWS)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.5, 10.0])
def test_a_temperature_is_a_power_of_the_probabilities(temperature: float) -> None:
    assert_drawn(frequencies(PROBABILITIES, temperature=temperature), [p ** (1 / temperature) for p in PROBABILITIES])


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [0, 0.4, 0, 0.3, 0]),
        ({"top_k": 4}, [0, 0.4, 0.08, 0.3, 0.2]),
        ({"top_k": 5}, PROBABILITIES),
        ({"top_k": 1000}, PROBABILITIES),
        ({"top_p": 1e-9}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.39}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.41}, [0, 0.4, 0, 0.3, 0]),
        ({"top_p": 0.69}, [0, 0.4, 0, 0.3, 0]),
        ({"top_p": 0.71}, [0, 0.4, 0, 0.3, 0.2]),
        ({"top_p": 0.97}, [0, 0.4, 0.08, 0.3, 0.2]),
        ({"top_p": 0.99}, PROBABILITIES),
        ({"top_p": 1.0}, PROBABILITIES),
        ({"top_k": 3, "top_p": 0.75}, [0, 0.4, 0, 0.3, 0]),  # of the three, the first two have 0.78
        ({"top_k": 2, "top_p": 0.99}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 0.5, "top_p": 0.6}, [0, 0.16, 0, 0.09, 0]),  # squared, the first has 0.55
        ({"temperature": 0.5, "top_k": 3}, [0, 0.16, 0, 0.09, 0.04]),
    ],
    ids=str,
)
def test_only_what_is_probable_is_drawn_in_its_proportion(decoding: dict[str, Any], expected: list[float]) -> None:
    assert_drawn(frequencies(PROBABILITIES, **decoding), expected)


logits_of = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=12)


@given(logits=logits_of, top_k=st.integers(1, 15))
def test_top_k_keeps_k_of_the_largest(logits: list[float], top_k: int) -> None:
    (kept,) = keep_probable(torch.tensor([logits]), top_k, None).tolist()
    stays = [before for before, after in zip(logits, kept, strict=True) if after == before]
    assert sorted(stays) == sorted(logits)[-top_k:]
    assert all(after in (before, -math.inf) for before, after in zip(logits, kept, strict=True))


@given(logits=logits_of, top_p=st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_that_reach_p(logits: list[float], top_p: float) -> None:
    (kept,) = keep_probable(torch.tensor([logits]), None, top_p).tolist()
    probabilities = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
    stays = sorted(place for place, after in enumerate(kept) if after > -math.inf)
    total = sum(probabilities[place] for place in stays)
    least = min(probabilities[place] for place in stays)
    assume(min(abs(total - top_p), abs(total - least - top_p)) > 1e-5)  # a matter of rounding
    assert total >= top_p > total - least
    assert least >= max(
        (probability for place, probability in enumerate(probabilities) if place not in stays), default=0
    )


@given(
    logits=logits_of,
    temperature=st.floats(0, 10),
    top_k=st.none() | st.integers(1, 3),
    top_p=st.none() | st.floats(0.1, 1),
)
def test_something_is_always_drawn(logits: list[float], temperature: float, top_k: Any, top_p: Any) -> None:
    config = Config(temperature=temperature, top_k=top_k, top_p=top_p)
    (drawn,) = draw(torch.tensor([logits]), config, torch.Generator().manual_seed(0)).tolist()
    assert 0 <= drawn < len(logits)
    if temperature == 0 or top_k == 1:
        assert logits[drawn] == max(logits)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-6])
def test_no_temperature_is_too_low(temperature: float) -> None:
    assert_drawn(frequencies(PROBABILITIES, temperature=temperature), [0, 1, 0, 0, 0])


def test_a_temperature_of_zero_draws_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    state = random.get_state()
    assert draw(torch.tensor([[1.0, 3.0, 2.0], [9.0, 3.0, 2.0]]), Config(temperature=0), random).tolist() == [1, 0]
    assert torch.equal(random.get_state(), state)


# Text.


class Recited(nn.Module):
    """Goes on with a text it knows by heart, by position; a state tells it where it is."""

    def __init__(self, ids: list[int], vocabulary_size: int) -> None:
        super().__init__()
        self.ids, self.vocabulary_size = ids, vocabulary_size
        self.none = nn.Parameter(torch.zeros(()))
        self.prompts: list[list[int]] = []

    def forward(self, given: Tensor, state: int | None = None) -> tuple[Tensor, int]:
        if state is None:
            self.prompts.append(given[0].tolist())
        place = 0 if state is None else state + 1
        logits = torch.full((1, given.size(1), self.vocabulary_size), -100.0)
        logits[:, -1, self.ids[min(place, len(self.ids) - 1)]] = 100
        return logits, place


def recite(text: str, tokenizer: Tokenizer) -> Recited:
    return Recited([*tokenizer.encode(text).tolist(), tokenizer.end_of_text], tokenizer.vocabulary_size)


KINDS = ("byte", "character", "word", "byte-pair")
every_kind = pytest.mark.parametrize("kind", KINDS)
LEARNED = "the cat sat on the mat, the mat. naïve naïve 世界世界\n" * 3


@every_kind
@given(text=st.text(max_size=20), prompt=st.text(max_size=10))
@settings(max_examples=30, deadline=None)
def test_what_the_model_writes_is_what_one_reads(kind: str, text: str, prompt: str) -> None:
    tokenizer = learn(kind, LEARNED, 300)
    model = recite(text, tokenizer)
    pieces = list(stream(model, tokenizer, prompt, 1000, Config(), seed=0))
    assert "".join(pieces) == text == generate(model, tokenizer, prompt, 1000, Config(), seed=0)
    assert model.prompts == [tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text]] * 2


@every_kind
@given(ids=st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_whatever_a_model_writes_is_shown_as_it_is_decoded(kind: str, ids: list[int]) -> None:
    tokenizer = learn(kind, LEARNED, 300)
    ids = [token % tokenizer.end_of_text for token in ids]
    model = Recited(ids, tokenizer.vocabulary_size)
    assert generate(model, tokenizer, "", len(ids), Config()) == tokenizer.decode(ids)


@every_kind
def test_a_character_comes_when_its_last_byte_does(kind: str) -> None:
    tokenizer = learn(kind, "ab", 300)  # none of what follows has an id of its own
    text = "a\U0010ffffb世é"
    pieces = list(stream(recite(text, tokenizer), tokenizer, "", 1000, Config()))
    assert [piece for piece in pieces if piece] == list(text)
    assert len(pieces) == len(tokenizer.encode(text)) + 1


@every_kind
def test_a_character_that_is_never_ended_shows_as_replacement(kind: str) -> None:
    tokenizer = learn(kind, "ab", 300)
    ids = tokenizer.encode("a世").tolist()
    assert generate(recite("a世", tokenizer), tokenizer, "", len(ids) - 1, Config()) == "a\ufffd"


def test_text_ends_where_the_model_ends_it(rhyme: EncodedCorpus) -> None:
    tokenizer = rhyme.tokenizer
    ids = [*tokenizer.encode("on the wall").tolist(), tokenizer.end_of_text, *tokenizer.encode(" and on").tolist()]
    model = Recited(ids, tokenizer.vocabulary_size)
    assert generate(model, tokenizer, "", 100, Config()) == "on the wall"
    assert list(tokens(model, [0], len(ids), Config())) == ids


@every_kind
@pytest.mark.parametrize("length", [1, 2, 7])
def test_length_is_in_tokens(kind: str, length: int) -> None:
    tokenizer = learn(kind, LEARNED, 300)
    text = "the mat, the cat sat on"
    written = generate(recite(text, tokenizer), tokenizer, "", length, Config())
    assert written == tokenizer.decode(tokenizer.encode(text)[:length])


@pytest.mark.parametrize("length", [0, -1])
def test_no_length_is_refused(length: int, rhyme: EncodedCorpus) -> None:
    with pytest.raises(ConfigError, match=f"length {length}: ask for at least one token"):
        generate(recite("on", rhyme.tokenizer), rhyme.tokenizer, "", length, Config())


@pytest.fixture(scope="module")
def write(rhyme: EncodedCorpus) -> Callable[..., str]:
    """Writes with an untrained model of that architecture."""

    def written(architecture: str, prompt: str = "on ", seed: int | None = 0, **decoding: Any) -> str:
        torch.manual_seed(0)
        config = Config(architecture=architecture, hidden_size=8, heads=2, sequence_length=8, **decoding)
        return generate(build(config, rhyme.tokenizer.vocabulary_size), rhyme.tokenizer, prompt, 40, config, seed)

    return written


@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru", "transformer"])
def test_the_same_seed_writes_the_same_text(architecture: str, write: Callable[..., str]) -> None:
    assert write(architecture) == write(architecture) != write(architecture, seed=1)
    assert write(architecture, seed=None) != write(architecture, seed=None)
    assert write(architecture, temperature=0.0, seed=None) == write(architecture, temperature=0.0, seed=None)
    assert write(architecture, top_k=1, seed=3) == write(architecture, temperature=0.0)
    for prompt in ("", "\U0001f469\u200d\U0001f680 世界", "on the wall" * 9):
        assert write(architecture, prompt)


def test_no_dropout_while_writing_and_a_seed_of_its_own(write: Callable[..., str]) -> None:
    assert write("lstm", dropout=0.9) == write("lstm", dropout=0.0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = build(Config(hidden_size=8), 5)
    torch.set_rng_state(state)
    list(tokens(model, [0], 20, Config(), seed=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_each_token_is_drawn_given_all_before_it(architecture: str) -> None:
    """Greedy text is what the most probable token after the whole text so far is, again and again."""
    torch.manual_seed(0)
    model = build(Config(architecture=architecture, hidden_size=16, heads=2, sequence_length=8), 9).eval()
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    text = [1, 2, 3]
    for token in tokens(model, text, 30, Config(temperature=0)):
        logits, _ = model(torch.tensor([text]), None)
        assert token == logits[0, -1].argmax()
        text = [*text, token]
