"""Commands that search: run, work, confirm, check."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models import __main__ as single
from models.wording import counted
from tuner.cli import options
from tuner.cli.ending import show_ending
from tuner.cli.shared import find, same_command
from tuner.cli.worker_processes import supervisor_of_this
from tuner.errors import StorageError
from tuner.storage.locations import StorageOptions
from tuner.workers.options import WorkerOptions

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from tuner.service.search import Search
    from tuner.study.definition import Study
    from tuner.workers.processes import Slot

logger = logging.getLogger(__name__)


@click.command()
@click.argument("study_file", metavar="STUDY.yaml")
@options.places
@options.crew
@click.option(
    "-o",
    "--output",
    type=single.FILE,
    default=Path("best.yaml"),
    show_default=True,
    help="File to write the best configuration to.",
)
@click.option("--run-folder", type=single.FILE, help="Folder to copy its run to. [default: runs/STUDY]")
@options.corpus
@click.option(
    "--trials", type=click.IntRange(1, 10**7), help="Stop after N finished trials (overrides the study file)."
)
@click.option("--hours", type=single.HOURS, help="Stop after N hours of work (overrides the study file).")
@click.option(
    "--confirm",
    "confirmed",
    type=click.IntRange(min=0),
    envvar="TUNER_CONFIRM",
    default=2,
    show_default=True,
    help="Retrain the best N with two fresh seeds each, and choose among them. [env: TUNER_CONFIRM]",
)
@click.option("--no-confirm", is_flag=True, help="The same as --confirm 0.")
@options.force
def run(
    study_file: str,
    places: StorageOptions,
    crew: WorkerOptions,
    output: Path,
    run_folder: Path | None,
    corpus_path: Path | None,
    trials: int | None,
    hours: float | None,
    confirmed: int,
    no_confirm: bool,
    force: bool,
) -> None:
    """Search: start workers on a study, watch them, and export the best configuration.

    STUDY.yaml is a file, or the name of a study that comes with the tuner, such as quickstart. The same command
    continues a study that was stopped. With --corpus, the study is named after its text too.
    """
    from tuner.control.create import enter
    from tuner.results.export import require_free, require_makeable_outputs, require_run_free
    from tuner.study.definition import changed, read_study
    from tuner.study.shipped import study_path

    study = changed(read_study(study_path(study_file)), corpus_path, trials, hours)
    run_folder = run_folder or Path("runs") / study.name
    require_free(output, force, study.name)
    require_run_free(run_folder, force=force or run_folder == Path("runs") / study.name)
    require_makeable_outputs(output, run_folder)
    slots = crew.slots(study)
    places.require_usable()
    with places.opened() as opened:
        entered = enter(opened, study)
        search = _search(opened, places, crew, slots)
        with _resumable():
            reason = search.run(entered)
            search.confirm_in_short(entered, 0 if no_confirm else confirmed)
        show_ending(entered, places.artifacts_of(entered.optuna_study), output, run_folder, reason)


@click.command()
@click.argument("study_name", metavar="[STUDY]", required=False)
@options.places
@options.crew
@click.option(
    "--heartbeat",
    type=options.Folder(path_type=Path),
    help="File to touch every few seconds while the database answers, for a health check.",
)
@options.corpus_elsewhere
def work(
    study_name: str | None,
    places: StorageOptions,
    crew: WorkerOptions,
    corpus_path: str | None,
) -> None:
    """Join more workers to a study that was started here or on another machine.

    Without STUDY they join any study that has work, one after another, until they are stopped.
    """
    if study_name is None:
        if corpus_path is not None:
            raise click.UsageError("--corpus is of one study: name it")
        _stand_by(places, crew)
        return
    with places.opened() as opened:
        study = find(opened, study_name)
        slots = crew.slots(study.definition)
        search = _search(opened, places, crew, slots, corpus_path, supervisor_of_this())
        with _resumable():
            reason = search.run(study, f"joined by {counted(len(slots), 'worker')}")
        click.echo(f"Done: {reason}.")


@click.command()
@click.argument("study_name", metavar="STUDY")
@options.places
@options.crew
@click.option("--top", type=click.IntRange(min=1), help="How many of the best trials. [default: 5, or all there are]")
@click.option(
    "--seeds",
    type=click.IntRange(2, single.MOST_SEEDS),
    default=3,
    show_default=True,
    help="Fresh seeds per trial.",
)
@options.corpus_elsewhere
def confirm(
    study_name: str,
    places: StorageOptions,
    crew: WorkerOptions,
    top: int | None,
    seeds: int,
    corpus_path: str | None,
) -> None:
    """Train the best trials of a study again with fresh seeds, choose among them, and score the chosen one.

    The same command continues a confirmation that was stopped, and shows one that is finished.
    """
    from tuner.results import confirmation

    with places.opened() as opened:
        study = find(opened, study_name)
        chosen = confirmation.candidates(study.optuna_study, top)
        search = _search(opened, places, crew, crew.slots(study.definition), corpus_path)
        with _resumable():
            result = search.confirm(study, chosen, seeds)
    click.echo("\n".join(confirmation.lines(result)))
    click.echo(f"Export it: tuner export {shlex.quote(study.name)}")


@click.command()
@click.argument("study_file", metavar="STUDY.yaml")
@options.database
@options.corpus
def check(study_file: str, places: StorageOptions, corpus_path: Path | None) -> None:
    """Read a study file and its corpus, and report everything that is wrong with them.

    A class of your own is made and stepped once. If there is a database, a study of that name in it is compared.
    """
    from tuner.control.create import require_sound
    from tuner.study.definition import changed, read_study
    from tuner.study.shipped import study_path

    path = study_path(study_file)
    study = changed(read_study(path), corpus_path)
    _compare(places, study, require_sound(study).fingerprint)
    searched, fixed = len(study.space.searched), len(study.space.fixed)
    click.echo(f"{path}: fine; study {study.name} searches {counted(searched, 'parameter')} and fixes {fixed}")


def _compare(places: StorageOptions, study: Study, fingerprint: str) -> None:
    """Raises StudyError as `run` would when the study in the database is another; says when it cannot be reached."""
    from tuner.control.create import require_unchanged

    try:
        with places.existing() as opened:
            if opened is not None:
                require_unchanged(opened, study, fingerprint)
    except StorageError as error:
        logger.warning("Not compared with the studies that there are: %s", error)


def _stand_by(places: StorageOptions, crew: WorkerOptions) -> None:
    """Lets this very command work on each study that has work, with the study's name behind it."""
    from models.training.stopping import stop_requests
    from tuner.workers import standby

    with stop_requests() as requested, places.opened() as opened:
        standby.serve(opened, [sys.executable, "-m", "tuner", *sys.argv[1:]], requested, crew.beat)
    sys.exit(single.STOPPED)


def _search(
    opened: RDBStorage,
    places: StorageOptions,
    crew: WorkerOptions,
    slots: Sequence[Slot],
    corpus_path: str | None = None,
    watched_by: int | None = None,
) -> Search:
    """The workers of this command, shown in this terminal; `watched_by` is the process that it ends with."""
    from tuner.service.search import Search
    from tuner.watch.live import Watcher
    from tuner.workers.supervisor import Supervisor

    return Search(Supervisor(opened, places, crew, watched_by), slots, Watcher, corpus_path)


@contextmanager
def _resumable() -> Iterator[None]:
    """Ends the command when the user stops its workers, and says how to go on."""
    from tuner.workers.supervisor import Interrupted

    try:
        yield
    except Interrupted as stopped:
        click.echo(f"Stopped; {stopped}. Go on with the same command: {same_command()}", err=True)
        sys.exit(single.STOPPED)
