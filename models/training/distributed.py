"""Data-parallel training by several processes, as torchrun starts them; a single process is a team of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from models.errors import ConfigError, DeviceError, UserError

Result = TypeVar("Result")


class FailedElsewhere(UserError):
    """Another process of the team says what is wrong, so that it is said once."""


@dataclass(frozen=True)
class Team:
    """One process's view of its team: its number, and how many they are.

    Every method that has to hear of the others is to be called by all of them, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Returns which rows of a batch are this process's; raises ConfigError when it cannot be split evenly."""
        if batch_size % self.size:
            raise ConfigError(
                f"batch_size: {batch_size} cannot be split evenly over {self.size} processes; "
                "start a number that divides it with --nproc-per-node, or change batch_size"
            )
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def device(self, name: str) -> str:
        """Returns the device of this process: the one of its own number where they are GPUs. Raises DeviceError."""
        if self.size == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return name
        if name not in ("auto", "cuda"):
            raise DeviceError(f"device {name}: several processes need one each; leave --device away, or give cpu")
        here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > devices:
            raise DeviceError(f"device {name}: {here} processes here and {devices} CUDA devices; start one for each")
        return f"cuda:{os.environ['LOCAL_RANK']}"

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the leader's values."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor, 0)

    def all_reduce_mean(self, gradients: Iterable[Tensor | None]) -> None:
        """Makes gradients the mean over all processes."""
        if self.size == 1:
            return
        given = [gradient for gradient in gradients if gradient is not None]
        whole = torch.cat([gradient.flatten() for gradient in given])
        distributed.all_reduce(whole)
        whole /= self.size
        for gradient, part in zip(given, torch.split(whole, [each.numel() for each in given]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gathered(self, tensor: Tensor, dimension: int) -> Tensor:
        """Returns the tensors of all processes joined, which have one shape."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, dimension)

    def numbers(self, number: float) -> list[float]:
        """Returns the numbers of all processes, in their order."""
        own = torch.tensor([number], dtype=torch.float64)
        return [number] if self.size == 1 else list(self.gathered(own, 0).tolist())

    def total(self, number: float) -> float:
        """Returns the sum of all processes' numbers, the same everywhere to the last bit."""
        return sum(self.numbers(number)) if self.size > 1 else number

    def any(self, flag: bool) -> bool:
        """Returns whether one of the processes says so."""
        return any(self.numbers(flag))

    def main_process_first(self, action: Callable[[], Result]) -> Result:
        """Does something on the leader, then on the others; raises on all of them when the leader cannot."""
        problem: UserError | None = None
        try:
            result = action() if self.is_main_process else None
        except UserError as error:
            problem = error
        if self.any(problem is not None):
            raise problem or FailedElsewhere
        return cast(Result, result) if self.is_main_process else action()

    def main_process_only(self, action: Callable[[], None]) -> None:
        """Does something on the leader while the others wait; raises on all of them when it cannot be done."""
        self.main_process_first(lambda: action() if self.is_main_process else None)


ALONE = Team()


@contextmanager
def joined_team() -> Iterator[Team]:
    """Joins the processes that torchrun started with this one; yields ALONE where there are none."""
    if not distributed.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    # An optimizer imports this module, whose defaults hold the group there is: then its threads outlive it, and abort
    # Python at its end now and then (seen with torch 2.13). Imported before there is one, it holds none.
    import torch.distributed.nn

    # Numbers are compared on the CPU even where gradients travel between GPUs.
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
