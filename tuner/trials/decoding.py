"""Chooses decoding parameters by generating text with a trained model, without further training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import Config
from models.generation.continuations import Continuations
from models.generation.sampling import Decodings, keep_probable
from models.text.corpus import EncodedCorpus
from tuner.study.definition import Decoding
from tuner.study.space import Float, Int, Searched, Space, Value
from tuner.trials.surrogate import Array, Surrogate

CALIBRATED = 8192
"""Held-out tokens whose logits the temperature is fitted on."""

REPORTED = 32
"""Texts by which the trials of a study are compared; the divergence of more texts would be another number."""

ALONE, IN_COMPANY = (9, 5), (6, 3)
"""Values of the first parameter that are tried everywhere, and then where the best is expected."""

OTHERS = 6
"""Values of all other parameters that are tried."""

MOST_TRIED = sum(IN_COMPANY) + OTHERS

FEWEST = 8
"""Texts for each value tried below which a search would find out nothing."""

GENERATED = 0.7
"""The part of the cost that goes into writing; the other is for reading what was written."""

CLEAR = 0.01
"""The part of the range of values seen that is not worth trying more for."""

ALIKE = 1.0
"""Values within this many standard deviations of the best one count as equal to it."""

DOUBT = 0.05
"""How probable it may be that a further parameter is used of which none helps, however many values are tried."""

ENTROPY_TOKENS = 128
"""Held-out tokens on which the entropy of decodings is compared."""

ORDER = ("temperature", "top_p", "min_p", "top_k", "repetition_penalty")
"""In which the parameters are chosen: what changes most comes first."""

SAMPLE_COUNT, SAMPLE_TOKENS = 3, 200
"""Texts that are kept to be read, and their length."""

MOST_LISTED = 10_000
"""Values of a range of whole numbers that are all looked at."""

SWEPT = 5
"""Temperatures for which quality and diversity are measured."""


@dataclass(frozen=True)
class Decoded:
    """A configuration with its decoding parameters chosen, and what its texts are like.

    `divergence` is None when the trial was too short to find out.
    """

    config: Config
    divergence: float | None
    facts: dict[str, Any]
    samples: list[dict[str, str]]


@dataclass(frozen=True)
class Effort:
    """What may be spent: tokens, which is the same everywhere, and seconds, in case those take too long."""

    tokens: float
    seconds: float
    begun: float

    @property
    def passed(self) -> float:
        return time.monotonic() - self.begun

    @property
    def is_spent(self) -> bool:
        return self.passed > self.seconds


def decode(
    model: nn.Module,
    corpus: EncodedCorpus,
    config: Config,
    space: Space,
    wanted: Decoding,
    training: tuple[int, float],
    required: bool = False,
    on_tokens: Callable[[], None] = lambda: None,
) -> Decoded:
    """Chooses the searched decoding parameters of a trained model, and measures what it writes with them.

    `training` is what the trial cost, in tokens and seconds; the share of it that decoding may cost decides how much
    is written. Where that is too little for a search, the temperature is the one under which held-out text is most
    probable, and nothing is cut off. `required` measures the divergence at any cost. `on_tokens` is called now and
    then; what it raises ends the search.
    """
    effort = Effort(GENERATED * wanted.share * training[0], wanted.share * training[1], time.monotonic())
    places = Continuations.of(corpus.tokenizer, corpus.validation, corpus.characters["validation"])
    reported = places.some(REPORTED)
    texts = int(effort.tokens / places.tokens) - len(reported)
    curve: list[dict[str, float]] = []
    if space.decoding_parameters and wanted.objective == "text_divergence" and texts >= FEWEST * MOST_TRIED:
        among = places.some(texts // MOST_TRIED)
        config, curve = _Search(model, corpus, among, config, space, effort, on_tokens).run()
    elif space.decoding_parameters:
        config = calibrate(model, corpus, config, space)
    facts = _measured(model, reported, config, on_tokens) if required or texts >= 0 else {}
    facts |= {"decoding_curve": curve} if curve else {}
    samples = _samples(model, reported, config, on_tokens)
    facts["decoding_seconds"] = round(effort.passed, 2)
    return Decoded(config, facts.get("text_divergence"), facts, samples)


def _measured(model: nn.Module, places: Continuations, config: Config, on_tokens: Callable[[], None]) -> dict[str, Any]:
    """Measures fresh texts, not those that the decoding was chosen by, and the held-out text in the same way."""
    (written,) = places.written(model, [config], config.seed + 1, on_tokens)
    return {
        "text_divergence": round(places.divergence(written), 5),
        "text": _rounded(places.measures(written)),
        "human_text": _rounded(places.measures(places.others)),
    }


class _Search:
    """Tries values of one parameter, then of the others beside its best, all with the same random numbers."""

    def __init__(
        self,
        model: nn.Module,
        corpus: EncodedCorpus,
        places: Continuations,
        config: Config,
        space: Space,
        effort: Effort,
        on_tokens: Callable[[], None],
    ) -> None:
        self.model, self.corpus, self.places, self.effort, self.on_tokens = model, corpus, places, effort, on_tokens
        self.values = {
            name: _values(space.decoding_parameters[name]) for name in ORDER if name in space.decoding_parameters
        }
        self.start = config.model_copy(update={name: _mildest(name, values) for name, values in self.values.items()})
        self.tried: list[tuple[Config, float, list[str]]] = []

    def run(self) -> tuple[Config, list[dict[str, float]]]:
        """Returns the configuration that is expected to be best, and the curve over temperature that was seen."""
        first, *others = [name for name, values in self.values.items() if len(values) > 1] or list(self.values)[:1]
        best, expected, noise = self._line(first, *(IN_COMPANY if others else ALONE))
        curve = self._curve() if first == "temperature" else []
        if others and not self.effort.is_spent:
            best = self._with_another(best, others, expected, noise)
        return best, curve

    def _line(self, name: str, everywhere: int, then: int) -> tuple[Config, float, float]:
        """Chooses the value of one parameter; returns also the divergence it should have, and the noise of that."""
        candidates = [self.start.model_copy(update={name: value}) for value in self.values[name]]
        points = _scaled([_coordinate(name, value, self._vocabulary_size) for value in self.values[name]])
        chosen = _evenly(points, everywhere)
        self._try([candidates[index] for index in chosen])
        if not self.effort.is_spent and not self._is_clear(points, chosen):
            further = self._promising(points, chosen, then)
            self._try([candidates[index] for index in further])
            chosen += further
        found = Surrogate.fit(points[chosen], np.array([value for _, value, _ in self.tried]))
        mean, deviation = found.predict(points)
        lowest = int(np.argmin(mean))
        alike = np.flatnonzero(mean <= mean[lowest] + ALIKE * deviation[lowest])
        best = min(alike.tolist(), key=lambda index: _change(name, self.values[name][index]))
        return candidates[best], float(mean[best]), found.noise

    def _is_clear(self, points: Array, chosen: list[int]) -> bool:
        """Whether no other candidate could be better by more than a small part of what has been seen."""
        values = np.array([value for _, value, _ in self.tried])
        mean, deviation = Surrogate.fit(points[chosen], values).predict(points)
        return bool(mean.min() - (mean - deviation).min() <= CLEAR * np.ptp(values))

    def _promising(self, points: Array, chosen: list[int], count: int) -> list[int]:
        """Candidates that could be best, each chosen as if those before it had turned out as expected."""
        chosen, values = list(chosen), [value for _, value, _ in self.tried]
        known = len(chosen)
        while len(chosen) < min(known + count, len(points)):
            mean, deviation = Surrogate.fit(points[chosen], np.array(values)).predict(points)
            hopes = mean - deviation
            hopes[chosen] = np.inf
            chosen.append(int(np.argmin(hopes)))
            values.append(float(mean[chosen[-1]]))
        return chosen[known:]

    def _with_another(self, best: Config, names: list[str], expected: float, noise: float) -> Config:
        """Changes one more parameter, if that is better than `expected` by more than the luck of that number of tries.

        The lowest of n values has to be so low that one alone would be by chance in the n-th part of DOUBT (that is
        Bonferroni's correction). The temperature goes along, so that the mean entropy stays: else all that cuts off
        would merely sharpen.
        """
        each = max(1, OTHERS // len(names))
        further = {name: [value for value in self.values[name] if value != getattr(best, name)] for name in names}
        configs = [
            self._as_unsure(best.model_copy(update={name: values[index]}), best)
            for name, values in further.items()
            for index in _evenly(np.arange(len(values), dtype=float), each)
        ]
        self._try(configs)
        config, value, _ = min(self.tried[len(self.tried) - len(configs) :], key=lambda one: one[1])
        return config if value < expected - NormalDist().inv_cdf(1 - DOUBT / len(configs)) * noise else best

    def _as_unsure(self, config: Config, as_one: Config) -> Config:
        temperatures = self.values.get("temperature", [config.temperature])
        candidates = [config.model_copy(update={"temperature": value}) for value in temperatures]
        wanted, *found = self._entropies([as_one, *candidates])
        return candidates[int(np.argmin(np.abs(np.array(found) - wanted)))]

    def _entropies(self, configs: Sequence[Config]) -> list[float]:
        """Mean entropy of the next token under some decodings, a repetition penalty apart."""
        hows = Decodings.of(configs, len(self._logits), self._logits.device)
        logits = self._logits.double().repeat(len(configs), 1) / hows.temperature
        probabilities = keep_probable(logits, hows.top_k, hows.top_p, hows.min_p).softmax(dim=-1)
        entropies: list[float] = torch.special.entr(probabilities).sum(-1).view(len(configs), -1).mean(1).tolist()
        return entropies

    @cached_property
    def _logits(self) -> Tensor:
        logits, _ = _held_out_logits(self.model, self.corpus, self.start.sequence_length)
        logits = logits[:: max(1, len(logits) // ENTROPY_TOKENS)]
        return logits - logits.amax(dim=-1, keepdim=True)

    @property
    def _vocabulary_size(self) -> int:
        return self.corpus.tokenizer.vocabulary_size

    def _try(self, configs: Sequence[Config]) -> None:
        written = self.places.written(self.model, configs, self.start.seed, self.on_tokens)
        self.tried += [
            (config, self.places.divergence(texts), texts) for config, texts in zip(configs, written, strict=True)
        ]

    def _curve(self) -> list[dict[str, float]]:
        """Quality and diversity at some of the temperatures tried."""
        ordered = sorted(self.tried, key=lambda one: one[0].temperature)
        chosen = _evenly(np.arange(len(ordered), dtype=float), SWEPT)
        return [
            _rounded(
                {"temperature": config.temperature, "divergence": value} | self.places.quality_and_diversity(texts)
            )
            for config, value, texts in (ordered[index] for index in sorted(chosen))
        ]


def _values(searched: Searched) -> list[Value]:
    """All values of a parameter, or 41 of those that have no end, or next to none."""
    if isinstance(searched, Int) and len(searched.values()) > MOST_LISTED:
        return [*searched.values()[:: len(searched.values()) // 40]]
    if not isinstance(searched, Float) or searched.step is not None:
        return list(searched.values())
    spread = np.linspace(searched.low, searched.high, 41).round(4).clip(searched.low, searched.high).tolist()
    return list(dict.fromkeys(spread))


def _mildest(name: str, values: Sequence[Any]) -> Any:
    """The value that changes a model's distributions least."""
    return min(values, key=lambda value: _change(name, value))


def _change(name: str, value: Any) -> float:
    """How much a value of a decoding parameter changes a distribution, comparable with other values of it alone."""
    if value is None:
        return -math.inf
    if name in ("temperature", "repetition_penalty"):
        return abs(math.log(value)) if value else math.inf
    return float(value if name == "min_p" else -value)


def _coordinate(name: str, value: Any, vocabulary_size: int) -> float:
    """Where a value lies, so that equal distances change text about equally."""
    if name == "top_k":
        return math.log(min(value or vocabulary_size, vocabulary_size))
    if name == "min_p":
        return math.sqrt(value or 0.0)
    if name == "repetition_penalty":
        return math.log(value)
    return float(1.0 if value is None else value)


def _scaled(values: Sequence[float]) -> Array:
    """Values moved into [0, 1]."""
    found = np.array(values)
    return np.asarray((found - found.min()) / ((found.max() - found.min()) or 1))


def _evenly(points: Array, count: int) -> list[int]:
    """Indices of `count` different points, spread evenly from the lowest to the highest; all if there are no more."""
    chosen: list[int] = []
    for wanted in np.linspace(points.min(), points.max(), min(count, len(points))) if len(points) else ():
        distances = np.abs(points - wanted)
        distances[chosen] = np.inf
        chosen.append(int(np.argmin(distances)))
    return chosen


def _samples(
    model: nn.Module, places: Continuations, config: Config, on_tokens: Callable[[], None]
) -> list[dict[str, str]]:
    few = places.some(SAMPLE_COUNT)
    (texts,) = few.written(model, [config], config.seed + 2, on_tokens, tokens=SAMPLE_TOKENS)
    prompts = [few.tokenizer.decode(prompt.numpy()) for prompt in few.prompts]
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(number, 4) for name, number in numbers.items()}


