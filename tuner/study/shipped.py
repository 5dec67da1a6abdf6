"""Finds study files: by path, or by the name of a study that comes with the tuner."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from tuner.errors import StudyError


def study_path(name: str) -> Path:
    """Returns the study file of that path, or the one of that name that comes with the tuner. Raises StudyError."""
    path = Path(name)
    if is_readable(path) or path.suffix in (".yaml", ".yml", ".json"):
        return path
    package = Path(str(resources.files("tuner")))
    folder = next((one for one in (package / "studies", package.parent / "studies") if one.is_dir()), package)
    shipped = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in shipped:
        raise StudyError(f"{name}: no such file, and no study that comes with the tuner ({', '.join(shipped)})")
    return folder / f"{name}.yaml"


def is_readable(path: Path) -> bool:
    """Whether a path leads to something that can be read as a file, such as a pipe of the shell's."""
    return os.path.exists(path) and not os.path.isdir(path)
