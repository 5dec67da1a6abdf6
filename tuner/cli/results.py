"""Commands that show and export what a study found: status, export, sample, report, schema."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import __main__ as single
from tuner.cli import options
from tuner.cli.shared import described, find, show
from tuner.errors import StudyError, WorkerError
from tuner.storage.locations import StorageOptions

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

    from tuner.artifacts.store import Artifacts
    from tuner.storage.handle import StudyHandle

logger = logging.getLogger(__name__)


@click.command()
@click.argument("study_name", metavar="[STUDY]", required=False)
@options.database
@click.option("--failed", is_flag=True, help="Show why trials of STUDY failed or crashed, with their tracebacks.")
@click.option("-w", "--watch", is_flag=True, help="Refresh every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one document; with --watch, one line per refresh.")
def status(study_name: str | None, places: StorageOptions, failed: bool, watch: bool, as_json: bool) -> None:
    """Show all studies, or one: its trials, its best ones, its workers."""
    if failed and (watch or as_json):
        raise click.UsageError("--failed stands alone")
    if failed and study_name is None:
        raise StudyError("--failed: name the study, as in `tuner status STUDY --failed`")
    with places.opened() as opened:
        chosen = None if study_name is None else find(opened, study_name)
        if as_json:
            _status_for_machines(opened, chosen, watch)
        elif watch:
            _watch(opened, chosen)
        else:
            _show_studies(opened) if chosen is None else _show_study(chosen, failed)
            click.echo(f"\nDatabase: {described(places)}")


def _status_for_machines(opened: RDBStorage, chosen: StudyHandle | None, watch: bool) -> None:
    from models.training.stopping import stop_requests
    from tuner.watch import live
    from tuner.watch import status_json as status

    def look() -> None:
        found = status.studies_document(opened) if chosen is None else status.study_document(chosen)
        click.echo(status.text(found))

    def look_again() -> None:
        if not live.survives_outages(look):
            click.echo(status.text(status.away_document()))

    if not watch:
        look()
        return
    with stop_requests() as requested:
        live.follow(look_again, requested)


def _watch(opened: RDBStorage, chosen: StudyHandle | None) -> None:
    from models.training.stopping import stop_requests
    from tuner.watch.live import StudiesWatcher, Watcher, follow

    watcher = StudiesWatcher(opened) if chosen is None else Watcher(chosen, board=True)
    with stop_requests() as requested, watcher:
        follow(watcher.look, requested)


def _show_studies(opened: RDBStorage) -> None:
    from models.safe_text.terminal import lines
    from tuner.results import queries
    from tuner.watch import tables

    rows, problems = queries.rows(opened), queries.unreadable(opened)
    if rows:
        show(tables.studies_table(rows))
    elif not problems:
        click.echo("No studies yet. Start one: tuner run quickstart")
    for problem in problems:
        click.echo(lines(problem), err=True)


def _show_study(study: StudyHandle, failed: bool) -> None:
    from tuner.results import queries, summary
    from tuner.watch import tables
    from tuner.watch.live import BOARD_ROWS, details

    if failed:
        now = summary.snapshot(study)
        click.echo("\n\n".join(tables.failures(now)) or f"No trial of study {study.name} failed.")
        return
    now = queries.in_short(study, BOARD_ROWS)
    show(tables.progress(now), "", *details(study.optuna_study, now))
    for line in tables.failed_lines(now):
        click.echo(line)


@click.command()
@click.argument("study_name", metavar="STUDY")
@options.places
@click.option("-o", "--output", type=single.FILE, help="File to write; - prints it. [default: best.yaml]")
@click.option("--trial", "number", type=int, help="This trial instead of the best one.")
@click.option("--top", type=click.IntRange(min=1), help="Export the best N, to best-1.yaml, best-2.yaml, ...")
@click.option(
    "--format",
    "notation",
    type=click.Choice(["yaml", "json", "flags", "env"]),
    default="yaml",
    show_default=True,
    help="yaml and json contain everything; flags and env the hyperparameters, for other programs.",
)
@click.option(
    "--prefer",
    type=click.Choice(["bits_per_byte", "text_divergence"]),
    default="bits_per_byte",
    show_default=True,
    help="Objective by which the best trial is chosen.",
)
@click.option("--weights", type=single.FILE, help="Also copy the trial's run folder, if it is kept.")
@options.force
def export(
    study_name: str,
    places: StorageOptions,
    output: Path | None,
    number: int | None,
    top: int | None,
    notation: str,
    prefer: str,
    weights: Path | None,
    force: bool,
) -> None:
    """Write the best configuration of a study to a file that `tuner train` reads.

    After a confirmation, the best is the trial that it chose.
    """
    from models.files import is_stdout
    from tuner.results.export import best_trials, chosen_trial, copy_run, exported, files
    from tuner.results.formats import FORMATS, OURS

    printed = output is not None and (str(output) == "-" or is_stdout(output))
    if top is not None and (number is not None or weights is not None or printed):
        raise click.UsageError("--top writes several files; leave out --trial, --weights and -o -")
    usual = Path("best").with_suffix(FORMATS[notation])
    with places.opened() as opened:
        study = find(opened, study_name)
        found = study.optuna_study
        chosen = best_trials(found, prefer, top)[:top] if top else [chosen_trial(found, number, prefer)]
        if weights is not None:
            run_folder = _copiable(places.artifacts_of(found), chosen[0], weights, force)
        paths = files(usual if printed else output or usual, top)
        texts = [exported(study, trial, path, notation) for path, trial in zip(paths, chosen, strict=True)]
    if printed:
        click.echo(texts[0], nl=False)
    else:
        _write_exports(paths, texts, chosen, force, study.name)
    if weights is not None:
        copy_run(chosen[0], run_folder, weights, force)
        click.echo(f"{weights}: its run folder", err=printed)
    if notation in OURS and not printed:
        click.echo(f"Train it: tuner train {shlex.quote(str(paths[0]))} -o my-run")


def _copiable(kept: Artifacts, trial: FrozenTrial, weights: Path, force: bool) -> Path:
    """Returns the run folder of a trial; raises what stands in the way of copying it."""
    from tuner.results.export import require_copiable
    from tuner.results.kept_runs import fetched

    run_folder = fetched(kept, trial.number) or kept.run_folder(trial.number)
    require_copiable(run_folder, weights, force, kept.refused and kept.why_not_kept())
    return run_folder


def _write_exports(paths: list[Path], texts: list[str], chosen: list[FrozenTrial], force: bool, name: str) -> None:
    """Writes files, all or none of them when one is in the way, and says what is in them."""
    from tuner.results.export import require_free, write_new
    from tuner.results.summary import quality

    for path in paths:
        require_free(path, force, name)
    for path, text, trial in zip(paths, texts, chosen, strict=True):
        write_new(path, text, force, name)
        click.echo(f"{path}: trial {trial.number}, {quality(trial):.4f} bits per byte")


@click.command(name="schema")
def json_schema() -> None:
    """Print the JSON schema of an export."""
    from tuner.results.formats import json_schema

    click.echo(json_schema(), nl=False)


@click.command()
@click.argument("study_name", metavar="STUDY")
@options.places
@click.option("--trial", "number", type=int, help="This trial instead of the best one.")
@single.writing
def sample(
    study_name: str,
    places: StorageOptions,
    number: int | None,
    **options: Any,
) -> None:
    """Write text with a trained model of a study; those of the best trials are kept."""
    from tuner.results.export import chosen_trial
    from tuner.results.kept_runs import require_run

    with places.opened() as opened:
        found = find(opened, study_name).optuna_study
        trial = chosen_trial(found, number)
        run_folder = require_run(places.artifacts_of(found), found, trial.number)
    single.write_text(run_folder, **options)


@click.command(name="report")
@click.argument("study_name", metavar="STUDY")
@options.places
@click.option(
    "-o",
    "--output",
    type=single.FILE,
    default=Path("report.html"),
    show_default=True,
    help="The file to write.",
)
@options.force
def write_report(study_name: str, places: StorageOptions, output: Path, force: bool) -> None:
    """Write the results of a study to one HTML file that opens anywhere, without a network."""
    from models.files import is_stdout
    from tuner.watch import html_report

    with places.opened() as opened:
        study = find(opened, study_name)
        html_report.require_free(output, force, study.name)
        html = html_report.report(study, _readable_artifacts(places, study.optuna_study))
    html_report.write(output, html, force, study.name)
    size = f"{len(html.encode()) / 1e6:.1f} MB"
    click.echo(f"{output}: report of study {study.name}, {size}; open it in a browser", err=is_stdout(output))


def _readable_artifacts(places: StorageOptions, found: optuna.Study) -> Artifacts | None:
    """A study's artifacts; None, and a word about it, where they cannot be reached."""
    try:
        return places.artifacts_of(found)
    except WorkerError as error:
        logger.warning("Without the models' texts: %s", error)
        return None
