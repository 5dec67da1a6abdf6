"""The order in which batches read the training text: contiguous streams or shuffled windows."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.config import Config


class Batch(NamedTuple):
    """Tokens (B, T) int64, the tokens that follow them, and whether carried state must start anew."""

    inputs: Tensor
    targets: Tensor
    at_start: bool


class _Batches:
    """Deals the training text out in an order that seed and step alone decide, so that any step can be redone.

    The text lies on the device, so that no step waits for a batch. `rows` are those of each batch that are wanted here.
    """

    def __init__(
        self, tokens: np.ndarray[Any, Any], config: Config, device: torch.device, rows: slice = slice(None)
    ) -> None:
        self.tokens, self.seed, self.rows = _on_device(tokens, device), config.seed, rows
        self.size, self.length = config.batch_size, config.sequence_length
        self.steps = max(1, (len(tokens) - 1) // (self.size * self.length))  # in one epoch
        self.epoch = -1
        self.ahead = torch.arange(self.length + 1, device=device)

    def take(self, step: int) -> Batch:
        epoch, position = divmod(step, self.steps)
        if epoch != self.epoch:
            self.epoch = epoch
            # The first epoch reads the text from its start to its end, the others cut it at other places.
            random = np.random.default_rng([self.seed, epoch])
            order = self._order(random, first=int(random.integers(self._shift())) if epoch else 0)
            self.order = torch.from_numpy(order).to(self.tokens.device)
        index = self._starts(position)[self.rows, None] + self.ahead
        rows = self.tokens[index % len(self.tokens)].long()
        return Batch(rows[:, :-1], rows[:, 1:], position == 0)

    def _shift(self) -> int:
        """How many places there are to start an epoch at."""
        raise NotImplementedError

    def _order(self, random: np.random.Generator, first: int) -> np.ndarray[Any, Any]:
        """Where the pieces of an epoch begin, that starts at `first`."""
        raise NotImplementedError

    def _starts(self, position: int) -> Tensor:
        """Where the rows of a batch begin, (B,)."""
        raise NotImplementedError


class Streams(_Batches):
    """B contiguous streams, T tokens of each at a time."""

    def _shift(self) -> int:
        return len(self.tokens)

    def _order(self, random: np.random.Generator, first: int) -> np.ndarray[Any, Any]:
        order: np.ndarray[Any, Any] = first + np.arange(self.size) * (len(self.tokens) // self.size)
        return order

    def _starts(self, position: int) -> Tensor:
        return self.order + position * self.length


class Windows(_Batches):
    """Windows of T tokens in random order, each once an epoch."""

    def _shift(self) -> int:
        return self.length

    def _order(self, random: np.random.Generator, first: int) -> np.ndarray[Any, Any]:
        return first + self.length * random.permutation((len(self.tokens) - 1) // self.length)

    def _starts(self, position: int) -> Tensor:
        return self.order[position * self.size : (position + 1) * self.size]


def _on_device(tokens: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    if device.type == "cuda" and tokens.dtype == np.uint16:  # torch does little with these on a GPU
        tokens = tokens.astype(np.int32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is a file, and only read
        return torch.from_numpy(tokens).to(device)
