"""Recurrences, attention and dropout of our own do what torch's do, but for rounding."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from models.config import Budget, Config
from models.nn import precision
from models.nn.dropout import Dropout, dropped
from models.nn.network import build, causal_attention
from models.nn.precision import MIXED, half_precision, set_recurrences
from models.nn.recurrence import implementation, is_unrolled, layer_by_layer, unroll
from models.text.corpus import EncodedCorpus
from models.training.loop import train

HALF = torch.autocast("cpu", torch.bfloat16)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def gradients(module: nn.Module, inputs: Tensor, start: Tensor, results: tuple[Tensor, Tensor]) -> list[Tensor]:
    outputs, end = results
    loss = outputs.float().pow(2).sum() + end.float().sin().sum()
    return list(torch.autograd.grad(loss, [*module.parameters(), inputs, start]))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_a_recurrence_is_torchs_but_for_rounding(kind: Any, layers: int) -> None:
    torch.manual_seed(1)
    module = kind(24, 32, layers)
    inputs = torch.randn(10, 4, 24, requires_grad=True)
    start = torch.randn(layers, 4, 32, requires_grad=True)
    plain = module(inputs, start)
    with HALF:
        assert is_unrolled(module, inputs)
        ours = unroll(module, inputs, start)
    assert [each.shape for each in ours] == [each.shape for each in plain]
    pairs = [*zip(ours, plain, strict=True)]
    pairs += zip(gradients(module, inputs, start, ours), gradients(module, inputs, start, plain), strict=True)
    for mine, theirs in pairs:
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_layer_by_layer_a_recurrence_is_torchs(kind: Any) -> None:
    """As on a GPU, where it keeps cuDNN from drawing dropout that no checkpoint holds."""
    torch.manual_seed(1)
    module = kind(6, 8, 3)
    inputs = torch.randn(5, 2, 6)
    for state in (None, module(inputs)[1]):
        (outputs, end), (theirs, last) = layer_by_layer(module, inputs, state), module(inputs, state)
        torch.testing.assert_close(outputs, theirs)
        torch.testing.assert_close(end, last)
    module.dropout = 0.5
    drawn = []
    for _ in range(2):
        torch.manual_seed(2)
        drawn.append(layer_by_layer(module, inputs, None)[0])
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], layer_by_layer(module, inputs, None)[0])
    assert implementation(module, inputs) is module


def test_a_recurrence_goes_on_where_it_was() -> None:
    module = nn.GRU(8, 16, 2)
    inputs = torch.randn(12, 3, 8)
    with HALF, torch.no_grad():
        whole, end = unroll(module, inputs, None)
        first, state = unroll(module, inputs[:5], None)
        second, last = unroll(module, inputs[5:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(last, end)


@pytest.mark.parametrize("module", [nn.LSTM(4, 4), nn.RNN(4, 4, nonlinearity="relu")])
def test_other_recurrences_are_left_to_torch(module: nn.RNNBase) -> None:
    with HALF:
        assert not is_unrolled(module, torch.zeros(1, 1, 4))
    assert not is_unrolled(nn.GRU(4, 4), torch.zeros(1, 1, 4))


def test_attention_is_torchs_but_for_rounding() -> None:
    queries, keys, values = torch.randn(3, 2, 4, 20, 8, dtype=torch.bfloat16).unbind()
    exact = functional.scaled_dot_product_attention(queries.float(), keys.float(), values.float(), is_causal=True)
    assert torch.allclose(causal_attention(queries, keys, values, 0.0).float(), exact, atol=0.03)


def test_a_transformer_sees_nothing_ahead_in_half_precision() -> None:
    model = build(Config(architecture="transformer", hidden_size=16, heads=2, sequence_length=12), 20)
    tokens = torch.randint(20, (1, 12))
    changed = torch.cat([tokens[:, :8], (tokens[:, 8:] + 1) % 20], dim=1)
    with HALF:
        assert torch.equal(model(tokens)[0][:, :8], model(changed)[0][:, :8])


@given(probability=st.floats(0, 0.999), size=st.integers(0, 9))
def test_dropout_keeps_or_drops(probability: float, size: int) -> None:
    values = torch.arange(1.0, size + 1)
    kept = dropped(values, probability)
    grown = kept[kept != 0] / values[kept != 0]
    assert torch.allclose(grown, torch.tensor(1 / (1 - probability)), rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_as_many_as_it_should(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    kept = dropped(torch.ones(400, 500, dtype=dtype), 0.3)
    assert (kept == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert kept.float().mean().item() == pytest.approx(1, abs=0.02)
    columns = (kept == 0).float().mean(0)
    assert columns.std().item() == pytest.approx((0.3 * 0.7 / 400) ** 0.5, rel=0.2)  # as if each were drawn alone


def test_dropout_repeats_with_its_seed_and_rests_in_evaluation() -> None:
    layer, values = Dropout(0.5), torch.ones(7, 3)
    torch.manual_seed(3)
    first = layer(values)
    torch.manual_seed(3)
    assert torch.equal(layer(values), first)
    assert torch.equal(layer.eval()(values), values)


@pytest.mark.parametrize(
    ("able", "architecture", "hidden_size", "half"),
    [
        ({"avx512_bf16": True}, "lstm", 16, True),
        ({"amx_bf16": True}, "transformer", 16, True),
        ({"avx512_bf16": True}, "gru", 64, False),
        ({"avx512_bf16": True}, "rnn", 128, True),
        ({"avx512_bf16": True}, "own:Generator", 256, False),
        ({"avx2": True}, "lstm", 256, False),
        ({}, "transformer", 256, False),
    ],
)
def test_auto_is_half_precision_where_that_is_faster(
    able: dict[str, bool], architecture: str, hidden_size: int, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    config = Config(architecture=architecture, hidden_size=hidden_size)
    assert half_precision(config, CPU) is half
    assert not half_precision(config.model_copy(update={"precision": "float32"}), CPU)
    assert half_precision(config.model_copy(update={"precision": "bfloat16"}), CPU)


class Cudnn(nn.LSTM):
    """Does what cuDNN's recurrences do: with autocast, of whatever format, they compute in float16."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        assert not torch.is_autocast_enabled("cpu")
        assert {input.dtype, *(part.dtype for part in hx or ())} == {torch.float32}
        return super().forward(input, hx)


