"""The commands; the only reader of the environment; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields
from functools import partial, wraps
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import __main__ as single
from models.errors import RunError
from models.wording import counted
from tuner.errors import StorageError, StudyError, WorkerError
from tuner.storage.locations import StorageOptions
from tuner.workers.options import WorkerOptions

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

    from models.training.metrics import Score
    from tuner.artifacts.store import Artifacts
    from tuner.storage.handle import StudyHandle
    from tuner.study.definition import Study
    from tuner.workers.processes import Slot
    from tuner.workers.supervisor import Supervisor

STOPPED = single.STOPPED
"""Exit code of a command that was asked to stop and left everything so that it can go on."""

MOST_WORKERS = 1024
"""Processes of one command."""

FEWEST_CONFIRMED, SHORT_SEEDS = 3, 2
"""Completed trials from which on `run` confirms the best of them, and the fresh seeds it takes for each."""


def _place(context: click.Context, parameter: click.Parameter, place: str | None) -> str | None:
    """A bucket, or a folder."""
    if place is None or place.startswith("s3://"):
        return place
    try:
        return str(single.local_path(place))
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message}, or s3://bucket/prefix") from error


_storage = click.option(
    "--storage",
    envvar="TUNER_STORAGE",
    metavar="URL",
    help="postgresql://user:password@host/database instead of the embedded PostgreSQL. [env: TUNER_STORAGE; the"
    " password may be in the file that TUNER_STORAGE_PASSWORD_FILE names]",
)


class _Folder(click.Path):
    """A path that may begin with ~ where no shell has looked at it, as in a variable."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        from models.config import absolute, expanded

        if str(value) == "":
            self.fail("is empty", parameter, context)
        try:
            return absolute(expanded(single.local_path(str(value))))
        except FileNotFoundError:  # of the current folder
            self.fail(f"{value}: the folder you stand in was deleted; change to another", parameter, context)


_password_file = click.option(
    "--storage-password-file", type=_Folder(path_type=Path), envvar="TUNER_STORAGE_PASSWORD_FILE", hidden=True
)
_data = click.option(
    "--data-folder",
    type=_Folder(path_type=Path),
    envvar="TUNER_DATA",
    help="Where the embedded PostgreSQL keeps its data. [env: TUNER_DATA]",
)
_artifacts = click.option(
    "--artifacts",
    metavar="FOLDER|s3://...",
    callback=_place,
    envvar="TUNER_ARTIFACTS",
    help="Where checkpoints and the best weights are kept; shared by the machines of a study. [env: TUNER_ARTIFACTS]",
)
_devices = click.option("--devices", default="auto", show_default=True, help="auto, cpu, or cuda:0,cuda:1,...")
_threads = click.option("--threads", type=click.IntRange(1, single.MOST_THREADS), help="CPU threads of each worker.")
_workers = click.option(
    "-n",
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="Worker processes. [default: one per GPU, or one per core]",
)


class _CountOrAuto(click.ParamType[int | str]):
    """A number of workers, or the word for finding it out."""

    name = "integer|auto"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | str:
        return "auto" if value == "auto" else click.IntRange(1, MOST_WORKERS).convert(value, parameter, context)


_per_device = click.option(
    "--per-device",
    type=_CountOrAuto(),
    help="Workers per device, for small models; auto measures how many get the most done. A CPU is one device.",
)
_grace = click.option(
    "--grace",
    type=single.Finite(0, single.LONGEST_SECONDS),
    default=10.0,
    show_default=True,
    help="Seconds that workers get to save their trials when asked to stop.",
)
_corpus = click.option(
    "--corpus", "corpus_path", type=_Folder(path_type=Path), help="Text to use (overrides the study file)."
)
_force = click.option("--force", is_flag=True, help="Replace existing output.")


_checkpoint_seconds = click.option(
    "--checkpoint-seconds",
    type=single.Finite(0, single.LONGEST_SECONDS),
    envvar="TUNER_CHECKPOINT_SECONDS",
    default=30.0,
    show_default=True,
    help="Save running trials this often, which is also the most a crash costs. [env: TUNER_CHECKPOINT_SECONDS]",
)


