"""Remembers what large texts are, by their files' sizes and times, so that not every process reads them whole."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from models import config
from models.files import written_whole
from models.text.reading import matching

SETTLED_SECONDS = 2.0
"""A file that was changed later than this before it was read may change again without another time."""


@dataclass(frozen=True)
class Known:
    """What a text is: its name, which files were read, its fingerprint, and the characters of each section."""

    name: str
    files: str
    fingerprint: str
    lengths: dict[str, int]


def signature(source: config.Corpus, now: float | None = None) -> str | None:
    """Returns what changes when a file of the corpus does; None where one changed a moment ago, or is none."""
    now = time.time() if now is None else now
    seen: list[object] = [source.field]
    try:
        for paths in (source.path, source.validation, source.test):
            seen.append(None)
            for path in _files(paths):
                status = path.stat()
                if not path.is_file() or now - status.st_mtime < SETTLED_SECONDS:
                    return None
                seen.append([str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino])
    except OSError:
        return None
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:32]


def _files(paths: str | list[str] | None) -> Iterator[Path]:
    for written in [paths] if isinstance(paths, str) else paths or []:
        for path in matching(written):
            if not path.is_dir():
                yield path
            for folder, _, names in os.walk(path):
                yield from (Path(folder, name) for name in sorted(names))


def recall(cache: Path, key: str | None) -> Known | None:
    """Returns what was remembered under a signature."""
    if key is None:
        return None
    try:
        return Known(**json.loads(_place(cache, key).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def remember(cache: Path, key: str | None, known: Known) -> None:
    """Keeps what a text is, where the cache can be written to."""
    if key is None:
        return
    with suppress(OSError):
        place = _place(cache, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(place) as draft:
            draft.write_text(json.dumps(asdict(known)) + "\n", encoding="utf-8")


def _place(cache: Path, key: str) -> Path:
    return cache / "known" / f"{key}.json"
