"""How well a model predicts held-out text: bits per byte, perplexity, nats per token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distributed import ALONE, Team
from models.network import remembers

WARM_UP = 256
"""Tokens a recurrent model reads before its predictions count; more changes the score by less than seed noise."""

LANE = 1024
"""Fewest held-out tokens for which a lane of its own, with its own warm-up, is worth the work."""

LOGITS = 2**23
"""Most logits held at once."""


@dataclass(frozen=True)
class Score:
    """How well a text was predicted; lower is better in all three.

    bits_per_byte is the negative log2 likelihood of the text over its UTF-8 bytes, so it compares across
    tokenizers; nats_per_token and perplexity (its exponential) do not.
    """

    bits_per_byte: float
    nats_per_token: float
    perplexity: float

    @classmethod
    def of(cls, nats: float, tokens: int, text_bytes: float) -> Score:
        per_token = nats / tokens
        perplexity = math.exp(per_token) if per_token < 700 else math.inf
        return cls(nats / math.log(2) / text_bytes, per_token, perplexity)


@dataclass(frozen=True)
class HeldOut:
    """A held-out text: its tokens, its size in UTF-8 bytes, and the tokens that stand before it."""

    before: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    text_bytes: int


@torch.no_grad()
def evaluate(
    model: nn.Module, text: HeldOut, vocabulary_size: int, window: int, team: Team = ALONE, every: int = 1
) -> Score:
    """Scores every token of a held-out text, deterministically and with context.

    A model that carries its state reads the text in parallel lanes, each warmed up on what stands before
    it; any other, and one that returns no state, reads windows of `window` tokens that overlap by half, of which the
    second half counts.
    The processes of a team share the lanes or windows out among them. With `every` above 1 only every so manyth
    lane or window is read, and its bytes are taken to be as many for a token as those of the whole text.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    if remembers(model):
        lanes = min(max(len(text.tokens) // LANE, 1), 64)
        read, rows = _read_lanes, _rows(text, -(-len(text.tokens) // lanes), WARM_UP, every, device)
    else:
        read, rows = _read_windows, _rows(text, window - window // 2, window // 2, every, device)
    scored = int((rows[1] >= 0).sum())
    inputs, targets = (each[team.rank :: team.size] for each in rows)
    nats = read(model, inputs, targets, vocabulary_size) if len(inputs) else 0.0
    model.train(was_training)
    return Score.of(team.total(nats), scored, text.text_bytes * scored / len(text.tokens))


def _rows(text: HeldOut, stride: int, context: int, every: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cuts a text into rows of inputs and targets, both (K, context + stride).

    Row k predicts tokens k * every * stride onwards. Targets that do not count, because they are context or lie
    behind the end, are -100, which the loss leaves out.
    """
    context = min(context, len(text.before) - 1)
    rows = -(-len(text.tokens) // stride)
    behind = rows * stride - len(text.tokens)
    told = np.concatenate([text.before[len(text.before) - context - 1 :], text.tokens[:-1]])
    inputs = np.pad(told, (0, behind)).astype(np.int64)
    asked = np.pad(text.tokens.astype(np.int64), (0, behind), constant_values=-100).reshape(rows, stride)
    targets = np.pad(asked[::every], ((0, 0), (context, 0)), constant_values=-100)
    index = np.arange(0, rows, every)[:, None] * stride + np.arange(context + stride)
    return torch.from_numpy(inputs[index]).to(device), torch.from_numpy(targets).to(device)


def _read_lanes(model: nn.Module, inputs: Tensor, targets: Tensor, vocabulary_size: int) -> float:
    length = max(1, min(256, LOGITS // (len(inputs) * vocabulary_size)))
    nats, state = 0.0, None
    for read, asked in zip(torch.split(inputs, length, 1), torch.split(targets, length, 1), strict=True):
        logits, state = model(read, state)
        nats += _nats(logits, asked)
    return nats


def _read_windows(model: nn.Module, inputs: Tensor, targets: Tensor, vocabulary_size: int) -> float:
    batch = max(1, min(256, LOGITS // (inputs.size(1) * vocabulary_size)))
    pairs = zip(torch.split(inputs, batch), torch.split(targets, batch), strict=True)
    return sum(_nats(model(read, None)[0], asked) for read, asked in pairs)


def _nats(logits: Tensor, targets: Tensor) -> float:
    losses = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return losses.double().sum().item()  # a long sum of single precision drifts