def _gathered(
    name: str, kind: type[StorageOptions | WorkerOptions], options: list[Callable[..., Any]]
) -> Callable[..., Any]:
    """Gives a command these options together, as one argument of that name."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def gather(**given: Any) -> Any:
            own = {field.name: given.pop(field.name) for field in fields(kind) if field.name in given}
            return command(**given, **{name: kind(**own)})

        for option in reversed(options):
            gather = option(gather)
        return gather

    return decorate


_database = _gathered("places", StorageOptions, [_storage, _password_file, _data])
_places = _gathered("places", StorageOptions, [_storage, _password_file, _data, _artifacts])
_crew = _gathered("crew", WorkerOptions, [_workers, _devices, _per_device, _threads, _grace, _checkpoint_seconds])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="textgen-tuner", prog_name="tuner")
def commands() -> None:
    """Tune text generators: search with parallel workers, watch, export the best configuration."""


commands.add_command(single.train)
commands.add_command(single.generate)


@commands.command()
@click.argument("study_file", metavar="STUDY.yaml")
@_places
@_crew
@click.option(
    "-o",
    "--output",
    type=single.FILE,
    default=Path("best.yaml"),
    show_default=True,
    help="File to write the best configuration to.",
)
@click.option("--run-folder", type=single.FILE, help="Folder to copy its run to. [default: runs/STUDY]")
@_corpus
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
@_force
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
    from tuner.study.definition import read_study
    from tuner.workers.supervisor import Supervisor

    study = _changed(read_study(_study_path(study_file)), corpus_path, trials, hours)
    run_folder = run_folder or Path("runs") / study.name
    require_free(output, force, study.name)
    require_run_free(run_folder, force=force or run_folder == Path("runs") / study.name)
    require_makeable_outputs(output, run_folder)
    slots = crew.slots(study)
    places.require_usable()
    with places.opened() as opened:
        entered = enter(opened, study, _say)
        kept = places.writable_artifacts_of(entered.optuna_study)
        supervisor = Supervisor(opened, places, crew)
        begins = f"{counted(len(slots), 'worker')} on {', '.join(sorted({slot.device for slot in slots}))}"
        reason = _supervise(supervisor, entered, kept, slots, begins, [study.name])
        if confirmed and not no_confirm:
            _confirm_in_short(supervisor, entered, confirmed, slots)
        _finish(entered, kept, output, run_folder, reason)


@commands.command()
@click.argument("study_name", metavar="[STUDY]", required=False)
@_places
@_crew
@click.option(
    "--heartbeat",
    type=_Folder(path_type=Path),
    help="File to touch every few seconds while the database answers, for a health check.",
)
@click.option(
    "--corpus",
    "corpus_path",
    type=_Folder(),
    help="Where the study's text is on this machine, if elsewhere.",
)
def work(
    study_name: str | None,
    places: StorageOptions,
    crew: WorkerOptions,
    corpus_path: Path | None,
) -> None:
    """Join more workers to a study that was started here or on another machine.

    Without STUDY they join any study that has work, one after another, until they are stopped.
    """
    from tuner.workers.supervisor import Supervisor

    if study_name is None:
        if corpus_path is not None:
            raise click.UsageError("--corpus is of one study: name it")
        _stand_by(places, crew)
        return
    with places.opened() as opened:
        study = _find(opened, study_name)
        slots = crew.slots(study.definition)
        kept = places.writable_artifacts_of(study.optuna_study)
        arguments = [study.name, *_elsewhere(corpus_path)]
        supervisor = Supervisor(opened, places, crew, _supervisor())
        reason = _supervise(supervisor, study, kept, slots, f"joined by {counted(len(slots), 'worker')}", arguments)
        click.echo(f"Done: {reason}.")


@commands.command()
@click.argument("study_name", metavar="STUDY")
@_places
@_crew
@click.option("--top", type=click.IntRange(min=1), help="How many of the best trials. [default: 5, or all there are]")
@click.option(
    "--seeds",
    type=click.IntRange(2, single.MOST_SEEDS),
    default=3,
    show_default=True,
    help="Fresh seeds per trial.",
)
@click.option(
    "--corpus",
    "corpus_path",
    type=_Folder(),
    help="Where the study's text is on this machine, if elsewhere.",
)
def confirm(
    study_name: str,
    places: StorageOptions,
    crew: WorkerOptions,
    top: int | None,
    seeds: int,
    corpus_path: Path | None,
) -> None:
    """Train the best trials of a study again with fresh seeds, choose among them, and score the chosen one.

    The same command continues a confirmation that was stopped, and shows one that is finished.
    """
    from tuner.results import confirmation
    from tuner.workers.supervisor import Supervisor

    with places.opened() as opened:
        study = _find(opened, study_name)
        chosen = confirmation.candidates(study.optuna_study, top)
        supervisor = Supervisor(opened, places, crew)
        slots = crew.slots(study.definition)
        result = _confirmed(supervisor, study, chosen, seeds, slots, _elsewhere(corpus_path))
    click.echo("\n".join(confirmation.lines(result)))
    click.echo(f"Export it: tuner export {shlex.quote(study.name)}")


@commands.command(name="_worker", hidden=True)
@click.argument("study_name")
@_places
@click.option("--device", required=True)
@click.option("--threads", type=int, required=True)
@click.option("--corpus", "corpus_path")
@click.option("--study-id", type=int, help="What the study is known by, whatever its name is by now.")
@click.option("--id", "worker_id", required=True)
@_checkpoint_seconds
def worker(
    study_name: str,
    places: StorageOptions,
    device: str,
    threads: int,
    corpus_path: str | None,
    study_id: int | None,
    worker_id: str,
    checkpoint_seconds: float,
) -> None:
    """One worker process; started by `run` and `work`."""
    import faulthandler

    from models.training.stopping import stop_requests
    from tuner.storage.handle import open_study
    from tuner.workers.worker import work as work_on

    faulthandler.enable()
    with stop_requests() as requested, places.opened() as opened:
        study = open_study(opened, study_name)
        reason = work_on(
            opened,
            study_name,
            study_id=study_id,
            device=device,
            threads=threads,
            artifacts=places.writable_artifacts_of(study.optuna_study),
            requested=requested,
            say=_say,
            worker_id=worker_id,
            checkpoint_seconds=checkpoint_seconds,
            corpus_path=corpus_path,
            supervisor=_supervisor(),
        )
    _say(f"ended: {reason}")


def _supervisor() -> int | None:
    """The process that watches over this one, if one does; its children are told of theirs."""
    from tuner.workers.supervisor_watch import SUPERVISOR

    number = os.environ.pop(SUPERVISOR, "")
    return int(number) if number.isdecimal() else None


@commands.command(name="_pace", hidden=True)
def pace() -> None:
    """One worker of the measurement of --per-device auto."""
    from tuner.workers.supervisor_watch import Lifeline

    Lifeline(_supervisor()).end_with_it()
    from tuner.workers.oversubscription import pace as pace_on

    tell = partial(click.echo, file=sys.stdout)
    with redirect_stdout(sys.stderr):  # what a generator of the user's own prints is no answer
        pace_on(sys.stdin.readline, tell)


@commands.command()
@click.argument("study_name", metavar="[STUDY]", required=False)
@_database
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
        chosen = None if study_name is None else _find(opened, study_name)
        if as_json:
            _status_for_machines(opened, chosen, watch)
        elif watch:
            _watch(opened, chosen)
        else:
            _show_studies(opened) if chosen is None else _show_study(chosen, failed)
            click.echo(f"\nDatabase: {_described(places)}")


def _described(places: StorageOptions) -> str:
    from tuner.storage.connection import describe

    return describe(places.storage, places.data_folder)


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
        _show(tables.studies_table(rows))
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
    _show(tables.progress(now), "", *details(study.optuna_study, now))
    for line in tables.failed_lines(now):
        click.echo(line)


@commands.command()
@click.argument("study_name", metavar="STUDY")
@_places
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
@_force
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
    from tuner.results.export import best_trials, chosen_trial, copy_run, exported, files, require_copiable
    from tuner.results.formats import FORMATS, OURS

    printed = output is not None and (str(output) == "-" or is_stdout(output))
    if top is not None and (number is not None or weights is not None or printed):
        raise click.UsageError("--top writes several files; leave out --trial, --weights and -o -")
    usual = Path("best").with_suffix(FORMATS[notation])
    output = output or usual
    with places.opened() as opened:
        study = _find(opened, study_name)
        found = study.optuna_study
        chosen = best_trials(found, prefer, top)[:top] if top else [chosen_trial(found, number, prefer)]
        if weights is not None:
            kept = places.artifacts_of(found)
            run_folder = _fetched(kept, chosen[0].number) or kept.run_folder(chosen[0].number)
            require_copiable(run_folder, weights, force, kept.refused and kept.why_not_kept())
        paths = files(usual if printed else output, top)
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


def _write_exports(paths: list[Path], texts: list[str], chosen: list[FrozenTrial], force: bool, name: str) -> None:
    """Writes files, all or none of them when one is in the way, and says what is in them."""
    from tuner.results.export import require_free, write_new
    from tuner.results.summary import quality

    for path in paths:
        require_free(path, force, name)
    for path, text, trial in zip(paths, texts, chosen, strict=True):
        write_new(path, text, force, name)
        click.echo(f"{path}: trial {trial.number}, {quality(trial):.4f} bits per byte")


@commands.command(name="schema")
def json_schema() -> None:
    """Print the JSON schema of an export."""
    from tuner.results.formats import json_schema

    click.echo(json_schema(), nl=False)


@commands.command()
@click.argument("study_name", metavar="STUDY")
@_places
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

    with places.opened() as opened:
        found = _find(opened, study_name).optuna_study
        trial = chosen_trial(found, number)
        run_folder = _kept_run(places.artifacts_of(found), found, trial.number)
    single.write_text(run_folder, **options)


@commands.command(name="report")
@click.argument("study_name", metavar="STUDY")
@_places
@click.option(
    "-o",
    "--output",
    type=single.FILE,
    default=Path("report.html"),
    show_default=True,
    help="The file to write.",
)
@_force
def write_report(study_name: str, places: StorageOptions, output: Path, force: bool) -> None:
    """Write the results of a study to one HTML file that opens anywhere, without a network."""
    from models.files import is_stdout
    from tuner.watch import html_report

    with places.opened() as opened:
        study = _find(opened, study_name)
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
        click.echo(f"Without the models' texts: {error}", err=True)
        return None


def _kept_run(kept: Artifacts, found: optuna.Study, number: int) -> Path:
    """The run folder of a trial; raises StudyError that says which are kept, and WorkerError where none can be read."""
    try:
        run_folder = kept.fetch_run(number)
        if run_folder is None:
            raise StudyError(f"the model of trial {number} is not kept in {kept.folder}{_kept_ones(kept, found)}")
    except OSError as error:
        raise WorkerError(f"{kept.folder}: the model of trial {number} cannot be read ({error.strerror})") from error
    return run_folder


def _kept_ones(kept: Artifacts, found: optuna.Study) -> str:
    """Which trials' models are kept, the best one first."""
    from tuner.results.summary import leaderboard

    numbers = [trial.number for trial in leaderboard(found.get_trials(deepcopy=False)) if kept.fetch_run(trial.number)]
    return f"; those of {', '.join(map(str, numbers))} are" if numbers else f"; {kept.why_not_kept()}"


