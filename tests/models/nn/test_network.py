"""Generators: what goes in and comes out, that none sees the future, and that memory is as good as reading again."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from models.config import Config
from models.errors import ConfigError
from models.nn.network import build, build_shapes, parameter_count
from models.training.checkpoint import flat

V = 11
KINDS: dict[str, dict[str, Any]] = {
    "rnn": {"architecture": "rnn"},
    "lstm": {"architecture": "lstm"},
    "gru": {"architecture": "gru"},
    "deep rnn": {"architecture": "rnn", "layers": 3},
    "tied lstm": {"architecture": "lstm", "tied_embeddings": True},
    "deep, tied, narrow lstm": {"architecture": "lstm", "layers": 2, "tied_embeddings": True, "embedding_size": 6},
    "wide gru": {"architecture": "gru", "layers": 2, "embedding_size": 24},
    "rotary": {"architecture": "transformer"},
    "sinusoidal": {"architecture": "transformer", "positions": "sinusoidal"},
    "tied rotary": {"architecture": "transformer", "tied_embeddings": True},
    "deep, tied, narrow rotary": {
        "architecture": "transformer",
        "layers": 3,
        "tied_embeddings": True,
        "embedding_size": 6,
    },
    "deep, wide sinusoidal": {
        "architecture": "transformer",
        "positions": "sinusoidal",
        "layers": 2,
        "embedding_size": 24,
    },
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_transformer = pytest.mark.parametrize("kind", ["rotary", "sinusoidal", "deep, tied, narrow rotary"])
texts = st.lists(st.integers(0, V - 1), min_size=2, max_size=40)


def settings_of(kind: str, **more: Any) -> Config:
    return Config(**{"hidden_size": 16, "heads": 2, "sequence_length": 8} | KINDS[kind] | more)


def model_of(kind: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build(settings_of(kind, **more), V).eval()
    for parameter in model.parameters():  # far from the cautious start: what goes in makes a large difference
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def weights_of(kind: str, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build(settings_of(kind), V).state_dict()


def random_text(rows: int, length: int) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read(model: nn.Module, tokens: Tensor, chunks: list[int] | None = None) -> Tensor:
    """The logits of a text read in chunks, each with the state that the one before left."""
    logits, state = [], None
    for chunk in torch.split(tokens, chunks or [tokens.size(1)], dim=1):
        part, state = model(chunk, state)
        logits.append(part)
    return torch.cat(logits, dim=1)


@every_kind
def test_tokens_go_in_and_logits_come_out(kind: str) -> None:
    model = model_of(kind)
    logits, state = model(random_text(3, 5), None)
    assert logits.shape == (3, 5, V)
    assert logits.dtype == torch.float32
    assert model(random_text(3, 2), state)[0].shape == (3, 2, V)
    assert flat(state)
    assert torch.equal(model(random_text(3, 5))[0], logits)


@every_kind
def test_rows_know_nothing_of_each_other(kind: str) -> None:
    model, tokens = model_of(kind), random_text(3, 20)
    for row in range(3):
        assert torch.allclose(read(model, tokens)[row], read(model, tokens[row : row + 1])[0], atol=1e-5)


@every_kind
@given(text=texts, other=st.integers(0, V - 1), data=st.data())
@settings(max_examples=15, deadline=None)
def test_no_token_changes_what_was_predicted_before_it(kind: str, text: list[int], other: int, data: Any) -> None:
    model, place = model_of(kind), data.draw(st.integers(0, len(text) - 1))
    changed = [*text[:place], other, *text[place + 1 :]]
    before, after = (read(model, torch.tensor([tokens]))[0, :place] for tokens in (text, changed))
    assert torch.equal(before, after)


@every_kind
def test_what_was_read_matters_and_so_does_its_order(kind: str) -> None:
    model, tokens = model_of(kind), torch.tensor([[1, 2, 3, 4, 5]])
    for other in ([[7, 2, 3, 4, 5]], [[2, 1, 3, 4, 5]], [[1, 2, 4, 3, 5]]):
        assert (read(model, tokens)[0, -1] - read(model, torch.tensor(other))[0, -1]).abs().max() > 1e-3


@every_kind
@given(chunks=st.lists(st.integers(1, 21), min_size=1, max_size=12), window=st.sampled_from([1, 2, 3, 5, 8]))
@settings(max_examples=15, deadline=None)
def test_a_text_read_in_pieces_is_the_same_text(kind: str, chunks: list[int], window: int) -> None:
    model, tokens = model_of(kind, sequence_length=window), random_text(2, sum(chunks))
    assert torch.allclose(read(model, tokens), read(model, tokens, chunks), atol=1e-4)


@every_kind
@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_a_text_read_token_by_token_is_the_same_text(kind: str, window: int) -> None:
    model, tokens = model_of(kind, sequence_length=window), random_text(2, 50)
    assert torch.allclose(read(model, tokens), read(model, tokens, [1] * 50), atol=1e-4)


@every_transformer
@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_a_full_window_goes_on_with_its_last_half(kind: str, window: int) -> None:
    model, tokens = model_of(kind, sequence_length=window), random_text(1, 30)
    logits = read(model, tokens)
    for place in range(30):
        moved = max(0, -(-(place + 1 - window) // (window - window // 2)))
        start = moved * (window - window // 2)
        assert place + 1 - start <= window
        expected = read(model, tokens[:, start : place + 1])[0, -1]
        assert torch.allclose(logits[0, place], expected, atol=1e-4)


@every_transformer
def test_a_state_can_be_gone_on_from_twice(kind: str) -> None:
    model, tokens = model_of(kind), random_text(1, 12)
    with torch.no_grad():
        _, state = model(tokens, None)
        first = model(tokens[:, :3], state)[0]
        model(tokens[:, 3:], state)
        assert torch.equal(model(tokens[:, :3], state)[0], first)


@every_kind
def test_an_untrained_generator_guesses_no_worse_than_chance(kind: str) -> None:
    torch.manual_seed(0)
    model = build(settings_of(kind, hidden_size=64), V).eval()
    tokens = random_text(32, 9)
    loss = functional.cross_entropy(model(tokens[:, :-1], None)[0].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss < math.log(V) + 0.3


@pytest.mark.parametrize("size", [32, 256, 1024])
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_a_tied_transformer_of_any_width_starts_as_one_that_knows_nothing(positions: Any, size: int) -> None:
    torch.manual_seed(0)
    config = Config(architecture="transformer", positions=positions, hidden_size=size, tied_embeddings=True)
    tokens = torch.randint(100, (4, 65))
    with torch.no_grad():
        logits = build(config, 100)(tokens[:, :-1])[0]
    assert abs(functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) - math.log(100)) < 0.25


@pytest.mark.parametrize("embedding_size", [None, 32, 128, 300])
def test_a_token_weighs_as_much_as_the_sines_of_its_place(embedding_size: int | None) -> None:
    torch.manual_seed(0)
    config = Config(architecture="transformer", positions="sinusoidal", hidden_size=128, embedding_size=embedding_size)
    model = build(config, 100)
    token = model.embedding_proj(model.embedding(torch.arange(100))) * math.sqrt(128)  # type: ignore[operator]
    assert 0.5**0.5 < token.pow(2).mean().sqrt() < 1.3


@every_kind
def test_the_same_seed_gives_the_same_weights(kind: str) -> None:
    first, again, other = (weights_of(kind, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@every_kind
def test_dropout_is_for_training_alone(kind: str) -> None:
    model, tokens = model_of(kind, dropout=0.5), random_text(2, 8)
    assert torch.equal(model(tokens, None)[0], model(tokens, None)[0])
    model.train()
    assert not torch.equal(model(tokens, None)[0], model(tokens, None)[0])


@every_kind
@pytest.mark.parametrize("place", ["embedding_dropout", "layer_dropout", "output_dropout"])
def test_each_place_may_have_a_dropout_of_its_own(kind: str, place: str) -> None:
    none = {"embedding_dropout": 0.0, "layer_dropout": 0.0, "output_dropout": 0.0}
    still, lively = (model_of(kind, dropout=0.5, layers=2, **none | {place: rate}).train() for rate in (0.0, 0.5))
    tokens = random_text(2, 8)
    assert torch.equal(still(tokens, None)[0], still(tokens, None)[0])
    assert not torch.equal(lively(tokens, None)[0], lively(tokens, None)[0])


@every_kind
def test_the_parameter_count_is_the_real_one(kind: str) -> None:
    model = build(settings_of(kind), V)
    assert parameter_count(settings_of(kind), V) == sum(parameter.numel() for parameter in model.parameters())
    shapes = {name: tensor.shape for name, tensor in build_shapes(settings_of(kind), V).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}


@every_kind
def test_tied_embeddings_are_counted_once(kind: str) -> None:
    width = settings_of(kind).embedding_size or 16
    tied, untied = (parameter_count(settings_of(kind, tied_embeddings=tied), V) for tied in (True, False))
    way_to_the_embedding = 16 * width if width != 16 else 0
    assert tied - way_to_the_embedding == untied - V * 16


def test_parameters_are_counted_where_there_is_no_room_for_them() -> None:
    c, large = 65536, 100_000
    lstm = Config(architecture="lstm", hidden_size=c, layers=4)
    assert parameter_count(lstm, large) == 2 * large * c + large + 4 * 4 * (2 * c * c + 2 * c)
    transformer = Config(architecture="transformer", hidden_size=c, layers=8, heads=512)
    assert parameter_count(transformer, large) == 2 * large * c + large + 8 * (12 * c * c + 4 * c) + 2 * c


OWN = """
from torch import nn

