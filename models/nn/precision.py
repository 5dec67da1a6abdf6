"""Chooses the number format of a run's matrix products."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from models.config import ARCHITECTURES, Config

WIDE = 128
"""Hidden units from which on a tanh network or a GRU is faster in half precision; the others always are."""

MIXED = "bfloat16, recurrences in float32"
"""What is written down of a run whose recurrences cannot be in the format of everything else."""


def set_precision(model: nn.Module, config: Config, device: torch.device) -> tuple[bool, str]:
    """Gives a model the precision that `config` asks for; returns `half` for `autocast`, and the format to read."""
    half = half_precision(config, device)
    if device.type == "cuda":
        allow_tf32(config)
    return half, set_recurrences(model, device, half)


def autocast(device: torch.device, half: bool) -> torch.autocast:
    """Returns the context in which products are in bfloat16, if `half` is true."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def half_precision(config: Config, device: torch.device) -> bool:
    """Whether products are in bfloat16; `auto` means where that is faster, unknown for a custom generator on a CPU."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return config.architecture not in ("rnn", "lstm", "gru") and _gpu_multiplies_halves(device)
    if config.architecture not in ARCHITECTURES or not _multiplies_halves():
        return False
    return config.architecture in ("lstm", "transformer") or config.hidden_size >= WIDE


def set_recurrences(model: nn.Module, device: torch.device, half: bool) -> str:
    """Takes the recurrences that cannot be in bfloat16 there out of autocast; returns the format's name for reports.

    It changes the modules of `model`, custom ones too; outside of autocast they do what they did.
    """
    excepted = [
        module
        for module in model.modules()
        if half and isinstance(module, nn.RNNBase) and not steps_in_halves(module.mode, device)
    ]
    for module in excepted:
        module.forward = partial(_in_single, module)
    return MIXED if excepted else "bfloat16" if half else "float32"


def steps_in_halves(mode: str, device: torch.device) -> bool:
    """Whether a recurrence of that mode, as torch names it, is trained in bfloat16 when autocast asks for it.

    On a GPU none is: for cuDNN's, autocast means float16 whatever it was asked for (torch's AutocastRNN.cpp), and
    without a scaled loss the gradients of large batches vanish in it. On a CPU, oneDNN's LSTM needs instructions for
    it.
    """
    return device.type != "cuda" and (mode != "LSTM" or _lstm_takes_halves())


def allow_tf32(config: Config) -> None:
    """Lets a GPU shorten single-precision products to TF32 from here on, unless float32 was asked for by name."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision != "float32"


def _in_single(recurrence: nn.RNNBase, input: Any, hx: Any = None) -> Any:
    """What `recurrence` does, in single precision whatever autocast asks for."""
    with torch.autocast(next(recurrence.parameters()).device.type, enabled=False):
        return type(recurrence).forward(recurrence, input.float(), _single(hx))


def _single(state: Any) -> Any:
    """A recurrence's state, None, a tensor or two of them, in single precision."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else state.float()
    return tuple(part.float() for part in state)


def _multiplies_halves() -> bool:
    """Whether the processor has instructions for it; others convert back and forth, and are slower."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _gpu_multiplies_halves(device: torch.device) -> bool:
    """Whether the GPU has instructions for it; older ones pretend to, and are slower."""
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


@cache
def _lstm_takes_halves() -> bool:
    """Whether torch can train an LSTM in bfloat16 on this processor, found out by a step of a small one."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        try:
            outputs, _ = nn.LSTM(8, 8)(torch.zeros(1, 1, 8))
            outputs.float().sum().backward()
        except RuntimeError:  # could not create a primitive descriptor
            return False
    return True
