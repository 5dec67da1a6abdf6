"""Progress of a training: a line at each rung and each minute, and samples in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import click

from models.config import Recipe
from models.files import optional
from models.generation import sampling
from models.runs.report import prompt_at
from models.safe_text.terminal import line
from models.training.loop import Evaluation, Training
from models.training.observer import RunObserver
from models.wording import rough_duration

LINE_SECONDS = 60.0
"""The longest that nothing is said, unless a step or an evaluation takes longer."""

SAMPLE_COUNT = 8
"""Rungs, at most, at which a sample is shown."""

SAMPLE_TOKENS = 60


class Requests(RunObserver):
    """Stops a run when its process is asked to."""

    def __init__(self, requested: Callable[[], bool]) -> None:
        self.stop_requested = requested  # type: ignore[method-assign]


class Progress(Requests):
    """Prints how one run goes; what it looks at, it leaves as it was."""

    def __init__(self, recipe: Recipe, requested: Callable[[], bool], line_seconds: float = LINE_SECONDS) -> None:
        super().__init__(requested)
        self.recipe, self.line_seconds = recipe, line_seconds
        self.training: Training | None = None
        self.said = time.monotonic()

    def on_step(self, training: Training) -> None:
        self.training = training
        if time.monotonic() - self.said > self.line_seconds:
            self._say(training.progress, training.tokens, training.seconds, training.recent_loss, "")

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Shows a sample at some of the rungs."""
        rungs = self.recipe.trial.rungs
        score = f"  {evaluation.bits_per_byte:.4f} bits per byte"
        self._say(evaluation.rung / rungs, evaluation.tokens, evaluation.seconds, evaluation.training_loss, score)
        if self.training is not None and _shows_sample(evaluation.rung, rungs):
            with optional(f"no sample at rung {evaluation.rung}"):
                click.echo(f"      {line(sample(self.training))}")

    def _say(self, part: float, tokens: int, seconds: float, loss: float, score: str) -> None:
        left = rough_duration(seconds / part - seconds)
        click.echo(
            f"{part:4.0%}  {tokens:>12,} tokens  training loss {loss:.4f}{score}  "
            f"{tokens / max(seconds, 1e-9):>9,.0f} tokens/s  {left} left"
        )
        self.said = time.monotonic()


def _shows_sample(rung: int, rungs: int) -> bool:
    """Whether a sample is shown at a rung: those are spread over all of them."""
    return rung * SAMPLE_COUNT // rungs > (rung - 1) * SAMPLE_COUNT // rungs


def sample(training: Training) -> str:
    """Returns what the model makes of the beginning of the validation split, as one line in quotes."""
    prompt = prompt_at(training.tokenizer, training.held_out.tokens, 0)
    options = sampling.GenerationOptions(SAMPLE_TOKENS, training.config, seed=0)
    text = sampling.generate(training.model, training.tokenizer, prompt, options)
    training.model.train()
    return json.dumps(text, ensure_ascii=False)
