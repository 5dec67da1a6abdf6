"""Provenance of a trial: versions, hardware, precision and tokenizer, recorded by its worker."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from typing import Any

import torch

from models.runs.reproducibility import machine
from models.text.tokenizers import Tokenizer

PACKAGES = ("textgen-tuner", "torch", "optuna", "numpy", "tokenizers")


def origin(tokenizer: Tokenizer, device: str, precision: str) -> dict[str, Any]:
    """Returns what has a say in the value of a trial beside its configuration and its text."""
    return {
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "versions": versions(device),
        "machine": machine(device),
        "precision": precision,
    }


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Returns the SHA-256 of a vocabulary: that of its file, tokenizer.json, in a run folder."""
    return "sha256:" + hashlib.sha256(tokenizer.model_dump_json(indent=1).encode() + b"\n").hexdigest()


def versions(device: str) -> dict[str, str]:
    """Returns the versions of Python, of the packages that matter, and of CUDA where it is used."""
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    return found | ({"cuda": str(torch.version.cuda)} if device.startswith("cuda") else {})