def _steers(steer: Callable[..., str]) -> Any:
    """A command that asks something of a study, from any machine that reaches its database, and says what came of it.

    `steer` gets the study and the command's own arguments.
    """

    @wraps(steer)
    def command(study_name: str, places: StorageOptions, **own: Any) -> None:
        with places.opened() as opened:
            study = _find(opened, study_name)
            click.echo(f"study {study.name}: {steer(study, **own)}")

    return commands.command()(click.argument("study_name", metavar="STUDY")(_database(command)))


@_steers
def pause(study: StudyHandle) -> str:
    """Make all workers of a study, on all machines, save their trials and wait."""
    from tuner.control import steering

    return steering.pause(study)


@_steers
def resume(study: StudyHandle) -> str:
    """Continue a paused or stopped study."""
    from tuner.control import steering

    return steering.resume(study)


@_steers
def stop(study: StudyHandle) -> str:
    """Make all workers of a study, on all machines, save their trials and leave."""
    from tuner.control import steering

    return steering.stop(study)


@_steers
@click.option("--trial", "number", type=int, required=True, help="The failed or pruned trial.")
def retry(study: StudyHandle, number: int) -> str:
    """Try the configuration of a failed or pruned trial again."""
    from tuner.control import steering

    return steering.retry(study, number)


