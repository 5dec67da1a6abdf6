"""Checks whether a training reached the value that its file promises, and if not, what likely differs."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from models.config import Recipe
from models.training.distributed import Team
from models.training.loop import Trained


def machine(device: str) -> str:
    """Returns the system and the processor, or the GPU, that a device belongs to."""
    chip = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return f"{platform.system()} {platform.machine()}, {chip}"


def compared(promised: Recipe, recipe: Recipe, trained: Trained, team: Team) -> str | None:
    """Says how a finished run compares with the value in the provenance of its file, `promised`.

    None where there is none, or where the run was another one: of another budget, seed or configuration.
    """
    facts = promised.provenance or {}
    value = facts.get("value")
    if not isinstance(value, float) or (recipe.trial, recipe.parameters) != (promised.trial, promised.parameters):
        return None
    origin = f"trial {facts.get('trial')} of study {facts.get('study')}"
    found = trained.best.bits_per_byte
    if found == value:
        return f"To the last bit the value of {origin}"
    differing = "; ".join(_causes(promised, recipe, trained, facts, team)) or "nothing that the file tells of"
    interval = facts.get("confirmation") or {}
    within = ""
    if {"low", "high"} <= interval.keys():
        inside = interval["low"] <= found <= interval["high"]
        within = f", {'within' if inside else 'outside'} {interval['low']:.4f} to {interval['high']:.4f} of fresh seeds"
    return f"{found - value:+.4f} from the {value:.4f} of {origin}{within}; what differs: {differing}"


def _causes(promised: Recipe, recipe: Recipe, trained: Trained, facts: dict[str, Any], team: Team) -> Iterator[str]:
    device = next(trained.model.parameters()).device
    versions = facts.get("versions") or {}
    compared = {
        "machine": (facts.get("machine"), machine(str(device))),
        "torch": (versions.get("torch"), torch.__version__),
    }
    for name, (there, here) in compared.items():
        if there is not None and _release(there) != _release(here):
            yield f"{name} ({there} there, {here} here)"
    if facts.get("validation_part"):
        yield f"the search read {facts['validation_part']:.1%} of the validation split, this run all of it"
    if promised.trial.seconds is not None:
        yield f"seconds buy other numbers of tokens ({facts.get('tokens', 0):,} there, {trained.tokens:,} here)"
    if recipe.threads != promised.threads:
        yield f"CPU threads ({promised.threads} there, {recipe.threads} here)"
    if team.size > 1 or recipe.micro_batch is not None:
        yield "a batch in pieces adds up in another order"
    if device.type == "cuda":
        yield "a GPU does not add up in the same order every time"


def _release(version: str) -> str:
    """A version without the kind of its build, which packages tell in one place and not in another."""
    return version.partition("+")[0]


def _processor() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
