"""The order in which the training text is dealt out: contiguous streams or shuffled windows."""

from __future__ import annotations

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

    `rows` are those of each batch that are wanted here.
    """

    def __init__(self, tokens: np.ndarray[Any, Any], config: Config, rows: slice = slice(None)) -> None:
        self.tokens, self.seed, self.rows = tokens, config.seed, rows
        self.size, self.length = config.batch_size, config.sequence_length
        self.steps = max(1, (len(tokens) - 1) // (self.size * self.length))  # in one epoch
        self.epoch = -1

    def take(self, step: int, device: torch.device) -> Batch:
        epoch, position = divmod(step, self.steps)
        if epoch != self.epoch:
            self.epoch = epoch
            # The first epoch reads the text from its start to its end, the others cut it at other places.
            random = np.random.default_rng([self.seed, epoch])
            self._shuffle(random, first=int(random.integers(self._shift())) if epoch else 0)
        index = self._starts(position)[self.rows, None] + np.arange(self.length + 1)
        rows = torch.from_numpy(self.tokens[index % len(self.tokens)].astype(np.int64)).to(device)
        return Batch(rows[:, :-1], rows[:, 1:], position == 0)

    def _shift(self) -> int:
        """How many places there are to start an epoch at."""
        raise NotImplementedError

    def _shuffle(self, random: np.random.Generator, first: int) -> None:
        raise NotImplementedError

    def _starts(self, position: int) -> np.ndarray[Any, Any]:
        raise NotImplementedError


class Streams(_Batches):
    """B contiguous streams, T tokens of each at a time."""

    def _shift(self) -> int:
        return len(self.tokens)

    def _shuffle(self, random: np.random.Generator, first: int) -> None:
        self.streams = first + np.arange(self.size) * (len(self.tokens) // self.size)

    def _starts(self, position: int) -> np.ndarray[Any, Any]:
        starts: np.ndarray[Any, Any] = self.streams + position * self.length
        return starts


class Windows(_Batches):
    """Windows of T tokens in random order, each once an epoch."""

    def _shift(self) -> int:
        return self.length

    def _shuffle(self, random: np.random.Generator, first: int) -> None:
        self.windows = first + self.length * random.permutation((len(self.tokens) - 1) // self.length)

    def _starts(self, position: int) -> np.ndarray[Any, Any]:
        return self.windows[position * self.size : (position + 1) * self.size]
