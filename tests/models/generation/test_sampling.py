"""Drawing text: each way by its definition, whole characters only, and the same again for the same seed."""
# Where a library does the same, it is asked too: the `transformers` of Hugging Face.

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.config import Config
from models.errors import ConfigError
from models.generation.sampling import (
    BLANK,
    Decodings,
    GenerationOptions,
    beam_search,
    beam_tokens,
    generate,
    generate_batch,
    keep_probable,
    penalise,
    sample,
    stream,
    uniform_noise,
    write,
)
from models.nn.network import build
from models.text.corpus import EncodedCorpus
from models.text.tokenizers import Tokenizer, learn

PROBABILITIES = [0.02, 0.4, 0.08, 0.3, 0.2]
DRAWS = 20_000


def frequencies(probabilities: list[float], **decoding: Any) -> list[float]:
    """How often each of the tokens is drawn, of DRAWS times."""
    logits = torch.tensor(probabilities).log().expand(DRAWS, -1)
    drawn = sample(logits, Config(**decoding), uniform_noise(0, 1, DRAWS)[0])
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
        ({"min_p": 0.0}, PROBABILITIES),
        ({"min_p": 0.1}, [0, 0.4, 0.08, 0.3, 0.2]),
        ({"min_p": 0.45}, [0, 0.4, 0, 0.3, 0.2]),
        ({"min_p": 0.55}, [0, 0.4, 0, 0.3, 0]),
        ({"min_p": 1.0}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.5}, [0, 0.16, 0, 0.09, 0]),  # squared, the last has a quarter of the first
        ({"top_p": 0.41, "min_p": 0.9}, [0, 1, 0, 0, 0]),
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
    min_p=st.none() | st.floats(0, 1),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_what_may_be_drawn_is_drawn(
    logits: list[float], temperature: float, top_k: Any, top_p: Any, min_p: Any, uniform: float
) -> None:
    config = Config(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    (drawn,) = sample(torch.tensor([logits]), config, torch.tensor([uniform], dtype=torch.float64)).tolist()
    assert 0 <= drawn < len(logits)
    many = Decodings.of([config], 1, torch.device("cpu"))
    if temperature:  # greedy or nearly, equally probable ones are another's choice
        assert sample(torch.tensor([logits]), many, torch.tensor([uniform], dtype=torch.float64)).tolist() == [drawn]
    if temperature == 0 or top_k == 1:
        assert logits[drawn] == max(logits)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-6])
def test_no_temperature_is_too_low(temperature: float) -> None:
    assert_drawn(frequencies(PROBABILITIES, temperature=temperature), [0, 1, 0, 0, 0])


def test_a_temperature_of_zero_takes_the_most_probable() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [9.0, 3.0, 2.0]])
    for uniform in (0.0, 0.999999):
        assert sample(logits, Config(temperature=0), torch.full((2,), uniform).double()).tolist() == [1, 0]


def test_a_penalty_makes_what_was_seen_less_probable() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    seen = torch.tensor([[True, True, False]])
    assert penalise(logits, seen, 4.0).tolist() == [[0.5, -8.0, 1.0]]
    greedy = Config(temperature=0, repetition_penalty=4.0)
    assert sample(logits, greedy, torch.zeros(1), seen).tolist() == [2]


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_library_keeps_the_same(data: st.DataObject) -> None:
    from transformers.generation import (  # type: ignore[attr-defined]
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999))))
    ids = torch.zeros(3, 0, dtype=torch.int64)
    top_k, top_p, min_p = data.draw(st.integers(1, 12)), data.draw(st.floats(0.05, 0.99)), data.draw(st.floats(0, 1))
    assert torch.equal(keep_probable(logits, top_k, None), TopKLogitsWarper(top_k)(ids, logits))
    assert torch.equal(keep_probable(logits, None, top_p), TopPLogitsWarper(top_p)(ids, logits))
    assert torch.equal(keep_probable(logits, None, None, min_p), MinPLogitsWarper(min_p)(ids, logits))  # type: ignore[arg-type]
    told = torch.tensor([[1, 2], [3, 3], [0, 10]])
    seen = torch.zeros(3, 11, dtype=torch.bool).scatter(1, told, True)
    assert torch.equal(penalise(logits, seen, 1.7), RepetitionPenaltyLogitsProcessor(1.7)(told, logits))


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
    pieces = list(stream(model, tokenizer, prompt, GenerationOptions(1000, Config(), seed=0)))
    assert "".join(pieces) == text == generate(model, tokenizer, prompt, GenerationOptions(1000, Config(), seed=0))
    assert model.prompts == [tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text]] * 2


