"""Best trial -> configuration + provenance -> a file that `tuner train` reads."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from models.config import Config, Recipe
from models.errors import ConfigError, RunError
from models.files import draft_of, is_stream, optional, reason, require_makeable, sweep, written_whole
from models.reader import parse, plain, read_text
from models.wording import counted
from tuner.errors import StudyError
from tuner.results.confirmation import confirmation_of, confirmed_trial
from tuner.results.decoding_plot import draw_decoding
from tuner.results.formats import OURS, render
from tuner.results.records import STATES
from tuner.results.summary import NO_WORKER, numbered, quality, require_board
from tuner.storage.handle import StudyHandle
from tuner.study.definition import OBJECTIVES, Study
from tuner.study.facts import is_result, number

KEPT = (
    "text_divergence",
    "validation_part",
    "tokens",
    "training_seconds",
    "tokens_per_second",
    "parameter_count",
    "peak_memory_bytes",
    "device",
    "machine",
    "precision",
    "tokenizer_fingerprint",
    "versions",
)
"""The facts of a trial that its worker wrote and its export repeats."""


def chosen_trial(study: optuna.Study, wanted: int | None = None, prefer: str = OBJECTIVES[0]) -> FrozenTrial:
    """Returns the completed trial of that number, or the best one in what is preferred. Raises StudyError."""
    if wanted is None:
        return best_trials(study, prefer)[0]
    found = numbered(study.get_trials(deepcopy=False), wanted, study.study_name)
    if found.state != TrialState.COMPLETE:
        raise StudyError(f"trial {wanted} is {STATES[found.state]}; only a complete one can be exported")
    if not is_result(found):
        raise StudyError(f"trial {wanted}: {NO_WORKER}, so that it is no result; there is nothing to export")
    return found


def best_trials(study: optuna.Study, prefer: str = OBJECTIVES[0], count: int = 1) -> list[FrozenTrial]:
    """Returns at least `count` completed trials, those first that are best in what is preferred. Raises StudyError.

    In bits per byte, the first is the one that a confirmation chose, as long as nothing better was found since.
    """
    board = require_board(study.get_trials(deepcopy=False), study.study_name)
    if prefer == OBJECTIVES[0]:
        chosen = confirmed_trial(study, board)
        ranked = board if chosen is None else [chosen, *(trial for trial in board if trial is not chosen)]
    else:
        ranked = [trial for trial in board if number(trial, prefer) is not None]
        ranked.sort(key=lambda trial: number(trial, prefer) or 0.0)
    if not ranked:
        raise StudyError(f"no trial of study {study.study_name} was long enough to measure its {prefer}")
    if len(ranked) < count:
        trials = counted(len(ranked), "completed trial")
        raise StudyError(f"study {study.study_name} has {trials}, not {count}; give a smaller --top")
    return ranked


def files(output: Path, top: int | None) -> list[Path]:
    """Returns the files to write: `output`, or for the best few best-1.yaml, best-2.yaml, ... beside it."""
    if top is None:
        return [output]
    return [output.with_stem(f"{output.stem}-{place}") for place in range(1, top + 1)]


def exported(study: StudyHandle, trial: FrozenTrial, path: Path, format_name: str = "yaml") -> str:
    """Returns the file's text: the stored configuration, never rebuilt from today's defaults, and where it is from."""
    facts, definition = trial.user_attrs, study.definition
    fingerprint = study.optuna_study.user_attrs.get("fingerprint")
    recipe = Recipe(
        corpus=definition.corpus.model_copy(update={"fingerprint": fingerprint}),
        trial=definition.trial,
        parameters=_stored(trial),
        threads=facts["threads"],
        provenance=_provenance(study, trial),
    )
    command = training_command(path, facts.get("device"))
    lines = [
        f"{quality(trial):.4f} bits per byte on the validation split: trial {trial.number} of study {study.name}",
        *([f"Train it:  {command}"] if format_name in OURS else []),
        *_came_to(definition, trial),
    ]
    return render(recipe, format_name, "\n".join(lines), command)


def _stored(trial: FrozenTrial) -> Config:
    """The configuration that a trial was trained with. Raises StudyError."""
    try:
        return Config.model_validate(trial.user_attrs["configuration"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StudyError(
            f"trial {trial.number}: its stored configuration cannot be: {place}: {first['msg']}"
        ) from error


def training_command(path: Path, device: str | None) -> str:
    """Returns the command that trains an export to the value in it: on a CPU if the trial was trained on one."""
    on = ["--device", "cpu"] if device == "cpu" else []
    return shlex.join(["tuner", "train", str(path), "-o", "my-run", *on])


def _came_to(study: Study, trial: FrozenTrial) -> list[str]:
    """For a budget in seconds, what this trial made of it: tokens are the same on every machine."""
    tokens = trial.user_attrs.get("tokens")
    if study.trial.seconds is None or tokens is None:
        return []
    return [f"Its {study.trial.seconds:g} seconds came to {tokens} tokens; --tokens {tokens} trains as much anywhere."]


def write_new(path: Path, text: str, force: bool, study_name: str | None = None) -> None:
    """Writes a file whole; raises RunError where another one is in the way, unless it is an export of that study."""
    require_free(path, force, study_name)
    try:
        if not is_stream(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent, path.name)
        with written_whole(path) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error


def require_free(path: Path, force: bool, study_name: str | None = None) -> None:
    """Raises RunError when a file is in the way; an earlier export of the same study is not."""
    if is_stream(path):
        return
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name a file, such as {path / 'best.yaml'}")
    if path.exists() and not force and (study_name is None or _study_of(path) != study_name):
        raise RunError(f"{path}: exists already; name another file with -o, or replace it with --force")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"{path}: {parent} is not a folder that you may write in; name another file with -o")


def require_makeable_outputs(*outputs: Path) -> None:
    """Tries the folders of what is to be written after long work; raises RunError where that will not be possible."""
    for path in outputs:
        try:
            if not is_stream(path):
                require_makeable(path.parent)
        except OSError as error:
            raise RunError(
                f"{path}: {path.parent} cannot be written to ({reason(error)}); name another place"
            ) from error


def copy_run(trial: FrozenTrial, source: Path, target: Path, force: bool) -> None:
    """Copies the kept run folder of a trial, with a picture of its decoding. Raises RunError."""
    require_copiable(source, target, force)
    draft = draft_of(target)
    try:
        sweep(target.parent, target.name)
        shutil.copytree(source, draft)
        with optional(f"{target}: decoding.svg is not drawn"):
            draw_decoding(trial, draft)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    except OSError as error:  # copytree's lists one for each file
        raise RunError(f"{target}: cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def require_copiable(source: Path, target: Path, force: bool, elsewhere: str | None = None) -> None:
    """Raises RunError unless the run folder of a trial is kept, and can be copied; `elsewhere` says where to look."""
    if not source.is_dir():
        if elsewhere is not None:
            raise RunError(f"{source}: no weights of this trial; {elsewhere}")
        raise RunError(f"{source}: the weights of this trial are not kept here; train it with `tuner train`")
    require_run_free(target, force)


def require_run_free(folder: Path, force: bool) -> None:
    """Raises RunError when something is in a run folder's way; `force` may replace a run, never anything else."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        from models.runs.run import require_replaceable  # it imports torch, which takes a second

        require_replaceable(folder, force)


def _study_of(path: Path) -> Any:
    try:
        provenance = plain(parse(read_text(path), str(path))).get("provenance")
    except ConfigError:
        return None
    return provenance.get("study") if isinstance(provenance, dict) else None


def _provenance(study: StudyHandle, trial: FrozenTrial) -> dict[str, Any]:
    """Where a configuration is from, all of it written down when it was trained."""
    known = {name: trial.user_attrs[name] for name in KEPT if trial.user_attrs.get(name) is not None}
    confirmed = confirmation_of(study.optuna_study, trial.number)
    return {
        "study": study.name,
        "trial": trial.number,
        "objective": study.definition.objective,
        "value": quality(trial),
        **known,
        "finished": None if trial.datetime_complete is None else trial.datetime_complete.isoformat(timespec="seconds"),
        **({} if confirmed is None else {"confirmation": confirmed}),
    }
