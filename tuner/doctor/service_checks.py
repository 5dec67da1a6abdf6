"""Checks what the service needs beside the device: database, artifacts, disks, shared memory."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import sqlalchemy

from models.device_checks import Check
from models.errors import UserError
from tuner.artifacts.store import SCHEME
from tuner.storage.connection import describe, open_storage
from tuner.storage.embedded import default_artifacts, default_folder
from tuner.storage.locations import StorageOptions

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

LITTLE, TOO_LITTLE = 2**30, 2**27
"""Free bytes of a disk below which its users are warned, and below which a search would end."""

SMALL_SHARED_MEMORY = 2**25
SLOW_SECONDS = 0.1
"""A longer answer of the database: each claim of a trial takes a few of them."""


def check_service(places: StorageOptions) -> Iterator[Check]:
    """Yields the results for the places where studies would be kept; leaves no file and no table behind."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("database", partial(_database, places)),
        ("artifacts", partial(_artifacts, places)),
        *(("disk", partial(_disk, folder, what)) for what, folder in _folders(places)),
    ]
    if Path("/dev/shm").is_dir():
        checks.append(("shared memory", _shared_memory))
    for name, check in checks:
        try:
            yield check()
        except UserError as error:
            text, _, remedy = str(error).partition("\n")
            yield Check(name, "failed", text, remedy)
        except Exception as error:
            yield Check(name, "failed", f"{type(error).__name__}: {error}".partition("\n")[0], "report it")


def _database(places: StorageOptions) -> Check:
    """Connects; where there is no embedded server yet, starts one in a folder that is removed again."""
    name = describe(places.storage, places.data_folder)
    with places.existing() as storage:
        if storage is not None:
            return _answering(storage, name)
    if places.storage is not None:
        return Check("database", "ok", f"{name}: answers; it has no tables yet, the first `tuner run` makes them")
    with tempfile.TemporaryDirectory(prefix="tuner-doctor-") as folder:
        os.chmod(folder, 0o711)  # root's server runs as another user
        with open_storage(None, Path(folder) / "postgres") as storage:
            return _answering(storage, "embedded PostgreSQL, started for this in a temporary folder")


def _answering(storage: RDBStorage, name: str) -> Check:
    with storage.engine.connect() as connection:
        version = connection.execute(sqlalchemy.text("SHOW server_version")).scalar_one()
        start = time.perf_counter()
        connection.execute(sqlalchemy.text("SELECT 1"))
        seconds = time.perf_counter() - start
    text = f"{name}: PostgreSQL {version}, answers in {1000 * seconds:.1f} ms"
    if seconds > SLOW_SECONDS:
        return Check("database", "warning", text, "let workers run nearer to the database")
    return Check("database", "ok", text)


def _artifacts(places: StorageOptions) -> Check:
    """Writes a file, reads it and removes it."""
    place = places.artifacts or str(default_artifacts())
    store, name, content = places.attachments(), f"doctor-{uuid4().hex}", os.urandom(2**16)
    try:
        store.write(name, io.BytesIO(content))
        with store.open_reader(name) as file:
            same = file.read() == content
        store.remove(name)
    except OSError as error:
        reason = error.strerror or error
        return Check("artifacts", "failed", f"{place}: cannot be used ({reason})", "choose other --artifacts")
    if not same:
        return Check("artifacts", "failed", f"{place}: gives back something else", "choose other --artifacts")
    return Check("artifacts", "ok", f"{place}: written, read and removed")


def _folders(places: StorageOptions) -> Iterator[tuple[str, Path]]:
    """What is kept in folders here, and where; of several on one disk the first."""
    folders = {}
    if places.storage is None:
        folders["database"] = places.data_folder or default_folder()
    if places.artifacts is None or not places.artifacts.startswith(SCHEME):
        folders["artifacts"] = Path(places.artifacts) if places.artifacts else default_artifacts()
    folders["temporary files"] = Path(tempfile.gettempdir())
    disks = set()
    for what, folder in folders.items():
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        disk = there.stat().st_dev
        if disk not in disks:
            disks.add(disk)
            yield what, there


def _disk(folder: Path, what: str) -> Check:
    free = shutil.disk_usage(folder).free
    text = f"{folder} ({what}): {free / 2**30:.1f} GiB free"
    if free < LITTLE:
        return Check("disk", "failed" if free < TOO_LITTLE else "warning", text, "make room, or choose another disk")
    return Check("disk", "ok", text)


def _shared_memory() -> Check:
    free = shutil.disk_usage("/dev/shm").free
    text = f"/dev/shm: {free / 2**20:.0f} MiB free"
    if free < SMALL_SHARED_MEMORY:
        return Check("shared memory", "warning", text, "give a container more of it (--shm-size=1g)")
    return Check("shared memory", "ok", text)
