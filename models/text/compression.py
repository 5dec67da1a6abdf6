"""Unpacks compressed files, as far as a text can grow."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from models.errors import CorpusError

ENDINGS = (".gz", ".bz2", ".xz", ".zst")

LARGEST_RATIO, ALWAYS = 250, 2**24
"""How many times its size a file may unpack to, from that many bytes on: text shrinks to a third, and a log to a
fiftieth; a file that was made to fill a memory unpacks to a thousand times its size, or more."""

CHUNK = 2**20


def ending_of(path: Path) -> str:
    """Returns the kind of a file by its name, below a compression: `.jsonl` of a.jsonl.gz."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending in ENDINGS else ending


def content_of(path: Path) -> bytes:
    """Returns what a file holds, unpacked. Raises CorpusError where it is damaged, OSError where it cannot be read."""
    return b"".join(contents_of(path))


def contents_of(path: Path) -> Iterator[bytes]:
    """Yields what a file holds, unpacked, a piece of at most CHUNK bytes after another; raises as `content_of` does."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        with path.open("rb") as plain:
            yield from iter(lambda: plain.read(CHUNK), b"")
        return
    most, size = max(ALWAYS, LARGEST_RATIO * path.stat().st_size), 0
    opened, damage = _reader(path, ending)
    try:
        with opened() as file:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                if size > most:
                    raise CorpusError(
                        f"corpus {path}: unpacks to more than {LARGEST_RATIO} times its size, as no text does; "
                        "unpack it, if it is one"
                    )
                yield chunk
    except damage as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorpusError(f"corpus {path}: a damaged {ending} file ({error}); write it again") from error


def _reader(path: Path, ending: str) -> tuple[Callable[[], IO[bytes]], tuple[type[Exception], ...]]:
    """Returns what opens a file of this kind, and what reading a damaged one raises."""
    if ending == ".gz":
        return lambda: cast(IO[bytes], gzip.open(path)), (EOFError, gzip.BadGzipFile, zlib.error)
    if ending == ".bz2":
        return lambda: cast(IO[bytes], bz2.open(path)), (EOFError, OSError)
    if ending == ".xz":
        return lambda: cast(IO[bytes], lzma.open(path)), (EOFError, lzma.LZMAError)
    try:
        import zstandard
    except ImportError as error:
        raise CorpusError(f"corpus {path}: .zst files need zstandard: pip install 'textgen-tuner[zstd]'") from error
    return lambda: cast(IO[bytes], zstandard.open(path, "rb")), (EOFError, zstandard.ZstdError)
