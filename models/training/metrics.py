"""Metrics on held-out text: bits per byte, perplexity, nats per token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nn.network import remembers
from models.training.distributed import ALONE, Team

WARM_UP = 256
"""Tokens a recurrent model reads before its predictions count; more changes the score by less than seed noise."""

LANE = 1024
"""Fewest held-out tokens for which a lane of its own, with its own warm-up, is worth the work."""

PIECE = 512
"""Held-out tokens in a row that are scored where only a part of a text is read."""

ROWS = 256
"""Most pieces that a model that carries its state reads at once."""

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
    """A held-out text: its tokens, its size in UTF-8 bytes, and the tokens that stand before it.

    `token_bytes` (V,) are the bytes of each token; without them every token is taken to have the mean of all.
    """

    before: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    text_bytes: int
    token_bytes: np.ndarray[Any, Any] | None = None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    text: HeldOut,
    vocabulary_size: int,
    window: int,
    team: Team = ALONE,
    stride: int = 1,
    on_batch: Callable[[], None] = lambda: None,
) -> Score:
    """Scores every token of a held-out text, deterministically and with context.

    A model that carries its state reads the text in parallel lanes, each warmed up on what stands before
    it; any other, and one that returns no state, reads windows of `window` tokens that overlap by half, of which the
    second half counts.
    The processes of a team share the lanes or windows out among them. With a `stride` of n only every n-th lane or
    window is read, and its bytes are taken to be as many for a token as those of the whole text.
    `on_batch` is called before each batch; what it raises ends the reading.
    """
    device = next(model.parameters()).device
    if remembers(model):
        read, rows = _read_lanes, _rows(text, -(-len(text.tokens) // lanes_of(text)), WARM_UP, stride, device)
    else:
        read, rows = _read_windows, _rows(text, window - window // 2, window // 2, stride, device)
    scored = int((rows[1] >= 0).sum())
    nats = _read(read, model, rows, vocabulary_size, team, on_batch)
    return Score.of(nats, scored, text.text_bytes * scored / len(text.tokens))


def lanes_of(text: HeldOut) -> int:
    """Returns in how many lanes `evaluate` reads a text where the model carries its state."""
    return min(max(len(text.tokens) // LANE, 1), 64)


@torch.no_grad()
def evaluate_part(
    model: nn.Module,
    text: HeldOut,
    vocabulary_size: int,
    window: int,
    most: int,
    team: Team = ALONE,
    on_batch: Callable[[], None] = lambda: None,
) -> Score:
    """Scores `most` tokens of a held-out text, in pieces that are spread over all of it.

    The pieces stand at the same places whatever the model, and those of a smaller part are among those of a larger
    one; there is at least one. Each is read with the context that `evaluate` gives, and its bytes are counted.
    """
    pieces = pieces_of(len(text.tokens), most)
    carried = remembers(model)
    read = _read_many_lanes if carried else _read_windows
    length, context = (PIECE, WARM_UP) if carried else (min(window - window // 2, PIECE), window // 2)
    rows = _rows_of(text, pieces, length, context, next(model.parameters()).device)
    nats = _read(read, model, rows, vocabulary_size, team, on_batch)
    tokens = np.concatenate([text.tokens[piece] for piece in pieces])
    if text.token_bytes is None:
        text_bytes = text.text_bytes * len(tokens) / len(text.tokens)
    else:
        text_bytes = float(text.token_bytes[tokens].sum())
    return Score.of(nats, len(tokens), text_bytes)


def pieces_of(tokens: int, most: int) -> list[slice]:
    """Returns the pieces of a text to read, in its order, where at most `most` of its `tokens` may be read."""
    places = -(-tokens // PIECE)
    bits = (places - 1).bit_length()
    # 0, 1/2, 1/4, 3/4, 1/8, ... of the text: each piece far from those before it (van der Corput 1935).
    spread = (_reversed(number, bits) * places >> bits for number in range(2**bits))
    chosen = sorted(islice(dict.fromkeys(spread), max(1, most // PIECE)))
    return [slice(place * PIECE, min((place + 1) * PIECE, tokens)) for place in chosen]


def _reversed(number: int, bits: int) -> int:
    return int(f"{number:0{bits}b}"[::-1], 2) if bits else 0


def _rows_of(
    text: HeldOut, pieces: Sequence[slice], length: int, context: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cuts pieces of a text into rows as `_rows` does the whole; what lies behind a piece's end does not count."""
    context = min(context, len(text.before) - 1)
    tokens = np.concatenate([text.before[len(text.before) - context - 1 :], text.tokens])
    rows = [(start, piece.stop) for piece in pieces for start in range(piece.start, piece.stop, length)]
    starts, ends = np.array(rows)[:, :1], np.array(rows)[:, 1:]
    inputs = tokens[np.minimum(starts + np.arange(context + length), len(tokens) - 1)].astype(np.int64)
    positions = starts + np.arange(length)
    wanted = text.tokens[np.minimum(positions, len(text.tokens) - 1)].astype(np.int64)
    targets = np.pad(np.where(positions < ends, wanted, -100), ((0, 0), (context, 0)), constant_values=-100)
    return torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)


