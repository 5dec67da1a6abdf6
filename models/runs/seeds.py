"""Trains several seeds of one configuration, each in a run folder of its own; their mean and spread."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from models.config import Config, Recipe
from models.errors import RunError
from models.files import reason
from models.runs.report import RESULT
from models.runs.run import CONFIG, is_finished, read_recipe, require_free, require_same

SCORED = ("validation", "test")


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """Returns the recipe with another seed; raises pydantic's ValidationError."""
    parameters = Config.model_validate(recipe.parameters.model_dump() | {"seed": seed})
    return recipe.model_copy(update={"parameters": parameters})


def seed_runs(recipe: Recipe, folder: Path, count: int) -> dict[Path, Recipe]:
    """Returns the folders of `count` runs, and what to train in each: from the recipe's seed upwards."""
    first = recipe.parameters.seed
    return {folder / f"seed-{seed}": seeded(recipe, seed) for seed in range(first, first + count)}


def require_startable(folder: Path, runs: dict[Path, Recipe], resume: bool, force: bool) -> None:
    """Raises RunError when one of several runs cannot begin, so that it is known before the first one does."""
    if (folder / CONFIG).exists():
        raise RunError(f"{folder}: holds a run of one seed; choose another -o for several")
    for run in runs:
        if not (resume and (run / CONFIG).exists()):
            require_free(run, force)


def trained_already(folder: Path, recipe: Recipe, allow_changed_corpus: bool) -> bool:
    """Whether `folder` holds this very run, finished; raises RunError when it holds another one."""
    if not is_finished(folder):
        return False
    if recipe.corpus.fingerprint is None or allow_changed_corpus:
        kept = read_recipe(folder / CONFIG).corpus.fingerprint
        recipe = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"fingerprint": kept})})
    require_same(folder, recipe)
    return True


def summary(folders: Iterable[Path]) -> Iterator[str]:
    """Yields lines that say how the finished runs in `folders` did: mean and standard deviation on each split."""
    results = []
    for folder in folders:
        try:
            results.append(_scores(folder / RESULT))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            yield f"{folder / RESULT}: cannot be read ({reason(error)}); left out of the mean"
    for split in SCORED:
        scores = [result[split] for result in results if split in result]
        if scores:
            spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
            yield f"{statistics.mean(scores):.4f}{spread} bits per byte on the {split} split, over {len(scores)} seeds"


def _scores(path: Path) -> dict[str, float]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {split: float(found[split]["bits_per_byte"]) for split in SCORED if found[split] is not None}
