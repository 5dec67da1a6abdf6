"""The tasks of this repository; CI runs the same ones: nox -s lint tests docs doctor.

They use the environment that is active (see CONTRIBUTING.md); `minimum` makes one of its own.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests", "docs", "doctor"]
nox.options.default_venv_backend = "none"
ROOT = Path(__file__).parent
QUICK = [
    "tests/models",
    "tests/test_code_rules.py",
    "tests/tuner/study/test_space.py",
    "tests/tuner/study/test_definition.py",
]
"""Tests that need neither a database nor much time."""


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, import rules, spelling, and whether generated documents are what the code says."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("codespell")
    session.run("python", "docs/make_reference.py", "--check")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests with their coverage, or those that are named after `--`."""
    if session.posargs:
        session.run("python", "-m", "pytest", *session.posargs)
        return
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-n", "2")
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """The documents as a site, in build/site; a link that leads nowhere is an error."""
    session.run("mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def doctor(session: nox.Session) -> None:
    """`tuner doctor` on this machine, with a database and artifacts of its own."""
    places = {"TUNER_DATA": "postgres", "TUNER_ARTIFACTS": "artifacts"}
    folder = Path(session.create_tmp())
    session.run("tuner", "doctor", env={name: str(folder / place) for name, place in places.items()})


@nox.session
def reference(session: nox.Session) -> None:
    """Writes the generated parts of the documents again."""
    session.run("python", "docs/make_reference.py")


@nox.session
def lock(session: nox.Session) -> None:
    """Renews the locks of the container image."""
    session.run("python", "docs/make_locks.py", *session.posargs)


@nox.session(venv_backend="venv", python=False)
def minimum(session: nox.Session) -> None:
    """The quick tests with the oldest dependencies that pyproject.toml allows.

    MINIMUM_TORCH names another version of torch, where the oldest is only to be had with gigabytes for GPUs.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = Path(session.create_tmp())
    session.run("python", "-m", "venv", str(folder / "venv"))
    pip = [str(folder / "venv" / "bin" / "pip"), "install", "--quiet"]
    session.run(*pip, *map(oldest, project["dependencies"]), external=True)
    session.run(*pip, ".[test]", "--constraint", str(_constraints(folder, project["dependencies"])), external=True)
    python, quiet = str(folder / "venv" / "bin" / "python"), ("-W", "ignore::DeprecationWarning")  # of old beside new
    session.run(python, "-m", "pytest", *quiet, *(session.posargs or QUICK), external=True)


def oldest(requirement: str) -> str:
    """A requirement at the oldest version that it allows: `numpy>=2.0` is `numpy==2.0.*`."""
    if requirement.startswith("torch>") and "MINIMUM_TORCH" in os.environ:
        return f"torch=={os.environ['MINIMUM_TORCH']}"
    return re.sub(r">=([\d.]+)(,[^;]*)?", lambda found: f"~={_with_patch(found[1])}", requirement)


def _with_patch(version: str) -> str:
    """`2.0` and `3` as `2.0.0` and `3.0.0`, so that `~=` stays within their minor version."""
    return ".".join([*version.split("."), "0", "0"][:3])


def _constraints(folder: Path, requirements: list[str]) -> Path:
    path = folder / "constraints.txt"
    path.write_text("".join(f"{oldest(one)}\n" for one in requirements))
    return path
