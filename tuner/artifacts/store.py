"""Stores checkpoints and weights: in a folder, or in an S3 bucket with a local folder in front of it."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, BinaryIO
from uuid import uuid4

from models.files import exclusively, sweep, written_whole
from tuner.artifacts.layout import (
    ATTACHMENTS,
    CHECKPOINT,
    FOLDER_BYTES,
    OWNER,
    RUN,
    RUN_FILE,
    name_problem,
    run_file,
    run_name,
)
from tuner.errors import WorkerError

if TYPE_CHECKING:
    from optuna.artifacts import Boto3ArtifactStore

    from tuner.optuna_internals import ArtifactStore

SCHEME = "s3://"


@dataclass(frozen=True)
class Owner:
    """Whose files are whose: `identity` is one study's alone, `folder` is the name under which it began."""

    identity: str
    folder: str


class Artifacts:
    """The files of one study. They are written and read in `folder`; `share`, `fetch` and `remove` reach the others.

    With a folder that all machines see there is nothing to do for them. What goes wrong with a bucket is an OSError,
    as with a disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused: str | None = None
        """Where another study's files are that would be this one's by their name."""

    def owner(self) -> str | None:
        """Returns the identity of the study whose files these are; None where it is not recorded."""
        try:
            return _identity((self.folder / OWNER).read_bytes())
        except FileNotFoundError:
            return None

    def claim(self, identity: str) -> str | None:
        """Writes down whose files these are unless that was done; returns whose they are. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), exclusively(self.folder / OWNER) as draft:
            draft.write_text(_owner_text(identity), encoding="utf-8")
        sweep(self.folder, OWNER)
        return self.owner()

    def release(self) -> None:
        """Gives back a place in which nothing was kept."""
        self.remove(OWNER)
        with suppress(OSError):
            self.folder.rmdir()

    @property
    def is_empty(self) -> bool:
        """Whether no trial has left anything here."""
        return not any(CHECKPOINT.fullmatch(name) or RUN_FILE.fullmatch(name) for name in self.names())

    def why_not_kept(self) -> str:
        """Returns where to look for what is not here."""
        if self.refused is None:
            return "--artifacts says where they are kept"
        return f"what is in {self.refused} is another study's of this name; --artifacts says where this one's are kept"

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
        """Deletes a file for all workers, with its drafts."""
        (self.folder / name).unlink(missing_ok=True)
        self.remove_drafts(name)

    def remove_drafts(self, name: str) -> None:
        """Deletes what killed writers of a file left; no other process may be about to write it."""
        path = self.folder / name
        for draft in path.parent.glob(f".{glob.escape(path.name)}.*"):
            draft.unlink(missing_ok=True)

    def leftovers(self) -> set[str]:
        """Returns the relative names of all that is here, complete or not."""
        return {_whole(path.relative_to(self.folder)) for path in self.folder.glob("**/*") if path.is_file()}

    def sweep(self, ended: Collection[int], complete: Collection[int]) -> None:
        """Deletes what trials that have ended no longer need: all checkpoints, and the runs of those not completed."""
        for name in sorted(self.leftovers()):
            checkpoint, run = CHECKPOINT.fullmatch(name), RUN_FILE.fullmatch(name)
            if checkpoint is not None and int(checkpoint[1]) in ended:
                self.remove(name)
            elif run is not None and int(run[1]) in ended:
                self.remove_drafts(name) if int(run[1]) in complete else self.remove_run(int(run[1]))

    def names(self) -> list[str]:
        """Returns the relative names of all files of the study that all workers know."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of all files of the study that all workers know, by relative name."""
        return _sizes(self.folder)

    def attachment_sizes(self) -> dict[str, int]:
        """Returns the bytes of the files that the dashboard shows, those of all studies, by id."""
        return _sizes(self.folder.parent / ATTACHMENTS)

    def remove_all(self) -> None:
        """Deletes all files of the study; whose they were last, so that what is interrupted can be found again.

        A folder that no study owns may be a person's: there, only what trials left is deleted.
        """
        names = self.leftovers() - {OWNER}
        if self.owner() is None:
            names = {name for name in names if CHECKPOINT.fullmatch(name) or RUN_FILE.fullmatch(name)}
        for name in sorted(names):
            self.remove(name)
        self.remove(OWNER)
        _remove_empty(self.folder)

    def put(self, name: str, content: IO[bytes]) -> None:
        """Writes a file that all workers are to know."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as draft, draft.open("wb") as file:
            shutil.copyfileobj(content, file)
        self.share(name)

    def run_folder(self, number: int) -> Path:
        """Where the run of a completed trial is, if it is kept and fetched."""
        return self.folder / run_name(number)

    def share_run(self, number: int) -> None:
        """Shares all files of a run; the weights last, without which it is none."""
        for name in RUN:
            self.share(run_file(number, name))

    def fetch_run(self, number: int) -> Path | None:
        """Returns the folder of a trial's run, complete, or None when it is not kept."""
        for name in RUN:
            self.fetch(run_file(number, name))
        folder = self.run_folder(number)
        return folder if all((folder / name).exists() for name in RUN) else None

    def remove_run(self, number: int) -> None:
        """Deletes a run; what cannot be reached is left where it is."""
        for name in reversed(RUN):
            with suppress(OSError):
                self.remove(run_file(number, name))
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

    def owner(self) -> str | None:
        from optuna.artifacts.exceptions import ArtifactNotFound

        try:
            with _as_os_errors(OWNER), self.store.open_reader(self._key(OWNER)) as body:
                return _identity(body.read(4096))
        except ArtifactNotFound:
            return None

    def claim(self, identity: str) -> str | None:
        from botocore.exceptions import ClientError

        place = {"Bucket": self.store.bucket, "Key": self._key(OWNER)}
        with _as_os_errors(OWNER):
            try:
                if self.owner() is None:
                    self.store.client.put_object(**place, Body=_owner_text(identity).encode(), IfNoneMatch="*")
            except ClientError as error:
                if error.response["Error"]["Code"] == "NotImplemented":  # a store that knows no conditions
                    self.store.client.put_object(**place, Body=_owner_text(identity).encode())
                elif error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):  # another was faster
                    raise
        return self.owner()

    def fetch(self, name: str) -> None:
        from optuna.artifacts.exceptions import ArtifactNotFound

        target = self.folder / name
        if target.exists():
            return
        try:
            with _as_os_errors(name), self.store.open_reader(self._key(name)) as body:
                target.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(target) as draft, draft.open("wb") as file:
                    shutil.copyfileobj(body, file)
        except ArtifactNotFound:
            return

    def remove(self, name: str) -> None:
        super().remove(name)
        with _as_os_errors(name):
            self.store.remove(self._key(name))

    def remove_drafts(self, name: str) -> None:
        super().remove_drafts(name)
        for key, upload in self._uploads(self._key(name)):
            with _as_os_errors(name):
                self.store.client.abort_multipart_upload(Bucket=self.store.bucket, Key=key, UploadId=upload)

    def leftovers(self) -> set[str]:
        prefix = f"{self.prefix}/"
        begun = {key.removeprefix(prefix) for key, _ in self._uploads(prefix)}
        return super().leftovers() | set(self.names()) | begun

    def _uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Uploads in pieces that were not finished: a bucket keeps what came of them, and shows it in no list."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            pages = self.store.client.get_paginator("list_multipart_uploads")
            pages = pages.paginate(Bucket=self.store.bucket, Prefix=prefix)
            return [(one["Key"], one["UploadId"]) for page in pages for one in page.get("Uploads", [])]
        except (BotoCoreError, ClientError):  # not every key for a bucket may ask
            return []

    def names(self) -> list[str]:
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        return self._listed(f"{self.prefix}/")

    def attachment_sizes(self) -> dict[str, int]:
        return self._listed(f"{PurePosixPath(self.prefix).parent / ATTACHMENTS}/")

    def _listed(self, prefix: str) -> dict[str, int]:
        with _as_os_errors(prefix):
            pages = self.store.client.get_paginator("list_objects_v2").paginate(Bucket=self.store.bucket, Prefix=prefix)
            found = [one for page in pages for one in page.get("Contents", [])]
        return {one["Key"].removeprefix(prefix): int(one["Size"]) for one in found}

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


