"""The options of a command about its workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models import logs
from tuner.errors import WorkerError
from tuner.storage.locations import StorageOptions

if TYPE_CHECKING:
    from tuner.study.definition import Study
    from tuner.workers.processes import Slot

GRACE_SECONDS, CHECKPOINT_SECONDS = 10.0, 30.0
"""How long workers have to save their trials when they are asked to stop, and how often they do so anyway."""


@dataclass(frozen=True)
class WorkerOptions:
    """The workers of a command: how many, on which devices, with how many threads, and how they save their trials."""

    workers: int | None = None
    devices: str = "auto"
    per_device: int | str | None = None
    threads: int | None = None
    grace: float = GRACE_SECONDS
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    heartbeat: Path | None = None

    def beat(self) -> None:
        """Says to a health check that this command is alive and has the database. Raises WorkerError."""
        if self.heartbeat is None:
            return
        try:
            self.heartbeat.touch()
        except OSError as error:
            raise WorkerError(f"--heartbeat {self.heartbeat}: cannot be written ({error.strerror})") from error

    def require_devices(self, study: Study) -> None:
        """Raises DeviceError when a device is not there."""
        from tuner.workers.processes import slots

        slots(self.workers or 1, self.devices, self.threads or study.threads)

    def slots(self, study: Study) -> list[Slot]:
        """Returns the places that were asked for; for `auto`, as many on a device as do the most together."""
        from tuner.workers.processes import slots

        threads, per_device = self.threads or study.threads, self.per_device
        if per_device == "auto" and self.workers is None:
            from tuner.workers.oversubscription import workers_per_device

            per_device = workers_per_device(study, self.devices, threads)
        return slots(self.workers, self.devices, threads, per_device if isinstance(per_device, int) else None)


def environment(places: StorageOptions, crew: WorkerOptions) -> dict[str, str]:
    """Returns the variables of a worker; a command line would show a URL's password to all users."""
    password_file = places.storage_password_file
    given = {
        "TUNER_STORAGE": places.storage,
        "TUNER_STORAGE_PASSWORD_FILE": None if password_file is None else password_file.absolute(),
        "TUNER_DATA": places.data_folder,
        "TUNER_ARTIFACTS": places.artifacts,
        "TUNER_CHECKPOINT_SECONDS": crew.checkpoint_seconds,
    }
    return logs.settings | {name: str(value) for name, value in given.items() if value is not None}
