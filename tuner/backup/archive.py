"""The backup file format: a tar of known names, each with its checksum; anything else is refused unread.

    manifest.json                                   the format's number, versions, sizes and checksums; the last member
    study/study.json                                name, directions, number of trials, state, active seconds
    study/trials.jsonl                              a trial in each line, in the order of their numbers
    study/attributes.jsonl                          an attribute of the study in each line, notes and figures among them
    study/artifacts/trial-3/model.safetensors ...   kept runs, and checkpoints of trials that were not at their end
    study/attachments/ID                            what the dashboard shows beside trials
    confirmation/...                                the same of the study that confirms the best, if there is one

Nothing is compressed, sparse, linked or executable: what comes out is never larger than the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO

from models.errors import RunError
from models.files import is_stream, sweep, written_whole
from tuner.artifacts.layout import CHECKPOINT, RUN_FILE
from tuner.errors import StudyError
from tuner.trials.attachments import ID

FORMAT = 1
MANIFEST = "manifest.json"
PARTS = ("study", "confirmation")
_ARTIFACT = f"artifacts/(?:{CHECKPOINT.pattern}|{RUN_FILE.pattern})"
_NAME = re.compile(
    rf"(?:{'|'.join(PARTS)})/(?:study\.json|trials\.jsonl|attributes\.jsonl|attachments/{ID.pattern}|{_ARTIFACT})"
)
MOST_MEMBERS = 1_000_000
LONGEST_LINE = 2**26
"""Bytes; a line is read as a whole, a file never is."""


class Writer:
    """Adds members to a backup, one after another."""

    def __init__(self, tar: tarfile.TarFile, folder: Path | None) -> None:
        self.tar, self.folder = tar, folder
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, name: str, source: IO[bytes]) -> None:
        """Adds what can be read from `source`."""
        with self._spool() as spool:
            shutil.copyfileobj(source, spool)
            self._add(name, spool)

    def add_lines(self, name: str, lines: Iterable[Any]) -> None:
        """Adds a file of JSON lines."""
        with self._spool() as spool:
            for line in lines:
                spool.write(json.dumps(line).encode() + b"\n")
            self._add(name, spool)

    def finish(self, facts: dict[str, Any]) -> None:
        """Adds the manifest."""
        manifest = {"format": FORMAT, "made": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        self._add(MANIFEST, BytesIO(json.dumps(manifest | {"files": self.files}, indent=1).encode()))

    def _spool(self) -> Any:
        return tempfile.TemporaryFile(dir=self.folder)  # on the disk of the backup, for it may be large

    def _add(self, name: str, content: IO[bytes]) -> None:
        member = tarfile.TarInfo(name)
        member.size = content.seek(0, os.SEEK_END)
        content.seek(0)
        self.files[name] = {"bytes": member.size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}  # type: ignore[arg-type]
        content.seek(0)
        self.tar.addfile(member, content)


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Writes a backup whole or not at all. Raises RunError."""
    stream = is_stream(path)
    try:
        if not stream:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent, path.name)
        with written_whole(path) as draft, draft.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w|" if stream else "w", format=tarfile.PAX_FORMAT) as tar:
                yield Writer(tar, None if stream else path.parent)
            file.flush()
            if not stream:
                os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


class Reader:
    """A backup whose members are known, and are what they were when it was written."""

    def __init__(self, tar: tarfile.TarFile, path: Path) -> None:
        self.tar, self.path = tar, path
        self.members = dict(self._members())
        manifest = self._manifest()
        files = manifest.get("files")
        if not isinstance(files, dict) or files.keys() != self.members.keys() - {MANIFEST}:
            raise self.damaged("its list of files is not that of the files in it")
        for name, facts in files.items():
            self._require_sum(name, facts)

    def names(self, folder: str) -> list[str]:
        """Returns the names of the files in a folder, relative to it."""
        return [name.removeprefix(f"{folder}/") for name in self.members if name.startswith(f"{folder}/")]

    def open(self, name: str) -> BinaryIO:
        """Opens a file of the backup."""
        if name not in self.members:
            raise self.damaged(f"{name} is missing")
        file = self.tar.extractfile(self.members[name])
        assert file is not None  # a plain file
        return file  # type: ignore[return-value]

    def lines(self, name: str) -> Iterator[str]:
        """Yields the lines of a file."""
        with self.open(name) as file:
            while line := file.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise self.damaged(f"{name}: a line of more than {LONGEST_LINE} bytes")
                try:
                    yield line.decode()
                except UnicodeDecodeError as error:
                    raise self.damaged(f"{name}: {error}") from error

    def damaged(self, what: str) -> StudyError:
        """Returns the error that says so."""
        return StudyError(f"{self.path}: damaged, or no backup that `tuner backup` wrote: {what}; nothing was restored")

    def _members(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
        seen: set[str] = set()
        for member in self.tar:
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                raise self.damaged(f"{_shown(member.name)} is no plain file")
            if member.name != MANIFEST and not _NAME.fullmatch(member.name):
                raise self.damaged(f"{_shown(member.name)} has no place in it")
            if member.name in seen or len(seen) >= MOST_MEMBERS:
                raise self.damaged(f"{_shown(member.name)} stands in it twice, or there are too many files")
            seen.add(member.name)
            yield member.name, member

    def _manifest(self) -> dict[str, Any]:
        with self.open(MANIFEST) as file:
            text = file.read(LONGEST_LINE * 4 + 1)
        try:
            manifest = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"{MANIFEST} cannot be read ({error})") from error
        written = manifest.get("format") if isinstance(manifest, dict) else None
        if isinstance(written, int) and written > FORMAT:
            raise StudyError(
                f"{self.path}: a backup of format {written}, and this tuner knows {FORMAT}: install a newer one"
            )
        if written != FORMAT:
            raise self.damaged(f"its format is {written!r}")
        return dict(manifest)

    def _require_sum(self, name: str, facts: Any) -> None:
        with self.open(name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if not isinstance(facts, dict) or facts.get("sha256") != found:
            raise self.damaged(f"{name} is not what it was")


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """Opens a backup after everything in it was checked. Raises StudyError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        try:
            checked = Reader(tarfile.open(fileobj=file, mode="r:"), path)  # noqa: SIM115 (it closes `file`)
        except (tarfile.TarError, OSError) as error:  # OSError: a member that claims to be larger than any file
            raise StudyError(f"{path}: damaged, or no backup at all ({error}); nothing was restored") from error
        yield checked


def _shown(name: str) -> str:
    """A name of unknown origin, made safe for a terminal."""
    return ascii(name[:100])