class Own(nn.Module):
    """A generator of one's own with a recurrence in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.recurrence, self.logits = (
            nn.Embedding(20, 8),
            Cudnn(8, 8, batch_first=True),
            nn.Linear(8, 20),
        )

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.recurrence(input=self.embedding(tokens), hx=state)
        return self.logits(hidden), state


def test_recurrences_on_a_gpu_are_not_in_float16_and_what_is_written_down_is_true() -> None:
    model = Own()
    assert set_recurrences(model, CUDA, half=True) == MIXED
    with HALF:
        logits, state = model(torch.zeros(2, 3, dtype=torch.int64))
        logits, state = model(torch.zeros(2, 3, dtype=torch.int64), tuple(part.half() for part in state))
    assert (logits.dtype, state[0].dtype) == (torch.bfloat16, torch.float32)
    assert set_recurrences(Own(), CUDA, half=False) == "float32"
    assert set_recurrences(nn.Linear(2, 2), CUDA, half=True) == "bfloat16"


@pytest.mark.parametrize(
    ("major", "architecture", "half"),
    [(9, "transformer", True), (9, "own:Generator", True), (9, "lstm", False), (7, "transformer", False)],
)
def test_auto_on_a_gpu_is_the_format_that_it_has_and_its_recurrences_take(
    major: int, architecture: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or major >= 8
    )
    assert half_precision(Config(architecture=architecture), CUDA) is half


def test_an_lstm_trains_in_bfloat16_on_a_processor_that_cannot_step_it_so(
    rhyme: EncodedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_lstm_takes_halves", lambda: False)
    forward = nn.LSTM.forward

    def refuse(self: nn.LSTM, *arguments: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor for the LSTM forward propagation primitive")
        return forward(self, *arguments)

    monkeypatch.setattr(nn.LSTM, "forward", refuse)
    config = Config(hidden_size=24, batch_size=8, sequence_length=16, precision="bfloat16", layers=2, dropout=0.1)
    trained = train(config, rhyme, Budget(tokens=20 * 8 * 16, rungs=2))
    assert trained.precision == MIXED
    assert trained.best.bits_per_byte < trained.evaluations[0].bits_per_byte


@pytest.mark.parametrize("given", [{}, {"architecture": "gru"}, {"precision": "float32"}])
def test_the_format_that_was_trained_in_is_said(rhyme: EncodedCorpus, given: dict[str, Any]) -> None:
    shape: dict[str, Any] = {"hidden_size": 8, "batch_size": 8, "sequence_length": 16, "precision": "bfloat16"}
    config = Config(**shape | given)
    said = train(config, rhyme, Budget(tokens=4 * 8 * 16, rungs=2)).precision
    expected = "bfloat16" if config.architecture == "gru" or precision._lstm_takes_halves() else MIXED
    assert said == ("float32" if given == {"precision": "float32"} else expected)
