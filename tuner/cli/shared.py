"""What several commands do: find a study, show tables, say what happens."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from tuner.artifacts.store import Artifacts
    from tuner.storage.handle import StudyHandle
    from tuner.storage.locations import StorageOptions


def say(text: str) -> None:
    from models.safe_text.terminal import lines

    click.echo(f"{time.strftime('%H:%M:%S')} {lines(text)}", err=True)


def find(storage: RDBStorage, name: str) -> StudyHandle:
    """The study of that name, or of the study file of that name, as it is in the database."""
    from tuner.storage.handle import open_study
    from tuner.study.definition import read_study

    return open_study(storage, read_study(Path(name), rehearsed=False).name if is_there(Path(name)) else name)


def fetched(kept: Artifacts, number: int) -> Path | None:
    """The run folder of a trial; None, and a word about it where it cannot be reached."""
    try:
        return kept.fetch_run(number)
    except OSError as error:
        click.echo(f"The model of trial {number} cannot be fetched: {error.strerror}", err=True)
        return None


def show(*parts: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)


def same_command() -> str:
    from tuner.storage.connection import hide_password

    return shlex.join(["tuner", *map(hide_password, sys.argv[1:])])


def is_there(path: Path) -> bool:
    """Whether a path leads to something that can be read as a file, such as a pipe of the shell's."""
    return os.path.exists(path) and not os.path.isdir(path)


def described(places: StorageOptions) -> str:
    from tuner.storage.connection import describe

    return describe(places.storage, places.data_folder)
