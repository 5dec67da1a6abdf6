"""The real command in a place of its own: database, artifacts and working folder; every process in it can be found."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import ProgrammingError

from tuner.storage.connection import open_storage
from tuner.storage.leases import Leases, Worker

TUNER = Path(sysconfig.get_path("scripts")) / "tuner"
PATIENCE = 90.0
"""Seconds after which something that should happen counts as not happening; on a busy machine all takes long."""


class Running:
    """A command that runs, with what it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Waits for the end and returns the exit code."""
        return self.process.wait(3 * PATIENCE)  # of a whole command, not of one event

    def until(self, condition: Callable[[], Any]) -> Any:
        """Waits until a condition holds, while the command runs; returns what it returned."""
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(KeyError, ProgrammingError):  # there is no such study yet, or no such table
                if found := condition():
                    return found
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.2)


class Place:
    """A folder to work in, with a database and artifacts that nobody else uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.data, self.artifacts = folder / "home", folder / "data", folder / "artifacts"
        self.home.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TUNER_", "COV_"))},
            "TUNER_DATA": str(self.data),
            "TUNER_ARTIFACTS": str(self.artifacts),
            "TUNER_CONFIRM": "0",
            "PYTHONUNBUFFERED": "1",
        }
        self.commands: list[Running] = []

    def write(self, name: str, text: str) -> str:
        (self.home / name).write_text(text)
        return name

    def run(self, *arguments: object, command: tuple[object, ...] = (TUNER,), **options: Any) -> Done:
        """Runs a command to its end."""
        running = self.start(*arguments, command=command, **options)
        return Done(running.end(), running.said)

    def start(
        self, *arguments: object, command: tuple[object, ...] = (TUNER,), cwd: Path | None = None, **variables: str
    ) -> Running:
        log = self.folder / f"output-{len(self.commands)}.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(part) for part in (*command, *arguments)],
                cwd=cwd or self.home,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.commands.append(Running(process, log))
        return self.commands[-1]

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this place: commands, workers, PostgreSQL."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                told = process.environ().get("TUNER_DATA") == str(self.data)
                if told or str(self.folder) in " ".join(process.cmdline()):
                    found += [process, *process.children(recursive=True)]
        return [process for process in dict.fromkeys(found) if lives(process) and process.pid != os.getpid()]

    def is_quiet(self) -> bool:
        """Whether no process is left; those that were killed take a moment to go."""
        end = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return not left

    def kill(self) -> None:
        """Ends every process of this place, PostgreSQL too, as a power cut does."""
        while processes := self.processes():
            for process in processes:
                with suppress(psutil.Error):
                    process.kill()
            for command in self.commands:
                command.process.poll()  # those that ended are no zombies then

    @contextmanager
    def opened(self) -> Iterator[RDBStorage]:
        with open_storage(None, self.data) as storage:
            yield storage

    def trials(self, name: str) -> list[FrozenTrial]:
        with self.opened() as storage:
            return optuna.load_study(study_name=name, storage=storage).trials

    def workers(self, name: str) -> list[Worker]:
        with self.opened() as storage:
            return Leases(storage, optuna.load_study(study_name=name, storage=storage)._study_id).alive()

    def studies(self) -> list[str]:
        with self.opened() as storage:
            return optuna.get_all_study_names(storage)


class Done:
    """A command that has ended."""

    def __init__(self, code: int, said: str) -> None:
        self.code, self.said = code, said

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.said}"


def lives(process: psutil.Process) -> bool:
    """Whether a process is more than a line in the kernel's table that nobody has asked for."""
    with suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def new_place(name: str) -> Iterator[Place]:
    """A place that the user of the embedded server can enter, as pytest's own cannot be; nothing is left behind."""
    fast = os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30
    folder = Path(tempfile.mkdtemp(prefix=f"{re.sub('[^a-z]', '-', name)}-", dir="/dev/shm" if fast else "/tmp"))
    folder.chmod(0o755)
    place = Place(folder)
    yield place
    place.kill()
    for command in place.commands:
        command.process.wait()
    shutil.rmtree(folder)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with new_place("place") as place:
        yield place


@pytest.fixture(scope="session", name="new_place")
def _new_place() -> Callable[[str], Any]:
    """Makes a place for several tests."""
    return new_place
