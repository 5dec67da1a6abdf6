"""Commands that steer a running study: pause, resume, stop, retry, enqueue."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from tuner.cli import options
from tuner.cli.shared import find
from tuner.storage.locations import StorageOptions

if TYPE_CHECKING:
    from tuner.storage.handle import StudyHandle


def _steers(steer: Callable[..., str]) -> Any:
    """A command that asks something of a study, from any machine that reaches its database, and says what came of it.

    `steer` gets the study and the command's own arguments.
    """

    @wraps(steer)
    def command(study_name: str, places: StorageOptions, **own: Any) -> None:
        with places.opened() as opened:
            study = find(opened, study_name)
            click.echo(f"study {study.name}: {steer(study, **own)}")

    return click.command()(click.argument("study_name", metavar="STUDY")(options.database(command)))


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

    return steering.enqueue(study, steering.assigned(assignments))