def calibrate(model: nn.Module, corpus: EncodedCorpus, config: Config, space: Space) -> Config:
    """Returns `config` with its searched decoding parameters chosen so that held-out text is most probable.

    That is the temperature of Guo et al. 2017. The others can only make text less probable, so of their values the
    one that changes least is taken.
    """
    chosen = {name: _mildest(name, _values(searched)) for name, searched in space.decoding_parameters.items()}
    if "temperature" in chosen:
        chosen["temperature"] = _temperature(model, corpus, config, space.decoding_parameters["temperature"])
    return config.model_copy(update=chosen)


@torch.no_grad()
def _temperature(model: nn.Module, corpus: EncodedCorpus, config: Config, searched: Searched) -> float:
    # 0, which is greedy, gives text no probability: it is taken if there is no other.
    possible: list[Any] = [value for value in _values(searched) if value] or [0.0]
    if len(possible) == 1:
        return float(possible[0])
    logits, targets = _held_out_logits(model, corpus, config.sequence_length)
    loss = [float(functional.cross_entropy(logits / temperature, targets)) for temperature in possible]
    return float(possible[int(np.argmin(loss))])


@torch.no_grad()
def _held_out_logits(model: nn.Module, corpus: EncodedCorpus, length: int) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    tokens = np.asarray(corpus.validation[: CALIBRATED + 1]).astype(np.int64)
    rows = max(1, (len(tokens) - 1) // length)
    length = min(length, len(tokens) - 1)
    inputs = torch.from_numpy(tokens[: rows * length]).view(rows, length).to(device)
    targets = torch.from_numpy(tokens[1 : rows * length + 1]).view(rows, length).to(device)
    half = length // 2  # the first half of each row has too little context to count
    logits, _ = model(inputs, None)
    return logits[:, half:].flatten(0, 1).float(), targets[:, half:].flatten()