def artifacts_of(
    place: str,
    study: str | Owner,
    default: Path,
    wrote: Callable[[Artifacts], bool] = lambda kept: False,
    reading: bool = False,
) -> Artifacts:
    """Returns a study's artifacts in a folder, or at s3://bucket/prefix with `default` as the folder here.

    They are in the folder of the name under which the study began; where that is another study's, in one of its own
    beside it. `wrote` tells whether files without an owner, as those of version 0.1, are of this study. For
    `reading` nothing is written down. With a name alone, ownership is not looked at.

    Raises WorkerError when the place cannot be used, or the name, which is not trusted, leads out of it.
    """
    if isinstance(study, str):
        return _at(place, study, default / "s3")
    antechamber = default / "s3" / study.identity[:16]  # what was fetched from a bucket is one study's, too
    try:
        first = _at(place, study.folder, antechamber)
        if _belongs(first, study.identity, wrote, reading):
            return first
        own = _at(place, f"{study.folder}-{study.identity[:8]}", antechamber)
        if not reading and own.claim(study.identity) != study.identity:
            raise WorkerError(f"{own.folder}: belongs to another study; choose other --artifacts")
    except OSError as error:
        raise WorkerError(f"{error.filename or place}: {remedy(error)}") from error
    own.refused = str(first.folder) if type(first) is Artifacts else f"{place}/{study.folder}"
    return own


