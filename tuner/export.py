"""Best trial -> configuration + provenance -> a file that `tuner train` and `python -m models train` read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from models.config import Config, Recipe
from models.errors import ConfigError, RunError
from models.reader import dump, parse, plain, read_text
from tuner.errors import StudyError
from tuner.plots import draw_decoding
from tuner.report import leaderboard, numbered, quality
from tuner.study import OBJECTIVES, Study

VERSIONS = ("textgen-tuner", "torch", "optuna", "numpy", "tokenizers")


def chosen_trial(study: optuna.Study, number: int | None = None, prefer: str = OBJECTIVES[0]) -> FrozenTrial:
    """Returns the completed trial of that number, or the best one in what is preferred. Raises StudyError."""
    trials = study.get_trials(deepcopy=False)
    if number is not None:
        found = numbered(trials, number, study.study_name)
        if found.state != TrialState.COMPLETE:
            raise StudyError(f"trial {number} is {found.state.name.lower()}; only a complete one can be exported")
        return found
    board = leaderboard(trials)
    if not board:
        raise StudyError(f"study {study.study_name} has no completed trial yet; look again with `tuner status`")
    if prefer == OBJECTIVES[0]:
        return board[0]
    measured = [trial for trial in board if trial.user_attrs.get(prefer) is not None]
    if not measured:
        raise StudyError(f"no trial of study {study.study_name} was long enough to measure its {prefer}")
    return min(measured, key=lambda trial: trial.user_attrs[prefer])


def exported(optuna_study: optuna.Study, study: Study, trial: FrozenTrial, path: Path) -> str:
    """Returns the file's text: the stored configuration, never rebuilt from today's defaults, and where it is from."""
    facts = trial.user_attrs
    recipe = Recipe(
        corpus=study.corpus.model_copy(update={"fingerprint": optuna_study.user_attrs["fingerprint"]}),
        trial=study.trial,
        parameters=Config.model_validate(facts["configuration"]),
        threads=facts["threads"],
        provenance=_provenance(study, trial),
    )
    header = (
        f"{quality(trial):.4f} bits per byte on the validation split: trial {trial.number} of study {study.name}\n"
        f"Train it:  tuner train {path} -o my-run      (or: python -m models train {path} -o my-run)"
    )
    values = recipe.model_dump(mode="json", exclude_none=True)
    values["parameters"] = recipe.parameters.model_dump(mode="json")
    return dump(values, header)


def write_new(path: Path, text: str, force: bool, study_name: str | None = None) -> None:
    """Writes a file whole; raises RunError where another one is in the way, unless it is an export of that study."""
    require_free(path, force, study_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error


def require_free(path: Path, force: bool, study_name: str | None = None) -> None:
    """Raises RunError when a file is in the way; an earlier export of the same study is not."""
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name a file, such as {path / 'best.yaml'}")
    if path.exists() and not force and (study_name is None or _study_of(path) != study_name):
        raise RunError(f"{path}: exists already; name another file with -o, or replace it with --force")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"{path}: {parent} is not a folder that you may write in; name another file with -o")


def copy_run(trial: FrozenTrial, source: Path, target: Path, force: bool) -> None:
    """Copies the kept run folder of a trial, with a picture of its decoding. Raises RunError."""
    require_copiable(source, target, force)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copytree(source, draft)
        draw_decoding(trial, draft)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror})") from error


def require_copiable(source: Path, target: Path, force: bool) -> None:
    """Raises RunError unless the run folder of a trial is kept, and can be copied."""
    if not source.is_dir():
        raise RunError(f"{source}: the weights of this trial are not kept here; train it with `tuner train`")
    require_run_free(target, force)


def require_run_free(folder: Path, force: bool) -> None:
    """Raises RunError when something is in a run folder's way; `force` may replace a run, never anything else."""
    from models.run import require_replaceable  # it imports torch, which nothing else here needs

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        require_replaceable(folder, force)


def _study_of(path: Path) -> Any:
    try:
        provenance = plain(parse(read_text(path), str(path))).get("provenance")
    except ConfigError:
        return None
    return provenance.get("study") if isinstance(provenance, dict) else None


def _provenance(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    facts = trial.user_attrs
    kept = ("tokens", "training_seconds", "tokens_per_second", "parameter_count", "peak_memory_bytes", "device")
    return {
        "study": study.name,
        "trial": trial.number,
        "objective": study.objective,
        "value": quality(trial),
        **({} if facts.get("text_divergence") is None else {"text_divergence": facts["text_divergence"]}),
        **{name: facts[name] for name in kept if facts.get(name) is not None},
        "finished": None if trial.datetime_complete is None else trial.datetime_complete.isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}, {platform.processor() or 'unknown processor'}",
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in VERSIONS}