class Last(nn.Module):
    def __init__(self, config, vocabulary_size):
        super().__init__()
        self.logits = nn.Embedding(vocabulary_size, vocabulary_size)

    def forward(self, tokens, state=None):
        return self.logits(tokens), None

def function(config, vocabulary_size):
    return Last(config, vocabulary_size)
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # undoes, at the end, what build adds
    name = f"own_{tmp_path.name}"
    Path(f"{name}.py").write_text(OWN, encoding="utf-8")
    return name


def test_a_generator_of_ones_own_is_found_where_its_user_stands(own_module: str) -> None:
    config = Config(architecture=f"{own_module}:Last")
    assert type(build(config, V)).__name__ == "Last"
    assert build(config, V)(random_text(2, 3))[0].shape == (2, 3, V)
    assert parameter_count(config, V) == V * V


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:Last", "No module named 'nowhere_at_all'; looked in /"),
        ("{own}:First", "has no attribute 'First'"),
        ("{own}:function", "not a class derived from torch.nn.Module"),
        ("pathlib:Path", "not a class derived from torch.nn.Module"),
    ],
)
def test_what_is_no_generator_is_refused(name: str, message: str, own_module: str) -> None:
    name = name.format(own=own_module)
    with pytest.raises(ConfigError, match=f"architecture {name}: .*{message}"):
        build(Config(architecture=name), V)
