"""A GPU's training step as a captured CUDA graph, for small models whose kernels run shorter than their launch.

Whole steps are captured as CUDA graphs (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs), their
learning rate, their random numbers and the state they carry on staying alive. Before a training relies on its graph,
it takes the same few steps with and without, from the same state: a graph that does something else, or does it slower,
is left alone.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.config import ARCHITECTURES, Config
from models.text.batches import Batch
from models.training.checkpoint import filled, flat
from models.training.distributed import Team
from models.training.failures import OutOfMemoryInCapture, ran_out_of_memory
from models.training.snapshot import moments

if TYPE_CHECKING:
    from models.training.loop import Training

EAGER_STEPS = 3
"""Steps taken one kernel at a time before one is captured: what is made at its first use must be there by then."""

TRIED_STEPS = 2
"""Steps in which a graph is compared with what it was captured from; the last one is timed."""

TOLERANCE = 0.01
"""How far the weights may move apart in these steps, as a part of how far they move. Measured: 0, to the bit."""

SLOWER = 1.2
"""How many times as long a captured step may take. Measured on an H200, small models: 0.14 to 0.43 times."""

MOST_WEIGHTS = 2**26
"""Weights of the largest model whose steps are captured: for a larger one, launching is nothing beside computing."""

SWITCH = "TUNER_CUDA_GRAPHS"
"""The environment variable that keeps steps from being captured, when it is 0."""

logger = logging.getLogger(__name__)


def is_supported(config: Config, device: torch.device, team: Team, model: nn.Module) -> bool:
    """Whether the steps of such a run are captured: nothing in them may look at a number, nor speak to others."""
    asked = os.environ.get(SWITCH) != "0" and device.type == "cuda"
    possible = config.architecture in ARCHITECTURES and config.optimizer in ("adam", "adamw") and team.size == 1
    return asked and possible and sum(weight.numel() for weight in model.parameters()) <= MOST_WEIGHTS


class Captured:
    """Takes the steps of `training` with `step`, captured when it has been taken a few times."""

    def __init__(self, training: Training, step: Callable[[Batch], Tensor]) -> None:
        self.training, self.step = training, step
        self.taken = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given_up = False
        self.stream = torch.cuda.Stream(training.device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Tensor:
        """Moves the weights once and returns the mean loss, valid until the next step."""
        self.taken += 1
        anew = batch.at_start and self.training.carries_state  # another step than those that follow it
        if self.given_up or self.taken <= EAGER_STEPS or anew:
            return self._aside(batch)
        if self.graph is None:
            problem = self._problem(batch)
            if problem is not None:
                self.given_up, self.graph = True, None
                logger.warning("steps are not captured as CUDA graphs: %s; the training goes on without", problem)
                return self._aside(batch)
        return self._replayed(batch)

    def _problem(self, batch: Batch) -> str | None:
        """Captures a step and says what is wrong with it, if anything; leaves the training as it was."""
        before = _Kept(self.training)
        eager = self._timed(self._aside, batch)
        wanted = [weight.detach().clone() for weight in self.training.parameters]
        before.put_back()
        try:
            self._capture(batch)
        except _CannotCapture as error:
            before.put_back()
            return f"{error}"
        captured = self._timed(self._replayed, batch)
        moved, apart = _distance(wanted, before.values), _distance(wanted, self.training.parameters)
        before.put_back()
        if not apart <= TOLERANCE * moved:
            return f"they move the weights elsewhere ({apart:.3g} apart after a movement of {moved:.3g})"
        if captured > SLOWER * eager:
            return f"they take {1e3 * captured:.3g} ms instead of {1e3 * eager:.3g}"
        return None

    def _timed(self, take: Callable[[Batch], Tensor], batch: Batch) -> float:
        """Takes a few steps on the same batch; returns the seconds of the last one."""
        for _ in range(TRIED_STEPS):
            self.training.synchronize()
            start = time.perf_counter()
            take(batch)
            self.training.synchronize()
        return time.perf_counter() - start

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
        except RuntimeError as error:
            if any(ran_out_of_memory(each) for each in (error, error.__context__) if each is not None):
                raise OutOfMemoryInCapture(f"while a training step was captured: {error}") from error
            _stop_capturing_random_numbers(self.training.device)
            raise _CannotCapture(f"{error}".partition("\n")[0]) from error
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


class _CannotCapture(Exception):
    """CUDA refuses to capture the step, and the process can go on."""


class _Kept:
    """A copy of all that a step changes; its first `values` are the weights."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.places = [*training.parameters, *moments(training.optimizers).values()]
        self.values = [place.detach().clone() for place in self.places]
        self.states = [filled(state, (part.clone() for part in flat(state))) for state in training.states]
        self.random = _random_state(training.device)

    @torch.no_grad()
    def put_back(self) -> None:
        """Gives the training back what it was, in place: a graph knows the tensors by their addresses."""
        for place, value in zip(self.places, self.values, strict=True):
            place.copy_(value)
        for optimizer in self.training.optimizers:
            optimizer.zero_grad()
        self.training.states = [filled(state, (part.clone() for part in flat(state))) for state in self.states]
        _set_random_state(self.training.device, self.random)


@torch.no_grad()
def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The Euclidean distance between weights; `others` may be followed by more."""
    squares = [(one - other).square().sum() for one, other in zip(some, others, strict=False)]
    return math.sqrt(torch.stack(squares).sum().item())


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)


def _stop_capturing_random_numbers(device: torch.device) -> None:
    """Gives a GPU's generator a state of its own again: a capture that failed goes on holding the one it had."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        fresh = torch.Generator(device).graphsafe_get_state()
        torch.cuda.default_generators[index].graphsafe_set_state(fresh)
