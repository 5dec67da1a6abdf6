"""Attachments of a trial for the dashboard: some texts and a file of samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tuner.optuna_internals import ARTIFACT_PREFIX

SAMPLES_ATTRIBUTE = "tuner:samples"
"""The system attribute of a trial that holds some of its texts: the dashboard lists user attributes, one by one."""


PROMPT_CHARACTERS, TEXT_CHARACTERS = 300, 1_000
"""The most that is kept of a sample in the database; the whole of it lies with the artifacts."""


def samples_kept(samples: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Returns the system attributes in which some texts of a completed trial are kept for its note."""
    short = [{"prompt": one["prompt"][-PROMPT_CHARACTERS:], "text": one["text"][:TEXT_CHARACTERS]} for one in samples]
    return {SAMPLES_ATTRIBUTE: short} if short else {}


def attached(attachment: str, filename: str) -> dict[str, Any]:
    """Returns the system attribute that shows a kept file (`Artifacts.attach`) beside a trial."""
    from optuna.artifacts import ArtifactMeta

    meta = ArtifactMeta(attachment, filename, "application/jsonl", None)
    return {ARTIFACT_PREFIX + attachment: json.dumps(asdict(meta))}
