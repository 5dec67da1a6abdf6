"""Which number format the matrix products of a run have."""

from __future__ import annotations

import torch

from models.config import ARCHITECTURES, Config

WIDE = 128
"""Hidden units from which on a tanh network or a GRU is faster in half precision; the others always are."""


def half_precision(config: Config, device: torch.device) -> bool:
    """Whether products are in bfloat16; `auto` means where that is faster, unknown of one's own generator on a CPU."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if config.architecture not in ARCHITECTURES or not _multiplies_halves():
        return False
    return config.architecture in ("lstm", "transformer") or config.hidden_size >= WIDE


def allow_short_products(config: Config) -> None:
    """Lets a GPU shorten single-precision products to TF32 from here on, unless float32 was asked for by name."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision != "float32"


def _multiplies_halves() -> bool:
    """Whether the processor has instructions for it; others convert back and forth, and are slower."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