@_steers
@click.argument("assignments", metavar="NAME=VALUE...", nargs=-1, required=True)
def enqueue(study: StudyHandle, assignments: tuple[str, ...]) -> str:
    """Try these values next, such as learning_rate=0.003; the sampler chooses the others."""
    from tuner.control import steering

    return steering.enqueue(study, assignments)


@commands.command()
@click.argument("study_file", metavar="STUDY.yaml")
@_database
@_corpus
def check(study_file: str, places: StorageOptions, corpus_path: Path | None) -> None:
    """Read a study file and its corpus, and report everything that is wrong with them.

    A class of your own is made and stepped once. If there is a database, a study of that name in it is compared.
    """
    from tuner.control.create import require_sound
    from tuner.study.definition import read_study

    path = _study_path(study_file)
    study = _changed(read_study(path), corpus_path, None, None)
    _compare(places, study, require_sound(study, _say).fingerprint)
    searched, fixed = len(study.space.searched), len(study.space.fixed)
    click.echo(f"{path}: fine; study {study.name} searches {searched} parameters and fixes {fixed}")


def _compare(places: StorageOptions, study: Study, fingerprint: str) -> None:
    """Raises StudyError as `run` would when the study in the database is another; says when it cannot be reached."""
    from tuner.control.create import require_unchanged

    try:
        with places.existing() as opened:
            if opened is not None:
                require_unchanged(opened, study, fingerprint)
    except StorageError as error:
        click.echo(f"Not compared with the studies that there are: {error}", err=True)


