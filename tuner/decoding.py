"""Decoding parameters, chosen on a trained model: no training is spent on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import Config
from models.corpus import EncodedCorpus
from tuner.space import Float, Searched, Space

SAMPLE = 8192
"""Held-out tokens whose logits the temperature is fitted on."""


def calibrate(model: nn.Module, corpus: EncodedCorpus, config: Config, space: Space) -> Config:
    """Returns `config` with its searched decoding parameters chosen.

    The temperature is the one under which held-out text is most probable (Guo et al. 2017). top_k and top_p can
    only make it less probable, so of their values the one that cuts off least is taken.
    """
    chosen: dict[str, object] = {}
    for name, searched in space.decoded.items():
        if name == "temperature":
            chosen[name] = _temperature(model, corpus, config, searched)
        else:
            chosen[name] = None if None in searched.values() else max(value for value in searched.values() if value)
    return config.model_copy(update=chosen)


@torch.no_grad()
def _temperature(model: nn.Module, corpus: EncodedCorpus, config: Config, searched: Searched) -> float:
    candidates = _temperatures(searched)
    if len(candidates) == 1:
        return candidates[0]
    logits, targets = _held_out_logits(model, corpus, config.sequence_length)
    loss = [float(functional.cross_entropy(logits / temperature, targets)) for temperature in candidates]
    return candidates[int(np.argmin(loss))]


def _temperatures(searched: Searched) -> list[float]:
    """The temperatures to try. 0, which is greedy, gives text no probability: it is taken if there is no other."""
    if isinstance(searched, Float) and searched.step is None:
        lowest = max(searched.low, min(0.01, searched.high))
        spread = np.linspace(lowest, searched.high, 41).round(4).clip(lowest, searched.high).tolist()
    else:
        spread = [float(value) for value in searched.values() if value is not None]
    return [value for value in dict.fromkeys(spread) if value > 0] or [0.0]


def _held_out_logits(model: nn.Module, corpus: EncodedCorpus, length: int) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    tokens = np.asarray(corpus.validation[: SAMPLE + 1]).astype(np.int64)
    rows = max(1, (len(tokens) - 1) // length)
    length = min(length, len(tokens) - 1)
    inputs = torch.from_numpy(tokens[: rows * length]).view(rows, length).to(device)
    targets = torch.from_numpy(tokens[1 : rows * length + 1]).view(rows, length).to(device)
    half = length // 2  # the first half of each row has too little context to count
    logits, _ = model(inputs, None)
    return logits[:, half:].flatten(0, 1).float(), targets[:, half:].flatten()
