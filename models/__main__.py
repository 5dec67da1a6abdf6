"""python -P -m models train | generate: trains one configuration and generates text with it."""

from __future__ import annotations

import errno
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from models import logs
from models.errors import ConfigError, UserError

if TYPE_CHECKING:
    from models.config import Recipe
    from models.training.distributed import Team


class _File(click.ParamType[Path]):
    """A path on this machine: `~` is expanded wherever it comes from; what is an address of another kind is refused."""

    name = "path"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        return local_path(str(value))


FILE = _File()

Command = TypeVar("Command", bound=Callable[..., Any])

STOPPED = 130
"""Exit code of a run that was asked to stop and has been saved."""


def local_path(value: str) -> Path:
    """Returns the path that a person wrote; raises click's BadParameter for an address such as file:///x."""
    scheme = re.match("([A-Za-z][A-Za-z0-9+.-]+):/", value)
    if scheme is not None:
        without = re.sub("^[^:]*:/+", "/", value)
        remedy = f"write {without}" if scheme[1].lower() == "file" else "give a path on this machine"
        raise click.BadParameter(f"{value} is no path; {remedy}")
    try:
        return Path(value).expanduser()
    except RuntimeError:  # a user that is not there, or one without a home: it is a name that begins with ~
        return Path(value)


