"""Scores on held-out text: the splits of a corpus, a model on them, and how much of them each rung reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from models.config import Budget, Config
from models.nn.network import remembers
from models.nn.precision import autocast
from models.text.corpus import EncodedCorpus
from models.training.distributed import ALONE, Team
from models.training.metrics import LANE, PIECE, WARM_UP, HeldOut, Score, evaluate, evaluate_part, lanes_of, pieces_of

LOOKING = 0.1
"""The part of the work of training that the rungs' evaluations may add to it, where tokens are counted."""

STEP_COST = 2.5
"""What training on a token costs at least, in tokens only read; measured 2.5 to 3.5 on a CPU."""

FEWEST_SCORED = 4096
"""The fewest held-out tokens that an evaluation scores, if there are that many."""

LAST = 0.2
"""The part of the work of training that the last rung's evaluation may add to it in a trial of a study."""

FEWEST_AT_LAST = 32_768
"""The fewest held-out tokens that the last rung of a trial scores, if there are that many."""

READ_TWICE = 2.0
"""Tokens read for each that is scored, where each is read with as much context again."""


def held_out(corpus: EncodedCorpus, split: str, window: int) -> HeldOut:
    """Returns the validation or the test split, with as many of the tokens before it as any model looks back on."""
    before = {"validation": corpus.train, "test": corpus.validation}[split]
    context = max(WARM_UP, window) + 1
    return HeldOut(before[-context:], getattr(corpus, split), corpus.bytes[split], corpus.tokenizer.token_bytes)


@dataclass(frozen=True)
class Scorer:
    """Scores held-out text with a model as it is at the time; `half` is the precision that `set_precision` returned.

    `on_batch` is called before each batch that is read; what it raises ends the scoring.
    """

    model: nn.Module
    config: Config
    vocabulary_size: int
    half: bool
    team: Team = ALONE

    def score(self, text: HeldOut, stride: int = 1, on_batch: Callable[[], None] = lambda: None) -> Score:
        """Scores a text, or every `stride`-th piece of it."""
        with autocast(self._device, self.half):
            return evaluate(self.model, text, self.vocabulary_size, self._window, self.team, stride, on_batch)

    def score_part(self, text: HeldOut, most: int, on_batch: Callable[[], None] = lambda: None) -> Score:
        """Scores `most` tokens of a text, in pieces spread over it; all of one that has no more."""
        if most >= len(text.tokens):
            return self.score(text, 1, on_batch)
        with autocast(self._device, self.half):
            return evaluate_part(self.model, text, self.vocabulary_size, self._window, most, self.team, on_batch)

    def score_alone(self, text: HeldOut) -> Score:
        """Scores a text of which little may stand before; it is the score of `score` where enough does.

        The first tokens have what there is for a context, all others as many tokens as in `score`.
        """
        missing = max(0, self._looked_back_on + 1 - len(text.before))
        first, rest = text.tokens[:missing], text.tokens[missing:]
        if not len(first):
            return self.score(text)
        nats = self._nats(replace(text, tokens=first))
        if len(rest):
            nats += self._nats(replace(text, before=np.concatenate([text.before, first]), tokens=rest))
        return Score.of(nats, len(text.tokens), text.text_bytes)

    def _nats(self, text: HeldOut) -> float:
        return len(text.tokens) * self.score(text).nats_per_token

    @property
    def _looked_back_on(self) -> int:
        """Tokens before a lane or window that are read as its context."""
        return WARM_UP if remembers(self.model) else self._window // 2

    @property
    def _window(self) -> int:
        return self.config.sequence_length

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


class Reading(NamedTuple):
    """What a rung reads of a held-out text: every `stride`-th piece, or `most` tokens."""

    stride: int = 1
    most: int | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """How much of a held-out text each rung of a run reads, so that looking stays cheap.

    The last rung reads all of it, and so does each of a run with patience, which keeps the weights of any of them. In a
    trial of a study (`whole` is false) they read a part where all of it would cost too much. `tokens` are those that
    the whole run trains on, as far as is known.
    """

    config: Config
    budget: Budget
    carries_state: bool
    text: HeldOut
    whole: bool

    def reading(self, rung: int, tokens: float) -> Reading:
        """Returns what a rung reads, counted from 1."""
        final = self.config.patience > 0 or rung == self.budget.rungs
        if final and (self.whole or self._all_is_cheap(tokens)):
            return Reading()
        if final:
            return Reading(most=self._most_at_last(tokens))
        if self.budget.tokens is not None and self._all_is_cheap(tokens) and self._stride(tokens) < self._pieces:
            return Reading(stride=self._stride(tokens))
        share = LOOKING / (self.budget.rungs - 1)
        return Reading(most=max(FEWEST_SCORED, _affordable(tokens, share, self._read_for_piece)))

    def part(self, tokens: float) -> float:
        """Returns which part of the text the last rung reads."""
        length = len(self.text.tokens)
        if self.whole or self._all_is_cheap(tokens):
            return 1.0
        pieces = pieces_of(length, self._most_at_last(tokens))
        return sum(len(self.text.tokens[piece]) for piece in pieces) / length

    def _all_is_cheap(self, tokens: float) -> bool:
        """Whether the last rung of a trial reads all of the text."""
        return len(self.text.tokens) <= max(FEWEST_AT_LAST, _affordable(tokens, LAST, READ_TWICE))

    def _most_at_last(self, tokens: float) -> int:
        """Held-out tokens that a rung scores where its value may be the trial's, all being too many."""
        if self.config.patience:
            return max(FEWEST_SCORED, _affordable(tokens, LAST / self.budget.rungs, self._read_for_piece))
        return max(FEWEST_AT_LAST, _affordable(tokens, LAST, self._read_for_piece))

    @property
    def _read_for_piece(self) -> float:
        """Tokens read for each that is scored in a piece; the same for all but models of a long context."""
        context = 0 if self.carries_state else self.config.sequence_length // 2
        return max(READ_TWICE, 1 + context / PIECE)

    @property
    def _pieces(self) -> int:
        """In how many pieces all of the text is read."""
        if self.carries_state:
            return lanes_of(self.text)
        return -(-len(self.text.tokens) // (self.config.sequence_length - self.config.sequence_length // 2))

    def _stride(self, tokens: float) -> int:
        """Evaluation stride: a rung before the last reads every n-th piece of the text."""
        length = len(self.text.tokens)
        read = 1 + WARM_UP / LANE if self.carries_state else 2  # for each that is scored
        whole = length * read / STEP_COST  # what reading all of it costs, in tokens trained
        spare = max(tokens * LOOKING - whole, 1) / (self.budget.rungs - 1)
        return max(1, min(math.ceil(whole / spare), length // FEWEST_SCORED))


def _affordable(tokens: float, share: float, read: float) -> int:
    """How many held-out tokens can be scored in that part of the work of training."""
    return int(tokens * share * STEP_COST / read)
