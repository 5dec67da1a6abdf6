"""Where checkpoints and weights are kept: a folder, or an S3 bucket with a folder here as its antechamber."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, BinaryIO
from uuid import uuid4

from tuner.errors import WorkerError

if TYPE_CHECKING:
    from optuna.artifacts import Boto3ArtifactStore
    from optuna.artifacts._protocol import ArtifactStore

SCHEME = "s3://"
ATTACHMENTS = ".attachments"
"""Where the dashboard finds the files of all studies' trials; no study's name begins with a dot."""
SAMPLES = "samples.jsonl"
RUN = ("config.yaml", "tokenizer.json", "metrics.jsonl", SAMPLES, "model.safetensors")
"""The files of a run folder (models.run, which imports torch), in the order they are shared."""


class Artifacts:
    """The files of one study. They are written and read in `folder`; `share`, `fetch` and `remove` reach the others.

    With a folder that all machines see there is nothing to do for them. What goes wrong with a bucket is an OSError,
    as with a disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def attach(self, content: bytes) -> str:
        """Keeps a file for the dashboard, never to be changed; returns its id."""
        name = str(uuid4())
        self.attachments().write(name, BytesIO(content))
        return name

    def attachments(self) -> ArtifactStore:
        """Where the dashboard finds the files of all studies."""
        folder = self.folder.parent / ATTACHMENTS
        folder.mkdir(parents=True, exist_ok=True)
        return _Attachments(folder)

    def share(self, name: str) -> None:
        """Makes a file, complete in `folder` under this relative name, known to all workers."""

    def fetch(self, name: str) -> None:
        """Brings a file that another worker shared into `folder`, if there is one and it is not here."""

    def remove(self, name: str) -> None:
        """Deletes a file for all workers."""
        (self.folder / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Returns the relative names of all files of the study that all workers know."""
        return [path.relative_to(self.folder).as_posix() for path in self.folder.glob("**/*") if path.is_file()]

    def put(self, name: str, content: IO[bytes]) -> None:
        """Writes a file that all workers are to know."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)
        self.share(name)

    def run_folder(self, number: int) -> Path:
        """Where the run of a completed trial is, if it is kept and fetched."""
        return self.folder / f"trial-{number}"

    def share_run(self, number: int) -> None:
        """Shares all files of a run; the weights last, without which it is none."""
        for name in RUN:
            self.share(f"trial-{number}/{name}")

    def fetch_run(self, number: int) -> Path | None:
        """Returns the folder of a trial's run, complete, or None when it is not kept."""
        for name in RUN:
            self.fetch(f"trial-{number}/{name}")
        folder = self.run_folder(number)
        return folder if all((folder / name).exists() for name in RUN) else None

    def remove_run(self, number: int) -> None:
        """Deletes a run; what cannot be reached is left where it is."""
        for name in reversed(RUN):
            with suppress(OSError):
                self.remove(f"trial-{number}/{name}")
        shutil.rmtree(self.run_folder(number), ignore_errors=True)


class Bucket(Artifacts):
    """The files of one study in an S3 bucket, through Optuna's artifact store; names begin with `prefix`."""

    def __init__(self, folder: Path, store: Boto3ArtifactStore, prefix: str) -> None:
        super().__init__(folder)
        self.store, self.prefix = store, prefix

    def attach(self, content: bytes) -> str:
        with _as_os_errors("attachment"):
            return super().attach(content)

    def attachments(self) -> ArtifactStore:
        return _Prefixed(self.store, PurePosixPath(self.prefix).parent / ATTACHMENTS)

    def share(self, name: str) -> None:
        with _as_os_errors(name), (self.folder / name).open("rb") as body:
            self.store.write(self._key(name), body)

    def fetch(self, name: str) -> None:
        from optuna.artifacts.exceptions import ArtifactNotFound

        target = self.folder / name
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}")
        try:
            with _as_os_errors(name), self.store.open_reader(self._key(name)) as body, draft.open("wb") as file:
                shutil.copyfileobj(body, file)
        except ArtifactNotFound:
            return
        draft.replace(target)

    def remove(self, name: str) -> None:
        super().remove(name)
        with _as_os_errors(name):
            self.store.remove(self._key(name))

    def names(self) -> list[str]:
        prefix = f"{self.prefix}/"
        with _as_os_errors(self.prefix):
            pages = self.store.client.get_paginator("list_objects_v2").paginate(Bucket=self.store.bucket, Prefix=prefix)
            return [found["Key"].removeprefix(prefix) for page in pages for found in page.get("Contents", [])]

    def _key(self, name: str) -> str:
        return str(PurePosixPath(self.prefix, name))


class _Attachments:
    """An artifact store in a folder that a dashboard may write to: no name leads out of it, and no link is followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        from optuna.artifacts.exceptions import ArtifactNotFound

        try:
            return open(self._path(artifact_id), "rb", opener=_without_links)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                raise ArtifactNotFound(f"{artifact_id}: not found") from error
            raise

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with self._path(artifact_id).open("xb") as file:
            shutil.copyfileobj(content_body, file)

    def remove(self, artifact_id: str) -> None:
        from optuna.artifacts.exceptions import ArtifactNotFound

        try:
            self._path(artifact_id).unlink()
        except FileNotFoundError as error:
            raise ArtifactNotFound(f"{artifact_id}: not found") from error

    def _path(self, artifact_id: str) -> Path:
        from optuna.artifacts.exceptions import ArtifactNotFound

        if "/" in artifact_id or artifact_id in ("", ".", ".."):
            raise ArtifactNotFound(f"{artifact_id!r}: no file can have this name")
        return self.folder / artifact_id


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


class _Prefixed:
    """The part of an artifact store whose keys begin with a prefix."""

    def __init__(self, store: ArtifactStore, prefix: PurePosixPath) -> None:
        self.store, self.prefix = store, prefix

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self.store.open_reader(str(self.prefix / artifact_id))

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.store.write(str(self.prefix / artifact_id), content_body)

    def remove(self, artifact_id: str) -> None:
        self.store.remove(str(self.prefix / artifact_id))


def artifacts_of(place: str, study: str, default: Path) -> Artifacts:
    """Returns a study's artifacts in a folder, or at s3://bucket/prefix with `default` as the folder here.

    Raises WorkerError when the place cannot be used, or the name, which anybody with a database can choose, leads out.
    """
    if not study or study.startswith(".") or "/" in study or not study.isprintable():
        raise WorkerError(f"study {study!r}: no folder can have this name; rename it")
    if not place.startswith(SCHEME):
        return Artifacts(Path(place).absolute() / study)
    bucket, _, prefix = place.removeprefix(SCHEME).partition("/")
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from optuna.artifacts import Boto3ArtifactStore
    except ImportError as error:
        raise WorkerError(f"{place}: needs boto3; pip install 'textgen-tuner[s3]'") from error
    try:
        # Training waits for an upload: not for minutes when the bucket is away.
        client = boto3.client("s3", config=Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 2}))
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise WorkerError(
            f"{place}: cannot be reached ({error}); check the bucket and the AWS_... variables"
        ) from error
    key = str(PurePosixPath(prefix, study))
    return Bucket(default / "s3" / bucket / key, Boto3ArtifactStore(bucket, client, avoid_buf_copy=True), key)


@contextmanager
def _as_os_errors(name: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise OSError(0, f"{type(error).__name__}: {error}", name) from error
