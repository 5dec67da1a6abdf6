"""Estimates the memory of a training without allocating it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.config import ARCHITECTURES, Config
from models.nn.network import Attention, build
from models.nn.precision import half_precision, set_recurrences, steps_in_halves

MOMENTS = {"adamw": 2, "adam": 2, "muon": 2, "rmsprop": 2, "sgd": 1}
"""Numbers an optimizer keeps for each weight, at most."""

SHORT = 8
"""Tokens that recurrences are looked at; what each further one takes is what these take more than half of them."""

LSTM_WORKSPACE, LSTM_WORKSPACE_IN_HALVES, LSTM_WORKSPACE_ON_A_GPU, GRU_WORKSPACE_ON_A_GPU = 64, 43, 37, 11
"""Bytes that oneDNN and cuDNN keep for each token and unit, out of sight, measured with large recurrences."""

CUBLAS_WORKSPACES = 3 * 32 * 2**20
"""Bytes that cuBLAS keeps on a Hopper GPU for steps, their way back, and captured steps; less on older ones."""


def training_bytes(config: Config, vocabulary_size: int, device: str = "cpu") -> int | None:
    """Returns an estimate of the bytes one training takes: weights, gradients, moments, and what a step keeps.

    A step forwards is taken with fake tensors, which have a shape and no content, in the number format it has on the
    device; None for a generator of the user's own that looks at the content.
    """
    try:
        return _training_bytes(config, vocabulary_size, torch.device(device))
    except Exception:
        if config.architecture in ARCHITECTURES:
            raise
        return None


def _training_bytes(config: Config, vocabulary_size: int, device: torch.device) -> int:
    length = config.sequence_length
    if config.architecture not in ("rnn", "lstm", "gru") or length <= 2 * SHORT:
        own, kept = _kept(config, vocabulary_size, device)
    else:  # a recurrence keeps as much of each token, and fake ones, too, are stepped through one by one
        (own, some), (_, more) = (
            _kept(config.model_copy(update={"sequence_length": SHORT * times}), vocabulary_size, device)
            for times in (1, 2)
        )
        kept = some + (more - some) * (length - SHORT) // SHORT
    units = config.layers * config.batch_size * length * config.hidden_size
    if config.architecture == "lstm":
        kept += _lstm_workspace(config, device) * units
    if config.architecture == "gru" and device.type == "cuda":
        kept += GRU_WORKSPACE_ON_A_GPU * units
    if device.type == "cuda":
        kept += CUBLAS_WORKSPACES
    return own * (2 + MOMENTS[config.optimizer]) + kept


def _lstm_workspace(config: Config, device: torch.device) -> int:
    if device.type == "cuda":
        return LSTM_WORKSPACE_ON_A_GPU
    in_halves = half_precision(config, device) and steps_in_halves("LSTM", device)
    return LSTM_WORKSPACE_IN_HALVES if in_halves else LSTM_WORKSPACE


def _kept(config: Config, vocabulary_size: int, device: torch.device) -> tuple[int, int]:
    """The bytes of the weights, and of all that a step forwards keeps for the way back, its logits included."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import

    seen: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # a storage's address may be used again once it is gone
        return tensor

    half, fake = half_precision(config, device), FakeTensorMode()
    with torch.random.fork_rng(devices=[]), fake:
        model = build(config, vocabulary_size)
    set_recurrences(model, device, half)  # which may have to try out what the processor can do
    if device.type == "cuda":
        _fuse_attention(model)
    with torch.random.fork_rng(devices=[]), fake:
        weights = {parameter.untyped_storage()._cdata: parameter for parameter in model.parameters()}
        tokens = torch.zeros(config.batch_size, config.sequence_length, dtype=torch.int64)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits, _ = model(tokens, None)
            functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    own = sum(parameter.untyped_storage().nbytes() for parameter in weights.values())
    activations = sum(size for storage, size in seen.items() if storage not in weights)
    return own, activations + logits.numel() * logits.element_size()


def _fuse_attention(model: torch.nn.Module) -> None:
    """Lets attention keep what a GPU's does, which is linear in the number of tokens whatever is dropped."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.drop, module.short = 0.0, 0