@every_kind
@given(ids=st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_whatever_a_model_writes_is_shown_as_it_is_decoded(kind: str, ids: list[int]) -> None:
    tokenizer = learn(kind, LEARNED, 300)
    ids = [token % tokenizer.end_of_text for token in ids]
    model = Recited(ids, tokenizer.vocabulary_size)
    assert generate(model, tokenizer, "", GenerationOptions(len(ids), Config())) == tokenizer.decode(ids)


@every_kind
def test_a_character_comes_when_its_last_byte_does(kind: str) -> None:
    tokenizer = learn(kind, "ab", 300)  # none of what follows has an id of its own
    text = "a\U0010ffffb世é"
    pieces = list(stream(recite(text, tokenizer), tokenizer, "", GenerationOptions(1000, Config())))
    assert [piece for piece in pieces if piece] == list(text)
    assert len(pieces) == len(tokenizer.encode(text)) + 1


@every_kind
def test_a_character_that_is_never_ended_shows_as_replacement(kind: str) -> None:
    tokenizer = learn(kind, "ab", 300)
    ids = tokenizer.encode("a世").tolist()
    assert generate(recite("a世", tokenizer), tokenizer, "", GenerationOptions(len(ids) - 1, Config())) == "a\ufffd"


def test_text_ends_where_the_model_ends_it(rhyme: EncodedCorpus) -> None:
    tokenizer = rhyme.tokenizer
    ids = [*tokenizer.encode("on the wall").tolist(), tokenizer.end_of_text, *tokenizer.encode(" and on").tolist()]
    model = Recited(ids, tokenizer.vocabulary_size)
    assert generate(model, tokenizer, "", GenerationOptions(100, Config())) == "on the wall"


@every_kind
@pytest.mark.parametrize("length", [1, 2, 7])
def test_length_is_in_tokens(kind: str, length: int) -> None:
    tokenizer = learn(kind, LEARNED, 300)
    text = "the mat, the cat sat on"
    written = generate(recite(text, tokenizer), tokenizer, "", GenerationOptions(length, Config()))
    assert written == tokenizer.decode(tokenizer.encode(text)[:length])


@pytest.mark.parametrize("length", [0, -1])
def test_no_length_is_refused(length: int, rhyme: EncodedCorpus) -> None:
    with pytest.raises(ConfigError, match=f"length {length}: ask for at least one token"):
        generate(recite("on", rhyme.tokenizer), rhyme.tokenizer, "", GenerationOptions(length, Config()))


@pytest.fixture(scope="module")
def writing(rhyme: EncodedCorpus) -> Callable[..., str]:
    """Writes with an untrained model of that architecture."""

    def written(architecture: str, prompt: str = "on ", seed: int | None = 0, **decoding: Any) -> str:
        torch.manual_seed(0)
        config = Config(architecture=architecture, hidden_size=8, heads=2, sequence_length=8, **decoding)
        return generate(
            build(config, rhyme.tokenizer.vocabulary_size), rhyme.tokenizer, prompt, GenerationOptions(40, config, seed)
        )

    return written


@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru", "transformer"])
def test_the_same_seed_writes_the_same_text(architecture: str, writing: Callable[..., str]) -> None:
    assert writing(architecture) == writing(architecture) != writing(architecture, seed=1)
    assert writing(architecture, seed=None) != writing(architecture, seed=None)
    assert writing(architecture, temperature=0.0, seed=None) == writing(architecture, temperature=0.0, seed=None)
    assert writing(architecture, top_k=1, seed=3) == writing(architecture, temperature=0.0)
    for prompt in ("", "\U0001f469\u200d\U0001f680 世界", "on the wall" * 9):
        assert writing(architecture, prompt)


def test_no_dropout_while_writing_and_a_seed_of_its_own(writing: Callable[..., str]) -> None:
    assert writing("lstm", dropout=0.9) == writing("lstm", dropout=0.0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = build(Config(hidden_size=8), 21)
    torch.set_rng_state(state)
    list(stream(model, learn("character", "abcd", 300), "a", GenerationOptions(20, Config(), seed=1)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_each_token_is_drawn_given_all_before_it(architecture: str) -> None:
    """Greedy text is what the most probable token after the whole text so far is, again and again."""
    torch.manual_seed(0)
    model = build(Config(architecture=architecture, hidden_size=16, heads=2, sequence_length=8), 9).eval()
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    text = [1, 2, 3]
    for token in written(model, text, 30, Config(temperature=0)):
        logits, _ = model(torch.tensor([text]), None)
        assert token == logits[0, -1].argmax()
        text = [*text, token]


def written(model: nn.Module, prompt: list[int], length: int, config: Config) -> list[int]:
    told = torch.tensor([prompt + [BLANK] * length])
    columns = list(write(model, told, torch.tensor([len(prompt)]), uniform_noise(0, 1, length), config))
    assert [int(column) for column in columns[: len(prompt)]] == prompt
    return [int(column) for column in columns[len(prompt) :]]


# Many texts at once.

PROMPTS = ["on the", "", "the wall on the wall, the wall", "n", "世 on"]


@pytest.fixture(scope="module")
def models(rhyme: EncodedCorpus) -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {}
    for architecture in ("rnn", "lstm", "gru", "transformer"):
        torch.manual_seed(1)
        config = Config(architecture=architecture, hidden_size=16, heads=2, sequence_length=8, layers=2)
        made[architecture] = build(config, rhyme.tokenizer.vocabulary_size).eval()
        for parameter in made[architecture].parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru", "transformer"])
@pytest.mark.parametrize(
    "decoding", [{"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}, {"repetition_penalty": 1.5, "top_k": 5}]
)
def test_prompts_of_any_lengths_are_gone_on_with_together_as_alone(
    architecture: str, decoding: dict[str, Any], models: dict[str, nn.Module], rhyme: EncodedCorpus
) -> None:
    model, config = models[architecture], Config(**decoding)
    together = generate_batch(model, rhyme.tokenizer, PROMPTS, GenerationOptions(40, config, seed=4))
    assert together[0] == generate(model, rhyme.tokenizer, PROMPTS[0], GenerationOptions(40, config, seed=4))
    for prompt, text in zip(PROMPTS, together, strict=True):
        if config.temperature == 0:
            assert text == generate(model, rhyme.tokenizer, prompt, GenerationOptions(40, config))
    for rows in (PROMPTS[:2], PROMPTS[:4]):  # a text does not depend on those after it
        assert (
            generate_batch(model, rhyme.tokenizer, rows, GenerationOptions(40, config, seed=4)) == together[: len(rows)]
        )
    assert generate_batch(model, rhyme.tokenizer, [], GenerationOptions(40, config)) == []


def test_a_batch_ends_when_all_of_it_has(rhyme: EncodedCorpus) -> None:
    class Ending(Recited):
        def forward(self, given: Tensor, state: int | None = None) -> tuple[Tensor, int]:
            logits, place = super().forward(given, state)
            self.last = place
            return logits.expand(len(given), -1, -1), place

    tokenizer = rhyme.tokenizer
    model = Ending([*tokenizer.encode("on").tolist(), tokenizer.end_of_text], tokenizer.vocabulary_size)
    assert generate_batch(model, tokenizer, ["n", "n"], GenerationOptions(10_000, Config())) == ["on", "on"]
    assert model.last < 100


def test_each_text_of_a_batch_has_its_own_decoding(models: dict[str, nn.Module]) -> None:
    configs = [Config(temperature=0.0), Config(temperature=0.7, top_k=3), Config(min_p=0.3, repetition_penalty=1.3)]
    hows = Decodings.of(configs, 1, torch.device("cpu"))
    told = torch.tensor([[1, 2] + [BLANK] * 30] * 3)
    numbers = uniform_noise(0, 1, 30)
    together = torch.stack(list(write(models["gru"], told, torch.tensor([2] * 3), numbers.repeat(3, 1), hows)), 1)
    for row, config in zip(together.tolist(), configs, strict=True):
        assert row[2:] == written(models["gru"], [1, 2], 30, config)


# Stop strings.


@every_kind
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["mat"], "the cat sat on the "),
        (["the cat sat on the mat, "], ""),
        (["nowhere"], None),
        (["mat, th", "sat"], "the cat "),
        (["x" * 500], None),
        (["the mat.x", "at, the mat"], "the cat sat on the m"),
    ],
)
def test_text_ends_before_a_stop_string(kind: str, stop: list[str], expected: str | None) -> None:
    tokenizer = learn(kind, LEARNED, 300)
    text = "the cat sat on the mat, the mat. naïve"
    pieces = list(stream(recite(text, tokenizer), tokenizer, "", GenerationOptions(1000, Config(), stop=stop)))
    assert "".join(pieces) == (text if expected is None else expected)


@given(text=st.text("ab", max_size=12), stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@settings(deadline=None)
def test_no_stop_string_is_ever_shown(text: str, stop: list[str]) -> None:
    tokenizer = learn("character", "ab", 300)
    shown = "".join(stream(recite(text, tokenizer), tokenizer, "", GenerationOptions(100, Config(), stop=stop)))
    first = min((text.find(one) + len(one) for one in stop if one in text), default=len(text))  # complete first
    begun = [text.find(one) for one in stop if one in text[:first]]
    assert shown == text[: min(begun, default=len(text))]


@pytest.mark.parametrize("stop", [[""], "the"])
def test_what_is_no_list_of_stop_strings_is_refused(stop: Any, rhyme: EncodedCorpus) -> None:
    with pytest.raises(ConfigError, match="stop: give a list of strings, none of them empty"):
        stream(recite("on", rhyme.tokenizer), rhyme.tokenizer, "", GenerationOptions(9, Config(), stop=stop))


# Beams.


def log_probability(model: nn.Module, prompt: list[int], text: list[int]) -> float:
    with torch.no_grad():
        logits, _ = model(torch.tensor([prompt + text]), None)
    following = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(following.gather(1, torch.tensor(text)[:, None]).sum())


@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru", "transformer"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_enough_beams_find_the_best_of_all_texts(architecture: str, penalty: float) -> None:
    torch.manual_seed(3)
    vocabulary, length, end = 4, 4, 3
    model = build(Config(architecture=architecture, hidden_size=8, heads=2, sequence_length=4), vocabulary).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter)
    texts = []
    for tokens in itertools.product(range(vocabulary), repeat=length):
        cut = list(tokens[: tokens.index(end) + 1]) if end in tokens else list(tokens)
        texts.append(cut)
    prompt = [0, 1]
    best = max(texts, key=lambda text: log_probability(model, prompt, text) / len(text) ** penalty)
    assert beam_tokens(model, prompt, length, vocabulary**length, penalty, end) == best


def test_one_beam_is_greedy(models: dict[str, nn.Module], rhyme: EncodedCorpus) -> None:
    for model in models.values():
        for penalty in (1.0, 1.4):
            config = Config(temperature=0.0, repetition_penalty=penalty)
            greedy = generate(model, rhyme.tokenizer, "on", GenerationOptions(20, config))
            if len(rhyme.tokenizer.encode(greedy)) == 20:  # one that ends is compared with nothing else
                assert beam_search(model, rhyme.tokenizer, "on", GenerationOptions(20, config), beams=1) == greedy


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.5])
def test_a_library_finds_the_same_with_beams(penalty: float) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    settings = GPT2Config(vocab_size=17, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    library = GPT2LMHeadModel(settings).eval()

    class Ours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.library = library

        def forward(self, tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            read = tokens if state is None else torch.cat([state, tokens], 1)
            return library(read, use_cache=False).logits[:, -tokens.size(1) :], read

    for first in range(8):
        found = library.generate(
            torch.tensor([[first, 5]]), num_beams=4, max_new_tokens=12, do_sample=False, length_penalty=penalty,
            eos_token_id=16, pad_token_id=16, early_stopping="never",
        )  # fmt: skip
        theirs = found[0, 2:].tolist()
        ours = beam_tokens(Ours(), [first, 5], 12, 4, penalty, 16)
        assert ours == theirs


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_beams_follow_a_state_of_any_shape(layers: int) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 4, layers)
            nn.init.normal_(self.gru.weight_hh_l0, std=2)  # type: ignore[arg-type]

        def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
            state, count = state or (None, torch.zeros(3))
            out, state = self.gru(nn.functional.one_hot(tokens.t(), 4).float(), state)
            return 3 * out.transpose(0, 1), (state, count + 1)

    torch.manual_seed(0)
    model = Own()
    texts = [list(tokens) for tokens in itertools.product(range(4), repeat=4)]
    best = max(texts, key=lambda text: log_probability(model, [0], text))
    assert beam_tokens(model, [0], 4, 256, 0.0, end=99) == best


def test_no_beams_are_refused(rhyme: EncodedCorpus) -> None:
    with pytest.raises(ConfigError, match="beams 0: follow at least one"):
        beam_search(recite("on", rhyme.tokenizer), rhyme.tokenizer, "", GenerationOptions(3, Config()), beams=0)


# Generators without a state.

SEEN = 5


class Mixture(nn.Module):
    """Weighs all tokens that it is given, which must not be more than SEEN, and remembers nothing."""

    def __init__(self, carries_state: bool, vocabulary: int = 4) -> None:
        super().__init__()
        self.carries_state = carries_state
        self.table = nn.Parameter(2 * torch.randn(SEEN, vocabulary, vocabulary))

    def forward(self, tokens: Tensor, state: None = None) -> tuple[Tensor, None]:
        assert state is None
        assert self.carries_state or tokens.size(1) <= SEEN
        padded = nn.functional.pad(tokens, (SEEN - 1, 0), value=-1).unfold(1, SEEN, 1)
        weighed = [
            table[told] * (told >= 0)[..., None] for table, told in zip(self.table, padded.unbind(-1), strict=True)
        ]
        return torch.stack(weighed).sum(0), None


def mixture(carries_state: bool, vocabulary: int = 4) -> Mixture:
    torch.manual_seed(5)
    return Mixture(carries_state, vocabulary).eval().requires_grad_(False)


@pytest.mark.parametrize("carries_state", [False, True])
@pytest.mark.parametrize("prompt", [[1], [1, 2, 3, 0], [0, 3, 1, 1, 2, 0, 3, 2, 1, 2, 3]])
def test_a_generator_without_a_state_is_given_its_last_tokens_at_each_step(
    carries_state: bool, prompt: list[int]
) -> None:
    model, text = mixture(carries_state), list(prompt)
    for token in written(model, prompt, 30, Config(temperature=0, sequence_length=SEEN)):
        logits, _ = model(torch.tensor([text[-SEEN:]]))
        assert token == logits[0, -1].argmax()
        text.append(token)


def test_texts_without_a_state_are_written_together_as_alone(rhyme: EncodedCorpus) -> None:
    model = mixture(False, rhyme.tokenizer.vocabulary_size)
    config = Config(temperature=0, sequence_length=SEEN)
    together = generate_batch(model, rhyme.tokenizer, PROMPTS, GenerationOptions(40, config))
    assert together == [generate(model, rhyme.tokenizer, prompt, GenerationOptions(40, config)) for prompt in PROMPTS]


@pytest.mark.parametrize("prompt", [[0], [2, 0, 1, 3, 1, 0, 2]])
def test_beams_find_the_best_text_without_a_state(prompt: list[int]) -> None:
    model = mixture(False)

    def score(text: tuple[int, ...]) -> float:
        told = [*prompt, *text]
        places = range(len(prompt), len(told))
        following = [model(torch.tensor([told[max(0, place - SEEN) : place]]))[0][0, -1] for place in places]
        return float(sum(one.log_softmax(-1)[token] for one, token in zip(following, text, strict=True)))

    best = max(itertools.product(range(4), repeat=4), key=score)
    assert beam_tokens(model, prompt, 4, 256, 0.0, end=99, window=SEEN) == list(best)
