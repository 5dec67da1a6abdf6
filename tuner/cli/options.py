"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from models import __main__ as single
from tuner.storage.locations import StorageOptions
from tuner.workers.options import CHECKPOINT_SECONDS, GRACE_SECONDS, WorkerOptions

MOST_WORKERS = 1024
"""Processes of one command."""


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


class Folder(click.Path):
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
    "--storage-password-file", type=Folder(path_type=Path), envvar="TUNER_STORAGE_PASSWORD_FILE", hidden=True
)
_data = click.option(
    "--data-folder",
    type=Folder(path_type=Path),
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
    default=GRACE_SECONDS,
    show_default=True,
    help="Seconds that workers get to save their trials when asked to stop.",
)
corpus = click.option(
    "--corpus", "corpus_path", type=Folder(path_type=Path), help="Text to use (overrides the study file)."
)
corpus_elsewhere = click.option(
    "--corpus", "corpus_path", type=Folder(), help="Where the study's text is on this machine, if elsewhere."
)
force = click.option("--force", is_flag=True, help="Replace existing output.")


checkpoint_seconds = click.option(
    "--checkpoint-seconds",
    type=single.Finite(0, single.LONGEST_SECONDS),
    envvar="TUNER_CHECKPOINT_SECONDS",
    default=CHECKPOINT_SECONDS,
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


database = _gathered("places", StorageOptions, [_storage, _password_file, _data])
places = _gathered("places", StorageOptions, [_storage, _password_file, _data, _artifacts])
crew = _gathered("crew", WorkerOptions, [_workers, _devices, _per_device, _threads, _grace, checkpoint_seconds])
