"""Fast dropout on a CPU, where torch draws a whole random number for each activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

PARTS = 2**16
"""Probabilities are rounded to this part of one: four draws of 16 bits come from one random number."""


class Dropout(nn.Dropout):
    """torch.nn.Dropout (Srivastava et al. 2014), more than twice as fast on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return dropped(input, self.p) if self.training else input


def dropped(values: Tensor, probability: float) -> Tensor:
    """Returns the values, each zero with that probability (below 1) and otherwise larger, so that the mean stays."""
    if probability == 0:
        return values
    if not values.is_cpu:
        return functional.dropout(values, probability)
    lost = min(round(probability * PARTS), PARTS - 1)
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = (draws[: values.numel()] >= lost - PARTS // 2).view(values.shape)
    return values * kept.to(values.dtype).mul_(PARTS / (PARTS - lost))
