"""What may follow a training while it runs, and ask for its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.training.loop import Evaluation, Trained, Training


class TrainingObserver:
    """Follows a training; what a method raises ends the run. By itself it does nothing: override what you need."""

    def on_step(self, training: Training) -> None:
        """Is called after each step; the place to write a checkpoint (`training.save`)."""

    def on_scoring_batch(self, training: Training) -> None:
        """Is called before each batch of held-out text that is scored."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Is called at each rung.

        Also with the rungs before a checkpoint, when the run goes on from it: what the run that wrote it said of them
        may have gone down with it.
        """

    def on_trained(self, trained: Trained) -> None:
        """Is called at the end, before the test split is scored.

        The place to write the weights, which nothing that happens later can then cost.
        """


class RunObserver(TrainingObserver):
    """Follows a run whose checkpoints are kept elsewhere, and can have it saved and stopped."""

    def stop_requested(self) -> bool:
        """Whether the run is to be saved now and left with Stopped; asked after each step and batch."""
        return False


UNOBSERVED = RunObserver()
"""The observer of a run without one."""