_secret = partial(click.option, type=_Folder(path_type=Path))


@commands.command()
@click.argument("study_name", metavar="STUDY")
@_places
@click.option("-o", "--output", type=single.FILE, help="The file to write. [default: STUDY.tar]")
@_force
def backup(
    study_name: str,
    places: StorageOptions,
    output: Path | None,
    force: bool,
) -> None:
    """Write a study and its confirmation to one file; workers continue meanwhile."""
    from models.files import is_stdout
    from tuner.backup import dump as backups
    from tuner.results.export import require_free

    output = output or Path(f"{study_name}.tar")
    require_free(output, force)
    with places.opened() as opened:
        study = _find(opened, study_name).definition
        told = backups.backup(opened, study, output, partial(_kept_of, places, opened))
    click.echo(f"{output}: {told}", err=is_stdout(output))


def _kept_of(places: StorageOptions, storage: RDBStorage, study_name: str) -> Artifacts:
    """What is kept of a study of that name."""
    from tuner.storage.handle import open_study

    return places.artifacts_of(open_study(storage, study_name).optuna_study)


@commands.command()
@click.argument("file", type=single.FILE)
@_places
@click.option("--name", "new_name", help="Name for the restored study.")
def restore(file: Path, places: StorageOptions, new_name: str | None) -> None:
    """Restore a study from a backup into the database, completely or not at all."""
    from tuner.backup import dump as backups

    with places.opened() as opened:
        told = backups.restore(opened, file, places.new_artifacts, new_name)
    click.echo(f"Restored {told}")


