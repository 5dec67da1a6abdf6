"""python -m models train | generate: train one configuration and write with it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from models.errors import ConfigError, UserError

if TYPE_CHECKING:
    from models.config import Recipe
    from models.training import Evaluation

Command = TypeVar("Command", bound=Callable[..., Any])

STOPPED = 130
"""Exit code of a run that was asked to stop and has been saved."""


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Train a text generator, and write with it."""


@commands.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run folder to make.")
@click.option("--tokens", type=click.IntRange(min=1), help="Train on so many tokens instead of the file's budget.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Train for so long instead.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads instead of the file's.")
@click.option("--seed", type=click.IntRange(min=0), help="A seed instead of the file's.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0, ...")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the run folder.")
@click.option("--force", is_flag=True, help="Replace an existing run folder.")
def train(
    recipe: Path,
    output: Path,
    tokens: int | None,
    seconds: float | None,
    threads: int | None,
    seed: int | None,
    device: str,
    resume: bool,
    force: bool,
) -> None:
    """Train the configuration in RECIPE, a file that `tuner export` wrote, into a run folder.

    Ctrl-C or SIGTERM saves a checkpoint first; --resume goes on from it.
    """
    from models.run import read_recipe, train_run
    from models.stopping import Stopped, stop_requests
    from models.training import Training

    if tokens and seconds:
        raise click.UsageError("give either --tokens or --seconds")
    with options_checked():
        wanted = changed(read_recipe(recipe), tokens, seconds, threads, seed)
    with stop_requests() as requested:

        def look(training: Training, save: Any) -> None:
            if requested.is_set():
                save()
                raise Stopped

        def tell(evaluation: Evaluation) -> None:
            click.echo(described(evaluation, wanted))

        try:
            trained = train_run(
                wanted, output, device=device, resume=resume, force=force, on_evaluation=tell, on_step=look
            )
        except Stopped:
            click.echo("Saved; go on with the same command" + (" and --resume" if not resume else ""), err=True)
            sys.exit(STOPPED)
    click.echo(
        f"{trained.best.bits_per_byte:.4f} bits per byte ({trained.tokens_per_second:,.0f} tokens/s) in {output}"
    )
    group = click.get_current_context().command_path.rpartition(" ")[0]
    click.echo(f'Write with it: {group} generate {output} --prompt "The "')


def writing(command: Command) -> Command:
    """Adds the options of a command that writes text, those of `write_text`."""
    for option in reversed(
        [
            click.option("--prompt", default="", callback=_require_text, help="What the text goes on from."),
            click.option(
                "--length", default=400, show_default=True, type=click.IntRange(min=1), help="Tokens to write."
            ),
            click.option("--temperature", type=float, help="0 takes the most probable token; default: as exported."),
            click.option("--top-k", type=int, help="Draw among the k most probable tokens only."),
            click.option("--top-p", type=float, help="Draw among the fewest tokens of this total probability."),
            click.option("--min-p", type=float, help="Leave out tokens less probable than this part of the best one."),
            click.option("--repetition-penalty", type=float, help="Above 1 makes tokens of the text less probable."),
            click.option(
                "--stop", multiple=True, callback=_require_texts, help="End before this text; may be repeated."
            ),
            click.option(
                "--beams", type=click.IntRange(min=1), help="Search the most probable text with so many beams."
            ),
            click.option("--length-penalty", type=float, help="Above 1 makes beams favour longer texts; default: 1."),
            click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="The same seed gives the same text."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0, ..."),
        ]
    ):
        command = option(command)
    return command


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
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
    from models.run import load

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
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


def changed(recipe: Recipe, tokens: int | None, seconds: float | None, threads: int | None, seed: int | None) -> Recipe:
    """Returns the recipe with what the command line gives instead of the file; raises pydantic's ValidationError."""
    budget, config = recipe.trial, recipe.parameters
    if tokens or seconds:
        budget = budget.model_validate(budget.model_dump() | {"tokens": tokens, "seconds": seconds})
    if seed is not None:
        config = config.model_validate(config.model_dump() | {"seed": seed})
    return recipe.model_copy(update={"trial": budget, "parameters": config, "threads": threads or recipe.threads})


@contextmanager
def options_checked() -> Iterator[None]:
    """Turns a value that no configuration may have into a ConfigError that names its option."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from error


def described(evaluation: Evaluation, recipe: Recipe) -> str:
    """One line of progress for people."""
    part = evaluation.rung / recipe.trial.rungs
    left = evaluation.seconds / part - evaluation.seconds
    return (
        f"{part:4.0%}  {evaluation.tokens:>12,} tokens  {evaluation.bits_per_byte:.4f} bits per byte  "
        f"{evaluation.nats_per_token:.4f} nats per token  "
        f"{evaluation.tokens / max(evaluation.seconds, 1e-9):>9,.0f} tokens/s  {left:4.0f} s left"
    )


def main(group: click.Group = commands) -> None:
    """Runs a command; a mistake of the user's is one line and an exit code, ours keeps its traceback."""
    warnings.formatwarning = lambda message, *place, **line: f"Warning: {message}\n"
    try:
        group(standalone_mode=False)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
