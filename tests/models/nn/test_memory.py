"""Estimates of memory are what a step really keeps, for long contexts and in half precision, too."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.config import Config
from models.nn.memory import training_bytes
from models.nn.network import build
from models.nn.precision import half_precision, set_recurrences

CPU = torch.device("cpu")
V = 50


def config_of(architecture: str, **given: Any) -> Config:
    shape: dict[str, Any] = {"hidden_size": 32, "heads": 4, "batch_size": 2, "layers": 2, "optimizer": "adamw"}
    return Config(architecture=architecture, **shape | given)


def kept(config: Config) -> int:
    """The bytes that a real step keeps, its weights, their gradients and moments included."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    model, half = build(config, V), half_precision(config, CPU)
    set_recurrences(model, CPU, half)
    tokens = torch.zeros(config.batch_size, config.sequence_length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=half):
        logits, _ = model(tokens, None)
        functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    weights = {parameter.untyped_storage()._cdata: parameter.nbytes for parameter in model.parameters()}
    activations = sum(size for storage, size in sizes.items() if storage not in weights)
    return 4 * sum(weights.values()) + activations + logits.nbytes


@pytest.mark.parametrize("length", [256, 512, 1024, 2048])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru", "transformer"])
def test_an_estimate_is_what_a_step_keeps(architecture: str, precision: str, length: int) -> None:
    config = config_of(architecture, precision=precision, sequence_length=length)
    assert training_bytes(config, V) == pytest.approx(kept(config), rel=0.15)


@pytest.mark.parametrize("given", [{"dropout": 0.1}, {"tied_embeddings": True}, {"positions": "sinusoidal"}])
def test_an_estimate_knows_what_changes_attention(given: dict[str, Any]) -> None:
    config = config_of("transformer", sequence_length=300, precision="bfloat16", **given)
    assert training_bytes(config, V) == pytest.approx(kept(config), rel=0.05)


@pytest.mark.parametrize("given", [{}, {"dropout": 0.1}, {"precision": "bfloat16"}])
@pytest.mark.parametrize("architecture", ["rnn", "lstm", "gru", "transformer"])
def test_on_a_gpu_memory_grows_with_the_number_of_tokens_and_not_with_its_square(
    architecture: str, given: dict[str, Any]
) -> None:
    needed = [
        training_bytes(config_of(architecture, sequence_length=length, **{"precision": "float32"} | given), V, "cuda")
        for length in (512, 1024, 2048)
    ]
    first, second, third = (each for each in needed if each is not None)
    assert third - second == pytest.approx(2 * (second - first), rel=0.01)


def test_the_largest_training_is_estimated_in_no_time() -> None:
    needed = training_bytes(config_of("gru", sequence_length=1_048_576, hidden_size=4096, batch_size=4096), V)
    assert needed is not None
    assert needed > 2**40