@commands.command()
@_database
@click.option("--worker", help="Role of the workers.")
@click.option(
    "--worker-password-file",
    type=single.FILE,
    help="File with its password: creates the role, or changes its password.",
)
@click.option("--dashboard", help="Role of the dashboards.")
@click.option("--dashboard-password-file", type=single.FILE, help="The same for the role of the dashboards.")
def grant(
    places: StorageOptions,
    worker: str | None,
    worker_password_file: Path | None,
    dashboard: str | None,
    dashboard_password_file: Path | None,
) -> None:
    """Create the tables, and give roles of the database only the rights that they need.

    Only the owner of the tables can; roles without a password file must exist.
    """
    from tuner.storage import roles

    given = [("worker", worker, worker_password_file), ("dashboard", dashboard, dashboard_password_file)]
    wanted = [roles.Role(purpose, name, file) for purpose, name, file in given if name is not None]
    if not wanted:
        raise click.UsageError("name a role: --worker NAME, --dashboard NAME, or both")
    with places.opened() as opened:
        roles.grant(opened, wanted)
    for role in wanted:
        click.echo(f"{role.name}: may do what a {role.purpose} needs")


@commands.command()
@_database
def upgrade(places: StorageOptions) -> None:
    """Bring the tables of an older tuner or Optuna up to date. Make backups and end all workers before."""
    from tuner.storage.connection import upgrade as upgrade_tables

    upgraded = upgrade_tables(places.address, places.data_folder)
    click.echo(_described(places))
    for whose, (before, after) in (("Optuna's", upgraded.optuna), ("the tuner's", upgraded.tuner)):
        done = f"were upgraded from {before} to {after}" if before else f"were made ({after})"
        done = f"are up to date ({after})" if before == after else done
        click.echo(f"  {whose} tables {done}")


@commands.command()
@click.argument("study_name", metavar="[STUDY]", required=False)
@_places
@click.option("--host", default="127.0.0.1", show_default=True, help="Any other address needs users.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@_secret(
    "--users",
    "users_file",
    envvar="TUNER_USERS",
    help="Users who may log in, one line each, as `tuner password` prints them. [env: TUNER_USERS]",
)
@_secret(
    "--operator-password-file",
    envvar="TUNER_OPERATOR_PASSWORD_FILE",
    help="File with the password of one user, `operator`: a container's secret. [env: TUNER_OPERATOR_PASSWORD_FILE]",
)
@_secret(
    "--session-key",
    "session_key_file",
    envvar="TUNER_SESSION_KEY",
    help="File of random text: sessions then survive a restart of the dashboard. [env: TUNER_SESSION_KEY]",
)
@_secret("--certificate", help="TLS: the certificate with its intermediate certificates (PEM).")
@_secret("--key", help="TLS: the certificate's key (PEM).")
@click.option("--behind-proxy", is_flag=True, help="Trust X-Forwarded-For and -Proto from one proxy in front.")
def dashboard(study_name: str | None, places: StorageOptions, **door: Any) -> None:
    """Serve the Optuna dashboard, a page to steer studies (/tuner/), and /metrics for Prometheus.

    Users may also be given in the environment: TUNER_LOGIN, with the lines of a file of users.
    """
    from tuner.dashboard.app import ServerConfig, serve

    found_door = ServerConfig(**door, login=os.environ.get("TUNER_LOGIN"))
    found_door.require_safe()
    with places.opened() as opened:
        page = "/dashboard" if study_name is None else f"/dashboard/studies/{_find(opened, study_name).id}"
        attachments = places.attachments()

        def tell() -> None:
            click.echo(f"Dashboard: {found_door.address}{page}   (Ctrl-C ends it)")
            click.echo(f"To steer:  {found_door.address}/tuner/")

        serve(opened, attachments, found_door, tell, _say)


