"""Recognises errors that mean out of memory, and those that make a GPU unusable for the process."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC(ATION)?_FAILED|Storage size calculation overflowed",
    re.IGNORECASE,
)
"""What torch, CUDA, cuBLAS and cuDNN say; as errors of no class of their own, for the most part.

The last is said of a workspace that cuDNN asks for, for a recurrence far too large.
"""

_LOST = re.compile(
    r"(CUDA|HIP)( driver)? error|NCCL error|device-side assert"
    r"|\b(CU|HIP|ROC|MI)[A-Z]+_?STATUS_(INTERNAL_ERROR|EXECUTION_FAILED|MAPPING_ERROR|NOT_INITIALIZED)",
    re.IGNORECASE,
)


class OutOfMemoryInCapture(torch.OutOfMemoryError):
    """Memory ran out while a step was captured; the random numbers go on being captured, so nothing can follow."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory, of the GPU or of the machine, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def lost_device(error: BaseException) -> BaseException | None:
    """Returns the error, perhaps one behind this one, after which every call of CUDA in this process fails, if any."""
    return next((each for each in _with_causes(error) if _loses_device(each)), None)


def _loses_device(error: BaseException) -> bool:
    if isinstance(error, OutOfMemoryInCapture):
        return True
    if ran_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or _LOST.search(str(error)) is not None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those it was raised from or while handling, which a custom generator may have caught."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        yield following
        following = following.__cause__ or following.__context__
