"""What the dashboard shows beside a trial: its texts, in Markdown that is safe whatever a model writes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import optuna

from models.report import fenced

WIDTH = 100
"""Characters in a line of a sample."""

SHOWN = {
    "text_divergence": "text divergence",
    "bleu": "BLEU",
    "self_bleu": "self-BLEU",
    "rouge_l": "ROUGE-L",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "repetition": "repetition",
    "zipf": "Zipf exponent",
}


def trial_note(facts: dict[str, Any], samples: list[dict[str, str]]) -> str:
    """Returns the note of a completed trial: how like human text its texts are, and some of them."""
    return "\n\n".join([*_measures(facts), *(part for sample in samples for part in _sample(sample))]) + "\n"


def write(trial: optuna.Trial, note: str) -> None:
    """Writes the first note of a trial; may be repeated."""
    from optuna_dashboard._note import save_note_with_version  # its public sister reads the notes of all trials first

    save_note_with_version(trial.storage, trial.study._study_id, trial._trial_id, 1, note)


def attach(trial: optuna.Trial, attachment: str, filename: str) -> None:
    """Shows a kept file (`Artifacts.attach`) beside a trial; may be repeated."""
    from optuna.artifacts import ArtifactMeta
    from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX

    meta = ArtifactMeta(attachment, filename, "application/jsonl", None)
    trial.storage.set_trial_system_attr(trial._trial_id, ARTIFACTS_ATTR_PREFIX + attachment, json.dumps(asdict(meta)))


def _measures(facts: dict[str, Any]) -> list[str]:
    if "text" not in facts:
        return []
    written = {"text_divergence": facts["text_divergence"], **facts["text"]}
    human = {"text_divergence": 0, **facts["human_text"]}
    rows = [f"| {title} | {written[name]:.4g} | {human[name]:.4g} |" for name, title in SHOWN.items()]
    return ["\n".join(["| measure | this model | people |", "|---|---|---|", *rows])]


def _sample(sample: dict[str, str]) -> list[str]:
    return ["After", shown(sample["prompt"]), "it writes", shown(sample["text"])]


def shown(text: str) -> str:
    """Returns a text as a block of Markdown; long lines are broken, for the page does not."""
    lines = (line[start : start + WIDTH] for line in text.split("\n") for start in range(0, len(line) or 1, WIDTH))
    return fenced("\n".join(lines))
