"""What `tuner run` shows at the end: the best trials, the export, the trained model and what it writes."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models.errors import RunError
from tuner.cli.shared import show
from tuner.errors import StudyError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from tuner.artifacts.store import Artifacts
    from tuner.storage.handle import StudyHandle

logger = logging.getLogger(__name__)


def show_ending(
    study: StudyHandle,
    artifacts: Artifacts,
    output: Path,
    run_folder: Path,
    reason: str,
) -> None:
    """Exports the best trial and its run, and shows what came out."""
    from tuner.results.export import chosen_trial, exported, write_new
    from tuner.results.kept_runs import fetched
    from tuner.results.summary import current
    from tuner.watch.tables import described, leaderboard_table

    now = current(study)
    if now.best is None:
        for trial in [one for one in now.trials if one.state.is_finished()][-3:]:
            click.echo(described(trial, study.definition, None), err=True)
        raise StudyError(f"study {study.name} ended without a completed trial: {reason}")
    trial = chosen_trial(study.optuna_study)
    problem: RunError | None = None
    try:
        write_new(output, exported(study, trial, output), force=True)
    except RunError as error:  # it was free before the search
        problem = error
    unfit = f", {now.unfit} did not fit" if now.unfit else ""
    click.echo(f"\nDone: {reason}. {now.counts.complete} complete, {now.pruned} pruned{unfit}.\n")
    show(leaderboard_table(now))
    _show_confirmation(study.optuna_study)
    if problem is not None:
        raise RunError(f"{problem}; write it elsewhere: tuner export {shlex.quote(study.name)} -o FILE")
    click.echo(f"\nBest configuration: {output}")
    kept = fetched(artifacts, trial.number)
    if kept is not None:
        run_folder = _show_run(trial, kept, run_folder)
    else:
        click.echo("Its trained model was kept by a worker elsewhere; with shared --artifacts it would be here, too.")
    click.echo(f"\nNext:\n  tuner dashboard {study.name}\n  tuner train {output} -o my-run --tokens 5000000")
    if kept is not None:
        click.echo(f'  tuner generate {run_folder} --prompt "The "')


def _show_run(trial: FrozenTrial, kept: Path, run_folder: Path) -> Path:
    """Copies the run of the best trial, lets it write, and returns where it is: where it was kept if all else fails."""
    from models.files import optional
    from models.runs.run import load
    from models.safe_text.terminal import printed
    from tuner.results.export import copy_run

    try:
        copy_run(trial, kept, run_folder, force=True)
    except RunError as error:
        logger.warning("%s", error)
        run_folder = kept
    click.echo(f"Its trained model:  {run_folder}")
    with optional("it writes nothing", logger.warning):
        text = load(run_folder, "cpu").generate("The ", 300, seed=1)
        click.echo(f"\nIt writes:\n\n{printed(_indented(text))}")
    return run_folder


def _show_confirmation(found: optuna.Study) -> None:
    from tuner.results.confirmation import lines

    result = found.user_attrs.get("confirmation")
    if result is not None:
        click.echo("\n" + "\n".join(lines(result)))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in ("The " + text).splitlines())
