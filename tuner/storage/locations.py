"""Where studies and their artifacts are kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import WorkerError

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage

    from tuner.artifacts.store import Artifacts, Owner
    from tuner.optuna_internals import ArtifactStore


@dataclass(frozen=True)
class StorageOptions:
    """Where studies and their artifacts are: a URL or else a folder for the database, a folder or bucket, or None."""

    storage: str | None
    data_folder: Path | None
    artifacts: str | None = None
    storage_password_file: Path | None = None
    """Where the password of the URL is, if it is not in it; no environment and no command line ever has it then."""

    @property
    def address(self) -> str | None:
        """The URL with its password. Raises StorageError."""
        from tuner.storage.connection import with_password

        if self.storage is None or self.storage_password_file is None:
            return self.storage
        return with_password(self.storage, self.storage_password_file)

    @contextmanager
    def opened(self) -> Iterator[RDBStorage]:
        """The database, while the block runs. Raises StorageError."""
        from tuner.storage.connection import open_storage

        with open_storage(self.address, self.data_folder) as opened:
            yield opened

    @contextmanager
    def existing(self) -> Iterator[RDBStorage | None]:
        """The database, or None where there is none yet; makes nothing. Raises StorageError."""
        from tuner.storage.connection import open_existing

        with open_existing(self.address, self.data_folder) as opened:
            yield opened

    def artifacts_of(self, found: optuna.Study) -> Artifacts:
        """Returns what is kept of a study, for reading. Raises WorkerError."""
        return self._artifacts_of(found, reading=True)

    def writable_artifacts_of(self, found: optuna.Study) -> Artifacts:
        """Returns a study's artifacts in a place that can be written to. Raises WorkerError."""
        kept = self._artifacts_of(found, reading=False)
        require_writable(kept.folder)
        return kept

    def new_artifacts(self, owner: Owner) -> Artifacts:
        """Returns the artifacts of a study that is about to be made. Raises WorkerError."""
        return self._at(owner)

    def attachments(self) -> ArtifactStore:
        """Returns where the dashboard finds the files of all studies. Raises WorkerError."""
        self.require_usable()
        return self._at("dashboard").attachments()

    def require_usable(self) -> None:
        """Raises WorkerError when there is no such place and none can be made."""
        from tuner.artifacts.store import remedy
        from tuner.storage.embedded import make_artifacts

        place = self._at("dashboard").folder.parent
        try:
            make_artifacts(place)
        except OSError as error:
            raise WorkerError(f"{error.filename or place}: {remedy(error)}") from error

    def _artifacts_of(self, found: optuna.Study, reading: bool) -> Artifacts:
        from tuner.storage.ownership import owner_of, wrote

        return self._at(owner_of(found), wrote(found), reading)

    def _at(self, study: str | Owner, *more: Any) -> Artifacts:
        from tuner.artifacts.store import SCHEME, artifacts_of
        from tuner.storage.embedded import default_artifacts

        if self.artifacts and not self.artifacts.startswith(SCHEME):
            return artifacts_of(self.artifacts, study, Path(self.artifacts), *more)
        default = default_artifacts()
        return artifacts_of(self.artifacts or str(default), study, default, *more)


def require_writable(folder: Path) -> None:
    """Makes a folder of artifacts if need be; raises WorkerError when files cannot be put there."""
    from tuner.artifacts.store import remedy
    from tuner.storage.embedded import make_artifacts

    try:
        make_artifacts(folder)
        for one in (folder, *filter(Path.is_dir, folder.glob("*"))):
            if not os.access(one, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(one))
    except OSError as error:
        raise WorkerError(f"{error.filename or folder}: {remedy(error)}") from error