@commands.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["reader", "operator"]), default="reader", show_default=True)
def password(name: str, role: str) -> None:
    """Ask for a password and print the line that lets NAME into the dashboard.

    A reader looks, an operator may change everything. Without a terminal the password is the first line of the input.
    """
    from tuner.dashboard.users import line

    if sys.stdin.isatty():
        given = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        given = sys.stdin.readline().rstrip("\r\n")
    click.echo(line(name, role, given))


def _say(text: str) -> None:
    from models.safe_text.terminal import lines

    click.echo(f"{time.strftime('%H:%M:%S')} {lines(text)}", err=True)


def main() -> None:
    """Runs the command line; SIGTERM ends it as Ctrl-C does, so that the embedded PostgreSQL is not left behind."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` has it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    single.main(commands)


def _study_path(name: str) -> Path:
    """The study file of that path, or the one of that name that comes with the tuner."""
    path = Path(name)
    if _is_there(path) or path.suffix in (".yaml", ".yml", ".json"):
        return path
    package = Path(str(resources.files("tuner")))
    folder = next((one for one in (package / "studies", package.parent / "studies") if one.is_dir()), package)
    shipped = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in shipped:
        raise StudyError(f"{name}: no such file, and no study that comes with the tuner ({', '.join(shipped)})")
    return folder / f"{name}.yaml"


def _is_there(path: Path) -> bool:
    """Whether a path leads to something that can be read as a file, such as a pipe of the shell's."""
    return os.path.exists(path) and not os.path.isdir(path)


def _changed(study: Study, corpus_path: Path | None, trials: int | None, hours: float | None) -> Study:
    """The study with what the command line gives instead of the file."""
    from models.config import Corpus
    from tuner.study.definition import StudyBudget

    changes: dict[str, Any] = {}
    if corpus_path is not None:
        kept = {"split": study.corpus.split, "field": study.corpus.field}
        changes["corpus"] = Corpus(path=str(corpus_path), **kept)  # type: ignore[arg-type]
        changes["name"] = _named_after(study.name, corpus_path)
    if trials is not None or hours is not None:
        changes["budget"] = StudyBudget(trials=trials, hours=hours)
    return study.model_copy(update=changes)


def _named_after(name: str, corpus_path: Path) -> str:
    """What a study is called on another text than its file's."""
    from tuner.artifacts.layout import name_problem

    both = f"{name}-{corpus_path.stem}"
    problem = name_problem(both)
    if problem is not None:
        raise StudyError(f"--corpus {corpus_path}: names the study, too, as {both!r}, and {problem}; rename the text")
    return both


def _stand_by(places: StorageOptions, crew: WorkerOptions) -> None:
    """Lets this very command work on each study that has work, with the study's name behind it."""
    from models.training.stopping import stop_requests
    from tuner.workers import standby

    with stop_requests() as requested, places.opened() as opened:
        standby.serve(opened, [sys.executable, "-m", "tuner", *sys.argv[1:]], requested, click.echo, crew.beat)
    sys.exit(STOPPED)


def _find(storage: RDBStorage, name: str) -> StudyHandle:
    """The study of that name, or of the study file of that name, as it is in the database."""
    from tuner.storage.handle import open_study
    from tuner.study.definition import read_study

    return open_study(storage, read_study(Path(name), rehearsed=False).name if _is_there(Path(name)) else name)


def _elsewhere(corpus_path: Path | None) -> list[str]:
    """What workers are told when their machine has the study's text in another place."""
    return ["--corpus", str(corpus_path)] if corpus_path else []


def _supervise(
    supervisor: Supervisor,
    study: StudyHandle,
    kept: Artifacts,
    slots: list[Slot],
    begins: str,
    arguments: list[str],
) -> str:
    """Lets workers work until their study ends; returns why it ended. A person who stops it learns how to go on."""
    from tuner.watch.live import Watcher
    from tuner.workers.supervisor import Interrupted

    try:
        view = Watcher(study)
        return supervisor.supervise(study, kept, slots, begins, arguments, view)
    except Interrupted as stopped:
        click.echo(f"Stopped; {stopped}. Go on with the same command: {_same_command()}", err=True)
        sys.exit(STOPPED)


