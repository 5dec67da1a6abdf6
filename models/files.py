"""Writes files completely or not at all, removes what killed writers leave, and tolerates failures of extras."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

_DESCRIPTOR = re.compile(r"/dev/(?:stdin|stdout|stderr|fd/[0-9]+)|/proc/[^/]+/fd/[0-9]+")
"""Names of what a process has open already, be it a file: to replace it would be to replace the name."""

ABANDONED_SECONDS = 24 * 3600.0
"""Age from which on a draft counts as abandoned: no file takes that long to write."""


def draft_of(path: Path) -> Path:
    """Returns where this process writes `path` before it is put in place: beside it, under a name of its own."""
    return path.with_name(f".{path.name}.{_us()}-{os.getpid()}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields where to write; what was written is put in place in one move, unless an error ended the block.

    What is no file, such as a pipe, is written to directly.
    """
    if is_stream(path):
        yield path
        return
    draft = draft_of(path)
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def exclusively(path: Path) -> Iterator[Path]:
    """The same for a file that must not be there yet; FileExistsError for all but the first who finishes."""
    draft = draft_of(path.with_name(f"{path.name}.{uuid4().hex}"))
    try:
        yield draft
        try:
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: here the file is seen empty for a moment
            with path.open("xb") as file:
                file.write(draft.read_bytes())
    finally:
        draft.unlink(missing_ok=True)


def sweep(folder: Path, name: str = "*") -> None:
    """Deletes the drafts of files of that name whose writers were killed; those of living ones stay."""
    for draft in folder.glob(f".{name}.*"):
        with suppress(OSError):
            if is_abandoned(draft):
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def is_abandoned(draft: Path) -> bool:
    """Whether a draft is abandoned: its process on this machine is gone, or it is a day old."""
    owner = re.search(r"\.([^.]*)-([0-9]+)$", draft.name)
    if owner is None:
        return False
    if owner[1] == _us() and not is_running(int(owner[2])):
        return True
    return time.time() - draft.stat().st_mtime > ABANDONED_SECONDS


def is_running(process: int) -> bool:
    """Whether a process of that number is at work on this machine; one that has ended and waits for burial is not."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    with suppress(OSError, IndexError):  # Linux tells
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True


def require_plain(path: Path, most: int | None = None) -> None:
    """Raises OSError unless `path` is a file of at most `most` bytes: one from elsewhere may be anything."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if most is not None and found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, more than {most:,}", str(path))


def is_stream(path: Path) -> bool:
    """Whether what is written there goes on elsewhere, as in a pipe or /dev/null; it is neither read nor replaced."""
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        kind = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(kind) and not stat.S_ISDIR(kind)


def is_stdout(path: Path) -> bool:
    """Whether a path is the output of this very process."""
    return str(path) in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def require_makeable(folder: Path) -> None:
    """Tries to make a folder and to write in it, and leaves nothing; raises OSError when that does not work."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = draft_of(folder / "trial")
        trial.touch()
        trial.unlink()
    finally:
        for one in missing:
            with suppress(OSError):  # another process has put something there
                one.rmdir()


@contextmanager
def optional(what: str, warn: Callable[[str], None] | None = None) -> Iterator[None]:
    """Makes one line of whatever goes wrong inside: nothing that follows a result may cost that result."""
    try:
        yield
    except Exception as error:
        line = " ".join(f"{what}: {reason(error)}".split())
        warn(line) if warn is not None else warnings.warn(line, stacklevel=3)


def reason(error: BaseException) -> str:
    """Returns in a few words what went wrong."""
    said = getattr(error, "strerror", None) or str(error)
    return said.strip().split("\n")[0][:300] or type(error).__name__


def _us() -> str:
    return re.sub(r"[^0-9A-Za-z_]", "_", socket.gethostname())