class Finite(click.FloatRange):
    """A number within bounds; nan, which is within any, is refused."""

    name = "number"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        number: float = super().convert(value, parameter, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", parameter, context)
        return number


LONGEST_SECONDS = 1e9
"""Thirty years; what lasts longer was not meant."""

SECONDS = Finite(min=0, max=LONGEST_SECONDS, min_open=True)
HOURS = Finite(min=0, max=LONGEST_SECONDS // 3600, min_open=True)
MOST_THREADS, MOST_SEEDS = 4096, 1000


UNHEARD = 1
"""Exit code of a command whose output cannot be written."""


def _require_text(context: click.Context, option: click.Parameter, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("is not UTF-8 text") from error
    return value


def _require_texts(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if not all(values):
        raise click.BadParameter("is empty; give the text to end before")
    return tuple(_require_text(context, option, value) for value in values)


def logging_options(command: Command) -> Command:
    """Adds the options of a group of commands about what is logged, those of `configure_logging`."""
    for option in (
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            envvar=logs.FORMAT,
            default="text",
            show_default=True,
            help=f"How what is logged looks; workers follow. [env: {logs.FORMAT}]",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Log errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Log details, too."),
    ):
        command = option(command)
    return command


def configure_logging(verbose: bool, quiet: bool, log_format: str) -> None:
    """Logs to standard error from here on; without an option, at the level that the environment says."""
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other")
    level = "DEBUG" if verbose else "ERROR" if quiet else os.environ.get(logs.LEVEL, "INFO")
    if level not in logs.LEVELS:
        raise click.UsageError(f"{logs.LEVEL}={level}: no such level; write {', '.join(logs.LEVELS)}")
    logs.configure(level, log_format)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@logging_options
def commands(verbose: bool, quiet: bool, log_format: str) -> None:
    """Train a text generator, and write with it."""
    configure_logging(verbose, quiet, log_format)


@commands.command()
@click.argument("recipe", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Run folder to create.")
@click.option("--tokens", type=click.IntRange(min=1), help="Train on N tokens (overrides the file).")
@click.option("--seconds", type=SECONDS, help="Train for N seconds (overrides the file).")
@click.option("--hours", type=HOURS, help="Train for N hours (overrides the file).")
@click.option("--rungs", type=click.IntRange(min=1), help="Evaluations during training (overrides the file).")
@click.option("--patience", type=click.IntRange(min=0), help="Stop after N rungs without progress; 0: never.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed (overrides the file).")
@click.option(
    "--seeds", type=click.IntRange(1, MOST_SEEDS), help="Train N runs, from that seed upwards, in OUTPUT/seed-..."
)
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="CPU threads (overrides the file).")
@click.option("--micro-batch", type=click.IntRange(min=1), help="Read N sequences at a time, to use less memory.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0, ...")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard's files to the run folder.")
@click.option("--allow-changed-corpus", is_flag=True, help="Continue even if the text is not the one of the file.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in the run folder.")
@click.option("--force", is_flag=True, help="Replace an existing run folder.")
def train(
    recipe: Path, output: Path, seeds: int | None, device: str, resume: bool, force: bool, **options: Any
) -> None:
    """Train the configuration in RECIPE, a file that `tuner export` wrote, into a run folder.

    Ctrl-C or SIGTERM saves a checkpoint first; --resume continues from it. With several GPUs:
    torchrun --nproc-per-node 2 --no-python tuner train RECIPE -o OUTPUT
    """
    from models.runs.run import read_recipe
    from models.training.distributed import joined_team
    from models.training.stopping import Stopped, stop_requests

    if sum(options[name] is not None for name in ("tokens", "seconds", "hours")) > 1:
        raise click.UsageError("give either --tokens or --seconds or --hours")
    flags = {name: options.pop(name) for name in ("tensorboard", "allow_changed_corpus")}
    with joined_team() as team, stop_requests() as requested, warnings.catch_warnings():
        if not team.is_main_process:
            warnings.simplefilter("ignore")
        with options_checked():
            promised = team.main_process_first(lambda: read_recipe(recipe))
            wanted = team.main_process_first(lambda: changed(promised, **options))
        device = team.main_process_first(lambda: team.device(device))
        _mention_threads(wanted, recipe, options["threads"], device, team)
        try:
            _train_all(wanted, promised, output, seeds, resume, force, team, requested.is_set, device=device, **flags)
        except Stopped:
            if team.is_main_process:
                click.echo("Saved; go on with the same command" + (" and --resume" if not resume else ""), err=True)
            sys.exit(STOPPED)


def _train_all(
    recipe: Recipe,
    promised: Recipe,
    output: Path,
    seeds: int | None,
    resume: bool,
    force: bool,
    team: Team,
    requested: Callable[[], bool],
    **options: Any,
) -> None:
    """Trains one run into `output`, or one for each seed below it, and says how it went."""
    from models.runs.seeds import require_startable, seed_runs, summary, trained_already

    runs = {output: recipe}
    if seeds is not None:
        with options_checked():
            runs = seed_runs(recipe, output, seeds)
        team.main_process_only(lambda: require_startable(output, runs, resume, force))
    for folder, one in runs.items():
        if seeds is not None and resume and trained_already(folder, one, options["allow_changed_corpus"]):
            continue
        _train_one(one, promised, folder, team, requested, resume=resume, force=force, **options)
    if team.is_main_process:
        for line in summary(runs) if seeds is not None else ():
            click.echo(line)
        group = click.get_current_context().command_path.rpartition(" ")[0]
        click.echo(f'Write with it: {group} generate {next(iter(runs))} --prompt "The "')


def _train_one(
    recipe: Recipe, promised: Recipe, folder: Path, team: Team, requested: Callable[[], bool], **options: Any
) -> None:
    from models.files import optional
    from models.runs.progress import Progress, Requests
    from models.runs.reproducibility import compared
    from models.runs.run import train_run

    observer = Progress(recipe, requested) if team.is_main_process else Requests(requested)
    trained = train_run(recipe, folder, team=team, observer=observer, **options)
    if team.is_main_process:
        with optional("not compared with the value in the file"):
            comparison = None if options["allow_changed_corpus"] else compared(promised, recipe, trained, team)
            if comparison is not None:
                click.echo(comparison)
        test = "" if trained.test is None else f", {trained.test.bits_per_byte:.4f} on the test split"
        speed = f"{trained.tokens_per_second:,.0f} tokens/s"
        click.echo(f"{trained.best.bits_per_byte:.4f} bits per byte{test} ({speed}) in {folder}")


def _mention_threads(recipe: Recipe, path: Path, given: int | None, device: str, team: Team) -> None:
    """Says that a file keeps a run on fewer CPU threads than there are."""
    import torch

    usual, gpu = torch.get_num_threads(), device != "cpu" and torch.cuda.is_available()
    if team.is_main_process and not gpu and given is None and recipe.threads is not None and recipe.threads < usual:
        click.echo(
            f"On {recipe.threads} of {usual} CPU threads, as {path} says, for the same bits; "
            f"--threads {usual} uses them all, and may change the last bits"
        )


def writing(command: Command) -> Command:
    """Adds the options of a command that writes text, those of `write_text`."""
    for option in reversed(
        [
            click.option("--prompt", default="", callback=_require_text, help="Text to continue."),
            click.option(
                "--length", default=400, show_default=True, type=click.IntRange(min=1), help="Tokens to write."
            ),
            click.option("--temperature", type=float, help="0 takes the most probable token. [default: as exported]"),
            click.option("--top-k", type=int, help="Draw among the k most probable tokens only."),
            click.option("--top-p", type=float, help="Draw among the fewest tokens of this total probability."),
            click.option(
                "--min-p", type=float, help="Leave out tokens less probable than this fraction of the best one."
            ),
            click.option(
                "--repetition-penalty", type=float, help="Above 1 makes tokens that are in the text less probable."
            ),
            click.option(
                "--stop", multiple=True, callback=_require_texts, help="End before this text; may be repeated."
            ),
            click.option("--beams", type=click.IntRange(min=1), help="Search for the most probable text with N beams."),
            click.option("--length-penalty", type=Finite(), help="Above 1 favours longer texts. [default: 1]"),
            click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="The same seed gives the same text."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0, ..."),
        ]
    ):
        command = option(command)
    return command


@commands.command()
@click.argument("run", type=FILE)
@writing
def generate(run: Path, **options: Any) -> None:
    """Write text with the model in the run folder RUN."""
    write_text(run, **options)


def write_text(
    run: Path,
    prompt: str,
    length: int,
    stop: tuple[str, ...],
    beams: int | None,
    length_penalty: float | None,
    seed: int | None,
    device: str,
    **decoding: float | int | None,
) -> None:
    """Prints what the model in a run folder writes, while it writes it."""
    from models.runs.run import load
    from models.safe_text.terminal import printed

    given = {name: value for name, value in decoding.items() if value is not None}
    if length_penalty is not None and beams is None:
        raise click.UsageError("--length-penalty is for --beams")
    if beams is not None and given.keys() - {"repetition_penalty"}:
        raise click.UsageError(
            "--beams takes the most probable text; leave out --temperature, --top-k, --top-p, --min-p"
        )
    loaded = load(run, device)
    with options_checked():
        if beams is None:
            pieces = loaded.stream(prompt, length, seed=seed, stop=stop, **given)
        else:
            penalty = 1.0 if length_penalty is None else length_penalty
            pieces = iter([loaded.beam_search(prompt, length, beams=beams, length_penalty=penalty, stop=stop, **given)])
    for piece in chain([prompt], pieces):
        click.echo(printed(piece), nl=False)
    click.echo()


def changed(recipe: Recipe, hours: float | None, **given: Any) -> Recipe:
    """Returns the recipe with what the command line gives instead of the file; raises pydantic's ValidationError."""
    given["seconds"] = given["seconds"] if hours is None else hours * 3600
    given = {name: value for name, value in given.items() if value is not None}
    budget, config = recipe.trial.model_dump(), recipe.parameters.model_dump()
    if {"tokens", "seconds"} & given.keys():
        budget |= {"tokens": None, "seconds": None}
    updates = {
        "trial": recipe.trial.model_validate(budget | {name: given[name] for name in budget.keys() & given.keys()}),
        "parameters": recipe.parameters.model_validate(config | {name: given[name] for name in config.keys() & given}),
    }
    return recipe.model_copy(
        update=updates | {name: given[name] for name in ("threads", "micro_batch") if name in given}
    )


@contextmanager
def options_checked() -> Iterator[None]:
    """Turns a value that no configuration may have into a ConfigError that names its option."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from error


def main(group: click.Command = commands, arguments: Sequence[str] | None = None) -> None:
    """Runs a command, by default with the arguments of this process.

    A mistake of the user's is one line and an exit code, ours keeps its traceback.
    """
    from models.safe_text.terminal import lines

    warnings.formatwarning = lambda message, *place, **line: f"Warning: {message}\n"
    _open_streams()
    try:
        group(arguments, standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        if str(error):  # else another process says it
            click.echo(f"Error: {lines(str(error))}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(STOPPED)
    except OSError as error:
        _end_unheard(error)


def _open_streams() -> None:
    """Opens what a shell closed (`>&-`) to nowhere: else the next file would take its place, and its output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.dup2(descriptor, number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is no text, or a terminal that has no such letters
        sys.stdout.reconfigure(errors="backslashreplace")


def _end_unheard(error: OSError) -> NoReturn:
    """Ends a process whose output cannot be written: its pipe or terminal is closed, or its disk is full."""
    if error.filename is not None or error.errno not in (errno.EPIPE, errno.EIO, errno.ENOSPC):
        raise error
    if error.errno == errno.ENOSPC:
        click.echo(f"Error: the output cannot be written: {error.strerror}", err=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left unwritten has nowhere to go
    sys.exit(UNHEARD)


if __name__ == "__main__":
    main()
