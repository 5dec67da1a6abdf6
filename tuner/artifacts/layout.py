"""What files of a study are called, and its folder: the names by which a study's checkpoints and runs are found."""

from __future__ import annotations

import re

ATTACHMENTS = ".attachments"
"""Where the dashboard finds the files of all studies' trials; no study's name begins with a dot."""

OWNER = "owner.json"
"""Says in a study's folder whose it is."""

SAMPLES_FILE = "samples.jsonl"
RUN = ("config.yaml", "tokenizer.json", "metrics.jsonl", SAMPLES_FILE, "model.safetensors")
"""The files of a run folder (models.runs.run, which imports torch), in the order they are shared."""

CHECKPOINT = re.compile(r"checkpoints/trial-([0-9]{1,9})\.[0-9]{1,9}\.safetensors")
RUN_FILE = re.compile(rf"trial-([0-9]{{1,9}})/(?:{'|'.join(map(re.escape, RUN))})")

NAME_BYTES, FOLDER_BYTES = 200, 255
"""The longest name of a study, and of a folder: one of its confirmation or of a namesake has some more behind it."""


def run_name(trial: int) -> str:
    """Returns what the run folder of a trial is called."""
    return f"trial-{trial}"


def run_file(trial: int, file: str) -> str:
    """Returns the name of a file of a trial's run, one of RUN."""
    return f"{run_name(trial)}/{file}"


def checkpoint_name(trial: int, attempt: int) -> str:
    """Returns the name of the checkpoint that an attempt at a trial leaves."""
    return f"checkpoints/trial-{trial}.{attempt}.safetensors"


def name_problem(name: str, most: int = NAME_BYTES) -> str | None:
    """Returns why a study cannot have this name, None if it can: its folders have it, too."""
    if name.strip() and name[0] not in ".-" and "/" not in name and name.isprintable() and len(name.encode()) <= most:
        return None
    return f"its folders have this name: no / in it, no dot or - in front, one line of at most {most} bytes"
