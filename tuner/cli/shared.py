"""What several commands do: find a study, show tables, describe the database."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from tuner.storage.handle import StudyHandle
    from tuner.storage.locations import StorageOptions


def find(storage: RDBStorage, name: str) -> StudyHandle:
    """The study of that name, or of the study file of that name, as it is in the database."""
    from tuner.storage.handle import open_study
    from tuner.study.definition import read_study
    from tuner.study.shipped import is_readable

    return open_study(storage, read_study(Path(name), rehearsed=False).name if is_readable(Path(name)) else name)


def show(*parts: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)


def same_command() -> str:
    from tuner.storage.connection import hide_password

    return shlex.join(["tuner", *map(hide_password, sys.argv[1:])])


def described(places: StorageOptions) -> str:
    from tuner.storage.connection import describe

    return describe(places.storage, places.data_folder)