def _confirmed(
    supervisor: Supervisor,
    study: StudyHandle,
    chosen: list[FrozenTrial],
    seeds: int,
    slots: list[Slot],
    more: list[str],
) -> dict[str, Any]:
    """What the confirmation of these trials found: what is stored, or what workers find out now."""
    from tuner.results import confirmation

    result = confirmation.stored(study.optuna_study, chosen, seeds)
    if result is not None:
        return result
    companion = confirmation.enter(study, chosen, seeds)
    kept = supervisor.places.writable_artifacts_of(companion.optuna_study)
    slots = slots[: len(chosen) * seeds]
    begins = f"{counted(len(slots), 'worker')} for the best {len(chosen)} again, with {seeds} fresh seeds each"
    _supervise(supervisor, companion, kept, slots, begins, [companion.name, *more])
    score = _test_scorer("cpu" if slots[0].device == "cpu" else "auto")
    trained = companion.optuna_study
    result = confirmation.conclude(study.optuna_study, trained, chosen, seeds, partial(_fetched, kept), score)
    for number in confirmation.runs_of_others(trained, result):
        kept.remove_run(number)
    return result


def _fetched(kept: Artifacts, number: int) -> Path | None:
    """The run folder of a trial; None, and a word about it where it cannot be reached."""
    try:
        return kept.fetch_run(number)
    except OSError as error:
        click.echo(f"The model of trial {number} cannot be fetched: {error.strerror}", err=True)
        return None


def _test_scorer(device: str) -> Callable[[Path], Score | None]:
    """What scores a run on the test split; where the text is not on this machine, it says so."""
    from models.files import reason
    from models.runs.run import score_test

    def score(run_folder: Path) -> Score | None:
        try:
            return score_test(run_folder, device)
        except Exception as error:  # the choice stands without it
            click.echo(f"{run_folder}: not scored on the test split: {reason(error)}", err=True)
            return None

    return score


def _confirm_in_short(supervisor: Supervisor, study: StudyHandle, top: int, slots: list[Slot]) -> None:
    """Confirms the best few at the end of a search; what goes wrong there takes nothing from the search."""
    from tuner.results.confirmation import candidates
    from tuner.results.summary import current

    now = current(study)
    if now.spent < 1:
        return
    if now.counts.complete < FEWEST_CONFIRMED:
        click.echo(f"Not confirmed: fewer than {FEWEST_CONFIRMED} trials were completed.", err=True)
        return
    try:
        chosen = candidates(study.optuna_study, None)[:top]
        _confirmed(supervisor, study, chosen, SHORT_SEEDS, slots, [])
    except (StudyError, WorkerError) as error:
        click.echo(f"Not confirmed: {error}", err=True)


def _finish(
    study: StudyHandle,
    artifacts: Artifacts,
    output: Path,
    run_folder: Path,
    reason: str,
) -> None:
    """Exports the best trial and its run, and shows what came out."""
    from tuner.results.export import chosen_trial, exported, write_new
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
    click.echo(f"\nDone: {reason}. {now.counts.complete} complete, {now.counts.pruned} pruned.\n")
    _show(leaderboard_table(now))
    _show_confirmation(study.optuna_study)
    if problem is not None:
        raise RunError(f"{problem}; write it elsewhere: tuner export {shlex.quote(study.name)} -o FILE")
    click.echo(f"\nBest configuration: {output}")
    kept = _fetched(artifacts, trial.number)
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
        click.echo(str(error), err=True)
        run_folder = kept
    click.echo(f"Its trained model:  {run_folder}")
    with optional("it writes nothing", partial(click.echo, err=True)):
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


def _show(*parts: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)


def _same_command() -> str:
    from tuner.storage.connection import hide_password

    return shlex.join(["tuner", *map(hide_password, sys.argv[1:])])
