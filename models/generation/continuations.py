"""Held-out text as prompts, with the human text that follows, for comparison with generated text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.config import Config
from models.generation.sampling import BLANK, Decodings, device_of, uniform_noise, write
from models.generation.text_measures import measures, quality_and_diversity, text_divergence
from models.text.tokenizers import Tokenizer

LENGTH = 128
"""Characters of each text that is compared."""

PROMPT = 32
"""Tokens before each text."""

MOST = 512
"""Most prompts that are cut out of a held-out text."""

MOST_FOR_CHARACTER = 8
"""Tokens that a character takes at most: four bytes of UTF-8 in two halves each."""

AT_ONCE = {"cpu": 256, "cuda": 2048}
"""Texts written in one batch."""

LOOK = 16
"""Tokens on_tokens two calls of `on_tokens`."""


@dataclass(frozen=True)
class Continuations:
    """K places of a held-out text.

    `prompts` (K, P) are the tokens before them, `human` the texts that follow, `others` texts from between, and `all`
    both of these for every place there is, all of `length` characters. A model writes `tokens` tokens for a text,
    enough of them for nearly all.
    """

    tokenizer: Tokenizer
    prompts: Tensor
    human: list[str]
    others: list[str]
    all: list[str]
    length: int
    tokens: int

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        text: Any,
        characters: int,
        *,
        most: int = MOST,
        most_for_character: int = MOST_FOR_CHARACTER,
    ) -> Continuations:
        """Cuts up to `most` prompts out of held-out tokens (N,), at least 2, whose text has that many `characters`."""
        text = np.asarray(text).astype(np.int64)
        prompt = min(PROMPT, len(text) // 2)
        characters_left = characters - characters * prompt // len(text)
        places = min(most, max(2, characters_left // (2 * LENGTH)))
        length = max(1, min(LENGTH, characters_left // (2 * places)))
        stride = (len(text) - prompt) // (2 * places)
        begins = prompt + stride * np.arange(2 * places)
        needed = most_for_character * (length + 1)
        parts = [_beginning(tokenizer, text[begin : begin + stride], length, needed) for begin in begins] + [""]
        pieces = [(one + following)[:length] for one, following in pairwise(parts)]
        per_character = max(len(text) / max(characters, 1), 1 / len(text))
        slack = 1.0 if per_character >= 1 else 1.2  # tokens of several characters differ in length
        return cls(
            tokenizer,
            torch.from_numpy(np.stack([text[begin - prompt : begin] for begin in begins[::2]])),
            pieces[::2],
            pieces[1::2],
            pieces,
            length,
            int(np.ceil(length * per_character * slack)),
        )

    def __len__(self) -> int:
        return len(self.human)

    def some(self, count: int) -> Continuations:
        """Returns `count` of the places, spread evenly; all of them if there are no more."""
        chosen = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int).tolist()
        human, others = ([texts[place] for place in chosen] for texts in (self.human, self.others))
        return replace(self, prompts=self.prompts[chosen], human=human, others=others)

    def written(
        self,
        model: nn.Module,
        configs: Sequence[Config],
        seed: int,
        on_tokens: Callable[[], None] = lambda: None,
        tokens: int | None = None,
    ) -> list[list[str]]:
        """Returns what a model writes after each prompt, for the decoding of each of some configurations.

        All use the same random numbers, so that they differ by little else than their decoding. `on_tokens` is called
        every few tokens; what it raises ends the writing.
        """
        at_once = max(1, AT_ONCE[device_of(model).type] // len(self))
        parts = [configs[begin : begin + at_once] for begin in range(0, len(configs), at_once)]
        return [texts for part in parts for texts in self._written(model, part, seed, on_tokens, tokens or self.tokens)]

    def _written(
        self, model: nn.Module, configs: Sequence[Config], seed: int, on_tokens: Callable[[], None], tokens: int
    ) -> list[list[str]]:
        prompt_lengths = torch.full((len(self) * len(configs),), self.prompts.size(1))
        texts = torch.cat([self.prompts, torch.full((len(self), tokens), BLANK)], dim=1).repeat(len(configs), 1)
        noise = uniform_noise(seed, len(self), tokens).repeat(len(configs), 1)
        columns = []
        for column in write(model, texts, prompt_lengths, noise, Decodings.of(configs, len(self), device_of(model))):
            columns.append(column)
            if len(columns) % LOOK == 0:
                on_tokens()
        rows = torch.stack(columns[self.prompts.size(1) :], dim=1).cpu().numpy()
        written = [self.tokenizer.decode(row) for row in rows]
        return [written[begin : begin + len(self)] for begin in range(0, len(written), len(self))]

    def divergence(self, texts: Sequence[str]) -> float:
        """Returns the `text_divergence` of texts written after these prompts from human text."""
        return text_divergence(texts, self.all, self.length)

    def quality_and_diversity(self, texts: Sequence[str]) -> dict[str, float]:
        """Returns BLEU and self-BLEU of texts written after these prompts."""
        return quality_and_diversity([text[: self.length] for text in texts], self.human)

    def measures(self, texts: Sequence[str]) -> dict[str, float]:
        """Returns the `measures` of texts written after these prompts."""
        return measures([text[: self.length] for text in texts], self.human)


def _beginning(tokenizer: Tokenizer, tokens: Any, length: int, needed: int) -> str:
    """Returns the text of some tokens, or of a long text's only what its first `length` characters need."""
    few = tokens[:needed]
    text = tokenizer.decode(few)
    return text if len(few) == len(tokens) or len(text) > length else tokenizer.decode(tokens)
