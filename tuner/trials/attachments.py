"""Attachments of a trial for the dashboard: some texts and a file of samples."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tuner.optuna_internals import ARTIFACT_PREFIX

ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What a kept file is called."""

SAMPLES_ATTRIBUTE = "tuner:samples"
"""The system attribute of a trial that holds some of its texts: the dashboard lists user attributes, one by one."""


PROMPT_CHARACTERS, TEXT_CHARACTERS = 300, 1_000
"""The most that is kept of a sample in the database; the whole of it lies with the artifacts."""


def samples_kept(samples: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Returns the system attributes in which some texts of a completed trial are kept for its note."""
    short = [{"prompt": one["prompt"][-PROMPT_CHARACTERS:], "text": one["text"][:TEXT_CHARACTERS]} for one in samples]
    return {SAMPLES_ATTRIBUTE: short} if short else {}


def attachments_of(attributes: Mapping[str, Any]) -> list[str]:
    """Returns the kept files that a trial's system attributes point at; a deleted one's value is null."""
    keys = [
        key.removeprefix(ARTIFACT_PREFIX)
        for key, value in attributes.items()
        if key.startswith(ARTIFACT_PREFIX) and value
    ]
    return [key for key in keys if ID.fullmatch(key)]


def attached(attachment: str, filename: str) -> dict[str, Any]:
    """Returns the system attribute that shows a kept file (`Artifacts.attach`) beside a trial."""
    from optuna.artifacts import ArtifactMeta

    meta = ArtifactMeta(attachment, filename, "application/jsonl", None)
    return {ARTIFACT_PREFIX + attachment: json.dumps(asdict(meta))}
