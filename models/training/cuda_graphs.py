"""A GPU's training step as a captured CUDA graph, for small models whose kernels run shorter than their launch.

Whole steps are captured as CUDA graphs (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs), their
learning rate, their random numbers and the state they carry on staying alive.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.config import ARCHITECTURES, Config
from models.errors import DeviceError
from models.text.batches import Batch
from models.training.checkpoint import filled, flat
from models.training.distributed import Team
from models.training.failures import OutOfMemoryInCapture, ran_out_of_memory

if TYPE_CHECKING:
    from models.training.loop import Training

EAGER_STEPS = 3
"""Steps taken one kernel at a time before one is captured: what is made at its first use must be there by then."""

SWITCH = "TUNER_CUDA_GRAPHS"
"""The environment variable that lets steps be captured, when it is 1."""


def is_supported(config: Config, device: torch.device, team: Team) -> bool:
    """Whether the steps of such a run are captured: nothing in them may look at a number, nor speak to others."""
    asked = os.environ.get(SWITCH) == "1" and device.type == "cuda"
    return asked and config.architecture in ARCHITECTURES and config.optimizer in ("adam", "adamw") and team.size == 1


class Captured:
    """Takes the steps of `training` with `step`, captured when it has been taken a few times."""

    def __init__(self, training: Training, step: Callable[[Batch], Tensor]) -> None:
        self.training, self.step = training, step
        self.taken = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(training.device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Tensor:
        """Moves the weights once and returns the mean loss, valid until the next step."""
        self.taken += 1
        anew = batch.at_start and self.training.carries_state  # another step than those that follow it
        if self.taken <= EAGER_STEPS or anew:
            return self._aside(batch)
        if self.graph is None:
            self._capture(batch)
        return self._replayed(batch)

    def _aside(self, batch: Batch) -> Tensor:
        """Takes a step beside the stream of everything else, where the capture will be, too."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*capturable=True")  # says that the optimizer could be captured
            loss = self.step(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _capture(self, batch: Batch) -> None:
        """Records a step on tensors that stay where they are; nothing is computed yet."""
        self.batch = Batch(batch.inputs.clone(), batch.targets.clone(), at_start=False)
        self.states = [filled(state, (part.clone() for part in flat(state))) for state in self.training.states]
        self.training.states = list(self.states)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.loss = self.step(self.batch)
                self._keep_states()
        except RuntimeError as error:  # nothing can go on after it: the random numbers are still being captured
            if any(ran_out_of_memory(each) for each in (error, error.__context__) if each is not None):
                raise OutOfMemoryInCapture(f"while a training step was captured: {error}") from error
            raise DeviceError(f"a training step cannot be captured here: {error}; unset {SWITCH}") from error
        self.graph = graph

    def _replayed(self, batch: Batch) -> Tensor:
        assert self.graph is not None
        self.batch.inputs.copy_(batch.inputs)
        self.batch.targets.copy_(batch.targets)
        self._keep_states()
        self.graph.replay()
        return self.loss

    def _keep_states(self) -> None:
        """Puts the state that the last step left where the captured one looks for it."""
        for mine, theirs in zip(flat(self.states), flat(self.training.states), strict=True):
            if mine is not theirs:
                mine.copy_(theirs)
        self.training.states = list(self.states)