def _belongs(kept: Artifacts, identity: str, wrote: Callable[[Artifacts], bool], reading: bool) -> bool:
    owner = kept.owner()
    if owner is None and (kept.is_empty or wrote(kept)):
        owner = identity if reading else kept.claim(identity)
    return owner == identity


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    for path in folder.glob("**/*"):
        with suppress(FileNotFoundError):  # deleted meanwhile
            if path.is_file():
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes


def _remove_empty(folder: Path) -> None:
    """Deletes a folder, or what a link to one leads to, with the folders in it, as far as no file is there."""
    for place, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # not empty
            Path(place).resolve().rmdir()
    if folder.is_symlink() and not folder.exists():
        folder.unlink()


def remedy(error: OSError) -> str:
    """Returns what is wrong with a place, and what to do."""
    if isinstance(error, PermissionError):
        return (
            "you may not write there; let its owner share it with a group of yours "
            "(chgrp -R GROUP, chmod -R g+rwX, chmod g+s on folders, umask 002 for all), or choose other --artifacts"
        )
    return f"cannot be made ({error.strerror or error}); choose other --artifacts"


def _owner_text(identity: str) -> str:
    return json.dumps({"identity": identity}) + "\n"


def _identity(content: bytes) -> str:
    try:
        return str(json.loads(content)["identity"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""  # it has an owner that cannot be told


def _at(place: str, study: str, antechamber: Path) -> Artifacts:
    if name_problem(study, FOLDER_BYTES) is not None:
        raise WorkerError(f"study {study!r}: no folder can have this name; rename it")
    if not place.startswith(SCHEME):
        if "://" in place:
            raise WorkerError(f"{place}: artifacts are kept in a folder or at s3://bucket/prefix, nowhere else")
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
    return Bucket(antechamber / bucket / key, Boto3ArtifactStore(bucket, client, avoid_buf_copy=True), key)


def _whole(path: Path) -> str:
    """The name of the file that a draft was to be, or of a file itself."""
    name = re.sub(r"^\.(.*)\.[^.]+$", r"\1", path.name)
    return path.with_name(name).as_posix()


@contextmanager
def _as_os_errors(name: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise OSError(0, f"{type(error).__name__}: {error}", name) from error