def _read(
    read: Callable[..., float],
    model: nn.Module,
    rows: tuple[Tensor, Tensor],
    vocabulary_size: int,
    team: Team,
    on_batch: Callable[[], None],
) -> float:
    """Returns the nats of rows that a team shares out among its processes."""
    was_training = model.training
    model.eval()
    inputs, targets = (each[team.rank :: team.size] for each in rows)
    nats = read(model, inputs, targets, vocabulary_size, on_batch) if len(inputs) else 0.0
    model.train(was_training)
    return team.total(nats)


def _rows(text: HeldOut, length: int, context: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cuts a text into rows of inputs and targets, both (K, context + length).

    Row k predicts `length` tokens from k * stride * length onwards. Targets that do not count, because they are context
    or lie behind the end, are -100, which the loss leaves out.
    """
    context = min(context, len(text.before) - 1)
    rows = -(-len(text.tokens) // length)
    behind = rows * length - len(text.tokens)
    tokens = np.concatenate([text.before[len(text.before) - context - 1 :], text.tokens[:-1]])
    inputs = np.pad(tokens, (0, behind)).astype(np.int64)
    targets = np.pad(text.tokens.astype(np.int64), (0, behind), constant_values=-100).reshape(rows, length)
    targets = np.pad(targets[::stride], ((0, 0), (context, 0)), constant_values=-100)
    index = np.arange(0, rows, stride)[:, None] * length + np.arange(context + length)
    return torch.from_numpy(inputs[index]).to(device), torch.from_numpy(targets).to(device)


def _read_lanes(
    model: nn.Module, inputs: Tensor, targets: Tensor, vocabulary_size: int, on_batch: Callable[[], None]
) -> float:
    length = max(1, min(256, LOGITS // (len(inputs) * vocabulary_size)))
    nats, state = 0.0, None
    for read, asked in zip(torch.split(inputs, length, 1), torch.split(targets, length, 1), strict=True):
        on_batch()
        logits, state = model(read, state)
        nats += _nats(logits, asked)
    return nats


def _read_many_lanes(
    model: nn.Module, inputs: Tensor, targets: Tensor, vocabulary_size: int, on_batch: Callable[[], None]
) -> float:
    pairs = zip(torch.split(inputs, ROWS), torch.split(targets, ROWS), strict=True)
    return sum(_read_lanes(model, read, asked, vocabulary_size, on_batch) for read, asked in pairs)


def _read_windows(
    model: nn.Module, inputs: Tensor, targets: Tensor, vocabulary_size: int, on_batch: Callable[[], None]
) -> float:
    batch = max(1, min(256, LOGITS // (inputs.size(1) * vocabulary_size)))
    nats = 0.0
    for read, asked in zip(torch.split(inputs, batch), torch.split(targets, batch), strict=True):
        on_batch()
        nats += _nats(model(read, None)[0], asked)
    return nats


def _nats(logits: Tensor, targets: Tensor) -> float:
    losses = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return losses.double().sum().item()  # a long sum of single precision drifts
