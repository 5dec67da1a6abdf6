"""How much memory a training takes, estimated without allocating it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.config import ARCHITECTURES, Config
from models.network import build

MOMENTS = {"adamw": 2, "adam": 2, "muon": 2, "rmsprop": 2, "sgd": 1}
"""Numbers an optimizer keeps for each weight, at most."""


def training_bytes(config: Config, vocabulary_size: int) -> int | None:
    """Returns an estimate of the bytes one training takes: weights, gradients, moments, and what a step keeps.

    The network is run once on torch's meta device, where tensors have a shape and no content; None for a
    generator of the user's own that looks at the content.
    """
    try:
        return _training_bytes(config, vocabulary_size)
    except Exception:
        if config.architecture in ARCHITECTURES:
            raise
        return None


def _training_bytes(config: Config, vocabulary_size: int) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # a storage's address may be used again once it is gone
        return tensor

    alive: list[Tensor] = []
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build(config, vocabulary_size)
        weights = {parameter.untyped_storage()._cdata: parameter for parameter in model.parameters()}
        tokens = torch.zeros(config.batch_size, config.sequence_length, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits, _ = model(tokens, None)
            functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    own = sum(parameter.untyped_storage().nbytes() for parameter in weights.values())
    activations = sum(size for storage, size in kept.items() if storage not in weights)
    return int(own * (2 + MOMENTS[config.optimizer]) + activations + logits.numel() * logits.element_size())
