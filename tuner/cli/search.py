"""Commands that search: run, work, confirm, check."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import __main__ as single
from models.errors import RunError
from models.wording import counted
from tuner.cli import options
from tuner.cli.shared import fetched, find, is_there, same_command, say, show
from tuner.cli.worker_processes import supervisor_of_this
from tuner.errors import StorageError, StudyError, WorkerError
from tuner.storage.locations import StorageOptions
from tuner.workers.options import WorkerOptions

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from models.training.metrics import Score
    from tuner.artifacts.store import Artifacts
    from tuner.storage.handle import StudyHandle
    from tuner.study.definition import Study
    from tuner.workers.processes import Slot
    from tuner.workers.supervisor import Supervisor

FEWEST_CONFIRMED, SHORT_SEEDS = 3, 2
"""Completed trials from which on `run` confirms the best of them, and the fresh seeds it takes for each."""


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
        entered = enter(opened, study, say)
        kept = places.writable_artifacts_of(entered.optuna_study)
        supervisor = Supervisor(opened, places, crew)
        begins = f"{counted(len(slots), 'worker')} on {', '.join(sorted({slot.device for slot in slots}))}"
        reason = _supervise(supervisor, entered, kept, slots, begins, [study.name])
        if confirmed and not no_confirm:
            _confirm_in_short(supervisor, entered, confirmed, slots)
        _finish(entered, kept, output, run_folder, reason)


@click.command()
@click.argument("study_name", metavar="[STUDY]", required=False)
@options.places
@options.crew
@click.option(
    "--heartbeat",
    type=options.Folder(path_type=Path),
    help="File to touch every few seconds while the database answers, for a health check.",
)
@click.option(
    "--corpus",
    "corpus_path",
    type=options.Folder(),
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
        study = find(opened, study_name)
        slots = crew.slots(study.definition)
        kept = places.writable_artifacts_of(study.optuna_study)
        arguments = [study.name, *_elsewhere(corpus_path)]
        supervisor = Supervisor(opened, places, crew, supervisor_of_this())
        reason = _supervise(supervisor, study, kept, slots, f"joined by {counted(len(slots), 'worker')}", arguments)
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
@click.option(
    "--corpus",
    "corpus_path",
    type=options.Folder(),
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
        study = find(opened, study_name)
        chosen = confirmation.candidates(study.optuna_study, top)
        supervisor = Supervisor(opened, places, crew)
        slots = crew.slots(study.definition)
        result = _confirmed(supervisor, study, chosen, seeds, slots, _elsewhere(corpus_path))
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
    from tuner.study.definition import read_study

    path = _study_path(study_file)
    study = _changed(read_study(path), corpus_path, None, None)
    _compare(places, study, require_sound(study, say).fingerprint)
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


def _study_path(name: str) -> Path:
    """The study file of that path, or the one of that name that comes with the tuner."""
    path = Path(name)
    if is_there(path) or path.suffix in (".yaml", ".yml", ".json"):
        return path
    package = Path(str(resources.files("tuner")))
    folder = next((one for one in (package / "studies", package.parent / "studies") if one.is_dir()), package)
    shipped = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in shipped:
        raise StudyError(f"{name}: no such file, and no study that comes with the tuner ({', '.join(shipped)})")
    return folder / f"{name}.yaml"


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
    sys.exit(single.STOPPED)


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
        click.echo(f"Stopped; {stopped}. Go on with the same command: {same_command()}", err=True)
        sys.exit(single.STOPPED)


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
    result = confirmation.conclude(study.optuna_study, trained, chosen, seeds, partial(fetched, kept), score)
    for number in confirmation.runs_of_others(trained, result):
        kept.remove_run(number)
    return result


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
